"""Proves that a request body is judged once, strictly, within bounds of space and of time.

Method: tables at each limit and one past it; Hypothesis against json.loads on values, and
against a slow scanner on the shape; the worst bodies of the full size, with the processor time
of each step measured; and compressed bodies through a whole server.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import pooler
from pooler import (
    FLOATS_MAX,
    INTEGER_DIGITS_MAX,
    MUCH_TEXT_BYTES,
    BadSyntax,
    Limits,
    PoolerError,
    drop_reasoning,
    dump_json,
    dump_like,
)
from tests.support.hostile_bytes import JSON_OBJECTS, JSON_SHAPES, NOT_JSON
from tests.support.limits import with_limits
from tests.support.memory_sockets import post
from tests.support.world import describe, json_response, opened_world

Json = Any
LIMITS: Final = Limits()
SMALL: Final = {"body_depth_max": 8, "json_separators_max": 20}
# On an idle machine a step of the guard takes up to 0.03, and to parse the largest body up to 0.13:
# `json.loads` works on one text, or on 200,000 members, in one go.  A CI machine may be slow.
GUARD_SECONDS_MAX: Final = 0.1
STALL_SECONDS_MAX: Final = 0.4
MIB: Final = 1024 * 1024


def check_json_shape(body: bytes) -> None:
    """All steps of the guard, one after the other."""
    for _ in pooler.check_json_shape(body):
        pass


def parse_json_object(body: bytes) -> dict[str, Json]:
    return pooler.parse_json_object(pooler.decode_body(body))


def judge(body: bytes, limits: Limits = LIMITS) -> dict[str, Json]:
    check_json_shape(body)
    return parse_json_object(body)


def refuses(judged: Callable[[], object]) -> PoolerError:
    with pytest.raises(PoolerError) as refused:
        judged()
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")
    return refused.value


################################################################
# STRICTNESS
################################################################


@pytest.mark.parametrize("body", [pytest.param(raw, id=name) for name, raw in NOT_JSON.items()])
def test_what_another_reader_could_read_differently_is_refused(body: bytes) -> None:
    error = refuses(lambda: judge(body))
    assert not set("0123456789") & set(error.public)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"{}", {}),
        (b' \t\r\n{"a": [1, -0, 1.5e-7, 1E+2]} \n', {"a": [1, 0, 1.5e-7, 100.0]}),
        (b'{"a": 1e-999}', {"a": 0.0}),
        (b'{"a": ' + b"9" * (INTEGER_DIGITS_MAX - 1) + b"}", {"a": int("9" * 31)}),
        ('{"é": "\U0001f600"}'.encode(), {"é": "\U0001f600"}),
        (b'{"a": "\\ud83d\\ude00", "b": "\\ud800"}', {"a": "\U0001f600", "b": "\ud800"}),
        (b'{"a": {"x": 1}, "b": {"x": 1}, "x": 2}', {"a": {"x": 1}, "b": {"x": 1}, "x": 2}),
        (b'{"a": 0.1000000000000000055511151231257827021181583404541015625}', {"a": 0.1}),
    ],
)
def test_what_is_json_is_accepted(body: bytes, value: Json) -> None:
    assert judge(body) == value


################################################################
# DEPTH AND NUMBER
################################################################


def nested(depth: int, openers: str) -> bytes:
    """An object of that depth; `openers` are taken in turn for what is inside it."""
    inner = [openers[index % len(openers)] for index in range(depth - 1)]
    text = "".join("[" if one == "[" else '{"a":' for one in inner)
    ends = "".join("]" if one == "[" else "}" for one in reversed(inner))
    return ('{"a":' + text + "1" + ends + "}").encode()


@pytest.mark.parametrize("openers", ["[", "{", "[{", "[[{"])
@pytest.mark.parametrize("limits", [{}, SMALL])
def test_depth_at_the_limit_and_one_past_it(openers: str, limits: Mapping[str, float]) -> None:
    with_limits(limits)
    depth = pooler.BODY_DEPTH_MAX
    judge(nested(depth, openers))
    error = refuses(lambda: judge(nested(depth + 1, openers)))
    assert "nesting" in error.public


@pytest.mark.measures
@pytest.mark.parametrize("count", [500, 5_000, 150_000, 5_000_000])
@pytest.mark.parametrize("unit", ["[", '{"a":', '[{"a":'])
def test_what_is_nested_without_end_is_refused_at_once(unit: str, count: int) -> None:
    body = b'{"a":' + unit.encode() * count
    began = time.process_time()
    refuses(lambda: judge(body))
    refuses(lambda: judge(body + b"1" + b"]" * count))
    assert time.process_time() - began < STALL_SECONDS_MAX


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(r"[[[[[[[[[[[[[[[[[[[[[[[[[[[", id="openers"),
        pytest.param(r"\"[[[[[[[[[[[[[[[[[[[[[[[[[", id="behind-a-quote"),
        pytest.param(r"\\\"[[[[[[[[[[[[[[[[[[[[[[[", id="behind-a-backslash-and-a-quote"),
        pytest.param(r"\\\\\\\"[[[[[[[[[[[[[[[[[[[", id="behind-many"),
        pytest.param(r"{{{{{{{{{\\", id="before-a-backslash"),
        pytest.param(r",,,,,,,,,,,,,,,,,,,,,,,,,,,,,,\"", id="commas"),
        pytest.param(r"\u005b\u007b" * 30, id="escapes"),
    ],
)
def test_what_stands_in_a_string_is_not_counted(text: str) -> None:
    with_limits(SMALL)
    body = ('{"a": "' + text + '", "b": {"' + text + '": 1}}').encode()
    assert judge(body) == json.loads(body)


@pytest.mark.parametrize("run", range(6))
def test_a_run_of_backslashes_hides_no_members(run: int) -> None:
    """An even run ends the string before the quote, an odd one does not."""
    with_limits(SMALL)
    string = b'"' + b"\\" * run + b'"' + (b'"' if run % 2 else b"")
    begun = b'{"a":' + string + b',"b":['
    many = begun + b"1," * 18 + b"1]}"
    json.loads(many)
    refuses(lambda: check_json_shape(many))
    few = begun + b"1," * 17 + b"1]}"
    assert judge(few) == json.loads(few)


def members(count: int, kind: str) -> bytes:
    """A body with that many separators, the openers among them."""
    if kind == "commas":
        return b'{"a":[' + b",".join([b"1"] * (count - 1)) + b"]}"
    if kind == "openers":
        return (
            b'{"a":[' + b"[],".join([b""] * (count // 2)) + (b"1" if count % 2 else b"[]") + b"]}"
        )
    names = ",".join(f'"{number}":1' for number in range(count))
    return ("{" + names + "}").encode()


@pytest.mark.parametrize("kind", ["commas", "names"])
@pytest.mark.parametrize("limits", [{}, SMALL])
def test_separators_at_the_limit_and_one_past_it(kind: str, limits: Mapping[str, float]) -> None:
    with_limits(limits)
    count = pooler.JSON_SEPARATORS_MAX
    body = members(count, kind)
    assert body.count(b",") + body.count(b"[") + body.count(b"{") == count
    judge(body)
    refuses(lambda: check_json_shape(members(count + 1, kind)))


@pytest.mark.parametrize("kind", ["commas", "openers", "names"])
def test_the_cheap_count_lets_pass_what_the_whole_guard_does(kind: str) -> None:
    with_limits({"body_depth_max": 8, "json_separators_max": 40})
    count = pooler.JSON_SEPARATORS_MAX
    judge(members(count - 2, kind))
    refuses(lambda: check_json_shape(members(count + 2, kind)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["commas", "openers", "names"])
@pytest.mark.parametrize("text", [b"x", b"\\n", "\u00e9".encode()])
def test_where_there_is_much_text_half_as_many_members_may_be(kind: str, text: bytes) -> None:
    """As every member takes its time, and every escape."""
    count = pooler.JSON_SEPARATORS_MAX // 2

    def padded(member_count: int, byte_count: int) -> bytes:
        begun = members(member_count - 1, kind)[:-1] + b',"much":"'
        texts = (byte_count - len(begun) - 2) // len(text)
        filling = text * texts + b"x" * (byte_count - len(begun) - 2 - texts * len(text))
        return begun + filling + b'"}'

    judge(padded(count, MUCH_TEXT_BYTES + 1), LIMITS)
    judge(padded(2 * count, MUCH_TEXT_BYTES), LIMITS)
    refuses(lambda: check_json_shape(padded(count + 1, MUCH_TEXT_BYTES + 1)))
    refuses(lambda: check_json_shape(padded(2 * count + 1, MUCH_TEXT_BYTES)))


@pytest.mark.parametrize("number", [b"0.5", b"-1e3", b"1.7976931348623157e308"])
def test_floats_at_their_limit_and_one_past_it(number: bytes) -> None:
    def listed(count: int) -> bytes:
        return b'{"a":[' + b",".join([number] * count) + b'],"b":[1,2,3]}'

    for _ in range(2):  # each body is counted for itself
        assert len(judge(listed(FLOATS_MAX))["a"]) == FLOATS_MAX
    refuses(lambda: judge(listed(FLOATS_MAX + 1)))


def test_strings_without_separators_are_too_many_too() -> None:
    """Not JSON at all, but json.loads must not be the one to find out."""
    refuses(lambda: judge(b'{"a": ' + b'"x" ' * 2_000_000 + b"}"))


@pytest.mark.parametrize("unit", [b'"a[\\"",', b'"[\\\\",', b'"\\\\\\"[",', b"1,[],", b'"\\n[",'])
def test_wherever_a_text_is_cut_its_members_are_counted(unit: bytes) -> None:
    """The guard takes a text apart in pieces, and a piece may end anywhere."""
    body = b'{"a":[' + unit * 9 + b"1]}"
    _, count = slow_shape(body.decode())
    for piece_bytes in range(1, 20):
        with_limits({"piece_bytes": piece_bytes})
        pooler.check_members(body, count)
        with pytest.raises(BadSyntax, match="too many members"):
            pooler.check_members(body, count - 1)


@pytest.mark.parametrize("unit", [b"]", b"} ", b"]}", b"][}"])
def test_brackets_that_close_nothing_are_no_json(unit: bytes) -> None:
    begun = b'{"a":[' + b"[]," * pooler.BODY_DEPTH_MAX
    for count in (pooler.BODY_DEPTH_MAX + 2, pooler.JSON_SEPARATORS_MAX // 4, 10_000_000):
        refuses(partial(judge, begun + unit * count))


def test_no_list_of_all_strings_is_made() -> None:
    """Which would be many times as large as the body: there is no more than one copy of it."""
    body = b'{"a": [' + b'"[",' * 1_000_000
    tracemalloc.start()
    refuses(lambda: check_json_shape(body))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(body) + 8 * MIB


def slow_shape(text: str) -> tuple[int, int]:
    """Depth and separators outside strings, one character at a time."""
    depth = deepest = separators = 0
    is_inside = is_escaped = False
    for char in text:
        if is_inside:
            is_inside = is_escaped or char != '"'
            is_escaped = char == "\\" and not is_escaped
            continue
        is_inside = char == '"'
        is_escaped = False
        separators += char in "[{,"
        depth += (char in "[{") - (char in "]}")
        deepest = max(deepest, depth)
    return deepest, separators


@given(
    shape=JSON_SHAPES, value=st.dictionaries(st.text(max_size=4), st.text(max_size=6), max_size=4)
)
def test_a_valid_body_is_counted_as_a_slow_scanner_counts(
    shape: str, value: dict[str, str]
) -> None:
    with_limits({"body_depth_max": 3, "json_separators_max": 5})
    for text in (json.dumps(value | {shape: shape}), '{"a": ' + shape + "}"):
        try:
            json.loads(text)
        except ValueError:
            continue  # json.loads refuses it, at whatever depth
        deepest, separators = slow_shape(text)
        if separators <= 5:
            check_json_shape(text.encode())
        else:
            refuses(partial(check_json_shape, text.encode()))
        if deepest <= 3 and separators <= 5:
            judge(text.encode())
        else:
            refuses(partial(judge, text.encode()))


def has_too_many(raw: bytes, members_max: int) -> bool:
    """The guard written so that it is easily seen to be right: by removal, one step at a time."""
    if sum(raw.count(opener_or_comma) for opener_or_comma in (b"[", b"{", b",")) <= members_max:
        return False
    text = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(text.split(b'"')[::2])
    return sum(outside.count(begin) for begin in (b"[", b"{", b",")) > members_max


def depth_of(value: Json) -> int:
    if isinstance(value, dict):
        value = [*value.values()]
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


TEXTS: Final = st.one_of(
    JSON_SHAPES,
    JSON_SHAPES.map(lambda shape: '{"a": ' + shape + "}"),
    JSON_SHAPES.map(lambda shape: json.dumps({shape: [shape, {"b": shape}]})),
)


@given(text=TEXTS, depth_max=st.integers(1, 4), members_max=st.integers(0, 12))
def test_any_text_is_accepted_or_refused_as_a_plain_guard_does(
    text: str, depth_max: int, members_max: int
) -> None:
    with_limits({"body_depth_max": depth_max, "json_separators_max": members_max})
    body = text.encode()
    if has_too_many(body, members_max):
        refuses(lambda: check_json_shape(body))
        return
    check_json_shape(body)
    try:
        expected = pooler.parse_strictly(text, 900)
    except (ValueError, BadSyntax):
        expected = None
    if isinstance(expected, dict) and depth_of(expected) <= depth_max:
        assert judge(body) == expected
    else:
        refuses(lambda: judge(body))


@given(value=JSON_OBJECTS, is_ascii=st.booleans(), indent=st.sampled_from([None, 0, 2]))
def test_any_object_is_read_as_json_loads_reads_it(
    value: dict[str, Json], is_ascii: bool, indent: int | None
) -> None:
    body = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode()
    assert judge(body) == json.loads(body)


@given(body=st.binary(max_size=40) | JSON_SHAPES.map(str.encode))
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    with_limits(SMALL)
    try:
        value = judge(body)
    except PoolerError as error:
        assert error.code == "invalid_json"  # noqa: PT017 (either way is well)
    else:
        assert value == json.loads(body)


################################################################
# WHAT IS CHANGED IN A BODY
################################################################


@given(value=JSON_OBJECTS, indent=st.sampled_from([None, 0, 3]))
def test_what_is_written_anew_means_what_was_read(
    value: dict[str, Json], indent: int | None
) -> None:
    body = json.dumps(value | {"model": "a"}, indent=indent).encode()
    changed = parse_json_object(dump_json(parse_json_object(body) | {"model": "b"}))
    assert changed == value | {"model": "b"}
    assert repr(changed) == repr(json.loads(body) | {"model": "b"})  # 1 is not 1.0, nor true


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (b"12345678901234567890123456789012", b"12345678901234567890123456789012"),
        (b"-9007199254740993", b"-9007199254740993"),
        (b"1E+2", b"100.0"),
        (b"0.1", b"0.1"),
        (b"1e23", b"1e+23"),
        (b"4.35", b"4.35"),
        (b"5e-324", b"5e-324"),
        (b"1.7976931348623157e308", b"1.7976931348623157e+308"),
        (b"-0.0", b"-0.0"),
    ],
)
def test_a_number_that_is_written_anew_is_the_same_number(number: bytes, written: bytes) -> None:
    body = b'{"a":' + number + b"}"
    assert dump_json(parse_json_object(body)) == b'{"a":' + written + b"}"


ITEMS: Final = st.lists(
    st.sampled_from(
        ["reasoning", "message", "compaction", "compaction_summary", "context_compaction", 7, None]
    ).map(lambda kind: {"type": kind, "encrypted_content": "gAAA", "id": "é"})
    | st.integers()
    | st.text(max_size=3),
    max_size=6,
)


@given(value=JSON_OBJECTS, items=ITEMS)
def test_dropping_reasoning_takes_that_and_nothing_else(
    value: dict[str, Json], items: list[Json]
) -> None:
    body = value | {"input": items}
    changed = drop_reasoning(body) or body
    assert body == value | {"input": items}  # what was judged is not touched
    assert list(changed) == list(body)
    assert {**changed, "input": 0} == {**body, "input": 0}
    encrypted = {"reasoning", "compaction", "compaction_summary", "context_compaction"}
    kept = [one for one in items if not (isinstance(one, dict) and one["type"] in encrypted)]
    assert changed["input"] == kept
    assert drop_reasoning(changed) is None


@pytest.mark.parametrize("value", ["text", None, 1, {"type": "reasoning"}])
def test_an_input_that_is_no_list_has_no_reasoning(value: Json) -> None:
    assert drop_reasoning({"input": value}) is None
    assert drop_reasoning({"model": "m"}) is None


@given(model=st.text("\ud800\udbff\udc00a", min_size=1, max_size=3))
def test_lone_surrogates_survive(model: str) -> None:
    """JSON may escape them; they cannot be written as UTF-8, so they must stay escaped."""
    body = json.dumps({"model": "a", "input": [{"type": "reasoning"}, model]}).encode()
    assert json.loads(dump_json(parse_json_object(body))) == json.loads(body)


################################################################
# THE STALL
################################################################

FULL: Final = LIMITS.body_bytes_max


def filled(pattern: bytes, before: bytes = b'{"a": "', behind: bytes = b'"}') -> bytes:
    count = (FULL - len(before) - len(behind)) // len(pattern)
    return before + pattern * count + behind


WORST: Final[dict[str, Callable[[], bytes]]] = {
    "one-string": lambda: filled(b"a"),
    "non-ascii": lambda: filled("é".encode()),
    "escaped-quotes": lambda: filled(b'\\"'),
    "unicode-escapes": lambda: filled(b"\\u00e9"),
    "brackets-in-string": lambda: filled(b"[{"),
    "commas-in-string": lambda: filled(b","),
    "mixed-in-string": lambda: filled(b'[\\",{\\\\'),
    "quotes-only": lambda: filled(b'"', b"{", b"}"),
    "empty-strings": lambda: filled(b'"",', b'{"a":[', b"0]}"),
    "commas": lambda: filled(b",", b'{"a":[', b"0]}"),
    "empty-lists": lambda: filled(b"[],", b'{"a":[', b"0]}"),
    "openers": lambda: filled(b"[", b'{"a":', b"}"),
    "names": lambda: filled(b'"a":1,', b"{", b'"b":1}'),
    "fraction": lambda: filled(b"1", b'{"a":0.', b"}"),
    "most-members": lambda: members(pooler.JSON_SEPARATORS_MAX, "names"),
    "long-members": lambda: b"{" + b",".join(
        b'"%d":"%b"' % (n, b"x" * 140) for n in range(pooler.JSON_SEPARATORS_MAX - 1)) + b"}",
    "escaped-members": lambda: b"{" + b",".join(
        b'"%d":"%b"' % (n, b'\\"' * 70) for n in range(pooler.JSON_SEPARATORS_MAX - 1)) + b"}",
    "deep-at-the-limit": lambda: b'{"a":[' + b",".join([b"[" * 98 + b"]" * 98] * 1_500) + b"]}",
    "escaped-objects": lambda: b'{"a":[' + b",".join(
        b'{"%d":"%b"}' % (n, b"\\n" * 320) for n in range(pooler.JSON_SEPARATORS_MAX // 4 - 2)
    ) + b"]}",
    "escaped-half": lambda: b'{"a":[' + b",".join(
        b'{"%d":"%b"}' % (n, b"\\n" * 70) for n in range(pooler.JSON_SEPARATORS_MAX // 2 - 2)
    ) + b"]}",
    "floats": lambda: b'{"a":[' + b",".join([b"1.7976931348623157e308"] * FLOATS_MAX) + b"]}",
    "long-float-each": lambda: b'{"a":[' + b",".join([b"0." + b"7" * 150] * FLOATS_MAX) + b"]}",
}  # fmt: skip


def guard_steps(body: bytes) -> list[float]:
    """How long each step of the guard takes; to the first one belongs all that precedes it."""
    attempts = []
    for _ in range(3):  # a busy machine only adds to them
        steps = []
        guard = pooler.check_json_shape(body)
        began = time.process_time()
        with contextlib.suppress(PoolerError):
            for _ in guard:
                ended = time.process_time()
                steps.append(ended - began)
                began = ended
        attempts.append([*steps, time.process_time() - began])
    return min(attempts, key=max)


def seconds_to_parse(body: bytes) -> float:
    """How long that takes, at best; nothing, if the guard refuses it."""
    attempts = []
    for _ in range(3):
        began = time.process_time()
        with contextlib.suppress(PoolerError):
            judge(body)
        attempts.append(time.process_time() - began)
    return min(attempts) - sum(guard_steps(body))


@pytest.mark.measures
@pytest.mark.parametrize("name", WORST)
def test_no_body_of_the_full_size_holds_the_loop_for_long(name: str) -> None:
    body = WORST[name]()
    assert len(body) <= FULL
    steps, parse_seconds = guard_steps(body), seconds_to_parse(body)
    sys.stdout.write(
        f"{name}: {len(body) >> 20} MiB, guarded in {len(steps)} steps of at most"
        f" {max(steps) * 1000:.0f} ms, parsed in {parse_seconds * 1000:.0f} ms\n"
    )
    assert max(steps) < GUARD_SECONDS_MAX
    assert parse_seconds < STALL_SECONDS_MAX


class Longest(trio.abc.Instrument):
    """The longest step of the pooler's own tasks, in seconds of processor time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.began = time.process_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.startswith("pooler.") or task.name.endswith("._run_handler"):
            self.seconds = max(self.seconds, time.process_time() - self.began)


ALIASED: Final[dict[str, Callable[[], bytes]]] = {
    "escaped-members": lambda: WORST["escaped-half"]()[:-1] + b',"model":"small"}',
    "a-long-inner-model": lambda: filled(b"m", b'{"x":{"model":"')[:-50] + b'"},"model":"small"}',
    "escaped-inner-models": lambda: (
        b'{"x":"' + b'\\"model\\":\\"' * 2_000_000 + b'","model":"small"}'),
    "many-inner-models": lambda: b'{"x":[' + b'{"model":"a"},' * 66_000 + b'0],"model":"small"}',
}  # fmt: skip


@pytest.mark.measures
@pytest.mark.parametrize("name", ALIASED)
def test_no_step_of_a_request_with_an_alias_holds_the_loop_for_long(name: str) -> None:
    body = ALIASED[name]()
    assert len(body) <= FULL
    longest = Longest()

    async def play() -> None:
        described = describe("a", pool={"aliases": {"small": "m1"}})
        async with opened_world(described) as world:
            world.upstreams["a"].always = json_response({"id": "r"})
            assert (await world.ask(post("/v1/responses", body))).status == 200

    trio.run(play, clock=MockClock(autojump_threshold=0), instruments=[longest])
    sys.stdout.write(f"longest step: {round(longest.seconds, 3)} s\n")
    assert 0.001 < longest.seconds < STALL_SECONDS_MAX


################################################################
# COMPRESSED BODIES
################################################################


EMOJI: Final = "\U0001f600"


@pytest.mark.parametrize(
    ("text", "is_escaped"),
    [
        pytest.param("x" * MIB + EMOJI, True, id="nearly all ASCII"),
        pytest.param(EMOJI * (MIB // 2), False, id="all wide"),
        pytest.param("\u4e16\u754c" * (MIB // 4), False, id="CJK"),
        pytest.param("x" * MIB, False, id="ASCII"),
        pytest.param("x" * 1000 + EMOJI, False, id="small"),
    ],
)
def test_large_text_is_written_so_that_it_takes_least(text: str, is_escaped: bool) -> None:
    raw = json.dumps({"a": text}, ensure_ascii=False).encode()
    made = dump_like({"a": text}, raw)
    assert json.loads(made) == {"a": text}
    assert (b"\\ud83d\\ude00" in made) == is_escaped
    assert len(made) < len(raw) + 100
