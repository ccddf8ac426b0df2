"""Proves that a stream's client hears of us in time, however long its upstream says nothing.

Method: virtual time; upstreams that are silent before their head, and then answer, fail, or go on
being silent; clients of each API.  Seen are what the client gets and when, and who was asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

import pytest
import trio
from trio.testing import MockClock

from pooler import COMMENT, NATIVE_COMMENT, SILENCE_SECONDS_MAX, HttpReply
from tests.support.frames import PONG
from tests.support.memory_sockets import Client, Json, post, request
from tests.support.memory_websockets import codex_described, error_frame, open_socket, socket_world
from tests.support.world import (
    Fin,
    Pause,
    Script,
    Send,
    Stall,
    World,
    chat_events,
    error_response,
    json_response,
    responses_events,
    sse_response,
)

ASKED: Final[Json] = {"model": "m1", "input": "Hi", "stream": True}
CHAT: Final[Json] = {
    "model": "m1",
    "messages": [{"role": "user", "content": "Hi"}],
    "stream": True,
}
REQUESTS: Final = {
    "responses": post("/v1/responses", ASKED),
    "chat": post("/v1/chat/completions", CHAT),
}
ANSWERS: Final = {"responses": responses_events("x"), "chat": chat_events("x")}
WRONG: Final = json.dumps({"error": {"message": "Too\nlong.", "code": "bad_input"}}, indent=1)
LATE: Final[dict[str, tuple[Script, str]]] = {
    # Of these two another account may be asked: the client may send its request once more.
    "a limit": (error_response(429, "usage_limit_reached"), "pool_busy"),
    "a bad credential": (error_response(401, "invalid_api_key"), "pool_busy"),
    "a failure": (error_response(500, "server_error"), "server_error"),
    "the client's own error": (json_response(WRONG.encode(), 400), "bad_input"),
    "a cut": ([Fin()], "upstream_unreachable"),
    "nonsense": ([Send(b"nonsense\r\n\r\n")], "upstream_invalid_response"),
    "a page": (
        [Send(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n")],
        "upstream_invalid_response",
    ),
    "nothing": ([Stall()], "upstream_timeout"),
    "no event": ([*sse_response([])], "upstream_stream_truncated"),
}


async def read_all(client: Client) -> list[tuple[float, bytes]]:
    """Every event to the body's end, with its time."""
    found = []
    while event := await client.read_event():
        found.append((trio.current_time(), event))
    return found


def data_of(event: bytes) -> Json:
    return json.loads(event.partition(b"data: ")[2])


def check_ended(kind: str, events: list[bytes], code: str) -> None:
    """One terminal event, at the end, and it says what has come."""
    last = data_of(events[-1])
    error = last["error"] if kind == "chat" else last["response"]["error"]
    assert error["code"] == code
    assert kind == "chat" or last["type"] == "response.failed"
    assert set(events[:-1]) <= {COMMENT}


def plays_late(world: World, script: Script, seconds: float = 70) -> None:
    """Whoever is asked is silent for so long, and then plays that."""
    for upstream in world.upstreams.values():
        upstream.always = [Pause(seconds), *script]


@pytest.mark.parametrize("kind", REQUESTS)
async def test_the_head_and_comments_come_before_the_upstreams_head(
    world: World, kind: str
) -> None:
    assert SILENCE_SECONDS_MAX == 45
    plays_late(world, sse_response(ANSWERS[kind]))
    client = await world.connect()
    await client.send(REQUESTS[kind])
    head = await client.read_head()
    assert (head.status, trio.current_time()) == (200, 45)
    assert head.header("content-type") == "text/event-stream; charset=utf-8"
    assert head.header("content-length") is None
    events = await read_all(client)
    assert events[:2] == [(45, COMMENT), (60, COMMENT)]
    assert {at for at, _ in events[2:]} == {70}
    wanted = b"".join(
        b"data: " + (e if isinstance(e, bytes) else json.dumps(e).encode()) + b"\n\n"
        for e in ANSWERS[kind]
    )
    assert b"".join(event for _, event in events[2:]) == wanted
    await world.settle()
    assert (world.records[-1]["code"], len(world.asked)) == (None, 1)


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("case", LATE)
async def test_what_comes_later_is_told_in_the_stream(world: World, kind: str, case: str) -> None:
    """Nobody else is asked: the client has its head."""
    script, code = LATE[case]
    plays_late(world, script)
    client = await world.connect()
    await client.send(REQUESTS[kind])
    assert (await client.read_head()).status == 200
    events = [event for _, event in await read_all(client)]
    check_ended(kind, events, code)
    assert len(world.asked) == 1
    # The body has ended as it should: the connection carries another request.
    assert (await client.ask(request("GET", "/v1/models"))).status == 200


@pytest.mark.parametrize("kind", REQUESTS)
async def test_until_then_another_account_may_answer(world: World, kind: str) -> None:
    first = error_response(503, "server_is_overloaded")
    for upstream in world.upstreams.values():
        upstream.always = lambda _: (
            [Pause(44.9), *first] if len(world.asked) == 1 else sse_response(ANSWERS[kind])
        )
    response = await world.ask(REQUESTS[kind])
    assert (response.status, response.ended_at, len(world.asked)) == (200, 44.9, 2)
    assert COMMENT not in response.body


@pytest.mark.parametrize("pauses", [(40,), (20, 20), (1,)])
async def test_the_silence_of_several_accounts_is_one(world: World, pauses: Sequence[int]) -> None:
    failed = error_response(503, "server_is_overloaded")
    scripts: list[Script] = [*([Pause(p), *failed] for p in pauses), [Stall()]]
    for upstream in world.upstreams.values():
        upstream.always = lambda _: scripts[len(world.asked) - 1]
    client = await world.connect()
    await client.send(REQUESTS["responses"])
    await client.read_head()
    assert trio.current_time() == 45
    check_ended("responses", [event for _, event in await read_all(client)], "upstream_timeout")
    assert trio.current_time() == sum(pauses) + 120


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_an_answer_in_one_piece_is_waited_for(world: World, path: str) -> None:
    plays_late(world, json_response({"id": "r"}), 300)
    body = CHAT if "chat" in path else ASKED
    response = await world.ask(post(path, body | {"stream": False}))
    assert (response.status, response.head_at, response.body) == (200, 300, b'{"id": "r"}')


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "native"])
@pytest.mark.parametrize("is_well", [True, False])
async def test_a_chatgpt_accounts_clients_hear_of_us_too(
    autojump_clock: MockClock, tmp_path: Path, path: str, *, is_well: bool
) -> None:
    async with socket_world(codex_described(tmp_path, "a")) as world:
        failed = {"type": "response.failed", "response": {"error": {"code": "x", "message": "y"}}}
        events = responses_events("word")
        plays_late(world, sse_response(events if is_well else [events[0], failed]), 61)
        is_native = path == "native"
        path = "/backend-api/codex/responses" if is_native else path
        client = await world.connect()
        await client.send(post(path, CHAT if "chat" in path else ASKED))
        assert (await client.read_head()).status == 200
        found = await read_all(client)
        comment = NATIVE_COMMENT if is_native else COMMENT
        assert found[:2] == [(45, comment), (60, comment)]
        body = b"".join(event for _, event in found[2:])
        assert (b"word" in body, b'"x"' in body) == (is_well, not is_well)
        ends = sum(body.count(one) for one in (b'"response.failed"', b'"response.completed"'))
        assert ends + body.count(b"[DONE]") + body.count(b'data: {"error"') == 1


async def test_on_a_websocket_a_late_error_is_still_a_message_with_its_status(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path, "a")) as world:
        world.upstream().plays([Pause(70), *error_frame(400, "bad_input")])
        client = await open_socket(world)
        await client.create()
        for at in (45, 60):
            assert await client.read_frame() == (PONG, b"")
            assert trio.current_time() == at
        refused = await client.read_event()
        assert (refused["type"], refused["status"]) == ("error", 400)


@pytest.mark.parametrize("events", [[], [b""]])
def test_where_all_events_are_dropped_nothing_is_sent(events: list[bytes]) -> None:
    """An empty chunk would end the body; the reply needs no connection for that."""
    assert HttpReply.put(cast("HttpReply", None), events)
