"""Proves that a login is refreshed once, saved before it is used, and never lost in a race.

Method: the real `Tokens` and a real loopback endpoint at which a refresh token works once; other
processes are real ones. The clock stands still unless a test moves it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

import pooler
from pooler import REFRESH_URL_VARIABLE, LoginNeeded, Server, make_tls_context, parse_config, reveal
from tests.support.codex_backend import TokenPlay, make_auth_file
from tests.support.logins import (
    ENDED,
    LONG,
    PAUSE_SECONDS,
    REAL_SECONDS_MAX,
    RENEWAL_SECONDS_MAX,
    SOON,
    Desk,
    asked_while_locked,
    jumping,
    locked_by_another,
    opened_desk,
)

Json = Any


################################################################
# ONCE
################################################################


async def test_a_login_that_is_good_is_left_alone(mock_clock: MockClock, tmp_path: Path) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(LONG)
        before = desk.path.read_bytes()
        assert await desk.ask() == desk.saved()
        assert (desk.asked_count, desk.path.read_bytes()) == (0, before)


async def test_fifty_requests_with_an_expired_token_refresh_it_once(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        old = desk.saved()
        got: list[str] = []

        async def one() -> None:
            got.append(await desk.ask())

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(one)
        assert desk.asked_count == 1
        assert set(got) == {desk.saved()} != {old}
        assert desk.saved("refresh_token") == "rt-acct-2"
        assert desk.path.stat().st_mode & 0o777 == 0o600


async def test_rejected_credentials_are_refreshed_once(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(LONG)
        await desk.ask()
        refused = desk.login.credentials
        first = await desk.ask(refused)
        assert first != reveal(refused.access_token) if refused else False
        assert await desk.ask(refused) == first  # they are others by now
        assert desk.asked_count == 1


CHILD: Final = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    import trio
    import pooler
    async def main():
        url = pooler.BaseUrl(False, "127.0.0.1", int(sys.argv[2]), "/oauth/token")
        async with trio.open_nursery() as nursery:
            tokens = pooler.Tokens(
                url, pooler.dial, pooler.print_log, time.time, pooler.Files(),
                nursery,
            )
            login = pooler.Login("one", Path(sys.argv[1]))
            found = await tokens.credentials(login)
            print(pooler.reveal(found.access_token))
    trio.run(main)
""")


async def test_several_processes_ask_once_between_them(tmp_path: Path) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        port = desk.origin.rpartition(":")[2]
        command = [sys.executable, "-c", CHILD, str(desk.path), port]
        root = Path(pooler.__file__).parent
        got: list[str] = []

        async def child() -> None:
            made = await trio.run_process(command, capture_stdout=True, cwd=root)
            got.append(made.stdout.decode().strip())

        async def here() -> None:
            got.append(await desk.ask())

        with trio.fail_after(REAL_SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                for run in (child, here, child, child):
                    nursery.start_soon(run)
        assert desk.asked_count == 1
        assert got == [desk.saved()] * 4


################################################################
# OTHERS
################################################################


async def test_a_login_that_another_program_has_refreshed_is_adopted(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        desk.login.look()
        desk.log_in(LONG, serial=7)
        assert await desk.ask() == desk.saved()
        assert desk.asked_count == 0


async def test_a_login_refreshed_while_we_wait_for_the_lock_is_adopted(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        async with asked_while_locked(desk, mock_clock) as outcome:
            desk.log_in(LONG, serial=7)
        assert outcome == [desk.saved()]
        assert desk.asked_count == 0


@contextlib.asynccontextmanager
async def asked_at_the_endpoint(desk: Desk) -> AsyncIterator[None]:
    """The time in which a refresh is on its way, up to the response of the token endpoint."""
    desk.backend.token_gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.ask)
        await desk.backend.token_asked.wait()
        yield
        desk.backend.token_gate.set()


async def test_a_race_that_we_lose_at_the_endpoint_is_no_loss(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    """Codex CLI takes no lock: it may spend the token while ours is on its way."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        async with asked_at_the_endpoint(desk):
            answer = desk.backend.exchange("rt-acct-1")
            value = json.loads(desk.path.read_bytes())
            value["tokens"] |= {name: answer[name] for name in ("access_token", "refresh_token")}
            pooler.save_file(desk.path, json.dumps(value).encode())
        assert await desk.ask() == desk.saved() == answer["access_token"]
        assert desk.asked_count == 1


async def test_a_login_that_comes_while_another_is_refreshed_is_not_mixed_with_it(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    """Another request may have read it: its file got the tokens of the account before."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        async with asked_at_the_endpoint(desk):
            desk.backend.admit(make_auth_file(desk.path, "acct-2", refresh_token="rt-acct-2-new"))
            before = desk.path.read_bytes()
            await desk.tokens.look([desk.login])
        assert await desk.ask() == desk.saved()
        assert (desk.asked_count, desk.path.read_bytes()) == (1, before)
        assert not desk.tokens.unsaved


async def test_a_login_that_comes_before_another_is_refreshed_keeps_that_from_being_spent(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To reserve room on a slow disk takes long enough."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        make_room = pooler.make_room

        def make_room_slowly(path: Path, byte_count: int) -> None:
            make_room(path, byte_count)
            desk.log_in(LONG, serial=7)
            desk.login.look()

        monkeypatch.setattr(pooler, "make_room", make_room_slowly)
        assert await desk.ask() == desk.saved()
        assert (desk.asked_count, desk.saved("refresh_token")) == (0, "rt-acct-7")
        assert not pooler.room_file(desk.path).exists()


async def test_what_is_written_beside_the_tokens_while_they_are_refreshed_is_kept(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    """The token is spent, so its successor must be saved, whatever else has changed."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        async with asked_at_the_endpoint(desk):
            value = json.loads(desk.path.read_bytes()) | {"added": 1}
            desk.path.write_text(json.dumps(value))
            await desk.tokens.look([desk.login])
        assert await desk.ask() == desk.saved()
        assert (desk.asked_count, desk.saved("refresh_token")) == (1, "rt-acct-2")
        assert json.loads(desk.path.read_bytes())["added"] == 1


async def test_a_lock_that_is_never_free_is_waited_for_a_bounded_time(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(SOON)
        token = desk.saved()
        with locked_by_another(desk.path):
            async with jumping(mock_clock, RENEWAL_SECONDS_MAX):
                assert await desk.ask() == token  # still valid
            assert desk.asked_count == 0
        with locked_by_another(desk.path):  # nothing keeps it
            pass
        assert RENEWAL_SECONDS_MAX == 15


async def test_a_lock_that_is_never_free_costs_no_thread(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    """Trio's threads resolve names: if they all waited here, no upstream could be reached."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        with locked_by_another(desk.path):
            before = threading.active_count()
            for _ in range(5):
                with pytest.raises(LoginNeeded, match="timed out"):
                    async with jumping(mock_clock, RENEWAL_SECONDS_MAX):
                        await desk.ask()
                mock_clock.jump(PAUSE_SECONDS)
            assert threading.active_count() == before
        assert await desk.ask() == desk.saved()
        assert desk.asked_count == 1


@pytest.mark.parametrize("spoil", ["open", "flock"])
async def test_a_lock_that_cannot_be_taken_is_reported_by_name(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    async with opened_desk(tmp_path) as desk:
        desk.log_in(SOON)
        if spoil == "open":
            (tmp_path / "auth.json.lock").mkdir()
        else:
            monkeypatch.setattr(fcntl, "flock", refuse)
        open_count = len(os.listdir("/dev/fd"))
        assert await desk.ask() == desk.saved()
        assert str(desk.login.problem).startswith(f"{tmp_path}/auth.json.lock cannot be locked: ")
        assert len(os.listdir("/dev/fd")) == open_count
        assert desk.asked_count == 0


################################################################
# TO THE END
################################################################


async def test_a_refresh_outlives_the_request_that_caused_it(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        desk.backend.token_gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.ask)
            await desk.backend.token_asked.wait()
            nursery.cancel_scope.cancel()
        assert desk.login.refresh is not None
        desk.backend.token_gate.set()
        await desk.rest()
        assert await desk.ask() == desk.saved()
        assert (desk.asked_count, desk.saved("refresh_token")) == (1, "rt-acct-2")


async def test_a_refresh_outlives_the_server(mock_clock: MockClock, tmp_path: Path) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        desk.backend.token_gate = trio.Event()
        async with trio.open_nursery() as services:
            desk.tokens.services = services
            desk.nursery.start_soon(desk.ask)
            await desk.backend.token_asked.wait()
            services.cancel_scope.cancel()
            desk.backend.token_gate.set()
        assert desk.login.refresh is None
        assert desk.saved("refresh_token") == "rt-acct-2"


@pytest.mark.parametrize("is_torn", [False, True])
async def test_what_a_killed_process_had_got_is_not_lost(
    mock_clock: MockClock, tmp_path: Path, is_torn: bool
) -> None:
    """It was killed between the response and the rename: the file's own token is spent."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        raw = desk.path.read_bytes()
        answer = json.dumps(desk.backend.exchange("rt-acct-1")).encode()
        left = pooler.merge_tokens(raw, answer, time.time() + 1)
        pooler.new_file(desk.path).write_bytes(left[:-9] if is_torn else left)
        if is_torn:
            with pytest.raises(LoginNeeded, match="revoked"):
                await desk.ask()
            return
        assert await desk.ask() == desk.saved()
        assert (desk.asked_count, desk.path.read_bytes()) == (0, left)
        assert not pooler.new_file(desk.path).exists()


@pytest.mark.parametrize("is_later", [False, True])
async def test_what_was_left_is_found_by_the_clock_of_the_issuer(
    mock_clock: MockClock, tmp_path: Path, is_later: bool
) -> None:
    """Ours was ten years ahead when it wrote one of the two, and was set back before the other."""
    ahead, now = "2036-01-01T00:00:00Z", "2026-01-01T00:00:00Z"
    left = pooler.new_file(tmp_path / "auth.json")
    async with opened_desk(tmp_path) as desk:
        times = (ENDED, LONG) if is_later else (ENDED, 2 * ENDED)
        written = (ahead, now) if is_later else (now, ahead)
        for path, seconds, moment in zip((desk.path, left), times, written, strict=True):
            login = make_auth_file(
                path, "acct-1", expires_at=time.time() + seconds, last_refresh=moment
            )
            desk.backend.admit(login)
        before = left.read_bytes()
        assert await desk.ask() == desk.saved()
        assert desk.asked_count == (0 if is_later else 1)
        assert (desk.path.read_bytes() == before) is is_later


async def test_what_was_left_of_another_account_is_not_adopted(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        make_auth_file(pooler.new_file(desk.path), "acct-2", last_refresh="2099-01-01T00:00:00Z")
        desk.log_in(ENDED)
        assert await desk.ask() == desk.saved()
        assert (desk.asked_count, desk.saved("account_id")) == (1, "acct-1")


async def test_a_plain_endpoint_is_used_without_tls(mock_clock: MockClock, tmp_path: Path) -> None:
    """The only TLS context is the one that the accounts' own upstreams need."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        account = {"type": "codex", "auth_file": str(desk.path)}
        described = {"accounts": {"one": account}, "pools": {"home": {"accounts": ["one"]}}}
        env = {REFRESH_URL_VARIABLE: f"{desk.origin}/oauth/token"}
        config = parse_config(json.dumps(described).encode(), env, str)
        server = Server(config, {None: make_tls_context(None)}, log=desk.note)
        server.shared.tokens.services = desk.nursery
        with trio.fail_after(REAL_SECONDS_MAX):
            found = await server.shared.tokens.credentials(server.shared.endpoints.logins["one"])
        assert reveal(found.access_token) == desk.saved()


@pytest.mark.parametrize("is_touched", [False, True])
async def test_nothing_is_used_before_it_is_saved(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_touched: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        before = desk.path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(pooler, "save_file", full)
            for _ in range(3):
                with pytest.raises(LoginNeeded, match="cannot be saved: No space left"):
                    await desk.ask()
                mock_clock.jump(PAUSE_SECONDS)
        assert (desk.asked_count, desk.path.read_bytes()) == (1, before)
        if is_touched:  # as a backup or a careless hand does; the content is the spent one
            desk.path.unlink()
            desk.login.look()
            assert not desk.login.is_usable(time.time())
            desk.path.write_bytes(before)
        token = await desk.ask()
        assert (token, desk.asked_count) == (desk.saved(), 1)
        assert desk.saved("refresh_token") == "rt-acct-2"


@pytest.mark.parametrize("fails", ["write_new", "sync", "sync_folder"])
async def test_a_disk_that_fails_for_a_moment_does_not_lose_what_was_fetched(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """`pooler check --ask` asks once, and ends: the only copy of the tokens was in its memory."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        works, failures = getattr(pooler, fails), iter(range(pooler.SAVE_TRIES_MAX - 1))

        def fail_at_first(path: Path, *rest: Any) -> None:  # noqa: ANN401 (as what it stands for)
            if desk.asked_count and next(failures, None) is not None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            works(path, *rest)

        monkeypatch.setattr(pooler, fails, fail_at_first)
        assert await desk.ask() == desk.saved()
        assert (desk.asked_count, desk.saved("refresh_token")) == (1, "rt-acct-2")


@pytest.mark.parametrize("is_another", [False, True])
async def test_what_could_not_be_saved_is_not_lost_by_a_reload(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_another: bool
) -> None:
    """It takes a login out, and another one brings it back: its file holds what is spent.

    Unless somebody has logged in meanwhile, of course.
    """

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        with monkeypatch.context() as patch:
            patch.setattr(pooler, "save_file", broken)
            with pytest.raises(LoginNeeded, match="cannot be saved: Input/output error"):
                await desk.ask()
        desk.login.is_retired = True
        desk.login = pooler.Login(desk.login.name, desk.path)
        if is_another:
            desk.log_in(ENDED)
        mock_clock.jump(PAUSE_SECONDS)
        token = await desk.ask()
        assert (token, desk.asked_count) == (desk.saved(), 2 if is_another else 1)


async def test_somebody_who_logs_in_keeps_that_login_whatever_is_still_unsaved(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refreshed before belongs to the login before, and must not take its place."""

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        with monkeypatch.context() as patch:
            patch.setattr(pooler, "save_file", broken)
            with pytest.raises(LoginNeeded, match="cannot be saved: Input/output error"):
                await desk.ask()
        unsaved = desk.login.unsaved
        assert unsaved
        desk.log_in(LONG, serial=9)
        chosen = desk.path.read_bytes()
        mock_clock.jump(PAUSE_SECONDS)
        assert await desk.ask() == desk.saved()
        assert (desk.path.read_bytes(), desk.login.unsaved, desk.asked_count) == (chosen, b"", 1)


async def test_nothing_is_used_before_its_name_is_on_the_disk(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut could bring the old file back, and its refresh token is spent."""
    real = pooler.sync

    async with opened_desk(tmp_path) as desk:

        def fails_for_folders(path: Path) -> None:
            if path.is_dir() and desk.asked_count:  # the disk breaks while the answer is awaited
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(path)

        desk.log_in(ENDED)
        with monkeypatch.context() as patch:
            patch.setattr(pooler, "sync", fails_for_folders)
            for _ in range(3):
                with pytest.raises(LoginNeeded, match="cannot be saved: Input/output error"):
                    await desk.ask()
            assert desk.saved("refresh_token") == "rt-acct-2"
            mock_clock.jump(PAUSE_SECONDS)
        assert (await desk.ask(), desk.asked_count) == (desk.saved(), 1)
        assert desk.saved("refresh_token") == "rt-acct-2"


################################################################
# FAILURES
################################################################

PASSING: Final = {
    "error": TokenPlay(500, "server_error"),
    "busy": TokenPlay(429, "rate_limit"),
    "bad-request": TokenPlay(400, "invalid_request"),
    "cut": TokenPlay(0),
}


@pytest.mark.parametrize("seconds", [ENDED, SOON], ids=["ended", "valid"])
@pytest.mark.parametrize("name", PASSING)
async def test_a_passing_failure_is_tried_again_after_a_pause(
    mock_clock: MockClock, tmp_path: Path, name: str, seconds: float
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(seconds)
        old = desk.saved()
        desk.backend.token_plays.append(PASSING[name])
        for _ in range(3):
            if seconds == SOON:
                assert await desk.ask() == old
            else:
                with pytest.raises(LoginNeeded):
                    await desk.ask()
        assert desk.asked_count == 1
        mock_clock.jump(PAUSE_SECONDS)
        assert await desk.ask() == desk.saved() != old
        assert desk.asked_count == 2
        assert PAUSE_SECONDS == 10


@pytest.mark.parametrize("shape", ["object", "string", "top"])
async def test_a_login_that_was_withdrawn_is_out_until_its_file_changes(
    mock_clock: MockClock, tmp_path: Path, shape: str
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(SOON)
        desk.backend.token_plays.append(TokenPlay(400, "refresh_token_invalidated", shape))
        with pytest.raises(LoginNeeded, match="has been revoked; log in with: pooler login one"):
            await desk.ask()
        mock_clock.jump(3600)
        with pytest.raises(LoginNeeded, match="has been revoked"):
            await desk.ask()
        os.utime(desk.path)  # touched is not changed
        with pytest.raises(LoginNeeded):
            await desk.ask()
        assert desk.asked_count == 1
        desk.log_in(LONG, serial=9)
        assert await desk.ask() == desk.saved()


async def test_an_endpoint_that_cannot_be_reached_costs_nothing(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(SOON)
        desk.tokens.url = desk.tokens.url._replace(port=1)
        assert await desk.ask() == desk.saved()
        told = f"the token endpoint {desk.tokens.url.authority}/oauth/token cannot be reached"
        assert desk.logged[-1]["problem"] == f"{told}: refused; will retry"
        assert desk.login.revoked == b""


async def test_a_login_without_a_refresh_token_serves_to_its_end(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(SOON)
        value = json.loads(desk.path.read_bytes())
        del value["tokens"]["refresh_token"]
        desk.path.write_text(json.dumps(value))
        assert await desk.ask() == desk.saved()
        assert "contains no refresh token" in str(desk.login.problem)
        assert desk.asked_count == 0


@pytest.mark.parametrize("spoil", ["link", "folder"])
async def test_if_nothing_can_be_saved_no_refresh_is_attempted(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        if spoil == "link":
            os.rename(desk.path, tmp_path / "real")
            desk.path.symlink_to("real")
        else:
            monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(LoginNeeded):
            await desk.ask()
        assert desk.asked_count == 0


def test_a_child_of_these_tests_finds_the_module() -> None:
    command = [sys.executable, "-c", "import pooler"]
    subprocess.run(command, check=True, cwd=Path(pooler.__file__).parent, timeout=30)


def test_a_token_without_an_expiry_has_no_margin(tmp_path: Path) -> None:
    login = pooler.Login("a", tmp_path / "auth.json")
    tokens = {"access_token": "opaque", "refresh_token": "r", "account_id": "acct"}
    login.unsaved = json.dumps({"tokens": tokens}).encode()
    login.note_issue(b"{}", 1.0)
    assert login.issued_margin_seconds == float("inf")
