"""Real sockets for the tests of hostile bytes: an upstream and a client that keep raw bytes.

Both are threads and blocking sockets, so that nothing here reads bytes as the pooler does.  (No
claims.)
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.support.listening import Listening
from tests.support.memory_sockets import KEY
from tests.support.processes import Pooler

API_KEY: Final = "upstream-key-of-the-test-0123456789"
OPERATOR: Final = "operator-token-of-the-test-01234"
SECONDS_MAX: Final = 20.0  # of one wait: a machine may be slow
OK: Final = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"id":"r"}'
)


class Request(NamedTuple):
    """What an upstream has read, by a reader that knows Content-Length only."""

    line: bytes
    names: tuple[bytes, ...]
    body: bytes


class Answer(NamedTuple):
    """What a client has read."""

    status: int
    headers: dict[str, str]
    body: bytes


def take_request(raw: bytes) -> tuple[Request, bytes] | None:
    """The first whole request and what follows it.  Anything but our own strict form is an error.

    Raises: AssertionError, for bytes that the pooler must never send.
    """
    head, end, rest = raw.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *fields = head.split(b"\r\n")
    assert re.fullmatch(rb"(?:GET|POST) /v1/[a-z/]+ HTTP/1\.1", line), raw
    assert all(re.fullmatch(rb"[A-Za-z-]+: [ -~\x80-\xff]*", field) for field in fields), raw
    pairs = [field.split(b": ", 1) for field in fields]
    names = tuple(name.lower() for name, _ in pairs)
    assert len(set(names)) == len(names), raw
    headers_by_name = {name.lower(): value for name, value in pairs}
    assert b"transfer-encoding" not in headers_by_name, raw
    length = int(headers_by_name.get(b"content-length", b"0"))
    if len(rest) < length:
        return None
    return Request(line, names, rest[:length]), rest[length:]


class RawUpstream:
    """Serves one account; `plays` decides what it sends after a request, and what then."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.odd: list[bytes] = []  # bytes that were no request
        self.answer: Callable[[socket.socket], bool] = self.well
        self.listening = Listening(self.serve)
        self.port = self.listening.port

    @property
    def opened_count(self) -> int:
        return self.listening.count

    def well(self, caller: socket.socket) -> bool:
        caller.sendall(OK)
        return True

    def plays(self, raw: bytes, keeps: bool = True) -> None:
        """Send this response from now on, and end the connection after it unless it is kept."""

        def answer(caller: socket.socket) -> bool:
            caller.sendall(raw)
            return keeps

        self.answer = answer

    def serve(self, caller: socket.socket) -> None:
        raw = b""
        with contextlib.suppress(OSError), caller:
            while received := caller.recv(65536):
                raw += received
                try:
                    taken = take_request(raw)
                except (AssertionError, ValueError):
                    self.odd.append(raw)
                    return
                if taken is None:
                    continue
                request, raw = taken
                if raw:
                    self.odd.append(raw)
                self.asked.append(request)  # before the answer: who has that, may look here
                if not self.answer(caller):
                    return
            if raw:
                self.odd.append(raw)

    def take(self) -> list[Request]:
        """The requests since the last look; there must have been nothing else."""
        assert self.odd == []
        taken, self.asked = self.asked, []
        return taken

    def close(self) -> None:
        self.listening.close()
        assert self.odd == []


class Wire:
    """The pooler's process and the upstream of its one account."""

    def __init__(self, folder: Path, limits: Mapping[str, float] | None = None, **env: str) -> None:
        self.upstream = RawUpstream()
        account = {
            "type": "openai", "base_url": f"http://127.0.0.1:{self.upstream.port}/v1",
            "api_key": API_KEY, "models": ["m1"], "concurrent": 64, "websocket": True,
        }  # fmt: skip
        config: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "accounts": {"a": account},
            "pools": {"home": {"accounts": ["a"], "keys": {"laptop": KEY}}},
            "operators": {"me": OPERATOR},
            "limits": dict(limits or {}),
        }
        self.pooler = Pooler(config, folder, **env)
        host, _, port = self.pooler.origin.removeprefix("http://").partition(":")
        self.address = host, int(port)
        self.pid = self.pooler.process.process.pid

    def connect(self) -> socket.socket:
        stream = socket.create_connection(self.address, SECONDS_MAX)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    def say(self, raw: bytes, piece: int = 1 << 20) -> bytes:
        """All that comes back for these bytes, until the pooler ends the connection."""
        with self.connect() as client:
            with contextlib.suppress(OSError):  # it may refuse before it has heard all
                for at in range(0, len(raw), piece):
                    client.sendall(raw[at : at + piece])
            return read_all(client)

    def close(self) -> None:
        self.pooler.stop()  # exit code 0, and no word of a bug
        self.upstream.close()


@contextlib.contextmanager
def opened_wire(
    folder: Path, limits: Mapping[str, float] | None = None, **env: str
) -> Iterator[Wire]:
    wire = Wire(folder, limits, **env)
    try:
        yield wire
    finally:
        wire.close()


def read_all(client: socket.socket) -> bytes:
    """Until the end; a reset counts as one, silence for `SECONDS_MAX` is an error."""
    raw = b""
    with contextlib.suppress(ConnectionResetError):
        while received := client.recv(65536):
            raw += received
    return raw


def split_responses(raw: bytes) -> list[Answer]:
    """Every response in `raw`; each must be whole, and of the pooler's own strict form."""
    answers = []
    while raw:
        head, end, raw = raw.partition(b"\r\n\r\n")
        assert end, head
        line, *fields = head.split(b"\r\n")
        match = re.fullmatch(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]*", line)
        assert match, line
        assert all(re.fullmatch(rb"[A-Za-z-]+: [ -~\x80-\xff]*", field) for field in fields), head
        headers = dict(field.decode("latin-1").split(": ", 1) for field in fields)
        headers = {name.lower(): value for name, value in headers.items()}
        body = b""
        if int(match[1]) >= 200:
            if "transfer-encoding" in headers:
                body, raw = take_chunks(raw)
            else:
                length = int(headers["content-length"])
                body, raw = raw[:length], raw[length:]
                assert len(body) == length
        answers.append(Answer(int(match[1]), headers, body))
    return answers


def take_chunks(raw: bytes) -> tuple[bytes, bytes]:
    """The body and what follows it; a body that is cut off is an error."""
    body = b""
    while True:
        size, _, raw = raw.partition(b"\r\n")
        count = int(size, 16)
        assert len(raw) >= count + 2
        body, behind, raw = body + raw[:count], raw[count : count + 2], raw[count + 2 :]
        assert behind == b"\r\n"
        if not count:
            return body, raw


def read_response(client: socket.socket) -> bytes:
    """One response with a Content-Length, head and body."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        received = client.recv(65536)
        assert received, raw
        raw += received
    head, _, body = raw.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(65536)
    return head + b"\r\n\r\n" + body
