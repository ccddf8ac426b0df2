"""Proves that the bench measures every figure that it promises, of every program.

Method: its smallest form, as a process; nothing is asserted of speed.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.long.bench.__main__ import BASE, CONTESTANTS, ROWS
from tests.support.paths import ROOT

RUN_SECONDS_MAX: Final = 300.0


@pytest.mark.measures
def test_every_figure_of_the_bench_is_there(tmp_path: Path) -> None:
    kept = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.long.bench", "--smallest", "--json", str(kept)]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=RUN_SECONDS_MAX
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(kept.read_text())
    assert list(figures) == [row.title for row in ROWS]
    for row in ROWS:
        assert row.title in run.stdout
        values = figures[row.title]
        assert sorted(values) == sorted(CONTESTANTS), row.title
        assert all(math.isfinite(value) for name in CONTESTANTS for value in values[name])

    assert figures["JSON passes / body"]["minimal"] == [1.0]
    assert figures["JSON passes / body"]["pooler"][0] >= 1
    assert figures["JSON passes / body"][BASE] == [0.0]
    assert figures["Trio waits / event"]["minimal"][0] > 0
    assert 1 < figures["system calls / event"]["relay"][0] < 20
    assert 1 < figures["system calls / request"]["pooler"][0] < 100
    for title in ("agent's turn, CPU ms", "cold start, CPU s", "abort to upstream closed, ms"):
        assert all(value > 0 for name in CONTESTANTS for value in figures[title][name])
