"""Proves that event streams are cut into the same whole events, and judged alike, in any pieces.

Method: streams are fed whole, at every cut, byte by byte and in pieces that Hypothesis makes up,
and are compared with a slow reader of this file's own that follows WHATWG HTML line by line.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from pooler import CallKind, Event, EventKind, EventScanner, PoolerError, Usage
from tests.support.memory_sockets import ask_responses
from tests.support.paths import VECTORS
from tests.support.world import (
    LAST_CHUNK,
    Pause,
    Send,
    Stall,
    Step,
    Wait,
    World,
    chat_events,
    chunk,
    describe,
    opened_world,
    responses_events,
    sse_event,
    sse_head,
    sse_steps,
)

RESPONSES, CHAT = CallKind.RESPONSES, CallKind.CHAT
Found = list[tuple[EventKind, bytes]]
EXAMPLES = sorted(VECTORS.glob("*.txt"))

################################################################
# READERS
################################################################


def read_slowly(stream: bytes) -> list[bytes]:
    """The data of each event of a whole stream; what the standard says, a line at a time."""
    found: list[bytes] = []
    data: list[bytes] = []
    for line in re.findall(rb"([^\r\n]*)(?:\r\n|\r|\n)", stream.removeprefix(b"\xef\xbb\xbf")):
        if not line:
            if data:
                found.append(b"\n".join(data))
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
    return found


def scan(
    kind: CallKind, pieces: Iterable[bytes], *, joins_content: bool = False
) -> tuple[Found, EventScanner]:
    scanner = EventScanner(kind, joins_content=joins_content)
    events = [event for piece in pieces for event in scanner.feed(piece)]
    events += scanner.feed(b"", is_end=True)
    return shown(events), scanner


def shown(events: Iterable[Event]) -> Found:
    """Kind and bytes of each event."""
    return [(event.kind, event.raw) for event in events]


def merged(found: Found) -> Found:
    """With neighbours of one kind joined, which the scanner may do or leave."""
    shape: Found = []
    for kind, events in found:
        if shape and shape[-1][0] is kind:
            shape[-1] = (kind, shape[-1][1] + events)
        else:
            shape.append((kind, events))
    return shape


def kinds(kind: CallKind, *events: bytes) -> list[EventKind]:
    """The kind of each event, fed one by one."""
    scanner = EventScanner(kind)
    return [event.kind for raw in events for event in scanner.feed(raw)]


def summary(scanner: EventScanner) -> tuple[Any, ...]:
    return (
        scanner.terminal,
        scanner.failure,
        scanner.usage,
        scanner.response,
        scanner.has_content,
        scanner.has_finish,
        scanner.bytes_pending,
        scanner.failure_event(PoolerError("internal_error"), "r", RESPONSES),  # has the next number
    )


def text_of(found: Found) -> bytes:
    return b"".join(events for _, events in found)


def in_pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def cut_at(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The stream in pieces, cut at those of its bytes."""
    edges = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    return [stream[a:b] for a, b in pairwise(edges)]


################################################################
# ANY CUT GIVES THE SAME
################################################################

LF, CRLF, CR = b"\n", b"\r\n", b"\r"
MIXED = b": hi\r\n\r\ndata: a\n\r\ndata: b\r\rdata: c\r\n\ndata: d\n\ndata: [DONE]\r\n\r"


def streams() -> list[Any]:
    found = [pytest.param(RESPONSES, MIXED, id="mixed-line-ends")]
    for newline, name in ((LF, "lf"), (CRLF, "crlf"), (CR, "cr")):
        for kind, payloads in (
            (RESPONSES, responses_events("a", "b\n\n", "c")),
            (CHAT, chat_events("a", "b\r\n", "c")),
        ):
            for has_line in (False, True):
                events = [sse_event(one, newline, with_event_line=has_line) for one in payloads]
                stream = b": comment" + newline * 2 + b"".join(events)
                label = f"{kind.name.lower()}-{name}{'-event-lines' * has_line}"
                found.append(pytest.param(kind, stream, id=label))
    return found


@pytest.mark.parametrize(("kind", "stream"), streams())
def test_every_cut_gives_the_same_events(kind: CallKind, stream: bytes) -> None:
    whole, scanner = scan(kind, [stream])
    assert text_of(whole) == stream
    assert [data for _, event in whole for data in read_slowly(event)] == read_slowly(stream)
    for at in range(len(stream) + 1):
        for joins_content in (False, True):
            pieces = [stream[:at], stream[at:]]
            cut, cut_scanner = scan(kind, pieces, joins_content=joins_content)
            assert merged(cut) == merged(whole), at
            assert summary(cut_scanner) == summary(scanner), at


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.stem))
def test_small_pieces_give_the_same_events(path: Path, size: int) -> None:
    kind = CHAT if path.name.startswith("chat") else RESPONSES
    for newline in (LF, CRLF, CR):
        stream = b"".join(sse_event(line, newline) for line in path.read_bytes().splitlines())
        whole, scanner = scan(kind, [stream])
        assert text_of(whole) == stream
        for joins_content in (False, True):
            pieces = in_pieces(stream, size)
            found, pieces_scanner = scan(kind, pieces, joins_content=joins_content)
            assert merged(found) == merged(whole)
            assert summary(pieces_scanner) == summary(scanner)


WORDS = (
    b"\r", b"\n", b"\r\n", b"\n\n", b"data:", b"data: ", b"event: error", b":", b" ", b"x", b"",
    b"\xef\xbb\xbf", b"\x00", b"\xff", b"[DONE]", b"data: [DONE]\n\n", b"data: [DONE]\r\r",
    b'data: {"type":"response.created","sequence_number":0}\n\n',
    b'data: {"type":"response.output_text.delta"}\n\n',
    b'data: {"id":"c","choices":[{"delta":{"content":"x"},"finish_reason":null}]}\r\n\r\n',
    b'data: {"id":"c","choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"error":{"code":"x"}}\n\n', b'{"type":', b'"response.failed"}',
)  # fmt: skip
STREAMS = st.lists(st.sampled_from(WORDS) | st.binary(max_size=3), max_size=20).map(b"".join)
CUTS = st.lists(st.integers(0, 400), max_size=6)


@given(kind=st.sampled_from(CallKind), stream=STREAMS, cuts=CUTS, joins_content=st.booleans())
def test_made_up_bytes_give_whole_events_in_any_pieces(
    kind: CallKind, stream: bytes, cuts: list[int], *, joins_content: bool
) -> None:
    whole, scanner = scan(kind, [stream])
    pieces = cut_at(stream, cuts)
    cut, cut_scanner = scan(kind, pieces, joins_content=joins_content)
    assert merged(cut) == merged(whole)
    assert summary(cut_scanner) == summary(scanner)
    out = text_of(whole)
    assert stream.startswith(out)
    assert scanner.bytes_pending == len(stream) - len(out)
    assert read_slowly(out) == read_slowly(stream)


def plain_event(number: int, text: str = "x") -> bytes:
    """A plain content event of Responses, with a line that names its type."""
    payload = {"type": "response.output_text.delta", "sequence_number": number, "delta": text}
    return sse_event(payload, with_event_line=True)


def chunk_of_chat(content: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return sse_event({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})


OTHERS_IN_A_RUN = {
    "nothing": b"",
    "comment": b": hi\n\n",
    "blank-line": b"\n",
    "no-type-first": sse_event({"error": {"code": "x"}}),
    "outcome": sse_event({"type": "response.completed", "response": {"id": "r"}}),
    "done": b"data: [DONE]\n\n",
    "carriage-returns": b"data: x\r\n\r\n",
    "bare-carriage-returns": plain_event(3)[:-2] + b"\r\r" + sse_event({"error": {"code": "x"}}),
    "id-line": b"id: 3\n" + plain_event(3),
    "lookalike": plain_event(3, "event: response.output_text.delta\\ndata: "),
    "unfinished": plain_event(3)[:-1],
}
WORDS_OF_RUNS = (*OTHERS_IN_A_RUN.values(), plain_event(1), plain_event(12), chunk_of_chat("a"))


@pytest.mark.parametrize("other", OTHERS_IN_A_RUN)
@pytest.mark.parametrize("place", range(4))
def test_a_run_of_content_hides_no_other_event(other: str, place: int) -> None:
    """Whatever stands among plain content is found, and what is plain is counted."""
    events = [plain_event(7), plain_event(8), plain_event(9)]
    events.insert(place, OTHERS_IN_A_RUN[other])
    stream = plain_event(0) + b"".join(events)
    for kind in CallKind:
        whole, scanner = scan(kind, [stream])
        joining = EventScanner(kind, joins_content=True)
        first = joining.feed(plain_event(0))
        joined = joining.feed(stream[len(plain_event(0)) :])
        rest = joining.feed(b"", is_end=True)
        assert merged(shown(first + joined + rest)) == merged(whole)
        assert summary(joining) == summary(scanner)
        assert sum(event.event_count for event in first + joined + rest) == len(whole)
        if other == "nothing" and kind is RESPONSES:
            assert [event.event_count for event in joined] == [3]


def test_a_run_of_chat_content_ends_at_what_is_notable() -> None:
    stream = chunk_of_chat("a") + chunk_of_chat("b")
    scanner = EventScanner(CHAT, joins_content=True)
    scanner.feed(stream + chunk_of_chat("c"))
    assert [event.event_count for event in scanner.feed(stream)] == [2]
    events = scanner.feed(stream + chunk_of_chat("", "stop"))
    assert [event.event_count for event in events] == [1, 1, 1]
    assert scanner.has_finish


@given(
    kind=st.sampled_from(CallKind),
    stream=st.lists(st.sampled_from(WORDS_OF_RUNS), max_size=12).map(b"".join),
    cuts=CUTS,
)
def test_runs_of_content_are_what_single_events_are(
    kind: CallKind, stream: bytes, cuts: list[int]
) -> None:
    whole, scanner = scan(kind, [stream])
    pieces = cut_at(stream, cuts)
    joined, joining = scan(kind, pieces, joins_content=True)
    assert merged(joined) == merged(whole)
    assert summary(joining) == summary(scanner)


@given(kind=st.sampled_from(CallKind), stream=STREAMS)
def test_what_is_out_is_always_whole(kind: CallKind, stream: bytes) -> None:
    """At no moment has half an event been given: each piece given ends with a blank line."""
    scanner = EventScanner(kind)
    for at in range(len(stream)):
        for event in scanner.feed(stream[at : at + 1]):
            assert re.search(rb"(?:\r\n|\r|\n)(?:\r\n|\r|\n)\Z", event.raw)


################################################################
# WHERE AN EVENT ENDS
################################################################


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"data: a\n\n", [b"data: a\n\n"], id="lf"),
        pytest.param(b"data: a\r\n\r\n", [b"data: a\r\n\r\n"], id="crlf"),
        pytest.param(b"data: a\r\rdata: b\r\r", [b"data: a\r\r", b"data: b\r\r"], id="cr"),
        pytest.param(b"data: a\n\r\n", [b"data: a\n\r\n"], id="lf-crlf"),
        pytest.param(b"data: a\r\n\r", [b"data: a\r\n\r"], id="crlf-cr"),
        pytest.param(b"data: a\r\ndata: b\r\n\r\n", [b"data: a\r\ndata: b\r\n\r\n"], id="2-lines"),
        pytest.param(b"data: a\n", [], id="no-blank-line"),
        pytest.param(b"data: a\r\n", [], id="crlf-is-one-line-end"),
        pytest.param(b"data: a\n\ndata: b", [b"data: a\n\n"], id="unfinished-line"),
        pytest.param(b"data: a\n\ndata: b\n", [b"data: a\n\n"], id="unfinished-event"),
        pytest.param(b"data: a\n\n\n", [b"data: a\n\n", b"\n"], id="a-blank-line-more"),
        pytest.param(b"data: a\\n\\nb\n\n", [b"data: a\\n\\nb\n\n"], id="escaped-line-ends"),
        pytest.param("data: a\u2028\x85\n\n".encode(), ["data: a\u2028\x85\n\n".encode()], id="ls"),
        pytest.param(b"data: a\x0b\x0c\x1c\n\n", [b"data: a\x0b\x0c\x1c\n\n"], id="vt-ff-fs"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_an_event_ends_at_a_blank_line(stream: bytes, events: list[bytes]) -> None:
    found, scanner = scan(RESPONSES, [stream])
    assert [event for _, event in found] == events
    assert scanner.bytes_pending == len(stream) - len(b"".join(events))


def test_a_last_cr_waits_for_the_next_byte_or_the_end() -> None:
    scanner = EventScanner(RESPONSES)
    assert scanner.feed(b"data: a\r\r") == []
    assert shown(scanner.feed(b"\n")) == [(EventKind.CONTENT, b"data: a\r\r\n")]
    assert scanner.feed(b"data: b\r\r") == []
    assert shown(scanner.feed(b"", is_end=True)) == [(EventKind.CONTENT, b"data: b\r\r")]


@pytest.mark.measures
def test_a_large_event_in_small_pieces_takes_linear_time() -> None:
    """16 MiB in 64 KiB pieces: quadratic work would copy 2 GiB and take many seconds."""
    piece = b"x" * 65536
    scanner = EventScanner(RESPONSES)
    began = time.process_time()
    scanner.feed(b'data: {"type":"response.output_text.delta","delta":"')
    for _ in range(256):
        assert scanner.feed(piece) == []
    assert scanner.bytes_pending == 256 * len(piece) + 52
    [(kind, event)] = shown(scanner.feed(b'"}\n\n'))
    assert time.process_time() - began < 2.0
    assert (kind, len(event)) == (EventKind.CONTENT, 256 * len(piece) + 56)
    assert scanner.bytes_pending == 0


################################################################
# WHAT AN EVENT IS
################################################################

CREATED = {"type": "response.created", "sequence_number": 0, "response": {"id": "r"}}
TOOLS = {"tools": [{"type": "response.completed", "error": {"code": "x"}}]}


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        pytest.param(CREATED, EventKind.HANDSHAKE, id="created"),
        pytest.param({"type": "response.in_progress"}, EventKind.HANDSHAKE, id="in-progress"),
        pytest.param({"type": "response.queued"}, EventKind.HANDSHAKE, id="queued"),
        pytest.param({"type": "response.metadata"}, EventKind.HANDSHAKE, id="metadata"),
        pytest.param({"type": "codex.rate_limits"}, EventKind.HANDSHAKE, id="codex"),
        pytest.param({"type": "keepalive"}, EventKind.IDLE, id="keepalive"),
        pytest.param({"type": "response.output_item.added"}, EventKind.CONTENT, id="item"),
        pytest.param({"type": "vendor.new"}, EventKind.CONTENT, id="unknown"),
        pytest.param({"type": "Vendor-Neu/ä"}, EventKind.CONTENT, id="unknown-odd-name"),
        pytest.param({"type": "response.completed.x"}, EventKind.CONTENT, id="longer-name"),
        pytest.param({"type": "response.completed"}, EventKind.SUCCESS, id="completed"),
        pytest.param({"type": "response.incomplete"}, EventKind.SUCCESS, id="incomplete"),
        pytest.param({"type": "response.done"}, EventKind.SUCCESS, id="done"),
        pytest.param({"type": "response.failed"}, EventKind.FAILURE, id="failed"),
        pytest.param({"type": "error"}, EventKind.FAILURE, id="error"),
        pytest.param({"error": {"code": "x"}}, EventKind.FAILURE, id="error-without-type"),
        pytest.param({"error": None, "x": 1}, EventKind.CONTENT, id="null-error"),
        pytest.param({"type": 5}, EventKind.CONTENT, id="type-is-a-number"),
        pytest.param(b"[DONE]", EventKind.DONE, id="[DONE]"),
        pytest.param(b" [DONE]", EventKind.CONTENT, id="blank-[DONE]"),
        pytest.param(b"not json", EventKind.CONTENT, id="no-json"),
        pytest.param(b'["type","response.completed"]', EventKind.CONTENT, id="a-list"),
        pytest.param(CREATED | TOOLS, EventKind.HANDSHAKE, id="lookalike-in-tools"),
        pytest.param(TOOLS | CREATED, EventKind.HANDSHAKE, id="lookalike-before-the-type"),
        pytest.param(
            {"item": {"type": "error"}, "type": "response.output_item.done"},
            EventKind.CONTENT,
            id="item-of-type-error-first",
        ),
        pytest.param(
            {"response": {"id": "r"}, "type": "response.completed"},
            EventKind.SUCCESS,
            id="type-last",
        ),
        pytest.param(
            b'{ "type" : "response.completed" }', EventKind.SUCCESS, id="blanks-everywhere"
        ),
        pytest.param(
            b'{"type":\ndata: "response.completed"\ndata: }', EventKind.SUCCESS, id="three-lines"
        ),
        pytest.param(b'{"\\u0074ype":"error"}', EventKind.FAILURE, id="escaped-name"),
    ],
)
@pytest.mark.parametrize("prefix", [b"", b"event: x\n", b": hello\n", b"id: 7\nretry: 3\n"])
def test_a_responses_event_is_known_by_its_type(
    payload: dict[str, Any] | bytes, kind: EventKind, prefix: bytes
) -> None:
    assert kinds(RESPONSES, prefix + sse_event(payload)) == [kind]
    if isinstance(payload, dict):
        compact = json.dumps(payload, separators=(",", ":")).encode()
        assert kinds(RESPONSES, prefix + b"data:" + compact + b"\r\n\r\n") == [kind]


@pytest.mark.parametrize("call_kind", CallKind)
@pytest.mark.parametrize(
    "event", [b": keepalive\n\n", b"event: ping\n\n", b"id: 3\n\n", b"\n\n", b":\r\n\r\n"]
)
def test_what_carries_no_data_is_no_progress(call_kind: CallKind, event: bytes) -> None:
    scanner = EventScanner(call_kind)
    assert shown(scanner.feed(event)) == [(EventKind.IDLE, event)]
    assert not scanner.has_content


@pytest.mark.parametrize("call_kind", CallKind)
def test_a_byte_order_mark_hides_nothing(call_kind: CallKind) -> None:
    """The standard has one leading mark ignored, so that the first event counts."""
    found, scanner = scan(call_kind, [b"\xef\xbb\xbf" + sse_event(b"[DONE]")])
    assert found == [(EventKind.DONE, b"\xef\xbb\xbfdata: [DONE]\n\n")]
    assert scanner.has_done


def delta(content: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"id": "c", "choices": [{"delta": content, "finish_reason": finish}]}


USAGE = {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
FLAT_ERROR = {"error": {"code": "server_error", "message": "m"}}


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        pytest.param(delta({"role": "assistant"}), EventKind.HANDSHAKE, id="role"),
        pytest.param(delta({"role": "a", "content": ""}), EventKind.HANDSHAKE, id="role-empty"),
        pytest.param(delta({"role": "a", "content": None}), EventKind.HANDSHAKE, id="role-null"),
        pytest.param({"id": "", "choices": []}, EventKind.HANDSHAKE, id="no-choices"),
        pytest.param(delta({"role": "a", "content": "x"}), EventKind.CONTENT, id="content"),
        pytest.param(delta({"reasoning_content": "x"}), EventKind.CONTENT, id="reasoning"),
        pytest.param(delta({"tool_calls": [{"index": 0}]}), EventKind.CONTENT, id="tool-call"),
        pytest.param(delta({}, "stop"), EventKind.CONTENT, id="finish"),
        pytest.param(b"[DONE]", EventKind.DONE, id="[DONE]"),
        pytest.param(FLAT_ERROR, EventKind.FAILURE, id="error"),
        pytest.param({"error": "text"}, EventKind.FAILURE, id="error-text"),
        pytest.param(delta({}) | FLAT_ERROR, EventKind.FAILURE, id="error-in-a-chunk"),
        pytest.param(delta({"content": "x"}) | {"error": None}, EventKind.CONTENT, id="null-error"),
        pytest.param(b"not json", EventKind.CONTENT, id="no-json"),
    ],
)
def test_a_chat_event_is_known_by_what_it_says(
    payload: dict[str, Any] | bytes, kind: EventKind
) -> None:
    assert kinds(CHAT, sse_event(payload)) == [kind]


@pytest.mark.parametrize(
    ("text", "kind", "has_finish", "usage"),
    [
        pytest.param('{"id":"c","error":null}', EventKind.CONTENT, False, None, id="null-error"),
        pytest.param('{"id":"c","error":{"code":"x"}}', EventKind.FAILURE, False, None, id="error"),
        pytest.param('{"id":"c","error": "x"}', EventKind.FAILURE, False, None, id="error-text"),
        pytest.param('{"id":"c","error" : "x"}', EventKind.FAILURE, False, None, id="error-blank"),
        pytest.param(json.dumps(delta({}, "stop")), EventKind.CONTENT, True, None, id="finish"),
        pytest.param(
            '{"id":"c","choices":[{"delta":{},"finish_reason" :  "stop"}]}',
            EventKind.CONTENT,
            True,
            None,
            id="finish-blanks",
        ),
        pytest.param(
            '{"id":"c","choices":[{"delta":{"content":"\\"finish_reason\\":\\"stop\\""}}]}',
            EventKind.CONTENT,
            False,
            None,
            id="finish-lookalike",
        ),
        pytest.param(
            json.dumps({"id": "c", "choices": [], "usage": USAGE}),
            EventKind.CONTENT,
            False,
            Usage(5, 6),
            id="usage",
        ),
        pytest.param(
            '{"id":"c","usage":\t{"prompt_tokens":5,"completion_tokens":6}}',
            EventKind.CONTENT,
            False,
            Usage(5, 6),
            id="usage-tab",
        ),
    ],
)
def test_a_late_chat_event_is_read_as_carefully(
    text: str, kind: EventKind, has_finish: bool, usage: Usage | None
) -> None:
    """After content most events are not parsed; those that matter still are."""
    scanner = EventScanner(CHAT)
    scanner.feed(sse_event(delta({"content": "x"})))
    assert [event.kind for event in scanner.feed(b"data: " + text.encode() + b"\n\n")] == [kind]
    assert (scanner.has_finish, scanner.usage) == (has_finish, usage)


################################################################
# WHAT A STREAM TELLS
################################################################


def test_a_responses_stream_tells_its_id_and_usage() -> None:
    _, scanner = scan(RESPONSES, [sse_event(one) for one in responses_events("a")])
    assert (scanner.response["id"], scanner.usage) == ("resp_1", Usage(3, 4))
    assert scanner.terminal is EventKind.SUCCESS
    assert scanner.failure is None


def test_a_chat_stream_tells_its_usage() -> None:
    _, scanner = scan(CHAT, [sse_event(one) for one in chat_events("a")])
    assert scanner.usage == Usage(3, 4)
    assert scanner.terminal is EventKind.DONE


ERROR = {"code": "slow_down", "message": "m"}


@pytest.mark.parametrize(
    ("call_kind", "payload", "failure"),
    [
        pytest.param(RESPONSES, {"type": "error"} | ERROR, {"type": "error"} | ERROR, id="flat"),
        pytest.param(RESPONSES, {"type": "error", "error": ERROR}, ERROR, id="nested"),
        pytest.param(
            RESPONSES, {"type": "response.failed", "response": {"error": ERROR}}, ERROR, id="failed"
        ),
        pytest.param(
            RESPONSES,
            {"type": "response.failed", "response": {"id": "r"}, "error": ERROR},
            ERROR,
            id="failed-with-the-error-beside",
        ),
        pytest.param(RESPONSES, {"error": ERROR}, ERROR, id="bare"),
        pytest.param(CHAT, {"error": ERROR}, ERROR, id="chat"),
    ],
)
def test_a_failure_tells_its_error(
    call_kind: CallKind, payload: dict[str, Any], failure: dict[str, Any]
) -> None:
    scanner = EventScanner(call_kind)
    scanner.feed(sse_event(payload))
    assert scanner.terminal is EventKind.FAILURE
    assert scanner.failure == failure


@pytest.mark.parametrize("usage", [None, 5, {}, {"input_tokens": "7"}, {"prompt_tokens": None}])
def test_a_malformed_usage_is_none_or_zero(usage: object) -> None:
    scanner = EventScanner(RESPONSES)
    scanner.feed(sse_event({"type": "response.completed", "response": {"usage": usage}}))
    assert scanner.usage in {None, Usage(0, 0)}
    assert scanner.terminal is EventKind.SUCCESS


def test_the_first_terminal_event_counts() -> None:
    scanner = EventScanner(RESPONSES)
    scanner.feed(sse_event({"type": "response.completed"}) + sse_event(b"[DONE]"))
    assert scanner.terminal is EventKind.SUCCESS


@pytest.mark.parametrize(
    ("call_kind", "payloads", "when_clean", "when_cut"),
    [
        pytest.param(RESPONSES, responses_events("a"), True, True, id="responses"),
        pytest.param(RESPONSES, responses_events("a")[:-1], False, False, id="responses-cut"),
        pytest.param(CHAT, chat_events("a"), True, True, id="chat"),
        pytest.param(CHAT, chat_events("a", is_done=False), True, False, id="chat-no-DONE"),
        pytest.param(CHAT, chat_events("a")[:2], False, False, id="chat-cut"),
        pytest.param(CHAT, chat_events()[:2], True, False, id="chat-finish-alone"),
    ],
)
def test_completeness(
    call_kind: CallKind, payloads: Sequence[Any], when_clean: bool, when_cut: bool
) -> None:
    _, scanner = scan(call_kind, [sse_event(one) for one in payloads])
    assert scanner.is_complete(is_clean=True) is when_clean
    assert scanner.is_complete(is_clean=False) is when_cut


################################################################
# THE TERMINAL EVENT OF OURS
################################################################


def failed(scanner: EventScanner) -> dict[str, Any]:
    """Our terminal event, read as a client reads it."""
    event = scanner.failure_event(PoolerError("upstream_stream_truncated"), "abc", scanner.kind)
    [data] = read_slowly(event)
    value = json.loads(data)
    assert isinstance(value, dict)
    return value


NUMBERED = responses_events("a", "b")
KEEPALIVE = {"type": "keepalive", "sequence_number": 5}


@pytest.mark.parametrize(
    ("payloads", "number"),
    [
        pytest.param([], 0, id="nothing-before"),
        pytest.param(NUMBERED[:1], 1, id="after-the-first"),
        pytest.param(NUMBERED[:4], 4, id="after-content"),
        pytest.param([*NUMBERED[:4], {"type": "codex.rate_limits"}], 4, id="last-has-no-number"),
        pytest.param([*NUMBERED[:4], {"type": "vendor.new"}], 4, id="last-content-has-no-number"),
        pytest.param([*NUMBERED[:4], b"not json"], 4, id="last-is-no-json"),
        pytest.param([*NUMBERED[:4], KEEPALIVE], 6, id="last-is-a-numbered-keepalive"),
        pytest.param([{"type": "vendor.new", "sequence_number": "x"}], 0, id="no-number"),
    ],
)
def test_our_failure_has_the_next_sequence_number(payloads: list[Any], number: int) -> None:
    for pieces in ([sse_event(one) for one in payloads], [b"".join(map(sse_event, payloads))]):
        _, scanner = scan(RESPONSES, pieces)
        assert failed(scanner)["sequence_number"] == number


def test_our_failure_is_a_response_failed_about_the_same_response() -> None:
    _, scanner = scan(RESPONSES, [sse_event(one) for one in NUMBERED[:3]])
    event = failed(scanner)
    response = event["response"]
    assert event["type"] == "response.failed"
    assert (response["id"], response["model"], response["created_at"]) == ("resp_1", "m1", 7)
    assert response["status"] == "failed"
    assert response["error"]["code"] == "upstream_stream_truncated"
    assert kinds(RESPONSES, sse_event(event)) == [EventKind.FAILURE]


def test_our_chat_failure_is_an_error_and_no_end() -> None:
    _, scanner = scan(CHAT, [sse_event(chat_events("a")[0])])
    event = failed(scanner)
    assert list(event) == ["error"]
    assert event["error"]["code"] == "upstream_stream_truncated"
    assert set(event["error"]) == {"message", "type", "code", "param"}


################################################################
# LIMITS
################################################################

LIMIT = 1024
CONTENT = {"type": "response.output_text.delta", "sequence_number": 1, "delta": "a"}
DONE = sse_event({"type": "response.completed", "sequence_number": 3})


def unfinished(byte_count: int) -> bytes:
    """So many bytes of an event that wants only its blank line."""
    start, end = b'data: {"type":"vendor.big","x":"', b'"}'
    return start + b"x" * (byte_count - len(start) - len(end)) + end


FITS, TOO_LARGE = True, False
WHOLE = (1 << 20) + len(b"\n\n" + DONE)  # of an event and the end that comes with it


@pytest.mark.parametrize("has_content", [True, False], ids=["after-content", "before-content"])
@pytest.mark.parametrize(
    ("limits", "byte_count", "fits"),
    [
        pytest.param({"event_bytes_max": LIMIT}, LIMIT, FITS, id="event-at-limit"),
        pytest.param({"event_bytes_max": LIMIT}, LIMIT + 1, TOO_LARGE, id="event-past-limit"),
        pytest.param({"events_bytes_max": 4 * WHOLE}, 1 << 20, FITS, id="all-at-limit"),
        pytest.param({"events_bytes_max": 4 * WHOLE}, WHOLE + 1, TOO_LARGE, id="all-past-limit"),
    ],
)
async def test_an_unfinished_event_is_held_up_to_its_limit(
    autojump_clock: MockClock,
    limits: dict[str, float],
    byte_count: int,
    fits: bool,
    has_content: bool,
) -> None:
    assert autojump_clock.autojump_threshold == 0
    first = [CREATED, CONTENT][: 1 + has_content]
    if not has_content and "events_bytes_max" in limits:  # the held one counts with it
        limits = {"events_bytes_max": 4 * (WHOLE + len(sse_event(CREATED)))}
    big = unfinished(byte_count)
    go_on, finish = trio.Event(), trio.Event()
    end: list[Step] = [Wait(finish), Send(chunk(b"\n\n" + DONE) + LAST_CHUNK)]
    pieces = [Send(chunk(big[at : at + 8000])) for at in range(0, len(big), 8000)]
    async with opened_world(describe("a", limits=limits)) as world:
        start_steps = sse_steps(*first, Wait(go_on), is_whole=False)
        world.upstreams["a"].plays([*start_steps, *pieces, *end])
        client = await world.connect()
        await client.send(ask_responses())
        for event in (go_on, finish):
            await world.settle()
            event.set()
        response = await client.read_response()
        status, code = (502, "upstream_invalid_response")
        if "events_bytes_max" in limits:
            status, code = (503, "pool_busy")
        if not (fits or has_content):
            assert (response.status, response.error["code"]) == (status, code)
            return
        start = b"".join(map(sse_event, first))
        assert response.body.startswith(start)
        tail = response.body.removeprefix(start)
        if fits:
            assert tail == big + b"\n\n" + DONE
        else:
            assert f'"code": "{code}"'.encode() in tail
            assert kinds(RESPONSES, tail) == [EventKind.FAILURE]


IDLE = {"type": "keepalive"}


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(b": a\n\n", id="a-comment"),
        pytest.param(b": a\n\n: b\n\n", id="two-comments"),
        pytest.param(sse_event(IDLE) * 3, id="three-keepalives"),
        pytest.param(b"\n", id="a-blank-line"),
    ],
)
@pytest.mark.parametrize("has_content", [True, False], ids=["after-content", "before-content"])
async def test_comments_and_keepalives_are_no_events_to_the_timers(
    world: World, noise: bytes, has_content: bool
) -> None:
    """Between events 300 s, first event 120 s: noise every 50 s does not move them."""
    first = sse_event(CONTENT) if has_content else b": hi\n\n"
    noisy: list[Step] = [Pause(50), Send(chunk(noise))] * 10
    for upstream in world.upstreams.values():
        upstream.always = [Send(sse_head() + chunk(first)), *noisy, Stall()]
    response = await world.ask(ask_responses())
    assert response.ended_at == (300.0 if has_content else 120.0)
    assert world.records[0]["code"] == "upstream_timeout"
