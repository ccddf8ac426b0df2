"""A command on a pseudo terminal: what it shows is read as it comes, and keys are typed.

(No claims.)
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Self

from tests.support.paths import POOLER
from tests.support.processes import SECONDS_MAX, clean_env

CTRL_C: Final = "\x03"
CTRL_D: Final = "\x04"
# Makes the terminal its own, so that Ctrl-C reaches it.
TAKE_TERMINAL: Final = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """`pooler ...` on a terminal; `shown` is all that it has shown so far, with plain line ends."""

    def __init__(self, *arguments: str, cwd: Path, **env: str) -> None:
        self.raw = b""
        self.answered = 0  # how many characters had been shown at the last answer
        self.descriptor, other_side = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, sys.executable, POOLER, *arguments],
            stdin=other_side,
            stdout=other_side,
            stderr=other_side,
            cwd=cwd,
            env=clean_env(**env),
            start_new_session=True,
        )
        os.close(other_side)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)

    @property
    def shown(self) -> str:
        return self.raw.decode().replace("\r\n", "\n")

    def receive(self, deadline: float) -> bool:
        """Whether more has come; False at the end.  Raises: AssertionError, after the deadline."""
        ready, _, _ = select.select([self.descriptor], [], [], max(0, deadline - time.monotonic()))
        assert ready, self.shown
        received = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
            received = os.read(self.descriptor, 65536)
        self.raw += received
        return received != b""

    def wait_for(self, text: str, *, after: int = 0) -> None:
        """Wait until the text is shown, after so many characters."""
        deadline = time.monotonic() + SECONDS_MAX
        while text not in self.shown[after:]:
            assert self.receive(deadline), self.shown

    def answer(self, question: str, keys: str) -> None:
        """Wait for a question that has not been answered yet, and type."""
        self.wait_for(question, after=self.answered)
        self.answered = len(self.shown)
        os.write(self.descriptor, keys.encode())

    def wait_exit(self) -> int:
        """Read to the end, and return the exit code."""
        deadline = time.monotonic() + SECONDS_MAX
        while self.receive(deadline):
            pass
        return self.process.wait(SECONDS_MAX)
