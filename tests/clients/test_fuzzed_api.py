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
LEAST_COVERED, LEAST_FUZZED = 7000, 60  # requests that are answered alike
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
    for what in (f"GET {MODELS}", f"GET {ONE_MODEL}", *(f"POST {path}" for path in POSTED))
}
# Other methods: in our words, or what is done to stored completions and models of one's own.  The
# mock server takes `compact` for a stored response.
STORED: Final = {f"GET {CHAT}", f"GET {COMPACT}", f"DELETE {COMPACT}", f"DELETE {ONE_MODEL}"}
OTHER_METHODS: Final = {
    f"{method} {path}"
    for path in (*POSTED, MODELS, ONE_MODEL)
    for method in ("DELETE", "GET", "PATCH", "POST", "PUT", "QUERY", "TRACE")
    if method != ("POST" if path in POSTED else "GET")
}
OPTIONS: Final = {f"OPTIONS {path}" for path in (*POSTED, MODELS, ONE_MODEL)}
UPGRADE: Final = f"GET {RESPONSES}"  # a WebSocket, for which something is missing
METHODS: Final = {
    *(f"{what}: 200 -> 405 method_not_allowed" for what in STORED),
    *(f"{what}: 405 -> 405 method_not_allowed" for what in OTHER_METHODS - STORED - {UPGRADE}),
    f"{UPGRADE}: 405 -> 426 websocket_unsupported",
    *(f"{what}: 405 -> 404 not_found" for what in OPTIONS),  # there is no CORS
}
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
# The pooler says in Accept what a stream is asked for; the mock server goes by that.
STREAM: Final = {f"POST {RESPONSES}: 200 -> 200"}
# What the pooler itself looks at in a body: that it is JSON, an object, without numbers of more
# than 32 digits, and names a model that it knows; in Chat, that `stream` is a boolean or null.
BODIES: Final = {
    difference
    for path in POSTED
    for difference in (
        *answers(f"POST {path}", "400 invalid_json", 200, 400),
        *answers(f"POST {path}", "400 missing_required_parameter", 200, 400),
        *answers(f"POST {path}", "400 model_not_found", 200),
        *answers(f"POST {path}", "415 unsupported_media_type", 400),
    )
}
# Of one route only: a check, and forms instead of JSON, which the mock server takes.
ONE_BODY: Final = {
    *answers(f"POST {CHAT}", "400 invalid_value", 400),
    *answers(f"POST {COMPACT}", "415 unsupported_media_type", 200),
}
COVERED: Final = NO_KEY | METHODS | GETS | NO_MODEL | PROBES | UNREAD | STREAM | BODIES | ONE_BODY
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
    fuzz(documents[1], twin, tmp_path, "--phases", "examples,coverage")
    assert twin.same >= LEAST_COVERED
    assert set(twin.different) == COVERED, twin.differences(COVERED)


def test_random_requests_are_answered_as_by_their_upstream(
    documents: tuple[Path, Path], twin: Twin, tmp_path: Path
) -> None:
    fuzz(documents[1], twin, tmp_path, "--phases", "fuzzing", "--max-examples", str(EXAMPLES_MAX))
    assert twin.same >= LEAST_FUZZED
    assert set(twin.different) <= FUZZED, twin.differences(FUZZED)
