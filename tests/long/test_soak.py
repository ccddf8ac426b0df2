"""Proves that a short soak of the real process ends well: load, faults, reloads and SIGTERM.

Also that a reload which comes as it ends does not kill it.  Method: the code of
`python -m tests.long.soak`, for some seconds; a slope says nothing in so short a time and is not
judged.  What is judged: every answer by what was injected into it, the log, the canaries, the
exit, and what is left at the upstreams.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.long.soak.figures import SLOPE_MINUTES_MIN, slope
from tests.long.soak.run import soak
from tests.support.server_process import describe_server, serving

pytestmark: Final = pytest.mark.measures

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


async def test_a_reload_after_the_last_log_line_does_not_kill_it(tmp_path: Path) -> None:
    async with serving(tmp_path, describe_server(None)) as pooler:
        pooler.process.send_signal(signal.SIGTERM)
        await pooler.wait_line("draining")
        while pooler.process.poll() is None:  # so one comes after the last line, too
            with suppress(ProcessLookupError):
                pooler.process.send_signal(signal.SIGHUP)
            with trio.move_on_after(0.001):
                await pooler.process.wait()
        assert await pooler.wait_exit() == 0
