"""Proves that nothing that is legal holds the loop for longer than a moment.

Method: of each kind of bytes that a client or an upstream may send, the largest that its limit
allows, in the shapes that take longest; the processor time of each step between two moments at
which others may run is printed, and bounded.  A slower machine has as much more time as it takes
for the same work.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pytest

import mcp_server
import pooler
from pooler import CallKind, Event, EventKind, Limits
from tests.long.linear_time import (
    NAMED,
    PATTERNS,
    RESPONSES,
    Run,
    methods_of,
    seconds_of,
    worst_use,
)
from tests.support.memory_sockets import Json
from tests.support.world import describe, make_config

pytestmark: Final = pytest.mark.measures

LIMITS: Final = Limits()
KIB: Final = 1024
MIB: Final = KIB * KIB
SECONDS_MAX: Final = 0.15
# Long numbers with a fraction, which Python is slow to write: nobody sends as many.
SECONDS_MAX_OF_NUMBERS: Final = 0.3
REFERENCE_SECONDS: Final = 0.03  # of `work` on the machine that SECONDS_MAX is of
EVENT: Final = pooler.EVENT_BYTES_MAX - 200  # with room for what stands around it
PIECE: Final = pooler.RECEIVE_BYTES + pooler.HEAD_BYTES_MAX  # what may come in one step
Maker = Callable[[], Run]  # what makes it ready is not its time


def work() -> None:
    """Some of what is measured here: reading, writing, counting, copying."""
    value = json.loads(json.dumps([{"a": index, "b": "x" * 20} for index in range(10_000)]))
    raw = json.dumps(value).encode() * 8
    assert raw.count(b"[") + len(raw.replace(b"x", b"").split(b'"')) > 0


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """A test run has many times as many objects as the pooler, among which garbage is sought."""
    gc.freeze()
    yield
    gc.unfreeze()


def slowness() -> float:
    """How many times as long as there the same work takes here, and now."""
    return max(1.0, seconds_of(work) / REFERENCE_SECONDS)


def check(name: str, make: Maker, seconds_max: float = SECONDS_MAX) -> None:
    """What seems to take long is made and run again: a busy machine only adds to it."""
    took = seconds_of(make())
    for _ in range(5):
        if took < 0.8 * seconds_max:
            break
        took = min(took, seconds_of(make()) / slowness())
    sys.stdout.write(f"{name}: {took * 1000:.0f} ms\n")
    assert took < seconds_max, name


def ready(run: Callable[..., object], *arguments: Any) -> Maker:  # noqa: ANN401
    """A run that needs nothing made for it; what is refused has taken its time as well."""

    def tried() -> None:
        with contextlib.suppress(pooler.BadSyntax, pooler.PoolerError):
            run(*arguments)

    return lambda: tried


################################################################
# PATTERNS, WITH THE LONGEST TEXT OF EACH
################################################################

HEAD: Final = pooler.HEAD_BYTES_MAX
FILE, CONFIG = pooler.SECRET_FILE_BYTES_MAX, pooler.CONFIG_BYTES_MAX
LONGEST: Final[Mapping[str, int]] = {
    **dict.fromkeys(("_BASIC", "_BEARER", "_HOST_FIELD", "_LENGTH", "_QUOTA_HEADER"), HEAD),
    **dict.fromkeys(("_STATUS_LINE", "_FIELD_LINES", "_FIELD", "_BARE_LF"), HEAD),
    **dict.fromkeys(("_WEBSOCKET_KEY", "_REQUEST_LINE", "_LOOPBACK_ORIGIN"), HEAD),
    **dict.fromkeys(("_TOKEN_TEXT", "_ACCOUNT_ID", "_REVOKED_CODES"), FILE),
    **dict.fromkeys(("_USER_CODE", "_CODE_WORD", "_NAME_IN_JSON"), FILE),
    **dict.fromkeys(("_ADDRESS", "_SHA256", "_REFERENCE", "_BASE_URL", "_PROXY_URL"), CONFIG),
    "_NOTIFY_URL": CONFIG,
    **dict.fromkeys(("_VARIABLE_NAME", "_check_presented", "_members"), CONFIG),
    **dict.fromkeys(("_Resolver.digest", "_Resolver.api_key", "run_status"), CONFIG),
    **dict.fromkeys(("_plain", "_plain_name"), CONFIG),
    "_PARTS_OF_NAME": pooler.DOUBTED_CHARS_MAX,
    "_PLACEHOLDER_HOST": 127 * 64,  # `_HOST_NAME` took it
    "_UNMEANT_NAME": pooler.MODEL_CHARS_MAX,
    "_path": CONFIG,
    **dict.fromkeys(
        ("_VARIABLE", "_ASSIGNMENT", "_PLACEHOLDER", "_SCHEME"), pooler.DOUBTED_CHARS_MAX
    ),
    **dict.fromkeys(("doubt_of_secret", "_name_problem"), pooler.DOUBTED_CHARS_MAX),
    "describe_bad_json": 2 * pooler.SHOWN_CHARS_MAX,
    **dict.fromkeys(("_LOOSE_SIZE", "_LOOSE_SIZE_PART"), PIECE),
    **dict.fromkeys(("_CHUNK_SIZE", "_CHUNK_SIZE_PART", "_EVENT_END", "_EVENT_END_AT_EOF"), PIECE),
    **dict.fromkeys(
        ("_TYPE_FIRST", "_TYPE_FIRST_IN_MESSAGE", "_NUMBER", "_CHAT_CONTENT", "_CHAT_NOTABLE"),
        EVENT,
    ),
    **dict.fromkeys(("_CODE_TOKEN", "_FAMILY", "_FAILED_STATUS", "_WORDY_CODE"), EVENT),
    **dict.fromkeys(
        ("_POLICY_CODES", "_CAMEL", "_NO_ROUTE_CODES"), 80
    ),  # of what `_CODE_TOKEN` took
    **dict.fromkeys(("_CREDENTIAL_WORDS", "_ACCOUNT_WORDS", "_LIMIT_WORDS", "_DENIAL_WORDS"), 80),
    **dict.fromkeys(("_MODEL_WORDS", "_FAILURE_WORDS", "_OVERLOAD_WORDS", "_TIMEOUT_WORDS"), 80),
    **dict.fromkeys(("_THROTTLED", "_MARKUP", "_FLAGGED"), pooler.MESSAGE_CHARS_MAX),
    **dict.fromkeys(("_CONTROL", "_PRIVATE", "_HOST_ADDRESS"), pooler.MESSAGE_CHARS_MAX),
    "_ACCOUNT_NAMES": pooler.NAMED_BYTES_MAX + 5 * pooler.MESSAGE_CHARS_MAX,
    **dict.fromkeys(("_UNREADABLE", "_ASKED", "_NO_MODEL"), pooler.MESSAGE_CHARS_MAX),
    **dict.fromkeys(
        ("_RETRY_HINT", "_RETRY_MOMENT", "_SPAN", "_NO_ROUTE"), pooler.MESSAGE_CHARS_MAX
    ),
    "_SOME_LINES": PIECE,
    "_EVENT_END_WITHOUT_CR": PIECE,  # of blank lines; a longer event has none
    "read_catalogue": pooler.CATALOGUE_BYTES_MAX,
    **dict.fromkeys(("_USAGE_WORDS", "_RETRIED_DIGITS"), pooler.MODEL_CHARS_MAX),
    "_STREAM_ID": pooler.WEBSOCKET_MESSAGE_BYTES_MAX,
    **dict.fromkeys(("_CODEX_AGENT", "_VERSION_ASKED", "_PLAIN_VERSION"), HEAD),
    "_PROCESSED": KIB,
    # Not foreign at all, or cut before.
    **dict.fromkeys(("plain", "demo_events"), KIB),
    "_UNSAFE": MIB,  # what `pooler status` prints
    "word": mcp_server.WORD_CHARS_MAX,
    "sentence": mcp_server.ADVICE_CHARS_MAX,
    **dict.fromkeys(("ZONE", "size_of"), HEAD),  # of the query of /admin
}


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_no_pattern_takes_long_over_the_longest_text_that_it_is_given(
    module: str, name: str
) -> None:
    pattern = PATTERNS[module].found[name]
    words, run = worst_use(pattern, methods_of(module, name), LONGEST[name])
    check(f"{name}, {LONGEST[name]}: {words}", lambda: run)


################################################################
# JSON, AS LARGE AS IT MAY BE
################################################################


def many(count: int, member: bytes) -> bytes:
    return b"[" + b",".join([member] * count) + b"]"


def named(count: int, text: bytes) -> bytes:
    return b"{" + b",".join(b'"%d":"%b"' % (index, text) for index in range(count)) + b"}"


def shapes(byte_count: int, members: int) -> Mapping[str, Callable[[], bytes]]:
    """JSON of at most so many bytes and members, each of another kind."""
    each = max(1, byte_count // members - 12)  # for each member
    return {
        "one text": lambda: b'"' + b"a" * (byte_count - 2) + b'"',
        "umlauts": lambda: b'"' + "é".encode() * (byte_count // 2 - 1) + b'"',
        "emoji": lambda: b'"' + "\U0001f600".encode() * (byte_count // 4 - 1) + b'"',
        "escaped quotes": lambda: b'"' + b'\\"' * (byte_count // 2 - 1) + b'"',
        "escaped letters": lambda: b'"' + b"\\u00e9" * (byte_count // 6 - 1) + b'"',
        "half a character": lambda: b'"\\ud800' + b"a" * (byte_count - 8) + b'"',
        "brackets in a text": lambda: b'"' + b'[\\",{\\\\' * (byte_count // 8 - 1) + b'"',
        "members": lambda: named(members - 1, b"x"),
        "long members": lambda: named(members - 1, b"x" * each),
        "escaped members": lambda: named(members - 1, b'\\"' * (each // 2)),
        "empty objects": lambda: many(members // 2 - 1, b"{}"),
        "small objects": lambda: many(members // 2 - 1, b'{"a":1}'),
        "deep lists": lambda: many(members // 80 - 1, b"[" * 78 + b"]" * 78),
        "texts": lambda: many(members - 2, b'"abc"'),
        "whole numbers": lambda: many(members - 2, b"1" * 32),
        "numbers": lambda: many(members - 2, b"1.7976931348623157e308"),
        "long numbers": lambda: many(members - 2, b"0." + b"7" * min(each, 150)),
        "one number": lambda: b"0." + b"7" * (byte_count - 2),
    }


SHAPES: Final = shapes(100, 100)  # their names


@pytest.mark.parametrize("unit", [b"]", b"] ", b"}\n", b"]x}"])
def test_no_brackets_that_only_close_take_long(unit: bytes) -> None:
    """No JSON has them; each may stand for as little as a byte."""
    body = b"[]" * (pooler.BODY_DEPTH_MAX + 1)
    event = b"[]" * (pooler.JSON_DEPTH_MAX + 1)
    asked = body + unit * ((LIMITS.body_bytes_max - len(body)) // len(unit))
    check(f"{unit!r}, of a client", ready(pooler.check_members, asked, pooler.JSON_SEPARATORS_MAX))
    check(f"{unit!r}, parsed", ready(pooler.parse_json_object, asked.decode()))
    check(
        f"{unit!r}, of an upstream",
        ready(pooler.try_load_object, b'{"a":' + event + unit * (EVENT // 4)),
    )


################################################################
# HEADS AND FRAMING
################################################################


def filled(before: bytes, unit: bytes, behind: bytes, byte_count: int) -> bytes:
    return before + unit * ((byte_count - len(before) - len(behind)) // len(unit)) + behind


ASKED: Final = b"POST /v1/responses HTTP/1.1\r\nHost: a"
HEADS: Final[Mapping[str, Callable[[], object]]] = {
    "a long field": lambda: pooler.parse_request_head(
        filled(ASKED + b"\r\nA: ", b"b", b"\r\n\r\n", HEAD)),
    "a hundred fields": lambda: pooler.parse_request_head(
        ASKED + b"".join(b"\r\nconnection: %b" % (b"a," * 150) for _ in range(98)) + b"\r\n\r\n"),
    "an answer's fields": lambda: pooler.parse_response_head(
        filled(b"HTTP/1.1 200 OK", b"\r\na:", b"\r\n\r\n", HEAD)),
    "an answer's quota": lambda: pooler.read_quota_headers(
        {f"x-{index}-primary-used-percent": "1" for index in range(HEAD // 30)}),
    "chunks": lambda: pooler.ChunkReader().feed(b"1\r\na\r\n" * (PIECE // 6)),
    "half a trailer": lambda: pooler.ChunkReader().feed(b"0\r\n" + b"a: b\r\n" * 1300),
    "frames": lambda: pooler.FrameMeter(MIB, 4096).feed(b"\x81\0" * (PIECE // 2)),
    "pings": lambda: pooler.FrameMeter(MIB, 65536).feed(b"\x89\0" * (PIECE // 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_no_head_and_no_framing_takes_long(name: str) -> None:
    check(name, ready(HEADS[name]))


################################################################
# EVENTS
################################################################

TINY: Final[Mapping[str, bytes]] = {
    "lf": b"\n\n", "cr": b"\r\r", "crlf": b"\r\n\r\n", "one-byte lines": b"a\n", "cr lines": b"a\r",
    "comments": b":\n\n", "no field": b"a\n\n", "no data": b"data\n\n", "empty data": b"data:\n\n",
    "objects": b"data:{}\n\n", "cr objects": b"data:{}\r\r", "lists": b"data:[]\n\n",
    "numbers": b"data:1\n\n", "no json": b"data:x\n\n", "done": b"data:[DONE]\n\n",
    "typed": b'data:{"type":"a"}\n\n', "keepalive": b'data:{"type":"keepalive"}\n\n',
    "quota": b'data:{"type":"codex.rate_limits"}\n\n', "errors": b'data:{"error":1}\n\n',
    "created": b'data:{"type":"response.created","response":{}}\n\n', "ids": b'data:{"id":1}\n\n',
    "items": b'data:{"type":"response.output_item.done","item":{}}\n\n',
    "calls": b'data:{"type":"response.output_item.added","item":{"type":"function_call"}}\n\n',
    "deltas": b'data:{"type":"response.output_text.delta","delta":"x"}\n\n',
    "annotations": b'data:{"type":"response.output_text.annotation.added","annotation":'
    b'{"type":"url_citation"}}\n\n',
    "choices": b'data:{"choices":[{}]}\n\n', "usage": b'data:{"id":{},"usage":{}}\n\n',
    "numbered": b'data:{"sequence_number":1}\n\n',
}  # fmt: skip


def take(make_response: Callable[[], Any], kind: CallKind, raw: bytes) -> None:
    """What an attempt does with what it receives, before anybody else may run."""
    answer = make_response()
    scanner = pooler.EventScanner(kind, is_translated=answer is not None)
    events = scanner.feed(raw)
    if answer is not None:
        for event in events:
            answer.feed(event)


@pytest.mark.parametrize("name", TINY)
def test_no_piece_of_tiny_events_takes_long(name: str) -> None:
    """As much as is received at once; also where other line ends come with it."""
    answers = ("none", "responses, collected", "chat")
    for end, answer in itertools.product((b"", b"\r\n\r\n"), answers):
        raw = TINY[name] * (PIECE // len(TINY[name])) + end
        for kind in CallKind if answer == "none" else [CallKind.RESPONSES]:
            label = f"{name}, {end!r}, {kind.name}, {answer}"
            check(label, ready(take, RESPONSES[answer], kind, raw))


# How an event says it, and for whom.
READ: Final = (
    (b'data: {"x":%b}\n\n', "none"),
    (b'data: {"x":1,"type":"response.output_item.done","item":{"x":%b}}\n\n', "chat, collected"),
    (b'data: {"x":1,"type":"response.completed","response":{"output":[],"x":%b}}\n\n', "responses"),
)
WRITTEN: Final = (
    (b'data: {"type":"response.completed","response":{"x":%b}}\n\n', "responses"),
    (b'data: {"x":1,"type":"error","headers":{},"error":{"message":%b}}\n\n', "responses"),
)


@pytest.mark.parametrize("name", SHAPES)
def test_no_event_takes_long(name: str) -> None:
    """The largest that is read, and the largest that is written anew."""
    largest = (
        (READ, EVENT, pooler.JSON_MEMBERS_MAX - 50),
        (WRITTEN, pooler.WRITTEN_BYTES_MAX - 200, pooler.WRITTEN_MEMBERS_MAX - 50),
    )
    for wraps, byte_count, members in largest:
        inside = shapes(byte_count, members)[name]()
        for wrap, answer in wraps:
            label = f"{len(inside) >> 10} KiB of {name}, {wrap[6:40]!r}, {answer}"
            check(label, ready(take, RESPONSES[answer], CallKind.RESPONSES, wrap % inside))


@pytest.mark.parametrize("line", [b"a\n", b"a\r\n", b"data:1\n", b"data:\r", b"data: 1,\n"])
def test_no_event_of_many_lines_takes_long(line: bytes) -> None:
    for extra, answer in itertools.product((0, 1), ("none", "responses", "chat, collected")):
        raw = b"data: {\n" + line * (pooler.EVENT_LINES_MAX - 2 + extra) + b"\n"
        label = f"{line!r}, {answer}"
        check(label, ready(take, RESPONSES[answer], CallKind.RESPONSES, raw))
    longest = line * (EVENT // len(line))
    check(f"{line!r} without end", ready(pooler.event_data, longest))


END: Final = b'data: {"type":"response.completed","response":{"output":null}}\n\n'


def answer_with(make_response: Callable[[], Any], item: Json, count: int) -> Any:  # noqa: ANN401
    """An answer that waits for nothing but its end."""
    answer = make_response()
    done = {"type": "response.output_item.done", "item": item}
    for index in range(count):
        event = b"data: " + json.dumps(done | {"output_index": index}).encode() + b"\n\n"
        answer.feed(Event(EventKind.CONTENT, event))
    return answer


def message_of(*parts: Json) -> Json:
    return {"type": "message", "content": [{"type": "output_text"} | part for part in parts]}


ITEMS: Final[Mapping[str, tuple[int, Json]]] = {
    "small": (pooler.OUTPUT_ITEMS_MAX, {"type": "function_call", "name": "f", "arguments": "{}"}),
    "large": (8, message_of({"text": "x" * 4_000_000})),
    "escaped": (8, message_of({"text": '"' * 1_900_000})),
    "wide": (8, message_of({"text": "é" * 600_000})),
    "numbers": (4, {"type": "x", "content": [1.7976931348623157e308] * 12_000}),
    "parts": (4, message_of(*[{"text": "x"}] * 3_000)),
    "notes": (4, message_of({"annotations": [{"type": "url_citation", "url": "u"}] * 4_000})),
    "summaries": (4, {"type": "reasoning", "summary": [{"text": "x"}] * 4_000}),
}  # fmt: skip
COLLECTOR: Final = functools.partial(pooler.OutputCollector, pooler.TRANSLATED_BYTES_MAX)
FILLED: Final[Mapping[str, Callable[[], Any]]] = {
    "responses": lambda: pooler.ResponsesTranslator(COLLECTOR(is_whole=True)),
    "chat": lambda: pooler.ChatTranslator(COLLECTOR(), request_id="r"),
    "collected": lambda: pooler.ChatTranslator(COLLECTOR(is_whole=True), request_id="r"),
}


@pytest.mark.parametrize("name", ITEMS)
@pytest.mark.parametrize("form", FILLED)
def test_the_end_of_a_large_answer_takes_no_longer(name: str, form: str) -> None:
    count, item = ITEMS[name]

    def end() -> Run:
        answer = answer_with(FILLED[form], item, count)
        return functools.partial(answer.feed, Event(EventKind.SUCCESS, END))

    def write() -> Run:
        answer = answer_with(FILLED[form], item, count)
        answer.feed(Event(EventKind.SUCCESS, END))
        return lambda: pooler.dump_json(answer.whole())

    check(f"{name}, {form}", end)
    check(f"{name}, {form}, as a whole", write)


@pytest.mark.parametrize("unit", ["a", "é", "\U0001f600", "\r"])
def test_no_message_of_a_websocket_takes_long(unit: str) -> None:
    for text in (unit * (EVENT // len(unit.encode())), "\n" * (pooler.EVENT_LINES_MAX - 2)):
        message = text.encode()
        for kind in CallKind:
            scanner = pooler.EventScanner(kind, is_socket=True)
            check(f"{message[:4]!r}, {kind}", ready(scanner.take_message, message))


################################################################
# WHOLE ANSWERS, REFUSALS, MODEL LISTS
################################################################


@pytest.mark.parametrize("name", SHAPES)
def test_no_answer_in_one_piece_takes_long_to_read(name: str) -> None:
    raw = shapes(pooler.UNARY_READ_BYTES_MAX, pooler.JSON_MEMBERS_MAX - 2)[name]()
    check(name, ready(pooler.load_json, raw))


@pytest.mark.parametrize(
    "words",
    ["encrypted content ", "model 'a' ", "try again in 1h1m1.1", "Limit 1, Used 1, Requested 1",
     "model a.b.c/d-e ", "could not be ", "' model ", "\\u00e9"],
)  # fmt: skip
def test_no_refusal_takes_long(words: str) -> None:
    text = words * (pooler.ERROR_BODY_BYTES_MAX // len(words) - 10)
    headers = {"content-type": "application/json"}
    for body in (f'{{"error":{{"message":"{text}"}}}}', f'{{"detail":"{text}"}}'):
        for status in (400, 404, 429):
            asked = (status, headers, body.encode(), 1.0)
            check(f"{words!r} with {status}", ready(pooler.classify_response, *asked))


@pytest.mark.parametrize("span", ["1s", "1m, and ", "9.9ms"])
def test_no_time_to_wait_takes_long_to_read(span: str) -> None:
    said = {"code": "rate_limit_exceeded", "details": [{"retryDelay": span * (EVENT // len(span))}]}
    check(span, ready(pooler.classify_event, said, 1.0))


@pytest.mark.parametrize("kind", CallKind)
def test_no_answer_takes_long_to_become_events(kind: CallKind) -> None:
    """What surrounds the items is in each event again."""
    surroundings = "x" * (pooler.WRITTEN_BYTES_MAX // 2)
    parts = {"id": surroundings, "type": "message", "content": [{"type": "output_text"}] * 2000}
    answer = {"id": surroundings, "choices": [{}] * 2000, "output": [parts]}
    check(kind.name, ready(pooler.events_of, answer, kind))


@pytest.mark.parametrize("name", SHAPES)
def test_no_model_list_takes_long_to_read(name: str) -> None:
    inside = shapes(pooler.CATALOGUE_BYTES_MAX - 50, pooler.CATALOGUE_MEMBERS_MAX - 50)[name]()
    for listed in (b'{"data":[{"id":"a","x":%b}]}', b'{"models":[{"slug":"a","x":%b}]}'):
        work = functools.partial(pooler.read_catalogue, is_codex=b"slug" in listed)
        check(f"{name}, {listed!r}", ready(work, listed % inside))


def test_no_model_list_takes_long_to_show() -> None:
    names = "abcdefghijkl"
    accounts = {name: {"models": None} for name in names}
    config = make_config(describe(names, accounts=accounts))
    pool, roster = config.pools["home"], pooler.Roster(config)
    indexes = range(pooler.CATALOGUE_MODELS_MAX)
    for name in names:
        entries = [{"slug": f"{name}{index}", "x": "y" * 1500} for index in indexes]
        raw = json.dumps({"models": entries}).encode()
        read = functools.partial(pooler.read_catalogue, is_codex=True)
        check("read", ready(read, raw))
        roster.health[name].catalogue = read(raw)
    for shown in (pooler.models_of, pooler.codex_models_of):
        check(shown.__name__, ready(shown, roster, pool, pool.keys[0]))


################################################################
# WHAT CLIENTS SEND
################################################################
# The parser itself is measured in test_json_guard.

BODY: Final = LIMITS.body_bytes_max
SEPARATORS: Final = pooler.JSON_SEPARATORS_MAX
ITEMS_MAX: Final = pooler.INPUT_ITEMS_MAX
PART: Final[Json] = {"type": "input_text", "text": "x"}
MESSAGE: Final[Json] = {"type": "message", "role": "user", "content": [PART]}
TOOL: Final[Json] = {"type": "function", "function": {}}
REASONING: Final[Json] = {"type": "reasoning", "encrypted_content": "x" * 100}


def said(*items: Json) -> Json:
    """A body of either API."""
    return {"input": list(items), "messages": list(items)}


BODIES: Final[Mapping[str, Callable[[], Json]]] = {
    "too many messages": lambda: {"input": [MESSAGE] * (SEPARATORS // 9)},
    "messages": lambda: said(*[MESSAGE] * (SEPARATORS // 10)),
    "long messages": lambda: said(
        *[{"role": "user", "content": "x" * (BODY // (2 * ITEMS_MAX))}] * ITEMS_MAX),
    "parts": lambda: said({"role": "user", "content": [PART] * (SEPARATORS // 3)}),
    "calls": lambda: said({"role": "assistant", "tool_calls": [{"function": {}}] * 66_000}),
    "tools": lambda: {"input": "x", "tools": [TOOL] * (SEPARATORS // 4)},
    "empty parts": lambda: said({"role": "user", "content": [{}] * (SEPARATORS // 2)}),
    "one text": lambda: {"input": "x" * BODY},
    "wide text": lambda: {"input": "\U0001f600" * (BODY // 4)},
    "half a character": lambda: {"input": "\ud800" + "x" * BODY},
    "names": lambda: {f"name{index}": 1 for index in range(SEPARATORS)} | {"input": "x"},
    "capital names": lambda: {f"M{index:04X}": 1 for index in range(SEPARATORS)},
    "reasoning": lambda: {"input": [REASONING] * (SEPARATORS // 3)},
    "numbers": lambda: {"input": [{"content": "x", "x": [1.7976931348623157e308] * SEPARATORS}]},
}  # fmt: skip


def translated(kind: CallKind, body: Json) -> object:
    """As an attempt does it."""
    return pooler.uncollected(pooler.to_codex, kind, body, "m", None)


STEPS: Final[Mapping[str, Callable[[Json], object]]] = {
    "check_names": pooler.check_names,
    "codex_obstacle, responses": lambda body: pooler.codex_obstacle(CallKind.RESPONSES, body),
    "codex_obstacle, chat": lambda body: pooler.codex_obstacle(CallKind.CHAT, body),
    "to_codex, responses": functools.partial(translated, CallKind.RESPONSES),
    "to_codex, chat": functools.partial(translated, CallKind.CHAT),
    "drop_reasoning": pooler.drop_reasoning,
    "dump_json": pooler.dump_json,
}


@pytest.mark.parametrize("name", BODIES)
def test_no_step_with_a_client_s_body_takes_long(name: str) -> None:
    body = BODIES[name]()
    for step, run in STEPS.items():
        seconds_max = SECONDS_MAX_OF_NUMBERS if name == "numbers" else SECONDS_MAX
        check(f"{name}, {step}", ready(run, body), seconds_max)
