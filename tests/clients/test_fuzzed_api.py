"""Proves that what schemathesis makes of OpenAI's description is answered as without the pooler.

Method: a server between schemathesis and both gives each request to a mock server of the same
description, and to the pooler before that.  What the two say differently is listed here, with the
reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.clients.aimock import HERE
from tests.clients.suites import openai_document, pooler_before, run_suite, steady
from tests.clients.twin import Twin
from tests.support.processes import POOL_KEY

MODEL: Final = "gpt-6-astra"
LEAST_COVERED, LEAST_FUZZED = 850, 60  # requests that are answered alike
EXAMPLES_MAX: Final = 40  # for each operation, where they are random

################################################################
# THE DIFFERENCES THAT ARE OURS
################################################################

CHAT, RESPONSES, COMPACT = "/chat/completions", "/responses", "/responses/compact"
MODELS, ONE_MODEL = "/models", "/models/{model}"
POSTED: Final = (CHAT, RESPONSES, COMPACT)


def answers(what: str, ours: str, *directly: int) -> set[str]:
    return {f"{what}: {status} -> {ours}" for status in directly}


# The mock server has no keys.
NO_KEY: Final = {
    f"{what}: 200 -> 401 invalid_api_key"
    for what in (f"GET {MODELS}", f"GET {ONE_MODEL}", f"POST {CHAT}")
}
# Other methods: in our words, or what is done to stored completions and models of one's own.
# OPTIONS has no route, because there is no CORS.
METHODS: Final = {
    difference
    for path, served, stored in (
        (CHAT, "POST", "GET"), (MODELS, "GET", ""), (ONE_MODEL, "GET", "DELETE"),
    )
    for method in ("DELETE", "GET", "PATCH", "POST", "PUT", "QUERY", "TRACE", "OPTIONS")
    if method != served
    for difference in answers(
        f"{method} {path}",
        "404 not_found" if method == "OPTIONS" else "405 method_not_allowed",
        200 if method == stored else 405,
    )
}  # fmt: skip
# The body of a GET is not looked at, nor what it is declared to be.
GETS: Final = {f"GET {path}: 400 -> 200" for path in (MODELS, ONE_MODEL)}
# One that no account lists.
NO_MODEL: Final = {f"GET {ONE_MODEL}: 200 -> 404 model_not_found"}
# How schemathesis looks what a server takes.
PROBES: Final = {
    "GET : 400 -> 400 bad_request",
    "GET /schemathesis-probe%5C%1B%01: 404 -> 404 unsupported_endpoint",
}
# The answer of the mock server has more fields than Python's client reads.
UNREAD: Final = {f"POST {CHAT}: 0 -> 400"}
# What the pooler itself looks at in a body: that it is JSON, an object, without numbers of more
# than 32 digits, and names a model that it knows; in Chat, that `stream` is a boolean or null.
# The mock server fails where it cannot read a body, and takes what has no body.
BODIES: Final = {
    *answers(f"POST {CHAT}", "400 invalid_json", 200, 400),
    *answers(f"POST {CHAT}", "400 missing_required_parameter", 200, 400),
    *answers(f"POST {CHAT}", "400 model_not_found", 200),
    *answers(f"POST {CHAT}", "400 invalid_value", 400),
    *answers(f"POST {CHAT}", "415 unsupported_media_type", 400),
}
COVERED: Final = NO_KEY | METHODS | GETS | NO_MODEL | PROBES | UNREAD | BODIES
# The same, of all bodies; and an upstream's failure is told in the form of OpenAI's errors.
REFUSALS: Final = (
    "400 invalid_json", "400 missing_required_parameter", "400 model_not_found",
    "400 invalid_value", "415 unsupported_media_type",
)  # fmt: skip
FUZZED: Final = (
    NO_MODEL
    | PROBES
    | {
        difference
        for path in POSTED
        for difference in (
            *(one for ours in REFUSALS for one in answers(f"POST {path}", ours, 0, 200, 400, 500)),
            *answers(f"POST {path}", "500 upstream_error", 500),
            *answers(f"POST {path}", "400", 0),
        )
    }
)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """OpenAI's document, and what the pooler serves of it."""
    folder = tmp_path_factory.mktemp("documents")
    whole, served = folder / "openapi.yml", folder / "served.json"
    whole.write_text(openai_document(), "utf-8")
    trimmed = run_suite(HERE / "trimmed.py", whole, served, MODEL, folder=folder)
    assert trimmed.returncode == 0, trimmed.stderr
    return whole, served


@pytest.fixture
def twin(documents: tuple[Path, Path], tmp_path: Path) -> Iterator[Twin]:
    with (
        steady(documents[0]) as upstream,
        pooler_before(upstream, tmp_path, [MODEL]) as pooler,
        contextlib.closing(Twin(upstream.port, urlsplit(pooler.origin).port or 0)) as opened,
    ):
        yield opened


def fuzz(document: Path, twin: Twin, folder: Path, *chosen: str) -> None:
    done = run_suite(
        *("-m", "schemathesis.cli", "run", document),
        *("--url", f"http://127.0.0.1:{twin.listening.port}/v1"),
        *("--header", f"Authorization: Bearer {POOL_KEY}", "--continue-on-failure"),
        *("--seed", "1", "--suppress-health-check", "all", "--checks", "not_a_server_error"),
        *chosen,
        folder=folder,
    )
    # Nothing of it may be a failure of the pooler's; those of the upstream are told apart here.
    assert "ST101" not in done.stdout, done.stdout
    assert "passed" in done.stdout, done.stdout + done.stderr


def test_whatever_openai_describes_is_answered_as_by_its_upstream(
    documents: tuple[Path, Path], twin: Twin, tmp_path: Path
) -> None:
    # Without Responses: its schema has so many combinations that they take minutes.
    chosen = ("--phases", "examples,coverage", "--exclude-path-regex", "^/responses")
    fuzz(documents[1], twin, tmp_path, *chosen)
    assert twin.same >= LEAST_COVERED
    assert set(twin.different) == COVERED, twin.differences(COVERED)


def test_random_requests_are_answered_as_by_their_upstream(
    documents: tuple[Path, Path], twin: Twin, tmp_path: Path
) -> None:
    fuzz(documents[1], twin, tmp_path, "--phases", "fuzzing", "--max-examples", str(EXAMPLES_MAX))
    assert twin.same >= LEAST_FUZZED
    assert set(twin.different) <= FUZZED, twin.differences(FUZZED)
