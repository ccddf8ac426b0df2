"""Proves what commands say when all is not well, and that connections are kept only if they live.

Method: the real program, as a process, with files and peers that it seldom meets; and the real
server on real sockets to an upstream of the test's own, whose kept connections end in every way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trustme

import pooler
from tests.process.test_process import (
    ENV,
    SECONDS_MAX,
    SILENT,
    SLOW,
    Pooler,
    described,
    read_request,
    read_until,
    run,
    serving,
    start_upstream,
    started,
    write_config,
)
from tests.support.memory_sockets import Client, MemoryListener, ask_responses, socket_pair
from tests.support.paths import POOLER
from tests.support.world import describe, make_config

pytestmark: Final = pytest.mark.slow

ANSWER: Final = b'{"id": "r"}'

################################################################
# THE DEMO
################################################################


async def test_the_demo_takes_long_requests_hang_ups_and_signals_that_mean_nothing_to_it() -> None:
    async with started("demo", "--port", "0") as process:
        assert process.stdout is not None
        shown = (await read_until(process.stdout, b"Ctrl-C")).decode()
        key, address = (
            re.search(r"API_KEY=(\S+)", shown), re.search(r'"http://([^/]+)/v1"', shown)
        )  # fmt: skip
        assert key is not None
        assert address is not None
        demo = Pooler(process)
        demo.address = address[1]
        process.send_signal(signal.SIGHUP)  # there is no file to be read again
        async with await demo.post("x" * 200_000, key[1]) as leaving:
            await read_until(leaving, b"response.output_text.delta")
        assert b"response.completed" in await demo.ask("x" * 8_000_000, key[1])
        process.send_signal(signal.SIGINT)
        assert (await demo.wait_exit(), demo.lines) == (0, [])


def test_the_demo_logs_only_what_a_person_should_act_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for level in ("info", "warning", "error"):
        pooler.log_problem(level, "it happened", {})
    out, err = capfd.readouterr()
    assert out == ""
    assert [json.loads(line)["level"] for line in err.splitlines()] == ["warning", "error"]


def test_a_log_without_a_stderr_is_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """`2>&-`: Python has none where descriptor 2 was closed at the start."""
    monkeypatch.setattr(sys, "stderr", None)
    pooler.print_log("info", "it happened", {})


@pytest.mark.parametrize("line", ["key", "check", "demo --port 0"])
def test_a_reader_that_goes_away_ends_a_command_in_silence(line: str, tmp_path: Path) -> None:
    write_config(tmp_path, described(None))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        done = subprocess.run(
            [sys.executable, POOLER, *line.split()],
            env=ENV,
            stdout=output,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            timeout=SECONDS_MAX,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("text", "status"), [(SLOW, 200), (SILENT, None)])
async def test_what_a_second_signal_cuts_is_not_recorded_as_well(
    nursery: trio.Nursery, tmp_path: Path, text: str, status: int | None
) -> None:
    upstream = await start_upstream(nursery)
    async with (
        serving(tmp_path, described(upstream)) as server,
        await server.post(text) as stream,
    ):
        await upstream.asked.receive()
        if text == SLOW:
            await read_until(stream, b"one")
        server.process.send_signal(signal.SIGINT)
        await server.wait_line("draining")
        server.process.send_signal(signal.SIGINT)
        assert await server.wait_exit() == 0
    [line] = [line for line in server.lines if line["event"] == "request"]
    assert (line["status"], line["code"]) == (status, "server_stopping")


################################################################
# CONFIGURATIONS
################################################################

NO_KEY: Final = "pools.home.keys: no key, so nobody can use this pool"


def without_keys() -> dict[str, Any]:
    return described(None, pools={"home": {"accounts": ["one"], "keys": {}}})


async def test_what_is_legal_and_odd_is_a_warning_at_the_start(tmp_path: Path) -> None:
    async with serving(tmp_path, without_keys()) as server:
        told = [line for line in server.lines if line["event"] == "config"]
        assert [(line["level"], line["problem"]) for line in told] == [("warning", NO_KEY)]


@pytest.mark.parametrize("text", [None, "{"], ids=["no login yet", "a broken one"])
def test_a_check_says_what_is_odd_and_what_is_wrong(tmp_path: Path, text: str | None) -> None:
    config = without_keys()
    config["accounts"]["one"] = {"type": "codex", "auth_file": "auth.json"}
    if text is not None:
        (tmp_path / "auth.json").write_text(text)
    write_config(tmp_path, config)
    done = run("check", cwd=tmp_path)
    kind, problem = ("error", "is not whole JSON") if text else ("warning", "is not there; log in")
    lines = done.stdout.splitlines()
    assert lines[0] == f"warning: {NO_KEY}"
    assert lines[1].endswith(": see below")
    assert lines[2].startswith(f"  {kind}: ")
    assert problem in lines[2]
    assert lines[-1] == f"pools.json: {'has problems' if text else 'OK'}"
    assert (done.returncode, done.stderr) == (1 if text else 0, "")


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_file_of_another_name_is_refused_by_that_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.json").write_text(text, "latin-1")
    done = run("check", "--config", "mine.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pooler: mine.json: ")


@pytest.mark.parametrize("accounts", [{"a b": {"type": "openai", "api_key": "none"}}, "x"])
def test_accounts_that_are_none_are_told_once_and_not_by_each_pool(
    tmp_path: Path, accounts: object
) -> None:
    write_config(tmp_path, described(None, accounts=accounts))
    done = run("check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    [problem] = done.stderr.splitlines()
    assert problem.startswith(("pooler: accounts: ", "pooler: accounts.a b: "))


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("a" * 64 + ".example:4000", "must be host:port, [v6]:port or unix:/path"),
        ("a..example:4000", "must be host:port, [v6]:port or unix:/path"),
        ("unix:/" + "x" * 200, "listen: the path of a socket has at most 107 bytes"),
    ],
)
def test_a_name_that_no_address_can_have_is_told_so(
    tmp_path: Path, listen: str, words: str
) -> None:
    write_config(tmp_path, described(None, listen=listen))
    done = run("serve", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].endswith(words)


def test_a_file_that_is_too_large_is_no_configuration(tmp_path: Path) -> None:
    whole = json.dumps(without_keys())
    write_config(tmp_path, whole + " " * (pooler.CONFIG_BYTES_MAX - len(whole)))
    assert run("check", cwd=tmp_path).returncode == 0
    write_config(tmp_path, whole + " " * (pooler.CONFIG_BYTES_MAX - len(whole) + 1))
    done = run("check", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"pooler: pools.json: larger than {pooler.CONFIG_BYTES_MAX} bytes\n"


@pytest.mark.parametrize("text", [None, "", "-----BEGIN CERTIFICATE-----\nno\n"])
def test_authorities_that_cannot_be_read_are_named(tmp_path: Path, text: str | None) -> None:
    config = described(None)
    config["accounts"]["one"]["ca_file"] = "ca.pem"
    if text is not None:
        (tmp_path / "ca.pem").write_text(text)
    write_config(tmp_path, config)
    done = run("check", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "pooler: accounts.one.ca_file: not a readable PEM file\n"


################################################################
# LISTENERS
################################################################

# Of no machine: addresses for examples (RFC 3849).  Where IPv6 is missing, ::1 is none either.
ELSEWHERE: Final = pooler.Listen("[2001:db8::1]:0", "2001:db8::1", 0, is_optional=True)
HERE: Final = pooler.Listen("127.0.0.1:0", "127.0.0.1", 0)


async def test_an_address_that_may_be_missing_is_a_warning() -> None:
    told: list[Mapping[str, Any]] = []
    config = dataclasses.replace(make_config(describe("a")), listen=(HERE, ELSEWHERE))
    listeners = await pooler.open_listeners(config, lambda *entry: told.append(entry[2]))
    assert [one.socket.getsockname()[0] for one in listeners] == ["127.0.0.1"]
    assert [one["problem"].partition(": ")[0] for one in told] == [ELSEWHERE.text]
    for listener in listeners:
        await listener.aclose()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


async def test_one_address_that_cannot_be_had_leaves_no_other_open(short_folder: Path) -> None:
    path = str(short_folder / "s")
    first = pooler.Listen(f"unix:{path}", unix_path=path)
    wanted = (first, ELSEWHERE._replace(is_optional=False))
    config = dataclasses.replace(make_config(describe("a")), listen=wanted)
    with pytest.raises(pooler.ConfigRefused) as refused:
        await pooler.open_listeners(config, pooler.print_log)
    assert refused.value.problems[0].startswith(f"listen: {ELSEWHERE.text}: ")
    with pytest.raises(ConnectionRefusedError):
        await trio.open_unix_socket(path)


async def test_a_link_in_the_place_of_a_unix_socket_stays(short_folder: Path) -> None:
    path, dead = short_folder / "s", short_folder / "dead"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(dead))
    path.symlink_to(dead)
    listen = pooler.Listen(f"unix:{path}", unix_path=str(path))
    config = dataclasses.replace(make_config(describe("a")), listen=(listen,))
    with pytest.raises(pooler.ConfigRefused):
        await pooler.open_listeners(config, pooler.print_log)
    assert path.is_symlink()


################################################################
# KEPT CONNECTIONS
################################################################


def plain_of(stream: trio.abc.Stream) -> trio.SocketStream:
    """The socket, without TLS."""
    plain = stream.stream if isinstance(stream, pooler.TlsStream) else stream
    plain = plain.transport_stream if isinstance(plain, trio.SSLStream) else plain
    assert isinstance(plain, trio.SocketStream)
    return plain


class Keeper:
    """An upstream that answers, and keeps its connections until the test ends one."""

    def __init__(self) -> None:
        self.streams: list[trio.abc.Stream] = []
        self.asked: list[int] = []  # the number of each request's connection

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.streams.append(stream)
        number = len(self.streams)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(ANSWER)}\r\n\r\n".encode()
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await read_request(stream)
                self.asked.append(number)
                await stream.send_all(head + ANSWER)

    async def end(self, way: str) -> None:
        """Let the latest connection end so, or not."""
        stream = self.streams[-1]
        plain = plain_of(stream)
        if way == "what nobody asked for":
            await stream.send_all(b"HTTP/1.1 408 Too slow\r\n\r\n")
        if way == "a reset":
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if way in {"an end", "a reset"}:
            await plain.aclose()


def start(server: pooler.Server, clients: MemoryListener, nursery: trio.Nursery) -> None:
    nursery.start_soon(server.serve, [clients])


@contextlib.asynccontextmanager
async def kept(
    tls: trustme.CA | None,
) -> AsyncIterator[tuple[pooler.Server, Client, Keeper]]:
    """A server, a client of it, and its upstream."""
    keeper = Keeper()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    listeners: list[Any] = [listener]
    contexts: dict[str | None, ssl.SSLContext] = {}
    if tls is not None:
        theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.issue_cert("127.0.0.1").configure_cert(theirs)
        listeners = [trio.SSLListener(listener, theirs)]
        contexts[None] = pooler.make_tls_context(None)
        tls.configure_trust(contexts[None])
    scheme = "https" if tls else "http"
    account = {"base_url": f"{scheme}://127.0.0.1:{port}/v1"}
    config = make_config(describe("a", accounts={"a": account}))
    server = pooler.Server(config, contexts, log=lambda *_: None)
    ours, client = socket_pair()
    clients = MemoryListener()
    clients.arrive(client)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, keeper.serve, listeners)
        with trio.fail_after(SECONDS_MAX):
            async with trio.open_nursery() as serving_it:
                start(server, clients, serving_it)
                yield server, Client(ours), keeper
                await ours.aclose()
                server.stop()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["nothing", "an end", "a reset", "what nobody asked for"])
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_a_kept_connection_is_used_again_only_if_nothing_came_on_it(
    way: str, is_tls: bool
) -> None:
    async with kept(trustme.CA() if is_tls else None) as (server, client, keeper):
        raw = ask_responses(stream=False)
        assert (await client.ask(raw)).body == ANSWER
        [[connection]] = server.shared.idle.by_endpoint.values()
        plain = plain_of(connection.stream)
        await keeper.end(way)
        if way != "nothing":
            await trio.lowlevel.wait_readable(plain.socket)
        response = await client.ask(raw)
        assert (response.status, response.body) == (200, ANSWER)
        assert keeper.asked == ([1, 1] if way == "nothing" else [1, 2])
        if way != "nothing":
            assert plain.socket.fileno() == -1


async def test_a_connection_that_was_reset_looks_no_better_than_one_that_ended() -> None:
    async with kept(None) as (server, client, keeper):
        await client.ask(ask_responses(stream=False))
        [[connection]] = server.shared.idle.by_endpoint.values()
        await keeper.end("a reset")
        await trio.lowlevel.wait_readable(plain_of(connection.stream).socket)
        assert connection.is_stale()
