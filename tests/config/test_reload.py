"""Proves that a reload changes what the file changed, and reports what it cannot change.

Method: the real server in virtual time, reloaded between requests and during one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio
from trio.testing import MockClock

from tests.support.memory_sockets import ask_responses
from tests.support.memory_websockets import codex_described, socket_world
from tests.support.world import (
    Wait,
    describe,
    error_response,
    make_config,
    opened_world,
    responses_events,
    sse_response,
)

EVENTS: Final = responses_events("x", "y")


async def test_a_reload_logs_the_same_warnings_as_a_start(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        unused = describe("a", pool={"keys": {}})
        await world.server.reload(lambda: (make_config(unused), {}))
        [told] = [fields for level, event, fields in world.logged if event == "config"]
        assert told["problem"] == "pools.home.keys: no keys, so nobody can use this pool"


async def test_a_listen_that_is_served_again_needs_no_restart(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        moved = make_config(describe("a", listen="127.0.0.1:1"))
        await world.server.reload(lambda: (moved, {}))
        await world.server.reload(lambda: (make_config(describe("a")), {}))
        [told] = [fields for level, event, fields in world.logged if event == "reload"]
        assert told["problem"] == "listen: a change requires a restart"


async def test_an_account_that_a_reload_removes_gets_no_second_request(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its token is rejected; the reload comes before a refreshed one would be tried."""
    whole = codex_described(tmp_path)
    async with socket_world(whole) as world:
        refused = trio.Event()
        world.upstreams["a"].plays([Wait(refused), *error_response(401, "token_expired")])
        world.upstreams["b"].plays(sse_response(EVENTS))
        client = await world.connect()
        await client.send(ask_responses(input=[]))
        await world.settle()
        del whole["accounts"]["a"]
        whole["pools"]["home"]["accounts"] = ["b"]
        config = make_config(whole)
        await world.server.reload(lambda: (config, {}))
        refused.set()
        assert (await client.read_response()).status == 200
        await world.settle()
        assert len(world.upstreams["a"].asked) == 1
        reasons = [attempt.get("reason") for attempt in world.records[-1]["attempts"]]
        assert reasons == ["login needed", None]
