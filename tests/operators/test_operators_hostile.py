"""Proves that edited, hostile or very large values do not break the operator's side.

Method: the real server in virtual time, and `pooler status` as a process in front of a server of
the test's own.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, cast

import pytest
import trio
from trio.testing import MockClock

import mcp_server
import pooler
from tests.support.memory_sockets import Json, post, request
from tests.support.paths import ROOT, SNAPSHOT
from tests.support.processes import clean_env
from tests.support.world import UNIX_START, World, describe, make_config, opened_world

TOKEN: Final = "cpo-operator-token-0123456789"


GOOD: Final[Json] = {
    "at": UNIX_START - 5, "request_id": "abcdefghij", "method": "POST", "route": "responses",
    "transport": "http", "pool": "home", "key": "laptop", "account": "a", "model": "m1",
    "stream": False, "status": 200, "code": None, "attempts": [{"account": "a"}],
    "first_byte_ms": 3, "duration_ms": 5, "bytes_in": 4, "bytes_out": 6,
    "tokens": dict.fromkeys(pooler.Usage._fields, 3),
}  # fmt: skip


def described(**more: Json) -> Json:
    return describe("ab", operators={"me": TOKEN}, **more)


def page(accept: str) -> bytes:
    return request("GET", "/admin", key=TOKEN, headers=[("Accept", accept)])


def tool(name: str, **arguments: Json) -> bytes:
    params = {"name": f"codex_pooler_{name}", "arguments": arguments}
    return post(
        "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, key=TOKEN
    )


async def check_all_is_shown(world: World) -> None:
    for raw in (
        page("application/json"),
        page("text/html"),
        request("GET", "/metrics", key=TOKEN),
        tool("list_request_logs"),
        tool("get_request_log", id="abcdefghij"),
    ):
        answer = await world.ask(raw)
        assert answer.status == 200, world.logged
        assert b'"isError":true' not in answer.body


################################################################
# REQUESTS
################################################################


async def test_a_reload_changes_how_many_requests_are_remembered(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(described()) as world:
        for records_max in (3, 5):
            config = make_config(described(limits={"records_max": records_max}))
            await world.server.reload(functools.partial(lambda one: (one, {}), config))
            for _ in range(7):
                await world.ask(request("GET", "/v1/models"))
            assert len(world.server.operators.snapshot()["requests"]) == records_max


################################################################
# MCP
################################################################


@pytest.mark.parametrize(("more", "status"), [(0, 202), (1, 413)])
async def test_a_message_has_so_many_bytes(
    more: int, status: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_world(described(limits={"mcp_body_bytes_max": 4096})) as world:
        asked: list[bytes] = []

        class Companion:
            SDK = ()

            async def answer(self, _headers: Json, body: bytes, **_: Json) -> Json:
                asked.append(body)
                return 202, [], b""

        monkeypatch.setitem(sys.modules, "mcp_server", cast("Any", Companion()))
        body = bytes(range(256)) * 16 + b"x" * more
        answer = await world.ask(post("/mcp", body, key=TOKEN))
        assert (answer.status, asked) == (status, [] if more else [body])


@pytest.mark.parametrize("pool", ["home", "away"])
async def test_why_nothing_is_explained_is_reported(pool: str, autojump_clock: MockClock) -> None:
    async with opened_world(described(pool={"models": ["m1"]})) as world:
        answer = await world.ask(tool("explain_routing", pool_selector=pool, model="nothing"))
        shown = answer.json()["result"]["structuredContent"]
        assert (shown["chosen"], shown["accounts"]) == (None, [])
        assert "Unknown pool" in shown["message"]


################################################################
# VERY MANY
################################################################

MANY: Final = 1000
HELD_SECONDS_MAX: Final = 0.1  # of the event loop, the best of some


def many() -> Json:
    """As many accounts, and keys, and rows of all sums."""
    whole = described()
    account = whole["accounts"].pop("a")
    whole["accounts"] = {f"a{number}": account for number in range(MANY)}
    keys = {f"k{number}": f"cp-key-of-the-laptop-{number:06}" for number in range(MANY)}
    whole["pools"]["home"] = {"accounts": list(whole["accounts"]), "keys": keys}
    return whole


def held_seconds(work: Callable[[], object]) -> float:
    def once() -> float:
        before = time.process_time()
        work()
        return time.process_time() - before

    return min(once() for _ in range(5))


@pytest.fixture
async def crowd(autojump_clock: MockClock) -> AsyncIterator[World]:
    async with opened_world(many()) as world:
        for number in range(pooler.TOTALS_MAX):
            name = f"a{number % MANY}"
            told = {"account": name, "key": f"k{number % MANY}", "model": f"m{number}"}
            attempts = [{"account": name, "reason": f"code{number}"}]
            world.server.shared.ledger.add(GOOD | told | {"attempts": attempts})
        yield world


@pytest.mark.measures
async def test_a_choice_among_very_many_is_explained_at_once(crowd: World) -> None:
    await trio.lowlevel.checkpoint()
    assert (
        held_seconds(lambda: crowd.server.operators.explain("home", "m1", "s")) < HELD_SECONDS_MAX
    )


@pytest.mark.measures
async def test_very_many_are_seen_at_once(crowd: World) -> None:
    await trio.lowlevel.checkpoint()
    assert held_seconds(crowd.server.operators.snapshot) < HELD_SECONDS_MAX / 2


################################################################
# `pooler status`
################################################################

SHOWN: Final[Json] = json.loads(SNAPSHOT.read_text())
STATUS: Final = mcp_server.status_text(SHOWN).encode()
NO_STATUS: Final[dict[str, bytes]] = {
    "nothing": b"",
    "an object": b'{"a": 1}',
    "a list": b"[]",
    "a page": b"<!DOCTYPE html><title>codex-pooler </title>",
    "no text": b"\xff\xfe",
    "too deep": b'{"version":' * 1000,
}


def status_of(
    body: bytes, *arguments: str, is_read: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    """The real program, with a server that sends `body`; unread, its output is a closed pipe."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
                connection.sendall(body)

        serving = threading.Thread(target=serve)
        serving.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, str(ROOT / "pooler.py"), "status", "--url", url, *arguments]
        environment = clean_env(CODEX_POOLER_OPERATOR_TOKEN=TOKEN, **env)
        closed, output = os.pipe()
        os.close(closed)
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE if is_read else output,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            timeout=30,
            check=False,
        )
        os.close(output)
        serving.join()
    return done


@pytest.mark.slow
@pytest.mark.parametrize("case", NO_STATUS)
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_server_that_is_no_pooler_is_reported_in_one_line(
    case: str, arguments: list[str]
) -> None:
    done = status_of(NO_STATUS[case], *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(": this is not a codex-pooler\n")
    assert len(done.stderr.splitlines()) == 1


def test_a_server_cannot_order_the_terminal_about() -> None:
    """Colours are printed as they came; other escape sequences and odd characters are not."""
    body = "codex-pooler \x1b[2J\x1b]0;title\x07\x9b31m\u202e\r\x1b[32mready\x1b[0m █░…\n"
    done = status_of(body.encode() + b"\xff")
    assert done.returncode == 0
    assert done.stdout == "codex-pooler ?[2J?]0;title??31m??\x1b[32mready\x1b[0m █░…\n?\n"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    done = status_of(STATUS, is_read=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_shows_the_state(encoding: str) -> None:
    done = status_of(STATUS, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "personal" in done.stdout
