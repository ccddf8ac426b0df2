"""Proves that what is held for others never takes more than twice what its budget says.

Method: the real process, a new one for each case, with hostile peers on real sockets.  Clients
and upstreams fill a budget, several keys and accounts at once, with what takes the most memory
for each byte that is counted: text in which a single character makes all the others wide, lists
of empty lists, short members.  The peak is the kernel's own (VmHWM), counted from what the process
took after it had answered a few calls.  Each case prints one line of figures.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.long.hurting_inputs import (
    BEGUN,
    BODY_SHAPES,
    CODEX_SHAPES,
    DETAIL,
    LIST_PATHS,
    MEMBER_COUNT,
    done_item,
    model_list,
    padding,
)
from tests.support.hostile_peers import (
    DELTA,
    END,
    KIB,
    MIB,
    SSE_HEAD,
    TURN,
    Crowd,
    Play,
    Rig,
    Visit,
    call,
    crowded,
    filled,
    json_head,
    json_response,
    key_of,
    message,
    opened_rig,
    paired,
    server_message,
    speckled,
    take_message,
    wait_until,
    wide,
)
from tests.support.memory_sockets import request

pytestmark: Final = pytest.mark.measures

TIMES_MAX: Final = 2  # what is held may take so many times its budget
BUDGET: Final = 64 * MIB
SMALL: Final = {
    "bodies_bytes_max": BUDGET, "body_bytes_max": 8 * MIB, "websocket_message_bytes_max": 8 * MIB,
    "events_bytes_max": BUDGET, "event_bytes_max": 4 * MIB, "unary_bytes_max": 8 * MIB,
}  # fmt: skip
DEFAULT: Final = 256 * MIB

Fill = Callable[[Rig, Crowd], int]


class How(NamedTuple):
    """What clients do with their answers."""

    is_stream: bool = False
    reads: bool = True


STREAMS: Final = How(is_stream=True)
UNREAD_STREAMS: Final = How(is_stream=True, reads=False)
WHOLE: Final = How()
UNREAD: Final = How(reads=False)


class Case(NamedTuple):
    """`fill` brings the pooler to its worst and gives the bytes that it then holds, at least."""

    fill: Fill
    kind: str = "a"  # of accounts: `c` are of ChatGPT
    keys: int = 8  # and accounts, and pools
    budget: int = BUDGET
    least: float = 0.4  # the share of the budget that must be held, or nothing is proved
    more: Mapping[str, object] = {}  # fields of every account
    limits: Mapping[str, float] = SMALL


def check(name: str, case: Case, folder: Path) -> None:
    accounts, pools = paired(case.keys, case.kind, **case.more)
    may_list = "connect_seconds_max" not in case.limits
    with opened_rig(folder, accounts, pools, case.limits, may_list=may_list) as rig:
        rig.warm_up()
        with crowded(rig) as crowd:
            held = case.fill(rig, crowd)
            rig.settle()
            growth = rig.growth()
            sys.stdout.write(
                f"{name}: grew by {growth / MIB:.0f} MiB for {held / MIB:.0f} MiB held"
                f" of a budget of {case.budget / MIB:.0f} MiB; base {rig.base / MIB:.0f} MiB;"
                f" open {crowd.open_count}, over {dict(crowd.codes())}\n"
            )
        assert held >= case.least * case.budget
        assert growth <= TIMES_MAX * case.budget


################################################################
# CLIENTS' BODIES
################################################################


@functools.lru_cache(maxsize=8)
def body_of(shape: str, size: int) -> bytes:
    return BEGUN + BODY_SHAPES[shape](size) + b"}"


def fill_bodies(rig: Rig, crowd: Crowd, body: bytes, each: int, path: str) -> int:
    """So many bodies of each key, ended at the same moment; the upstream is silent."""
    upstream, before = rig.upstream, len(crowd.talkers)
    for name in rig.keys:
        upstream.plays[name] = upstream.hold
    crowd.add_split([call(name, body, path=path) for name in rig.keys for _ in range(each)])
    count = len(crowd.talkers) - before
    assert wait_until(lambda: len(crowd.over) + upstream.arrived_count >= count)
    return upstream.arrived_count * len(body)


def bodies(shape: str, size: int, each: int, path: str = "/v1/responses") -> Fill:
    return lambda rig, crowd: fill_bodies(rig, crowd, body_of(shape, size), each, path)


HALF: Final = 7 * MIB // 2
FULL: Final = 8 * MIB - KIB
BODY_CASES: Final = {
    **{
        f"bodies of 3.5 MiB, {shape}": Case(bodies(shape, HALF, 3))
        for shape in list(BODY_SHAPES)[:5]
    },
    "full bodies, one emoji": Case(bodies("one emoji", FULL, 2), keys=4),
    "bodies at the bound, deep": Case(bodies("deep", BUDGET, 3), least=0.1),
    "bodies at the bound, empty lists": Case(bodies("empty lists", BUDGET, 10), least=0.3),
    "bodies at the bound, small objects": Case(bodies("small objects", BUDGET, 5), least=0.3),
    "bodies at the bound, many keys": Case(bodies("many keys", BUDGET, 4)),
    "bodies with too many members": Case(bodies("too many members", HALF, 3), least=0),
    "bodies that are too deep": Case(bodies("too deep", HALF, 3), least=0),
    "bodies of the default size, one emoji": Case(
        bodies("one emoji", 31 * MIB, 1), budget=DEFAULT, limits={}
    ),
}


@pytest.mark.parametrize("name", BODY_CASES)
def test_bodies_take_what_is_counted(name: str, tmp_path: Path) -> None:
    check(name, BODY_CASES[name], tmp_path)


@functools.lru_cache(maxsize=4)
def codex_body_of(shape: str, size: int, member: str) -> bytes:
    begun = b'{"model":"m1","stream":true,"' + member.encode() + b'":'
    return begun + CODEX_SHAPES[shape](size) + b"}"


def codex_bodies(shape: str, size: int, each: int, member: str = "input") -> Fill:
    path = "/v1/responses" if member == "input" else "/v1/chat/completions"
    return lambda rig, crowd: fill_bodies(
        rig, crowd, codex_body_of(shape, size, member), each, path
    )


def deaf_upstream(rig: Rig, crowd: Crowd) -> int:
    """Translated, and not taken: what the upstream does not read is held twice."""
    rig.upstream.deaf.update(rig.keys)
    return fill_bodies(rig, crowd, codex_body_of("one emoji", HALF, "input"), 3, "/v1/responses")


CODEX_CASES: Final = {
    "translated, one emoji": codex_bodies("one emoji", HALF, 3),
    "translated, all emoji": codex_bodies("all emoji", HALF, 3),
    "translated, many messages": codex_bodies("many messages", BUDGET, 3),
    "translated, fewer messages": codex_bodies("fewer messages", BUDGET, 8),
    "translated, tools": codex_bodies("tools", BUDGET, 10),
    "translated from Chat, one emoji": codex_bodies("one emoji", HALF, 3, "messages"),
    "translated from Chat, many messages": codex_bodies("many messages", BUDGET, 3, "messages"),
    "translated, and not taken": deaf_upstream,
}


@pytest.mark.parametrize("name", CODEX_CASES)
def test_translated_bodies_take_what_is_counted(name: str, tmp_path: Path) -> None:
    check(name, Case(CODEX_CASES[name], kind="c", least=0.3), tmp_path)


################################################################
# CLIENTS' WEBSOCKETS AND CONNECTIONS
################################################################


def turn_of(text: bytes) -> bytes:
    return TURN.replace(b'"hi"', b'"' + text + b'"')


def unfinished_messages(rig: Rig, crowd: Crowd) -> int:
    """One of 6 MiB for each key, an emoji in each KiB, and no end."""
    raw = message(turn_of(speckled(6 * MIB)), 6, is_whole=False)
    talkers = [crowd.add_socket(name, raw) for name in rig.keys]
    wait_until(lambda: all(one.is_sent for one in talkers))
    rig.settle()
    return crowd.open_count * len(raw)


def waiting_messages(rig: Rig, crowd: Crowd) -> int:
    """For each key a turn under way, and two of 3 MiB that were sent ahead."""
    for name in rig.keys:
        rig.upstream.plays[name] = rig.upstream.hold
    ahead = message(turn_of(speckled(3 * MIB)), 3)
    talkers = [crowd.add_socket(name, message(TURN), ahead, ahead) for name in rig.keys]
    wait_until(lambda: all(one.is_sent for one in talkers))
    rig.settle()
    return crowd.open_count * 2 * len(ahead)


def turns_under_way(rig: Rig, crowd: Crowd) -> int:
    """Turns of 3 MiB with one emoji, at an upstream that reads and says nothing."""
    for name in rig.keys:
        rig.upstream.plays[name] = rig.upstream.hold
    raw = message(turn_of(speckled(3 * MIB)))
    talkers = [crowd.add_socket(name, raw) for name in [*rig.keys] * 2]
    wait_until(lambda: all(one.is_sent for one in talkers))
    rig.settle()
    return crowd.open_count * len(raw)


SOCKET_CASES: Final = {
    "unfinished messages, wide": Case(unfinished_messages),
    "messages sent ahead, wide": Case(waiting_messages),
    "turns under way, one emoji": Case(turns_under_way),
}


@pytest.mark.parametrize("name", SOCKET_CASES)
def test_messages_take_what_is_counted(name: str, tmp_path: Path) -> None:
    check(name, SOCKET_CASES[name], tmp_path)


HEADS: Final = 300
AHEAD_BYTES: Final = 64 * KIB  # that may be sent ahead of an answer


def unfinished_heads(rig: Rig, crowd: Crowd) -> int:
    raw = request("GET", "/v1/models", key=None)[:-2] + b"X: " + b"y" * (31 * KIB)
    for _ in range(HEADS):
        crowd.add(raw)
    rig.settle()
    return crowd.open_count * 32 * KIB


def pipelined_bytes(rig: Rig, crowd: Crowd) -> int:
    """Of clients whose answers do not come."""
    for name in rig.keys:
        rig.upstream.plays[name] = rig.upstream.hold
    for at in range(HEADS):
        crowd.add(call([*rig.keys][at % len(rig.keys)]), b"G" * (AHEAD_BYTES - KIB))
    rig.settle()
    return crowd.open_count * AHEAD_BYTES


# Of a connection that rests, its head and what is sent ahead; it also has two tasks of its own.
HEADS_BUDGET: Final = HEADS * (32 * KIB + AHEAD_BYTES)
CONNECTION_CASES: Final = {
    "unfinished heads": Case(unfinished_heads, budget=HEADS_BUDGET, least=0.3),
    "pipelined bytes": Case(pipelined_bytes, budget=HEADS_BUDGET),
}


@pytest.mark.parametrize("name", CONNECTION_CASES)
def test_connections_take_their_heads_and_what_is_ahead(name: str, tmp_path: Path) -> None:
    case = CONNECTION_CASES[name]
    check(name, case._replace(limits={**SMALL, "keyless_connections_max": 400}), tmp_path)


################################################################
# UPSTREAMS' EVENTS AND ANSWERS
################################################################


def call_all(rig: Rig, crowd: Crowd, play: Play, each: int, how: How) -> None:
    """So many calls of each key, at an upstream that plays this."""
    for name in rig.keys:
        rig.upstream.plays[name] = play
        for _ in range(each):
            raw = call(name, stream=how.is_stream)
            crowd.add(raw, reads=how.reads, receive_bytes=0 if how.reads else 4 * KIB)
    count = len(crowd.talkers)
    assert wait_until(lambda: len(crowd.over) + rig.upstream.arrived_count >= count)
    rig.settle()


def events(begin: bytes, *, each: int, end: bytes = b"", how: How = STREAMS) -> Fill:
    """Streams that begin so, all at the same time, and then with `end` go on."""

    def fill(rig: Rig, crowd: Crowd) -> int:
        play = rig.upstream.plays_and_holds(SSE_HEAD, begin, then=end)
        call_all(rig, crowd, play, each, how)
        held = crowd.open_count * len(begin)
        if end:
            rig.upstream.released.set()
            rig.settle()
        return held

    return fill


TEXT_FIRST: Final = b'data: {"type":"response.output_text.delta","delta":"'
TEXT_LAST: Final = b'","type":"response.output_text.delta"}\n\n'


def created(size: int, member: bytes = b'"input"', value: bytes = b"") -> bytes:
    """A first event of about that size, in a member of its response."""
    value = value or b'"' + wide(size) + b'"'
    return (
        b'data: {"type":"response.created","response":{"id":"r",'
        + member
        + b":"
        + value
        + b"}}\n\n"
    )


LISTS: Final = filled(b"[", b"[],", b"1]", 500 * KIB)
EVENT_CASES: Final = {
    "unfinished events, one emoji": Case(events(TEXT_FIRST + wide(MIB), each=16)),
    "unfinished events, then their ends": Case(
        events(b'data: {"delta":"' + wide(MIB), each=16, end=TEXT_LAST + END)
    ),
    "events of the full size, type last": Case(
        events(b'data: {"delta":"' + wide(3 * MIB), each=3, end=TEXT_LAST + END)
    ),
    "events of many lines": Case(
        events(filled(b"", b"data:\n", b"", 3 * MIB), each=3, end=b"\n" + END)
    ),
    "deep events": Case(
        events(filled(b'data: {"a":', b"[", b"", 3 * MIB), each=3, end=b"\n\n" + END)
    ),
    "many members in an event": Case(
        events(filled(b'data: {"a":[', b"[],", b"", 3 * MIB), each=3, end=b"1]}\n\n" + END)
    ),
    "held first events, one emoji": Case(events(created(MIB) * 2, each=8)),
    "a response that is kept": Case(events(created(0, b'"model"', LISTS) + DELTA, each=8), least=0),
    "whole events that nobody takes": Case(
        events(TEXT_FIRST + wide(2 * MIB) + b'"}\n\n', each=8, how=UNREAD_STREAMS), least=0
    ),
    "items that are collected": Case(events(done_item(200 * KIB) * 8, each=2), kind="c", least=0),
    "items that are collected, at once": Case(
        events(done_item(200 * KIB) * 8, each=2, end=END), kind="c", least=0
    ),
    "deltas that are collected": Case(
        events((TEXT_FIRST + wide(KIB) + b'"}\n\n') * 500, each=12, how=WHOLE), kind="c", least=0
    ),
}


@pytest.mark.parametrize("name", EVENT_CASES)
def test_events_take_what_is_counted(name: str, tmp_path: Path) -> None:
    check(name, EVENT_CASES[name], tmp_path)


def answers(body: bytes, *, each: int, status: str = "200 OK", more: int = 0) -> Fill:
    """Answers in one piece that no client takes; of each so many bytes are yet to come."""

    def fill(rig: Rig, crowd: Crowd) -> int:
        raw = json_head(len(body) + more, status, closes=True) + body
        call_all(rig, crowd, rig.upstream.plays_and_holds(raw), each, WHOLE if more else UNREAD)
        return crowd.open_count * len(body)

    return fill


ANSWER_LISTS: Final = filled(b'{"id":"r","output":[', b"[],", b"1]}", MEMBER_COUNT * 2)
WORDS: Final = b'{"error":{"code":"x","message":"' + wide(MIB - KIB) + b'"}}'
BAD: Final = "422 Unprocessable Entity"


def whole_answer(size: int) -> bytes:
    return b'{"id":"r","text":"' + wide(size) + b'"}'


ANSWER_CASES: Final = {
    "answers, one emoji": Case(answers(whole_answer(2 * MIB), each=8), least=0),
    "unfinished answers, one emoji": Case(answers(whole_answer(2 * MIB), each=8, more=MIB)),
    "answers of empty lists": Case(answers(ANSWER_LISTS, each=8), least=0),
    "answers of the default size, one emoji": Case(
        answers(whole_answer(60 * MIB), each=1), keys=4, budget=DEFAULT, limits={}, least=0
    ),
    "refusals, one emoji": Case(answers(WORDS, each=6, status=BAD), least=0),
    "refusals of ChatGPT, one emoji": Case(answers(DETAIL, each=6, status=BAD), kind="c", least=0),
}


@pytest.mark.parametrize("name", ANSWER_CASES)
def test_answers_take_what_is_counted(name: str, tmp_path: Path) -> None:
    check(name, ANSWER_CASES[name], tmp_path)


def model_lists(kind: str, count: int, pad: bytes) -> Fill:
    """Lists of all accounts, and then two clients of each key that ask for it and do not read."""

    def fill(rig: Rig, crowd: Crowd) -> int:
        body, path = model_list(kind, count, pad), LIST_PATHS[kind]
        rig.upstream.list_with(json_response(body))
        assert wait_until(lambda: len(rig.upstream.listed) == len(rig.keys))
        rig.settle()
        for name in [*rig.keys] * 2:
            head = request("GET", path, key=key_of(name), headers=[("Connection", "close")])
            crowd.add(head, reads=False, receive_bytes=4 * KIB)
        return len(body) * len(rig.keys)

    return fill


LIST_LIMITS: Final[Mapping[str, float]] = {**SMALL, "connect_seconds_max": 60}
LARGE_LIST_LIMITS: Final[Mapping[str, float]] = {
    **LIST_LIMITS, "event_bytes_max": 16 * MIB, "events_bytes_max": 2 * BUDGET,
}  # fmt: skip
LIST_FILLS: Final = {
    "model lists, one emoji in each entry": model_lists("c", 1_900, b'"' + wide(2_000) + b'"'),
    "model lists of empty lists": model_lists("c", 1_900, padding(b"[],", 2_000)),
    "model lists of empty lists, at the bound": model_lists("c", 1_900, padding(b"[],", 280)),
    "model lists of 15 MiB": model_lists("c", 1_900, padding(b"[],", 8_000)),
    "plain model lists of 15 MiB": model_lists("a", 200_000, b'"' + b"x" * 30 + b'"'),
}


@pytest.mark.parametrize("name", LIST_FILLS)
def test_model_lists_take_what_is_counted(name: str, tmp_path: Path) -> None:
    limits, budget, keys = LIST_LIMITS, BUDGET, 8
    if "15 MiB" in name:
        limits, budget, keys = LARGE_LIST_LIMITS, 2 * BUDGET, 4
    kind = "a" if "plain" in name else "c"
    more = {"models": None}
    check(name, Case(LIST_FILLS[name], kind, keys, budget, 0, more, limits), tmp_path)


################################################################
# UPSTREAMS' WEBSOCKETS
################################################################


def socket_turns(*frames: bytes, each: int, reads: bool = True) -> Fill:
    """Turns of each key at an upstream that answers with these frames, and then rests."""

    def fill(rig: Rig, crowd: Crowd) -> int:
        def play(visit: Visit) -> bool:
            with visit.caller.makefile("rb") as file:
                take_message(file)
            return rig.upstream.plays_and_holds(*frames)(visit) is True

        for name in rig.keys:
            rig.upstream.plays[name] = play
        for name in [*rig.keys] * each:
            crowd.add_socket(name, message(TURN), reads=reads)
        rig.settle()
        assert rig.upstream.arrived_count == len(crowd.talkers)
        return crowd.open_count * sum(map(len, frames))

    return fill


EARLY: Final = server_message(b'{"type":"codex.x","pad":"' + speckled(MIB // 2) + b'"}')
LARGE: Final = b'{"type":"response.output_text.delta","delta":"' + speckled(3 * MIB) + b'"}'
UPSTREAM_SOCKET_CASES: Final = {
    "messages before the first event": Case(socket_turns(*[EARLY] * 12, each=1)),
    "unfinished messages of upstreams": Case(
        socket_turns(server_message(LARGE, is_whole=False), each=2)
    ),
    "messages that nobody takes": Case(
        socket_turns(*[server_message(LARGE)] * 4, each=2, reads=False), least=0
    ),
}


@pytest.mark.parametrize("name", UPSTREAM_SOCKET_CASES)
def test_messages_of_upstreams_take_what_is_counted(name: str, tmp_path: Path) -> None:
    check(name, UPSTREAM_SOCKET_CASES[name], tmp_path)
