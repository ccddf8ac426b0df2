"""Proves that a host that cannot be reached costs few timeouts, however many accounts use it.

Method: the real server in virtual time; accounts that share a host, or do not, in every order of
priorities, and connections that stall or fail. What concerns single accounts (what is trusted
there) is examined in the order in which they would be tried.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from pooler import NO_FIELDS, Cause, Choice, Roster, call_route, classify_connect, read_call
from tests.support.memory_sockets import Json, post
from tests.support.memory_websockets import open_socket
from tests.support.world import (
    Fin,
    Pause,
    Refuse,
    Stall,
    World,
    describe,
    json_response,
    make_config,
    opened_world,
    responses_events,
    sse_response,
)

DEAD: Final = "http://127.0.0.1:9900/v1"
CARRIERS: Final = ("whole", "stream", "chat", "websocket")
CONNECT_SECONDS: Final = 10.0


def sharing(names: str, dead: str, **accounts: Mapping[str, Json]) -> dict[str, Json]:
    """Accounts, of which those in `dead` share a host."""
    changes = {
        name: {"websocket": True, **({"base_url": DEAD} if name in dead else {}), **more}
        for name, more in ({one: accounts.get(one, {}) for one in names}).items()
    }
    return describe(names, accounts=changes, pool={"models": ["m1"]})


async def ask(world: World, carrier: str, session: str = "") -> int:
    if carrier == "websocket":
        client = await open_socket(world)
        told = (await client.ask())[-1]
        await client.hang_up()
        status: int = told.get("status", 200)
        return status
    path = "/v1/chat/completions" if carrier == "chat" else "/v1/responses"
    body: Json = {"model": "m1", "messages": [], "stream": carrier == "stream"}
    body |= {"prompt_cache_key": session} if session else {}
    return (await world.ask(post(path, body))).status


def stalls(world: World, name: str = "a") -> None:
    """No connection to the host of that account, and of all that share it, succeeds."""
    world.upstreams[name].dials.extend([Stall()] * 20)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("names", ["abcd", "abc", "ab", "abcdefgh"])
async def test_accounts_at_one_dead_host_cost_two_timeouts(
    autojump_clock: MockClock, names: str, carrier: str
) -> None:
    async with opened_world(sharing(names, names)) as world:
        stalls(world)
        began = trio.current_time()
        assert await ask(world, carrier) == 504
        assert trio.current_time() - began == 2 * CONNECT_SECONDS
        assert world.upstreams["a"].dial_count == 2


ORDERS: Final[dict[str, dict[str, Json]]] = {
    "as they are": {},
    "a reserve elsewhere": {"d": {"priority": 5}},
    "one there is preferred": {"a": {"priority": -1}, "b": {"priority": -1}},
    "all there are preferred": {name: {"priority": -1} for name in "abc"},
}


@pytest.mark.parametrize("failure", ["stalls", "refuses", "has no name"])
@pytest.mark.parametrize("order", ORDERS)
async def test_an_account_on_another_host_comes_first_until_the_host_is_back(
    autojump_clock: MockClock, order: str, failure: str
) -> None:
    """Also by a session that existed before, and for a minute only."""
    step = {"refuses": Refuse(), "has no name": Refuse(socket.gaierror(socket.EAI_NONAME, ""))}
    async with opened_world(sharing("abcd", "abc", **ORDERS[order])) as world:
        dead, well = world.upstreams["a"], world.upstreams["d"]
        dead.always = well.always = json_response({"id": "r"})
        if order == "all there are preferred":
            assert await ask(world, "whole", "s") == 200
            assert dead.dial_count == 1
            await world.server.shared.idle.close_all()

        dead.dials.extend([step.get(failure, Stall())] * 20)
        before = dead.dial_count
        for session in ("s", "s", "t", "u", "v", "w"):
            assert await ask(world, "whole", session) == 200
        assert dead.dial_count - before <= 1
        assert world.server.shared.roster.hosts.unreached == {} or dead.dial_count - before == 1

        dead.dials.clear()
        well.plays([Pause(61), *json_response({"id": "r"})])
        assert await ask(world, "whole", "s") == 200
        asked = len(dead.asked)
        for number in range(12):
            assert await ask(world, "whole", f"new {number}") == 200
        assert len(dead.asked) > asked


async def test_a_host_that_connects_again_is_as_good_as_the_others(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(sharing("ab", "ab")) as world:
        world.upstreams["a"].dials.append(Refuse())
        world.upstreams["a"].always = sse_response(responses_events("hi"))
        assert await ask(world, "stream") == 200
        assert world.server.shared.roster.hosts.unreached == {}


async def test_a_host_that_failed_for_another_request_is_tried_where_nobody_is_left(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(sharing("abcd", "abcd")) as world:
        stalls(world)
        assert await ask(world, "whole") == 504
        world.upstreams["a"].dials.clear()
        world.upstreams["a"].always = json_response({"id": "r"})
        assert await ask(world, "whole") == 200


async def test_a_connection_that_ends_at_once_is_no_failure_to_connect(
    autojump_clock: MockClock,
) -> None:
    """Nor is a refused upgrade: the host was reached."""
    async with opened_world(sharing("abcd", "abcd")) as world:
        world.upstreams["a"].dials.extend([Fin()] * 20)
        await ask(world, "whole")
        assert world.server.shared.roster.hosts.unreached == {}


################################################################
# WHAT IS TRUSTED
################################################################


def order_after(cause: Cause, accounts: dict[str, dict[str, Any]]) -> list[str]:
    """The order in which accounts are tried once `a` has failed like this."""
    config = make_config(describe("abcd", accounts=accounts, pool={"models": ["m1"]}))
    roster, pool = Roster(config), config.pools["home"]
    roster.note_fault(config.accounts["a"], classify_connect(cause), "m1", 1.0)
    call = read_call(call_route("/v1/responses"), {"model": "m1"}, NO_FIELDS, pool, pool.keys[0])
    return [one.name for one in Choice(roster, call, (), 2.0).ranked()]


HERE: Final = {"base_url": "https://h.example/v1", "priority": 0}
PLACES: Final[dict[str, dict[str, Any]]] = {
    "a": {**HERE},
    "b": {**HERE},
    "c": {**HERE, "ca_file": "ca.pem"},
    "d": {**HERE, "base_url": "https://h.example:444/v1"},
}


@pytest.mark.parametrize("cause", Cause)
def test_a_failure_to_connect_demotes_the_accounts_that_share_its_cause(
    cause: Cause,
) -> None:
    order = order_after(cause, PLACES)
    is_common = cause in {
        Cause.NO_DESCRIPTOR, Cause.PROXY_NAME, Cause.PROXY_UNREACHABLE, Cause.PROXY_TIMED_OUT,
        Cause.PROXY_LOGIN, Cause.PROXY_RESPONSE,
    }  # fmt: skip
    is_of_trust = cause in {Cause.NOT_TRUSTED, Cause.OTHER_NAME, Cause.OUT_OF_DATE, Cause.TLS}
    last = "ab" if is_of_trust else "" if is_common else "abc"
    assert sorted(order[len(order) - len(last) :]) == list(last)
    assert (order[-1] == "a") is not is_common
