"""Proves that a refresh token is spent only if its successor can be saved, and is then used.

Method: a full tmpfs, locks of another user and folders that refuse to be synced: the real thing if
the tests run as root, else what fails with the same calls; a clock that is days ahead. Each time
the login must serve after a restart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

import pooler
from pooler import (
    Login,
    LoginNeeded,
    RefreshOutcome,
    classify_refresh,
    clock_lead,
    give_folder,
    lock_file,
    main,
    parse_auth_file,
    reveal,
)
from tests.support.codex_backend import TokenPlay, make_auth_file
from tests.support.codex_turns import encode_part
from tests.support.logins import (
    ENDED,
    LONG,
    PAUSE_SECONDS,
    SOON,
    Desk,
    locked_by_another,
    opened_desk,
)

Json = Any
ROOT: Final = Path(pooler.__file__).parent
DAY: Final = 86400.0
NOW: Final = 1_800_000_000.0
SECONDS_MAX: Final = 30.0
KEY: Final = "cp-Qk3vT8xZ1mW6bN4rS9dF"


def write_config(folder: Path, auth_file: Path) -> str:
    path = folder / "pools.json"
    account = {"type": "codex", "auth_file": str(auth_file)}
    pools = {"home": {"accounts": ["a"], "keys": {"k": KEY}}}
    path.write_text(json.dumps({"accounts": {"a": account}, "pools": pools}))
    path.chmod(0o600)
    return str(path)


def check(folder: Path, auth_file: Path) -> int:
    return main(["check", "--config", write_config(folder, auth_file)])


async def serves_after_a_restart(desk: Desk) -> bool:
    """A process that has only the file gets a valid token."""
    found = await desk.tokens.credentials(Login("again", desk.path))
    return reveal(found.access_token) == desk.saved() in desk.backend.logins


################################################################
# ROOM
################################################################


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of 64 KiB in the folder; False if none may be mounted."""
    folder.mkdir()
    options = ["-o", "size=64k,mode=0700"]
    mount = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        if subprocess.run(mount, check=False, capture_output=True).returncode == 0:
            try:
                yield True
            finally:
                subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    yield False


@contextlib.contextmanager
def without_room(folder: Path, is_mounted: bool) -> Iterator[None]:
    """Nothing more can be written: the disk is full, else no file may grow."""
    if not is_mounted:
        kept = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, kept[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        return
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    yield
    ballast.unlink()


async def test_on_a_full_disk_no_refresh_is_attempted_and_the_login_is_kept(
    mock_clock: MockClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder) as is_mounted:
        async with opened_desk(folder) as desk:
            desk.log_in(ENDED)
            before = desk.path.read_bytes()
            with without_room(folder, is_mounted):
                with pytest.raises(
                    LoginNeeded, match=r"could not be saved in its folder: .*; (free|raise)"
                ):
                    await desk.ask()
                assert desk.asked_count == 0
            assert desk.path.read_bytes() == before
            assert await serves_after_a_restart(desk)
            assert desk.asked_count == 1


def test_check_finds_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder) as is_mounted:
        path = folder / "auth.json"
        make_auth_file(path, "acct-1")
        config = write_config(tmp_path, path)
        with without_room(folder, is_mounted):
            code = main(["check", "--config", config])
        told = capsys.readouterr().out
        assert code == 1
        problem = f"error: {path} cannot be refreshed, because the new login could not be saved"
        assert problem in told
        assert main(["check", "--config", config]) == 0


REFUSED_CALLS: Final = {
    "no inode": ("open", errno.ENOSPC, "free some space"),
    "quota": ("fsync", errno.EDQUOT, "free some space"),
    "read-only": ("open", errno.EROFS, "mount its folder"),
    "broken disk": ("fsync", errno.EIO, "check its disk"),
    "not ours": ("open", errno.EACCES, "make the pooler's user"),
    "broken folder": ("folder", errno.EIO, "check its disk"),
    "folder not readable": ("folder", errno.EACCES, "make the pooler's user"),
}


def refuse(monkeypatch: pytest.MonkeyPatch, where: str, code: int, *, names: str = ".room") -> None:
    """Let one call of the operating system fail, for a new file or for its folder."""
    plain_open, plain_fsync = os.open, os.fsync

    def opened(path: Any, flags: int, *more: Any, **options: Any) -> int:  # noqa: ANN401 (as os.open)
        if where == "open" and str(path).endswith(names) and flags & os.O_CREAT:
            raise OSError(code, os.strerror(code))
        return plain_open(path, flags, *more, **options)

    def synced(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if where == ("folder" if is_folder else "fsync"):
            raise OSError(code, os.strerror(code))
        plain_fsync(descriptor)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", synced)


@pytest.mark.parametrize("name", REFUSED_CALLS)
async def test_whatever_prevents_a_new_file_is_found_before_a_refresh(
    mock_clock: MockClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    where, code, remedy = REFUSED_CALLS[name]
    async with opened_desk(tmp_path / "home") as desk:
        desk.log_in(ENDED)
        with monkeypatch.context() as patch:
            refuse(patch, where, code)
            with pytest.raises(LoginNeeded, match=remedy):
                await desk.ask()
            [(is_error, problem), *_] = Login("two", desk.path).inspect(time.time())
            assert (is_error, remedy in problem) == (True, True)
            assert check(tmp_path, desk.path) == 1
            assert desk.asked_count == 0
        left = {one.name for one in desk.path.parent.iterdir()}
        assert left == {"auth.json", "auth.json.lock"}
        assert await serves_after_a_restart(desk)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP])
async def test_a_folder_that_cannot_be_synced_at_all_is_no_failure(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Network and FUSE file systems have no such call: the file itself is on the disk."""
    refuse(monkeypatch, "folder", code)
    async with opened_desk(tmp_path / "home") as desk:
        desk.log_in(ENDED)
        assert check(tmp_path, desk.path) == 0
        assert await desk.ask() == desk.saved()
        assert (desk.asked_count, desk.login.problem) == (1, None)
        assert await serves_after_a_restart(desk)
        assert desk.asked_count == 1


@pytest.mark.parametrize(
    "play",
    [None, TokenPlay(500, "server_error"), TokenPlay(401, "invalid_grant")],
    ids=["good", "failed", "spent"],
)
async def test_the_room_is_kept_until_the_response_comes_and_then_released(
    mock_clock: MockClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    play: TokenPlay | None,
) -> None:
    room = pooler.room_file(tmp_path / "auth.json")
    sizes: list[int] = []

    def judged(status: int, body: bytes) -> RefreshOutcome:
        sizes.append(room.stat().st_size)
        return classify_refresh(status, body)

    monkeypatch.setattr(pooler, "classify_refresh", judged)
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        before = desk.path.stat().st_size
        desk.backend.token_plays.extend([play] if play else [])
        with contextlib.nullcontext() if play is None else pytest.raises(LoginNeeded):
            await desk.ask()
        assert sizes[0] > before
        assert not room.exists()


################################################################
# LOCKS
################################################################

# `pooler check` by a user who may do nothing but use what is his.
WITHOUT_RIGHTS: Final = textwrap.dedent("""
    import os, sys
    import pooler
    b"{}".decode("utf-8-sig")  # while the library can still be read
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    sys.exit(pooler.main(["check", "--config", sys.argv[1]]))
""")


def check_without_rights(config: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_RIGHTS, config],
        check=False, capture_output=True, text=True, cwd=ROOT, timeout=SECONDS_MAX,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
def test_check_finds_a_lock_of_another_user(mode: int) -> None:
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:  # where another user may come
        folder = Path(name)
        path = folder / "auth.json"
        make_auth_file(path, "acct-1")
        config = write_config(folder, path)
        if is_root:
            for one in (folder, path, Path(config)):
                os.chown(one, 65534, 65534)
        lock_file(path).touch()
        is_shut = not is_root and mode != 0o666  # one's own, and as good as another's
        lock_file(path).chmod(0 if is_shut else mode)
        made = check_without_rights(config)
        assert made.returncode == 1, made.stdout + made.stderr
        assert f"error: {lock_file(path)} cannot be locked: " in made.stdout
        assert (
            "remove it" in made.stdout or "the owner of the file and of its folder" in made.stdout
        )

        lock_file(path).unlink()
        made = check_without_rights(config)
        assert made.returncode == 0, made.stdout + made.stderr


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
async def test_a_file_system_without_locks_is_found_before_a_refresh(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def lacking(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    async with opened_desk(tmp_path / "home") as desk:
        desk.log_in(ENDED)
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", lacking)
            with pytest.raises(
                LoginNeeded, match=r"cannot be locked: .*; keep the login on a local"
            ):
                await desk.ask()
            assert (check(tmp_path, desk.path), desk.asked_count) == (1, 0)
        assert await serves_after_a_restart(desk)


def test_a_lock_that_another_process_has_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "auth.json"
    make_auth_file(path, "acct-1")
    monkeypatch.setattr(pooler, "LOCK_SECONDS", 0.001)
    with locked_by_another(path):
        [(is_error, problem)] = Login("one", path).inspect(time.time())
    assert (is_error, "is locked by another process" in problem) == (False, True)
    assert Login("one", path).inspect(time.time()) == []
    assert not pooler.room_file(path).exists()


def test_root_does_not_lock_the_owner_of_a_login_out(tmp_path: Path) -> None:
    """`sudo pooler check` makes a lock that the pooler's own user can take."""
    path = tmp_path / "auth.json"
    make_auth_file(path, "acct-1")
    owner = 1234 if os.geteuid() == 0 else os.getuid()
    os.chown(path, owner, -1)
    for _ in range(2):  # made, and found
        assert Login("one", path).inspect(time.time()) == []
        assert lock_file(path).stat().st_uid == owner


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o702, 0o770, 0o2775])
@pytest.mark.parametrize("is_link", [False, True])
def test_root_gives_no_login_to_whoever_was_first_in_an_open_folder(
    tmp_path: Path, mode: int, is_link: bool
) -> None:
    """Anybody may put a file there, also while a person enters a code."""
    stranger = 1234 if os.geteuid() == 0 else os.getuid()
    path, theirs = tmp_path / "one.json", tmp_path / "theirs"
    theirs.write_bytes(b"{}")
    os.chown(theirs, stranger, -1)
    if is_link:
        path.symlink_to(theirs)
    else:
        theirs.rename(path)
    tmp_path.chmod(mode)
    pooler.save_login(path, b'{"access_token": "a.b.c"}', time.time())
    assert path.lstat().st_uid == os.geteuid()
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600


def test_a_login_that_others_can_replace_is_doubted(tmp_path: Path) -> None:
    """They could put one of their own there, and would get the prompts."""
    path = tmp_path / "auth.json"
    make_auth_file(path, "acct-1")
    for mode, count in ((0o777, 1), (0o702, 1), (0o1777, 0), (0o770, 0)):
        tmp_path.chmod(mode)
        told = [text for _, text in Login("one", path).inspect(time.time())]
        assert told == [f"{path} can be replaced by others: chmod o-w {tmp_path}"][:count]


@pytest.mark.parametrize("spoil", [os.link, os.rename])
def test_root_gives_another_file_in_the_place_of_a_lock_to_nobody(
    tmp_path: Path, spoil: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the folder may rename in it what only root may read."""
    given: list[object] = []
    monkeypatch.setattr(os, "fchown", lambda *asked: given.append(asked))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    path, other = tmp_path / "auth.json", tmp_path / "another"
    make_auth_file(path, "acct-1")
    os.chown(path, 1234 if os.getuid() == 0 else os.getuid(), -1)
    other.write_text("" if spoil is os.link else "secret")
    other.chmod(0o600)
    spoil(other, lock_file(path))
    Login("one", path).inspect(time.time())
    assert given == []


def test_root_gives_the_owner_of_a_folder_nothing_but_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That owner may put another one there right after root has made it."""
    given: list[int] = []
    monkeypatch.setattr(os, "fchown", lambda descriptor, *_: given.append(descriptor))
    made, full, file, link = (tmp_path / name for name in ("made", "full", "file", "link"))
    for folder in (made, full, full / "inner"):
        folder.mkdir()
    file.write_text("secret")
    link.symlink_to(made)
    give_folder(made)
    assert len(given) == 1
    give_folder(full)
    for other in (file, link):
        with pytest.raises(OSError, match="Not a directory"):
            give_folder(other)
    assert len(given) == 1


def test_a_login_in_a_sticky_folder_of_others_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "auth.json"
    make_auth_file(path, "acct-1")
    tmp_path.chmod(0o1777)
    assert pooler.why_unsaveable(path) is None
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 4321)
    assert "where only its owner may replace it" in (pooler.why_unsaveable(path) or "")


################################################################
# CLOCKS
################################################################


def token(ends_at: float, issued_at: float | None = None) -> pooler.Credentials:
    claims = {"exp": ends_at} | ({} if issued_at is None else {"iat": issued_at})
    access = f"{encode_part({'alg': 'none'})}.{encode_part(claims)}.c2ln"
    return parse_auth_file(json.dumps({"tokens": {"access_token": access}}).encode())


def answer(expires_in: Json = None) -> bytes:
    return json.dumps({"expires_in": expires_in}).encode()


TRUE: Final = NOW - 30 * DAY  # where our clock shows NOW
LEADS: Final[dict[str, tuple[pooler.Credentials, bytes, float]]] = {
    "right": (token(NOW + 9 * DAY, NOW), answer(9 * DAY), 0.0),
    "right, and nothing told": (token(NOW + 9 * DAY), answer(), 0.0),
    "right, and short-lived": (token(NOW + 240), answer(240), 0.0),
    "some seconds": (token(NOW + 240 - 20), answer(240), 0.0),
    "behind": (token(NOW + 40 * DAY, NOW + 31 * DAY), answer(9 * DAY), 0.0),
    "the answer tells": (token(TRUE + 9 * DAY), answer(9 * DAY), 30 * DAY),
    "ahead by less than a life": (token(NOW + 5 * DAY), answer(9 * DAY), 4 * DAY),
    "the token tells": (token(TRUE + DAY, TRUE), answer(), 30 * DAY),
    "nobody tells": (token(TRUE + 3600), answer(), 30 * DAY),
    "nonsense is told": (token(TRUE + 3600), answer(-5), 30 * DAY),
    "words are told": (token(TRUE + 3600), answer("soon"), 30 * DAY),
    "endless": (
        pooler.Credentials(pooler.Secret("x"), None, None, None, None, None, b""),
        b"",
        0.0,
    ),
}


@pytest.mark.parametrize("name", LEADS)
def test_a_clock_is_compared_with_a_token_that_was_just_issued(name: str) -> None:
    found, told, lead = LEADS[name]
    assert clock_lead(found, told, NOW) == lead


def test_a_version_that_says_when_it_was_written_is_later_than_one_that_does_not() -> None:
    silent = LEADS["endless"][0]
    dated = silent._replace(refreshed_at=NOW)
    for version, other, is_later in ((dated, silent, True), (silent, dated, False)):
        assert pooler.is_later(version, other) is is_later
    assert not pooler.is_later(silent, silent)


@pytest.mark.parametrize("days", [1, 9.99, 30, 4000])
@pytest.mark.parametrize("is_told", [True, False], ids=["told", "untold"])
async def test_a_token_just_issued_is_used_whatever_the_clock_shows(
    mock_clock: MockClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    days: float,
    is_told: bool,
) -> None:
    async with opened_desk(tmp_path) as desk:
        if not is_told:
            plain = desk.backend.exchange

            def without_life(spent: str) -> Json:
                return plain(spent) | {"expires_in": None}

            monkeypatch.setattr(desk.backend, "exchange", without_life)
        desk.log_in(ENDED)
        desk.tokens.unix_now = lambda: time.time() + days * DAY
        for _ in range(5):
            assert await desk.ask() == desk.saved() in desk.backend.logins
            desk.tokens.report_change(desk.login)
            mock_clock.jump(PAUSE_SECONDS)
        assert desk.asked_count == 1
        ends_in = parse_auth_file(desk.path.read_bytes()).expires_at or 0.0
        is_past = ends_in < desk.tokens.unix_now()
        problems = [one["problem"] for one in desk.logged]
        if is_past:
            assert "check the clock" in str(desk.login.problem)
            assert problems.count(desk.login.problem) == 1

        # The clock is set right, and a token that was issued then shows it.
        desk.tokens.unix_now = time.time
        await desk.ask(desk.login.credentials)
        assert (desk.asked_count, desk.login.problem) == (2, None)


async def test_a_token_that_lives_shorter_than_the_margin_is_not_refreshed_all_the_time(
    mock_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.codex_backend.TOKEN_SECONDS", 120)
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        for _ in range(5):
            assert await desk.ask() == desk.saved()
            mock_clock.jump(PAUSE_SECONDS)
        assert desk.asked_count == 1
        desk.tokens.unix_now = lambda: time.time() + 70  # more than half of its life
        await desk.ask()
        assert desk.asked_count == 2


################################################################
# ANSWERS OF OTHERS
################################################################


@pytest.mark.parametrize("status", [401, 403, 407])
@pytest.mark.parametrize("seconds", [SOON, ENDED], ids=["valid", "ended"])
async def test_a_response_that_is_not_the_endpoint_s_own_revokes_no_login(
    mock_clock: MockClock, tmp_path: Path, status: int, seconds: float
) -> None:
    """A captive portal, or a proxy that wants a password, stands in the way for a while."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(seconds)
        old = desk.saved()
        desk.backend.token_plays.append(TokenPlay(status, "proxy_authentication_required"))
        for _ in range(3):
            if seconds == SOON:
                assert await desk.ask() == old
            else:
                with pytest.raises(
                    LoginNeeded, match=f"returned {status} without a token; will ret"
                ):
                    await desk.ask()
        assert (desk.asked_count, desk.login.revoked) == (1, b"")
        mock_clock.jump(PAUSE_SECONDS)
        assert await desk.ask() == desk.saved() != old
        assert desk.asked_count == 2


async def test_check_asks_for_no_login_that_is_valid(mock_clock: MockClock, tmp_path: Path) -> None:
    async with opened_desk(tmp_path / "home") as desk:
        desk.log_in(LONG)
        before = desk.path.read_bytes()
        assert check(tmp_path, desk.path) == 0
        assert (desk.asked_count, desk.path.read_bytes()) == (0, before)


################################################################
# A THREAD THAT NOBODY WAITS FOR ANY LONGER
################################################################


class SlowDisk:
    """In the place of `pooler.sync`: it waits while the new version of a login is synced."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.may_go = threading.Event()
        self.real_sync = pooler.sync

    def __call__(self, path: Path) -> None:
        if path.name.endswith(".new"):
            self.has_begun.set()
            assert self.may_go.wait(SECONDS_MAX)
        self.real_sync(path)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk()
    monkeypatch.setattr(pooler, "sync", disk)
    monkeypatch.setattr(pooler, "REFRESH_SECONDS_MAX", 0.5)
    yield disk
    disk.may_go.set()


async def lock_as_another(path: Path) -> None:
    """Wait until another process could lock the login, and let go of it again."""
    with trio.fail_after(SECONDS_MAX):
        async with pooler.locked(path, pooler.Files()):
            pass


async def test_a_save_that_outlives_its_deadline_keeps_its_lock_until_it_ends(
    slow_disk: SlowDisk, tmp_path: Path
) -> None:
    """Otherwise it could take the place of a login that another process has refreshed since."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        before = desk.path.read_bytes()
        with pytest.raises(LoginNeeded, match="timed out"):
            await desk.ask()

        assert slow_disk.has_begun.is_set()
        assert desk.path.read_bytes() == before
        assert pooler.try_lock(desk.path) is None

        slow_disk.may_go.set()
        await lock_as_another(desk.path)
        assert desk.path.read_bytes() == desk.login.unsaved
        assert await serves_after_a_restart(desk)
        assert desk.asked_count == 1


async def test_a_login_that_comes_while_another_is_being_saved_stays(
    slow_disk: SlowDisk, tmp_path: Path
) -> None:
    """Codex CLI takes no lock, so the file is read once more right before the rename."""
    async with opened_desk(tmp_path) as desk:
        desk.log_in(ENDED)
        with pytest.raises(LoginNeeded, match="timed out"):
            await desk.ask()

        desk.log_in(LONG, serial=7)
        newer = desk.path.read_bytes()
        slow_disk.may_go.set()
        await lock_as_another(desk.path)
        assert desk.path.read_bytes() == newer
        assert not pooler.new_file(desk.path).exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the descriptor closes itself
async def test_a_thread_that_never_begins_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    files = pooler.Files()
    files.limiter.total_tokens = 1
    async with files.limiter:
        async with pooler.locked(path, pooler.Files()) as lock:
            with pytest.raises(OSError, match="in time"):
                await lock._replace(files=files).run(0.05, path.write_bytes, b"late")
        await lock_as_another(path)
    assert not path.exists()
