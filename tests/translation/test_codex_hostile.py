"""Proves that a lying ChatGPT backend, or client of it, gets nothing that it is not owed.

Method: the scripted account of `tests/support/codex_world.py`, or two behind the strict
backend; each test is one lie: a secret handed back to another account, an end that is none, a
flood.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from pooler import OUTPUT_ITEMS_MAX, ChatTranslator, Event, EventKind, OutputCollector
from tests.support.codex_backend import Play
from tests.support.codex_world import (
    COMPLETED,
    CREATED,
    DELTA,
    FIRST,
    FORMS,
    NATIVE_BODY,
    PREFIX,
    SECOND,
    WHOLE,
    ask_scripted,
    check_end,
    describe_codex,
    every_form,
    opened_codex_world,
    opened_scripted_world,
    payloads,
    sse_script,
    stream_of,
)
from tests.support.memory_sockets import post
from tests.support.world import (
    LAST_CHUNK,
    Pause,
    Send,
    Stall,
    Step,
    Wait,
    chunk,
    json_response,
    sse_event,
    sse_head,
)

STATE: Final = "x-codex-turn-state"


async def test_a_turn_s_state_never_reaches_another_account(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Codex CLI keeps the first state of a turn, whoever serves the rest of it."""
    session = [("session-id", "thread")]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:

        async def ask_with(*states: str) -> str | None:
            headers = session + [(STATE, state) for state in states]
            response = await world.ask(post(f"{PREFIX}/responses", NATIVE_BODY, headers=headers))
            return response.header(STATE)

        first = await ask_with()
        assert first
        world.backend.plays.append(Play(FIRST, error="usage_limit"))
        second = await ask_with(first)
        assert second
        assert await ask_with(first) == second  # the session has moved; the state has not
        assert await ask_with(second) == second
        assert [(one.account, one.headers.get(STATE)) for one in world.backend.asked()] == [
            (FIRST, None), (FIRST, first), (SECOND, None), (SECOND, None), (SECOND, second),
        ]  # fmt: skip


async def test_a_done_before_the_end_hides_no_end(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Clients stop reading at `[DONE]`."""
    async with opened_scripted_world(tmp_path) as world:
        raw = stream_of((*WHOLE[:-1], b"[DONE]"))
        response = await ask_scripted(world, "responses-stream", sse_script(raw))
        assert b"[DONE]" not in response.body
        assert payloads(response)[-1]["type"] == "response.failed"


@pytest.mark.parametrize("form", ["responses", "chat"])
async def test_an_answer_that_came_in_deltas_alone_is_not_lost(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    refusal = {"type": "response.refusal.delta", "output_index": 1, "delta": "No."}
    async with opened_scripted_world(tmp_path) as world:
        raw = stream_of((CREATED, DELTA, DELTA, refusal, COMPLETED))
        value = (await ask_scripted(world, form, sse_script(raw))).json()
        if form == "chat":
            message = value["choices"][0]["message"]
            assert (message["content"], message["refusal"]) == ("Hi.Hi.", "No.")
            return
        parts = [part for item in value["output"] for part in item["content"]]
        assert [part.get("text") or part["refusal"] for part in parts] == ["Hi.Hi.", "No."]
        assert all(item["role"] == "assistant" for item in value["output"])


@pytest.mark.parametrize("form", ["responses-stream", "chat-stream", "native"])
async def test_a_flood_before_content_is_bounded(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    flood = [Send(chunk(b": " + b"x" * 10_000 + b"\n\n")) for _ in range(100)]
    big = CREATED | {"padding": "x" * 10_000}
    for script in (flood, [Send(chunk(stream_of([big]))) for _ in range(15)]):
        async with opened_scripted_world(tmp_path, event_bytes_max=100_000) as world:
            response = await ask_scripted(world, form, [Send(sse_head()), *script, Stall()])
            if form == "chat-stream":  # nothing of this is held
                continue
            assert response.status == 502
            assert response.error["code"] == "upstream_invalid_response"
            assert world.server.shared.events.bytes_held == 0


async def test_a_number_too_long_to_print_ends_no_stream_silently(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    number = b'{"type":"response.output_text.delta","sequence_number":' + b"9" * 4300 + b"}"
    async with opened_scripted_world(tmp_path) as world:
        response = await ask_scripted(
            world, "native", sse_script(stream_of((CREATED, number)), is_whole=False)
        )
        assert payloads(response)[-1]["type"] == "response.failed"


@pytest.mark.parametrize(("seconds", "told"), [(30, "30"), (3000, None)])
async def test_only_v1_clients_are_told_not_to_retry(
    autojump_clock: MockClock, tmp_path: Path, seconds: int, told: str | None
) -> None:
    error = {"type": "usage_limit_reached", "resets_in_seconds": seconds}
    for form in ("native", "responses"):
        async with opened_scripted_world(tmp_path) as world:
            response = await ask_scripted(world, form, json_response({"error": error}, 429))
            assert (response.status, response.header("retry-after")) == (429, told)
            is_told = form == "responses" and told is None
            assert response.header("x-should-retry") == ("false" if is_told else None)


BENGALFOX: Final = "codex-bengalfox-primary"


async def test_the_limit_of_one_model_rests_nobody(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    error = {"type": "usage_limit_reached", "resets_in_seconds": 3000}
    models = ["gpt-5.5", "m2"]
    async with opened_scripted_world(tmp_path, models=models) as world:
        for limit, status in (("codex_bengalfox", 200), ("codex", 429), ("premium", 200)):
            headers = [("x-codex-active-limit", limit), (f"x-{BENGALFOX}-used-percent", "100")]
            limited = json_response({"error": error}, 429, headers)
            response = await ask_scripted(world, "responses", limited)
            assert (response.status, response.error["resets_in_seconds"]) == (429, 3000)
            for model, expected in (("m2", status), ("gpt-5.5", 429)):
                if expected == 200:
                    world.upstreams["a"].plays(sse_script(stream_of(WHOLE)))
                body = {"model": model, "input": "x"}
                assert (await world.ask(post("/v1/responses", body))).status == expected
            autojump_clock.jump(3001)


def test_the_indexes_that_an_answer_remembers_are_bounded() -> None:
    answer = ChatTranslator(OutputCollector(10**9))
    told = b""
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    for index in range(OUTPUT_ITEMS_MAX - 2, OUTPUT_ITEMS_MAX + 10):
        event = {"type": "response.output_item.added", "output_index": index, "item": call}
        told += answer.feed(Event(EventKind.CONTENT, sse_event(event)))
    assert told.count(b'"tool_calls"') == 2  # those without a place are, by their id, the last


@pytest.mark.parametrize("form", ["responses", "chat"])
async def test_an_answer_in_one_piece_is_waited_for_no_longer_than_any(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    drips: list[Step] = [Pause(100), Send(chunk(stream_of([DELTA])))] * 20
    async with opened_scripted_world(tmp_path) as world:
        response = await ask_scripted(world, form, [Send(sse_head()), *drips, Stall()])
        assert (response.status, response.ended_at) == (504, 600.0)
        assert "unary_seconds_max" in response.error["message"]


@every_form
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_whoever_leaves_takes_the_upstream_along(
    autojump_clock: MockClock, tmp_path: Path, form: str, count: int
) -> None:
    events = (CREATED, {"type": "keepalive"}, DELTA)[:count]
    async with opened_scripted_world(tmp_path) as world:
        upstream = world.upstreams["a"]
        upstream.plays([Send(sse_head() + chunk(stream_of(events))), Stall()])
        client = await world.connect()
        path, body = FORMS[form]
        await client.send(post(path, body))
        await world.settle()
        left_at = trio.current_time()
        await client.hang_up()
        await world.settle()
        assert upstream.lines[-1].closed_at == pytest.approx(left_at, abs=1)
        assert world.records[-1]["code"] == "client_gone"
        assert not any(world.server.shared.roster.health["a"].blocks.values())


@every_form
async def test_a_reload_without_the_account_ends_nothing_under_way(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    go = trio.Event()
    async with opened_scripted_world(tmp_path) as world:
        rest: list[Step] = [Wait(go), Send(chunk(stream_of(WHOLE[1:])) + LAST_CHUNK)]
        world.upstreams["a"].plays([Send(sse_head() + chunk(stream_of(WHOLE[:1]))), *rest])
        client = await world.connect()
        path, body = FORMS[form]
        await client.send(post(path, body))
        await world.settle()
        pool = dataclasses.replace(world.config.pools["home"], accounts=())
        config = dataclasses.replace(world.config, accounts={}, pools={"home": pool})
        await world.server.reload(lambda: (config, {}))
        go.set()
        assert check_end(form, await client.read_response())
        assert (await world.ask(post(path, body))).status in {404, 503}
