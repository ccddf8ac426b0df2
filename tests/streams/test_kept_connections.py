"""Proves that a connection to an upstream is used again only while it is alive.

Method: the real server and an upstream on real sockets, plain and with TLS, whose kept connections
end in every way.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import trio
import trustme

import pooler
from tests.support.memory_sockets import Client, MemoryListener, ask_responses, socket_pair
from tests.support.server_process import SECONDS_MAX, read_request
from tests.support.world import describe, make_config

ANSWER: Final = b'{"id": "r"}'


def plain_of(stream: trio.abc.Stream) -> trio.SocketStream:
    """The socket, without TLS."""
    plain = stream.stream if isinstance(stream, pooler.TlsStream) else stream
    plain = plain.transport_stream if isinstance(plain, trio.SSLStream) else plain
    assert isinstance(plain, trio.SocketStream)
    return plain


class Keeper:
    """An upstream that answers, and keeps its connections until the test ends one."""

    def __init__(self) -> None:
        self.streams: list[trio.abc.Stream] = []
        self.asked: list[int] = []  # the number of each request's connection

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.streams.append(stream)
        number = len(self.streams)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(ANSWER)}\r\n\r\n".encode()
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await read_request(stream)
                self.asked.append(number)
                await stream.send_all(head + ANSWER)

    async def end(self, way: str) -> None:
        """Let the latest connection end so, or not."""
        stream = self.streams[-1]
        plain = plain_of(stream)
        if way == "what nobody asked for":
            await stream.send_all(b"HTTP/1.1 408 Too slow\r\n\r\n")
        if way == "a reset":
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if way in {"an end", "a reset"}:
            await plain.aclose()


def start(server: pooler.Server, clients: MemoryListener, nursery: trio.Nursery) -> None:
    nursery.start_soon(server.serve, [clients])


@contextlib.asynccontextmanager
async def kept(
    tls: trustme.CA | None,
) -> AsyncIterator[tuple[pooler.Server, Client, Keeper]]:
    """A server, a client of it, and its upstream."""
    keeper = Keeper()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    listeners: list[Any] = [listener]
    contexts: dict[str | None, ssl.SSLContext] = {}
    if tls is not None:
        theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.issue_cert("127.0.0.1").configure_cert(theirs)
        listeners = [trio.SSLListener(listener, theirs)]
        contexts[None] = pooler.make_tls_context(None)
        tls.configure_trust(contexts[None])
    scheme = "https" if tls else "http"
    account = {"base_url": f"{scheme}://127.0.0.1:{port}/v1"}
    config = make_config(describe("a", accounts={"a": account}))
    server = pooler.Server(config, contexts, log=lambda *_: None)
    ours, client = socket_pair()
    clients = MemoryListener()
    clients.arrive(client)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, keeper.serve, listeners)
        with trio.fail_after(SECONDS_MAX):
            async with trio.open_nursery() as serving_it:
                start(server, clients, serving_it)
                yield server, Client(ours), keeper
                await ours.aclose()
                server.stop()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["nothing", "an end", "a reset", "what nobody asked for"])
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_a_kept_connection_is_used_again_only_if_nothing_came_on_it(
    way: str, is_tls: bool
) -> None:
    async with kept(trustme.CA() if is_tls else None) as (server, client, keeper):
        raw = ask_responses(stream=False)
        assert (await client.ask(raw)).body == ANSWER
        [[connection]] = server.shared.idle.by_endpoint.values()
        plain = plain_of(connection.stream)
        await keeper.end(way)
        if way != "nothing":
            await trio.lowlevel.wait_readable(plain.socket)
        response = await client.ask(raw)
        assert (response.status, response.body) == (200, ANSWER)
        assert keeper.asked == ([1, 1] if way == "nothing" else [1, 2])
        if way != "nothing":
            assert plain.socket.fileno() == -1


async def test_a_connection_that_was_reset_looks_no_better_than_one_that_ended() -> None:
    async with kept(None) as (server, client, keeper):
        await client.ask(ask_responses(stream=False))
        [[connection]] = server.shared.idle.by_endpoint.values()
        await keeper.end("a reset")
        await trio.lowlevel.wait_readable(plain_of(connection.stream).socket)
        assert not connection.probe()
