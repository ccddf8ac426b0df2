"""Proves that a process keeps nothing of a server that has ended, nor of a configuration gone by.

Method: one server is reloaded two hundred times between calls on every carrier, and two servers
live in one process after each other; containers of the program and of the server are walked, and
have as many members as after the first of them.  Descriptors and tasks are counted as well.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import weakref
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

import pooler
from tests.conftest import run_inline
from tests.support.memory_sockets import ask_chat, ask_responses, post, request
from tests.support.memory_websockets import codex_described, open_socket, turn
from tests.support.world import (
    World,
    json_response,
    make_config,
    opened_world,
    responses_events,
    sse_response,
)

# What grows by its purpose, within a bound: recent requests, and sessions with their responses.
GROWING: Final = frozenset({"requests", "sessions"})
Sizes = dict[str, int]


def is_walked(value: object) -> bool:
    """Whether it is an object of the program's, whose attributes are looked at."""
    return type(value).__module__ == pooler.__name__ and not isinstance(value, type)


def attributes_of(value: object) -> Iterator[tuple[str, Any]]:
    names = {*getattr(value, "__dict__", ())}
    if dataclasses.is_dataclass(value):
        names |= {field.name for field in dataclasses.fields(value)}
    for name in names:
        yield name, getattr(value, name, None)


def sizes_of(root: object, path: str, seen: set[int], found: Sizes) -> None:
    """The size of each container that is reached from an object, by its path."""
    if id(root) in seen:
        return
    seen.add(id(root))
    for name, value in attributes_of(root):
        if name in GROWING or isinstance(value, pooler.Config):
            continue
        if isinstance(value, Collection) and not isinstance(value, (str, bytes)):
            found[f"{path}.{name}"] = len(value)
        if is_walked(value):
            sizes_of(value, f"{path}.{name}", seen, found)


def module_sizes() -> Sizes:
    """Of each container of the module, and of each cache of a function that has no bound."""
    found: Sizes = {}
    for name, value in vars(pooler).items():
        if isinstance(value, Collection) and not isinstance(value, (str, bytes, type)):
            found[name] = len(value)
        if hasattr(value, "cache_info") and value.cache_info().maxsize is None:
            found[f"{name}()"] = value.cache_info().currsize
    return found


def descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


async def call_on_every_carrier(world: World) -> None:
    for name in "ab":
        upstream = world.upstream(name)
        upstream.on_turn = lambda _: turn("x")
        upstream.catalogue = json_response({"models": [], "data": []})
    for raw, script in (
        (ask_responses(), sse_response(responses_events("x"))),
        (ask_chat(stream=True), sse_response(responses_events("x"))),
        (ask_responses(stream=False), sse_response(responses_events("x"))),
    ):
        world.upstreams["a"].plays(script)
        assert (await world.ask(raw)).status == 200
    assert (await world.ask(request("GET", "/v1/models"))).status == 200
    client = await open_socket(world)
    assert (await client.ask())[-1]["type"] == "response.completed"
    await client.hang_up()
    await world.settle()


def counted(world: World) -> Sizes:
    found: Sizes = {}
    sizes_of(world.server, "server", set(), found)
    found["descriptors"] = descriptor_count()
    found["tasks"] = trio.lowlevel.current_statistics().tasks_living
    return found | module_sizes()


@pytest.mark.parametrize("reloads", [20, pytest.param(200, marks=pytest.mark.slow)])
async def test_a_server_that_is_reloaded_again_and_again_keeps_nothing_of_before(
    autojump_clock: MockClock, tmp_path: Path, reloads: int
) -> None:
    """Each configuration has an account, a pool and keys that no other has."""
    whole = codex_described(tmp_path)
    async with opened_world(whole) as world:

        async def reload(number: int) -> None:
            changed = copy.deepcopy(whole)
            changed["pools"]["home"]["keys"][f"k{number}"] = f"cp-key-of-number-{number:06}"
            changed["pools"][f"p{number}"] = {
                "accounts": [f"o{number}"], "keys": {"k": f"cp-key-of-pool-{number:06}"}
            }  # fmt: skip
            changed["accounts"][f"o{number}"] = {
                "type": "openai", "api_key": f"sk-of-number-{number}", "models": ["m1"],
                "base_url": f"http://127.0.0.1:{20_000 + number}/v1", "paused": True,
            }  # fmt: skip
            config = make_config(changed)
            await world.server.reload(lambda: (config, {}))
            key = f"cp-key-of-number-{number:06}"
            world.upstreams["a"].plays(sse_response(responses_events("x")))
            raw = post("/v1/responses", {"model": "m1", "input": "x"}, key=key)
            assert (await world.ask(raw)).status == 200

        for number in range(3):
            await reload(number)
            await call_on_every_carrier(world)
        gc.collect()
        before = counted(world)
        for number in range(3, reloads):
            await reload(number)
        await call_on_every_carrier(world)
        gc.collect()
        after = counted(world)
        grown = {path: (before.get(path), size) for path, size in after.items()
                 if size > before.get(path, 0)}  # fmt: skip
        assert grown == {}


def live_once(folder: Path) -> weakref.ref[pooler.Server]:
    """A whole life of a server."""
    servers: list[weakref.ref[pooler.Server]] = []

    async def main() -> None:
        async with opened_world(codex_described(folder)) as world:
            servers.append(weakref.ref(world.server))
            await call_on_every_carrier(world)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return servers[0]


def test_a_process_keeps_nothing_of_a_server_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one in the same process finds it as the first one did."""
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)
    live_once(tmp_path)
    gc.collect()
    before, descriptors = module_sizes(), descriptor_count()
    for _ in range(3):
        ended = live_once(tmp_path)
        gc.collect()
        assert ended() is None
        assert (module_sizes(), descriptor_count()) == (before, descriptors)
