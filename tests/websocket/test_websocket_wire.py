"""Proves over real sockets that a WebSocket outlives what its upstreams do to theirs.

Method: the real process on loopback, upstreams and clients that make their frames by hand
(tests/support/raw_websockets.py).  What is kept of sockets that were closed is the whole process's,
so one process serves many of them.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from pathlib import Path
from typing import Final

import pytest

from tests.support.frames import CLOSE, TEXT, frame
from tests.support.memory_sockets import Json
from tests.support.raw_websockets import SocketWire, opened_sockets
from tests.support.world import responses_events

pytestmark: Final = pytest.mark.slow

TURNS: Final = 150
LIMITS: Final = {"demotion_seconds": 0}  # each turn asks the first account first


def message(event: Json) -> bytes:
    return frame(TEXT, json.dumps(event).encode(), mask=b"")


def number_of(asked: Json) -> str:
    """What was asked, in whichever of its shapes."""
    found = re.search(r"number (\d+)", json.dumps(asked["input"]))
    assert found, asked
    return found[1]


def answers(stream: socket.socket, asked: Json) -> bool:
    """A whole answer, which repeats what was asked."""
    events = responses_events(f"It was {number_of(asked)}.")
    stream.sendall(b"".join(message(event) for event in events))
    return True


def refuses(stream: socket.socket, _asked: Json) -> bool:
    error = {"type": "server_error", "code": "server_error", "message": "busy", "param": None}
    stream.sendall(message({"type": "error", "status": 503, "error": error}))
    return True


def closes(stream: socket.socket, asked: Json) -> bool:
    refuses(stream, asked)
    stream.sendall(frame(CLOSE, b"\x03\xf3", mask=b""))
    return False


def hangs_up(stream: socket.socket, asked: Json) -> bool:
    refuses(stream, asked)
    return False


def resets(stream: socket.socket, asked: Json) -> bool:
    refuses(stream, asked)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return False


def words_of(events: list[Json]) -> list[str]:
    return [event["delta"] for event in events if event["type"].endswith("output_text.delta")]


def ask_many(wire: SocketWire) -> None:
    """So many turns, each of which is answered whole, and with its own words.

    A WebSocket stays where it was served first, so each has one turn that is refused, and one
    that is not.
    """
    for number in range(0, TURNS, 2):
        with wire.open() as client:
            for one in (number, number + 1):
                events = client.ask(input=f"number {one}")
                assert events, f"turn {one} has ended without an event"
                assert events[-1]["type"] == "response.completed", events[-1]
                assert words_of(events) == [f"It was {one}."]


@pytest.mark.parametrize("is_codex", [False, True])
def test_the_next_account_answers_every_turn_that_the_first_refuses(
    is_codex: bool, tmp_path: Path
) -> None:
    both = {"a": refuses, "b": answers}
    with opened_sockets(tmp_path, both, LIMITS, is_codex=is_codex) as wire:
        ask_many(wire)
        assert wire.upstreams["a"].turn_count == TURNS // 2
        assert wire.upstreams["b"].turn_count == TURNS


@pytest.mark.parametrize("refusal", [closes, hangs_up, resets])
def test_nor_does_it_matter_how_the_first_one_ends(refusal: object, tmp_path: Path) -> None:
    assert callable(refusal)
    with opened_sockets(tmp_path, {"a": refusal, "b": answers}, LIMITS) as wire:
        ask_many(wire)
        assert wire.upstreams["a"].turn_count == TURNS // 2
        assert wire.upstreams["b"].turn_count == TURNS


def test_a_turn_that_is_cut_has_one_end_and_the_process_goes_on(tmp_path: Path) -> None:
    """After each of them the client is told to go; others come."""

    def cut(stream: socket.socket, asked: Json) -> bool:
        for event in responses_events("word")[:3]:
            stream.sendall(message(event))
        if int(number_of(asked)) % 2:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return False

    with opened_sockets(tmp_path, {"a": cut}, LIMITS) as wire:
        for number in range(40):
            with wire.open() as client, contextlib.ExitStack() as stack:
                others = [stack.enter_context(wire.open()) for _ in range(number % 3)]
                events = client.ask(input=f"number {number}")
                ends = [event["type"] for event in events if event["type"] == "response.failed"]
                assert ends == ["response.failed"]
                assert client.read_close() == 1001
                assert all(other.line.buffer == b"" for other in others)
