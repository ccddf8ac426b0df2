"""Proves that a request continues an earlier response only on the account that has it.

Method: pools of ChatGPT accounts, which store no response, and of accounts with an API key, in
virtual time; one of them creates a response, over HTTP or a WebSocket, and the next request names
it. Examined are the response and which account got the request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from trio.testing import MockClock

from tests.support.codex_backend import Play
from tests.support.codex_world import FIRST, MODEL, describe_codex, opened_codex_world, payloads
from tests.support.memory_sockets import KEY, OTHER_KEY, Json, Response, post
from tests.support.memory_websockets import (
    codex_described,
    error_frame,
    open_socket,
    socket_world,
    turn,
)
from tests.support.world import UPSTREAM_KEY, error_response, json_response

PLATFORM: Final[dict[str, Any]] = {
    "type": "openai",
    "base_url": "http://127.0.0.1:9900/v1",
    "api_key": UPSTREAM_KEY + "platform",
    "models": [MODEL],
    "priority": 1,
}


def mixed(folder: Path, *, priority: int = 1) -> Json:
    found = describe_codex(folder, others={"platform": PLATFORM | {"priority": priority}})
    found["accounts"]["first"]["priority"] = found["accounts"]["second"]["priority"] = 0
    found["pools"]["home"]["keys"]["ci"] = OTHER_KEY
    return found


def id_of(response: Response) -> str:
    """The id of the response, whichever form it has."""
    told = response.json() if response.body.startswith(b"{") else payloads(response)[-1]["response"]
    return str(told["id"])


def follow_up(made: str, *, key: str = KEY, **more: Json) -> bytes:
    body = {"model": MODEL, "input": "And now?", "previous_response_id": made} | more
    return post("/v1/responses", body, key=key)


def check_refused(error: Json) -> None:
    assert (error["code"], error["param"]) == (
        "previous_response_not_found",
        "previous_response_id",
    )


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"store": False}])
@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_codex_account_s_response_is_requested_from_no_account(
    autojump_clock: MockClock, tmp_path: Path, more: Json, *, is_stream: bool
) -> None:
    async with opened_codex_world(mixed(tmp_path), tmp_path) as world:
        ask = {"model": MODEL, "input": "I am Bob."}
        made = id_of(await world.ask(post("/v1/responses", ask | more | {"stream": is_stream})))
        response = await world.ask(follow_up(made, **more))
        assert response.status == 400
        check_refused(response.error)
        assert world.upstreams["platform"].asked == []
        assert len(world.backend.accounts()) == 1


async def test_the_creator_is_known_even_if_it_was_not_the_first_to_be_tried(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(mixed(tmp_path, priority=-1), tmp_path) as world:
        platform = world.upstreams["platform"]
        platform.plays(error_response(500, "server_error"))
        made = id_of(await world.ask(post("/v1/responses", {"model": MODEL, "input": "x"})))
        assert len(world.backend.accounts()) == len(platform.asked) == 1
        response = await world.ask(follow_up(made))
        assert response.status == 400
        check_refused(response.error)
        assert len(platform.asked) == 1


async def test_the_creator_is_known_even_while_it_cools_down(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(mixed(tmp_path), tmp_path) as world:
        made = id_of(await world.ask(post("/v1/responses", {"model": MODEL, "input": "x"})))
        world.upstreams["platform"].always = json_response({"id": "resp_p"})
        world.backend.plays += [Play(FIRST, error="usage_limit", seconds=7200)]
        await world.ask(post("/v1/responses", {"model": MODEL, "input": "x"}))
        check_refused((await world.ask(follow_up(made))).error)
        assert world.upstreams["platform"].asked == []


async def test_a_stored_response_is_requested_from_its_creator(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(mixed(tmp_path, priority=-1), tmp_path) as world:
        platform = world.upstreams["platform"]
        platform.always = json_response({"id": "resp_p"})
        made = id_of(await world.ask(post("/v1/responses", {"model": MODEL, "input": "x"})))
        for raw in (follow_up(made), follow_up("resp_of_another_day")):
            assert (await world.ask(raw)).status == 200
        assert len(platform.asked) == 3
        assert world.backend.accounts() == []


async def test_a_key_cannot_use_another_key_s_response(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(mixed(tmp_path), tmp_path) as world:
        made = id_of(await world.ask(post("/v1/responses", {"model": MODEL, "input": "x"})))
        world.upstreams["platform"].always = error_response(400, "previous_response_not_found")
        assert (await world.ask(follow_up(made, key=OTHER_KEY))).status == 400
        assert len(world.upstreams["platform"].asked) == 1


async def test_without_an_api_account_the_field_itself_is_refused(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        made = id_of(await world.ask(post("/v1/responses", {"model": MODEL, "input": "x"})))
        response = await world.ask(follow_up(made))
        assert (response.status, response.error["code"]) == (400, "unsupported_parameter")


################################################################
# OVER A WEBSOCKET
################################################################


def mixed_sockets(folder: Path) -> Json:
    """A ChatGPT account, and behind it one with an API key that takes WebSockets."""
    found = codex_described(folder)
    key = {"type": "openai", "api_key": UPSTREAM_KEY + "b", "websocket": True, "priority": 1}
    found["accounts"]["b"] = {
        name: value for name, value in found["accounts"]["b"].items() if name != "auth_file"
    } | key
    return found


async def test_a_turn_does_not_continue_on_an_account_that_did_not_serve_the_previous_one(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The account is limited in the meantime: with the full input, the other one serves."""
    async with socket_world(mixed_sockets(tmp_path)) as world:
        world.upstream().plays(
            turn("one", response_id="resp_a"),
            error_frame(429, "usage_limit_reached", {"retry-after": "3000"}),
        )
        world.upstream("b").always = turn("two", response_id="resp_b")
        client = await open_socket(world)
        await client.ask()
        for _ in range(2):
            [refused] = await client.ask(previous_response_id="resp_a")
            assert refused["status"] == 400
            check_refused(refused["error"])
        assert world.upstream("b").turns == []
        events = await client.ask(input="All of it.")
        assert events[-1]["response"]["id"] == "resp_b"
        await client.ask(previous_response_id="resp_b")
        assert len(world.upstream("b").turns) == 2


async def test_a_response_of_a_websocket_is_unknown_over_http(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(mixed_sockets(tmp_path)) as world:
        world.upstream().plays(turn("one", response_id="resp_a"))
        client = await open_socket(world)
        await client.ask()
        body = {"model": "m1", "input": "x", "previous_response_id": "resp_a"}
        response = await world.ask(post("/v1/responses", body))
        assert response.status == 400
        check_refused(response.error)
        assert world.upstream("b").asked == []
