"""Proves that what needs an operator comes first, and that page and terminal show what was chosen.

Method: values in, text out, as in test_operator_pages.py: the snapshot of tests/support is changed
until something is wrong, or a query chooses a part of it.
"""

from __future__ import annotations

import html
import json
import re
import zoneinfo
from typing import Any, Final

import pytest

import mcp_server
from tests.support.paths import SNAPSHOT

Json = Any

HOUR: Final = 3600
DAY: Final = 24 * HOUR
HOSTILE: Final = "\"><script>alert(1)</script>{0}'"


def snapshot() -> Json:
    """A fresh one, in which nothing is wrong."""
    given = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    given["keys"] = given["keys"][:1]
    given["accounts"][1].update(status="ready", reason=None, since=None, until=None, failures=0)
    given["pools"][0]["status"] = "ready"
    given["pools"][0]["serving"] = given["pools"][0]["serving"][:1]
    return given


def needs(given: Json) -> list[mcp_server.Need]:
    return mcp_server.attention(mcp_server.overview(given))


def page(given: Json, query: str = "") -> str:
    return mcp_server.admin(given, "text/html", query)[1]


def status(given: Json, query: str = "") -> str:
    return mcp_server.admin(given, "text/plain", query)[1]


def withdraw_login(given: Json, since: float = 1800 * 1.0) -> None:
    given["accounts"][0].update(
        status="login_needed", reason="401 token_invalidated", needs_operator=True, failures=1,
        since=given["at"] - since, advice="Log in with: pooler login personal --config /etc/p.json",
    )  # fmt: skip


def lose_models(given: Json, status: str, *, failed: int, until: float | None) -> None:
    """The pool serves two models no more, for the same cause."""
    over = {"account": "platform", "status": "at_limit", "reason": "429 x", "until": until}
    given["pools"][0]["serving"] = [
        {"model": model, "status": status, "accounts": [], "since": given["at"] - HOUR,
         "until": until, "failed": failed, "passed_over": [over]}
        for model in ("m1", "m2")
    ]  # fmt: skip


def test_nothing_needs_anybody_if_nothing_is_wrong() -> None:
    given = snapshot()
    assert needs(given) == []
    assert "<title>codex-pooler</title>" in page(given)
    assert '<p class="good">Nothing.</p>' in page(given)
    assert "NEEDS YOU (0)" in status(given)


def test_models_with_one_cause_are_one_need() -> None:
    given = snapshot()
    lose_models(given, "limited", failed=3, until=given["at"] + 90 * 60)
    [need] = needs(given)
    assert (need.severity, need.pool, need.models) == ("bad", "home", ["m1", "m2"])
    assert need.title == "m1, m2 in pool home: no account can serve it"
    assert need.text == (
        "6 requests failed since 08:00 (1 h ago). "
        "First account back: platform, 10:30 (in 1 h 30 min). "
        "Accounts: platform at its limit (429 x)."
    )


@pytest.mark.parametrize(
    ("state", "failed", "severity"),
    [("limited", 0, "fair"), ("limited", 1, "bad"), ("down", 0, "bad")],
)
def test_a_limit_that_ends_by_itself_is_only_bad_if_it_failed_a_request(
    state: str, failed: int, severity: str
) -> None:
    given = snapshot()
    lose_models(given, state, failed=failed, until=None)
    [need] = needs(given)
    assert need.severity == severity
    assert "It is not known when an account will be back." in need.text


def test_an_account_says_why_since_when_and_what_to_do() -> None:
    given = snapshot()
    withdraw_login(given)
    [need] = needs(given)
    assert need == mcp_server.Need(
        "bad",
        "personal: its login is not valid",
        "401 token_invalidated, since 08:30 (30 min ago), last success 08:59 (10 s ago).",
        "Log in with: pooler login personal --config /etc/p.json",
        given["at"] - 1800,
        account="personal",
    )
    assert "<code>pooler login personal --config /etc/p.json</code>" in page(given)


@pytest.mark.parametrize(
    ("state", "reason", "title"),
    [
        ("refused", "401 invalid_api_key", "platform: its key is refused"),
        ("refused", "402 payment_required", "platform: its upstream refuses it"),
        ("failing", "disk full", "platform: its requests fail"),
        ("unreachable", "connection refused at 127.0.0.1:1", "platform: cannot be reached"),
    ],
)
def test_other_troubles_of_accounts_have_their_words(state: str, reason: str, title: str) -> None:
    given = snapshot()
    changes = {"status": state, "reason": reason, "since": given["at"] - 60, "failures": 13}
    given["accounts"][1].update(changes, next_try_at=given["at"])
    [need] = needs(given)
    assert (need.title, need.severity) == (title, "fair")
    assert "13 failed in a row" in need.text
    assert "tried again with the next request" in need.text


@pytest.mark.parametrize("state", ["at_limit", "cooling_down", "paused"])
def test_what_passes_or_was_meant_needs_nobody(state: str) -> None:
    given = snapshot()
    given["accounts"][1].update(status=state, until=given["at"] + HOUR)
    assert needs(given) == []


@pytest.mark.parametrize(
    ("ends_in", "words"),
    [(7 * DAY, "expires"), (7 * DAY + 1, ""), (-1, "expired"), (-7 * DAY - 1, "")],
)
def test_a_key_is_reported_a_week_before_its_end(ends_in: float, words: str) -> None:
    given = snapshot()
    given["keys"][0].update(expires_at=given["at"] + ends_in)
    titles = [need.title for need in needs(given)]
    assert titles == ([f"home / laptop: this key {words}"] if words else [])


@pytest.mark.parametrize(("used", "count"), [(1_799_999, 0), (1_800_000, 1), (3_000_000, 1)])
def test_a_key_is_reported_at_nine_tenths_of_its_tokens(used: int, count: int) -> None:
    given = snapshot()
    given["keys"][0].update(tokens_today=used)
    assert len(needs(given)) == count
    given["keys"][0].update(status="paused")
    assert needs(given) == []


def test_a_refused_reload_says_what_is_in_use_since_when_and_what_is_wrong() -> None:
    given = snapshot()
    given["config_problem"] = "accounts.platform.type: must be 'openai' or 'codex' (and 2 more)"
    given["config_problem_at"] = given["at"] - 300
    [need] = needs(given)
    assert (need.severity, need.since) == ("fair", given["at"] - 300)
    for text in (html.unescape(page(given)), status(given)):
        told = " ".join(text.split())
        assert "The last reload was refused, the configuration from before it is in use" in told
        assert "5 min ago): accounts.platform.type: must be 'openai' or 'codex' (and 2" in told
        assert "pooler check" in told


def test_the_worst_comes_first_and_of_that_what_began_first() -> None:
    given = snapshot()
    given["state_problem"] = "state.json: disk full"
    withdraw_login(given)
    lose_models(given, "down", failed=1, until=None)
    given["keys"][0].update(tokens_today=2_000_000)
    given["accounts"][1].update(status="unreachable", since=given["at"] - DAY)
    assert [need.title.partition(":")[0] for need in needs(given)] == [
        "m1, m2 in pool home", "personal", "platform", "home / laptop",
        "The state file is not written",
    ]  # fmt: skip
    assert "<title>(5) codex-pooler</title>" in page(given)
    assert "codex_pooler_needs_attention 5\n" in mcp_server.metrics_text(given)


################################################################
# WHAT A QUERY CHOOSES
################################################################


def crowded() -> Json:
    """Requests of two keys, accounts and models, ok and failed."""
    given = snapshot()
    one = {**given["requests"][0], "attempts": [{"account": "personal"}], "passed_over": []}
    given["requests"] = [
        {**one, "request_id": f"id-{key}-{model}-{code}.", "key": key, "model": model, "code": code}
        for key in ("k1", "k2")
        for model in ("m1", "m2")
        for code in (None, "upstream_error", "client_gone")
    ]
    over = {"account": "second", "reason": "at_limit: 429 usage_limit_reached"}
    given["requests"][1].update(attempts=[], passed_over=[over])
    return given


CHOSEN: Final = {
    "": 12, "failed": 4, "failed=0": 12, "key=home/k1": 6, "key=home%2Fk1&model=m2": 3,
    "key=home/k1&model=m2&failed=1": 1, "account=second": 1, "account=personal": 11,
    "key=k1": 0, "model=m1&model=m2": 6, "unknown=1": 12,
}  # fmt: skip


@pytest.mark.parametrize(("query", "count"), CHOSEN.items())
def test_filters_can_be_combined(query: str, count: int) -> None:
    shown = json.loads(mcp_server.admin(crowded(), "application/json", query)[1])
    assert len(shown["requests"]) == count
    text = page(crowded(), query)
    assert len(set(re.findall(r"id-\w+-\w+-\w+\.", text))) == count


def test_each_filter_is_kept_by_the_links_and_can_be_removed_alone() -> None:
    text = page(crowded(), "key=home/k1&model=m2&failed=1&zone=Asia/Tokyo")
    links = [html.unescape(link) for link in re.findall(r'href="\?([^"#]*)#requests">remove', text)]
    assert links == [
        "failed=1&model=m2&zone=Asia%2FTokyo",
        "failed=1&key=home%2Fk1&zone=Asia%2FTokyo",
        "key=home%2Fk1&model=m2&zone=Asia%2FTokyo",
    ]
    hidden = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', text)
    assert hidden == [("failed", "1"), ("key", "home/k1"), ("model", "m2")]


@pytest.mark.parametrize("name", ["key", "account", "model", "zone", "failed", "refresh", "other"])
def test_no_query_changes_the_page(name: str) -> None:
    for accept in ("text/html", "text/plain", "application/json"):
        text = mcp_server.admin(crowded(), accept, f"{name}={HOSTILE}&{name}2=\udc80%ff%00")[1]
        assert "<script" not in text
        assert "\x00" not in text


def test_an_account_that_was_passed_over_is_named_with_its_state() -> None:
    text = html.unescape(page(crowded(), "failed"))
    assert "none: second at its limit" in text
    assert "second (at_limit: 429 usage_limit_reached)" in text


ZONES: Final = {
    "": ("08:00", "times are UTC,"),
    "Europe/Berlin": ("09:00", "times are Europe/Berlin,"),
    "Asia/Kolkata": ("13:30", "times are Asia/Kolkata,"),
    "No/Where": ("08:00", "times are UTC, as this machine does not know the zone"),
    "../../etc/passwd": ("08:00", "does not know the zone"),
    "/etc/passwd": ("08:00", "does not know the zone"),
    "Europe": ("08:00", "does not know the zone"),
    "<b>": ("08:00", "does not know the zone"),
}


@pytest.mark.parametrize("zone", ZONES)
def test_clock_times_are_in_the_zone_that_the_query_names(zone: str) -> None:
    started, words = ZONES[zone]
    text = page(snapshot(), f"zone={zone}")
    assert f"started {started} (1 h ago)" in text
    assert words in text
    if "does not know" in words:
        assert html.escape(zone) not in text.replace("Europe/Berlin", "")


def test_without_a_database_of_zones_times_are_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise zoneinfo.ZoneInfoNotFoundError

    monkeypatch.setattr(mcp_server, "ZoneInfo", missing)
    assert "does not know the zone" in page(snapshot(), "zone=Europe/Berlin")


@pytest.mark.parametrize("moment", [-1e20, -62_135_596_800.0, 253_402_300_799.0, 1e18])
def test_a_moment_that_no_calendar_has_is_shown_without_a_clock(moment: float) -> None:
    given = snapshot()
    given["accounts"][0]["token_ends_at"] = moment
    given["keys"][0]["expires_at"] = moment
    for zone in ("Asia/Tokyo", "America/Los_Angeles"):
        assert "token expires" in page(given, f"zone={zone}")


################################################################
# A TERMINAL'S HEIGHT
################################################################


@pytest.mark.parametrize("rows", [*range(5, 40), 9999])
@pytest.mark.parametrize("columns", [60, 100, 200])
def test_the_status_fits_the_height_and_counts_what_is_cut(rows: int, columns: int) -> None:
    given = crowded()
    withdraw_login(given)
    lose_models(given, "down", failed=1, until=None)
    lines = status(given, f"columns={columns}&rows={rows}").splitlines()
    assert len(lines) <= rows
    assert "NEEDS YOU (2)" in lines
    assert lines[-1].startswith("and ") or "REQUESTS" in lines
    cut = re.search(r"(\d+) more requests?", lines[-1])
    shown = sum("id-" in line or re.match(r"\d\d:\d\d:\d\d ", line) is not None for line in lines)
    assert shown + int(cut[1] if cut else 0) == 12


def test_only_failed_requests_are_shown_on_request() -> None:
    text = status(crowded(), "failed=1&columns=200")
    assert text.startswith("codex-pooler ")
    assert "ACCOUNTS" not in text
    assert len(re.findall(r"id-k\d-m\d-upstream_error", text)) == 4
    assert "client left" not in text


@pytest.mark.parametrize("columns", range(60, 140, 9))
def test_a_long_name_never_costs_the_end_of_a_cooldown(columns: int) -> None:
    given = snapshot()
    given["accounts"][1].update(name="n" * 64, status="cooling_down", until=given["at"] + 9 * DAY)
    text = status(given, f"columns={columns}")
    assert "cooling down, back 24 Jan 09:00 (in 9 d)" in text
    assert max(map(len, text.splitlines())) <= columns
