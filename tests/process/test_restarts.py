"""Proves that the real process goes on after a restart from its state file, whatever its end was.

Method: `pooler serve` with real sockets and a real file, stopped, killed while it writes, and
started again; for the disk and the lock a `StateKeeper` in this process.  A write is killed before
each of its system calls in turn, in a process of its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import pooler
from pooler import StateKeeper, lock_file, new_file, parse_state, try_lock
from tests.support.codex_backend import make_auth_file
from tests.support.limits import LAUNCHER
from tests.support.memory_sockets import Json
from tests.support.paths import ROOT
from tests.support.server_process import (
    API_KEY,
    BEGIN,
    END,
    ENV,
    KEY,
    LIMITED,
    MODEL,
    SECONDS_MAX,
    STREAM_HEAD,
    WHOLE,
    ServerProcess,
    describe_server,
    read_all,
    read_request,
    serving,
    status_of,
    write_config,
)
from tests.support.world import describe, make_config

TOKEN: Final = "cpo-operator-of-me-0123456789"
SESSION: Final = "session-of-nobody-0123456789"
PROMPT: Final = "prompt-that-nobody-may-read"
ACCOUNT_ID: Final = "id-of-the-account-0123456789"
QUOTA: Final = (
    b"x-codex-primary-used-percent: 42\r\nx-codex-primary-window-minutes: 300\r\n"
    b"x-codex-primary-reset-at: 4000000000\r\n"
)
USED: Final = json.dumps({"usage": {"input_tokens": 1000, "output_tokens": 100}, "id": "resp_a"})


class TwoAccounts:
    """Serves an account with an API key and a ChatGPT account, whose paths differ."""

    def __init__(self) -> None:
        self.port = 0
        self.names: list[str] = []
        self.is_limited = False  # the one with the API key

    async def serve(self, stream: trio.abc.Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await self.answer(stream)
        await trio.aclose_forcefully(stream)

    async def answer(self, stream: trio.abc.Stream) -> None:
        head, _ = await read_request(stream)
        if head.startswith(b"GET "):  # for models, or for its quota
            await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        name = "two" if b"/backend-api/codex/" in head else "one"
        self.names.append(name)
        if self.is_limited and name == "one":
            await stream.send_all(LIMITED)
            return
        last = END.replace(b'{"id": "resp_a"}', USED.encode())
        await stream.send_all(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\n" + QUOTA + b"\r\n"))
        await stream.send_all(BEGIN + last)


@pytest.fixture
async def upstream(nursery: trio.Nursery) -> TwoAccounts:
    made = TwoAccounts()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    made.port = listener.socket.getsockname()[1]
    nursery.start_soon(trio.serve_listeners, made.serve, [listener])
    return made


def described(upstream: TwoAccounts, folder: Path, **changes: Json) -> dict[str, Any]:
    """Two accounts, of which the ChatGPT account is a reserve, an operator, and a state file."""
    make_auth_file(folder / "two.json", ACCOUNT_ID)
    whole = describe_server(None, operators={"me": TOKEN}, state="state.json")
    whole["accounts"]["one"]["base_url"] = f"http://127.0.0.1:{upstream.port}/v1"
    whole["accounts"]["two"] = {
        "type": "codex",
        "auth_file": "two.json",
        "base_url": f"http://127.0.0.1:{upstream.port}/backend-api/codex",
        "models": [MODEL],
        "priority": 1,
    }
    whole["pools"]["home"]["accounts"] = ["one", "two"]
    return whole | changes


async def ask(server: ServerProcess, text: str = WHOLE, session: str = "") -> int:
    async with await server.post(text, prompt_cache_key=session or None) as stream:
        return status_of(await read_all(stream))


async def status(server: ServerProcess) -> str:
    async with await server.connect() as stream:
        await stream.send_all(
            b"GET /admin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Accept: text/plain\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
        )
        return (await read_all(stream)).decode()


def saved(folder: Path) -> Json:
    return parse_state((folder / "state.json").read_bytes())


def counted(folder: Path) -> int:
    """The requests of the key, which are 0 before the first of them has been saved."""
    rows = saved(folder)["days"].get("home", {}).get("laptop", [])
    return sum(row[1] for row in rows)


################################################################
# THE REAL PROCESS
################################################################


async def test_counts_limits_quota_and_sessions_outlive_a_restart(
    upstream: TwoAccounts, tmp_path: Path
) -> None:
    config = described(upstream, tmp_path)
    upstream.is_limited = True
    async with serving(tmp_path, config) as server:
        # The reserve gets the session, because the first account is limited.
        assert await ask(server, session=SESSION) == 200
        assert upstream.names == ["one", "two"]
        assert await ask(server, session="another") == 200
    upstream.names.clear()

    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o600
    kept = saved(tmp_path)
    assert kept["days"]["home"]["laptop"][0][1:3] == [2, 0]

    async with serving(tmp_path, config) as server:
        # The limit of the first account holds, and so does the quota of the other one.
        shown = await status(server)
        assert "one" in shown
        assert "42 %" in shown or "42%" in shown
        assert await ask(server, session="a third") == 200
        assert upstream.names == ["two"]
    kept = saved(tmp_path)
    (day,) = kept["days"]["home"]["laptop"]
    assert day[1:5] == [3, 0, 3000, 300]
    assert kept["charged"]["home"]["laptop"][1] == 3300
    one, two = (kept["accounts"][name] for name in ("one", "two"))
    assert one["whole"][3].startswith("429")
    assert two["windows"][0][:3] == ["codex", 18_000, 42]
    assert two["tokens"][1] == 3300

    # Without a limit, the first account gets new sessions, and the old one stays where it is.
    one["whole"] = None
    (tmp_path / "state.json").write_text(json.dumps(kept))
    upstream.is_limited = False
    upstream.names.clear()
    async with serving(tmp_path, config) as server:
        for session in (SESSION, "of now"):
            assert await ask(server, session=session) == 200
    assert upstream.names == ["two", "one"]


async def test_no_secret_prompt_or_session_is_in_the_file(
    upstream: TwoAccounts, tmp_path: Path
) -> None:
    async with serving(tmp_path, described(upstream, tmp_path)) as server:
        assert await ask(server, PROMPT, SESSION) == 200
    assert not new_file(tmp_path / "state.json").exists()
    raw = (tmp_path / "state.json").read_text()
    assert saved(tmp_path)["pins"]["home"]["laptop"]
    for secret in (KEY, TOKEN, API_KEY, ACCOUNT_ID, PROMPT, SESSION, "127.0.0.1"):
        assert secret not in raw


async def test_the_file_is_written_at_the_start_and_the_end_and_not_for_each_request(
    upstream: TwoAccounts, tmp_path: Path
) -> None:
    async with serving(tmp_path, described(upstream, tmp_path)) as server:
        while not (tmp_path / "state.json").exists():
            assert status_of(await server.get("/healthz")) == 200
        before = (tmp_path / "state.json").stat()
        for _ in range(3):
            assert await ask(server) == 200
        assert (tmp_path / "state.json").stat() == before
    assert counted(tmp_path) == 3


async def test_a_second_signal_saves_as_well(upstream: TwoAccounts, tmp_path: Path) -> None:
    async with serving(tmp_path, described(upstream, tmp_path)) as server:
        assert await ask(server) == 200
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGINT)
        assert await server.wait_exit() == 0
    assert counted(tmp_path) == 1


@contextlib.asynccontextmanager
async def often_saving(folder: Path, config: Json) -> AsyncIterator[ServerProcess]:
    """A process that saves all the time, and is killed at the end."""
    command = [sys.executable, LAUNCHER, json.dumps({"STATE_SECONDS": 0.0})]
    process = await trio.lowlevel.open_process(
        [*command, "serve", "--config", str(write_config(folder, config))],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENV, cwd=folder,
    )  # fmt: skip
    server = ServerProcess(process)
    try:
        with trio.fail_after(SECONDS_MAX):
            server.address = (await server.wait_line("listening"))["address"]
            yield server
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stderr is not None
            await process.stderr.aclose()


@pytest.mark.slow
async def test_a_kill_at_any_moment_leaves_a_whole_file(
    upstream: TwoAccounts, tmp_path: Path
) -> None:
    config = described(upstream, tmp_path)
    count = 0
    for number in range(6):
        async with often_saving(tmp_path, config) as server:
            for _ in range(3):
                assert await ask(server) == 200
            while counted(tmp_path) < count + 2:
                assert status_of(await server.get("/healthz")) == 200
        count = counted(tmp_path)
        assert count <= 3 * (number + 1)
        assert [line for line in server.lines if line["event"] == "state"] == []


async def test_a_broken_file_is_put_aside_and_serving_goes_on(
    upstream: TwoAccounts, tmp_path: Path
) -> None:
    config = described(upstream, tmp_path)
    for number in range(2):
        (tmp_path / "state.json").write_text(f"broken {number}")
        (tmp_path / "state.json").chmod(0o600)
        async with serving(tmp_path, config) as server:
            assert await ask(server) == 200
        (warning,) = [line for line in server.lines if line["event"] == "state"]
        assert warning["level"] == "warning"
        assert "was put aside as state.json.broken" in warning["problem"]
        assert ("in place of an earlier one" in warning["problem"]) == bool(number)
        assert (tmp_path / "state.json.broken").read_text() == f"broken {number}"
        assert counted(tmp_path) == 1


async def test_a_second_process_serves_and_saves_nothing(
    upstream: TwoAccounts, tmp_path: Path
) -> None:
    config = described(upstream, tmp_path)
    async with serving(tmp_path, config) as first:
        assert await ask(first) == 200
        async with serving(tmp_path, config) as second:
            for _ in range(3):
                assert await ask(second) == 200
            problem = (await second.wait_line("state"))["problem"]
            assert "another process" in problem
    assert counted(tmp_path) == 1


################################################################
# THE FILE
################################################################


class Shelf:
    """A keeper, its file, and its log."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.json"
        self.log: list[tuple[str, str | None]] = []
        config = make_config(describe("a", state=str(self.path)))
        self.server = pooler.Server(config, {}, log=self.note)
        self.keeper = StateKeeper(self.server.shared)

    def note(self, level: str, event: str, fields: Json) -> None:
        if event == "state":
            self.log.append((level, fields["problem"]))

    async def save(self, count: int = 1) -> None:
        self.server.shared.uses["home", "laptop"].day_tokens += count
        self.server.shared.uses["home", "laptop"].day = 20_000
        await self.keeper.save()

    def count(self) -> int:
        return int(parse_state(self.path.read_bytes())["charged"]["home"]["laptop"][1])


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path)
    yield made
    if made.keeper.lock is not None:
        made.keeper.lock.close()


async def test_the_file_is_the_owners_alone(shelf: Shelf) -> None:
    await shelf.save()
    assert stat.S_IMODE(shelf.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(lock_file(shelf.path).stat().st_mode) == 0o600


async def test_what_has_not_changed_is_not_written(shelf: Shelf) -> None:
    await shelf.save()
    before = shelf.path.stat()
    await shelf.keeper.save()
    assert shelf.path.stat() == before
    await shelf.save()
    assert shelf.path.stat().st_ino != before.st_ino


async def test_a_file_that_was_removed_is_written_again(shelf: Shelf) -> None:
    await shelf.save()
    shelf.path.unlink()
    await shelf.keeper.save()
    assert shelf.count() == 1


class Crash(Exception):
    """Something failed that a test wanted to fail."""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
async def test_what_cannot_be_saved_is_a_warning_until_it_can(
    shelf: Shelf, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shelf.save()
    write, rename = pooler.write_new, os.rename

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    for module, name, real in ((pooler, "write_new", write), (os, "rename", rename)):
        monkeypatch.setattr(module, name, fail)
        await shelf.save()
        await shelf.save()
        assert shelf.keeper.problem is not None
        assert os.strerror(code) in shelf.keeper.problem
        assert shelf.server.operators.keeper is not shelf.keeper
        monkeypatch.setattr(module, name, real)
        await shelf.save()
        assert shelf.keeper.problem is None
    assert [level for level, _ in shelf.log] == ["warning", "info"] * 2
    assert shelf.count() == 7


def test_a_full_disk_keeps_the_old_file(shelf: Shelf) -> None:
    trio.run(shelf.save)
    script = f"""
        import resource, sys
        sys.path.insert(0, {str(ROOT)!r})
        import pooler, pathlib
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
        try:
            pooler.save_file(pathlib.Path({str(shelf.path)!r}), b"x" * 1000)
        except OSError:
            sys.exit(7)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == 7
    assert shelf.count() == 1
    trio.run(shelf.save)
    assert shelf.count() == 2


async def test_a_folder_that_is_not_there_or_cannot_be_written_is_a_warning(
    tmp_path: Path,
) -> None:
    shelf = Shelf(tmp_path / "nowhere")
    await shelf.keeper.restore()
    await shelf.save()
    ((level, problem),) = shelf.log
    assert level == "warning"
    assert problem is not None
    assert "No such file or directory; create its folder" in problem


@pytest.mark.parametrize("what", ["folder", "link", "writable by others"])
async def test_what_is_not_ours_is_neither_read_nor_replaced(shelf: Shelf, what: str) -> None:
    if what == "folder":
        shelf.path.mkdir()
    elif what == "link":
        target = shelf.path.with_name("other")
        target.write_text("{}")
        shelf.path.symlink_to(target)
    else:
        shelf.path.write_text("{}")
        shelf.path.chmod(0o666)
    await shelf.keeper.restore()
    await shelf.save()
    ((level, problem),) = shelf.log
    assert level == "warning"
    assert "cannot be read" in str(problem)
    assert not shelf.path.is_file() or shelf.path.read_text() == "{}"
    assert shelf.path.is_symlink() == (what == "link")


async def test_a_broken_file_that_cannot_be_put_aside_stays(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.path.write_text("broken")
    shelf.path.chmod(0o600)

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "rename", fail)
    await shelf.keeper.restore()
    monkeypatch.undo()
    await shelf.save()
    assert shelf.path.read_text() == "broken"
    assert shelf.keeper.problem is not None


async def test_a_bug_in_what_is_saved_ends_nothing(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shelf.save()

    def fail(*_: object) -> None:
        raise Crash("canary")

    monkeypatch.setattr(pooler.Lasting, "save", fail)
    monkeypatch.setattr(pooler.Lasting, "restore", fail)
    await shelf.keeper.save()
    assert shelf.keeper.problem == "a bug, which the log shows"
    await shelf.keeper.restore()
    monkeypatch.undo()
    await shelf.save()
    assert shelf.count() == 2
    assert shelf.keeper.problem is None


async def test_nothing_is_saved_while_another_process_has_the_lock(shelf: Shelf) -> None:
    lock = try_lock(shelf.path)
    assert lock is not None
    with lock:
        await shelf.save()
        assert not shelf.path.exists()
        assert "another process saves to it" in str(shelf.keeper.problem)
    await shelf.save()
    assert shelf.count() == 2
    assert shelf.keeper.problem is None


async def test_a_state_that_is_too_large_is_not_saved(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooler, "STATE_BYTES_MAX", 1)
    await shelf.save()
    assert not shelf.path.exists()
    assert "it would be too large" in str(shelf.keeper.problem)


async def test_a_disk_that_hangs_delays_the_end_only_so_long(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, noted = threading.Event(), trio.Event()
    note = shelf.keeper.note

    def note_and_say(problem: str | None) -> None:
        note(problem)
        noted.set()

    monkeypatch.setattr(shelf.keeper, "note", note_and_say)
    monkeypatch.setattr(pooler, "save_file", lambda *_: may_end.wait())
    monkeypatch.setattr(pooler, "FILE_SECONDS_MAX", 0.05)
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shelf.keeper.run)
            await noted.wait()
            nursery.cancel_scope.cancel()
    may_end.set()
    assert "the disk did not respond in time; check that disk" in str(shelf.keeper.problem)


async def test_a_thread_that_hangs_does_not_mix_its_version_with_the_next(shelf: Shelf) -> None:
    await shelf.save()
    shelf.keeper.writing.acquire()
    try:
        with trio.move_on_after(0.1):
            await shelf.save()
    finally:
        shelf.keeper.writing.release()
    await shelf.save()
    assert shelf.count() == 3


################################################################
# A CRASH IN THE MIDDLE
################################################################

CRASHING: Final = """
    import os, pathlib, signal, sys
    sys.path.insert(0, {root!r})
    import pooler
    path, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    calls = 0

    def counted(real):
        def call(*arguments, **options):
            global calls
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        return call

    for name in ("open", "fsync", "rename", "fstat", "fchmod", "fdopen", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    pooler.save_file(path, b'"new"' * 1000)
    print(calls)
"""


def test_a_write_that_is_killed_before_any_call_leaves_the_old_file_or_the_new_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "state.json"
    old, new = b'"old"' * 500, b'"new"' * 1000
    script = textwrap.dedent(CRASHING.format(root=str(ROOT)))
    outcomes = set()
    for last in range(1, 40):
        path.write_bytes(old)
        done = subprocess.run(
            [sys.executable, "-c", script, str(path), str(last)], check=False, capture_output=True
        )
        assert path.read_bytes() in (old, new)
        outcomes.add(path.read_bytes() == new)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        # The next write takes over from whatever was left.
        pooler.save_file(path, old)
        assert path.read_bytes() == old
    assert last > 5
    assert outcomes == {False, True}
