"""Proves that each request goes to the right account, and to none that is cooling down.

Method: a `Roster` is given values (what upstreams responded, and when) and asked for its choice;
nothing waits and no byte is sent.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import pooler
from pooler import (
    MODEL_BLOCKS_MAX,
    UNKNOWN_LEFT_PERCENT,
    Action,
    Choice,
    Effect,
    Fault,
    PoolerError,
    Routing,
    Status,
    Window,
    classify_event,
    classify_response,
    standing_of,
)
from tests.support.memory_sockets import Json, post
from tests.support.scene import Scene, window
from tests.support.world import UNIX_START, describe, make_config, opened_world

HOUR: Final = 3600.0
RETRY: Final = 900.0
JSON_HEAD: Final = ("content-type", "application/json")
NO_MODEL: Final = b'{"error": {"message": "x", "code": "model_not_found", "param": null}}'
# The headers that can name a session, the strongest first (F74).
SESSION_HEADERS: Final = (
    "x-codex-window-id", "x-codex-session-id", "session-id", "x-session-id",
    "x-session-affinity", "session_id", "thread-id", "x-codex-conversation-id",
    "conversation_id",
)  # fmt: skip


################################################################
# ONE CHOICE
################################################################

RESERVE: Final = {"a": {"priority": 1}}


@pytest.mark.parametrize("odd", [["a"], {"a": 1}, 7, 1.5, True, None, ""])
def test_what_is_no_text_names_no_session(odd: Json) -> None:
    """Formatting it as text may take long: it can be as large as a body."""
    called = Scene("a").call(prompt_cache_key=odd, previous_response_id=odd)
    assert (called.session, called.response) == (None, None)
    assert Scene("a").call(prompt_cache_key="a").session


@pytest.mark.parametrize(
    ("described", "answers", "now", "expected"),
    [
        pytest.param({}, [], 0, "abc", id="in-the-pool's-order"),
        pytest.param({"accounts": RESERVE}, [], 0, "bca", id="a-reserve-is-last"),
        pytest.param({"accounts": {"c": {"priority": -1}}}, [], 0, "cab", id="negative-priority"),
        pytest.param({"accounts": {"b": {"paused": True}}}, [], 0, "ac", id="paused"),
        pytest.param({"accounts": {"b": {"models": ["m2"]}}}, [], 0, "ac", id="offers-another"),
        pytest.param({}, [("a", 429, 50)], 49.9, "bc", id="limited"),
        pytest.param({}, [("a", 429, 50)], 50, "abc", id="limit-ends-at-its-reset"),
        pytest.param({}, [("a", 429, 0)], 29.9, "bc", id="no-hint-rests-thirty-seconds"),
        pytest.param({}, [("a", 429, 0)], 30, "abc", id="no-hint-and-not-longer"),
        pytest.param({}, [("a", 429, 32 * 24 * HOUR)], 899, "bc", id="the-longest-plausible-rest"),
        pytest.param({}, [("a", 429, 32 * 24 * HOUR + 10)], 30, "abc", id="one-past-it-is-no-hint"),
        pytest.param({}, [("b", 429, HOUR)], 899.9, "ac", id="not-asked-before-15-minutes"),
        pytest.param({}, [("b", 429, HOUR)], 900, "bac", id="asked-again-after-15-minutes"),
        pytest.param({}, [("b", 401, 0)], 899.9, "ac", id="refused"),
        pytest.param({}, [("b", 401, 0)], 900, "bac", id="refused-is-asked-again"),
        pytest.param({}, [("b", 402, 0)], 899.9, "ac", id="not-paid"),
        pytest.param(
            {"accounts": RESERVE}, [("a", 401, 0)], 900, "bca", id="asked-again-within-its-priority"
        ),
        pytest.param({}, [("a", 500, 0)], 59.9, "bca", id="demoted-is-last"),
        pytest.param({}, [("a", 500, 0)], 60, "abc", id="demoted-for-a-minute"),
        pytest.param({}, [("a", 403, 0)], 0, "bca", id="forbidden-once-is-demoted"),
        pytest.param(
            {"accounts": {"b": {"priority": 1}, "c": {"priority": 1}}},
            [("a", 500, 0)],
            0,
            "abc",
            id="demoted-before-any-reserve",
        ),
        pytest.param({}, [("a", 404, 0)], HOUR - 1, "bc", id="lacks-the-model"),
        pytest.param({}, [("a", 400, 0)], HOUR, "abc", id="lacks-it-for-an-hour"),
        pytest.param(
            {}, [("a", 429, 50), ("b", 401, 0), ("c", 500, 0)], 1, "c", id="the-last-one-left"
        ),
        pytest.param({}, [(name, 429, 50) for name in "abc"], 1, "", id="nobody-left"),
        pytest.param(
            {"pool": {"routing": "in_order"}}, [("a", 500, 0)], 0, "abc", id="priority-is-strict"
        ),
    ],
)
def test_the_right_account_is_chosen(
    described: Mapping[str, Any],
    answers: Sequence[tuple[str, int, float]],
    now: float,
    expected: str,
) -> None:
    scene = Scene(**described)
    for name, status, seconds in answers:
        scene.answers(name, status, seconds=seconds)
    assert scene.order(now=now) == expected


@pytest.mark.parametrize("status", [400, 404, 408, 409, 413, 422, 501])
def test_a_fault_of_the_request_is_not_the_account_s(status: int) -> None:
    scene = Scene()
    body = b'{"error": {"message": "no", "code": "bad", "param": "input"}}'
    fault = classify_response(status, dict([JSON_HEAD]), body, UNIX_START)
    scene.roster.note_fault(scene.account("a"), fault, "m1", 0)
    assert scene.order() == "abc"


def test_accounts_already_tried_are_not_offered_again() -> None:
    assert Scene().order(tried="b") == "ac"


def test_a_model_that_one_account_lacks_blocks_no_other_model() -> None:
    scene = Scene()
    scene.answers("a", 404)
    assert scene.order(scene.call(model="m1")) == "bc"
    assert scene.order(scene.call(model="m2")) == "abc"


def test_models_that_a_client_makes_up_end_no_limit_and_no_demotion() -> None:
    scene = Scene()
    error = PoolerError("no_usable_account")
    limited = Fault("429", Action.NEXT, Effect.MODEL_LIMITED, error, HOUR)
    scene.roster.note_fault(scene.account("a"), limited, "m1", 0)
    scene.answers("b", 500)
    for number in range(MODEL_BLOCKS_MAX):
        for name in "ab":
            scene.roster.note_fault(scene.account(name), scene.fault(404), f"x{number}", 0)
    assert scene.order(now=1) == "cb"


def test_an_alias_is_looked_for_under_its_real_name() -> None:
    accounts = {"a": {"models": ["m1"]}, "b": {"models": ["m2"]}}
    scene = Scene("ab", accounts=accounts, pool={"aliases": {"small": "m2"}})
    assert scene.order(scene.call(model="small")) == "b"


def test_without_a_session_the_least_busy_and_least_recent_is_first() -> None:
    scene = Scene()
    scene.hang_on("a", now=1)
    assert scene.order(now=2) == "bca"
    scene.hang_on("b", now=2)
    scene.serves("c", scene.call(), now=3)
    assert scene.order(now=4) == "cab"


def test_without_sessions_accounts_take_turns_also_across_models_and_keys() -> None:
    scene = Scene()
    firsts = ""
    for number in range(7):
        call = scene.call(model=f"m{1 + number % 2}", key="ci" if number % 3 else "laptop")
        firsts += scene.order(call)[0]
        scene.serves(firsts[-1], call, now=number)
    assert firsts == "abcabca"


@pytest.mark.parametrize("routing", [*Routing])
def test_every_routing_honours_pins_priority_and_rests(routing: str) -> None:
    scene = Scene(pool={"routing": routing}, accounts={"c": {"priority": 1}})
    pinned = scene.call("s")
    scene.serves("c", pinned)
    assert scene.order(pinned)[0] == "c"
    assert scene.order(scene.call("new"))[-1] == "c"
    scene.answers("a", 429, seconds=50)
    assert scene.order(scene.call("new"), now=1) == "bc"


def test_priorities_keep_their_order_whatever_the_load() -> None:
    scene = Scene(pool={"routing": "in_order"})
    for session in ("x", "y", "z"):
        scene.hang_on("a")
        assert scene.order(scene.call(session)) == "abc"


def test_quota_first_without_evidence_prefers_the_least_busy() -> None:
    scene = Scene(pool={"routing": "quota_first"})
    scene.hang_on("a")
    scene.hang_on("b")
    assert scene.order(scene.call("s"))[0] == "c"


################################################################
# SESSIONS
################################################################


def test_replicas_without_shared_state_agree_on_every_new_session() -> None:
    one, other = Scene("abc"), Scene("abc", pool={"accounts": ["c", "a", "b"]})
    other.hang_on("a")
    counts: Counter[str] = Counter()
    for number in range(300):
        order = one.order(one.call(f"s{number}"))
        assert order == other.order(other.call(f"s{number}"))
        counts[order[0]] += 1
    assert min(counts.values()) > 70


def test_a_cooldown_moves_only_new_sessions_of_that_account() -> None:
    scene = Scene()
    calls = [scene.call(f"s{number}") for number in range(60)]
    before = [scene.order(call) for call in calls]
    scene.answers("b", 429, seconds=50)
    after = [scene.order(call, now=1) for call in calls]
    assert after == [order.replace("b", "") for order in before]


@pytest.mark.parametrize(
    ("stronger", "weaker"),
    [
        pytest.param(first, second, id=f"{first}-before-{second}")
        for first, second in itertools.pairwise(SESSION_HEADERS)
    ],
)
def test_the_stronger_header_names_the_session(stronger: str, weaker: str) -> None:
    scene = Scene()
    both = scene.call(headers=[(weaker, "w"), (stronger, "s")], prompt_cache_key="p")
    assert both.session == scene.call(headers=[(stronger, "s")]).session
    assert both.session != scene.call(headers=[(weaker, "w")]).session


def test_the_cache_key_names_the_session_where_no_header_does() -> None:
    scene = Scene()
    cached = scene.call(prompt_cache_key="p").session
    assert cached is not None
    assert scene.call(headers=[("session-id", "")], prompt_cache_key="p").session == cached
    assert scene.call(headers=[("conversation_id", "h")], prompt_cache_key="p").session != cached
    assert scene.call(headers=[("user-agent", "x"), ("x-request-id", "y")]).session is None


def test_only_the_first_256_characters_of_a_session_count() -> None:
    scene = Scene()
    assert scene.call("s" * 256 + "x").session == scene.call("s" * 256 + "y").session
    assert scene.call("s" * 255 + "x").session != scene.call("s" * 255 + "y").session


def test_sessions_of_other_keys_and_pools_are_other_sessions() -> None:
    described = describe("ab")
    described["pools"]["away"] = {"accounts": ["a", "b"], "keys": {"laptop": "cp-third-key-01234"}}
    scene = Scene("ab")
    scene.config = make_config(described)
    found = {
        scene.call("s").session,
        scene.call("s", key="ci").session,
        scene.call("s", pool="away").session,
    }
    assert len(found) == 3
    assert scene.call("s").session == scene.call("s", model="m2").session


def test_a_session_stays_on_its_account_when_a_better_one_is_back() -> None:
    scene = Scene("ab", accounts={"b": {"priority": 1}})
    call = scene.call("s")
    scene.answers("a", 429, seconds=10)
    scene.serves(scene.order(call, now=1)[0], call, now=1)
    assert scene.order(call, now=11) == "ba"
    assert scene.order(scene.call("t"), now=11) == "ab"


def test_a_session_moves_for_good_when_its_account_cannot_serve() -> None:
    scene = Scene("ab")
    call = scene.call("s")
    scene.serves("a", call)
    scene.answers("a", 429, now=1, seconds=10)
    scene.serves("b", call, now=2)
    assert scene.order(call, now=20) == "ba"


def test_a_session_comes_back_to_an_account_that_was_only_busy() -> None:
    scene = Scene("ab")
    call = scene.call("s")
    scene.serves("a", call)
    scene.hang_on("a")
    scene.serves("b", call)
    assert scene.order(call) == "ab"


def test_a_request_for_a_model_of_another_account_does_not_move_the_session() -> None:
    accounts = {"a": {"models": ["m1"]}, "b": {"models": ["m1"], "priority": 1}}
    scene = Scene(accounts=accounts | {"c": {"models": ["m2"]}})
    scene.serves("b", scene.call("s"))  # while a rested
    title = scene.call("s", model="m2")
    assert scene.order(title) == "c"
    scene.serves("c", title)
    assert scene.order(scene.call("s")) == "ba"


def test_the_least_recently_used_session_is_forgotten() -> None:
    scene = Scene("ab", limits={"pins_max": 2}, accounts={"b": {"priority": 1}})
    for session in ("x", "y", "x", "z"):
        scene.serves("b", scene.call(session))
    firsts = {session: scene.order(scene.call(session))[0] for session in "xyz"}
    assert firsts == {"x": "b", "y": "a", "z": "b"}
    assert len(scene.roster.sessions.pins) == 2


def test_a_session_is_kept_for_24_idle_hours() -> None:
    scene = Scene("ab", accounts={"b": {"priority": 1}})
    call = scene.call("s")
    scene.serves("b", call)
    assert scene.order(call, now=24 * HOUR) == "ba"
    assert scene.order(call, now=24 * HOUR + 1) == "ab"
    scene.serves("b", call, now=24 * HOUR)
    assert scene.order(call, now=48 * HOUR) == "ba"


def test_a_stored_response_binds_its_key_to_its_account() -> None:
    scene = Scene()
    scene.roster.sessions.note_creator(scene.account("c"), scene.call(), "response", "resp_9")
    assert scene.order(scene.call(previous_response_id="resp_9")) == "c"
    assert scene.order(scene.call(previous_response_id="resp_9", key="ci")) == "abc"
    assert scene.order(scene.call(previous_response_id="resp_8")) == "abc"
    scene.answers("c", 429, seconds=50)
    assert scene.order(scene.call(previous_response_id="resp_9"), now=1) == ""
    assert scene.refusal(now=1, previous_response_id="resp_9").code == "usage_limit_reached"


def test_a_stored_response_of_a_paused_account_is_not_called_a_missing_model() -> None:
    scene = Scene()
    scene.roster.sessions.note_creator(scene.account("c"), scene.call(), "response", "resp_9")
    scene.config = make_config(describe(accounts={"c": {"paused": True}}))
    scene.roster.reload(scene.config)
    refusal = scene.refusal(previous_response_id="resp_9")
    assert (refusal.status, refusal.code) == (503, "no_usable_account")


@pytest.mark.parametrize("slept", [HOUR, 8 * HOUR, 40 * 24 * HOUR])
def test_a_cooldown_ends_at_its_reset_though_the_machine_has_slept(slept: float) -> None:
    """The monotonic clock stands still meanwhile; the wall clock does not."""
    scene = Scene("ab")
    scene.roster.note_time(0, UNIX_START)
    scene.answers("a", 429, seconds=HOUR)
    no_model = scene.fault(404)
    scene.roster.note_fault(scene.account("b"), no_model, "m1", 0)
    assert scene.order(now=5) == ""
    assert scene.refusal(now=5).details["resets_in_seconds"] == HOUR - 5
    windows = [Window("codex", 5 * 3600, 97.0, UNIX_START + HOUR)]
    scene.roster.note_quota(scene.account("b"), windows, 5, UNIX_START + 5)
    assert scene.roster.health["b"].quota.left_percent(5) == 3
    scene.roster.note_time(6, UNIX_START + 6 + slept)
    assert scene.order(now=6) == "ab"
    assert scene.roster.health["b"].quota.left_percent(6) == UNKNOWN_LEFT_PERCENT


def test_what_was_seen_before_a_sleep_was_seen_that_much_earlier() -> None:
    scene = Scene("a")
    scene.roster.note_time(0, UNIX_START)
    scene.serves("a", scene.call(), now=1)
    scene.answers("a", 503, now=2)
    scene.tell("a", window(40, 10 * HOUR), now=3)
    scene.roster.note_time(10, UNIX_START + 10 + HOUR)

    health = scene.roster.health["a"]
    [seen] = health.quota.windows.values()
    assert health.failure is not None
    moments = (health.success_at, health.failure.at, seen.seen_at)
    assert moments == (1 - HOUR, 2 - HOUR, 3 - HOUR)


def test_a_cooldown_is_shorter_by_the_time_that_was_slept() -> None:
    scene = Scene("a")
    scene.roster.note_time(0, UNIX_START)
    scene.answers("a", 429, seconds=HOUR)
    scene.roster.note_time(10, UNIX_START + 610)
    assert scene.refusal(now=10).details["resets_in_seconds"] == HOUR - 610
    assert scene.order(now=RETRY - 600.1) == ""
    assert scene.order(now=RETRY - 600) == "a"


def test_a_wall_clock_that_is_set_back_makes_no_cooldown_longer() -> None:
    scene = Scene("a")
    scene.roster.note_time(0, UNIX_START)
    scene.answers("a", 429, seconds=HOUR)
    for unix_now in (UNIX_START + 5.9, UNIX_START + 2, UNIX_START - 10 * HOUR, 0):
        scene.roster.note_time(1, unix_now)
        assert scene.refusal(now=1).details["resets_in_seconds"] == HOUR - 1
    assert scene.order(now=HOUR) == "a"


def test_an_account_that_was_refused_is_so_after_a_sleep() -> None:
    scene = Scene("a")
    scene.roster.note_time(0, UNIX_START)
    scene.answers("a", 402)
    scene.roster.note_time(1, UNIX_START + HOUR)
    assert standing_of(scene.roster.health["a"], 1).status is Status.REFUSED


def test_a_new_login_ends_a_refusal_and_not_the_limit_before_it() -> None:
    scene = Scene("a")
    health = scene.roster.health["a"]
    health.note_login(b"1", True)
    scene.answers("a", 429, seconds=40)
    scene.answers("a", 402)
    assert standing_of(health, 1).status is Status.REFUSED

    health.note_login(b"2", True)
    standing = standing_of(health, 1)
    assert (standing.status, standing.until) == (Status.COOLING_DOWN, 40)
    assert standing.reason.startswith("429")
    assert standing_of(health, 41).status is Status.READY


def test_an_account_under_two_limits_is_told_with_the_one_that_ends_last() -> None:
    health = Scene("a").roster.health["a"]
    health.whole.extend(40, 0, "too fast")
    health.plan.extend(100, 0, "plan used up")
    standing = standing_of(health, 1)
    assert standing[:3] == (Status.AT_LIMIT, "plan used up", 100)
    health.whole.extend(200, 2, "still too fast")
    assert standing_of(health, 3)[:3] == (Status.COOLING_DOWN, "still too fast", 200)


def test_remembered_responses_are_bounded() -> None:
    scene = Scene(limits={"response_pins_max": 2})
    for number in range(3):
        scene.roster.sessions.note_creator(
            scene.account("c"), scene.call(), "response", f"r{number}"
        )
    orders = [scene.order(scene.call(previous_response_id=f"r{number}")) for number in range(3)]
    assert orders == ["abc", "c", "c"]


################################################################
# THE LIFE OF A REST
################################################################


def test_after_15_minutes_a_cooling_account_is_tried_again() -> None:
    """By any number of requests; it comes first while it is idle, so that one of them tries it."""
    scene = Scene("abc")
    scene.answers("b", 429, seconds=10 * HOUR)
    assert scene.order(now=RETRY - 0.1) == "ac"
    assert scene.order(now=RETRY) == "bac"
    lease = scene.roster.begin(scene.account("b"), scene.call(), RETRY)
    assert scene.order(now=RETRY) == "acb"
    scene.roster.end(lease)  # it came to nothing: the client left
    assert scene.order(now=RETRY + 1) == "bac"


def test_the_first_failure_after_15_minutes_begins_the_next_cooldown() -> None:
    scene = Scene("ab")
    scene.answers("a", 429, seconds=10 * HOUR)
    leases = [scene.roster.begin(scene.account("a"), scene.call(), RETRY + 5) for _ in range(2)]
    scene.answers("a", 429, now=RETRY + 9, seconds=10 * HOUR)
    assert scene.order(now=RETRY + 9) == "b"
    for lease in leases:
        scene.roster.end(lease)
    assert scene.order(now=2 * RETRY + 8) == "b"
    assert scene.order(now=2 * RETRY + 9) == "ab"


def test_clients_get_the_announced_reset_although_the_account_is_tried_before_it() -> None:
    scene = Scene("a")
    scene.answers("a", 429, seconds=10 * HOUR)
    assert scene.order(now=RETRY) == "a"
    refusal = Choice(scene.roster, scene.call(), "a", RETRY).refusal(UNIX_START + RETRY)
    assert refusal.details["resets_in_seconds"] == 10 * HOUR - RETRY


@pytest.mark.parametrize("status", [429, 401, 402])
def test_the_success_of_a_later_request_ends_the_rest(status: int) -> None:
    scene = Scene("ab")
    scene.answers("a", status, seconds=10 * HOUR)
    scene.serves("a", scene.call(), now=RETRY)
    assert scene.order(now=RETRY) == "ba"  # ready, and served a moment ago


def test_a_success_ends_a_demotion() -> None:
    scene = Scene("ab", pool={"routing": "in_order"})
    scene.answers("a", 500)
    scene.serves("a", scene.call(), now=1)
    assert scene.order(now=2) == "ab"


@pytest.mark.parametrize("status", [429, 401, 402])
def test_the_success_of_an_earlier_request_does_not_end_the_rest(status: int) -> None:
    scene = Scene("ab")
    lease = scene.roster.begin(scene.account("a"), scene.call(), 1)
    scene.answers("a", status, now=2, seconds=10 * HOUR)
    scene.roster.note_success(lease, 2)
    scene.roster.end(lease)
    assert scene.order(now=4) == "b"


def test_a_short_throttle_does_not_shorten_a_longer_cooldown() -> None:
    scene = Scene("ab")
    scene.answers("a", 429, seconds=HOUR)
    scene.answers("a", 429, now=1, seconds=2)  # of a request that was under way already
    assert scene.order(now=10) == "b"


def test_a_reload_ends_cooldowns_and_blocks_and_keeps_counts_and_pins() -> None:
    scene = Scene("abc")
    session = scene.call("s")
    scene.serves("c", session)
    scene.hang_on("c")
    scene.answers("a", 429, seconds=10 * HOUR)
    scene.answers("b", 404)
    scene.answers("c", 500)
    scene.roster.reload(scene.config)
    assert scene.order(now=1) == "abc"
    assert scene.order(session, now=1)[0] == "c"
    assert scene.roster.leases.in_flight["c"] == 1


def test_an_account_that_a_reload_took_away_is_counted_out_quietly() -> None:
    scene = Scene("ab")
    lease = scene.roster.begin(scene.account("a"), scene.call(), 0)
    scene.roster.reload(make_config(describe("b")))
    scene.roster.note_fault(lease.account, scene.fault(429), "m1", 1)
    scene.roster.note_success(lease, 2)
    scene.roster.end(lease)
    assert set(scene.roster.health) == {"b"}


@pytest.mark.parametrize(
    ("answers", "expected", "seconds"),
    [
        pytest.param([("a", 429, 50), ("b", 429, 80)], "usage_limit_reached", 50, id="limited"),
        pytest.param([("a", 429, 50), ("b", 401, 0)], "usage_limit_reached", 50, id="partly"),
        pytest.param([("a", 401, 0), ("b", 402, 0)], "no_usable_account", None, id="broken"),
        pytest.param([("a", 404, 0), ("b", 404, 0)], "model_not_found", None, id="no-model"),
    ],
)
def test_a_refusal_says_why(
    answers: Sequence[tuple[str, int, float]], expected: str, seconds: float | None
) -> None:
    scene = Scene("ab")
    for name, status, rest in answers:
        scene.answers(name, status, seconds=rest)
    refusal = scene.refusal()
    assert refusal.code == expected
    assert refusal.details.get("resets_in_seconds") == seconds
    if seconds is not None:
        assert refusal.details["resets_at"] == UNIX_START + seconds


################################################################
# ANY HISTORY
################################################################

STATUSES: Final = (200, 401, 402, 404, 429, 500)
steps = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(STATUSES),
    st.sampled_from([0.0, 5.0, 700.0, 5000.0]),  # Retry-After
    st.sampled_from([1.0, 40.0, 600.0, 2000.0]),  # until the next step
)


class Expected:
    """What must hold for one account, independent of the code that is tested."""

    def __init__(self) -> None:
        self.is_refused = False
        self.cooldown_until = 0.0
        self.retry_at = 0.0
        self.lacks_until = 0.0

    def take(self, status: int, seconds: float, now: float) -> None:
        if status in {401, 402, 429}:
            self.is_refused = status != 429
            self.cooldown_until = now + (seconds or 30.0)
            self.retry_at = now + RETRY
        elif status == 404:
            self.lacks_until = now + HOUR
        elif status == 200:
            self.is_refused, self.cooldown_until = False, 0.0

    def may_serve(self, now: float) -> bool:
        is_ready = not self.is_refused and now >= self.cooldown_until
        return now >= self.lacks_until and (is_ready or now >= self.retry_at)


@given(history=st.lists(steps, max_size=12), session=st.none() | st.text(min_size=1, max_size=3))
def test_whatever_happened_exactly_those_that_may_serve_are_offered(
    history: Sequence[tuple[str, int, float, float]], session: str | None
) -> None:
    scene = Scene("abcd", accounts={"d": {"paused": True}})
    call = scene.call(prompt_cache_key=session)
    expected = {name: Expected() for name in "abc"}
    now = 0.0
    for name, status, seconds, pause in history:
        if name in scene.order(call, now):
            if status == 200:
                scene.serves(name, call, now)
            else:
                scene.answers(name, status, now, seconds)
            expected[name].take(status, seconds, now)
        now += pause
    order = scene.order(call, now)
    assert set(order) == {name for name in "abc" if expected[name].may_serve(now)}
    assert len(set(order)) == len(order)
    assert scene.order(call, now) == order


@given(
    priorities=st.lists(st.integers(-2, 2), min_size=3, max_size=3),
    resting=st.sets(st.sampled_from("abc"), max_size=2),
    routing=st.sampled_from(Routing),
    session=st.text(min_size=1, max_size=4),
)
def test_new_sessions_never_use_a_reserve_before_its_time(
    priorities: Sequence[int], resting: set[str], routing: str, session: str
) -> None:
    accounts = {name: {"priority": p} for name, p in zip("abc", priorities, strict=True)}
    scene = Scene(accounts=accounts, pool={"routing": routing})
    for name in resting:
        scene.answers(name, 429, seconds=50)
    order = scene.order(scene.call(prompt_cache_key=session), now=1)
    used = [scene.account(name).priority for name in order]
    assert used == sorted(used)
    assert set(order) == set("abc") - resting


def test_a_tie_is_broken_by_the_session_and_the_account_s_name_alone() -> None:
    scene = Scene()
    call = scene.call("s")
    assert call.session is not None
    scores = {
        hashlib.sha256(call.session + name.encode()).digest(): name for name in ("a", "b", "c")
    }
    assert scene.order(call) == "".join(scores[score] for score in sorted(scores))


################################################################
# ANY WORD OF AN UPSTREAM
################################################################

FIELDS: Final = "error code type message param detail resets_at resets_in_seconds".split()
WORDS: Final = (
    "usage_limit_reached insufficient_quota model_not_found invalid_encrypted_content "
    "server_error cyber_policy account_deactivated error"
).split()
said = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*WORDS, "try again in 5m", "try again in .s", "Model m1 not found"]),
    lambda inner: (
        st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5) | st.lists(inner, max_size=2)
    ),
    max_leaves=8,
)
hints = st.sampled_from(["retry-after", "retry-after-ms", "content-type", "cf-mitigated"])
fields = st.tuples(hints, st.text("0123456789.-+eE:, GMTanJ\xb2\xbd", max_size=30))


@given(status=st.integers(300, 599), headers=st.lists(fields, max_size=3), value=said)
def test_whatever_an_upstream_says_is_understood_as_something(
    status: int, headers: Sequence[tuple[str, str]], value: Json
) -> None:
    scene = Scene()
    event = value if isinstance(value, dict) else {"error": value}
    faults = [
        classify_response(status, dict(headers), json.dumps(value).encode(), UNIX_START),
        classify_event(event, UNIX_START),
    ]
    for fault in filter(None, faults):
        assert (
            fault.cooldown_seconds is None or 0 < fault.cooldown_seconds <= pooler.RESET_SECONDS_MAX
        )
        assert 400 <= fault.error.status <= 599
        assert fault.error.content()[0]
        scene.roster.note_fault(scene.account("a"), fault, "m1", 0)
        assert set(scene.order()) >= set("bc")


@pytest.mark.parametrize("previous", [None, "resp_of_nobody"])
async def test_an_unknown_model_is_also_unknown_in_a_follow_up(
    autojump_clock: MockClock, previous: str | None
) -> None:
    async with opened_world(describe("a")) as world:
        body = {"model": "typo", "input": "x", "previous_response_id": previous}
        response = await world.ask(post("/v1/responses", body))
        assert (response.status, response.error["code"]) == (400, "model_not_found")
