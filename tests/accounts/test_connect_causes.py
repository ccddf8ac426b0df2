"""Proves that a connection that fails is reported with its cause, in fixed words.

Method: the real process, and real sockets that fail in every way that one machine can make them;
each carrier sends a request to each of them, and the words are looked for where operators find
them: in the log, in the counts, on the page, and in the explanation of a choice. What this machine
cannot do to a socket is passed to the classification as the error that the system would raise.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from pooler import (
    Action,
    BadSyntax,
    BaseUrl,
    Cause,
    ConnectFailed,
    PeerClosed,
    cause_of,
    classify_connect,
)
from tests.support.codex_backend import make_auth_file
from tests.support.codex_world import NAMES, describe_codex, opened_codex_world
from tests.support.memory_sockets import post
from tests.support.memory_websockets import upgrade
from tests.support.processes import OPERATOR_TOKEN, Pooler
from tests.support.raw_websockets import Caller, read_head
from tests.support.tls_upstreams import API_KEY, HOST, SECONDS_MAX, Authority, Upstream, key_of
from tests.support.world import UNIX_START, Refuse, World, describe, opened_world

Json = Any
CONNECT_SECONDS: Final = 3.0  # of the silent one: a handshake takes its time on a busy machine
CARRIERS: Final = ("whole", "stream", "chat", "chat stream", "websocket")
CAUSES: Final[dict[str, Cause]] = {
    "no-name": Cause.NAME,
    "no-name-plain": Cause.NAME,
    "refused": Cause.REFUSED,
    "refused-tls": Cause.REFUSED,
    "silent": Cause.TIMED_OUT,
    "authority-unknown": Cause.NOT_TRUSTED,
    "authority-other": Cause.NOT_TRUSTED,
    "name": Cause.OTHER_NAME,
    "address": Cause.OTHER_NAME,
    "run-out": Cause.OUT_OF_DATE,
    "not-begun": Cause.OUT_OF_DATE,
    "no-tls": Cause.TLS,
    "hangs-up": Cause.TLS,
    "weak-tls": Cause.TLS,
}
NO_TLS: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
PATHS: Final = {"chat": "/v1/chat/completions", "chat stream": "/v1/chat/completions"}


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def dated(authority: Authority, begin: int, end: int) -> ssl.SSLContext:
    context = authority.context()
    days = datetime(begin, 1, 1, tzinfo=UTC), datetime(end, 1, 1, tzinfo=UTC)
    cert = authority.ca.issue_cert(HOST, not_before=days[0], not_after=days[1])
    cert.configure_cert(context)
    return context


def weak(authority: Authority) -> ssl.SSLContext:
    context = authority.context(version=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("AES128-SHA:@SECLEVEL=0")
    return context


def hang_up(listener: socket.socket, said: bytes) -> None:
    """Read what each caller sends first, respond, and close."""
    with contextlib.suppress(OSError):
        while True:
            caller, _ = listener.accept()
            with caller:
                caller.recv(65536)
                caller.sendall(said)


@dataclass
class Failing:
    """The pooler's process, and an account, in a pool of its own, for each way to fail."""

    folder: Path
    upstreams: list[Upstream] = field(default_factory=list)
    accounts: dict[str, Json] = field(default_factory=dict)
    listeners: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        ours, stranger = Authority(self.folder, "ours"), Authority(self.folder, "stranger")
        self.add("authority-unknown", ours.context())
        self.add("authority-other", stranger.context(), ours)
        self.add("name", ours.context("else.example"), ours)
        self.add("address", ours.context("127.0.0.2"), ours)
        self.add("run-out", dated(ours, 2001, 2002), ours)
        self.add("not-begun", dated(ours, 2090, 2095), ours)
        self.add("weak-tls", weak(ours), ours)
        for name, said in (("silent", None), ("hangs-up", b""), ("no-tls", NO_TLS)):
            listener = socket.create_server((HOST, 0))
            self.listeners.append(listener)
            self.describe(name, f"https://{HOST}:{listener.getsockname()[1]}")
            if said is not None:
                threading.Thread(target=hang_up, args=(listener, said), daemon=True).start()
        self.describe("refused", f"http://{HOST}:{free_port()}")
        self.describe("refused-tls", f"https://{HOST}:{free_port()}")
        self.describe("no-name", "https://no-such-host.invalid")
        self.describe("no-name-plain", "http://no-such-host.invalid", allow_plain_http=True)
        pools = {name: {"accounts": [name], "keys": {"k": key_of(name)}} for name in self.accounts}
        config = {
            "listen": f"{HOST}:0",
            "accounts": self.accounts,
            "pools": pools,
            "operators": {"me": OPERATOR_TOKEN},
            "limits": {"connect_seconds_max": CONNECT_SECONDS},
        }
        self.pooler = Pooler(config, self.folder)
        self.address = self.pooler.origin.removeprefix("http://")

    def add(self, name: str, context: ssl.SSLContext, trusted: Authority | None = None) -> None:
        self.upstreams.append(Upstream(context))
        more = {"ca_file": str(trusted.path)} if trusted else {}
        self.describe(name, f"https://{HOST}:{self.upstreams[-1].port}", **more)

    def describe(self, name: str, origin: str, **more: Json) -> None:
        fields = {"type": "openai", "api_key": API_KEY, "models": ["m1"], "websocket": True}
        self.accounts[name] = {**fields, **more, "base_url": f"{origin}/{name}/v1"}

    def ask(self, name: str, carrier: str) -> tuple[int, str]:
        """Status and code of the error that a client gets."""
        if carrier == "websocket":
            return self.ask_socket(name)
        body: Json = {"model": "m1", "stream": carrier.endswith("stream"), "input": "x"}
        if carrier in PATHS:
            body["messages"] = [{"role": "user", "content": "x"}]
        raw, path = json.dumps(body).encode(), PATHS.get(carrier, "/v1/responses")
        fields = {"Authorization": f"Bearer {key_of(name)}", "Content-Type": "application/json"}
        status, read = self.exchange("POST", path, raw, fields)
        return status, json.loads(read)["error"]["code"]

    def exchange(
        self, method: str, path: str, raw: bytes, fields: dict[str, str]
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=SECONDS_MAX)
        with contextlib.closing(connection):
            connection.request(method, path, raw, fields)
            response = connection.getresponse()
            return response.status, response.read()

    def ask_socket(self, name: str) -> tuple[int, str]:
        host, _, port = self.address.partition(":")
        with socket.create_connection((host, int(port)), SECONDS_MAX) as stream:
            stream.sendall(upgrade(key=key_of(name)))
            head, rest = read_head(stream)
            assert head.startswith(b"HTTP/1.1 101 "), head
            [told] = Caller(stream, rest).ask()
            return told["status"], told["error"]["code"]

    def look(self, path: str, accept: str = "application/json") -> str:
        """What an operator is shown."""
        password = base64.b64encode(f"me:{OPERATOR_TOKEN}".encode()).decode()
        scheme = f"Basic {password}" if path == "/admin" else f"Bearer {OPERATOR_TOKEN}"
        status, read = self.exchange("GET", path, b"", {"Authorization": scheme, "Accept": accept})
        assert status == 200
        return read.decode()

    def close(self) -> None:
        for upstream in self.upstreams:
            upstream.close()
        for listener in self.listeners:
            listener.close()


@dataclass(frozen=True)
class Seen:
    """The outcome of each attempt."""

    told: dict[tuple[str, str], tuple[int, str]]  # to clients
    reasons: dict[str, list[str]]  # in the log, by account
    metrics: str
    admin: dict[str, Json]  # after each account was asked
    page: str


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    failing = Failing(tmp_path_factory.mktemp("causes"))
    told: dict[tuple[str, str], tuple[int, str]] = {}
    admin: dict[str, Json] = {}
    for name in CAUSES:
        told |= {(name, carrier): failing.ask(name, carrier) for carrier in CARRIERS}
        admin[name] = json.loads(failing.look("/admin"))
    metrics, page = failing.look("/metrics"), failing.look("/admin", "text/html")
    failing.pooler.stop()  # exit code 0, and no word of a bug or of a secret
    reasons: dict[str, list[str]] = {name: [] for name in CAUSES}
    for line in failing.pooler.process.lines:
        for attempt in json.loads(line).get("attempts", ()):
            reasons[attempt["account"]].append(attempt["reason"])
    yield Seen(told, reasons, metrics, admin, page)
    failing.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSES)
def test_the_log_has_the_cause_of_each_attempt_on_every_carrier(seen: Seen, name: str) -> None:
    assert seen.reasons[name] == [f"connect: {CAUSES[name]}"] * len(CARRIERS)


@pytest.mark.slow
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", CAUSES)
def test_a_client_learns_only_that_there_was_no_connection(
    seen: Seen, name: str, carrier: str
) -> None:
    late = (504, "upstream_timeout")
    is_late = CAUSES[name] is Cause.TIMED_OUT
    assert seen.told[name, carrier] == (late if is_late else (502, "upstream_unreachable"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSES)
def test_operators_find_the_cause_in_counts_and_on_the_page(seen: Seen, name: str) -> None:
    cause = CAUSES[name]
    row = rf'attempts_total{{account="{name}",reason="connect: {cause}"}} {len(CARRIERS)}\n'
    assert re.search(row, seen.metrics)
    shown = seen.admin[name]
    [account] = [one for one in shown["accounts"] if one["name"] == name]
    assert account["unreached"] == cause
    attempts = [one["attempts"] for one in shown["requests"] if one["pool"] == name]
    assert [{"account": name, "reason": f"connect: {cause}"}] in attempts
    assert f"{cause} at " in seen.page  # and the address


################################################################
# WHAT A SYSTEM SAYS
################################################################


def several(*numbers: int) -> OSError:
    """As Trio raises it: each address of a name has failed."""
    error = OSError("all attempts failed")
    error.__cause__ = ExceptionGroup("", [OSError(number, "") for number in numbers])
    return error


ERRORS: Final[dict[str, tuple[BaseException, Cause]]] = {
    "name": (socket.gaierror(socket.EAI_NONAME, ""), Cause.NAME),
    "name-server": (socket.gaierror(socket.EAI_AGAIN, ""), Cause.NAME),
    "refused": (several(errno.ECONNREFUSED), Cause.REFUSED),
    "refused-alone": (ConnectionRefusedError(errno.ECONNREFUSED, ""), Cause.REFUSED),
    "network": (several(errno.ENETUNREACH), Cause.UNREACHABLE),
    "host": (several(errno.EHOSTUNREACH), Cause.UNREACHABLE),
    "firewall": (several(errno.EACCES), Cause.UNREACHABLE),
    "no-ipv6-and-refused": (several(errno.ENETUNREACH, errno.ECONNREFUSED), Cause.REFUSED),
    "no-ipv6-and-silent": (several(errno.ENETUNREACH, errno.ETIMEDOUT), Cause.TIMED_OUT),
    "silent": (several(errno.ETIMEDOUT), Cause.TIMED_OUT),
    "reset": (ConnectionResetError(errno.ECONNRESET, ""), Cause.CLOSED),
    "descriptors": (OSError(errno.EMFILE, ""), Cause.NO_DESCRIPTOR),
    "descriptors-of-all": (several(errno.ENFILE, errno.ENFILE), Cause.NO_DESCRIPTOR),
    "unheard-of": (OSError(9999, ""), Cause.UNREACHABLE),
    "no-addresses": (several(9999), Cause.UNREACHABLE),
    "tls": (ssl.SSLError(1, "anything"), Cause.TLS),
    "gone": (trio.BrokenResourceError(), Cause.TLS),
    "left": (PeerClosed(), Cause.TLS),
    "nonsense": (BadSyntax(), Cause.TLS),
    "known": (ConnectFailed(Cause.PROXY_LOGIN), Cause.PROXY_LOGIN),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_system_error_is_one_of_the_causes(name: str) -> None:
    error, cause = ERRORS[name]
    assert cause_of(error) is cause


@pytest.mark.parametrize("cause", Cause)
def test_a_cause_is_plain_words_and_comes_before_anything_was_sent(cause: Cause) -> None:
    """If no other account would fare better, none is tried, and none is to blame."""
    fault = classify_connect(cause)
    assert re.fullmatch(r"connect: [A-Za-z ]{3,40}", fault.reason)
    assert fault.error.code in {"upstream_unreachable", "upstream_timeout"}
    assert not fault.is_refusal
    is_common = cause is Cause.NO_DESCRIPTOR or cause in {
        Cause.PROXY_NAME, Cause.PROXY_UNREACHABLE, Cause.PROXY_TIMED_OUT, Cause.PROXY_LOGIN,
        Cause.PROXY_RESPONSE,
    }  # fmt: skip
    assert fault.action is (Action.RETURN if is_common else Action.NEXT)


async def test_an_explanation_has_the_cause(autojump_clock: MockClock) -> None:
    async with opened_world(describe("ab", pool={"models": ["m1"]})) as world:
        world.upstreams["a"].dials.append(Refuse())
        world.upstreams["b"].dials.append(Refuse(socket.gaierror(socket.EAI_NONAME, "")))
        assert (await world.ask(post("/v1/responses", {"model": "m1"}))).status == 502
        shown = world.server.operators.explain("home", "m1", None)["accounts"]
        told = {one["name"]: one["reason"].partition("; ")[2] for one in shown}
        words = "tried last, for it did not connect: "
        assert told == {"a": f"{words}refused", "b": f"{words}name not found"}


@pytest.mark.parametrize("cause", [Cause.NAME, Cause.REFUSED, Cause.NOT_TRUSTED, Cause.TIMED_OUT])
async def test_operators_see_why_a_login_cannot_be_refreshed(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Cause
) -> None:
    async def fail(url: BaseUrl, tls: ssl.SSLContext | None) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise ConnectFailed(cause)

    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        for account_id, name in NAMES.items():
            path = tmp_path / name / "auth.json"
            make_auth_file(path, account_id, expires_at=UNIX_START - 60)
        dial = world.server.shared.tokens.dial
        monkeypatch.setattr(world.server.shared.tokens, "dial", fail)
        assert (await world.ask(post("/v1/responses", {"model": "gpt-5.5"}))).status == 503
        for account in snapshot_accounts(world):
            assert (account["status"], account["unreached"]) == ("unreachable", cause)
        shown = world.server.operators.explain("home", "gpt-5.5", None)["accounts"]
        for one in shown:
            assert one["reason"].startswith("unreachable: the token endpoint ")
            assert one["reason"].endswith(f" cannot be reached: {cause}")

        autojump_clock.jump(60)
        monkeypatch.setattr(world.server.shared.tokens, "dial", dial)
        await world.ask(post("/v1/responses", {"model": "gpt-5.5"}))
        assert next(one["unreached"] for one in snapshot_accounts(world)) is None


def snapshot_accounts(world: World) -> Json:
    return world.server.operators.snapshot()["accounts"]
