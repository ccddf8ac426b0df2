"""Proves that a short soak of the real process ends well: load, faults, reloads and SIGTERM.

Method: the code of `python -m tests.soak`, for some seconds; a slope says nothing in so short a
time and is not judged.  What is judged: every answer by what was injected into it, the log, the
canaries, the exit, and what is left at the upstreams.
"""

from __future__ import annotations

from typing import Final

from tests.soak.run import SLOPE_MINUTES_MIN, slope, soak

SECONDS: Final = 15.0
SEED: Final = "short"


async def test_a_short_soak_is_good() -> None:
    verdict = await soak(SECONDS, SEED, 12)
    assert verdict.is_good, verdict.text
    for said in ("unexplained: 0", "log lines of level error, or bugs: 0", "exit code 0"):
        assert said in verdict.text, verdict.text
    assert SECONDS / 60 < SLOPE_MINUTES_MIN


def test_a_slope_is_that_of_least_squares() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == 2
    assert slope([(0, 1), (1, 4), (2, 1)]) == 0
    assert slope([(1, 7)]) == 0
