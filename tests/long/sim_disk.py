"""A disk in the simulation, and the login files on it.  (No claims.)"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tests.support.codex_backend import make_token
from tests.support.codex_turns import Login


class Crash(BaseException):
    """The power went off, or kill -9 came; `Disk.crash` says what is left."""


################################################################
# THE DISK
################################################################


class Disk:
    """What of the login files would survive a power cut, and faults of the calls that save them.

    In the place of `os.fchmod`, `os.fsync` and `os.rename`: a file's bytes are durable once it
    was synced, and its name once its folder was.  What others write is durable at once.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.unsynced: set[str] = set()
        self.renamed: dict[str, tuple[bytes, bytes, str]] = {}  # by name: before, after, from
        self.whole: dict[str, bytes] = {}  # what each name holds, unless it is written in place
        self.fault_rate = 0.0
        self.crash_rate = 0.0
        self.has_crashed = False

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        kept = (os.fchmod, os.fsync, os.rename)
        os.fchmod, os.fsync, os.rename = self.fchmod, self.fsync, self.rename  # type: ignore[assignment] # in the simulation alone
        try:
            yield
        finally:
            os.fchmod, os.fsync, os.rename = kept

    def draw(self) -> None:
        """Raises: OSError, Crash."""
        at = self.rng.random()
        if at < self.crash_rate:
            self.has_crashed = True
            raise Crash
        if at < self.crash_rate + self.fault_rate:
            code = self.rng.choice([errno.ENOSPC, errno.EIO, errno.EDQUOT])
            raise OSError(code, os.strerror(code))

    def fchmod(self, descriptor: int, mode: int) -> None:
        assert stat.S_IMODE(mode) == 0o600
        self.unsynced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.draw()

    def fsync(self, descriptor: int) -> None:
        self.draw()
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.unsynced.discard(path)
        for name in [name for name in self.renamed if os.path.dirname(name) == path]:
            del self.renamed[name]
        self.draw()

    def rename(self, source: Path, target: Path) -> None:
        self.draw()
        before, after = target.read_bytes(), source.read_bytes()
        if str(source) in self.unsynced:
            self.unsynced.discard(str(source))
            self.unsynced.add(str(target))
        os.replace(source, target)
        self.renamed[str(target)] = (before, after, str(source))
        self.whole[str(target)] = after
        self.draw()

    def write(self, path: Path, raw: bytes) -> None:
        """As another program does it, which is not cut off."""
        path.write_bytes(raw)
        self.whole[str(path)] = raw
        self.unsynced.discard(str(path))
        self.renamed.pop(str(path), None)

    def durable(self, path: Path) -> bytes:
        """The file's bytes, as far as no power cut can take them."""
        held = path.read_bytes() if path.exists() else b""
        is_whole = self.whole.get(str(path), held) == held
        if str(path) in self.unsynced or not is_whole:
            return b""
        return self.renamed.get(str(path), (held, b"", ""))[0]

    def crash(self) -> None:
        """Only what is durable is sure to be left."""
        for name, (before, after, source) in self.renamed.items():
            if self.rng.random() < 0.5:
                Path(name).write_bytes(before)
                Path(source).write_bytes(after)
                Path(source).chmod(0o600)
        for name in self.unsynced:
            if os.path.exists(name) and self.rng.random() < 0.5:
                os.truncate(name, self.rng.randint(0, os.path.getsize(name)))
        self.unsynced.clear()
        self.renamed.clear()


################################################################
# LOGINS
################################################################


def login_file(login: Login, unix_now: float, expires_at: float) -> bytes:
    """An auth.json, as Codex CLI leaves it."""
    tokens = {
        "id_token": make_token(login.account_id, login.plan, expires_at, "id"),
        "access_token": login.access_token,
        "refresh_token": login.refresh_token,
        "account_id": login.account_id,
    }
    at = datetime.fromtimestamp(unix_now, UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": at}).encode()


def tokens_in(raw: bytes) -> tuple[str, str]:
    """Access and refresh token of an auth.json; ("", "") of anything else."""
    try:
        tokens = json.loads(raw)["tokens"]
        return str(tokens["access_token"]), str(tokens["refresh_token"])
    except (ValueError, KeyError, TypeError):
        return "", ""
