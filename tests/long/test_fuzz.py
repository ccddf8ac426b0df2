"""Proves that no bytes make a parser do anything but understand them, or refuse them as it says.

Method: the functions of tests/long/fuzz/targets.py, which hold each parser's invariants, fed with
good inputs, with seeded mutations of them, and with every input that ever failed
(tests/long/fuzz/kept.json, as Latin-1).  `python -m tests.long.fuzz NAME` goes on for as long as
it is told.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Final

import pytest

from tests.long.fuzz.mutate import mutated
from tests.long.fuzz.targets import TARGETS
from tests.support.paths import ROOT

pytestmark: Final = pytest.mark.slow

KEPT: Final[dict[str, list[str]]] = json.loads((ROOT / "tests/long/fuzz/kept.json").read_text())
INPUTS: Final = 400  # each; the streams take a millisecond


@pytest.mark.parametrize("name", TARGETS)
def test_nearly_good_bytes_are_understood_or_refused(name: str) -> None:
    one, corpus = TARGETS[name]
    for raw in (*corpus, *(text.encode("latin-1") for text in KEPT.get(name, []))):
        one(raw)
    rng = random.Random(name)
    for _ in range(INPUTS):
        raw = mutated(rng, corpus)
        try:
            one(raw)
        except BaseException:
            sys.stderr.write(f"{raw!r}\n")
            raise


def test_what_is_kept_belongs_to_a_parser() -> None:
    assert KEPT.keys() <= TARGETS.keys()


def test_a_parser_can_be_fuzzed_by_its_name() -> None:
    command = [sys.executable, "-m", "tests.long.fuzz", "chunks", "--seconds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
