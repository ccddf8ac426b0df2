"""Proves that the real Codex CLI works with the Codex backend of the tests, with nothing between.

Method: `codex exec` in an empty home, straight to the backend with the token of a ChatGPT login.
What works here and not through the pooler (test_codex_pool.py) is the pooler's fault.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.clients.codex import (
    LIMIT_SHOWN,
    PROOFS,
    SOCKET_PROOFS,
    Backend,
    CodexCli,
    Door,
    shell,
    types,
)
from tests.support.codex_backend import Play, make_auth_file
from tests.support.codex_turns import error_body
from tests.support.processes import ANSWER


@pytest.fixture
def codex(backend: Backend, tmp_path: Path) -> CodexCli:
    login = make_auth_file(tmp_path / "auth.json", "acct-a")
    backend.admit(login)
    headers = {"chatgpt-account-id": login.account_id}
    return CodexCli(tmp_path, Door(backend.base_url, login.access_token, headers))


@pytest.mark.parametrize("proof", PROOFS)
def test_codex_works_straight(proof: str, codex: CodexCli, backend: Backend) -> None:
    PROOFS[proof](codex, backend)


def test_codex_bears_what_a_stream_may_be_like(codex: CodexCli, backend: Backend) -> None:
    strange = Play(
        repeat=20_000,
        has_null_output=True,
        has_content_type=False,
        has_extra_events=True,
        has_one_delta=True,
        newline="\r\n",
    )
    backend.will(strange)
    turn = codex.run()
    assert (turn.code, turn.errors) == (0, [])
    assert turn.text == ANSWER * 20_000


def test_codex_keeps_the_turn_state_for_its_turn(codex: CodexCli, backend: Backend) -> None:
    backend.will(shell("true"))
    assert codex.run().code == 0
    states = [seen.headers.get("x-codex-turn-state") for seen in backend.asked()]
    assert states == [None, "sticky-backend-1-acct-a"]


@pytest.mark.parametrize(
    ("play", "shown"),
    [
        (Play(error="model_unsupported"), "model is not supported"),
        (Play(error="context_length"), "ran out of room"),
        (Play(ends="cut"), "stream disconnected"),
        (Play(ends="quiet"), "stream closed before response.completed"),
        (Play(ends="response.failed"), "at capacity"),
        (Play(ends="incomplete"), "max_output_tokens"),
    ],
    ids=["model", "too-long", "cut", "quiet", "failed", "incomplete"],
)
def test_codex_shows_what_went_wrong(
    play: Play, shown: str, codex: CodexCli, backend: Backend
) -> None:
    backend.will(play)
    turn = codex.run()
    assert turn.code == 1
    assert shown in turn.errors[-1]
    assert LIMIT_SHOWN not in turn.errors[-1]


################################################################
# ON A WEBSOCKET
################################################################


@pytest.mark.parametrize("proof", SOCKET_PROOFS)
def test_codex_works_straight_on_a_websocket(proof: str, codex: CodexCli, backend: Backend) -> None:
    SOCKET_PROOFS[proof](codex, backend)


def test_codex_takes_a_refused_upgrade_for_a_word_to_use_http(
    codex: CodexCli, backend: Backend
) -> None:
    codex.uses_websockets = True
    refusal = error_body("websocket_unsupported", "Not here.")
    backend.will(Play(at="upgrade", status=426, body=refusal), shell("true"))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert "error" not in [item["type"] for item in turn.items]  # not even a warning
    assert [seen.method for seen in backend.asked()] == ["GET", "POST", "POST"]


LOST: Final = [  # what the answer to the second turn of a tool loop may be
    Play(status=400, body=error_body("previous_response_not_found", "It is not known.")),
    Play(status=503, body=error_body("pool_busy", "All are busy.")),
    Play(ends="limit", after="nothing"),
    Play(ends="close", after="nothing", close_code=1001),
    Play(ends="close"),
    Play(ends="cut"),
    Play(ends="response.failed", code="upstream_stream_truncated"),
]


@pytest.mark.parametrize(
    "play", LOST, ids=["anchor", "busy", "age", "restart", "close", "cut", "failed"]
)
def test_codex_sends_all_of_it_again_on_a_new_connection(
    play: Play, codex: CodexCli, backend: Backend
) -> None:
    codex.uses_websockets = True
    codex.stream_retries = 1
    backend.will(shell("true"), play)
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    _, _, lost, again = backend.frames()
    assert types(lost) == ["function_call_output"]
    assert again.connection > lost.connection
    assert "previous_response_id" not in again.body
    assert types(again)[-3:] == ["reasoning", "function_call", "function_call_output"]


def test_codex_opens_another_connection_when_one_closes_between_turns(
    codex: CodexCli, backend: Backend
) -> None:
    codex.uses_websockets = True
    backend.will(shell("true", close_code=1001))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    _, first, second = backend.frames()
    assert second.connection > first.connection
    assert "previous_response_id" not in second.body
