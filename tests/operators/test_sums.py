"""Proves that requests are summed up by minute, hour and day, within bounds, and priced.

Method: a Ledger is fed with records of chosen times; the snapshot is that of a server in virtual
time.  Nothing here waits.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import pooler
from pooler import (
    ACCOUNTS_COUNTED_MAX,
    CAUSES_SHOWN_MAX,
    DAYS_KEPT,
    HOURS_KEPT,
    KEYS_COUNTED_MAX,
    MINUTE_CODES_MAX,
    MINUTES_KEPT,
    Ledger,
    Price,
    Tally,
)
from tests.support.memory_sockets import KEY, Json, post
from tests.support.world import (
    UNIX_START,
    World,
    describe,
    json_response,
    make_config,
    opened_world,
)

DAY: Final = 86_400
NOON: Final = 1_800_014_400  # 2027-01-15 12:00 UTC
TOKENS: Final = {
    "input_tokens": 1000,
    "output_tokens": 100,
    "cached_tokens": 800,
    "reasoning_tokens": 0,
}
PRICES: Final = {"m1": {"input": 2, "cached": 0.5, "output": 10}}
COST: Final = (200 * 2 + 800 * 0.5 + 100 * 10) / 10**6


def entry(unix_end: float, **changes: Json) -> dict[str, Json]:
    """A record of a stream that lasted for two seconds and ended at a time."""
    whole = {
        "at": unix_end - 2,
        "duration_ms": 2000,
        "first_byte_ms": 500,
        "pool": "home",
        "key": "laptop",
        "account": "a",
        "model": "m1",
        "route": "responses",
        "stream": True,
        "status": 200,
        "code": None,
        "attempts": [{"account": "a"}],
        "bytes_in": 1,
        "bytes_out": 2,
        "tokens": TOKENS,
    }
    return whole | changes


def filled(*entries: Mapping[str, Json], price: Price | None = None) -> Ledger:
    ledger = Ledger(10)
    for each in entries:
        ledger.add(each, price)
    return ledger


def last_hour(ledger: Ledger, unix_now: float) -> Json:
    return pooler._show_last_hour(ledger, unix_now)


def test_the_last_hour_slides_by_the_minute() -> None:
    ledger = filled(entry(NOON), entry(NOON + 60 * 30))
    for minutes, count in ((0, 1), (30, 2), (59, 2), (60, 1), (89, 1), (90, 0)):
        assert last_hour(ledger, NOON + 60 * minutes)["requests"] == count, minutes


def test_a_request_counts_when_it_ends() -> None:
    ledger = filled(entry(NOON + 1))
    assert [*ledger.hours] == [NOON // 3600]


def test_a_client_that_leaves_is_no_failure() -> None:
    codes = (None, "client_gone", "no_usable_account")
    hour = last_hour(filled(*(entry(NOON, code=code) for code in codes)), NOON)
    assert (hour["requests"], hour["failed"]) == (3, 1)
    assert hour["causes"] == [{"code": "no_usable_account", "count": 1}]


def test_the_most_frequent_causes_come_first_and_are_few() -> None:
    entries = [
        entry(NOON, code=f"code_{number}")
        for number in range(CAUSES_SHOWN_MAX + 5)
        for _ in range(number + 1)
    ]
    causes = last_hour(filled(*entries), NOON)["causes"]
    counts = [cause["count"] for cause in causes]
    assert len(causes) == CAUSES_SHOWN_MAX
    assert counts == sorted(counts, reverse=True)
    assert causes[0] == {"code": f"code_{CAUSES_SHOWN_MAX + 4}", "count": CAUSES_SHOWN_MAX + 5}


@pytest.mark.parametrize("milliseconds", [1, 2, 7, 100, 1234, 60_000, 3_000_000])
def test_a_percentile_is_within_five_percent(milliseconds: int) -> None:
    hour = last_hour(filled(*[entry(NOON, first_byte_ms=milliseconds)] * 3), NOON)
    for name in ("first_event_p50_ms", "first_event_p95_ms"):
        assert abs(hour[name] - milliseconds) <= max(1, milliseconds * 0.05), name


@given(st.lists(st.integers(0, 4_000_000), min_size=1, max_size=200))
def test_percentiles_are_those_of_the_nearest_rank(times: list[int]) -> None:
    hour = last_hour(filled(*(entry(NOON, first_byte_ms=each) for each in times)), NOON)
    ordered = sorted(times)
    assert hour["responses"] == len(times)
    for percent in (50, 95):
        exact = ordered[-(-len(times) * percent // 100) - 1]
        shown = hour[f"first_event_p{percent}_ms"]
        assert abs(shown - exact) <= max(1, exact * 0.05) or exact > 3_600_000


@pytest.mark.parametrize(
    "changes",
    [{"stream": False}, {"account": None}, {"status": 503}, {"first_byte_ms": None}],
    ids=lambda changes: next(iter(changes)),
)
def test_only_streams_of_accounts_have_a_first_event(changes: Json) -> None:
    hour = last_hour(filled(entry(NOON, **changes)), NOON)
    assert (hour["responses"], hour["first_event_p50_ms"]) == (0, None)


@pytest.mark.measures
def test_a_request_costs_microseconds() -> None:
    ledger, record = Ledger(10), entry(NOON)
    price = Price(1, 2, 3)
    best = 1.0
    for _ in range(20):
        began_at = time.perf_counter()
        for _ in range(100):
            ledger.add_to_periods(record, "ok", pooler._tally_of(record, price))
        best = min(best, (time.perf_counter() - began_at) / 100)
    assert best < 15e-6


def test_sums_have_bounds_whatever_comes() -> None:
    ledger = Ledger(10)
    for number in range(max(KEYS_COUNTED_MAX, ACCOUNTS_COUNTED_MAX) + 50):
        names = {"key": f"k{number}", "account": f"a{number}", "model": f"made-up-{number}"}
        ledger.add(entry(NOON, code=f"code_{number}", first_byte_ms=number, **names))
    for number in range(100):
        ledger.add(entry(NOON + number * 3600))
        ledger.add(entry(NOON + number * DAY, key="k0"))
        ledger.add(entry(NOON + number * 60))

    assert len(ledger.days) == KEYS_COUNTED_MAX
    assert len(ledger.account_days) == ACCOUNTS_COUNTED_MAX
    assert len(ledger.days["home", "k0"]) <= DAYS_KEPT
    assert len(ledger.hours) <= HOURS_KEPT
    assert len(ledger.minutes) <= MINUTES_KEPT


def test_a_minute_has_bounds_whatever_comes() -> None:
    entries = (
        entry(NOON, code=f"code_{number}", first_byte_ms=number**3) for number in range(2000)
    )
    ledger = filled(*entries)
    (minute,) = ledger.minutes.values()
    assert len(minute.codes) == MINUTE_CODES_MAX + 1
    assert minute.codes["other"] == 2000 - MINUTE_CODES_MAX
    assert len(minute.steps) <= pooler.FIRST_EVENT_STEPS_MAX + 1


def test_a_clock_that_is_set_back_leaves_no_sums_in_the_future() -> None:
    ledger = filled(entry(NOON + 5 * DAY), entry(NOON))
    assert [*ledger.hours] == [NOON // 3600]
    assert [*ledger.days["home", "laptop"]] == [NOON // DAY]


@given(st.lists(st.tuples(st.integers(0, 40 * 3600), st.integers(0, 9))))
def test_hours_are_what_a_plain_count_gives(spans: list[tuple[int, int]]) -> None:
    ends = sorted(seconds for seconds, _ in spans)
    ledger = filled(*(entry(NOON + seconds) for seconds in ends))
    unix_now = NOON + (ends[-1] if ends else 0)
    rows = pooler._show_hours(ledger, unix_now)
    assert len(rows) == HOURS_KEPT
    for row in rows:
        count = sum(row["at"] <= NOON + seconds < row["at"] + 3600 for seconds in ends)
        assert row["requests"] == count


async def test_the_snapshot_has_sums_by_hour_and_day(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", prices=PRICES)) as world:
        await ask(world)
        found = world.server.operators.snapshot()

    assert found["has_prices"] is True
    hours = found["hours"]
    assert len(hours) == HOURS_KEPT
    assert hours[-1] == {
        "at": UNIX_START // 3600 * 3600,
        "requests": 1,
        "failed": 0,
        "input_tokens": 1000,
        "output_tokens": 100,
        "cached_tokens": 800,
    }
    steps = [later["at"] - earlier["at"] for earlier, later in itertools.pairwise(hours)]
    assert steps == [3600] * 23

    day = found["keys"][0]["days"][-1]
    assert (day["day"], day["requests"], day["cost"]) == ("2027-01-15", 1, COST)
    assert [len(key["days"]) for key in found["keys"]] == [DAYS_KEPT, DAYS_KEPT]
    assert found["today"]["cost"] == COST
    assert found["accounts"][0]["tokens_today"] == 1100


async def test_today_is_the_day_and_not_the_last_hours(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", prices=PRICES)) as world:
        await ask(world)
        first_hour = UNIX_START // 86400 * 24
        world.server.shared.ledger.hours[first_hour - 1] = Tally(7, 7, 7, 7, 7)
        assert world.server.operators.snapshot()["today"]["requests"] == 1


async def ask(world: World) -> None:
    usage = {
        "input_tokens": 1000,
        "output_tokens": 100,
        "input_tokens_details": {"cached_tokens": 800},
    }
    for upstream in world.upstreams.values():
        upstream.always = json_response({"id": "r", "usage": usage})
    await world.ask(post("/v1/responses", {"model": "m1", "input": "x"}))


async def test_without_prices_there_is_no_cost(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        await ask(world)
        found = world.server.operators.snapshot()
    assert found["has_prices"] is False
    costs = [day["cost"] for key in found["keys"] for day in key["days"]]
    assert {*costs, found["today"]["cost"]} == {None}


async def test_an_alias_costs_what_its_model_costs(autojump_clock: MockClock) -> None:
    pool = {"models": ["m1", "m2"], "aliases": {"best": "m1"}}
    async with opened_world(describe("a", pool=pool, prices=PRICES)) as world:
        usage = {"input_tokens": 10, "output_tokens": 0}
        world.upstreams["a"].always = json_response({"id": "r", "usage": usage})
        await world.ask(post("/v1/responses", {"model": "best", "input": "x"}))
        today = world.server.operators.snapshot()["today"]
    assert today["cost"] == 10 * 2 / 10**6


def test_use_that_has_no_price_costs_null_and_none_costs_nothing() -> None:
    assert Tally().with_cost(has_prices=True)["cost"] == 0
    assert Tally(1, 0, 5).with_cost(has_prices=True)["cost"] is None
    assert Tally(1, 0, 5, cost=0.5).with_cost(has_prices=True)["cost"] == 0.5


def test_a_change_of_prices_does_not_change_what_was_spent() -> None:
    ledger = filled(entry(NOON), price=Price(1, 1, 1))
    ledger.add(entry(NOON), Price(2, 2, 2))
    (tally,) = ledger.hours.values()
    assert tally.cost == pytest.approx(3 * 1100 / 10**6)


def test_more_cached_tokens_than_input_are_no_credit() -> None:
    counts = {"input_tokens": 10, "output_tokens": 0, "cached_tokens": 1000}
    assert Price(5, 1, 0).cost_of(counts) == 10 / 10**6


async def test_keys_and_accounts_that_a_reload_removes_are_forgotten(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("ab")) as world:
        ledger = world.server.shared.ledger
        for key, account in (("laptop", "a"), ("ci", "b")):
            ledger.add(entry(UNIX_START, key=key, account=account))
        without = make_config(describe("a", pool={"keys": {"laptop": KEY}}))
        await world.server.reload(lambda: (without, {}))
        assert [*ledger.days] == [("home", "laptop")]
        assert [*ledger.account_days] == ["a"]
