"""Proves that no frames of either side, in any pieces, make a bug, an orphan or a leak.

Method: seeded random frames, sound and broken, from a client and from its upstreams, in virtual
time; clients leave in every way.  A world that is not quiet at the end fails
(tests/support/world.py).
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from tests.support.frames import CLOSE, MASK, frame
from tests.support.memory_sockets import Truncated
from tests.support.memory_websockets import (
    SocketClient,
    codex_described,
    open_socket,
    socket_described,
    socket_world,
    turn,
)
from tests.support.world import Fin, Pause, Reset, Send, Stall, Step, World

SEEDS: Final = range(160)
PAYLOADS: Final = (
    b"",
    b'{"type":"response.create","model":"m1","input":"hi"}',
    b'{"type":"response.create","model":"m1","input":"hi","previous_response_id":"resp_1"}',
    b"\xff",
    b"[]",
    b"nul",
    b"\x03\xe8",
    b'{"type":"response.created","response":{"id":"resp_1"}}',
    b'{"type":"response.output_text.delta","delta":"x"}',
    b'{"type":"response.completed","response":{"id":"resp_1"}}',
    b'{"type":"error","status":429,"error":{"code":"usage_limit_reached"}}',
    b'{"type":"error","status":true,"error":7}',
    b'{"type":"error","status":400,"error":{"code":"websocket_connection_limit_reached"}}',
    b'{"type":"codex.rate_limits"}',
)
UPGRADES: Final = (
    b"HTTP/1.1 426 X\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 X\r\n\r\n",
    b"noise\r\n\r\n",
    b"HTTP/1.1 401 X\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 429 X\r\nContent-Length: 0\r\n\r\n",
)


def odd_frames(rng: random.Random, *, is_client: bool) -> bytes:
    raw = b""
    for _ in range(rng.randint(1, 6)):
        opcode = rng.choice([0, 1, 1, 1, 2, 8, 9, 10, 3, 11])
        payload = rng.choice([*PAYLOADS, rng.randbytes(rng.randint(0, 200))])
        is_masked = (rng.random() < 0.95) == is_client
        rsv = 0x40 if rng.random() < 0.05 else 0
        mask = MASK if is_masked else b""
        one = frame(opcode, payload, fin=rng.random() < 0.8, mask=mask, rsv=rsv)
        if rng.random() < 0.1:
            at = rng.randrange(len(one))
            one = one[:at] + bytes([rng.randrange(256)]) + one[at + 1 :]
        raw += one
    return raw


def odd_script(rng: random.Random) -> list[Step]:
    """A sound answer, or odd frames, in pieces and with pauses; then some end."""
    sound = b"".join(step.data for step in turn("x") if isinstance(step, Send))
    raw = sound if rng.random() < 0.4 else odd_frames(rng, is_client=False)
    steps: list[Step] = []
    while raw:
        cut = rng.randint(1, len(raw))
        steps.append(Send(raw[:cut]))
        raw = raw[cut:]
        if rng.random() < 0.2:
            steps.append(Pause(rng.choice([0.001, 1, 20])))
    ends: list[Step] = [Fin(), Reset(), Stall(), Pause(1)]
    return [*steps, rng.choice(ends)]


async def play(rng: random.Random, world: World, client: SocketClient) -> None:
    """Some turns, some noise, and a hang-up."""
    for _ in range(rng.randint(1, 6)):
        what = rng.random()
        if what < 0.5:
            await client.create(stream=True)
        elif what < 0.9:
            await client.send(odd_frames(rng, is_client=True))
        if rng.random() < 0.3:
            await trio.sleep_until(trio.current_time() + rng.choice([0.01, 5, 130]))
        if rng.random() < 0.05:
            world.server.stop()
    if rng.random() < 0.5:
        with trio.move_on_after(rng.choice([1, 400])):
            while True:
                await client.read_frame()
    how = rng.random()
    if how < 0.4:
        await client.hang_up()
    elif how < 0.7:
        client.client.reset()
    else:
        await client.send(frame(CLOSE, b"\x03\xe8"))


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_frames_make_a_bug(seed: int, autojump_clock: MockClock, tmp_path: Path) -> None:
    rng = random.Random(seed)
    described = codex_described(tmp_path) if seed % 2 else socket_described()
    async with socket_world(described) as world:
        for name in "ab":
            upstream = world.upstream(name)
            upstream.scripts.extend(odd_script(rng) for _ in range(6))
            upstream.always = [Stall()]
            if rng.random() < 0.3:
                ends: list[Step] = [Fin(), Stall(), Reset()]
                upstream.upgrades.append([Send(rng.choice(UPGRADES)), rng.choice(ends)])
        client = await open_socket(world)
        with contextlib.suppress(Truncated, trio.BrokenResourceError):
            await play(rng, world, client)
        await world.settle()
        world.complaints.clear()  # a client that leaves may cut a frame
