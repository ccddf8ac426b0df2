"""Proves that Codex CLI's tools (web search, images) and compaction pass as they came.

Method: scripted ChatGPT accounts, and one with an API key, behind the real server in virtual time.
Compared are bytes, both ways, and which account was asked.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from pooler import REPEATED_AFTER, ROUTES, parse_config
from tests.support.codex_backend import make_auth_file
from tests.support.memory_sockets import KEY, OTHER_KEY, Json, Pairs, Response, post
from tests.support.world import UNIX_START, Refuse, Step, World, json_response, sse_response

CODEX: Final = "/backend-api/codex"
BASES: Final = (CODEX, "/v1")
MODEL: Final = "gpt-5.5"
SEARCH, DRAW, EDIT = "/alpha/search", "/images/generations", "/images/edits"
COMPACT: Final = "/responses/compact"
# What Codex CLI sends; older ones name no model for a search, and for an edit it may be left out.
BODIES: Final[dict[str, Json]] = {
    SEARCH: {
        "id": "sess-1", "model": MODEL, "input": "trio", "settings": {"external_web_access": True},
        "commands": {"search_query": [{"q": "trio"}]}, "max_output_tokens": 1000,
    },
    DRAW: {"prompt": "a fox", "background": "auto", "model": "gpt-image-2", "size": "auto"},
    EDIT: {"images": [{"image_url": "data:image/png;base64,Zm9v"}], "prompt": "a hat"},
}  # fmt: skip
ANSWERS: Final[dict[str, bytes]] = {
    SEARCH: b'{"output": "FOUND",  "encrypted_output":null, "results": [1e2]}',
    DRAW: b'{"created": 1, "data":[{"b64_json": "' + b"QUJD" * 500_000 + b'"}]}',
    EDIT: b'{\n "data": [{"b64_json":"QUJD"}], "usage": {"input_tokens": 7, "output_tokens": 5}}',
}
every_tool = pytest.mark.parametrize("tool", BODIES)
every_base = pytest.mark.parametrize("base", BASES)
LIMITED: Final = json_response(
    {"error": {"type": "usage_limit_reached", "message": "x", "resets_in_seconds": 3000}}, 429
)


@asynccontextmanager
async def tools_world(
    folder: Path, codex: str = "ab", others: str = "", **pool: Json
) -> AsyncIterator[World]:
    """Codex accounts in that order of preference, then those with an API key."""
    accounts: dict[str, Json] = {}
    for at, name in enumerate(codex + others):
        accounts[name] = {"type": "openai", "api_key": f"sk-up-{name}", "models": [MODEL]}
        if name in codex:
            path = folder / f"{name}.json"
            make_auth_file(path, f"acct-{name}", expires_at=UNIX_START + 10**6)
            accounts[name] = {"type": "codex", "auth_file": str(path), "models": [MODEL]}
        base = CODEX if name in codex else "/v1"
        accounts[name] |= {"base_url": f"http://127.0.0.1:{9001 + at}{base}", "priority": at}
    home = {
        "accounts": list(accounts),
        "models": [MODEL],
        "keys": {"laptop": KEY, "ci": {"key": OTHER_KEY, "models": [MODEL]}},
    }
    whole = {"accounts": accounts, "pools": {"home": home | pool}}
    config = parse_config(json.dumps(whole).encode(), {}, str)
    async with trio.open_nursery() as nursery:
        world = World(config, nursery)
        for upstream in world.upstreams.values():
            upstream.catalogue = json_response({"models": []})
        world.start()
        await world.settle()
        yield world
        await world.close()
        nursery.cancel_scope.cancel()


def asked_of(world: World) -> list[str]:
    """The account that each attempt was made with."""
    return [tried["account"] for record in world.records for tried in record["attempts"]]


async def ask(
    world: World, path: str, body: Json, script: list[Step], *, headers: Pairs = (), key: str = KEY
) -> Response:
    for upstream in world.upstreams.values():
        upstream.always = script
    return await world.ask(post(path, body, key=key, headers=headers))


################################################################
# TOOLS
################################################################


@every_base
@every_tool
async def test_a_tool_of_codex_passes_to_the_byte(
    autojump_clock: MockClock, tmp_path: Path, base: str, tool: str
) -> None:
    raw = json.dumps(BODIES[tool], indent=1).encode()
    async with tools_world(tmp_path, others="o") as world:
        response = await ask(world, base + tool, raw, json_response(ANSWERS[tool]))
        assert (response.status, response.body) == (200, ANSWERS[tool])
        assert response.header("content-type") == "application/json"
        [asked] = world.asked
        assert (asked.method, asked.target, asked.body) == ("POST", CODEX + tool, raw)
        assert asked.header("authorization") != f"Bearer {KEY}"
        assert asked_of(world) == ["a"]
        record = world.records[-1]
        assert (record["status"], record["code"], record["stream"]) == (200, None, False)


@every_base
@every_tool
async def test_a_tool_is_no_business_of_an_account_with_an_api_key(
    autojump_clock: MockClock, tmp_path: Path, base: str, tool: str
) -> None:
    async with tools_world(tmp_path, codex="", others="o") as world:
        response = await ask(world, base + tool, BODIES[tool], json_response({}))
        assert (response.status, response.error["code"]) == (404, "unsupported_endpoint")
        assert "ChatGPT accounts" in response.error["message"]
        assert world.asked == []
    async with tools_world(tmp_path, others="o") as world:
        response = await ask(world, base + tool, BODIES[tool], LIMITED)
        assert (response.status, response.error["code"]) == (429, "usage_limit_reached")
        assert response.error["resets_in_seconds"] > 2000
        assert asked_of(world) == ["a", "b"]


@every_tool
@pytest.mark.parametrize(
    ("script", "is_moved"),
    [
        (LIMITED, True),
        (json_response({"detail": "x"}, 403), True),
        (json_response({"error": {"message": "x", "code": "moderation_blocked"}}, 400), False),
    ],
)
async def test_a_tool_goes_elsewhere_when_its_account_cannot(
    autojump_clock: MockClock, tmp_path: Path, tool: str, script: list[Step], is_moved: bool
) -> None:
    async with tools_world(tmp_path) as world:
        world.upstreams["a"].plays(script)
        response = await ask(world, CODEX + tool, BODIES[tool], json_response(ANSWERS[tool]))
        assert response.status == (200 if is_moved else 400)
        assert asked_of(world) == (["a", "b"] if is_moved else ["a"])
        if not is_moved:
            assert response.error["code"] == "moderation_blocked"


@every_tool
@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "text/plain", "application/octet-stream", ""]
)
async def test_a_tool_takes_json_alone(
    autojump_clock: MockClock, tmp_path: Path, tool: str, kind: str
) -> None:
    raw = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na hat\r\n--x--\r\n'
    lines = [
        f"POST /v1{tool} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}",
        f"Content-Length: {len(raw)}", *([f"Content-Type: {kind}"] if kind else []), "", "",
    ]  # fmt: skip
    async with tools_world(tmp_path) as world:
        response = await world.ask("\r\n".join(lines).encode() + raw)
        assert (response.status, response.error["code"]) == (415, "unsupported_media_type")
        assert world.asked == []


@every_tool
async def test_a_tool_answers_in_one_piece_or_says_so(
    autojump_clock: MockClock, tmp_path: Path, tool: str
) -> None:
    async with tools_world(tmp_path) as world:
        body = BODIES[tool] | {"stream": True}
        response = await ask(world, CODEX + tool, body, json_response({}))
        assert (response.status, response.error["param"]) == (400, "stream")
        assert world.asked == []
        body = BODIES[tool] | {"stream": False}
        script = sse_response([{"type": "image_generation.completed"}])
        response = await ask(world, CODEX + tool, body, script)
        assert (response.status, response.error["code"]) == (502, "upstream_invalid_response")


MODELS: Final[dict[str, tuple[Json, str, dict[str, Json]]]] = {
    "named": (MODEL, KEY, {SEARCH: MODEL, DRAW: MODEL, EDIT: MODEL}),
    "alias": ("fast", KEY, {SEARCH: MODEL, DRAW: MODEL, EDIT: MODEL}),
    "none": (None, KEY, {SEARCH: None, DRAW: None, EDIT: None}),
    "not-listed": ("gpt-image-2", KEY, {DRAW: "gpt-image-2", EDIT: "gpt-image-2"}),
    "of-the-key": (MODEL, OTHER_KEY, {SEARCH: MODEL, DRAW: MODEL, EDIT: MODEL}),
    "not-of-the-key": ("gpt-image-2", OTHER_KEY, {}),
    "none-for-the-key": (None, OTHER_KEY, {SEARCH: None}),
    "no-text": (7, KEY, {}),
    "empty": ("", KEY, {}),
}


@every_tool
@pytest.mark.parametrize("name", MODELS)
async def test_a_tool_may_leave_its_model_to_the_upstream(
    autojump_clock: MockClock, tmp_path: Path, tool: str, name: str
) -> None:
    model, key, sent = MODELS[name]
    body = {member: value for member, value in BODIES[tool].items() if member != "model"}
    body |= {} if model is None else {"model": model}
    async with tools_world(tmp_path, aliases={"fast": MODEL}) as world:
        answer = json_response(ANSWERS[tool])
        response = await ask(world, f"/v1{tool}", body, answer, key=key)
        if tool in sent:
            assert (response.status, response.body) == (200, ANSWERS[tool])
            assert [one.json().get("model") for one in world.asked] == [sent[tool]]
        else:
            assert (response.status, response.error["param"]) == (400, "model")
            assert world.asked == []


################################################################
# A SEARCH AND ITS SESSION
################################################################

DONE: Final = {"type": "response.completed", "response": {"id": "r", "output": []}}
TURN: Final[Json] = {"model": MODEL, "input": [], "stream": True}
# How the turns of a session name it, whose searches say nothing but its id.
TURNS: Final[dict[str, Pairs]] = {
    "session": [("session-id", "ID")],
    "codex": [("x-codex-window-id", "ID:0"), ("session-id", "ID"), ("thread-id", "ID")],
    "older-codex": [("x-codex-session-id", "x"), ("session-id", "ID")],
    "body": [],
}


@pytest.mark.parametrize("base", [CODEX, "/v1"])
@pytest.mark.parametrize("name", TURNS)
async def test_a_search_goes_where_the_turns_of_its_session_go(
    autojump_clock: MockClock, tmp_path: Path, name: str, base: str
) -> None:
    async with tools_world(tmp_path) as world:
        world.upstreams["a"].plays(LIMITED)
        turn = TURN | ({} if TURNS[name] else {"prompt_cache_key": "ID"})
        answer = sse_response([DONE])
        await ask(world, f"{base}/responses", turn, answer, headers=TURNS[name])
        await trio.sleep_until(trio.current_time() + 4000)  # both are well again
        for body in (BODIES[SEARCH] | {"id": "ID"}, {"id": "ID"}, BODIES[SEARCH]):
            await ask(world, base + SEARCH, body, json_response(ANSWERS[SEARCH]))
        assert asked_of(world) == ["a", "b", "b", "b", "a"]


@every_base
async def test_searches_of_one_session_go_to_one_account(
    autojump_clock: MockClock, tmp_path: Path, base: str
) -> None:
    async with tools_world(tmp_path) as world:
        world.upstreams["a"].plays(LIMITED)
        for number in (1, 1, 2):
            body = BODIES[SEARCH] | {"id": f"s{number}"}
            await ask(world, base + SEARCH, body, json_response(ANSWERS[SEARCH]))
            await trio.sleep_until(trio.current_time() + 4000)
        assert asked_of(world) == ["a", "b", "b", "a"]


async def test_a_search_stays_with_the_turns_that_moved(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    turn, headers = TURN, TURNS["codex"]
    body = BODIES[SEARCH] | {"id": "ID"}
    async with tools_world(tmp_path, codex="abc") as world:
        world.upstreams["a"].plays(LIMITED)
        await ask(world, f"{CODEX}/responses", turn, sse_response([DONE]), headers=headers)
        assert asked_of(world) == ["a", "b"]
        world.upstreams["b"].plays(LIMITED)
        await ask(world, f"{CODEX}/responses", turn, sse_response([DONE]), headers=headers)
        assert asked_of(world)[2:] == ["b", "c"]
        await trio.sleep_until(trio.current_time() + 4000)  # all are well again
        for path, expected in ((f"{CODEX}{SEARCH}", "c"), (f"/v1{SEARCH}", "c")):
            await ask(world, path, body, json_response(ANSWERS[SEARCH]))
            assert asked_of(world)[-1] == expected
        # A subagent's thread is not its session's own: it does not take the searches along.
        world.upstreams["a"].plays(LIMITED)
        sub = [("x-codex-window-id", "SUB:0"), ("session-id", "ID"), ("thread-id", "SUB")]
        await ask(world, f"{CODEX}/responses", turn, sse_response([DONE]), headers=sub)
        assert asked_of(world)[-2:] == ["a", "b"]
        await ask(world, f"/v1{SEARCH}", body, json_response(ANSWERS[SEARCH]))
        assert asked_of(world)[-1] == "c"


async def test_sessions_of_two_keys_are_two(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with tools_world(tmp_path) as world:
        world.upstreams["a"].plays(LIMITED)
        await ask(world, f"/v1{SEARCH}", BODIES[SEARCH], json_response(ANSWERS[SEARCH]))
        await trio.sleep_until(trio.current_time() + 4000)
        for key, expected in ((KEY, "b"), (OTHER_KEY, "a")):
            body = BODIES[SEARCH]
            await ask(world, f"/v1{SEARCH}", body, json_response(ANSWERS[SEARCH]), key=key)
            assert asked_of(world)[-1] == expected


@pytest.mark.parametrize("named", [7, None, ["sess-1"], {"a": 1}, ""])
async def test_an_id_that_is_no_text_names_no_session(
    autojump_clock: MockClock, tmp_path: Path, named: Json
) -> None:
    async with tools_world(tmp_path) as world:
        body = BODIES[SEARCH] | {"id": named}
        response = await ask(world, f"/v1{SEARCH}", body, json_response(ANSWERS[SEARCH]))
        assert response.status == 200
        assert world.asked[0].json() == body
        assert not world.server.shared.roster.sessions.pins


################################################################
# COMPACTION BELOW /V1
################################################################

HISTORY: Final[Json] = {
    "model": MODEL, "instructions": "x", "temperature": 0.5,
    "input": [{"role": "user", "content": "x"}, {"type": "unknown", "a": [1]}],
}  # fmt: skip
COMPACTED: Final = (
    b'{"id":"resp_1",  "object":"response.compaction", "output":[{"type":"compaction",'
    b'"id":"cmp_1","encrypted_content":"gAAAA"}],"usage":{"input_tokens":9,"output_tokens":4}}'
)
SIDES: Final = {"codex": ("a", "", CODEX), "openai": ("", "o", "/v1")}


@pytest.mark.parametrize("is_stream", [None, False, True])
@pytest.mark.parametrize("side", SIDES)
async def test_a_compaction_passes_to_the_byte_to_accounts_of_both_types(
    autojump_clock: MockClock, tmp_path: Path, side: str, is_stream: bool | None
) -> None:
    codex, others, base = SIDES[side]
    body = HISTORY | ({} if is_stream is None else {"stream": is_stream})
    raw = json.dumps(body, indent=1).encode()
    async with tools_world(tmp_path, codex, others) as world:
        response = await ask(world, f"/v1{COMPACT}", raw, json_response(COMPACTED))
        assert (response.status, response.body) == (200, COMPACTED)
        [asked] = world.asked
        assert (asked.method, asked.target, asked.body) == ("POST", base + COMPACT, raw)
        record = world.records[-1]
        assert (record["route"], record["transport"]) == ("compact", "http")
        assert (record["tokens"]["input_tokens"], record["tokens"]["output_tokens"]) == (9, 4)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"error": {"message": "Bad.", "code": "c", "type": "t"}}, "Bad."),
        ({"detail": "No."}, "No."),
    ],
)
async def test_a_refused_compaction_is_told_in_the_shape_of_openai(
    autojump_clock: MockClock, tmp_path: Path, side: str, content: Json, message: str
) -> None:
    codex, others, _ = SIDES[side]
    async with tools_world(tmp_path, codex, others) as world:
        response = await ask(world, f"/v1{COMPACT}", HISTORY, json_response(content, 400))
        assert response.status == 400
        if side == "codex" or "error" in content:
            assert response.error["message"] == message
        else:
            assert response.json() == content  # an API key's answer is handed on


@pytest.mark.parametrize(
    ("first", "second", "asked"),
    [
        (LIMITED, None, ["a", "o"]),
        (json_response({"error": {"message": "x"}}, 503), 503, ["a"]),
        (json_response({"detail": {"code": "deactivated_workspace"}}, 402), None, ["a", "o"]),
    ],
)
async def test_a_compaction_that_was_begun_is_not_begun_elsewhere(
    autojump_clock: MockClock,
    tmp_path: Path,
    first: list[Step],
    second: int | None,
    asked: list[str],
) -> None:
    async with tools_world(tmp_path, "a", "o") as world:
        world.upstreams["a"].plays(first)
        world.upstreams["o"].plays(json_response(COMPACTED))
        response = await world.ask(post(f"/v1{COMPACT}", HISTORY))
        assert response.status == (second or 200)
        assert asked_of(world) == asked


FAILURES: Final[dict[str, list[Step]]] = {
    **{
        str(status): json_response({"error": {"message": "x"}}, status)
        for status in (500, 502, 503, 520, 521, 529)
    },
    "in-a-200": json_response({"error": {"code": "server_error", "message": "x"}}),
}
NOT_BEGUN: Final[dict[str, list[Step]]] = {
    "limited": LIMITED,
    "out-of-credit": json_response({"detail": {"code": "deactivated_workspace"}}, 402),
    "lacks-it": json_response({"detail": "Not Found"}, 404),
}


@every_base
@every_tool
@pytest.mark.parametrize("failure", FAILURES)
async def test_what_costs_again_is_not_repeated_after_an_upstream_may_have_begun(
    autojump_clock: MockClock, tmp_path: Path, failure: str, tool: str, base: str
) -> None:
    """An image is paid for each time that it is made; a search only reads."""
    async with tools_world(tmp_path) as world:
        world.upstreams["a"].plays(FAILURES[failure])
        world.upstreams["b"].plays(json_response({"id": "r", "output": []}))
        response = await world.ask(post(f"{base}{tool}", BODIES[tool]))
        is_repeated = tool == SEARCH
        assert asked_of(world) == (["a", "b"] if is_repeated else ["a"])
        assert (response.status == 200) is is_repeated


@pytest.mark.parametrize("tool", [*BODIES, COMPACT])
@pytest.mark.parametrize("failure", [*NOT_BEGUN, "unreached"])
async def test_what_was_not_begun_is_done_by_another_account(
    autojump_clock: MockClock, tmp_path: Path, failure: str, tool: str
) -> None:
    async with tools_world(tmp_path) as world:
        if failure == "unreached":
            world.upstreams["a"].dials.append(Refuse())
        else:
            world.upstreams["a"].plays(NOT_BEGUN[failure])
        world.upstreams["b"].plays(json_response({"id": "r", "output": []}))
        response = await world.ask(post(f"{CODEX}{tool}", BODIES.get(tool, HISTORY)))
        assert response.status == 200
        assert world.records[-1]["account"] == "b"


def test_of_every_call_is_settled_after_what_it_is_repeated() -> None:
    paths = {route.upstream_path for route in ROUTES if route.handler.startswith("accept_")}
    assert set(REPEATED_AFTER) == paths


async def test_a_compaction_of_a_stored_response_goes_to_who_can_have_stored_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    body = HISTORY | {"previous_response_id": "resp_0"}
    async with tools_world(tmp_path, "a", "o") as world:
        response = await ask(world, f"/v1{COMPACT}", body, json_response(COMPACTED))
        assert response.status == 200
        assert (asked_of(world), world.asked[0].json()) == (["o"], body)
    async with tools_world(tmp_path, "a") as world:
        response = await ask(world, f"/v1{COMPACT}", body, json_response(COMPACTED))
        assert (response.status, response.error["param"]) == (400, "previous_response_id")
        assert world.asked == []


@pytest.mark.parametrize("side", SIDES)
async def test_an_alias_is_a_compaction_s_too(
    autojump_clock: MockClock, tmp_path: Path, side: str
) -> None:
    codex, others, _ = SIDES[side]
    async with tools_world(tmp_path, codex, others, aliases={"fast": MODEL}) as world:
        body = HISTORY | {"model": "fast"}
        await ask(world, f"/v1{COMPACT}", body, json_response(COMPACTED))
        assert world.asked[0].json() == HISTORY
        response = await ask(world, f"/v1{COMPACT}", HISTORY | {"model": "no"}, json_response({}))
        assert (response.status, response.error["code"]) == (400, "model_not_found")
