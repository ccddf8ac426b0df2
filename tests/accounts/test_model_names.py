"""Proves that each upstream of a pool may have its own name for one model.

Method: a pool of a ChatGPT account and a router, in memory, each of which has another name for the
pool's model, so that a name that is not changed, or changed too often, is noticed. Every request
fails over from one to the other, on every carrier and in both directions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

from pooler import Alias, ConfigRefused
from tests.support.codex_backend import make_auth_file
from tests.support.memory_sockets import Json, ask_responses, post, request
from tests.support.memory_websockets import error_frame, open_socket, socket_world, turn
from tests.support.world import (
    UNIX_START,
    World,
    chat_events,
    describe,
    error_response,
    json_response,
    make_config,
    opened_world,
    responses_events,
    sse_response,
)

MODEL: Final = "gpt-5.5"
NAMES: Final = {"a": "gpt-5.5-2026", "b": "openai/gpt 5.5 (fast)"}  # a: ChatGPT, b: a router
NATIVE: Final = "/backend-api/codex/responses"
ENTRY: Final[Json] = {
    "slug": NAMES["a"], "display_name": "GPT", "context_window": 272_000,
    "supported_reasoning_levels": [{"effort": "low"}, {"effort": "xhigh"}],
}  # fmt: skip
# With other members of that name, escapes, and numbers that are easily changed.
BODIES: Final[dict[str, tuple[str, bytes]]] = {
    "responses": (
        "/v1/responses",
        b'{ "model" : "gpt-5.5",\n"input":"h\\u00e9" , "top_p":1.50, "seed":-9007199254740993}',
    ),
    "responses-stream": (
        "/v1/responses",
        b'{"metadata":{"model":"m"}, "stream":true,"input":"\\"model\\":","model":"gpt\\u002d5.5"}',
    ),
    "chat": (
        "/v1/chat/completions",
        b'{"messages":[{"role":"user","content":"{\\"model\\":\\"m\\"}"}],"model":"gpt-5.5" }',
    ),
    "chat-stream": (
        "/v1/chat/completions",
        b'{"stream": true,"messages":[ {"role":"user","content":"x"} ],"model": "gpt-5.5"}\n',
    ),
}
ANSWERS: Final = {
    "responses": json_response({"id": "r", "model": NAMES["b"], "output": []}),
    "responses-stream": sse_response(responses_events("hi", model=NAMES["b"])),
    "chat": json_response({"id": "c", "model": NAMES["b"], "choices": []}),
    "chat-stream": sse_response(chat_events("hi", model=NAMES["b"])),
}


def both(folder: Path, first: str = "a", **pool: Json) -> dict[str, Json]:
    """The ChatGPT account `a` and the router `b`, of which one is preferred."""
    path = folder / "auth.json"
    make_auth_file(path, "acct-a", expires_at=UNIX_START + 10**6)
    accounts: Json = {
        "a": {"type": "codex", "auth_file": str(path), "api_key": None},
        "b": {"websocket": True},
    }
    for name, upstream_name in NAMES.items():
        accounts[name] |= {"models": {MODEL: upstream_name}, "priority": int(name != first)}
    return describe("ab", accounts=accounts, pool=pool)


def renamed(body: bytes, name: str) -> Json:
    """What the body holds, with its own model renamed and nothing else."""
    return json.loads(body) | {"model": name}


def play(world: World, first: str, form: str) -> None:
    """The first account is limited, and the other one serves."""
    world.upstreams[first].plays(error_response(429, "usage_limit_reached"))
    served = (
        ANSWERS[form] if first == "a" else sse_response(responses_events("hi", model=NAMES["a"]))
    )
    world.upstreams["ab".replace(first, "")].plays(served)


def check_log(world: World, first: str) -> None:
    [record] = world.records
    assert record["model"] == MODEL
    assert [attempt["account"] for attempt in record["attempts"]] == sorted("ab", key=first.__ne__)


@pytest.mark.parametrize("first", "ab")
@pytest.mark.parametrize("form", BODIES)
async def test_a_request_fails_over_to_the_upstream_that_has_another_name(
    autojump_clock: MockClock, tmp_path: Path, form: str, first: str
) -> None:
    path, body = BODIES[form]
    async with socket_world(both(tmp_path, first)) as world:
        play(world, first, form)
        response = await world.ask(post(path, body))
        assert response.status == 200
        [to_login], [to_router] = (world.upstreams[name].asked for name in "ab")
        assert to_login.json()["model"] == NAMES["a"]
        assert to_router.json() == renamed(body, NAMES["b"])
        # An answer is passed on as it came, with the upstream's own name.
        assert json.dumps(NAMES["b" if first == "a" else "a"]).encode() in response.body
        check_log(world, first)


@pytest.mark.parametrize("first", "ab")
async def test_a_turn_of_a_websocket_fails_over_to_the_upstream_that_has_another_name(
    autojump_clock: MockClock, tmp_path: Path, first: str
) -> None:
    other = "ab".replace(first, "")
    async with socket_world(both(tmp_path, first)) as world:
        world.upstream(first).plays(error_frame(429, "usage_limit_reached"))
        world.upstream(other).plays(turn("hi"), turn("ho"))
        client = await open_socket(world)
        for _ in range(2):
            events = await client.ask(model=MODEL, input="x")
            assert events[-1]["type"] == "response.completed"
        asked = [(name, body["model"]) for name, _, body in world.turns]
        assert sorted(asked) == sorted([(first, NAMES[first]), *[(other, NAMES[other])] * 2])
        models = [record["model"] for record in world.records if record["model"] is not None]
        assert models == [MODEL, MODEL]


@pytest.mark.parametrize("path", [NATIVE, f"{NATIVE}/compact"])
async def test_on_the_native_route_nothing_else_is_changed(
    autojump_clock: MockClock, tmp_path: Path, path: str
) -> None:
    body = b'{"x":[{"model":"gpt-5.5"}],"input":[ ],"stream" :false,"model" : "gpt-5.5" }'
    async with socket_world(both(tmp_path)) as world:
        world.upstreams["a"].plays(json_response({"id": "r", "output": []}))
        assert (await world.ask(post(path, body))).status == 200
        assert world.upstreams["a"].asked[0].json() == renamed(body, NAMES["a"])


async def test_a_turn_of_a_native_websocket_has_the_upstream_s_name(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(both(tmp_path)) as world:
        world.upstream().plays(turn("hi"))
        client = await open_socket(world, path=NATIVE)
        await client.ask(model=MODEL, input=[], x={"model": MODEL})
        [(_, _, asked)] = world.turns
        assert (asked["model"], asked["x"]) == (NAMES["a"], {"model": MODEL})


async def test_lists_and_explanations_have_the_pool_s_name(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(both(tmp_path)) as world:
        world.upstreams["a"].catalogue = json_response({"models": [ENTRY]})
        await world.ask(request("GET", "/v1/models"))
        await world.settle()
        world.server.shared.roster.health["a"].catalogue_until = 0.0
        await world.ask(request("GET", "/v1/models"))
        await world.settle()

        [shown] = (await world.ask(request("GET", "/v1/models"))).json()["data"]
        assert (shown["id"], shown["context_length"]) == (MODEL, 258_400)
        assert (await world.ask(request("GET", f"/v1/models/{MODEL}"))).status == 200
        listed = (await world.ask(request("GET", "/backend-api/codex/models"))).json()
        assert listed == {"models": [ENTRY | {"slug": MODEL}]}

        told = world.server.operators.explain("home", MODEL, None)
        assert (told["model"], told["chosen"]) == (MODEL, "a")
        seen = world.server.operators.snapshot()
        assert [row["name"] for row in seen["models"]] == [MODEL]
        assert {name for row in seen["accounts"] for name in row["models"]} == {MODEL}

        # Of its own names the pool knows none; and the login's levels are known by its own.
        for name in NAMES.values():
            response = await world.ask(post("/v1/responses", {"model": name, "input": "x"}))
            assert (response.status, response.error["code"]) == (400, "model_not_found")
        world.upstreams["a"].plays(sse_response(responses_events("hi")))
        asked = {"model": MODEL, "input": "x", "reasoning": {"effort": "high"}}
        assert (await world.ask(post("/v1/responses", asked))).status == 200
        assert world.upstreams["a"].asked[-1].json()["reasoning"]["effort"] == "xhigh"


################################################################
# ALIASES THAT SET MORE
################################################################

ALIASES: Final[Json] = {
    "quick": {"model": MODEL, "effort": "low", "service_tier": "priority"},
    "deep": {"model": MODEL, "effort": "high"},
    "tiered": {"model": MODEL, "service_tier": "flex"},
    "only": {"model": MODEL},
    "plain": MODEL,
}
# What a client says itself, and the members that the router gets besides its model.
ASKED: Final[dict[str, tuple[str, Json]]] = {
    "responses": (
        "/v1/responses",
        {"input": "x", "reasoning": {"effort": "max", "summary": "auto"}},
    ),
    "responses-bare": ("/v1/responses", {"input": "x"}),
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "max"},
    ),
    "chat-object": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "reasoning": {"effort": "max"}},
    ),
    "chat-bare": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
}


def expected_of(form: str, alias: str, body: Json) -> Json:
    found = ALIASES[alias] if isinstance(ALIASES[alias], dict) else {}
    made = body | {"model": NAMES["b"]}
    if tier := found.get("service_tier"):
        made["service_tier"] = tier
    if not (effort := found.get("effort")):
        return made
    if form.startswith("chat"):
        made["reasoning_effort"] = effort
    if form == "chat-object" or not form.startswith("chat"):
        made["reasoning"] = made.get("reasoning", {}) | {"effort": effort}
    return made


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("form", ASKED)
async def test_an_alias_sets_effort_and_tier_for_clients_that_cannot(
    autojump_clock: MockClock, tmp_path: Path, form: str, alias: str
) -> None:
    path, body = ASKED[form]
    for first in "ba":
        async with socket_world(both(tmp_path, first, aliases=ALIASES)) as world:
            play(world, "ab".replace(first, ""), form.partition("-")[0])
            world.upstreams[first].scripts.reverse()
            world.upstreams["ab".replace(first, "")].scripts.clear()
            response = await world.ask(post(path, body | {"model": alias}))
            assert response.status == 200
            [asked] = world.upstreams[first].asked
            expected = expected_of(form, alias, body)
            if first == "b":
                assert asked.json() == expected
            else:
                check_login_asked(asked.json(), ALIASES[alias])
            [record] = world.records
            assert record["model"] == alias


def check_login_asked(asked: Json, alias: Json) -> None:
    """A ChatGPT account is sent the same, as far as it takes it."""
    alias = alias if isinstance(alias, dict) else {}
    assert asked["model"] == NAMES["a"]
    if effort := alias.get("effort"):
        assert asked["reasoning"]["effort"] == effort
    assert asked.get("service_tier") == (
        "priority" if alias.get("service_tier") == "priority" else None
    )


async def test_an_alias_sets_effort_and_tier_on_a_websocket(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(both(tmp_path, "b", aliases=ALIASES)) as world:
        world.upstream("b").plays(turn("hi"))
        client = await open_socket(world)
        await client.ask(model="quick", input="x")
        [(_, _, asked)] = world.turns
        assert asked["model"] == NAMES["b"]
        assert (asked["reasoning"], asked["service_tier"]) == ({"effort": "low"}, "priority")


@pytest.mark.parametrize(
    "path",
    [f"{NATIVE}/compact", "/v1/responses/compact", "/v1/alpha/search", "/v1/images/generations",
     "/backend-api/codex/alpha/search", "/backend-api/codex/images/edits"],
)  # fmt: skip
async def test_an_alias_changes_the_model_of_a_native_body_and_nothing_else(
    autojump_clock: MockClock, tmp_path: Path, path: str
) -> None:
    async with socket_world(both(tmp_path, aliases=ALIASES)) as world:
        world.upstreams["a"].plays(json_response({"id": "r", "output": []}))
        body = b'{ "model":"quick", "input":[]}'
        assert (await world.ask(post(path, body))).status == 200
        assert world.upstreams["a"].asked[0].json() == {"model": NAMES["a"], "input": []}


################################################################
# CONFIGURATION
################################################################


def problems_of(accounts: Json = None, **pool: Json) -> list[str]:
    with pytest.raises(ConfigRefused) as caught:
        make_config(describe("a", accounts=accounts, pool=pool))
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("models", "place"),
    [
        ({}, ""), ({"": "m"}, ""), ({"\n": "m"}, ""), ({"x" * 201: "m"}, ""), ("m", ""), (7, ""),
        ({"m": ""}, ".m"), ({"m": 1}, ".m"), ({"m": None}, ".m"), ({"m": ["n"]}, ".m"),
        ({"m": "x" * 201}, ".m"), ({"ok": "ok", "m": "\u202e"}, ".m"), ([{"m": "n"}], "[0]"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_names_are_refused(models: Json, place: str) -> None:
    problems = problems_of({"a": {"models": models}})
    assert [problem.partition(": ")[0] for problem in problems] == [f"accounts.a.models{place}"]


@pytest.mark.parametrize(
    ("alias", "place"),
    [
        ({}, ".model"), ({"effort": "low"}, ".model"), ({"model": 1}, ".model"),
        ({"model": "m1", "effort": 1}, ".effort"), ({"model": "m1", "effort": ""}, ".effort"),
        ({"model": "m1", "effort": "High!"}, ".effort"), ({"model": "m1", "tier": "x"}, ".tier"),
        ({"model": "m1", "service_tier": True}, ".service_tier"), (["m1"], ""), (None, ""),
    ],
)  # fmt: skip
def test_an_alias_that_cannot_be_meant_is_refused(alias: Json, place: str) -> None:
    problems = problems_of(aliases={"small": alias})
    assert {problem.partition(": ")[0] for problem in problems} == {
        f"pools.home.aliases.small{place}"
    }


def test_an_alias_leads_to_a_model_of_the_pool_in_either_form() -> None:
    for target in ("m9", {"model": "m9", "effort": "low"}):
        [problem] = problems_of(models=["m1"], aliases={"small": target})
        assert problem.startswith("pools.home.aliases.small: ")


def test_names_are_taken_as_they_stand() -> None:
    names = {"Qwen 3 8B": "qwen3:8b", "模型": "m é/ü", "same": "same"}
    aliases = {"kurz": "Qwen 3 8B", "长": {"model": "模型", "effort": "low"}}
    config = make_config(
        describe("a", accounts={"a": {"models": names}}, pool={"aliases": aliases})
    )
    assert config.accounts["a"].models == names
    assert config.pools["home"].aliases == {
        "kurz": Alias("Qwen 3 8B"), "长": Alias("模型", effort="low"),
    }  # fmt: skip


KIB: Final = 1024


async def test_a_model_whose_member_s_name_is_escaped_is_renamed(
    autojump_clock: MockClock,
) -> None:
    described = describe("a", accounts={"a": {"models": {"m1": "vendor/m1"}}})
    async with opened_world(described) as world:
        world.upstreams["a"].plays(json_response({"id": "r"}))
        body = b'{"\\u006dodel":"m1","input":"x"}'
        assert (await world.ask(post("/v1/responses", body))).status == 200
        assert world.asked[0].json() == {"model": "vendor/m1", "input": "x"}


async def test_a_renamed_body_finds_room_or_is_refused(autojump_clock: MockClock) -> None:
    described = describe(
        "a",
        accounts={"a": {"models": {"m1": "vendor/m1"}}},
        limits={"bodies_bytes_max": 1024 * KIB, "body_bytes_max": 512 * KIB},
    )
    async with opened_world(described) as world:
        body = {"model": "m1", "input": "x" * (400 * KIB)}
        response = await world.ask(post("/v1/responses", body))
        assert (response.status, response.error["code"]) == (503, "pool_busy")
        assert world.asked == []


async def test_a_name_that_looks_like_a_status_is_not_listed_in_an_error(
    autojump_clock: MockClock,
) -> None:
    models = {"models": ["m-503"]}
    async with opened_world(describe("a", accounts={"a": models}, pool=models)) as world:
        response = await world.ask(ask_responses(model="x", stream=False))
        assert (response.status, response.error["code"]) == (400, "model_not_found")
        assert "503" not in response.error["message"]
