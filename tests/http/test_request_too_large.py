"""Proves that a request which is by itself more than a limit allows is its client's affair alone.

No time and no other place makes it smaller: it is told to the client that sent it, nobody else is
asked, and no account rests.  Method: the messages that OpenAI and others send, in every carrier of
a failure, at two accounts of each type; and ordinary limits beside them, which still rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

from pooler import classify_event, classify_response, is_too_large, read_error
from tests.support.codex_world import payloads
from tests.support.memory_sockets import Json, Response, post
from tests.support.memory_websockets import (
    codex_described,
    open_socket,
    says,
    socket_described,
    socket_world,
)
from tests.support.world import Script, World, describe, json_response, opened_world, sse_response

IN_ORDER: Final = {"routing": "in_order"}
TOKENS: Final = "on tokens per min (TPM)"
SEE: Final = "Visit https://platform.openai.com/account/rate-limits to learn more."
TOO_LARGE: Final = [
    f"Request too large for gpt-4o in organization x {TOKENS}: Limit 30000, Requested 39085. {SEE}",
    f"Request too large for gpt-4o {TOKENS}: Limit 30000, Requested 342389.",
    f"Rate limit reached for gpt-4o {TOKENS}: Limit 30000, Used 20000, Requested 39085. {SEE}",
    f"Rate limit reached for m {TOKENS}: Limit 1, Used 0, Requested 2. Please try again in 6s.",
    f"Request too large for model `m` in organization `o` {TOKENS}: Limit 6000, Requested 11012, x",
    "Request too large for the model.",
]
ORDINARY: Final = [
    f"Rate limit reached for m {TOKENS}: Limit 10000, Used 9000, Requested 2000. Try again in 6s.",
    f"Rate limit reached for m {TOKENS}: Limit 30000, Used 29937, Requested 30000. Try again.",
    "Limit reached for m on requests per day (RPD): Limit 3, Used 3, Requested 1. Try again in 8h.",
    "Rate limit reached.",
    "Limit 10, and then Requested 20",
    "Limit 9999999999999999999999, Requested 99999999999999999999999",
]


def error_of(message: str) -> Json:
    code = "rate_limit_exceeded"
    return {"message": message, "type": "tokens", "param": None, "code": code}


################################################################
# BY VALUE
################################################################


@pytest.mark.parametrize("message", [*TOO_LARGE, *ORDINARY])
def test_what_is_asked_for_is_compared_with_the_limit(message: str) -> None:
    is_own = message in TOO_LARGE
    body = json.dumps({"error": error_of(message)}).encode()
    assert is_too_large(read_error(error_of(message))) == is_own
    headers = {"content-type": "application/json"}
    fault = classify_response(429, headers, body, 1.0)
    assert (fault.action.name, fault.effect.name) == (
        ("RETURN", "NONE") if is_own else ("NEXT", "LIMITED")
    )
    assert (classify_event(error_of(message), 1.0) is None) == is_own
    if is_own:
        assert fault.error.content() == (body, "application/json")
        assert fault.error.status == 429


################################################################
# OVER HTTP
################################################################

REQUESTS: Final[dict[str, tuple[str, Json]]] = {
    "responses": ("/v1/responses", {"model": "m1", "input": "x"}),
    "chat": ("/v1/chat/completions", {"model": "m1", "messages": [{"role": "user"}]}),
}


def event_of(carrier: str, error: Json) -> Json:
    """A failed stream's end."""
    created = {"type": "response.created", "response": {"id": "r"}}
    if carrier == "failed":
        return [created, {"type": "response.failed", "response": {"id": "r", "error": error}}]
    return [created, (error if carrier == "flat" else {"error": error}) | {"type": "error"}]


def script_of(carrier: str, message: str) -> Script:
    error = error_of(message)
    if carrier == "status":
        return json_response({"error": error}, 429)
    return sse_response([{"error": error}] if carrier == "chunk" else event_of(carrier, error))


def check_nobody_rests(world: World) -> None:
    for health in world.server.shared.roster.health.values():
        assert all(one.until == 0 for one in health.cooldowns)
        assert not any(health.blocks.values())


async def ask_both(world: World, api: str, carrier: str, *, is_stream: bool) -> list[Response]:
    """The same request twice, refused by the first account."""
    path, body = REQUESTS[api]
    raw = post(path, {**body, "stream": is_stream})
    world.upstreams["a"].plays(*[script_of(carrier, TOO_LARGE[0])] * 2)
    told = [await world.ask(raw) for _ in range(2)]
    assert [attempt["account"] for one in world.records for attempt in one["attempts"]] == ["a"] * 2
    assert world.upstreams["b"].asked == []
    check_nobody_rests(world)
    return told


OPENAI: Final = [
    ("responses", "status", False), ("responses", "status", True), ("chat", "status", False),
    ("chat", "status", True), ("responses", "failed", True), ("responses", "flat", True),
    ("responses", "nested", True), ("chat", "chunk", True),
]  # fmt: skip


@pytest.mark.parametrize(("api", "carrier", "is_stream"), OPENAI)
async def test_an_account_with_an_api_key_passes_it_on(
    autojump_clock: MockClock, api: str, carrier: str, is_stream: bool
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        for response in await ask_both(world, api, carrier, is_stream=is_stream):
            assert TOO_LARGE[0] in response.body.decode()
            assert response.status == (429 if carrier == "status" else 200)
            if carrier == "status":
                assert response.error == error_of(TOO_LARGE[0])


@pytest.mark.parametrize("api", ["responses", "chat"])
@pytest.mark.parametrize("carrier", ["status", "failed", "flat", "nested"])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_chatgpt_account_passes_it_on(
    autojump_clock: MockClock, tmp_path: Path, api: str, carrier: str, is_stream: bool
) -> None:
    async with opened_world(codex_described(tmp_path)) as world:
        for response in await ask_both(world, api, carrier, is_stream=is_stream):
            is_told = is_stream and carrier != "status" and api == "responses"
            assert response.status == (200 if is_told else 429 if carrier == "status" else 400)
            shown = payloads(response)[-1] if is_told else response.error
            assert TOO_LARGE[0] in json.dumps(shown)


@pytest.mark.parametrize("message", ORDINARY)
async def test_an_ordinary_limit_still_rests_and_the_next_is_asked(
    autojump_clock: MockClock, message: str
) -> None:
    for carrier in ("status", "failed"):
        async with opened_world(describe("ab", pool=IN_ORDER)) as world:
            world.upstreams["a"].plays(script_of(carrier, message))
            done = {"type": "response.completed", "response": {"id": "r"}}
            world.upstreams["b"].plays(sse_response([done]))
            path, body = REQUESTS["responses"]
            assert (await world.ask(post(path, {**body, "stream": True}))).status == 200
            assert len(world.upstreams["b"].asked) == 1
            assert any(one.until for one in world.server.shared.roster.health["a"].cooldowns)


################################################################
# OVER WEBSOCKETS
################################################################


@pytest.mark.parametrize("is_codex", [False, True])
@pytest.mark.parametrize("carrier", ["frame", "failed", "flat", "nested"])
async def test_a_frame_passes_it_on(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, is_codex: bool
) -> None:
    error = error_of(TOO_LARGE[0])
    events = [{"type": "error", "status": 429, "error": error}]
    if carrier != "frame":
        events = event_of(carrier, error)
    described = codex_described(tmp_path) if is_codex else socket_described(pool=IN_ORDER)
    async with socket_world(described) as world:
        world.upstreams["a"].plays(*[says(*events)] * 2)
        client = await open_socket(world)
        for _ in range(2):
            last = (await client.ask(input=[]))[-1]
            assert TOO_LARGE[0] in json.dumps(last)
        assert [name for name, *_ in world.turns] == ["a", "a"]
        check_nobody_rests(world)
