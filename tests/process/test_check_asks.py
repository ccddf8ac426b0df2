"""Proves that `check --ask` says in words what came of each account, whatever its upstream sends.

Method: the real program as a process, and upstreams on real sockets that are well, refuse, are
nobody's API, hang, never end, or send what a terminal would obey; logins at the fake of ChatGPT.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.support.codex_backend import PREFIX, CodexBackend, make_auth_file
from tests.support.codex_turns import TokenPlay
from tests.support.listening import Listening
from tests.support.outbound_proxies import RealProxy
from tests.support.paths import ROOT
from tests.support.processes import clean_env
from tests.support.server_process import KEY, run_pooler, write_config
from tests.support.tls_upstreams import Authority

pytestmark: Final = pytest.mark.slow

Json = Any
Serve = Callable[[socket.socket], None]
SECRET: Final = "sk-upstream-0123456789abcdef"
OK: Final = {"data": [{"id": "m1"}, {"id": "m2"}]}
RED: Final = "\x1b[31mred\x1b]0;title\x07"


def respond(status: int, content: Json, kind: str = "application/json", more: str = "") -> Serve:
    """Serves one response to each connection."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{more}content-length: {len(body)}"
    return partial(send, [head.encode() + b"\r\n\r\n" + body])


def send(pieces: list[bytes], caller: socket.socket) -> None:
    """Read a request, and send this, to whoever is still there."""
    with caller:
        try:
            caller.recv(64 * 1024)
            for piece in pieces:
                caller.sendall(piece)
        except OSError:
            pass


def never(caller: socket.socket) -> None:
    """Read what comes, and send nothing until the caller has left."""
    with caller:
        while caller.recv(64 * 1024):
            pass


def error(code: str, message: str = RED) -> Json:
    return {"error": {"code": code, "message": message, "type": RED}}


HUGE: Final = [b"HTTP/1.1 200 X\r\ncontent-length: 67108864\r\n\r\n", *[b"x" * 2**20] * 64]
NO_LIST: Final = 'check base_url, or name its models under "models"'
NO_API: Final = "error: this does not look like its API; check base_url"
REFUSAL: Final = "its server failed, or refused the request; check base_url"
# What an upstream does, and the line that a person reads of it.
UPSTREAMS: Final[dict[str, tuple[Serve, str]]] = {
    "well": (respond(200, OK), "answers, 2 models: m1, m2"),
    "one": (respond(200, {"data": [{"id": "m1"}]}), "answers, 1 model: m1"),
    "wrong-key": (
        respond(401, error("invalid_api_key", f"Incorrect: {SECRET}")),
        "error: 401 invalid_api_key: put a valid key into {env:UPSTREAM_KEY} and restart",
    ),
    "unpaid": (
        respond(402, error("")),
        "error: 402: check the account's plan and billing with its provider, then reload (SIGHUP)",
    ),
    "forbidden": (
        respond(403, error(f"missing{RED}")),
        'error: 403: it may not list models; check the account, or name them under "models"',
    ),
    "no-route": (respond(404, b"no", "text/plain"), f"warning: no /models route: {NO_LIST}"),
    "limit": (
        respond(429, error("rate_limit_exceeded"), more="retry-after: 5\r\n"),
        "warning: 429 rate_limit_exceeded: at a limit, which ends by itself",
    ),
    "failure": (respond(500, error("")), f"error: 500: {REFUSAL}"),
    "refusal": (respond(400, error("bad")), f"error: 400 bad: {REFUSAL}"),
    "page": (
        respond(200, f"<html>{RED}".encode(), "text/html"),
        f"error: its response is no list of models: {NO_LIST}",
    ),
    "wall": (
        respond(403, b"<html>", "text/html", "cf-mitigated: challenge\r\n"),
        "error: 403: the upstream's bot protection blocks the pooler's address",
    ),
    "redirect": (
        respond(302, b"", more=f"location: http://h/{SECRET}\r\n"),
        "error: 302: this does not look like its API; check base_url",
    ),
    "other-protocol": (partial(send, [f"SSH-2.0-{RED}\r\n\r\n".encode()]), NO_API),
    "huge": (partial(send, HUGE), NO_API),
    "cut": (partial(send, [b""]), "error: it closed the connection without a response"),
    "silent": (never, "error: no complete response within 10 s"),
}


@contextmanager
def listening(upstreams: dict[str, Serve]) -> Iterator[dict[str, int]]:
    """The ports of upstreams, by name."""
    with ExitStack() as ends:
        ports = {}
        for name, serve in upstreams.items():
            upstream = Listening(serve)
            ends.callback(upstream.close)
            ports[name] = upstream.port
        yield ports


def at(port: int, **more: Json) -> Json:
    url = f"http://127.0.0.1:{port}/v1"
    return {"type": "openai", "api_key": "{env:UPSTREAM_KEY}", "base_url": url, **more}


def described(accounts: Json, **more: Json) -> Json:
    pool = {"accounts": [*accounts], "keys": {"laptop": KEY}, **more}
    return {"accounts": accounts, "pools": {"home": pool}}


def check(folder: Path, config: Json, **env: str) -> tuple[int, list[str]]:
    """The exit code of `check --ask`, and its lines, in which there is no secret."""
    write_config(folder, config)
    done = run_pooler("check", "--ask", cwd=folder, UPSTREAM_KEY=SECRET, **env)
    assert done.stderr == ""
    assert SECRET not in done.stdout
    assert re.fullmatch(r"[\n -~]*", done.stdout)
    return done.returncode, done.stdout.splitlines()


def lines_of(name: str, lines: list[str]) -> list[str]:
    """What is said below an account's or a pool's first line."""
    start = next(i for i, line in enumerate(lines) if re.match(rf"(account|pool) {name}:", line))
    below = itertools.takewhile(lambda line: line.startswith(" "), lines[start + 1 :])
    return [line.strip() for line in below]


def test_each_account_has_a_line_that_says_what_came(tmp_path: Path) -> None:
    serves = {name: serve for name, (serve, _) in UPSTREAMS.items()}
    with listening(serves) as ports:
        accounts = {name: at(port) for name, port in ports.items()}
        began = time.monotonic()
        code, lines = check(tmp_path, described(accounts))
        assert time.monotonic() - began < 30
    assert code == 1
    for name, (_, words) in UPSTREAMS.items():
        assert lines_of(name, lines) == [words], name


@pytest.mark.parametrize("name", ["no-route", "forbidden", "page", "limit"])
def test_what_is_no_error_if_its_models_are_named(tmp_path: Path, name: str) -> None:
    serve, _ = UPSTREAMS[name]
    with listening({"a": serve}) as ports:
        code, lines = check(tmp_path, described({"a": at(ports["a"], models=["m1"])}))
    assert code == 0
    expected = {
        "no-route": 'no /models route (fine: "models" is set)',
        "forbidden": '403 (fine: "models" is set)',
        "page": f"warning: its response is no list of models: {NO_LIST}",
        "limit": "warning: 429 rate_limit_exceeded: at a limit, which ends by itself",
    }
    assert lines_of("a", lines) == [expected[name]]


def test_models_that_nobody_lists_are_named(tmp_path: Path) -> None:
    serve = respond(200, OK)
    with listening({"a": serve, "b": serve, "c": serve}) as ports:
        accounts = {"a": at(ports["a"]), "b": at(ports["b"], models={"m9": "m1", "m8": "typo"})}
        accounts["c"] = at(ports["c"], paused=True)
        code, lines = check(tmp_path, described(accounts, models=["m1", "m7", "m9"]))
    assert code == 0
    assert lines_of("b", lines) == [
        "warning: answers, 2 models, but does not list typo of its models"
    ]
    assert "account c: " + f"http://127.0.0.1:{ports['c']}/v1: paused" in lines
    assert lines_of("c", lines) == []
    assert lines_of("home", lines) == [
        "a does not list m7, m9",
        "b does not list m1, m7",
        "warning: no account lists m7",
    ]


def test_an_address_where_nobody_is(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    accounts = {"a": at(port), "b": at(port, base_url="https://nowhere.invalid/v1")}
    code, lines = check(tmp_path, described(accounts))
    assert code == 1
    place = f"127.0.0.1:{port}"
    assert lines_of("a", lines) == [
        f"error: connection refused at {place}: start the server at {place}, or check base_url"
    ]
    assert lines_of("b", lines)[0].startswith("error: name not found at nowhere.invalid: check the")


def test_a_certificate_that_is_not_trusted_and_one_that_is(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = authority.context()

    def serve(caller: socket.socket) -> None:
        caller.settimeout(10)
        try:
            respond(200, OK)(context.wrap_socket(caller, server_side=True))
        except OSError:
            caller.close()

    with listening({"a": serve}) as ports:
        url = f"https://127.0.0.1:{ports['a']}/v1"
        accounts = {"a": at(1, base_url=url), "b": at(1, base_url=url, ca_file="ca.pem")}
        code, lines = check(tmp_path, described(accounts))
    assert code == 1
    place = f"127.0.0.1:{ports['a']}"
    advice = "name the authority of its certificate in ca_file"
    assert lines_of("a", lines) == [f"error: certificate not trusted at {place}: {advice}"]
    assert lines_of("b", lines) == ["answers, 2 models: m1, m2"]


def test_the_question_goes_through_the_proxy(tmp_path: Path) -> None:
    proxy = RealProxy()
    try:
        with listening({"a": respond(200, OK)}) as ports:
            config = described({"a": at(ports["a"])}) | {"proxy": f"http://{proxy.address}"}
            code, lines = check(tmp_path, config)
            assert (code, lines_of("a", lines)) == (0, ["answers, 2 models: m1, m2"])
    finally:
        proxy.process.end()
    assert proxy.tunnels_to(ports["a"]) == 1  # which it says when a tunnel has ended

    config["proxy"] = "http://127.0.0.1:9"
    code, lines = check(tmp_path, config)
    assert code == 1
    assert lines_of("a", lines) == [
        "error: proxy unreachable: check the proxy that pools.json names"
    ]


################################################################
# LOGINS
################################################################


async def ask_with_login(
    folder: Path, seconds_left: float, *plays: TokenPlay, is_rejected: bool = False
) -> tuple[CodexBackend, int, list[str]]:
    """`check --ask` with one login at a ChatGPT that plays along."""
    backend = CodexBackend()
    async with trio.open_nursery() as nursery:
        origin = await nursery.start(backend.listen)
        path = folder / "login.json"
        login = make_auth_file(path, "acc", expires_at=time.time() + seconds_left)
        backend.admit(login)
        if is_rejected:
            del backend.logins[login.access_token]
        backend.token_plays.extend(plays)
        account = {"type": "codex", "auth_file": "login.json", "base_url": f"{origin}{PREFIX}"}
        url = {"CODEX_REFRESH_TOKEN_URL_OVERRIDE": f"{origin}/oauth/token"}
        work = partial(check, folder, described({"a": account}), **url)
        code, lines = await trio.to_thread.run_sync(work)
        nursery.cancel_scope.cancel()
    return backend, code, [line for line in lines_of("a", lines) if "auth_file" not in line]


async def test_a_login_is_used_as_it_is(tmp_path: Path) -> None:
    backend, code, lines = await ask_with_login(tmp_path, 10**5)
    assert code == 0
    assert re.fullmatch(r"answers, \d+ models: .+", lines[-1])
    assert [seen.path for seen in backend.seen] == [f"{PREFIX}/models"]


@pytest.mark.parametrize("is_rejected", [False, True])
async def test_a_login_that_has_ended_is_refreshed_and_saved(
    tmp_path: Path, is_rejected: bool
) -> None:
    seconds_left = 10**5 if is_rejected else -60
    backend, code, lines = await ask_with_login(tmp_path, seconds_left, is_rejected=is_rejected)
    assert code == 0
    assert re.fullmatch(r"answers, \d+ models: .+", lines[-1])
    [refreshed] = [seen for seen in backend.seen if seen.path == "/oauth/token"]
    assert refreshed.body["refresh_token"] == "rt-acc-1"
    saved = json.loads((tmp_path / "login.json").read_text())["tokens"]
    assert saved["access_token"] in backend.logins
    assert saved["refresh_token"] in backend.refreshable
    assert os.stat(tmp_path / "login.json").st_mode & 0o777 == 0o600


async def test_a_login_that_was_revoked_says_so(tmp_path: Path) -> None:
    _, code, lines = await ask_with_login(tmp_path, -60, TokenPlay())
    assert code == 1
    assert lines[-1].startswith("error: login needed: this login has been revoked: log in")


def test_an_account_without_a_login_is_not_asked(tmp_path: Path) -> None:
    code, lines = check(tmp_path, described({"a": {"type": "codex", "auth_file": "a.json"}}))
    assert code == 1
    first, last = lines_of("a", lines)
    assert first.startswith("warning: a.json does not exist; log in")
    assert last == "error: not asked, as it has no login"


################################################################
# CTRL-C, AND NO QUESTION
################################################################


def test_control_c_ends_it_with_a_word(tmp_path: Path) -> None:
    is_asked = threading.Event()

    def serve(caller: socket.socket) -> None:
        is_asked.set()
        never(caller)

    with listening({"a": serve}) as ports:
        write_config(tmp_path, described({"a": at(ports["a"])}))
        process = subprocess.Popen(
            [sys.executable, ROOT / "pooler.py", "check", "--ask"],
            cwd=tmp_path,
            env=clean_env(UPSTREAM_KEY=SECRET),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert is_asked.wait(20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (1, "pooler: interrupted\n")
    assert "account a" not in out


def test_without_ask_nobody_is_asked(tmp_path: Path) -> None:
    upstream = Listening(never)
    write_config(tmp_path, described({"a": at(upstream.port)}))
    done = run_pooler("check", cwd=tmp_path, UPSTREAM_KEY=SECRET)
    upstream.close()
    assert (done.returncode, upstream.count) == (0, 0)
