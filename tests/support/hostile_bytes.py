"""Bytes that no server must take, for the parsers alone and for the process on a socket.

Each table has the bytes by what is wrong with them.  (No claims.)
"""

from __future__ import annotations

import json
from typing import Final

from hypothesis import strategies as st

from pooler import INTEGER_DIGITS_MAX
from tests.support.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT, frame
from tests.support.memory_sockets import KEY, request
from tests.support.world import chunk

BODY: Final = b'{"model": "m1", "input": "hi"}'


def head_of(
    *lines: bytes, start: bytes = b"POST /v1/responses HTTP/1.1", host: bool = True
) -> bytes:
    """A head with a Host, a good key and these lines."""
    known = [b"Host: localhost"] * host
    own = [b"Authorization: Bearer " + KEY.encode(), b"Content-Type: application/json"]
    return b"\r\n".join([start, *known, *own, *lines, b"", b""])


GET: Final = b"GET / HTTP/1.1"
BAD_STARTS: Final[dict[str, bytes]] = {
    "empty": b"", "leading-line-end": b"\r\n" + GET, "leading-blank": b" " + GET,
    "http-0.9": b"GET /", "http-0.9-said": b"GET / HTTP/0.9", "http-1.2": b"GET / HTTP/1.2",
    "http-2.0": b"GET / HTTP/2.0", "http-9.9": b"GET / HTTP/9.9", "http-1.10": b"GET / HTTP/1.10",
    "http-1": b"GET / HTTP/1", "http-lower-case": b"GET / http/1.1",
    "http-2-preface": b"PRI * HTTP/2.0", "two-blanks": b"GET  / HTTP/1.1",
    "tab": b"GET\t/ HTTP/1.1", "blank-at-the-end": b"GET / HTTP/1.1 ",
    "blank-in-target": b"GET /a b HTTP/1.1", "no-target": b"GET HTTP/1.1",
    "star": b"OPTIONS * HTTP/1.1", "absolute": b"GET http://localhost/v1/models HTTP/1.1",
    "authority": b"CONNECT localhost:443 HTTP/1.1", "no-slash": b"GET v1/models HTTP/1.1",
    "fragment": b"GET /v1/models#x HTTP/1.1", "quote": b'GET /"x" HTTP/1.1',
    "angle": b"GET /<x> HTTP/1.1", "backslash": b"GET /v1\\models HTTP/1.1",
    "brace": b"GET /{x} HTTP/1.1", "non-ascii-target": b"GET /\xc3\xa9 HTTP/1.1",
    "control-in-target": b"GET /\x01 HTTP/1.1", "delete-in-target": b"GET /\x7f HTTP/1.1",
    "nul-in-target": b"GET /\x00 HTTP/1.1", "no-method": b" / HTTP/1.1",
    "bracket-in-method": b"G[T / HTTP/1.1", "method-of-17": b"A" * 17 + b" / HTTP/1.1",
    "bare-lf": b"GET / HTTP/1.1\nX: y", "bare-cr": b"GET / HTTP/1.1\rX: y",
    "tls": b"\x16\x03\x01\x02\x00\x01",
}  # fmt: skip
BAD_LINES: Final[dict[str, list[bytes]]] = {
    "no-colon": [b"X-A"], "empty-name": [b": x"], "blank-before-colon": [b"X-A : b"],
    "tab-before-colon": [b"X-A\t: b"], "fold": [b"X-A: b", b" c"],
    "fold-with-tab": [b"X-A: b", b"\tc"], "fold-of-framing": [b"Transfer-Encoding:", b" chunked"],
    "fold-first": [b" X-A: b"], "bare-lf": [b"X-A: b\nX-B: c"],
    "bare-lf-hides-framing": [b"X-A: b\nTransfer-Encoding: chunked"],
    "bare-cr": [b"X-A: b\rX-B: c"], "bare-cr-at-the-end": [b"X-A: b\r"],
    "name-with-bracket": [b"X(A): b"], "name-non-ascii": [b"X-\xc3\xa9: b"],
    "name-with-nul": [b"X\x00A: b"],
    **{f"control-{byte:02x}": [b"X-A: b%cc" % byte] for byte in range(32) if byte != 9},
    "control-7f": [b"X-A: \x7f"], "two-lengths": [b"Content-Length: 5", b"Content-Length: 6"],
    "two-equal-lengths": [b"Content-Length: 5", b"Content-Length: 5"],
    "length-list": [b"Content-Length: 5, 5"], "length-zeros": [b"Content-Length: 05"],
    "length-plus": [b"Content-Length: +5"], "length-minus": [b"Content-Length: -5"],
    "length-hex": [b"Content-Length: 0x5"], "length-float": [b"Content-Length: 5.0"],
    "length-underscore": [b"Content-Length: 1_0"], "length-blank-inside": [b"Content-Length: 1 0"],
    "length-empty": [b"Content-Length:"],
    "length-of-16-digits": [b"Content-Length: 1000000000000000"],
    "length-other-digits": ["Content-Length: ٣".encode()],
    "length-superscript": [b"Content-Length: \xb2"],
    "length-and-chunked": [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
    "chunked-and-length": [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
    "two-codings": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
    "second-coding": [b"Transfer-Encoding: chunked", b"transfer-encoding: identity"],
    "coding-list": [b"Transfer-Encoding: gzip, chunked"],
    "coding-twice": [b"Transfer-Encoding: chunked, chunked"],
    "coding-identity": [b"Transfer-Encoding: identity"],
    "coding-unknown": [b"Transfer-Encoding: xchunked"],
    "coding-parameter": [b"Transfer-Encoding: chunked;q=1"],
    "coding-empty": [b"Transfer-Encoding:"], "coding-quoted": [b'Transfer-Encoding: "chunked"'],
    "coding-vertical-tab": [b"Transfer-Encoding: \x0bchunked"],
    "coding-non-breaking": [b"Transfer-Encoding: \xa0chunked"], "two-hosts": [b"Host: localhost"],
    "two-keys": [b"Authorization: Bearer x"], "two-types": [b"Content-Type: text/plain"],
    "two-origins": [b"Origin: http://a", b"Origin: http://b"],
    "two-content-codings": [b"Content-Encoding: gzip", b"Content-Encoding: gzip"],
    "two-expectations": [b"Expect: 100-continue", b"Expect: 100-continue"],
}  # fmt: skip
HOSTS: Final = [
    b"", b"a b", b"a b/evil@x", b"evil@localhost", b"localhost/", b"localhost:", b"localhost:x",
    b"localhost:123456", b"localhost, evil", b"::1", b"[::1", b"[::g]", b"\xe9", b"http://localhost",
    b"a?b", b"a#b", b"%6c",
]  # fmt: skip
BAD_CHUNKS: Final[dict[str, bytes]] = {
    "extension": b"5;a=b\r\nhello\r\n0\r\n\r\n", "extension-empty": b"5;\r\nhello\r\n0\r\n\r\n",
    "extension-with-lf": b"5;\nhello\r\n0\r\n\r\n",
    "extension-with-cr": b"5;a\rb\r\nhello\r\n0\r\n\r\n", "extension-of-last": b"0;a\r\n\r\n",
    "blank-before": b" 5\r\nhello\r\n0\r\n\r\n", "blank-behind": b"5 \r\nhello\r\n0\r\n\r\n",
    "tab-behind": b"5\t\r\nhello\r\n0\r\n\r\n", "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "minus": b"-5\r\nhello\r\n0\r\n\r\n", "minus-zero": b"-0\r\n\r\n",
    "hex-prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n", "letter": b"g\r\n",
    "empty-size": b"\r\nhello", "nine-digits": b"000000005\r\nhello\r\n0\r\n\r\n",
    "nine-digits-large": b"100000000\r\n", "twenty-digits": b"f" * 20 + b"\r\n",
    "lf-behind-size": b"5\nhello\r\n0\r\n\r\n", "cr-behind-size": b"5\rhello\r\n0\r\n\r\n",
    "two-cr": b"5\r\r\nhello\r\n0\r\n\r\n", "lf-behind-data": b"5\r\nhello\n0\r\n\r\n",
    "cr-behind-data": b"5\r\nhello\r0\r\n\r\n", "nothing-behind-data": b"5\r\nhello0\r\n\r\n",
    "data-too-long": b"5\r\nhello!\r\n0\r\n\r\n", "data-too-short": b"6\r\nhello\r\n0\r\n\r\n",
    "full-width-digit": b"\xef\xbc\x95\r\nhello", "trailer-without-colon": b"0\r\nX\r\n\r\n",
    "trailer-blank-before-colon": b"0\r\nX : y\r\n\r\n",
    "trailer-fold": b"0\r\nX: y\r\n z\r\n\r\n", "trailer-bare-lf": b"0\r\nX: y\nZ: a\r\n\r\n",
    "trailer-bare-lf-first": b"0\r\n\n", "trailer-bare-lf-ends": b"0\r\nX: y\n\n",
    "trailer-bare-cr": b"0\r\nX: y\rZ: a\r\n\r\n", "trailer-control": b"0\r\nX: \x01\r\n\r\n",
    "trailer-two-lengths": b"0\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
}  # fmt: skip


def raw_response_head(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([start, *lines, b"", b""])


BAD_RESPONSES: Final[dict[str, bytes]] = {
    "empty": raw_response_head(start=b""),
    "http-0.9": raw_response_head(start=b"<html>"),
    "http-2": raw_response_head(start=b"HTTP/2.0 200 OK"),
    "http-1.2": raw_response_head(start=b"HTTP/1.2 200 OK"),
    "lower-case": raw_response_head(start=b"http/1.1 200 OK"),
    "icy": raw_response_head(start=b"ICY 200 OK"),
    "no-status": raw_response_head(start=b"HTTP/1.1 OK"),
    "status-of-2-digits": raw_response_head(start=b"HTTP/1.1 20 OK"),
    "status-of-4-digits": raw_response_head(start=b"HTTP/1.1 2000 OK"),
    "status-0": raw_response_head(start=b"HTTP/1.1 099 OK"),
    "status-600": raw_response_head(start=b"HTTP/1.1 600 OK"),
    "status-999": raw_response_head(start=b"HTTP/1.1 999 OK"),
    "two-blanks": raw_response_head(start=b"HTTP/1.1  200 OK"),
    "reason-escape": raw_response_head(start=b"HTTP/1.1 200 \x1b[31m"),
    "reason-cr": raw_response_head(start=b"HTTP/1.1 200 a\rb"),
    "reason-lf": raw_response_head(start=b"HTTP/1.1 200 a\nb"),
    "leading-line-end": raw_response_head(start=b"\r\nHTTP/1.1 200 OK"),
    **{f"field-{name}": raw_response_head(*lines) for name, lines in BAD_LINES.items()
       if name not in {"two-hosts", "two-keys", "two-types", "two-equal-lengths", "length-list"}},
    "two-types": raw_response_head(b"Content-Type: a", b"Content-Type: b"),
    "chunked-in-1.0": raw_response_head(b"Transfer-Encoding: chunked", start=b"HTTP/1.0 200 OK"),
}  # fmt: skip
SMUGGLING: Final[dict[str, tuple[bytes, int]]] = {
    "length-and-chunks": (
        head_of(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "chunks-and-length": (
        head_of(b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n", 400),
    "two-codings": (
        head_of(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x") + b"0\r\n\r\n", 400),
    "obscured-coding": (head_of(b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n", 400),
    "blank-before-colon": (head_of(b"Transfer-Encoding : chunked") + b"0\r\n\r\n", 400),
    "folded-coding": (head_of(b"Transfer-Encoding:", b"\tchunked") + b"0\r\n\r\n", 400),
    "two-lengths": (head_of(b"Content-Length: 0", b"Content-Length: 30") + BODY, 400),
    "length-list": (head_of(b"Content-Length: 30, 30") + BODY, 400),
    "chunks-in-http-1.0": (
        head_of(b"Transfer-Encoding: chunked", start=b"POST /v1/responses HTTP/1.0")
        + chunk(BODY) + b"0\r\n\r\n", 400),
    "extension": (
        head_of(b"Transfer-Encoding: chunked") + b"1e;a=\n\r\n" + BODY + b"\r\n0\r\n\r\n", 400),
    "bare-lf-chunk": (
        head_of(b"Transfer-Encoding: chunked") + b"1e\n" + BODY + b"\r\n0\r\n\r\n", 400),
    "bare-lf-last": (head_of(b"Transfer-Encoding: chunked") + chunk(BODY) + b"0\n\n", 400),
    "size-too-large": (head_of(b"Transfer-Encoding: chunked") + b"fffffffff\r\n", 400),
    "huge-size": (head_of(b"Content-Length: 99999999999999999999") + BODY, 400),
    "http-2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "bare-lf-head": (b"GET /v1/models HTTP/1.1\nHost: localhost\n\n", 400),
    "bare-lf-unfinished": (b"GET /v1/models HTTP/1.1\n", 400),
    "leading-line-end": (b"\r\n" + request("GET", "/v1/models"), 400),
    "fat-header": (request("GET", "/", headers=[("X", "y" * 60_000)]), 431),
    "many-headers": (request("GET", "/", headers=[("X", "y")] * 2_000), 431),
    "long-target": (request("GET", "/" + "a" * 9_000), 414),
    "long-body": (head_of(b"Content-Length: 33554433"), 413),
}  # fmt: skip
NOT_JSON: Final[dict[str, bytes]] = {
    "empty": b"", "blank": b" \r\n", "cut": b'{"a": 1', "bare-word": b"hello", "two": b"{}{}",
    "garbage-behind": b"{} x", "nul-behind": b"{}\x00", "comment": b"{/**/}", "single": b"{'a': 1}",
    "trailing-comma": b'{"a": 1,}', "no-colon": b'{"a" 1}', "raw-newline": b'{"a": "\n"}',
    "raw-control": b'{"a": "\x1f"}', "bad-escape": b'{"a": "\\x"}', "cut-escape": b'{"a": "\\u12"}',
    "nan": b'{"a": NaN}', "infinity": b'{"a": Infinity}', "minus-infinity": b'{"a": -Infinity}',
    "1e999": b'{"a": 1e999}', "-1e999": b'{"a": -1e999}', "1.0e400": b'{"a": [1.0e400]}',
    "leading-zero": b'{"a": 01}', "plus": b'{"a": +1}', "hex": b'{"a": 0x1}', "dot": b'{"a": 1.}',
    "bom": b"\xef\xbb\xbf{}", "utf-16": '{"a": 1}'.encode("utf-16"),
    "utf-16-le": '{"a": 1}'.encode("utf-16-le"), "utf-16-be": '{"a": 1}'.encode("utf-16-be"),
    "utf-32": '{"a": 1}'.encode("utf-32"), "utf-32-le": '{"a": 1}'.encode("utf-32-le"),
    "latin-1": b'{"a": "\xe9"}', "surrogate": b'{"a": "\xed\xa0\x80"}',
    "overlong-slash": b'{"a": "\xc0\xaf"}', "overlong-quote": b'{"a": \xc0\xa2x"}',
    "overlong-nul": b'{"a": "\xe0\x80\x80"}', "beyond-unicode": b'{"a": "\xf4\x90\x80\x80"}',
    "cut-character": b'{"a": "\xe2\x82"}', "lone-continuation": b'{"a": "\x80"}',
    "array": b"[]", "string": b'"model"', "number": b"1", "null": b"null", "true": b"true",
    "twice": b'{"model": "a", "model": "b"}', "twice-equal": b'{"a": 1, "a": 1}',
    "twice-escaped": b'{"model": "a", "\\u006dodel": "b"}', "twice-empty": b'{"": 1, "": 2}',
    "twice-deep": b'{"a": [{"b": {"c": 1, "d": 2, "c": 3}}]}',
    "integer": b'{"a": ' + b"1" * (INTEGER_DIGITS_MAX + 1) + b"}",
    "integer-negative": b'{"a": -' + b"1" * (INTEGER_DIGITS_MAX + 1) + b"}",
    "integer-5000": b'{"a": ' + b"1" * 5000 + b"}",
    "deep-100000": b"[" * 100_000, "deep-objects": b'{"a":' * 100_000,
}  # fmt: skip
JSON_SHAPES: Final = st.lists(
    st.sampled_from(['"', "\\", "[", "]", "{", "}", ",", "a", ":", '\\"', "\\\\", '"b"']),
    max_size=60,
).map("".join)
JSON_VALUES: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
JSON_OBJECTS: Final = st.dictionaries(st.text(max_size=6), JSON_VALUES, max_size=5)
CREATE_TURN: Final = json.dumps({"type": "response.create", "model": "m1", "input": "hi"}).encode()
HOSTILE_FRAMES: Final[dict[str, tuple[bytes, int | None]]] = {
    "no mask": (frame(TEXT, CREATE_TURN, mask=b""), 1002),
    "a reserved bit": (frame(TEXT, CREATE_TURN, rsv=0x40), 1002),
    "a reserved opcode": (frame(0x3, b"x"), 1002),
    "a reserved control opcode": (frame(0xB, b"x"), 1002),
    "bad UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "half a character at the end": (frame(TEXT, b"\xc3"), 1007),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "a ping in pieces": (frame(PING, b"x", fin=False), 1002),
    "a long ping": (frame(PING, b"x" * 126), 1002),
    "a continuation of nothing": (frame(CONTINUATION, b"x"), 1002),
    "a message within a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    "a length that is not the shortest": (b"\x81\xfe\x00\x01" + bytes(5), 1002),
    "a negative length": (b"\x81\xff" + b"\xff" * 8, 1002),
    "a binary message": (frame(BINARY, CREATE_TURN), 1003),
    "a close with one byte": (frame(CLOSE, b"x"), None),
    "a close with a code of nobody": (frame(CLOSE, b"\x03\xec"), None),
    "a close with bad UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), None),
    "a close and more": (
        frame(CLOSE, b"\x03\xe8") + frame(PING) * 3 + frame(TEXT, CREATE_TURN),
        1000,
    ),
    "a close without a code": (frame(CLOSE), None),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
    "nothing and then the end": (b"", None),
    "half a frame and then the end": (frame(TEXT, CREATE_TURN)[:9], None),
}
# What names an account, in words about the request: those the client needs.
NAMING_ERRORS: Final = [
    ("Request too large for gpt-5 in organization org-abcDEF123 on TPM: Limit 3, Requested 4",
     "Request too large for gpt-5 in organization [...] on TPM: Limit 3, Requested 4"),
    ("acct_1234567 may not use the tool", "[...] may not use the tool"),
    ("file of jane.doe+x@mail.example.com is gone", "file of [...] is gone"),
    ("Half a pair \ud800, of proj_abcdef12", "of [...]"),
    ("Project proj_abcdef12 has no such file", "Project [...] has no such file"),
    ("key sk-ab********************cdef is bad", "key [...] is bad"),
    ("key sk-...AbCd and gsk_ab...cdef", "key [...] and [...]"),
    ("in organization org-abc on tokens per min", "in organization [...] on tokens per min"),
    ("see below:\norg-abcDEF123", "see below:\\n[...]"),
    ("of 4f2c7a9e-3b1d-4c5e-8f60-123456789abc only", "of [...] only"),
    ("bad key gsk_abcdefgh1 in AIzaSyA1234567, xai-abCdefg and hf_abcdef7",
     "bad key [...] in [...], [...] and [...]"),
]  # fmt: skip
