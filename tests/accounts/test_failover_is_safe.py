"""Proves that a request goes elsewhere only if no upstream has begun it, and failures are reported.

Method: tables of faults. Account a produces each of them, with and without a second healthy
account, for a client that streams and one that does not. Examined are the client's response, how
many POSTs each upstream got, and where the next request goes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from pooler import ERRORS, PoolerError
from tests.support.memory_sockets import Json, Response, ask_chat, ask_responses, post
from tests.support.world import (
    LAST_CHUNK,
    UNIX_START,
    Fin,
    Pause,
    ReadOnly,
    Refuse,
    Reset,
    Script,
    Send,
    Stall,
    World,
    asked_counts,
    chat_events,
    chunk,
    describe,
    error_response,
    json_response,
    opened_world,
    response_head,
    responses_events,
    sessions_of,
    sse_event,
    sse_head,
    sse_response,
    sse_steps,
)

# What makes OpenCode retry an answer whatever its status (F68).
RETRIED: Final = re.compile(
    "429|500|502|503|504|524|rate.?limit|overloaded|server.?error|try again|too many requests|"
    "temporarily at capacity|request timeout|service unavailable|internal error",
    re.IGNORECASE,
)
IN_ORDER: Final = {"routing": "in_order"}  # a whenever it is well, else b
DIALS: Final = (Refuse, Stall, Fin, Reset)


@dataclass(frozen=True)
class Row:
    """A fault of account a, and what must follow.

    `after`: "same" (the next request goes to a), "later" (to a only where there is no other),
    "rests" (not to a).  `code` None: the upstream's own body.
    """

    script: Any  # a script, or a step at the dial
    status: int
    code: str | None
    goes_on: bool = False
    after: str = "same"
    seconds: float = 0
    post_count: int = 1


def fail(status: int, code: str | None = "some_code", **more: Json) -> Script:
    return error_response(status, code, **more)


def detail(status: int, text: str) -> Script:
    return json_response({"detail": text}, status)


def html(status: int, headers: Sequence[tuple[str, str]] = ()) -> Script:
    page = b"<html>Just a moment...</html>\n\n"
    fields = [("content-type", "text/html"), ("content-length", str(len(page))), *headers]
    return [Send(response_head(status, fields) + page)]


def raw(head: bytes) -> Script:
    return [Send(head), Stall()]


LONG: Final = ("content-length", "100")
ELSEWHERE: Final = (("location", "/v1/x"), ("content-length", "0"))
EMPTY: Final = ("content-length", "0")
NO_ROUTE: Final = "unsupported_endpoint"
INVALID: Final = "upstream_invalid_response"
UNREACHABLE: Final = "upstream_unreachable"
NO_ITEM: Final = "Item with id 'rs_1' not found. Items are not persisted when `store` is false."
NO_PLAN: Final = "The 'm1' model is not supported when using Codex with a ChatGPT account."
HINT: Final = b"HTTP/1.1 103 Early\r\n\r\n"

ROWS: Final = {
    # The connection.
    "connect-refused": Row(Refuse(), 502, UNREACHABLE, True, "later", 0, 0),
    "connect-stalls": Row(Stall(), 504, "upstream_timeout", True, "later", 10, 0),
    "closed-at-once": Row(Fin(), 502, UNREACHABLE, True, "same", 0, 0),
    "reset-at-once": Row(Reset(), 502, UNREACHABLE, True, "same", 0, 0),
    "cut-while-sending": Row([ReadOnly(10), Reset()], 502, UNREACHABLE, True, "same", 0, 0),
    "sending-stalls": Row([ReadOnly(10), Stall()], 504, "upstream_timeout", True, "later", 60, 0),
    "refused-while-sending": Row(
        [ReadOnly(10), *fail(429), Fin()], 429, "usage_limit_reached", True, "rests", 0, 0
    ),
    "eof-before-the-head": Row([Fin()], 502, UNREACHABLE),
    "reset-before-the-head": Row([Reset()], 502, UNREACHABLE),
    "half-a-head": Row([Send(b"HTTP/1.1 200 O"), Fin()], 502, UNREACHABLE),
    # The head.
    "malformed-head": Row(raw(b"HTTP/1.1 2x0 Well\r\n\r\n"), 502, INVALID),
    "bare-lf": Row(raw(b"HTTP/1.1 200 OK\nx: y\n\n"), 502, INVALID),
    "not-http": Row(raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), 502, INVALID),
    "head-too-large": Row(raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 32768), 502, INVALID),
    "two-framings": Row(raw(sse_head(headers=[LONG])), 502, INVALID),
    "two-lengths": Row(raw(response_head(200, [LONG, ("content-length", "99")])), 502, INVALID),
    "negative-length": Row(raw(response_head(200, [("content-length", "-1")])), 502, INVALID),
    "gzip-chunked": Row(raw(response_head(200, [("transfer-encoding", "gzip")])), 502, INVALID),
    "compressed": Row(raw(sse_head(headers=[("content-encoding", "gzip")])), 502, INVALID),
    "unasked-101": Row(raw(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n"), 502, INVALID),
    "nine-interim": Row([Send(HINT * 9), *json_response({})], 502, INVALID),
    # An answer that says whose fault it was.
    **{
        f"redirect-{status}": Row([Send(response_head(status, ELSEWHERE))], 502, INVALID)
        for status in (301, 302, 303, 307, 308)
    },
    **{str(status): Row(fail(status), status, None) for status in (400, 404, 409, 413, 422)},
    "400-model-unsupported": Row(detail(400, NO_PLAN), 400, "model_not_found", True, "rests"),
    "404-model": Row(fail(404, "model_not_found"), 400, "model_not_found", True, "rests"),
    "404-model-as-text": Row(
        json_response({"error": 'model "m1" not found, try pulling it first'}, 404),
        400,
        "model_not_found",
        True,
        "rests",
    ),
    "404-item": Row(
        json_response({"error": {"message": NO_ITEM, "param": "input", "code": None}}, 404),
        404,
        None,
    ),
    "400-detail": Row(detail(400, "Unsupported parameter: seed"), 400, None),
    "400-odd-param": Row(
        json_response({"error": {"message": "x", "param": ["a"]}}, 400), 400, None
    ),
    "400-html": Row(html(400), 400, "upstream_error"),
    "404-html": Row(html(404), 400, NO_ROUTE, True, "rests"),
    "404-empty": Row(raw(response_head(404, [EMPTY])), 400, NO_ROUTE, True, "rests"),
    "401": Row(fail(401, "token_expired"), 503, "no_usable_account", True, "rests"),
    "402": Row(fail(402, "deactivated_workspace"), 503, "no_usable_account", True, "rests"),
    "403": Row(fail(403), 503, "no_usable_account", True, "later"),
    "403-deactivated": Row(
        fail(403, "account_deactivated"), 503, "no_usable_account", True, "rests"
    ),
    "403-policy": Row(fail(403, "misalignment_policy_violation"), 403, None),
    "403-challenge": Row(
        fail(403, headers=[("cf-mitigated", "challenge")]), 502, "upstream_blocked"
    ),
    "403-html": Row(html(403, [("server", "cloudflare")]), 502, "upstream_blocked"),
    "408": Row(fail(408), 408, None),
    "429": Row(fail(429, "rate_limit_exceeded"), 429, "usage_limit_reached", True, "rests"),
    "429-html": Row(html(429), 502, "upstream_blocked", True, "later"),
    **{
        str(status): Row(fail(status), status, "some_code", True, "later")
        for status in (500, 502, 503, 520, 521, 529)
    },
    "503-html": Row(html(503), 503, "upstream_error", True, "later"),
    "500-odd-code": Row(fail(500, "a b<c>"), 500, "upstream_error", True, "later"),
    **{
        str(status): Row(fail(status), status, "some_code", False, "later")
        for status in (504, 522, 524)
    },
    "501": Row(fail(501), 501, "some_code"),
    # The status has told that nothing was executed, whatever becomes of the body.
    "429-body-cut": Row(
        [Send(response_head(429, [LONG])), Fin()], 429, "usage_limit_reached", True, "rests"
    ),
    "500-body-garbage": Row(
        [Send(response_head(500, [("transfer-encoding", "chunked")]) + b"garbage\r\n"), Stall()],
        500,
        "upstream_error",
        True,
        "later",
    ),
    "429-body-stalls": Row(
        raw(response_head(429, [LONG])), 429, "usage_limit_reached", True, "rests", 10
    ),
}
TABLE: Final = [pytest.param(row, id=name) for name, row in ROWS.items()]


def check_error(response: Response, code: str | None) -> None:
    """Every error is JSON with four fields, and has no word that a client could misread."""
    assert re.fullmatch(r"[a-z]{20}", response.header("x-request-id") or "")
    retry_after = response.header("retry-after")
    assert retry_after is None or 1 <= int(retry_after) <= 60
    assert response.header("content-type") == "application/json"
    if code is None:
        return
    assert {"message", "type", "code", "param"} <= response.error.keys()
    assert response.error["code"] == code
    assert "said by the upstream" not in str(response.body).replace(
        "failed: said by the upstream", ""
    )
    if response.status < 500 and response.status != 429:
        assert not RETRIED.search(str(response.body) + str(response.headers))


def prepare(world: World, row: Row) -> None:
    upstream = world.upstreams["a"]
    if isinstance(row.script, DIALS):
        upstream.dials.append(row.script)
    else:
        upstream.plays(row.script)
    world.upstreams["a"].always = None


def question(*, is_stream: bool, **more: Json) -> bytes:
    return ask_responses(stream=is_stream, **more)


def good(*, is_stream: bool) -> Script:
    return sse_response(responses_events("x")) if is_stream else json_response({"id": "r"})


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "unary"])
@pytest.mark.parametrize("row", TABLE)
async def test_a_fault_of_the_only_account_is_reported(
    autojump_clock: MockClock, row: Row, *, is_stream: bool
) -> None:
    async with opened_world(describe("a")) as world:
        prepare(world, row)
        response = await world.ask(question(is_stream=is_stream))
        assert (response.status, trio.current_time()) == (row.status, row.seconds)
        check_error(response, row.code)
        if row.code is None:
            assert response.body == row.script[0].data.partition(b"\r\n\r\n")[2]
        assert asked_counts(world) == [row.post_count]
        world.upstreams["a"].always = good(is_stream=is_stream)
        follower = await world.ask(question(is_stream=is_stream))
        assert asked_counts(world) == [row.post_count + (row.after != "rests")]
        assert (follower.status == 200) == (row.after != "rests")


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "unary"])
@pytest.mark.parametrize("row", TABLE)
async def test_a_fault_leads_to_another_account_only_if_that_is_safe(
    autojump_clock: MockClock, row: Row, *, is_stream: bool
) -> None:
    sessions = sessions_of("ab")
    async with opened_world(describe("ab")) as world:
        prepare(world, row)
        world.upstreams["b"].always = good(is_stream=is_stream)
        response = await world.ask(question(is_stream=is_stream, prompt_cache_key=next(sessions)))
        assert asked_counts(world) == [row.post_count, int(row.goes_on)]
        assert response.status == (200 if row.goes_on else row.status)
        assert trio.current_time() == row.seconds
        attempts = world.records[0]["attempts"]
        assert [attempt["account"] for attempt in attempts] == ["a", "b"][: 1 + row.goes_on]
        world.upstreams["a"].always = good(is_stream=is_stream)
        raw = question(is_stream=is_stream, prompt_cache_key=next(sessions))
        assert (await world.ask(raw)).status == 200
        is_avoided = row.after != "same"
        assert asked_counts(world) == [row.post_count + (not is_avoided), row.goes_on + is_avoided]


async def test_eight_interim_responses_are_skipped(world: World) -> None:
    world.upstreams["a"].plays([Send(HINT * 8), *json_response({"id": "r"})])
    assert (await world.ask(ask_responses(stream=False))).json() == {"id": "r"}


@pytest.mark.parametrize("code", ERRORS)
def test_no_final_error_of_ours_invites_a_retry(code: str) -> None:
    error = PoolerError(code)
    body, content_type = error.content()
    assert content_type == "application/json"
    assert set(json.loads(body)["error"]) == {"message", "type", "code", "param"}
    if error.status < 500 and error.status != 429:
        assert not RETRIED.search(body.decode())


################################################################
# LIMITS
################################################################

DAY: Final = 86400.0
FAR: Final = 10**400


@pytest.mark.parametrize(
    ("error", "headers", "rest"),
    [
        pytest.param({"resets_at": UNIX_START + 50}, [], 50, id="resets-at"),
        pytest.param({"resets_in_seconds": 60}, [], 60, id="resets-in"),
        pytest.param({"resets_in_seconds": 61}, [], 61, id="resets-in-past-a-minute"),
        pytest.param({"resets_at": UNIX_START + 5 * DAY}, [], 5 * DAY, id="resets-in-days"),
        pytest.param({"message": "Please try again in 1.898s."}, [], 1.898, id="text-seconds"),
        pytest.param({"message": "Please try again in 28ms."}, [], 0.028, id="text-milliseconds"),
        pytest.param({"message": "Please try again in 6m0s."}, [], 360, id="text-minutes"),
        pytest.param({"message": "try again in 1h2m3s"}, [], 3723, id="text-hours"),
        pytest.param({}, [("retry-after", "40")], 40, id="header-seconds"),
        pytest.param({}, [("retry-after", "0.5")], 0.5, id="header-half-a-second"),
        pytest.param({}, [("retry-after-ms", "1500")], 1.5, id="header-milliseconds"),
        pytest.param(
            {}, [("retry-after", formatdate(UNIX_START + 45, usegmt=True))], 45, id="header-date"
        ),
        pytest.param({"code": "insufficient_quota"}, [], 900, id="quota-without-a-time"),
        pytest.param({"code": "insufficient_quota", "resets_at": 1}, [], 900, id="quota-past"),
        pytest.param({}, [], 30, id="no-word"),
        pytest.param({"resets_at": UNIX_START - 1}, [], 30, id="past"),
        pytest.param({"resets_in_seconds": 32 * DAY}, [], 32 * DAY, id="thirty-two-days"),
        pytest.param({"resets_in_seconds": 32 * DAY + 1}, [], 30, id="beyond-thirty-two-days"),
        pytest.param({"resets_in_seconds": -5}, [], 30, id="negative"),
        pytest.param({"resets_in_seconds": math.nan}, [], 30, id="not-a-number"),
        pytest.param({"resets_at": math.inf}, [], 30, id="never"),
        pytest.param({"resets_at": FAR}, [], 30, id="resets-at-beyond-floats"),
        pytest.param({"resets_in_seconds": FAR}, [], 30, id="resets-in-beyond-floats"),
        pytest.param({"resets_at": "soon", "resets_in_seconds": None}, [], 30, id="no-numbers"),
        pytest.param({}, [("retry-after", "soon")], 30, id="header-garbage"),
        pytest.param(
            {}, [("retry-after", "Mon, 01 Jan 2026 00:00:00 +9999999999999999")], 30,
            id="header-date-beyond-clocks",
        ),
        pytest.param({}, [("retry-after", "1e999")], 30, id="header-infinite"),
        pytest.param(
            {"message": "try again in " + "9" * 400 + "s"}, [], 30, id="text-beyond-floats"
        ),
    ],
)  # fmt: skip
async def test_a_limited_account_cools_down_as_long_as_announced(
    autojump_clock: MockClock,
    error: dict[str, Any],
    headers: Sequence[tuple[str, str]],
    rest: float,
) -> None:
    async with opened_world(describe("a")) as world:
        upstream = world.upstreams["a"]
        upstream.plays(
            json_response({"error": {"code": "rate_limit_exceeded"} | error}, 429, headers)
        )
        upstream.always = json_response({})
        response = await world.ask(ask_responses(stream=False))
        check_error(response, "usage_limit_reached")
        seconds = math.ceil(rest)
        assert response.status == 429
        assert response.error["type"] == "usage_limit_reached"
        assert response.error["resets_in_seconds"] == seconds
        assert response.error["resets_at"] == UNIX_START + seconds
        short = seconds <= 60
        assert response.header("retry-after") == (str(seconds) if short else None)
        assert response.header("x-should-retry") == (None if short else "false")
        autojump_clock.jump(min(rest, 900) - 0.001)
        assert (await world.ask(ask_responses(stream=False))).status == 429
        assert asked_counts(world) == [1]
        autojump_clock.jump(0.001)
        assert (await world.ask(ask_responses(stream=False))).status == 200
        assert asked_counts(world) == [2]


async def test_when_all_are_limited_clients_get_the_first_reset(autojump_clock: MockClock) -> None:
    async with opened_world(describe("abc", pool=IN_ORDER)) as world:
        for upstream, seconds in zip(world.upstreams.values(), (500, 40, 80), strict=True):
            upstream.plays(error_response(429, "x", resets_in_seconds=seconds))
        response = await world.ask(ask_responses())
        assert (response.status, response.header("retry-after")) == (429, "40")
        assert asked_counts(world) == [1, 1, 1]


async def test_a_model_is_missing_only_when_no_account_is_left(autojump_clock: MockClock) -> None:
    async with opened_world(describe("abcd", pool=IN_ORDER)) as world:
        for upstream in world.upstreams.values():
            upstream.always = error_response(404, "model_not_found")
        world.upstreams["d"].plays(json_response({"id": "r"}))
        first = await world.ask(ask_responses(stream=False))
        assert (first.status, first.error["code"]) == (503, "pool_busy")
        assert (await world.ask(ask_responses(stream=False))).status == 200
        last = await world.ask(ask_responses(stream=False))
        assert (last.status, last.error["code"]) == (400, "model_not_found")


async def test_at_most_three_accounts_are_tried(autojump_clock: MockClock) -> None:
    async with opened_world(describe("abcd", pool=IN_ORDER)) as world:
        for upstream in world.upstreams.values():
            upstream.always = fail(500)
        response = await world.ask(ask_responses())
        check_error(response, "some_code")
        assert (response.status, asked_counts(world)) == (500, [1, 1, 1, 0])


async def test_the_last_failure_is_reported(autojump_clock: MockClock) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(fail(429), fail(500, "one"))
        world.upstreams["b"].plays(fail(503, "two"), fail(401))
        assert (await world.ask(ask_responses())).error["code"] == "two"
        autojump_clock.jump(60)
        assert (await world.ask(ask_responses())).error["code"] == "no_usable_account"


@pytest.mark.parametrize("status", [500, 502, 503])
@pytest.mark.parametrize("code", ["deadline_exceeded", "gateway_timeout", "timeout", 504, 524])
async def test_a_gateway_that_says_it_stopped_waiting_is_believed_whatever_its_status(
    status: int, code: str | int, autojump_clock: MockClock
) -> None:
    """The server behind it may still be working, so nobody else is asked."""
    async with opened_world(describe("ab", pool={"routing": "in_order"})) as world:
        world.upstreams["a"].always = json_response({"error": {"code": code}}, status)
        world.upstreams["b"].always = json_response({"id": "r"})
        assert (await world.ask(ask_responses())).status == 504
        assert asked_counts(world) == [1, 0]


async def test_a_model_inside_a_tool_that_is_not_found_takes_no_model_from_the_account(
    autojump_clock: MockClock,
) -> None:
    error = {"code": "model_not_found", "param": "tools[0].model", "message": "No such model."}
    asked = post("/v1/responses", {"model": "m1", "input": ""})
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(json_response({"error": error}, 400))
        assert (await world.ask(asked)).status == 400
        world.upstreams["a"].always = json_response({"id": "r"})
        assert (await world.ask(asked)).status == 200


################################################################
# INSIDE A SUCCESS
################################################################

NEXT_CODES: Final = {
    **dict.fromkeys(
        "usage_limit_reached rate_limit_exceeded insufficient_quota quota_exceeded "
        "usage_not_included".split(),
        (429, "rests"),
    ),
    **dict.fromkeys("server_is_overloaded slow_down overloaded_error".split(), (503, "later")),
    **dict.fromkeys(
        "server_error upstream_error stream_incomplete upstream_request_timeout".split(),
        (502, "later"),
    ),
    "model_not_found": (400, "rests"),
}
FINAL_CODES: Final = (
    "context_length_exceeded invalid_prompt cyber_policy bio_policy "
    "previous_response_not_found something_new"
).split()
SHAPES: Final = ("failed", "flat", "nested", "chat")


def failure(shape: str, code: str) -> dict[str, Any]:
    said = {"code": code, "message": "said by the upstream", "param": None}
    shapes: dict[str, dict[str, Any]] = {
        "failed": {"type": "response.failed", "response": {"status": "failed", "error": said}},
        "flat": {"type": "error", **said, "sequence_number": 2},
        "nested": {"type": "error", "error": said},
        "chat": {"error": said},
    }
    return shapes[shape]


def failing(shape: str, code: str, *, after_content: bool) -> list[Any]:
    """The payloads of a stream that fails before or after its first content."""
    events = chat_events("x") if shape == "chat" else responses_events("x")
    handshake_count = 1 if shape == "chat" else 2
    return [*events[: handshake_count + after_content], failure(shape, code)]


def streamed(shape: str) -> bytes:
    return ask_chat() if shape == "chat" else ask_responses()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("code", NEXT_CODES)
async def test_a_failed_event_before_content_is_as_good_as_a_status(
    autojump_clock: MockClock, code: str, shape: str
) -> None:
    status, after = NEXT_CODES[code]
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        a, b = world.upstreams.values()
        a.plays(sse_response(failing(shape, code, after_content=False)))
        b.plays(sse_response(chat_events("y") if shape == "chat" else responses_events("y")))
        response = await world.ask(streamed(shape))
        assert (response.status, asked_counts(world)) == (200, [1, 1])
        assert b"said by the upstream" not in response.body
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(sse_response(failing(shape, code, after_content=False)))
        response = await world.ask(streamed(shape))
        check_error(response, "usage_limit_reached" if status == 429 else code)
        assert response.status == status
        world.upstreams["a"].always = json_response({})
        follower = await world.ask(ask_responses(stream=False))
        assert (follower.status == 200) == (after != "rests")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("code", "after_content"),
    [
        *[pytest.param(code, False, id=f"{code}-before-content") for code in FINAL_CODES],
        *[pytest.param(code, True, id=f"{code}-after-content") for code in NEXT_CODES],
    ],
)
async def test_other_failures_in_a_stream_are_forwarded_as_they_came(
    autojump_clock: MockClock, code: str, shape: str, *, after_content: bool
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        payloads = failing(shape, code, after_content=after_content)
        world.upstreams["a"].plays(sse_response(payloads))
        response = await world.ask(streamed(shape))
        assert (response.status, asked_counts(world)) == (200, [1, 0])
        assert response.body == b"".join(map(sse_event, payloads))
        assert world.records[0]["code"] == f"upstream:{code}"


PAGE: Final = html(200)
STREAM_FAULTS: Final = {
    "eof-after-the-head": [Send(sse_head()), Fin()],
    "reset-after-the-head": [Send(sse_head()), Reset()],
    "eof-after-the-handshake": [*sse_steps(*responses_events("x")[:2], is_whole=False), Fin()],
    "clean-end-without-an-event": [Send(sse_head() + LAST_CHUNK)],
    "clean-end-after-the-handshake": sse_steps(*responses_events("x")[:2]),
    "empty": [Send(response_head(200, [("content-length", "0")]))],
    "no-content": [Send(response_head(204))],
    "html": PAGE,
    "chunk-garbage": [Send(sse_head() + b"xyz\r\n"), Stall()],
    "garbage-after-a-chunk": [Send(sse_head() + b"1\r\n:X\r\n"), Stall()],
}
UNARY_FAULTS: Final = {
    "eof-after-the-head": [Send(response_head(200, [LONG])), Fin()],
    "half-a-body": [Send(response_head(200, [LONG]) + b'{"id":'), Reset()],
    "chunk-garbage": [Send(sse_head() + b"xyz\r\n"), Stall()],
    "empty": [Send(response_head(200, [("content-length", "0")]))],
    "no-content": [Send(response_head(204))],
    "html": PAGE,
}


@pytest.mark.parametrize(
    ("script", "is_stream"),
    [
        *[pytest.param(script, True, id=f"stream-{n}") for n, script in STREAM_FAULTS.items()],
        *[pytest.param(script, False, id=f"unary-{n}") for n, script in UNARY_FAULTS.items()],
    ],
)
async def test_an_invalid_success_is_an_error_and_not_sent_twice(
    autojump_clock: MockClock, script: Script, *, is_stream: bool
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(script)
        response = await world.ask(question(is_stream=is_stream))
        assert (response.status, asked_counts(world)) == (502, [1, 0])
        check_error(response, response.error["code"])
        cut = set() if script is PAGE else {"upstream_stream_truncated"}
        assert response.error["code"] in {INVALID, *cut}
        world.upstreams["a"].always = good(is_stream=is_stream)
        assert (await world.ask(question(is_stream=is_stream))).status == 200
        assert asked_counts(world) == [2, 0]


################################################################
# REPAIR, AND CONNECTIONS KEPT ALIVE
################################################################

VARIANTS: Final = {
    "by-code": error_response(400, "invalid_encrypted_content"),
    "by-message": json_response(
        {
            "error": {
                "message": "The encrypted content for item rs_1 could not be verified. Reason: "
                "Encrypted content could not be decrypted or parsed.",
                "type": "invalid_request_error",
                "code": None,
            }
        },
        400,
    ),
}
QUESTION: Final = {"role": "user", "content": "hi"}
THOUGHT: Final = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
SUMMARY: Final = {"type": "compaction", "encrypted_content": "gAAAA"}
WITH_REASONING: Final = ask_responses(stream=False, input=[QUESTION, THOUGHT, SUMMARY], seed=1.0)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_unreadable_reasoning_is_dropped_once_on_the_same_account(
    autojump_clock: MockClock, variant: str
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(VARIANTS[variant], json_response({"id": "r"}))
        assert (await world.ask(WITH_REASONING)).json() == {"id": "r"}
        assert asked_counts(world) == [2, 0]
        first, second = (asked.json()["input"] for asked in world.asked)
        assert (first, second) == ([QUESTION, THOUGHT, SUMMARY], [QUESTION])


@pytest.mark.parametrize("variant", VARIANTS)
async def test_a_failed_repair_is_returned(autojump_clock: MockClock, variant: str) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(VARIANTS[variant], VARIANTS[variant], json_response({}))
        response = await world.ask(WITH_REASONING)
        assert (response.status, asked_counts(world)) == (400, [2, 0])
        sent = VARIANTS[variant][0]
        assert isinstance(sent, Send)
        assert sent.data.endswith(response.body)
        assert (await world.ask(question(is_stream=False))).status == 200
        assert asked_counts(world) == [3, 0]


@pytest.mark.parametrize("variant", VARIANTS)
async def test_where_nothing_can_be_dropped_nothing_is_sent_twice(
    autojump_clock: MockClock, variant: str
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(VARIANTS[variant])
        response = await world.ask(ask_responses(stream=False, input=[QUESTION]))
        assert (response.status, asked_counts(world)) == (400, [1, 0])


async def test_after_a_repair_the_request_may_still_go_elsewhere(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(VARIANTS["by-code"], fail(500))
        world.upstreams["b"].plays(json_response({}))
        assert (await world.ask(WITH_REASONING)).status == 200
        assert asked_counts(world) == [2, 1]


async def test_half_an_emoji_does_not_stand_in_the_way_of_failover(
    autojump_clock: MockClock,
) -> None:
    body = rb'{"model": "m1", "input": [{"role": "user", "content": "cut \ud83d"}]}'
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(fail(429))
        world.upstreams["b"].plays(json_response({}))
        assert (await world.ask(post("/v1/responses", body))).status == 200
        assert [asked.body for asked in world.asked] == [body, body]


async def test_half_an_emoji_as_a_model_s_name_is_no_bug(world: World) -> None:
    body = rb'{"model": "\ud83d", "input": "x", "prompt_cache_key": "p"}'
    response = await world.ask(post("/v1/responses", body))
    assert response.status == 400
    check_error(response, "model_not_found")


async def test_a_closed_idle_connection_is_replaced_silently(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        upstream = world.upstreams["a"]
        upstream.plays([*json_response({}), Pause(1), Fin()], json_response({}))
        await world.ask(question(is_stream=False))
        autojump_clock.jump(1)
        await world.settle()
        assert (await world.ask(question(is_stream=False))).status == 200
        assert (asked_counts(world), upstream.dial_count) == ([2, 0], 2)
        assert len(world.records[1]["attempts"]) == 1


@pytest.mark.parametrize("end", [Fin(), Reset()], ids=["closed", "reset"])
async def test_a_kept_connection_that_dies_with_the_request_is_not_retried(
    autojump_clock: MockClock, end: Fin | Reset
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        upstream = world.upstreams["a"]
        upstream.plays(json_response({}), [Pause(1), end])
        await world.ask(question(is_stream=False))
        response = await world.ask(question(is_stream=False))
        assert (response.status, response.error["code"]) == (502, UNREACHABLE)
        assert (asked_counts(world), upstream.dial_count) == ([2, 0], 1)


async def test_a_new_connection_that_dies_while_replacing_goes_elsewhere(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        upstream = world.upstreams["a"]
        upstream.plays([*json_response({}), Pause(1), Fin()])
        world.upstreams["b"].plays(json_response({}))
        await world.ask(question(is_stream=False))
        autojump_clock.jump(1)
        await world.settle()
        upstream.dials.append(Reset())
        assert (await world.ask(question(is_stream=False))).status == 200
        assert (asked_counts(world), upstream.dial_count) == ([1, 1], 2)


async def test_a_connection_whose_response_was_cut_or_too_long_is_not_used_again(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        upstream = world.upstreams["a"]
        body = json_response({})[0]
        assert isinstance(body, Send)
        upstream.plays([Send(body.data + b"HTTP/1.1 200 OK\r\n")], json_response({"id": "r"}))
        await world.ask(question(is_stream=False))
        assert (await world.ask(question(is_stream=False))).json() == {"id": "r"}
        assert upstream.dial_count == 2


async def test_nothing_is_sent_elsewhere_once_the_client_has_its_head(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        late = failure("failed", "server_error")
        world.upstreams["a"].plays(
            [Send(sse_head()), Pause(11), Send(chunk(sse_event(late)) + LAST_CHUNK)]
        )
        response = await world.ask(ask_responses())
        assert (response.head_at, response.ended_at) == (10, 11)
        assert (response.body, asked_counts(world)) == (sse_event(late), [1, 0])
