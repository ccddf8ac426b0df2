"""What all in the simulation stand on: one seed, one clock, one disk, one book.  (No claims.)

It outlives a crash of the server.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tests.long.sim_book import Book
from tests.long.sim_disk import Disk
from tests.long.sim_names import CODEX
from tests.long.sim_requests import MARK, Task
from tests.support.world import TOKEN_PATH, UNIX_START


@dataclass(eq=False)
class Ground:
    """Shared by all that surrounds the server."""

    rng: random.Random
    folder: Path
    counts: Counter[str]  # how often what happened
    complaints: list[str] = field(default_factory=list)
    tasks: dict[int, Task] = field(default_factory=dict)
    unix_offset: float = UNIX_START
    is_calm: bool = False  # nothing goes wrong any more
    is_harsh: bool = False  # nearly all goes wrong

    def __post_init__(self) -> None:
        self.disk = Disk(self.rng, self.folder, self.note_disk)
        self.book = Book(self.complaints, self.note)

    def note(self, what: str) -> None:
        """Count it, and what it is of: "stayed: header" as both of its parts."""
        kind, _, _ = what.partition(":")
        self.counts[kind] += 1
        if kind != what:
            self.counts[what] += 1

    def note_disk(self, what: str) -> None:
        """A call of the disk fails: then no login is sure to serve."""
        self.note(what)
        self.book.note_odd(*CODEX)

    def unix_now(self) -> float:
        return self.unix_offset + trio.current_time()

    def happens(self, share: float) -> bool:
        """Whether something goes wrong."""
        return not self.is_calm and self.rng.random() < share

    @staticmethod
    def holders_of(name: str) -> tuple[str, ...]:
        """Whose requests need what is called `name`: each login needs the token endpoint."""
        return CODEX if name == TOKEN_PATH else (name,)

    def task_of(self, name: str, raw: bytes) -> Task:
        """The one whose prompt an upstream was sent."""
        marks = sorted(set(MARK.findall(raw)))
        if len(marks) != 1:
            self.complaints.append(f"{name} was sent the prompts {marks}")
        return self.tasks[int(marks[0])]
