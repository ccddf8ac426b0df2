"""The pooler's process behind an outbound proxy: one by hand, or a real one.  (No claims.)"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.support.codex_backend import make_auth_file, make_token
from tests.support.limits import settable
from tests.support.listening import Listening
from tests.support.memory_websockets import upgrade
from tests.support.processes import OPERATOR_TOKEN, Pooler, Running, clean_env
from tests.support.raw_websockets import Caller, read_head
from tests.support.tls_upstreams import (
    API_KEY,
    HOST,
    SECONDS_MAX,
    Authority,
    Line,
    Upstream,
    answer,
    event_stream,
    key_of,
)
from tests.support.world import responses_events

Json = Any
AGREED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
FAR: Final = 4 * 10**9
LAUNCH: Final = """
import signal, sys, proxy
with proxy.Proxy(sys.argv[1:]) as running:
    print("listening on", running.flags.port, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pause()
"""
BOUNDS: Final = ("--num-workers", "1", "--num-acceptors", "1")


class RealProxy:
    """proxy.py, from PyPI, with more options of its own."""

    def __init__(self, *options: str) -> None:
        command = ("-c", LAUNCH, "--hostname", HOST, "--port", "0", *BOUNDS, *options)
        self.process = Running(sys.executable, *command, env=clean_env())
        self.address = f"{HOST}:{self.process.wait_line(r'^listening on ([0-9]+)$')}"

    def tunnels_to(self, port: int) -> int:
        """How many it has told of; each when it has ended."""
        return len(re.findall(rf"CONNECT {HOST}:{port} ", self.process.output))

    def close(self) -> None:
        self.process.end()


class Gate:
    """A proxy by hand, which keeps all that it was sent; `plays` says whether it agrees."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.sent: dict[str, list[bytearray]] = {}  # through each tunnel, by where it led
        self.plays: Callable[[socket.socket], bool] = agree
        self.is_over = threading.Event()
        self.listening = Listening(self.serve)
        self.address = f"{HOST}:{self.listening.port}"

    def serve(self, caller: socket.socket) -> None:
        with contextlib.suppress(OSError, AssertionError), caller:
            head, rest = read_head(caller)
            assert not rest, rest
            self.heads.append(head)
            if self.plays(caller):
                self.relay(caller, head.split(b" ")[1].decode())

    def relay(self, caller: socket.socket, target: str) -> None:
        host, _, port = target.rpartition(":")
        sent = bytearray()
        self.sent.setdefault(target, []).append(sent)
        with socket.create_connection((host, int(port)), SECONDS_MAX) as upstream:
            threading.Thread(target=self.copy, args=(upstream, caller), daemon=True).start()
            self.copy(caller, upstream, sent)

    def copy(
        self, source: socket.socket, sink: socket.socket, kept: bytearray | None = None
    ) -> None:
        with contextlib.suppress(OSError):
            while received := source.recv(65536):
                if kept is not None:
                    kept += received
                sink.sendall(received)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.is_over.set()
        self.listening.close()


def agree(caller: socket.socket) -> bool:
    caller.sendall(AGREED)
    return True


def saying(data: bytes) -> Callable[[socket.socket], bool]:
    """Answer so, and leave."""

    def play(caller: socket.socket) -> bool:
        caller.sendall(data)
        return False

    return play


def well(line: Line, head: bytes) -> bool:
    """Answer any request with what it asks for, and keep the connection."""
    body = line.read_body(head)
    name = head.split(b"/")[1].decode()
    if name == "token":
        renewed = {"access_token": make_token("acct", "plus", FAR), "refresh_token": "rt-2"}
        line.send(answer(renewed))
        return True
    if json.loads(body).get("stream"):
        line.send(event_stream(responses_events("hi")))
        return False
    line.send(answer({"id": "r"}))
    return True


class Proxied:
    """The pooler, and upstreams of accounts that each have a pool of their own."""

    def __init__(self, folder: Path, proxy: str | None, **env: str) -> None:
        self.folder = folder
        self.authority, self.stranger = Authority(folder, "ours"), Authority(folder, "stranger")
        self.secure = Upstream(self.authority.context())
        self.misnamed = Upstream(self.authority.context("else.example"))
        self.plain = Upstream()
        self.token_url = f"https://{HOST}:{self.secure.port}/token/oauth"
        self.accounts: dict[str, Json] = {}
        self.proxy, self.env = proxy, {"CODEX_REFRESH_TOKEN_URL_OVERRIDE": self.token_url, **env}
        self.add("secure", f"https://{HOST}:{self.secure.port}", ca_file=str(self.authority.path))
        self.add("plain", f"http://{HOST}:{self.plain.port}", allow_plain_http=True)
        self.add("stranger", f"https://{HOST}:{self.secure.port}", ca_file=str(self.stranger.path))
        misnamed = f"https://{HOST}:{self.misnamed.port}"
        self.add("misnamed", misnamed, ca_file=str(self.authority.path))
        with socket.create_server((HOST, 0)) as listener:
            dead_port = listener.getsockname()[1]
        self.add("dead", f"https://{HOST}:{dead_port}")
        self.add("nowhere", "https://no-such-host.invalid")
        login = folder / "login.json"
        make_auth_file(login, "acct", expires_at=1, refresh_token="rt-1")
        more = {"type": "codex", "api_key": None, "auth_file": str(login), "websocket": False}
        trust = {"ca_file": str(self.authority.path)}
        self.add("login", f"https://{HOST}:{self.secure.port}", **more, **trust)
        for upstream in (self.secure, self.plain, self.misnamed):
            upstream.plays.update(dict.fromkeys([*self.accounts, "token"], well))

    def add(self, name: str, origin: str, **more: Json) -> None:
        fields = {"type": "openai", "api_key": API_KEY, "models": ["m1"], **more}
        described = {field: value for field, value in fields.items() if value is not None}
        self.accounts[name] = {**described, "base_url": f"{origin}/{name}/v1"}

    def described(self) -> dict[str, Json]:
        pools = {
            name: {"accounts": [name], "models": ["m1"], "keys": {"k": key_of(name)}}
            for name in self.accounts
        }
        return {
            "listen": f"{HOST}:0",
            "accounts": self.accounts,
            "pools": pools,
            "operators": {"me": OPERATOR_TOKEN},
            "limits": {"connect_seconds_max": 3},
            **({"proxy": self.proxy} if self.proxy else {}),
        }

    def start(self) -> None:
        self.pooler = Pooler(self.described(), self.folder, **self.env)
        host, _, port = self.pooler.origin.removeprefix("http://").partition(":")
        self.address = host, int(port)

    def reload(self, proxy: str | None) -> None:
        self.proxy = proxy
        described = self.described()
        described["limits"] = settable(described["limits"])
        (self.folder / "pools.json").write_text(json.dumps(described))
        self.pooler.process.process.send_signal(signal.SIGHUP)
        self.pooler.process.wait_line(r'"event": ?"(reloaded)"')

    def exchange(
        self, method: str, path: str, token: str, body: Mapping[str, Json] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=SECONDS_MAX)
        fields = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        with contextlib.closing(connection):
            raw = b"" if body is None else json.dumps(body).encode()
            connection.request(method, path, raw, {**fields, "Accept": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()

    def ask(self, name: str, **more: Json) -> int:
        body = {"model": "m1", "input": "x", **more}
        return self.exchange("POST", "/v1/responses", key_of(name), body)[0]

    def reason(self) -> str:
        """Why the latest attempt failed."""
        shown = json.loads(self.exchange("GET", "/admin", OPERATOR_TOKEN)[1])
        reason: str = shown["requests"][0]["attempts"][-1]["reason"]
        return reason

    @contextlib.contextmanager
    def open_socket(self, name: str) -> Any:  # noqa: ANN401 (an iterator of one)
        with socket.create_connection(self.address, SECONDS_MAX) as stream:
            stream.sendall(upgrade(key=key_of(name)))
            head, rest = read_head(stream)
            assert head.startswith(b"HTTP/1.1 101 "), head
            yield Caller(stream, rest)

    def close(self) -> None:
        for upstream in (self.secure, self.plain, self.misnamed):
            upstream.is_over.set()
        self.pooler.stop()  # exit code 0, and no word of a bug or of a secret
        for upstream in (self.secure, self.plain, self.misnamed):
            upstream.close()


@contextlib.contextmanager
def opened(folder: Path, proxy: str | None, **env: str) -> Any:  # noqa: ANN401 (as above)
    proxied = Proxied(folder, proxy, **env)
    proxied.start()
    try:
        yield proxied
    finally:
        proxied.close()
