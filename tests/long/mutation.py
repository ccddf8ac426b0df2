"""A single mistake in the program, as the lists of them write it down.  (No claims.)"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """`old` occurs `times` times; `tests` leave out every `test_`, to be short."""

    name: str
    promise: str
    old: str
    new: str
    tests: str
    times: int = 1
    file: str = "pooler.py"
