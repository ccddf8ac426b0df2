"""Work in forked processes, several at once, each with its bounds.  (No claims.)"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

SILENT_SECONDS_MAX: Final = 15.0  # asleep so long without a word: nothing will wake it
WALL_SECONDS_MAX: Final = 900.0  # for one child, on a busy machine
MEMORY_BYTES_MAX: Final = 4 * 2**30
TICK: Final = 1.0

Say = Callable[[str], None]


class Job(NamedTuple):
    """Something to do in a child: it may say lines, of which the last one is its end."""

    name: str
    work: Callable[[Say], None]


class End(NamedTuple):
    """How a child ended: its last line, or "hangs", "dies"."""

    job: Job
    lines: list[str]
    how: str
    seconds: float


@dataclass
class Child:
    """A forked process, and what is known of it."""

    job: Job
    pid: int
    pipe: int
    began_at: float
    said: bytes = b""
    moved_at: float = 0.0  # when it last said or computed something
    ticks: str = ""
    is_hung: bool = False
    lines: list[str] = field(default_factory=list)


def _ticks(pid: int) -> tuple[str, str]:
    """A process's state, and the processor time that it has used."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return "Z", ""
    return fields[0], " ".join(fields[11:13])


def _be_child(job: Job, pipe: int) -> None:
    """Do the work of a child, alone in its group: whatever it starts ends with it."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))

    def say(line: str) -> None:
        os.write(pipe, line.encode() + b"\n")

    try:
        job.work(say)
    except Exception:  # noqa: BLE001 - the parent is told, whatever it is
        say(f"raised {traceback.format_exc()!r}")


def _start(job: Job) -> Child:
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            _be_child(job, write_end)
        finally:
            os._exit(1)
    os.close(write_end)
    now = time.monotonic()
    return Child(job, pid, read_end, now, moved_at=now)


def _is_over(child: Child) -> bool:
    """Look at a child that says nothing; whether it is to be stopped."""
    now = time.monotonic()
    state, ticks = _ticks(child.pid)
    if ticks != child.ticks or state == "R":
        child.ticks, child.moved_at = ticks, now
    is_silent = now - child.moved_at > SILENT_SECONDS_MAX
    return is_silent or now - child.began_at > WALL_SECONDS_MAX


def _stop(child: Child) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _ended(child: Child) -> End:
    _stop(child)  # of its group, whatever is left
    _, status = os.waitpid(child.pid, 0)
    os.close(child.pipe)
    lines = child.said.decode(errors="replace").splitlines()
    how = lines[-1] if lines else "dies"
    if child.is_hung or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF):
        how = "hangs"
    elif how.startswith("runs "):
        how = "dies"
    return End(child.job, lines, how, time.monotonic() - child.began_at)


def run_jobs(next_job: Callable[[], Job | None], job_count: int) -> Iterator[End]:
    """Do the work, `job_count` at once, until there is no next job; each end as it comes."""
    running: dict[int, Child] = {}
    while True:
        while len(running) < job_count and (job := next_job()):
            child = _start(job)
            running[child.pipe] = child
        if not running:
            return
        ready, _, _ = select.select([*running], [], [], TICK)
        for pipe in ready:
            child = running[pipe]
            piece = os.read(pipe, 65_536)
            child.said += piece
            child.moved_at = time.monotonic()
            if not piece:
                del running[pipe]
                yield _ended(child)
        for pipe, child in [*running.items()]:
            if pipe not in ready and _is_over(child):
                child.is_hung = True
                del running[pipe]
                yield _ended(child)
