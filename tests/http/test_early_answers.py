"""Proves what becomes of a request whose upstream has its say before it has read all of it.

Not sent whole and not answered: another account may take it.  Answered: that is the answer.

Method: upstreams in memory that take ten bytes of a request and no more, and virtual time, so that
each wait is exact.  tests/streams/test_tls_upstreams.py does the same over real sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from pooler import BadSyntax, UpstreamConnection
from tests.support.memory_sockets import ask_responses, socket_pair
from tests.support.world import (
    Fin,
    Pause,
    ReadOnly,
    Reset,
    Script,
    Send,
    Stall,
    Step,
    Tell,
    World,
    describe,
    error_response,
    json_response,
    opened_world,
    response_head,
    responses_events,
    sse_response,
)

IN_ORDER: Final = {"routing": "in_order"}  # a whenever it is well, else b
STARTED: Final = ReadOnly(10)
HINT: Final = b"HTTP/1.1 103 Early\r\n\r\n"
LATER: Final = Pause(3)
UNREACHABLE: Final = "upstream_unreachable"
INVALID: Final = "upstream_invalid_response"


@dataclass(frozen=True)
class Row:
    """What account a does, and what a client is told where there is no other.

    `goes_on`: account b gets the request where there is one.  `seconds`: until then.
    """

    script: Script
    status: int
    code: str | None
    goes_on: bool
    seconds: float = 0


BEHIND: Final[dict[str, Step]] = {"stays-open": Stall(), "ends": Fin(), "is-reset": Reset()}
ROWS: Final = {
    # Answers, whatever becomes of the connection behind them.
    **{
        f"413-{name}": Row([STARTED, *error_response(413, "c"), end], 413, "c", False)
        for name, end in BEHIND.items()
    },
    **{
        f"429-{name}": Row(
            [STARTED, *error_response(429, "c"), end], 429, "usage_limit_reached", True
        )
        for name, end in BEHIND.items()
    },
    "401": Row([STARTED, *error_response(401, "c"), Stall()], 503, "no_usable_account", True),
    "503": Row([STARTED, *error_response(503, "c"), Stall()], 503, "c", True),
    "504": Row([STARTED, *error_response(504, "c"), Stall()], 504, "c", False),
    "redirect": Row(
        [STARTED, Send(response_head(302, [("location", "/"), ("content-length", "0")])), Stall()],
        502,
        INVALID,
        False,
    ),
    "after-a-while": Row([STARTED, LATER, *error_response(413, "c"), Stall()], 413, "c", False, 3),
    "after-interim-ones": Row(
        [STARTED, Send(HINT * 8), LATER, *error_response(413, "c"), Stall()], 413, "c", False, 3
    ),
    "in-pieces": Row(
        [
            STARTED,
            Send(b"HTTP/1.1 413 Large\r\ncontent-"),
            LATER,
            Send(b'length: 24\r\n\r\n{"error":{"code":'),
            LATER,
            Send(b' "c"}}\n'),
            Stall(),
        ],
        413,
        "c",
        False,
        6,
    ),
    # No answers.
    "an-end": Row([STARTED, Fin()], 502, UNREACHABLE, True),
    "a-reset": Row([STARTED, Reset()], 502, UNREACHABLE, True),
    "half-a-head": Row([STARTED, Send(b"HTTP/1.1 413 L"), Fin()], 502, UNREACHABLE, True),
    "an-interim-one-and-an-end": Row([STARTED, Send(HINT), Fin()], 502, UNREACHABLE, True),
    "no-http": Row([STARTED, Send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), Stall()], 502, INVALID, True),
    "no-good-head": Row([STARTED, Send(b"HTTP/1.1 2x0\r\n\r\n"), Stall()], 502, INVALID, True),
    "nine-interim-ones": Row([STARTED, Send(HINT * 9), Stall()], 502, INVALID, True),
    "too-large-a-head": Row([STARTED, Send(b"x" * 40_000), Stall()], 502, INVALID, True),
    "silence": Row([STARTED, Stall()], 504, "upstream_timeout", True, 60),
    "an-interim-one-and-silence": Row(
        [STARTED, Send(HINT), Stall()], 504, "upstream_timeout", True, 60
    ),
    "half-a-head-and-silence": Row(
        [STARTED, Send(b"HTTP/1.1 413 L"), Stall()], 504, "upstream_timeout", True, 60
    ),
}
TABLE: Final = [pytest.param(row, id=name) for name, row in ROWS.items()]
of_both_shapes = pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "unary"])


@of_both_shapes
@pytest.mark.parametrize("row", TABLE)
async def test_what_an_upstream_says_early_is_told(
    autojump_clock: MockClock, row: Row, *, is_stream: bool
) -> None:
    async with opened_world(describe("a")) as world:
        upstream = world.upstreams["a"]
        upstream.plays(row.script)
        response = await world.ask(ask_responses(stream=is_stream))
        assert (response.status, response.error["code"]) == (row.status, row.code)
        assert trio.current_time() == row.seconds
        assert upstream.asked == []
        # The connection is never used again, be it as good as new.
        assert [line.socket.outgoing.is_deaf for line in upstream.lines] == [True]


@of_both_shapes
@pytest.mark.parametrize("row", TABLE)
async def test_another_account_is_asked_where_nothing_was_begun(
    autojump_clock: MockClock, row: Row, *, is_stream: bool
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(row.script)
        good = sse_response(responses_events("x")) if is_stream else json_response({"id": "r"})
        world.upstreams["b"].always = good
        response = await world.ask(ask_responses(stream=is_stream))
        assert len(world.upstreams["b"].asked) == row.goes_on
        assert response.status == (200 if row.goes_on else row.status)
        assert trio.current_time() == row.seconds


async def test_a_success_is_the_answer_though_the_rest_of_the_request_is_never_read(
    autojump_clock: MockClock,
) -> None:
    """It may have wanted the rest, so that has the time that every write has."""
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays([STARTED, *json_response({"id": "r"}), Stall()])
        response = await world.ask(ask_responses(stream=False))
        assert (response.status, response.json()) == (200, {"id": "r"})
        assert trio.current_time() == 60
        assert [line.closed_at for line in world.upstreams["a"].lines] == [60]


async def test_a_success_is_the_answer_though_the_rest_of_the_request_is_refused(
    world: World,
) -> None:
    world.upstreams["a"].plays([STARTED, *json_response({"id": "r"}), Fin()])
    response = await world.ask(ask_responses(stream=False))
    assert (response.status, response.json()) == (200, {"id": "r"})


@pytest.mark.parametrize(("seconds", "status"), [(0.99, 413), (1.01, 502)])
async def test_an_answer_may_come_a_second_after_the_sending_failed(
    autojump_clock: MockClock, seconds: float, status: int
) -> None:
    """The end of our sending may be known here before the answer has arrived."""
    async with opened_world(describe("a")) as world:
        upstream = world.upstreams["a"]

        class Deafness:
            def set(self) -> None:
                upstream.lines[0].socket.incoming.set(deaf=True)

        refusal = error_response(413, "c")
        upstream.plays([STARTED, Tell(Deafness()), Pause(seconds), *refusal, Stall()])
        assert (await world.ask(ask_responses())).status == status
        assert trio.current_time() == min(seconds, 1)


@pytest.mark.parametrize(("early", "late", "status"), [(4, 4, 200), (4, 5, 502), (8, 1, 502)])
async def test_interim_answers_are_counted_from_the_first_one(
    world: World, monkeypatch: pytest.MonkeyPatch, early: int, late: int, status: int
) -> None:
    """Those that come while the request goes out, and those behind it."""
    upstream = world.upstreams["a"]
    upstream.always = [Send(HINT * late), *json_response({"id": "r"})]
    dial_really = upstream.connect

    async def dial_and_hint() -> object:
        socket = await dial_really()
        await upstream.lines[-1].socket.send_all(HINT * early)
        return socket

    monkeypatch.setattr(upstream, "connect", dial_and_hint)
    response = await world.ask(ask_responses(stream=False))
    assert response.status == status
    assert len(upstream.asked) == 1


async def test_what_came_in_the_place_of_a_head_is_never_skipped() -> None:
    """What follows it is no answer, even if the request has gone out whole meanwhile."""
    ours, theirs = socket_pair()
    await theirs.send_all(
        b"HTTP/1.1 2x0 Odd\r\n\r\n" + response_head(200, [("content-length", "0")])
    )
    upstream = UpstreamConnection(ours)
    await upstream.read_early(trio.CancelScope())
    for _ in range(2):
        with pytest.raises(BadSyntax):
            await upstream.read_head()


async def test_a_client_that_leaves_ends_the_sending_and_the_reading(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays([STARTED, Send(HINT), Stall()])
        client = await world.connect()
        await client.send(ask_responses())
        await world.settle()
        await client.hang_up()
        await world.settle()
        world.assert_quiet()
        assert [line.closed_at for line in world.upstreams["a"].lines] == [0]
