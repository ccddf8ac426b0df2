"""Proves that a hostile upstream hurts nobody: over real sockets, byte for byte.

Method: one real process, and a real upstream that answers with raw bytes, whole and in pieces.
What the client gets is parsed strictly: one answer for its request, with nothing of the upstream's
head but what is on the allow-list.  The connection to the upstream is used again only after an
answer that is beyond doubt, so a canary request that follows must get its own answer, on a new
connection.
"""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from typing import Final

import pytest

from pooler import ERRORS
from tests.support.hostile_bytes import BAD_RESPONSES
from tests.support.memory_sockets import post, request
from tests.support.raw_http import OK, OPERATOR, Answer, Wire, opened_wire, split_responses
from tests.support.world import chunk

METRICS: Final = request("GET", "/metrics", key=OPERATOR, headers=[("Connection", "close")])
ASK: Final = post(
    "/v1/responses", b'{"model": "m1", "input": "hi"}', headers=[("Connection", "close")]
)
STREAM: Final = post(
    "/v1/responses",
    b'{"model": "m1", "input": "hi", "stream": true}',
    headers=[("Connection", "close")],
)
TYPE: Final = b"Content-Type: application/json"
EVENTS: Final = b"Content-Type: text/event-stream"
SIZED: Final = b"Content-Length: 10"
CHUNKED: Final = b"Transfer-Encoding: chunked"
BODY: Final = b'{"id":"r"}'
END: Final = b"0\r\n\r\n"
SMUGGLED: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"
BEGUN: Final = (
    b'data: {"type":"response.created","response":{"id":"r"},"sequence_number":0}\n\n'
    b'data: {"type":"response.output_text.delta","delta":"x","sequence_number":1}\n\n'
)
DONE: Final = (
    b'data: {"type":"response.completed","response":{"id":"r"},"sequence_number":2}\n\n'
    b"data: [DONE]\n\n"
)
SHOWN: Final = {  # all that a client may see of an answer's head
    "content-type", "content-length", "x-request-id", "date", "connection", "transfer-encoding",
    "cache-control", "x-content-type-options", "retry-after", "x-should-retry", "x-accel-buffering",
    "location",
}  # fmt: skip


def head(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([status, *lines, b"", b""])


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    limits = {"demotion_seconds": 0, "cooldown_seconds": 1}
    with opened_wire(tmp_path_factory.mktemp("wire"), limits) as opened:
        yield opened


def answers_to(
    wire: Wire, raw: bytes, piece: int, asked: bytes = ASK, *, keeps: bool = False
) -> Answer:
    """What one client sees; the upstream was asked once, and the next client is not hurt."""

    def play(caller: socket.socket) -> bool:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(raw), piece):
            caller.sendall(raw[at : at + piece])
        return keeps

    wire.upstream.answer = play
    [answer] = split_responses(wire.say(asked))
    assert len(wire.upstream.take()) == 1
    assert set(answer.headers) - SHOWN == set()
    assert b"smuggled" not in answer.body
    check_canary(wire)
    return answer


def check_canary(wire: Wire) -> None:
    """The next client gets its own answer, whole."""
    wire.upstream.answer = wire.upstream.well
    [canary] = split_responses(wire.say(ASK))
    assert (canary.status, canary.body) == (200, BODY)
    assert len(wire.upstream.take()) == 1


def code_of(answer: Answer) -> bytes:
    return answer.body.partition(b'"code": "')[2].partition(b'"')[0]


################################################################
# HEADS
################################################################

REFUSED: Final[dict[str, bytes]] = {
    **{f"head-{name}": raw + b"\r\n\r\n" + SMUGGLED for name, raw in BAD_RESPONSES.items()},
    "9-50000-continues": head(status=b"HTTP/1.1 100 Continue") * 50_000 + OK,
    "9-nine-interim-answers": head(status=b"HTTP/1.1 103 Early Hints") * 9 + OK,
    "9-status-999": head(TYPE, SIZED, status=b"HTTP/1.1 999 Odd") + BODY,
    "9-status-600": head(TYPE, SIZED, status=b"HTTP/1.1 600 Odd") + BODY,
    "9-version-9.9": head(TYPE, SIZED, status=b"HTTP/9.9 200 OK") + BODY,
    "9-version-1.2": head(TYPE, SIZED, status=b"HTTP/1.2 200 OK") + BODY,
    "9-escape-in-the-reason": head(TYPE, SIZED, status=b"HTTP/1.1 200 \x1b]0;x\x07") + BODY,
    "9-nul-in-the-reason": head(TYPE, SIZED, status=b"HTTP/1.1 200 a\0b") + BODY,
    "9-length-then-chunks": head(TYPE, SIZED, CHUNKED) + chunk(BODY) + END,
    "9-chunks-then-length": head(TYPE, CHUNKED, SIZED) + chunk(BODY) + END,
    "101-unasked": head(b"Upgrade: websocket", b"Connection: Upgrade",
                        status=b"HTTP/1.1 101 Switching Protocols") + SMUGGLED,
    "101-bare": head(status=b"HTTP/1.1 101 x") + SMUGGLED,
    "lengths-that-differ": head(TYPE, SIZED, b"Content-Length: 11") + BODY,
    "length-twice": head(TYPE, SIZED, b"Content-Length: 11") + BODY,
    "length-plus": head(TYPE, b"Content-Length: +10") + BODY,
    "length-list": head(TYPE, b"Content-Length: 10, 11") + BODY,
    "bare-lf": head(TYPE, SIZED).replace(b"\r\n", b"\n") + BODY,
    "fold": head(TYPE, b"X-A: b", b" c", SIZED) + BODY,
    "escape-in-a-value": head(TYPE, SIZED, b"X-A: \x1b[2J") + BODY,
    "head-of-60-KB": head(TYPE, SIZED, b"X-A: " + b"y" * 60_000) + BODY,
    "head-without-an-end": b"HTTP/1.1 200 OK\r\n" + b"X-A: y\r\n" * 10_000,
    "no-http": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "http-2": b"\0\0\x12\4\0\0\0\0\0\0\3\0\0\0\x64\r\n\r\n",
    "gzip-unasked": head(TYPE, b"Content-Encoding: gzip", b"Content-Length: %d"
                         % len(gzip.compress(BODY, mtime=0))) + gzip.compress(BODY, mtime=0),
    "gzip-of-events": head(EVENTS, b"Content-Encoding: gzip") + gzip.compress(DONE, mtime=0),
}  # fmt: skip


def pieces_of(raw: bytes) -> list[int]:
    return [1 << 22, 1 if len(raw) < 600 else 1021]


@pytest.mark.parametrize("case", REFUSED)
def test_a_head_that_is_in_doubt_is_a_502(case: str, wire: Wire) -> None:
    for piece in pieces_of(REFUSED[case]):
        answer = answers_to(wire, REFUSED[case], piece)
        assert answer.status == 502
        assert code_of(answer) in {b"upstream_invalid_response", b"upstream_unreachable"}


################################################################
# BODIES
################################################################

BODIES: Final[dict[str, tuple[bytes, int, bytes | None]]] = {
    "chunks": (head(TYPE, CHUNKED) + chunk(BODY) + END, 200, BODY),
    "until-the-end": (head(TYPE) + BODY, 200, BODY),
    "interim-answers": (head(status=b"HTTP/1.1 103 Early") * 8 + head(TYPE, SIZED) + BODY, 200,
                        BODY),
    "behind-a-length": (head(TYPE, SIZED) + BODY + SMUGGLED, 200, BODY),
    "behind-the-chunks": (head(TYPE, CHUNKED) + chunk(BODY) + END + SMUGGLED, 200, BODY),
    "trailers": (head(TYPE, CHUNKED) + chunk(BODY) + b"0\r\nSet-Cookie: a=b\r\n\r\n", 200, BODY),
    "headers-of-the-upstream": (
        head(TYPE, SIZED, b"Set-Cookie: smuggled=1", b"Server: x", b"Strict-Transport-Security: x",
             b"Access-Control-Allow-Origin: *", b"Location: http://evil/", b"Refresh: 0",
             b"Connection: keep-alive, x", b"Alt-Svc: h2") + BODY, 200, BODY),
    "length-cut": (head(TYPE, SIZED) + BODY[:5], 502, None),
    "chunks-cut": (head(TYPE, CHUNKED) + chunk(BODY), 502, None),
    "chunk-cut": (head(TYPE, CHUNKED) + b"a\r\n" + BODY[:5], 502, None),
    "extension": (head(TYPE, CHUNKED) + b"a;x=\0y\r\n" + BODY + b"\r\n" + END, 502, None),
    "size-of-20-digits": (head(TYPE, CHUNKED) + b"f" * 20 + b"\r\n" + BODY, 502, None),
    "size-with-a-sign": (head(TYPE, CHUNKED) + b"+a\r\n" + BODY + b"\r\n" + END, 502, None),
    "bare-lf-behind-the-size": (head(TYPE, CHUNKED) + b"a\n" + BODY + b"\r\n" + END, 502, None),
    "trailer-with-bare-lf": (head(TYPE, CHUNKED) + chunk(BODY) + b"0\r\nA: b\n\r\n", 502, None),
    **{f"redirect-{status}": (
        head(TYPE, SIZED, b"Location: http://127.0.0.1:1/smuggled",
             status=b"HTTP/1.1 %d Moved" % status) + BODY, 502, None)
       for status in (301, 302, 303, 307, 308)},
    "204": (head(status=b"HTTP/1.1 204 No Content") + SMUGGLED, 502, None),
    "304": (head(SIZED, status=b"HTTP/1.1 304 Not Modified") + SMUGGLED, 502, None),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_a_body_is_whole_or_the_answer_is_a_502(case: str, wire: Wire) -> None:
    raw, status, body = BODIES[case]
    for piece in pieces_of(raw):
        keeps = status == 200 and case != "until-the-end"
        answer = answers_to(wire, raw, piece, keeps=keeps)
        assert answer.status == status
        assert answer.body == body or (body is None and code_of(answer))
        assert answer.headers.get("location") is None


@pytest.mark.parametrize("behind", [SMUGGLED, b"\r\n", b"0\r\n\r\n", b"\0"])
def test_a_connection_with_bytes_behind_the_answer_is_not_used_again(
    behind: bytes, wire: Wire
) -> None:
    wire.upstream.plays(OK + behind, keeps=True)
    counts = []
    for _ in range(3):
        [answer] = split_responses(wire.say(ASK))
        assert (answer.status, answer.body) == (200, BODY)
        counts.append(wire.upstream.opened_count)
    assert len(wire.upstream.take()) == 3
    assert counts == [*range(counts[0], counts[0] + 3)]


def test_a_connection_after_a_whole_answer_is_used_again(wire: Wire) -> None:
    check_canary(wire)
    before = wire.upstream.opened_count
    check_canary(wire)
    assert wire.upstream.opened_count == before


################################################################
# STREAMS
################################################################

STREAMS: Final[dict[str, tuple[bytes, bool]]] = {
    "whole": (head(EVENTS, CHUNKED) + chunk(BEGUN + DONE) + END, True),
    "until-the-end": (head(EVENTS) + BEGUN + DONE, True),
    "behind-the-end": (head(EVENTS) + BEGUN + DONE + b'data: {"type":"more"}\n\n', True),
    "behind-the-chunks": (head(EVENTS, CHUNKED) + chunk(BEGUN + DONE) + END + SMUGGLED, True),
    "cut": (head(EVENTS) + BEGUN, False),
    "cut-in-an-event": (head(EVENTS) + BEGUN + DONE[:30], False),
    "chunks-cut": (head(EVENTS, CHUNKED) + chunk(BEGUN), False),
    "chunks-ended": (head(EVENTS, CHUNKED) + chunk(BEGUN) + END, False),
    "bad-chunk": (head(EVENTS, CHUNKED) + chunk(BEGUN) + b"1;a\r\nx\r\n", False),
    "length-cut": (head(EVENTS, b"Content-Length: 999") + BEGUN, False),
    "a-head-within": (head(EVENTS) + BEGUN + b"\r\n" + b"HTTP/1.1 200 OK\r\n\r\n", False),
}  # fmt: skip


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_ends_with_one_terminal_event(case: str, wire: Wire) -> None:
    raw, is_whole = STREAMS[case]
    for piece in [*pieces_of(raw), 97]:
        answer = answers_to(wire, raw, piece, STREAM)
        if answer.status == 502:  # the fault came with the first content: nothing was committed
            assert case == "bad-chunk"
            assert code_of(answer) == b"upstream_invalid_response"
            continue
        assert answer.status == 200
        assert answer.body.count(b'"response.completed"') == is_whole
        assert answer.body.count(b'"response.failed"') == (not is_whole)
        assert answer.body.startswith(BEGUN)


@pytest.mark.parametrize("status", [500, 503, 502, 529])
@pytest.mark.parametrize("code", sorted(set(ERRORS) - {"invalid_api_key", "usage_limit_reached"}))
def test_an_upstream_that_fails_does_not_speak_in_the_poolers_name(
    code: str, status: int, wire: Wire
) -> None:
    """Whatever it calls its error: no header of ours follows, and it is counted apart."""
    told = json.dumps({"error": {"message": "said", "type": code, "code": code}}).encode()
    length = b"Content-Length: %d" % len(told)
    line = b"HTTP/1.1 %d X\r\n" % status
    raw = line + head(TYPE, length).partition(b"\r\n")[2] + told
    answer = answers_to(wire, raw, 1 << 20, keeps=True)
    assert answer.status == status
    assert code_of(answer) == b"upstream_error"
    assert not {"retry-after", "www-authenticate", "upgrade", "allow"} & answer.headers.keys()
    [metrics] = split_responses(wire.say(METRICS))
    counted = b'code="upstream:%b"' % code.encode()
    assert counted in metrics.body or b'code="upstream:other"' in metrics.body
    assert b'code="%b"' % code.encode() not in metrics.body.replace(b'code="upstream_', b"")


def test_a_silent_upstream_is_not_read_as_an_answer(wire: Wire) -> None:
    """It takes the request and hangs up: an upstream that may be at work is not asked again."""
    assert answers_to(wire, b"", 1).status == 502
