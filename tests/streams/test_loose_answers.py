"""Proves that what an upstream says besides, or again, is ignored, and what a client does refused.

Chunk extensions, blanks behind a chunk's size, and a length or a type that is given more than once
and alike leave nothing that two readers could understand differently.

Method: answers of every kind of account and route with each of them, over real sockets, plain and
with TLS; the readers alone, at every cut and at each bound; the same from a client.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from pooler import (
    CHUNK_EXTENSION_BYTES_MAX,
    BadSyntax,
    ChunkReader,
    Framing,
    parse_response_head,
)
from tests.support.codex_backend import make_auth_file
from tests.support.memory_sockets import post, request
from tests.support.tls_upstreams import Line, Site, event_stream, opened_site
from tests.support.world import World, responses_events

Json = Any
EXTENSIONS: Final = {
    "name": b";x",
    "name-and-value": b";x=1",
    "several": b";a;b=2;c=3",
    "quoted": b';x="a;b \\" c"',
    "blanks": b" ; x = 1 ",
    "tab": b"\t;\tx=1",
    "empty": b";",
    "obs-text": b";x=\xc3\xa9",
    "signature": b";chunk-signature=" + b"0" * 64,  # as object stores send it
    "blanks-alone": b"  ",
    "longest": b";" + b"x" * CHUNK_EXTENSION_BYTES_MAX,
}
BODY: Final = b'{"id":"r"}'
JSON_TYPE: Final = b"Content-Type: application/json"
LENGTH: Final = b"Content-Length: 10"
REPEATED: Final[dict[str, list[bytes]]] = {
    "length": [JSON_TYPE, LENGTH, LENGTH],
    "length-in-another-case": [JSON_TYPE, LENGTH, b"content-length:10"],
    "length-three-times": [LENGTH, JSON_TYPE, LENGTH, LENGTH],
    "length-as-a-list": [JSON_TYPE, b"Content-Length: 10, 10"],
    "length-as-a-list-and-again": [JSON_TYPE, b"Content-Length: 10,10", b"Content-Length: 10,10"],
    "type": [JSON_TYPE, JSON_TYPE, LENGTH],
    "type-with-a-parameter": [JSON_TYPE + b"; charset=utf-8"] * 2 + [LENGTH],
    "type-as-a-list": [b"Content-Type: application/json, application/json", LENGTH],
    "both": [JSON_TYPE, LENGTH, JSON_TYPE, LENGTH],
}
CASES: Final = [*(f"chunk-{name}" for name in EXTENSIONS), *REPEATED]


def chunked(body: bytes, extension: bytes) -> bytes:
    """Two chunks, and the last one; each with the extension."""
    parts = [body[:7], body[7:], b""]
    framed = [b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts]
    return b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(framed)


def response_of(case: str, content_type: bytes, body: bytes) -> bytes:
    kind = b"Content-Type: " + content_type
    if case in REPEATED:
        lines = [line.replace(b"application/json", content_type) for line in REPEATED[case]]
        lines = [line.replace(b"10", b"%d" % len(body)) for line in lines]
        return b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", body])
    extension = EXTENSIONS[case.removeprefix("chunk-")]
    return b"HTTP/1.1 200 OK\r\n" + kind + b"\r\n" + chunked(body, extension)


################################################################
# ANSWERS
################################################################

KINDS: Final = ("http", "https", "codex")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("loose")
    login = folder / "login.json"
    make_auth_file(login, "acct", expires_at=4 * 10**9)
    codex = {"type": "codex", "api_key": None, "auth_file": str(login), "websocket": False}
    accounts: dict[str, dict[str, Json]] = {
        "http": {"base_url": "http"},
        "https": {},
        "codex": codex,
    }
    with opened_site(folder, accounts) as opened:
        yield opened


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_an_answer_is_read_as_if_it_had_been_said_once(
    site: Site, case: str, kind: str, is_stream: bool
) -> None:
    """And its connection may be used again."""
    events = event_stream(responses_events("hi")).partition(b"\r\n\r\n")[2]
    is_sse = is_stream or kind == "codex"
    said = (b"text/event-stream", events) if is_sse else (b"application/json", BODY)

    def play(line: Line, head: bytes) -> bool:
        line.read_body(head)
        line.send(response_of(case, *said))
        return True

    upstream = site.plain if kind == "http" else site.secure
    upstream.plays[kind] = play
    before = len(upstream.lines_of(kind))
    for _ in range(2):
        status, told = site.ask(kind, {"input": "x", "stream": is_stream})
        assert status == 200
        assert "response.completed" in told if is_stream else "id" in told
    lines = upstream.lines_of(kind)
    assert lines[before] is lines[before + 1]


################################################################
# THE READERS
################################################################


@pytest.mark.parametrize("name", EXTENSIONS)
def test_extensions_are_ignored_at_every_cut(name: str) -> None:
    raw = chunked(BODY, EXTENSIONS[name]).partition(b"\r\n\r\n")[2] + b"next"
    for at in range(len(raw) + 1):
        reader = ChunkReader(is_of_upstream=True)
        found = reader.feed(raw[:at])
        if not reader.is_done:
            found += reader.feed(raw[at:])
        assert found == BODY
        assert reader.is_done


BAD_EXTENSIONS: Final = {
    "line-feed": b";x\n", "carriage-return": b";x\ry", "nul": b";x=\0", "escape": b";x=\x1b[31m",
    "delete": b";\x7f", "without-a-semicolon": b"x", "comma": b",x", "blank-before-letter": b" x",
    "too-long": b";" + b"x" * (CHUNK_EXTENSION_BYTES_MAX + 1), "too-many-blanks": b" " * 17,
}  # fmt: skip


def feed(*pieces: bytes) -> None:
    reader = ChunkReader(is_of_upstream=True)
    for piece in pieces:
        reader.feed(piece)


@pytest.mark.parametrize("name", BAD_EXTENSIONS)
def test_what_is_no_extension_is_refused_at_every_cut(name: str) -> None:
    """What never ends is refused as soon as it is too long, however it comes."""
    raw = b"5" + BAD_EXTENSIONS[name]
    for at in range(len(raw) + 1):
        with pytest.raises(BadSyntax):
            feed(raw[:at], raw[at:], b"\r\nhello\r\n0\r\n\r\n")


def test_extensions_do_not_add_up() -> None:
    reader, one = ChunkReader(is_of_upstream=True), b"1;" + b"x" * 1000 + b"\r\na\r\n"
    for _ in range(1000):
        assert reader.feed(one) == b"a"
        assert len(reader.unread) <= 2


@pytest.mark.parametrize("name", REPEATED)
def test_what_is_said_again_is_said_once(name: str) -> None:
    head = parse_response_head(b"\r\n".join([b"HTTP/1.1 200 OK", *REPEATED[name], b"", b""]))
    assert head.framing == Framing(length=10)
    assert head.headers["content-length"] == "10"
    assert "," not in head.headers["content-type"]


DIFFERENT: Final[dict[str, list[bytes]]] = {
    "lengths": [LENGTH, b"Content-Length: 11"],
    "lengths-by-a-zero": [LENGTH, b"Content-Length: 010"],
    "lengths-in-a-list": [b"Content-Length: 10, 11"],
    "lengths-the-third": [LENGTH, LENGTH, b"Content-Length: 9"],
    "an-empty-member": [b"Content-Length: 10,"],
    "signs": [b"Content-Length: +10", b"Content-Length: +10"],
    "length-and-chunks": [LENGTH, LENGTH, b"Transfer-Encoding: chunked"],
    "types": [b"Content-Type: text/html", JSON_TYPE],
    "codings": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
    "content-codings": [b"Content-Encoding: identity", b"Content-Encoding: identity"],
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_said_differently_is_refused(name: str) -> None:
    with pytest.raises(BadSyntax):
        parse_response_head(b"\r\n".join([b"HTTP/1.1 200 OK", *DIFFERENT[name], b"", b""]))


################################################################
# A CLIENT
################################################################

ASKED: Final = json.dumps({"model": "m1", "input": "x"}).encode()


@pytest.mark.parametrize("name", EXTENSIONS)
async def test_a_client_may_not_extend_a_chunk(world: World, name: str) -> None:
    head = request(
        "POST", "/v1/responses", headers=[("Content-Type", "application/json")]
    ).removesuffix(b"\r\n")
    response = await world.ask(head + chunked(ASKED, EXTENSIONS[name]))
    assert (response.status, response.error["code"]) == (400, "bad_request")


@pytest.mark.parametrize("field", ["Content-Length", "Content-Type"])
async def test_a_client_may_not_say_the_same_again(world: World, field: str) -> None:
    raw = post("/v1/responses", ASKED)
    [line] = [one for one in raw.split(b"\r\n") if one.lower().startswith(field.lower().encode())]
    response = await world.ask(raw.replace(line, line + b"\r\n" + line))
    assert (response.status, response.error["code"]) == (400, "bad_request")
