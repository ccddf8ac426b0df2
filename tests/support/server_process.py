"""The real process and its upstream for tests in Trio, which wait for lines, bytes and ends.

`serving` is `pooler serve` with a configuration, `started` any command, `run_pooler` one that ends
by itself.  `processes.py` has the same for tests without Trio.  (No claims.)
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import trio

from tests.support.paths import POOLER

SECONDS_MAX: Final = 30.0
KEY: Final = "key-of-the-laptop-0123456789"
API_KEY: Final = "account-secret-0123456789"
MODEL: Final = "gpt-5.5"
KEPT: Final = re.compile("PATH|HOME|LANG|TMPDIR|VIRTUAL_ENV|COV.*|PYTHON(OPTIMIZE|WARNINGS)")
ENV: Final = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
# What a request's `input` may be, and what the upstream does then.
WHOLE: Final = "answer at once"
SLOW: Final = "begin, and end when the test says so"
SILENT: Final = "say nothing"


def event(kind: str, **fields: object) -> bytes:
    return b"data: " + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


BEGIN: Final = event("response.created", response={"id": "resp_a"}, sequence_number=0) + event(
    "response.output_text.delta", delta="one", sequence_number=1
)
END: Final = (
    event("response.completed", response={"id": "resp_a"}, sequence_number=2) + b"data: [DONE]\n\n"
)
STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
LIMITED: Final = (
    b"HTTP/1.1 429 Too Many\r\nContent-Type: application/json\r\nRetry-After: 50\r\n"
    b"Content-Length: 2\r\n\r\n{}"
)


async def read_request(stream: trio.abc.Stream) -> tuple[bytes, Any]:
    """The head, and the JSON body, of one request; what is cut off raises."""
    head, _, body = (await read_until(stream, b"\r\n\r\n")).partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    while length and len(body) < int(length[1]):
        body += await receive(stream)
    return head, json.loads(body or b"{}")


async def receive(stream: trio.abc.ReceiveStream) -> bytes:
    received = await stream.receive_some()
    if not received:
        raise trio.BrokenResourceError
    return bytes(received)


async def read_until(stream: trio.abc.ReceiveStream, mark: bytes) -> bytes:
    raw = b""
    while mark not in raw:
        raw += await receive(stream)
    return raw


class Upstream:
    """Serves accounts: one request a connection, each answered as its `input` says."""

    def __init__(self) -> None:
        self.port = 0
        self.heads: list[bytes] = []
        self.is_limited = False
        self.may_end = trio.Event()
        send, self.asked = trio.open_memory_channel[None](math.inf)
        self.note_asked = send.send_nowait
        send_gone, self.gone = trio.open_memory_channel[float](math.inf)
        self.note_gone = send_gone.send_nowait

    async def serve(self, stream: trio.abc.Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await self.answer(stream)
        await trio.aclose_forcefully(stream)

    async def answer(self, stream: trio.abc.Stream) -> None:
        head, body = await read_request(stream)
        self.heads.append(head)
        self.note_asked(None)
        if self.is_limited:
            await stream.send_all(LIMITED)
            return
        if body.get("input") == SILENT:
            await self.wait_end(stream)
        await stream.send_all(STREAM_HEAD + BEGIN)
        if body.get("input") == SLOW:
            await self.wait_end(stream)
        await stream.send_all(END)

    async def wait_end(self, stream: trio.abc.Stream) -> None:
        """Until the test lets the answer go on, or the pooler hangs up, which is noted."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch, stream, nursery.cancel_scope)
            await self.may_end.wait()
            nursery.cancel_scope.cancel()

    async def watch(self, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await receive(stream)
        self.note_gone(trio.current_time())
        scope.cancel()


async def start_upstream(nursery: trio.Nursery, tls: ssl.SSLContext | None = None) -> Upstream:
    made = Upstream()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    made.port = listener.socket.getsockname()[1]
    listeners = [trio.SSLListener(listener, tls) if tls else listener]
    nursery.start_soon(trio.serve_listeners, made.serve, listeners)
    return made


def describe_server(upstream: Upstream | None, **changes: object) -> dict[str, Any]:
    """A pools.json with one account and one key."""
    port = upstream.port if upstream else 9
    account = {
        "type": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "api_key": API_KEY,
        "models": [MODEL], "concurrent": 64,
    }  # fmt: skip
    return {
        "listen": "127.0.0.1:0",
        "accounts": {"one": account},
        "pools": {"home": {"accounts": ["one"], "keys": {"laptop": KEY}}},
        **changes,
    }


def write_config(folder: Path, config: object) -> Path:
    (path := folder / "pools.json").touch(0o600)
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


class ServerProcess:
    """A running pooler, and what it has written on stderr so far."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.unread = b""
        self.lines: list[dict[str, Any]] = []
        self.address = ""

    async def wait_line(self, name: str) -> dict[str, Any]:
        """The next line of the log with this `event`."""
        assert self.process.stderr is not None
        while True:
            while b"\n" not in self.unread:
                received = await self.process.stderr.receive_some()
                assert received, f"the process ended; its log: {self.lines}"
                self.unread += received
            line, _, self.unread = self.unread.partition(b"\n")
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == name:
                return self.lines[-1]

    async def wait_exit(self) -> int:
        """The exit code; the rest of the log must be JSON lines too."""
        assert self.process.stderr is not None
        while received := await self.process.stderr.receive_some():
            self.unread += received
        self.lines += [json.loads(line) for line in self.unread.splitlines()]
        self.unread = b""
        return await self.process.wait()

    async def connect(self) -> trio.SocketStream:
        if self.address.startswith("unix:"):
            return await trio.open_unix_socket(self.address.removeprefix("unix:"))
        host, _, port = self.address.rpartition(":")
        return await trio.open_tcp_stream(host.strip("[]"), int(port))

    async def get(self, path: str) -> bytes:
        async with await self.connect() as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n".encode())
            await stream.send_all(b"Connection: close\r\n\r\n")
            return await read_all(stream)

    async def post(self, text: str, key: str = KEY, **fields: object) -> trio.SocketStream:
        """A connection on which a call has been sent."""
        asked = {"model": MODEL, "stream": True, "input": text, **fields}
        body = json.dumps(asked).encode()
        head = (
            "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        stream = await self.connect()
        await stream.send_all(head.encode() + body)
        return stream

    async def ask(self, text: str = WHOLE, key: str = KEY) -> bytes:
        """The whole answer to a call, as it came."""
        async with await self.post(text, key) as stream:
            return await read_all(stream)


async def read_all(stream: trio.abc.Stream) -> bytes:
    raw = b""
    while received := await stream.receive_some():
        raw += received
    return raw


def status_of(answer: bytes) -> int:
    return int(answer.split()[1])


def code_of(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


@contextlib.asynccontextmanager
async def started(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> AsyncIterator[trio.Process]:
    """`python pooler.py ARGUMENTS`, for at most `SECONDS_MAX`; killed if it still runs then."""
    process = await trio.lowlevel.open_process(
        [sys.executable, POOLER, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENV | (env or {}),
        cwd=cwd,
    )
    try:
        with trio.fail_after(SECONDS_MAX):
            yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                await pipe.aclose()


@contextlib.asynccontextmanager
async def serving(
    folder: Path, config: object, env: dict[str, str] | None = None
) -> AsyncIterator[ServerProcess]:
    """`pooler serve`, listening; if the test has not ended it, SIGTERM must, and well."""
    write_config(folder, config)
    async with started("serve", env=env, cwd=folder) as process:
        pooler = ServerProcess(process)
        pooler.address = (await pooler.wait_line("listening"))["address"]
        yield pooler
        if process.returncode is None:
            pooler.process.send_signal(signal.SIGTERM)
            assert await pooler.wait_exit() == 0


def run_pooler(
    *arguments: str, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    command = [sys.executable, POOLER, *arguments]
    options: Any = {"capture_output": True, "text": True, "timeout": SECONDS_MAX}
    return subprocess.run(command, check=False, cwd=cwd, env=ENV | env, **options)
