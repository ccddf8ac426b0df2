"""Proves that places are given out fairly, and that follow-ups go where their response is.

Method: a whole world in virtual time: accounts with one place each, and upstreams that answer
when the test says so.  The choice itself is proved, with values, in test_account_choice.py.
"""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from pooler import Choice
from tests.support.memory_sockets import KEY, OTHER_KEY, Response, ask_responses, post
from tests.support.world import (
    Send,
    Wait,
    World,
    chunk,
    describe,
    error_response,
    json_response,
    make_config,
    opened_world,
    responses_events,
    sse_event,
    sse_head,
    sse_response,
)

ONE_PLACE: Final = {"a": {"concurrent": 1}, "b": {"concurrent": 1}}


async def ask_later(world: World, label: str, done: list[tuple[str, float, Response]]) -> None:
    response = await world.ask(ask_responses(stream=False, user=label))
    done.append((label, trio.current_time(), response))


def labels(world: World) -> list[str]:
    return [asked.json()["user"] for asked in world.asked]


async def test_a_full_account_spills_over_to_the_next(autojump_clock: MockClock) -> None:
    async with opened_world(describe("ab", accounts=ONE_PLACE)) as world:
        gate = trio.Event()
        for upstream in world.upstreams.values():
            upstream.always = [Wait(gate), *json_response({})]
        done: list[tuple[str, float, Response]] = []
        async with trio.open_nursery() as nursery:
            for label in ("first", "second"):
                nursery.start_soon(ask_later, world, label, done)
                await world.settle()
            assert [len(world.upstreams[name].asked) for name in "ab"] == [1, 1]
            gate.set()
        assert [response.status for _, _, response in done] == [200, 200]


async def test_the_queue_is_fair_and_its_wait_is_ten_seconds(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", accounts={"a": ONE_PLACE["a"]})) as world:
        gate = trio.Event()
        world.upstreams["a"].plays(*[json_response({})] * 2, [Wait(gate), *json_response({})])
        world.upstreams["a"].scripts.appendleft([Wait(gate), *json_response({})])
        done: list[tuple[str, float, Response]] = []
        async with trio.open_nursery() as nursery:
            for label in ("first", "second", "third"):
                nursery.start_soon(ask_later, world, label, done)
                await world.settle()
            assert labels(world) == ["first"]
            gate.set()
            await world.settle()
            assert labels(world) == ["first", "second", "third"]
        assert [response.status for _, _, response in done] == [200] * 3
        blocked = trio.Event()
        world.upstreams["a"].scripts.clear()
        world.upstreams["a"].plays([Wait(blocked), *json_response({})])
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_later, world, "long", done)
            await world.settle()
            await ask_later(world, "late", done)
            blocked.set()
        label, ended, response = done[3]
        assert (label, ended - started) == ("late", 10)
        assert (response.status, response.error["code"]) == (503, "pool_busy")
        assert 0 < int(response.header("retry-after") or 0) <= 60


async def test_a_full_queue_refuses_at_once(autojump_clock: MockClock) -> None:
    described = describe("a", accounts={"a": ONE_PLACE["a"]}, limits={"queue_length_max": 1})
    async with opened_world(described) as world:
        gate = trio.Event()
        world.upstreams["a"].always = [Wait(gate), *json_response({})]
        done: list[tuple[str, float, Response]] = []
        async with trio.open_nursery() as nursery:
            for label in ("first", "second"):
                nursery.start_soon(ask_later, world, label, done)
                await world.settle()
            await ask_later(world, "third", done)
            assert done[0][2].error["code"] == "pool_busy"
            assert trio.current_time() == 0
            gate.set()
        assert labels(world) == ["first", "second"]


async def test_leaving_the_queue_takes_no_place(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", accounts={"a": ONE_PLACE["a"]})) as world:
        gate = trio.Event()
        world.upstreams["a"].always = [Wait(gate), *json_response({})]
        done: list[tuple[str, float, Response]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_later, world, "first", done)
            await world.settle()
            leaver = await world.connect()
            await leaver.send(ask_responses(stream=False, user="leaver"))
            await world.settle()
            nursery.start_soon(ask_later, world, "third", done)
            await world.settle()
            await leaver.hang_up()
            await world.settle()
            gate.set()
        assert labels(world) == ["first", "third"]
        assert [record["code"] for record in world.records] == ["client_gone", None, None]


async def test_who_waits_for_another_model_does_not_hold_up_the_queue(
    autojump_clock: MockClock,
) -> None:
    accounts = {"a": {"concurrent": 1, "models": ["m1"]}, "b": {"concurrent": 1, "models": ["m2"]}}
    async with opened_world(describe("ab", accounts=accounts)) as world:
        gates = {name: trio.Event() for name in "ab"}
        for name, upstream in world.upstreams.items():
            upstream.always = [Wait(gates[name]), *json_response({})]
        async with trio.open_nursery() as nursery:
            for label, model in (("1", "m1"), ("2", "m2"), ("3", "m1"), ("4", "m2")):
                raw = ask_responses(stream=False, user=label, model=model)
                nursery.start_soon(world.ask, raw)
                await world.settle()
            gates["b"].set()
            await world.settle()
            assert sorted(labels(world)) == ["1", "2", "4"]
            gates["a"].set()
        assert sorted(labels(world)) == ["1", "2", "3", "4"]


async def test_a_waiter_is_served_as_soon_as_another_account_s_rest_ends(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("ab", accounts=ONE_PLACE)) as world:
        gate = trio.Event()
        world.upstreams["a"].plays(error_response(429, None, [("retry-after", "3")]))
        world.upstreams["a"].always = json_response({})
        world.upstreams["b"].always = [Wait(gate), *json_response({})]
        done: list[tuple[str, float, Response]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_later, world, "first", done)  # limited at a, held by b
            await world.settle()
            await ask_later(world, "second", done)
            gate.set()
        label, ended, response = done[0]
        assert (label, response.status, ended) == ("second", 200, 3)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_follow_up_goes_where_its_response_was_made(
    autojump_clock: MockClock, *, is_stream: bool
) -> None:
    async with opened_world(describe("abc")) as world:
        world.upstreams["a"].plays(
            sse_response(responses_events("x")) if is_stream else json_response({"id": "resp_1"})
        )
        assert (await world.ask(ask_responses(stream=is_stream))).status == 200
        for upstream in world.upstreams.values():
            upstream.always = json_response({})
        follow_up = ask_responses(stream=False, previous_response_id="resp_1")
        for _ in range(2):
            await world.ask(follow_up)
        assert [len(world.upstreams[name].asked) for name in "abc"] == [3, 0, 0]
        body = json.dumps({"model": "m1", "previous_response_id": "resp_1"}).encode()
        await world.ask(post("/v1/responses", body, key=OTHER_KEY))
        assert len(world.upstreams["a"].asked) == 3


async def test_a_client_that_leaves_after_the_last_event_can_follow_up(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("abc")) as world:
        events = b"".join(sse_event(event) for event in responses_events("x"))
        world.upstreams["a"].plays([Send(sse_head() + chunk(events)), Wait(trio.Event())])
        client = await world.connect()
        await client.send(ask_responses())
        await client.read_head()
        events_read = [await client.read_event() for _ in range(4)]
        assert b"response.completed" in events_read[-1]
        await client.hang_up()
        await world.settle()
        for upstream in world.upstreams.values():
            upstream.always = json_response({})
        await world.ask(ask_responses(stream=False, previous_response_id="resp_1"))
        assert len(world.upstreams["a"].asked) == 2


async def test_a_reload_sends_nothing_to_the_old_address_of_an_account(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        upstream, gate = world.upstreams["a"], trio.Event()
        upstream.plays([Wait(gate), *json_response({})], json_response({}))
        done: list[tuple[str, float, Response]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_later, world, "first", done)
            await world.settle()
            moved = {"a": {"base_url": "http://127.0.0.1:9099/v1"}}
            config = make_config(describe("a", accounts=moved))
            await world.server.reload(lambda: (config, {}))
            gate.set()
        await ask_later(world, "second", done)
        assert [asked.header("host") for asked in world.asked] == [
            "127.0.0.1:9001",
            "127.0.0.1:9099",
        ]
        assert world.asked[0].connection is not world.asked[1].connection


async def test_a_limit_that_strikes_after_content_rests_the_account(
    autojump_clock: MockClock,
) -> None:
    error = {"code": "usage_limit_reached", "message": "used up", "resets_in_seconds": 500}
    failed = {"type": "response.failed", "response": {"id": "resp_1", "error": error}}
    async with opened_world(describe("ab", pool={"routing": "in_order"})) as world:
        world.upstreams["a"].plays(sse_response([*responses_events("half")[:-1], failed]))
        world.upstreams["b"].always = json_response({"id": "r"})
        response = await world.ask(ask_responses())
        assert b"used up" in response.body  # as it came, and nothing of it is sent again
        assert [len(world.upstreams[name].asked) for name in "ab"] == [1, 0]
        assert (await world.ask(ask_responses(stream=False))).status == 200
        assert [len(world.upstreams[name].asked) for name in "ab"] == [1, 1]


WAITING: Final = 40
THIRD_KEY: Final = "cp-key-of-a-third-0123456789"


async def test_a_full_queue_costs_others_next_to_nothing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A choice takes longer the more accounts there are, so that few may be made."""
    pools = {
        "home": {"accounts": ["a"], "keys": {"laptop": KEY, "ci": OTHER_KEY}},
        "other": {"accounts": ["b"], "keys": {"third": THIRD_KEY}},
    }
    described = describe("ab", accounts={"a": ONE_PLACE["a"]}, pools=pools)
    chosen: list[str] = []

    def counted(*arguments: Any) -> Choice:  # noqa: ANN401 (whatever it is given)
        chosen.append(arguments[1].pool.name)
        return Choice(*arguments)

    async with opened_world(described) as world:
        first, second = trio.Event(), trio.Event()
        world.upstreams["a"].plays(*([Wait(gate), *json_response({})] for gate in (first, second)))
        world.upstreams["a"].always = [Wait(trio.Event())]
        world.upstreams["b"].always = json_response({})
        done: list[tuple[str, float, Response]] = []
        async with trio.open_nursery() as nursery:
            for number in range(WAITING + 1):
                nursery.start_soon(ask_later, world, str(number), done)
            await world.settle()
            assert len(world.upstreams["a"].asked) == 1

            monkeypatch.setattr("pooler.Choice", counted)
            question = {"model": "m1", "input": ""}
            response = await world.ask(post("/v1/responses", question, key=THIRD_KEY))
            assert response.status == 200
            assert chosen.count("home") <= 2

            chosen.clear()
            first.set()
            await world.settle()
            assert len(world.upstreams["a"].asked) == 2
            assert chosen.count("home") <= 4  # who gets the place, and that there is no other
            nursery.cancel_scope.cancel()
