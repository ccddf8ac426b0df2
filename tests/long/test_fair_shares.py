"""Proves that nobody's worst is felt by others: each key and each account has its share.

Method: the real process with small limits, and one key, or the upstream of one account, that takes
all that it can get of connections, bodies, places, queue, pins, events and counters.  Meanwhile
another key must be served within a second, /healthz must answer, and the streams of another
account must come byte for byte and without delay.  Each case prints one line of figures.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.hostile_peers import (
    CLOSES,
    DELTA,
    END,
    HEALTH,
    KIB,
    MIB,
    OPERATOR,
    SSE_HEAD,
    TURN,
    Crowd,
    Play,
    Rig,
    Visit,
    call,
    crowded,
    json_head,
    json_response,
    key_of,
    message,
    opened_rig,
    paired,
    plays,
    read_all,
    server_message,
    take_message,
    wait_until,
    well,
    wide,
)
from tests.support.memory_sockets import post, request
from tests.support.raw_http import split_responses, take_chunks

pytestmark: Final = pytest.mark.measures

SECONDS_MAX: Final = 1.0  # that anybody else waits
RUNS: Final = 3  # at most, of which the best counts
GIVEN_UP_SECONDS: Final = 12.0
BUDGET: Final = 64 * MIB
BODY: Final = 8 * MIB - KIB
LIMITS: Final[dict[str, float]] = {
    "bodies_bytes_max": BUDGET, "body_bytes_max": 8 * MIB, "websocket_message_bytes_max": 8 * MIB,
    "events_bytes_max": BUDGET, "event_bytes_max": 4 * MIB, "unary_bytes_max": 8 * MIB,
    "connections_max": 96, "keyless_connections_max": 48, "queue_length_max": 8,
    "pins_max": 64, "response_pins_max": 64, "write_stall_seconds_max": 30,
}  # fmt: skip
CHAT: Final = "/v1/chat/completions"  # the good key's: by that the upstream knows it


def shared(concurrent: int = 128, accounts: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """A pool of two keys, of which one is the hog."""
    made, _ = paired(accounts, concurrent=concurrent)
    keys: Any = {name: {"key": key_of(name), "concurrent": 256} for name in ("hog", "good")}
    return made, {"home": {"accounts": [*made], "keys": keys}}


################################################################
# THE OTHERS
################################################################


def timed(rig: Rig, raw: bytes) -> tuple[float, bytes]:
    """The seconds until an answer has come whole, and the answer; given up after some time."""
    began_at = time.monotonic()
    answer = b""
    with contextlib.suppress(OSError), rig.connect() as client:
        client.settimeout(GIVEN_UP_SECONDS)
        with contextlib.suppress(OSError):  # it may refuse before it has heard all
            client.sendall(raw)
        answer = read_all(client)
    return time.monotonic() - began_at, answer


def good_call(body: bytes = b"", name: str = "good") -> bytes:
    content = body or b'{"model":"m1","messages":[{"role":"user","content":"hi"}]}'
    return post(CHAT, content, key=key_of(name), headers=CLOSES)


def check_others(rig: Rig, case: str, raw: bytes = b"") -> None:
    """The other key and /healthz are served, each on a new connection.

    Where it took long, once more: other processes may have had the processor.
    """
    health = HEALTH.replace(b"Host", b"Connection: close\r\nHost")
    waits: list[float] = []
    for _ in range(RUNS):
        for one in (raw or good_call(), health):
            waited, answer = timed(rig, one)
            line = answer.partition(b"\r\n")[0].decode() or "nothing"
            sys.stdout.write(f"{case}: {line} after {waited:.3f} s\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            waits.append(waited)
        if max(waits[-2:]) < SECONDS_MAX:
            break
    assert max(waits[-2:]) < SECONDS_MAX


def for_hogs(play: Play) -> Play:
    """Plays this for all but the good key."""
    return lambda visit: well(visit) if visit.path.endswith("completions") else play(visit)


################################################################
# CONNECTIONS
################################################################

Attack = Callable[[Rig, Crowd], object]
MODELS: Final = request("GET", "/v1/models", key=key_of("hog"))
FULL_COUNT: Final = 120  # connections: more than there may be


def connect_all(
    rig: Rig, crowd: Crowd, raw: bytes, count: int = FULL_COUNT, *, reads: bool = True
) -> int:
    """So many connections that send this, as far as they are let in; how many that are."""
    before = len(crowd.talkers)
    for _ in range(count):
        with contextlib.suppress(OSError):
            crowd.add(raw, reads=reads, receive_bytes=0 if reads else 4 * KIB)
    rig.settle()
    return len(crowd.talkers) - before


def hogs_stream(rig: Rig, crowd: Crowd) -> None:
    """Streams whose events nobody reads."""
    rig.upstream.plays["a0"] = for_hogs(plays(SSE_HEAD, *[DELTA * 1_000] * 500))
    connect_all(rig, crowd, call("hog", stream=True), reads=False)


def hogs_upgrade(rig: Rig, crowd: Crowd) -> None:
    for _ in range(FULL_COUNT):
        with contextlib.suppress(OSError, AssertionError):
            crowd.add_socket("hog", message(TURN))
    rig.settle()


CONNECTION_ATTACKS: Final[dict[str, Attack]] = {
    "resting connections": lambda rig, crowd: connect_all(rig, crowd, MODELS),
    "connections without a word": lambda rig, crowd: connect_all(rig, crowd, b"G"),
    "resting, then silent ones": lambda rig, crowd: (
        connect_all(rig, crowd, MODELS),
        connect_all(rig, crowd, b"G"),
    ),
    "unread streams": hogs_stream,
    "heads that are not whole, after one that was": lambda rig, crowd: connect_all(
        rig, crowd, MODELS + MODELS[:-2]
    ),
    "WebSockets": hogs_upgrade,
}


@pytest.mark.parametrize("case", CONNECTION_ATTACKS)
def test_connections_of_one_key_leave_room_for_others(case: str, tmp_path: Path) -> None:
    accounts, pools = shared()
    with opened_rig(tmp_path, accounts, pools, LIMITS) as rig, crowded(rig) as crowd:
        CONNECTION_ATTACKS[case](rig, crowd)
        check_others(rig, case)


################################################################
# BODIES AND MESSAGES
################################################################


def slow_bodies(rig: Rig, crowd: Crowd) -> None:
    body = b'{"model":"m1","input":"' + b"a" * BODY
    connect_all(rig, crowd, call("hog", body)[:-1], 16)


def held_bodies(rig: Rig, crowd: Crowd) -> None:
    """Whole ones, at an upstream that says nothing."""
    rig.upstream.plays["a0"] = for_hogs(rig.upstream.hold)
    body = b'{"model":"m1","input":"' + b"a" * (BODY - 30) + b'"}'
    connect_all(rig, crowd, call("hog", body), 16)


NINE: Final = 9  # messages of 7 MiB fill the budget, and none has to be refused


def unfinished_messages(rig: Rig, crowd: Crowd) -> None:
    raw = message(b"a" * (7 * MIB), is_whole=False)
    for _ in range(NINE):
        crowd.add_socket("hog", raw)
    rig.settle()


def waiting_messages(rig: Rig, crowd: Crowd) -> None:
    """Turns sent ahead, behind those that do not end."""
    rig.upstream.plays["a0"] = for_hogs(rig.upstream.hold)
    ahead = message(TURN.replace(b'"hi"', b'"' + b"a" * (7 * MIB) + b'"'))
    for _ in range(NINE):
        crowd.add_socket("hog", message(TURN), ahead)
    rig.settle()


BODY_ATTACKS: Final[dict[str, Attack]] = {
    "slow bodies": slow_bodies,
    "bodies that are held": held_bodies,
    "unfinished messages": unfinished_messages,
    "messages sent ahead": waiting_messages,
}


@pytest.mark.parametrize("case", BODY_ATTACKS)
def test_bodies_of_one_key_leave_room_for_others(case: str, tmp_path: Path) -> None:
    accounts, pools = shared()
    with opened_rig(tmp_path, accounts, pools, LIMITS) as rig, crowded(rig) as crowd:
        BODY_ATTACKS[case](rig, crowd)
        large = b'{"model":"m1","messages":[{"role":"user","content":"' + wide(4 * MIB) + b'"}]}'
        check_others(rig, case, good_call(large))


################################################################
# ANSWERS
################################################################

# Of what is not read, from large to small: they leave no room for any that is a little larger.
UNREAD_BYTES: Final = (*[4 * MIB - KIB] * 16, *[MIB] * 4, *[MIB // 4] * 4, *[MIB // 16] * 4)


@pytest.mark.parametrize("stream", [True, False])
def test_answers_that_one_key_does_not_read_leave_room_for_those_of_others(
    stream: bool, tmp_path: Path
) -> None:
    """Of the same account; the other key's is large, and comes in two halves."""
    accounts, pools = shared()
    with opened_rig(tmp_path, accounts, pools, LIMITS) as rig, crowded(rig) as crowd:
        sizes = iter(UNREAD_BYTES)
        answer = json_response(b'{"id":"r","x":"' + b"y" * (4 * MIB) + b'"}')

        def play(visit: Visit) -> bool:
            if visit.path.endswith("completions"):
                for half in (answer[: 2 * MIB], answer[2 * MIB :]):
                    visit.caller.sendall(half)
                return True

            pad = b"x" * next(sizes)
            visit.caller.sendall(
                SSE_HEAD + DELTA[:-5] + pad + DELTA[-5:] if stream else json_response(b'"%b"' % pad)
            )
            return rig.upstream.hold(visit)

        rig.upstream.plays["a0"] = play

        def has_more_than(count: int) -> bool:
            return rig.upstream.arrived["a0"] > count

        for at in range(len(UNREAD_BYTES)):
            crowd.add(call("hog", stream=stream), reads=False, receive_bytes=4 * KIB)
            assert wait_until(partial(has_more_than, at))
        rig.settle()
        check_others(rig, "answers that are not read")


################################################################
# PLACES, QUEUE AND PINS
################################################################


@pytest.mark.parametrize("concurrent", [8, 16, 64])
def test_endless_streams_of_one_key_leave_places_for_others(
    concurrent: int, tmp_path: Path
) -> None:
    """Whatever it has taken, and however many of its requests wait."""
    accounts, pools = shared(concurrent)
    with opened_rig(tmp_path, accounts, pools, LIMITS) as rig, crowded(rig) as crowd:
        play = rig.upstream.plays_and_holds(SSE_HEAD, DELTA)
        rig.upstream.plays["a0"] = for_hogs(play)
        connect_all(rig, crowd, call("hog", stream=True), concurrent + 12)
        check_others(rig, f"{concurrent} places and the queue")


def test_a_full_queue_gives_way_and_is_fair(tmp_path: Path) -> None:
    """An account of few places keeps none free: the next that is freed is the other key's."""
    accounts, pools = shared(2)
    with opened_rig(tmp_path, accounts, pools, LIMITS) as rig, crowded(rig) as crowd:
        places = threading.Semaphore(0)

        def hog(visit: Visit) -> None:
            visit.caller.sendall(SSE_HEAD + DELTA)
            places.acquire(timeout=GIVEN_UP_SECONDS)
            visit.caller.sendall(END)

        rig.upstream.plays["a0"] = for_hogs(hog)
        connect_all(rig, crowd, call("hog", stream=True), 20)
        waiting = crowd.add(good_call())
        rig.settle()
        began_at = time.monotonic()
        places.release()
        is_over = wait_until(lambda: waiting.is_over, GIVEN_UP_SECONDS / 2)
        waited = time.monotonic() - began_at
        sys.stdout.write(f"a full queue: the other key had {waiting.code} after {waited:.3f} s\n")
        places.release(100)
        assert is_over
        assert waiting.code == 200
        assert waited < SECONDS_MAX


def test_sessions_of_one_key_do_not_push_out_those_of_another(tmp_path: Path) -> None:
    """The first account fails them at first, so that only their pins keep them off it later."""
    accounts, pools = shared(accounts=3)
    first = next(iter(accounts))
    accounts[first]["priority"] = -1
    with opened_rig(tmp_path, accounts, pools, LIMITS) as rig:
        homes: dict[str, str] = {}

        def serve(visit: Visit) -> bool:
            status = "200 OK"
            if visit.account == first and len(homes) < 4:
                status = "500 Internal Server Error"
            visit.caller.sendall(json_response(b'{"id":"%b-r"}' % visit.account.encode(), status))
            return True

        def ask(name: str, **body: object) -> str:
            """The account that serves it."""
            raw = post(
                "/v1/responses", {"model": "m1", "input": "hi", **body},
                key=key_of(name), headers=CLOSES,
            )  # fmt: skip
            found = re.search(rb'"(a\d)-r', rig.ask(raw))
            assert found
            return found[1].decode()

        for account in accounts:
            rig.upstream.plays[account] = serve
        for at in range(4):
            homes[f"s{at}"] = ask("good", prompt_cache_key=f"s{at}")
        for at in range(4 * int(LIMITS["pins_max"])):
            ask("hog", prompt_cache_key=f"hog{at}")
        found = {name: ask("good", prompt_cache_key=name) for name in homes}
        stayed = sum(found[name] == home for name, home in homes.items())
        sys.stdout.write(f"sessions: {stayed} of {len(homes)} stayed on their account\n")
        assert found == homes


def test_responses_of_one_key_do_not_push_out_those_of_another(tmp_path: Path) -> None:
    """What follows up a response goes to the account that made it."""
    accounts, pools = shared(accounts=3)
    with opened_rig(tmp_path, accounts, pools, LIMITS) as rig:

        def serve(visit: Visit) -> bool:
            name = f"{visit.account}-r{visit.number}"
            visit.caller.sendall(json_response(b'{"id":"%b"}' % name.encode()))
            return True

        def ask(name: str, previous: str | None = None) -> str:
            """The id of the response."""
            more = {"previous_response_id": previous} if previous else {}
            raw = post(
                "/v1/responses", {"model": "m1", "input": "hi", **more},
                key=key_of(name), headers=CLOSES,
            )  # fmt: skip
            found = re.search(rb'"(a\d-r\d+)"', rig.ask(raw))
            assert found
            return found[1].decode()

        for account in accounts:
            rig.upstream.plays[account] = serve
        made = [ask("good") for _ in range(6)]
        for _ in range(4 * int(LIMITS["response_pins_max"])):
            ask("hog")
        followed = [ask("good", one) for one in made]
        homes = [(one[:2], two[:2]) for one, two in zip(made, followed, strict=True)]
        stayed = sum(one == two for one, two in homes)
        sys.stdout.write(f"responses: {stayed} of {len(homes)} were followed up where they are\n")
        assert stayed == len(homes)


################################################################
# UPSTREAMS
################################################################

EVENT_COUNT: Final = 60
PERIOD_SECONDS: Final = 0.015
LARGE_EVENT_BYTES: Final = MIB  # of one event in the middle: it needs its share, too


class GoodStream:
    """A stream of another account, and when each of its events came."""

    def __init__(self, rig: Rig) -> None:
        self.sent = b""
        self.received = b""
        self.longest = 0.0
        rig.upstream.plays["a1"] = self.play
        self.client = rig.connect()
        self.client.settimeout(GIVEN_UP_SECONDS)
        self.client.sendall(call("a1", stream=True))
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def play(self, visit: Visit) -> None:
        waiter = threading.Event()
        visit.caller.sendall(SSE_HEAD)
        for number in range(EVENT_COUNT):
            pad = b"x" * (LARGE_EVENT_BYTES if number == EVENT_COUNT // 2 else 100)
            event = DELTA[:-5] + b'%b","at":%.6f}\n\n' % (pad, time.monotonic())
            self.sent += event
            visit.caller.sendall(event)
            waiter.wait(PERIOD_SECONDS)
        self.sent += END
        visit.caller.sendall(END)

    def read(self) -> None:
        searched = 0
        with contextlib.suppress(OSError), self.client:
            while received := self.client.recv(MIB):
                self.received += received
                now = time.monotonic()
                for found in re.finditer(rb'"at":([0-9.]+)}', self.received[searched:]):
                    self.longest = max(self.longest, now - float(found[1]))
                searched = max(searched, len(self.received) - 30)

    def check(self, case: str) -> None:
        self.thread.join(GIVEN_UP_SECONDS)
        head, _, body = self.received.partition(b"\r\n\r\n")
        sys.stdout.write(
            f"{case}: the other stream had {len(body)} bytes, with framing, of {len(self.sent)},"
            f" each within {self.longest:.3f} s\n"
        )
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body.endswith(b"\r\n0\r\n\r\n")
        is_same = take_chunks(body)[0] == self.sent
        assert is_same, body[-1000:]


def call_all(rig: Rig, crowd: Crowd, play: Play, count: int = 16, *, stream: bool = True) -> None:
    """So many calls of the bad account."""
    rig.upstream.plays["a0"] = play
    for _ in range(count):
        crowd.add(call("a0", stream=stream))
    assert wait_until(lambda: rig.upstream.arrived["a0"] >= count)


# So many of nearly 4 MiB that what is left of the budget does not hold another MiB.
NEARLY_ALL: Final = 16
TEXT: Final = wide(BUDGET // NEARLY_ALL - 32 * KIB)


def begun_events(rig: Rig, crowd: Crowd) -> None:
    play = rig.upstream.plays_and_holds(SSE_HEAD, DELTA[:-5] + TEXT)
    call_all(rig, crowd, play, NEARLY_ALL)
    rig.settle()


def endless_events(rig: Rig, crowd: Crowd) -> None:
    call_all(rig, crowd, plays(SSE_HEAD, *[DELTA * 1_000] * 400))


def begun_responses(rig: Rig, crowd: Crowd) -> None:
    begun = json_head(8 * MIB - KIB, closes=True) + b'{"id":"' + TEXT
    call_all(rig, crowd, rig.upstream.plays_and_holds(begun), NEARLY_ALL, stream=False)
    rig.settle()


def whole_answers(rig: Rig, crowd: Crowd) -> None:
    """Again and again."""
    answer = json_response(b'{"id":"' + wide(7 * MIB) + b'"}')
    call_all(rig, crowd, plays(answer, keeps=True), 48, stream=False)


def turn_all(rig: Rig, crowd: Crowd, *frames: bytes) -> None:
    """Turns of the bad account that are answered so, and do not end."""

    def play(visit: Visit) -> bool:
        with visit.caller.makefile("rb") as file:
            take_message(file)
        return rig.upstream.plays_and_holds(*frames)(visit) is True

    rig.upstream.plays["a0"] = play
    for _ in range(NEARLY_ALL):
        crowd.add_socket("a0", message(TURN))
    rig.settle()


def begun_messages(rig: Rig, crowd: Crowd) -> None:
    turn_all(rig, crowd, server_message(DELTA[6:-5] + TEXT, is_whole=False))


def first_messages(rig: Rig, crowd: Crowd) -> None:
    """Whole ones, before the turn has begun."""
    early = server_message(b'{"type":"codex.x","pad":"' + TEXT[: MIB // 2] + b'"}')
    turn_all(rig, crowd, *[early] * 8)


UPSTREAM_ATTACKS: Final[dict[str, Attack]] = {
    "unfinished events": begun_events,
    "endless events": endless_events,
    "unfinished answers": begun_responses,
    "whole answers": whole_answers,
    "silence": lambda rig, crowd: call_all(rig, crowd, rig.upstream.hold, 64),
    "unfinished messages": begun_messages,
    "messages before the first event": first_messages,
}


def run_beside(case: str, folder: Path) -> float:
    """The longest that an event of the other account took, before and during the attack."""
    accounts, pools = paired(2)
    with opened_rig(folder, accounts, pools, LIMITS) as rig, crowded(rig) as crowd:
        rig.warm_up()
        before = GoodStream(rig)
        assert wait_until(lambda: before.received.count(b'"at"') > 2)
        UPSTREAM_ATTACKS[case](rig, crowd)
        during = GoodStream(rig)
        before.check(f"{case}, begun before it")
        during.check(f"{case}, begun after it")
    return max(before.longest, during.longest)


@pytest.mark.parametrize("case", UPSTREAM_ATTACKS)
def test_a_hostile_upstream_does_not_touch_the_streams_of_another(
    case: str, tmp_path: Path
) -> None:
    """What is sent comes every time; the best of a few runs is as quick as it should be."""
    waits = [run_beside(case, tmp_path)]
    while waits[-1] >= SECONDS_MAX and len(waits) < RUNS:
        waits.append(run_beside(case, tmp_path))
    assert min(waits) < SECONDS_MAX


def test_new_codes_of_one_upstream_leave_the_counts_of_others_exact(tmp_path: Path) -> None:
    accounts, pools = paired(2)

    def refuse(visit: Visit) -> bool:
        body = b'{"error":{"code":"code_%d","message":"no"}}' % visit.number
        visit.caller.sendall(json_response(body, "422 Unprocessable Entity"))
        return True

    with opened_rig(tmp_path, accounts, pools, LIMITS) as rig:
        rig.upstream.plays["a0"] = refuse
        raw = call("a0").replace(b"Connection: close\r\n", b"")
        with rig.connect() as client:
            for _ in range(1_100):
                client.sendall(raw)
                read_one(client)
        for _ in range(3):
            assert rig.ask(call("a1")).startswith(b"HTTP/1.1 200 ")
        [answer] = split_responses(
            rig.ask(request("GET", "/metrics", key=OPERATOR, headers=CLOSES))
        )
    told = answer.body.decode()
    counts = dict.fromkeys(("requests_total", "attempts_total", "request_seconds_count"), 0)
    for name in counts:
        rows = re.findall(rf'(?m)^codex_pooler_{name}{{[^}}]*"a1"[^}}]*}} (\d+)$', told)
        counts[name] = sum(map(int, rows))
    lines = told.count("codex_pooler_requests_total{")
    sys.stdout.write(f"new codes: {lines} rows of requests; of the other account {counts}\n")
    assert counts == dict.fromkeys(counts, 3)


def read_one(client: socket.socket) -> None:
    """One answer with a Content-Length."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        received = client.recv(64 * KIB)
        assert received
        raw += received
    head, _, body = raw.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    assert found
    while len(body) < int(found[1]):
        body += client.recv(64 * KIB)
