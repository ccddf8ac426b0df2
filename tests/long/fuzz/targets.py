"""What each parser must hold for every input, as functions of bytes.  (No claims.)

A function returns, or fails with what it is: an AssertionError for a broken invariant, anything
else for an exception that nobody foresaw.  `TARGETS` has them by name, with inputs to begin from.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Final, NamedTuple

import h11
import trio

import mcp_server
import pooler
from pooler import BadSyntax, CallKind, EventScanner, LoginNeeded, PoolerError
from tests.support.frames import frame
from tests.support.limits import with_limits
from tests.support.memory_websockets import UPGRADE
from tests.support.paths import ROOT, SNAPSHOT, VECTORS

Json = Any
LIMITS: Final = pooler.Limits()
SMALL: Final = {"json_separators_max": 1000, "event_bytes_max": 1024}
FRAME_BYTES_MAX, FRAMES_MAX = 500, 16
KEY: Final = "cp-fuzzed-key-0123456789"
UNIX_NOW: Final = 1_800_000_000.0


def pieces_of(data: bytes) -> list[bytes]:
    """`data` cut anywhere; where depends on it alone."""
    rng = random.Random(data)
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(0, 8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def check_refusal(error: PoolerError) -> None:
    """It is the client's fault, and is told."""
    assert 400 <= error.status < 500
    assert json.loads(error.content()[0])["error"]["code"] in pooler.ERRORS


def check_problems(problems: Sequence[str], secret: str) -> None:
    assert problems
    assert secret not in "".join(problems)


def head_of(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


################################################################
# HTTP
################################################################


def joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Fields of one name in one, as RFC 9110 §5.3 has them."""
    found: dict[str, str] = {}
    for name, value in pairs:
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def check_fields(headers: Mapping[str, str], raw: bytes) -> None:
    """As two other readers understand them."""
    lines = raw[:-4].split(b"\r\n")[1:]
    naive = [line.partition(b":") for line in lines]
    expected = [(n.decode().lower(), v.strip(b" \t").decode("latin-1")) for n, _, v in naive]
    assert headers == joined(expected)
    parsed = BytesParser(policy=HTTP).parsebytes(raw.partition(b"\r\n")[2])
    names = [name.lower() for name in parsed.keys()]  # noqa: SIM118 (it may hold a name twice)
    assert list(dict.fromkeys(names)) == list(headers)
    for value in headers.values():
        assert not any((ord(char) < 32 and char != "\t") or ord(char) == 127 for char in value)


def request_head(data: bytes) -> None:
    raw = head_of(data)
    try:
        head = pooler.parse_request_head(raw)
    except PoolerError as error:
        check_refusal(error)
        return
    check_fields(head.headers, raw)
    other = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    other.receive_data(raw)
    event = other.next_event()
    assert isinstance(event, h11.Request)
    target = head.path + ("?" + head.query if b"?" in event.target else "")
    assert (event.method, event.target) == (head.method.encode(), target.encode())
    others = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
    coding = "transfer-encoding"  # whose value h11 gives in lower case
    ours = {name: v.lower() if name == coding else v for name, v in head.headers.items()}
    assert joined(others) == ours
    pooler.find_routes(head.path, "")
    pooler.bearer_of(head.headers)
    pooler.basic_of(head.headers)
    with contextlib.suppress(PoolerError):
        made = pooler.upgrade_head(head)
        pooler.parse_request_head(made)


def response_head(data: bytes) -> None:
    raw = head_of(data)
    try:
        head = pooler.parse_response_head(raw)
    except BadSyntax:
        return
    check_fields(head.headers, raw)
    pooler.read_quota_headers(head.headers)
    pooler.is_upgraded(head, "dGhlIHNhbXBsZSBub25jZQ==")
    fault = pooler.classify_response(head.status, head.headers, data[len(raw) :], UNIX_NOW)
    if head.status >= 300:
        assert 400 <= fault.error.status < 600


def chunks(data: bytes) -> None:
    """In any pieces the same body; what h11 refuses is refused."""

    def read(parts: Sequence[bytes]) -> tuple[bytes, bool, bytes] | None:
        reader = pooler.ChunkReader()
        body = rest = b""
        try:
            for part in parts:
                if reader.is_done:
                    rest += part
                else:
                    body += reader.feed(part)
        except BadSyntax:
            return None
        return body, reader.is_done, (reader.unread + rest if reader.is_done else b"")

    found = read([data])
    assert read(pieces_of(data)) == found or found is None or not found[1]
    assert found is None or read([data[at : at + 1] for at in range(len(data))]) == found
    if found is not None and found[1]:
        other = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        other.receive_data(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data
        )
        body = b""
        while not isinstance(event := other.next_event(), h11.EndOfMessage):
            body += bytes(event.data) if isinstance(event, h11.Data) else b""
        assert body == found[0]


def frames(data: bytes) -> None:
    """The meter passes on what it was given, text as binary, and in any pieces refuses alike."""

    def read(parts: Sequence[bytes]) -> tuple[bytes, int, bool]:
        meter = pooler.FrameMeter(FRAME_BYTES_MAX, FRAMES_MAX)
        passed = b""
        for part in parts:
            left = part
            while left and not meter.is_over:
                step = meter.feed(left)
                passed, left = passed + step, left[len(step) :]
        assert meter.bytes_pending <= FRAME_BYTES_MAX
        return passed, meter.refused, meter.is_closed

    whole, refused, is_closed = read([data])
    passed, *others = read(pieces_of(data))
    assert others == [refused, is_closed]
    # Of a frame that is refused the head alone may have passed, in pieces.
    assert passed.startswith(whole)
    assert len(passed) - len(whole) in range(14)
    assert len(passed) <= len(data)
    changed = [(was, now) for was, now in zip(data, passed, strict=False) if was != now]
    assert all((was & 0x0F, was ^ now) == (0x1, 0x3) for was, now in changed)


################################################################
# BODIES AND STREAMS
################################################################


def body(data: bytes) -> None:
    with_limits(SMALL)
    try:
        for _ in pooler.check_json_shape(data):
            pass
        value = pooler.parse_json_object(pooler.decode_body(data))
    except PoolerError as error:
        check_refusal(error)
        return
    assert json.loads(data.decode("utf-8")) == value
    if isinstance(value.get("model"), str):
        changed = json.loads(pooler.dump_json(value | {"model": "other"}))
        assert changed == value | {"model": "other"}
    kept = pooler.drop_reasoning(value)
    assert kept is None or kept.keys() == value.keys()


def stream(data: bytes) -> None:
    """In any pieces the same events, which are the bytes that came."""
    with_limits(SMALL)
    for kind in CallKind:
        scanner, other = EventScanner(kind), EventScanner(kind)
        events = scanner.feed(data) + scanner.feed(b"", is_end=True)
        assert data.startswith(b"".join(event.raw for event in events))
        in_pieces = [one for piece in pieces_of(data) for one in other.feed(piece)]
        in_pieces += other.feed(b"", is_end=True)
        assert in_pieces == events
        assert (other.terminal, other.failure, other.usage) == (
            scanner.terminal,
            scanner.failure,
            scanner.usage,
        )
        if scanner.failure is not None:
            fault = pooler.classify_event(scanner.failure, UNIX_NOW)
            assert fault is None or fault.error.status >= 400
            pooler.failed_response(scanner.failure, UNIX_NOW).content()
        for call_kind in CallKind:
            last = scanner.failure_event(PoolerError("upstream_error"), "r" * 20, call_kind)
            assert pooler.load_object(pooler.event_data(last))


################################################################
# TRANSLATION
################################################################


def objects_of(data: bytes) -> dict[str, Json]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def requests(data: bytes) -> None:
    """To a ChatGPT account: a refusal, or a body that its backend knows."""
    value = objects_of(data)
    for kind in CallKind:
        pooler.codex_obstacle(kind, value)
        try:
            made = pooler.to_codex(kind, value, "gpt-5.5", ("low", "high"))
        except PoolerError as error:
            check_refusal(error)
            continue
        assert (made["store"], made["stream"], made["model"]) == (False, True, "gpt-5.5")
        assert all(isinstance(item, dict) for item in made["input"])
        pooler.dump_json(made)


def answers(data: bytes) -> None:
    """From a ChatGPT account: events that parse, one end, and JSON as a whole."""
    scanner = EventScanner(CallKind.RESPONSES)
    events = scanner.feed(data) + scanner.feed(b"", is_end=True)
    for is_whole in (False, True):
        for answer in (
            pooler.ResponsesTranslator(pooler.OutputCollector(10_000, is_whole)),
            pooler.ChatTranslator(
                pooler.OutputCollector(10_000, is_whole),
                request_id="r",
                model="m",
                include_usage=True,
            ),
        ):
            with contextlib.suppress(BadSyntax):
                told = b"".join([answer.feed(event) for event in events])
                if isinstance(answer, pooler.ChatTranslator):
                    assert told.count(b"data: [DONE]\n\n") <= 1
                    assert all(pooler.event_data(e)[:1] in b"{[" for e in told.split(b"\n\n") if e)
            pooler.dump_json(answer.whole())


################################################################
# FILES, AND THE OPERATOR'S SIDE
################################################################


def read_no_file(name: str) -> str:
    raise FileNotFoundError(2, "No such file", name)


def config(data: bytes) -> None:
    """A configuration, or problems, which tell no secret."""
    secret = "sk-secret-of-the-environment"
    try:
        found = pooler.parse_config(data, {"SECRET": secret}, read_no_file)
    except pooler.ConfigRefused as refused:
        check_problems(refused.problems, secret)
        return
    assert found.pools
    for key in found.keys:
        assert key.pool in found.pools
    pooler.Roster(found)


def login(data: bytes) -> None:
    with contextlib.suppress(LoginNeeded):
        found = pooler.parse_auth_file(data)
        pooler.is_refresh_due(found, UNIX_NOW, 300)
        merged = pooler.merge_tokens(data, b'{"access_token": "a.b.c"}', UNIX_NOW)
        assert pooler.reveal(pooler.parse_auth_file(merged).access_token) == "a.b.c"
    for status in (200, 400, 401, 500):
        pooler.classify_refresh(status, data)
    pooler.read_catalogue(data)
    pooler.read_quota_event(objects_of(data))


SHOWN: Final[Json] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def explain_nothing(_pool: str, _model: str, _session: str | None) -> Json:
    raise LookupError


def mcp(data: bytes) -> None:
    """One message, whatever it is, has an answer of the protocol."""
    fields = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    answer = functools.partial(
        mcp_server.answer,
        operator="desk",
        parse=pooler.parse_mcp_message,
        snapshot=lambda: SHOWN,
        explain=explain_nothing,
    )
    status, _, told = trio.run(answer, fields, data)
    assert status in {200, 202, 400, 404, 406, 415}
    assert not told or json.loads(told)["jsonrpc"] == "2.0"


################################################################
# ALL OF THEM
################################################################


class Target(NamedTuple):
    one: Callable[[bytes], None]
    corpus: Sequence[bytes]


def vectors(name: str) -> list[Json]:
    found: list[Json] = json.loads((VECTORS / name).read_text(encoding="utf-8"))
    return found


def streams() -> list[bytes]:
    texts = [path.read_bytes() for path in sorted(VECTORS.glob("*.txt"))]
    names = ("responses-responses.json", "chat-responses.json")
    made = [
        b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in vector["events"])
        for name in names
        for vector in vectors(name)
    ]
    framed = [b"".join(b"data: " + line + b"\r\n\r\n" for line in t.splitlines()) for t in texts]
    return [one[:4000] for one in (*made, *framed, b"data: [DONE]\n\n")]


def bodies() -> list[bytes]:
    names = ("responses-requests.json", "chat-requests.json")
    return [json.dumps(one["request"]).encode() for name in names for one in vectors(name)]


HEADS: Final = (
    (
        b"POST /v1/responses?a=b HTTP/1.1\r\nHost: localhost:8787\r\nContent-Length: 5\r\n"
        b"Authorization: Bearer cp-key\r\nContent-Type: application/json\r\n\r\nhello"
    ),
    b"GET /admin HTTP/1.0\r\nAuthorization: Basic dTpw\r\nConnection: keep-alive\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
    b"GET /v1/responses HTTP/1.1\r\nHost: a\r\n"
    + b"".join(f"{name}: {value}\r\n".encode() for name, value in UPGRADE)
    + b"\r\n",
    (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
        b"x-codex-primary-used-percent: 12\r\nx-codex-primary-window-minutes: 300\r\n\r\n"
    ),
    (
        b"HTTP/1.1 429 Too Many\r\nContent-Length: 2\r\nRetry-After: 3\r\n\r\n"
        b'{"error":{"type":"usage_limit_reached","resets_in_seconds":60}}'
    ),
    (
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    ),
)
CHUNKED: Final = (
    b"5\r\nhello\r\n0\r\n\r\n",
    b"a\r\n0123456789\r\n1\r\nx\r\n0\r\nA: b\r\n\r\nGET",
    b"0" * 9,
)
FRAMED: Final = (
    frame(1, b"hello") + frame(9) + frame(8, b"\x03\xe8"),
    frame(1, b"a" * 130, fin=False) + frame(0, b"b" * 300) + frame(10, b"x", mask=b""),
)
CONFIGS: Final = (
    (ROOT / "pools.json.example").read_bytes(),
    b'{"accounts": {"a": {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key": '
    b'"{env:SECRET}"}}, "pools": {"p": {"accounts": ["a"], "keys": {"k": "'
    + KEY.encode()
    + b'"}}}}',
)
LOGINS: Final = (
    (
        b'{"tokens": {"access_token": "e30.eyJleHAiOiAxODAwMDAwMDAwfQ.c2ln", "refresh_token": "r", '
        b'"account_id": "acct", "id_token": "e30.e30.c2ln"}, '
        b'"last_refresh": "2026-01-01T00:00:00Z"}'
    ),
    b'{"OPENAI_API_KEY": "sk-x"}',
    b'{"error": {"code": "refresh_token_expired"}}',
    b'{"models": [{"slug": "gpt-5.5", "supported_reasoning_levels": [{"effort": "low"}]}]}',
    (
        b'{"type": "codex.rate_limits", "rate_limits": {"primary": {"used_percent": 5, '
        b'"window_minutes": 300, "reset_at": 1800000100}}}'
    ),
)
MESSAGES: Final = (
    b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}',
    (
        b'{"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": {"name": '
        b'"codex_pooler_explain_routing", "arguments": {"pool_selector": "home", "model": "m"}}}'
    ),
    (
        b'{"jsonrpc": "2.0", "id": 2, "method": "initialize", "params": {"protocolVersion": '
        b'"2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}}'
    ),
    b'{"jsonrpc": "2.0", "method": "notifications/initialized"}',
    b"[]",
)


TARGETS: Final[dict[str, Target]] = {
    "request_head": Target(request_head, HEADS[:4]),
    "response_head": Target(response_head, HEADS[4:]),
    "chunks": Target(chunks, CHUNKED),
    "frames": Target(frames, FRAMED),
    "body": Target(body, bodies()),
    "stream": Target(stream, streams()),
    "requests": Target(requests, bodies()),
    "answers": Target(answers, streams()),
    "config": Target(config, CONFIGS),
    "login": Target(login, LOGINS),
    "mcp": Target(mcp, MESSAGES),
}
