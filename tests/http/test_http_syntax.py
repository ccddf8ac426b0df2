"""Proves that bytes are understood in exactly one way, or refused, and then the connection ends.

Method: tables of heads and chunked bodies that other readers take differently; every cut of the
good ones; a differential against h11, the parser of http.server and a naive one; and the same
attacks on a whole server, whose upstream must see nothing of them.
"""

from __future__ import annotations

import http.client
import io
import itertools
import re
import time
from collections.abc import Iterable
from typing import Final

import h11
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

import pooler
from pooler import (
    TRAILER_BYTES_MAX,
    BadSyntax,
    ChunkReader,
    Connection,
    Limits,
    PoolerError,
    RequestHead,
    parse_request_head,
    parse_response_head,
)
from tests.support.hostile_bytes import (
    BAD_CHUNKS,
    BAD_LINES,
    BAD_RESPONSES,
    BAD_STARTS,
    BODY,
    HOSTS,
    SMUGGLING,
    head_of,
    raw_response_head,
)
from tests.support.memory_sockets import post, request
from tests.support.world import (
    Send,
    World,
    chunk,
    describe,
    json_response,
    opened_world,
    sse_response,
)

LIMITS: Final = Limits()
SMUGGLED: Final = request("GET", "/v1/models/smuggled")


def parse(raw: bytes) -> RequestHead:
    return parse_request_head(raw)


def refusal(raw: bytes) -> tuple[int, str]:
    with pytest.raises(PoolerError) as refused:
        parse(raw)
    return refused.value.status, refused.value.code


################################################################
# REQUEST HEADS
################################################################

BAD: Final = (400, "bad_request")
LARGE: Final = (431, "head_too_large")
LONG: Final = (414, "target_too_long")


def named(table: dict[str, list[bytes]]) -> list[object]:
    return [pytest.param(lines, id=name) for name, lines in table.items()]


@pytest.mark.parametrize("start", [pytest.param(raw, id=name) for name, raw in BAD_STARTS.items()])
def test_a_strange_request_line_is_refused(start: bytes) -> None:
    assert refusal(head_of(start=start)) == BAD


@pytest.mark.parametrize("lines", named(BAD_LINES))
def test_a_field_that_two_readers_could_read_differently_is_refused(lines: list[bytes]) -> None:
    assert refusal(head_of(*lines)) == BAD


@pytest.mark.parametrize("value", HOSTS)
def test_a_host_is_a_name_or_an_address_with_or_without_a_port(value: bytes) -> None:
    assert refusal(head_of(b"Host: " + value, host=False)) == BAD
    old = head_of(b"Host: " + value, start=b"GET / HTTP/1.0", host=False)
    assert refusal(old) == BAD


def test_http_1_1_needs_a_host_and_http_1_0_does_not() -> None:
    assert refusal(head_of(host=False)) == BAD
    head = parse(head_of(start=b"GET / HTTP/1.0", host=False))
    assert (head.host, head.is_http_1_0) == (None, True)


def test_http_1_0_has_no_chunks() -> None:
    assert refusal(head_of(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0")) == BAD


@pytest.mark.parametrize(
    ("value", "host"),
    [
        (b"localhost", "localhost"),
        (b"LOCALHOST:4000", "localhost"),
        (b"127.0.0.1:80", "127.0.0.1"),
        (b"[::1]:4000", "[::1]"),
        (b"[2001:DB8::1]", "[2001:db8::1]"),
        (b" \tpooler.example.com\t ", "pooler.example.com"),
    ],
)
def test_a_host_is_read_without_its_port_in_lower_case(value: bytes, host: str) -> None:
    assert parse(head_of(b"Host:" + value, host=False)).host == host


@pytest.mark.parametrize(
    ("version", "connection", "keeps_alive"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"Keep-Alive, CLOSE", False),
        (b"1.1", b"closed", True),
        (b"1.0", None, False),
        (b"1.0", b"keep-alive", True),
        (b"1.0", b"close, keep-alive", False),
    ],
)
def test_who_closes(version: bytes, connection: bytes | None, keeps_alive: bool) -> None:
    lines = [b"Connection: " + connection] if connection is not None else []
    assert parse(head_of(*lines, start=b"GET / HTTP/" + version)).keeps_alive is keeps_alive


def test_a_head_is_read_as_it_stands() -> None:
    raw = head_of(
        b"X-Empty:", b"X-Pad: \t a  b\t ", b"X-Obs: caf\xe9", b"X-Two: 1", b"x-two: 2",
        b"Content-Length: 0", start=b"M-SEARCH /v1/a%2Fb//c?d=/e?f HTTP/1.1",
    )  # fmt: skip
    head = parse(raw)
    assert (head.method, head.path) == ("M-SEARCH", "/v1/a%2Fb//c")
    assert list(head.headers.items())[3:] == [
        ("x-empty", ""), ("x-pad", "a  b"), ("x-obs", "caf\xe9"), ("x-two", "1, 2"),
        ("content-length", "0"),
    ]  # fmt: skip
    assert (head.framing.length, head.framing.is_chunked) == (0, False)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], (0, False)),
        ([b"Content-Length: 7"], (7, False)),
        ([b"Content-Length: 999999999999999"], (10**15 - 1, False)),
        ([b"Transfer-Encoding: chunked"], (None, True)),
        ([b"transfer-encoding:\tCHUNKED "], (None, True)),
    ],
)
def test_a_body_is_framed_in_one_way(lines: list[bytes], expected: tuple[int | None, bool]) -> None:
    framing = parse(head_of(*lines)).framing
    assert (framing.length, framing.is_chunked) == expected


def test_heads_are_bounded_at_the_limit_and_one_past_it() -> None:
    target = b"/" + b"a" * (pooler.TARGET_BYTES_MAX - 1)
    assert parse(head_of(start=b"GET %b HTTP/1.1" % target)).path == target.decode()
    assert refusal(head_of(start=b"GET %ba HTTP/1.1" % target)) == LONG
    assert refusal(head_of(start=b"GET /" + b"a" * 20_000 + b" HTTP/1.1")) == LONG
    fields = [b"X-%d: y" % number for number in range(pooler.HEAD_FIELDS_MAX - 3)]
    assert len(parse(head_of(*fields)).headers) == pooler.HEAD_FIELDS_MAX
    assert refusal(head_of(*fields, b"X: y")) == LARGE
    assert refusal(head_of(*[b"X: y"] * 5000)) == LARGE
    assert parse(head_of(start=b"A" * 16 + b" / HTTP/1.1")).method == "A" * 16


################################################################
# THE DIFFERENTIAL
################################################################

TOKEN: Final = st.text("!#$%&'*+-.^_`|~09AZaz", min_size=1, max_size=8).map(str.encode)
TEXT: Final = st.binary(max_size=12).map(
    lambda raw: bytes(byte for byte in raw if byte == 9 or (byte >= 32 and byte != 127))
)
PATH: Final = st.text("/abcXYZ019-._~!$&'()*+,;=:@%?", max_size=12).map(lambda t: b"/" + t.encode())
NOTABLE: Final = st.sampled_from(
    [
        b"Content-Length: 7", b"Content-Length: 0", b"content-length: 07", b"CONTENT-LENGTH:7",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding : chunked",
        b"transfer-encoding: Chunked",
        b"Connection: close", b"Connection: keep-alive", b"Host: other", b"Upgrade: websocket",
        b"Authorization: Bearer abc", b"Cookie: a=b; c=d", b" folded",
        b"From a@b", b"X-Two: 1", b"x-two: 2",
    ]
)  # fmt: skip
START: Final = st.builds(
    lambda method, path, version: b"%b %b HTTP/1.%b" % (method, path, version),
    st.sampled_from([b"GET", b"POST", b"OPTIONS", b"FOO"]),
    PATH,
    st.sampled_from([b"1", b"1", b"1", b"0"]),
)
FAULT: Final = st.sampled_from([bytes([byte]) for byte in b"\r\n\t \x00:\xa0\x0b\x85"]) | st.just(
    b"\n\n"
)
FIELD: Final = st.builds(lambda name, pad, text: name + b":" + pad + text, TOKEN, TEXT, TEXT)


def h11_reads(raw: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    return event.method, event.target, [(name, value) for name, value in event.headers]


def email_reads(raw: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    """As http.server reads a head, with the email package."""
    file = io.BytesIO(raw)
    method, target, _ = file.readline().rstrip(b"\r\n").split(b" ")
    parsed = http.client.parse_headers(file)
    assert not parsed.defects
    assert parsed.get_payload() == ""
    return method, target, [(n.encode(), v.encode("latin-1")) for n, v in parsed.items()]


def naive_reads(raw: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    """As thirty lines in a scripting language would: any line end, any blank."""
    first, *rest = re.split(rb"\r\n|\n|\r", raw.strip(b"\r\n"))
    method, target, _ = first.split()
    fields = []
    for line in rest:
        name, _, value = line.partition(b":")
        fields.append((name.strip(), value))
    return method, target, fields


def check_agreement(raw: bytes, head: RequestHead) -> None:
    assert re.fullmatch(rb"(?:\r\n|[\t\x20-\x7e\x80-\xff])+", raw)
    ours = {name.encode(): value.encode("latin-1") for name, value in head.headers.items()}
    for reads in (h11_reads, email_reads, naive_reads):
        method, target, fields = reads(raw)
        assert method.decode() == head.method
        assert target.partition(b"?")[0].decode() == head.path
        theirs: dict[bytes, bytes] = {}  # those of one name in one, as RFC 9110 §5.3 has them
        for name, value in fields:
            before = theirs.get(name.lower())
            stripped = value.strip(b" \t")
            theirs[name.lower()] = stripped if before is None else before + b", " + stripped
        coding = b"transfer-encoding"  # h11 gives its value in lower case
        assert {n: v.lower() if n == coding else v for n, v in ours.items()} == {
            n: v.lower() if n == coding else v for n, v in theirs.items()
        }
    assert head.framing.is_chunked == (ours.get(b"transfer-encoding", b"").lower() == b"chunked")
    assert head.framing.length == (
        None if head.framing.is_chunked else int(ours.get(b"content-length", b"0"))
    )


def joined(start: bytes, lines: Iterable[bytes]) -> bytes:
    return b"\r\n".join([start, b"Host: localhost", *lines, b"", b""])


@given(start=START, fields=st.lists(FIELD, max_size=6))
def test_good_heads_are_accepted_and_read_alike_by_all(start: bytes, fields: list[bytes]) -> None:
    once = rb"(?i)(authorization|content-|transfer-encoding|expect|host|origin|upgrade).*"
    raw = joined(start, [field for field in fields if not re.match(once, field)])
    check_agreement(raw, parse(raw))


@settings(max_examples=400)
@given(
    start=START,
    lines=st.lists(FIELD | NOTABLE, max_size=4),
    faults=st.lists(
        st.tuples(
            st.integers(0, 200),
            FAULT | st.binary(max_size=2),
        ),
        max_size=2,
    ),
)
def test_what_is_accepted_is_read_alike_by_all(
    start: bytes, lines: list[bytes], faults: list[tuple[int, bytes]]
) -> None:
    raw = joined(start, lines)
    for at, fault in faults:
        raw = raw[: at % len(raw)] + fault + raw[at % len(raw) :]
    raw = raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    try:
        head = parse(raw)
    except PoolerError as error:
        assert error.status in {400, 414, 431}  # noqa: PT017 (either way is well)
        return
    check_agreement(raw, head)


################################################################
# CHUNKED BODIES
################################################################

CHUNKED: Final = b"5\r\nhello\r\n00B\r\n, \r\n0\r\n\r\nxy\r\n1F\r\n" + b"z" * 31 + b"\r\n000\r\n"
DECODED: Final = b"hello, \r\n0\r\n\r\nxy" + b"z" * 31
TRAILERS: Final = [b"\r\n", b"X-Sum: 1\r\n\r\n", b"A: b\r\nC:\td \r\nE:\r\n\r\n"]
BEHIND: Final = b"GET / HTTP/1.1\r\n\r\n"


def decode(pieces: Iterable[bytes]) -> tuple[bytes, bytes, bool]:
    """The body, the rest, and whether the end was seen."""
    reader = ChunkReader()
    body = b""
    rest = b""
    for piece in pieces:
        if reader.is_done:
            rest += piece
        else:
            body += reader.feed(piece)
    return body, (reader.unread + rest if reader.is_done else b""), reader.is_done


@pytest.mark.parametrize("trailer", TRAILERS)
def test_chunks_are_read_the_same_at_every_cut(trailer: bytes) -> None:
    whole = CHUNKED + trailer + BEHIND
    expected = (DECODED, BEHIND, True)
    assert decode([whole]) == expected
    assert decode(bytes([byte]) for byte in whole) == expected
    for first in range(len(whole)):
        assert decode([whole[:first], whole[first:]]) == expected
        second = min(first + 3, len(whole))
        assert decode([whole[:first], whole[first:second], whole[second:]]) == expected
    for end in range(len(whole) - len(BEHIND)):
        body, _, is_done = decode([whole[:end]])
        assert not is_done
        assert DECODED.startswith(body)


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in BAD_CHUNKS.items()])
def test_malformed_chunks_are_refused_at_every_cut(raw: bytes) -> None:
    for cut in range(len(raw)):
        with pytest.raises(BadSyntax):
            decode([raw[:cut], raw[cut:]])
    with pytest.raises(BadSyntax):
        decode(bytes([byte]) for byte in raw)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 1000, 100_000])
def test_trailers_are_bounded(step: int) -> None:
    def fed(line: bytes) -> tuple[bytes, bytes, bool]:
        raw = b"0\r\n" + line + b"\r\n\r\n"
        return decode(raw[at : at + step] for at in range(0, len(raw), step))

    assert fed(b"X: " + b"a" * (TRAILER_BYTES_MAX - 5))[2]
    for length in (TRAILER_BYTES_MAX + 1, 3 * TRAILER_BYTES_MAX):
        with pytest.raises(BadSyntax):
            fed(b"X: " + b"a" * length)
    with pytest.raises(BadSyntax):
        decode([b"0\r\n", *[b"X: " + b"a" * 997 + b"\r\n"] * 50])


REFERENCE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}\r\n")
TRAILER_LINE: Final = re.compile(rb"[!-9;-~]+:[\t -~\x80-\xff]*\r\n")


def reference_reads(raw: bytes) -> tuple[bytes, bytes] | None:
    """The body and what follows it, by the grammar of RFC 9112 §7.1; None: not (yet) one."""
    body = b""
    while match := REFERENCE.match(raw):
        size = int(match[0], 16)
        raw = raw[match.end() :]
        if not size:
            while line := TRAILER_LINE.match(raw):
                raw = raw[line.end() :]
            return (body, raw[2:]) if raw.startswith(b"\r\n") else None
        if raw[size : size + 2] != b"\r\n":
            return None
        body, raw = body + raw[:size], raw[size + 2 :]
    return None


PIECES: Final = st.sampled_from(
    [b"0", b"1", b"2", b"a", b"00", b"\r\n", b"\r", b"\n", b";", b" ", b"x", b"xy", b"X:y", b"-"]
)


@settings(max_examples=600)
@given(
    sound=st.lists(st.binary(min_size=1, max_size=6).map(chunk), max_size=3),
    more=st.lists(PIECES, max_size=8),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_chunks_are_read_as_the_grammar_says(
    sound: list[bytes], more: list[bytes], cuts: list[int]
) -> None:
    raw = b"".join(sound + more)
    edges = [0, *sorted(cuts), len(raw)]
    pieces = [raw[first:second] for first, second in itertools.pairwise(edges)]
    expected = reference_reads(raw)
    try:
        body, rest, is_done = decode(pieces)
    except BadSyntax:
        assert expected is None
        return
    assert is_done == (expected is not None)
    if expected is not None:
        assert (body, rest) == expected


################################################################
# RESPONSE HEADS
################################################################


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in BAD_RESPONSES.items()])
def test_a_response_head_is_as_strict(raw: bytes) -> None:
    with pytest.raises(BadSyntax):
        parse_response_head(raw)


@pytest.mark.measures
def test_a_head_of_many_names_is_read_in_no_time() -> None:
    """An upstream may send as many fields as fit, and one of them twice."""
    names = [f"\r\n{number:x}:" for number in range(4500)]
    raw = "".join(("HTTP/1.1 200 OK", *names, names[0], "\r\n\r\n")).encode()
    began_at = time.process_time()
    assert len(parse_response_head(raw).headers) == 4500
    assert time.process_time() - began_at < 0.1


@pytest.mark.parametrize(
    ("raw", "status", "framing", "keeps_alive"),
    [
        (raw_response_head(b"Content-Length: 3"), 200, (3, False), True),
        (raw_response_head(b"Transfer-Encoding: Chunked"), 200, (None, True), True),
        (raw_response_head(), 200, (None, False), False),
        (raw_response_head(b"Content-Length: 3", b"Connection: close"), 200, (3, False), False),
        (raw_response_head(b"Content-Length: 3", start=b"HTTP/1.0 200 OK"), 200, (3, False), False),
        (raw_response_head(start=b"HTTP/1.1 200"), 200, (None, False), False),
        (raw_response_head(start=b"HTTP/1.1 204 "), 204, (0, False), True),
        (
            raw_response_head(b"Content-Length: 9", start=b"HTTP/1.1 304 caf\xe9\t"),
            304,
            (0, False),
            True,
        ),
        (
            raw_response_head(b"Transfer-Encoding: chunked", start=b"HTTP/1.1 103 x"),
            103,
            (0, False),
            True,
        ),
        (raw_response_head(b"Content-Length: 0", start=b"HTTP/1.1 599 odd"), 599, (0, False), True),
    ],
)
def test_a_response_head_says_how_long_its_body_is(
    raw: bytes, status: int, framing: tuple[int | None, bool], keeps_alive: bool
) -> None:
    head = parse_response_head(raw)
    assert head.status == status
    assert (head.framing.length, head.framing.is_chunked) == framing
    assert head.keeps_alive is keeps_alive


################################################################
# THE SAME AT THE DOOR
################################################################


def let_answer(world: World) -> None:
    for upstream in world.upstreams.values():
        upstream.always = json_response({"id": "r"})


async def check_refused(world: World, raw: bytes, status: int) -> None:
    """One answer, the connection ends, and nobody upstream heard of it."""
    let_answer(world)
    client = await world.connect()
    await client.send(raw)
    response = await client.read_response()
    assert response.status == status
    assert response.header("connection") == "close"
    assert await client.wait_closed() == b""
    assert world.asked == []


@pytest.mark.parametrize("name", SMUGGLING)
async def test_after_a_refusal_the_connection_ends(world: World, name: str) -> None:
    raw, status = SMUGGLING[name]
    await check_refused(world, raw + SMUGGLED, status)


async def test_a_chunked_body_reaches_the_upstream_whole_and_counted(world: World) -> None:
    let_answer(world)
    client = await world.connect()
    raw = head_of(b"Transfer-Encoding: chunked") + b"".join(chunk(bytes([b])) for b in BODY)
    raw += b"0\r\nX-Trailer: dropped\r\n\r\n"
    for byte in raw:
        await client.send(bytes([byte]))
    assert (await client.read_response()).status == 200
    assert (await client.ask(raw)).status == 200
    assert [asked.body for asked in world.asked] == [BODY, BODY]
    assert {asked.header("content-length") for asked in world.asked} == {str(len(BODY))}
    assert {asked.header("x-trailer") for asked in world.asked} == {None}


async def test_our_own_heads_are_strict_and_carry_obs_text_unchanged(world: World) -> None:
    let_answer(world)
    response = await world.ask(post("/v1/responses", BODY, headers=[("Accept", "caf\xe9; q=1")]))
    assert response.status == 200
    [asked] = world.asked
    assert asked.header("accept") == "caf\xe9; q=1"
    assert re.fullmatch(rb"(?:[!-~\x80-\xff ]+\r\n)+\r\n", asked.head)
    assert [name for name, _ in asked.headers] == [
        "host", "accept-encoding", "authorization", "content-type", "content-length",
        "user-agent", "accept",
    ]  # fmt: skip


@pytest.mark.parametrize("name", BAD_RESPONSES)
async def test_a_bad_answer_is_a_502_and_its_connection_is_not_kept(
    autojump_clock: MockClock, name: str
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays([Send(BAD_RESPONSES[name] + b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")])
        response = await world.ask(post("/v1/responses", BODY))
        assert (response.status, response.error["code"]) == (502, "upstream_invalid_response")
        world.upstreams["a"].plays(sse_response([]))
        assert world.upstreams["a"].dial_count == 1
        await world.settle()
        assert world.upstreams["a"].lines[0].closed_at is not None


@settings(max_examples=60)
@given(
    at=st.integers(0, 60),
    fault=st.sampled_from([b"\n", b"\x00", b" ", b"\r\n", b"\t:"])
    | st.binary(min_size=1, max_size=2),
    behind=st.binary(max_size=20) | st.just(SMUGGLED),
)
def test_a_refusal_stays_one_whatever_follows(at: int, fault: bytes, behind: bytes) -> None:
    good = joined(b"GET /v1/models HTTP/1.1", [b"Authorization: Bearer nobodys-key-0123456"])
    raw = good[:at] + fault + good[at:]

    async def statuses() -> list[int]:
        found = []
        async with opened_world() as world:
            for sent in (raw, raw + behind):
                client = await world.connect()
                await client.send(sent)
                found.append((await client.read_response()).status)
        return found

    first, second = trio.run(statuses, clock=MockClock(autojump_threshold=0))
    assert 400 <= first < 500
    assert first == second


NAMES: Final = (
    "authorization content-encoding content-length content-type expect host origin "
    "sec-websocket-key sec-websocket-version transfer-encoding upgrade"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_a_field_that_is_given_twice_is_refused(name: str) -> None:
    """Of what tells how a body is to be read an upstream may say the same again."""
    other = b"identity" if name in {"content-length", "content-type"} else b"chunked"
    once = b"HTTP/1.1 200 OK\r\n" + name.encode() + b": chunked\r\n"
    with pytest.raises(BadSyntax, match="field given twice"):
        parse_response_head(once + name.encode() + b": " + other + b"\r\n\r\n")


async def test_a_bare_line_feed_is_refused_before_the_head_is_whole() -> None:
    await trio.lowlevel.checkpoint()
    stream, _ = memory_stream_pair()
    connection = Connection(stream, b"GET / HTTP/1.1\nHost: a\n\n")
    with pytest.raises(BadSyntax, match="bare LF"):
        connection.take_head(1000)


@pytest.mark.parametrize("ending", ["\r", "\n", "\r\n", "\n\r\n"])
@pytest.mark.parametrize("place", ["name", "value"])
def test_no_head_is_written_with_a_line_end_in_a_field(ending: str, place: str) -> None:
    texts = {"name": "a", "value": "b"} | {place: f"a{ending}b"}
    with pytest.raises(ValueError, match="a line end within a field"):
        pooler.format_head("GET / HTTP/1.1\r\n", [(texts["name"], texts["value"])])
    assert (
        pooler.format_head("GET / HTTP/1.1\r\n", [("a", "b")]) == b"GET / HTTP/1.1\r\na: b\r\n\r\n"
    )
