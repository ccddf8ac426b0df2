"""Proves that a compliance suite of the APIs finds through the pooler what it finds without it.

Method: llm-comply, which judges by the specification of Open Responses and by OpenAI's of Chat.
First over aimock, which is asked directly, too; then over ChatGPT accounts, where each Chat
response is the pooler's own work.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.clients.aimock import MODEL, Providers, calls, says
from tests.clients.codex import Backend, CodexPool
from tests.clients.suites import explain, run_suite
from tests.support.codex_turns import Play
from tests.support.processes import API_KEYS, POOL_KEY

RESPONSES, CHAT = "open-responses", "openai-chat"
COUNTS: Final = {RESPONSES: 13, CHAT: 9}  # of the suite's tests

# aimock does not insist on a model; the pooler chooses accounts by it.
NEEDS_NO_MODEL: Final = "HTTP 200 (expected [400, 422])"
# aimock has no such route and says 404, which OpenCode would take for a reason to ask again.
HAS_NO_ROUTE: Final = "HTTP 400 (expected [200, 404])"
# By test: the errors without the pooler, and those through it.
Errors = tuple[list[str], list[str]]
DIFFERENCES: Final[dict[str, dict[str, Errors]]] = {
    RESPONSES: {
        "compact-response": ([], [HAS_NO_ROUTE]),
        "error-handling": ([NEEDS_NO_MODEL], []),
    },
    CHAT: {"chat-error-handling": ([NEEDS_NO_MODEL], [])},
}


# Of the ChatGPT backend's responses, which are passed on as they are.
LACKS_A_MEMBER: Final = "is a required property"
OF_THE_BACKEND: Final = {
    "reasoning-summary": ["response.reasoning is missing or not an object"],
    # A compaction goes there as it came, and the backend takes what Codex CLI would send.
    "compact-response": ["HTTP 400 (expected [200, 404])"],
}


@dataclass(frozen=True)
class Verdict:
    errors: list[str]
    warnings: list[str]


def judge(form: str, base_url: str, key: str, folder: Path) -> dict[str, Verdict]:
    """What the suite says about an API, by the names of its tests."""
    done = run_suite(
        *("-m", "llm_comply.cli", "--base-url", base_url, "--api-key", key, "--model", MODEL),
        *("--format", form, "--json"),
        folder=folder,
    )
    results = json.loads(done.stdout)["results"]
    assert len(results) == COUNTS[form]
    assert {result["status"] for result in results} <= {"passed", "failed"}
    return {
        result["id"]: Verdict(result.get("errors", []), result.get("warnings", []))
        for result in results
    }


@pytest.mark.parametrize("form", [RESPONSES, CHAT])
def test_the_same_is_found_as_without_the_pooler(
    form: str, providers: Providers, tmp_path: Path
) -> None:
    weather = calls("get_weather", {"location": "San Francisco"}, toolName="get_weather")
    providers.first.will(weather, says())
    pooler = providers.start()
    directly = judge(form, f"{providers.first.origin}/v1", API_KEYS["first"], tmp_path)
    through = judge(form, pooler.base_url, POOL_KEY, tmp_path)
    found = {
        name: (directly[name].errors, verdict.errors)
        for name, verdict in through.items()
        if verdict != directly[name]
    }
    assert explain(found, DIFFERENCES[form]) == ""


def test_chat_over_chatgpt_accounts_is_compliant(
    codex_pool: CodexPool, backend: Backend, tmp_path: Path
) -> None:
    backend.will(Play(with_tools=True, tool="get_weather", arguments={"location": "Oslo"}))
    found = judge(CHAT, codex_pool.start().base_url, POOL_KEY, tmp_path)
    assert {name: verdict.errors for name, verdict in found.items() if verdict.errors} == {}


def test_responses_over_chatgpt_accounts_lack_what_the_backend_lacks(
    codex_pool: CodexPool, backend: Backend, tmp_path: Path
) -> None:
    backend.will(Play(with_tools=True, tool="get_weather", arguments={"location": "Oslo"}))
    found = judge(RESPONSES, codex_pool.start().base_url, POOL_KEY, tmp_path)
    errors = {
        name: [error for error in verdict.errors if not error.endswith(LACKS_A_MEMBER)]
        for name, verdict in found.items()
    }
    assert {name: rest for name, rest in errors.items() if rest} == OF_THE_BACKEND
