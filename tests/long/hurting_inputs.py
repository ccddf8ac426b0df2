"""Inputs of any size, made to hurt a parser: bytes, texts, JSON, header fields.  (No claims.)

Each is a function from a size to a value.  What has hurt once is among them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.support.hostile_peers import (
    EMOJI,
    KIB,
    MIB,
    filled,
    wide,
)

Json = Any
Growing = Callable[[int], Any]

# Single bytes that mean something to somebody, pieces of what is parsed, words that are searched.
UNITS: Final = (
    " ", "\t", "\n", "\r", "\r\n", "\n\n", "\r\r", "a", "0", "-", ".", ",", ":", ";", "%", "=", "/",
    "+", "&", "\0", "\x7f", "\xff", '"', "\\", '\\"', "\\\\", "\\u00e9", "[", "]", "{", "{}", "[],",
    '"",', '{"a":', '{"a":1},', "1.5,", "1e5,", "a\n", "a\r", "a: b\r\n", "\r\na:b", "\r\na: b",
    "\r\nconnection: a", "\r\nContent-Length: 1", "\r\n1\r\na", "\r\n0\r\n", "1\r\n", "\x81\x00",
    "\x89\x00", "\x01\x00", "data", "data:\n", "data\n\n", "data:\n\n", "data:{}\n\n", "data:1\n\n",
    "data:{}\r\r", ":\n\n", "a\n\n", "event: x\n", "id: 1\n", '"sequence_number": 1', '"usage" ',
    '"error" : ', '"model":"', '"model": "x",', "encrypted content ", "could not be ", "model ",
    "model 'a' ", "'a' model ", "try again in ", "try again in 1h", "Limit 1, Used 1, ", "Limit 1",
    'data: {"type":"keepalive"}\n\n', 'data: {"type":"codex.rate_limits"}\n\n',
    'data: {"type":"response.created","response":{}}\n\n', 'data: {"choices":[{"delta":{}}]}\n\n',
    'data: {"type":"response.output_text.delta","sequence_number":1}\n\n', "gzip, ",
    "a, ", "bearer ",
)  # fmt: skip
WIDE: Final = ("é", "\u2028", "世", "\U0001f600", "\u017f", "\u212a")
# What such a run may stand in.
WRAPS: Final = (
    ('{"a":"', '"}'), ('{"a":[', "0]}"), ("data: ", "\n\n"), ('data: {"a":"', '"}\n\n'),
    ('{"error":{"message":"', '"}}'), ('{"detail":"', '"}'), ('{"data":[', "0]}"),
    ("POST / HTTP/1.1\r\nHost: a", "\r\n\r\n"), ("POST / HTTP/1.1\r\nHost: a\r\nB: ", "\r\n\r\n"),
    ("POST /", " HTTP/1.1\r\nHost: a\r\n\r\n"), ("HTTP/1.1 200 OK", "\r\n\r\n"), ("a.", ".c"),
    ('data: {"type":"error","message":"', '"}\n\n'), ('{"tokens":{"access_token":"', '"}}'),
)  # fmt: skip


def run_of(unit: str, before: str = "", behind: str = "") -> Growing:
    """So many characters, of one unit."""
    return lambda size: before + unit * max(1, size // len(unit)) + behind


def texts(rng: random.Random) -> Iterator[tuple[str, Growing]]:
    for unit in (*UNITS, *WIDE):
        yield f"{unit!r} * n", run_of(unit)
    for before, behind in WRAPS:
        for unit in rng.sample(UNITS, 8):
            yield f"{before!r} + {unit!r} * n", run_of(unit, before, behind)


def encoded(make: Growing) -> Growing:
    return lambda size: make(size).encode("utf-8", "replace")


def raw_inputs(rng: random.Random) -> Iterator[tuple[str, Growing]]:
    """Bytes: runs, JSON, and events that hold it."""
    for name, make in texts(rng):
        yield name, encoded(make)
    for name, make in values(rng):

        def as_json(size: int, make: Growing = make) -> bytes:
            return json.dumps(make(size)).encode()

        def as_event(size: int, make: Growing = make) -> bytes:
            return b"data: " + json.dumps(make(size)).encode() + b"\n\n"

        yield f"JSON of {name}", as_json
        yield f"event of {name}", as_event


################################################################
# JSON
################################################################

LISTS: Final = (
    "input", "messages", "content", "output", "tools", "tool_calls", "choices", "include", "models",
    "data", "summary", "annotations", "organizations", "supported_reasoning_levels",
)  # fmt: skip
MEMBERS: Final[tuple[Json, ...]] = (
    {}, [], "x", 1, None, 1.5, [[]], {"role": "user", "content": "x"}, {"type": "reasoning"},
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "x"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
    {"type": "function", "function": {"name": "f", "parameters": {}}}, {"type": "mcp"},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text"}]},
    {"type": "compaction", "encrypted_content": "x"}, {"role": "tool", "content": "x"},
    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]},
    {"type": "output_text", "text": "x", "annotations": [{"type": "url_citation", "url": "u"}]},
    {"type": "image_url", "image_url": {"url": "u"}}, {"type": "file", "file": {"file_id": "f"}},
    {"type": "summary_text", "text": "x"}, {"id": "m", "slug": "m", "effort": "low"},
    {"delta": {"content": "x"}, "finish_reason": "stop"}, {"type": "refusal", "refusal": "x"},
)  # fmt: skip
TEXTS: Final = (
    "message", "code", "detail", "delta", "text", "arguments", "name", "id", "instructions",
    "access_token", "id_token", "param", "reason", "resets_at", "limit_name", "model", "prompt",
)  # fmt: skip
KINDS: Final[tuple[Json, ...]] = (
    {"type": "message", "role": "user"}, {"type": "response.output_item.done", "output_index": 0},
    {"role": "tool"}, {"role": "assistant"}, {"type": "allowed_tools"}, {"type": "function"},
    {"type": "function_call_output"}, {"type": "response.completed", "status": "completed"},
    {"type": "response.output_text.delta"}, {"type": "function_call"}, {"type": "error"},
    {"type": "codex.rate_limits"}, {"type": "response.create", "model": "m1"},
    {"type": "response.function_call_arguments.done"}, {"type": "response.output_item.added"},
)  # fmt: skip
DEPTH: Final = 90


PLACES: Final = ("response", "item", "error", "tokens", "rate_limits", "delta", "usage", "function")
COPIES: Final = len(PLACES) + 1


def everywhere(kind: Json, **members: Json) -> Json:
    """An object with these members, at the top and in all places where one is looked for."""
    inner = {**kind, **members}
    return inner | {name: dict(inner) for name in PLACES if name not in inner} | kind


def chain(depth: int, opener: str = "[") -> Json:
    value: Json = 1
    for _ in range(depth):
        value = [value] if opener == "[" else {"type": "custom", "format": value}
    return value


def values(rng: random.Random) -> Iterator[tuple[str, Growing]]:
    """Objects of about so many bytes."""
    for member in MEMBERS:
        length = len(LISTS) * (len(json.dumps(member)) + 2) * COPIES
        for kind in rng.sample(KINDS, 2):

            def listed(
                size: int, kind: Json = kind, member: Json = member, length: int = length
            ) -> Json:
                return everywhere(kind, **{name: [member] * (size // length + 1) for name in LISTS})

            yield f"{kind} with lists of {member}", listed
    for unit in (*rng.sample(UNITS, 20), *WIDE):
        kind = rng.choice(KINDS)

        def told(size: int, kind: Json = kind, unit: str = unit) -> Json:
            text = unit * (size // (len(unit) * len(TEXTS) * COPIES) + 1)
            return everywhere(kind, **dict.fromkeys(TEXTS, text))

        yield f"{kind} with {unit!r} * n", told
    yield "many members", lambda size: {f"m{index}": index for index in range(size // 10 + 1)}
    yield "many deep lists", lambda size: {"input": [chain(9)] * (size // 20 + 1)}
    for opener in "[{":

        def deep(size: int, opener: str = opener) -> Json:
            inside = chain(min(DEPTH, size // 400), opener)
            return {"input": [inside], "tools": [inside], "format": inside}

        yield f"deep {opener}", deep
    yield "many digits", lambda size: {"resets_at": "1" * size, "retry-after": "9" * size}


################################################################
# HEADER FIELDS
################################################################

FIELDS: Final = (
    "authorization", "connection", "upgrade", "content-length", "transfer-encoding", "host",
    "retry-after", "retry-after-ms", "content-type", "x-codex-primary-used-percent", "session-id",
    "x-codex-active-limit", "sec-websocket-key", "sec-websocket-version", "content-encoding",
)  # fmt: skip


def fields(rng: random.Random) -> Iterator[tuple[str, Growing]]:
    for unit in rng.sample(UNITS, 30):

        def filled(size: int, unit: str = unit) -> dict[str, str]:
            return dict.fromkeys(FIELDS, unit * (size // (len(unit) * len(FIELDS)) + 1))

        yield f"fields of {unit!r} * n", filled
    for stem in ("x-a{}", "x-a-{}-primary-used-percent", "x-{}-codex"):

        def many(size: int, stem: str = stem) -> dict[str, str]:
            return {stem.format(index): "1" for index in range(size // 40 + 1)}

        yield f"many {stem}", many


BEGUN: Final = b'{"model":"m1","stream":true,"input":'
MEMBER_COUNT: Final = 198_000  # just below json_separators_max


def many_keys(size: int) -> bytes:
    """An object of about this size, none of whose names is like another."""
    count = min(size // 13, MEMBER_COUNT)
    return b"{" + b",".join(b'"k%07d":1' % at for at in range(count)) + b"}"


BODY_SHAPES: Final[dict[str, Callable[[int], bytes]]] = {
    "one emoji": lambda size: b'"' + wide(size) + b'"',
    "all emoji": lambda size: filled(b'"', EMOJI, b'"', size),
    "escaped emoji": lambda size: filled(b'"', b"\\ud83d\\ude00", b'"', size),
    "CJK": lambda size: filled(b'"', "漢".encode(), b'"', size),
    "one CJK": lambda size: b'"' + "漢".encode() + b"a" * size + b'"',
    "deep": lambda size: filled(
        b"[", b"[" * 90 + b"]" * 90 + b",", b"1]", min(size, MEMBER_COUNT * 2)
    ),
    "empty lists": lambda size: filled(b"[", b"[],", b"1]", min(size, MEMBER_COUNT * 3 // 2)),
    "small objects": lambda size: filled(b"[", b'{"a":1},', b"1]", min(size, MEMBER_COUNT * 4)),
    "many keys": many_keys,
    "too many members": lambda size: filled(b"[", b"[],", b"1]", size),
    "too deep": lambda size: filled(b"", b"[", b"", size),
}
# What is translated for an account of ChatGPT: the text in one message, many messages, tools.
CODEX_SHAPES: Final[dict[str, Callable[[int], bytes]]] = {
    "one emoji": lambda size: b'[{"role":"user","content":"' + wide(size) + b'"}]',
    "all emoji": lambda size: filled(b'[{"role":"user","content":"', EMOJI, b'"}]', size),
    "many messages": lambda _: (
        b"["
        + b",".join([b'{"role":"user","content":[{"type":"text","text":"a"}]}'] * 19_000)
        + b"]"
    ),
    "fewer messages": lambda _: (  # what is parsed of them is kept until it is translated
        b"[" + b",".join([b'{"role":"user","content":[{"type":"text","text":"a"}]}'] * 8_000) + b"]"
    ),
    "tools": lambda size: (
        b'"a","tools":[{"type":"function","name":"f","parameters":{"a":'
        + filled(b"[", b"[],", b"1]", min(size, MEMBER_COUNT * 3 // 2))
        + b"}}]"
    ),
}


def done_item(size: int) -> bytes:
    """A finished item of empty lists."""
    item = filled(b'{"type":"x","a":[', b"[],", b"1]}", size)
    return b'data: {"type":"response.output_item.done","item":' + item + b"}\n\n"


DETAIL: Final = b'{"detail":"' + wide(MIB - KIB) + b'"}'
LIST_PATHS: Final = {"a": "/v1/models", "c": "/backend-api/codex/models"}


def model_list(kind: str, count: int, pad: bytes) -> bytes:
    """A list of models as an account of this kind has it: with an API key (a) or ChatGPT's (c)."""
    names = ("data", "id") if kind == "a" else ("models", "slug")
    entry = b'{"%b":"m%%05d","pad":%b}' % (names[1].encode(), pad)
    entries = b",".join(entry % at for at in range(count))
    return b'{"%b":[%b]}' % (names[0].encode(), entries)


def padding(unit: bytes, size: int) -> bytes:
    return filled(b"[", unit, b"1]", size)
