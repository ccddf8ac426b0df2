"""Proves that what one key's requests meet takes an account away from no other key.

Method: the real server in virtual time, whose pool has two keys. An upstream fails one request in
words that its client may have chosen; then the other key asks. Examined are who is asked, and that
the evidence of both keys, or of the only one, counts as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from tests.support.memory_sockets import KEY, OTHER_KEY, Response, post
from tests.support.world import (
    Script,
    World,
    chat_events,
    describe,
    error_response,
    json_response,
    opened_world,
    responses_events,
    sse_response,
)

# As llama.cpp and FastAPI do, these repeat what the client has sent.
QUOTED: Final = 'Failed to parse messages: no role; messages = ["The model `m2` does not exist"]'
SPOKEN: Final = "Cannot render: Too many requests, please try again in 20 days"
FAILED: Final[Mapping[str, tuple[str, Script, int]]] = {
    "model": ("responses", json_response({"error": {"message": QUOTED, "code": 400}}, 400), 1),
    "model-code": ("responses", error_response(404, "model_not_found"), 1),
    "route": ("responses", json_response({"error": {"message": "Not found"}}, 404), 1),
    "limit": ("stream", sse_response([{"error": {"message": SPOKEN}}]), 1),
    "chat-limit": ("chat", sse_response([{"error": {"message": SPOKEN}}]), 1),
    "forbidden": ("responses", error_response(403, "invalid_request_error"), 3),
}
ONE_KEY: Final = {"keys": {"laptop": KEY}}


def question(form: str, key: str) -> bytes:
    if form == "chat":
        body = {"model": "m1", "messages": [{"role": "user", "content": "x"}], "stream": True}
        return post("/v1/chat/completions", body, key=key)
    return post("/v1/responses", {"model": "m1", "input": "x", "stream": form == "stream"}, key=key)


def good(form: str) -> Script:
    if form == "responses":
        return json_response({"id": "r", "output": []})
    return sse_response(chat_events("x") if form == "chat" else responses_events("x"))


async def ask(world: World, case: str, key: str, *, fails: bool = False) -> Response:
    form, script, _ = FAILED[case]
    world.upstreams["a"].always = script if fails else good(form)
    return await world.ask(question(form, key))


async def fail(world: World, case: str, key: str) -> None:
    """Have the requests of a key fail as often as it takes."""
    for _ in range(FAILED[case][2]):
        assert (await ask(world, case, key, fails=True)).status != 200


@pytest.mark.parametrize("case", FAILED)
async def test_another_key_is_served_as_if_nothing_had_happened(
    case: str, autojump_clock: MockClock
) -> None:
    async with opened_world(describe("a")) as world:
        await fail(world, case, OTHER_KEY)
        assert (await ask(world, case, KEY)).status == 200


@pytest.mark.parametrize("case", FAILED)
async def test_the_key_itself_asks_that_account_no_more(
    case: str, autojump_clock: MockClock
) -> None:
    async with opened_world(describe("a")) as world:
        await fail(world, case, OTHER_KEY)
        asked_count = len(world.upstreams["a"].asked)
        assert (await ask(world, case, OTHER_KEY)).status != 200
        assert len(world.upstreams["a"].asked) == asked_count

        await trio.sleep_until(3600)
        assert (await ask(world, case, OTHER_KEY)).status == 200


@pytest.mark.parametrize("case", FAILED)
async def test_what_two_keys_have_met_counts_for_all(case: str, autojump_clock: MockClock) -> None:
    third = "cp-key-of-a-third-0123456789"
    keys = {"keys": {"laptop": KEY, "ci": OTHER_KEY, "third": third}}
    async with opened_world(describe("a", pool=keys)) as world:
        await fail(world, case, OTHER_KEY)
        await fail(world, case, KEY)
        assert (await ask(world, case, third)).status != 200
        assert (await ask(world, case, OTHER_KEY)).status != 200


@pytest.mark.parametrize("case", FAILED)
async def test_what_the_only_key_has_met_holds_for_the_account(
    case: str, autojump_clock: MockClock
) -> None:
    async with opened_world(describe("a", pool=ONE_KEY)) as world:
        await fail(world, case, KEY)
        health = world.server.shared.roster.health["a"]
        assert all(
            block.key is None for blocks in health.blocks.values() for block in blocks.values()
        )
        assert (await ask(world, case, KEY)).status != 200


async def test_a_limit_that_only_a_text_tells_lasts_no_longer_than_any_is_believed(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        await fail(world, "limit", OTHER_KEY)
        await trio.sleep_until(901)
        assert (await ask(world, "limit", OTHER_KEY)).status == 200


async def test_another_key_s_success_ends_what_one_key_has_met(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        await fail(world, "forbidden", OTHER_KEY)
        assert (await ask(world, "forbidden", KEY)).status == 200
        assert (await ask(world, "forbidden", OTHER_KEY)).status == 200


async def test_a_limit_with_a_code_counts_for_all_at_once(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].always = error_response(429, "rate_limit_exceeded")
        assert (await world.ask(question("responses", OTHER_KEY))).status == 429
        world.upstreams["a"].always = good("responses")
        assert (await world.ask(question("responses", KEY))).status == 429
