"""Proves that what the log shows on a terminal is short, readable, and nothing but text.

Method: the pure functions of lines for people, with the fields that the log has.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from pooler import (
    LINE_COLUMNS,
    Record,
    Usage,
    cut_text,
    printable,
    request_line,
    takes_colours,
    tinted,
)

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
    times = {"first_byte_ms": 412, "duration_ms": 5120}
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
