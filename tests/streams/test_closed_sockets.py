"""Proves that a socket which is closed here is at its end, for all who read or write it.

Method: real sockets, plain and with TLS, and several of them in the life of one process: what Trio
keeps of one would be in the way of the next.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import open_stream_to_socket_listener, wait_all_tasks_blocked

import pooler
from pooler import Connection, Limits, PeerClosed, UpstreamConnection
from tests.support.tls_upstreams import SECONDS_MAX, dialled

MIB: Final = 1024 * 1024
LIMITS: Final = Limits()

of_each_kind = pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])


@of_each_kind
async def test_a_closed_socket_is_at_its_end_however_often_it_is_read(
    tmp_path: Path, *, is_tls: bool
) -> None:
    """Of several in the life of one process: what one read leaves behind is the next one's."""
    for _ in range(2):
        async with dialled(tmp_path, is_tls=is_tls) as (stream, _):
            await stream.aclose()
            for _ in range(3):
                with pytest.raises(PeerClosed):
                    await Connection(stream).receive()


@of_each_kind
async def test_who_reads_a_socket_while_it_is_closed_hears_of_it(
    tmp_path: Path, *, is_tls: bool
) -> None:
    for _ in range(2):
        async with dialled(tmp_path, is_tls=is_tls) as (stream, _), trio.open_nursery() as nursery:
            heard = trio.Event()

            async def read(stream: trio.abc.Stream = stream, heard: trio.Event = heard) -> None:
                with pytest.raises(PeerClosed):
                    await Connection(stream).receive()
                heard.set()

            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            await stream.aclose()
            with trio.fail_after(SECONDS_MAX):
                await heard.wait()


@of_each_kind
async def test_a_closed_socket_takes_nothing_however_often_it_is_written_to(
    tmp_path: Path, *, is_tls: bool
) -> None:
    gone = (trio.BrokenResourceError, trio.ClosedResourceError)
    for _ in range(2):
        async with dialled(tmp_path, is_tls=is_tls) as (stream, _):
            await stream.aclose()
            connection = Connection(stream)
            for _ in range(3):
                assert connection.send_now(b"x") == 0
                with pytest.raises(gone):
                    await connection.send_all(b"x", 1.0)


async def send_request(upstream: UpstreamConnection, body: bytes) -> None:
    rest = upstream.begin(b"POST / HTTP/1.1\r\n\r\n", body)
    if rest is not None:
        await upstream.send_rest(rest)


@of_each_kind
async def test_a_request_for_a_closed_socket_was_not_sent(tmp_path: Path, *, is_tls: bool) -> None:
    """It says so as it does where the peer has closed: another connection may take it."""
    for size in (10, MIB):
        async with dialled(tmp_path, is_tls=is_tls) as (stream, _):
            await stream.aclose()
            upstream = UpstreamConnection(stream)
            with pytest.raises(trio.BrokenResourceError):
                await send_request(upstream, b"x" * size)
            assert not upstream.is_reusable


@of_each_kind
async def test_a_socket_that_is_closed_while_a_request_goes_out_was_not_sent(
    tmp_path: Path, *, is_tls: bool
) -> None:
    body = b"x" * 24 * MIB
    async with dialled(tmp_path, is_tls=is_tls) as (stream, _), trio.open_nursery() as nursery:
        ended = trio.Event()
        upstream = UpstreamConnection(stream)

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await send_request(upstream, body)
            ended.set()

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        await stream.aclose()
        with trio.fail_after(SECONDS_MAX):
            await ended.wait()
        assert upstream.is_cut


async def test_a_socket_that_was_closed_here_is_at_its_end() -> None:
    """A WebSocket's reader may come back to one: of the real kind, no memory stream."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        stream = await open_stream_to_socket_listener(listener)
        await stream.aclose()
        with pytest.raises(PeerClosed):
            await Connection(stream).receive()


async def test_a_socket_that_is_closed_is_not_waited_for() -> None:
    source = trio.socket.socket()
    source.close()
    with pytest.raises(trio.ClosedResourceError):
        await pooler.read_socket(source)
