"""Proves that the state file holds what a restart goes on from, and that nothing else is believed.

Method: what one set of parts has noted is written as the file would be, and read into another set,
whose clock begins anew; files that are broken, of another configuration, of the future or hostile.
The file itself, its locks and its disk: tests/process/test_restarts.py.
"""

from __future__ import annotations

import copy
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pooler
from pooler import (
    DAYS_KEPT,
    NO_FIELDS,
    PINS_MAX,
    PLAN_FAMILY,
    RESET_SECONDS_MAX,
    STATE_AHEAD_SECONDS_MAX,
    STATE_BYTES_MAX,
    UNKEPT,
    UNTRIED_SECONDS_MAX,
    Call,
    Cause,
    Config,
    Cooldown,
    Failure,
    KeyUse,
    Lasting,
    Ledger,
    Price,
    Roster,
    Status,
    Window,
    call_route,
    parse_state,
    read_call,
)
from tests.operators.test_sums import entry
from tests.support.memory_sockets import KEY, OTHER_KEY, Json
from tests.support.world import UPSTREAM_KEY, describe, make_config

NOON: Final = 1_800_014_400.0
DAY: Final = 86_400
LATER: Final = 1000  # seconds from the end of one process to the start of the next
CANARY: Final = "canary-that-nobody-may-read"
NAMES: Final = ("home", "laptop")
LIMIT: Final = "429 rate_limit_exceeded"


def parts(config: Config | None = None, now: float = 5000.0, unix_now: float = NOON) -> Lasting:
    """A process's parts, which have noted nothing yet."""
    config = config or make_config(describe("abc"))
    uses: dict[tuple[str, str], KeyUse] = defaultdict(KeyUse)
    return Lasting(config, Roster(config), Ledger(10), uses, now, unix_now)


def written(lasting: Lasting) -> bytes:
    return json.dumps(lasting.save()).encode()


def restarted(
    before: Lasting,
    config: Config | None = None,
    after_seconds: float = LATER,
    change: Mapping[str, Json] | None = None,
) -> Lasting:
    """The parts of the next process, on a monotonic clock that has begun anew."""
    saved = parse_state(written(before))
    after = parts(config or before.config, 7.0, before.unix_now + after_seconds)
    after.restore(saved | dict(change or {}))
    return after


def call_of(config: Config, session: str = "s1", model: str = "m1") -> Call:
    pool = config.pools["home"]
    call = read_call(call_route("/v1/responses"), {"model": model}, NO_FIELDS, pool, pool.keys[0])
    return call._replace(session=pooler.digest_parts("home", "laptop", "session", session))


def busy() -> Lasting:
    """Parts that have noted something of every kind."""
    lasting = parts()
    roster, now = lasting.roster, lasting.now
    lasting.ledger.add(entry(NOON - DAY, code="no_usable_account", tokens=None))
    lasting.ledger.add(entry(NOON), Price(1, 1, 1))
    lasting.uses[NAMES].charge({"input_tokens": 7, "output_tokens": 5}, NOON)

    a, b, c = (roster.health[name] for name in "abc")
    a.whole.extend(now + 2000, now - 10, LIMIT)
    b.plan.extend(now + 90_000, now - 20, "429 usage_limit_reached")
    b.cooldown_of_model("m2").extend(now + 5000, now - 30, "429 model_limit")
    c.whole.extend(math.inf, now - 40, "401 invalid_api_key")
    c.login = b"\x01" * 32
    c.status, c.since, c.success_at = Status.REFUSED, now - 40, now - 500
    c.failure = Failure(now - 40, "401 invalid_api_key", None)
    b.failure = Failure(now - 20, "connection refused", Cause.REFUSED)
    b.failure_count, b.trouble_count = 3, 2
    reports = [
        Window(PLAN_FAMILY, 18_000, 55.5, NOON + 9000),
        Window(PLAN_FAMILY, 604_800, 12, None),
        Window("codex_m2", 18_000, 5, NOON + 3000, name="M2"),
    ]
    a.quota.note(reports, now - 50, NOON - 50)

    call = call_of(lasting.config)
    roster.sessions.pin(call, lasting.config.accounts["b"], True, now - 60)
    roster.sessions.note_creator(lasting.config.accounts["c"], call, "response", "resp_1")
    roster.sessions.creators.set(NAMES, b"\x02" * 32, UNKEPT, 10)
    return lasting


def test_everything_is_there_after_a_restart() -> None:
    before = busy()
    after = restarted(before)
    assert after.ledger.hours[int(NOON // 3600)] == before.ledger.hours[int(NOON // 3600)]
    assert after.ledger.days == before.ledger.days
    assert after.ledger.account_days == {"a": (int(NOON // DAY), 1100)}
    assert after.uses[NAMES].day_tokens == 12

    a, b, c = (after.roster.health[name] for name in "abc")
    assert times_of(a.whole) == (2000, UNTRIED_SECONDS_MAX - 10, -10)
    assert times_of(b.plan) == (90_000, UNTRIED_SECONDS_MAX - 20, -20)
    assert (a.whole.reason, b.plan.reason) == (LIMIT, "429 usage_limit_reached")
    assert b.by_model["m2"].until == 7 + 5000 - LATER
    assert (c.whole.until, c.login) == (math.inf, b"\x01" * 32)
    assert (c.status, c.since, c.success_at) == (Status.REFUSED, 7 - 40 - LATER, 7 - 500 - LATER)
    assert c.failure == Failure(7 - 40 - LATER, "401 invalid_api_key", None)
    assert (b.failure_count, b.trouble_count, b.failure and b.failure.cause) == (
        3, 2, Cause.REFUSED,
    )  # fmt: skip
    assert (a.status, a.since, a.success_at) == (None, -math.inf, -math.inf)
    assert a.quota.families == {"m2": "codex_m2"}
    five_hours = a.quota.windows[PLAN_FAMILY, 18_000]
    assert [*five_hours] == [55.5, 7 + 9000 - LATER, 7 - 50 - LATER, True]
    assert a.quota.windows[PLAN_FAMILY, 604_800].is_reset_known is False

    call = call_of(after.config)
    pin = after.roster.sessions.pin_of(call, after.now)
    assert pin is not None
    assert [*pin] == ["b", after.config.accounts["b"].base_url, True, 7 - 60 - LATER]
    assert after.roster.sessions.is_creator(after.config.accounts["c"], call, "response", "resp_1")
    assert after.roster.sessions.creators.get(NAMES, b"\x02" * 32) == UNKEPT


def times_of(cooldown: Cooldown) -> tuple[float, ...]:
    """A cooldown's times after the end of the first process: `busy` has noted them so."""
    times = (cooldown.until, cooldown.retry_at, cooldown.noted_at)
    return tuple(at - 7 + LATER for at in times)


def test_a_second_restart_finds_what_the_first_one_found() -> None:
    once = restarted(busy(), after_seconds=0)
    assert once.save() == busy().save()


AMOUNTS: Final = st.integers(0, 10**13)
TIMES: Final = st.integers(-3 * DAY, 0)
NAMES_OF_ACCOUNTS: Final = st.sampled_from("abc")


@given(st.data())
def test_whatever_was_noted_is_written_and_read_alike(data: st.DataObject) -> None:
    lasting = parts()
    for _ in range(data.draw(st.integers(0, 6))):
        counts = {name: data.draw(AMOUNTS) for name in pooler.Usage._fields}
        record = entry(
            NOON + data.draw(TIMES),
            key=data.draw(st.sampled_from(["laptop", "ci", "gone"])),
            account=data.draw(st.one_of(st.none(), NAMES_OF_ACCOUNTS)),
            tokens=data.draw(st.one_of(st.none(), st.just(counts))),
        )
        lasting.ledger.add(record, data.draw(st.sampled_from([None, Price(1, 0.1, 2.5)])))
    for name in "abc":
        health = lasting.roster.health[name]
        for each in (health.whole, health.plan, health.cooldown_of_model("m1")):
            length = data.draw(st.one_of(st.just(math.inf), st.floats(1, 10**6)))
            noted = lasting.now - data.draw(st.floats(0, 900))
            each.extend(lasting.now + length, noted, data.draw(st.text(max_size=400)))
        reports = [
            Window(family, 60 * minutes, data.draw(st.floats(0, 100)), NOON + 60)
            for family, minutes in (("codex", 300), ("codex", 10_080), ("x_1", 0))
        ]
        health.quota.note(reports, lasting.now, NOON)
    for number in range(data.draw(st.integers(0, 5))):
        account = lasting.config.accounts[data.draw(NAMES_OF_ACCOUNTS)]
        call = call_of(lasting.config, f"s{number}")
        used_at = lasting.now - data.draw(st.floats(0, 10**5))
        lasting.roster.sessions.pin(call, account, data.draw(st.booleans()), used_at)

    first = lasting.save()
    assert parse_state(json.dumps(first).encode()) == json.loads(json.dumps(first))
    second = restarted(lasting, after_seconds=0).save()
    for rows in first["days"].values():
        rows.pop("gone", None)
    assert prune(second) == prune(first)


def prune(saved: Json) -> Json:
    """Without pools that have no rows, and hours that are too old to go on with."""
    oldest = int(NOON // 3600) - pooler.HOURS_KEPT
    hours = [row for row in saved["hours"] if row[0] > oldest]
    days = {pool: rows for pool, rows in saved["days"].items() if rows}
    accounts = copy.deepcopy(saved["accounts"])
    for account in accounts.values():
        if account["tokens"][0] != int(NOON // DAY) or not account["tokens"][1]:
            account["tokens"] = [0, 0]
    return saved | {"hours": hours, "days": days, "accounts": accounts}


@pytest.mark.parametrize("is_new", [False, True])
def test_a_refused_login_stays_refused_until_somebody_logs_in_again(is_new: bool) -> None:
    health = restarted(busy()).roster.health["c"]
    health.note_login(b"\x02" * 32 if is_new else b"\x01" * 32, True)
    assert health.whole.until == (0 if is_new else math.inf)


# What is not believed.


def test_what_pools_json_no_longer_names_is_dropped() -> None:
    others = describe("ab", pool={"keys": {"other": KEY}})
    after = restarted(busy(), make_config(others))
    assert after.ledger.days == {}
    assert len(after.roster.sessions.pins) == 0
    assert [*after.roster.health] == ["a", "b"]
    assert after.roster.health["a"].whole.until > after.now


@pytest.mark.parametrize(
    "change", [{"base_url": "http://127.0.0.1:7777/v1"}, {"api_key": "sk-another-key-of-a"}]
)
def test_an_account_that_is_another_now_forgets_its_state(change: Json) -> None:
    after = restarted(busy(), make_config(describe("abc", accounts={"a": change, "b": change})))
    for name in "ab":
        health = after.roster.health[name]
        assert not health.quota.windows
        assert all(each.until <= after.now for each in health.cooldowns)
    assert len(after.roster.sessions.pins) == 0
    assert after.ledger.account_days == {}
    # What its keys have used is theirs.
    assert after.ledger.days


def test_what_is_over_is_dropped() -> None:
    after = restarted(busy(), after_seconds=40 * DAY)
    assert after.ledger.hours == {}
    assert after.ledger.days.get(NAMES, {}) == {}
    assert after.uses[NAMES].day_tokens == 0
    for name in "ab":
        health = after.roster.health[name]
        assert not health.quota.windows
        assert all(each.until <= after.now for each in health.cooldowns)
    assert after.roster.sessions.pin_of(call_of(after.config), after.now) is None


@pytest.mark.parametrize("seconds", [-STATE_AHEAD_SECONDS_MAX - 61, -3600, -20 * DAY])
def test_nothing_from_the_future_is_believed(seconds: float) -> None:
    after = restarted(busy(), after_seconds=seconds)
    latest_day = int(after.unix_now // DAY)
    assert all(day <= latest_day for days in after.ledger.days.values() for day in days)
    assert all(hour <= after.unix_now // 3600 for hour in after.ledger.hours)
    assert len(after.roster.sessions.pins) == 0
    for health in after.roster.health.values():
        assert not health.quota.windows
        assert all(each.until <= after.now for each in health.cooldowns)


def test_a_clock_that_was_corrected_a_little_loses_nothing() -> None:
    after = restarted(busy(), after_seconds=-STATE_AHEAD_SECONDS_MAX)
    assert after.roster.sessions.pin_of(call_of(after.config), after.now) is not None
    health = after.roster.health["a"]
    assert health.whole.noted_at <= after.now
    assert all(window.seen_at <= after.now for window in health.quota.windows.values())


def test_a_cooldown_is_tried_as_soon_as_ever() -> None:
    before = busy()
    saved = parse_state(written(before))
    saved["accounts"]["a"]["whole"] = [NOON + 10**5, NOON + 10**5, NOON, "429"]
    saved["accounts"]["b"]["whole"] = [NOON + RESET_SECONDS_MAX + 1, NOON + 1, NOON, "429"]
    after = parts(before.config, 7.0)
    after.restore(saved)
    assert after.roster.health["a"].whole.retry_at == 7 + UNTRIED_SECONDS_MAX
    assert after.roster.health["b"].whole.until <= after.now


def test_pins_and_models_keep_their_bounds() -> None:
    saved = parse_state(written(busy()))
    digests = [f"{number:064x}" for number in range(PINS_MAX + 10)]
    pins = [[digest, "a", False, int(NOON)] for digest in digests]
    models = {f"m{number}": [int(NOON) + 60, int(NOON), int(NOON), ""] for number in range(100)}
    windows = [[f"f{number}", 60, 1, int(NOON) + 60, int(NOON), True] for number in range(50)]
    saved["accounts"]["a"]["windows"] = windows
    saved["pins"] = {"home": {"laptop": pins}}
    saved["accounts"]["a"]["models"] = models
    after = parts()
    after.restore(saved)
    assert len(after.roster.sessions.pins) == PINS_MAX
    assert after.roster.sessions.pins.get(NAMES, bytes.fromhex(digests[-1])) is not None
    assert len(after.roster.health["a"].by_model) == pooler.MODEL_BLOCKS_MAX
    assert len(after.roster.health["a"].quota.windows) == pooler.QUOTA_WINDOWS_MAX


def test_so_many_days_are_kept() -> None:
    before = parts()
    for days in range(20):
        before.ledger.days.setdefault(NAMES, {})[int(NOON // DAY) - days] = pooler.Tally(1)
    assert len(restarted(before, after_seconds=0).ledger.days[NAMES]) == DAYS_KEPT


# Broken and hostile files.


def broken(**changes: Json) -> bytes:
    return json.dumps(busy().save() | changes).encode()


def of_account(**changes: Json) -> bytes:
    saved = busy().save()
    saved["accounts"]["a"] |= changes
    return json.dumps(saved).encode()


ROW: Final = [1, 1, 1, 1, 1, 1, None]
BROKEN: Final[dict[str, bytes]] = {
    "empty": b"",
    "zeros": b"\0" * 100,
    "cut": written(busy())[:-20],
    "not UTF-8": b'{"version": 1, "\xff": 1}',
    "a list": b"[]",
    "nothing": b"{}",
    "deep": b"[" * 100_000,
    "deep inside": b'{"version":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "large": b" " * (STATE_BYTES_MAX + 1),
    "many members": b'{"version": 1, "hours": [' + b"[]," * 700_000 + b"[]]}",
    "another version": broken(version=2),
    "a version as text": broken(version="1"),
    "true as a version": broken(version=True),
    "an unknown member": broken(more=1),
    "no object of accounts": broken(accounts=[]),
    "a short row": broken(hours=[ROW[:-1]]),
    "a long row": broken(hours=[[*ROW, 1]]),
    "text in a row": broken(hours=[["1", *ROW[1:]]]),
    "a negative sum": broken(hours=[[1, -1, *ROW[2:]]]),
    "a huge sum": broken(hours=[[1, 10**30, *ROW[2:]]]),
    "a fraction": broken(hours=[[1, 1.5, *ROW[2:]]]),
    "not a number": broken(hours=[[*ROW[:-1], math.nan]]),
    "infinity": broken(hours=[[*ROW[:-1], math.inf]]),
    "minus infinity": broken(hours=[[*ROW[:-1], -math.inf]]),
    "an overflow": written(busy()).replace(b'"version": 1', b'"version": 1e999'),
    "a long number": written(busy()).replace(b'"version": 1', b'"version": ' + b"1" * 5000),
    "a short digest": broken(pins={"home": {"laptop": [["00", "a", False, 1]]}}),
    "a digest that is none": broken(creators={"home": {"laptop": [["g" * 64, "a"]]}}),
    "a pin's flag": broken(pins={"home": {"laptop": [["0" * 64, "a", 1, 1]]}}),
    "no identity": of_account(identity=""),
    "a status that is none": of_account(status="well"),
    "a cause that is none": of_account(failure=[1, "x", "bad luck"]),
    "a cooldown's length": of_account(whole=[1, 1, 1]),
    "a cooldown's end": of_account(whole=[-1, 1, 1, ""]),
    "a reason with a line end": of_account(plan=[1, 1, 1, "a\nb"]),
    "a long reason": of_account(plan=[1, 1, 1, "a" * 301]),
    "a percentage": of_account(windows=[["codex", 60, 101, 1, 1, True]]),
    "a window's family": of_account(windows=[["../x", 60, 10, 1, 1, True]]),
    "a window's length": of_account(windows=[["codex", 10**10, 10, 1, 1, True]]),
    "a model that is no name": of_account(models={"a\nb": [1, 1, 1, ""]}),
    "a family that is none": of_account(families={"m1": "A B"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_as_a_whole(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_state(BROKEN[name])


@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
), st.sampled_from(sorted(pooler._STATE)))  # fmt: skip
def test_any_json_is_taken_or_refused_and_never_more(value: Json, name: str) -> None:
    raw = json.dumps(busy().save() | {name: value}).encode()
    try:
        saved = parse_state(raw)
    except ValueError:
        return
    after = parts()
    after.restore(saved)
    written(after)


def test_the_largest_sums_can_be_read_again() -> None:
    """A state that its own reader refuses would be lost at each restart."""
    before, much = parts(), 10**9 * pooler.TOKENS_MAX
    before.ledger.hours[int(NOON // 3600)] = pooler.Tally(10**9, 0, much, much, much, float(much))
    before.ledger.account_days["a"] = (int(NOON // DAY), much)
    before.uses[NAMES].charge({"input_tokens": much, "output_tokens": much}, NOON)
    after = restarted(before, after_seconds=0)
    assert after.ledger.hours == before.ledger.hours
    assert after.uses[NAMES].day_tokens == 2 * much


def test_a_clock_that_began_in_1970_writes_what_it_can_read() -> None:
    before = parts(now=5000.0, unix_now=10.0)
    health = before.roster.health["a"]
    health.whole.extend(math.inf, before.now - 1000, "401")
    health.since = health.success_at = before.now - 1000
    assert restarted(before, after_seconds=0).roster.health["a"].whole.until == math.inf


# Secrets.


def test_no_secret_and_no_name_of_a_client_is_in_the_file() -> None:
    before = busy()
    health = before.roster.health["a"]
    health.cooldown_of_model(CANARY).extend(before.now + 60, before.now, "429")
    health.quota.note_family(CANARY, "codex_canary")
    health.block(pooler.Effect.LACKS_MODEL, CANARY, before.now + 60, "404")
    before.ledger.add(entry(NOON, model=CANARY, request_id=CANARY))
    before.roster.sessions.pin(
        call_of(before.config, CANARY), before.config.accounts["a"], False, before.now
    )
    raw = written(before).decode()
    for secret in (CANARY, KEY, OTHER_KEY, UPSTREAM_KEY, "127.0.0.1"):
        assert secret not in raw


def test_the_working_directory_makes_no_account_another() -> None:
    login = {"type": "codex", "auth_file": "accounts/a.json", "api_key": None, "base_url": None,
             "models": None}  # fmt: skip
    described = json.dumps(describe("a", accounts={"a": login})).encode()
    identities = {
        pooler.parse_config(described, {}, str, source).accounts["a"].identity
        for source in ("pools.json", "/etc/pooler/pools.json", "../pools.json")
    }
    assert len(identities) == 1


def test_a_window_that_has_ended_is_not_saved() -> None:
    lasting = busy()
    windows = lasting.roster.health["a"].quota.windows
    windows["codex", 60] = pooler.QuotaWindow(40.0, lasting.now - 1, lasting.now - 60)
    rows = lasting.save()["accounts"]["a"]["windows"]
    assert [row for row in rows if row[1] == 60] == []
