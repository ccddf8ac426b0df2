"""Proves that no file, pipe or import blocks the server, whatever is at its other end.

Method: the real process with a standard error that nobody reads, with pipes in place of files, and
with few descriptors; a client sends requests all the while. Nothing sleeps: each wait is for bytes,
for a line of the log or for the end of the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

import pooler
from pooler import LOG_LINES_MAX, LogWriter, format_log_line
from tests.support.codex_backend import make_auth_file
from tests.support.memory_sockets import KEY, post, request
from tests.support.memory_websockets import upgrade
from tests.support.paths import POOLER
from tests.support.processes import clean_env
from tests.support.raw_http import OPERATOR, SECONDS_MAX, RawUpstream, read_response

pytestmark: Final = pytest.mark.slow

HEALTH: Final = request("GET", "/healthz", key=None)
CALL: Final = post("/v1/responses", {"model": "m1", "input": "hi"})
PIPE_BYTES: Final = 64 * 1024  # what the kernel holds of a pipe that nobody reads
ANSWER_SECONDS_MAX: Final = 2.0  # of a good client, on a busy machine
END_SECONDS_MAX: Final = 10.0  # after SIGTERM, with nothing under way

Json = dict[str, Any]


class Process:
    """`pooler.py serve` on a port of its own; what it logs is read only when a test asks."""

    def __init__(self, folder: Path, config: Json, *, descriptors: int = 0) -> None:
        self.path = folder / "pools.json"
        self.write(config)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.write(config)
        command = [sys.executable, POOLER, "serve", "--config", str(self.path)]
        if descriptors:
            limit = f'ulimit -Sn 40; ulimit -Hn {descriptors}; exec "$@"'
            command = ["sh", "-c", limit, "sh", *command]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=clean_env(),
        )  # fmt: skip
        self.raw = b""
        self.before = b""  # all that was logged, as far as it was read
        self.wait_log(rb'"event": "listening"')

    def write(self, config: Json) -> None:
        listen = {"listen": f"127.0.0.1:{getattr(self, 'port', 1)}"}
        self.path.write_text(json.dumps(config | listen))

    def wait_log(self, pattern: bytes) -> bytes:
        """The line with the pattern, once it has come; what was before it is forgotten."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + SECONDS_MAX
        while not (found := re.search(rb"[^\n]*%b[^\n]*\n" % pattern, self.raw)):
            left = deadline - time.monotonic()
            assert select.select([self.process.stderr], [], [], max(0, left))[0], self.raw[-2000:]
            received = os.read(self.process.stderr.fileno(), PIPE_BYTES)
            assert received, self.raw[-2000:]
            self.raw += received
            self.before += received
        self.raw = self.raw[found.end() :]
        return found[0]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), SECONDS_MAX)

    def ask(self, raw: bytes, client: socket.socket | None = None) -> tuple[bytes, float]:
        """The response, and the seconds that it took."""
        with contextlib.ExitStack() as stack:
            line = client or stack.enter_context(self.connect())
            began_at = time.monotonic()
            line.sendall(raw)
            return read_response(line), time.monotonic() - began_at

    def end(self) -> tuple[int, float]:
        began_at = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(SECONDS_MAX)
        return code, time.monotonic() - began_at


@contextlib.contextmanager
def running(folder: Path, config: Json, *, descriptors: int = 0) -> Iterator[Process]:
    process = Process(folder, config, descriptors=descriptors)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()
        assert process.process.stderr is not None
        process.process.stderr.close()


@contextlib.contextmanager
def upstream() -> Iterator[RawUpstream]:
    opened = RawUpstream()
    try:
        yield opened
    finally:
        opened.close()


def described(port: int, **more: Any) -> Json:  # noqa: ANN401 (JSON)
    account = {
        "type": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "models": ["m1"],
        "api_key": "upstream-key-of-the-test-0123456789",
    }  # fmt: skip
    pools = {"home": {"accounts": ["a"], "keys": {"laptop": KEY}}}
    return {"accounts": {"a": account}, "pools": pools, "operators": {"me": OPERATOR}} | more


################################################################
# THE LOG
################################################################


def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    """Twice as much as the pipe holds; then it is read again, and the log reports what was lost."""
    with upstream() as server, running(tmp_path, described(server.port)) as process:
        line = process.connect()
        count = 2 * PIPE_BYTES // 400
        for _ in range(count):
            answer, seconds = process.ask(CALL, line)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert seconds < ANSWER_SECONDS_MAX
        assert process.ask(HEALTH)[0].startswith(b"HTTP/1.1 200 ")
        line.close()

        code, seconds = process.end()
        assert code == 0
        assert seconds < END_SECONDS_MAX


def test_every_line_is_there_at_an_orderly_end(tmp_path: Path) -> None:
    with upstream() as server, running(tmp_path, described(server.port)) as process:
        line = process.connect()
        for _ in range(100):
            process.ask(CALL, line)
        line.close()
        assert process.end()[0] == 0
        assert process.process.stderr is not None
        raw = process.raw + process.process.stderr.read()
        events = [json.loads(one)["event"] for one in raw.splitlines()]
        assert events == ["request"] * 100 + ["draining", "stopped"]


def test_lines_that_find_no_room_are_counted_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe of one's own, which is read only when all is full."""
    reading, writing = os.pipe()
    monkeypatch.setattr("pooler.STDERR", writing)
    lost = 500
    with LogWriter() as log:
        fields = {"text": "x" * 1000}
        while len(log.lines) < LOG_LINES_MAX:
            log("info", "test", fields)
        began_at = time.monotonic()
        for _ in range(lost):
            log("info", "test", fields)
        assert time.monotonic() - began_at < 1
        dropped = log.dropped_count
        assert dropped > 0
        raw = b""
        while b"log lines dropped" not in raw:
            raw = raw[-5000:] + os.read(reading, PIPE_BYTES)
    os.close(writing)
    while received := os.read(reading, PIPE_BYTES):
        raw += received
    os.close(reading)
    whole = raw[: raw.rindex(b"\n")]  # nobody read while it ended: the last line may be cut
    told = [json.loads(one) for one in whole.splitlines()[1:]]
    [line] = [one for one in told if one["event"] == "log lines dropped"]
    assert (line["level"], line["lines"]) == ("warning", dropped)
    assert told[-1]["event"] == "test"


def test_a_writer_whose_stderr_is_closed_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr("pooler.STDERR", writing)
    with LogWriter() as log:
        for _ in range(10):
            log("info", "test", {})
    assert not log.thread.is_alive()
    os.close(writing)
    assert json.loads(format_log_line("info", "test", {"a": "\n"}))["a"] == "\n"


################################################################
# FILES
################################################################


def as_secret(config: Json, name: str) -> None:
    config["pools"]["home"]["keys"]["laptop"] = f"{{file:{name}}}"


def as_api_key(config: Json, name: str) -> None:
    config["accounts"]["a"]["api_key"] = f"{{file:{name}}}"


def as_authority(config: Json, name: str) -> None:
    config["accounts"]["a"]["ca_file"] = name


def as_login(config: Json, name: str) -> None:
    config["accounts"]["b"] = {"type": "codex", "auth_file": name}
    config["pools"]["home"]["accounts"] = ["a", "b"]


PLACES: Final = {"secret": as_secret, "api key": as_api_key, "ca_file": as_authority}


@pytest.mark.parametrize("place", PLACES)
def test_a_pipe_in_the_place_of_a_file_stops_no_running_server(place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with upstream() as server, running(tmp_path, described(server.port)) as process:
        config = described(server.port)
        PLACES[place](config, "pipe")
        process.write(config)
        process.process.send_signal(signal.SIGHUP)
        for _ in range(20):
            assert process.ask(CALL)[1] < ANSWER_SECONDS_MAX
        told = json.loads(process.wait_log(rb'"event": "reload refused"'))
        assert re.search("not a regular file|not a readable PEM file", told["problem"])
        assert process.ask(CALL)[0].startswith(b"HTTP/1.1 200 ")
        assert process.end()[0] == 0


def test_a_pipe_in_the_place_of_a_login_or_of_the_configuration_stops_nothing(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with upstream() as server, running(tmp_path, described(server.port)) as process:
        config = described(server.port)
        as_login(config, "pipe")
        process.write(config)
        process.process.send_signal(signal.SIGHUP)
        assert b"not a regular file" in process.wait_log(rb'"event": "login"')
        assert process.ask(CALL)[0].startswith(b"HTTP/1.1 200 ")

        process.path.unlink()
        os.mkfifo(process.path)
        process.process.send_signal(signal.SIGHUP)
        assert b"not a regular file" in process.wait_log(rb'"event": "reload refused"')
        assert process.ask(CALL)[0].startswith(b"HTTP/1.1 200 ")
        assert process.end()[0] == 0


class Hanging:
    """A disk that does not respond until it is released."""

    def __init__(self) -> None:
        self.may_go = threading.Event()

    def __call__(self, *_: object) -> Any:  # noqa: ANN401 (in the place of any function)
        self.may_go.wait(SECONDS_MAX)
        raise OSError(5, "Input/output error")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    monkeypatch.setattr(pooler, "FILE_SECONDS_MAX", 0.05)
    monkeypatch.setattr(pooler, "RELOAD_SECONDS_MAX", 0.05)
    made = Hanging()
    yield made
    made.may_go.set()


def server_with_login(folder: Path, logged: list[str]) -> pooler.Server:
    path = folder / "auth.json"
    make_auth_file(path, "acct-1")
    account = {"type": "codex", "auth_file": str(path), "base_url": "http://127.0.0.1:1"}
    pools = {"home": {"accounts": ["a"], "keys": {"laptop": KEY}}}
    described = json.dumps({"accounts": {"a": account}, "pools": pools}).encode()
    config = pooler.parse_config(described, {}, str)
    return pooler.Server(config, {}, log=lambda _level, _event, told: logged.append(str(told)))


async def test_a_disk_that_does_not_respond_takes_only_its_login_out(
    hanging: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    server = server_with_login(tmp_path, logged)
    login = server.shared.endpoints.logins["a"]
    with monkeypatch.context() as patch:
        patch.setattr(pooler, "read_login", hanging)
        began_at = time.monotonic()
        await server.shared.login_watch.look(server.shared.config.accounts.values())
        assert time.monotonic() - began_at < ANSWER_SECONDS_MAX
        assert not login.is_usable(time.time())
        assert "did not respond in time" in str(login.problem)
        await server.shared.login_watch.inspect_all()
        assert "did not respond in time" in logged[-1]
    hanging.may_go.set()
    with trio.fail_after(SECONDS_MAX):
        while not login.is_usable(time.time()):
            await server.shared.login_watch.look(server.shared.config.accounts.values())
    hanging.may_go.clear()

    monkeypatch.setattr(pooler, "why_unsaveable", hanging)
    with pytest.raises(pooler.LoginNeeded, match="did not respond in time"):
        await server.shared.tokens.check_saving(login)


class Disks:
    """Two logins, of which the first is on a disk that does not respond."""

    def __init__(self, folder: Path, hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hanging = hanging
        self.read_login = pooler.read_login
        self.server = server_with_login(folder, [])
        self.tokens = self.server.shared.tokens
        make_auth_file(folder / "other.json", "acct-2")
        self.dead = self.server.shared.endpoints.logins["a"]
        self.other = pooler.Login("b", folder / "other.json")
        self.reads: list[Path] = []
        monkeypatch.setattr(pooler, "read_login", self.read)

    def read(self, path: Path, mark: pooler.Mark | None) -> pooler.Sight | None:
        self.reads.append(path)
        if path == self.dead.path and not self.hanging.may_go.is_set():
            self.hanging.may_go.wait(SECONDS_MAX)
        return self.read_login(path, mark)


async def test_a_disk_that_does_not_respond_is_waited_for_once_and_takes_one_thread(
    hanging: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request to the pool waited for it, until no thread was left for the other disks."""
    disks = Disks(tmp_path, hanging, monkeypatch)
    async with trio.open_nursery() as nursery:
        for _ in range(2 * pooler.FILE_THREADS_MAX):
            nursery.start_soon(disks.tokens.look, [disks.other, disks.dead])
    for _ in range(pooler.FILE_THREADS_MAX):
        await disks.tokens.look([disks.other, disks.dead])
        await disks.tokens.look([disks.dead], is_fresh=True)
    assert disks.reads.count(disks.dead.path) == 1
    assert not disks.dead.is_usable(time.time())
    assert disks.other.is_usable(time.time())

    hanging.may_go.set()
    with trio.fail_after(SECONDS_MAX):
        while not disks.dead.is_usable(time.time()):
            await disks.tokens.look([disks.dead])
    assert disks.reads.count(disks.dead.path) == 2


async def test_another_disk_in_the_place_of_a_dead_one_is_looked_at(
    hanging: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread may wait for the one before for ever, so no more than a few are spent on that."""
    disks = Disks(tmp_path, hanging, monkeypatch)
    monkeypatch.setattr(pooler, "STUCK_SECONDS", 0)
    for _ in range(2 * pooler.FILE_THREADS_MAX):
        await disks.tokens.look([disks.dead])
    assert (
        disks.reads.count(disks.dead.path) == 1 + pooler.STUCK_LOOKS_MAX < pooler.FILE_THREADS_MAX
    )

    other = Disks(tmp_path, hanging, monkeypatch)
    await other.tokens.look([other.dead])
    monkeypatch.setattr(pooler, "read_login", disks.read_login)
    await other.tokens.look([other.dead])
    assert other.dead.is_usable(time.time())
    assert not other.tokens.given_up


async def test_a_login_behind_one_that_cannot_be_read_is_left_as_it_is(
    hanging: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = Disks(tmp_path, hanging, monkeypatch)
    await disks.tokens.look([disks.other])
    await disks.tokens.look([disks.dead, disks.other])
    assert not disks.dead.is_usable(time.time())
    assert disks.other.is_usable(time.time())
    disks.other.path.unlink()
    await disks.tokens.look([disks.dead, disks.other])
    assert "does not exist" in str(disks.other.problem)


async def test_who_waits_for_another_s_look_has_what_it_found(
    hanging: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the request that it began for is gone."""
    disks = Disks(tmp_path, hanging, monkeypatch)
    monkeypatch.setattr(pooler, "FILE_SECONDS_MAX", SECONDS_MAX)
    async with trio.open_nursery() as nursery, trio.open_nursery() as first:
        first.start_soon(disks.tokens.look, [disks.dead])
        await wait_all_tasks_blocked()
        nursery.start_soon(disks.tokens.look, [disks.dead])
        await wait_all_tasks_blocked()
        first.cancel_scope.cancel()
        hanging.may_go.set()
    assert disks.dead.is_usable(time.time())
    assert disks.reads == [disks.dead.path]


async def test_the_loop_itself_never_examines_a_login_file(
    hanging: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_with_login(tmp_path, [])
    login = server.shared.endpoints.logins["a"]
    examined: list[str] = []
    real_stat = os.stat

    def note_stat(path: Any, **options: Any) -> os.stat_result:  # noqa: ANN401 (as `os.stat` has it)
        if threading.current_thread() is threading.main_thread():
            examined.append(str(path))
        return real_stat(path, **options)

    monkeypatch.setattr(pooler, "read_login", hanging)
    monkeypatch.setattr(os, "stat", note_stat)
    await server.shared.login_watch.look(server.shared.config.accounts.values())
    assert str(login.path) not in examined


async def test_a_configuration_that_cannot_be_read_in_time_changes_nothing(
    hanging: Hanging, tmp_path: Path
) -> None:
    logged: list[str] = []
    server = server_with_login(tmp_path, logged)
    before = server.shared.config
    await server.reload(hanging)
    assert server.shared.config is before
    assert "did not respond in time" in logged[-1]


async def test_a_reload_that_takes_long_does_not_delay_the_end(
    hanging: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooler, "RELOAD_SECONDS_MAX", SECONDS_MAX)
    logged: list[str] = []
    server = server_with_login(tmp_path, logged)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def reload() -> Any:  # noqa: ANN401 (it never returns)
        trio.from_thread.run_sync(begun.set, trio_token=token)
        return hanging()

    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pooler.serve_with_signals, server, listeners, reload)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(os.getpid(), signal.SIGHUP)
            await begun.wait()
            for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), number)
            await trio.testing.wait_all_tasks_blocked()
            was_draining = server.shared.is_draining
            hanging.may_go.set()
    assert was_draining


def test_without_a_stderr_nothing_is_written_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor may be somebody else's."""

    async def run_serve(_path: Path, _env: Json, log: pooler.Log) -> int:
        await trio.lowlevel.checkpoint()
        log("info", "test", {})
        return 7

    monkeypatch.setattr(pooler, "run_serve", run_serve)
    monkeypatch.setattr(sys, "stderr", None)
    assert pooler.serve_logged(tmp_path, {}) == 7


################################################################
# DESCRIPTORS
################################################################


def test_the_soft_limit_is_raised_and_connections_stay_below_what_is_left(tmp_path: Path) -> None:
    """100 descriptors: no accept fails, and every client with a key is served."""
    with (
        upstream() as server,
        running(tmp_path, described(server.port), descriptors=100) as process,
    ):
        limits = resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)
        assert limits == (100, 100)
        with contextlib.ExitStack() as stack:
            for _ in range(90):
                idle = stack.enter_context(process.connect())
                idle.sendall(request("GET", "/v1/models"))
                assert read_response(idle).startswith(b"HTTP/1.1 200 ")
            assert process.ask(CALL)[0].startswith(b"HTTP/1.1 200 ")
            assert len(os.listdir(f"/proc/{process.process.pid}/fd")) < 60
        assert process.end()[0] == 0
        assert process.process.stderr is not None
        raw = process.raw + process.process.stderr.read()
        events = {json.loads(line)["event"] for line in raw.splitlines()}
        assert events == {"request", "draining", "stopped"}


def test_few_descriptors_are_logged_at_the_start_and_health_routes_respond(tmp_path: Path) -> None:
    with upstream() as server, running(tmp_path, described(server.port), descriptors=48) as process:
        assert b"ulimit -n" in process.before
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(process.connect())
            for _ in range(5):
                assert process.ask(HEALTH)[0].startswith(b"HTTP/1.1 200 ")
        assert process.end()[0] == 0


def test_a_failure_to_accept_is_logged_in_one_line(tmp_path: Path) -> None:
    """The system's own table is full: here the limit is lowered while it runs."""
    with upstream() as server, running(tmp_path, described(server.port)) as process:
        held = len(os.listdir(f"/proc/{process.process.pid}/fd"))
        resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, (held, 1000))
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(process.connect())
            told = json.loads(process.wait_log(rb'"event": "accept"'))
            assert told["level"] == "error"
            assert "Too many open files" in told["problem"]
            # Trio would say it ten times a second.
            assert process.process.stderr is not None
            assert not select.select([process.process.stderr], [], [], 0.5)[0]
        resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, (1000, 1000))
        assert process.ask(HEALTH)[0].startswith(b"HTTP/1.1 200 ")
        assert process.end()[0] == 0


################################################################
# IMPORTS
################################################################


async def test_who_comes_while_a_module_is_loaded_waits_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Already among the modules it is not ready: the loop goes on while both wait."""
    name = "slow_to_load"
    (tmp_path / f"{name}.py").write_text("import sys\nsys.at_loading()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    begun, may_end = threading.Event(), threading.Event()

    def at_loading() -> None:
        begun.set()
        may_end.wait(SECONDS_MAX)

    monkeypatch.setattr(sys, "at_loading", at_loading, raising=False)
    server = server_with_login(tmp_path, [])
    ended: list[int] = []

    async def load(number: int) -> None:
        await server.imports.load(name)
        ended.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, 1)
        await trio.to_thread.run_sync(begun.wait, SECONDS_MAX)
        assert name in sys.modules
        nursery.start_soon(load, 2)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert ended == []
        may_end.set()
    assert sorted(ended) == [1, 2]
    del sys.modules[name]


MESSAGE: Final = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ACCEPTED: Final = [("Accept", "application/json, text/event-stream")]
FIRST_USES: Final = {
    "mcp": (post("/mcp", MESSAGE, key=OPERATOR, headers=ACCEPTED), b"HTTP/1.1 200 "),
    "websocket": (upgrade(), b"HTTP/1.1 101 "),
}


@pytest.mark.measures
@pytest.mark.parametrize("what", FIRST_USES)
def test_the_first_use_of_a_large_module_holds_nobody_up(what: str, tmp_path: Path) -> None:
    """It takes up to a second to load; another client sends requests meanwhile."""
    raw, status = FIRST_USES[what]
    with upstream() as server:
        config = described(server.port)
        config["accounts"]["a"]["websocket"] = True
        with running(tmp_path, config) as process:
            good = process.connect()
            process.ask(HEALTH, good)
            with process.connect() as client:
                client.sendall(raw)
                longest, rounds = 0.0, 0
                while not select.select([client], [], [], 0)[0]:
                    longest = max(longest, process.ask(HEALTH, good)[1])
                    rounds += 1
                assert client.recv(PIPE_BYTES).startswith(status)
            sys.stdout.write(f"{what}: longest wait {longest:.3f} s in {rounds} rounds\n")
            assert rounds > 5
            assert longest < 0.5
            good.close()
            assert process.end()[0] == 0
