"""Proves that no legal input of a client or an upstream holds the loop for long.

Method: the real process with its default limits.  A good client, which is a process of its own,
asks /healthz again and again; the longest that it waits beside an input is how long the loop was
held.  What it or the pooler spent in waiting for a processor is taken off, and the best of a few
runs counts, for other processes disturb.  Inputs are of the largest size in the worst shapes that
are known.  Each case prints one line of figures.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

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
from tests.support.frames import CLOSE, CONTINUATION, PING, TEXT, frame
from tests.support.hostile_peers import (
    CLOSES,
    DELTA,
    EMOJI,
    END,
    HEALTH,
    KIB,
    MIB,
    MODEL,
    OPERATOR,
    SSE_HEAD,
    TURN,
    Gap,
    Probe,
    Rig,
    Visit,
    call,
    crowded,
    filled,
    json_response,
    key_of,
    message,
    opened_rig,
    paired,
    plays,
    read_all,
    server_message,
    streams_well,
    take_message,
    turns_well,
    wait_until,
    wide,
)
from tests.support.memory_sockets import post, request

pytestmark: Final = pytest.mark.measures

STALL_SECONDS_MAX: Final = 0.15
BUSY_TIMES: Final = 2.5  # a machine that runs the tests may be so much slower
RUNS: Final = 3  # at most, of which the best counts
CASE_SECONDS_MAX: Final = 15.0
FULL: Final = 32 * MIB - 64 * KIB  # a body, with room for its head
EVENT: Final = 16 * MIB - 64 * KIB
ANSWER: Final = 64 * MIB - 64 * KIB

RESPONSES: Final = "/v1/responses"
CHAT: Final = "/v1/chat/completions"

Dose = Callable[[Rig], object]


class Stand:
    """A pooler and its good client; others in their place once a case has broken them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rig: Rig | None = None
        self.probe: Probe | None = None

    def opened(self) -> tuple[Rig, Probe]:
        if self.rig is None or self.probe is None:
            accounts, pools = paired(2)
            codex, codex_pools = paired(1, "c")
            pools["a0"]["aliases"] = {"nick": "m1"}
            self.rig = Rig(self.folder, accounts | codex, pools | codex_pools)
            self.rig.warm_up()
            self.probe = Probe(self.rig)
        return self.rig, self.probe

    def end(self, *, is_broken: bool) -> None:
        rig, probe = self.rig, self.probe
        self.rig = self.probe = None
        if rig is not None and is_broken:
            rig.kill()
        elif rig is not None:
            rig.close()
        if probe is not None:
            probe.close()


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    made = Stand(tmp_path_factory.mktemp("stand"))
    yield made
    made.end(is_broken=False)


def measured(rig: Rig, probe: Probe, dose: Dose) -> Gap:
    """The longest wait of the good client; without end, where the input's own is not seen."""
    rig.forget()
    rig.settle()
    rig.upstream.released.clear()
    probe.start()
    is_over = True
    try:
        dose(rig)
    except TimeoutError:
        is_over = False
    finally:
        rig.upstream.released.set()
        gap = probe.stop()
    return gap if is_over else Gap(math.inf, gap.gross, gap.answers)


def judge(name: str, run: Callable[[], Gap]) -> None:
    """Run it until it is well, a few times; the best counts."""
    gaps = [run()]
    while STALL_SECONDS_MAX < gaps[-1].net < STALL_SECONDS_MAX * 10 and len(gaps) < RUNS:
        gaps.append(run())
    told = ", ".join(f"{gap.net * 1000:.0f} ({gap.gross * 1000:.0f})" for gap in gaps)
    sys.stdout.write(f"{name}: held the loop for {told} ms\n")
    assert min(gaps).net < STALL_SECONDS_MAX * BUSY_TIMES


def check(name: str, stand: Stand, dose: Dose) -> None:
    try:
        judge(name, lambda: measured(*stand.opened(), dose))
    except BaseException:
        stand.end(is_broken=True)
        raise


def ask_all(rig: Rig, raws: Sequence[bytes], *, is_split: bool = False) -> None:
    """Each on a connection of its own, to its end; split: their last bytes at the same time."""
    with crowded(rig) as crowd:
        if is_split:
            crowd.add_split(raws, settles=False)  # it never rests while it is asked
        else:
            for raw in raws:
                crowd.add(raw)
        if not wait_until(lambda: not crowd.open_count, CASE_SECONDS_MAX):
            raise TimeoutError


def ask_upstream(rig: Rig, raw: bytes, name: str, count: int = 1) -> None:
    """So many of this request, each of which must come to that account."""
    before = rig.upstream.arrived[name]
    ask_all(rig, [raw] * count)
    assert rig.upstream.arrived[name] >= before + count


################################################################
# CLIENTS' BODIES
################################################################


def posted(
    make: Callable[[], bytes], name: str = "a0", path: str = "/v1/responses", count: int = 1
) -> Dose:
    """So many calls with this body, which end at the same time; the upstream answers well."""

    def dose(rig: Rig) -> None:
        rig.upstream.plays[name] = streams_well
        ask_all(rig, [call(name, make(), path=path)] * count, is_split=count > 1)

    return dose


def shaped(shape: str, size: int = FULL) -> Callable[[], bytes]:
    return lambda: BEGUN + BODY_SHAPES[shape](size) + b"}"


def text_of(unit: bytes) -> Callable[[], bytes]:
    return lambda: filled(BEGUN + b'"', unit, b'"}', FULL)


def hidden_models(inner: bytes) -> Callable[[], bytes]:
    """A model's name that is an alias, behind what looks like others."""
    return lambda: b'{"a":' + inner + b',"stream":true,"input":"","model":"nick"}'


def odd_name(member: str) -> Callable[[], bytes]:
    """A list where a name should be, of letters that take most when they are shown."""
    begun = b'{"model":"m1","stream":true,"input":"","' + member.encode() + b'":["'
    return lambda: filled(begun, "\U0010ffff".encode(), b'"]}', FULL)


def chunked(rig: Rig) -> None:
    """A body of 2 MiB in chunks of one byte."""
    rig.upstream.plays["a0"] = streams_well
    body = BEGUN + b'"' + b"a" * (MIB // 4) + b'"}'
    head = post("/v1/responses", b"", key=key_of("a0"), headers=CLOSES)
    head = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    ask_all(rig, [head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"])


def codex_body(shape: str, member: str = "input") -> Callable[[], bytes]:
    begun = b'{"model":"m1","stream":true,"' + member.encode() + b'":'
    return lambda: begun + CODEX_SHAPES[shape](FULL) + b"}"


def repaired(rig: Rig) -> None:
    """A full body from which encrypted reasoning is taken."""
    refusal = b'{"error":{"code":"invalid_encrypted_content","message":"x"}}'
    rig.upstream.plays["a0"] = plays(json_response(refusal, "400 Bad Request"), keeps=True)
    items = filled(b'[{"type":"reasoning"},', b'{"a":"b"},', b"{}]", MEMBER_COUNT * 4)
    ask_all(rig, [call("a0", b'{"model":"m1","input":' + items + b"}")])


def heads(rig: Rig) -> None:
    """32 heads of the full size at once."""
    fields = [(f"X-{at:03d}", "y" * 300) for at in range(95)]
    ask_all(rig, [request("GET", "/v1/models", key=key_of("a0"), headers=[*fields, *CLOSES])] * 32)


BODY_DOSES: Final[dict[str, Dose]] = {
    **{f"body, {shape}": posted(shaped(shape)) for shape in BODY_SHAPES},
    "body, backslashes": posted(text_of(b"\\\\")),
    "body, escaped quotes": posted(text_of(b'\\"')),
    "body, escaped letters": posted(text_of(b"\\u0061")),
    "body, brackets in a text": posted(text_of(b"[{")),
    "body, a long number": posted(lambda: BEGUN + b"9" * FULL + b"}"),
    "body, blanks": posted(lambda: BEGUN + b"0" + b" " * FULL + b"}"),
    "body, brackets that close nothing": posted(
        lambda: filled(BEGUN + b"[" + b"[]," * 200, b"] ", b"}", FULL)
    ),
    "body, a response id that is a list": posted(odd_name("previous_response_id")),
    "body, a session that is a list": posted(odd_name("prompt_cache_key")),
    "body, nested models": posted(
        hidden_models(filled(b"[", b'{"model":"x"},', b"1]", MEMBER_COUNT * 7))
    ),
    "body, a long text called model": posted(hidden_models(b'{"model":"' + b"a" * FULL + b'"}')),
    "body, an escaped text called model": posted(
        hidden_models(filled(b'{"model":"', b"\\n", b'"}', FULL))
    ),
    "body, text that looks like models": posted(
        hidden_models(filled(b'"', b'\\"model\\":', b'"', FULL))
    ),
    "body, chunks of a byte": chunked,
    "body, repaired": repaired,
    "8 bodies at once, empty lists": posted(shaped("empty lists"), count=8),
    "8 bodies at once, text": posted(shaped("one emoji", 8 * MIB), count=8),
    "32 heads at once": heads,
    **{f"translated, {shape}": posted(codex_body(shape), "c0") for shape in CODEX_SHAPES},
    **{
        f"translated from Chat, {shape}": posted(codex_body(shape, "messages"), "c0", CHAT)
        for shape in CODEX_SHAPES
    },
    "native, one emoji": posted(shaped("one emoji"), "c0", "/backend-api/codex/responses"),
}


@pytest.mark.parametrize("name", BODY_DOSES)
def test_no_body_holds_the_loop_for_long(name: str, stand: Stand) -> None:
    check(name, stand, BODY_DOSES[name])


################################################################
# REQUESTS THAT HAVE NO BODY
################################################################

MANY_MODELS: Final = [MODEL, *(f"m-{at}" for at in range(2, 1900))]


def at_once(raw: bytes, count: int) -> Dose:
    """So many connections that have sent this before the pooler looks at any of them."""

    def dose(rig: Rig) -> None:
        clients = [rig.connect() for _ in range(count)]
        for client in clients:
            client.sendall(HEALTH)
            client.recv(4096)
        os.kill(rig.pid, signal.SIGSTOP)
        for client in clients:
            client.sendall(raw)
        os.kill(rig.pid, signal.SIGCONT)
        for client in clients:
            with client:
                read_all(client)

    return dose


def ahead(raw: bytes, count: int = 1) -> Dose:
    """As many of this request as may be sent ahead on a connection, and the last one."""
    last = request("GET", "/healthz", key=None, headers=CLOSES)
    return at_once(raw * (64 * KIB // len(raw)) + last, count)


GET_DOSES: Final[dict[str, Dose]] = {
    "ahead, unknown paths": ahead(request("GET", "/x", key=None), 24),
    "ahead, one model": ahead(request("GET", f"/v1/models/{MODEL}", key=key_of("a0"))),
    "ahead, HEAD of the models": ahead(request("HEAD", "/v1/models", key=key_of("a0"))),
    "250 lists": at_once(request("GET", "/v1/models", key=key_of("a0"), headers=CLOSES), 250),
}


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Probe]]:
    """A pool with about as many models as there may be."""
    accounts, pools = paired(1, models=MANY_MODELS)
    with opened_rig(tmp_path_factory.mktemp("listing"), accounts, pools) as rig:
        probe = Probe(rig)
        yield rig, probe
        probe.close()


@pytest.mark.parametrize("name", GET_DOSES)
def test_no_request_without_a_body_holds_the_loop_for_long(
    name: str, listing: tuple[Rig, Probe]
) -> None:
    judge(name, lambda: measured(*listing, GET_DOSES[name]))


################################################################
# CLIENTS' WEBSOCKETS
################################################################


def framed(*make: Callable[[], bytes], is_turn: bool = False) -> Dose:
    """A WebSocket that sends these frames; over when it is closed, or its turn has ended."""

    def dose(rig: Rig) -> None:
        rig.upstream.plays["a0"] = turns_well
        with crowded(rig) as crowd:
            talker = crowd.add_socket("a0", *[one() for one in make])
            if not wait_until(
                lambda: talker.is_over or (is_turn and len(talker.head) > 40), CASE_SECONDS_MAX
            ):
                raise TimeoutError

    return dose


def turn_of(size: int, fragments: int = 1) -> Callable[[], bytes]:
    return lambda: message(TURN.replace(b'"hi"', b'"' + wide(size) + b'"'), fragments)


PINGS: Final = frame(PING) * 4_000
FRAME_DOSES: Final[dict[str, Dose]] = {
    "message of 31 MiB": framed(turn_of(31 * MIB), is_turn=True),
    "message of 15 MiB, passed on": framed(turn_of(15 * MIB), is_turn=True),
    "message of 4,000 frames": framed(turn_of(15 * MIB, 4_000), is_turn=True),
    "pings": framed(lambda: PINGS * 4 + b"\x81"),
    "empty fragments": framed(
        lambda: frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 20_000
    ),
    "tiny messages": framed(lambda: frame(TEXT, b"x") * 6_000 + frame(CLOSE)),
    "16 turns ahead": framed(*[turn_of(MIB)] * 16, is_turn=True),
}


@pytest.mark.parametrize("name", FRAME_DOSES)
def test_no_frame_holds_the_loop_for_long(name: str, stand: Stand) -> None:
    check(name, stand, FRAME_DOSES[name])


################################################################
# UPSTREAMS' EVENTS
################################################################


def streamed(
    *make: Callable[[], bytes], name: str = "a0", path: str = RESPONSES, count: int = 1
) -> Dose:
    """So many streams of these bytes and a good end."""

    def dose(rig: Rig) -> None:
        rig.upstream.plays[name] = plays(SSE_HEAD, *[one() for one in make], END)
        ask_upstream(rig, call(name, STREAMED[path], path=path), name, count)

    return dose


STREAMED: Final = {
    RESPONSES: b'{"model":"m1","input":"hi","stream":true}',
    CHAT: b'{"model":"m1","messages":[{"role":"user","content":"hi"}],"stream":true}',
}
COLLECTED: Final = {path: body.replace(b"true", b"false") for path, body in STREAMED.items()}


def event(
    unit: bytes, size: int = EVENT, *, kind: bytes = b"x", is_first: bool = False
) -> Callable[[], bytes]:
    """An event of about that size: of its data, `unit` again and again between brackets."""
    begun = b'data: {"type":"' + kind + b'","a":[' if is_first else b'data: {"a":['
    ended = b"1]}\n\n" if is_first else b'1],"type":"' + kind + b'"}\n\n'
    return lambda: filled(begun, unit, ended, size)


def pieces(unit: bytes) -> Callable[[], bytes]:
    """Many small events, as many at once as a piece holds."""
    return lambda: unit * (MIB // 2 // len(unit))


def lines(unit: bytes, end: bytes = b"\n") -> Callable[[], bytes]:
    """An event of as many lines as there is room for."""
    return lambda: filled(DELTA[:-2] + end, unit, end, EVENT)


def items(count: int) -> Callable[[], bytes]:
    """Finished items, each with as many members as may be."""
    return lambda: done_item(MEMBER_COUNT * 3) * count


DONE: Final = b"response.completed"
CALL_ITEM: Final = (
    b'data: {"type":"response.output_item.done","output_index":%d,"item":'
    b'{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}}\n\n'
)
EVENT_DOSES: Final[dict[str, Dose]] = {
    "event, one string": streamed(lambda: DELTA[:-5] + wide(EVENT) + DELTA[-5:]),
    "event, one string, type last": streamed(
        lambda: b'data: {"delta":"' + wide(EVENT) + b'","type":"x"}\n\n'
    ),
    "event, escaped emoji, type last": streamed(event(b'"\\ud83d\\ude00",', MEMBER_COUNT * 15)),
    "event, empty lists": streamed(event(b"[],", MEMBER_COUNT * 3)),
    "event, empty lists, the end": streamed(event(b"[],", MEMBER_COUNT * 3, kind=DONE)),
    "event, many members": streamed(event(b"[],")),
    "event, many members, the end": streamed(event(b"[],", kind=DONE, is_first=True)),
    "event, deep": streamed(lambda: filled(b'data: {"a":', b"[", b"\n\n", EVENT)),
    "event, lines of data": streamed(lines(b"data:\n")),
    "event, lines of data, type last": streamed(
        lambda: filled(b'data: {"a":1\n', b"data:\n", b'data: ,"type":"x"}\n\n', EVENT)
    ),
    "event, lines of data, translated": streamed(
        lambda: filled(b'data: {"a":1\n', b"data:\n", b'data: ,"type":"x"}\n\n', EVENT),
        name="c0",
        path=CHAT,
    ),
    "event, comment lines": streamed(lines(b":\n")),
    "event, lines with CR": streamed(lines(b":\r", b"\r")),
    "event, lines with CR LF": streamed(lines(b":\r\n", b"\r\n")),
    "event, quota": streamed(event(b"[],", kind=b"codex.rate_limits"), name="c0"),
    "8 events at once, empty lists": streamed(event(b"[],", MEMBER_COUNT * 3, kind=DONE), count=8),
    "pieces of blank lines": streamed(pieces(b"\n")),
    "pieces of CR": streamed(pieces(b"\r")),
    "pieces of comments": streamed(pieces(b":\n\n")),
    "pieces of empty objects": streamed(pieces(b"data:{}\n\n")),
    "pieces of types alone": streamed(pieces(b'data:{"type":"x"}\n\n')),
    "pieces of first events": streamed(pieces(b'data:{"type":"response.created"}\n\n')),
    "pieces of deltas": streamed(pieces(DELTA)),
    "pieces of Chat chunks": streamed(pieces(b'data:{"choices":[{}]}\n\n'), path=CHAT),
    "translated, deltas": streamed(pieces(DELTA), name="c0", path=CHAT),
    "translated, types alone": streamed(pieces(b'data:{"type":"x"}\n\n'), name="c0", path=CHAT),
    "translated, calls": streamed(
        lambda: b"".join(CALL_ITEM % at for at in range(15_000)), name="c0", path=CHAT
    ),
    "translated, one string": streamed(
        lambda: DELTA[:-5] + filled(b"", EMOJI, b"", EVENT) + DELTA[-5:], name="c0", path=CHAT
    ),
    "collected items": streamed(items(8), name="c0"),
    "collected items, Chat": streamed(items(8), name="c0", path=CHAT),
}


@pytest.mark.parametrize("name", EVENT_DOSES)
def test_no_event_holds_the_loop_for_long(name: str, stand: Stand) -> None:
    check(name, stand, EVENT_DOSES[name])


################################################################
# UPSTREAMS' ANSWERS
################################################################


def answered(make: Callable[[], bytes], status: str = "200 OK", name: str = "a0") -> Dose:
    """An answer in one piece."""

    def dose(rig: Rig) -> None:
        rig.upstream.plays[name] = plays(json_response(make(), status), keeps=True)
        ask_upstream(rig, call(name), name)

    return dose


def collected(*make: Callable[[], bytes], path: str = RESPONSES) -> Dose:
    """A stream that is read for a client who waits for the whole."""

    def dose(rig: Rig) -> None:
        rig.upstream.plays["c0"] = plays(SSE_HEAD, *[one() for one in make], END)
        ask_upstream(rig, call("c0", COLLECTED[path], path=path), "c0")

    return dose


def answer(unit: bytes, size: int = ANSWER) -> Callable[[], bytes]:
    return lambda: filled(b'{"id":"r","output":[', unit, b"1]}", size)


def words(unit: bytes, size: int = MIB - KIB) -> Callable[[], bytes]:
    """An error's message of such words."""
    return lambda: filled(b'{"error":{"message":"', unit, b'"}}', size)


def emoji_deltas() -> bytes:
    return (DELTA[:-5] + filled(b"", EMOJI, b"", MIB) + DELTA[-5:]) * 50


BAD_REQUEST, NOT_FOUND, TOO_MANY = "400 Bad Request", "404 Not Found", "429 Too Many Requests"
ANSWER_DOSES: Final[dict[str, Dose]] = {
    "answer, one string": answered(lambda: b'{"id":"' + wide(ANSWER) + b'"}'),
    "answer, all emoji": answered(lambda: filled(b'{"id":"', EMOJI, b'"}', ANSWER)),
    "answer, escaped emoji": answered(lambda: filled(b'{"id":"', b"\\ud83d\\ude00", b'"}', ANSWER)),
    "answer, empty lists": answered(answer(b"[],", MEMBER_COUNT * 3)),
    "answer, many members": answered(answer(b"[],")),
    "answer, deep": answered(lambda: filled(b'{"a":', b"[", b"", ANSWER)),
    "answer, blanks": answered(lambda: b"{}" + b" " * ANSWER),
    "refusal, encrypted content": answered(words(b"encrypted content "), BAD_REQUEST),
    "refusal, models": answered(words(b"model a "), NOT_FOUND),
    "refusal, quoted names": answered(words(b"'a"), NOT_FOUND),
    "refusal, a long name": answered(words(b"a"), NOT_FOUND),
    "refusal, hints": answered(words(b"try again in 1h1m1"), TOO_MANY),
    "refusal, a long hint": answered(
        lambda: b'{"error":{"message":"try again in ' + b"1" * (MIB - KIB) + b'"}}', TOO_MANY
    ),
    "refusal, a long number": answered(
        lambda: b'{"error":{"resets_at":"' + b"9" * (MIB - KIB) + b'"}}', TOO_MANY
    ),
    "refusal, empty lists": answered(
        lambda: filled(b'{"error":[', b"[],", b"1]}", MIB - KIB), BAD_REQUEST
    ),
    "refusal of ChatGPT, all emoji": answered(lambda: DETAIL, BAD_REQUEST, "c0"),
    "collected text": collected(emoji_deltas),
    "collected text, Chat": collected(emoji_deltas, path=CHAT),
    "collected deltas": collected(lambda: DELTA * 200_000),
    "collected items, whole": collected(items(8)),
}


@pytest.mark.parametrize("name", ANSWER_DOSES)
def test_no_answer_holds_the_loop_for_long(name: str, stand: Stand) -> None:
    check(name, stand, ANSWER_DOSES[name])


################################################################
# UPSTREAMS' WEBSOCKETS
################################################################


def socket_turn(*make: Callable[[], bytes]) -> Dose:
    """A turn that is answered with these frames and a good end."""

    def dose(rig: Rig) -> None:
        frames = [*[one() for one in make], server_message(END[6:-2])]

        def play(visit: Visit) -> bool:
            with visit.caller.makefile("rb") as file:
                take_message(file)
            return plays(*frames)(visit) is True

        rig.upstream.plays["a0"] = play
        before = rig.upstream.arrived["a0"]
        with crowded(rig) as crowd:
            talker = crowd.add_socket("a0", message(TURN))
            # The WebSocket itself stays open.
            if not wait_until(lambda: TURN_ENDS.search(talker.tail) is not None, CASE_SECONDS_MAX):
                raise TimeoutError
        assert rig.upstream.arrived["a0"] > before

    return dose


TURN_ENDS: Final = re.compile(rb'"response\.(?:completed|failed)"|"type": ?"error"')


def sent(unit: bytes, size: int = EVENT, type_: bytes = b"x") -> Callable[[], bytes]:
    return lambda: server_message(filled(b'{"a":[', unit, b'1],"type":"' + type_ + b'"}', size))


SOCKET_DOSES: Final[dict[str, Dose]] = {
    "upstream message, one string": socket_turn(
        lambda: server_message(DELTA[6:-5] + wide(EVENT) + DELTA[-5:-2])
    ),
    "upstream message, line ends": socket_turn(sent(b"\n")),
    "upstream message, many members": socket_turn(sent(b"[],")),
    "upstream message, empty lists": socket_turn(sent(b"[],", MEMBER_COUNT * 3)),
    "upstream messages, early": socket_turn(*[sent(b'"a",', MIB, b"codex.x")] * 15),
    "upstream messages, tiny": socket_turn(lambda: server_message(DELTA[6:-2]) * 20_000),
    "upstream messages, empty objects": socket_turn(lambda: server_message(b"{}") * 60_000),
}


@pytest.mark.parametrize("name", SOCKET_DOSES)
def test_no_message_of_an_upstream_holds_the_loop_for_long(name: str, stand: Stand) -> None:
    check(name, stand, SOCKET_DOSES[name])


################################################################
# MODEL LISTS AND PAGES
################################################################

LISTED: Final = 1_990  # models in a list: just below what is kept
PLAIN: Final = b'"' + b"x" * 60 + b'"'
LISTS: Final = {
    "plain": ("a", PLAIN),
    "15 MiB": ("a", padding(b"[],", 7_500)),
    "of ChatGPT, plain": ("c", PLAIN),
    "of ChatGPT, 4 MiB": ("c", b'"' + wide(2_000) + b'"'),
    "of ChatGPT, empty lists": ("c", padding(b"[],", 290)),
    "of ChatGPT, 15 MiB": ("c", padding(b"[],", 7_500)),
}


@pytest.mark.parametrize("name", LISTS)
def test_no_model_list_holds_the_loop_for_long(name: str, tmp_path: Path) -> None:
    """Neither reading the lists of four accounts nor showing them together."""
    kind, pad = LISTS[name]
    accounts, _ = paired(4, kind, models=None)
    pools = {"all": {"accounts": [*accounts], "keys": {"all": key_of("all")}}}
    head = request("GET", LIST_PATHS[kind], key=key_of("all"), headers=CLOSES)
    limits = {"connect_seconds_max": 60}
    with opened_rig(tmp_path, accounts, pools, limits, may_list=False) as rig:
        rig.warm_up()
        probe = Probe(rig)

        def read(_rig: Rig) -> None:
            rig.upstream.list_with(json_response(model_list(kind, LISTED, pad)))
            assert wait_until(lambda: len(rig.upstream.listed) == len(accounts))
            ask_all(rig, [head])

        def show(_rig: Rig) -> None:
            ask_all(rig, [head] * 4)

        try:
            judge(f"model list, {name}, read", lambda: measured(rig, probe, read))
            judge(f"model list, {name}, shown", lambda: measured(rig, probe, show))
        finally:
            probe.close()


POOLS: Final = 32
KEYS: Final = 32  # of each: more rows of counters than are kept


def tool_call(tool: str) -> bytes:
    """What an operator's MCP client sends."""
    params = {"name": f"codex_pooler_{tool}", "arguments": {}}
    content = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    accepts = ("Accept", "application/json, text/event-stream")
    return post("/mcp", content, key=OPERATOR, headers=[accepts, *CLOSES])


def page(path: str, accepts: str) -> bytes:
    return request("GET", path, key=OPERATOR, headers=[("Accept", accepts), *CLOSES])


ACCOUNTS: Final = 1_000

PAGES: Final = {
    "/admin": page("/admin", "text/html"),
    "/admin as JSON": page("/admin", "application/json"),
    "/metrics": page("/metrics", "*/*"),
    **{
        f"/mcp, {tool}": tool_call(tool)
        for tool in ("list_pools", "list_upstreams", "list_pool_api_keys", "list_request_logs")
    },
}


@pytest.fixture(scope="module")
def full_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Probe]]:
    """One with a thousand keys, each of which has called once."""
    accounts, _ = paired(POOLS)
    pools = {}
    for at, account in enumerate(accounts):
        names = [f"k{at}-{number}" for number in range(KEYS)]
        pools[f"p{at}"] = {"accounts": [account], "keys": {name: key_of(name) for name in names}}
    with opened_rig(tmp_path_factory.mktemp("pages"), accounts, pools) as rig:
        for name in rig.keys:
            rig.ask(call(name))
        probe = Probe(rig)
        yield rig, probe
        probe.close()


@pytest.mark.parametrize("name", PAGES)
def test_no_page_holds_the_loop_for_long(name: str, full_rig: tuple[Rig, Probe]) -> None:
    judge(name, lambda: measured(*full_rig, lambda rig: ask_all(rig, [PAGES[name]])))


@pytest.fixture(scope="module")
def wide_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Probe]]:
    """One with a thousand accounts, half of them of ChatGPT, in one pool."""
    accounts, _ = paired(ACCOUNTS // 2)
    chatgpt, _ = paired(ACCOUNTS // 2, "c")
    pools = {"all": {"accounts": [*accounts, *chatgpt], "keys": {"all": key_of("all")}}}
    with opened_rig(tmp_path_factory.mktemp("wide"), accounts | chatgpt, pools) as rig:
        rig.ask(call("all"))
        probe = Probe(rig)
        yield rig, probe
        probe.close()


@pytest.mark.parametrize("name", PAGES)
def test_no_page_about_a_thousand_accounts_holds_the_loop_for_long(
    name: str, wide_rig: tuple[Rig, Probe]
) -> None:
    page_name = f"a thousand accounts, {name}"
    judge(page_name, lambda: measured(*wide_rig, lambda rig: ask_all(rig, [PAGES[name]])))
