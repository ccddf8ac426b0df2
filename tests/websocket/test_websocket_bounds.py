"""Proves that a WebSocket is bounded, survives hostile frames, and ends when either side does.

Method: as in test_websocket.py; beside the hostile one a second client streams on, undisturbed.
Where a bound is large the test sets a smaller one; the default is the table's in the README.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from pooler import (
    FRAMES_AT_ONCE,
    LINGER_SECONDS_MAX,
    PART_BYTES,
    TURNS_WAITING_MAX,
    WEBSOCKET_CLOSE_SECONDS_MAX,
    FrameMeter,
)
from tests.support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, split_frame
from tests.support.hostile_bytes import CREATE_TURN, HOSTILE_FRAMES
from tests.support.memory_sockets import KEY, Json, Truncated, post
from tests.support.memory_websockets import (
    SocketClient,
    codex_described,
    open_socket,
    read_upgrade,
    says,
    socket_described,
    socket_world,
    turn,
    upgrade,
)
from tests.support.world import Fin, Pause, Send, Stall, Step, Tell, Wait, make_config, sse_steps

BEGUN: Final = says(
    {"type": "response.created", "response": {"id": "resp_1"}},
    {"type": "response.output_text.delta", "delta": "x", "sequence_number": 1},
)


async def close_of(client: SocketClient) -> int | None:
    """The code of the Close that comes, whatever comes before; None where none does."""
    try:
        while (found := await client.read_frame())[0] != CLOSE:
            pass
    except (Truncated, trio.BrokenResourceError):
        return None
    await client.hang_up()
    return int.from_bytes(found[1][:2], "big") if found[1] else None


################################################################
# HOSTILE FRAMES
################################################################


@pytest.mark.parametrize("case", HOSTILE_FRAMES)
@pytest.mark.parametrize("piece", [1, 10**6])
async def test_a_hostile_frame_ends_its_own_socket_and_no_other(
    case: str, piece: int, autojump_clock: MockClock
) -> None:
    raw, code = HOSTILE_FRAMES[case]
    go_on = trio.Event()
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*BEGUN, Wait(go_on), *turn("end")[2:]])
        other = await open_socket(world)
        await other.create()
        await other.read_event()
        client = await open_socket(world)
        for at in range(0, len(raw), piece):
            await client.send(raw[at : at + piece])
        if "then the end" in case:
            await client.client.half_close()
        assert await close_of(client) == code
        go_on.set()
        assert (await other.read_turn())[-1]["type"] == "response.completed"


@pytest.mark.parametrize("case", HOSTILE_FRAMES)
async def test_a_hostile_frame_ends_the_turn_under_way(
    case: str, autojump_clock: MockClock
) -> None:
    raw, _ = HOSTILE_FRAMES[case]
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*BEGUN, Stall()])
        client = await open_socket(world)
        await client.create()
        await client.read_event()
        await client.send(raw)
        if "then the end" in case:
            await client.client.half_close()
        await world.settle()
        assert world.open_count == 0
        await close_of(client)
        assert trio.current_time() < 1


HOSTILE_UPSTREAM: Final[dict[str, list[Step]]] = {
    "a mask": [Send(frame(TEXT, b'{"type":"response.created"}'))],
    "bad UTF-8": [Send(frame(TEXT, b"\xff", mask=b""))],
    "a reserved bit": [Send(frame(TEXT, b"{}", mask=b"", rsv=0x40))],
    "a binary frame": [Send(frame(BINARY, b"{}", mask=b""))],
    "a huge frame": [Send(b"\x81\x7f" + (2**40).to_bytes(8, "big"))],
    "a close": [Send(frame(CLOSE, b"\x03\xf3", mask=b""))],
    "a close and pings": [Send(frame(CLOSE, b"\x03\xf3", mask=b"") + frame(PING, mask=b"") * 3)],
    "endless pings": [Send(frame(PING, b"x", mask=b"") * 5000)],
    "endless fragments": [Send(frame(TEXT, b"", mask=b"", fin=False)),
                          Send(frame(CONTINUATION, b"", mask=b"", fin=False) * 5000)],
    "an end": [Fin()],
}  # fmt: skip


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("case", HOSTILE_UPSTREAM)
async def test_a_hostile_upstream_costs_one_turn_which_is_told(
    case: str, is_late: bool, autojump_clock: MockClock
) -> None:
    steps = [*HOSTILE_UPSTREAM[case], Stall()]
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*BEGUN, *steps] if is_late else steps)
        client = await open_socket(world)
        events = await client.ask()
        last = "response.failed" if is_late else "error"
        assert [event["type"] for event in events][-1] == last
        await world.settle()
        assert world.open_count == 0
        assert world.server.shared.events.bytes_held == 0


################################################################
# BOUNDS
################################################################


def fed(meter: FrameMeter, raw: bytes, piece: int) -> bytes:
    passed = b""
    for at in range(0, len(raw), piece):
        left = raw[at : at + piece]
        while left and not meter.is_over:
            step = meter.feed(left)
            passed, left = passed + step, left[len(step) :]
    return passed


def turned(raw: bytes) -> bytes:
    """Frames as the library gets them: a text, and the start of one in pieces, is binary."""
    return bytes([raw[0] ^ 0x03]) + raw[1:] if raw[0] & 0x0F == TEXT else raw


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 14, 1000])
def test_the_meter_counts_the_same_in_any_pieces(piece: int) -> None:
    messages = [
        frame(TEXT, b"a" * 125),
        frame(TEXT, b"b" * 126, fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"c" * 70_000),
        frame(TEXT, b"", mask=b""),
    ]
    meter = FrameMeter(bytes_max=70_126, frames_max=3)
    for message in messages:
        assert fed(meter, message, piece) == turned(message)
        assert meter.bytes_pending == 0
        assert not meter.is_amid
    assert (meter.message_count, meter.bytes_whole) == (3, 125 + 126 + 70_000)
    assert fed(meter, frame(TEXT, b"x" * 9)[:-2], piece)
    assert (meter.bytes_pending, meter.is_amid) == (7, True)
    assert meter.part_count == {1: 7, 1000: 1}.get(piece, meter.part_count)
    for raw, code in (
        (frame(BINARY, b"x"), 1003),
        (frame(BINARY, b"x", fin=False), 1003),
        (frame(TEXT, fin=False) + frame(BINARY, b"x"), 1003),
        (frame(TEXT, b"x" * 70_127), 1009),
        (frame(TEXT, b"x" * 70_126, fin=False) + frame(CONTINUATION, b"x"), 1009),
        (frame(PING) * 4, 1008),
        (frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 3, 1008),
    ):
        strict = FrameMeter(bytes_max=70_126, frames_max=3)
        assert turned(raw).startswith(fed(strict, raw, piece))
        assert strict.refused == code
    closing = FrameMeter(bytes_max=10, frames_max=3)
    close = frame(CLOSE, b"\x03\xe8")
    assert fed(closing, close + frame(TEXT, b"x" * 99) * 9, piece) == close


@pytest.mark.parametrize("raw", [frame(PING, b"x"), frame(TEXT), frame(TEXT, b"xy" * 99)])
def test_so_many_frames_are_passed_on_at_once(raw: bytes) -> None:
    """The library handles all that it is given before anybody else runs."""
    meter = FrameMeter(bytes_max=1000, frames_max=1000)
    most = raw * (FRAMES_AT_ONCE + 1)
    assert len(meter.feed(most)) == len(raw) * FRAMES_AT_ONCE
    assert len(meter.feed(raw)) == len(raw)


def test_the_meter_turns_every_text_of_a_piece_and_nothing_else() -> None:
    """The bytes of a payload may look like the head of a text."""
    inner = frame(TEXT, b"\x81\x01\x81" * 3, mask=b"")
    whole = [frame(TEXT, inner, mask=b""), frame(PONG, b"\x81\x01", mask=b"")] * 3
    raw, expected = b"".join(whole), b"".join(map(turned, whole))
    for cut in range(len(raw)):
        meter = FrameMeter(bytes_max=1000, frames_max=9)
        assert meter.feed(raw[:cut]) + meter.feed(raw[cut:]) == expected


async def test_a_clients_message_has_so_many_bytes_and_no_more(autojump_clock: MockClock) -> None:
    described = socket_described("a", limits={"websocket_message_bytes_max": 2048})
    for extra in (0, 1):
        async with socket_world(described) as world:
            world.upstreams["a"].plays(turn("one"))
            client = await open_socket(world)
            body = CREATE_TURN[:-1] + b" " * (2048 + extra - len(CREATE_TURN)) + b"}"
            await client.send(frame(TEXT, body[:100], fin=False))
            await client.send(frame(CONTINUATION, body[100:]))
            if extra:
                assert await client.read_close() == 1009
            else:
                assert (await client.read_turn())[-1]["type"] == "response.completed"


async def test_an_upstream_message_has_so_many_bytes_and_no_more(autojump_clock: MockClock) -> None:
    described = socket_described("a", limits={"websocket_upstream_bytes_max": 2048})
    async with socket_world(described) as world:
        world.upstreams["a"].plays(turn("one"))
        client = await open_socket(world)
        for extra in (1, 0):
            await client.say(
                (CREATE_TURN[:-1] + b" " * (2048 + extra - len(CREATE_TURN)) + b"}").decode()
            )
            events = await client.read_turn()
            if extra:
                assert events[0]["error"]["code"] == "request_too_large"
                assert "no message over 2,048 bytes" in events[0]["error"]["message"]
            else:
                assert events[-1]["type"] == "response.completed"


async def test_an_event_of_an_upstream_has_so_many_bytes_and_no_more(
    autojump_clock: MockClock,
) -> None:
    described = socket_described("a", limits={"event_bytes_max": 2048})
    begun, delta = b'{"type":"response.created"}', b'{"type":"response.output_text.delta","delta":"'
    for extra in (0, 1):
        async with socket_world(described) as world:
            event = delta + b"x" * (2048 + extra - len(delta) - 2) + b'"}'
            world.upstreams["a"].plays([*says(begun, event), *turn("x")[-1:]])
            events = await (await open_socket(world)).ask()
            assert len(events) == (1 if extra else 3)
            assert events[-1]["type"] == ("error" if extra else "response.completed")


@pytest.mark.parametrize("kind", ["fragments", "pings", "pongs"])
async def test_a_message_comes_in_so_many_frames_and_no_more(
    kind: str, autojump_clock: MockClock
) -> None:
    described = socket_described("a", limits={"websocket_frames_max": 64})
    others = {
        "fragments": frame(CONTINUATION, fin=False),
        "pings": frame(PING),
        "pongs": frame(PONG),
    }
    for count in (62, 63):
        async with socket_world(described) as world:
            world.upstreams["a"].plays(turn("one"))
            client = await open_socket(world)
            await client.send(frame(TEXT, CREATE_TURN[:5], fin=False) + others[kind] * count)
            await client.send(frame(CONTINUATION, CREATE_TURN[5:]))
            if count == 63:
                assert await close_of(client) == 1008
                continue
            for _ in range(count if kind == "pings" else 0):
                assert await client.read_frame() == (PONG, b"")
            assert (await client.read_turn())[-1]["type"] == "response.completed"


async def test_frames_sent_ahead_wait_in_order_up_to_a_bound(autojump_clock: MockClock) -> None:
    go_on = trio.Event()
    async with socket_world(socket_described("a")) as world:
        first = [*BEGUN, Wait(go_on), *turn("end")[-1:]]
        world.upstreams["a"].plays(first, *[turn("more") for _ in range(TURNS_WAITING_MAX)])
        client = await open_socket(world)
        for _ in range(1 + TURNS_WAITING_MAX):
            await client.create()
            await world.settle()
        go_on.set()
        for _ in range(1 + TURNS_WAITING_MAX):
            assert (await client.read_turn())[-1]["type"] == "response.completed"
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*BEGUN, Stall()])
        client = await open_socket(world)
        for _ in range(2 + TURNS_WAITING_MAX):
            await client.create()
            await world.settle()
        events = await client.read_turn()
        assert events[-1]["type"] == "response.failed"
        assert await client.read_close() == 1008


async def test_frames_count_among_the_bodies_that_are_held(autojump_clock: MockClock) -> None:
    limits = {"body_bytes_max": 1024, "bodies_bytes_max": 2 * 1024 * 1024}
    described = socket_described("a", limits=limits)
    async with socket_world(described) as world:
        client = await open_socket(world)
        await client.send(frame(TEXT, b"x" * 1000, fin=False))
        await world.settle()
        assert world.server.shared.bodies.bytes_held == 1000 + PART_BYTES
        await client.send(frame(CONTINUATION, b"x" * (1024 * 1024 - 5000 + 1))[:-1])
        await world.settle()
        held = world.server.shared.bodies.bytes_held
        assert 1024 * 1024 - 4000 + 2 * PART_BYTES <= held <= 1024 * 1024
        room = 1024 * 1024 - held
        other = await open_socket(world)
        await other.send(frame(TEXT, b"x" * (room + 1)))
        assert await close_of(other) == 1013
        third = await open_socket(world)
        await third.send(frame(TEXT, b"x" * (room + 2))[:-1])  # of a message that is not whole
        assert await close_of(third) == 1013
        await client.hang_up()
        await world.settle()
        assert world.server.shared.bodies.bytes_held == 0


async def test_a_frame_that_comes_as_its_websocket_ends_is_held_no_longer(
    autojump_clock: MockClock,
) -> None:
    """Whoever runs first of the reader and the turns, which Trio leaves to chance."""
    async with socket_world(socket_described("a")) as world:
        for steps in [0, 1, 2, 3, 4] * 12:
            client = await open_socket(world)
            await world.settle()
            (socket,) = world.server.websockets.opened
            await client.say({"type": "response.nothing", "input": "x" * 1000})
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            socket.end(1001)
            assert await close_of(client) == 1001
            await world.settle()
            assert world.server.shared.bodies.bytes_held == 0


@pytest.mark.parametrize("steps", range(8))
async def test_nothing_is_held_of_what_comes_while_a_websocket_is_closed(
    steps: int, autojump_clock: MockClock
) -> None:
    """Both happen to many clients in the same step, in an order that chance gives."""
    raw = frame(TEXT, b"{") + frame(TEXT, b"x" * 1000)[:-1]
    async with socket_world(socket_described("a")) as world:
        clients = [await open_socket(world) for _ in range(20)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.send, raw)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            world.server.stop()
        for client in clients:
            assert await close_of(client) == 1001
        await world.settle()
        assert world.server.shared.bodies.bytes_held == 0


async def test_an_idle_websocket_is_closed_and_pings_do_not_keep_it(
    autojump_clock: MockClock,
) -> None:
    described = socket_described("a", limits={"websocket_idle_seconds_max": 100})
    async with socket_world(described) as world:
        world.upstreams["a"].plays([*BEGUN, Pause(250), *turn("x")[-1:]])
        client = await open_socket(world)
        await client.create()  # a turn under way is not idle
        await client.read_turn()
        ended_at = trio.current_time()
        await trio.sleep_until(ended_at + 99)
        signs = [(await client.read_frame())[0] for _ in range(3)]
        assert signs == [PING, PONG, PONG]  # every 30 s; it does not answer the first
        await client.send(frame(PING))
        assert (await client.read_frame())[0] == PONG
        assert await client.read_close() == 1000
        assert trio.current_time() == ended_at + 100


async def test_an_upstreams_handshake_has_so_long_and_no_longer(autojump_clock: MockClock) -> None:
    described = socket_described("ab", pool={"routing": "in_order"})
    async with socket_world(described) as world:
        world.upstream("a").upgrades.append([Stall()])
        world.upstreams["b"].plays(turn("one"))
        began_at = trio.current_time()
        events = await (await open_socket(world)).ask()
        assert events[-1]["type"] == "response.completed"
        assert trio.current_time() == began_at + 10


async def test_the_timers_of_a_turn_are_those_of_a_request(autojump_clock: MockClock) -> None:
    for script, seconds, last in (
        ([Stall()], 120, "error"),
        ([*BEGUN[:1], Stall()], 300, "response.failed"),
        ([*BEGUN, Stall()], 300, "response.failed"),
    ):
        async with socket_world(socket_described("a")) as world:
            world.upstreams["a"].plays(script)
            client = await open_socket(world)
            began_at = trio.current_time()
            await client.create()
            pongs = 0
            while (found := await client.read_frame()) is not None:
                pongs += found[0] == PONG
                if found[0] == TEXT and json.loads(found[1])["type"] == last:
                    break
            assert trio.current_time() == began_at + seconds
            assert pongs == (5 if last == "error" else 19)  # before the head from 45 s on
            error = json.loads(found[1]).get("error") or json.loads(found[1])["response"]["error"]
            assert error["code"] == "upstream_timeout"


async def test_a_client_that_does_not_read_is_let_go(autojump_clock: MockClock) -> None:
    described = socket_described("a", limits={"write_stall_seconds_max": 60})
    async with socket_world(described) as world:
        delta = {"type": "response.output_text.delta", "delta": "x" * 1000}
        world.upstreams["a"].plays([*says(*[delta] * 200), Stall()])
        raw = await world.connect(capacity=1000)
        await raw.send(upgrade())
        client = await read_upgrade(raw)
        await client.create()
        await trio.sleep_until(trio.current_time() + 61)
        await world.settle()
        assert world.open_count == 0
        assert not world.server.websockets.opened
        assert world.records[0]["code"] == "client_gone"


async def test_a_close_waits_so_long_for_its_answer(autojump_clock: MockClock) -> None:
    async with socket_world(socket_described("a")) as world:
        client = await open_socket(world)
        await client.send(frame(BINARY, b"x"))
        opcode, payload = await client.read_frame()
        assert (opcode, payload) == (CLOSE, b"\x03\xeb")
        sent_at = trio.current_time()
        await client.client.wait_closed()
        await world.settle()
        while world.server.connections.counted:
            await trio.sleep_until(trio.current_time() + 0.5)
            await world.settle()
        waited = trio.current_time() - sent_at
        assert WEBSOCKET_CLOSE_SECONDS_MAX <= waited <= WEBSOCKET_CLOSE_SECONDS_MAX + 2


################################################################
# ENDS
################################################################

PHASES: Final[dict[str, list[Step] | None]] = {
    "before any turn": None,
    "while the upstream thinks": [Stall()],
    "after the handshake events": [*BEGUN[:1], Stall()],
    "in the middle of a stream": [*BEGUN, Stall()],
}


@pytest.mark.parametrize("how", ["close", "fin", "reset"])
@pytest.mark.parametrize("phase", PHASES)
async def test_a_client_that_leaves_ends_the_upstream_at_once(
    phase: str, how: str, autojump_clock: MockClock
) -> None:
    script = PHASES[phase]
    async with socket_world(socket_described("a")) as world:
        client = await open_socket(world)
        if script is None:
            world.upstreams["a"].plays(turn("one"))
            await client.ask()
        else:
            world.upstreams["a"].plays(script)
            await client.create()
        await world.settle()
        assert world.open_count == 1
        if how == "close":
            await client.send(frame(CLOSE, b"\x03\xe8"))
        elif how == "fin":
            await client.hang_up()
        else:
            client.client.reset()
        await world.settle()
        assert world.open_count == 0
        assert not world.server.websockets.opened
        codes = [record["code"] for record in world.records if record["status"] != 101]
        assert codes == ([None] if script is None else ["client_gone"])


async def test_a_client_that_leaves_during_the_upgrade_ends_the_upstream(
    autojump_clock: MockClock,
) -> None:
    async with socket_world(socket_described("a")) as world:
        for step in ("dial", "upgrade"):
            if step == "dial":
                world.upstreams["a"].dials.append(Stall())
            else:
                world.upstream().upgrades.append([Stall()])
            client = await open_socket(world)
            await client.create()
            await world.settle()
            await client.hang_up()
            await world.settle()
            assert world.open_count == 0


async def test_an_upstream_that_is_replaced_leaves_no_task_behind(
    autojump_clock: MockClock,
) -> None:
    """Whatever it had sent that nobody took."""
    spent = b'{"type":"error","error":{"code":"websocket_connection_limit_reached"}}'
    flood = Send(frame(TEXT, spent, mask=b"") * 9)
    async with socket_world(socket_described("a")) as world:
        client = await open_socket(world)
        [socket] = world.server.websockets.opened
        for _ in range(3):
            world.upstreams["a"].plays([flood], turn("one"))
            await client.ask()
            await world.settle()
            assert len(socket.nursery.child_tasks) <= 4  # of each side, two
            assert world.open_count <= 1


def changed(described: Json, **laptop: Json) -> Json:
    keys = {"laptop": {"key": KEY} | laptop} if laptop else {"ci": "cp-other-key-0123456789"}
    home = described["pools"]["home"] | {"keys": keys}
    return described | {"pools": {"home": home}}


@pytest.mark.parametrize("is_busy", [False, True])
@pytest.mark.parametrize("laptop", [{}, {"paused": True}, {"expires": "2020-01-01"}])
async def test_a_key_that_goes_takes_its_websockets_along(
    laptop: Json, is_busy: bool, autojump_clock: MockClock
) -> None:
    described = socket_described("a")
    async with socket_world(described) as world:
        world.upstreams["a"].plays([*BEGUN, Stall()] if is_busy else turn("one"))
        client = await open_socket(world)
        await client.create()
        for _ in range(2 if is_busy else 4):
            await client.read_event()
        await world.server.reload(lambda: (make_config(changed(described, **laptop)), {}))
        if is_busy:
            event = await client.read_event()
            assert event["type"] == "response.failed"
            assert event["response"]["error"]["code"] == "invalid_api_key"
        assert await client.read_close() == 1008
        assert trio.current_time() < 1


async def test_a_reload_leaves_the_websockets_of_good_keys_alone(autojump_clock: MockClock) -> None:
    described = socket_described("a")
    async with socket_world(described) as world:
        world.upstreams["a"].plays(turn("one"), turn("two"))
        client = await open_socket(world)
        await client.ask()
        await world.server.reload(lambda: (make_config(described), {}))
        assert (await client.ask(previous_response_id="resp_1"))[-1]["type"] == "response.completed"
        assert [number for number, _ in world.upstream().turns] == [1, 1]


async def test_the_websockets_of_a_key_count_on_over_a_reload(autojump_clock: MockClock) -> None:
    """Though the reload changes another limit of the key."""
    described = changed(socket_described("a"), concurrent=2)
    async with socket_world(described) as world:
        for _ in range(2):
            await open_socket(world)
        again = changed(described, concurrent=2, requests_per_minute=1000)
        await world.server.reload(lambda: (make_config(again), {}))
        response = await (await world.connect()).ask(upgrade())
        assert (response.status, response.error["code"]) == (429, "key_limit_reached")


async def test_a_stop_lets_the_turn_end_and_then_closes(autojump_clock: MockClock) -> None:
    come, go_on = trio.Event(), trio.Event()
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*BEGUN, Tell(come), Wait(go_on), *turn("x")[-1:]])
        idle, busy = await open_socket(world), await open_socket(world)
        await busy.create()
        await come.wait()
        world.server.stop()
        assert await idle.read_close() == 1001
        go_on.set()
        assert (await busy.read_turn())[-1]["type"] == "response.completed"
        assert await busy.read_close() == 1001


async def test_a_turn_that_outlasts_the_drain_gets_its_terminal_event(
    autojump_clock: MockClock,
) -> None:
    async with socket_world(socket_described("a", limits={"drain_seconds_max": 20})) as world:
        world.upstreams["a"].plays([*BEGUN, Stall()])
        client = await open_socket(world)
        await client.create()
        await client.read_event()
        world.server.stop()
        began_at = trio.current_time()
        while (found := await client.read_frame())[0] == PONG or b"failed" not in found[1]:
            pass
        assert json.loads(found[1])["response"]["error"]["code"] == "server_stopping"
        assert await client.read_close() == 1001
        assert trio.current_time() == began_at + 20


async def test_answers_never_cross(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Twenty clients on one account, whose answers come in pieces and in turns."""
    described = codex_described(tmp_path, "a", limits={"account_streams_max": 20})
    async with socket_world(described) as world:
        clients = [await open_socket(world) for _ in range(20)]
        for number in range(20):
            text = turn(f"answer {number}", response_id=f"resp_{number}x")
            world.upstreams["a"].plays([text[0], Pause(20 - number), *text[1:]])
            await clients[number].create()
            await world.settle()
        for number, client in enumerate(clients):
            while (found := await client.read_frame())[0] != TEXT or b"created" not in found[1]:
                pass
            events = [json.loads(found[1]), *await client.read_turn()]
            assert {e["response"]["id"] for e in events if "response" in e} == {f"resp_{number}x"}


async def test_http_goes_on_beside_websockets(autojump_clock: MockClock) -> None:
    async with socket_world(socket_described("a")) as world:
        client = await open_socket(world)
        await client.send(frame(TEXT, b"x", fin=False))
        event = {"type": "response.completed", "response": {"id": "r"}}
        world.upstreams["a"].plays(sse_steps(event))
        answer = await world.ask(
            post("/v1/responses", {"model": "m1", "input": "x", "stream": True})
        )
        assert answer.status == 200
        assert split_frame(b"") is None


async def test_no_websocket_is_opened_once_the_pooler_is_being_stopped(
    autojump_clock: MockClock,
) -> None:
    raw = upgrade()
    async with socket_world(socket_described("a")) as world:
        client = await world.connect()
        await client.send(raw[:-2])
        await world.settle()
        world.server.stop()
        await client.send(raw[-2:])
        response = await client.read_response()
        assert (response.status, response.error["code"]) == (503, "server_stopping")


@pytest.mark.parametrize("way", ["reset", "not read"])
async def test_a_client_that_leaves_before_it_knows_of_its_upgrade_holds_nothing(
    autojump_clock: MockClock, way: str
) -> None:
    async with socket_world(socket_described("a")) as world:
        client = await world.connect(capacity=10)
        await client.send(upgrade())
        await world.settle()
        if way == "reset":
            client.reset()
            await world.settle()
        # The handshake's time, and the moment that is left for an answer to be read.
        seconds = 0 if way == "reset" else 10 + LINGER_SECONDS_MAX
        assert len(world.server.connections.counted) == (seconds > 0)
        await trio.sleep_until(trio.current_time() + seconds)
        await world.settle()
        assert not world.server.connections.counted
        assert not world.server.websockets.opened
