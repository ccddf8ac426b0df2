"""WebSockets on real sockets: upstreams and clients that make their frames by hand.  (No claims.)

Threads and blocking sockets, as in raw_http.py:

    with opened_sockets(tmp_path, {"a": refuse, "b": answer}) as wire:
        with wire.open() as client:
            events = client.ask()
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.support.codex_backend import make_auth_file
from tests.support.frames import CLOSE, PING, PONG, TEXT, accept_of, frame, split_frame
from tests.support.listening import Listening
from tests.support.memory_sockets import KEY, Json
from tests.support.memory_websockets import CLIENT_KEY, TERMINAL, upgrade
from tests.support.processes import Pooler
from tests.support.raw_http import API_KEY, OPERATOR, SECONDS_MAX

KIB: Final = 1024
Answer = Callable[[socket.socket, Json], bool]  # to a turn; False: the connection ends


class Line:
    """One end of a WebSocket, after the upgrade."""

    def __init__(self, stream: socket.socket, received: bytes = b"") -> None:
        self.stream = stream
        self.buffer = bytearray(received)

    def read_frame(self) -> tuple[int, bytes] | None:
        """Opcode and payload of the next frame; None at the end, or after a reset."""
        while (whole := split_frame(bytes(self.buffer))) is None:
            try:
                received = self.stream.recv(1024 * KIB)
            except ConnectionResetError:
                return None
            if not received:
                return None
            self.buffer += received
        opcode, is_last, _, payload, rest = whole
        assert is_last
        self.buffer = bytearray(rest)
        return opcode, payload


def read_head(stream: socket.socket) -> tuple[bytes, bytes]:
    """A head, and what came behind it."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        received = stream.recv(65536)
        assert received, raw
        raw += received
    head, _, rest = raw.partition(b"\r\n\r\n")
    return head, rest


def read_rest(stream: socket.socket, head: bytes, received: bytes) -> bytes:
    """What is still to come of a request's body."""
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    unread = int(length[1]) - len(received) if length else 0
    rest = b""
    while len(rest) < unread:
        received = stream.recv(65536)
        assert received, rest
        rest += received
    return rest


class Upstream:
    """Serves one account; `answer` is given every turn, and sends what it likes.

    `respond` returns the raw response to a request that is no upgrade; without it, such a request
    is taken for one for the models, which there is no list of.  `refusal` is the raw response to
    every upgrade; without it, each is accepted.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.respond: Callable[[str, bytes], bytes] | None = None  # by the target and the body
        self.refusal: bytes | None = None
        self.refused_count = 0
        self.turn_count = 0
        self.opened_count = 0
        self.ended_count = 0
        self.listening = Listening(self.serve)
        self.port = self.listening.port

    def serve(self, stream: socket.socket) -> None:
        with contextlib.suppress(OSError), stream:
            head, rest = read_head(stream)
            nonce = re.search(rb"(?i)sec-websocket-key: ([!-~]+)", head)
            if nonce is None:
                stream.sendall(self.response_to(head, rest + read_rest(stream, head, rest)))
                return
            if self.refusal is not None:
                self.refused_count += 1
                stream.sendall(self.refusal)
                return
            accept = accept_of(nonce[1].decode())
            stream.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n"
            )
            self.opened_count += 1
            line = Line(stream, rest)
            while (message := line.read_frame()) is not None:
                opcode, payload = message
                if opcode == TEXT:
                    self.turn_count += 1
                    if not self.answer(stream, json.loads(payload)):
                        break
        self.ended_count += 1

    def response_to(self, head: bytes, body: bytes) -> bytes:
        """The raw response to a request that is no upgrade."""
        method, target, _ = head.split(b" ", 2)
        if self.respond is None or method == b"GET":
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        return self.respond(target.decode(), body)

    def close(self) -> None:
        self.listening.close()


class Caller:
    """A client; every frame of the pooler is without a mask."""

    def __init__(self, stream: socket.socket, received: bytes = b"") -> None:
        self.stream = stream
        self.line = Line(stream, received)
        self.read_frame = self.line.read_frame

    def create(self, **body: Json) -> None:
        turn = {"type": "response.create", "model": "m1", "input": "hi"} | body
        self.stream.sendall(frame(TEXT, json.dumps(turn).encode()))

    def ask(self, **body: Json) -> list[Json]:
        """The events of a turn, up to the terminal one; fewer, if the WebSocket ended."""
        self.create(**body)
        return self.read_turn()

    def read_turn(self) -> list[Json]:
        events: list[Json] = []
        while not events or events[-1]["type"] not in TERMINAL:
            whole = self.read_frame()
            if whole is None or whole[0] == CLOSE:
                break
            if whole[0] not in {PING, PONG}:
                assert whole[0] == TEXT, whole
                events.append(json.loads(whole[1]))
        return events

    def read_close(self) -> int:
        """The code of the Close that comes; 0 if none does."""
        while (whole := self.read_frame()) is not None:
            if whole[0] == CLOSE:
                return int.from_bytes(whole[1][:2], "big")
        return 0


class SocketWire:
    """The pooler's process, and an upstream for each account."""

    def __init__(
        self,
        folder: Path,
        answers: Mapping[str, Answer],
        limits: Mapping[str, float],
        *,
        is_codex: bool,
        env: Mapping[str, str],
    ) -> None:
        self.upstreams = {name: Upstream(answer) for name, answer in answers.items()}
        accounts: dict[str, Json] = {}
        for name, upstream in self.upstreams.items():
            common = {"models": ["m1"], "concurrent": 64, "websocket": True}
            address = f"http://127.0.0.1:{upstream.port}"
            if is_codex:
                path = folder / name / "auth.json"
                make_auth_file(path, f"acct-{name}", expires_at=int(time.time()) + 10**6)
                more = {"type": "codex", "auth_file": str(path), "base_url": f"{address}/codex"}
            else:
                more = {"type": "openai", "api_key": API_KEY, "base_url": f"{address}/v1"}
            accounts[name] = common | more
        pool = {"accounts": [*accounts], "routing": "in_order", "keys": {"laptop": KEY}}
        config: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "accounts": accounts,
            "pools": {"home": pool},
            "operators": {"me": OPERATOR},
            "limits": dict(limits),
        }
        self.pooler = Pooler(config, folder, **env)
        host, _, port = self.pooler.origin.removeprefix("http://").partition(":")
        self.address = host, int(port)
        self.pid = self.pooler.process.process.pid

    @contextlib.contextmanager
    def open(self, path: str = "/v1/responses") -> Iterator[Caller]:
        """A client's WebSocket."""
        with socket.create_connection(self.address, SECONDS_MAX) as stream:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream.sendall(upgrade(path))
            head, rest = read_head(stream)
            assert head.startswith(b"HTTP/1.1 101 "), head
            assert accept_of(CLIENT_KEY).encode() in head
            yield Caller(stream, rest)

    def memory(self, field: str) -> int:
        """Bytes, of a line of /proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        [row] = [line for line in lines if line.startswith(f"{field}:")]
        return int(row.split()[1]) * KIB

    def forget_peak(self) -> None:
        """Let VmHWM begin again."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def close(self) -> None:
        self.pooler.stop()  # exit code 0, and no word of a bug
        for upstream in self.upstreams.values():
            upstream.close()


@contextlib.contextmanager
def opened_sockets(
    folder: Path,
    answers: Mapping[str, Answer],
    limits: Mapping[str, float] | None = None,
    *,
    is_codex: bool = False,
    env: Mapping[str, str] | None = None,
) -> Iterator[SocketWire]:
    wire = SocketWire(folder, answers, limits or {}, is_codex=is_codex, env=env or {})
    try:
        yield wire
    finally:
        wire.close()
