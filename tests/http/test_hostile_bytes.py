"""Proves that hostile requests are refused over real sockets, and that nothing is smuggled.

Method: one real process, one real upstream that keeps raw bytes.  Each vector goes out whole and
byte by byte (the long ones in small pieces), with a canary request glued to its end.  A refusal is
one answer and the end of the connection, and the upstream hears nothing; what is accepted reaches
it as exactly the requests that the vector's row says, in the pooler's own strict form.  The vectors
are ours for each leniency that was measured in h11 and trio-websocket, and the tables that the
tests in memory use.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from tests.support.frames import CLOSE, CONTINUATION, PING, TEXT, frame, split_frame
from tests.support.hostile_bytes import (
    BAD_CHUNKS,
    BAD_LINES,
    BAD_STARTS,
    BODY,
    HOSTILE_FRAMES,
    HOSTS,
    NOT_JSON,
    SMUGGLING,
    head_of,
)
from tests.support.memory_sockets import KEY, post, request
from tests.support.memory_websockets import CLIENT_KEY
from tests.support.raw_http import Answer, Wire, opened_wire, read_all, split_responses

CANARY_BODY: Final = b'{"model": "m1", "input": "canary"}'
CANARY: Final = post("/v1/responses", CANARY_BODY)
PASSED: Final = (
    b"host", b"accept-encoding", b"authorization", b"user-agent", b"content-type",
    b"content-length",
)  # fmt: skip
SHORT: Final = 2048  # up to here a vector goes byte by byte, longer ones in pieces of that
SIZED: Final = b"Content-Length: %d" % len(BODY)
CHUNKED: Final = b"Transfer-Encoding: chunked"
END: Final = b"0\r\n\r\n"


def start(line: bytes, *lines: bytes) -> bytes:
    return head_of(*lines, start=line)


def chunks(*sizes: bytes, data: bytes = BODY) -> bytes:
    """A body of one chunk, whose size line is as given."""
    return b"".join(size + b"\r\n" + data + b"\r\n" for size in sizes) + END


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with opened_wire(tmp_path_factory.mktemp("wire")) as opened:
        yield opened


def pieces_of(raw: bytes) -> tuple[int, int]:
    return (1 << 22, 1 if len(raw) <= SHORT else SHORT)


def check(wire: Wire, raw: bytes, statuses: list[int], bodies: list[bytes]) -> list[Answer]:
    """The statuses that the client gets, and the bodies of the requests that the upstream gets."""
    answers: list[Answer] = []
    for piece in pieces_of(raw):
        answers = [one for one in split_responses(wire.say(raw, piece)) if one.status != 100]
        asked = wire.upstream.take()
        assert [answer.status for answer in answers] == statuses
        assert [one.body for one in asked] == bodies
        for one in asked:
            assert one.line == b"POST /v1/responses HTTP/1.1"
            assert set(one.names) <= {*PASSED, b"accept"}
        assert all(answer.body for answer in answers)
    return answers


def check_refused(wire: Wire, raw: bytes, status: int) -> None:
    [answer] = check(wire, raw + CANARY, [status], [])
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/json"


################################################################
# EACH LENIENCY OF H11
################################################################

LF_HEAD: Final = head_of(SIZED).replace(b"\r\n", b"\n")
GET: Final = b"GET /v1/models HTTP/1.1"
LENIENT: Final[dict[str, tuple[bytes, int]]] = {
    "1-length-then-chunks": (head_of(SIZED, CHUNKED) + chunks(b"1e"), 400),
    "1-chunks-then-length": (head_of(CHUNKED, SIZED) + chunks(b"1e"), 400),
    "1-chunks-then-length-0": (head_of(CHUNKED, b"Content-Length: 0") + chunks(b"1e"), 400),
    "2-bare-lf-everywhere": (LF_HEAD + BODY, 400),
    "2-bare-lf-once": (head_of(SIZED).replace(b"\r\nHost", b"\nHost", 1) + BODY, 400),
    "2-bare-lf-at-the-end": (head_of(SIZED)[:-2] + b"\n" + BODY, 400),
    "2-bare-lf-makes-a-field": (head_of(SIZED, b"X-A: b\n" + CHUNKED) + BODY, 400),
    "2-bare-cr-makes-a-field": (head_of(SIZED, b"X-A: b\r" + CHUNKED) + BODY, 400),
    "2-bare-lf-in-a-trailer": (
        head_of(CHUNKED) + chunks(b"1e")[:-2] + b"X-A: b\n" + CHUNKED + b"\r\n\r\n", 400),
    "3-fold": (head_of(SIZED, b"X-A: b", b"\tc") + BODY, 400),
    "3-fold-of-the-coding": (head_of(b"Transfer-Encoding:", b" chunked") + chunks(b"1e"), 400),
    "3-fold-of-the-length": (head_of(b"Content-Length: 3", b" 0") + BODY, 400),
    "4-chunks-in-1.0": (start(b"POST /v1/responses HTTP/1.0", CHUNKED) + chunks(b"1e"), 400),
    **{f"4-version-{version}": (start(b"POST /v1/responses HTTP/" + version.encode(), SIZED)
       + BODY, 400) for version in ("0.9", "1.2", "2.0", "9.9", "1.01", "01.1", "1,1", "")},
    "4-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400),
    "5-a-field-of-60-KB": (head_of(SIZED, b"X: " + b"y" * 60_000) + BODY, 431),
    "5-5000-fields": (head_of(SIZED, *[b"X: y"] * 5000) + BODY, 431),
    "5-a-field-too-many": (head_of(SIZED, *[b"X: y"] * 97) + BODY, 431),
    "6-escape-in-a-value": (head_of(SIZED, b"X-A: \x1b[31m") + BODY, 400),
    "6-delete-in-a-value": (head_of(SIZED, b"X-A: \x7f") + BODY, 400),
    "6-host-evil": (head_of(SIZED, b"Host: a b/evil@x", host=False) + BODY, 400),
    "6-host-empty": (head_of(SIZED, b"Host:", host=False) + BODY, 400),
    **{f"6-target-{target.decode()}": (start(b"POST " + target + b" HTTP/1.1", SIZED) + BODY, 400)
       for target in (b"/v1/responses#a", b'/v1/"', b"localhost:80", b"v1/responses", b"*",
                      b"http://localhost/v1/responses", b"/v1/|", b"/v1/^", b"/v1/`")},
    "7-length-list": (head_of(b"Content-Length: 30, 30") + BODY, 400),
    "7-length-twice": (head_of(SIZED, SIZED) + BODY, 400),
    "7-length-with-zeros": (head_of(b"Content-Length: 0030") + BODY, 400),
    "7-length-with-plus": (head_of(b"Content-Length: +30") + BODY, 400),
    "7-length-negative": (head_of(b"Content-Length: -1") + BODY, 400),
    "8-extension": (head_of(CHUNKED) + chunks(b"1e;a=b"), 400),
    "8-extension-with-cr": (head_of(CHUNKED) + chunks(b"1e;a\rb"), 400),
    "8-extensions-of-2-MB": (head_of(CHUNKED) + (b"1;" + b"x" * 4000 + b"\r\n{\r\n") * 500, 400),
    "8-blank-behind-the-size": (head_of(CHUNKED) + chunks(b"1e "), 400),
    "8-size-of-20-digits": (head_of(CHUNKED) + chunks(b"0" * 18 + b"1e"), 400),
    "8-size-with-a-sign": (head_of(CHUNKED) + chunks(b"+1e"), 400),
    "8-trailer-of-20-KB": (
        head_of(CHUNKED) + chunks(b"1e")[:-2] + b"X: " + b"y" * 20_000 + b"\r\n\r\n", 400),
    "9-leading-line-end": (b"\r\n" + head_of(SIZED) + BODY, 400),
    "9-second-key": (head_of(SIZED, b"Authorization: Bearer nobody-0123456789") + BODY, 400),
    "9-key-twice": (head_of(SIZED, b"authorization: Bearer " + KEY.encode()) + BODY, 400),
    "expectation-of-nobody": (head_of(SIZED, b"Expect: the-worst") + BODY, 417),
    "length-beyond": (head_of(b"Content-Length: 33554433") + BODY, 413),
    "target-beyond": (start(b"GET /" + b"a" * 9000 + b" HTTP/1.1"), 414),
    "no-key": (post("/v1/responses", BODY, key=None), 401),
    "key-of-nobody": (post("/v1/responses", BODY, key="nobodys-key-0123456789"), 401),
    "foreign-host": (head_of(SIZED, b"Host: evil.example", host=False) + BODY, 403),
    "foreign-origin": (head_of(SIZED, b"Origin: http://evil.example") + BODY, 403),
}  # fmt: skip
TABLES: Final[dict[str, tuple[bytes, int]]] = {
    **{f"start-{name}": (head_of(start=raw), 400) for name, raw in BAD_STARTS.items()},
    **{f"lines-{name}": (head_of(*lines), 400) for name, lines in BAD_LINES.items()},
    **{f"host-{raw!r}": (head_of(b"Host: " + raw, host=False), 400) for raw in HOSTS},
    **{f"chunk-{name}": (head_of(CHUNKED) + raw, 400) for name, raw in BAD_CHUNKS.items()},
    **{f"smuggling-{name}": vector for name, vector in SMUGGLING.items()},
}


@pytest.mark.parametrize("case", LENIENT)
def test_what_h11_lets_pass_is_refused(case: str, wire: Wire) -> None:
    check_refused(wire, *LENIENT[case])


@pytest.mark.parametrize("case", TABLES)
def test_a_refusal_is_one_answer_and_the_end(case: str, wire: Wire) -> None:
    check_refused(wire, *TABLES[case])


################################################################
# WHAT IS ACCEPTED
################################################################


class Row(NamedTuple):
    """A vector, the statuses of its own answers, and the bodies that may go upstream."""

    raw: bytes
    statuses: list[int]
    bodies: list[bytes]


ACCEPTED: Final[dict[str, Row]] = {
    "length": Row(head_of(SIZED) + BODY, [200], [BODY]),
    "length-with-blanks": Row(head_of(b"Content-Length:\t 30 \t") + BODY, [200], [BODY]),
    "chunk": Row(head_of(CHUNKED) + chunks(b"1e"), [200], [BODY]),
    "chunk-upper-case": Row(head_of(b"transfer-encoding: CHUNKED") + chunks(b"0001E"), [200],
                            [BODY]),
    "chunks-of-one": Row(
        head_of(CHUNKED) + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + END, [200], [BODY]),
    "trailers-dropped": Row(
        head_of(CHUNKED) + chunks(b"1e")[:-2] + b"Authorization: Bearer x\r\nX-A: b\r\n\r\n",
        [200], [BODY]),
    "trailer-that-frames": Row(
        head_of(CHUNKED) + chunks(b"1e")[:-2] + b"Content-Length: 5\r\n\r\n", [200], [BODY]),
    "a-request-in-the-body": Row(
        post("/v1/responses", {"model": "m1", "input": CANARY.decode()}), [200],
        [post("/v1/responses", {"model": "m1", "input": CANARY.decode()}).split(b"\r\n\r\n", 1)[1]]
    ),
    "expect": Row(head_of(SIZED, b"Expect: 100-continue") + BODY, [200], [BODY]),
    "two": Row((head_of(SIZED) + BODY) * 2, [200, 200], [BODY, BODY]),
    "1.0-kept": Row(
        start(b"POST /v1/responses HTTP/1.0", SIZED, b"Connection: keep-alive") + BODY, [200],
        [BODY]),
    "10-upgrade-of-a-post": Row(
        head_of(SIZED, b"Connection: Upgrade", b"Upgrade: websocket") + BODY, [200], [BODY]),
    "10-upgrade-to-h2c": Row(
        head_of(SIZED, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
                b"HTTP2-Settings: AAMAAABkAAQAAP__") + BODY, [200], [BODY]),
    "hop-by-hop-and-forwarded": Row(
        head_of(SIZED, b"Connection: keep-alive, authorization", b"TE: trailers", b"Cookie: a=b",
                b"X-Forwarded-For: 1.2.3.4", b"X-HTTP-Method-Override: GET",
                b"X-Original-URL: /admin") + BODY, [200], [BODY]),
    "a-query": Row(start(b"POST /v1/responses?a=http://evil/ HTTP/1.1", SIZED) + BODY, [200],
                  [BODY]),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_accepted_goes_up_once_and_in_one_form(case: str, wire: Wire) -> None:
    raw, statuses, bodies = ACCEPTED[case]
    last = CANARY.replace(b"Host: ", b"Connection: close\r\nHost: ", 1)
    check(wire, raw + last, [*statuses, 200], [*bodies, CANARY_BODY])


def test_the_body_of_a_get_is_no_request(wire: Wire) -> None:
    """It is not read: the connection ends with the answer."""
    [answer] = check(wire, start(GET, b"Content-Length: %d" % len(CANARY)) + CANARY, [200], [])
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("case", NOT_JSON)
def test_what_python_takes_for_json_goes_nowhere(case: str, wire: Wire) -> None:
    """The request was well framed, so the connection may go on: to the canary, and no further."""
    raw = post("/v1/responses", NOT_JSON[case]) + CANARY.replace(
        b"Host: ", b"Connection: close\r\nHost: ", 1
    )
    answers = check(wire, raw, [400, 200], [CANARY_BODY])
    assert b'"invalid_json"' in answers[0].body


@pytest.mark.parametrize("step", [1, 7, 100])
def test_a_request_cut_off_has_no_effect(step: int, wire: Wire) -> None:
    """What was sent is a good request without its end; then the client ends its side."""
    for whole in (head_of(SIZED) + BODY, head_of(CHUNKED) + chunks(b"1e")):
        for end in range(1, len(whole), 23):
            with wire.connect() as client:
                for at in range(0, end, step):
                    client.sendall(whole[at : min(end, at + step)])
                client.shutdown(socket.SHUT_WR)
                answers = split_responses(read_all(client))
            assert [answer.status for answer in answers] in ([], [400], [408])
    assert wire.upstream.take() == []


################################################################
# WEBSOCKETS
################################################################

OPENING: Final = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": CLIENT_KEY,
}


def opening(path: str = "/v1/responses", *, key: str = KEY, **changes: str) -> bytes:
    """A handshake; a change is named with underscores, and an empty one takes the field away."""
    fields = OPENING | {name.replace("_", "-"): value for name, value in changes.items()}
    host = fields.pop("Host", "localhost")
    pairs = [(name, value) for name, value in fields.items() if value]
    return request("GET", path, key=key, headers=pairs, host=host)


HANDSHAKES: Final[dict[str, tuple[bytes, int]]] = {
    "1-foreign-host": (opening(Host="evil.example"), 403),
    "1-foreign-origin": (opening(Origin="http://evil.example"), 403),
    "1-null-origin": (opening(Origin="null"), 403),
    "1-other-path": (opening("/v1/realtime"), 404),
    "1-no-key": (opening(key="nobodys-key-0123456789"), 401),
    "2-nonce-short": (opening(Sec_WebSocket_Key="YQ=="), 400),
    "2-nonce-long": (opening(Sec_WebSocket_Key=CLIENT_KEY[:-2] * 9 + "=="), 400),
    "2-nonce-no-base64": (opening(Sec_WebSocket_Key="!" * 22 + "=="), 400),
    "2-nonce-missing": (opening(Sec_WebSocket_Key=""), 400),
    "version-12": (opening(Sec_WebSocket_Version="12"), 426),
    "version-twice": (opening(Sec_WebSocket_Version="13, 13"), 426),
    "no-connection": (opening(Connection="keep-alive"), 426),
    "another-upgrade": (opening(Upgrade="h2c"), 426),
    "http-1.0": (opening().replace(b"HTTP/1.1", b"HTTP/1.0"), 426),
    "with-a-body": (opening(Content_Length=str(len(BODY))) + BODY, 400),
}


@pytest.mark.parametrize("case", HANDSHAKES)
def test_a_strange_handshake_opens_nothing(case: str, wire: Wire) -> None:
    raw, status = HANDSHAKES[case]
    for piece in pieces_of(raw):
        answers = split_responses(wire.say(raw + b"\0\r\n\r\n", piece))  # ends there
        assert [answer.status for answer in answers][:1] == [status]
        assert [answer.status for answer in answers][1:] in ([], [400])
        assert wire.upstream.take() == []


FRAMES: Final[dict[str, tuple[bytes, int | None]]] = {
    **HOSTILE_FRAMES,
    "3-fragments-of-nothing": (
        frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 5000, 1008),
    "4-tiny-fragments": (
        frame(TEXT, b"{", fin=False) + frame(CONTINUATION, b" ", fin=False) * 5000, 1008),
    "5-length-of-2-to-62": (b"\x81\xff\x40" + bytes(7) + b"abcd", 1009),
    "5-100-MB": (b"\x81\xff" + (100 << 20).to_bytes(8, "big") + b"abcd" + b"x" * 100, 1009),
    "5-pings-in-a-message": (frame(TEXT, b"{", fin=False) + frame(PING) * 5000, 1008),
}  # fmt: skip


@pytest.mark.parametrize("case", FRAMES)
def test_a_hostile_frame_goes_nowhere(case: str, wire: Wire) -> None:
    raw, code = FRAMES[case]
    for piece in pieces_of(raw):
        with wire.connect() as client:
            client.sendall(opening())
            said = b""
            while b"\r\n\r\n" not in said:
                said += client.recv(65536)
            assert said.startswith(b"HTTP/1.1 101 ")
            try:
                for at in range(0, len(raw), piece):
                    client.sendall(raw[at : at + piece])
                if "then the end" in case:
                    client.shutdown(socket.SHUT_WR)
            except OSError:  # refused before the end
                assert code is not None
            assert close_code(client, said.partition(b"\r\n\r\n")[2]) == code
        assert wire.upstream.take() == []


def close_code(client: socket.socket, unread: bytes) -> int | None:
    """Of the Close frame that comes, which is answered; behind it there must be nothing."""
    while (taken := split_frame(unread)) is None or taken[0] != CLOSE:
        if taken is not None:
            unread = taken[4]
            continue
        received = client.recv(65536)
        if not received:
            return None
        unread += received
    assert taken[4] == b"", "something follows the Close"
    client.close()
    return int.from_bytes(taken[3][:2], "big") if taken[3] else None
