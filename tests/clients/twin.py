"""A server that gives each request to two others, and keeps what both have said.  (No claims.)"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from typing import Final

from tests.clients.aimock import split_requests
from tests.support.listening import Listening
from tests.support.processes import SECONDS_MAX

PREFIX: Final = "/v1"  # of the pooler's paths; the other has none
# The pooler asks for what is not compressed, whatever a client asks for.
COMPRESSED: Final = re.compile(rb"\r\naccept-encoding:[^\r]*", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """A response; its status is 0 if none came."""

    status: int
    kind: str  # its media type
    body: bytes

    @property
    def code(self) -> str:
        """The code of its error, in the words of the pooler."""
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            return str(json.loads(self.body)["error"]["code"])
        return ""

    @property
    def raw(self) -> bytes:
        head = f"HTTP/1.1 {self.status} X\r\nContent-Type: {self.kind}\r\n"
        return f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode() + self.body


def ask(port: int, method: str, raw: bytes) -> Answer:
    """Send the bytes of a request on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), SECONDS_MAX) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(raw)
        response = http.client.HTTPResponse(connection, method=method)
        try:
            response.begin()
            body = response.read()
        except (http.client.HTTPException, OSError):
            return Answer(0, "", b"")
        return Answer(response.status, response.headers.get_content_type(), body)


def compared(method: str, target: str, directly: Answer, through: Answer) -> str:
    """What was asked, and what was said directly and through the pooler; "" if that is the same.

    Successes are alike if both are of one kind: each has another id.  Errors have the same text.
    """
    is_same = (directly.status, directly.kind) == (through.status, through.kind)
    if is_same and (directly.status < 400 or directly.body == through.body):
        return ""

    path = target.removeprefix(PREFIX).partition("?")[0]
    path = re.sub("^/models/.*", "/models/{model}", path)
    return f"{method} {path}: {directly.status} -> {through.status} {through.code}".rstrip()


@dataclass
class Twin:
    direct_port: int
    pooler_port: int
    same: int = 0  # requests that were answered alike
    different: dict[str, bytes] = field(default_factory=dict)  # with the first request of each
    is_being_told: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.listening = Listening(self.serve)

    def serve(self, caller: socket.socket) -> None:
        unparsed = b""
        with contextlib.suppress(OSError), caller:
            while received := caller.recv(65536):
                whole, unparsed = split_requests(unparsed + received)
                for asked in whole:
                    caller.sendall(self.answer(asked.method, asked.path, asked.raw).raw)

    def answer(self, method: str, target: str, raw: bytes) -> Answer:
        """What the pooler says."""
        line, _, rest = raw.partition(b"\r\n")
        shorter = line.replace(PREFIX.encode(), b"", 1)
        plain = COMPRESSED.sub(b"", shorter + b"\r\n" + rest)
        directly = ask(self.direct_port, method, plain)
        through = ask(self.pooler_port, method, raw)
        said = compared(method, target, directly, through)
        with self.is_being_told:
            self.same += not said
            if said:
                self.different.setdefault(said, raw)
        return through

    def differences(self, expected: set[str]) -> str:
        """What was not expected, with its first request; and what was, and has not come."""
        new = [f"{said}\n{raw!r}" for said, raw in self.different.items() if said not in expected]
        gone = [f"gone: {said}" for said in sorted(expected - set(self.different))]
        return "\n".join(new + gone)

    def close(self) -> None:
        self.listening.close()
        self.listening.join(SECONDS_MAX)
