"""Proves that README's nginx, Caddy and HAProxy snippets put the pooler on the network unharmed.

Method: Debian's programs run each snippet as it stands (with other ports and paths), with TLS, in
front of the real pooler and a ChatGPT backend that sends an event only when the test says so.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h11
import pytest
import trio

import pooler
from tests.deployment.fronts import (
    OPERATOR,
    PROXIES,
    Front,
    basic,
    in_front,
    leave,
    open_websocket,
    read_end,
    request,
)
from tests.deployment.snippets import SECTION, snippet
from tests.support.codex_backend import TURNS, CodexBackend, Play, Seen, Wire, make_auth_file
from tests.support.codex_turns import framed, make_events
from tests.support.codex_websocket import serve_socket
from tests.support.server_process import (
    KEY,
    MODEL,
    code_of,
    read_until,
    serving,
    status_of,
)

MIB: Final = 1024 * 1024
UNDONE_SECONDS_MAX: Final = 2.0  # from a client's leaving to the end of its upstream request
SHOWN_SECONDS_MAX: Final = 1.0  # from an upstream's event to its client
HANDSHAKE_EVENTS: Final = 4  # of a turn, before its first text
Secured = trio.SSLStream[trio.SocketStream]
each_proxy: Final = pytest.mark.parametrize("proxy", PROXIES)


class Paced:
    """Answers turns, with as many events as the test lets it send."""

    def __init__(self, backend: CodexBackend) -> None:
        self.backend = backend
        self.allowed: float = 0  # events; they wait for `more`
        self.more = trio.Event()
        self.asked = trio.Event()
        self.left = trio.Event()

    def send(self, count: float) -> None:
        self.allowed += count
        self.more.set()

    async def wait_allowed(self) -> None:
        while self.allowed < 1:
            self.more = trio.Event()
            await self.more.wait()

    async def respond(self, wire: Wire, seen: Seen) -> bool:
        login = self.backend.check_posted(seen)
        events = make_events(seen.body, Play(), login, 1, self.backend.clock())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch, wire, nursery.cancel_scope)
            self.asked.set()
            await self.wait_allowed()
            head = h11.Response(status_code=200, headers=[("content-type", "text/event-stream")])
            await wire.send(head)
            for event in events:
                await self.wait_allowed()
                self.allowed -= 1
                await wire.send(h11.Data(data=framed(event, "\n")))
            await wire.send(h11.EndOfMessage())
            nursery.cancel_scope.cancel()
        return False

    async def watch(self, wire: Wire, scope: trio.CancelScope) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await wire.stream.receive_some()
        self.left.set()
        scope.cancel()


@dataclass
class Behind:
    """A pooler behind a proxy, and the backend of its one account."""

    front: Front
    backend: CodexBackend
    paced: Paced

    def pace(self) -> Paced:
        """From now on, turns are answered at the test's pace."""
        self.backend.handlers[TURNS] = self.paced.respond
        return self.paced


def turn(stream: bool = True, **more: object) -> bytes:
    return json.dumps({"model": MODEL, "input": "Hi", "stream": stream, **more}).encode()


async def bring_up(
    stack: contextlib.AsyncExitStack,
    nursery: trio.Nursery,
    proxy: str,
    folder: Path,
    **more: object,
) -> Behind:
    backend = CodexBackend()
    origin = await nursery.start(backend.listen)
    backend.admit(make_auth_file(folder / "accounts/one.json", "one"))
    account = {"type": "codex", "base_url": f"{origin}/backend-api/codex"}
    config: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "hosts": json.loads(snippet("json"))["hosts"],
        "accounts": {"one": account | {"auth_file": "accounts/one.json", "models": [MODEL]}},
        "pools": {"home": {"accounts": ["one"], "keys": {"laptop": KEY}}},
        "operators": {"me": OPERATOR},
        **more,
    }
    server = await stack.enter_async_context(serving(folder, config))
    port = int(server.address.rpartition(":")[2])
    front = await stack.enter_async_context(in_front(proxy, folder, [port]))
    return Behind(front, backend, Paced(backend))


@contextlib.asynccontextmanager
async def deployed(proxy: str, folder: Path, **more: object) -> AsyncIterator[Behind]:
    async with trio.open_nursery() as nursery:
        async with contextlib.AsyncExitStack() as stack:
            yield await bring_up(stack, nursery, proxy, folder, **more)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def behind(proxy: str, tmp_path: Path) -> AsyncIterator[Behind]:
    async with deployed(proxy, tmp_path) as up:
        yield up


################################################################
# STREAMS
################################################################


@each_proxy
async def test_each_event_arrives_before_the_next_is_sent(behind: Behind) -> None:
    paced = behind.pace()
    async with await behind.front.connect() as stream:
        await stream.send_all(request("POST", "/v1/responses", turn()))
        paced.send(HANDSHAKE_EVENTS)
        paced.send(1)
        with trio.fail_after(SHOWN_SECONDS_MAX):
            await read_until(stream, b"output_text.delta")
        for _ in range(3):
            paced.send(1)
            with trio.fail_after(SHOWN_SECONDS_MAX):
                received = await read_until(stream, b"output_text.delta")
            assert received.count(b"data: ") == 1
        paced.send(math.inf)
        assert b"response.completed" in await read_end(stream)


@each_proxy
async def test_two_streams_come_on_one_connection(behind: Behind) -> None:
    async with await behind.front.connect() as stream:
        for _ in range(2):
            await stream.send_all(request("POST", "/v1/responses", turn(), closes=False))
            whole = await read_until(stream, b"\r\n0\r\n\r\n")
            assert (status_of(whole), whole.count(b"response.completed\n")) == (200, 1)


def test_no_proxy_ends_what_the_pooler_still_waits_for() -> None:
    """Their own defaults would cut after a minute (F97); Caddy has no such timeout."""
    longest = pooler.Limits().unary_seconds_max
    timeouts = re.findall(r"(?:_read_timeout|timeout client|timeout server) (\d+)s", SECTION)
    assert len(timeouts) == 3
    assert min(map(int, timeouts)) > longest


################################################################
# A CLIENT THAT LEAVES (F109)
################################################################


async def check_leaving(behind: Behind, stream: Secured) -> None:
    leave(stream)
    with trio.fail_after(UNDONE_SECONDS_MAX):
        await behind.paced.left.wait()


@each_proxy
@pytest.mark.parametrize("stream", [True, False])
async def test_the_upstream_ends_when_a_waiting_client_leaves(behind: Behind, stream: bool) -> None:
    paced = behind.pace()
    connection = await behind.front.connect()
    await connection.send_all(request("POST", "/v1/responses", turn(stream)))
    await paced.asked.wait()
    await check_leaving(behind, connection)


@each_proxy
async def test_the_upstream_ends_when_a_reading_client_leaves(behind: Behind) -> None:
    paced = behind.pace()
    connection = await behind.front.connect()
    await connection.send_all(request("POST", "/v1/responses", turn()))
    paced.send(HANDSHAKE_EVENTS)
    paced.send(1)
    await read_until(connection, b"output_text.delta")
    await check_leaving(behind, connection)


@each_proxy
async def test_the_upstream_ends_when_the_client_of_a_websocket_leaves(behind: Behind) -> None:
    ended = trio.Event()

    async def serve(wire: Wire, seen: Seen) -> bool:
        await serve_socket(behind.backend, wire, seen)
        ended.set()
        return False

    behind.backend.handlers["GET", TURNS[1]] = serve
    behind.backend.plays.append(Play(ends="stall"))
    socket = await open_websocket(behind.front, "/v1/responses")
    await socket.send(
        json.dumps({"type": "response.create", "model": MODEL, "input": "Hi"}).encode()
    )
    while b"output_text.delta" not in await socket.read():
        pass
    assert not ended.is_set()
    leave(socket.stream)
    with trio.fail_after(UNDONE_SECONDS_MAX):
        await ended.wait()


################################################################
# EVERYTHING ELSE THAT IS SERVED
################################################################


@each_proxy
@pytest.mark.parametrize("path", ["/v1/responses", "/backend-api/codex/responses"])
async def test_turns_of_a_websocket(behind: Behind, path: str) -> None:
    said = {"type": "input_text", "text": "Hi"}
    ask = {"type": "response.create", "model": MODEL, "instructions": "", "store": False}
    ask |= {"stream": True, "input": [{"type": "message", "role": "user", "content": [said]}]}
    socket = await open_websocket(behind.front, path)
    for _ in range(2):
        await socket.send(json.dumps(ask).encode())
        while (event := json.loads(await socket.read()))["type"] != "response.completed":
            assert event["type"] != "error", event
    await socket.stream.aclose()


@each_proxy
async def test_operators_are_served(behind: Behind) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    accepts = "Accept: application/json, text/event-stream\r\n"
    posted = json.dumps(call).encode()
    answer = await behind.front.ask(request("POST", "/mcp", posted, key=OPERATOR, more=accepts))
    assert b"codex_pooler_diagnose" in answer
    assert status_of(await behind.front.ask(request("POST", "/mcp", posted, more=accepts))) == 401
    assert status_of(await behind.front.ask(request("GET", "/mcp", key=OPERATOR))) == 405

    for raw in (request("GET", "/admin", key="", more=basic(OPERATOR)),
                request("GET", "/metrics", key=OPERATOR)):  # fmt: skip
        assert status_of(await behind.front.ask(raw)) == 200
    denied = await behind.front.ask(request("GET", "/admin", key=""))
    assert status_of(denied) == 401
    assert b"basic" in denied.lower()


@each_proxy
async def test_the_largest_body_passes_and_a_larger_one_is_refused_by_the_pooler(
    behind: Behind,
) -> None:
    empty = turn(input="")
    whole = empty.replace(b'""', b'"' + b"x" * (32 * MIB - len(empty)) + b'"')
    assert len(whole) == 32 * MIB
    answer = await behind.front.ask(request("POST", "/v1/responses", whole))
    assert b"response.completed" in answer
    (seen,) = behind.backend.asked()
    assert len(json.dumps(seen.body)) > 32 * MIB - 1000
    refused = await behind.front.ask(request("POST", "/v1/responses", whole + b" "))
    assert (status_of(refused), code_of(refused)) == (413, "request_too_large")


@each_proxy
async def test_an_error_arrives_though_its_request_is_still_being_sent(behind: Behind) -> None:
    raw = request("POST", "/v1/responses", b"x" * 16 * MIB, key="key-of-nobody-0123456789")
    for _ in range(20):  # of which one or two were answered 502 by nginx and Caddy
        answer = await behind.front.ask(raw)
        assert (status_of(answer), code_of(answer)) == (401, "invalid_api_key")


@each_proxy
async def test_a_prefix_is_passed_on(proxy: str, tmp_path: Path) -> None:
    async with deployed(proxy, tmp_path, base_path="/pooler") as behind:
        raw = request("POST", "/pooler/v1/responses", turn())
        assert b"response.completed" in await behind.front.ask(raw)
        raw = request("GET", "/pooler/admin", key=OPERATOR)
        assert status_of(await behind.front.ask(raw)) == 200
        assert status_of(await behind.front.ask(request("GET", "/v1/models"))) == 404
