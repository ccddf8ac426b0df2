"""Proves that an upstream with an API key is sent a name that it takes for no other program's.

LiteLLM, for one, treats every client whose name begins with "codex" as Codex CLI, and drops what
that never sends.

Method: all that goes to such an account, on every carrier and of the pooler's own accord, with
clients that use any name; and what a ChatGPT account is sent instead.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

from tests.support.memory_sockets import post, request
from tests.support.memory_websockets import (
    codex_described,
    open_socket,
    socket_described,
    socket_world,
    turn,
)
from tests.support.world import (
    Asked,
    World,
    chat_events,
    json_response,
    responses_events,
    sse_response,
)

CLIENTS: Final = ("codex_cli_rs/0.171.0 (Debian)", "Codex", "openai-python/2.1", "curl/8")


def agents(asked: list[Asked]) -> list[str]:
    """Each request has one."""
    found = [[value for name, value in one.headers if name == "user-agent"] for one in asked]
    return [name for [name] in found]


async def ask_all(world: World, name: str, agent: str) -> list[str]:
    """The name of the client that an upstream is sent, on every carrier."""
    upstream, told = world.upstream(name), [("User-Agent", agent)]
    body = {"model": "m1", "input": "x", "messages": [{"role": "user", "content": "x"}]}
    for path, is_stream in (
        ("/v1/responses", False),
        ("/v1/responses", True),
        ("/v1/chat/completions", False),
        ("/v1/chat/completions", True),
    ):
        events = chat_events("hi") if path.endswith("completions") else responses_events("hi")
        whole = json_response({"id": "r", "choices": []})
        upstream.plays(sse_response(events) if is_stream else whole)
        answer = await world.ask(post(path, {**body, "stream": is_stream}, headers=told))
        assert answer.status == 200

    upstream.plays(turn("hi"))
    client = await open_socket(world, more=told)
    assert (await client.ask())[-1]["type"] == "response.completed"
    await client.hang_up()
    return agents([*upstream.asked, *upstream.catalogue_asked])


@pytest.mark.parametrize("agent", CLIENTS)
async def test_an_account_with_an_api_key_is_sent_the_short_name(
    autojump_clock: MockClock, agent: str
) -> None:
    described = socket_described("a", accounts={"a": {"models": None}}, pool={"models": ["m1"]})
    async with socket_world(described) as world:
        names = await ask_all(world, "a", agent)
        assert len(names) == 6  # four requests, an upgrade, a model list
        assert {bool(re.fullmatch(r"pooler/[0-9.]+", name)) for name in names} == {True}


async def test_a_chatgpt_account_is_sent_the_full_name(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path, "a")) as world:
        upstream = world.upstream("a")
        upstream.plays(sse_response(responses_events("hi")))
        assert (
            await world.ask(post("/v1/responses", {"model": "m1", "input": "x", "stream": True}))
        ).status == 200
        await world.ask(request("GET", "/v1/models"))
        names = agents([*upstream.asked, *upstream.catalogue_asked])
        assert {name.partition("/")[0] for name in names} == {"codex-pooler"}
