"""Proves that clients get the upstream's bytes: all, at once, unchanged, in whole events.

Method: streams of our own (tests/support/vectors), and recordings of real upstreams if
../shared/fixtures exists next to the checkout, are replayed through a running server in memory,
whole and cut at every byte.  With CI set in the environment all of it runs, else a part that takes
half a minute.
"""

from __future__ import annotations

import itertools
import json
import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from pooler import CallKind, Event, EventScanner
from tests.support.memory_sockets import Client, Response, ask_chat, ask_responses, post
from tests.support.paths import RECORDINGS, VECTORS
from tests.support.world import (
    LAST_CHUNK,
    Fin,
    Pause,
    Reset,
    Script,
    Send,
    Stall,
    Step,
    Wait,
    World,
    chat_events,
    chunk,
    describe,
    json_response,
    opened_world,
    response_head,
    responses_events,
    sse_event,
    sse_head,
    sse_steps,
)

OWN: Final = sorted((VECTORS).glob("*.txt"))
RECORDED: Final = sorted(RECORDINGS.rglob("*.chunks.txt"))
UNARY: Final = sorted(path for path in RECORDINGS.rglob("*.json") if "error" not in path.name)
EVERY_CUT_BYTES_MAX: Final = 4200  # larger streams are cut at a sample of their bytes
EVERY_STYLE_BYTES_MAX: Final = 2400  # streams that are cut in every style
FEW, MANY = 12, 200  # cuts of one stream
LF, CRLF = b"\n", b"\r\n"


def test_all_recorded_streams_are_read() -> None:
    assert len(OWN) == 6
    if RECORDINGS.is_dir():
        assert len(RECORDED) >= 31
        assert len(UNARY) >= 30


################################################################
# STREAMS ON THE WIRE
################################################################


@dataclass(frozen=True)
class Style:
    """How an upstream writes a stream."""

    framing: str = "chunked"  # each event a chunk; or odd (chunks of 997), length, close
    newline: bytes = LF
    has_event_lines: bool = False

    def __str__(self) -> str:
        newline = "lf" if self.newline == LF else "crlf"
        return f"{self.framing}-{newline}{'-event-lines' * self.has_event_lines}"


STYLES: Final = (
    Style("chunked", LF, has_event_lines=True),
    Style("chunked", CRLF),
    Style("length", LF),
    Style("length", CRLF, has_event_lines=True),
    Style("close", CRLF),
    Style("close", LF, has_event_lines=True),
    Style("odd", LF),
    Style("odd", CRLF, has_event_lines=True),
)


@dataclass
class Wire:
    """One stream as one upstream sends it, and what a reader should make of it."""

    kind: CallKind
    style: Style
    body: bytes
    ends: list[int]  # of each event in `body`
    payloads: list[Any]
    data: bytes = b""  # head, body and framing
    body_at: list[int] = field(default_factory=list)  # byte of `data` -> bytes of `body` before it
    head_bytes: int = 0

    def __post_init__(self) -> None:
        self.is_content = [is_content(self.kind, payload) for payload in self.payloads]
        self.first_content = self.is_content.index(True)
        ended = [is_terminal(self.kind, payload) for payload in self.payloads]
        self.terminal = ended.index(True) if True in ended else len(ended)
        said = [says_finish(payload) for payload in self.payloads]
        self.finish = said.index(True) if True in said else len(said)
        self.write()

    def write(self) -> None:
        framing = self.style.framing
        head = sse_head("chunked" if framing == "odd" else framing, len(self.body))
        pieces = [(head, False)]
        size = 997 if framing == "odd" else len(self.body)
        edges = [*range(0, len(self.body), size), len(self.body)]
        if framing == "chunked":
            edges = [0, *self.ends]
        for start, end in itertools.pairwise(edges):
            piece = self.body[start:end]
            if framing in {"chunked", "odd"}:
                pieces += [(b"%x\r\n" % len(piece), False), (piece, True), (b"\r\n", False)]
            else:
                pieces.append((piece, True))
        if framing in {"chunked", "odd"}:
            pieces.append((LAST_CHUNK, False))
        counts: list[int] = []
        done = 0
        for piece, is_body in pieces:
            counts += range(done, done + len(piece)) if is_body else [done] * len(piece)
            done += len(piece) * is_body
        self.data = b"".join(piece for piece, _ in pieces)
        self.body_at = [*counts, done]
        self.head_bytes = len(head)

    def whole_at(self, cut: int, *, is_clean: bool) -> tuple[int, int]:
        """How many whole events a reader has at this cut, and how many bytes they are."""
        byte_count = self.body_at[cut]
        count = bisect_right(self.ends, byte_count)
        is_one_short = count < len(self.ends) and self.ends[count] == byte_count + 1
        if is_clean and is_one_short and self.body[byte_count - 1 : byte_count] == b"\r":
            return count + 1, byte_count  # at the end of the body a lone CR ends the event
        return count, self.ends[count - 1] if count else 0


def is_content(kind: CallKind, payload: Any) -> bool:  # noqa: ANN401
    if kind is CallKind.RESPONSES:
        handshake = {"response.created", "response.in_progress", "response.queued"}
        return payload["type"] not in handshake
    if payload is None:
        return True
    said = [choice.get("delta", {}) for choice in payload["choices"]]
    return says_finish(payload) or any(
        value for delta in said for name, value in delta.items() if name != "role"
    )


def is_terminal(kind: CallKind, payload: Any) -> bool:  # noqa: ANN401
    if kind is CallKind.CHAT:
        return payload is None
    return payload["type"] in {"response.completed", "response.incomplete", "response.failed"}


def says_finish(payload: Any) -> bool:  # noqa: ANN401
    return bool(payload) and any(one.get("finish_reason") for one in payload.get("choices", ()))


def kind_of(path: Path) -> CallKind:
    is_chat = path.parent.name == "chat" or path.name.startswith("chat-")
    return CallKind.CHAT if is_chat else CallKind.RESPONSES


def make_wire(path: Path, style: Style, *, has_done: bool = True) -> Wire:
    """The first stream in the file; Chat streams get their [DONE]."""
    kind = kind_of(path)
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    payloads: list[Any] = [json.loads(line) for line in lines]
    last = [is_terminal(kind, payload) for payload in payloads]
    if True in last:
        del lines[last.index(True) + 1 :], payloads[last.index(True) + 1 :]
    if kind is CallKind.CHAT and has_done:
        lines.append(b"[DONE]")
        payloads.append(None)
    events = [
        sse_event(line, style.newline, with_event_line=style.has_event_lines) for line in lines
    ]
    ends = list(itertools.accumulate(map(len, events)))
    return Wire(kind, style, b"".join(events), ends, payloads)


def stream_params(paths: Sequence[Path]) -> list[Any]:
    return [
        pytest.param(path, index, id=path.name.split(".chunks")[0].removesuffix(".txt"))
        for index, path in enumerate(paths)
    ]


ALL_STREAMS: Final = stream_params(OWN + RECORDED)
SMALLEST_STREAMS: Final = stream_params(
    [path for path in OWN + RECORDED if path.stat().st_size <= EVERY_STYLE_BYTES_MAX]
)


def request_for(wire: Wire) -> bytes:
    return ask_chat() if wire.kind is CallKind.CHAT else ask_responses()


def play_everywhere(world: World, script: Script) -> None:
    for upstream in world.upstreams.values():
        upstream.always = script


def forget(world: World) -> None:
    """Thousands of requests need not stay in memory."""
    world.logged.clear()
    for upstream in world.upstreams.values():
        upstream.asked.clear()
        upstream.lines.clear()


def in_sends(data: bytes, size: int) -> list[Step]:
    return [Send(data[at : at + size]) for at in range(0, len(data), size)]


################################################################
# WHOLE STREAMS
################################################################


@pytest.mark.parametrize("is_in_crumbs", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("path", "index"), ALL_STREAMS)
async def test_a_whole_stream_arrives_byte_for_byte(
    world: World, path: Path, index: int, *, is_in_crumbs: bool
) -> None:
    client = await world.connect()
    for number, style in enumerate(STYLES):
        wire = make_wire(path, style)
        crumb = 17 if len(wire.data) < 20_000 else 4000 + index
        sizes = [crumb] if is_in_crumbs else [len(wire.data), 1000 + number]
        for size in sizes:
            end: list[Step] = [Fin()] if style.framing == "close" else []
            play_everywhere(world, in_sends(wire.data, size) + end)
            response = await client.ask(request_for(wire))
            assert response.status == 200
            assert response.body == wire.body, (style, size)
            assert response.header("content-type") == "text/event-stream"
            assert response.header("transfer-encoding") == "chunked"
            assert len(world.asked) == 1
            await world.settle()
            [record] = world.records
            assert (record["status"], record["code"]) == (200, None)
            forget(world)


@pytest.mark.parametrize(("path", "index"), ALL_STREAMS)
def test_a_recorded_stream_is_understood_the_same_in_any_pieces(path: Path, index: int) -> None:
    wire = make_wire(path, STYLES[index % len(STYLES)])
    whole = EventScanner(wire.kind)
    found = whole.feed(wire.body) + whole.feed(b"", is_end=True)
    assert b"".join(event.raw for event in found) == wire.body
    for size in (1, 2, 5, 997) if len(wire.body) < 40_000 else (997,):
        scanner = EventScanner(wire.kind)
        again: list[Event] = []
        for at in range(0, len(wire.body), size):
            again += scanner.feed(wire.body[at : at + size])
        again += scanner.feed(b"", is_end=True)
        assert again == found
        assert (scanner.usage, scanner.terminal) == (whole.usage, whole.terminal)


@pytest.mark.parametrize(
    "path",
    [path for path in OWN + RECORDED if kind_of(path) is CallKind.CHAT],
    ids=lambda path: str(path.name),
)
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_a_chat_stream_without_done_is_complete(
    world: World, path: Path, framing: str
) -> None:
    wire = make_wire(path, Style(framing), has_done=False)
    play_everywhere(world, [Send(wire.data), *[Fin()] * (framing == "close")])
    response = await world.ask(ask_chat())
    assert response.body == wire.body
    assert world.records[-1]["code"] is None


################################################################
# CUT STREAMS
################################################################


def cuts_of(wire: Wire, seed: int, count: int) -> Sequence[int]:
    return sorted(random.Random(seed).sample(range(len(wire.data)), count))


def assert_is_our_end(wire: Wire, count: int, tail: bytes) -> None:
    """`tail` is exactly one terminal event of ours, fit to follow `count` events."""
    assert tail.endswith(b"\n\n")
    assert tail.count(b"\n\n") == 1
    *_, line = tail.removesuffix(b"\n\n").split(b"\n")
    event = json.loads(line.removeprefix(b"data: "))
    if wire.kind is CallKind.CHAT:
        assert list(event) == ["error"]
        assert event["error"]["code"] == "upstream_stream_truncated"
        return
    assert tail.startswith(b"event: response.failed\n")
    assert event["type"] == "response.failed"
    assert event["sequence_number"] == wire.payloads[count - 1]["sequence_number"] + 1
    assert event["response"]["id"] == wire.payloads[0]["response"]["id"]
    assert event["response"]["status"] == "failed"
    assert event["response"]["error"]["code"] == "upstream_stream_truncated"


def assert_cut_well(wire: Wire, cut: int, response: Response, *, is_reset: bool) -> None:
    is_in_head = cut < wire.head_bytes
    is_clean = not is_reset and wire.style.framing == "close"
    count, byte_count = wire.whole_at(cut, is_clean=is_clean)
    if is_in_head or count <= wire.first_content:
        assert response.status == 502
        code = "upstream_unreachable" if is_in_head else "upstream_stream_truncated"
        assert response.error["code"] == code
        return
    assert response.status == 200
    assert response.body[:byte_count] == wire.body[:byte_count]
    tail = response.body[byte_count:]
    is_complete = count > wire.terminal or (is_clean and count > wire.finish)
    if is_complete:
        assert tail == b""
    else:
        assert_is_our_end(wire, count, tail)


async def replay_cuts(world: World, wire: Wire, cuts: Iterable[int], *, is_reset: bool) -> None:
    """Cut there; no cut is tried again elsewhere: two more accounts stand by, unasked."""
    raw = request_for(wire)
    end: Step = Reset() if is_reset else Fin()
    client = await world.connect()
    for cut in cuts:
        sent = wire.data[:cut]
        play_everywhere(world, [Send(sent[: cut // 2]), Send(sent[cut // 2 :]), end])
        response = await client.ask(raw)
        assert_cut_well(wire, cut, response, is_reset=is_reset)
        assert len(world.asked) == 1, cut
        forget(world)


CUT_COUNTS: Final = pytest.mark.parametrize(
    "cut_count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)]
)
BOTH_ENDS: Final = pytest.mark.parametrize("is_reset", [False, True], ids=["fin", "reset"])


@CUT_COUNTS
@BOTH_ENDS
@pytest.mark.parametrize(("path", "index"), ALL_STREAMS)
async def test_a_cut_stream_gives_whole_events_and_one_end(
    world: World, path: Path, index: int, *, is_reset: bool, cut_count: int
) -> None:
    """The upstream's whole events, then our end; an error before content."""
    wire = make_wire(path, STYLES[(index + 3 * is_reset) % len(STYLES)])
    is_small = len(wire.body) <= EVERY_CUT_BYTES_MAX
    is_full = is_small and cut_count == MANY and not is_reset
    cuts = range(len(wire.data)) if is_full else cuts_of(wire, index, cut_count)
    await replay_cuts(world, wire, cuts, is_reset=is_reset)


@CUT_COUNTS
@BOTH_ENDS
@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize(("path", "index"), SMALLEST_STREAMS)
async def test_a_cut_stream_is_the_same_in_every_style(
    world: World, path: Path, index: int, style: Style, *, is_reset: bool, cut_count: int
) -> None:
    wire = make_wire(path, style)
    cuts = cuts_of(wire, index, cut_count)
    await replay_cuts(world, wire, cuts, is_reset=is_reset)


@BOTH_ENDS
async def test_a_cut_chat_stream_with_a_finish_reason_but_no_done(
    world: World, is_reset: bool
) -> None:
    """Unclean: the last chunk is missing, so something may be missing too."""
    events = chat_events("a", is_done=False)
    end: Step = Reset() if is_reset else Fin()
    play_everywhere(world, sse_steps(*events, end, is_whole=False))
    response = await world.ask(ask_chat())
    body = b"".join(map(sse_event, events))
    assert response.body.startswith(body + b'data: {"error": ')
    assert b"[DONE]" not in response.body


async def test_a_kept_connection_that_ends_is_replaced_only_before_the_request(
    autojump_clock: MockClock,
) -> None:
    """Closed while idle: a new one.  Closed after the request: an error, never a second POST."""
    assert autojump_clock.autojump_threshold == 0
    async with opened_world(describe("a")) as world:
        upstream = world.upstreams["a"]
        client = await world.connect()
        whole = sse_steps(*responses_events("a"))
        upstream.plays([*whole, Fin()], whole, [Fin()], [Reset()])
        statuses = [(await client.ask(ask_responses())).status for _ in range(2)]
        assert (statuses, upstream.dial_count) == ([200, 200], 2)
        assert (await client.ask(ask_responses())).error["code"] == "upstream_unreachable"
        assert (upstream.dial_count, len(upstream.asked)) == (2, 3)
        assert (await client.ask(ask_responses())).error["code"] == "upstream_unreachable"
        assert (upstream.dial_count, len(upstream.asked)) == (3, 4)


@BOTH_ENDS
async def test_after_the_hold_a_cut_is_an_event_and_no_error(world: World, is_reset: bool) -> None:
    """Ten seconds without content: the client gets its 200 and the handshake, then our end."""
    created = responses_events()[0]
    end: Step = Reset() if is_reset else Fin()
    play_everywhere(world, sse_steps(created, Pause(12), end, is_whole=False))
    client = await world.connect()
    await client.send(ask_responses())
    head = await client.read_head()
    assert (head.status, head.head_at) == (200, 10.0)
    (created_at, first), (failed_at, last) = await timed_events(client)
    assert (created_at, failed_at) == (10.0, 12.0)
    assert first == sse_event(created)
    assert json.loads(last.partition(b"data: ")[2])["sequence_number"] == 1


async def test_an_http_1_0_client_gets_the_same_bytes_unframed(world: World) -> None:
    events = responses_events("a", "b")
    play_everywhere(world, sse_steps(*events))
    client = await world.connect()
    response = await client.ask(ask_responses().replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1))
    assert response.body == b"".join(map(sse_event, events))
    assert response.header("transfer-encoding") is None
    assert response.header("connection") == "close"


################################################################
# WHEN
################################################################


async def timed_events(client: Client) -> list[tuple[float, bytes]]:
    found = []
    while event := await client.read_event():
        found.append((trio.current_time(), event))
    return found


async def test_each_event_arrives_at_the_moment_it_was_sent(world: World) -> None:
    events = responses_events("a", "b", "c")
    parts: list[Any] = []
    for event in events:
        parts += [Pause(2), event]
    play_everywhere(world, sse_steps(*parts))
    client = await world.connect()
    await client.send(ask_responses())
    head = await client.read_head()
    assert head.head_at == 6.0  # created and in_progress are held until the first content
    found = await timed_events(client)
    assert [at for at, _ in found] == [6.0, 6.0, 6.0, 8.0, 10.0, 12.0]
    assert [event for _, event in found] == [sse_event(event) for event in events]
    assert trio.current_time() == 12.0


async def test_half_an_event_is_never_given(world: World) -> None:
    """Not even with comments of ours in between: they come between events."""
    first, second = sse_event(chat_events("a")[1]), sse_event(chat_events("b" * 500)[1])
    script: list[Step] = [Send(sse_head() + chunk(first))]
    for at in range(0, len(second), 100):
        script += [Pause(4), Send(chunk(second[at : at + 100]))]
    script.append(Send(chunk(b"data: [DONE]\n\n") + LAST_CHUNK))
    play_everywhere(world, script)
    client = await world.connect()
    await client.send(ask_chat())
    await client.read_head()
    pieces = []
    while piece := await client.read_piece():
        pieces.append((trio.current_time(), piece))
    last_at = 4.0 * ((len(second) + 99) // 100)
    assert pieces[0] == (0.0, first)
    assert pieces[1] == (15.0, b": keepalive\n\n")
    assert b"".join(piece for at, piece in pieces if at == last_at) == second + b"data: [DONE]\n\n"
    assert all(piece.endswith(b"\n\n") for _, piece in pieces)


@pytest.mark.parametrize(
    ("steps", "tail", "ended_at"),
    [
        pytest.param([Send(LAST_CHUNK)], b"", 0.0, id="the-upstream-ends"),
        pytest.param([Stall()], b"", 1.0, id="a-second-later"),
        pytest.param([Fin()], b"", 0.0, id="fin"),
        pytest.param([Reset()], b"", 0.0, id="reset"),
        pytest.param(
            [Pause(0.5), Send(chunk(b"data: [DONE]\n\n")), Stall()],
            b"data: [DONE]\n\n",
            1.0,
            id="done-within-the-second",
        ),
        pytest.param([Pause(1.5), Send(chunk(b"data: x\n\n")), Stall()], b"", 1.0, id="too-late"),
        pytest.param([Send(chunk(b"data: half")), Fin()], b"", 0.0, id="half-an-event-after"),
    ],
)
async def test_nothing_of_ours_follows_a_terminal_event(
    world: World, steps: list[Step], tail: bytes, ended_at: float
) -> None:
    events = responses_events("a")
    play_everywhere(world, sse_steps(*events, *steps, is_whole=False))
    response = await world.ask(ask_responses())
    assert response.body == b"".join(map(sse_event, events)) + tail
    assert response.ended_at == ended_at
    assert world.records[-1]["code"] is None


async def test_a_client_that_reads_slowly_slows_the_upstream(autojump_clock: MockClock) -> None:
    """What the pooler takes in ahead of a stalled client is bounded by two receives."""
    assert autojump_clock.autojump_threshold == 0
    word = "x" * 1000
    events = [sse_event(event) for event in responses_events(*[word] * 2000)]
    assert sum(map(len, events)) > 2_000_000
    async with opened_world(describe("a")) as world:
        upstream = world.upstreams["a"]
        upstream.capacity = 4096
        upstream.plays([Send(sse_head()), *(Send(chunk(one)) for one in events), Send(LAST_CHUNK)])
        client = await world.connect(capacity=4096)
        await client.send(ask_responses())
        await world.settle()
        taken = upstream.lines[0].socket.outgoing.byte_count
        assert taken < 2 * 65536 + 2 * 4096
        response = await client.read_response()
        assert response.body == b"".join(events)
        assert trio.current_time() == 0.0


async def test_unread_events_of_a_stalled_client_are_not_read_ahead(world: World) -> None:
    """The client takes the head and stops; more events come; the pooler leaves them there."""
    go_on = trio.Event()
    big = sse_event({"type": "vendor.big", "data": "y" * 30_000})
    for upstream in world.upstreams.values():
        upstream.capacity = 1000
        more = [Send(chunk(big)) for _ in range(50)]
        done = sse_event({"type": "response.completed"})
        upstream.always = [
            Send(sse_head() + chunk(big)), Wait(go_on), *more, Send(chunk(done) + LAST_CHUNK),
        ]  # fmt: skip
    client = await world.connect(capacity=500)
    await client.send(ask_responses())
    await world.settle()
    go_on.set()
    await world.settle()
    [line] = [line for upstream in world.upstreams.values() for line in upstream.lines]
    assert line.socket.outgoing.byte_count < 4 * len(big)
    response = await client.read_response()
    assert response.body == big * 51 + sse_event({"type": "response.completed"})


################################################################
# WHOLE ANSWERS
################################################################

ODD_JSON = [
    pytest.param(b'{ "id" :\t"r",\r\n "x" : 1.50e+00, "\\u0061": "\\/\\ud83c" , "big":'
                 + b"9" * 200 + b"}\n \n", id="odd-json"),
    pytest.param(b'{"id":"r","id":"r"}', id="keys-twice"),
    pytest.param("{\"id\":\"世界 \u2028 🎉\"}".encode(), id="utf-8"),
    pytest.param(b'{"id":"' + b"x" * 300_000 + b'"}', id="large"),
]  # fmt: skip
RECORDED_UNARY = [pytest.param(path.read_bytes(), id=path.name) for path in UNARY]


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("body", ODD_JSON + RECORDED_UNARY)
async def test_a_whole_answer_arrives_byte_for_byte(
    world: World, body: bytes, framing: str
) -> None:
    fields = [("content-type", "application/json; charset=utf-8"), ("openai-model", "m1")]
    steps: list[Step] = []
    if framing == "length":
        head = response_head(200, [*fields, ("content-length", str(len(body)))])
        steps = [Send(head + body)]
    elif framing == "close":
        steps = [Send(response_head(200, fields) + body), Fin()]
    else:
        pieces = [chunk(body[at : at + 999]) for at in range(0, len(body), 999)]
        head = response_head(200, [*fields, ("transfer-encoding", "chunked")])
        steps = [Send(head), *map(Send, pieces), Send(LAST_CHUNK)]
    play_everywhere(world, steps)
    response = await world.ask(ask_responses(stream=False))
    assert (response.status, response.body) == (200, body)
    assert response.header("content-type") == "application/json; charset=utf-8"
    assert response.header("openai-model") == "m1"
    assert response.header("content-length") == str(len(body))


@BOTH_ENDS
async def test_a_cut_whole_answer_is_an_error_and_not_asked_again(
    world: World, is_reset: bool
) -> None:
    data = b"".join(step.data for step in json_response({"id": "r"}) if isinstance(step, Send))
    client = await world.connect()
    for cut in range(len(data)):
        play_everywhere(world, [Send(data[:cut]), Reset() if is_reset else Fin()])
        response = await client.ask(ask_responses(stream=False))
        assert response.status == 502
        assert response.error["type"] == "server_error"
        assert len(world.asked) == 1
        forget(world)


################################################################
# WHAT IS SENT
################################################################


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"model":"m1","input":"x"}', id="plain"),
        pytest.param(b' {\t"input" : "\\u0078\\/" ,\r\n"model":"m1" } \n', id="odd-blanks"),
        pytest.param(b'{"model":"m1","input":[],"temperature":1.50e+0,"x":-0.0}', id="numbers"),
        pytest.param('{"model":"m1","input":"世界 \u2028 🎉"}'.encode(), id="utf-8"),
        pytest.param(b'{"model":"m1","unknown":{"a":[null,true]},"input":"x"}', id="unknown"),
        pytest.param(b'{"model":"m1","input":"' + b"x" * 200_000 + b'"}', id="large"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_a_request_goes_out_byte_for_byte(world: World, path: str, body: bytes) -> None:
    play_everywhere(world, json_response({"id": "r"}))
    response = await world.ask(post(path, body))
    assert response.status == 200
    [asked] = world.asked
    assert asked.body == body
    assert asked.target == path


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"model":"nano"}', id="plain"),
        pytest.param(b' {\n\t"model" \r\n:\t "nano"\n , "input":"x" } ', id="odd-blanks"),
        pytest.param(b'{"model":"n\\u0061no"}', id="escaped-value"),
        pytest.param(b'{"mod\\u0065l":"nano"}', id="escaped-name"),
        pytest.param(
            b'{"a":{"model":"nano"},"b":[{"model":"nano"}],"model":"nano","c":{"model":"nano"}}',
            id="nested-models",
        ),
        pytest.param(b'{"input":"\\"model\\":\\"nano\\"","model":"nano"}', id="in-a-string"),
        pytest.param(b'{"x":"}\\\\","y":"\\\\\\"","t":[[],{}],"model":"nano"}', id="backslashes"),
        pytest.param('{"ü":"世界 🎉 \u2028","model":"nano","é":"ß"}'.encode(), id="utf-8"),
        pytest.param(b'{"x":"\\ud800","model":"nano"}', id="half-a-character"),
        pytest.param(b'{"":"nano","model":"nano"}', id="empty-name"),
        pytest.param(b'{"model":"strange"}', id="value-needs-escapes"),
        pytest.param(
            b'{"a":1.0,"b":-1.50E-2,"c":1,"d":-0.0,"e":9007199254740993,"f":5e-324,"g":1e308,'
            b'"h":0.1,"i":true,"j":null,"k":123456789012345678901234567890,"model":"nano"}',
            id="numbers",
        ),
    ],
)
async def test_an_alias_changes_the_value_of_model_alone(
    autojump_clock: MockClock, body: bytes
) -> None:
    """The body is serialised again; every other value, its type and its place stay."""
    assert autojump_clock.autojump_threshold == 0
    aliases = {"nano": "m1", "strange": 'q"\\m'}
    accounts = {"a": {"models": ["m1", 'q"\\m']}}
    pool = {"aliases": aliases}
    async with opened_world(describe("a", accounts=accounts, pool=pool)) as world:
        world.upstreams["a"].plays(json_response({"id": "r", "model": "m1"}))
        response = await world.ask(post("/v1/responses", body))
        assert response.body == b'{"id": "r", "model": "m1"}'  # and nothing in the answer
        value = json.loads(body)
        value["model"] = aliases[value["model"]]
        # As text: 1 equals 1.0 and true.
        assert json.dumps(world.asked[0].json()) == json.dumps(value)
