"""The upstream of the bench: speaks just enough HTTP/1.1, from bytes made beforehand.

What it answers is in the request's instructions: `bench-KIND-COUNT`, which any honest proxy
forwards.  Kinds: `unary` (one JSON object), `burst` (COUNT events as fast as they are taken),
`paced` (COUNT events, 50 a second), `idle` (a first event, then silence), `watch` (answered when
the connection of an idle stream has been closed).
Run: `python -m tests.long.bench.upstream PORT`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import re
import sys
from collections.abc import Iterator
from typing import Final

PACED_SECONDS: Final = 1 / 50
BATCH_EVENTS: Final = 300  # about 64 KiB a write
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK: Final = b"0\r\n\r\n"
_ASKED: Final = re.compile(rb"bench-(unary|burst|paced|idle|watch)-(\d+)")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)

USAGE: Final = {"input_tokens": 11, "output_tokens": 22, "total_tokens": 33}
RESPONSE: Final = {"id": "resp_bench", "object": "response", "model": "m", "output": []}


def event(kind: str, number: int, **fields: object) -> bytes:
    """One Responses event in an HTTP chunk of its own, as the real API sends it."""
    data = json.dumps({"type": kind, "sequence_number": number, **fields})
    text = f"event: {kind}\ndata: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(text), text)


@functools.cache
def delta(number: int) -> bytes:
    """A content event of about 200 bytes."""
    return event(
        "response.output_text.delta",
        number,
        item_id="msg_bench",
        output_index=0,
        content_index=0,
        delta="some words ",
    )


def created() -> bytes:
    return event("response.created", 0, response=RESPONSE | {"status": "in_progress"})


def completed(number: int) -> bytes:
    answer = RESPONSE | {"status": "completed", "usage": USAGE}
    return event("response.completed", number, response=answer) + LAST_CHUNK


@functools.cache
def burst(count: int) -> tuple[bytes, ...]:
    """A whole stream of `count` content events, in writes of many events."""
    deltas = [delta(number) for number in range(1, count + 1)]
    batches = [
        b"".join(deltas[start : start + BATCH_EVENTS]) for start in range(0, count, BATCH_EVENTS)
    ]
    return (STREAM_HEAD + created(), *batches, completed(count + 1))


def unary() -> bytes:
    text = [{"type": "message", "content": [{"type": "output_text", "text": "words " * 120}]}]
    answer = RESPONSE | {"status": "completed", "output": text, "usage": USAGE}
    body = json.dumps(answer).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


UNARY: Final = unary()
NOT_FOUND: Final = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}"
WATCHERS: Final[set[asyncio.Transport]] = set()


class Upstream(asyncio.Protocol):
    """One connection; requests on it come one after the other."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = b""
        self.is_paused = False
        self.batches: Iterator[bytes] = iter(())
        self.ticks: asyncio.TimerHandle | None = None
        self.is_idle_stream = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.batches = iter(())
        if self.is_idle_stream:
            while WATCHERS:
                WATCHERS.pop().write(UNARY)
        if self.ticks is not None:
            self.ticks.cancel()

    def data_received(self, data: bytes) -> None:
        self.received = self.received + data if self.received else data
        if self.received.startswith(b"GET "):  # a catalogue, a quota: the bench has none
            self.received = b""
            self.transport.write(NOT_FOUND)
            return
        head, separator, rest = self.received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if separator and length and len(rest) >= int(length[1]):
            self.received = rest[int(length[1]) :]
            asked = _ASKED.search(rest)
            assert asked is not None
            self.answer(asked[1], int(asked[2]))

    def answer(self, kind: bytes, count: int) -> None:
        if kind == b"unary":
            self.transport.write(UNARY)
        elif kind == b"watch":
            WATCHERS.add(self.transport)
        elif kind == b"burst":
            self.batches = iter(burst(count))
            self.pump()
        else:
            self.transport.write(STREAM_HEAD + created() + delta(1))
            self.is_idle_stream = kind == b"idle"
            if kind == b"paced":
                start = random.random() * PACED_SECONDS  # streams do not beat together
                loop = asyncio.get_running_loop()
                self.ticks = loop.call_later(start, self.tick, loop.time() + start, 2, count)

    def tick(self, at: float, number: int, count: int) -> None:
        if number > count:
            self.transport.write(completed(number))
            return
        self.transport.write(delta(number))
        loop = asyncio.get_running_loop()
        at += PACED_SECONDS
        self.ticks = loop.call_at(at, self.tick, at, number + 1, count)

    def pump(self) -> None:
        while not self.is_paused and (batch := next(self.batches, None)):
            self.transport.write(batch)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.pump()


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(
        Upstream, "127.0.0.1", port, backlog=2048
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
