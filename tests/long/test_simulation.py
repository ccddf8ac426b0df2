"""Proves that whole lives of the pooler, drawn from seeds, keep the thirteen guarantees.

Method: tests/long/simulate.py.  Here 2,000 seeds, and all that ever failed (tests/long/seeds.txt);
more with `python -m tests.long.simulate --seeds N`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.long.simulate import run_seed, run_seeds
from tests.support.paths import ROOT

SEEDS: Final = [int(line) for line in (ROOT / "tests/long/seeds.txt").read_text().split()]
# Without these in numbers nothing is proved: what upstreams, clients and the world must have done.
SEEN: Final = (
    "200 ['response.completed']", "200 ['[DONE]']", "200 ['json']", "200 ['response.failed']",
    "200 ['error']", "turn ['response.completed']", "turn ['response.failed']", "turn ['error']",
    "502 ['json']", "503 ['json']", "504 ['json']", "401 ['json']", "408 ['json']", "cut",
    "closed by the pooler", "crash", "given up with 1008", "intruder", "left", "reload", "rotated",
    "stop", "clock set", "429 ['json']",
    # Troubles of accounts, in each carrier.
    "carrier: early chunk", "carrier: late chunk", "carrier: early event", "carrier: late event",
    "carrier: early frame", "carrier: late frame", "carrier: piece", "carrier: status doubt",
    "carrier: status forbidden", "carrier: status lacks model", "carrier: status lacks route",
    "carrier: status model limit", "carrier: status plan", "carrier: status refused",
    "carrier: status throttle", "report", "usage", "catalogue", "own model name", "no upgrade",
    # What else surrounds the server.
    "disk: ENOSPC", "disk: EDQUOT", "disk: EROFS", "disk: EIO", "refresh", "tunnel", "no tunnel",
    "notice", "log stuck", "log fails", "log dropped", "look",
    # What came of it.
    "continued", "stayed: header", "stayed: cache key", "stayed: conversation", "shown: at_limit",
    "shown: failing", "shown: ready", "shown: unreachable", "foreseen: served",
    "foreseen: refused", "lived on", "restart", "restart with a state", "state survived",
)  # fmt: skip


@pytest.mark.measures
def test_two_thousand_lives_keep_the_guarantees() -> None:
    command = [sys.executable, "-m", "tests.long.simulate", "--seeds", "2000"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = {
        what: int(count) for count, what in re.findall(r"^ *(\d+) (.+)$", done.stdout, re.MULTILINE)
    }
    assert {what: counts.get(what, 0) for what in SEEN if counts.get(what, 0) < 50} == {}


@pytest.mark.slow
def test_what_once_failed_does_not_fail_again() -> None:
    _, failures = run_seeds(SEEDS)
    assert failures == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 7, 25])
def test_a_seed_is_one_life(seed: int, tmp_path: Path) -> None:
    first, second = (run_seed(seed, tmp_path, Counter()) for _ in range(2))
    assert first == second
    assert first
