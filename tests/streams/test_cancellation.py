"""Proves that nothing outlives its client: a hang-up, a stop or a bug ends what it should, alone.

Method: a client is brought into each phase of a request in virtual time, and leaves there.  At
that same moment its upstream must be closed, every counter zero, and one record written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from tests.support.memory_sockets import (
    KEY,
    Client,
    Response,
    Truncated,
    ask_chat,
    ask_responses,
    post,
    request,
)
from tests.support.world import (
    Fin,
    Pause,
    ReadOnly,
    Refuse,
    Script,
    Send,
    Stall,
    Wait,
    World,
    chat_events,
    chunk,
    describe,
    error_response,
    json_response,
    make_config,
    opened_world,
    response_head,
    responses_events,
    sse_event,
    sse_head,
    sse_response,
    sse_steps,
)

EVENTS: Final = responses_events("x", "y")
CREATED, _, DELTA, _, COMPLETED = EVENTS
BIG: Final = {"type": "response.output_text.delta", "delta": "x" * 100_000}
IN_ORDER: Final = {"routing": "in_order"}
WHOLE: Final = ask_responses()
UNARY: Final = ask_responses(stream=False)
CUT_400: Final = error_response(400, "invalid_encrypted_content")
WITH_REASONING: Final = ask_responses(
    stream=False, input=[{"type": "reasoning", "encrypted_content": "gAAAA"}]
)


def half_of(answer: Script, byte_count: int) -> Script:
    first = answer[0]
    assert isinstance(first, Send)
    return [Send(first.data[:byte_count]), Stall()]


@dataclass(frozen=True)
class Phase:
    """Where a request is: what was sent, what the upstreams play, and after how long."""

    sent: bytes
    a: Script = ()
    b: Script = ()
    dial: Any = None
    seconds: float = 0
    status: int | None = None  # as the record has it: what the client was told already
    capacity: float = 10**9
    asked: Sequence[int] = (1, 0)
    limits: dict[str, float] = field(default_factory=dict)


BODY: Final = post("/v1/responses", {"model": "m1", "input": "x" * 50})
PHASES: Final = {
    "body": Phase(BODY[:-20], asked=(0, 0)),
    "body-dripping": Phase(BODY[:-20], seconds=29, asked=(0, 0)),
    "connecting": Phase(WHOLE, dial=Stall(), seconds=9, asked=(0, 0)),
    "sending": Phase(WHOLE, [ReadOnly(10), Stall()], seconds=59, asked=(0, 0)),
    "waiting-for-the-head": Phase(WHOLE, [Stall()], seconds=44),
    "waiting-with-a-head-of-ours": Phase(WHOLE, [Stall()], seconds=119, status=200),
    "half-a-head": Phase(WHOLE, [Send(b"HTTP/1.1 200 O"), Stall()], seconds=5),
    "error-body": Phase(WHOLE, [Send(response_head(400, [("content-length", "9")])), Stall()]),
    "hold": Phase(WHOLE, [Send(sse_head()), Stall()], seconds=9),
    "hold-with-a-handshake": Phase(WHOLE, sse_steps(CREATED, Stall()), seconds=9),
    "committed-without-an-event": Phase(WHOLE, [Send(sse_head()), Stall()], seconds=11, status=200),
    "comments": Phase(WHOLE, sse_steps(DELTA, Stall()), seconds=100, status=200),
    "mid-stream": Phase(WHOLE, sse_steps(DELTA, Stall()), status=200),
    "mid-event": Phase(
        WHOLE, [*sse_steps(DELTA, is_whole=False), Send(chunk(b"data: ")), Stall()], status=200
    ),
    "after-the-terminal-event": Phase(
        WHOLE, sse_steps(DELTA, COMPLETED, Stall()), seconds=0.5, status=200
    ),
    "not-reading": Phase(WHOLE, sse_steps(BIG, Stall()), seconds=9, status=200, capacity=1000),
    "not-reading-a-unary-answer": Phase(UNARY, json_response(BIG), status=200, capacity=1000),
    "waiting-for-a-unary-head": Phase(UNARY, [Stall()], seconds=599),
    "unary-body": Phase(UNARY, half_of(json_response(BIG), 5000), seconds=599),
    "chat": Phase(ask_chat(), sse_steps(*chat_events("x")[:2], Stall()), seconds=40, status=200),
    "second-account": Phase(WHOLE, error_response(500, "x"), [Stall()], seconds=9, asked=(1, 1)),
    "repair": Phase(WITH_REASONING, CUT_400, seconds=50, asked=(2, 0)),
}


def leave(client: Client, how: str) -> None:
    """What the pooler notices at once: an end, a reset, or only the end of what is sent."""
    if how == "reset":
        client.reset()
        return
    client.stream.outgoing.set(ended=True)
    if how == "closes":
        client.stream.is_closed = True
        client.stream.incoming.set(deaf=True)


def make_ready(world: World, phase: Phase) -> None:
    a, b = world.upstreams.values()
    a.always = b.always = [Stall()]
    if phase.dial is not None:
        a.dials.append(phase.dial)
    if phase.a:
        a.plays(phase.a)
    if phase.b:
        b.plays(phase.b)


async def reach(world: World, phase: Phase, clock: MockClock) -> Client:
    make_ready(world, phase)
    client = await world.connect(capacity=phase.capacity)
    await client.send(phase.sent)
    await world.settle()
    for _ in range(int(phase.seconds)):  # timers on the way fire when they are due
        clock.jump(1)
        await world.settle()
    clock.jump(phase.seconds % 1)
    await world.settle()
    return client


def open_lines(world: World) -> list[float | None]:
    return [line.closed_at for upstream in world.upstreams.values() for line in upstream.lines]


@pytest.mark.parametrize("how", ["closes", "resets", "half-closes"])
@pytest.mark.parametrize("phase", [pytest.param(phase, id=name) for name, phase in PHASES.items()])
async def test_a_client_that_leaves_ends_its_request_at_once(
    autojump_clock: MockClock, phase: Phase, how: str
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        client = await reach(world, phase, autojump_clock)
        assert world.records == []
        assert tuple(len(upstream.asked) for upstream in world.upstreams.values()) == phase.asked
        leave(client, "reset" if how == "resets" else how)
        await world.settle()
        assert trio.current_time() == phase.seconds
        last = world.upstreams["b" if phase.asked[1] else "a"]
        assert {line.closed_at for line in last.lines} <= {phase.seconds}
        world.assert_quiet()
        assert not world.server.connections.counted or how == "half-closes"
        assert [(record["code"], record["status"]) for record in world.records] == [
            ("client_gone", phase.status)
        ]


@pytest.mark.parametrize("sent", [b"", b"P", b"POST /v1/responses HTTP/1.1\r\nHost: x\r\n"])
async def test_a_client_that_leaves_before_its_request_leaves_no_record(
    world: World, sent: bytes
) -> None:
    client = await world.connect()
    if sent:
        await client.send(sent)
    await world.settle()
    await client.hang_up()
    await world.settle()
    assert not world.server.connections.counted
    assert world.records == []


async def test_leaving_the_queue_leaves_it_empty(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", accounts={"a": {"concurrent": 1}})) as world:
        world.upstreams["a"].plays([Stall()])
        first, second = await world.connect(), await world.connect()
        for client in (first, second):
            await client.send(WHOLE)
            await world.settle()
        assert len(world.server.shared.queues.by_pool["home"]) == 1
        await second.hang_up()
        await world.settle()
        assert not world.server.shared.queues.by_pool["home"]
        assert world.server.shared.roster.leases.in_flight["a"] == 1
        assert [record["code"] for record in world.records] == ["client_gone"]


async def test_a_place_that_is_given_to_a_leaver_is_not_lost(autojump_clock: MockClock) -> None:
    """Nothing is awaited between the two: the leaver gets its place before its task notices."""

    def described(concurrent: int) -> dict[str, Any]:
        return describe("a", accounts={"a": {"concurrent": concurrent}})

    async with opened_world(described(1)) as world:
        world.upstreams["a"].always = [Stall()]
        for client in (await world.connect(), await world.connect()):
            await client.send(WHOLE)
            await world.settle()
        [waiter] = world.server.shared.queues.by_pool["home"]
        leaver = [*world.server.connections.counted][-1]
        leaver.is_at_end = True
        leaver.check_presence()
        world.server.apply(make_config(described(2)), {})
        assert waiter.assignment is not None
        await world.settle()
        assert world.server.shared.roster.leases.in_flight["a"] == 1


async def test_fifty_aborted_streams_leave_nothing_behind(autojump_clock: MockClock) -> None:
    accounts = {"a": {"concurrent": 64}}
    async with opened_world(describe("a", accounts=accounts)) as world:
        upstream = world.upstreams["a"]
        scripts: list[Script] = [phase.a for phase in PHASES.values() if phase.asked == (1, 0)]
        await world.settle()
        task_count = trio.lowlevel.current_statistics().tasks_living
        clients = []
        for number in range(50):
            upstream.plays(scripts[number % len(scripts)])
            clients.append(await world.connect(capacity=1000))
            await clients[-1].send(UNARY if number % 3 == 0 else WHOLE)
            await world.settle()
        autojump_clock.jump(9)
        await world.settle()
        for client in clients:
            client.reset()
        await world.settle()
        world.assert_quiet()
        assert trio.lowlevel.current_statistics().tasks_living == task_count
        assert all(closed is not None for closed in open_lines(world))
        assert len(world.records) == 50


async def test_a_client_that_leaves_after_its_answer_is_not_called_gone(world: World) -> None:
    world.upstreams["a"].plays(sse_response(EVENTS))
    assert (await world.ask(WHOLE)).status == 200
    await world.settle()
    assert [record["code"] for record in world.records] == [None]


################################################################
# ONE CONNECTION'S TROUBLE IS ITS OWN
################################################################


async def test_a_bug_ends_one_request_and_tells_nothing(autojump_clock: MockClock) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        a, b = world.upstreams.values()
        gate = trio.Event()
        a.plays(sse_steps(DELTA, Wait(gate), COMPLETED))
        neighbour = await world.connect()
        await neighbour.send(WHOLE)
        await world.settle()
        a.dials.append(Refuse(RuntimeError(f"a bug that quotes {KEY}")))
        response = await world.ask(WHOLE)
        assert (response.status, response.error["code"]) == (500, "internal_error")
        bugs = [fields for _, event, fields in world.logged if event == "bug"]
        assert [bug["request_id"] for bug in bugs] == [response.header("x-request-id")]
        assert KEY not in json.dumps(world.logged)
        world.logged[:] = [entry for entry in world.logged if entry[1] != "bug"]
        gate.set()
        answer = await neighbour.read_response()
        assert answer.body == sse_event(DELTA) + sse_event(COMPLETED)
        assert len(b.asked) == 0


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="tls"),
        pytest.param(b"GET / HTTP/1.1\nHost: x\n\n", id="bare-lf"),
        pytest.param(b"x" * 40_000, id="endless-head"),
        pytest.param(request("POST", "/v1/responses", headers=[("Content-Length", "x")]), id="len"),
        pytest.param(post("/v1/responses", b"\xff\x00"), id="no-json"),
    ],
)
async def test_a_bad_neighbour_disturbs_no_stream(world: World, sent: bytes) -> None:
    gate = trio.Event()
    world.upstreams["a"].plays(sse_steps(DELTA, Wait(gate), COMPLETED))
    client = await world.connect()
    await client.send(WHOLE)
    await world.settle()
    bad = await world.connect()
    await bad.send(sent)
    assert 400 <= (await bad.read_head()).status < 500
    bad.reset()
    gate.set()
    assert (await client.read_response()).body == sse_event(DELTA) + sse_event(COMPLETED)


async def test_closing_idle_connections_survives_a_new_one_of_another_account(
    autojump_clock: MockClock,
) -> None:
    limits = {"idle_connections_max": 64}
    accounts: dict[str, dict[str, Any]] = {
        "a": {"concurrent": 64, "models": ["m1"]},
        "b": {"models": ["m2"]},
    }
    async with opened_world(describe("ab", accounts=accounts, limits=limits)) as world:
        a, b = world.upstreams.values()
        gate = trio.Event()
        a.always = [Wait(gate), *json_response({})]
        b.plays([Pause(15), *json_response({"id": "b"})])
        last = await world.connect()
        await last.send(ask_responses(stream=False, model="m2"))
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(world.ask, UNARY)
            await world.settle()
            gate.set()  # forty connections begin to idle, and are too old at the same moment
        assert (await last.read_response()).json() == {"id": "b"}
        assert trio.current_time() == 15
        await world.settle()
        assert all(line.closed_at == 15 for line in a.lines)


################################################################
# PIPELINING
################################################################

PIPELINED_MAX: Final = 65_536


async def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    for upstream in world.upstreams.values():
        upstream.always = lambda asked: [Pause(1), *json_response({"was": asked.json()["input"]})]
    client = await world.connect()
    asked = [ask_responses(stream=False, input=f"number {index}") for index in range(5)]
    await client.send(b"".join(asked) + request("GET", "/healthz"))
    answers = [await client.read_response() for _ in range(6)]
    assert [answer.json().get("was") for answer in answers] == [
        *(f"number {index}" for index in range(5)),
        None,
    ]
    assert [answer.head_at for answer in answers] == [1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("surplus", [0, 1])
async def test_what_is_sent_ahead_is_bounded(autojump_clock: MockClock, surplus: int) -> None:
    async with opened_world(describe("a")) as world:
        gate = trio.Event()
        world.upstreams["a"].plays([Wait(gate), *json_response({"id": "r"})], json_response({}))
        client = await world.connect()
        await client.send(UNARY)
        await world.settle()
        empty = len(post("/v1/responses", {"model": "m1", "input": ""}))
        filler = "x" * (PIPELINED_MAX + surplus - empty - 3)  # a longer Content-Length
        ahead = post("/v1/responses", {"model": "m1", "input": filler})
        assert len(ahead) == PIPELINED_MAX + surplus
        await client.send(ahead)
        await world.settle()
        gate.set()
        if surplus:
            assert await client.wait_closed() == b""
            assert [record["code"] for record in world.records] == ["client_gone"]
        else:
            assert (await client.read_response()).json() == {"id": "r"}
            assert (await client.read_response()).json() == {}


################################################################
# DRAIN
################################################################


async def test_a_stop_lets_running_streams_finish(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(sse_steps(DELTA, Pause(29), COMPLETED))
        idle, busy = await world.connect(), await world.connect()
        await idle.ask(request("GET", "/healthz"))
        await busy.send(WHOLE)
        await world.settle()
        world.server.stop()
        assert await idle.wait_closed() == b""
        assert trio.current_time() == 0
        response = await busy.read_response()
        events = (sse_event(DELTA), b": keepalive\n\n", sse_event(COMPLETED))
        assert (response.body, response.ended_at) == (b"".join(events), 29)
        assert await busy.wait_closed() == b""
        assert trio.current_time() == 29
        assert world.records[-1]["code"] is None


async def test_a_request_that_has_arrived_at_a_stop_is_served(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        kept, silent = await world.connect(), await world.connect()
        for client in (kept, silent):
            await client.ask(request("GET", "/healthz"))
        await world.settle()
        world.upstreams["a"].plays(json_response({"id": "r"}))
        await kept.send(UNARY)  # nobody has read it yet
        world.server.stop()
        response = await kept.read_response()
        assert (response.json(), response.header("connection")) == ({"id": "r"}, "close")
        assert [await client.wait_closed() for client in (kept, silent)] == [b"", b""]
        assert trio.current_time() == 0


async def test_a_request_that_arrives_as_the_drain_ends_is_served(
    autojump_clock: MockClock,
) -> None:
    """Its connection is open: the response before it began when nothing was to end."""
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(sse_steps(DELTA, Pause(5), COMPLETED))
        world.upstreams["a"].plays(json_response({"id": "r"}))
        client = await world.connect()
        await client.send(WHOLE)
        await world.settle()
        world.server.stop()
        assert (await client.read_response()).header("connection") is None
        await trio.lowlevel.checkpoint()  # the drain knows by now that no request is in progress
        await client.send(UNARY)
        response = await client.read_response()
        assert (response.json(), response.header("connection")) == ({"id": "r"}, "close")
        assert await client.wait_closed() == b""
        assert trio.current_time() == 5


DRAIN: Final = {"drain_seconds_max": 5}


@pytest.mark.parametrize(
    ("script", "raw", "expected"),
    [
        pytest.param(sse_steps(DELTA, Stall()), WHOLE, "failed", id="mid-stream"),
        pytest.param(
            [*sse_steps(DELTA, is_whole=False), Send(chunk(b"data: ")), Stall()], WHOLE, "failed",
            id="mid-event",
        ),
        pytest.param(
            sse_steps(*chat_events("x")[:2], Stall()), ask_chat(), "error", id="chat"
        ),
        pytest.param(
            sse_steps(DELTA, Pause(4.5), COMPLETED, Stall()), WHOLE, "nothing",
            id="after-the-terminal-event",
        ),
    ],
)  # fmt: skip
async def test_a_stop_ends_what_is_left_with_one_terminal_event(
    autojump_clock: MockClock, script: Script, raw: bytes, expected: str
) -> None:
    async with opened_world(describe("a", limits=DRAIN)) as world:
        world.upstreams["a"].plays(script)
        client = await world.connect()
        await client.send(raw)
        await client.read_head()
        world.server.stop()
        body = b""
        while piece := await client.read_piece():
            body += piece
        assert trio.current_time() == 5
        last = json.loads(body.rpartition(b"data: ")[2])
        terminals = [b"response.completed", b"response.failed", b'"error": {"message"']
        assert sum(body.count(mark) for mark in terminals) == 1 + (expected == "failed")
        if expected == "failed":  # named in its event line and in its data
            assert last["response"]["error"]["code"] == "server_stopping"
        elif expected == "error":
            assert last["error"]["code"] == "server_stopping"
            assert b"[DONE]" not in body
        else:
            assert last == COMPLETED
        assert await client.wait_closed() == b""
        world.assert_quiet()
        assert set(open_lines(world)) == {5}


EARLY: Final = {
    name: PHASES[name]
    for name in (
        "connecting sending waiting-for-the-head half-a-head error-body hold "
        "hold-with-a-handshake waiting-for-a-unary-head unary-body second-account repair body"
    ).split()
}


@pytest.mark.parametrize("phase", [pytest.param(phase, id=name) for name, phase in EARLY.items()])
async def test_a_stop_answers_what_has_not_begun(autojump_clock: MockClock, phase: Phase) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER, limits=DRAIN)) as world:
        make_ready(world, phase)
        client = await world.connect()
        await client.send(phase.sent)
        await world.settle()
        world.server.stop()
        response = await client.read_response()
        assert (response.status, response.head_at) == (503, 5)
        assert response.error["code"] == "server_stopping"
        assert response.header("connection") == "close"
        assert await client.wait_closed() == b""
        await world.settle()
        world.assert_quiet()
        assert set(open_lines(world)) <= {0, 5}


async def test_a_stop_answers_those_who_wait_in_the_queue(autojump_clock: MockClock) -> None:
    described = describe("a", accounts={"a": {"concurrent": 1}}, limits=DRAIN)
    async with opened_world(described) as world:
        world.upstreams["a"].plays([Stall()])
        clients = [await world.connect() for _ in range(3)]
        for client in clients:
            await client.send(WHOLE)
            await world.settle()
        world.server.stop()
        answers: list[Response] = [await client.read_response() for client in clients]
        assert [(answer.status, answer.head_at) for answer in answers] == [(503, 5)] * 3


async def test_a_stop_does_not_wait_for_a_client_that_does_not_read(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a", limits=DRAIN)) as world:
        world.upstreams["a"].plays(sse_steps(BIG, Stall()))
        client = await world.connect(capacity=1000)
        await client.send(WHOLE)
        await world.settle()
        world.server.stop()
        await world.settle()
        for seconds in (5, 5):  # the drain, and the moment for the last events
            autojump_clock.jump(seconds)
            await world.settle()
        assert not world.server.connections.counted
        with pytest.raises(Truncated):
            await client.read_response()
        assert open_lines(world) == [10]


async def test_a_stop_after_which_nobody_is_left_is_immediate(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays([*json_response({}), Fin()])
        half = await world.connect()
        await half.send(b"POST /v1")
        await world.ask(UNARY)
        world.server.stop()
        assert await half.wait_closed() == b""
        assert trio.current_time() == 0
        assert not world.server.connections.counted
