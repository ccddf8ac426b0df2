"""What operators are shown: the page, the status text, the metrics and the MCP tools.

pooler.py checks who asks, takes one snapshot of its state and passes it in.  Everything here but
`answer` is a pure function of that snapshot; nothing changes the pooler, and nothing outlives the
request.  The snapshot's fields that may leave are listed in VISIBLE: a new one stays private until
it is written there.

An auditor reads VISIBLE and `visible` first, then the functions that pooler.py calls:

- `admin`: GET /admin, as a page (`admin_page`), as text for a terminal (`status_text`), or as JSON
  (`overview`).  Page and text begin with the same needs (`attention`), and show the same tables
  (`rows_of`), of which a query chooses a part (`View`).
- `metrics`: GET /metrics, in families of samples (METRICS).
- `answer`: POST /mcp, one JSON-RPC message (PROTOCOL) that may call a tool (TOOLS).

How to add a metric: one more `yield` in the function for its subject, or a function in METRICS.
How to add a field: to VISIBLE, then to the row, metric or tool that shows it.

This file never imports pooler.py: under `python pooler.py` that would be a second copy.  `answer`
alone needs the package `mcp`, which takes 0.6 s and 40 MB to import (F91): at the first request,
in a thread.  Without this file pooler.py serves its clients all the same.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import itertools
import json
import logging
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode
from zoneinfo import ZoneInfo

import trio

if TYPE_CHECKING:
    import mcp_types
    from mcp.server import Server
    from mcp.server.connection import Connection

# JSON has no static type of use here: VISIBLE and the schemas say what is in it.
Facts = Mapping[str, Any]  # the snapshot, or an object in it
Shown = dict[str, Any]  # what may leave: made from a snapshot, field by field
Headers = Sequence[tuple[str, str]]
Schema = dict[str, Any]  # JSON Schema, of the keywords that `fits` knows

################################################################
# LIMITS
################################################################

ADMIN_REQUESTS_MAX: Final = 50  # requests on the page
STATUS_REQUESTS_MAX: Final = 15  # in the status text; with the other tables about one screen
FAILURES_MAX: Final = 50  # failed requests on the page
ROWS_MADE_MAX: Final = 100  # of one table on the page and in the text; the JSON has all
NEEDS_OPEN: Final = 6  # the others are folded
# Rows of a table that are not folded: the page stays a few screens long.
ROWS_OPEN: Final[Mapping[str, int]] = {
    "accounts": 12,
    "pools": 5,
    "keys": 7,
    "requests": 5,
    "failures": 5,
}
NAMES_MAX: Final = 20  # in one cell: a provider may have thousands of models
COLUMNS: Final = 100  # of the status text, unless the query says otherwise
COLUMNS_MIN: Final = 60
COLUMNS_MAX: Final = 1000
ROWS_OF_TEXT_MIN: Final = 5  # the pooler's own line, one need with its head, what is cut
ROWS_OF_TEXT_MAX: Final = 100_000  # without a terminal
NAME_CHARS_MIN: Final = 10  # of the first column, if the second leaves no more
BAR_COLUMNS: Final = ("Quota",)  # of the page: in the text, bars have lines of their own

ROWS_MAX: Final = 100  # of an MCP list; pools.json seldom has as many
LOGS_MAX: Final = 50  # requests in one MCP response: about 20 kB
LOG_OFFSET_MAX: Final = 10_000  # more than the pooler remembers
TEXT_CHARS_MAX: Final = 200  # of an MCP argument
ADVICE_CHARS_MAX: Final = 1000  # of advice: it may be a command with two paths
WORD_CHARS_MAX: Final = 64  # of a name that a client or an upstream may have chosen
FRESH_SECONDS_MAX: Final = 15 * 60  # an account that cools down is tried again as often
LIST_TTL_MS: Final = 300_000  # the tools change with the program only

################################################################
# VIEWS
################################################################
# What a query of GET /admin chooses.  Whatever is in it that is not understood counts for nothing.

PAGE_QUERY: Final = ("failed", "key", "account", "model", "zone", "refresh")  # kept by its links
QUERY_MEMBERS_MAX: Final = 20
ZONE: Final = re.compile(r"[A-Za-z0-9_+/-]{1,64}")


class View(NamedTuple):
    """What to show of the snapshot, and how.  A filter that is "" lets everything through."""

    failed: bool = False  # only requests that failed
    key: str = ""  # requests of a key, as `pool/name`
    account: str = ""  # requests that an account was asked for, or passed over
    model: str = ""
    zone: str = ""  # the name of `zone_info`, if that is not UTC by default
    refresh: bool = False
    zone_info: tzinfo = UTC
    zone_words: str = "times are UTC"


DEFAULT_VIEW: Final = View()


def view_of(members: Mapping[str, str]) -> View:
    """The view that a query asks for.

    A zone is shown by its name, so only one that exists gets into the view: of any other name the
    page says no more than that it is unknown.
    """
    zone = members.get("zone", "")
    zone_info = zone_of(zone)
    words = f"times are {zone or 'UTC'}"
    if zone_info is None:
        words = "times are UTC, as this machine does not know the zone that was asked for"

    return View(
        failed=members.get("failed", "0") != "0",
        key=members.get("key", ""),
        account=members.get("account", ""),
        model=members.get("model", ""),
        zone=zone if zone_info else "",
        refresh=members.get("refresh", "0") != "0",
        zone_info=zone_info or UTC,
        zone_words=words,
    )


def zone_of(name: str) -> tzinfo | None:
    """The time zone of an IANA name; None if it is unknown, or there is no database of zones.

    This reads a small file, which `zoneinfo` keeps.
    """
    if not name or name == "UTC":
        return UTC
    if not ZONE.fullmatch(name):
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        return None


def query_members(query: str) -> dict[str, str]:
    """The members of a query; of several with one name the first.  {} if it has too many."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=QUERY_MEMBERS_MAX)
    except ValueError:
        return {}
    return dict(reversed(pairs))


def is_failed(request: Facts) -> bool:
    """Whether a request has failed; one that its client left has not."""
    return request["code"] not in RESULT_WORDS


def is_wanted(request: Facts, view: View) -> bool:
    """Whether a request passes the view's filters."""
    if view.key and view.key != f"{request['pool']}/{request['key']}":
        return False
    if view.model and view.model != request["model"]:
        return False
    if not view.account:
        return True
    asked = [*request["attempts"], *request["passed_over"]]
    return any(row["account"] == view.account for row in asked)


################################################################
# WHAT AN OPERATOR MAY SEE
################################################################
# pooler.py makes the snapshot from its own state: names from pools.json, numbers, codes and times
# in Unix seconds.  It has no secret, no prompt and no address of a client to begin with.  This list
# is the second lock: whatever in this file shows a part of the snapshot gets it from `visible`.
# Only rows are selected before they are copied, by fields that are listed here as well.

# By the name of the object, or of the list that holds it; "" is the snapshot itself.  Not here, so
# never shown: whatever else the snapshot may come to hold.
VISIBLE: Final[Mapping[str, Sequence[str]]] = {
    "": (
        "version at started_at uptime_seconds is_draining in_flight connections websockets "
        "state_problem config_problem config_problem_at has_prices today last_hour hours"
    ).split(),
    # Sums of a day, of the last hour, of each hour: what they have in common comes first.
    "today": "requests failed input_tokens output_tokens cached_tokens cost".split(),
    "last_hour": (
        "requests failed input_tokens output_tokens cached_tokens causes responses "
        "first_event_p50_ms first_event_p95_ms"
    ).split(),
    "causes": "code count".split(),
    "hours": "at requests failed input_tokens output_tokens cached_tokens".split(),
    "pools": "name status routing accounts models key_count in_flight queued serving".split(),
    # Of a pool: who can serve a model, and who was passed over; requests have the latter as well.
    "serving": "model status accounts since until failed passed_over".split(),
    "passed_over": "account status reason until".split(),
    "accounts": (
        "name type host pools priority status is_demoted unreached in_flight concurrent "
        "reason since until next_try_at failures last_success_at last_error advice needs_operator "
        "tokens_today key_problem lacks plan login token_ends_at models windows"
    ).split(),
    "last_error": "at reason".split(),
    # Of an account: its quota windows, and what it cannot serve for now.
    "windows": "family window window_minutes used_percent resets_at observed_at".split(),
    "lacks": "kind name reason ends_at".split(),
    "keys": (
        "pool name source status models expires_at requests_per_minute tokens_per_day "
        "concurrent in_flight requests tokens_today tokens days"
    ).split(),
    "days": "day requests failed input_tokens output_tokens cached_tokens cost".split(),
    # Of a key or a request, as upstreams report them.
    "tokens": "input_tokens output_tokens cached_tokens reasoning_tokens".split(),
    "operators": "name source status".split(),
    "models": "name pools targets".split(),  # targets: what the name means in each pool
    # The latest requests: no header, no body, no address, and of the model's name what a pool or
    # an account knows.
    "requests": (
        "request_id at method route transport pool key account model status code attempts "
        "passed_over first_byte_ms duration_ms bytes_in bytes_out tokens"
    ).split(),
    # Sums since the start, by these labels.
    "totals": (
        "pool key account model route code requests seconds first_byte_seconds bytes_in "
        "bytes_out input_tokens output_tokens cached_tokens reasoning_tokens"
    ).split(),
    "attempts": "account reason count".split(),  # also those of one request, which have no count
    "refreshes": "account outcome count".split(),
    # What `overview` adds: a `Need`.
    "attention": "severity title text advice since pool models account key".split(),
    "routing": "name is_chosen status reason".split(),  # an account in what `explain` returns
}


def visible(value: Any, place: str) -> Any:
    """A copy of the value under the name `place`, with only the fields that VISIBLE lists.

    An object whose place is not in VISIBLE comes out empty.
    """
    if isinstance(value, list | tuple):
        return [visible(member, place) for member in value]

    if not isinstance(value, dict):
        return value

    names = VISIBLE.get(place, ())
    shown = {name: value[name] for name in names if name in value}
    for name, member in shown.items():
        if isinstance(member, dict | list | tuple):  # most are not, and there may be 100,000
            shown[name] = visible(member, name)
    return shown


def overview(snapshot: Facts, view: View = DEFAULT_VIEW) -> Shown:
    """What GET /admin shows: the pooler itself, four tables, the newest requests among them.

    `failures` are the newest requests that failed, and may be older than all in `requests`;
    `attention` are needs.  Operators, models and sums are left out: MCP and the metrics have them.
    """
    # Rows are selected before they are copied: there may be thousands.
    wanted = [request for request in snapshot["requests"] if is_wanted(request, view)]
    failures = list(itertools.islice(filter(is_failed, wanted), FAILURES_MAX))
    requests = failures if view.failed else wanted[:ADMIN_REQUESTS_MAX]

    shown = {
        **visible(snapshot, ""),
        "pools": visible(snapshot["pools"], "pools"),
        "accounts": visible(snapshot["accounts"], "accounts"),
        "keys": visible(snapshot["keys"], "keys"),
        "requests": visible(requests, "requests"),
        "failures": visible(failures, "requests"),
    }
    needs = attention(shown, view.zone_info)
    return {**shown, "attention": [need._asdict() for need in needs]}


################################################################
# WORDS
################################################################
# How values are written for people.  A function returns "" if there is nothing to show,
# and `parts` leaves that out.


# In seconds, the longest first.
UNITS: Final = {
    "d": 24 * 3600,
    "h": 3600,
    "min": 60,
    "s": 1,
}


def span(seconds: float, units_max: int = 2) -> str:
    """A duration in few units, rounded down: `2 h 10 min`, `0 s`."""
    left = int(seconds)
    words = []
    for name, unit in UNITS.items():
        count, left = divmod(left, unit)
        if count:
            words.append(f"{count} {name}")
    return " ".join(words[:units_max]) or "0 s"


def relative(unix: float, now: float, units_max: int = 2) -> str:
    """A moment as seen from `now`, both in Unix seconds: `in 5 min` or `5 min ago`.

    Nobody has to know the server's time zone, or whether its clock is right.
    """
    if unix > now:
        return f"in {span(unix - now, units_max)}"
    return f"{span(now - unix, units_max)} ago"


class Clock(NamedTuple):
    """The moment from which all others are seen, and the zone of clock times."""

    now: float  # Unix seconds
    zone: tzinfo = UTC


def clock_time(unix: float, clock: Clock, form: str = "%H:%M") -> str:
    """A moment on the clock, with its day if that is not today: `10:36`, `30 Nov 10:36`.

    "" for a moment that no calendar has.
    """
    try:
        at = datetime.fromtimestamp(unix, clock.zone)
        today = datetime.fromtimestamp(clock.now, clock.zone)
    except (OverflowError, OSError, ValueError):
        return ""

    if at.year != today.year:
        form = f"%d %b %Y {form}"
    elif at.date() != today.date():
        form = f"%d %b {form}"
    return at.strftime(form)


def at_moment(unix: float | None, clock: Clock, words: str = "{}") -> str:
    """A moment on the clock and as seen from now, in the words around it; "" if there is none.

    `since {}` becomes `since 10:36 (28 min ago)`.  Next to the clock, seconds would be noise.
    """
    if unix is None:
        return ""
    is_close = abs(unix - clock.now) < UNITS["h"]
    seen = relative(unix, clock.now, 1 if is_close else 2)
    at = clock_time(unix, clock)
    return words.format(f"{at} ({seen})" if at else seen)


def parts(*texts: str, separator: str = ", ") -> str:
    """The texts that are not empty, joined."""
    return separator.join(text for text in texts if text)


def listed(names: Sequence[str] | None, separator: str = ", ") -> str:
    """The first NAMES_MAX names, and how many more there are.

    "" if there are none, or if they are unknown (None).
    """
    if not names:
        return ""

    text = separator.join(names[:NAMES_MAX])
    more_count = len(names) - NAMES_MAX
    return f"{text} and {more_count} more" if more_count > 0 else text


def number(count: float | None, words: str) -> str:
    """A count with its thousands marked, in the words around it; "" if it is unknown."""
    return "" if count is None else words.format(f"{count:,}")


def printable(text: str) -> str:
    """The text with `?` for what is invisible, changes the direction, or is half a character."""
    if text.isprintable():  # nearly always, and fast
        return text

    shown = [char if char.isprintable() else "?" for char in text]
    return "".join(shown)


# What people read for a status of an account; the others say it themselves.
STATUS_WORDS: Final[Mapping[str, str]] = {
    "cooling_down": "cooling down",
    "at_limit": "at its limit",
    "login_needed": "login needed",
    "model_limited": "limited for this model",
}


def headline(shown: Facts, view: View) -> str:
    """The pooler's own state in one line, and in which zone times are."""
    return parts(
        shown["version"],
        "draining" if shown["is_draining"] else "",
        at_moment(shown["started_at"], Clock(shown["at"], view.zone_info), "started {}"),
        view.zone_words,
        f"in flight: {shown['in_flight']}",
        f"connections: {shown['connections']}",
        f"WebSockets: {shown['websockets']}",
    )


def attempt_words(attempt: Facts) -> str:
    """An account that was tried, and why the next one was: `personal (429 rate_limited)`."""
    reason = attempt.get("reason")
    return f"{attempt['account']} ({reason})" if reason else str(attempt["account"])


def lack_words(lack: Facts, clock: Clock) -> str:
    """What an account cannot serve for now: `model gpt-5.5 (404 not_found), again 09:05 (...)`."""
    name = lack["name"] or ""
    reason = f"({lack['reason']})" if lack["reason"] else ""
    words = parts(lack["kind"], name, reason, separator=" ")
    end = at_moment(lack["ends_at"], clock, "again {}")
    return parts(words, end)


def token_words(tokens: Facts | None) -> str:
    """Tokens as reported by upstreams; "" if there was no report."""
    if tokens is None:
        return ""
    tokens_in = parts(
        number(tokens["input_tokens"], "{} in"),
        number(tokens["cached_tokens"], "({} cached)"),
        separator=" ",
    )
    return parts(tokens_in, number(tokens["output_tokens"], "{} out"))


def sentence_of(*texts: str) -> str:
    """The texts that are not empty as one sentence, which begins with a capital letter."""
    text = parts(*texts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


################################################################
# ATTENTION
################################################################
# What an operator should know first: on top of the page and of the status text, and what the MCP
# tool for a diagnosis returns.  Whatever ends by itself and harms no request is not in it.

DAY_SECONDS: Final = 24 * 3600
KEY_SECONDS_LEFT: Final = 7 * DAY_SECONDS  # of a key that expires soon, or has expired lately
KEY_SHARE_MIN: Final = 0.9  # of a day's tokens, from which a key is reported
SEVERITIES: Final = ("bad", "fair")  # the worst first; they are tones as well


class Need(NamedTuple):
    """One thing that needs attention: about models of a pool, an account, a key, or the pooler."""

    severity: str  # of SEVERITIES
    title: str  # names what it is about, and what is wrong; not a whole sentence
    text: str  # why and since when, in whole sentences; may be ""
    advice: str = ""  # what to do, as a whole sentence
    since: float | None = None  # Unix time
    pool: str | None = None
    models: Sequence[str] = ()
    account: str | None = None
    key: str | None = None  # with its pool


# What is said of an account in these states.
ACCOUNT_TROUBLES: Final[Mapping[str, str]] = {
    "login_needed": "its login is not valid",
    "refused": "its upstream refuses it",
    "failing": "its requests fail",
    "unreachable": "cannot be reached",
}


def attention(shown: Facts, zone: tzinfo = UTC) -> list[Need]:
    """What needs attention: the worst first, and of that what began first.

    `shown` is what `overview` returned; clock times are in `zone`.
    """
    clock = Clock(shown["at"], zone)
    needs = [
        *(need for pool in shown["pools"] for need in pool_needs(pool, clock)),
        *(need for account in shown["accounts"] for need in account_needs(account, clock)),
        *(need for key in shown["keys"] for need in key_needs(key, clock)),
    ]

    needs += process_needs(shown, clock)

    latest = shown["at"]
    return sorted(
        needs,
        key=lambda need: (SEVERITIES.index(need.severity), need.since or latest),
    )


def process_needs(shown: Facts, clock: Clock) -> Iterator[Need]:
    """What is wrong with the files of the pooler itself.

    A configuration that was refused is served by nobody: without this line an operator who has
    just reloaded it sees a page in order, and believes that the change is in effect.
    """
    problem = shown.get("state_problem")
    if problem:
        advice = "Mend that: until then a restart forgets counts, cooldowns and sessions."
        yield Need("fair", "The state file is not written", sentence_of(problem), advice)

    problem = shown.get("config_problem")
    if problem:
        since = shown["config_problem_at"]
        yield Need(
            "fair",
            "The last reload was refused, the configuration from before it is in use",
            sentence_of(f"{at_moment(since, clock, 'at {}')}: {problem}"),
            "Mend pools.json and reload (SIGHUP); this shows all problems: pooler check",
            since,
        )


def pool_needs(pool: Facts, clock: Clock) -> Iterator[Need]:
    """The models that no account of a pool can serve; one need for all with the same causes.

    A pool may offer a hundred models, and one withdrawn login takes all of them away.
    """
    groups: dict[tuple[Any, ...], list[Facts]] = {}
    for row in pool.get("serving", ()):
        if row["status"] != "ready":
            causes = [(over["account"], over["status"]) for over in row["passed_over"]]
            groups.setdefault((row["status"], *causes), []).append(row)
    yield from (models_need(pool["name"], rows, clock) for rows in groups.values())


def models_need(pool: str, rows: Sequence[Facts], clock: Clock) -> Need:
    """Models of a pool that no account can serve, for the same causes.

    It is only fair, and not bad, as long as no request has failed and a limit ends by itself.
    """
    models = [row["model"] for row in rows]
    since = min((row["since"] for row in rows if row["since"] is not None), default=None)
    failed = sum(row["failed"] for row in rows)
    requests = "1 request" if failed == 1 else f"{failed:,} requests"
    texts = (
        sentence_of(at_moment(since, clock, f"{requests} failed since {{}}")),
        first_back(rows, clock),
        passed_over_words(rows[0]["passed_over"]),
    )

    is_bad = failed > 0 or rows[0]["status"] == "down"
    return Need(
        "bad" if is_bad else "fair",
        f"{listed(models)} in pool {pool}: no account can serve it",
        " ".join(filter(None, texts)),
        since=since,
        pool=pool,
        models=models,
    )


def first_back(rows: Sequence[Facts], clock: Clock) -> str:
    """Which account can serve the models again first, and when.

    That is what an operator who cannot mend anything now wants to know: whether to stay up.
    """
    ends = [(row["until"], row) for row in rows if row["until"] is not None]
    if not ends:
        return "It is not known when an account will be back."

    until, row = min(ends, key=lambda end: end[0])
    names = [over["account"] for over in row["passed_over"] if over["until"] == until]
    return sentence_of(f"first account back: {parts(*names[:1], at_moment(until, clock))}")


def passed_over_words(passed_over: Sequence[Facts]) -> str:
    """Why the accounts cannot serve: `Accounts: second at its limit (429 usage_limit_reached).`

    Those that do not have the model at all are left out, unless none has it.
    """
    having = [over for over in passed_over if over["status"] not in {"not_offered", "not_listed"}]
    causes = []
    for over in (having or passed_over)[:NAMES_MAX]:
        words = STATUS_WORDS.get(over["status"], over["status"].replace("_", " "))
        reason = over["reason"]
        detail = f" ({reason})" if reason and reason != words else ""
        causes.append(f"{over['account']} {words}{detail}")
    return f"Accounts: {'; '.join(causes)}." if causes else ""


def account_needs(account: Facts, clock: Clock) -> Iterator[Need]:
    """An account that fails, or whose operator alone can mend it.

    One that only fails is fair: if nobody stands in for it, its pool is bad.  One at
    its limit is not here, as waiting is all that can be done.
    """
    status = account["status"]
    needs_operator = account.get("needs_operator", False)
    if account["key_problem"]:
        yield Need(
            "fair",
            f"{account['name']}: its key may not be valid",
            sentence_of(account["key_problem"], "no request has used it since"),
            account["advice"] or "",
            account=account["name"],
        )
    if not needs_operator and status not in ACCOUNT_TROUBLES:
        return

    reason = account["reason"] or ""
    trouble = ACCOUNT_TROUBLES.get(status, STATUS_WORDS.get(status, status))
    if status == "refused" and reason.startswith("401"):
        trouble = "its key is refused"

    yield Need(
        "bad" if needs_operator else "fair",
        f"{account['name']}: {trouble}",
        sentence_of(
            reason,
            at_moment(account["since"], clock, "since {}"),
            failures_words(account["failures"]),
            at_moment(account["last_success_at"], clock, "last success {}"),
            next_try(account, clock),
        ),
        account["advice"] or "",
        account["since"],
        account=account["name"],
    )


def failures_words(count: int) -> str:
    """How often an account has failed in a row; a single failure goes without saying."""
    return f"{count:,} failed in a row" if count > 1 else ""


def next_try(account: Facts, clock: Clock) -> str:
    """When an account that fails is tried again: at a moment, or with the next request.

    "" if waiting is of no use.
    """
    next_try_at = account["next_try_at"]
    if next_try_at is not None and next_try_at <= clock.now:
        return "tried again with the next request"
    return at_moment(next_try_at, clock, "next try {}")


def key_needs(key: Facts, clock: Clock) -> Iterator[Need]:
    """A key that is about to refuse its client, or has begun to.

    One that expired long ago was meant to, and one that is paused as well.
    """
    if key["status"] == "paused":
        return

    name = f"{key['pool']} / {key['name']}"
    ends_at = key["expires_at"]
    if ends_at is not None and abs(ends_at - clock.now) <= KEY_SECONDS_LEFT:
        is_over = ends_at <= clock.now
        yield Need(
            "fair",
            f"{name}: this key {'expired' if is_over else 'expires'}",
            sentence_of(at_moment(ends_at, clock)),
            "Set a later date in pools.json, or give its client another key.",
            ends_at if is_over else None,
            key=f"{key['pool']}/{key['name']}",
        )

    used, limit = key["tokens_today"], key["tokens_per_day"]
    if limit and used >= KEY_SHARE_MIN * limit:
        midnight = (int(clock.now) // DAY_SECONDS + 1) * DAY_SECONDS
        yield Need(
            "fair",
            f"{name}: {used / limit:.0%} of its tokens for today are used".replace("%", " %"),
            sentence_of(f"{used:,} of {limit:,}", at_moment(midnight, clock, "its day ends {}")),
            "Raise its tokens_per_day in pools.json if it should go on.",
            key=f"{key['pool']}/{key['name']}",
        )


################################################################
# TABLES
################################################################
# The rows of page and status text, made from the same words.  A row knows nothing of HTML or of a
# terminal: it has texts, numbers for its bars, and which of its cells choose what is shown.
#
# The name and the state come first.  What an operator needs to see at once follows in `cells`; what
# is needed to look further is in `more`.  So a page stays short and a narrow terminal cuts the
# least important off.


class Bar(NamedTuple):
    """What is used of a quota window or of a limit, drawn as a bar."""

    used_percent: float  # may exceed 100, as upstreams report it
    name: str  # for who does not see it
    words: str = ""  # next to it; "" if the cell says it


class Link(NamedTuple):
    """A cell that chooses what the page shows."""

    column: str
    name: str  # of a filter
    value: str


class Row(NamedTuple):
    """One row: the first cell is its name, the second its state, to which the tone belongs."""

    cells: Mapping[str, str]  # by column; an empty one is shown as a dash
    tone: str  # of the state: good, fair or bad
    more: Mapping[str, str]  # folded on the page; a wide terminal shows it as further columns
    bars: Sequence[Bar] = ()  # drawn in the third cell
    links: Sequence[Link] = ()
    days: Sequence[Facts] = ()  # sums, oldest first, drawn in a last cell


# The tone of an account's, a pool's or a key's status; that of any other status is bad.
TONES: Final[Mapping[str, str]] = {
    "ready": "good",
    "active": "good",
    "cooling_down": "fair",
    "at_limit": "fair",
    "degraded": "fair",
    "paused": "fair",
}
TONE_ORDER: Final = ("bad", "fair", "good")
LOGIN_WORDS: Final = {"renewal_due": "login refresh due"}  # the status says the rest


def tone_of(status: str) -> str:
    """The tone of a status.  One that this file does not know is bad, so that it is noticed."""
    return TONES.get(status, "bad")


def pool_row(pool: Facts, clock: Clock) -> Row:
    """A pool: which models it can serve by whom, and until when it cannot serve the others.

    Models with the same accounts are named together: mostly that is all of them.
    """
    served: dict[str, list[str]] = {}
    missing = []
    for row in pool["serving"]:
        if row["status"] == "ready":
            served.setdefault(listed(row["accounts"]), []).append(row["model"])
        else:
            back = at_moment(row["until"], clock, "back {}")
            missing.append(parts(row["model"], back or at_moment(row["since"], clock, "since {}")))

    cells = {
        "Pool": pool["name"],
        "State": pool["status"],
        "Cannot serve": listed(missing, "; "),
        "Can serve": "; ".join(f"{listed(models)} ({by})" for by, models in served.items()),
        "In flight": f"{pool['in_flight']}, {pool['queued']} waiting",
    }
    more = {
        "Accounts": listed(pool["accounts"]),
        "Models": listed(pool["models"]),
        "Routing": f"{pool['routing']}, keys: {pool['key_count']}",
    }
    return Row(cells, tone_of(pool["status"]), more)


def account_row(account: Facts, clock: Clock) -> Row:
    """An account: how it is and until when, its quota windows as bars, and why.

    A demoted one is used last, and one that was not reached is tried last.
    """
    status = account["status"]
    words = STATUS_WORDS.get(status, status)
    back = at_moment(account["until"], clock, "back {}")
    since = at_moment(account["since"], clock, f"{words} since {{}}")
    cells = {
        "Account": account["name"],
        "State": parts(words, back) if back else since or words,
        "Quota": "",
        "Last error": account_trouble(account, clock),
        "Tokens today": number(account["tokens_today"], "{}"),
        "In flight": f"{account['in_flight']} of {account['concurrent']}",
    }

    plan = account["plan"] or ""
    upstream = parts(account["type"], plan, f"at {account['host']}", separator=" ")
    token_end = at_moment(account["token_ends_at"], clock, "token expires {}")
    more = {
        "Advice": account["advice"] or "",
        "Since": at_moment(account["since"], clock),
        "Next try": at_moment(account["next_try_at"], clock),
        "Last success": at_moment(account["last_success_at"], clock),
        "Upstream": parts(upstream, token_end),
        "Pools": f"{listed(account['pools'])} (priority {account['priority']})",
        "Models": listed(account["models"]),
        "Cannot serve": listed([lack_words(lack, clock) for lack in account["lacks"]]),
    }

    bars = [window_bar(window, clock) for window in account["windows"]]
    links = [Link("Account", "account", account["name"])]
    return Row(cells, tone_of(status), more, bars, links)


def account_trouble(account: Facts, clock: Clock) -> str:
    """Why an account is as it is, or else its last error, and what slows it down.

    A ready account that has just failed is worth a look, so its last error stays in sight.
    """
    last = account["last_error"]
    reason = account["reason"] or ""
    if last and not reason:
        reason = parts(last["reason"], at_moment(last["at"], clock), separator=" ")

    words = [reason, failures_words(account["failures"]), LOGIN_WORDS.get(account["login"], "")]
    if account["status"] not in {"failing", "unreachable"}:  # which say as much
        words.append("demoted" if account["is_demoted"] else "")
        words.append(f"not reached: {account['unreached']}" if account["unreached"] else "")
    return parts(*words)


def window_bar(window: Facts, clock: Clock) -> Bar:
    """A quota window: `5h: 42 %, resets 10:46 (in 1 h 46 min)`.

    The family `codex` is that of an account's plan and goes without saying; others are models.
    """
    family = "" if window["family"] == "codex" and window["window"] else window["family"]
    name = parts(family, window["window"] or "", separator=" ")
    used = f"{name}: {window['used_percent']:.4g} %"
    return Bar(
        window["used_percent"],
        f"{name} used",
        parts(used, at_moment(window["resets_at"], clock, "resets {}")),
    )


def key_row(key: Facts, clock: Clock) -> Row:
    """A pool key: what it has used today, and of its own limits.

    Limits that pools.json does not set are left out; a day is one of UTC.
    """
    name = f"{key['pool']} / {key['name']}"
    used, limit = key["tokens_today"], key["tokens_per_day"]
    ends_at = key["expires_at"]
    verb = "expires {}" if ends_at and ends_at > clock.now else "since {}"
    cells = {
        "Key": name,
        "State": parts(key["status"], at_moment(ends_at, clock, verb)),
        "Tokens today": parts(number(used, "{}"), number(limit, "of {}"), separator=" "),
    }

    days = key["days"]
    if days and days[-1]["cost"] is not None:
        cells["Cost today"] = f"{days[-1]['cost']:,.2f}"
    cells["Requests today"] = count_words(days[-1]) if days else ""
    cells["In flight"] = f"{key['in_flight']} of {key['concurrent']}"

    more = {
        "Since the start": parts(
            number(key["requests"], "{} requests"),
            number(key["requests_per_minute"], "at most {} a minute"),
            token_words(key["tokens"]),
        ),
        "Models": listed(key["models"]),
        "Days": "; ".join(day_words(day) for day in reversed(days) if day["requests"]),
    }

    bars = [Bar(100 * used / limit, "Used of its tokens for today")] if limit else ()
    links = [Link("Key", "key", f"{key['pool']}/{key['name']}")]
    return Row(cells, tone_of(key["status"]), more, bars, links, days)


def tokens_of(sums: Facts) -> int:
    """All tokens of some sums; what was cached is part of the input, and counts once."""
    count: int = sums["input_tokens"] + sums["output_tokens"]
    return count


def count_words(sums: Facts) -> str:
    """Requests, and how many of them failed: `112, 62 failed`."""
    return parts(number(sums["requests"], "{}"), number(sums["failed"] or None, "{} failed"))


def day_words(day: Facts) -> str:
    """A day of a key: `2027-01-15: 4,400 tokens, 40 requests, cost 0.04`."""
    cost = "" if day["cost"] is None else f"cost {day['cost']:,.2f}"
    return parts(f"{day['day']}: {tokens_of(day):,} tokens", f"{day['requests']:,} requests", cost)


# By the code of a request: None is a success.  A client that left has not been failed.
RESULT_WORDS: Final[Mapping[str | None, str]] = {
    None: "ok",
    "client_gone": "client left",
}
RESULT_TONES: Final[Mapping[str | None, str]] = {
    None: "good",
    "client_gone": "fair",
}


def request_row(request: Facts, clock: Clock) -> Row:
    """A request that is over.

    It has no status if the client left before the response began, and no key if none of ours was
    presented.
    """
    code = request["code"]
    result = RESULT_WORDS.get(code, code)
    status = "" if request["status"] is None else str(request["status"])
    has_key = request["pool"] is not None and request["key"] is not None
    seen = relative(request["at"], clock.now, 1)
    passed_over = [attempt_words(over) for over in request["passed_over"]]

    cells = {
        "Time": f"{clock_time(request['at'], clock, '%H:%M:%S')} ({seen})",
        "Result": parts(status, result, separator=" "),
        "Model": request["model"] or "",
        "Accounts asked": asked_words(request),
        "Key": f"{request['pool']} / {request['key']}" if has_key else "",
        "Took": number(request["duration_ms"], "{} ms"),
    }
    more = {
        "Request id": request["request_id"],
        "Not asked": listed(passed_over),
        "Tokens": token_words(request["tokens"]),
        "First event": number(request["first_byte_ms"], "{} ms"),
        "Route": f"{request['method']} {request['route']} {request['transport']}",
        "Bytes": f"{request['bytes_in']:,} in, {request['bytes_out']:,} out",
    }

    links = []
    if request["model"]:
        links.append(Link("Model", "model", request["model"]))
    if has_key:
        links.append(Link("Key", "key", f"{request['pool']}/{request['key']}"))
    return Row(cells, RESULT_TONES.get(code, "bad"), more, (), links)


def asked_words(request: Facts) -> str:
    """The accounts that a request went to; of a failed one also those that were passed over."""
    attempts = ", then ".join(attempt_words(attempt) for attempt in request["attempts"])
    passed_over = [over_words(over) for over in request["passed_over"]]
    if not is_failed(request) or not passed_over:
        return attempts
    return f"{attempts}; not: {listed(passed_over)}" if attempts else f"none: {listed(passed_over)}"


def over_words(over: Facts) -> str:
    """An account that was passed over, and why: `second at its limit`.

    The reason begins with a status; what follows that is in the folded part of the row.
    """
    status, _, _ = (over["reason"] or "").partition(":")
    return f"{over['account']} {STATUS_WORDS.get(status, status)}"


RowMaker = Callable[[Facts, Clock], Row]  # of an object of the snapshot
# By the name of the list in what `overview` returns.
TABLES: Final[Mapping[str, RowMaker]] = {
    "accounts": account_row,
    "pools": pool_row,
    "keys": key_row,
    "requests": request_row,
    "failures": request_row,
}


def rows_of(shown: Facts, table: str, zone: tzinfo) -> list[Row]:
    """The first ROWS_MADE_MAX rows of a table, with a dash in each cell that says nothing.

    `shown` is what `overview` returned; every row is seen from the snapshot's own time.  What needs
    attention comes first, and of the keys what was used most.
    """
    facts = shown[table]
    if table == "keys":
        facts = sorted(facts, key=lambda key: -key["tokens_today"])
    elif table == "accounts":
        facts = sorted(facts, key=lambda account: TONE_ORDER.index(tone_of(account["status"])))

    rows = []
    clock = Clock(shown["at"], zone)
    for fact in facts[:ROWS_MADE_MAX]:
        row = TABLES[table](fact, clock)
        cells = {column: text or "-" for column, text in row.cells.items()}
        rows.append(row._replace(cells=cells))
    return rows


################################################################
# PAGE
################################################################
# One HTML document without script.  It follows the browser's light, dark or forced colours, and on
# a narrow screen turns each row into a block.  Every text goes through `escaped`, every attribute
# too.
#
# Tables have heads and scopes, a bar is a <meter> with its words next to it, and a drawing's label
# or the table next to it has its figures: who uses a screen reader gets the same facts.  Colours
# only repeat what the words say.

# The one style sheet.  It is part of the page, so that the page loads nothing; `--good`, `--fair`
# and `--bad` are the tones of `Row`, in colours that keep a contrast of 4.5 on their ground.
ADMIN_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #59616b; --line: #d8dce2;
  --paper: #f6f7f9; --card: #fff; --good: #17734a; --fair: #875400; --bad: #bd2430;
  --badcard: #fdecec; --faircard: #fff4dd; --link: #0a58a8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --faint: #a0a7b0; --line: #363b42;
  --paper: #101214; --card: #191c1f; --good: #56cc95; --fair: #f0b455; --bad: #ff9191;
  --badcard: #3a1c1f; --faircard: #3a2e15; --link: #8cbcff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 80rem; padding: 0 1rem 1rem; background: var(--paper);
  color: var(--ink); font: 0.875rem/1.4 system-ui, sans-serif; overflow-wrap: anywhere }
h1, h2 { margin: 0.6rem 0; font-size: 1.2rem }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 1.5rem }
header p { flex: 1 1 20rem }
header p, form { margin: 0.3rem 0 }
section, .tiles li { margin: 0.8rem 0; padding: 0.1rem 1rem 0.6rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 0.5rem }
a { color: var(--link) }
table { width: 100%; border-collapse: collapse; table-layout: fixed }
th, td { padding: 0.25rem 0.8rem 0.25rem 0; text-align: left; vertical-align: top }
tr { border-top: 1px solid var(--line) }
thead tr { border-top: 0 }
thead th, .faint, dt, summary { color: var(--faint); font-weight: normal }
td, .figures { font-variant-numeric: tabular-nums }
.good { color: var(--good) } .fair { color: var(--fair) } .bad { color: var(--bad) }
.needs, .tiles { list-style: none; margin: 0; padding: 0 }
.needs li { margin: 0.4rem 0; padding: 0.4rem 0.8rem; border-left: 0.3rem solid var(--bad);
  border-radius: 0.3rem; background: var(--badcard) }
.needs .isfair { border-color: var(--fair); background: var(--faircard) }
code { font-size: 0.95em; user-select: all }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.8rem }
.tiles li { margin: 0; padding: 0.5rem 1rem }
.tiles b { display: block; font-size: 1.4rem; line-height: 1.3 }
.chart { display: block; width: 100%; height: 6rem; border-bottom: 1px solid var(--faint) }
.chart .ok, .key .ok { fill: var(--good); background: var(--good) }
.chart .failed, .key .failed { fill: var(--bad); background: var(--bad) }
.chart .room { fill: transparent }
.chart g:hover .room { fill: var(--line) }
.axis { display: flex; color: var(--faint) }
.axis span { flex: 1 }
.key i { display: inline-block; width: 0.7rem; height: 0.7rem; margin: 0 0.3rem 0 0.8rem }
.days { display: block; width: 8rem; max-width: 100%; height: 1.2rem; fill: var(--faint) }
.bar { display: flex; align-items: center; gap: 0.5rem }
#keys .bar { display: inline-flex; margin-left: 0.5rem }
meter { flex: none; width: 3.5rem }
summary { cursor: pointer }
dl { margin: 0.2rem 0; font-size: 0.93em }
dd { margin: 0 0 0.2rem }
input, button { font: inherit }
thead th:last-child { width: 4rem }
#accounts thead th:nth-child(1) { width: 12% }
#accounts thead th:nth-child(2) { width: 17% }
#accounts thead th:nth-child(3) { width: 33% }
#accounts thead th:nth-child(n + 5) { width: 7.5% }
#keys thead th:nth-child(1) { width: 20% }
#keys thead th:nth-child(2) { width: 14% }
#keys thead th:nth-child(3) { width: 22% }
#pools thead th:nth-child(1), #pools thead th:nth-child(2) { width: 12% }
#pools thead th:nth-child(5) { width: 9rem }
.requests thead th:nth-child(1) { width: 11.5rem }
.requests thead th:nth-child(2) { width: 18% }
.requests thead th:nth-child(3), .requests thead th:nth-child(5) { width: 10% }
.requests thead th:nth-child(6) { width: 5rem }
.hours { max-width: 40rem }
@media (max-width: 60rem) {
  table.wide thead { position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%) }
  table.wide, .wide tbody, .wide tr, .wide td, .wide tbody th { display: block; padding: 0.1rem 0 }
  .wide tbody tr { padding: 0.4rem 0 }
  .wide td.some { display: inline-block; padding-right: 1rem }
  .wide td[data-column]::before { content: attr(data-column) ": "; color: var(--faint) }
  .wide td.none { display: none }
  .wide .days { display: inline-block }
  .axis span:nth-child(even) { display: none }
}
@media (forced-colors: active) {
  .needs li { border-color: Mark; border-left-style: double; border-left-width: 0.5rem }
  .needs .isfair { border-left-style: solid }
  .chart .ok, .days { fill: CanvasText }
  .chart .failed { fill: Highlight; stroke: CanvasText }
  .key i { forced-color-adjust: none; border: 1px solid CanvasText }
  .key .ok { background: CanvasText } .key .failed { background: Highlight }
}
"""
STYLE_SHA256: Final = hashlib.sha256(ADMIN_STYLE.encode()).digest()
STYLE_DIGEST: Final = base64.b64encode(STYLE_SHA256).decode()
# Nothing may run, load or be sent elsewhere, even if a name got past `escaped`.  The style is
# allowed by its digest: 'unsafe-inline' would allow any.  The one form chooses the zone.
ADMIN_CSP: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    f"style-src 'sha256-{STYLE_DIGEST}'"
)
# A template for str.format, which holds nothing but markup.
PAGE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}<style>{style}</style></head>
<body><header>{header}</header>
<main>{sections}</main></body></html>
"""
REFRESH: Final = '<meta http-equiv="refresh" content="10">\n'


def escaped(text: str) -> str:
    """Text for HTML, between tags or in a quoted attribute.

    Names may come from clients and upstreams: in whatever form, they stay text.
    """
    return html.escape(printable(text))


def link(text: str, view: View, anchor: str = "", **changes: object) -> str:
    """A link to the page with another view.

    All its filters are kept, so that they can be combined, and each can be removed alone.
    """
    query = urlencode(query_of(view, changes), errors="replace")
    return f'<a href="?{escaped(query)}{anchor}">{escaped(text)}</a>'


def query_of(view: View, changes: Facts) -> dict[str, str]:
    """The members of the page's query with which it shows a view that was changed."""
    members: Shown = {name: getattr(view, name) for name in PAGE_QUERY}
    members.update(changes)
    return {name: "1" if value is True else value for name, value in members.items() if value}


def need_html(need: Need) -> str:
    """One thing that needs attention; what to do is on a line of its own, to be copied."""
    words, colon, command = need.advice.partition(": ")
    advice = f"<br>{escaped(words)}" if words else ""
    if colon:  # `Log in with: pooler login NAME`
        advice += f": <code>{escaped(command)}</code>"
    return (
        f'<li class="is{need.severity}"><strong class="{need.severity}">{escaped(need.title)}.'
        f"</strong> {escaped(need.text)}{advice}</li>"
    )


def needs_html(needs: Sequence[Need]) -> str:
    """The section on top; a long list is folded.

    It says so if there is nothing: an operator must not wonder whether something is missing.
    """
    items = [need_html(need) for need in needs]
    content = f'<ul class="needs">{"".join(items[:NEEDS_OPEN])}</ul>'
    folded = items[NEEDS_OPEN:]
    if folded:
        content += f"""<details><summary>{len(folded)} more</summary>
<ul class="needs">{"".join(folded)}</ul></details>"""
    if not items:
        content = '<p class="good">Nothing.</p>'
    return f"<section><h2>Needs you ({len(items)})</h2>{content}</section>"


def share(part: int, whole: int) -> str:
    """A part of a whole in per cent: `55 %`; 0 % of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def seconds_words(milliseconds: int | None) -> str:
    """A short duration in seconds; `-` if it is unknown: no stream has begun in the last hour."""
    return "-" if milliseconds is None else f"{milliseconds / 1000:.3g}"


def failed_html(sums: Facts) -> str:
    """How many requests failed, in red if any did."""
    tone = "bad" if sums["failed"] else "faint"
    failed = share(sums["failed"], sums["requests"])
    return f'<span class="{tone}">{sums["failed"]:,} failed ({failed})</span>'


def tiles_html(shown: Facts) -> str:
    """The last hour and today in a few figures."""
    hour, today = shown["last_hour"], shown["today"]
    causes = [f"{row['count']:,} {escaped(row['code'])}" for row in hour["causes"][:3]]
    count, _, names = ", then ".join(causes or ["0 none"]).partition(" ")
    p50, p95 = (seconds_words(hour[f"first_event_p{rank}_ms"]) for rank in (50, 95))
    cached = share(hour["cached_tokens"], hour["input_tokens"])
    cost = "" if today["cost"] is None else f"<br>Cost at your prices: {today['cost']:,.2f}."

    return f"""<ul class="tiles">
<li>Last hour<b>{hour["requests"]:,} requests</b>{failed_html(hour)}</li>
<li>Main causes, last hour<b>{count}</b>{names}</li>
<li>First event, last hour<b>{p50} / {p95} s</b>p50 / p95 of {hour["responses"]:,} responses</li>
<li>Tokens, last hour<b>{tokens_of(hour):,}</b>{cached} of the input from cache</li>
<li>Today (UTC)<b>{tokens_of(today):,} tokens</b>{today["requests"]:,} requests,
{failed_html(today)}{cost}</li>
</ul>"""


def picture(kind: str, width: int, height: int, label: str, content: str) -> str:
    """An <svg> as wide as its place; `label` is what a screen reader says."""
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" preserveAspectRatio="none" '
        f'role="img" aria-label="{label}">{content}</svg>'
    )


def hours_html(shown: Facts, zone: tzinfo) -> str:
    """Requests by hour: a drawing, and a folded table of its figures."""
    hours = shown["hours"]
    most = max((hour["requests"] for hour in hours), default=0)
    total = sum(hour["requests"] for hour in hours)
    failed = sum(hour["failed"] for hour in hours)
    label = f"{total:,} requests in 24 hours, {failed:,} failed, at most {most:,} in an hour."

    names, columns, rows = [], [], []
    for index, hour in enumerate(hours):
        name = clock_time(hour["at"], Clock(hour["at"], zone))
        names.append(f"<span>{name}</span>")
        columns.append(hour_html(hour, name, index, most))
        rows.append(
            f'<tr><th scope="row">{name}</th><td>{hour["requests"]:,}</td>'
            f"<td>{hour['failed']:,}</td><td>{tokens_of(hour):,}</td></tr>"
        )

    label_with_hint = f"{label} The table below has the figures."
    chart = picture("chart", 10 * len(hours), 100, label_with_hint, "".join(columns))
    heads = heads_html(["Hour", "Requests", "Failed", "Tokens"])
    return f"""<section><h2>Requests by hour, 24 h</h2>{chart}
<div class="axis" aria-hidden="true">{"".join(names[::3])}</div>
<div class="key faint">{label}<i class="ok"></i>ok<i class="failed"></i>failed</div>
<details><summary>Figures</summary>
<table class="hours">{heads}<tbody>{"".join(rows)}</tbody></table></details></section>"""


def hour_html(hour: Facts, name: str, index: int, most: int) -> str:
    """One hour of the drawing: what failed stands on what did not.

    A single failure among thousands is seen as well: it has at least 2 of 100 units.
    """
    failed = max(2.0, 100 * hour["failed"] / most) if hour["failed"] else 0
    ok = min(100 - failed, 100 * (hour["requests"] - hour["failed"]) / (most or 1))
    x = 10 * index
    title = f"{name}: {hour['requests']:,} requests, {hour['failed']:,} failed"
    return (
        f'<g><title>{title}</title><rect class="room" x="{x}" y="0" width="10" height="100"/>'
        f'<rect class="ok" x="{x + 1}" y="{100 - ok:.1f}" width="8" height="{ok:.1f}"/>'
        f'<rect class="failed" x="{x + 1}" y="{100 - ok - failed:.1f}" width="8" '
        f'height="{failed:.1f}"/></g>'
    )


def days_html(days: Sequence[Facts]) -> str:
    """A key's tokens by day as small bars; the label has the figures.

    They are one path: an element for each day of a hundred keys would make the page slow.
    """
    counts = [tokens_of(day) for day in days]
    most = max(counts, default=0) or 1
    heights = [round(18 * count / most) for count in counts]
    path = [f"M{10 * index} 18v-{height}h8v{height}z" for index, height in enumerate(heights)]
    label = ", ".join(f"{count:,}" for count in counts)
    label = f"Tokens by day, the oldest first: {label}"
    return picture("days", 10 * len(days), 18, label, f'<path d="{"".join(path)}"/>')


def bar_html(bar: Bar) -> str:
    """A <meter>, which a browser colours by the range of its value, and the words next to it."""
    return (
        f'<div class="bar"><meter aria-label="{escaped(bar.name)}" min="0" low="89.9" high="99.9" '
        f'max="100" optimum="0" value="{bar.used_percent:.4g}"></meter>'
        f"<span>{escaped(bar.words)}</span></div>"
    )


def cell_html(row: Row, column: str, view: View) -> str:
    """The text of a cell, as a link if it is a filter.

    The link ends at the requests, which are what it filters.
    """
    text = row.cells[column]
    for place in row.links:
        if place.column == column:
            return link(text, view, "#requests", **{place.name: place.value})
    return escaped(text)


def row_html(row: Row, view: View) -> str:
    """One `<tr>`: its name as a row header, the state with its tone, the other cells, the rest.

    On a narrow screen the style writes `data-column` before each cell, as the heads are hidden.
    """
    name, state, *others = row.cells
    shown = escaped(row.cells[state])
    cells = [
        f'<th scope="row">{cell_html(row, name, view)}</th>',
        f'<td data-column="{state}"><span class="{row.tone}">{shown}</span></td>',
    ]

    bars = "".join(bar_html(bar) for bar in row.bars)
    for column in others:
        is_empty = row.cells[column] == "-"
        content = cell_html(row, column, view) + bars
        if bars and is_empty:
            content = bars
        kind = "none" if content == "-" else "some"
        cells.append(f'<td data-column="{column}" class="{kind}">{content}</td>')
        bars = ""

    if row.days:
        cells.append(f'<td data-column="14 days" class="some">{days_html(row.days)}</td>')
    more = [
        f"<dt>{column}</dt><dd>{escaped(text)}</dd>" for column, text in row.more.items() if text
    ]
    folded = f"<details><summary>more</summary><dl>{''.join(more)}</dl></details>"
    return f'<tr>{"".join(cells)}<td class="also">{folded}</td></tr>'


def heads_html(columns: Iterable[str]) -> str:
    """The head of a table."""
    heads = [f'<th scope="col">{column}</th>' for column in columns]
    return f"<thead><tr>{''.join(heads)}</tr></thead>"


# The two tables of a section that is folded have columns of the same widths, which the style sets:
# the eye goes on where it was.


def table_html(rows: Sequence[Row], view: View) -> str:
    """Rows with their heads, or `None.`

    The last column has no facts of its own: it unfolds the rest of its row.
    """
    if not rows:
        return '<p class="faint">None.</p>'
    columns = [*rows[0].cells, *(["14 days"] if rows[0].days else []), "Also"]
    lines = "\n".join(row_html(row, view) for row in rows)
    return f'<table class="wide">{heads_html(columns)}\n<tbody>{lines}</tbody></table>'


def folded_html(rows: Sequence[Row], view: View, open_count: int, count: int) -> str:
    """The first rows as a table, the others as one that is folded.

    `count` is how many there are: a browser takes long for thousands, and so does the event loop
    that makes them.
    """
    content = table_html(rows[:open_count], view)
    folded = rows[open_count:]
    if folded:
        table = table_html(folded, view)
        content += f"<details><summary>{len(folded)} more</summary>{table}</details>"
    if count > len(rows):
        left_out = count - len(rows)
        content += f'<p class="faint">{left_out:,} more are left out; the JSON has all.</p>'
    return content


def section_html(shown: Facts, table: str, view: View) -> str:
    """A heading and its table."""
    rows = rows_of(shown, table, view.zone_info)
    content = folded_html(rows, view, ROWS_OPEN[table], len(shown[table]))
    return f'<section id="{table}"><h2>{table.title()}</h2>{content}</section>'


def requests_html(shown: Facts, view: View) -> str:
    """Failed requests, and the latest ones unless only failed ones are wanted.

    Who has set a filter wants to see what it found: then no row is folded.
    """
    tables = {"failures": "Failed requests", "requests": "Latest requests"}
    if view.failed:
        del tables["requests"]
    filters = filter_links(view)

    sections = []
    for table, heading in tables.items():
        rows = rows_of(shown, table, view.zone_info)
        is_filtered = len(filters) > 1 or view.failed
        open_count = ROWS_MADE_MAX if is_filtered else ROWS_OPEN[table]
        content = folded_html(rows, view, open_count, len(rows))
        sections.append(f'<section class="requests"><h2>{heading}</h2>{content}</section>')

    return f"""<div id="requests"><p class="faint">Show requests: {", ".join(filters)}</p>
{"".join(sections)}</div>"""


def filter_links(view: View) -> list[str]:
    """The filters of requests that are set, each with a link that removes it; and one to set.

    The others are set by the names of keys, accounts and models, which are links.
    """
    links = []
    for name in ("key", "account", "model"):
        value = getattr(view, name)
        if value:
            remove = link("remove", view, "#requests", **{name: ""})
            links.append(f"of the {name} {escaped(value)} ({remove})")

    if view.failed:
        return [*links, f"failed ({link('remove', view, '#requests', failed='')})"]
    return [*links, link("only failed ones", view, "#requests", failed=True)]


def header_html(shown: Facts, view: View) -> str:
    """What the pooler itself does, in which zone times are, and how the page shows it."""
    hidden = [
        f'<input type="hidden" name="{name}" value="{escaped(value)}">'
        for name, value in query_of(view, {"zone": ""}).items()
    ]
    refresh = link("refresh every 10 s", view, refresh=True)
    if view.refresh:
        refresh = link("do not refresh", view, refresh="")

    return f"""<h1>codex-pooler</h1>
<p class="faint">{escaped(headline(shown, view))}, {refresh}</p>
<form method="get">{"".join(hidden)}<label>Times in <input name="zone" size="16"
placeholder="Europe/Berlin" autocomplete="off"></label> <button>Show</button></form>"""


def admin_page(snapshot: Facts, view: View = DEFAULT_VIEW) -> str:
    """GET /admin as HTML; ADMIN_CSP must be sent with it."""
    shown = overview(snapshot, view)
    needs = attention(shown, view.zone_info)

    sections = [
        needs_html(needs),
        tiles_html(shown),
        hours_html(shown, view.zone_info),
        *[section_html(shown, table, view) for table in ("accounts", "pools", "keys")],
        requests_html(shown, view),
    ]
    return PAGE.format(
        title=f"({len(needs)}) codex-pooler" if needs else "codex-pooler",
        refresh=REFRESH if view.refresh else "",
        style=ADMIN_STYLE,
        header=header_html(shown, view),
        sections="\n".join(sections),
    )


################################################################
# STATUS TEXT
################################################################
# What `pooler status` prints.  That program only asks for it: the server knows what its own state
# looks like, so the two may be of different versions.

# Select Graphic Rendition of ECMA-48.
COLOURS: Final = {
    "good": "\033[32m",
    "fair": "\033[33m",
    "bad": "\033[31m",
    "bold": "\033[1m",
}
BAR_CELLS: Final = 10


def tinted(text: str, tone: str, is_coloured: bool) -> str:
    """The text in the colour of its tone, if colours were asked for."""
    if not is_coloured:
        return text
    return f"{COLOURS[tone]}{text}\033[0m"


def plain(text: str) -> str:
    """The text in characters that are sure to take one place of a terminal each.

    Wide and combining ones would push the next columns aside; an escape sequence could do worse.
    """
    return re.sub(r"[^ -~█░…]", "?", text)


def fitted(text: str, width: int) -> str:
    """At most `width` characters, all of them `plain`."""
    text = plain(text)
    if len(text) <= width:
        return text
    return f"{text[: width - 1]}…"


def wrapped(text: str, columns: int, indent: str = "  ") -> list[str]:
    """The text in lines; all but the first are indented."""
    return textwrap.wrap(plain(text), columns, subsequent_indent=indent, break_on_hyphens=False)


def bar_text(bar: Bar) -> str:
    """A quota window as a bar of BAR_CELLS cells, the last one full only at 100 %."""
    used_percent = min(100, bar.used_percent)
    full_cells = int(used_percent * BAR_CELLS / 100)
    drawn = ("█" * full_cells).ljust(BAR_CELLS, "░")
    return f"  {drawn} {bar.words}"


def bar_lines(bars: Sequence[Bar], columns: int) -> list[str]:
    """The bars of a row, as many in a line as fit: lines are scarce on a terminal."""
    lines: list[str] = []
    for bar in bars:
        text = bar_text(bar)
        if not bar.words:
            continue
        if lines and len(lines[-1]) + len(text) <= columns:
            lines[-1] += text
        else:
            lines.append(text)
    return [fitted(line, columns) for line in lines]


Item = list[str]  # the lines of one row, or of one need


class Block(NamedTuple):
    """A part of the status text, of which the last items are cut first."""

    head: list[str]  # lines
    items: list[Item]
    name: str  # what the items are: `accounts`
    left_out: int = 0  # items that were not made


def table_block(
    rows: Sequence[Row],
    name: str,
    columns: int,
    is_coloured: bool,
) -> Block:
    """Lines with aligned cells, each followed by the bars of its row.

    A column is as wide as its longest cell, at most half a line; what does not fit is cut off.  The
    second column never is: it has the end of a cooldown.
    """
    title = ["", tinted(name.upper(), "bold", is_coloured)]
    if not rows:
        return Block([*title, "None."], [], name)

    tables = [{column: column for column in cells_of(rows[0])}, *map(cells_of, rows)]
    widths = {
        column: min(columns // 2, max(len(table[column]) for table in tables))
        for column in tables[0]
    }
    first, second, *_ = widths
    widths[second] = max(len(table[second]) for table in tables)
    room = columns - widths[second] - len("    …")  # what is cut off begins after both
    widths[first] = max(NAME_CHARS_MIN, min(widths[first], room))

    lines = []
    for table in tables:
        cells = [
            fitted(text, widths[column]).ljust(widths[column]) for column, text in table.items()
        ]
        lines.append(fitted("  ".join(cells).rstrip(), columns))
    items = [
        [tinted(line, row.tone, is_coloured), *bar_lines(row.bars, columns)]
        for line, row in zip(lines[1:], rows, strict=True)
    ]
    return Block([*title, tinted(lines[0], "bold", is_coloured)], items, name)


def cells_of(row: Row) -> dict[str, str]:
    """All cells of a row; a column that has only bars is left out.

    What the page folds comes last, where a narrow terminal cuts it off.
    """
    cells = {column: text for column, text in row.cells.items() if column not in BAR_COLUMNS}
    return {**cells, **{column: text or "-" for column, text in row.more.items()}}


def needs_block(needs: Sequence[Need], columns: int, is_coloured: bool) -> Block:
    """What needs attention, each with what to do about it.

    Lines are wrapped and not cut: a command that has lost its end is worth nothing.
    """
    items = []
    for need in needs[:ROWS_MADE_MAX]:
        lines = wrapped(f"! {need.title}. {need.text}", columns)
        item = [tinted(line, need.severity, is_coloured) for line in lines]
        advice = wrapped(f"  {need.advice}", columns) if need.advice else []
        items.append([*item, *advice])

    title = f"NEEDS YOU ({len(needs)})"
    return Block(["", tinted(title, "bold", is_coloured)], items, "needs", len(needs) - len(items))


def cut_blocks(blocks: Sequence[Block], rows: int) -> list[str]:
    """The blocks in at most `rows` lines: the last items are cut first, and counted.

    A block of which nothing would be left has no head either.
    """
    lines = [line for block in blocks for line in block_lines(block)]
    if len(lines) <= rows and not any(block.left_out for block in blocks):
        return lines

    lines = []
    cut = []
    for block in blocks:
        # The last line is for what is cut.
        shown = fitting(block, rows - 1 - len(lines) - len(block.head))
        if shown.items:
            lines += block_lines(shown)

        count = len(block.items) - len(shown.items) + block.left_out
        if count:
            name = block.name.removesuffix("s") if count == 1 else block.name
            cut.append(f"{count} more {name}")

    return [*lines, f"and {', '.join(cut)}"]


def block_lines(block: Block) -> list[str]:
    """All lines of a block."""
    return [*block.head, *itertools.chain.from_iterable(block.items)]


def fitting(block: Block, rows: int) -> Block:
    """The block with the first items that fit in so many lines; of the first as much as fits."""
    shown: list[Item] = []
    for item in block.items:
        if len(item) > rows:
            break
        shown.append(item)
        rows -= len(item)

    if not shown and rows > 0:
        shown = [item[:rows] for item in block.items[:1]]
    return block._replace(items=shown)


def status_text(
    snapshot: Facts,
    columns: int = COLUMNS,
    is_coloured: bool = False,
    rows: int | None = None,
    view: View = DEFAULT_VIEW,
) -> str:
    """GET /admin as plain text, in lines of at most `columns` characters and their colours.

    With `rows` in at most so many lines.  There are fewer requests in it than on the page: the
    newest must not scroll away.
    """
    columns = min(max(columns, COLUMNS_MIN), COLUMNS_MAX)
    shown = overview(snapshot, view)
    zone = view.zone_info
    tables = ["accounts", "pools", "keys", "requests"]
    blocks = []
    if view.failed:
        tables = ["failures"]
    else:
        blocks.append(needs_block(attention(shown, zone), columns, is_coloured))
        shown["requests"] = shown["requests"][:STATUS_REQUESTS_MAX]

    for name in tables:
        block = table_block(rows_of(shown, name, zone), name, columns, is_coloured)
        blocks.append(block._replace(left_out=len(shown[name]) - len(block.items)))

    top = fitted(f"codex-pooler {headline(shown, view)}", columns)
    rows_max = ROWS_OF_TEXT_MAX if rows is None else max(rows, ROWS_OF_TEXT_MIN)
    return "\n".join([top, *cut_blocks(blocks, rows_max - 1)]) + "\n"


################################################################
# METRICS
################################################################
# Prometheus' text format 0.0.4.  One function for each subject yields its families.  Names and
# labels are an interface: dashboards and alerts are built on them.  The number of series is bounded
# in pooler.py, which counts what is too much under `other`.

Labels = Mapping[str, str | None]
Sample = tuple[Labels, float | None]  # None: unknown, so there is no sample


class Family(NamedTuple):
    """A metric with all its samples; of a summary those of each suffix."""

    name: str  # after `codex_pooler_`
    kind: str  # gauge, counter or summary
    help: str
    samples: Mapping[str, Iterable[Sample]]  # by suffix


def gauge(name: str, words: str, samples: Iterable[Sample]) -> Family:
    """A metric that goes up and down: what is so at the moment of the snapshot."""
    return Family(name, "gauge", words, {"": samples})


def counter(name: str, words: str, samples: Iterable[Sample]) -> Family:
    """A metric that only grows, from 0 at each start; its name ends with `_total`.

    Prometheus notices a restart by itself, so nothing has to be kept on a disk.
    """
    return Family(f"{name}_total", "counter", words, {"": samples})


def picked(row: Facts, *names: str) -> Shown:
    """The members of a row that become labels."""
    return {name: row[name] for name in names}


def process_metrics(snapshot: Facts) -> Iterator[Family]:
    """What the process as a whole does.

    The start time shows restarts; `draining` keeps an alert quiet while one is in progress.
    """
    shown = visible(snapshot, "")
    version = {"version": shown["version"]}
    yield gauge("build_info", "Always 1; the version is a label.", [(version, 1)])

    for name, field, words in (
        ("start_time_seconds", "started_at", "Start time in Unix seconds."),
        ("draining", "is_draining", "1 while the pooler is shutting down."),
        ("connections", "connections", "Open client connections."),
        ("websockets", "websockets", "Open client WebSockets."),
        ("requests_in_flight", "in_flight", "Requests in progress."),
    ):
        yield gauge(name, words, [({}, shown[field])])


def attention_metrics(snapshot: Facts) -> Iterator[Family]:
    """How much needs attention: the one figure to alert on."""
    count = len(attention(snapshot))  # nothing else of it leaves, so nothing is copied first
    yield gauge("needs_attention", "Number of things that need attention.", [({}, count)])


def pool_metrics(snapshot: Facts) -> Iterator[Family]:
    """How busy each pool is.

    A queue that does not get shorter means that the pool needs another account.
    """
    pools = [({"pool": pool["name"]}, pool) for pool in visible(snapshot["pools"], "pools")]
    yield gauge(
        "pool_requests_in_flight",
        "Requests in progress in a pool.",
        [(labels, pool["in_flight"]) for labels, pool in pools],
    )
    yield gauge(
        "pool_requests_queued",
        "Requests waiting for an account.",
        [(labels, pool["queued"]) for labels, pool in pools],
    )

    yield gauge(
        "pool_model_servable",
        "1 if an account of the pool can serve the model now.",
        [
            ({**labels, "model": row["model"]}, int(row["status"] == "ready"))
            for labels, pool in pools
            for row in pool["serving"]
        ],
    )


def key_metrics(snapshot: Facts) -> Iterator[Family]:
    """How busy each key is."""
    yield gauge(
        "key_requests_in_flight",
        "Requests in progress with a key.",
        [
            ({"pool": key["pool"], "key": key["name"]}, key["in_flight"])
            for key in visible(snapshot["keys"], "keys")
        ],
    )


def account_metrics(snapshot: Facts) -> Iterator[Family]:
    """How busy each account is, and what keeps it from serving.

    An account with an API key has no token that expires, so it has no sample of that family.
    """
    accounts = [
        ({"account": account["name"]}, account)
        for account in visible(snapshot["accounts"], "accounts")
    ]
    yield gauge(
        "account_requests_in_flight",
        "Requests in progress at an account.",
        [(labels, account["in_flight"]) for labels, account in accounts],
    )
    yield gauge(
        "account_state",
        "Always 1; the state is a label.",
        [({**labels, "state": account["status"]}, 1) for labels, account in accounts],
    )

    yield gauge(
        "account_failures",
        "Attempts in a row that failed; 0 after a success.",
        [(labels, account["failures"]) for labels, account in accounts],
    )
    yield gauge(
        "account_last_success_timestamp_seconds",
        "Time of the last success in Unix seconds.",
        [(labels, account["last_success_at"]) for labels, account in accounts],
    )

    # 0, and not missing, if the account does not cool down: a graph of it has no gaps.
    now = snapshot["at"]
    yield gauge(
        "account_cooldown_seconds",
        "Seconds until the account is used again.",
        [(labels, max(0, (account["until"] or now) - now)) for labels, account in accounts],
    )
    yield gauge(
        "token_expiry_timestamp_seconds",
        "Expiry time of an account's token in Unix seconds.",
        [(labels, account["token_ends_at"]) for labels, account in accounts],
    )


def quota_metrics(snapshot: Facts) -> Iterator[Family]:
    """The quota windows of ChatGPT accounts, and of API keys whose upstream reports any.

    Only windows that have not ended are in the snapshot, so a ratio never outlives its window.
    """
    windows = [
        ({"account": account["name"], **picked(window, "family", "window")}, window)
        for account in visible(snapshot["accounts"], "accounts")
        for window in account["windows"]
    ]
    yield gauge(
        "quota_used_ratio",
        "Used fraction of a quota window; 1 means all of it.",
        [(labels, window["used_percent"] / 100) for labels, window in windows],
    )
    yield gauge(
        "quota_reset_timestamp_seconds",
        "Reset time of a quota window in Unix seconds.",
        [(labels, window["resets_at"]) for labels, window in windows],
    )


def request_metrics(snapshot: Facts) -> Iterator[Family]:
    """Requests, their duration and the wait for their first byte, by all labels.

    Durations are summaries of a sum and a count: enough for an average, and bounded in memory.
    """
    names = ("pool", "key", "account", "model", "route", "code")
    totals = [(picked(row, *names), row) for row in visible(snapshot["totals"], "totals")]
    counts = [(labels, row["requests"]) for labels, row in totals]
    yield counter("requests", "Requests by code: ok, or an error code.", counts)

    for name, field, words in (
        ("request_seconds", "seconds", "Seconds until the end of a response."),
        (
            "first_event_seconds",
            "first_byte_seconds",
            "Seconds until the first byte of a response.",
        ),
    ):
        sums = [(labels, row[field]) for labels, row in totals]
        yield Family(name, "summary", words, {"_sum": sums, "_count": counts})


def volume_metrics(snapshot: Facts) -> Iterator[Family]:
    """Tokens and bytes.

    They have fewer labels than the requests have: route and code are left out, and those rows are
    added up.
    """
    totals = visible(snapshot["totals"], "totals")
    names = ("pool", "key", "account", "model")
    yield counter(
        "tokens",
        "Tokens reported by upstreams; input includes cached, output includes reasoning.",
        [
            ({**picked(row, *names), "kind": kind}, row[f"{kind}_tokens"])
            for row in totals
            for kind in ("input", "output", "cached", "reasoning")
        ],
    )

    yield counter(
        "body_bytes",
        "Bytes of request and response bodies.",
        [
            ({**picked(row, "pool", "key", "account"), "direction": way}, row[f"bytes_{way}"])
            for row in totals
            for way in ("in", "out")
        ],
    )


def outcome_metrics(snapshot: Facts) -> Iterator[Family]:
    """How attempts at accounts and refreshes of logins have ended.

    Attempts outnumber requests if accounts stand in for each other; the reason says why.
    """
    attempts = visible(snapshot["attempts"], "attempts")
    yield counter(
        "attempts",
        "Attempts at an account, by outcome.",
        [(picked(row, "account", "reason"), row["count"]) for row in attempts],
    )
    refreshes = visible(snapshot["refreshes"], "refreshes")
    yield counter(
        "refreshes",
        "Login refreshes, by outcome.",
        [(picked(row, "account", "outcome"), row["count"]) for row in refreshes],
    )


METRICS: Final = (
    process_metrics,
    attention_metrics,
    pool_metrics,
    key_metrics,
    account_metrics,
    quota_metrics,
    request_metrics,
    volume_metrics,
    outcome_metrics,
)


def label_text(labels: Labels) -> str:
    """Labels as they follow a metric's name, their values escaped.

    A line end would have to be escaped as well, but `printable` leaves none.
    """
    members = []
    for name, value in labels.items():
        text = printable(value or "").replace("\\", r"\\").replace('"', r"\"")
        members.append(f'{name}="{text}"')
    return f"{{{','.join(members)}}}" if members else ""


def family_lines(family: Family) -> Iterator[str]:
    """A family's lines; samples with the same labels are one, their sum.

    Prometheus refuses a whole page if two samples have the same labels.
    """
    name = f"codex_pooler_{family.name}"
    yield f"# HELP {name} {family.help}"
    yield f"# TYPE {name} {family.kind}"

    for suffix, samples in family.samples.items():
        series: dict[str, float] = {}
        for labels, value in samples:
            if value is not None:
                key = label_text(labels)
                series[key] = series.get(key, 0) + value
        yield from (f"{name}{suffix}{key} {value}" for key, value in series.items())


def metrics_text(snapshot: Facts) -> str:
    """GET /metrics: the families of all subjects, in the order of METRICS."""
    families = [family for group in METRICS for family in group(snapshot)]
    return "\n".join(line for family in families for line in family_lines(family)) + "\n"


################################################################
# ROUTES
################################################################

# Sent with each form: what a browser shows of it must not run, load or leak anything.
PAGE_HEADERS: Final[Headers] = (
    ("content-security-policy", ADMIN_CSP),
    ("referrer-policy", "no-referrer"),
    ("vary", "accept"),
)


def admin(snapshot: Facts, accept: str, query: str) -> tuple[Headers, str]:
    """Headers and body of GET /admin, in the form that the field Accept asks for.

    HTML unless it names application/json or text/plain.  `query` has the members of a `View`, and
    for plain text `columns` and `rows`, the size of the terminal, and `colour=1`.
    """
    members = query_members(query)
    view = view_of(members)
    if "application/json" in accept:
        text = json.dumps(overview(snapshot, view))  # ASCII
        return with_type("application/json"), text

    if "text/plain" in accept:
        columns = size_of(members, "columns")
        text = status_text(
            snapshot,
            COLUMNS if columns is None else columns,
            members.get("colour") == "1",
            size_of(members, "rows"),
            view,
        )
        return with_type("text/plain; charset=utf-8"), text

    return with_type("text/html; charset=utf-8"), admin_page(snapshot, view)


def size_of(members: Mapping[str, str], name: str) -> int | None:
    """A size in the query; None if it is missing or no number of at most four digits."""
    text = members.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,4}", text) else None


def metrics(snapshot: Facts) -> tuple[Headers, str]:
    """Headers and body of GET /metrics."""
    kind = "text/plain; version=0.0.4; charset=utf-8"
    return with_type(kind), metrics_text(snapshot)


def with_type(kind: str) -> Headers:
    """The headers of a response to an operator: nothing in it may be used elsewhere."""
    return [
        ("content-type", kind),
        *PAGE_HEADERS,
    ]


################################################################
# SCHEMAS
################################################################
# Each MCP tool has a JSON Schema of its arguments and one of its result, which hosts read in
# tools/list.  Both are also enforced: a call whose arguments do not fit is refused, and a result
# that does not fit is a bug that shows nothing.  A few keywords are enough, so a function of a few
# lines (`fits`) checks them without a library.

TEXT: Final[Schema] = {"type": "string"}
INTEGER: Final[Schema] = {"type": "integer"}
NUMBER: Final[Schema] = {"type": "number"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
# Python's types for JSON's, compared exactly: True is an int to Python, and no number to JSON.
TYPES: Final[Mapping[str, Collection[type]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def one_of(*words: str) -> Schema:
    """A text that is one of these words."""
    return {**TEXT, "enum": list(words)}


def optional(schema: Schema) -> Schema:
    """What the schema describes, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def list_of(schema: Schema) -> Schema:
    """A list of what the schema describes."""
    return {"type": "array", "items": schema}


def object_of(**fields: Schema) -> Schema:
    """An object with exactly these members; those with a default may be left out."""
    required = [name for name, schema in fields.items() if "default" not in schema]
    return {
        "type": "object",
        "properties": fields,
        "required": required,
        "additionalProperties": False,
    }


def choice_argument(description: str, *words: str) -> Schema:
    """An argument that is one of these words, or `any`.

    No word is empty: Gemini refuses every tool of a host if one of them has such a choice.
    """
    return {
        **one_of("any", *words),
        "description": description,
        "default": "any",
    }


def text_argument(description: str, **more: object) -> Schema:
    """An argument that is a short text; `more` may have its default and its format."""
    return {
        **TEXT,
        "maxLength": TEXT_CHARS_MAX,
        "description": description,
        **more,
    }


def whole_argument(description: str, least: int, most: int, default: int) -> Schema:
    """An argument that is a whole number from `least` to `most`."""
    return {
        **INTEGER,
        "description": description,
        "minimum": least,
        "maximum": most,
        "default": default,
    }


def fits(value: Any, schema: Schema) -> bool:
    """Whether a value is what the schema describes.

    An object of a result must have all of the members; `wrong_arguments` knows about defaults.
    """
    if "anyOf" in schema:
        options = schema["anyOf"]
        return any(fits(value, option) for option in options)

    if type(value) not in TYPES[schema["type"]]:
        return False

    if isinstance(value, dict):
        members = schema["properties"]
        if value.keys() != members.keys():
            return False
        return all(fits(value[name], member) for name, member in members.items())

    if isinstance(value, list):
        items = schema["items"]
        return all(fits(member, items) for member in value)

    return is_within(value, schema)


def instant(text: str) -> float | None:
    """A time of RFC 3339 in Unix seconds; None if the text is no such time.

    One without its zone is refused: nobody would know which hour it means.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.timestamp() if time.tzinfo else None


def is_within(value: Any, schema: Schema) -> bool:
    """Whether a plain value keeps the bounds of its schema: length, choice, format or range.

    A schema without bounds takes every value of its type.
    """
    if isinstance(value, str):
        length_max = schema.get("maxLength", len(value))
        words = schema.get("enum", [value])
        is_read = "format" not in schema or instant(value) is not None
        return is_read and len(value) <= length_max and value in words

    if "minimum" in schema:
        return bool(schema["minimum"] <= value <= schema["maximum"])

    return True


################################################################
# TOOLS
################################################################
# Read-only, and metadata only.  Names and fields follow the tools of icoretech/codex-pooler, so
# that what was written for those works here.  A model reads the results, so a name that a client or
# an upstream may have chosen goes through `word`, and a reason through `sentence`: neither can
# carry an instruction of any length.  Names from pools.json are the operator's own.
#
# To add a tool: its schemas, the function that makes its result, and a row in TOOLS.  To add a
# field: first to VISIBLE, then to a schema and to the function next to it; `run_tool` notices if
# one of the two is missing.

Explain = Callable[[str, str, str | None], Facts]  # pool, model, session; raises LookupError


class Call(NamedTuple):
    """One call of a tool: who asks, in which protocol version, and what the result is made from."""

    operator: str
    protocol_version: str
    protocol_versions: Sequence[str]  # all that are supported
    snapshot: Facts  # of this one request
    explain: Explain


class Tool(NamedTuple):
    """What MCP hosts read about a tool, and the function that returns its result.

    `run` need not look at the types of its arguments: `call_tool` has compared them with `takes`.
    """

    title: str  # for people
    description: str  # for a model
    takes: Schema  # the arguments
    gives: Schema  # the result
    run: Callable[[Call, Facts], Shown]  # the arguments with their defaults


def word(name: str | None) -> str | None:
    """A name that a client or an upstream may have chosen: short, without markup or controls.

    Other characters than those of a usual name become `?`; None stays None.
    """
    if name is None:
        return None
    return re.sub(r"[^A-Za-z0-9._:/@+-]", "?", name[:WORD_CHARS_MAX])


def sentence(text: str | None, chars_max: int = TEXT_CHARS_MAX) -> str | None:
    """A reason or advice in words of pooler.py's, cleaned like a `word`.

    A reason may quote an upstream's code; advice has commands, and references to secrets like
    `{env:OPENAI_API_KEY}`.
    """
    if text is None:
        return None
    return re.sub(r"""[^A-Za-z0-9._:/@+ ,;(){}'"=&%-]""", "?", text[:chars_max])


def moment(unix: float | None) -> str | None:
    """A time in RFC 3339, in UTC and to the second; None stays None."""
    if unix is None:
        return None
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%dT%H:%M:%SZ}"


def outcome(code: str | None) -> str:
    """What became of a request, by its error code: a client that left is no error."""
    words = {None: "ok", "client_gone": "aborted"}
    return words.get(code, "error")


# The words that pooler.py uses for a status.  Another one does not fit the schema, which is a bug:
# hosts may have built on this list.
ACCOUNT_STATUS: Final = one_of(
    *"ready cooling_down at_limit refused login_needed failing unreachable paused".split()
)
SERVING_STATUS: Final = one_of("ready", "limited", "down")
# Where pools.json gets a secret from: itself, the environment, a file, or only a digest of it.
SOURCE: Final = one_of("literal", "env", "file", "sha256")
TIME: Final = optional(TEXT)  # RFC 3339, in UTC

# The condition of an account: what, why, since when, and what to do about it.
CONDITION: Final = {
    "status": ACCOUNT_STATUS,
    "reason": optional(TEXT),
    "since": TIME,
    # The announced end of a limit or a cooldown.
    "until": TIME,
    # When it may be asked again; null if it is ready or paused, or only an operator can help.
    "next_try_at": TIME,
    # Attempts in a row that failed.
    "failures": INTEGER,
    "last_success_at": TIME,
    "last_error": optional(object_of(at=TEXT, reason=TEXT)),
    # What an operator should do.
    "advice": optional(TEXT),
    "needs_operator": BOOLEAN,
}
# An account that was not asked, and why: the status of the account, or `lacks_model` and the like.
PASSED_OVER: Final = object_of(upstream=TEXT, status=TEXT, reason=optional(TEXT), until=TIME)
# Who can serve a model of a pool now, and why others cannot.
SERVING: Final = {
    "status": SERVING_STATUS,
    "upstreams": list_of(TEXT),
    # Since when nobody can serve it, and when the first one can again.
    "since": TIME,
    "until": TIME,
    # Requests for it that failed since then.
    "failed_requests": INTEGER,
    "passed_over": list_of(PASSED_OVER),
}

# What the lists hold: one schema for each kind of row, next to it (below) the function that makes
# such a row from the snapshot's object and the snapshot's time.
# A pool.  `upstreams` are the names of its accounts; `strategy` is its `routing` in pools.json.
POOL: Final = object_of(
    id=TEXT,
    name=TEXT,
    # The description of the tool says what they mean.
    status=one_of("ready", "degraded", "limited", "down"),
    # The names for `routing` that pools.json takes.
    strategy=one_of("sticky", "quota_first", "soonest_reset"),
    upstreams=list_of(TEXT),
    upstream_count=INTEGER,
    api_key_count=INTEGER,
    models=list_of(TEXT),
    serving=list_of(object_of(model=TEXT, **SERVING)),
)
UPSTREAM: Final = object_of(
    id=TEXT,
    # A ChatGPT login or an API key.
    type=one_of("codex", "openai"),
    # Only the host: paths and ports of an internal network stay private.
    base_url_host=TEXT,
    pools=list_of(TEXT),
    # The subscription's name; null for an API key, or if the login does not say.
    plan_label=optional(TEXT),
    # Of the login; an account with an API key has none.
    auth_status=one_of("api_key", "ok", "renewal_due", "needed"),
    in_flight_requests=INTEGER,
    **CONDITION,
)
# A quota window of an account.
WINDOW: Final = object_of(
    # The name of the limit, most often `codex`.
    window=TEXT,
    # Null if the upstream did not report how long it is.
    window_minutes=optional(INTEGER),
    # May exceed 100.
    used_percent=optional(NUMBER),
    reset_at=TIME,
    observed_at=TIME,
    # See `freshness`.
    freshness_status=one_of("fresh", "stale", "unknown"),
)
# An account with its quota windows.  It is usable for routing if it is ready: others are tried last
# or not at all.
QUOTA: Final = object_of(
    upstream=TEXT,
    routing_usable=BOOLEAN,
    windows=list_of(WINDOW),
    **CONDITION,
)
# A pool key.  The id has the pool's name in it, as two pools may each have a key `laptop`.
API_KEY: Final = object_of(
    id=TEXT,
    pool=TEXT,
    display_name=TEXT,
    source=SOURCE,
    status=one_of("active", "paused", "expired"),
)
# An operator, that is a token of pools.json; there is no other status.
OPERATOR: Final = object_of(
    id=TEXT,
    display_name=TEXT,
    source=SOURCE,
    status=one_of("active"),
)
# A model, under the name that clients use: a model's own, or an alias.
MODEL: Final = object_of(
    id=TEXT,
    pools=list_of(TEXT),
    # The worst of its pools; unknown if none of them says who serves it.
    status=one_of("ready", "limited", "down", "unknown"),
    # By pool; `model` is what the name means there.
    serving=list_of(object_of(pool=TEXT, model=TEXT, **SERVING)),
)
TOKENS: Final = object_of(
    input_tokens=INTEGER,
    output_tokens=INTEGER,
    cached_tokens=INTEGER,
    reasoning_tokens=INTEGER,
)
LOG: Final = object_of(
    id=TEXT,
    # Null if no key of ours was presented.
    pool=optional(TEXT),
    api_key=optional(TEXT),
    # The account that served it, or was tried last.
    upstream=optional(TEXT),
    # `other` unless a pool or an account knows the model: a client may write anything there.
    requested_model=optional(TEXT),
    # The route's name, never the URL.
    endpoint=TEXT,
    transport=one_of("http", "sse", "websocket"),
    status=one_of("ok", "error", "aborted"),
    # As `pooler check --explain errors` lists them, or an upstream's own after `upstream:`.
    error_code=optional(TEXT),
    # Null if the client left before a response began.
    response_status_code=optional(INTEGER),
    retry_count=INTEGER,
    # The accounts that were tried, in order, and what each came to; null for a success.
    attempts=list_of(object_of(upstream=TEXT, reason=optional(TEXT))),
    # The accounts that were not tried, and why.
    passed_over=list_of(object_of(upstream=TEXT, reason=TEXT)),
    # Null if the upstream reported none.
    tokens=optional(TOKENS),
    first_event_ms=optional(INTEGER),
    latency_ms=optional(INTEGER),
    admitted_at=TEXT,
)


def times(facts: Facts, *names: str) -> Shown:
    """These members of an object, each a time in Unix seconds or None, in RFC 3339."""
    return {name: moment(facts[name]) for name in names}


def condition_facts(account: Facts) -> Shown:
    """The condition of an account; its reasons may quote an upstream."""
    error = account["last_error"]
    if error is not None:
        error = {"at": moment(error["at"]), "reason": sentence(error["reason"])}
    return {
        **picked(account, "status", "failures", "needs_operator"),
        **times(account, "since", "until", "next_try_at", "last_success_at"),
        "reason": sentence(account["reason"]),
        "last_error": error,
        "advice": sentence(account["advice"], ADVICE_CHARS_MAX),
    }


def serving_facts(serving: Facts) -> Shown:
    """Who can serve a model of a pool now, and who cannot."""
    passed_over = [
        {
            "upstream": row["account"],
            "status": word(row["status"]),
            "reason": sentence(row["reason"]),
            "until": moment(row["until"]),
        }
        for row in serving["passed_over"][:NAMES_MAX]
    ]

    return {
        "model": word(serving["model"]),
        "status": serving["status"],
        "upstreams": serving["accounts"],
        **times(serving, "since", "until"),
        "failed_requests": serving["failed"],
        "passed_over": passed_over,
    }


def pool_facts(pool: Facts, _now: float) -> Shown:
    """One pool, as codex_pooler_list_pools returns it.

    Its models are cleaned: without a list in pools.json they are those of an upstream's catalogue.
    """
    return {
        "id": pool["name"],
        "name": pool["name"],
        "status": pool["status"],
        "strategy": pool["routing"],
        "upstreams": pool["accounts"],
        "upstream_count": len(pool["accounts"]),
        "api_key_count": pool["key_count"],
        "models": [word(name) for name in pool["models"]],
        "serving": [serving_facts(row) for row in pool["serving"]],
    }


def upstream_facts(account: Facts, _now: float) -> Shown:
    """One account; its credentials are never in the snapshot, only their state.

    The plan is a word from the login's token, so ChatGPT has chosen it.
    """
    return {
        "id": account["name"],
        "type": account["type"],
        "base_url_host": account["host"],
        "pools": account["pools"],
        "plan_label": word(account["plan"]),
        "auth_status": account["login"] or "api_key",
        "in_flight_requests": account["in_flight"],
        **condition_facts(account),
    }


def freshness(window: Facts, now: float) -> str:
    """How far a quota window can be trusted: fresh, stale or unknown.

    A window is stale once it has ended, or if its last report is older than FRESH_SECONDS_MAX:
    other programs may use the same account, and only its upstream counts them all.
    """
    if window["observed_at"] is None:
        return "unknown"
    is_old = now - window["observed_at"] > FRESH_SECONDS_MAX
    has_ended = window["resets_at"] is not None and window["resets_at"] <= now
    return "stale" if is_old or has_ended else "fresh"


def window_facts(window: Facts, now: float) -> Shown:
    """One quota window; a length of 0 minutes means that the upstream did not report it."""
    return {
        "window": word(window["family"]),
        "window_minutes": window["window_minutes"] or None,
        "used_percent": window["used_percent"],
        "reset_at": moment(window["resets_at"]),
        "observed_at": moment(window["observed_at"]),
        "freshness_status": freshness(window, now),
    }


def quota_facts(account: Facts, now: float) -> Shown:
    """The quota windows of one account; none if its upstream has not reported any yet."""
    return {
        "upstream": account["name"],
        "routing_usable": account["status"] == "ready",
        "windows": [window_facts(window, now) for window in account["windows"]],
        **condition_facts(account),
    }


def key_facts(key: Facts, _now: float) -> Shown:
    """One pool key: its name, and where pools.json gets its secret from.

    Limits and use are in codex_pooler_usage_summary.
    """
    return {
        "id": f"{key['pool']}/{key['name']}",
        "pool": key["pool"],
        "display_name": key["name"],
        "source": key["source"],
        "status": key["status"],
    }


def operator_facts(operator: Facts, _now: float) -> Shown:
    """One operator; its token is not in the snapshot."""
    return {
        "id": operator["name"],
        "display_name": operator["name"],
        "source": operator["source"],
        "status": operator["status"],
    }


# The worst first.
SERVING_ORDER: Final = ("down", "limited", "ready")


def model_facts(model: Facts, _now: float) -> Shown:
    """One model; `model_rows` has added who serves it."""
    statuses = [row["status"] for row in model["serving"]]
    status = min(statuses, key=SERVING_ORDER.index, default="unknown")
    return {
        "id": word(model["name"]),
        "pools": model["pools"],
        "status": status,
        "serving": model["serving"],
    }


def model_rows(snapshot: Facts, pool: str) -> list[Shown]:
    """The names that clients of a pool, or of any, may use, each with those who serve it there.

    An alias has no row of its own among those of its pool: it is served like the model it means.
    """
    serving = {
        (row["name"], facts["model"]): {"pool": row["name"], **serving_facts(facts)}
        for row in visible(snapshot["pools"], "pools")
        for facts in row["serving"]
    }

    rows = []
    for model in visible(snapshot["models"], "models"):
        meanings = zip(model["pools"], model["targets"], strict=True)
        selected = [meaning for meaning in meanings if pool in ("", meaning[0])]
        known = [serving[meaning] for meaning in selected if meaning in serving]
        if selected:
            rows.append({**model, "serving": known})
    return rows


def log_facts(request: Facts) -> Shown:
    """One request; the same for a list and for a single one.

    A retry is an attempt after the first one; a request that never reached an account has neither.
    """
    attempts = [
        {"upstream": row["account"], "reason": sentence(row.get("reason"))}
        for row in request["attempts"]
    ]
    passed_over = [
        {"upstream": row["account"], "reason": sentence(row["reason"])}
        for row in request["passed_over"][:NAMES_MAX]
    ]

    return {
        "id": request["request_id"],
        "pool": request["pool"],
        "api_key": request["key"],
        "upstream": request["account"],
        "requested_model": word(request["model"]),
        "endpoint": request["route"],
        "transport": request["transport"],
        "status": outcome(request["code"]),
        "error_code": word(request["code"]),
        "response_status_code": request["status"],
        "retry_count": max(0, len(attempts) - 1),
        "attempts": attempts,
        "passed_over": passed_over,
        "tokens": request["tokens"],
        "first_event_ms": request["first_byte_ms"],
        "latency_ms": request["duration_ms"],
        "admitted_at": moment(request["at"]),
    }


POOL_ARGUMENT: Final = text_argument("Return only what belongs to this pool.", default="")


def list_arguments(statuses: Sequence[str]) -> Schema:
    """What all lists take, each with the words of its own status."""
    return object_of(
        query=text_argument("Return only rows that contain this text, ignoring case.", default=""),
        status=choice_argument("Return only rows with this status.", *statuses),
        pool_selector=POOL_ARGUMENT,
        limit=whole_argument("Return at most this many rows.", 1, ROWS_MAX, 25),
    )


def is_found(snapshot: Facts, arguments: Facts) -> bool:
    """Whether pools.json has the pool, the key and the account that the arguments select.

    An unknown one is reported as such: an empty list would look like an idle one.
    """
    known = {
        "pool_selector": [pool["name"] for pool in snapshot["pools"]],
        "key": [name for key in snapshot["keys"] for name in key_names(key["pool"], key["name"])],
        "upstream": [account["name"] for account in snapshot["accounts"]],
    }
    selected = {name: arguments.get(name) for name in known}
    return all(not text or text in known[name] for name, text in selected.items())


def key_names(pool: str | None, name: str | None) -> tuple[str | None, str]:
    """What a key is selected by: its name, which other pools may have as well, or its id."""
    return name, f"{pool}/{name}"


def texts(value: Any) -> Iterator[str]:
    """The texts in a row, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        members = value.values() if isinstance(value, dict) else value
        for member in members:
            yield from texts(member)


def rows_of_pool(table: str, pool_member: str) -> Callable[[Facts, str], list[Shown]]:
    """For `list_tool`: the rows of a table that belong to the selected pool, or all.

    `pool_member` of a row names its pool, or its pools.  Operators have none.
    """

    def rows_in(snapshot: Facts, pool: str) -> list[Shown]:
        """The rows, with the fields that may leave."""
        shown: list[Shown] = visible(snapshot[table], table)
        if not pool:
            return shown
        return [row for row in shown if pool in names_in(row.get(pool_member, []))]

    return rows_in


def names_in(names: str | list[str]) -> list[str]:
    """One name, or several, as a list."""
    return [names] if isinstance(names, str) else names


def list_tool(
    title: str,
    description: str,
    schema: Schema,
    rows_in: Callable[[Facts, str], list[Shown]],
    facts_of: Callable[[Facts, float], Shown],
) -> Tool:
    """A tool that lists rows of the snapshot, filtered by pool, status and text.

    `rows_in` takes them from a snapshot, for the selected pool; `facts_of` makes one that fits
    `schema`.  The lists differ in nothing else, so that a model that has learned one knows all.
    """
    takes = list_arguments(schema["properties"]["status"]["enum"])
    gives = object_of(
        status=one_of("ok", "not_found"),
        count=INTEGER,
        limit=INTEGER,
        items=list_of(schema),
    )

    def run(call: Call, arguments: Facts) -> Shown:
        """The rows that were asked for; `count` includes those beyond the limit.

        Only what is returned is searched, not what is withheld: a search must not reveal what its
        result may not show.
        """
        now = visible(call.snapshot, "")["at"]
        query = arguments["query"].casefold()

        rows = []
        for facts in rows_in(call.snapshot, arguments["pool_selector"]):
            row = facts_of(facts, now)
            if arguments["status"] not in ("any", row["status"]):
                continue
            if query in " ".join(texts(row)).casefold():
                rows.append(row)

        return {
            "status": "ok" if is_found(call.snapshot, arguments) else "not_found",
            "count": len(rows),
            "limit": arguments["limit"],
            "items": rows[: arguments["limit"]],
        }

    return Tool(title, description, takes, gives, run)


# The operator whose token came with the request.
ACTOR: Final = object_of(
    id=TEXT,
    display_name=TEXT,
    status=TEXT,
)
# The names in camelCase are those of the MCP specification.
SERVICE_STATUS: Final = object_of(
    actor=ACTOR,
    protocolVersion=TEXT,
    supportedProtocolVersions=list_of(TEXT),
    supportedToolCount=INTEGER,
    version=TEXT,
    started_at=TEXT,
    uptime_seconds=INTEGER,
    pool_count=INTEGER,
    upstream_count=INTEGER,
    in_flight_requests=INTEGER,
    pools_not_ready_count=INTEGER,
    upstreams_not_ready_count=INTEGER,
    # What codex_pooler_diagnose lists.
    needs_you_count=INTEGER,
)


def service_status(call: Call, _: Facts) -> Shown:
    """Who asks, and what the process does.

    An operator whose token a reload has just removed still gets this one response.
    """
    shown = visible(call.snapshot, "")
    operators = visible(call.snapshot["operators"], "operators")
    statuses = {row["name"]: row["status"] for row in operators}
    actor = {
        "id": call.operator,
        "display_name": call.operator,
        "status": statuses.get(call.operator, "removed"),  # by a reload, just now
    }
    not_ready = {
        table: sum(row["status"] != "ready" for row in call.snapshot[table])
        for table in ("pools", "accounts")
    }

    return {
        "actor": actor,
        "protocolVersion": call.protocol_version,
        "supportedProtocolVersions": list(call.protocol_versions),
        "supportedToolCount": len(TOOLS),
        "version": shown["version"],
        "started_at": moment(shown["started_at"]),
        "uptime_seconds": shown["uptime_seconds"],
        "pool_count": len(call.snapshot["pools"]),
        "upstream_count": len(call.snapshot["accounts"]),
        "in_flight_requests": shown["in_flight"],
        "pools_not_ready_count": not_ready["pools"],
        "upstreams_not_ready_count": not_ready["accounts"],
        "needs_you_count": len(attention(overview(call.snapshot))),
    }


# One thing that needs attention, and what it is about: models of a pool, an account, a key, or the
# pooler itself.
NEED: Final = object_of(
    # Bad: requests fail, or only an operator can help.  Fair: it may come to that.
    severity=one_of(*SEVERITIES),
    title=TEXT,
    text=TEXT,
    advice=optional(TEXT),
    since=TIME,
    pool=optional(TEXT),
    upstream=optional(TEXT),
    api_key=optional(TEXT),
    models=list_of(TEXT),
)
DIAGNOSIS: Final = object_of(
    status=one_of("ok", "not_found"),
    # The whole list in words.
    summary=TEXT,
    needs_you_count=INTEGER,
    items=list_of(NEED),
)


def need_facts(need: Need) -> Shown:
    """One thing that needs attention."""
    return {
        "severity": need.severity,
        "title": sentence(need.title, ADVICE_CHARS_MAX),
        "text": sentence(need.text, ADVICE_CHARS_MAX),
        "advice": sentence(need.advice, ADVICE_CHARS_MAX) or None,
        "since": moment(need.since),
        "pool": need.pool,
        "upstream": need.account,
        "api_key": need.key,
        "models": [word(name) for name in need.models[:NAMES_MAX]],
    }


def is_about(need: Need, pool: Facts) -> bool:
    """Whether this is about the pool: its models, an account or a key of it, or about all pools."""
    if need.pool is not None:
        return bool(need.pool == pool["name"])
    if need.key is not None:
        return need.key.startswith(f"{pool['name']}/")
    return need.account is None or need.account in pool["accounts"]


def needs_of(snapshot: Facts, name: str) -> list[Need]:
    """What needs attention in the pool of this name, or in all."""
    shown = overview(snapshot)
    needs = attention(shown)
    if not name:
        return needs

    pools = [pool for pool in shown["pools"] if pool["name"] == name]
    return [need for need in needs if any(is_about(need, pool) for pool in pools)]


def need_line(need: Shown) -> str:
    """One thing that needs attention, in words; `need_facts` made it."""
    words = parts(f"{need['title']}.", need["text"], need["advice"] or "", separator=" ")
    return f"- {words}"


def diagnose(call: Call, arguments: Facts) -> Shown:
    """What needs attention, the worst first: as a text, and as data."""
    needs = needs_of(call.snapshot, arguments["pool_selector"])
    items = [need_facts(need) for need in needs[:ROWS_MAX]]
    is_known = is_found(call.snapshot, arguments)
    if not is_known:
        names = [pool["name"] for pool in visible(call.snapshot["pools"], "pools")]
        summary = f"There is no such pool. The pools are: {listed(names)}."
    elif needs:
        summary = f"{len(needs)} need you, the worst first (times in UTC)."
    else:
        summary = "Nothing needs you."

    return {
        "status": "ok" if is_known else "not_found",
        "summary": "\n".join([summary, *map(need_line, items)]),
        "needs_you_count": len(needs),
        "items": items,
    }


# Sums of requests.  A request that its client left is neither good nor failed.
SUMS: Final = {
    "requests": INTEGER,
    "failed": INTEGER,
    "input_tokens": INTEGER,
    "output_tokens": INTEGER,
    "cached_tokens": INTEGER,
}
# By the prices in pools.json; null without any.
COST: Final = optional(NUMBER)
TODAY: Final = object_of(**SUMS, cost=COST)
LAST_HOUR: Final = object_of(
    **SUMS,
    # Why requests failed, the most frequent first.
    causes=list_of(object_of(code=TEXT, count=INTEGER)),
    # How long clients waited for the first event, and of how many responses that is known.
    first_event_p50_ms=optional(INTEGER),
    first_event_p95_ms=optional(INTEGER),
    responses=INTEGER,
)
# A key's limits are null if pools.json does not set them.
KEY_USAGE: Final = object_of(
    id=TEXT,
    pool=TEXT,
    display_name=TEXT,
    status=API_KEY["properties"]["status"],
    expires_at=TIME,
    tokens_today=INTEGER,
    tokens_per_day=optional(INTEGER),
    requests_per_minute=optional(INTEGER),
    concurrent=INTEGER,
    in_flight_requests=INTEGER,
    # Oldest first, without those that had no requests.
    days=list_of(object_of(day=TEXT, **SUMS, cost=COST)),
)
USAGE_ARGUMENTS: Final = object_of(
    pool_selector=POOL_ARGUMENT,
    key=text_argument("Return only this pool key: its name or id.", default=""),
    limit=whole_argument("Return at most this many keys.", 1, ROWS_MAX, 25),
)
USAGE: Final = object_of(
    status=one_of("ok", "not_found"),
    # Of the selected keys, or of all that was asked of the pooler.
    today=TODAY,
    # Always of the whole pooler.
    last_hour=LAST_HOUR,
    has_prices=BOOLEAN,
    count=INTEGER,
    limit=INTEGER,
    keys=list_of(KEY_USAGE),
)


def key_usage_facts(key: Facts) -> Shown:
    """What a key may use and has used, by day."""
    return {
        "id": f"{key['pool']}/{key['name']}",
        "display_name": key["name"],
        "expires_at": moment(key["expires_at"]),
        "in_flight_requests": key["in_flight"],
        "days": [day for day in key["days"] if day["requests"]],
        **picked(key, "pool", "status", "tokens_today", "tokens_per_day"),
        **picked(key, "requests_per_minute", "concurrent"),
    }


def sum_of(days: Sequence[Facts]) -> Shown:
    """The sum of several keys' days; its cost is None if it is unknown."""
    costs = [day["cost"] for day in days]
    sums = {name: sum(day[name] for day in days) for name in SUMS}
    return {**sums, "cost": None if None in costs else sum(costs)}


def usage_summary(call: Call, arguments: Facts) -> Shown:
    """What was used, by key and day, the busiest key first; and how the last hour went."""
    shown = visible(call.snapshot, "")
    pool = arguments["pool_selector"]
    name = arguments["key"]
    keys = [
        key
        for key in visible(call.snapshot["keys"], "keys")
        if pool in ("", key["pool"]) and name in ("", *key_names(key["pool"], key["name"]))
    ]
    keys.sort(key=lambda key: -sum_of(key["days"])["requests"])

    is_all = not pool and not name
    last_hour = shown["last_hour"]
    causes = [{**cause, "code": word(cause["code"])} for cause in last_hour["causes"]]
    return {
        "status": "ok" if is_found(call.snapshot, arguments) else "not_found",
        "today": shown["today"] if is_all else sum_of([key["days"][-1] for key in keys]),
        "last_hour": {**last_hour, "causes": causes},
        "has_prices": shown["has_prices"],
        "count": len(keys),
        "limit": arguments["limit"],
        "keys": [key_usage_facts(key) for key in keys[: arguments["limit"]]],
    }


# Requests have no text to search in; there are many of them, so there is an offset instead.
LOG_ARGUMENTS: Final = object_of(
    pool_selector=POOL_ARGUMENT,
    key=text_argument("Return only requests with this pool key: its name or id.", default=""),
    upstream=text_argument("Return only requests that this account was tried for.", default=""),
    model=text_argument("Return only requests for this model.", default=""),
    since=text_argument(
        "Return only requests that began at or after this time, such as 2027-01-15T02:00:00Z.",
        format="date-time",
        default="",
    ),
    status=choice_argument("Return only requests with this status.", "ok", "error", "aborted"),
    limit=whole_argument("Return at most this many requests.", 1, LOGS_MAX, 25),
    offset=whole_argument("Skip this many of the newest requests.", 0, LOG_OFFSET_MAX, 0),
)
# By argument: what of a request it is compared with.
LOG_FILTERS: Final[Mapping[str, Callable[[Facts], Collection[str | None]]]] = {
    "pool_selector": lambda request: [request["pool"]],
    "key": lambda request: key_names(request["pool"], request["key"]),
    "upstream": lambda request: [attempt["account"] for attempt in request["attempts"]],
    "model": lambda request: [word(request["model"])],
    "status": lambda request: [outcome(request["code"])],
}
LOG_PAGE: Final = object_of(
    status=one_of("ok", "not_found"),
    items=list_of(LOG),
    total=INTEGER,
    limit=INTEGER,
    offset=INTEGER,
)


def list_request_logs(call: Call, arguments: Facts) -> Shown:
    """A page of the latest requests, newest first, and how many there are in all.

    Only those of the page are copied: the pooler may keep thousands.
    """
    since = instant(arguments["since"]) or 0
    members = LOG_ARGUMENTS["properties"]
    filters = [
        (arguments[name], values_of)
        for name, values_of in LOG_FILTERS.items()
        if arguments[name] != members[name]["default"]
    ]
    requests = [
        request
        for request in call.snapshot["requests"]
        if request["at"] >= since and all(text in values_of(request) for text, values_of in filters)
    ]

    first = arguments["offset"]
    limit = arguments["limit"]
    page = visible(requests[first : first + limit], "requests")
    return {
        "status": "ok" if is_found(call.snapshot, arguments) else "not_found",
        "items": [log_facts(request) for request in page],
        "total": len(requests),
        "limit": limit,
        "offset": first,
    }


# `item` is null if the request is not kept any more, or never was: `message` says so.
ONE_LOG: Final = object_of(
    status=one_of("ok", "not_found"),
    kind=one_of("request_log"),
    item=optional(LOG),
    message=TEXT,
)


def get_request_log(call: Call, arguments: Facts) -> Shown:
    """The request with this id, if it is still kept.

    Ids are random, so there is nothing to be had by guessing one.
    """
    for request in call.snapshot["requests"]:
        if request["request_id"] == arguments["id"]:
            log = log_facts(visible(request, "requests"))
            return {"status": "ok", "kind": "request_log", "item": log, "message": ""}

    return {
        "status": "not_found",
        "kind": "request_log",
        "item": None,
        "message": "Not found; only recent requests are kept.",
    }


ROUTE_ARGUMENTS: Final = object_of(
    pool_selector=text_argument("The pool's name."),
    model=text_argument("The model's name, as a client would request it."),
    session=text_argument("A client's session id, to follow the session's pin.", default=""),
)
# An account of the pool.  At most one would serve.
CANDIDATE: Final = object_of(
    id=TEXT,
    would_serve=BOOLEAN,
    # The words of `passed_over`.
    status=TEXT,
    reason=TEXT,
)
ROUTE: Final = object_of(
    pool=TEXT,
    model=TEXT,
    chosen=optional(TEXT),
    accounts=list_of(CANDIDATE),
    message=TEXT,
)


def explain_routing(call: Call, arguments: Facts) -> Shown:
    """Which account a request would go to, and the reason for each account of its pool.

    Pool and model are repeated as the caller wrote them, cleaned.  `explain` raises the same error
    for an unknown pool and for a model that the pool does not serve.
    """
    pool = arguments["pool_selector"]
    model = arguments["model"]
    session = arguments["session"] or None
    try:
        route = call.explain(pool, model, session)
    except LookupError:
        route = {"chosen": None, "accounts": []}
        message = "Unknown pool, or the pool does not serve this model."
    else:
        message = "No account can serve the request now."

    if route["chosen"] is not None:
        message = f"The request would go to {route['chosen']}."
        chosen = next(row for row in route["accounts"] if row["is_chosen"])
        if chosen["status"] != "ready":
            message += " That is a try: its reason says what may keep it from serving."
    accounts = [
        {
            "id": row["name"],
            "would_serve": row["is_chosen"],
            "status": word(row["status"]),
            "reason": sentence(row["reason"]),
        }
        for row in visible(route["accounts"][:ROWS_MAX], "routing")
    ]

    return {
        "pool": word(pool),
        "model": word(model),
        "chosen": route["chosen"],
        "accounts": accounts,
        "message": message,
    }


# Words that several descriptions explain.
ACCOUNT_WORDS: Final = (
    "Status: ready; cooling_down (throttled by its upstream) and at_limit (its plan is used up), "
    "which end by themselves; refused (its upstream rejects the key or login) and login_needed, "
    "which an operator must mend; failing (its last attempts failed) and unreachable (no "
    "connection), which are tried again at next_try_at; paused in pools.json. `advice` says what "
    "to do."
)
SERVING_WORDS: Final = (
    "ready (some account can serve it now), limited (none can, but a limit or cooldown ends by "
    "itself) or down (none can until somebody acts)"
)

# In the order in which hosts list them.  A description says what a model gets by calling the tool,
# and what the words of a status mean: that is all it has to choose by.
TOOLS: Final[Mapping[str, Tool]] = {
    "codex_pooler_get_mcp_service_status": Tool(
        "Service status",
        "Your operator identity, the pooler's version, uptime and load, and how many pools and "
        "accounts are not ready. codex_pooler_diagnose says what is wrong.",
        object_of(),
        SERVICE_STATUS,
        service_status,
    ),
    "codex_pooler_diagnose": Tool(
        "What needs you",
        "Lists what is wrong now: models that no account can serve, accounts that fail, keys that "
        "end; each with its cause, since when, and what to do. The worst comes first: bad "
        "(requests fail, or only an operator can help), then fair (it may come to that).",
        object_of(pool_selector=POOL_ARGUMENT),
        DIAGNOSIS,
        diagnose,
    ),
    "codex_pooler_usage_summary": Tool(
        "Usage by key and day",
        "Shows requests, failures, tokens and cost: by key and UTC day for 14 days (days without "
        "requests are left out), with each key's limits and expiry; the totals of today; and of "
        "the last hour, of all pools and keys, also the failures by cause, and the wait for the "
        "first event (median and 95th percentile). `failed` leaves out requests that their "
        "client left. `cost` is null without prices in pools.json.",
        USAGE_ARGUMENTS,
        USAGE,
        usage_summary,
    ),
    "codex_pooler_list_pools": list_tool(
        "Pools",
        "Lists pools with their accounts and models. Status: ready (every model can be served "
        "now), degraded (some cannot), limited (none can, but a limit or cooldown ends by itself) "
        "or down (none can, and somebody must act). `serving` says so of each model, which is "
        f"{SERVING_WORDS}; `passed_over` says why an account cannot serve it.",
        POOL,
        rows_of_pool("pools", "name"),
        pool_facts,
    ),
    "codex_pooler_list_upstreams": list_tool(
        "Accounts (upstreams)",
        f"Lists accounts (upstreams) and the condition of each. {ACCOUNT_WORDS}",
        UPSTREAM,
        rows_of_pool("accounts", "pools"),
        upstream_facts,
    ),
    "codex_pooler_list_upstream_quotas": list_tool(
        "Quotas of accounts",
        "Shows how much of each account's quota windows is used, and when they reset. A window is "
        f"stale if it was reported more than {FRESH_SECONDS_MAX // 60} minutes ago. "
        f"{ACCOUNT_WORDS}",
        QUOTA,
        rows_of_pool("accounts", "pools"),
        quota_facts,
    ),
    "codex_pooler_list_pool_api_keys": list_tool(
        "Pool keys",
        "Lists pool keys by name; never the keys themselves. Status: active, paused (in "
        "pools.json) or expired.",
        API_KEY,
        rows_of_pool("keys", "pool"),
        key_facts,
    ),
    "codex_pooler_list_operators": list_tool(
        "Operators",
        "Lists operators by name; never their tokens. Status: active.",
        OPERATOR,
        rows_of_pool("operators", "pools"),
        operator_facts,
    ),
    "codex_pooler_list_models": list_tool(
        "Models",
        "Lists the models and aliases that clients may use, as /v1/models shows them, with the "
        "accounts that can serve each now. `model` is what an alias means. Status, the worst of "
        f"the pools: {SERVING_WORDS}; unknown if no pool says so.",
        MODEL,
        model_rows,
        model_facts,
    ),
    "codex_pooler_list_request_logs": Tool(
        "Recent requests",
        "Lists recent requests, newest first, with the accounts that were tried (`attempts`) or "
        "not (`passed_over`), why, and the tokens. Status: ok, error, or aborted (by the client).",
        LOG_ARGUMENTS,
        LOG_PAGE,
        list_request_logs,
    ),
    "codex_pooler_get_request_log": Tool(
        "One request",
        "Shows the metadata of one recent request: result, attempts, accounts passed over, tokens.",
        object_of(
            id=text_argument("The request's id, from a log line or the x-request-id header.")
        ),
        ONE_LOG,
        get_request_log,
    ),
    "codex_pooler_explain_routing": Tool(
        "Explain routing",
        "Explains which account a request for a model would go to now, and why not to the others, "
        "in the words of `passed_over`. Sends nothing upstream.",
        ROUTE_ARGUMENTS,
        ROUTE,
        explain_routing,
    ),
}


def expected(schema: Schema) -> str:
    """What an argument may be, in a few words, so that a model can correct itself."""
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "minimum" in schema:
        return f"{schema['minimum']} to {schema['maximum']}"
    if "format" in schema:
        return "a time of RFC 3339 with its zone, such as 2027-01-15T02:00:00Z"
    return f"a text of at most {TEXT_CHARS_MAX} characters"


def wrong_arguments(arguments: Facts, schema: Schema) -> list[str]:
    """The arguments that are missing or do not fit, each with what it may be, in their order.

    A member that the schema does not have counts as wrong: a misspelled filter must not be ignored.

    They are names and words from the schema: an error never repeats what the client sent.
    """
    members = schema["properties"]
    wrong = [
        f"{name} ({expected(member)})"
        for name, member in members.items()
        if (name in arguments and not fits(arguments[name], member))
        or (name in schema["required"] and name not in arguments)
    ]
    if not arguments.keys() <= members.keys():
        names = ", ".join(members) or "nothing"
        wrong.append(f"an unknown one (this tool takes {names})")
    return wrong


def run_tool(tool: Tool, call: Call, arguments: Facts) -> Shown:
    """The result of a tool, whose arguments are in order.

    Raises: TypeError, a bug: the snapshot is not what this file was written for.  The message has
    nothing of it, because it has not been checked.  pooler.py then responds with 500.
    """
    members = tool.takes["properties"]
    defaults = {name: member["default"] for name, member in members.items() if "default" in member}

    result = tool.run(call, {**defaults, **arguments})
    if not fits(result, tool.gives):
        raise TypeError("the result does not fit the tool's schema")
    return result


################################################################
# PROTOCOL
################################################################
# Streamable HTTP without sessions: one POST, one JSON response.  The official SDK's kernel serves
# it in every protocol version: those with a handshake, of which nothing is kept ("legacy"), and
# 2026-07-28, where each request carries an envelope instead.
#
# The functions import the SDK themselves, and so it is needed by nothing else in this file.  The
# SDK's own HTTP side is not used: it would keep a task and a stream for each session, and answers
# a GET with a stream that never ends.

# What `answer` imports; pooler.py has imported it in a thread before.
SDK: Final = ("mcp_types", "mcp.server", "mcp.server.runner", "mcp.shared.transport_context")
logging.getLogger("mcp").addHandler(logging.NullHandler())  # stderr is the pooler's own
PARSE_ERROR: Final = -32700  # the next three, too: of JSON-RPC 2.0
INVALID_REQUEST: Final = -32600
INVALID_PARAMS: Final = -32602
JSON_ONLY: Final = "Only application/json is accepted and returned."
INSTRUCTIONS: Final = (
    "Read-only view of codex-pooler, which pools AI accounts (upstreams) behind one address. "
    "Start with codex_pooler_diagnose: what is wrong, since when, why, and what to do. "
    "codex_pooler_usage_summary shows use, failures and cost by key and day, "
    "codex_pooler_list_upstreams the condition of each account, "
    "codex_pooler_list_upstream_quotas how much quota is used and when it resets, "
    "codex_pooler_list_models which models clients may use and who serves them, "
    "codex_pooler_list_request_logs what became of requests, "
    "codex_pooler_explain_routing which account the next request for a model would go to and why. "
    "Other tools list pools, keys and operators. "
    "Metadata only: no secrets, prompts or responses. Nothing can be changed."
)

Message = Mapping[str, Any]  # a JSON-RPC request
Response = tuple[int, Headers, bytes]  # status, headers, body


class RpcError(Exception):
    """An error of JSON-RPC, as the client gets it; the message is one of ours or of the SDK's."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data

    def as_object(self) -> Shown:
        """The member `error` of a response."""
        error = {"code": self.code, "message": str(self)}
        return error if self.data is None else {**error, "data": self.data}


async def list_tools(_: object, params: Any) -> mcp_types.ListToolsResult:
    """tools/list, in one page."""
    await trio.lowlevel.checkpoint()
    if params.cursor is not None:
        raise RpcError(INVALID_PARAMS, "There are no more pages.")
    return tool_list()


@functools.cache
def tool_list() -> mcp_types.ListToolsResult:
    """What tools/list returns, always the same."""
    import mcp_types as types

    read_only = types.ToolAnnotations(
        read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
    )
    tools = [
        types.Tool(
            name=name,
            title=tool.title,
            description=tool.description,
            annotations=read_only,
            input_schema=tool.takes,
            output_schema=tool.gives,
        )
        for name, tool in TOOLS.items()
    ]
    return types.ListToolsResult(tools=tools)


async def call_tool(
    context: Any, params: mcp_types.CallToolRequestParams
) -> mcp_types.CallToolResult:
    """The result of a tool, as JSON and as text.

    Wrong arguments are an error of the tool, not of the protocol: a model reads it and can correct
    itself.
    """
    import mcp_types as types

    await trio.lowlevel.checkpoint()
    tool = TOOLS.get(params.name)
    if tool is None:
        raise RpcError(INVALID_PARAMS, "Unknown tool.")

    # Models fill in what they could leave out.
    given = params.arguments or {}
    arguments = {name: value for name, value in given.items() if value != ""}

    result = None
    wrong = wrong_arguments(arguments, tool.takes)
    if wrong:
        text = f"invalid_arguments: {'; '.join(wrong)}"
    else:
        result = run_tool(tool, context.request, arguments)
        await trio.lowlevel.checkpoint()  # a thousand accounts take long to collect, and to encode
        text = json.dumps(result, separators=(",", ":"))

    content: list[Any] = [types.TextContent(type="text", text=text)]
    return types.CallToolResult(content=content, structured_content=result, is_error=bool(wrong))


@functools.cache
def make_server(version: str) -> Server[None]:
    """The SDK's side of all requests; it keeps nothing of them.

    There is one for a version, and the version is the pooler's own: one in all.
    """
    from mcp.server import Server, caching

    hint = caching.CacheHint(ttl_ms=LIST_TTL_MS, scope="private")  # behind a token (F92)
    server: Server[None] = Server(
        "codex-pooler",
        version=version,
        instructions=INSTRUCTIONS,
        cache_hints={"tools/list": hint, "server/discover": hint},
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    # The SDK would report every call to OpenTelemetry (F92).
    server.middleware.clear()
    return server


def read_request(body: bytes, parse: Callable[[bytes], Any]) -> Message | None:
    """The request in a body; None for a notification, which gets no response (F93).

    Raises: RpcError.
    """
    try:
        message = parse(body)
    except ValueError:
        raise RpcError(PARSE_ERROR, "Invalid JSON.") from None

    is_message = (
        isinstance(message, dict)
        and message.get("jsonrpc") == "2.0"
        and isinstance(message.get("method"), str)
        and isinstance(message.get("params"), dict | None)
    )
    if is_message and "id" not in message:
        return None

    if not is_message or type(message["id"]) not in (int, str):
        raise RpcError(INVALID_REQUEST, "Not a JSON-RPC request.")
    request: Message = message
    return request


def connect(request: Message, headers: Mapping[str, str]) -> Connection:
    """What the kernel must know of the client: its protocol version.

    A client that names none is taken for one of 2025-03-26, as the specification says.
    Raises: RpcError, if headers and envelope do not agree or the version is not supported.
    """
    import mcp_types as types
    from mcp.server.connection import Connection
    from mcp.shared import inbound
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

    # An envelope is a member of the request that names its version; `initialize` is never read so.
    version = headers.get(inbound.MCP_PROTOCOL_VERSION_HEADER, types.DEFAULT_NEGOTIATED_VERSION)
    meta = (request.get("params") or {}).get("_meta")
    has_envelope = isinstance(meta, dict) and types.PROTOCOL_VERSION_META_KEY in meta
    is_legacy = request["method"] == "initialize" or not has_envelope
    if version in HANDSHAKE_PROTOCOL_VERSIONS and is_legacy:
        return Connection.from_envelope(version, None, None)

    route = inbound.classify_inbound_request(request, headers=headers)
    if isinstance(route, inbound.InboundLadderRejection):
        # Only this error's data are required; those of others would echo what the client sent.
        is_version = route.code == types.UNSUPPORTED_PROTOCOL_VERSION
        raise RpcError(route.code, route.message, route.data if is_version else None)
    return Connection.from_envelope(
        route.protocol_version, route.client_info, route.client_capabilities
    )


async def serve(request: Message, client: Connection, call: Call) -> Facts:
    """The result of one request, by the SDK's kernel and the two handlers above.

    Raises: RpcError; or whatever a tool raises, which is a bug.
    """
    from mcp.server.runner import serve_one
    from mcp.shared.exceptions import MCPError
    from mcp.shared.message import ServerMessageMetadata
    from mcp.shared.transport_context import TransportContext
    from pydantic import ValidationError

    # As much of a DispatchContext as the kernel reads: our handlers send nothing but a result.
    exchange: Any = SimpleNamespace(
        request_id=request["id"],
        message_metadata=ServerMessageMetadata(request_context=call),
        transport=TransportContext(kind="http", can_send_request=False),
        can_send_request=False,
    )
    server = make_server(call.snapshot["version"])
    try:
        return await serve_one(
            server,
            exchange,
            request["method"],
            request.get("params"),
            connection=client,
            lifespan_state=None,
        )
    except MCPError as error:
        raise RpcError(error.code, error.message) from None
    except ValidationError:
        raise RpcError(INVALID_PARAMS, "Invalid parameters.") from None


def media_types(value: str) -> set[str]:
    """The media types of a Content-Type or Accept, without their parameters."""
    return {part.partition(";")[0].strip().lower() for part in value.split(",")}


def reply(status: int, request: Message | None, **outcome: object) -> Response:
    """A JSON-RPC response; `outcome` is its result or its error.

    The id is null if the request's is unknown (JSON-RPC 2.0).  The JSON is ASCII.
    """
    body = {"jsonrpc": "2.0", "id": request["id"] if request else None, **outcome}
    encoded = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    return status, [("content-type", "application/json")], encoded


def refusal(headers: Mapping[str, str]) -> int:
    """The status for a body that is not sent, or a response that is not accepted, as JSON; or 0.

    A client that sends no Accept accepts everything (RFC 9110 §12.5.1).
    """
    if media_types(headers.get("content-type", "")) != {"application/json"}:
        return 415
    accepted = media_types(headers.get("accept", "*/*"))
    if not accepted & {"application/json", "application/*", "*/*"}:
        return 406
    return 0


async def answer(
    headers: Mapping[str, str],
    body: bytes,
    *,
    operator: str,
    parse: Callable[[bytes], Any],
    snapshot: Callable[[], Facts],
    explain: Explain,
) -> Response:
    """The response to POST /mcp; names of `headers` are in lower case.

    pooler.py has checked the operator's token, Origin and Host, and read the body within its bound.
    `parse` reads JSON as pooler.py reads that of a client, and raises ValueError; `snapshot` is
    called at most once, and only for a well-formed request.
    """
    from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, KNOWN_PROTOCOL_VERSIONS

    status = refusal(headers)
    if status:
        error = RpcError(INVALID_REQUEST, JSON_ONLY)
        return reply(status, None, error=error.as_object())

    # Until the version is known, errors have the statuses of 2026-07-28.
    request = None
    is_legacy = False
    try:
        request = read_request(body, parse)
        if request is None:
            return 202, [], b""

        client = connect(request, headers)
        version = client.protocol_version
        is_legacy = version in HANDSHAKE_PROTOCOL_VERSIONS
        call = Call(operator, version, KNOWN_PROTOCOL_VERSIONS, snapshot(), explain)
        result = await serve(request, client, call)
        await trio.lowlevel.checkpoint()
        return reply(200, request, result=result)
    except RpcError as failure:
        error = failure

    # Legacy versions carry errors of JSON-RPC in a response that HTTP calls a success.
    status = 200 if is_legacy else ERROR_CODE_HTTP_STATUS.get(error.code, 200)
    return reply(status, request, error=error.as_object())
