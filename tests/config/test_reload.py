"""Proves that a reload changes what the file changed, and reports what it cannot change.

Method: the real server in virtual time, reloaded between requests and during one.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

import trio
from trio.testing import MockClock

import mcp_server
from pooler import Loaded
from tests.support.memory_sockets import ask_responses
from tests.support.memory_websockets import codex_described, socket_world
from tests.support.world import (
    Wait,
    describe,
    error_response,
    json_response,
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


async def test_a_refused_reload_needs_the_operator_until_one_is_accepted(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:

        def needs() -> list[str]:
            shown = mcp_server.overview(world.server.operators.snapshot())
            return [f"{need.title}: {need.text}" for need in mcp_server.attention(shown)]

        def load_broken() -> Loaded:
            return make_config(describe("a", hosts=7, listen=7)), {}

        assert needs() == []
        await world.server.reload(load_broken)
        [need] = needs()
        assert need.startswith("The last reload was refused")
        assert "hosts: must be a list, not a whole number (and 1 more)" in need
        await world.server.reload(lambda: (make_config(describe("a")), {}))
        assert needs() == []


async def test_a_reload_that_cannot_read_its_file_needs_the_operator(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:

        def load_nothing() -> Loaded:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

        await world.server.reload(load_nothing)
        shown = mcp_server.overview(world.server.operators.snapshot())
        [need] = mcp_server.attention(shown)
        assert need.text.endswith(": the configuration cannot be read: No such file or directory.")
        assert need.since == world.server.shared.unix_now()


async def test_a_listen_that_is_served_again_needs_no_restart(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        moved = make_config(describe("a", listen="127.0.0.1:1"))
        await world.server.reload(lambda: (moved, {}))
        await world.server.reload(lambda: (make_config(describe("a")), {}))
        [told] = [fields for level, event, fields in world.logged if event == "reload"]
        assert told["problem"] == "listen: a change requires a restart"


async def test_no_idle_connection_outlives_a_reload(autojump_clock: MockClock) -> None:
    """It may lead to an address that is not configured any more, or by another proxy."""
    async with opened_world(describe("ab", pool={"routing": "in_order"})) as world:
        for name in ("a", "b"):
            world.upstreams[name].plays(json_response({"id": name}))
            raw = ask_responses(stream=False)
            assert (await world.ask(raw)).json() == {"id": name}
            assert [line.closed_at for line in world.upstreams[name].lines] == [None]
            await world.server.reload(lambda: (make_config(describe("b")), {}))
            assert [line.closed_at for line in world.upstreams[name].lines] == [0]
        assert not world.server.shared.idle.by_endpoint


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
