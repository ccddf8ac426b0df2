"""Proves that a burst of tiny events or chunks is passed on whole, and that others run meanwhile.

Method: an upstream's response, or a client's body, in thousands of the smallest parts, all of which
come at once. Examined are the steps in which they are taken, and the bytes that come out of them.
"""

from __future__ import annotations

import itertools
from typing import Final

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from pooler import (
    CHUNKS_AT_ONCE_MAX,
    LINES_AT_ONCE_MAX,
    CallKind,
    ChunkReader,
    EventScanner,
    HttpSource,
    UpstreamConnection,
)
from tests.support.memory_sockets import ask_chat, ask_responses, request
from tests.support.world import Fin, Send, describe, json_response, opened_world, sse_head

DELTA: Final = b'data: {"type":"response.output_text.delta","delta":"x"}\n\n'
END: Final = b'data: {"type":"response.completed","response":{"id":"r"}}\n\n'
FINISH: Final = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
BURSTS: Final = {
    "blank": (b"\n\n" * 30_000, CallKind.RESPONSES),
    "blank-cr": (b"\r\r" * 30_000 + b"\n", CallKind.RESPONSES),
    "blank-crlf": (b"\r\n\r\n" * 10_000, CallKind.RESPONSES),
    "empty": (b"data:{}\n\n" * 6_000, CallKind.RESPONSES),
    "text": (DELTA + b"data:x\n\n" * 7_000, CallKind.RESPONSES),
    "finish": (FINISH * 1_000, CallKind.CHAT),
}


async def opened(body: bytes) -> UpstreamConnection:
    """A connection on which a response to its end has come, of which the head was read."""
    ours, theirs = memory_stream_pair()
    connection = UpstreamConnection(ours)
    await theirs.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body)
    await theirs.send_eof()
    await connection.read_head()
    return connection


async def events_of(source: HttpSource) -> list[list[bytes]]:
    """What each step has given."""
    steps = []
    while not source.is_at_end:
        steps.append([event.raw for event in await source.receive()])
    return steps


@pytest.mark.parametrize("case", BURSTS)
async def test_a_burst_of_tiny_events_is_taken_in_small_steps(case: str) -> None:
    body, kind = BURSTS[case]
    source = HttpSource(await opened(body), EventScanner(kind, joins_content=True))
    steps = await events_of(source)
    assert b"".join(itertools.chain(*steps)) == body
    assert max(map(len, steps)) <= LINES_AT_ONCE_MAX


@pytest.mark.parametrize("case", BURSTS)
async def test_others_run_between_these_steps(case: str) -> None:
    body, kind = BURSTS[case]
    source = HttpSource(await opened(body), EventScanner(kind, joins_content=True))
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        steps = await events_of(source)
        nursery.cancel_scope.cancel()
    assert turns >= len(steps) - 1


async def test_plain_content_is_taken_at_once() -> None:
    """That is fast, however much there is of it."""
    source = HttpSource(
        await opened(DELTA * 2 + DELTA * 1000), EventScanner(CallKind.RESPONSES, joins_content=True)
    )
    source.scanner.feed(DELTA)
    assert len(await events_of(source)) <= 3


@pytest.mark.parametrize("case", BURSTS)
async def test_a_client_gets_every_byte_of_it(case: str, autojump_clock: MockClock) -> None:
    body, kind = BURSTS[case]
    ask, end = (ask_chat, b"data: [DONE]\n\n") if kind is CallKind.CHAT else (ask_responses, END)
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays([Send(sse_head("close") + body + end), Fin()])
        response = await world.ask(ask())
        assert response.body == body + end


def test_a_burst_of_chunks_is_taken_in_steps() -> None:
    reader, raw = ChunkReader(), b"1\r\nx\r\n" * 5_000 + b"0\r\n\r\n"
    pieces = [reader.feed(raw)]
    while reader.has_more:
        pieces.append(reader.feed(b""))
    assert list(map(len, pieces)) == [CHUNKS_AT_ONCE_MAX] * 2 + [1_000]
    assert (reader.is_done, reader.unread) == (True, b"")


async def test_a_client_s_body_in_tiny_chunks_is_read_whole(autojump_clock: MockClock) -> None:
    content = b'{"model":"m1","input":"%b"}' % (b"x" * 9_000)
    fields = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
    raw = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(json_response({"id": "r"}))
        response = await world.ask(request("POST", "/v1/responses", headers=fields) + raw)
        assert response.status == 200
        assert world.upstreams["a"].asked[0].body == content


async def test_an_upstream_s_response_in_tiny_chunks_is_read_whole() -> None:
    body = b'{"id":"%b"}' % (b"x" * 9_000)
    raw = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + raw)
    connection = UpstreamConnection(ours)
    await connection.read_head()
    assert await connection.read_body(len(body)) == body
