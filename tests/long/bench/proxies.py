"""The two Trio programs that the pooler is measured against.

`relay` knows no HTTP: it is what Trio costs alone.  `minimal` does the pooler's work with the least
code: h11 for heads, an own reader of chunks, one JSON parse, a key looked up, usage found.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Final

import h11
import trio

from tests.long.bench.load import KEY

RECEIVE_BYTES: Final = 64 * 1024
KEYS: Final = {hashlib.sha256(KEY.encode()).digest(): "bench"}
MODELS: Final = {"m": b"Bearer none"}
DROPPED: Final = frozenset({b"connection", b"host", b"authorization", b"content-length"})


async def copy(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        while data := await source.receive_some(RECEIVE_BYTES):
            await sink.send_all(data)
    except trio.BrokenResourceError:
        pass
    scope.cancel()


async def relay(upstream_port: int, client: trio.SocketStream) -> None:
    upstream = await trio.open_tcp_stream("127.0.0.1", upstream_port)
    async with client, upstream, trio.open_nursery() as nursery:
        nursery.start_soon(copy, client, upstream, nursery.cancel_scope)
        nursery.start_soon(copy, upstream, client, nursery.cancel_scope)


async def run_relay(port: int, upstream_port: int) -> None:
    await trio.serve_tcp(
        functools.partial(relay, upstream_port), port, host="127.0.0.1", backlog=1024
    )


class Chunks:
    """Reads the chunks of a response body."""

    def __init__(self) -> None:
        self.received = b""
        self.is_ended = False

    def feed(self, data: bytes) -> bytes:
        """The content of the chunks that are whole by now."""
        text = self.received + data
        contents = []
        position = 0
        while (line_end := text.find(b"\r\n", position)) >= 0:
            size = int(text[position:line_end], 16)
            end = line_end + 2 + size
            if len(text) < end + 2:
                break
            contents.append(text[line_end + 2 : end])
            position = end + 2
            self.is_ended = size == 0
        self.received = text[position:]
        return b"".join(contents)


async def read_head(
    stream: trio.SocketStream, role: type[h11.CLIENT] | type[h11.SERVER], received: bytes = b""
) -> tuple[h11.Request | h11.Response, bytes] | None:
    """A head as h11 reads it, and what came after it; None at the end of the connection."""
    connection = h11.Connection(role)
    if role is h11.CLIENT:  # h11 wants to have asked
        connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    if received:
        connection.receive_data(received)
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request | h11.Response):
            return event, connection.trailing_data[0]
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data:
            return None
        connection.receive_data(data)


async def read_exactly(stream: trio.SocketStream, content: bytes, size: int) -> bytes:
    """`content` and what is missing of `size` bytes."""
    parts = [content]
    missing = size - len(content)
    while missing > 0:
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data:
            raise trio.BrokenResourceError("cut in a body")
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def head_of(first_line: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    lines = [first_line, *(b"%b: %b" % header for header in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def usage_in(events: bytes) -> object:
    """The usage that the last event of a stream reports, or None."""
    start = events.find(b'"type": "response.completed"')
    if start < 0:
        return None
    line = events[events.rfind(b"data: ", 0, start) + 6 : events.find(b"\n", start)]
    return json.loads(line)["response"]["usage"]


class Minimal:
    """The proxy, with its idle upstream connections."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.idle: list[trio.SocketStream] = []
        self.usages = 0

    async def serve(self, client: trio.SocketStream) -> None:
        try:
            async with client:
                while read := await read_head(client, h11.SERVER):
                    request, received = read
                    assert isinstance(request, h11.Request)
                    await self.forward(client, request, received)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # the client or the upstream has left

    async def forward(
        self, client: trio.SocketStream, request: h11.Request, received: bytes
    ) -> None:
        """One request and its response, while the client's leaving is watched for."""
        headers = dict(request.headers)
        body = await read_exactly(client, received, int(headers[b"content-length"]))
        key = headers[b"authorization"].removeprefix(b"Bearer ")
        if hashlib.sha256(key).digest() not in KEYS:
            raise trio.BrokenResourceError("no such key")
        authorization = MODELS[json.loads(body)["model"]]

        kept = [header for header in request.headers if header[0] not in DROPPED]
        kept.append((b"host", b"127.0.0.1"))
        kept.append((b"authorization", authorization))
        kept.append((b"content-length", b"%d" % len(body)))
        head = head_of(b"POST %b HTTP/1.1" % request.target, kept)

        if self.idle:
            upstream = self.idle.pop()
        else:
            upstream = await trio.open_tcp_stream("127.0.0.1", self.upstream_port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, client, nursery.cancel_scope)
            is_reusable = False
            try:
                await upstream.send_all(head + body)
                await self.respond(client, upstream)
                is_reusable = True
            finally:
                if is_reusable:
                    self.idle.append(upstream)
                else:
                    await trio.aclose_forcefully(upstream)
            nursery.cancel_scope.cancel()

    async def respond(self, client: trio.SocketStream, upstream: trio.SocketStream) -> None:
        read = await read_head(upstream, h11.CLIENT)
        if read is None:
            raise trio.BrokenResourceError("the upstream has left")
        response, received = read
        assert isinstance(response, h11.Response)
        headers = dict(response.headers)
        head = head_of(b"HTTP/1.1 %d OK" % response.status_code, list(response.headers))

        if b"content-length" in headers:
            body = await read_exactly(upstream, received, int(headers[b"content-length"]))
            self.usages += "usage" in json.loads(body)
            await client.send_all(head + body)
            return

        chunks = Chunks()
        events = chunks.feed(received)
        await client.send_all(head + framed(events, chunks.is_ended))
        while not chunks.is_ended:
            data = await upstream.receive_some(RECEIVE_BYTES)
            if not data:
                raise trio.BrokenResourceError("cut in a stream")
            events = chunks.feed(data)
            self.usages += usage_in(events) is not None
            await client.send_all(framed(events, chunks.is_ended))


def framed(events: bytes, is_ended: bool) -> bytes:
    """`events` as one chunk, with the last chunk behind it if the stream has ended."""
    chunk = b"%x\r\n%b\r\n" % (len(events), events) if events else b""
    return chunk + (b"0\r\n\r\n" if is_ended else b"")


async def watch(client: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Cancel the request when its client leaves; what it sends early is left unread."""
    await trio.lowlevel.wait_readable(client.socket)
    if not await client.socket.recv(1, trio.socket.MSG_PEEK):
        scope.cancel()


async def run_minimal(port: int, upstream_port: int) -> None:
    minimal = Minimal(upstream_port)
    await trio.serve_tcp(minimal.serve, port, host="127.0.0.1", backlog=1024)


def run(name: str, port: int, upstream_port: int) -> None:
    """Serve as one of the two until interrupted."""
    program = run_relay if name == "relay" else run_minimal
    trio.run(program, port, upstream_port)
