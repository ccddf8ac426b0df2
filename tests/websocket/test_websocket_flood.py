"""Proves that floods of frames neither fill the memory of the process nor stop other streams.

Method: the real process on loopback; hostile clients on plain sockets, which make their frames by
hand; a good client that asks on a connection of its own meanwhile.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.frames import CONTINUATION, PING, TEXT, frame
from tests.support.memory_websockets import CLIENT_KEY
from tests.support.processes import Pooler

pytestmark: Final = pytest.mark.measures

KEY: Final = "cp-key-of-the-laptop-0123456789"
MIB: Final = 1024 * 1024
BODIES_BYTES: Final = 40 * MIB  # of all messages together
GROWTH_BYTES_MAX: Final = 3 * BODIES_BYTES  # of 300 MiB that are sent: copies, and the allocator
ANSWER_SECONDS_MAX: Final = 2.0  # of a request beside the floods


@pytest.fixture
def pooler(tmp_path: Path) -> Iterator[Pooler]:
    config = {
        "listen": "127.0.0.1:0",
        "accounts": {
            "a": {"type": "openai", "api_key": "none", "models": ["m1"], "websocket": True}
        },
        "pools": {"home": {"accounts": ["a"], "keys": {"laptop": KEY}}},
        "limits": {"bodies_bytes_max": BODIES_BYTES, "body_bytes_max": 8 * MIB},
    }
    started = Pooler(config, tmp_path)
    yield started
    started.stop()  # without a bug in its log


def resident_bytes(server: Pooler) -> int:
    status = Path(f"/proc/{server.process.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def opened(server: Pooler) -> socket.socket:
    """A client after its upgrade; it does not wait for ever, whatever happens."""
    return upgraded(server, b"")[0]


def upgraded(server: Pooler, behind: bytes) -> tuple[socket.socket, bytes]:
    """The same; `behind` is glued to the request, and what came behind the answer is the other."""
    host, _, port = server.origin.removeprefix("http://").partition(":")
    made = socket.create_connection((host, int(port)), timeout=0.5)
    head = (
        "GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {CLIENT_KEY}\r\n"
        f"Authorization: Bearer {KEY}\r\n\r\n"
    )
    made.sendall(head.encode() + behind)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += made.recv(4096)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return made, answer.partition(b"\r\n\r\n")[2]


def send(client: socket.socket, data: bytes) -> None:
    """As much as the pooler takes."""
    with contextlib.suppress(OSError):
        client.sendall(data)


def ask(server: Pooler) -> float:
    """The seconds that a good client waits for an answer."""
    began_at = time.monotonic()
    connection = http.client.HTTPConnection(server.origin.removeprefix("http://"), timeout=10)
    connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    answer = connection.getresponse()
    assert "m1" in str(json.loads(answer.read()))
    connection.close()
    return time.monotonic() - began_at


FLOODS: Final[dict[str, Callable[[int], bytes]]] = {
    "pings": lambda _: frame(PING, b"x" * 125) * 40_000,
    "pings that nobody reads": lambda _: frame(PING, b"x") * 200_000,
    "empty fragments": lambda _: frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 200_000,
    "tiny messages": lambda _: frame(TEXT, b"x") * 20_000,
    "a message without an end": lambda _: frame(TEXT, b"x" * (30 * MIB), fin=False),
    "a length and nothing": lambda _: b"\x81\xff" + (30 * MIB).to_bytes(8, "big") + b"abcd",
    "noise": lambda seed: bytes((seed * 7 + at * 31) % 251 for at in range(300_000)),
}


@pytest.mark.parametrize("case", FLOODS)
def test_a_flood_is_bounded_and_others_go_on(case: str, pooler: Pooler) -> None:
    ask(pooler)
    before = resident_bytes(pooler)
    clients = [opened(pooler) for _ in range(10)]
    longest = most = 0.0
    for seed, client in enumerate(clients):
        send(client, FLOODS[case](seed))
        longest = max(longest, ask(pooler))
        most = max(most, resident_bytes(pooler) - before)
    for client in clients:
        client.close()
    assert longest < ANSWER_SECONDS_MAX
    assert most < GROWTH_BYTES_MAX
    assert ask(pooler) < ANSWER_SECONDS_MAX


def test_bytes_behind_the_upgrade_are_frames_and_nothing_else(pooler: Pooler) -> None:
    glued, said = upgraded(pooler, frame(TEXT, b"{") + b"GET / HTTP/1.1\r\n\r\n")
    while received := glued.recv(65536):
        said += received
    assert said.endswith(b"\x88\x02\x03\xea")  # 1002: what follows is no frame
    assert b"HTTP/1.1" not in said
    glued.close()
