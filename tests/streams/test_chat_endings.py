"""Proves that a Chat stream is whole only where it says so, and that what ends one is understood.

Method: upstreams with an API key play Chat chunks in virtual time; those of a ChatGPT account end
with an older name.  Seen are the client's events.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

from pooler import CallKind, EventScanner
from tests.support.memory_sockets import Json, ask_chat, post
from tests.support.memory_websockets import codex_described, open_socket, says, socket_world
from tests.support.world import World, describe, opened_world, sse_event, sse_response

NOT_YET: Final[tuple[Json, ...]] = ("", None, 7, [], {})


def piece(text: str, reason: Json) -> Json:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m1", "choices": [choice]}


def is_failed(body: bytes) -> bool:
    last = body.strip().split(b"\n\n")[-1].removeprefix(b"data: ")
    return last != b"[DONE]" and "error" in json.loads(last)


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("reason", NOT_YET)
async def test_a_body_that_ends_in_mid_text_has_failed(
    world: World, reason: Json, framing: str
) -> None:
    chunks = [piece(word, reason) for word in ("one ", "two ", "three")]
    world.upstreams["a"].plays(sse_response(chunks, framing=framing))
    response = await world.ask(ask_chat())
    assert response.status == 200
    assert is_failed(response.body)
    assert response.body.count(b'"error"') == 1
    assert world.records[-1]["code"] == "upstream_stream_truncated"


@pytest.mark.parametrize("before", NOT_YET)
@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls"])
async def test_a_reason_is_an_end_also_without_done(
    world: World, reason: str, before: Json
) -> None:
    script = sse_response([piece("one", before), piece("two", reason), piece("", before)])
    world.upstreams["a"].plays(script)
    response = await world.ask(ask_chat())
    assert not is_failed(response.body + b"data: [DONE]\n\n")
    assert b'"error"' not in response.body
    assert world.records[-1]["code"] is None


async def test_done_is_an_end_without_a_reason(world: World) -> None:
    world.upstreams["a"].plays(sse_response([piece("one", ""), b"[DONE]"]))
    response = await world.ask(ask_chat())
    assert not is_failed(response.body)


@pytest.mark.parametrize("blank", ["", " "])
def test_an_empty_reason_costs_no_reading(blank: str) -> None:
    """Most chunks of such an upstream have one: they pass unread, as those with null do."""
    scanner = EventScanner(CallKind.CHAT)
    values = []
    for text in ("one", "two"):
        chunk = json.dumps(piece(text, "")).replace('": ""', f'":{blank}""')
        events = scanner.feed(b"data: " + chunk.encode() + b"\n\n")
        values += [event.value for event in events]
    assert values[1:] == [None]
    assert not scanner.has_finish


@pytest.mark.parametrize("status", ["completed", "incomplete"])
async def test_a_websocket_client_is_told_the_end_by_its_name(
    autojump_clock: MockClock, tmp_path: Path, status: str
) -> None:
    done = {"id": "resp_1", "status": status, "output": []}
    async with socket_world(codex_described(tmp_path, "a")) as world:
        world.upstream().plays(
            says(
                {"type": "response.created", "response": {"id": "resp_1"}},
                {"type": "response.output_text.delta", "delta": "x"},
                {"type": "response.done", "response": done},
            )
        )
        client = await open_socket(world)
        events = await client.ask()
        assert events[-1] == {"type": f"response.{status}", "response": done}


async def test_an_api_accounts_events_keep_their_names(world: World) -> None:
    event = {"type": "response.done", "response": {"id": "resp_1", "output": []}}
    world.upstreams["a"].plays(sse_response([event]))
    body = {"model": "m1", "input": "x", "stream": True}
    for name in "bc":
        world.upstreams[name].plays(sse_response([event]))
    response = await world.ask(post("/v1/responses", body))
    assert json.loads(response.body.partition(b"data: ")[2]) == event


async def test_a_chunk_whose_choices_are_no_objects_is_relayed_and_not_stumbled_over(
    autojump_clock: MockClock,
) -> None:
    odd = {"id": "c1", "choices": [None, 1, {"delta": {"content": "x"}, "finish_reason": "stop"}]}
    body = {"model": "m1", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(sse_response([odd]))  # without [DONE]: its end is the finish
        response = await world.ask(post("/v1/chat/completions", body))
        assert response.body == sse_event(odd)
        assert world.records[-1]["code"] is None
