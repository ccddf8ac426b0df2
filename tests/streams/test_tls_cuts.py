"""Proves that a response that is cut within TLS is as little taken for a whole one as a plain one.

Method: the real process, and upstreams that end their connection at every place that matters: with
or without close_notify, with a reset, and in the middle of a record.  What the client gets, and
how often each account is asked, is the same as of an upstream without TLS.
"""

from __future__ import annotations

import itertools
import json
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest

from tests.support.frames import TEXT, frame, split_frame, switching
from tests.support.memory_websockets import upgrade
from tests.support.raw_websockets import Caller, read_head
from tests.support.tls_upstreams import (
    SECONDS_MAX,
    Line,
    Play,
    Site,
    Upstream,
    answer,
    event_stream,
    key_of,
    opened_site,
)
from tests.support.world import chunk, responses_events

SCHEMES: Final = ("http", "https")
CARRIERS: Final = ("whole", "stream", "websocket")
RESPONSE: Final = {"id": "cut", "object": "response", "output": [], "text": "x" * 100}
EVENTS: Final = responses_events("x", "y")
STREAM: Final = event_stream(EVENTS).partition(b"\r\n\r\n")[2]
FRAMES: Final = [frame(TEXT, json.dumps(event).encode(), mask=b"") for event in EVENTS]
ONE_OF_TWO: Final = len(b"".join(FRAMES[:3]))  # and the second content is not there


class Cut(NamedTuple):
    """What an upstream says before its end: framing, and how much of head and body together."""

    framing: str
    head_bytes: int | None  # None: all
    body_part: float = 0


CUTS: Final = {
    "before-the-head": Cut("length", 0),
    "in-the-status-line": Cut("length", 12),
    "in-the-head": Cut("length", -9),
    "before-the-body": Cut("length", None),
    "in-a-length": Cut("length", None, 0.7),
    "before-the-chunks": Cut("chunked", None),
    "in-a-chunk": Cut("chunked", None, 0.7),
    "before-the-last-chunk": Cut("chunked", None, 1),
    "in-what-ends-with-the-connection": Cut("close", None, 0.7),
    "before-what-ends-with-the-connection": Cut("close", None),
}


def cut_response(cut: Cut, carrier: str) -> bytes:
    body = STREAM if carrier == "stream" else json.dumps(RESPONSE).encode()
    kind = "text/event-stream" if carrier == "stream" else "application/json"
    lines = {"length": f"Content-Length: {len(body)}", "chunked": "Transfer-Encoding: chunked"}
    lines |= {"close": "Connection: close"}
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{lines[cut.framing]}\r\n\r\n".encode()
    if cut.head_bytes is not None:
        return head[: cut.head_bytes]

    sent = chunk(body) if cut.framing == "chunked" else body
    return head + sent[: int(len(sent) * cut.body_part)]


# On a WebSocket: how much of the 101, and of the frames of a turn.
SOCKET_CUTS: Final[dict[str, tuple[int | None, int]]] = {
    "before-the-head": (0, 0),
    "in-the-head": (-9, 0),
    "before-the-first-frame": (None, 0),
    "in-the-first-frame": (None, 30),
    "in-the-head-of-a-frame": (None, ONE_OF_TWO + 1),
    "between-two-frames": (None, ONE_OF_TWO),
    "in-the-last-frame": (None, len(b"".join(FRAMES)) - 1),
}


def fin(line: Line) -> None:
    line.caller.shutdown(socket.SHUT_WR)


def say_farewell(line: Line) -> None:
    if line.tls is not None:
        line.caller.sendall(line.farewell())
    fin(line)


def reset(line: Line) -> None:
    line.caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.caller.close()


def cut_a_record(line: Line) -> None:
    if line.tls is not None:
        line.caller.sendall(line.encrypted(b"x" * 99)[:50])
    fin(line)


def end_the_record_badly(line: Line) -> None:
    """Somebody on the way has changed it."""
    if line.tls is not None:
        record = line.encrypted(b"x" * 99)
        line.caller.sendall(record[:-1] + bytes([record[-1] ^ 1]))
    fin(line)


ENDS: Final[dict[str, Callable[[Line], None]]] = {
    "without-a-word": fin,
    "farewell": say_farewell,
    "reset": reset,
    "in-a-record": cut_a_record,
    "in-a-bad-record": end_the_record_badly,
}
CASES: Final = [
    (carrier, place, end)
    for carrier in CARRIERS
    for place in (SOCKET_CUTS if carrier == "websocket" else CUTS)
    for end in ENDS
]


def play_cut(carrier: str, place: str, end: str) -> Play:
    def play(line: Line, head: bytes) -> bool:
        line.read_body(head)
        if carrier == "websocket":
            head_bytes, byte_count = SOCKET_CUTS[place]
            whole = switching(head)
            line.send(whole[:head_bytes])
            if head_bytes is None:
                read_frame(line)
                line.send(b"".join(FRAMES)[:byte_count])
        else:
            line.send(cut_response(CUTS[place], carrier))
        ENDS[end](line)
        return False

    return play


def read_frame(line: Line) -> None:
    while split_frame(bytes(line.received)) is None:
        line.receive()


def play_well(carrier: str) -> Play:
    def play(line: Line, head: bytes) -> bool:
        line.read_body(head)
        if carrier == "websocket":
            line.send(switching(head))
            read_frame(line)
            line.send(b"".join(FRAMES))
            line.receive()  # its end
        elif carrier == "stream":
            line.send(event_stream(EVENTS))
        else:
            line.send(answer({"id": "whole"}))
        return False

    return play


def name_of(scheme: str, case: tuple[str, str, str]) -> str:
    return f"{scheme}-{CASES.index(case)}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    accounts: dict[str, dict[str, Any]] = {}
    pools = {}
    for scheme, case in itertools.product(SCHEMES, CASES):
        name = name_of(scheme, case)
        pools[name] = [f"{name}-a", f"{name}-b"]
        for priority, account in enumerate(pools[name]):
            is_socket = case[0] == "websocket"
            accounts[account] = {
                "base_url": scheme, "priority": priority, "websocket": is_socket
            }  # fmt: skip
    with opened_site(tmp_path_factory.mktemp("cuts"), accounts, pools) as opened:
        yield opened


def ask(site: Site, pool: str, carrier: str) -> tuple[int, str, str]:
    """The status, how the response ends, and the code of its error."""
    if carrier == "websocket":
        host, _, port = site.address.partition(":")
        with socket.create_connection((host, int(port)), SECONDS_MAX) as stream:
            stream.sendall(upgrade(key=key_of(pool)))
            head, rest = read_head(stream)
            assert head.startswith(b"HTTP/1.1 101 "), head
            events = Caller(stream, rest).ask()
    else:
        status, said = site.ask(pool, {"input": "x", "stream": carrier == "stream"})
        if isinstance(said, dict):
            return status, str(said.get("id")), said.get("error", {}).get("code", "")
        events = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: ")]
        assert status == 200
    ends = [event for event in events if event["type"] in ENDS_OF_A_TURN]
    assert ends == [events[-1]]
    error = events[-1].get("error") or events[-1].get("response", {}).get("error") or {}
    return 200, events[-1]["type"], error.get("code", "")


ENDS_OF_A_TURN: Final = {"response.completed", "response.failed", "response.incomplete", "error"}
WHOLE: Final = {"whole", "response.completed"}


def outcome(site: Site, scheme: str, case: tuple[str, str, str]) -> tuple[object, ...]:
    """What a client gets, and how often each account of its pool is asked."""
    upstream: Upstream = site.secure if scheme == "https" else site.plain
    name = name_of(scheme, case)
    upstream.plays[f"{name}-a"] = play_cut(*case)
    upstream.plays[f"{name}-b"] = play_well(case[0])
    told = ask(site, name, case[0])
    return (*told, *(len(upstream.lines_of(f"{name}-{letter}")) for letter in "ab"))


@pytest.mark.parametrize("case", [pytest.param(case, id="-".join(case)) for case in CASES])
def test_a_cut_is_the_same_with_tls_as_without(site: Site, case: tuple[str, str, str]) -> None:
    """And only what another account has sent whole is whole, but for a stream after its end."""
    plain, secure = (outcome(site, scheme, case) for scheme in SCHEMES)
    _, end, code, asked_a, asked_b = secure
    is_whole_before = case[:2] == ("stream", "before-the-last-chunk")
    if case[2] == "in-a-bad-record" and "with-the-connection" in case[1]:
        # Without TLS this is an end like any other, and what came before it is no JSON.
        assert code == "upstream_stream_truncated" or asked_b == 1
        secure, plain = (*secure[:2], *secure[3:]), (*plain[:2], *plain[3:])
    assert secure == plain
    assert asked_a == 1
    assert (end in WHOLE) == (asked_b == 1 or is_whole_before)
    assert bool(code) == (end not in WHOLE)
