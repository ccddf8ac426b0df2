"""Proves that each turn of a WebSocket gets its own events, and one end, whatever comes.

Method: the real server in virtual time, upstreams and clients that make their frames by hand
(tests/support/memory_websockets.py): upstreams that say more than they should, or less; bugs that
are made in the library's readers and in the pooler's own code; frames that two readers would read
differently.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock
from trio_websocket import WebSocketConnection

from pooler import (
    ERROR_BODY_BYTES_MAX,
    RECEIVE_BYTES,
    CallKind,
    EventScanner,
    PoolerError,
    Proxy,
    Relay,
    SocketSource,
    UpstreamSocket,
    digest_of_destination,
    parse_json_object,
    with_stream_id,
)
from tests.support.codex_backend import make_auth_file
from tests.support.frames import CLOSE, PING, PONG, frame
from tests.support.memory_sockets import Json
from tests.support.memory_websockets import (
    TERMINAL,
    SocketClient,
    codex_described,
    error_frame,
    open_socket,
    says,
    socket_described,
    socket_world,
    turn,
)
from tests.support.world import (
    UNIX_START,
    Line,
    Pause,
    Send,
    Stall,
    Step,
    Wait,
    World,
)

NATIVE: Final = "/backend-api/codex/responses"
CREATED: Final[Json] = {"type": "response.created", "response": {"id": "resp_1"}}
DELTA: Final[Json] = {"type": "response.output_text.delta", "delta": "x"}
NUMBERED: Final = ("one", "two", "three", "four")


def words_of(events: list[Json]) -> list[str]:
    return [event["delta"] for event in events if event["type"].endswith("output_text.delta")]


def connections(world: World, name: str = "a") -> list[int]:
    """Of each turn, the number of its connection."""
    return [number for number, _ in world.upstream(name).turns]


async def ask_all(client: SocketClient, *, is_ahead: bool) -> list[list[Json]]:
    """The events of four turns, which are sent ahead or one after the other."""
    if not is_ahead:
        return [await client.ask(input=word) for word in NUMBERED]
    for word in NUMBERED:
        await client.create(input=word)
    return [await client.read_turn() for _ in NUMBERED]


################################################################
# EVENTS OF NO TURN
################################################################

EXTRA: Final[dict[str, list[Json]]] = {
    "a second success": [{"type": "response.done", "response": {"id": "resp_0"}}],
    "the same success again": [{"type": "response.completed", "response": {"id": "resp_0"}}],
    "a late failure": [{"type": "response.failed", "response": {"id": "resp_0"}}],
    "a late word": [DELTA | {"delta": "late"}],
    "several": [DELTA | {"delta": "late"}, {"type": "response.done"}, {"type": "response.failed"}],
    "no type": [{"response": {"status": "completed"}}],
    "the type at the end": [{"response": {"id": "resp_0"}, "type": "response.completed"}],
    "no object": [[1], "response.completed", None],
}


@pytest.mark.parametrize("is_ahead", [True, False])
@pytest.mark.parametrize("case", EXTRA)
async def test_what_comes_after_the_end_of_a_turn_is_not_the_next_ones(
    case: str, is_ahead: bool, autojump_clock: MockClock
) -> None:
    async with socket_world(socket_described("a")) as world:
        extra = says(*[json.dumps(event).encode() for event in EXTRA[case]])
        scripts = [turn(word, response_id=f"resp_{word}") for word in NUMBERED]
        world.upstreams["a"].plays(*[[*script, *extra] for script in scripts])
        answers = await ask_all(await open_socket(world), is_ahead=is_ahead)
        assert [words_of(events) for events in answers] == [[word] for word in NUMBERED]
        assert [events[-1]["response"]["id"] for events in answers] == [
            f"resp_{word}" for word in NUMBERED
        ]


@pytest.mark.parametrize("case", EXTRA)
async def test_what_comes_late_is_not_the_turns_that_was_asked_for_meanwhile(
    case: str, autojump_clock: MockClock
) -> None:
    """It comes once the next turn has been sent, so the WebSocket cannot be replaced."""
    async with socket_world(socket_described("a")) as world:
        extra = says(*[json.dumps(event).encode() for event in EXTRA[case]])
        news = says({"type": "codex.rate_limits", "rate_limits": {}})
        late = [[*extra, *news, Pause(1), *extra, *turn(word)] for word in NUMBERED[1:]]
        world.upstreams["a"].plays(turn("one"), *late)
        answers = await ask_all(await open_socket(world), is_ahead=False)
        assert [words_of(events) for events in answers] == [[word] for word in NUMBERED]
        assert connections(world) == [1, 1, 1, 1]


@pytest.mark.parametrize("case", EXTRA)
async def test_a_websocket_on_which_something_was_said_between_two_turns_is_replaced(
    case: str, autojump_clock: MockClock
) -> None:
    async with socket_world(socket_described("a")) as world:
        extra = says(*[json.dumps(event).encode() for event in EXTRA[case]])
        world.upstreams["a"].plays([*turn("one"), Pause(1), *extra], turn("two"), turn("three"))
        client = await open_socket(world)
        await client.ask()
        await trio.sleep_until(trio.current_time() + 2)
        assert words_of(await client.ask()) == ["two"]
        assert words_of(await client.ask()) == ["three"]
        assert connections(world) == [1, 2, 2]
        assert world.open_count == 1


async def test_news_between_two_turns_are_no_reason_to_replace_it(
    autojump_clock: MockClock,
) -> None:
    news = says(
        {"type": "codex.rate_limits", "rate_limits": {}},
        {"type": "keepalive"},
        {"type": "response.metadata", "metadata": {}},
        {"sequence_number": 7, "type": "codex.response.metadata"},
    )
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*turn("one"), Pause(1), *news], [*news, *turn("two")])
        client = await open_socket(world)
        await client.ask()
        await trio.sleep_until(trio.current_time() + 2)
        events = await client.ask()
        assert words_of(events) == ["two"]
        assert [event["type"] for event in events][:2] == ["codex.rate_limits", "keepalive"]
        assert connections(world) == [1, 1]


@pytest.mark.parametrize("first", ["response.in_progress", "response.output_text.delta", None])
async def test_an_upstream_whose_turns_begin_otherwise_has_a_websocket_for_each(
    first: str | None, autojump_clock: MockClock
) -> None:
    """Nothing would tell where the events of the turn before are over."""
    begun = [] if first is None else says({"type": first, "delta": "x"})
    end = {"type": "response.completed", "response": {"id": "resp_0"}}
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays(*[[*begun, *says(end | {"n": word})] for word in NUMBERED])
        answers = await ask_all(await open_socket(world), is_ahead=True)
        assert [events[-1]["n"] for events in answers] == [*NUMBERED]
        assert connections(world) == [1, 2, 3, 4]
        assert world.open_count <= 1


async def test_events_of_no_turn_are_bounded(autojump_clock: MockClock) -> None:
    described = socket_described("a", limits={"handshake_events_max": 4})
    for count, last in ((4, "response.completed"), (5, "error")):
        async with socket_world(described) as world:
            late = [*says(*[DELTA] * count), *turn("two")]
            world.upstreams["a"].plays(turn("one"), late, turn("three"))
            client = await open_socket(world)
            await client.ask()
            events = await client.ask()
            assert events[-1]["type"] == last
            assert words_of(events) == (["two"] if count == 4 else [])
            assert words_of(await client.ask()) == ["three"]


FAILED: Final[Json] = {"type": "response.failed", "response": {"id": "r", "error": {"code": "x"}}}
ERROR: Final[Json] = {"type": "error", "status": 400, "error": {"code": "x", "message": "no"}}
TWICE: Final[dict[str, list[Json]]] = {
    "failed, and an error": [CREATED, DELTA, FAILED, ERROR],
    "an error, and failed": [CREATED, DELTA, ERROR, FAILED],
    "an error at once, and another": [ERROR, ERROR],
    "an error at once, and failed": [ERROR, FAILED],
}


@pytest.mark.parametrize("case", TWICE)
async def test_a_failure_that_is_told_twice_is_one_turns(
    case: str, autojump_clock: MockClock
) -> None:
    """Nobody could tell the second from the next turn's, so that is asked on a new WebSocket."""
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays(says(*TWICE[case]), turn("two"), turn("three"))
        client = await open_socket(world)
        for word in ("one", "two", "three"):
            await client.create(input=word)
        assert (await client.read_turn())[-1]["type"] in {"error", "response.failed"}
        assert words_of(await client.read_turn()) == ["two"]
        assert words_of(await client.read_turn()) == ["three"]
        assert connections(world) == [1, 2, 2]


async def test_an_error_on_a_websocket_that_was_used_is_the_turns(
    autojump_clock: MockClock,
) -> None:
    async with socket_world(socket_described("a")) as world:
        refused = error_frame(400, "bad_input")
        world.upstreams["a"].plays(turn("one"), refused, turn("three"))
        client = await open_socket(world)
        await client.ask()
        [event] = await client.ask()
        assert (event["status"], event["error"]["code"]) == (400, "bad_input")
        assert words_of(await client.ask()) == ["three"]
        assert connections(world) == [1, 1, 2]


################################################################
# STREAM IDS
################################################################

MARKED: Final[dict[str, tuple[bytes, bytes]]] = {
    "plain": (b'{"type":"x"}', b'{"type":"x","stream_id":"s"}'),
    "empty": (b"{}", b'{"stream_id":"s"}'),
    "empty, with blanks": (b" {\n\t} \r\n", b'{"stream_id":"s"}'),
    "blanks around": (b' { "a" : 1 }\n', b'{"a" : 1,"stream_id":"s"}'),
    "its own": (b'{"stream_id":"t","a":1}', b'{"stream_id":"s","a":1}'),
    "its own, an object": (b'{"a":1,"stream_id":{"b":[2]}}', b'{"a":1,"stream_id":"s"}'),
    "its own, alone": (b'{"stream_id":null}', b'{"stream_id":"s"}'),
    "its own, twice": (b'{"stream_id":1,"stream_id":2}', b'{"stream_id":"s"}'),
    "its own, escaped": (b'{"stream\\u005fid":"t"}', b'{"stream_id":"s"}'),
    "another's": (b'{"a":{"stream_id":"t"}}', b'{"a":{"stream_id":"t"},"stream_id":"s"}'),
    "in a text": (b'{"a":"\\"stream_id\\":1"}', b'{"a":"\\"stream_id\\":1","stream_id":"s"}'),
    "as a text": (b'{"a":"stream_id"}', b'{"a":"stream_id","stream_id":"s"}'),
    "letters": ('{"a":"é\\u00e9"}'.encode(), '{"a":"é\\u00e9","stream_id":"s"}'.encode()),
    "a list": (b"[]", b"[]"),
    "a list of objects": (b'[{"a":1}]', b'[{"a":1}]'),
    "a text": (b'"{}"', b'"{}"'),
    "a number": (b"7", b"7"),
    "null": (b"null", b"null"),
}


@pytest.mark.parametrize("case", MARKED)
def test_a_stream_id_leaves_an_event_valid(case: str) -> None:
    given_, expected = MARKED[case]
    assert with_stream_id(given_, "s") == expected
    json.loads(expected)


NAMES: Final = st.sampled_from(["stream_id", "type", "a", "stream_id ", "é", "_"])
VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=9,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_any_event_bears_its_stream_id_once(value: Any, is_ascii: bool, indent: Any) -> None:  # noqa: ANN401 (JSON)
    message = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode()
    marked = with_stream_id(message, "s")
    if isinstance(value, dict):
        assert parse_json_object(marked.decode()) == value | {
            "stream_id": "s"
        }  # no name stands twice
    else:
        assert marked == message


async def test_odd_events_bear_the_stream_id_of_their_turn(autojump_clock: MockClock) -> None:
    async with socket_world(socket_described("a")) as world:
        odd = [b"{}", b"[1]", b'{"stream_id":"theirs","type":"response.something"}', b"null"]
        world.upstreams["a"].plays([*says(CREATED, *odd), *turn("x")[-1:]])
        client = await open_socket(world)
        await client.create(stream_id="mine")
        events = [json.loads((await client.read_frame())[1]) for _ in range(6)]
        ids = [event.get("stream_id") if isinstance(event, dict) else event for event in events]
        assert ids == ["mine", "mine", [1], "mine", None, "mine"]
        assert events[3]["type"] == "response.something"


################################################################
# FRAMES THAT ASK FOR NOTHING
################################################################

CALL: Final = '"model":"m1","input":[{"role":"user","content":"hi"}]'
NOTE: Final = '{"type":"response.processed","response_id":"resp_1"'
NOT_PROCESSED: Final[dict[str, str]] = {
    "a second type": NOTE + ',"type":"response.create",' + CALL + "}",
    "a second type, escaped": NOTE + ',"t\\u0079pe":"response.create",' + CALL + "}",
    "a second type, but for case": NOTE + ',"Type":"response.create",' + CALL + "}",
    "a first type, but for case": '{"TYPE":"response.create",' + NOTE[1:] + "," + CALL + "}",
    "the same type twice": NOTE + ',"type":"response.processed"}',
    "a name twice, within": NOTE + ',"a":{"b":1,"b":2}}',
    "two objects": NOTE + '}{"type":"response.create",' + CALL + "}",
    "an object in a list": "[" + NOTE + "}]",
    "cut": NOTE,
    "no number": NOTE + ',"a":NaN}',
    "too deep": NOTE + ',"a":' + "[" * 120 + "]" * 120 + "}",
    "long": NOTE + ',"a":"' + "x" * 1024 + '"}',
    "a type that begins so": '{"type":"response.processed_not"}',
    "a type that is none": '{"type":["response.processed"]}',
}


@pytest.mark.parametrize("case", NOT_PROCESSED)
async def test_a_frame_that_only_looks_like_a_note_is_judged_as_a_call(
    case: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path, "a")) as world:
        world.upstreams["a"].plays(turn("one"), turn("two"))
        client = await open_socket(world, path=NATIVE)
        await client.ask()
        await client.say(NOT_PROCESSED[case])
        event = await client.read_event()
        assert (event["type"], event["status"]) == ("error", 400)
        assert event["error"]["code"] in {"invalid_json", "invalid_value"}
        await world.settle()
        assert world.upstream().frames == []
        assert len(world.turns) == 1
        assert world.records[-1]["status"] == 400  # it has a record, as every call
        assert words_of(await client.ask()) == ["two"]


@pytest.mark.parametrize("path", ["/v1/responses", NATIVE])
@pytest.mark.parametrize("said", [NOTE + "}", ' {"response_id":"x","type":"response.processed"}\n'])
async def test_a_note_is_passed_on_as_it_came_and_is_no_call(
    said: str, path: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path, "a")) as world:
        world.upstreams["a"].plays(turn("one"), turn("two"))
        client = await open_socket(world, path=path)
        await client.ask()
        await client.say(said)
        assert words_of(await client.ask()) == ["two"]
        assert [payload for _, payload in world.upstream().frames] == [said.encode()]
        assert len([record for record in world.records if record["status"] != 101]) == 2


################################################################
# BUGS
################################################################


def take_bugs(world: World) -> list[Json]:
    """The bugs that are logged, which the world would hold against the pooler at its end."""
    bugs = [fields for _, event, fields in world.logged if event == "bug"]
    world.logged[:] = [line for line in world.logged if line[1] != "bug"]
    return bugs


def break_reader(monkeypatch: pytest.MonkeyPatch, *, of_client: bool) -> None:
    """From now on a Ping from that side makes the library's reader fail."""
    handle = WebSocketConnection._handle_ping_event

    async def broken(self: WebSocketConnection, event: Any) -> None:  # noqa: ANN401 (wsproto's)
        if self.is_server == of_client:
            raise RuntimeError("a bug of the library")
        await handle(self, event)

    monkeypatch.setattr(WebSocketConnection, "_handle_ping_event", broken)


async def read_to_close(client: SocketClient) -> tuple[list[Json], int]:
    """The events that come, and the code of the Close behind them."""
    events = []
    while (found := await client.read_frame())[0] != CLOSE:
        if found[0] not in {PING, PONG}:
            events.append(json.loads(found[1]))
    await client.hang_up()
    return events, int.from_bytes(found[1][:2], "big")


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_bug_in_the_reader_of_an_upstream_costs_one_turn(
    is_late: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_reader(monkeypatch, of_client=False)
    ping = Send(frame(PING, mask=b""))
    begun = says(CREATED, DELTA) if is_late else []
    go_on = trio.Event()
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*turn("x")[:3], Wait(go_on), *turn("x")[-1:]])
        other = await open_socket(world)
        await other.create()
        await world.settle()
        world.upstreams["a"].plays([*begun, ping, Stall()])
        client = await open_socket(world)
        await client.create()
        events, code = await read_to_close(client)
        ends = [event["type"] for event in events if event["type"] in TERMINAL]
        assert ends == ["response.failed" if is_late else "error"]
        assert code == 1011
        await world.settle()
        assert world.open_count == 1
        assert [bug["type"] for bug in take_bugs(world)] == ["RuntimeError"]
        go_on.set()
        assert words_of(await other.read_turn()) == ["x"]


async def test_a_bug_in_the_reader_of_an_upstream_between_two_turns_is_an_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_reader(monkeypatch, of_client=False)
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*turn("one"), Pause(1), Send(frame(PING, mask=b""))])
        client = await open_socket(world)
        await client.ask()
        assert await read_to_close(client) == ([], 1011)
        assert len(take_bugs(world)) == 1


PHASES: Final[dict[str, tuple[list[Step], list[str]]]] = {
    "while the upstream thinks": ([Stall()], ["error"]),
    "in a stream": ([*says(CREATED, DELTA), Stall()], ["response.failed"]),
    "between two turns": (turn("one"), ["response.completed"]),
}


@pytest.mark.parametrize("phase", PHASES)
async def test_a_bug_in_the_reader_of_a_client_ends_its_turn_and_its_websocket(
    phase: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_reader(monkeypatch, of_client=True)
    script, expected = PHASES[phase]
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays(script)
        client = await open_socket(world)
        await client.create()
        await world.settle()
        await client.send(frame(PING))
        events, code = await read_to_close(client)
        assert [event["type"] for event in events if event["type"] in TERMINAL] == expected
        if expected != ["response.completed"]:
            assert "internal_error" in json.dumps(events[-1])
        assert code == 1011
        await world.settle()
        assert world.open_count == 0
        assert [bug["type"] for bug in take_bugs(world)] == ["RuntimeError"]


@pytest.mark.parametrize("is_over", [False, True])
async def test_whatever_is_raised_in_a_turn_it_has_one_end(
    is_over: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug, and an error that comes too late to be an answer; before the end, and after it."""
    relay = Relay.relay
    for raised in (RuntimeError("a bug"), PoolerError("pool_busy"), RecursionError()):

        async def broken(
            self: Relay, headers: list[tuple[str, str]], error: Exception = raised
        ) -> None:
            if is_over:
                await relay(self, headers)
            else:
                await self.start_events(headers)
            raise error

        monkeypatch.setattr(Relay, "relay", broken)
        async with socket_world(socket_described("a")) as world:
            world.upstreams["a"].plays(turn("one"))
            client = await open_socket(world)
            await client.create()
            events, code = await read_to_close(client)
            ends = [event["type"] for event in events if event["type"] in TERMINAL]
            if is_over:
                assert ends == ["response.completed"]
            else:
                assert len(ends) == 1
                assert getattr(raised, "code", "internal_error") in json.dumps(events[-1])
            assert code == 1011
            await world.settle()
            assert world.open_count == 0
            assert len(take_bugs(world)) == (0 if isinstance(raised, PoolerError) else 1)


################################################################
# WHOSE IT IS
################################################################


async def test_a_websocket_is_one_login_s_and_one_account_id_s(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Somebody logs in anew, as another person or in another workspace."""
    path = tmp_path / "a" / "auth.json"
    async with socket_world(codex_described(tmp_path, "a")) as world:
        upstream = world.upstream()
        upstream.plays(*[turn(word) for word in NUMBERED])
        client = await open_socket(world)
        await client.ask()
        await client.ask()
        make_auth_file(path, "acct-other", expires_at=UNIX_START + 10**6)
        await client.ask()
        make_auth_file(path, "acct-other", expires_at=UNIX_START + 2 * 10**6)  # a new token only
        await client.ask()
        assert connections(world) == [1, 1, 2, 2]
        ids = [shaken["chatgpt-account-id"] for shaken in upstream.handshakes]
        assert ids == ["acct-a", "acct-other"]
        assert world.open_count == 1


async def test_a_websocket_belongs_to_one_way_to_its_upstream(autojump_clock: MockClock) -> None:
    """A reload that puts a proxy in between, or takes it away, means the next turn."""
    async with socket_world(socket_described("ab")) as world:
        straight, other = world.server.shared.endpoints.by_name.values()
        urls = [straight.account.base_url, other.account.base_url]
        ways = [straight, *(dataclasses.replace(straight, proxy=Proxy(url)) for url in urls)]
        assert len({digest_of_destination(way, None) for way in ways}) == 3


IN_ORDER: Final = {"routing": "in_order"}


async def test_news_for_an_upstream_that_is_not_there_are_nobody_s(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstreams["a"].plays(turn("one"))
        client = await open_socket(world, path=NATIVE)
        await client.say({"type": "response.processed", "response_id": "resp_0"})
        await world.settle()
        assert world.open_count == 0
        assert (await client.ask(input=[]))[-1]["type"] == "response.completed"
        assert world.upstream().frames == []


async def test_a_refusal_that_is_too_long_to_be_read_is_one_all_the_same(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    error = {"type": "usage_limit_reached", "message": "x" * ERROR_BODY_BYTES_MAX}
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstreams["a"].plays(says({"type": "error", "status": 429, "error": error}))
        world.upstreams["b"].plays(turn("one"))
        client = await open_socket(world)
        assert (await client.ask(input=[]))[-1]["type"] == "response.completed"
        [turned] = world.records[:1]
        assert [one["account"] for one in turned["attempts"]] == ["a", "b"]
        assert turned["attempts"][0]["reason"] == "429"


async def test_a_turn_that_cannot_be_sent_goes_out_on_a_new_websocket(
    autojump_clock: MockClock,
) -> None:
    """The upstream has gone, which only who sends to it notices."""
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays([*turn("one"), Stall()], turn("two"), turn("three"))
        client = await open_socket(world)
        await client.ask()
        world.upstreams["a"].lines[0].socket.incoming.set(deaf=True)
        assert (await client.ask())[-1]["type"] == "response.completed"
        assert [number for _, number, _ in world.turns] == [1, 2]
        assert len(world.records[-1]["attempts"]) == 1
        assert (await client.ask())[-1]["type"] == "response.completed"  # the client's stays
        assert [number for _, number, _ in world.turns] == [1, 2, 2]


async def test_an_upstream_that_leaves_right_after_the_upgrade_was_not_asked(
    autojump_clock: MockClock,
) -> None:
    async with socket_world(socket_described(pool=IN_ORDER)) as world:
        upstream = world.upstream("a")

        async def leave(line: Line) -> bool:
            await upstream.serve_request(line)
            return False

        upstream.handle = leave
        world.upstreams["b"].plays(turn("one"))
        client = await open_socket(world)
        assert (await client.ask())[-1]["type"] == "response.completed"
        assert [name for name, _, _ in world.turns] == ["b"]
        assert len(upstream.handshakes) == 1


class OneMessage:
    """An upstream's WebSocket with one message, which is taken as a deadline passes."""

    def __init__(self, message: bytes, deadline: trio.CancelScope) -> None:
        self.message, self.deadline = message, deadline
        self.given_back: list[bytes] = []
        self.frames = self
        self.is_unusable = False
        self.response_ids: list[str] = []

    async def take(self) -> bytes:
        await trio.lowlevel.checkpoint()
        self.deadline.cancel()
        return self.message

    def done(self, message: bytes) -> None:
        self.given_back.append(message)


@pytest.mark.parametrize("size", [10, RECEIVE_BYTES, RECEIVE_BYTES + 1, 1_000_000])
async def test_a_message_that_was_taken_is_not_lost_to_a_deadline(size: int) -> None:
    told = {"type": "response.created", "response": {"id": "resp_1"}, "pad": "x" * size}
    message = json.dumps(told).encode()
    with trio.CancelScope() as deadline:
        socket = OneMessage(message, deadline)
        source = SocketSource(
            socket=cast("UpstreamSocket", socket),
            scanner=EventScanner(CallKind.RESPONSES, is_socket=True),
            is_reused=False,
        )
        events = await source.receive()
    assert [event.raw for event in events] == [message]
    assert socket.given_back == [message]
