"""Proves that an idle WebSocket says often enough that it lives, and no more than that.

Method: virtual time, and clients that make their frames by hand
(tests/support/memory_websockets.py): some answer pings, some do not, some send a turn at the same
moment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from pooler import WEBSOCKET_PING_SECONDS
from tests.support.frames import CLOSE, PING, PONG, frame
from tests.support.memory_websockets import (
    SocketClient,
    codex_described,
    open_socket,
    socket_described,
    socket_world,
    turn,
)

PATHS: Final = ("/v1/responses", "/backend-api/codex/responses")


async def read_signs(client: SocketClient, count: int, *, answers: bool) -> list[tuple[float, int]]:
    """When the next frames come, and what they are."""
    found = []
    for _ in range(count):
        opcode, payload = await client.read_frame()
        found.append((trio.current_time(), opcode))
        if answers and opcode == PING:
            await client.send(frame(PONG, payload))
    return found


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("has_turn", [True, False])
async def test_an_idle_client_is_asked_every_30_seconds(
    autojump_clock: MockClock, tmp_path: Path, path: str, *, has_turn: bool
) -> None:
    assert WEBSOCKET_PING_SECONDS == 30
    async with socket_world(codex_described(tmp_path, "a")) as world:
        world.upstream().always = turn("x")
        client = await open_socket(world, path=path)
        if has_turn:
            await client.ask()
        began_at = trio.current_time()
        signs = await read_signs(client, 4, answers=True)
        assert signs == [(began_at + 30 * n, PING) for n in (1, 2, 3, 4)]
        assert (await client.ask())[-1]["type"] == "response.completed"
        asked_at = trio.current_time()
        assert await read_signs(client, 1, answers=True) == [(asked_at + 30, PING)]


async def test_a_client_that_does_not_answer_is_ended_when_all_are(
    autojump_clock: MockClock,
) -> None:
    """Nothing waits for its answers but one ping; the others are pongs, which want none."""
    limits = {"websocket_idle_seconds_max": 300}
    async with socket_world(socket_described("a", limits=limits)) as world:
        client = await open_socket(world)
        began_at = trio.current_time()
        signs = await read_signs(client, 10, answers=False)
        assert signs == [
            (began_at + 30, PING),
            *((began_at + 30 * n, PONG) for n in range(2, 10)),
            (began_at + 300, CLOSE),
        ]
        await client.hang_up()


async def test_a_late_answer_counts(autojump_clock: MockClock) -> None:
    async with socket_world(socket_described("a")) as world:
        client = await open_socket(world)
        first = await read_signs(client, 2, answers=False)
        await client.send(frame(PONG, b""))
        second = await read_signs(client, 1, answers=True)
        assert [opcode for _, opcode in first + second] == [PING, PONG, PING]


async def test_a_turn_under_way_is_not_idle(autojump_clock: MockClock) -> None:
    """What it has to say, it says; in silence it has signs of its own."""
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays(turn("x"))
        client = await open_socket(world)
        await trio.sleep_until(29.9)
        await client.ask()
        asked_at = trio.current_time()
        assert await read_signs(client, 1, answers=True) == [(asked_at + 30, PING)]


async def test_a_client_that_leaves_during_a_ping_is_gone(autojump_clock: MockClock) -> None:
    async with socket_world(socket_described("a")) as world:
        client = await open_socket(world)
        await read_signs(client, 1, answers=False)
        await client.hang_up()
        await world.settle()
        assert not world.server.websockets.opened
