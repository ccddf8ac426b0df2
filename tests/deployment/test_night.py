"""Proves that a short night of two replicas behind HAProxy ends well.

Method: the code of `python -m tests.long.night`, for some seconds: mixed traffic with 5 % faults,
reloads, tokens that run out, and each replica ended once by SIGTERM or SIGKILL and brought back.
What is judged: every response by what was injected into it, sessions, refresh tokens, the logs,
the exits, and what is left at the upstreams.  A slope says nothing in so short a time.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from tests.long.night.run import Kill, Night, Plan

SECONDS: Final = 40.0
SEED: Final = "short"


async def test_a_short_night_is_good(tmp_path: Path) -> None:
    night = Night(tmp_path, SECONDS, SEED, 12)
    verdict = await night.run()
    assert verdict.is_good, verdict.text
    for said in ("unexplained: 0", "0 sessions moved", "sent twice 0"):
        assert said in verdict.text, verdict.text

    ends = Counter(life.ended_by for life in night.replicas.lives)
    assert ends["SIGKILL"] >= 1
    assert ends["SIGTERM"] >= 3  # two of them at the end
    assert set(night.reloads) == {"without_key", "broken", "with_pause", "whole"}


def test_thirty_minutes_have_a_reload_a_minute_and_a_kill_each_five() -> None:
    plan = Plan(30 * 60)
    assert (plan.reload_seconds, plan.kill_seconds) == (60, 300)
    assert Plan(SECONDS).kill_seconds < SECONDS / 4


def test_only_a_request_that_had_begun_may_be_cut_by_a_kill() -> None:
    kill = Kill("one", at=100, gone_at=101)
    assert kill.explains(99, 100.5)
    assert not kill.explains(102, 103)  # it began when the process was gone
    assert not kill.explains(98, 99)  # it was over before
    assert not kill.explains(99, 130)  # it was at the other one
