"""Proves that what the log shows on a terminal is short, readable, and nothing but text.

Method: the pure functions of lines for people, with the fields that the log has.
"""

from __future__ import annotations

import ast
import io
import os
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import pytest

from pooler import (
    EVENT_WORDS,
    GOOD_EVENT_WORDS,
    LINE_COLUMNS,
    USUAL_URL,
    Record,
    TerminalForm,
    Usage,
    cut_text,
    event_line,
    introduction,
    printable,
    request_line,
    takes_colours,
    tinted,
)
from tests.support.paths import ROOT
from tests.support.snapshots import HOSTILE_TEXTS, snapshot

AT: Final = datetime(2026, 11, 29, 14, 2, 31, tzinfo=UTC)
GREEN, YELLOW, RED = "\x1b[32m", "\x1b[33m", "\x1b[31m"


def record(**fields: object) -> Record:
    """A request that was served by the second account."""
    usage = Usage(8120, 960, 7680, 640)
    attempts: Any = [
        {"account": "personal", "reason": "429 usage_limit_reached"},
        {"account": "second"},
    ]
    names = {"pool": "home", "key": "laptop", "account": "second", "model": "gpt-5.5"}
    shown: dict[str, Any] = {"method": "POST", "route": "responses", "status": 200, **names}
    times = {"stream": True, "first_byte_ms": 412, "duration_ms": 5120}
    return Record("id", **(shown | times | {"attempts": attempts, "tokens": usage} | fields))


def line(columns: int = LINE_COLUMNS, **fields: object) -> str:
    return request_line(record(**fields).as_object(), AT, False, columns)


def test_a_request_is_one_short_line() -> None:
    assert line() == (
        "14:02:31  200  home/laptop  gpt-5.5  personal 429 → second  8120+960 tokens  412/5120 ms"
    )


CASES: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "no valid key": (
        {
            "status": 401, "code": "invalid_api_key", "pool": None, "key": None, "model": None,
            "attempts": [], "tokens": None, "first_byte_ms": None, "duration_ms": 2,
        },
        "14:02:31  401  POST responses  2 ms  invalid_api_key",
    ),
    "the client has left": (
        {"status": None, "code": "client_gone", "tokens": None, "first_byte_ms": None},
        "14:02:31  ---  home/laptop  gpt-5.5  personal 429 → second  5120 ms  client_gone",
    ),
    "nobody could serve": (
        {
            "status": 503, "code": "no_usable_account", "attempts": [], "tokens": None,
            "first_byte_ms": None, "duration_ms": 1,
            "passed_over": [
                {"account": "personal", "reason": "login_needed"},
                {"account": "second", "reason": "paused"},
            ],
        },
        (
            "14:02:31  503  home/laptop  gpt-5.5  (personal login_needed, second paused)"
            "  1 ms  no_usable_account"
        ),
    ),
    "no connection": (
        {"attempts": [{"account": "llama", "reason": "connect: refused"}], "tokens": None},
        "14:02:31  200  home/laptop  gpt-5.5  llama connect: refused  412/5120 ms",
    ),
    "no stream": (
        {"attempts": [{"account": "llama"}], "stream": False},
        "14:02:31  200  home/laptop  gpt-5.5  llama  8120+960 tokens  5120 ms",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_unusual_is_in_the_line(case: str) -> None:
    fields, expected = CASES[case]
    assert line(**fields) == expected


@pytest.mark.parametrize(
    ("status", "code", "colour"),
    [
        (200, None, GREEN),
        (101, None, GREEN),
        (429, "key_limit_reached", YELLOW),
        (200, "client_gone", YELLOW),
        (None, "client_gone", YELLOW),
        (502, "upstream_error", RED),
        (200, "upstream_stream_truncated", RED),
    ],
)
def test_the_colour_says_how_it_ended(status: int | None, code: str | None, colour: str) -> None:
    shown = request_line(record(status=status, code=code).as_object(), AT, True)
    assert f"{colour}{status or '---'}\x1b[0m" in shown
    assert shown.count("\x1b[0m") == 1 + bool(code)
    assert "\x1b" not in line(status=status, code=code)


@pytest.mark.parametrize("columns", [100, 80])
def test_a_long_line_is_cut_in_the_middle(columns: int) -> None:
    attempts = [{"account": "a" * 20, "reason": "500"} for _ in range(9)]
    shown = line(columns=columns, model="m" * 90, key="k" * 60, attempts=attempts)
    assert len(shown) <= 115
    assert shown.endswith("8120+960 tokens  412/5120 ms")
    assert shown.count("…") == 3
    assert len(line(columns=columns, attempts=attempts)) == columns


HOSTILE: Final = "m\x1b]0;owned\x07\n2026 forged\u202e\u2028\x9b31m\ud800"


@pytest.mark.parametrize("name", ["pool", "key", "model", "method", "route", "code"])
def test_no_field_is_a_command_to_the_terminal(name: str) -> None:
    fields: dict[str, Any] = {"model": None} if name in {"method", "route"} else {}
    shown = line(**(fields | {name: HOSTILE}))
    assert shown.isprintable()
    assert r"\x1b" in shown


def test_no_attempt_is_a_command_to_the_terminal() -> None:
    rows = [{"account": HOSTILE, "reason": HOSTILE}]
    assert line(attempts=rows, passed_over=rows).isprintable()


def test_only_what_cannot_be_printed_is_escaped() -> None:
    assert printable("qwen3 日本語") == "qwen3 日本語"
    assert printable("a\nb") == "a\\nb"
    assert printable(None) == ""
    assert printable(7) == "7"


def test_a_text_is_cut_only_if_it_is_long() -> None:
    assert cut_text("four", 4) == "four"
    assert cut_text("fives", 4) == "fiv…"


def test_a_colour_ends_where_its_text_ends() -> None:
    assert tinted("x", "bad", True) == "\x1b[31mx\x1b[0m"
    assert tinted("x", "bad", False) == "x"


################################################################
# OTHER LINES
################################################################

SOURCE: Final = ast.parse((ROOT / "pooler.py").read_text(encoding="utf-8"))
UNTIL: Final = "2026-11-29T15:00:00+00:00"


def logged_events() -> set[str]:
    """Every event that the program logs: the second argument of its calls of a log."""
    events = set()
    for node in ast.walk(SOURCE):
        if isinstance(node, ast.Call) and len(node.args) == 3:
            name, event = ast.unparse(node.func).rpartition(".")[2], node.args[1]
            if name in {"log", "form"} and isinstance(event, ast.Constant):
                events.add(str(event.value))
    return events


def test_every_event_of_the_log_has_words() -> None:
    assert logged_events() == {*EVENT_WORDS, "request"}
    assert {*GOOD_EVENT_WORDS} < {*EVENT_WORDS}


def words(level: str, event: str, **fields: object) -> str:
    shown = event_line(level, event, fields, AT, is_coloured=False)
    assert shown.startswith("14:02:31  ")
    return shown.removeprefix("14:02:31  ")


EVENTS: Final[dict[str, tuple[str, dict[str, Any], str]]] = {
    "accept": ("error", {"problem": "no connection"}, "error: no connection"),
    "account": (
        "warning",
        {
            "account": "second", "status": "at_limit", "before": "ready", "failures": 1,
            "reason": "429 usage_limit_reached", "until": UNTIL, "next_try_at": UNTIL,
            "advice": "Nothing.",
        },
        "warning: account second: at its limit (429 usage_limit_reached), until 15:00. Nothing.",
    ),
    "bug": (
        "error",
        {"request_id": "abc", "type": "KeyError", "at_frames": ["main:1", "run:22"]},
        "error: a bug in the pooler; please report this line: KeyError at main:1, run:22 abc",
    ),
    "config": ("warning", {"problem": "listen: public"}, "warning: listen: public"),
    "draining": (
        "info",
        {"requests": 2},
        "stopping; requests in progress: 2; Ctrl-C again ends them at once",
    ),
    "listen": ("warning", {"problem": "[::1]: none"}, "warning: not listening: [::1]: none"),
    "listening": ("info", {"address": "127.0.0.1:4000"}, "listening on 127.0.0.1:4000"),
    "log lines dropped": (
        "warning",
        {"problem": "nobody read the log in time", "lines": 7},
        "warning: nobody read the log in time; lines that are missing here: 7",
    ),
    "login": (
        "warning",
        {"account": "second", "problem": "x.json does not exist; log in"},
        "warning: account second: x.json does not exist; log in",
    ),
    "models": (
        "warning",
        {"account": "llama", "problem": "connect: refused"},
        "warning: account llama: its models are not known: connect: refused",
    ),
    "notice": (
        "warning",
        {"host": "ntfy.sh", "problem": "no response in time"},
        "warning: notices to ntfy.sh do not arrive: no response in time",
    ),
    "pool": (
        "warning",
        {"pool": "home", "model": "any model", "status": "limited", "until": UNTIL, "accounts": []},
        "warning: pool home: no account can serve any model, until 15:00",
    ),
    "reload": (
        "warning",
        {"problem": "listen: a change requires a restart"},
        "warning: reload: listen: a change requires a restart",
    ),
    "reload refused": (
        "error",
        {"problem": "pools: missing"},
        "error: reload refused, the configuration stays as it was: pools: missing",
    ),
    "reloaded": (
        "info",
        {"pools": 1, "changed": ["account a: added", "account b: removed"]},
        "reloaded; changed: account a: added, account b: removed",
    ),
    "state": ("warning", {"problem": "it is broken"}, "warning: it is broken"),
    "stopped": ("info", {}, "stopped"),
    "usage": (
        "info",
        {"account": "second", "problem": "its quota is not known: 404"},
        "account second: its quota is not known: 404",
    ),
}  # fmt: skip


@pytest.mark.parametrize("event", EVENT_WORDS)
def test_each_event_is_readable(event: str) -> None:
    level, fields, expected = EVENTS[event]
    assert words(level, event, **fields) == expected


GOOD_EVENTS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "login": ({"account": "second", "problem": None}, "account second: its login works"),
    "notice": ({"host": "ntfy.sh", "problem": None}, "notices to ntfy.sh arrive again"),
    "pool": (
        {"pool": "home", "model": "m1", "status": "ready", "until": None, "accounts": ["a", "b"]},
        "pool home: m1 can be served again by a, b",
    ),
    "state": ({"problem": None}, "the state is saved again"),
}


@pytest.mark.parametrize("event", GOOD_EVENT_WORDS)
def test_what_works_again_is_readable(event: str) -> None:
    fields, expected = GOOD_EVENTS[event]
    assert words("info", event, **fields) == expected


def test_an_account_that_is_ready_again_needs_no_more_words() -> None:
    fields = dict.fromkeys(("reason", "until", "next_try_at", "advice"))
    assert words("info", "account", account="a", status="ready", **fields) == "account a: ready"


def test_a_time_on_another_day_has_its_date() -> None:
    fields = {"pool": "home", "model": "m1", "until": "2026-12-01T09:30:00+00:00"}
    assert words("warning", "pool", **fields).endswith("until 2026-12-01 09:30")


def test_times_are_those_of_the_persons_clock() -> None:
    at = AT.astimezone(timezone(timedelta(hours=2)))
    fields = {"pool": "home", "model": "m1", "until": UNTIL}
    shown = event_line("warning", "pool", fields, at, is_coloured=False)
    assert shown.startswith("16:02:31  ")
    assert shown.endswith("until 17:00")


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_no_event_is_a_command_to_the_terminal(name: str) -> None:
    for event, (level, fields, _) in EVENTS.items():
        hostile = {
            field: [HOSTILE_TEXTS[name]] if isinstance(value, list) else HOSTILE_TEXTS[name]
            for field, value in fields.items()
            if field != "until"
        }
        assert words(level, event, **hostile).isprintable()


def test_an_event_without_words_or_fields_is_shown_as_it_is() -> None:
    assert words("info", "something new", account="a") == "something new"
    assert words("warning", "account") == "warning: account : "


def test_a_request_is_an_event() -> None:
    fields = record().as_object()
    assert event_line("info", "request", fields, AT, is_coloured=True) == request_line(
        fields, AT, True
    )


################################################################
# THE INTRODUCTION
################################################################

URLS: Final = ("http://[::1]:4/p", "unix:/run/pooler.sock")


def account(status: str, **fields: object) -> dict[str, object]:
    nothing = dict.fromkeys(("reason", "until", "advice"))
    return {"name": status, "status": status, "needs_operator": False, **nothing, **fields}


def test_a_server_introduces_itself_in_a_few_lines() -> None:
    refused = {"needs_operator": True, "reason": "401", "advice": "Put a valid key into X."}
    limited = {"reason": "429", "until": AT.timestamp() + 3600, "advice": "Nothing."}
    pool = {"name": "home", "accounts": ["ready", "refused"], "models": ["a", "b"], "key_count": 3}
    shown = {
        "version": "1.2.3",
        "pools": [pool, {**pool, "name": "work", "models": []}],
        "accounts": [
            account("ready"),
            account("login_needed", needs_operator=True, reason="does not exist"),
            account("refused", **refused),
            account("at_limit", **limited),
        ],
        "operators": [{"name": "me"}],
    }
    assert introduction(shown, URLS, AT, False) == [
        "codex-pooler 1.2.3 serves http://[::1]:4/p/v1 and unix:/run/pooler.sock",
        "  pool home: ready, refused; models: 2; keys: 3",
        "  pool work: ready, refused; models: those of its accounts; keys: 3",
        "  account ready: ready",
        "  account login_needed: login needed",
        "  account refused: refused (401). Put a valid key into X.",
        "  account at_limit: at its limit (429), until 15:02. Nothing.",
        (
            "  operators: http://[::1]:4/p/admin (the token is the password), "
            "or `pooler status --url http://[::1]:4/p`"
        ),
    ]
    coloured = introduction(shown, URLS, AT, True)
    assert f"{GREEN}ready\x1b[0m" in coloured[3]
    assert f"{RED}login needed\x1b[0m" in coloured[4]
    assert f"{YELLOW}at its limit\x1b[0m" in coloured[6]


def test_what_has_no_address_and_no_operator_says_so() -> None:
    nobody: dict[str, Any] = {"version": "1", "pools": [], "accounts": [], "operators": []}
    shown = introduction(nobody, URLS[1:], AT, False)
    assert "pooler key --operator" in shown[-1]
    shown = introduction({**nobody, "operators": [{}]}, URLS[1:], AT, False)
    assert "/admin through your proxy" in shown[-1]
    shown = introduction({**nobody, "operators": [{}]}, [USUAL_URL], AT, False)
    assert shown[-1].endswith("/admin (the token is the password), or `pooler status`")
    lines = "".join(introduction(snapshot(), URLS, AT, False))
    assert lines.isprintable()


def test_what_was_introduced_is_not_repeated() -> None:
    form = TerminalForm()
    nobody: dict[str, Any] = {"version": "1", "pools": [], "operators": []}
    text = form.introduce({**nobody, "accounts": [account("login_needed")]}, URLS)
    assert "account login_needed: login needed\n" in text
    assert f"kill -HUP {os.getpid()} " in text
    fields = {"account": "login_needed", "status": "login_needed"}
    assert form("warning", "account", fields) == ""
    assert form("warning", "account", fields).endswith("account login_needed: login needed\n")
    assert form("warning", "account", {"account": "new", "status": "refused"}) != ""


class Stream(io.StringIO):
    """A stream that may be a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize(
    ("name", "value", "is_coloured"),
    [
        ("NO_COLOR", "1", False),
        ("NO_COLOR", "", True),
        ("TERM", "dumb", False),
        ("TERM", "xterm", True),
    ],
)
def test_colours_are_for_terminals_whose_owner_wants_them(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, is_coloured: bool
) -> None:
    for variable in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, value)
    assert takes_colours(Stream(True)) is is_coloured
    assert not takes_colours(Stream(False))
    assert not takes_colours(None)
