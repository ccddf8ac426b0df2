"""Proves that two poolers with one pools.json and shared logins serve as one behind HAProxy.

Method: README's HAProxy snippet in front of two real poolers that have the same folder, and a
ChatGPT backend with its token endpoint, which takes each refresh token once.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.deployment.fronts import Front, in_front, request
from tests.deployment.snippets import NAME
from tests.support.codex_backend import CodexBackend, make_auth_file
from tests.support.server_process import (
    KEY,
    MODEL,
    ServerProcess,
    read_all,
    serving,
    status_of,
)

ACCOUNTS: Final = ("one", "two", "three", "four")
SESSION_COUNT: Final = 12


@dataclass
class Pair:
    front: Front
    backend: CodexBackend
    poolers: list[ServerProcess]

    async def ask(self, session: str) -> str:
        """The account of a turn of this session, asked for through HAProxy."""
        before = len(self.backend.asked())
        body = json.dumps({"model": MODEL, "input": "Hi", "prompt_cache_key": session}).encode()
        answer = await self.front.ask(request("POST", "/v1/responses", body))
        assert status_of(answer) == 200, answer
        (seen,) = self.backend.asked()[before:]
        return seen.account


@contextlib.asynccontextmanager
async def opened_pair(folder: Path, seconds_left: float) -> AsyncIterator[Pair]:
    """Two poolers; `seconds_left` until their accounts' tokens expire."""
    async with trio.open_nursery() as nursery:
        async with contextlib.AsyncExitStack() as stack:
            backend = CodexBackend()
            origin = await nursery.start(backend.listen)
            accounts: dict[str, Any] = {}
            for name in ACCOUNTS:
                file = f"accounts/{name}.json"
                expires_at = time.time() + seconds_left
                backend.admit(make_auth_file(folder / file, name, expires_at=expires_at))
                accounts[name] = {"type": "codex", "auth_file": file, "models": [MODEL]}
                accounts[name]["base_url"] = f"{origin}/backend-api/codex"
            config = {
                "listen": "127.0.0.1:0",  # each has another port; all else is the same file
                "hosts": [NAME, "localhost", "127.0.0.1"],
                "accounts": accounts,
                "pools": {"home": {"accounts": list(accounts), "keys": {"laptop": KEY}}},
            }
            env = {"CODEX_REFRESH_TOKEN_URL_OVERRIDE": f"{origin}/oauth/token"}
            poolers = [
                await stack.enter_async_context(serving(folder, config, env)) for _ in range(2)
            ]
            ports = [int(pooler.address.rpartition(":")[2]) for pooler in poolers]
            front = await stack.enter_async_context(in_front("haproxy", folder, ports))
            yield Pair(front, backend, poolers)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with opened_pair(tmp_path, seconds_left=24 * 3600) as opened:
        yield opened


async def test_a_session_has_the_same_account_at_both(pair: Pair) -> None:
    chosen: dict[str, set[str]] = {f"session-{number}": set() for number in range(SESSION_COUNT)}
    for _ in range(3):  # HAProxy takes one and then the other
        for session, accounts in chosen.items():
            accounts.add(await pair.ask(session))
    for pooler in pair.poolers:
        for session, accounts in chosen.items():
            before = len(pair.backend.asked())
            async with await pooler.post("Hi", prompt_cache_key=session) as stream:
                assert status_of(await read_all(stream)) == 200
            accounts.add(pair.backend.asked()[before].account)
    assert [len(accounts) for accounts in chosen.values()] == [1] * SESSION_COUNT
    assert len(set().union(*chosen.values())) > 1


async def test_the_other_one_serves_when_one_is_killed(pair: Pair) -> None:
    before = [await pair.ask(f"session-{number}") for number in range(SESSION_COUNT)]
    pair.poolers[0].process.kill()
    await pair.poolers[0].process.wait()
    after = [await pair.ask(f"session-{number}") for number in range(SESSION_COUNT)]
    assert after == before


async def test_haproxy_asks_both_whether_they_are_ready(pair: Pair) -> None:
    for pooler in pair.poolers:
        line = await pooler.wait_line("request")
        assert (line["route"], line["status"]) == ("readyz", 200)


async def test_each_login_is_refreshed_once_for_both(tmp_path: Path) -> None:
    async with opened_pair(tmp_path, seconds_left=-60) as pair:
        answers: list[bytes] = []

        async def ask(pooler: ServerProcess, session: str) -> None:
            async with await pooler.post("Hi", prompt_cache_key=session) as stream:
                answers.append(await read_all(stream))

        async with trio.open_nursery() as nursery:
            for number in range(SESSION_COUNT):
                for pooler in pair.poolers:
                    nursery.start_soon(ask, pooler, f"session-{number}")
        assert [status_of(answer) for answer in answers] == [200] * 2 * SESSION_COUNT
        used = {seen.account for seen in pair.backend.asked()}
        assert len(pair.backend.asked("/oauth/token")) == len(used) > 1
