"""Proves that on each path that goes out nothing is sent before a certificate has been checked.

Method: a server with real TLS contexts, and a door on a real socket to which one path leads, with
every certificate and every way to fail in a handshake; requests, WebSockets, model lists, quotas,
refreshes and notices go there, directly or through a proxy.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import ssl
import struct
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import trio

import pooler
from pooler import AccountChange, Cause, LoginNeeded, Server, ask_upstream
from tests.support.codex_backend import make_auth_file, make_token
from tests.support.frames import TEXT, frame, split_frame, switching
from tests.support.listening import Listening
from tests.support.memory_sockets import (
    KEY,
    Client,
    MemoryListener,
    ask_responses,
    put_in_order,
    socket_pair,
)
from tests.support.memory_websockets import read_upgrade, upgrade
from tests.support.outbound_proxies import Gate
from tests.support.tls_upstreams import API_KEY, SECONDS_MAX, Authority, Left, Line, answer
from tests.support.world import responses_events

Json = Any
NAME: Final = "localhost"  # of the door; the proxy's is its address
FAR: Final = 10**10 - 1
TOKEN: Final = "a-token-of-the-notices-0123456789"
STALL_SECONDS: Final = 0.1
AUTHORITIES: Final = ("system", "account", "other", "stranger")

################################################################
# THE DOOR
################################################################


class Door:
    """A server on a socket; it keeps what it was sent, as it came and decrypted."""

    def __init__(self, open_it: Callable[[Line], None], context: ssl.SSLContext) -> None:
        self.open_it = open_it
        self.context = context
        self.raw = b""
        self.received = b""
        self.protocols: list[str | None] = []
        self.listening = Listening(self.serve)

    def serve(self, caller: socket.socket) -> None:
        caller.settimeout(SECONDS_MAX)
        line = Line(caller, self.context)
        with contextlib.suppress(OSError, Left, ssl.SSLError), caller:
            self.open_it(line)
            assert line.tls is not None
            self.protocols.append(line.tls.selected_alpn_protocol())
            while True:
                head = line.read_head()
                self.received += head
                self.received += line.read_body(head)
                respond(line, head)

    def close(self) -> None:
        self.listening.close()
        self.listening.join(SECONDS_MAX)


def respond(line: Line, head: bytes) -> None:
    """What the path asks for."""
    if b"\r\nupgrade: websocket\r\n" in head.lower():
        line.send(switching(head))
        while split_frame(bytes(line.received)) is None:
            line.receive()
        events = [json.dumps(event).encode() for event in responses_events("x")]
        line.send(b"".join([frame(TEXT, event, mask=b"") for event in events]))
        raise Left
    if head.startswith(b"POST /token"):
        renewed = {"access_token": make_token("ended", "plus", FAR), "refresh_token": "rt-2"}
        line.send(answer(renewed))
    else:
        line.send(answer({"id": "r", "data": []}))


# Ways to open it, which may end there.


def open_well(line: Line) -> None:
    line.shake_hands()


def stay(line: Line) -> None:
    while line.caller.recv(65536):
        pass
    raise Left


def leave_at_once(line: Line) -> None:
    line.caller.recv(65536)
    raise Left


def speak_plainly(line: Line) -> None:
    line.caller.recv(65536)
    line.caller.sendall(answer({"id": "r"}))
    raise Left


def be_alarmed(line: Line) -> None:
    line.caller.recv(65536)
    line.caller.sendall(b"\x15\x03\x03\x00\x02\x02\x28")  # handshake_failure
    stay(line)


def reset(line: Line) -> None:
    line.caller.recv(65536)
    line.caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise Left


def flight(line: Line) -> bytes:
    """What a server says after the client's first words."""
    assert line.tls is not None
    line.incoming.write(line.caller.recv(65536))
    with contextlib.suppress(ssl.SSLWantReadError):
        line.tls.do_handshake()
    return line.outgoing.read()


def stall_in_its_flight(line: Line) -> None:
    line.caller.sendall(flight(line)[:-5])
    stay(line)


def leave_in_its_flight(line: Line) -> None:
    line.caller.sendall(flight(line)[:-5])
    raise Left


def leave_after_its_flight(line: Line) -> None:
    """With TLS 1.2 the client waits for its last words."""
    line.caller.sendall(flight(line))
    line.caller.recv(65536)
    raise Left


def garble_its_flight(line: Line) -> None:
    said = bytearray(flight(line))
    said[len(said) // 2] ^= 1
    line.caller.sendall(said)
    stay(line)


class Fault(NamedTuple):
    """What is wrong with a door: its certificate, its version, or how it opens."""

    cause: Cause | None = None
    by: str = ""  # the authority, if it is not the path's own
    names: tuple[str, ...] = (NAME,)
    years: tuple[int, int] | None = None
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    open_it: Callable[[Line], None] = open_well


FAULTS: Final = {
    "nothing": Fault(),
    "nothing-with-tls-1.2": Fault(version=ssl.TLSVersion.TLSv1_2),
    "nothing-with-a-certificate-of-the-systems": Fault(by="system"),
    "nothing-with-several-names": Fault(names=("else.example", NAME)),
    "another-accounts-authority": Fault(Cause.NOT_TRUSTED, by="other"),
    "nobodys-authority": Fault(Cause.NOT_TRUSTED, by="stranger"),
    "another-name": Fault(Cause.OTHER_NAME, names=("else.example",)),
    "a-longer-name": Fault(Cause.OTHER_NAME, names=(f"{NAME}.example",)),
    "a-shorter-name": Fault(Cause.OTHER_NAME, names=("local",)),
    "its-address-alone": Fault(Cause.OTHER_NAME, names=("127.0.0.1",)),
    "run-out": Fault(Cause.OUT_OF_DATE, years=(2001, 2002)),
    "not-begun": Fault(Cause.OUT_OF_DATE, years=(2090, 2095)),
    "tls-1.1": Fault(Cause.TLS, version=ssl.TLSVersion.TLSv1_1),
    "no-tls": Fault(Cause.TLS, open_it=speak_plainly),
    "an-alert": Fault(Cause.TLS, open_it=be_alarmed),
    "an-end": Fault(Cause.TLS, open_it=leave_at_once),
    "a-reset": Fault(Cause.CLOSED, open_it=reset),
    "silence": Fault(Cause.TIMED_OUT, open_it=stay),
    "silence-in-its-flight": Fault(Cause.TIMED_OUT, open_it=stall_in_its_flight),
    "an-end-in-its-flight": Fault(Cause.TLS, open_it=leave_in_its_flight),
    "an-end-after-its-flight": Fault(
        Cause.TLS, version=ssl.TLSVersion.TLSv1_2, open_it=leave_after_its_flight
    ),
    "a-flight-that-somebody-changed": Fault(Cause.TLS, open_it=garble_its_flight),
}


def door_for(fault: Fault, authority: Authority) -> Door:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of old versions, which we refuse
        context.minimum_version = context.maximum_version = fault.version
    if fault.version < ssl.TLSVersion.TLSv1_2:
        context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])
    years = fault.years or (2020, 2090)
    begin, end = (datetime(year, 1, 1, tzinfo=UTC) for year in years)
    cert = authority.ca.issue_cert(*fault.names, not_before=begin, not_after=end)
    cert.configure_cert(context)
    return Door(fault.open_it, context)


################################################################
# THE PATHS
################################################################


class Logged:
    """What the server logs of its calls."""

    def __init__(self) -> None:
        self.calls: list[Mapping[str, Json]] = []
        self.told = trio.Event()  # of a call

    def note(self, _level: str, _event: str, fields: Mapping[str, Json]) -> None:
        if "attempts" in fields:
            self.calls.append(fields)
            self.told.set()


class Way:
    """A server whose paths all lead to one door."""

    def __init__(self, server: Server, client: Client, logged: Logged) -> None:
        self.server = server
        self.client = client
        self.logged = logged

    def reason(self) -> str:
        """Why the latest attempt failed, or "" if it did not."""
        [entry] = self.logged.calls
        return str(entry["attempts"][-1].get("reason") or "").removeprefix("connect: ")


async def call(way: Way) -> str:
    await way.client.ask(ask_responses(stream=False))
    return way.reason()


async def open_socket(way: Way) -> str:
    await way.client.send(upgrade())
    socket_client = await read_upgrade(way.client)
    await socket_client.ask()
    await socket_client.hang_up()
    await way.logged.told.wait()  # after the last frame
    return way.reason()


async def list_models(way: Way) -> str:
    shared = way.server.shared
    endpoint = shared.endpoints.by_name["a"]
    url = endpoint.account.base_url
    _, _, problem = await ask_upstream(shared, endpoint, url, "/models", [], bytes_max=1000)
    return problem


async def ask_quota(way: Way) -> str:
    shared = way.server.shared
    endpoint = shared.endpoints.by_name["valid"]
    url = endpoint.account.base_url._replace(path="/quota")
    _, _, problem = await ask_upstream(shared, endpoint, url, "/usage", [], bytes_max=1000)
    return problem


async def refresh(way: Way) -> str:
    login = way.server.shared.endpoints.logins["ended"]
    with contextlib.suppress(LoginNeeded):
        await way.server.shared.tokens.credentials(login)
        assert login.unreached is None
    return str(login.unreached or "")


async def tell(way: Way) -> str:
    notices = way.server.shared.notices
    assert notices.notify is not None
    notices.changed(AccountChange("a", "refused", "401", "Put a valid key.", True))
    await notices.tell(notices.notify)
    return notices.problem


class Route(NamedTuple):
    """Who goes there, which secret goes with it, and whose authority is trusted."""

    go: Callable[[Way], Any]
    secret: str
    authority: str = "account"


PATHS: Final = {
    "a-request": Route(call, API_KEY),
    "a-websocket": Route(open_socket, API_KEY),
    "a-model-list": Route(list_models, API_KEY),
    "a-quota": Route(ask_quota, make_token("valid", "plus", FAR)),
    "a-refresh": Route(refresh, "rt-ended"),
    "a-notice": Route(tell, TOKEN, "system"),
}


def described(folder: Path, door: Door, proxy: str | None) -> Json:
    origin = f"https://{NAME}:{door.listening.port}"
    ca_file = str(folder / "account.pem")
    login = {"type": "codex", "base_url": f"{origin}/codex", "models": ["m2"], "ca_file": ca_file}
    key = {"type": "openai", "api_key": API_KEY, "websocket": True, "models": ["m1"]}
    accounts: Json = {
        # The first one's authority is no other's.
        "other": {**key, "base_url": f"{origin}/o", "paused": True, "ca_file": "other.pem"},
        "a": {**key, "base_url": f"{origin}/a", "ca_file": ca_file},
    }
    for name, expires_at in (("valid", FAR), ("ended", 1)):
        path = folder / f"{name}.json"
        make_auth_file(path, name, expires_at=expires_at, refresh_token=f"rt-{name}")
        accounts[name] = {**login, "auth_file": str(path), "paused": True}
    accounts["other"]["api_key"] = f"{API_KEY}-of-another"
    pools = {"home": {"accounts": [*accounts], "keys": {"laptop": KEY}}}
    notify = {"url": f"{origin}/notice", "token": TOKEN}
    whole = {"accounts": accounts, "pools": pools, "notify": notify, "limits": {}}
    return put_in_order(whole | ({"proxy": proxy} if proxy else {}))


Change = Callable[[Json], None]  # of a configuration


def unchanged(_: Json) -> None:
    """As it is."""


def start(server: Server, clients: MemoryListener, nursery: trio.Nursery) -> None:
    nursery.start_soon(server.serve, [clients])


@asynccontextmanager
async def opened_way(
    folder: Path, door: Door, proxy: str | None, change: Change = unchanged
) -> AsyncIterator[Way]:
    path = folder / "pools.json"
    whole = described(folder, door, proxy)
    change(whole)
    path.write_text(json.dumps(whole))
    token_url = f"https://{NAME}:{door.listening.port}/token"
    config, contexts = pooler.load(path, {pooler.REFRESH_URL_VARIABLE: token_url})
    logged = Logged()
    server = Server(config, contexts, log=logged.note)
    ours, client = socket_pair()
    clients = MemoryListener()
    clients.arrive(client)
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            start(server, clients, nursery)
            await trio.testing.wait_all_tasks_blocked()
            yield Way(server, Client(ours), logged)
            await ours.aclose()
            server.stop()


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return {name: Authority(folder, name) for name in AUTHORITIES}


@pytest.fixture
def trusted(
    tmp_path: Path, authorities: dict[str, Authority], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Authority]:
    """The authorities; that of the system is the system's, and files have those of accounts."""
    for name in ("account", "other"):
        (tmp_path / f"{name}.pem").write_bytes(authorities[name].path.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(authorities["system"].path))
    return authorities


async def check(
    folder: Path,
    trusted: Mapping[str, Authority],
    fault: Fault,
    path: Route,
    *,
    proxy: str | None = None,
    change: Change = unchanged,
) -> None:
    door = door_for(fault, trusted[fault.by or path.authority])
    async with opened_way(folder, door, proxy, change) as way:
        problem = await path.go(way)
    door.close()
    if fault.cause is Cause.TIMED_OUT:
        assert problem in {Cause.TIMED_OUT, "no response in time"}
    else:
        assert problem == str(fault.cause or "")
    if fault.cause is None:
        assert path.secret.encode() in door.received
        assert door.protocols == ["http/1.1"]
    else:
        assert door.received == b""


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_nothing_is_sent_before_a_certificate_is_right(
    tmp_path: Path,
    trusted: dict[str, Authority],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    path: str,
) -> None:
    if FAULTS[fault].cause is Cause.TIMED_OUT:
        monkeypatch.setattr(pooler, "CONNECT_SECONDS_MAX", STALL_SECONDS)
    await check(tmp_path, trusted, FAULTS[fault], PATHS[path])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", ["nothing", "another-name", "its-address-alone"])
async def test_through_a_proxy_it_is_the_upstreams_certificate_that_must_be_right(
    tmp_path: Path, trusted: dict[str, Authority], fault: str, path: str
) -> None:
    """The proxy's own address is the name of one of them."""
    gate = Gate()
    await check(tmp_path, trusted, FAULTS[fault], PATHS[path], proxy=f"http://{gate.address}")
    gate.close()
    assert gate.sent
    for tunnels in gate.sent.values():
        assert not [sent for sent in tunnels if PATHS[path].secret.encode() in sent]


async def test_a_handshake_in_a_tunnel_has_as_long_as_a_connection_may_take(
    tmp_path: Path, trusted: dict[str, Authority], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long enough that the tunnel is there before, on a busy machine too."""
    monkeypatch.setattr(pooler, "CONNECT_SECONDS_MAX", 5 * STALL_SECONDS)
    gate = Gate()
    proxy = f"http://{gate.address}"
    await check(tmp_path, trusted, FAULTS["silence"], PATHS["a-request"], proxy=proxy)
    gate.close()


async def test_an_accounts_authority_is_not_trusted_with_notices(
    tmp_path: Path, trusted: dict[str, Authority]
) -> None:
    await check(tmp_path, trusted, Fault(Cause.NOT_TRUSTED, by="account"), PATHS["a-notice"])


def without_tls(whole: Json, *, has_ca_file: bool, has_notify: bool) -> None:
    """Nothing but the path that is tested is to be reached over TLS."""
    for account in whole["accounts"].values():
        account["base_url"] = "http://127.0.0.1:9/v1"
        if not has_ca_file:
            account.pop("ca_file", None)
    if not has_notify:
        del whole["notify"]
    else:
        logins = [name for name, each in whole["accounts"].items() if each["type"] == "codex"]
        for name in logins:
            del whole["accounts"][name]
            whole["pools"]["home"]["accounts"].remove(name)


@pytest.mark.parametrize(
    ("path", "by", "has_ca_file"),
    [("a-refresh", "account", True), ("a-refresh", "system", False), ("a-notice", "system", False)],
)
async def test_what_alone_is_reached_over_tls_is_reached_over_tls(
    tmp_path: Path, trusted: dict[str, Authority], path: str, by: str, *, has_ca_file: bool
) -> None:
    """No account's requests have need of its authorities, nor has anything else."""
    change = functools.partial(without_tls, has_ca_file=has_ca_file, has_notify=path == "a-notice")
    await check(tmp_path, trusted, Fault(by=by), PATHS[path], change=change)
