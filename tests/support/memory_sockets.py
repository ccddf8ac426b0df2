"""Sockets in memory, and a client that reads strictly what the pooler sends.  (No claims.)

`tests/support/world.py` builds a whole world of them.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

Json = Any
Pairs = Sequence[tuple[str, str]]

KEY: Final = "cp-first-key-0123456789"  # of the pool `home`
OTHER_KEY: Final = "cp-other-key-0123456789"  # the second key of the same pool

################################################################
# SOCKETS
################################################################


class Pipe:
    """One direction of a connection: bytes not read yet, at most `capacity` of them."""

    def __init__(self, capacity: float = math.inf) -> None:
        self.capacity = capacity
        self.buffer = bytearray()
        self.byte_count = 0  # that ever went in
        self.is_ended = False  # by the sender's FIN
        self.is_reset = False  # the reader gets what is buffered, then the error
        self.is_deaf = False  # the reader has closed
        self.moved = trio.lowlevel.ParkingLot()

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        left = memoryview(data)
        while True:
            if self.is_deaf or self.is_reset:
                raise trio.BrokenResourceError
            room = min(len(left), self.capacity - len(self.buffer))
            if room > 0:
                self.buffer += left[: int(room)]
                self.byte_count += int(room)
                left = left[int(room) :]
                self.moved.unpark_all()
            if not left:
                return
            await self.moved.park()

    async def receive(self, bytes_max: int) -> bytes:
        while True:
            if self.is_deaf:
                raise trio.ClosedResourceError
            if self.buffer:
                piece = bytes(self.buffer[:bytes_max])
                del self.buffer[:bytes_max]
                self.moved.unpark_all()
                return piece
            if self.is_reset:
                raise trio.BrokenResourceError
            if self.is_ended:
                return b""
            await self.moved.park()

    def set(self, *, ended: bool = False, reset: bool = False, deaf: bool = False) -> None:
        self.is_ended |= ended
        self.is_reset |= reset
        self.is_deaf |= deaf
        self.moved.unpark_all()


class MemorySocket(trio.abc.HalfCloseableStream):
    """One end of a connection in memory; as strict as a real socket about two users at once.

    With `complaints` it notes there that it was closed under somebody who waits for it.
    """

    complaints: list[str] | None = None

    def __init__(self, incoming: Pipe, outgoing: Pipe) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.is_closed = False
        self._is_sending = False
        self._is_receiving = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_sending:
            raise trio.BusyResourceError
        self._is_sending = True
        try:
            await trio.lowlevel.checkpoint()
            if self.is_closed or self.outgoing.is_ended:
                raise trio.ClosedResourceError
            await self.outgoing.send(data)
        finally:
            self._is_sending = False

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._is_receiving:
            raise trio.BusyResourceError
        self._is_receiving = True
        try:
            await trio.lowlevel.checkpoint()
            return await self.incoming.receive(max_bytes or 65536)
        finally:
            self._is_receiving = False

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self.outgoing.set(ended=True)

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        if self.complaints is not None and self._is_receiving:
            self.complaints.append("a socket was closed while it was read")
        self.is_closed = True
        self.outgoing.set(ended=True)
        self.incoming.set(deaf=True)

    def reset(self) -> None:
        """Break the connection: the other side reads what has been sent, then fails."""
        self.is_closed = True
        self.outgoing.set(reset=True)
        self.incoming.set(deaf=True)

    async def wait_peer_gone(self) -> None:
        """Return when the other side has closed, half-closed or reset."""
        while not (self.incoming.is_ended or self.incoming.is_reset or self.outgoing.is_deaf):
            await self.incoming.moved.park()


def socket_pair(there: float = math.inf, back: float = math.inf) -> tuple[MemorySocket, ...]:
    """Two ends; `there` and `back`: how many unread bytes each direction holds."""
    first, second = Pipe(there), Pipe(back)
    return MemorySocket(second, first), MemorySocket(first, second)


class MemoryListener(trio.abc.Listener[MemorySocket]):
    def __init__(self) -> None:
        self._waiting: deque[MemorySocket] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._is_closed = False

    def arrive(self, stream: MemorySocket) -> None:
        if self._is_closed:
            stream.reset()
        self._waiting.append(stream)
        self._arrived.unpark()

    async def accept(self) -> MemorySocket:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            await self._arrived.park()
        return self._waiting.popleft()

    async def aclose(self) -> None:
        self._is_closed = True
        for stream in self._waiting:
            stream.reset()
        await trio.lowlevel.checkpoint()


################################################################
# CLIENTS
################################################################

OWN_SIZES: Final = re.compile(rb"0|[1-9a-f][0-9a-f]*")
PROXY_SIZES: Final = re.compile(rb"0|[1-9A-F][0-9A-F]*")  # HAProxy frames anew
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]*")
_FIELD: Final = re.compile(rb"([A-Za-z0-9-]+): ([!-~\x80-\xff](?:[ -~\x80-\xff]*[!-~\x80-\xff])?)")


def put_in_order(whole: dict[str, Json]) -> dict[str, Json]:
    """pools.json in which each pool of {"routing": "in_order"} prefers its accounts in their order.

    That is no routing of the pooler's, but what priorities are for.
    """
    for pool in whole["pools"].values():
        if pool.get("routing") == "in_order":
            del pool["routing"]
            for at, name in enumerate(pool["accounts"]):
                whole["accounts"][name].setdefault("priority", at)
    return whole


def read_fields(lines: Sequence[bytes]) -> list[tuple[str, str]]:
    fields = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        assert match is not None, line
        fields.append((match[1].decode().lower(), match[2].decode("latin-1")))
    names = [name for name, _ in fields]
    assert len(set(names)) == len(names), names
    return fields


def post(path: str, content: Json, *, key: str | None = KEY, headers: Pairs = ()) -> bytes:
    """A whole POST; `content` is sent as it is if it is bytes."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers]
    return request("POST", path, key=key, headers=fields) + body


def request(
    method: str, path: str, *, key: str | None = KEY, headers: Pairs = (), host: str = "localhost"
) -> bytes:
    """A request head."""
    fields = [("Host", host), *headers]
    if key is not None:
        fields.append(("Authorization", f"Bearer {key}"))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


def ask_responses(*, stream: bool = True, model: str = "m1", **more: Json) -> bytes:
    """It says nothing, so each one is of no conversation, and any account may have it."""
    return post("/v1/responses", {"model": model, "input": "", "stream": stream} | more)


def ask_chat(*, stream: bool = True, model: str = "m1", **more: Json) -> bytes:
    """The same."""
    messages = [{"role": "user", "content": ""}]
    body = {"model": model, "messages": messages, "stream": stream}
    return post("/v1/chat/completions", body | more)


@dataclass
class Response:
    status: int
    headers: Pairs  # names in lower case
    body: bytes = b""  # chunked framing undone
    head_at: float = 0.0
    ended_at: float = 0.0

    def header(self, name: str) -> str | None:
        return next((value for field, value in self.headers if field == name), None)

    def json(self) -> Json:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Json]:
        """The error object of a response that has one."""
        error = self.json()["error"]
        assert isinstance(error, dict)
        return error


class Truncated(Exception):
    """The connection ended in the middle of a response."""


class Client:
    """One connection to the pooler, read strictly.

    Whole responses: `ask`.  Streams: `send`, `read_head`, then `read_piece` or `read_event` until
    b"".  Also `read_response`, `hang_up`, `half_close`, `reset`, `wait_closed`.
    """

    def __init__(self, stream: MemorySocket, sizes: re.Pattern[bytes] = OWN_SIZES) -> None:
        self.stream = stream
        self.sizes = sizes  # how the lengths of chunks are written
        self.buffer = b""
        self._left: float | None = None  # of the body; None: chunked
        self._is_at_end = True
        self._event = b""

    async def ask(self, raw: bytes) -> Response:
        await self.send(raw)
        return await self.read_response()

    async def send(self, raw: bytes) -> None:
        await self.stream.send_all(raw)

    async def hang_up(self) -> None:
        await self.stream.aclose()

    async def half_close(self) -> None:
        await self.stream.send_eof()

    def reset(self) -> None:
        self.stream.reset()

    async def read_response(self, *, is_head: bool = False) -> Response:
        """The next response to its end.  Raises: Truncated."""
        response = await self.read_head(is_head=is_head)
        pieces = []
        while piece := await self.read_piece():
            pieces.append(piece)
        response.body = b"".join(pieces)
        response.ended_at = trio.current_time()
        return response

    async def read_head(self, *, is_head: bool = False) -> Response:
        """The head of the next response, which may be an interim one.  Raises: Truncated."""
        head = await self._read_to(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        start = _STATUS_LINE.fullmatch(lines[0])
        assert start is not None, lines[0]
        headers = read_fields(lines[1:])
        by_name = dict(headers)
        status = int(start[1])
        self._event = b""
        if "transfer-encoding" in by_name:
            assert by_name["transfer-encoding"] == "chunked"
            assert "content-length" not in by_name
            self._left = None
        elif is_head or status < 200 or status in {204, 304}:
            self._left = 0
        else:
            self._left = int(by_name["content-length"]) if "content-length" in by_name else math.inf
            assert self._left < math.inf or by_name.get("connection") == "close", headers
        self._is_at_end = self._left == 0
        return Response(status, headers, head_at=trio.current_time())

    async def read_piece(self) -> bytes:
        """The next bytes of the body, or b"" at its end.  Raises: Truncated."""
        if self._is_at_end:
            return b""
        if self._left is None:
            size_line = await self._read_to(b"\r\n")
            assert self.sizes.fullmatch(size_line), size_line
            size = int(size_line, 16)
            piece = await self._read_exactly(size)
            assert await self._read_exactly(2) == b"\r\n"
            self._is_at_end = size == 0
            return piece
        if not self.buffer:
            self.buffer = await self.stream.receive_some(65536)
        if not self.buffer and self._left < math.inf:
            raise Truncated
        taken = int(min(self._left, len(self.buffer)))
        piece, self.buffer = self.buffer[:taken], self.buffer[taken:]
        self._left -= taken
        self._is_at_end = self._left == 0 or not piece
        return piece

    async def read_event(self) -> bytes:
        """The next event with its blank line (LF streams), or b"" at the body's end."""
        while b"\n\n" not in self._event:
            piece = await self.read_piece()
            if not piece:
                assert self._event == b"", "half an event"
                return b""
            self._event += piece
        event, _, self._event = self._event.partition(b"\n\n")
        return event + b"\n\n"

    async def wait_closed(self) -> bytes:
        """What comes until the pooler closes, framing and all."""
        rest, self.buffer = self.buffer, b""
        while received := await self.stream.receive_some(65536):
            rest += received
        return rest

    async def _read_to(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            await self._receive()
        data, _, self.buffer = self.buffer.partition(mark)
        return data

    async def _read_exactly(self, byte_count: int) -> bytes:
        while len(self.buffer) < byte_count:
            await self._receive()
        data, self.buffer = self.buffer[:byte_count], self.buffer[byte_count:]
        return data

    async def _receive(self) -> None:
        received = await self.stream.receive_some(65536)
        if not received:
            raise Truncated(self.buffer)
        self.buffer += received
