"""Proves that a stream that has begun ends with one terminal event, whatever is raised meanwhile.

Method: bugs of ours are made in every part that a stream goes through, and upstreams nest their
events to any depth, for each API and transport.  What the client gets is read strictly: the body
has its last chunk, and one event ends the stream.  The log has the bug, with the request's id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from pooler import ChatTranslator, Event, EventScanner, Relay, ResponsesTranslator, Translator
from tests.support.codex_world import (
    COMPLETED,
    CREATED,
    DELTA,
    WHOLE,
    ask_scripted,
    opened_scripted_world,
    payloads,
    sse_script,
    stream_of,
)
from tests.support.memory_sockets import Json, Response, ask_chat, ask_responses
from tests.support.memory_websockets import open_socket, says, socket_described, socket_world
from tests.support.world import (
    Pause,
    Stall,
    World,
    describe,
    opened_world,
    responses_events,
    sse_event,
    sse_steps,
)

EVENTS: Final = responses_events("x", "y")
BUG: Final[Json] = {"type": "vendor.BUG", "id": "BUG", "choices": []}
STREAMS: Final = ["responses-stream", "chat-stream", "native"]
TERMINAL: Final = {"response.completed", "response.failed", "error"}


def bugs(world: World) -> list[Json]:
    """What the log says of bugs, which is then forgotten."""
    found = [fields for _, event, fields in world.logged if event == "bug"]
    world.logged[:] = [entry for entry in world.logged if entry[1] != "bug"]
    return found


def ends(told: list[Json]) -> list[str]:
    """The codes of the events that end a stream of either API; "" for a good end."""
    found = []
    for event in told:
        if event == "[DONE]" or event.get("type") == "response.completed":
            found.append("")
        elif "error" in event:
            found.append(event["error"]["code"])
        elif event.get("type") in TERMINAL:
            found.append(event["response"]["error"]["code"])
    return found


def check_bug(world: World, response: Response, code: str = "internal_error") -> None:
    """The stream has one end, which is ours, and the log says why."""
    assert response.status == 200
    assert ends(payloads(response)) == [code]
    [bug] = bugs(world)
    assert bug["request_id"] == response.header("x-request-id")
    assert world.records[-1]["code"] == code


################################################################
# BUGS OF OURS
################################################################


def break_scanner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the reader of events, which shows at an event that has `BUG` in it."""
    take = EventScanner._take

    def broken(self: EventScanner, raw: bytes) -> Event:
        if b"BUG" in raw:
            raise RuntimeError("BUG")
        return take(self, raw)

    monkeypatch.setattr(EventScanner, "_take", broken)


@pytest.mark.parametrize("is_old", [False, True], ids=["http-1.1", "http-1.0"])
@pytest.mark.parametrize("api", ["responses", "chat"])
async def test_a_bug_in_the_middle_of_a_stream_ends_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, api: str, is_old: bool
) -> None:
    break_scanner(monkeypatch)
    first = EVENTS[2] if api == "responses" else {"id": "c", "choices": [{"delta": {"a": 1}}]}
    raw = ask_responses() if api == "responses" else ask_chat()
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(sse_steps(first, Pause(1), BUG, EVENTS[-1], b"[DONE]"))
        response = await world.ask(raw.replace(b"HTTP/1.1", b"HTTP/1.0") if is_old else raw)
        assert response.body.startswith(sse_event(first))
        check_bug(world, response)


@pytest.mark.parametrize("form", STREAMS)
async def test_a_bug_in_the_middle_of_a_translated_stream_ends_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    break_scanner(monkeypatch)
    async with opened_scripted_world(tmp_path) as world:
        steps = sse_steps(CREATED, DELTA, Pause(1), BUG, COMPLETED)
        check_bug(world, await ask_scripted(world, form, steps))


@pytest.mark.parametrize("form", ["responses-stream", "chat-stream"])
async def test_a_terminal_event_that_was_read_and_not_sent_is_none(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    """The upstream's end cannot be told to the client: ours has to come all the same."""
    broken: Any = ChatTranslator if form == "chat-stream" else ResponsesTranslator
    feed = broken.feed

    def fails(self: Translator, *args: Json) -> bytes:
        told: bytes = feed(self, *args)
        if self.output.response is not None:
            raise RecursionError
        return told

    monkeypatch.setattr(broken, "feed", fails)
    async with opened_scripted_world(tmp_path) as world:
        response = await ask_scripted(world, form, sse_steps(CREATED, DELTA, Pause(1), COMPLETED))
        check_bug(world, response)


@pytest.mark.parametrize("form", ["responses", "chat"])
async def test_an_answer_in_one_piece_whose_end_cannot_be_told_is_an_error(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    monkeypatch.setattr(ResponsesTranslator, "whole", None)
    monkeypatch.setattr(ChatTranslator, "whole", None)
    async with opened_scripted_world(tmp_path) as world:
        response = await ask_scripted(world, form, sse_script(stream_of(WHOLE)))
        assert (response.status, response.error["code"]) == (500, "internal_error")
        assert len(bugs(world)) == 1


async def test_a_bug_after_the_terminal_event_adds_no_other(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_scanner(monkeypatch)
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(sse_steps(*EVENTS, Pause(0.1), BUG))
        response = await world.ask(ask_responses())
        assert ends(payloads(response)) == [""]
        assert len(bugs(world)) == 1
        assert world.records[-1]["code"] is None


@pytest.mark.parametrize("form", STREAMS)
@pytest.mark.parametrize("place", ["relay_on", "relay_rest", "failure_event"])
async def test_a_bug_where_a_stream_is_ended_ends_it_all_the_same(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    form: str,
    place: str,
) -> None:
    """Nobody but the one who serves the whole request is left to do it."""
    failure_event = EventScanner.failure_event

    def fails_once(self: EventScanner, *args: Json, **_: Json) -> bytes:
        monkeypatch.setattr(EventScanner, "failure_event", failure_event)
        raise RuntimeError

    async def fails(self: Relay) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError

    if place == "failure_event":
        monkeypatch.setattr(EventScanner, place, fails_once)
    else:
        monkeypatch.setattr(Relay, place, fails)
    async with opened_scripted_world(tmp_path) as world:
        response = await ask_scripted(
            world, form, sse_script(stream_of((CREATED, DELTA)), is_whole=False)
        )
        check_bug(world, response)


async def test_a_bug_between_the_terminal_event_and_the_last_chunk_adds_no_event(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooler.failed_response", None)
    error = {"type": "error", "code": "a_code", "message": "m"}
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(sse_steps(EVENTS[2], error))
        response = await world.ask(ask_responses())
        assert response.body == sse_event(EVENTS[2]) + sse_event(error)
        assert len(bugs(world)) == 1


@pytest.mark.parametrize("form", STREAMS)
async def test_a_bug_after_the_whole_answer_adds_nothing_to_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    monkeypatch.setattr(Relay, "note_outcome", None)
    async with opened_scripted_world(tmp_path) as world:
        response = await ask_scripted(world, form, sse_script(stream_of(WHOLE)))
        assert ends(payloads(response)) == [""]
        assert len(bugs(world)) == 1


async def test_a_bug_in_the_middle_of_a_turn_ends_that_turn(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The WebSocket of the client goes on, with another one to the upstream."""
    break_scanner(monkeypatch)
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays(says(EVENTS[2], Pause(1), BUG), says(*EVENTS))
        client = await open_socket(world)
        told = await client.ask()
        assert (told[0], ends(told)) == (EVENTS[2], ["internal_error"])
        assert ends(await client.ask()) == [""]
        await world.settle()
        assert len(bugs(world)) == 1
        assert [record["code"] for record in world.records] == ["internal_error", None]
        assert world.open_count == 1


async def test_a_bug_where_a_turn_is_ended_ends_it_and_its_websocket(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Relay, "relay_on", None)
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays(says(EVENTS[2], Pause(1), EVENTS[-1]))
        client = await open_socket(world)
        assert ends(await client.ask()) == ["internal_error"]
        assert await client.read_close() == 1011
        await world.settle()
        assert len(bugs(world)) == 1


################################################################
# EVENTS NESTED TO ANY DEPTH
################################################################

# About where Python gives up, each: what is read by a few levels less is not always written.
DEPTHS: Final = (90, 400, 495, 500, 505, 700, *range(880, 1000), 5000)


def deep(kind: str, depth: int) -> bytes:
    """An event of that type, with so many lists in it."""
    value = {"type": kind, "response": {"id": "r"}, "output_index": 0, "item": {}, "x": 0}
    return json.dumps(value).encode()[:-2] + b"[" * depth + b"]" * depth + b"}"


def is_end(event: bytes) -> bool:
    """Whether it ends a stream; told from its bytes, for no reader here goes so deep."""
    return any(mark in event for mark in (b"[DONE]", b'"error"', b"completed", b"response.failed"))


@pytest.mark.slow
@pytest.mark.parametrize("form", STREAMS)
@pytest.mark.parametrize("kind", ["response.completed", "response.failed", "error"])
async def test_a_deep_end_is_one_end(
    autojump_clock: MockClock, tmp_path: Path, form: str, kind: str
) -> None:
    async with opened_scripted_world(tmp_path) as world:
        for depth in DEPTHS:
            steps = sse_steps(CREATED, DELTA, Pause(1), deep(kind, depth))
            response = await ask_scripted(world, form, steps)
            *others, last = [is_end(one) for one in response.body.split(b"\n\n")[:-1]]
            assert last, depth
            assert not any(others), depth
            assert bugs(world) == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["responses", "chat", *STREAMS])
@pytest.mark.parametrize("kind", ["response.output_item.done", "response.in_progress", "x"])
async def test_a_deep_event_before_the_end_is_no_bug(
    autojump_clock: MockClock, tmp_path: Path, form: str, kind: str
) -> None:
    async with opened_scripted_world(tmp_path) as world:
        for depth in DEPTHS:
            steps = sse_steps(CREATED, DELTA, Pause(1), deep(kind, depth), *WHOLE[2:])
            response = await ask_scripted(world, form, steps)
            if form in STREAMS:
                *others, last = [is_end(one) for one in response.body.split(b"\n\n")[:-1]]
                assert last, depth
                assert not any(others), depth
            assert response.status in {200, 502}
            assert bugs(world) == []


BIG: Final = EVENTS[2] | {"delta": "x" * 50_000}


async def test_a_stop_that_comes_while_a_client_is_slow_ends_its_stream_all_the_same(
    autojump_clock: MockClock,
) -> None:
    """No wait for the upstream is under way then: none may begin."""
    async with opened_world(describe("a", limits={"drain_seconds_max": 5})) as world:
        world.upstreams["a"].plays(sse_steps(BIG, Stall()))
        client = await world.connect(capacity=1000)
        await client.send(ask_responses())
        await world.settle()
        world.server.stop()
        await trio.sleep_until(trio.current_time() + 6)
        response = await client.read_response()
        assert response.ended_at == 6
        *events, last = response.body.decode().strip().split("\n\n")
        assert [json.loads(event[6:]) for event in events] == [BIG]
        failed = json.loads(last.partition("data: ")[2])
        assert failed["response"]["error"]["code"] == "server_stopping"
        await world.settle()
        assert world.records[-1]["code"] == "server_stopping"
