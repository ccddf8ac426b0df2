"""Proves that `soonest_reset` uses quota before it expires, and that other routings are rejected.

Method: a `Roster` is given the windows of its accounts and asked for its choice; over connections
in memory it learns them by itself. Configurations with unknown routings are rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

from pooler import ConfigRefused, Routing
from tests.support.memory_sockets import Json, post
from tests.support.memory_websockets import codex_described, socket_world
from tests.support.scene import Scene, window
from tests.support.world import UNIX_START, describe, make_config, responses_events, sse_response

HOUR: Final = 3600
DAY: Final = 24 * HOUR
WEEK: Final = 7 * DAY
POOL: Final = {"routing": "soonest_reset"}
CODEX: Final = {"type": "codex", "api_key": None}


def five_hours(resets_in: float, used: float = 10) -> tuple[float, float, int]:
    return (used, resets_in, 5 * HOUR)


def week(resets_in: float, used: float = 10) -> tuple[float, float, int]:
    return (used, resets_in, WEEK)


def month(resets_in: float, used: float = 10) -> tuple[float, float, int]:
    return (used, resets_in, 30 * DAY)


@pytest.mark.parametrize("session", [None, "s", "t", "u"])
@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        pytest.param(
            {"a": [week(3 * DAY)], "b": [week(DAY)], "c": [week(2 * DAY)]}, "bca", id="weeks"
        ),
        pytest.param(
            {"a": [five_hours(60), week(6 * DAY)], "b": [five_hours(HOUR), week(DAY)],
             "c": [five_hours(30), week(7 * DAY)]},
            "bac", id="the-week-before-the-hours",
        ),
        pytest.param(
            {"a": [five_hours(3 * HOUR), week(DAY)], "b": [five_hours(HOUR), week(DAY + 2)],
             "c": [five_hours(2 * HOUR), week(DAY - 2)]},
            "bca", id="weeks-that-end-together",
        ),
        pytest.param(
            {"a": [five_hours(900)], "b": [five_hours(1200)], "c": [five_hours(600)]},
            "cab", id="hours-alone",
        ),
        pytest.param(
            {"a": [month(24 * DAY)], "b": [week(6 * DAY)], "c": [month(2 * DAY)]},
            "cba", id="plans-of-other-lengths",
        ),
        pytest.param(
            {"a": [week(DAY, used=99.5)], "b": [week(2 * DAY, used=0)], "c": [week(3 * DAY)]},
            "abc", id="to-the-last-percent",
        ),
        pytest.param({"b": [week(3 * DAY)]}, "b", id="without-a-plan-last"),
    ],
)  # fmt: skip
def test_the_account_whose_quota_lapses_first_is_used_first(
    windows: Mapping[str, Sequence[tuple[float, float, int]]], expected: str, session: str | None
) -> None:
    scene = Scene(pool=POOL)
    for name, found in windows.items():
        scene.tell(name, *(window(used, resets, length) for used, resets, length in found))
    assert scene.order(scene.call(session))[: len(expected)] == expected


def test_a_window_that_has_not_begun_is_begun_first() -> None:
    """So all become known; an account with a key has no plan, so none of its quota expires."""
    accounts: Json = {name: CODEX | {"auth_file": f"{name}.json"} for name in "bc"}
    scene = Scene(accounts=accounts, pool=POOL)
    scene.tell("b", window(10, DAY, WEEK))
    assert scene.order(scene.call("s")) == "cba"
    scene.tell("c", window(10, 2 * DAY, WEEK))
    assert scene.order(scene.call("s")) == "bca"
    assert scene.order(scene.call("s"), now=DAY + 1) == "bca"  # that of b is over
    assert scene.order(scene.call("s"), now=2 * DAY + 1)[-1] == "a"


def test_what_is_used_up_cannot_lapse() -> None:
    """An account may serve on without quota, on credits."""
    scene = Scene("ab", pool=POOL)
    scene.tell("a", window(100, DAY, WEEK))
    scene.serves("a", scene.call(), now=DAY / 2)
    scene.tell("b", window(10, 5 * DAY, WEEK))
    assert scene.order(scene.call("s"), now=DAY / 2) == "ba"


def test_pins_priority_and_demotion_come_before_the_reset() -> None:
    scene = Scene(accounts={"c": {"priority": 1}}, pool=POOL)
    scene.tell("a", window(10, 2 * DAY, WEEK))
    scene.tell("b", window(10, 3 * DAY, WEEK))
    scene.tell("c", window(10, DAY, WEEK))
    assert scene.order(scene.call("new")) == "abc"
    scene.serves("b", scene.call("s"))
    assert scene.order(scene.call("s")) == "bac"
    scene.answers("a", 500)
    assert scene.order(scene.call("new")) == "bac"


async def test_the_pooler_learns_of_the_windows_by_itself(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    described = codex_described(tmp_path, "abc", pool=POOL)
    days = {"a": 3, "b": 1, "c": 2}
    async with socket_world(described) as world:
        for name, upstream in world.upstreams.items():
            fields = {
                "primary-used-percent": 10, "primary-window-minutes": 300,
                "primary-reset-at": UNIX_START + HOUR * (4 - days[name]),
                "secondary-used-percent": 10, "secondary-window-minutes": 10080,
                "secondary-reset-at": UNIX_START + days[name] * DAY,
            }  # fmt: skip
            head = [(f"x-codex-{field}", str(value)) for field, value in fields.items()]
            upstream.always = sse_response(responses_events("hi"), headers=head)
        for number in range(9):
            body = {"model": "m1", "input": "x", "stream": True, "prompt_cache_key": f"s{number}"}
            assert (await world.ask(post("/v1/responses", body))).status == 200
        served = "".join(str(record["account"]) for record in world.records)
        assert sorted(served[:3]) == ["a", "b", "c"]
        assert served[3:] == "b" * 6


################################################################
# CONFIGURATION
################################################################


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        ("round_robin", ["sticky"]),
        ("failover", ["sticky", "priority"]),
        ("soonest-reset", ["soonest_reset"]),
        ("Sticky", ["sticky"]),
        ("quotafirst", ["quota_first"]),
        ("random", [*Routing]),
        ("", [*Routing]),
    ],
)
def test_another_routing_is_refused_with_what_to_write_instead(
    text: str, hints: Sequence[str]
) -> None:
    with pytest.raises(ConfigRefused) as caught:
        make_config(describe(pool={"routing": text}))
    [problem] = caught.value.problems
    assert problem.startswith("pools.home.routing: ")
    assert all(hint in problem for hint in hints)


def test_every_routing_that_there_is_is_taken() -> None:
    assert [*Routing] == ["sticky", "quota_first", "soonest_reset"]
    for routing in Routing:
        pool = make_config(describe(pool={"routing": routing.value})).pools["home"]
        assert pool.routing is routing
