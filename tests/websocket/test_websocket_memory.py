"""Proves that what a WebSocket holds is bounded, counted as it is in memory, and not for long.

Method: in virtual time the budgets of the real server are read while messages are unfinished,
or whole and not taken; the real process is measured by the kernel (VmHWM, set back before) while
upstreams and clients on plain sockets send messages of the largest size.  One letter that is no
ASCII makes a text of those four times as long as its bytes.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from pooler import PART_BYTES, SENT_COPIES, is_utf8
from tests.support.frames import CLOSE, CONTINUATION, PING, TEXT, frame
from tests.support.memory_sockets import Json
from tests.support.memory_websockets import (
    SocketClient,
    open_socket,
    read_upgrade,
    says,
    socket_described,
    socket_world,
    turn,
    upgrade,
)
from tests.support.raw_websockets import Answer, Caller, SocketWire, opened_sockets
from tests.support.world import Pause, Send, Stall, Step, describe, opened_world

KIB: Final = 1024
MIB: Final = 1024 * KIB
EMOJI: Final = "\N{GRINNING FACE}"
CREATE: Final = json.dumps({"type": "response.create", "model": "m1", "input": "hi"}).encode()
DELTA: Final[Json] = {"type": "response.output_text.delta", "delta": "x"}
CREATED: Final[Json] = {"type": "response.created", "response": {"id": "resp_1"}}


async def read_to_close(client: SocketClient) -> tuple[list[Json], int]:
    """The events that come, and the code of the Close behind them."""
    events = []
    while (found := await client.read_frame())[0] != CLOSE:
        if found[0] == TEXT:
            events.append(json.loads(found[1]))
    await client.hang_up()
    return events, int.from_bytes(found[1][:2], "big")


################################################################
# DEADLINES
################################################################

UNFINISHED: Final[dict[str, bytes]] = {
    "a byte": b"\x81",
    "half a head": frame(TEXT, b"x" * 300)[:3],
    "a head": frame(TEXT, b"x" * 300)[:8],
    "half a message": frame(TEXT, CREATE)[:-5],
    "a fragment": frame(TEXT, CREATE, fin=False),
    "an empty fragment": frame(TEXT, fin=False),
    "fragments": frame(TEXT, CREATE, fin=False) + frame(CONTINUATION, b"  ", fin=False),
    "a fragment and a ping": frame(TEXT, CREATE, fin=False) + frame(PING),
    "half a ping": frame(PING, b"x" * 9)[:-3],
}
LATE: Final[Json] = {"body_idle_seconds_max": 30, "body_seconds_max": 120}


@pytest.mark.parametrize("case", UNFINISHED)
async def test_a_clients_message_that_is_not_finished_is_given_up(
    case: str, autojump_clock: MockClock
) -> None:
    async with socket_world(socket_described("a", limits=LATE)) as world:
        client = await open_socket(world)
        began_at = trio.current_time()
        await client.send(UNFINISHED[case])
        await trio.sleep_until(began_at + 29)
        assert world.server.websockets.opened
        while (found := await client.read_frame())[0] != CLOSE:
            pass
        assert found[1] == b"\x03\xf0"  # 1008
        assert trio.current_time() == began_at + 30
        await world.settle()
        assert world.server.shared.bodies.bytes_held == 0


@pytest.mark.parametrize("seconds", [5, 20])
async def test_a_clients_message_that_drips_is_given_up(
    seconds: int, autojump_clock: MockClock
) -> None:
    async with socket_world(socket_described("a", limits=LATE)) as world:
        client = await open_socket(world)
        began_at = trio.current_time()
        raw = frame(TEXT, b"x" * 900)
        for at in range(120 // seconds):
            await client.send(raw[at : at + 1])
            await trio.sleep_until(trio.current_time() + seconds)
        assert await read_to_close(client) == ([], 1008)
        assert trio.current_time() == began_at + 120


async def test_the_turn_under_way_is_told_of_a_message_that_did_not_come(
    autojump_clock: MockClock,
) -> None:
    async with socket_world(socket_described("a", limits=LATE)) as world:
        world.upstreams["a"].plays([*says(CREATED, DELTA), Stall()])
        client = await open_socket(world)
        await client.send(frame(TEXT, CREATE) + frame(TEXT, CREATE)[:-1])
        events, code = await read_to_close(client)
        assert [event["type"] for event in events][-1] == "response.failed"
        assert events[-1]["response"]["error"]["code"] == "request_timeout"
        assert code == 1008
        assert trio.current_time() == pytest.approx(30, abs=1)


async def test_each_message_has_a_time_of_its_own(autojump_clock: MockClock) -> None:
    """However many come, one behind the other, none of which is ever whole in one piece."""
    async with socket_world(socket_described("a", limits=LATE)) as world:
        count = 12
        world.upstreams["a"].plays(*[turn(f"n{at}") for at in range(count)])
        client = await open_socket(world)
        raw = frame(TEXT, CREATE)
        await client.send(raw[:9])
        for at in range(count):
            await trio.sleep_until(trio.current_time() + 25)
            await client.send(raw[9:] + raw[:9])
            events = await client.read_turn()
            assert events[2]["delta"] == f"n{at}"
        assert trio.current_time() >= 300


@pytest.mark.parametrize("seconds", [1000, 100])
async def test_an_upstreams_message_that_is_not_finished_is_given_up(
    seconds: int, autojump_clock: MockClock
) -> None:
    """Between two turns, too; and if it drips."""
    limits = {"between_events_seconds_max": 300}
    raw = frame(TEXT, json.dumps({"type": "codex.news", "x": "x" * 900}).encode(), mask=b"")
    drips: list[Step] = []
    for at in range(4):
        drips += [Send(raw[at * 100 : at * 100 + 100]), Pause(seconds)]
    async with socket_world(socket_described("a", limits=limits)) as world:
        world.upstreams["a"].plays([*turn("one"), *drips])
        client = await open_socket(world)
        await client.ask()
        began_at = trio.current_time()
        await world.settle()
        assert world.server.shared.events.bytes_held > 0
        assert await read_to_close(client) == ([], 1001)
        assert trio.current_time() == began_at + 300
        assert world.server.shared.events.bytes_held == 0


async def test_a_message_is_not_late_while_the_pooler_lets_it_wait(
    autojump_clock: MockClock,
) -> None:
    """The client reads slowly; what lies half read behind its events is not to blame."""
    delta = json.dumps(DELTA | {"delta": "x" * 1000}).encode()
    events = says(CREATED, *[delta] * 100, *turn("x")[-1:])
    raw = b"".join(step.data for step in events if isinstance(step, Send))
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([Send(raw)])
        connected = await world.connect(capacity=1000)
        await connected.send(upgrade())
        client = await read_upgrade(connected)
        await client.create()
        count = 0
        while (await client.read_event())["type"] != "response.completed":
            await trio.sleep_until(trio.current_time() + 20)
            count += 1
        assert count == 101
        assert trio.current_time() > 1500


################################################################
# WHAT IS COUNTED
################################################################


async def test_whole_messages_are_counted_until_they_are_taken(autojump_clock: MockClock) -> None:
    """The client does not read: so the reader has one message and a second behind.

    A third is under way, in as many copies as that takes.
    """
    size = 100_000
    delta = json.dumps(DELTA | {"delta": "x" * size}).encode()
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*says(CREATED, *[delta] * 9), *turn("x")[-1:]])
        connected = await world.connect(capacity=2000)
        await connected.send(upgrade())
        client = await read_upgrade(connected)
        await client.create()
        await world.settle()
        held = world.server.shared.events.bytes_held
        assert (2 + SENT_COPIES) * size < held < (2.5 + SENT_COPIES) * size
        assert len(await client.read_turn()) == 11
        assert world.server.shared.events.bytes_held == 0


@pytest.mark.parametrize("is_late", [False, True])
async def test_events_that_clients_do_not_take_have_room_or_end_their_turn(
    is_late: bool, autojump_clock: MockClock
) -> None:
    """The third of them is told, before its first event or behind it; the others go on."""
    limits = {"event_bytes_max": 500_000, "events_bytes_max": 4 * MIB}
    delta = json.dumps(DELTA | {"delta": "x" * 120_000}).encode()
    begun = says(CREATED, DELTA) if is_late else says(CREATED)
    async with socket_world(socket_described("a", limits=limits)) as world:
        clients = []
        for _ in range(3):
            script = [*begun, Pause(1), *says(delta), Pause(1), *turn("x")[-1:]]
            world.upstreams["a"].plays(script)
            connected = await world.connect(capacity=2000)
            await connected.send(upgrade())
            clients.append(await read_upgrade(connected))
            await clients[-1].create()
            await trio.sleep_until(trio.current_time() + 2)
        events = await clients.pop().read_turn()
        assert len(events) == (3 if is_late else 1)
        assert "pool_busy" in json.dumps(events[-1])
        for client in clients:
            assert (await client.read_turn())[-1]["type"] == "response.completed"
        assert world.server.shared.events.bytes_held == 0


async def test_a_turn_that_the_upstream_does_not_take_is_counted_twice(
    autojump_clock: MockClock,
) -> None:
    """The message, and its frame under way."""
    size = 200_000
    async with socket_world(socket_described("a")) as world:
        client = await open_socket(world)
        upstream = world.upstream()
        upstream.plays(turn("one"))
        await client.ask()
        [line] = upstream.lines
        line.socket.incoming.capacity = 1000
        upstream.plays([Stall()], turn("three"))
        await client.create()
        await world.settle()
        await client.create(input="x" * size)
        await world.settle()
        assert size < world.server.shared.bodies.bytes_held < size + KIB
        await client.hang_up()


async def test_every_part_of_a_message_is_counted(autojump_clock: MockClock) -> None:
    """A message that comes in tiny parts takes much more than its bytes."""
    async with socket_world(socket_described("a")) as world:
        client = await open_socket(world)
        await client.send(frame(TEXT, fin=False))
        for _ in range(50):
            await client.send(frame(CONTINUATION, b"xy", fin=False))
            await world.settle()
        assert world.server.shared.bodies.bytes_held == 50 * (2 + PART_BYTES)
        await client.send(frame(CONTINUATION, b"z"))
        await world.settle()
        assert (await client.read_event())["error"]["code"] == "invalid_json"
        assert world.server.shared.bodies.bytes_held == 0


@pytest.mark.parametrize("count", [4, 5])
async def test_what_comes_before_the_first_event_has_so_many_bytes_together(
    count: int, autojump_clock: MockClock
) -> None:
    described = socket_described("a", limits={"event_bytes_max": 4500})
    news = json.dumps({"type": "codex.news", "x": "x" * 970}).encode()
    async with socket_world(described) as world:
        rest = turn("x")[2:] if count == 4 else [Stall()]
        world.upstreams["a"].plays([*says(*[news] * count), *rest])
        events = await (await open_socket(world)).ask()
        if count == 4:
            assert [event["type"] for event in events].count("codex.news") == 4
            assert events[-1]["type"] == "response.completed"
        else:
            assert [event["error"]["code"] for event in events] == ["upstream_invalid_response"]
            assert trio.current_time() < 1  # it is not waited for more


async def test_what_comes_before_the_first_event_is_counted(autojump_clock: MockClock) -> None:
    news: Json = {"type": "codex.news", "x": "x" * 10_000}
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*says(news, news, news), Pause(1), *turn("one")])
        client = await open_socket(world)
        await client.create()
        await world.settle()
        assert 30_000 < world.server.shared.events.bytes_held < 31_000
        assert len(await client.read_turn()) == 7
        assert world.server.shared.events.bytes_held == 0


async def test_events_that_the_budget_has_no_room_for_end_their_turn(
    autojump_clock: MockClock,
) -> None:
    limits = {"event_bytes_max": 900_000, "events_bytes_max": 4 * MIB}
    delta = json.dumps(DELTA | {"delta": "x" * 800_000}).encode()
    async with socket_world(socket_described("a", limits=limits)) as world:
        half = frame(TEXT, delta, mask=b"")[:-1]
        world.upstreams["a"].plays([*says(CREATED), Send(half), Stall()], [Send(half), Stall()])
        first, second = await open_socket(world), await open_socket(world)
        await first.create()
        await first.read_event()
        await world.settle()
        [event] = await second.ask()
        assert event["error"]["code"] == "upstream_invalid_response"
        assert world.open_count == 1
        assert 800_000 < world.server.shared.events.bytes_held < MIB
        await first.hang_up()
        await world.settle()
        assert world.server.shared.events.bytes_held == 0


TEXTS: Final[dict[bytes, bool]] = {
    b"": True,
    b"x" * 200_000: True,
    ("x" * 65_533 + EMOJI + "y" * 70_000).encode(): True,  # it lies where two slices meet
    ("é" * 100_000).encode(): True,
    ("x" * 65_533 + EMOJI).encode()[:-1]: False,
    ("é" * 100_000).encode()[1:]: False,
    b"x" * 65_536 + b"\xff": False,
    b"\xed\xa0\x80": False,  # half a character of UTF-16
    b"\xc0\x80": False,
}


def test_text_is_judged_in_slices() -> None:
    assert {text: is_utf8(text) for text in TEXTS} == TEXTS


################################################################
# THE PROCESS
################################################################

ALLOCATOR: Final = {  # so that what is free is given back, and seen to be
    "PYTHONMALLOC": "pymalloc",
    "MALLOC_MMAP_THRESHOLD_": str(128 * KIB),
    "MALLOC_TRIM_THRESHOLD_": str(128 * KIB),
}
EVENT_BYTES: Final = 16 * MIB
BODY_BYTES: Final = 31 * MIB


def padded(event: Json, size: int) -> bytes:
    """An event of so many bytes, with one letter that is no ASCII."""
    raw = json.dumps(event | {"pad": EMOJI}, ensure_ascii=False).encode()
    return raw[:-2] + b"x" * (size - len(raw)) + raw[-2:]


def end_of_turn(stream: socket.socket) -> None:
    for step in turn("done"):
        assert isinstance(step, Send)
        stream.sendall(step.data)


def news_flood(stream: socket.socket, _asked: Json) -> bool:
    """As many messages as may come before the first event, each as large as it may be."""
    message = frame(TEXT, padded({"type": "codex.news"}, EVENT_BYTES - 1), mask=b"")
    for _ in range(15):
        stream.sendall(message)
    end_of_turn(stream)
    return True


def one_large_event(stream: socket.socket, _asked: Json) -> bool:
    stream.sendall(frame(TEXT, json.dumps(CREATED).encode(), mask=b""))
    stream.sendall(frame(TEXT, padded(DELTA, EVENT_BYTES - 1), mask=b""))
    end_of_turn(stream)
    return True


FLOODS: Final[dict[str, tuple[Answer, str]]] = {
    "before the first event": (news_flood, "error"),
    "an event of the largest size": (one_large_event, "response.completed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FLOODS)
def test_large_messages_of_an_upstream_take_a_few_times_their_bytes(
    case: str, tmp_path: Path
) -> None:
    answer, last = FLOODS[case]
    with opened_sockets(tmp_path, {"a": answer}, env=ALLOCATOR) as wire, wire.open() as client:
        base = wire.memory("VmRSS")
        wire.forget_peak()
        events = client.ask()
        assert events[-1]["type"] == last
        growth = wire.memory("VmHWM") - base
        sys.stdout.write(f"{case}: {growth // MIB} MiB\n")
        assert growth < 8 * EVENT_BYTES


def hold(wire: SocketWire, raw: bytes) -> Callable[[], int]:
    """A client that sends so much and waits; what it gives tells the Close that it gets."""
    stack = contextlib.ExitStack()
    client = stack.enter_context(wire.open())

    def send() -> None:
        with contextlib.suppress(OSError):  # it may be refused before all is sent
            client.stream.sendall(raw)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()

    def close() -> int:
        with stack:
            code = client.read_close()
        thread.join()
        return code

    return close


def ask_well(client: Caller) -> str:
    events = client.ask()
    return str(events[-1]["type"])


@pytest.mark.slow
def test_unfinished_messages_of_clients_do_not_hold_the_budget(tmp_path: Path) -> None:
    """One key's share has room for four of the largest size, and for a moment only."""
    limits = {"body_idle_seconds_max": 2, "body_seconds_max": 10}

    def well(stream: socket.socket, _asked: Json) -> bool:
        end_of_turn(stream)
        return True

    text = padded({"type": "response.create", "model": "m1", "input": EMOJI}, BODY_BYTES)
    raw = frame(TEXT, text, mask=bytes(4))[:-1]
    with opened_sockets(tmp_path, {"a": well}, limits, env=ALLOCATOR) as wire:
        base = wire.memory("VmRSS")
        wire.forget_peak()
        codes: list[int] = []
        for count in (8, 4):
            closes = [hold(wire, raw) for _ in range(count)]
            codes = [close() for close in closes]
            assert set(codes) <= {1008, 1013}
        assert codes == [1008] * 4
        with wire.open() as client:
            assert ask_well(client) == "response.completed"
        growth = wire.memory("VmHWM") - base
        sys.stdout.write(f"eight unfinished messages: {growth // MIB} MiB\n")
        assert growth < 8 * BODY_BYTES + 3 * BODY_BYTES  # what is received, and one that is joined


async def test_posts_go_on_beside_unfinished_messages(autojump_clock: MockClock) -> None:
    limits = {"bodies_bytes_max": 3 * MIB, "body_bytes_max": 1000 * KIB}
    described = describe("a", accounts={"a": {"websocket": True}}, limits=limits)
    async with opened_world(described) as world:
        client = await world.connect()
        await client.send(upgrade())
        held = await read_upgrade(client)
        await held.send(frame(TEXT, b"x" * (1000 * KIB))[:-1])
        await world.settle()
        assert world.server.shared.bodies.bytes_held > 1000 * KIB
        await trio.sleep_until(trio.current_time() + 31)
        await world.settle()
        assert world.server.shared.bodies.bytes_held == 0
