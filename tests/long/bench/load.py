"""The load: client connections that send bytes made beforehand and look at little."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator
from typing import Final

KEY: Final = "bench-key-0123456789"
CHATGPT_KEY: Final = "bench-key-chatgpt-0123456789"
TAIL_BYTES: Final = 1024
END_OF_CHUNKS: Final = b"\r\n0\r\n\r\n"
CONTENT: Final = b"response.output_text.delta"
ANSWER_SECONDS_MAX: Final = 30.0


def message(number: int) -> list[dict[str, object]]:
    """Three items of an agent's conversation: words, a call of a tool, what it gave."""
    call = f"call_{number}"
    arguments = json.dumps({"command": ["bash", "-lc", f"sed -n '1,40p' src/part_{number}.py"]})
    output = "".join(
        f'\t"name_{number}_{line}": "a \\\\ path\\n",  # \u2026 \u00e9\r\n' for line in range(24)
    )
    text = f'Let me look at "part {number}":\n\n```python\nprint("x\\n")\n```\n'
    return [
        {
            "type": "message",
            "role": "assistant" if number % 5 else "user",
            "content": [{"type": "output_text" if number % 5 else "input_text", "text": text}],
        },
        {"type": "function_call", "name": "shell", "call_id": call, "arguments": arguments},
        {"type": "function_call_output", "call_id": call, "output": output},
    ]


@functools.cache
def conversation(size: int) -> list[dict[str, object]]:
    """A conversation of about `size` bytes of JSON: many messages, escapes and tool results."""
    items: list[dict[str, object]] = []
    count = 0
    length = 0
    while length < size:
        turn = message(count)
        length += len(json.dumps(turn))
        items += turn
        count += 1
    return items


@functools.cache
def request(kind: str, count: int, port: int, size: int = 0, key: str = KEY) -> bytes:
    """A POST of 1 KiB, or an agent's of `size` bytes, that tells the upstream what to answer."""
    body: dict[str, object] = {
        "model": "m",
        "instructions": f"bench-{kind}-{count}",
        "stream": kind not in {"unary", "watch"},
        "store": False,
    }
    if size:
        body["input"] = conversation(size)
    else:
        body["input"] = ""
        body["input"] = "x" * (1024 - len(json.dumps(body)))
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class Connection(asyncio.Protocol):
    """One client connection: one request at a time, `ended` when its answer is whole."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.event_count = 0  # over all answers; an event cut by two receives may be missed
        self.is_lost = False
        self.begin()

    def begin(self) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.first: asyncio.Future[float] = loop.create_future()
        self.head = b""
        self.body_left: int | None = None
        self.tail = b""
        self.is_in_body = False
        if self.is_lost:
            self.fail("closed before the request")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.fail(f"cut after {self.head[:80]!r} ... {self.tail[-80:]!r}")

    def fail(self, reason: str) -> None:
        for waiter in (self.first, self.ended):
            if not waiter.done():
                waiter.set_exception(ConnectionError(reason))
                waiter.exception()  # whoever still waits gets it; nobody has to

    def data_received(self, data: bytes) -> None:
        if not self.is_in_body:
            self.head, found, data = (self.head + data).partition(b"\r\n\r\n")
            if not found:
                return
            self.is_in_body = True
            head = self.head.lower()
            if not head.startswith(b"http/1.1 200"):
                self.fail(f"{self.head!r} {data!r}")
            elif b"\r\ncontent-length:" in head:
                text = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
                self.body_left = int(text)
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        self.event_count += data.count(b"\n\n")
        if not self.first.done() and CONTENT in data:
            self.first.set_result(time.perf_counter())
        if self.body_left is not None:
            self.body_left -= len(data)
        is_whole = self.body_left == 0 or self.tail.endswith(END_OF_CHUNKS)
        if is_whole and not self.ended.done():
            self.ended.set_result(None)

    async def exchange(self, content: bytes) -> None:
        """Send a request and wait for the end of its answer."""
        self.begin()
        self.transport.write(content)
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await self.ended

    async def stream(self, content: bytes) -> None:
        """`exchange` of a stream, which must end as it should."""
        await self.exchange(content)
        if b"response.completed" not in self.tail:
            raise ConnectionError(f"ended with {self.tail!r}")

    async def first_content(self, content: bytes) -> float:
        """Send a request; the seconds until its first content event.  The stream goes on."""
        self.begin()
        started = time.perf_counter()
        self.transport.write(content)
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await self.first - started


@contextlib.asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[list[Connection]]:
    """`count` open connections to the proxy at `port`."""
    loop = asyncio.get_running_loop()
    opened: list[Connection] = []
    try:
        while len(opened) < count:
            _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
            opened.append(connection)
        yield opened
    finally:
        for connection in opened:
            connection.transport.abort()
