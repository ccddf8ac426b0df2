"""Proves that all outgoing connections use the proxy of pools.json, and that it reads none of them.

TLS is between the pooler and the upstream; a failure is reported with its cause; a change of the
proxy leaves no earlier connection in use; variables of the environment change nothing.

Method: the real process and real sockets, behind proxy.py (from PyPI), and behind a handwritten
proxy that keeps every byte and responds as badly as possible.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio.testing
from trio.testing import MockClock

import pooler
from pooler import REFRESH_URL_VARIABLE, Cause, Config, ConfigRefused, parse_config, reveal
from tests.support.frames import TEXT, frame
from tests.support.outbound_proxies import AGREED, Gate, Proxied, RealProxy, agree, opened, saying
from tests.support.raw_websockets import Upstream as SocketUpstream
from tests.support.tls_upstreams import API_KEY, HOST
from tests.support.world import describe, responses_events

pytestmark: Final = pytest.mark.slow

Json = Any
LOGIN: Final = "someone:marmalade%20of%3aquinces"  # both words of what the log must never have
LOGIN_TEXT: Final = b"someone:marmalade of:quinces"

################################################################
# A REAL PROXY
################################################################

BEHIND_A_REAL_ONE: Final[dict[str, tuple[int, Cause | None]]] = {
    "secure": (200, None),
    "plain": (200, None),
    "login": (200, None),
    "stranger": (502, Cause.NOT_TRUSTED),
    "misnamed": (502, Cause.OTHER_NAME),
    "dead": (502, Cause.PROXY_FAILED),
    "nowhere": (502, Cause.PROXY_FAILED),
    "barred": (502, Cause.PROXY_REFUSED),
}


@pytest.fixture(scope="module")
def behind_real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealProxy, Proxied]]:
    bars = ("proxy.plugin.FilterByUpstreamHostPlugin", "--filtered-upstream-hosts", "localhost")
    real = RealProxy("--plugins", *bars)
    proxied = Proxied(tmp_path_factory.mktemp("real"), f"http://{real.address}")
    proxied.add("barred", f"https://localhost:{proxied.secure.port}")
    proxied.start()
    yield real, proxied
    proxied.close()
    ports = (proxied.secure.port, proxied.plain.port, proxied.misnamed.port)
    counts = [
        proxied.secure.opened_count,
        proxied.plain.opened_count,
        proxied.misnamed.opened_count,
    ]
    real.close()
    assert [real.tunnels_to(port) for port in ports] == counts  # none came past it


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", BEHIND_A_REAL_ONE)
def test_behind_a_real_proxy_upstreams_respond_or_have_a_cause(
    behind_real: tuple[RealProxy, Proxied], name: str, is_stream: bool
) -> None:
    _, proxied = behind_real
    status, cause = BEHIND_A_REAL_ONE[name]
    assert proxied.ask(name, stream=is_stream) == status
    if cause is not None:
        assert proxied.reason() == f"connect: {cause}"


@pytest.mark.parametrize("way", ["none", "wrong", "right"])
def test_a_real_proxy_that_requires_a_login_gets_the_configured_one(
    tmp_path: Path, way: str
) -> None:
    real = RealProxy("--basic-auth", LOGIN_TEXT.decode())
    given = {"none": "", "wrong": "someone:else@", "right": f"{LOGIN}@"}[way]
    env = {"THE_PROXY": f"http://{given}{real.address}/"}
    with opened(tmp_path, "{env:THE_PROXY}", **env) as proxied:
        assert proxied.ask("secure") == (200 if way == "right" else 502)
        if way != "right":
            assert proxied.reason() == f"connect: {Cause.PROXY_LOGIN}"
    real.close()


################################################################
# WHAT GOES THROUGH
################################################################


@pytest.fixture(scope="module")
def behind_gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gate, Proxied]]:
    gate = Gate()
    with opened(tmp_path_factory.mktemp("gate"), f"http://{LOGIN}@{gate.address}") as proxied:
        yield gate, proxied
    gate.close()


@pytest.fixture
def gate(behind_gate: tuple[Gate, Proxied]) -> Gate:
    behind_gate[0].plays = agree
    return behind_gate[0]


@pytest.fixture
def proxied(behind_gate: tuple[Gate, Proxied]) -> Proxied:
    return behind_gate[1]


def test_nothing_goes_past_the_proxy_and_tls_goes_through_it(tmp_path: Path) -> None:
    """Requests, model lists, a login's refresh; its own login goes to the proxy alone."""
    gate = Gate()
    proxied = Proxied(tmp_path, f"http://{LOGIN}@{gate.address}")
    del proxied.accounts["secure"]["models"], proxied.accounts["plain"]["models"]
    proxied.start()
    for name in ("secure", "plain", "login"):
        assert proxied.ask(name) == proxied.ask(name, stream=True) == 200
    proxied.close()
    gate.close()
    ports = {"secure": proxied.secure.port, "plain": proxied.plain.port}
    tunnels = {name: gate.sent[f"{HOST}:{port}"] for name, port in ports.items()}
    assert len(tunnels["secure"]) == proxied.secure.opened_count
    assert len(tunnels["plain"]) == proxied.plain.opened_count
    assert {bytes(sent[:2]) for sent in tunnels["secure"]} == {b"\x16\x03"}  # a ClientHello
    assert not any(API_KEY.encode() in sent for sent in tunnels["secure"])
    assert any(API_KEY.encode() in sent for sent in tunnels["plain"])
    assert any(sent.startswith(b"GET /plain/v1/models") for sent in tunnels["plain"])
    assert {name for name, _ in proxied.secure.asked} == {"secure", "login", "token"}
    login = b"Basic " + base64.b64encode(LOGIN_TEXT)
    assert {*gate.heads} >= {
        b"CONNECT %b HTTP/1.1\r\nHost: %b\r\nProxy-Authorization: %b" % (target, target, login)
        for target in (f"{HOST}:{port}".encode() for port in ports.values())
    }
    assert not any(login in sent for tunnel in tunnels.values() for sent in tunnel)


################################################################
# WHAT A PROXY MAY ANSWER
################################################################

ANSWERS: Final[dict[str, tuple[bytes, Cause]]] = {
    "forbidden": (b"HTTP/1.1 403 Forbidden\r\n\r\n", Cause.PROXY_REFUSED),
    "not-a-proxy": (b"HTTP/1.1 405 Method Not Allowed\r\n\r\n", Cause.PROXY_REFUSED),
    "elsewhere": (b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n", Cause.PROXY_REFUSED),
    "wants-a-login": (
        b'HTTP/1.1 407 Authenticate\r\nProxy-Authenticate: Basic realm="x"\r\n\r\n',
        Cause.PROXY_LOGIN,
    ),
    "no-way": (b"HTTP/1.0 502 Bad Gateway\r\nConnection: close\r\n\r\nx", Cause.PROXY_FAILED),
    "no-time": (b"HTTP/1.1 504 Gateway Timeout\r\n\r\n", Cause.PROXY_FAILED),
    "nothing": (b"", Cause.PROXY_CLOSED),
    "half-a-head": (b"HTTP/1.1 200 Conn", Cause.PROXY_CLOSED),
    "no-http": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Cause.PROXY_RESPONSE),
    "bare-lf": (b"HTTP/1.1 200 OK\n\n", Cause.PROXY_RESPONSE),
    "upgrade": (b"HTTP/1.1 101 Switching\r\n\r\n" * 9, Cause.PROXY_RESPONSE),
    "large-head": (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 40_000, Cause.PROXY_RESPONSE),
    "more-than-a-head": (AGREED + b"\x15\x03\x03\x00\x02\x02\x28", Cause.PROXY_RESPONSE),
}
AGREEMENTS: Final = {
    "1.0": b"HTTP/1.0 200 Connection established\r\n\r\n",
    "no-reason": b"HTTP/1.1 200\r\n\r\n",
    "another-success": b"HTTP/1.1 204 No Content\r\n\r\n",
    "fields": b"HTTP/1.1 200 OK\r\nProxy-Agent: x\r\nVia: 1.1 y\r\nConnection: close\r\n\r\n",
    "a-length-that-means-nothing": b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n",
    "chunks-that-mean-nothing": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "after-an-interim-one": b"HTTP/1.1 102 Processing\r\n\r\n" + AGREED,
}


@pytest.mark.parametrize("name", ["secure", "plain"])
@pytest.mark.parametrize("case", ANSWERS)
def test_a_response_that_opens_no_tunnel_has_its_cause(
    gate: Gate, proxied: Proxied, case: str, name: str
) -> None:
    """And nothing is sent into it, no request and no key."""
    said, cause = ANSWERS[case]
    proxied.reload(proxied.proxy)  # nothing is kept of the test before
    gate.plays = saying(said)
    asked = len(proxied.secure.asked) + len(proxied.plain.asked)
    assert proxied.ask(name) == 502
    assert proxied.reason() == f"connect: {cause}"
    assert len(proxied.secure.asked) + len(proxied.plain.asked) == asked


@pytest.mark.parametrize("name", ["secure", "plain"])
@pytest.mark.parametrize("case", AGREEMENTS)
def test_any_agreement_makes_a_tunnel(gate: Gate, proxied: Proxied, case: str, name: str) -> None:
    def play(caller: socket.socket) -> bool:
        caller.sendall(AGREEMENTS[case])
        return True

    proxied.reload(proxied.proxy)
    gate.plays = play
    assert proxied.ask(name) == 200


def stall(gate: Gate) -> Callable[[socket.socket], bool]:
    return lambda _: gate.is_over.wait() and False


@pytest.mark.parametrize("name", ["secure", "plain"])
def test_a_proxy_has_as_long_as_a_connection_may_take(
    gate: Gate, proxied: Proxied, name: str
) -> None:
    proxied.reload(proxied.proxy)
    gate.plays = stall(gate)
    assert proxied.ask(name) == 504
    assert proxied.reason() == f"connect: {Cause.TIMED_OUT}"


@pytest.mark.parametrize("kind", ["refused", "no-name", "hangs-up"])
def test_a_missing_proxy_is_tried_once(tmp_path: Path, kind: str) -> None:
    """Another account would not fare better."""
    with socket.create_server((HOST, 0)) as listener:
        free_port = listener.getsockname()[1]
    address = {"refused": f"{HOST}:{free_port}", "no-name": "no-such-host.invalid:3128"}
    gate = Gate()
    gate.plays = saying(b"")
    proxied = Proxied(tmp_path, f"http://{address.get(kind, gate.address)}")
    causes = {"refused": Cause.PROXY_UNREACHABLE, "no-name": Cause.PROXY_NAME}
    proxied.start()
    assert proxied.ask("secure") == 502
    assert proxied.reason() == f"connect: {causes.get(kind, Cause.PROXY_CLOSED)}"
    proxied.close()
    gate.close()


################################################################
# A CHANGE
################################################################


def play_turn(stream: socket.socket, _turn: Json) -> bool:
    for event in responses_events("hi"):
        stream.sendall(frame(TEXT, json.dumps(event).encode(), mask=b""))
    return True


def test_a_change_of_the_proxy_leaves_no_connection_in_use(tmp_path: Path) -> None:
    """Neither a kept one, nor the upstream's side of a client's WebSocket."""
    gate, upstream = Gate(), SocketUpstream(play_turn)
    proxied = Proxied(tmp_path, None)
    proxied.add("socket", f"http://{HOST}:{upstream.port}", websocket=True)
    proxied.start()
    with proxied.open_socket("socket") as caller:
        ways = [None, f"http://{gate.address}", None, f"http://{gate.address}"]
        for number, proxy in enumerate(ways, 1):
            if number > 1:
                proxied.reload(proxy)
            gate.heads.clear()
            for _ in range(2):
                assert proxied.ask("plain") == 200
                assert caller.ask()[-1]["type"] == "response.completed"
            assert proxied.plain.opened_count == upstream.opened_count == number
            led = [int(head.split()[1].rpartition(b":")[2]) for head in gate.heads]
            mine = [port for port in led if port in {proxied.plain.port, upstream.port}]
            assert sorted(mine) == sorted([proxied.plain.port, upstream.port] * (proxy is not None))
    proxied.close()
    upstream.close()
    gate.close()


################################################################
# THE CONFIGURATION
################################################################


def parsed(env: dict[str, str] | None = None, **top: Json) -> Config:
    accounts = {"a": {"allow_plain_http": True}}
    described = describe("a", accounts=accounts, **top)
    return parse_config(json.dumps(described).encode(), env or {}, str)


@pytest.mark.parametrize(
    "value",
    [
        "", "proxy.example.com:3128", "proxy.example.com", "http://proxy.example.com",
        "https://proxy.example.com:3128", "socks5://proxy.example.com:1080",
        "http://proxy.example.com:0", "http://proxy.example.com:65536",
        "http://proxy.example.com:3128/path", "http://proxy.example.com:3128?x", "http://:3128",
        "http://some marmalade@proxy.example.com:3128", "http://@proxy.example.com:3128",
        "http://some:marmalade@@proxy.example.com:3128", "{env:MISSING}", "$HTTPS_PROXY", 3128,
        None, ["http://proxy.example.com:3128"], True,
    ],
)  # fmt: skip
def test_what_is_no_proxy_is_refused_and_not_repeated(value: Json) -> None:
    with pytest.raises(ConfigRefused) as refused:
        parsed(proxy=value)
    [problem] = refused.value.problems
    assert problem.startswith("proxy: ")
    assert "marmalade" not in problem


@pytest.mark.parametrize(
    ("value", "address", "login"),
    [
        ("http://proxy.example.com:3128", "proxy.example.com:3128", None),
        ("http://proxy.example.com:80/", "proxy.example.com:80", None),
        ("http://[::1]:3128", "[::1]:3128", None),
        ("http://name@127.0.0.1:1", "127.0.0.1:1", "name:"),
        ("http://a%40b:c%3Ad:e@h:1", "h:1", "a@b:c:d:e"),
        ("{env:PROXY}", "h:2", "n:p"),
    ],
)
def test_a_proxy_is_an_address_and_perhaps_a_login(
    value: str, address: str, login: str | None
) -> None:
    proxy = parsed({"PROXY": "http://n:p@h:2"}, proxy=value).proxy
    assert proxy is not None
    assert proxy.url.address == address
    assert (proxy.login and reveal(proxy.login)) == login
    assert login is None or login not in repr(proxy)


NAMES: Final = "HTTPS_PROXY HTTP_PROXY ALL_PROXY https_proxy http_proxy all_proxy".split()


@pytest.mark.parametrize("name", NAMES)
def test_an_ignored_variable_is_logged_without_its_value(name: str) -> None:
    env = {name: "http://some:marmalade@proxy.example.com:3128"}
    [warning] = parsed(env).warnings
    assert warning.startswith(f"{name} is set but not used")
    assert "example" not in warning
    assert parsed(env, proxy="http://127.0.0.1:3128").warnings == ()
    assert parsed({name: ""}).warnings == parsed({"NO_PROXY": "x"}).warnings == ()


def test_an_upstream_here_behind_a_proxy_elsewhere_is_a_warning() -> None:
    """To that one the loopback is its own."""
    [warning] = parsed(proxy="http://proxy.example.com:3128").warnings
    assert warning.startswith("accounts.a.base_url: ")


ELSEWHERE: Final = "http://proxy.example.com:3128"
HERE: Final = "http://127.0.0.1:3128"


@pytest.mark.parametrize(
    ("proxy", "base_url", "is_sent_in_the_clear"),
    [
        (ELSEWHERE, "http://127.0.0.1:9001/v1", True),
        (ELSEWHERE, "http://[::1]:9001/v1", True),
        (ELSEWHERE, "http://localhost:9001/v1", True),
        (ELSEWHERE, "https://127.0.0.1:9001/v1", False),
        (HERE, "http://127.0.0.1:9001/v1", False),
    ],
)
def test_no_proxy_elsewhere_reads_the_key_of_an_upstream_here(
    proxy: str, base_url: str, *, is_sent_in_the_clear: bool
) -> None:
    described = describe("a", accounts={"a": {"base_url": base_url}}, proxy=proxy)
    raw = json.dumps(described).encode()
    if not is_sent_in_the_clear:
        assert parse_config(raw, {}, str).proxy is not None
        return

    with pytest.raises(ConfigRefused) as refused:
        parse_config(raw, {}, str)
    [problem] = refused.value.problems
    assert problem.startswith(
        "accounts.a.base_url: http:// sends the key in the clear to the proxy"
    )


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/oauth/token", "http://localhost:9/token"])
def test_no_proxy_elsewhere_reads_a_refresh_token(url: str) -> None:
    env = {REFRESH_URL_VARIABLE: url}
    assert parsed(env, proxy=HERE).token_url.port == 9
    with pytest.raises(ConfigRefused) as refused:
        parsed(env, proxy=ELSEWHERE)
    assert refused.value.problems == [
        f"{REFRESH_URL_VARIABLE}: must be https://, because refresh tokens are sent there"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_variables_change_nothing_and_are_logged_at_the_start(tmp_path: Path, name: str) -> None:
    gate = Gate()
    with opened(tmp_path, None, **{name: f"http://quinces:x@{gate.address}"}) as proxied:
        assert proxied.ask("plain") == proxied.ask("secure") == 200
        lines = [json.loads(line) for line in proxied.pooler.process.lines]
        told = [line["problem"] for line in lines if line["event"] == "config"]
        assert [problem for problem in told if problem.startswith(f"{name} is set")]
    gate.close()
    assert gate.heads == []


async def test_who_leaves_while_a_tunnel_is_dug_leaves_no_connection(
    autojump_clock: MockClock,
) -> None:
    """The proxy has not responded yet, so there may be no tunnel."""
    assert autojump_clock.autojump_threshold == 0
    ours, theirs = trio.testing.memory_stream_pair()
    url = pooler.BaseUrl(True, "upstream.example", 443, "")
    with trio.move_on_after(1) as scope:
        await pooler.open_tunnel(ours, url, pooler.Proxy(url))
    assert scope.cancelled_caught
    assert (await theirs.receive_some()).startswith(b"CONNECT upstream.example:443 HTTP/1.1")
    assert await theirs.receive_some() == b""
