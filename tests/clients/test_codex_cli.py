"""Proves that the real Codex CLI works with the Codex backend of the tests, with nothing between.

Method: `codex exec` in an empty home, straight to the backend with the token of a ChatGPT login.
What works here and not through the pooler (test_codex_pool.py) is the pooler's fault.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.codex import LIMIT_SHOWN, PROOFS, Backend, CodexCli, Door, shell
from tests.clients.stage import ANSWER
from tests.codex_backend import Play, make_auth_file


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
