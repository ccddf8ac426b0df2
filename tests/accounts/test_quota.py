"""Proves that upstreams' quota reports are read, believed if plausible, used and shown.

Method: heads and events are read as values; a `Roster` is given them and asked for its choice and
its views. Only the response of an exhausted pool is tested over the wire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import pooler
from pooler import (
    NEARLY_USED_PERCENT,
    QUOTA_WINDOWS_MAX,
    UNKNOWN_LEFT_PERCENT,
    WINDOW_MINUTES_MAX,
    Choice,
    KeyUse,
    Routing,
    Usage,
    Window,
    read_quota_event,
    read_quota_headers,
    read_usage,
)
from tests.support.memory_sockets import Json, ask_responses
from tests.support.scene import Scene, window
from tests.support.world import UNIX_START, describe, error_response, make_config, opened_world

HOUR: Final = 3600
DAY: Final = 24 * HOUR
PROBE: Final = 900
FIVE_HOURS: Final = 5 * HOUR
WEEK: Final = 7 * DAY
SOON: Final = UNIX_START + HOUR


def head(**fields: Json) -> tuple[tuple[str, str], ...]:
    """Quota fields of the plan: head(primary_used_percent=5, ...)."""
    return tuple((f"x-codex-{name.replace('_', '-')}", str(fields[name])) for name in fields)


################################################################
# WHAT AN UPSTREAM SAYS
################################################################

FULL_HEAD: Final = head(
    primary_used_percent=41.5, primary_window_minutes=300, primary_reset_at=SOON,
    secondary_used_percent=7, secondary_window_minutes=10080, secondary_reset_at=SOON + 9,
)  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param((), [], id="nothing"),
        pytest.param(
            FULL_HEAD,
            [Window("codex", FIVE_HOURS, 41.5, SOON), Window("codex", WEEK, 7, SOON + 9)],
            id="both-windows",
        ),
        pytest.param(
            head(primary_used_percent=3, primary_window_minutes=10080),
            [Window("codex", WEEK, 3, None)],
            id="the-weekly-one-in-the-first-place",
        ),
        pytest.param(head(primary_used_percent=3), [Window("codex", 0, 3, None)], id="bare"),
        pytest.param(head(primary_used_percent=0), [], id="no-data"),
        pytest.param(
            head(primary_used_percent=0, primary_window_minutes=300),
            [Window("codex", FIVE_HOURS, 0, None)],
            id="untouched",
        ),
        pytest.param(
            head(primary_used_percent=0, primary_reset_at=SOON),
            [Window("codex", 0, 0, SOON)],
            id="untouched-with-a-reset-only",
        ),
        pytest.param(head(primary_window_minutes=300, primary_reset_at=SOON), [], id="no-percent"),
        pytest.param(
            head(primary_used_percent=100.1), [Window("codex", 0, 100, None)], id="overrun"
        ),
        pytest.param(head(primary_used_percent=-0.1, primary_reset_at=SOON), [], id="negative"),
        pytest.param(head(primary_used_percent="nan", primary_reset_at=SOON), [], id="nan"),
        pytest.param(head(primary_used_percent="inf", primary_reset_at=SOON), [], id="infinite"),
        pytest.param(head(primary_used_percent="x", primary_reset_at=SOON), [], id="words"),
        pytest.param(
            head(primary_used_percent=5, primary_window_minutes=WINDOW_MINUTES_MAX),
            [Window("codex", WINDOW_MINUTES_MAX * 60, 5, None)],
            id="the-longest-window",
        ),
        pytest.param(
            head(primary_used_percent=5, primary_window_minutes=WINDOW_MINUTES_MAX + 1),
            [Window("codex", 0, 5, None)],
            id="one-past-it-is-no-length",
        ),
        pytest.param(
            head(primary_used_percent=5, primary_window_minutes=-300, primary_reset_at="nan"),
            [Window("codex", 0, 5, None)],
            id="nonsense-beside-a-percent",
        ),
        pytest.param(
            head(bengalfox_primary_used_percent=9, bengalfox_primary_window_minutes=300),
            [Window("codex_bengalfox", FIVE_HOURS, 9, None)],
            id="another-limit",
        ),
        pytest.param(
            (("x-ratelimit-remaining-tokens", "5"), ("x--primary-used-percent", "5")),
            [],
            id="other-fields",
        ),
    ],
)
def test_windows_are_read_from_headers(
    headers: Sequence[tuple[str, str]], expected: Sequence[Window]
) -> None:
    assert read_quota_headers(dict(headers)) == expected


PRIMARY: Final = {"used_percent": 62, "window_minutes": 300, "reset_at": SOON}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        pytest.param(
            {"rate_limits": {"primary": PRIMARY, "secondary": None}},
            [Window("codex", FIVE_HOURS, 62, SOON)],
            id="one-window",
        ),
        pytest.param(
            {"rate_limits": {"secondary": PRIMARY | {"window_minutes": 10080}}},
            [Window("codex", WEEK, 62, SOON)],
            id="the-second-alone",
        ),
        pytest.param(
            {
                "limit_name": "x",
                "metered_limit_name": "Codex-Bengalfox",
                "rate_limits": {"primary": PRIMARY},
            },
            [Window("codex_bengalfox", FIVE_HOURS, 62, SOON, "x")],
            id="another-limit",
        ),
        pytest.param({"rate_limits": {"primary": {"used_percent": 0}}}, [], id="no-data"),
        pytest.param({"rate_limits": {"primary": {"used_percent": [1]}}}, [], id="a-list"),
        pytest.param({"rate_limits": {"primary": [PRIMARY]}}, [], id="not-an-object"),
        pytest.param({"rate_limits": [PRIMARY]}, [], id="a-list-of-windows"),
        pytest.param({}, [], id="nothing"),
        pytest.param({"limit_name": 7, "rate_limits": {"primary": PRIMARY}}, [], id="odd-name"),
        pytest.param(
            {"limit_name": "a b", "rate_limits": {"primary": PRIMARY}}, [], id="unfit-name"
        ),
        pytest.param(
            {"limit_name": "a" * 65, "rate_limits": {"primary": PRIMARY}}, [], id="long-name"
        ),
    ],
)
def test_windows_are_read_from_events(event: Json, expected: Sequence[Window]) -> None:
    assert read_quota_event({"type": "codex.rate_limits", **event}) == expected


def test_a_nonsensical_token_count_is_no_count() -> None:
    usage = {"input_tokens": 10**12, "output_tokens": 10**12 + 1}
    assert read_usage(usage) == Usage(10**12, 0)


################################################################
# EVIDENCE AND RESTS
################################################################


@pytest.mark.parametrize(
    ("windows", "rest"),
    [
        pytest.param([window(99.9)], 0, id="nearly-used-up"),
        pytest.param([window(100)], HOUR, id="used-up"),
        pytest.param([window(100, HOUR), window(100, DAY, WEEK)], DAY, id="both-used-up"),
        pytest.param([window(3, HOUR), window(100, DAY, WEEK)], DAY, id="the-week-used-up"),
        pytest.param([window(100), window(3)], HOUR, id="the-fuller-of-two-of-a-length"),
        pytest.param([window(100, length=0)], HOUR, id="of-an-untold-length"),
        pytest.param([window(100, None)], 0, id="no-reset"),
        pytest.param([window(100, 0)], 0, id="reset-now"),
        pytest.param([window(100, -1)], 0, id="reset-in-the-past"),
        pytest.param([window(100, 32 * DAY)], 32 * DAY, id="the-latest-plausible-reset"),
        pytest.param([window(100, 32 * DAY + 1)], 0, id="one-past-it"),
        pytest.param([window(100, family="codex_bengalfox")], 0, id="of-one-model-only"),
        pytest.param([], 0, id="nothing"),
    ],
)
def test_a_used_up_window_of_the_plan_begins_a_cooldown(
    windows: Sequence[Window], rest: float
) -> None:
    scene = Scene("ab", pool={"routing": "in_order"}, limits={"untried_seconds_max": DAY})
    scene.tell("a", *windows)
    assert scene.roster.health["a"].plan.until == rest
    if rest:
        assert scene.order(now=min(rest, DAY) - 1) == "b"
    assert scene.order(now=rest) == "ab"


def test_a_cooldown_by_evidence_is_tried_like_any_other() -> None:
    scene = Scene("ab")
    scene.tell("a", window(100, DAY))
    assert scene.order(now=PROBE - 1) == "b"
    assert scene.order(now=PROBE) == "ab"
    scene.serves("a", scene.call(), now=PROBE)
    assert set(scene.order(now=PROBE + 1)) == {"a", "b"}


def test_no_evidence_ends_or_shortens_a_cooldown() -> None:
    scene = Scene("ab")
    lease = scene.roster.begin(scene.account("a"), scene.call(), 0)
    scene.answers("a", 429, now=1, seconds=HOUR)
    scene.tell("a", window(10), now=2)
    assert scene.order(now=2) == "b"
    scene.tell("a", window(100, 60), now=3)
    assert scene.order(now=70) == "b"
    scene.roster.note_success(lease, 2)  # it began before the rest
    assert scene.order(now=71) == "b"


@pytest.mark.parametrize("seconds", [0, 1])
def test_the_response_that_uses_up_the_plan_does_not_end_its_cooldown(seconds: float) -> None:
    scene = Scene("ab")
    lease = scene.roster.begin(scene.account("a"), scene.call(), 0)
    scene.tell("a", window(100), now=seconds)
    scene.roster.note_success(lease, 2)
    assert scene.order(now=2) == "b"


def test_an_account_that_serves_although_used_up_cools_down_once_for_each_window() -> None:
    scene = Scene("ab")
    scene.tell("a", window(100, DAY))
    for now in (PROBE, PROBE + 1):
        lease = scene.roster.begin(scene.account("a"), scene.call(), now)
        scene.tell("a", window(100, DAY), now=now + 0.5)
        scene.roster.note_success(lease, now + 1)
        scene.roster.end(lease)
        assert scene.order(now=now + 0.5) == "ba"  # it may, but the other is not nearly used up
    scene.tell("a", window(100, 2 * DAY), now=DAY)  # the next window
    assert scene.order(now=DAY) == "b"


def test_a_window_that_is_used_up_again_begins_another_cooldown() -> None:
    scene = Scene("ab")
    scene.tell("a", window(100, DAY))
    scene.serves("a", scene.call(), now=PROBE)
    scene.tell("a", window(5, DAY), now=PROBE)  # the plan was topped up
    scene.tell("a", window(100, DAY), now=PROBE + 1)
    assert scene.order(now=PROBE + 1) == "b"


def test_a_reload_keeps_evidence_except_of_a_removed_account() -> None:
    scene = Scene("ab")
    scene.use(a=97)
    scene.roster.reload(scene.config)
    assert scene.left("a") == 3
    scene.roster.reload(make_config(describe("b")))
    scene.use(a=97)
    assert set(scene.roster.health) == {"b"}
    scene.roster.reload(scene.config)
    assert scene.left("a") == UNKNOWN_LEFT_PERCENT


################################################################
# HOW MUCH IS LEFT
################################################################


@pytest.mark.parametrize(
    ("windows", "now", "left"),
    [
        pytest.param([], 0, UNKNOWN_LEFT_PERCENT, id="unknown"),
        pytest.param([window(0)], 0, 100, id="untouched"),
        pytest.param([window(30), window(80, DAY, WEEK)], 0, 20, id="the-fullest-counts"),
        pytest.param([window(30), window(80, DAY, WEEK)], DAY, UNKNOWN_LEFT_PERCENT, id="over"),
        pytest.param([window(80), window(30, DAY, WEEK)], HOUR, 70, id="one-of-two-is-over"),
        pytest.param([window(80, family="codex_bengalfox")], 0, UNKNOWN_LEFT_PERCENT, id="other"),
        pytest.param([window(80), window(30)], 0, 20, id="the-fuller-of-two-of-a-length"),
        pytest.param([window(80, None)], FIVE_HOURS - 1, 20, id="no-reset-lasts-its-length"),
        pytest.param([window(80, None)], FIVE_HOURS, UNKNOWN_LEFT_PERCENT, id="and-no-longer"),
        pytest.param([window(80, -5)], FIVE_HOURS - 1, 20, id="an-implausible-reset-likewise"),
        pytest.param([window(80, None, 0)], 0, UNKNOWN_LEFT_PERCENT, id="neither-is-nothing"),
    ],
)
def test_the_fullest_window_that_still_runs_says_what_is_left(
    windows: Sequence[Window], now: float, left: float
) -> None:
    scene = Scene()
    scene.tell("a", *windows)
    assert scene.left("a", now) == left


def test_the_latest_word_on_a_limit_replaces_all_earlier_ones_on_it() -> None:
    scene = Scene()
    scene.tell("a", window(90, DAY, WEEK), window(4, family="codex_bengalfox"))
    scene.tell("a", window(20))  # another plan, without a weekly window
    assert scene.left("a") == 80
    assert len(scene.roster.health["a"].quota.windows) == 2


def test_only_so_many_windows_are_kept_the_latest_ones() -> None:
    scene = Scene()
    for number in range(QUOTA_WINDOWS_MAX):
        scene.tell("a", window(5, family=f"f{number}"))
    scene.use(a=50)
    assert len(scene.roster.health["a"].quota.windows) == QUOTA_WINDOWS_MAX
    assert scene.left("a") == 50


################################################################
# THE CHOICE BY QUOTA
################################################################

QUOTA_FIRST: Final = {"routing": "quota_first"}
EDGE: Final = NEARLY_USED_PERCENT


@pytest.mark.parametrize("session", [None, "s"])
@pytest.mark.parametrize(
    ("used", "busy", "expected"),
    [
        pytest.param({"a": 50, "b": 20, "c": 80}, "", "bac", id="most-left-first"),
        pytest.param({"a": 50, "b": 20, "c": 80}, "bbb", "bac", id="whatever-the-load"),
        pytest.param({"a": 0, "c": 2}, "", "abc", id="unknown-after-the-untouched"),
        pytest.param({"a": 40, "b": 40, "c": 40}, "aab", "cba", id="ties-by-load"),
        pytest.param({"a": 97, "b": 96, "c": 99}, "", "bac", id="all-nearly-used"),
    ],
)
def test_quota_first_takes_the_account_with_most_left(
    used: Mapping[str, float], busy: str, expected: str, session: str | None
) -> None:
    scene = Scene(pool=QUOTA_FIRST)
    scene.use(**used)
    for name in busy:
        scene.hang_on(name)
    assert scene.order(scene.call(session)) == expected


def test_quota_first_breaks_full_ties_like_the_default() -> None:
    one, other = Scene(pool=QUOTA_FIRST), Scene()
    for number in range(30):
        session = f"s{number}"
        assert one.order(one.call(session)) == other.order(other.call(session))


@pytest.mark.parametrize("session", [None, "s"])
@pytest.mark.parametrize(
    ("accounts", "used", "last"),
    [
        pytest.param({}, {"a": EDGE - 0.1}, "", id="below-the-edge"),
        pytest.param({}, {"a": EDGE}, "a", id="at-the-edge"),
        pytest.param({}, {"a": EDGE, "b": EDGE}, "ab", id="two-of-three"),
        pytest.param({}, {"a": EDGE, "b": EDGE, "c": EDGE}, "", id="all"),
        pytest.param({"c": {"priority": 1}}, {"a": 99}, "ac", id="before-any-reserve"),
        pytest.param(
            {"c": {"priority": 1}}, {"a": 99, "b": 99}, "c", id="no-reserve-for-a-used-priority"
        ),
    ],
)
def test_new_sessions_avoid_nearly_used_accounts_of_their_priority(
    accounts: Mapping[str, Json], used: Mapping[str, float], last: str, session: str | None
) -> None:
    plain, scene = Scene(accounts=accounts), Scene(accounts=accounts)
    scene.use(**used)
    order = plain.order(plain.call(session))
    expected = "".join(name for name in order if name not in last)
    expected += "".join(name for name in order if name in last)
    assert scene.order(scene.call(session)) == expected


@pytest.mark.parametrize("routing", [*Routing])
def test_a_pinned_session_stays_until_its_account_is_used_up(routing: str) -> None:
    scene = Scene(pool={"routing": routing})
    scene.serves("b", scene.call("s"))
    scene.use(a=1, b=99.9, c=1)
    assert scene.order(scene.call("s"))[0] == "b"
    scene.tell("b", window(100))
    assert "b" not in scene.order(scene.call("s"))


@pytest.mark.parametrize("routing", Routing)
def test_a_strict_order_is_not_changed_by_what_is_left(routing: str) -> None:
    priorities = {name: {"priority": at} for at, name in enumerate("abc")}
    scene = Scene(accounts=priorities, pool={"routing": routing})
    scene.use(a=99, b=50)
    assert scene.order() == "abc"


################################################################
# NOT EVERY ACCOUNT WAS ASKED
################################################################


async def test_a_limit_is_reported_only_when_no_account_is_left(autojump_clock: MockClock) -> None:
    async with opened_world(describe("abcd")) as world:
        for name in "abcd":
            world.upstreams[name].always = error_response(
                429, "usage_limit_reached", resets_in_seconds=500
            )
        first = await world.ask(ask_responses(stream=False))
        assert (first.status, first.error["code"]) == (503, "pool_busy")
        assert first.header("retry-after") == "2"
        assert first.header("x-should-retry") is None
        assert "resets_at" not in first.error
        assert len(world.asked) == 3
        second = await world.ask(ask_responses(stream=False))  # the fourth is limited, too
        assert (second.status, second.error["code"]) == (429, "usage_limit_reached")
        assert second.error["resets_in_seconds"] == 500
        assert len(world.asked) == 4


@pytest.mark.parametrize(
    ("answers", "tried", "expected"),
    [
        pytest.param("abc", "abc", "pool_busy", id="one-was-not-asked"),
        pytest.param("abcd", "abc", "usage_limit_reached", id="it-rests-too"),
        pytest.param("abc", "abcd", "usage_limit_reached", id="it-failed-otherwise"),
    ],
)
def test_an_account_that_was_not_tried_changes_the_error(
    answers: str, tried: str, expected: str
) -> None:
    scene = Scene("abcd")
    for name in answers:
        scene.answers(name, 429, seconds=50)
    refusal = Choice(scene.roster, scene.call(), tried, 1).refusal(UNIX_START + 1)
    assert refusal.code == expected


################################################################
# WHAT IS SHOWN
################################################################


def shown(used: int, length: int, resets_in: int) -> dict[str, int]:
    return {
        "used_percent": used,
        "limit_window_seconds": length,
        "reset_after_seconds": resets_in,
        "reset_at": UNIX_START + resets_in,
    }


@pytest.mark.parametrize(
    ("told", "allowed", "primary", "secondary"),
    [
        pytest.param({}, True, None, None, id="nothing-is-known"),
        pytest.param({"a": [window(50, length=0)]}, True, None, None, id="of-an-untold-length"),
        pytest.param(
            {"a": [window(70, DAY, WEEK), window(20)]},
            True,
            shown(20, FIVE_HOURS, HOUR),
            shown(70, WEEK, DAY),
            id="by-length",
        ),
        pytest.param(
            {"a": [window(70, DAY, WEEK)]}, True, shown(70, WEEK, DAY), None, id="one-window"
        ),
        pytest.param(
            {"a": [window(70), window(9, DAY, WEEK)], "b": [window(20), window(50, DAY, WEEK)]},
            True,
            shown(20, FIVE_HOURS, HOUR),
            shown(9, WEEK, DAY),
            id="the-best-of-each-length",
        ),
        pytest.param(
            {"a": [window(100), window(1, DAY, WEEK)], "b": [window(90, 60.5)]},
            True,
            shown(90, FIVE_HOURS, 61),
            None,
            id="not-of-those-that-rest",
        ),
        pytest.param(
            {
                "a": [window(100, 600), window(5, DAY, WEEK)],
                "b": [window(100, 400)],
                "c": [window(100, 500)],
            },
            False,
            shown(100, FIVE_HOURS, 400),
            None,
            id="all-rest-the-first-one-back",
        ),
        pytest.param({"a": [window(99.9)]}, True, shown(99, FIVE_HOURS, HOUR), None, id="floored"),
        pytest.param(
            {"a": [window(5, family="codex_bengalfox")]}, True, None, None, id="of-the-plan-only"
        ),
    ],
)
def test_codex_is_shown_the_pool_as_one_account(
    told: Mapping[str, Sequence[Window]], allowed: bool, primary: Json, secondary: Json
) -> None:
    scene = Scene()
    for name, windows in told.items():
        scene.tell(name, *windows)
    assert scene.codex_usage() == {
        "plan_type": "guest",
        "rate_limit": {
            "allowed": allowed,
            "limit_reached": not allowed,
            "primary_window": primary,
            "secondary_window": secondary,
        },
    }


def test_a_paused_account_is_not_in_the_pooled_view() -> None:
    scene = Scene("ab", accounts={"b": {"paused": True}})
    scene.use(a=50, b=1)
    assert scene.codex_usage()["rate_limit"]["primary_window"]["used_percent"] == 50
    scene.tell("a", window(100))
    assert not scene.codex_usage()["rate_limit"]["allowed"]


def test_a_broken_pool_is_not_called_exhausted() -> None:
    scene = Scene("ab")
    scene.answers("a", 401)
    scene.answers("b", 401)
    assert scene.codex_usage()["rate_limit"]["allowed"]
    scene.answers("b", 429, seconds=50)
    assert not scene.codex_usage(now=49)["rate_limit"]["allowed"]
    assert scene.codex_usage(now=50)["rate_limit"]["allowed"]


def limit(kind: str, name: str | None, most: int, used: int, reset: str | None) -> dict[str, Json]:
    return {
        "limit_type": kind,
        "limit_window": name,
        "max_value": most,
        "current_value": used,
        "remaining_value": max(0, most - used),
        "model_filter": None,
        "reset_at": reset,
        "source": "upstream_usage" if kind == "percent" else "pool_key",
    }


def test_a_key_is_shown_its_use_and_what_is_left_of_the_pool() -> None:
    # UNIX_START is 2027-01-15 08:00:00 UTC.
    key = {"key": "cp-a-key-with-limits-01", "requests_per_minute": 3, "tokens_per_day": 60}
    scene = Scene("ab", pool={"keys": {"laptop": key | {"concurrent": 5}}})
    scene.tell("b", window(12.5), window(40, DAY, WEEK))
    use = KeyUse()
    for now in (0.0, 30.0):
        use.admit(scene.key(), now, UNIX_START + now)
        use.charge(Usage(30, 4, 20, 1)._asdict(), UNIX_START + now)
    use.in_flight_count -= 1
    day_end = "2027-01-16T00:00:00+00:00"
    assert scene.key_usage(use, now=60) == {
        "request_count": 2,
        "total_tokens": 68,
        "cached_input_tokens": 40,
        "limits": [
            limit("requests", "1m", 3, 1, "2027-01-15T08:01:30+00:00"),
            limit("total_tokens", "1d", 60, 68, day_end),
            limit("concurrent_requests", None, 5, 1, None),
        ],
        "upstream_limits": [
            limit("percent", "5h", 100, 12, "2027-01-15T09:00:00+00:00"),
            limit("percent", "7d", 100, 40, "2027-01-16T08:00:00+00:00"),
        ],
    }
    later = scene.key_usage(use, now=DAY)
    assert (later["request_count"], later["total_tokens"]) == (2, 68)
    assert [row["current_value"] for row in later["limits"]] == [0, 0, 1]
    assert later["limits"][0]["reset_at"] is None


def test_a_key_without_limits_is_shown_none_but_its_streams() -> None:
    view = Scene("a").key_usage()
    assert [row["limit_type"] for row in view["limits"]] == ["concurrent_requests"]
    assert view["upstream_limits"] == []


@pytest.mark.parametrize(
    ("minutes", "name"), [(1, "1m"), (90, "90m"), (300, "5h"), (1440, "1d"), (10080, "7d")]
)
def test_a_window_is_named_by_its_length(minutes: int, name: str) -> None:
    scene = Scene("a")
    scene.tell("a", window(1, length=minutes * 60))
    assert [row["limit_window"] for row in scene.key_usage()["upstream_limits"]] == [name]


def test_the_views_name_no_account() -> None:
    scene = Scene("Q")
    scene.tell("Q", window(7))
    assert "Q" not in json.dumps([scene.key_usage(), scene.codex_usage()])


################################################################
# ANY EVIDENCE
################################################################

PARTS: Final = ("used-percent", "window-minutes", "reset-at")
odd = st.none() | st.text("0123456789.e-nax", max_size=14) | st.floats().map(repr)
percents = odd | st.sampled_from(["0", "95", "100", "100", "101", "-1", "nan", "1e999"])
minutes = odd | st.sampled_from(["300", "10080", "0", "1e11"])
resets = odd | st.floats(-10, 9 * DAY).map(lambda seconds: repr(UNIX_START + seconds))
limits = st.sampled_from(["codex", "codex", "codex-bengalfox", "a" * 64])
positions = st.sampled_from(["primary", "secondary"])
heads = st.lists(st.tuples(limits, positions, percents, minutes, resets), max_size=12)
odd_json = st.recursive(
    odd | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(odd, inner, max_size=2),
    max_leaves=4,
)


def as_headers(parts: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"x-{limit}-{position}-{part}", value)
        for limit, position, *values in parts
        for part, value in zip(PARTS, values, strict=True)
        if value is not None
    )


def as_event(parts: Sequence[Any], strange: Json) -> dict[str, Json]:
    rates = {
        position: dict(zip((part.replace("-", "_") for part in PARTS), values, strict=True))
        for _, position, *values in parts[:-1]
    } | {position: strange for _, position, *_ in parts[-1:]}
    return {"rate_limits": rates, "limit_name": parts[0][0] if parts else strange}


@given(
    said=st.lists(st.tuples(st.booleans(), heads, odd_json), max_size=4),
    routing=st.sampled_from(["sticky", "quota_first"]),
)
def test_no_account_cools_down_too_long_or_serves_while_it_cools_down(
    said: Sequence[tuple[bool, Sequence[Any], Json]], routing: str
) -> None:
    scene = Scene("ab", pool={"routing": routing})
    health = scene.roster.health["a"]
    for now, (is_head, parts, strange) in enumerate(said):
        read_quota_event({"rate_limits": strange, "limit_name": strange})
        event = as_event(parts, strange)
        found = read_quota_headers(dict(as_headers(parts))) if is_head else read_quota_event(event)
        assert all(0 <= one.used_percent <= 100 for one in found)
        scene.tell("a", *found, now=now)
        assert health.plan.until <= now + pooler.RESET_SECONDS_MAX
        assert len(health.quota.windows) <= QUOTA_WINDOWS_MAX
        assert 0 <= scene.left("a", now) <= 100
        assert ("a" in scene.order(now=now)) == (now >= health.plan.until)
        view = scene.codex_usage(now)
        assert json.loads(json.dumps(view, allow_nan=False)) == view
        assert json.dumps(scene.key_usage(now=now), allow_nan=False)
        for shown_window in filter(None, list(view["rate_limit"].values())[2:]):
            assert all(isinstance(number, int) for number in shown_window.values())
            assert shown_window["reset_after_seconds"] > 0


@given(used=st.lists(st.floats(0, 99.9), min_size=3, max_size=3), session=st.text(max_size=3))
def test_quota_first_never_prefers_an_account_with_less_left(
    used: Sequence[float], session: str
) -> None:
    scene = Scene(pool=QUOTA_FIRST)
    scene.use(**dict(zip("abc", used, strict=True)))
    left = [scene.left(name) for name in scene.order(scene.call(prompt_cache_key=session))]
    assert len(left) == 3
    assert left == sorted(left, reverse=True)


def test_a_pool_is_limited_though_another_account_has_no_login() -> None:
    scene = Scene("ab")
    scene.tell("a", window(100, DAY))
    assert scene.codex_usage()["rate_limit"]["allowed"] is True
    scene.roster.health["b"].has_login = False
    assert scene.codex_usage()["rate_limit"]["allowed"] is False


def test_a_moment_without_a_zone_is_one_of_utc() -> None:
    assert pooler._moment_of("2027-01-15T08:00:00") == pooler._moment_of("2027-01-15T08:00:00Z")
    assert pooler._moment_of("tomorrow") is None
