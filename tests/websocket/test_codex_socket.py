"""Proves that the WebSocket of the tests' Codex backend is as strict as the real one.

Method: the client of trio-websocket on a pair of streams in memory, with a good turn and then the
same with one fault at a time; the facts are F23 to F25.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, cast

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from tests.support.codex_backend import PREFIX, CodexBackend, make_token
from tests.support.codex_turns import ANSWER, Json, Login, Play
from tests.support.codex_websocket import BETA, CLOSE_SECONDS_MAX, MESSAGE_BYTES_MAX
from tests.support.memory_sockets import Client, MemorySocket, request

FAR_UNIX: Final = 4_000_000_000
GOOD: Final = Login("acct-a", make_token("acct-a", "plus", FAR_UNIX), "rt-acct-a-1")
STALE: Final = replace(GOOD, access_token=make_token("acct-a", "plus", 1))
USER: Final = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
SCHEMA: Final = {"type": "object", "properties": {}}
TOOL: Final = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}
RESULT: Final = {"type": "function_call_output", "call_id": "call_a", "output": "seen"}
CREATE: Final[dict[str, Json]] = {
    "type": "response.create",
    "model": "gpt-5.5",
    "instructions": "",
    "input": [USER],
    "store": False,
}
HEADERS: Final = {
    "authorization": f"Bearer {GOOD.access_token}",
    "chatgpt-account-id": GOOD.account_id,
    "openai-beta": BETA,
}
ENDS: Final = {"response.completed", "response.incomplete", "response.failed", "error"}
PATH: Final = f"{PREFIX}/responses?a=1"
UPGRADE: Final = HEADERS | {
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}
Headers = dict[str, str]


class Caller:
    """One WebSocket to the backend."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket

    async def tell(self, **more: Json) -> None:
        await self.socket.send_message(json.dumps(CREATE | more))

    async def read(self) -> Json:
        return json.loads(await self.socket.get_message())

    async def read_turn(self) -> list[Json]:
        """Up to its last event, or to the end of the connection."""
        events: list[Json] = []
        while not events or events[-1]["type"] not in ENDS:
            try:
                events.append(await self.read())
            except ConnectionClosed:
                break
        return events

    async def turn(self, **more: Json) -> list[Json]:
        await self.tell(**more)
        return await self.read_turn()

    async def close_code(self) -> int:
        """Of the other side, once everything has been read; 1006 where there is none."""
        with pytest.raises(ConnectionClosed):
            await self.socket.get_message()
        assert self.socket.closed is not None
        return self.socket.closed.code


class World:
    """A backend, and WebSockets to it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.backend = CodexBackend()
        self.backend.admit(GOOD)
        self.backend.admit(STALE)

    def stream(self) -> trio.SocketStream:
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.backend.serve, theirs)
        return cast("trio.SocketStream", ours)

    async def open(self, stream: trio.SocketStream | None = None) -> Caller:
        fields = HEADERS | {"sec-websocket-extensions": "permessage-deflate"}
        pairs = [(name.encode(), value.encode()) for name, value in fields.items()]
        stream = stream or self.stream()
        return Caller(
            await wrap_client_stream(self.nursery, stream, "backend", PATH, extra_headers=pairs)
        )


@asynccontextmanager
async def opened_world(*plays: Play) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        world.backend.plays += plays
        yield world
        nursery.cancel_scope.cancel()
    assert world.backend.open_sockets == 0


################################################################
# THE UPGRADE
################################################################


def upgrade(**headers: str) -> bytes:
    """The request; a header of "" is left out."""
    fields = [(name, value) for name, value in (UPGRADE | headers).items() if value]
    return request("GET", PATH, key=None, headers=fields)


REFUSED_UPGRADES: Final[list[tuple[Headers, list[Play], int, str]]] = [
    ({"authorization": ""}, [], 401, "Unauthorized"),
    ({"authorization": "Bearer x"}, [], 401, "token_invalidated"),
    ({"authorization": f"Bearer {STALE.access_token}"}, [], 401, "token_expired"),
    ({"chatgpt-account-id": "acct-b"}, [], 403, "does not match"),
    ({"chatgpt-account-id": ""}, [], 403, "does not match"),
    ({"upgrade": ""}, [], 404, "Not Found"),
    ({"sec-websocket-key": ""}, [], 400, "Bad Request"),
    ({"sec-websocket-version": "8"}, [], 400, "Bad Request"),
    ({"openai-beta": ""}, [], 400, "Unsupported OpenAI-Beta"),
    ({"openai-beta": "responses=experimental"}, [], 400, "Unsupported OpenAI-Beta"),
    ({}, [Play(at="upgrade", status=426, body={"detail": "no sockets"})], 426, "no sockets"),
    ({}, [Play(at="upgrade", status=500, body=b"<html>")], 500, "<html>"),
    ({}, [Play(at="upgrade", error="usage_limit")], 429, "usage_limit_reached"),
]


@pytest.mark.parametrize(("headers", "plays", "status", "complaint"), REFUSED_UPGRADES)
async def test_an_upgrade_is_refused_in_plain_http(
    headers: Headers, plays: list[Play], status: int, complaint: str
) -> None:
    async with opened_world(*plays) as world:
        client = Client(cast("MemorySocket", world.stream()))
        answer = await client.ask(upgrade(**headers))
        assert answer.status == status
        assert complaint in answer.body.decode()
        seen = [(one.method, one.body, one.connection) for one in world.backend.seen]
        assert seen == [("GET", None, 0)]
        assert (await client.ask(upgrade(upgrade=""))).status == 404  # the connection goes on


async def test_an_upgrade_is_answered_with_the_headers_of_a_turn_and_no_extension() -> None:
    async with opened_world() as world:
        caller = await world.open()
        headers = {name.lower(): value for name, value in caller.socket.handshake_headers}
        assert headers[b"x-codex-turn-state"] == b"sticky-backend-1-acct-a"
        assert headers[b"x-reasoning-included"] == b"true"
        assert {b"sec-websocket-extensions", b"openai-model"} & headers.keys() == set()


################################################################
# TURNS
################################################################


async def test_turns_follow_one_another_and_all_is_seen() -> None:
    async with opened_world() as world:
        first = await world.open()
        await first.tell()
        await first.tell(stream=True)
        await first.socket.send_message('{"type": "response.processed", "response_id": "resp_1"}')
        await first.tell()
        turns = [await first.read_turn() for _ in range(3)]
        assert [turn[0]["type"] for turn in turns] == ["codex.rate_limits"] * 3
        ids = [turn[-1]["response"]["id"] for turn in turns]
        assert ids == ["resp_1", "resp_2", "resp_3"]
        (item,) = turns[0][-1]["response"]["output"]
        assert item["content"][0]["text"] == ANSWER
        second = await world.open()
        await second.turn()
        seen = [(one.method, one.connection, one.query) for one in world.backend.seen]
        turn = ("WEBSOCKET", 1, {"a": "1"})
        get = ("GET", 0, {"a": "1"})
        assert seen == [get, turn, turn, turn, get, ("WEBSOCKET", 2, {"a": "1"})]
        assert world.backend.seen[1].body == CREATE
        assert world.backend.seen[1].account == GOOD.account_id
        told = await Client(cast("MemorySocket", world.stream())).ask(request("GET", "/_seen"))
        assert told.json()["open_sockets"] == 2
        assert [one["connection"] for one in told.json()["seen"]] == [0, 1, 1, 1, 0, 2]


REFUSED_FRAMES: Final[list[tuple[Json, int, str]]] = [
    ({"type": "response.append"}, 400, "invalid_value type"),
    ({"type": None}, 400, "invalid_value type"),
    ({"stream_id": "a"}, 400, "Unsupported parameter: stream_id"),
    ({"background": False}, 400, "Unsupported parameter: background"),
    ({"stream": False}, 400, "Stream must be set to true"),
    ({"store": True}, 400, "Store must be set to false"),
    ({"model": "gpt-other"}, 400, "not supported when using Codex with a ChatGPT account"),
    ({"input": [RESULT]}, 400, "No tool call found"),
    ({"input": [USER | {"id": "msg_1"}]}, 404, "Item with id"),
    ({"previous_response_id": ""}, 400, "previous_response_not_found previous_response_id"),
    ({"previous_response_id": {}}, 400, "previous_response_not_found previous_response_id"),
]


def shown(event: Json) -> str:
    """Code and param of an error frame, and its message."""
    assert event["type"] == "error"
    assert event["headers"]["x-codex-primary-used-percent"]
    error = event["error"]
    return " ".join(str(error.get(name)) for name in ("code", "param", "message"))


@pytest.mark.parametrize(("fault", "status", "complaint"), REFUSED_FRAMES)
async def test_a_bad_frame_gets_an_error_frame_and_no_more(
    fault: Json, status: int, complaint: str
) -> None:
    async with opened_world() as world:
        caller = await world.open()
        (error,) = await caller.turn(**fault)
        assert error["status"] == status
        assert complaint in shown(error)
        assert (await caller.turn())[-1]["type"] == "response.completed"


@pytest.mark.parametrize("text", ["", "x", "[]", "1"])
async def test_a_frame_that_is_no_object_is_refused(text: str) -> None:
    async with opened_world() as world:
        caller = await world.open()
        await caller.socket.send_message(text)
        assert "invalid_value type" in shown(await caller.read())


async def test_a_warm_up_has_no_output_and_can_be_an_anchor() -> None:
    async with opened_world(Play(text="plums")) as world:
        caller = await world.open()
        events = await caller.turn(generate=False)
        names = ["codex.rate_limits", "response.created", "response.in_progress"]
        assert [event["type"] for event in events] == [*names, "response.completed"]
        assert events[-1]["response"]["output"] == []
        again = await caller.turn(previous_response_id=events[-1]["response"]["id"])
        assert "plums" in json.dumps(again)


async def test_a_warm_up_has_plays_of_its_own() -> None:
    async with opened_world(Play(at="warm_up", error="overloaded")) as world:
        caller = await world.open()
        assert (await caller.turn())[-1]["type"] == "response.completed"
        (error,) = await caller.turn(generate=False)
        assert error["status"] == 503


################################################################
# ANCHORS
################################################################


async def test_an_anchored_turn_needs_only_what_is_new() -> None:
    async with opened_world(Play(tool="look")) as world:
        caller = await world.open()
        await caller.turn(tools=[TOOL])
        events = await caller.turn(previous_response_id="resp_1", input=[RESULT])
        assert events[-1]["response"]["id"] == "resp_2"


@pytest.mark.parametrize("case", ["older", "other-connection", "refused", "failed"])
async def test_an_anchor_is_the_last_response_of_this_connection(case: str) -> None:
    """And it goes with a turn that fails, but not with one that never named it."""
    async with opened_world() as world:
        caller = await world.open()
        await caller.turn()
        if case == "older":
            await caller.turn()
        elif case == "other-connection":
            caller = await world.open()
        elif case == "refused":
            world.backend.plays += [Play(error="usage_limit")] * 2
            await caller.turn()
            await caller.turn(previous_response_id="resp_1")
        else:
            world.backend.plays.append(Play(ends="response.failed"))
            await caller.turn(previous_response_id="resp_1")
        (error,) = await caller.turn(previous_response_id="resp_1")
        assert error["status"] == 400
        assert "previous_response_not_found previous_response_id" in shown(error)
        assert error["error"]["type"] == "invalid_request_error"


async def test_a_refused_turn_without_an_anchor_leaves_the_last_one() -> None:
    async with opened_world() as world:
        caller = await world.open()
        await caller.turn()
        world.backend.plays.append(Play(error="usage_limit"))
        await caller.turn()
        events = await caller.turn(previous_response_id="resp_1")
        assert events[-1]["type"] == "response.completed"


################################################################
# WHAT GOES WRONG
################################################################


async def test_an_error_is_a_frame_with_the_headers_of_the_answer() -> None:
    async with opened_world(Play(error="usage_limit"), Play(error="rate_limited")) as world:
        caller = await world.open()
        (limit,) = await caller.turn()
        assert (limit["status"], limit["error"]["type"]) == (429, "usage_limit_reached")
        assert limit["headers"]["x-codex-primary-used-percent"] == "100.0"
        assert limit["headers"]["x-codex-active-limit"] == "codex"
        (rate,) = await caller.turn()
        assert (rate["status"], rate["headers"]["retry-after"]) == (429, "2")
        assert rate["headers"]["x-codex-primary-used-percent"] == "12.5"


ENDINGS: Final[list[tuple[Play, str, int]]] = [  # the last event, and the close that follows it
    (Play(ends="cut"), "response.output_text.delta", 1006),
    (Play(ends="close"), "response.output_text.delta", 1011),
    (Play(ends="close", after="handshake"), "response.in_progress", 1011),
    (Play(ends="close", after="nothing", close_code=1012), "", 1012),
    (Play(ends="quiet"), "response.output_text.delta", 1000),
    (Play(ends="limit", after="nothing"), "error", 1000),
    (Play(close_code=1001), "response.completed", 1001),
    (Play(ends="response.failed", close_code=1001), "response.failed", 1001),
]


@pytest.mark.parametrize(("play", "last", "code"), ENDINGS)
async def test_a_connection_ends_as_the_play_wants(play: Play, last: str, code: int) -> None:
    async with opened_world(play) as world:
        caller = await world.open()
        events = await caller.turn()
        assert (events[-1]["type"] if events else "") == last
        if play.ends == "limit":
            assert "websocket_connection_limit_reached" in shown(events[-1])
        assert await caller.close_code() == code
        assert not world.backend.left.is_set()


@pytest.mark.parametrize("end", ["response.failed", "error", "incomplete"])
async def test_a_turn_may_fail_and_the_connection_stay(end: str) -> None:
    async with opened_world(Play(ends=end)) as world:
        caller = await world.open()
        assert (await caller.turn())[-1]["type"].endswith(end)
        assert (await caller.turn())[-1]["type"] == "response.completed"


@pytest.mark.parametrize("is_polite", [True, False])
async def test_a_caller_that_leaves_in_a_turn_is_noticed(*, is_polite: bool) -> None:
    async with opened_world(Play(ends="stall")) as world:
        stream = world.stream()
        caller = await world.open(stream)
        await caller.tell()
        while (await caller.read())["type"] != "response.output_text.delta":
            pass
        assert not world.backend.left.is_set()
        await (caller.socket.aclose() if is_polite else stream.aclose())
        await world.backend.left.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert world.backend.open_sockets == 0


async def test_a_caller_that_leaves_between_turns_is_no_matter() -> None:
    async with opened_world() as world:
        caller = await world.open()
        await caller.turn()
        await caller.socket.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert world.backend.open_sockets == 0
        assert not world.backend.left.is_set()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"{}", 1003),
        ("x" * (MESSAGE_BYTES_MAX + 1), 1009),
        ("é" * (MESSAGE_BYTES_MAX // 2 + 1), 1009),
    ],
    ids=["binary", "long", "long-in-bytes"],
)
async def test_a_message_that_may_not_be_closes_the_connection(
    message: str | bytes, code: int
) -> None:
    async with opened_world() as world:
        caller = await world.open()
        await caller.socket.send_message(message)
        assert await caller.close_code() == code
        assert len(world.backend.seen) == 1


async def test_the_longest_message_and_a_ping_are_good() -> None:
    async with opened_world() as world:
        caller = await world.open()
        await caller.socket.ping(b"p")
        await caller.socket.send_message("x" * MESSAGE_BYTES_MAX)
        assert "invalid_value type" in shown(await caller.read())


async def test_a_caller_that_does_not_answer_a_close_is_cut(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened_world() as world:
        stream = world.stream()
        await stream.send_all(upgrade() + b"\x82\x80mask")  # a binary frame, and then nothing
        answer = b""
        while received := await stream.receive_some():
            answer += received
        assert answer.endswith(b"\r\n\r\n\x88\x02\x03\xeb")  # close, 1003
        assert trio.current_time() == CLOSE_SECONDS_MAX
