"""Proves that no kill, race, odd file or wrong clock loses a login, or causes endless refreshes.

Method: real refreshes at the loopback endpoint, where a refresh token works once; what is killed,
or competes for the file, or may not write it, is a real process.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import pooler
from pooler import Login, LoginNeeded, new_file, reveal, save_file
from tests.support import codex_backend
from tests.support.codex_backend import TokenPlay, make_auth_file
from tests.support.logins import (
    ENDED,
    LONG,
    PAUSE_SECONDS,
    REAL_SECONDS_MAX,
    SOON,
    asked_while_locked,
    opened_desk,
)

ROOT: Final = Path(pooler.__file__).parent

################################################################
# KILLED
################################################################

# A whole renewal, in a process that dies before or after the Nth call of the operating system
# that its saving makes; step 0 lives.  "rejected N" asks for N renewals in a row.
CHILD: Final = textwrap.dedent("""
    import os, signal, sys, time
    from pathlib import Path
    import trio
    import pooler
    path, port, step, when, rounds = sys.argv[1], *sys.argv[2:]
    count = 0
    def deadly(name):
        real = getattr(os, name)
        def call(*args, **options):
            global count
            count += 1
            if count == int(step) and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*args, **options)
            finally:
                if count == int(step):
                    os.kill(os.getpid(), signal.SIGKILL)
        return call
    real_save = pooler.save_file
    def save(*args):
        for name in ("unlink", "open", "fdopen", "fchmod", "fchown", "fsync", "rename", "close"):
            setattr(os, name, deadly(name))
        real_save(*args)
    if int(step):
        pooler.save_file = save
    def log(*_):
        pass
    async def main():
        url = pooler.BaseUrl(False, "127.0.0.1", int(port), "/oauth/token")
        async with trio.open_nursery() as nursery:
            tokens = pooler.Tokens(
                url, pooler.dial, log, time.time, pooler.Files(), nursery
            )
            login = pooler.Login("one", Path(path))
            found = None
            for _ in range(int(rounds)):
                found = await tokens.credentials(login, found)
            print(pooler.reveal(found.access_token))
    trio.run(main)
""")


async def run_child(
    path: Path, origin: str, step: int = 0, when: str = "before", rounds: int = 1
) -> subprocess.CompletedProcess[bytes]:
    port = origin.rpartition(":")[2]
    command = [sys.executable, "-c", CHILD, str(path), port, str(step), when, str(rounds)]
    with trio.fail_after(REAL_SECONDS_MAX):
        return await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, cwd=ROOT
        )


def holds_an_unspent_login(path: Path, backend: codex_backend.CodexBackend) -> bool:
    try:
        return json.loads(path.read_bytes())["tokens"]["refresh_token"] in backend.refreshable
    except ValueError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("is_second", [False, True], ids=["asked", "adopted"])
async def test_a_kill_at_any_step_of_a_refresh_loses_no_login(
    tmp_path: Path, is_second: bool
) -> None:
    """From the moment that the answer is whole in a file; killed once, or once more.

    Nothing can be done in the few steps before: the only copy is in the killed memory.
    """
    is_lost_at: dict[tuple[int, str], bool] = {}
    async with opened_desk(tmp_path) as desk:
        step = killed_count = 0
        is_alive = False
        while not is_alive:
            step += 1
            for when in ("before", "after"):
                serial = 100 * step + 10 * (when == "after")
                new_file(desk.path).unlink(missing_ok=True)
                desk.log_in(ENDED, serial)
                if is_second:  # somebody was killed before, with the answer in the new file
                    answer = json.dumps(desk.backend.exchange(f"rt-acct-{serial}")).encode()
                    left = pooler.merge_tokens(desk.path.read_bytes(), answer, time.time() + 1)
                    save_file(tmp_path / "other", left)
                    os.rename(tmp_path / "other", new_file(desk.path))
                made = await run_child(desk.path, desk.origin, step, when)
                is_alive = made.returncode == 0
                assert is_alive or made.returncode == -signal.SIGKILL, made.stderr.decode()
                killed_count += not is_alive
                assert desk.path.stat().st_mode & 0o777 == 0o600
                copies = [one for one in (desk.path, new_file(desk.path)) if one.exists()]
                is_kept = any(holds_an_unspent_login(one, desk.backend) for one in copies)
                after = await run_child(desk.path, desk.origin)
                is_lost_at[step, when] = after.returncode != 0
                assert is_kept == (after.returncode == 0), (step, when, after.stderr.decode())
                if is_kept:
                    assert after.stdout.decode().strip() == desk.saved()
                    assert desk.saved() in desk.backend.logins
                    assert not new_file(desk.path).exists()
    assert killed_count >= 10
    lost = [at for at, is_lost in is_lost_at.items() if is_lost]
    # unlink, open, fdopen, fchmod: then the answer is written.
    assert lost == ([] if is_second else [(n, w) for n in range(1, 5) for w in ("before", "after")])


@pytest.mark.parametrize("is_left", [False, True])
def test_a_save_is_on_the_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_left: bool
) -> None:
    """The content before the name that leads to it, and that name before anybody goes on."""
    path = tmp_path / "auth.json"
    path.write_bytes(b"old")
    if is_left:
        new_file(path).write_bytes(b"new")
        new_file(path).chmod(0o600)
    steps: list[tuple[str, int]] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        steps.append(("fsync", os.fstat(descriptor).st_ino))

    def note_rename(source: Path, target: Path) -> None:
        rename(source, target)
        steps.append(("rename", target.stat().st_ino))

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    save_file(path, b"new")
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert steps == [("fsync", file), ("rename", file), ("fsync", folder)]
    assert path.read_bytes() == b"new"


@pytest.mark.slow
async def test_processes_that_contend_send_no_refresh_token_twice(tmp_path: Path) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        made: list[subprocess.CompletedProcess[bytes]] = []

        async def child() -> None:
            made.append(await run_child(desk.path, desk.origin, rounds=5))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(child)
        sent = [seen.body["refresh_token"] for seen in desk.backend.asked("/oauth/token")]
        assert len(set(sent)) == len(sent) >= 5
        for one in made:
            assert one.returncode == 0, one.stderr.decode()
            assert one.stdout.decode().strip() in desk.backend.logins
        assert desk.saved() in desk.backend.logins


async def test_two_accounts_that_share_a_file_ask_once(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        other = Login("two", desk.path)
        mock_clock.rate = 1.0  # one tries for the lock until the other is done
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.ask)
            nursery.start_soon(desk.tokens.credentials, other)
        assert desk.asked_count == 1


################################################################
# ADOPTED
################################################################


async def test_an_adopted_login_that_has_expired_is_refreshed_at_once(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        async with asked_while_locked(desk, mock_clock) as outcome:
            desk.log_in(ENDED, serial=7)
        assert outcome == [desk.saved()]
        assert desk.saved("refresh_token") == "rt-acct-8"
        assert desk.asked_count == 1


async def test_a_leftover_that_has_expired_is_refreshed_at_once(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    """The machine was off for longer than a token lives."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED, serial=7)
        left = json.loads(desk.path.read_bytes()) | {"last_refresh": "2099-01-01T00:00:00Z"}
        desk.log_in(ENDED)
        desk.backend.refreshable.pop("rt-acct-1")  # spent for the leftover
        new_file(desk.path).write_text(json.dumps(left))
        assert await desk.ask() == desk.saved()
        assert (desk.asked_count, desk.saved("refresh_token")) == (1, "rt-acct-8")


async def test_a_login_that_is_removed_does_not_come_back(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    """`codex logout` deletes the file, maybe while we wait for the lock."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        left = json.loads(desk.path.read_bytes()) | {"last_refresh": "2099-01-01T00:00:00Z"}
        new_file(desk.path).write_text(json.dumps(left))
        async with asked_while_locked(desk, mock_clock) as outcome:
            desk.path.unlink()
        assert "does not exist" in outcome[0]
        assert (desk.asked_count, desk.path.exists()) == (0, False)


async def test_a_file_that_changes_as_a_refresh_begins_is_adopted(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another request may read the file before the refresh's task has run at all."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        start_soon = desk.nursery.start_soon

        def start_late(function: Callable[..., Awaitable[None]], *args: object) -> None:
            desk.log_in(LONG, serial=7)
            desk.login.look()
            start_soon(function, *args)

        monkeypatch.setattr(desk.nursery, "start_soon", start_late)
        assert await desk.ask() == desk.saved()
        assert (desk.asked_count, desk.saved("refresh_token")) == (0, "rt-acct-7")


async def test_a_new_login_does_not_wait_for_the_pause_of_the_old_one(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        desk.backend.token_plays.append(TokenPlay(500, "server_error"))
        with pytest.raises(LoginNeeded):
            await desk.ask()
        desk.log_in(LONG, serial=7)
        assert await desk.ask() == desk.saved()
        assert desk.asked_count == 1


################################################################
# BOUNDED
################################################################


async def test_two_poolers_with_a_wrong_clock_do_not_drive_each_other(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    """Each sees a file that the other has changed, and that has expired."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        desk.backend.token_seconds = ENDED
        other = Login("two", desk.path)
        for _ in range(5):
            for login in (other, desk.login):
                found = await desk.tokens.credentials(login)
                assert reveal(found.access_token) == desk.saved()
            mock_clock.jump(PAUSE_SECONDS)
        assert desk.asked_count == 2  # one for each


@pytest.mark.parametrize("seconds", [ENDED, SOON], ids=["ended", "valid"])
async def test_an_endpoint_that_is_silent_is_left_in_time(
    mock_clock: MockClock, tmp_path: Path, seconds: float
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(seconds)
        old = desk.saved()
        desk.backend.token_gate = trio.Event()
        got: list[str] = []

        async def one() -> None:
            try:
                got.append(await desk.ask())
            except LoginNeeded as error:
                got.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await desk.backend.token_asked.wait()
            await wait_all_tasks_blocked()
            assert got == []
            mock_clock.jump(pooler.REFRESH_SECONDS_MAX)
        assert got == ([old] if seconds == SOON else ["refreshing the login timed out; will retry"])
        assert desk.saved() == old


async def test_a_token_that_was_spent_for_nothing_is_not_sent_for_ever(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    """The response was lost on its way: the endpoint reports that at the next refresh, and the
    login is revoked.
    """
    async with opened_desk(tmp_path) as desk:
        desk.log_in(SOON)
        desk.backend.token_plays.append(TokenPlay(0, is_spent=True))
        assert await desk.ask() == desk.saved()
        for _ in range(5):
            mock_clock.jump(PAUSE_SECONDS)
            with pytest.raises(LoginNeeded, match="revoked"):
                await desk.ask()
        assert desk.asked_count == 2


################################################################
# ODD FILES
################################################################


@pytest.mark.parametrize("name", ["auth.json", ".auth.json.new"])
async def test_a_pipe_holds_nothing_up(tmp_path: Path, name: str) -> None:
    """Opening one waits for a writer: the whole server would."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        if name == "auth.json":
            [(is_error, problem)] = desk.login.inspect(time.time())
            assert (is_error, "cannot be read" in problem) == (True, True)
        else:
            assert await desk.ask() == desk.saved()


def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    """A pooler that runs as root must not lock Codex CLI out of its own login."""
    path = tmp_path / "auth.json"
    path.write_bytes(b"old")
    owner, group = (1234, 2345) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    os.chown(path, owner, group)
    save_file(path, b"new")
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (owner, group, 0o600)


def test_the_owner_is_left_alone_if_it_is_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service manager's filter may end a process that changes owners (F107)."""
    changed: list[object] = []
    monkeypatch.setattr(os, "fchown", lambda *change: changed.append(change))
    path = tmp_path / "auth.json"
    path.write_bytes(b"old")
    save_file(path, b"new")
    assert (path.read_bytes(), changed) == (b"new", [])


def test_a_folder_that_really_cannot_be_written_or_read_is_reported() -> None:
    """In a process without rights: whoever runs the tests may be root, who may do everything."""
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        import pooler
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        path = Path(sys.argv[1])
        print(pooler.why_unsaveable(path))
        try:
            pooler.save_file(path, b"new")
        except OSError as error:
            print(type(error).__name__)
        print(pooler.Login("one", path.with_name("shut") / "auth.json").inspect(0))
    """)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "auth.json"
        path.write_bytes(b"old")
        path.with_name("shut").mkdir(mode=0)
        os.chmod(folder, stat.S_IREAD | stat.S_IEXEC | stat.S_IXOTH)
        made = subprocess.run(
            [sys.executable, "-c", script, str(path)],
            check=True, capture_output=True, text=True, cwd=ROOT, timeout=REAL_SECONDS_MAX,
        )  # fmt: skip
        os.chmod(folder, stat.S_IRWXU)
        assert path.read_bytes() == b"old"
    obstacle, error, inspected = made.stdout.splitlines()
    assert "cannot be written" in obstacle
    assert error == "PermissionError"
    assert inspected.startswith("[Finding(is_error=True, ")
    assert "cannot be read: Permission denied; make the pooler's user the owner" in inspected


def test_the_advice_can_be_pasted_whatever_the_folder_is_called(tmp_path: Path) -> None:
    """A shell runs it, with a `pooler` that prints its arguments; and the one about the mode."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "pooler").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tools / "pooler").chmod(0o755)
    folder = tmp_path / "it's a; home"
    config = str(folder / "pools.json")
    path = folder / "auth.json"
    command = Login("one", path, config).advice.removeprefix("log in with: ")
    env = {"PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", command], check=True, env=env, timeout=REAL_SECONDS_MAX, capture_output=True
    )
    assert done.stdout.decode().splitlines() == ["login", "one", "--config", config]

    make_auth_file(path, "acct-1")
    path.chmod(0o644)
    [(_, problem)] = Login("one", path).inspect(time.time())
    subprocess.run(["sh", "-c", problem.partition(": ")[2]], check=True, timeout=REAL_SECONDS_MAX)
    assert path.stat().st_mode & 0o777 == 0o600
    assert shlex.quote(str(path)) in problem


################################################################
# OTHER USERS
################################################################


def of_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files seem to be another user's: it takes root to make one that is."""
    assert path.exists()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)


@pytest.mark.parametrize("spoiled", ["another user's", "writable by others", "a pipe"])
async def test_a_lock_that_is_not_the_poolers_own_is_not_used(
    spoiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        lock = tmp_path / "auth.json.lock"
        if spoiled == "a pipe":
            os.mkfifo(lock)
        else:
            lock.write_text("theirs")
        if spoiled == "writable by others":
            lock.chmod(0o666)
        if spoiled == "another user's":
            of_another_user(lock, monkeypatch)
        with pytest.raises(LoginNeeded, match="cannot be locked: it belongs to another user"):
            await desk.ask()
        assert desk.asked_count == 0
        assert spoiled == "a pipe" or lock.read_text() == "theirs"


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_link_in_the_place_of_a_lock_is_not_followed(
    is_there: bool, tmp_path: Path
) -> None:
    """Nothing is made where it leads, and no file there is locked: it may be another program's."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        elsewhere = tmp_path / "elsewhere"
        if is_there:
            elsewhere.touch(0o600)
        pooler.lock_file(desk.path).symlink_to(elsewhere)
        told = f"cannot be locked: {os.strerror(errno.ELOOP)}; remove it"
        with pytest.raises(LoginNeeded, match=re.escape(told)):
            await desk.ask()
        assert desk.asked_count == 0
        assert elsewhere.exists() == is_there


@pytest.mark.parametrize("is_theirs", [False, True])
async def test_what_another_user_left_in_the_place_of_a_new_login_is_not_taken(
    is_theirs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of the same account, and later than the present login."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        answer = json.dumps(desk.backend.exchange("rt-acct-1")).encode()
        left = new_file(desk.path)
        left.write_bytes(pooler.merge_tokens(desk.path.read_bytes(), answer, time.time() + 1))
        left.chmod(0o600)
        (tmp_path / "auth.json.lock").touch(0o600)
        if is_theirs:
            left.chmod(0o622)  # anybody could have written it
            with pytest.raises(LoginNeeded):
                await desk.ask()
        else:
            assert await desk.ask() == desk.saved()
        assert desk.asked_count == is_theirs
