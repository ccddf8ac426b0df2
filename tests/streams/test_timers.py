"""Proves that no wait is unbounded, and that each one ends at its exact moment.

Method: virtual time.  An upstream or a client falls silent in one phase; seen are what the
client gets and when.  Times are exact: a wait that is bounded twice, or late, fails.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from tests.support.memory_sockets import (
    Client,
    Json,
    Truncated,
    ask_chat,
    ask_responses,
    post,
    request,
)
from tests.support.world import (
    LAST_CHUNK,
    Fin,
    Pause,
    Script,
    Send,
    Stall,
    Wait,
    World,
    chat_events,
    chunk,
    describe,
    json_response,
    opened_world,
    responses_events,
    sse_event,
    sse_head,
    sse_response,
    sse_steps,
)

COMMENT: Final = b": keepalive\n\n"
EVENTS: Final = responses_events("x", "y")  # created, in_progress, x, y, completed
CREATED, IN_PROGRESS, DELTA, _, COMPLETED = EVENTS
UPSTREAM_COMMENT: Final = Send(chunk(b": still here\n\n"))
KEEPALIVE: Final = {"type": "keepalive"}


@asynccontextmanager
async def asking(
    script: Script, raw: bytes, **described: Json
) -> AsyncIterator[tuple[World, Client]]:
    """A client that has just asked account a, which plays `script`."""
    whole: dict[str, Json] = {"pool": {"routing": "in_order"}} | described
    async with opened_world(describe("ab", **whole)) as world:
        world.upstreams["a"].plays(script)
        client = await world.connect()
        await client.send(raw)
        yield world, client


async def timed_events(client: Client) -> list[tuple[float, bytes]]:
    """Every event that is still to come, with its time; the last one is the body's end."""
    found = []
    while event := await client.read_event():
        found.append((trio.current_time(), event))
    return [*found, (trio.current_time(), b"")]


def type_of(event: bytes) -> str:
    """An event's type, "comment", or "end"."""
    if not event or event.startswith(b":"):
        return "comment" if event else "end"
    value = json.loads(event.partition(b"data: ")[2])
    return str(value.get("type", "chat error" if "error" in value else "chunk"))


def shown(events: Sequence[tuple[float, bytes]]) -> list[tuple[float, str]]:
    return [(at, type_of(event)) for at, event in events]


def comments(*times: float) -> list[tuple[float, str]]:
    return [(float(at), "comment") for at in times]


def check_failed(event: bytes, timer: str) -> None:
    """The terminal event of ours says which timer fired."""
    value = json.loads(event.partition(b"data: ")[2])
    assert value["response"]["error"]["code"] == "upstream_timeout"
    assert timer in value["response"]["error"]["message"]


################################################################
# BEFORE THE CLIENT HAS ITS HEAD
################################################################


@pytest.mark.parametrize(
    ("script", "raw", "described", "told"),
    [
        pytest.param(
            [Stall()], ask_responses(), {}, (120, "first_event"), id="no-head-of-a-stream"
        ),
        pytest.param([Stall()], ask_chat(), {}, (120, "first_event"), id="no-head-of-a-chat"),
        pytest.param(
            [Send(b"HTTP/1.1 200 OK\r\n"), Stall()],
            ask_responses(),
            {},
            (120, "first_event"),
            id="half-a-head",
        ),
        pytest.param(
            [Send(b"HTTP/1.1 103 Wait\r\n\r\n"), Stall()],
            ask_responses(),
            {},
            (120, "first_event"),
            id="an-interim-head-is-no-event",
        ),
        pytest.param(
            [Stall()],
            ask_responses(),
            {"accounts": {"a": {"first_event_seconds": 400}}},
            (400, "first_event"),
            id="the-account-s-own-timer",
        ),
        pytest.param(
            [Stall()],
            ask_responses(),
            {"limits": {"first_event_seconds_max": 20}},
            (20, "first_event"),
            id="the-configured-timer",
        ),
        pytest.param([Stall()], ask_responses(stream=False), {}, (600, "unary"), id="unary-head"),
        pytest.param(
            [Send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"), Stall()],
            ask_chat(stream=False),
            {},
            (600, "unary"),
            id="unary-body",
        ),
        pytest.param(
            [Pause(595), Send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"), Stall()],
            ask_responses(stream=False),
            {},
            (600, "unary"),
            id="unary-in-all",
        ),
    ],
)
async def test_a_silent_upstream_is_given_up_in_time(
    autojump_clock: MockClock,
    script: Script,
    raw: bytes,
    described: dict[str, Any],
    told: tuple[float, str],
) -> None:
    seconds, timer = told
    async with asking(script, raw, **described) as (world, client):
        response = await client.read_response()
        is_told = seconds > 45 and b'"stream": true' in raw  # in a stream that has begun
        assert (response.status, trio.current_time()) == (200 if is_told else 504, seconds)
        value = json.loads(response.body.rpartition(b"data: ")[2]) if is_told else response.json()
        error = value.get("error") or value["response"]["error"]
        assert error["code"] == "upstream_timeout"
        assert timer in error["message"]
        await world.settle()
        assert world.upstreams["a"].lines[0].closed_at == seconds
        assert world.upstreams["b"].asked == []  # the first may be working on it


@pytest.mark.parametrize("seconds", [9.99, 119.99])
async def test_an_upstream_that_is_just_in_time_is_heard(
    autojump_clock: MockClock, seconds: float
) -> None:
    async with asking([Pause(seconds), *sse_response(EVENTS)], ask_responses()) as (_, client):
        response = await client.read_response()
        assert (response.status, response.ended_at) == (200, seconds)


async def test_a_unary_answer_may_take_nearly_ten_minutes(autojump_clock: MockClock) -> None:
    script = [Pause(599.99), *json_response({"id": "r"})]
    async with asking(script, ask_responses(stream=False)) as (_, client):
        assert (await client.read_response()).json() == {"id": "r"}


async def test_a_stalled_connect_costs_ten_seconds_an_account(world: World) -> None:
    for upstream in world.upstreams.values():
        upstream.dials.append(Stall())
    response = await world.ask(ask_responses())
    assert (response.status, trio.current_time()) == (504, 30)
    assert "connect" in response.error["message"]


async def test_a_slow_connect_is_not_cut_short(world: World) -> None:
    world.upstreams["a"].dials.append(Pause(9.99))
    world.upstreams["a"].plays(json_response({}))
    response = await world.ask(ask_responses(stream=False))
    assert (response.status, trio.current_time()) == (200, 9.99)


async def test_the_clocks_of_two_attempts_are_not_added_up(autojump_clock: MockClock) -> None:
    async with opened_world(describe("ab", pool={"routing": "in_order"})) as world:
        world.upstreams["a"].plays([Pause(44), *json_response({}, 500)])
        world.upstreams["b"].plays([Pause(100), *sse_response(EVENTS)])
        response = await world.ask(ask_responses())
        assert (response.status, response.ended_at) == (200, 144)


################################################################
# THE HOLD
################################################################


@pytest.mark.parametrize(
    ("script", "head_at"),
    [
        pytest.param([Send(sse_head()), Stall()], 10, id="silence"),
        pytest.param([Pause(7), Send(sse_head()), Stall()], 17, id="counted-from-its-200"),
        pytest.param(
            sse_steps(CREATED, Pause(4), IN_PROGRESS, Stall(), is_whole=False), 10, id="handshake"
        ),
        pytest.param(sse_steps(CREATED, Pause(9.9), DELTA, Stall()), 9.9, id="content"),
        pytest.param(sse_steps(Pause(3), UPSTREAM_COMMENT, Stall()), 10, id="comment"),
        pytest.param(sse_steps(Pause(3), KEEPALIVE, Stall()), 10, id="keepalive"),
        pytest.param(
            sse_steps(*[CREATED] * 16, Stall()), 10, id="sixteen-handshake-events-are-held"
        ),
        pytest.param(sse_steps(*[CREATED] * 17, Stall()), 0, id="seventeen-are-not"),
        pytest.param(
            sse_steps(*[UPSTREAM_COMMENT] * 17, Stall()), 10, id="comments-are-no-handshake"
        ),
    ],
)
async def test_the_client_gets_its_head_with_content_or_after_the_hold(
    autojump_clock: MockClock, script: Script, head_at: float
) -> None:
    async with asking(script, ask_responses()) as (_, client):
        response = await client.read_head()
        assert (response.status, trio.current_time()) == (200, head_at)


async def test_a_chat_role_alone_is_held(autojump_clock: MockClock) -> None:
    role, word = chat_events("x")[:2]
    async with asking(sse_steps(role, Pause(5), word, Stall()), ask_chat()) as (_, client):
        await client.read_head()
        assert trio.current_time() == 5
        assert [await client.read_event() for _ in range(2)] == [sse_event(role), sse_event(word)]


async def test_no_hold_at_all_can_be_configured(autojump_clock: MockClock) -> None:
    script: Script = [Send(sse_head()), Stall()]
    limits = {"hold_seconds_max": 0}
    async with asking(script, ask_responses(), limits=limits) as (_, client):
        assert (await client.read_head()).status == 200
        assert trio.current_time() == 0


################################################################
# AFTER THE HEAD
################################################################


async def test_a_stream_without_a_first_event_ends_after_two_minutes(
    autojump_clock: MockClock,
) -> None:
    async with asking([Send(sse_head()), Stall()], ask_responses()) as (world, client):
        await client.read_head()
        events = await timed_events(client)
        assert shown(events) == [
            *comments(25, 40, 55, 70, 85, 100, 115),
            (120, "response.failed"),
            (120, "end"),
        ]
        check_failed(events[-2][1], "first_event")
        await world.settle()
        assert world.upstreams["a"].lines[0].closed_at == 120
        assert world.records[0]["code"] == "upstream_timeout"


async def test_silence_between_events_ends_after_five_minutes(autojump_clock: MockClock) -> None:
    async with asking(sse_steps(CREATED, DELTA, Stall()), ask_responses()) as (_, client):
        await client.read_head()
        events = await timed_events(client)
        last_comment = (300, "comment")  # may come at the very moment; it does no harm
        assert [event for event in shown(events) if event != last_comment] == [
            (0, "response.created"),
            (0, "response.output_text.delta"),
            *comments(*range(15, 300, 15)),
            (300, "response.failed"),
            (300, "end"),
        ]
        check_failed(events[-2][1], "between_events")
        assert json.loads(events[-2][1].partition(b"data: ")[2])["sequence_number"] == 3


@pytest.mark.parametrize("idle", [UPSTREAM_COMMENT, KEEPALIVE], ids=["comment", "keepalive"])
async def test_idle_events_are_forwarded_and_do_not_count(
    autojump_clock: MockClock, idle: Json
) -> None:
    script = sse_steps(CREATED, DELTA, Pause(295), idle, Stall())
    async with asking(script, ask_responses()) as (_, client):
        await client.read_head()
        events = shown(await timed_events(client))
        assert (295, "comment" if isinstance(idle, Send) else "keepalive") in events
        assert events[-2:] == [(300, "response.failed"), (300, "end")]


async def test_idle_events_do_not_count_as_the_first_one(autojump_clock: MockClock) -> None:
    script = sse_steps(Pause(3), KEEPALIVE, Pause(107), UPSTREAM_COMMENT, Stall())
    async with asking(script, ask_responses()) as (_, client):
        await client.read_head()
        assert shown(await timed_events(client))[-2:] == [(120, "response.failed"), (120, "end")]


async def test_every_event_starts_the_five_minutes_anew(autojump_clock: MockClock) -> None:
    script = sse_steps(CREATED, Pause(100), DELTA, Pause(299), DELTA, Pause(299), COMPLETED)
    async with asking(script, ask_responses()) as (_, client):
        await client.read_head()
        events = shown(await timed_events(client))
        assert events[-2:] == [(698, "response.completed"), (698, "end")]


async def test_half_an_event_is_no_event_and_is_never_shown(autojump_clock: MockClock) -> None:
    half = sse_event(DELTA | {"type": "response.half.delta"})[:-5]
    script = [*sse_steps(CREATED, DELTA, Pause(200), is_whole=False), Send(chunk(half)), Stall()]
    async with asking(script, ask_responses()) as (_, client):
        await client.read_head()
        events = await timed_events(client)
        assert shown(events)[-2:] == [(300, "response.failed"), (300, "end")]
        assert not any(half in event for _, event in events)


async def test_a_failed_chat_ends_with_an_error_and_without_done(
    autojump_clock: MockClock,
) -> None:
    async with asking(sse_steps(*chat_events("x")[:2], Stall()), ask_chat()) as (_, client):
        await client.read_head()
        events = await timed_events(client)
        assert shown(events)[-2:] == [(300, "chat error"), (300, "end")]
        error = json.loads(events[-2][1].removeprefix(b"data: "))["error"]
        assert error["code"] == "upstream_timeout"
        assert "between_events" in error["message"]


async def test_comments_come_after_fifteen_seconds_of_silence(autojump_clock: MockClock) -> None:
    script = sse_steps(DELTA, Pause(14.9), DELTA, Pause(31), DELTA, Pause(15.1), *EVENTS[4:])
    async with asking(script, ask_responses()) as (_, client):
        await client.read_head()
        events = shown(await timed_events(client))
        delta = "response.output_text.delta"
        assert events == [
            (0, delta), (14.9, delta), *comments(29.9, 44.9), (45.9, delta), *comments(60.9),
            (61, "response.completed"), (61, "end"),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        pytest.param([Stall()], [(1, "end")], id="silence"),
        pytest.param(
            [Pause(0.5), Send(chunk(b"data: [DONE]\n\n")), Stall()],
            [(0.5, "done"), (1, "end")],
            id="done-does-not-extend-it",
        ),
        pytest.param([Pause(0.7), Send(LAST_CHUNK)], [(0.7, "end")], id="the-upstream-s-end"),
        pytest.param([Pause(0.2), Fin()], [(0.2, "end")], id="cut"),
        pytest.param(
            [Pause(0.9), UPSTREAM_COMMENT, Pause(0.9), UPSTREAM_COMMENT, Stall()],
            [(0.9, "comment"), (1, "end")],
            id="comments-do-not-extend-it",
        ),
    ],
)
@pytest.mark.parametrize("terminal", ["response.completed", "response.failed", "error"])
async def test_after_a_terminal_event_the_body_ends_within_a_second(
    autojump_clock: MockClock, rest: Script, expected: Sequence[tuple[float, str]], terminal: str
) -> None:
    last = COMPLETED if terminal == "response.completed" else {"type": terminal, "code": "x"}
    script = [*sse_steps(DELTA, last, is_whole=False), *rest]
    limits = {"comment_seconds": 0.3}  # none of ours follows, not even soon
    async with asking(script, ask_responses(), limits=limits) as (world, client):
        await client.read_head()
        events = await timed_events(client)
        names = [(at, "done" if b"[DONE]" in e else type_of(e)) for at, e in events]
        assert names == [(0, "response.output_text.delta"), (0, terminal), *expected]
        await world.settle()
        assert world.records[0]["code"] == (None if last is COMPLETED else "upstream:x")


async def test_a_stream_can_end_with_its_terminal_event_inside_the_hold(
    autojump_clock: MockClock,
) -> None:
    script = [*sse_steps(*EVENTS, is_whole=False), Stall()]
    async with asking(script, ask_responses()) as (_, client):
        response = await client.read_response()
        assert (response.head_at, response.ended_at) == (0, 1)
        assert response.body == b"".join(map(sse_event, EVENTS))


async def test_a_finished_chat_that_ends_cleanly_needs_no_done(autojump_clock: MockClock) -> None:
    events = chat_events("x", is_done=False)
    script = sse_steps(*events[:3], Pause(200), *events[3:])
    async with asking(script, ask_chat()) as (world, client):
        await client.read_head()
        got = shown(await timed_events(client))
        assert got[-2:] == [(200, "chunk"), (200, "end")]
        await world.settle()
        assert world.records[0]["code"] is None


################################################################
# THE CLIENT'S SIDE
################################################################

HALF_BODY: Final = post("/v1/responses", {"model": "m1", "input": "x" * 50})[:-20]


@pytest.mark.parametrize(
    ("first", "drips", "ended_at"),
    [
        pytest.param(b"POST /v1", [], 15, id="head"),
        pytest.param(b"P", [b"O", b"S", b"T"], 15, id="head-dripped"),
        pytest.param(HALF_BODY, [], 30, id="body"),
        pytest.param(HALF_BODY, [b"x"], 34, id="body-idle-starts-anew"),
    ],
)
async def test_a_slow_request_is_refused_in_time(
    world: World, autojump_clock: MockClock, first: bytes, drips: Sequence[bytes], ended_at: float
) -> None:
    client = await world.connect()
    await client.send(first)
    for drip in drips:
        await world.settle()
        autojump_clock.jump(4)
        await client.send(drip)
    response = await client.read_response()
    assert (response.status, response.head_at) == (408, ended_at)
    assert response.error["code"] == "request_timeout"
    assert response.header("connection") == "close"


async def test_a_body_may_take_two_minutes_in_all(world: World, autojump_clock: MockClock) -> None:
    client = await world.connect()
    await client.send(HALF_BODY)
    for _ in range(5):
        await world.settle()
        autojump_clock.jump(23)
        await client.send(b"x")
    response = await client.read_response()
    assert (response.status, response.head_at) == (408, 120)


async def test_an_idle_connection_is_closed_after_75_seconds(world: World) -> None:
    client = await world.connect()
    await client.ask(request("GET", "/healthz"))
    assert await client.wait_closed() == b""
    assert trio.current_time() == 75


async def test_a_new_connection_has_15_seconds_to_speak(world: World) -> None:
    client = await world.connect()
    assert await client.wait_closed() == b""
    assert trio.current_time() == 15


async def test_a_client_that_does_not_read_is_left_after_a_minute(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        big = {"type": "response.output_text.delta", "delta": "x" * 200_000}
        world.upstreams["a"].plays([*sse_steps(big, is_whole=False), Stall()])
        client = await world.connect(capacity=70_000)
        await client.send(ask_responses())
        closed = world.upstreams["a"]
        with pytest.raises(Truncated):
            await read_after_a_minute(world, client, autojump_clock)
        assert closed.lines[0].closed_at == 60
        assert world.records[0]["code"] == "client_gone"


async def read_after_a_minute(world: World, client: Client, clock: MockClock) -> None:
    await world.settle()
    clock.jump(60)
    await world.settle()
    await client.read_response()


async def test_a_slow_reader_that_goes_on_reading_is_not_left(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        big = {"type": "response.output_text.delta", "delta": "x" * 400_000}
        world.upstreams["a"].plays([*sse_response([big, COMPLETED])])
        client = await world.connect(capacity=65_536)
        await client.send(ask_responses())
        byte_count = 0
        while b"0\r\n\r\n" not in (received := await client.stream.receive_some(60_000)):
            byte_count += len(received)
            autojump_clock.jump(40)
            await world.settle()
        assert byte_count > 300_000
        assert world.records[0]["code"] is None


################################################################
# CONNECTIONS AND PLACES THAT WAIT
################################################################


ROUNDED: Final = [at + 0.01 for at in range(60) if (at + 0.01 + 15) - 15 < at + 0.01][:3]


async def test_an_idle_upstream_connection_is_closed_after_15_seconds(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        upstream = world.upstreams["a"]
        upstream.plays([Pause(5), *json_response({})])
        await world.ask(ask_responses(stream=False))
        assert trio.current_time() == 5
        autojump_clock.jump(14.5)
        await world.settle()
        assert upstream.lines[0].closed_at is None
        autojump_clock.jump(0.5)
        await world.settle()
        assert upstream.lines[0].closed_at == 20


@pytest.mark.parametrize("came_at", ROUNDED)
async def test_an_idle_upstream_connection_is_closed_though_its_time_is_rounded(
    autojump_clock: MockClock, came_at: float
) -> None:
    async with opened_world(describe("a")) as world:
        upstream = world.upstreams["a"]
        upstream.always = json_response({})
        autojump_clock.jump(came_at)
        await world.ask(ask_responses(stream=False))
        autojump_clock.jump(15)
        await world.settle()
        assert upstream.lines[0].closed_at == came_at + 15


async def test_an_idle_connection_is_used_again_and_its_age_starts_anew(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        upstream = world.upstreams["a"]
        upstream.always = json_response({})
        for _ in range(3):
            await world.ask(ask_responses(stream=False))
            autojump_clock.jump(14)
        assert upstream.dial_count == 1
        autojump_clock.jump(1)
        await world.settle()
        assert upstream.lines[0].closed_at == 43


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (1, 1), (8, 3)])
async def test_only_so_many_idle_connections_are_kept(
    autojump_clock: MockClock, limit: int, kept: int
) -> None:
    async with opened_world(describe("a", limits={"idle_connections_max": limit})) as world:
        gate = trio.Event()
        upstream = world.upstreams["a"]
        upstream.always = [Wait(gate), *json_response({})]
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(world.ask, ask_responses(stream=False))
            await world.settle()
            gate.set()
        await world.settle()
        assert sum(line.closed_at is None for line in upstream.lines) == kept


async def test_the_wait_for_a_place_ends_after_ten_seconds(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", accounts={"a": {"concurrent": 1}})) as world:
        world.upstreams["a"].plays([Pause(11), *json_response({})])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.ask, ask_responses(stream=False))
            await world.settle()
            response = await world.ask(ask_responses(stream=False))
            assert (response.status, trio.current_time()) == (503, 10)
            assert response.error["code"] == "pool_busy"


WHOLE: Final = ask_responses()


async def test_an_account_s_first_event_is_not_waited_for_any_longer_because_of_the_hold(
    autojump_clock: MockClock,
) -> None:
    whole = describe("a", accounts={"a": {"first_event_seconds": 4}})
    async with opened_world(whole) as world:
        world.upstreams["a"].plays(sse_steps(CREATED, Stall(), is_whole=False), sse_steps(Stall()))
        response = await world.ask(WHOLE)
        # The handshake is an event: from then on the hold is all that is waited for.
        assert (response.status, response.head_at) == (200, 10)
        began_at = trio.current_time()
        response = await world.ask(WHOLE)
        assert (response.status, response.error["code"]) == (504, "upstream_timeout")
        assert response.ended_at - began_at == 4
