"""What a process and a server of the simulation keep, counted between its lives.  (No claims.)"""

from __future__ import annotations

import functools
import gc
from collections.abc import Mapping, Set, Sized
from types import ModuleType
from typing import Final

import mcp_server
import pooler
from pooler import ClientConnection, Exchange, Opened, Server, UpstreamConnection

MODULES: Final[tuple[ModuleType, ...]] = (pooler, mcp_server)
# Of a request and of its connections: none outlives its client.
PASSING: Final = (ClientConnection, Exchange, Opened, UpstreamConnection)


def sizes_of_process() -> dict[str, int]:
    """The lengths of all containers in the modules and in their classes, and those of caches."""
    sizes = {}
    for module in MODULES:
        holders: list[tuple[str, Mapping[str, object]]] = [(module.__name__, vars(module))]
        holders += [
            (name, vars(value))
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        for holder, members in holders:
            for name, value in members.items():
                if isinstance(value, functools._lru_cache_wrapper):
                    info = value.cache_info()
                    is_bounded = info.maxsize is not None or info.currsize == 1  # without arguments
                    sizes[f"{holder}.{name}"] = 0 if is_bounded else info.currsize
                elif isinstance(value, Sized) and not isinstance(value, (str, bytes, type)):
                    sizes[f"{holder}.{name}"] = len(value)
    return sizes


def judge_process(before: Mapping[str, int]) -> None:
    """I13: what is kept for as long as a process is, is as much as before."""
    after = sizes_of_process()
    grown = {
        name: (before.get(name, 0), size)
        for name, size in after.items()
        if size > before.get(name, 0)
    }
    assert not grown, f"kept for good: {grown}"


def judge_server(server: Server) -> None:
    """I13: with the last client gone, a server keeps what its configuration names, and no more."""
    shared = server.shared
    config = shared.config
    keys = {(key.pool, key.name) for key in config.keys}
    pools = {pool for pool, _ in keys}
    kept: dict[str, tuple[Set[object], Set[object]]] = {
        "uses": (shared.uses.keys(), keys),
        "queues": (shared.queues.by_pool.keys(), pools),
        "health": (shared.roster.health.keys(), config.accounts.keys()),
        "endpoints": (shared.endpoints.by_name.keys(), config.accounts.keys()),
        "pins": (shared.roster.sessions.pins.by_share.keys(), keys | {("home", "ci")}),
        "creators": (shared.roster.sessions.creators.by_share.keys(), keys | {("home", "ci")}),
        "in flight": (shared.roster.leases.in_flight.keys(), frozenset()),
        "of key": (shared.roster.leases.of_key.keys(), frozenset()),
    }
    for what, (found, expected) in kept.items():
        assert found <= expected, f"{what}: {found} of {expected}"
    assert not shared.bodies.bytes_held
    assert not shared.events.bytes_held
    assert not [user for user in shared.idle.by_endpoint.values() if len(user) > 8]


def judge_passing() -> None:
    """I13: nothing refers any more to what has served a request that is over."""
    gc.collect()
    counts = {
        kind.__name__: sum(isinstance(one, kind) for one in gc.get_objects()) for kind in PASSING
    }
    assert not any(counts.values()), f"still there: {counts}"
