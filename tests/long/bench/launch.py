"""Starts one program of the bench in this process; counts what it does when that is asked for.

Run: `python -m tests.long.bench.launch COUNTS PROGRAM ARGUMENT ...`.  COUNTS is `-`, or a file that
SIGUSR1 fills with the counts so far.  PROGRAM is a folder with a `pooler.py`, or the name of one
of `proxies`.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Final

import trio

BIG_TEXT: Final = 100_000  # characters: a body of the bench, never one of its events
COUNTS: Final = {"trio steps": 0, "big JSON parses": 0}


class Steps(trio.abc.Instrument):
    """Counts how often a task is resumed: each time, one wait has ended."""

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        COUNTS["trio steps"] += 1


def count_into(path: Path) -> None:
    """Count from here on.  The file is replaced atomically: who reads it sees whole counts."""
    parse = json.JSONDecoder.raw_decode

    def counted_parse(decoder: json.JSONDecoder, text: str, idx: int = 0) -> tuple[object, int]:
        if len(text) > BIG_TEXT:
            COUNTS["big JSON parses"] += 1
        return parse(decoder, text, idx)

    def write(*_: object) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(COUNTS))
        os.replace(partial, path)

    # A partial and a plain function in the place of a generic one and a method: in this process
    # alone, and called as those are.
    trio.run = functools.partial(trio.run, instruments=[Steps()])  # type: ignore[assignment] # measured
    json.JSONDecoder.raw_decode = counted_parse  # type: ignore[method-assign, assignment] # counted
    signal.signal(signal.SIGUSR1, write)


def main(counts: str, program: str, *arguments: str) -> None:
    if counts != "-":
        count_into(Path(counts))
    if Path(program, "pooler.py").is_file():
        sys.path.insert(0, program)
        sys.exit(importlib.import_module("pooler").main(list(arguments)))
    if program == "aiohttp":
        module = importlib.import_module("tests.long.bench.reverse")
    else:
        module = importlib.import_module("tests.long.bench.proxies")
    module.run(program, *(int(port) for port in arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
