"""Proves that what uses up time, memory or descriptors is bounded, and given back afterwards.

Method: the real process, with limits lowered where a deadline would make a test slow.  Peaks are
the kernel's own (VmHWM, set back before each attack), so nothing between two looks is missed.
Beside each attack a good client asks on a connection of its own.  An attack is over when the
operator's page says so: connections, calls in flight and WebSockets as before, and /proc the same
count of descriptors.  Every wait is for bytes, or for the end of a connection.

What glibc keeps of large freed blocks is not the pooler's to give back, and hides what is: its
thresholds are set so that it keeps none.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.memory_sockets import post, request
from tests.support.raw_http import (
    OPERATOR,
    SECONDS_MAX,
    Wire,
    opened_wire,
    read_all,
    read_response,
    split_responses,
)
from tests.support.world import chunk

pytestmark: Final = pytest.mark.measures

KIB: Final = 1024
MIB: Final = 1024 * KIB
STREAM_BYTES: Final = 1024 * MIB
CHURN_COUNT: Final = 10_000
IDLE_COUNT: Final = 1_000
SEED: Final = 20_261_123
ANSWER_SECONDS_MAX: Final = 2.0  # of a good client beside an attack, on a busy machine
CALL: Final = post("/v1/responses", {"model": "m1", "input": "hi"})
STREAM: Final = post("/v1/responses", {"model": "m1", "input": "hi", "stream": True})
MODELS: Final = request("GET", "/v1/models")
ADMIN: Final = request("GET", "/admin", key=OPERATOR, headers=[("Accept", "application/json")])
RESET: Final = b"\1\0\0\0\0\0\0\0"  # linger for no time: closing is a reset
SLACK_BYTES: Final = 8 * MIB  # what the allocator may keep of an attack: arenas, 1,000 records


class Attack:
    """What the process was before, and how it must be found again."""

    def __init__(self, wire: Wire, name: str) -> None:
        self.wire = wire
        self.name = name
        self.line = wire.connect()  # the good client's and the operator's own
        self.longest = 0.0
        deadline = time.monotonic() + SECONDS_MAX
        while (before := self.counts())["connections"] + before["in_flight"] > 1:
            assert time.monotonic() < deadline, before
        self.before = before
        self.base = self.status("VmRSS")
        Path(f"/proc/{wire.pid}/clear_refs").write_text("5")  # VmHWM begins anew

    def status(self, field: str) -> int:
        """Bytes, of a line of /proc/PID/status."""
        lines = Path(f"/proc/{self.wire.pid}/status").read_text().splitlines()
        [found] = [line for line in lines if line.startswith(f"{field}:")]
        return int(found.split()[1]) * KIB

    def ask(self, raw: bytes = MODELS) -> bytes:
        """The good client's answer's body."""
        began_at = time.monotonic()
        self.line.sendall(raw)
        answer = read_response(self.line)
        self.longest = max(self.longest, time.monotonic() - began_at)
        assert answer.startswith(b"HTTP/1.1 200 ")
        return answer.partition(b"\r\n\r\n")[2]

    def counts(self) -> dict[str, int]:
        shown: dict[str, Any] = json.loads(self.ask(ADMIN))
        found = {name: shown[name] for name in ("in_flight", "connections", "websockets")}
        found["accounts"] = sum(one["in_flight"] for one in shown["accounts"])
        return found | {"descriptors": len(os.listdir(f"/proc/{self.wire.pid}/fd"))}

    def check(self, growth_bytes_max: int, kept_bytes_max: int = SLACK_BYTES) -> None:
        """All is as before, the peak was within its bound, and nobody else had to wait."""
        deadline = time.monotonic() + SECONDS_MAX
        while (now := self.counts()) != self.before:
            assert time.monotonic() < deadline, (now, self.before)
        peak, after = self.status("VmHWM"), self.status("VmRSS")
        figures = [round(one / MIB, 1) for one in (self.base, peak, after)]
        sys.stdout.write(
            f"{self.name}: base, peak, after {figures} MiB; longest {self.longest:.2f} s\n"
        )
        self.line.close()
        assert self.longest < ANSWER_SECONDS_MAX
        assert peak - self.base < growth_bytes_max
        assert after - self.base < kept_bytes_max


LIMITS: Final = {
    "head_seconds_max": 2, "body_idle_seconds_max": 2, "body_seconds_max": 4,
    "idle_connection_seconds_max": 0, "keyless_connections_max": 400,
}  # fmt: skip

ALLOCATOR: Final = {  # PYTHONDEVMODE's own would check every block
    "PYTHONMALLOC": "pymalloc",
    "MALLOC_MMAP_THRESHOLD_": str(128 * KIB),
    "MALLOC_TRIM_THRESHOLD_": str(128 * KIB),
}


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    folder = tmp_path_factory.mktemp("wire")
    with opened_wire(folder, LIMITS, **ALLOCATOR) as opened:
        for _ in range(30):  # what is built once is built before the first measure
            opened.say(CALL.replace(b"Host:", b"Connection: close\r\nHost:", 1))
        opened.upstream.take()
        yield opened


@contextlib.contextmanager
def clients(wire: Wire, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(wire.connect()) for _ in range(count)]


def statuses(held: list[socket.socket]) -> Counter[int]:
    """What each was told before its connection ended; 0: nothing."""
    answers = [split_responses(read_all(client)) for client in held]
    return Counter(one[0].status if one else 0 for one in answers)


################################################################
# SLOW AND MANY
################################################################


def test_slow_heads_end_at_their_deadline(wire: Wire) -> None:
    """300 at once; a drip every now and then does not extend it."""
    attack = Attack(wire, "300 slow heads")
    began_at = time.monotonic()
    with clients(wire, 300) as held:
        for byte in MODELS[:12]:
            for client in held:
                client.sendall(bytes([byte]))
            attack.ask()
        assert statuses(held) == {408: 300}
    assert time.monotonic() - began_at < LIMITS["head_seconds_max"] + 8
    attack.check(growth_bytes_max=16 * MIB)


def test_slow_bodies_end_at_their_deadline(wire: Wire) -> None:
    attack = Attack(wire, "300 slow bodies")
    with clients(wire, 300) as held:
        for client in held:
            client.sendall(CALL[:-5])
        for _ in range(5):
            attack.ask()
        found = statuses(held)
    assert found[408] > 0
    assert set(found) <= {408, 429}  # one key has so many streams
    attack.check(growth_bytes_max=16 * MIB)
    assert wire.upstream.take() == []


def test_heads_that_only_grow_are_bounded(wire: Wire) -> None:
    attack = Attack(wire, "200 heads of 31 KiB, then more")
    with clients(wire, 200) as held:
        for client in held:
            client.sendall(MODELS[:-2] + b"X: " + b"y" * (31 * KIB))
        attack.ask()
        for client in held:
            with contextlib.suppress(OSError):
                client.sendall(b"y" * (64 * KIB))
        found = statuses(held)
    assert found[431] > 150  # the rest: reset, or late
    assert set(found) <= {0, 408, 431}
    # Pieces of 64 KiB are the allocator's small blocks: one for each connection may stay there.
    attack.check(growth_bytes_max=200 * 3 * 64 * KIB, kept_bytes_max=200 * 128 * KIB)


def test_a_thousand_idle_connections_are_held_and_given_back(wire: Wire) -> None:
    attack = Attack(wire, f"{IDLE_COUNT} idle connections")
    with clients(wire, IDLE_COUNT // 4) as held, contextlib.ExitStack() as stack:
        while True:
            for client in held[-IDLE_COUNT // 4 :]:
                client.sendall(MODELS)
            _ = [read_response(client) for client in held[-IDLE_COUNT // 4 :]]
            if len(held) == IDLE_COUNT:
                break
            held += [stack.enter_context(wire.connect()) for _ in range(IDLE_COUNT // 4)]
        assert attack.counts()["connections"] == attack.before["connections"] + IDLE_COUNT
        attack.ask(CALL)
    attack.check(growth_bytes_max=40 * MIB)
    wire.upstream.take()


################################################################
# SLOW READERS
################################################################

DELTA: Final = b'data: {"type":"response.output_text.delta","delta":"%b"}\n\n' % (b"x" * 140)
BLOCK: Final = DELTA * 320  # about 64 KiB


def floods(caller: socket.socket) -> bool:
    """A stream of `STREAM_BYTES`, in events of ordinary size."""
    caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
    caller.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
    block = chunk(BLOCK)
    for _ in range(STREAM_BYTES // len(BLOCK)):
        caller.sendall(block)
    end = b'data: {"type":"response.completed","response":{"id":"r"}}\n\n'
    caller.sendall(chunk(end) + b"0\r\n\r\n")
    return True


def test_a_slow_reader_holds_its_upstream_back(wire: Wire) -> None:
    """One reads slowly to the end; eight others never read, and hang up at last."""
    attack = Attack(wire, f"slow readers of {STREAM_BYTES // MIB} MiB")
    wire.upstream.answer = floods
    try:
        with clients(wire, 9) as held:
            for client in held:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)
                client.sendall(STREAM)
            reader = held[0]
            byte_count, tail = 0, b""
            while not tail.endswith(b"\r\n0\r\n\r\n"):
                received = reader.recv(8 * KIB)
                assert received
                byte_count += len(received)
                tail = (tail + received)[-500:]
                if byte_count % (16 * MIB) < len(received):
                    attack.ask()
    finally:
        wire.upstream.answer = wire.upstream.well
    assert b"response.completed" in tail
    assert byte_count > STREAM_BYTES - len(BLOCK)
    attack.check(growth_bytes_max=20 * MIB)
    assert len(wire.upstream.take()) == 9


################################################################
# BOMBS
################################################################

FULL_BYTES: Final = 32 * MIB - KIB
JSON_BOMBS: Final[dict[str, Callable[[], bytes]]] = {
    "depth": lambda: b'{"a":' + b"[" * (FULL_BYTES - 10),
    "separators": lambda: b'{"a":[' + b"1," * (FULL_BYTES // 2 - 10) + b"1]}",
    "long numbers": lambda: b'{"a":' + b"9" * (FULL_BYTES - 10) + b"}",
    "many keys": lambda: b"{" + b",".join(b'"%d":1' % at for at in range(2_000_000)) + b"}",
    "many short arrays": lambda: b'{"a":[' + b"[]," * (FULL_BYTES // 3 - 10) + b"1]}",
    "escapes": lambda: b'{"a":"' + b"\\u0000" * (FULL_BYTES // 6 - 10) + b'"',
}


def fire(wire: Wire, raw: bytes, count: int, attack: Attack) -> Counter[int]:
    """The statuses of so many at once; the good client asks until the last has its answer."""
    found: list[int] = []

    def send() -> None:
        found.append(split_responses(wire.say(raw))[0].status)

    threads = [threading.Thread(target=send, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        attack.ask()
    assert len(found) == count
    return Counter(found)


@pytest.mark.parametrize("case", JSON_BOMBS)
def test_a_json_bomb_is_a_refusal(case: str, wire: Wire) -> None:
    """Three at once, of the largest size: the copies of a body are all that they cost.

    The first three raise the heap to its height; what matters is that the next find it there.
    """
    raw = post("/v1/responses", JSON_BOMBS[case](), headers=[("Connection", "close")])
    first = Attack(wire, "the first three")
    fire(wire, raw, 3, first)
    first.line.close()
    attack = Attack(wire, f"3 JSON bombs: {case}")
    assert fire(wire, raw, 3, attack) == {400: 3}
    attack.check(growth_bytes_max=3 * 3 * 32 * MIB, kept_bytes_max=3 * 32 * MIB)  # a block each
    assert wire.upstream.take() == []


################################################################
# CHURN
################################################################


def visit(wire: Wire, kind: int) -> None:
    """One connection: with a request or without, read or not, ended well or by a reset."""
    with wire.connect() as client:
        if kind & 1:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        asked = [b"", MODELS, MODELS[:20], CALL, CALL[:-3], b"\x16\3\1", STREAM][kind // 2 % 7]
        with contextlib.suppress(OSError):
            client.sendall(asked)
            if kind >= 14 and asked in (MODELS, CALL):
                assert read_response(client).startswith(b"HTTP/1.1 200 ")


def test_churn_leaves_nothing_behind(wire: Wire) -> None:
    rng = random.Random(SEED)
    for _ in range(1_100):  # the 1,000 records that are kept are there before the measure
        visit(wire, 14 + 2 * 3)
    attack = Attack(wire, f"churn of {CHURN_COUNT} connections (seed {SEED})")
    for index in range(CHURN_COUNT):
        visit(wire, rng.randrange(28))
        if index % 100 == 0:
            attack.ask()
    attack.check(growth_bytes_max=16 * MIB)
    counts = {"in_flight": 0, "connections": 1, "websockets": 0, "accounts": 0}
    assert attack.before.items() >= counts.items()
    wire.upstream.take()
