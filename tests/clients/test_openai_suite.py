"""Proves that openai-python's own tests of its API end through the pooler as they do without it.

Method: each test of its `api_resources` is run twice against a mock server of OpenAI's own OpenAPI
document: directly, and through the pooler.  What differs is listed here, with the reason.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.clients.aimock import HERE, Asked, Tap
from tests.clients.suites import (
    explain,
    openai_document,
    pooler_before,
    read_lines,
    run_suite,
    steady,
    unpacked,
)
from tests.support.processes import POOL_KEY

FOLDER: Final = "tests/api_resources"
# Those that call what the pooler serves, with every client that the suite has.
SERVED: Final = [
    "beta/responses",
    "beta/test_responses.py",
    "chat",
    "responses",
    "test_images.py",
    "test_models.py",
    "test_responses.py",
]
LEAST_SERVED, LEAST_OTHERS = 520, 1400  # tests: fewer means that the suite has changed
MODELS: Final = ["gpt-6-astra"]  # all that the suite names

################################################################
# THE DIFFERENCES THAT ARE OURS
################################################################

# What the client is told, and why that is right.
NO_ROUTE: Final = "404 - Unsupported OpenAI /v1 endpoint"  # a narrow API, which stores nothing
NO_METHOD: Final = "405 - This method is not allowed"  # as NO_ROUTE, on a path that is served
NO_MODEL: Final = "400 - The request names no model"  # accounts are chosen by the model
NO_CHATGPT: Final = "404 - Only ChatGPT accounts have this route"  # and the pool here has none
REASONS: Final = (NO_ROUTE, NO_METHOD, NO_MODEL, NO_CHATGPT)

_RETRIEVED: Final = [
    f"retrieve{params}_overload_{number}" for params in ("", "_with_all_params") for number in "12"
]
_STORED: Final = [*_RETRIEVED, "cancel", "delete"]
_OF_BETA: Final = ["cancel_with_all_params", "delete_with_all_params"]
_CREATED: Final = ["create_overload_1", "create_overload_2"]
_LISTED: Final = ["list", "list_with_all_params"]
_COUNTED: Final = ["count", "count_with_all_params"]
_DRAWN: Final = [
    f"{what}{params}_overload_{number}"
    for what in ("edit", "generate")
    for params in ("", "_with_all_params")
    for number in "12"
]
# By file: what the tests do, without how they look at the response.
DIFFERENCES: Final[dict[str, dict[str, list[str]]]] = {
    "beta/responses/test_input_items.py": {NO_ROUTE: _LISTED},
    "beta/responses/test_input_tokens.py": {NO_ROUTE: _COUNTED},
    "beta/test_responses.py": {NO_ROUTE: [*_STORED, *_OF_BETA], NO_MODEL: _CREATED},
    "chat/completions/test_messages.py": {NO_ROUTE: _LISTED},
    "chat/test_completions.py": {NO_ROUTE: ["retrieve", "update", "delete"], NO_METHOD: _LISTED},
    "responses/test_input_items.py": {NO_ROUTE: _LISTED},
    "responses/test_input_tokens.py": {NO_ROUTE: _COUNTED},
    "test_images.py": {
        NO_CHATGPT: _DRAWN,
        NO_ROUTE: ["create_variation", "create_variation_with_all_params"],
    },
    "test_models.py": {NO_METHOD: ["delete"]},
    "test_responses.py": {NO_ROUTE: _STORED, NO_MODEL: _CREATED},
}

################################################################
# THE RUNS
################################################################


@dataclass(frozen=True)
class Outcome:
    word: str  # passed, failed or skipped
    raised: str


@dataclass(frozen=True)
class Run:
    """How the tests ended, by file and name, and what their upstream was asked."""

    outcomes: dict[str, Outcome]
    asked: list[Asked]


@dataclass(frozen=True)
class Suite:
    source: Path
    upstream: Tap

    def run(self, name: str, base_url: str, *chosen: str) -> Run:
        self.upstream.forget()
        written = self.source / f"{name}.jsonl"
        written.unlink(missing_ok=True)
        done = run_suite(
            *("-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "--tb=line"),
            *("-p", "outcomes", *chosen),
            folder=self.source,
            OUTCOMES=str(written),
            PYTHONPATH=str(HERE),
            TEST_API_BASE_URL=base_url,
        )
        assert written.is_file(), done.stdout + done.stderr
        outcomes = {
            test.removeprefix(f"{FOLDER}/"): Outcome(word, raised)
            for test, word, raised in read_lines(written)
        }
        return Run(outcomes, list(self.upstream.asked))

    def run_directly(self, *chosen: str) -> Run:
        return self.run("directly", f"http://127.0.0.1:{self.upstream.listening.port}", *chosen)

    def run_through(self, folder: Path, *chosen: str) -> Run:
        with pooler_before(self.upstream, folder, MODELS) as pooler:
            return self.run("through", pooler.base_url, *chosen)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    folder = tmp_path_factory.mktemp("suite")
    source = unpacked("openai", folder)
    conftest = source / "tests/conftest.py"
    written = re.sub('"My (Admin )?API Key"', repr(POOL_KEY), conftest.read_text("utf-8"))
    conftest.write_text(written, "utf-8")
    document = folder / "openapi.yml"
    document.write_text(openai_document(), "utf-8")
    with steady(document) as upstream:
        yield Suite(source, upstream)


def reason_of(outcome: Outcome) -> str:
    """Which of the reasons it is; what has ended it, if it is none of them."""
    known = [reason for reason in REASONS if reason in outcome.raised]
    return known[0] if known else f"{outcome.word}: {outcome.raised}"


def differences(directly: Run, through: Run) -> dict[str, set[str]]:
    """By file and what is done: the reasons why it ends otherwise through the pooler."""
    found = defaultdict(set)
    for test, outcome in through.outcomes.items():
        if outcome != directly.outcomes[test]:
            file, _, name = test.partition("::")
            done = re.sub(r".*::test_(method|raw_response|streaming_response)_|\[.*", "", name)
            found[f"{file} {done}"].add(reason_of(outcome))
    return dict(found)


def essence(asked: Asked) -> tuple[str, str, bytes]:
    """What a request asks for, without its headers and its query."""
    return asked.method, asked.path.partition("?")[0], asked.raw.partition(b"\r\n\r\n")[2]


def is_part(part: list[Asked], whole: list[Asked]) -> bool:
    """Whether these requests are among those, in their order and byte for byte."""
    rest = map(essence, whole)
    return all(essence(one) in rest for one in part)


################################################################
# THE TESTS
################################################################


def test_what_is_served_is_served_as_openai_would(suite: Suite, tmp_path: Path) -> None:
    chosen = [f"{FOLDER}/{path}" for path in SERVED]
    directly = suite.run_directly(*chosen)
    through = suite.run_through(tmp_path, *chosen)
    assert len(directly.outcomes) >= LEAST_SERVED
    assert directly.outcomes.keys() == through.outcomes.keys()
    expected = {
        f"{file} {done}": {reason}
        for file, reasons in DIFFERENCES.items()
        for reason, names in reasons.items()
        for done in names
    }
    assert explain(differences(directly, through), expected) == ""
    passed = [test for test, outcome in through.outcomes.items() if outcome.word == "passed"]
    assert all(directly.outcomes[test].word == "passed" for test in passed)
    assert through.asked
    assert is_part(through.asked, directly.asked)
    # No query is passed on: `?beta=true` and the header OpenAI-Beta stay here.
    assert not [asked for asked in through.asked if "?" in asked.path]


def test_all_else_is_refused_in_the_same_words(suite: Suite, tmp_path: Path) -> None:
    # Without those that play the server themselves (`respx2`).
    chosen = [FOLDER, "-k", "loose and not Async", "-m", "not respx2"]
    chosen += [f"--ignore={FOLDER}/{path}" for path in SERVED]
    through = suite.run_through(tmp_path, *chosen)
    assert len(through.outcomes) >= LEAST_OTHERS
    ends = {
        (outcome.word if outcome.word != "failed" else reason_of(outcome), "path_params" in test)
        for test, outcome in through.outcomes.items()
    }
    # Those about paths call nobody.
    assert ends == {("passed", True), (NO_ROUTE, False)}
    assert through.asked == []
