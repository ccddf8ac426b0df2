"""A disk in the simulation: how its calls fail, and what a power cut leaves.  (No claims.)"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

# A full disk, a quota that is used up, a file system that went read-only, a broken one.
FAULTS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Crash(BaseException):
    """The power went off, or kill -9 came; `Disk.crash` says what is left."""


@dataclass(eq=False)
class Disk:
    """What of the files would survive a power cut, and faults of the calls that save them.

    In the place of `os.fchmod`, `os.fsync` and `os.rename`: a file's bytes are durable once it
    was synced, and its name once its folder was.  What others write is durable at once.
    """

    rng: random.Random
    folder: Path
    note: Callable[[str], None]
    versions: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    unsynced: set[str] = field(default_factory=set)
    renamed: dict[str, tuple[bytes, bytes, str]] = field(
        default_factory=dict
    )  # before, after, from
    whole: dict[str, bytes] = field(default_factory=dict)  # unless it is written in place
    fault_rate: float = 0.0
    crash_rate: float = 0.0
    standing_fault: int = 0  # for so many more calls each one fails, as on a full disk
    code: int = 0
    frozen: dict[Path, bytes] | None = None  # what there was when the power went

    @property
    def has_crashed(self) -> bool:
        return self.frozen is not None

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
        if self.has_crashed:  # what is left of the process may change nothing
            raise Crash
        at = self.rng.random()
        if at < self.crash_rate:
            self.frozen = self.held()
            raise Crash
        if not self.standing_fault and at < self.crash_rate + self.fault_rate:
            self.code = self.rng.choice(FAULTS)
            self.standing_fault = self.rng.choice([1, 1, 3, 10])
        if self.standing_fault:
            self.standing_fault -= 1
            self.note(f"disk: {errno.errorcode[self.code]}")
            raise OSError(self.code, os.strerror(self.code))

    def held(self) -> dict[Path, bytes]:
        """The bytes of all files."""
        files = [path for path in self.folder.glob("*/*") if path.is_file()]
        return {path: path.read_bytes() for path in files}

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
        before = target.read_bytes() if target.exists() else b""
        after = source.read_bytes()
        if str(source) in self.unsynced:
            self.unsynced.discard(str(source))
            self.unsynced.add(str(target))
        os.replace(source, target)
        self.renamed[str(target)] = (before, after, str(source))
        self.whole[str(target)] = after
        self.versions[str(target)].append(after)
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

    def settle(self) -> None:
        """Time has passed: the system has written all by itself."""
        self.unsynced.clear()
        self.renamed.clear()

    def restore(self) -> None:
        """Undo what the rest of the process has done since the power went."""
        assert self.frozen is not None
        for path in self.held().keys() - self.frozen.keys():
            path.unlink()
        for path, raw in self.frozen.items():
            is_new = not path.exists()
            path.write_bytes(raw)
            if is_new:
                path.chmod(0o600)
        self.frozen = None

    def crash(self) -> None:
        """Only what is durable is sure to be left."""
        for name, (before, after, source) in self.renamed.items():
            if self.rng.random() < 0.5:
                Path(source).write_bytes(after)
                Path(source).chmod(0o600)
                Path(name).write_bytes(before)
                if not before:  # there was none
                    Path(name).unlink()
        for name in self.unsynced:
            if os.path.exists(name) and self.rng.random() < 0.5:
                os.truncate(name, self.rng.randint(0, os.path.getsize(name)))
        self.settle()
