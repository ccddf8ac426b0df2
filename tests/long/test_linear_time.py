"""Proves that no pattern and no parser takes more than linear time over what comes from outside.

Method: every pattern of both programs and every function that is given foreign bytes, text or JSON
is found in the source, and fed with inputs made to hurt it: its time must not grow faster than
they do.  One that nobody knows how to feed fails with its name.  Planted bad ones are found.  And
of what is legal, the largest and worst holds the loop for no longer than a moment.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final

import pytest

import pooler
from pooler import CallKind, Event, EventKind, Limits
from tests.long.hurting_inputs import Growing, fields, raw_inputs, texts, values
from tests.long.linear_time import (
    BY_ARGUMENT,
    NAMED,
    PATTERNS,
    RESPONSES,
    SOURCES,
    Maker,
    Parser,
    Run,
    check_pattern,
    growth,
    methods_of,
    parsers_of,
    patterns_of,
    seconds_of,
)
from tests.support.memory_sockets import Json
from tests.support.world import describe, make_config

pytestmark: Final = pytest.mark.measures

LIMITS: Final = Limits()
KIB: Final = 1024
MIB: Final = KIB * KIB
CHARS_MAX: Final = 16 * KIB  # quadratic work on so many shows

################################################################
# PATTERNS
################################################################

# What hurt a pattern once.
OLD_HURTS: Final = (
    "encrypted content ", '"model":"', '\\"model\\":', "model: model ", "model 'a' is ",
    "try again in 1h1m", "Limit 1, Used 1, ", '"usage" : ', "\r\n", "event: x", "a.", "a,",
)  # fmt: skip


def test_every_pattern_was_read() -> None:
    """Else it is named here, with the reason why that is well."""
    unread = {place for known in PATTERNS.values() for place in known.unread}
    assert unread <= set(BY_ARGUMENT)
    assert len(NAMED) > 40


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_the_time_of_a_pattern_is_linear(module: str, name: str) -> None:
    pattern = PATTERNS[module].found[name]
    assert check_pattern(pattern, methods_of(module, name), OLD_HURTS, CHARS_MAX) is None


BAD_PATTERNS: Final = [
    r"(a+)+b", r"(a|a)*b", r"(x+x+)+y", r"(\w+\s?)*$", r"^(([a-z])+.)+[A-Z]([a-z])+$",
    r"(?:a|ab|b)*c",
    r"(?s)encrypted content .*could not be (?:verified|decrypted)", r"a*a*b", r"\s*\n\s*x",
    r"(.*),(.*),x", r"\r\n([^:]+):", r"[a-z]+@", r"(?:[^\"]|\\.)*\"", r"(?i)try.+again.+in\d",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_PATTERNS)
def test_a_bad_pattern_is_found(text: str) -> None:
    for pattern in (re.compile(text), re.compile(text.encode())):
        assert check_pattern(pattern, {"search"}, (), CHARS_MAX) is not None


def test_patterns_are_found_wherever_they_are() -> None:
    source = (
        "import re\nA = re.compile('a')\nB = {'x': (re.compile('b'), 1)}\nPART = 'd'\n"
        "class C:\n    D = re.compile('c')\n    def f(self, x): re.sub(f'{PART}+', '', x)\n"
        "def g(pattern, x):\n    A.search(x)\n    return re.search(pattern, x), re.match('e', x)\n"
        "def h(x): return re.compile(rf'f{PART}').match(x)\n"
    )
    module = ModuleType("planted")
    exec(compile(source, "<planted>", "exec"), vars(module))  # noqa: S102 (five lines above)
    known = patterns_of(module, source)
    found = {name: pattern.pattern for name, pattern in known.found.items()}
    assert found == {
        "A": "a", "B['x'][0]": "b", "C.D": "c", "C.f": "d+", "g": "e", "h": "fd",
    }  # fmt: skip
    assert known.unread == ["g"]
    assert known.methods["A"] == {"search"}


################################################################
# PARSERS
################################################################
# What is fed, by its annotation.  Arguments of such a kind that are ours have a fixed value.

PARSED_CHARS: Final = 16 * KIB
FOREIGN: Final[Mapping[str, Callable[[random.Random], Iterator[tuple[str, Growing]]]]] = {
    "bytes": raw_inputs,
    "str": texts,
    "Headers": fields,
    **dict.fromkeys(
        (
            "Json", "JsonObject", "JsonDict", "Sequence[JsonObject]", "JsonDict | None",
            "Mapping[str, Json]", "dict[str, Json]", "Sequence[Mapping[str, Json]]",
            "dict[str, Json] | None", "Iterable[Json]", "Iterable[str]",
        ),
        values,
    ),
}  # fmt: skip
CONFIGURED: Final = make_config(describe("a"))
POOL: Final = CONFIGURED.pools["home"]
CALL: Final = pooler.read_call(
    pooler.call_route("/v1/chat/completions"), {"model": "m1"}, {}, POOL, POOL.keys[0]
)
# By name, whatever it is annotated with: several, if each is to be tried.
FAULT: Final = pooler.Fault(
    "x", pooler.Action.NEXT, pooler.Effect.LIMITED, pooler.PoolerError("upstream_error")
)
LOGIN: Final = pooler.Credentials(pooler.Secret("x"), None, None, None, None, None, b"")
FIXED: Final[Mapping[str, tuple[Any, ...]]] = {
    "limits": (LIMITS,), "now": (1.0,), "unix_now": (1.0,), "status": (400, 429), "pool": (POOL,),
    "key": (POOL.keys[0],), "call": (CALL,), "account": (POOL.accounts[0],), "model": ("m1",),
    "depth_max": (500,), "members_max": (10**5,), "bytes_max": (2**20,), "names": (("a", "b"),),
    "is_end": (False, True), "is_http_1_0": (False,), "is_reshaped": (False, True),
    "is_whole": (True,), "is_all": (True,), "number": (0,), "has_calls": (True,),
    "efforts": (None,), "supported": (("low",),),
    "carried": ((),), "socket_id": ("",), "routes": (pooler.ROUTES[-2:],), "method": ("GET",),
    "texts": ((0,),), "line": (b"GET / HTTP/1.1",),
    "obstacle": (None,), "index": (0,), "streamed": (None,), "deltas": ((),), "position": ({},),
    "session_before": (None,), "before": (None,), "scope": (("p", "k"),),
    "part": ((0, 0),), "member": ("content",), "name": ("content", "input", "delta"),
    "role": ("user", "assistant"), "default": (0,), "base_path": ("",),
    "family": ("codex",), "reason": ("x", None), "what": ("x",), "made": ("x",), "effort": ("low",),
    "request_id": ("r",), "timer": ("x",), "start_line": ("x",), "width": (80,), "digest": (b"",),
    "member_count": (1,), "repeatable": (("content-length", "a"),),
    "is_codex": (False, True), "alias": (pooler.Alias("m", "low", "flex"),),
    "fault": (FAULT,), "words": (pooler.read_error({"message": "Not Found " * 400}),),
    "config": (CONFIGURED,),
    "route": (pooler.call_route("/mcp"), pooler.call_route("/v1/responses")),
    "credentials": (LOGIN,), "margin_seconds": (300.0,),
    "decode": (pooler._LENIENT.decode,), "start": (0,),
    "tried": ((),), "template": ("{a}",), "place": ("",), "at": (1.0,), "session": (None,),
}  # fmt: skip
FRESH: Final[Mapping[str, Callable[[], Any]]] = {"streamed": pooler.StreamedItem}  # for each run
OF_KIND: Final[Mapping[str, tuple[Any, ...]]] = {
    "CallKind": tuple(CallKind),
    "EventKind": (EventKind.CONTENT, EventKind.SUCCESS, EventKind.FAILURE),
    "Event": (pooler.Event(EventKind.CONTENT, b"data: {}\n\n"),),
    "type": (list,),
    "type | tuple[type, ...]": (list,),
}
# A new one for each run: it keeps what it was given.
OWNERS: Final[Mapping[str, Callable[[], Any]]] = {
    "OutputCollector": lambda: pooler.OutputCollector(2**25, is_whole=True),
    "ChunkReader": pooler.ChunkReader,
    "Sessions": pooler.Sessions,
    "LengthReader": lambda: pooler.LengthReader(None),
    "FrameMeter": lambda: pooler.FrameMeter(2**20, 4096),
    "EventScanner": lambda: pooler.EventScanner(CallKind.RESPONSES),
    "ResponsesTranslator": lambda: pooler.ResponsesTranslator(
        pooler.OutputCollector(2**25, is_whole=True)
    ),
    "ChatTranslator": lambda: pooler.ChatTranslator(
        pooler.OutputCollector(2**25), request_id="r", include_usage=True
    ),
}
# Not fed, and why that is well: a section, or a function.
EXEMPT: Final[Mapping[str, str]] = {
    "CONFIGURATION": "pools.json is the operator's own",
    "SETUP": "what a person types and configures",
    "RECORDS": "a record and what is made of it is ours: names in it are cut, and cleaned",
    "Secret.__init__": "keeps what it is given",
    "_limit": "is given rows of the source",
    "_strict_decoder.read_float": "a part of `parse_strictly`, which is fed",
}
EVERY: Final = parsers_of(SOURCES["pooler"], FOREIGN, FIXED, "CONNECTIONS")
PARSERS: Final = [one for one in EVERY if not {one.name, one.section} & set(EXEMPT)]


@functools.cache
def inputs_of(kind: str) -> list[tuple[str, Growing]]:
    """The inputs of a kind; what cannot be changed is made once for all parsers."""
    found = list(FOREIGN[kind](random.Random(0)))
    is_lasting = kind in {"bytes", "str"}
    return [(words, functools.cache(make) if is_lasting else make) for words, make in found]


def calls_of(parser: Parser) -> Iterator[tuple[str, Maker]]:
    """Every way to call a parser with each of the inputs for it.

    Raises: LookupError, with the name of what nobody knows how to fill.
    """
    owner, _, name = parser.name.rpartition(".")
    kinds = dict(parser.arguments)
    ours = {one: FIXED.get(one) or OF_KIND.get(kind, ()) for one, kind in kinds.items()}
    ours = {one: known for one, known in ours.items() if known}
    foreign = [one for one in kinds if one not in ours and kinds[one] in FOREIGN]
    if unknown := kinds.keys() - ours.keys() - set(foreign):
        raise LookupError(f"{parser.name}: how to fill {sorted(unknown)}?")
    if owner and owner not in OWNERS:
        raise LookupError(f"{parser.name}: what {owner} to call it of?")
    for filled in itertools.product(*ours.values()):
        told = dict(zip(ours, filled, strict=True))
        for words, make in inputs_of(kinds[foreign[0]]):

            def run(size: int, told: dict[str, Any] = told, make: Growing = make) -> Run:
                value = make(size)
                fresh = {one: make_fresh() for one, make_fresh in FRESH.items() if one in told}
                arguments = told | fresh | {one: fitting(kinds[one], value) for one in foreign}
                called = getattr(OWNERS[owner]() if owner else pooler, name)
                return functools.partial(tried, called, arguments)

            yield f"{parser.name} with {told} and {words}", run


def fitting(kind: str, value: Any) -> Any:  # noqa: ANN401
    """A value, or about the same as one of another kind."""
    if kind == "bytes" and not isinstance(value, bytes):
        return b"data: " + json.dumps(value).encode() + b"\n\n"
    if kind == "str" and not isinstance(value, str):
        return str(value)
    if kind == "Headers" and not isinstance(value, dict):
        return {"retry-after": str(value)}
    return (
        None
        if kind in {"JsonDict | None", "dict[str, Json] | None"} and isinstance(value, bytes)
        else value
    )


def tried(called: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Whatever comes of it: only the time counts here."""
    with contextlib.suppress(Exception):
        made = called(**arguments)
        if isinstance(made, Iterator):
            list(made)


def check_growth(make: Maker, size: int) -> str | None:
    return growth(make, (size // 16, size // 4, size))


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_the_time_of_a_parser_is_linear(parser: Parser) -> None:
    for words, make in calls_of(parser):
        assert check_growth(make, PARSED_CHARS) is None, words


def test_the_parsers_are_found_and_none_is_exempt_without_need() -> None:
    names = {parser.name for parser in PARSERS}
    assert {"EventScanner.feed", "load_json", "to_codex", "read_quota_headers"} <= names
    assert set(EXEMPT) <= {name for one in EVERY for name in (one.name, one.section)}
    strange = Parser("strange", (("value", "Json"), ("depth", "Depth")), "JSON")
    homeless = Parser("Strange.feed", (("value", "Json"),), "JSON")
    for unknown in (strange, homeless):
        with pytest.raises(LookupError, match=unknown.name):
            list(calls_of(unknown))


################################################################
# WHAT COMES IN PIECES
################################################################

READERS: Final[dict[str, Callable[[], Any]]] = {
    name: make for name, make in OWNERS.items() if not name.endswith(("Translator", "Collector"))
} | {"a Chat scanner": lambda: pooler.EventScanner(CallKind.CHAT)}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_pieces_take_no_longer_than_linear_time_together(name: str) -> None:
    """Whatever is kept until more comes is not read anew with each piece."""
    for words, whole in inputs_of("bytes"):

        def make(size: int, whole: Growing = whole) -> Run:
            raw = whole(size)
            pieces = [raw[at : at + 16] for at in range(0, len(raw), 16)]
            return functools.partial(feed_all, READERS[name](), pieces)

        assert check_growth(make, PARSED_CHARS) is None, words


def feed_all(reader: Any, pieces: Iterable[bytes]) -> None:  # noqa: ANN401
    with contextlib.suppress(Exception):
        for piece in pieces:
            reader.feed(piece)


EVENTS: Final[tuple[Json, ...]] = (
    {"type": "response.created", "response": {"id": "r", "output": None}},
    {"type": "response.in_progress", "response": {}},
    {"type": "response.output_item.added", "item": {"type": "function_call", "call_id": "c"}},
    {"type": "response.output_item.done", "item": {"type": "message", "content": [{"text": "x"}]}},
    {"type": "response.output_item.done", "item": {"type": "function_call", "arguments": "{}"}},
    {"type": "response.output_text.delta", "delta": "x", "sequence_number": 1},
    {"type": "response.reasoning_summary_text.delta", "delta": "x", "summary_index": 0},
    {"type": "response.function_call_arguments.delta", "delta": "x"},
    {"type": "response.function_call_arguments.done", "arguments": "{}"},
    {"type": "response.output_text.annotation.added", "annotation": {"type": "url_citation"}},
    {"type": "codex.rate_limits", "rate_limits": {}}, {"type": "keepalive"}, {"x": 1},
    {"type": "response.metadata", "headers": {}}, {"id": "c", "choices": [{"delta": {}}]},
)  # fmt: skip
END: Final[Json] = {"type": "response.completed", "response": {"output": []}}


def stream_of(first: Json, second: Json, count: int) -> bytes:
    """So many of the one, then of the other, each with an index of its own, and an end."""
    events = [{**one, "output_index": at} for one in (first, second) for at in range(count)]
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in [*events, END])


def relay(make_response: Callable[[], Any], kind: CallKind, raw: bytes) -> None:
    """As an attempt does with what it receives."""
    scanner, answer = pooler.EventScanner(kind), make_response()
    events = scanner.feed(raw)
    if answer is not None:
        for event in events:
            answer.feed(event)
        pooler.dump_json(answer.whole())
    scanner.failure_event(pooler.PoolerError("upstream_error"), "r", kind)


@pytest.mark.parametrize("name", RESPONSES)
def test_what_came_before_makes_no_event_longer(name: str) -> None:
    for first, second in itertools.product(EVENTS, repeat=2):

        def make(count: int, first: Json = first, second: Json = second) -> Run:
            raw = stream_of(first, second, count)
            return functools.partial(relay, RESPONSES[name], CallKind.RESPONSES, raw)

        small, large = (seconds_of(make(count), 2) for count in (16, 64))
        if large > 6 * small:  # linear work shows 4, quadratic 16
            assert growth(make, (32, 128)) is None, (first, second)


################################################################
# WHAT IS BAD IS FOUND
################################################################


def count_lines(raw: bytes) -> list[int]:
    return [raw.count(line) for line in raw.split(b"\n")]


def grow(raw: bytes) -> bytes:
    made = b""
    for byte in raw:
        made = b"%b%c" % (made, byte)
    return made


def look_twice(value: Json) -> int:
    if not isinstance(value, dict | list):
        return 1
    members = value.values() if isinstance(value, dict) else value
    return sum(look_twice(one) + look_twice(one) for one in members)


def pick_once(value: Json) -> list[Json]:
    found: list[Json] = []
    for one in pooler.objects_of(pooler.object_of(value).get("input")) or list(value):
        if [one] not in found:
            found = [*found, [one]]
    return found


def places_of(headers: dict[str, str]) -> list[int]:
    return [[*headers].index(name) for name in headers]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [(count_lines, "bytes"), (grow, "bytes"), (look_twice, "Json"), (pick_once, "Json"),
     (places_of, "Headers"), (lambda text: [text.find(one + "\xb0") for one in text], "str")],
    ids=["lines", "bytes", "exponential", "members", "fields", "characters"],
)  # fmt: skip
def test_a_bad_parser_is_found(
    monkeypatch: pytest.MonkeyPatch, bad: Callable[..., Any], kind: str
) -> None:
    monkeypatch.setattr(pooler, "planted", bad, raising=False)
    argument = next(iter(inspect.signature(bad).parameters))
    parser = Parser("planted", ((argument, kind),), "JSON")
    assert any(check_growth(make, PARSED_CHARS) for _, make in calls_of(parser))


class Forgetful:
    """A reader that looks for an end from the beginning again."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, received: bytes) -> None:
        self.rest += received
        if b"\n\n\n\0" in self.rest:
            self.rest = b""


class Filling:
    """An answer that repeats all that came before."""

    def __init__(self) -> None:
        self.items: list[str] = []

    def feed(self, event: Event) -> str:
        self.items.append(event.raw.decode())
        return json.dumps(self.items)

    def whole(self) -> Json:
        return {}


def test_a_bad_reader_of_pieces_and_a_bad_answer_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "planted", Forgetful)
    monkeypatch.setitem(RESPONSES, "planted", Filling)
    with pytest.raises(AssertionError):
        test_pieces_take_no_longer_than_linear_time_together("planted")
    with pytest.raises(AssertionError):
        test_what_came_before_makes_no_event_longer("planted")
