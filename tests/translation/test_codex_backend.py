"""Proves that the Codex backend of the tests refuses what the real one is known to refuse.

Method: a good request, over a real socket, and then the same with one fault at a time; the facts
are F2 to F13, F17 and F52 to F54.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

import pytest
import trio

from tests.support.codex_backend import CLIENT_ID, CodexBackend, make_auth_file, make_token
from tests.support.codex_turns import (
    ANSWER,
    ERRORS,
    FOUND,
    LITE,
    MODELS,
    Json,
    Login,
    Play,
    TokenPlay,
)
from tests.support.memory_sockets import Client, MemorySocket, Pairs, Response, post, request

RESPONSES: Final = "/backend-api/codex/responses"
COMPACT: Final = f"{RESPONSES}/compact"
SEARCH: Final = "/backend-api/codex/alpha/search"
TOKENS: Final = "/oauth/token"
SECONDS_MAX: Final = 10
FAR_UNIX: Final = 4_000_000_000
GOOD: Final = Login("acct-a", make_token("acct-a", "plus", FAR_UNIX), "rt-acct-a-1")
STALE: Final = replace(GOOD, access_token=make_token("acct-a", "plus", 1))
USER: Final = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
SCHEMA: Final = {"type": "object", "properties": {}}
TOOL: Final = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}
CUSTOM: Final = {"type": "custom", "name": "patch"}
CALL: Final = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
RESULT: Final = {"type": "function_call_output", "call_id": "c", "output": "seen"}
TRIGGER: Final = {"type": "compaction_trigger"}
BODY: Final[dict[str, Json]] = {
    "model": "gpt-5.5",
    "instructions": "",
    "input": [USER],
    "store": False,
    "stream": True,
}


class Caller:
    """A connection to the backend, with a good login's headers."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def post(self, path: str, body: Json, headers: Pairs | None = None) -> Response:
        if headers is None:
            headers = [("chatgpt-account-id", GOOD.account_id)]
        is_own = any(name == "authorization" for name, _ in headers)
        key = None if is_own else GOOD.access_token
        return await self.client.ask(post(path, body, key=key, headers=headers))

    async def events(self, **more: Json) -> list[dict[str, Json]]:
        answer = await self.post(RESPONSES, BODY | more)
        assert answer.status == 200, answer.body
        blocks = answer.body.decode().replace("\r\n", "\n").split("\n\n")[:-1]
        return [json.loads(block.partition("\ndata: ")[2]) for block in blocks]


@asynccontextmanager
async def opened_backend(*plays: Play) -> AsyncIterator[tuple[CodexBackend, Caller]]:
    backend = CodexBackend()
    backend.admit(GOOD)
    backend.plays += plays
    async with trio.open_nursery() as nursery:
        origin = await nursery.start(backend.listen)
        stream = await trio.open_tcp_stream("127.0.0.1", urlsplit(origin).port or 0)
        async with stream:
            # The client reads any stream; only its `reset` wants one in memory.
            yield backend, Caller(Client(cast("MemorySocket", stream)))
        nursery.cancel_scope.cancel()


def shown(answer: Response) -> tuple[int, str]:
    """The status; and the detail, or the code and the param of the error, or its message."""
    body = answer.json()
    if "detail" in body:
        return answer.status, f"detail: {body['detail']}"
    error = body["error"]
    told = [error["code"] or error["message"], *([error["param"]] if error["param"] else [])]
    return answer.status, " ".join(told)


################################################################
# REFUSALS
################################################################


def without(name: str) -> Json:
    return {key: value for key, value in BODY.items() if key != name}


def says(role: str, part: Json) -> Json:
    return {"input": [{"role": role, "content": [part]}]}


INPUT_TEXT: Final = {"type": "input_text", "text": "hi"}
ITEM: Final = "Item with id"
FAULTS: Final[list[tuple[Json, int, str]]] = [
    (without("instructions"), 400, "detail: Instructions are required"),
    (without("store"), 400, "detail: Store must be set to false"),
    (BODY | {"store": True}, 400, "detail: Store must be set to false"),
    (without("stream"), 400, "detail: Stream must be set to true"),
    (without("model"), 400, "model is not supported when using Codex"),
    (BODY | {"model": "gpt-other"}, 400, "model is not supported when using Codex"),
    (without("input"), 400, "detail: Input must be a list"),
    (BODY | {"input": "hi"}, 400, "detail: Input must be a list"),
    ([], 400, "detail: Bad Request"),
    *(
        (BODY | {name: 1}, 400, f"detail: Unsupported parameter: {name}")
        for name in (
            "max_output_tokens max_completion_tokens max_tokens temperature top_p seed metadata "
            "presence_penalty frequency_penalty top_logprobs truncation user "
            "prompt_cache_retention safety_identifier stream_options background conversation "
            "prompt previous_response_id max_tool_calls messages generate anything"
        ).split()
    ),
    *(
        (BODY | {"service_tier": tier}, 400, f"detail: Unsupported service_tier: {tier}")
        for tier in ("fast", "flex", "auto", "default")
    ),
    (BODY | {"reasoning": {"effort": "minimal"}}, 400, "unsupported_value reasoning.effort"),
    *(
        (BODY | {"input": [item]}, 400, "unknown_parameter input[0]")
        for item in (
            {"type": "configuration_update", "reasoning": {"effort": "low"}},
            {"type": "additional_tools", "role": "developer", "tools": []},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
            | {"namespace": "functions"},
        )
    ),
    (BODY | says("system", INPUT_TEXT), 400, "detail: System messages are not allowed"),
    (BODY | says("tool", INPUT_TEXT), 400, "invalid_value input[0].role"),
    (BODY | says("user", {"type": "text"}), 400, "invalid_value input[0].content[0].type"),
    (BODY | says("assistant", INPUT_TEXT), 400, "invalid_value input[0].content[0].type"),
    (
        BODY | says("user", {"type": "input_image", "image_url": {"url": "x"}}),
        400,
        "invalid_type input[0].content[0].image_url",
    ),
    (BODY | {"input": [USER | {"content": "hi"}]}, 400, "invalid_type input[0].content"),
    (BODY | {"input": [USER | {"id": "msg_1"}]}, 404, ITEM),
    (BODY | {"input": [{"type": "item_reference", "id": "rs_1"}]}, 404, ITEM),
    (BODY | {"input": [{"type": "thought"}]}, 400, "invalid_value input[0].type"),
    (BODY | {"input": [CALL | {"status": "completed"}, RESULT]}, 400, "unknown_parameter"),
    (BODY | {"input": [USER | {"reasoning_content": "x"}]}, 400, "unknown_parameter"),
    (BODY | {"input": [RESULT]}, 400, "No tool call found"),
    (BODY | {"input": [TRIGGER, USER]}, 400, "invalid_value input[0]"),
    *(
        (BODY | {"input": [{"type": "reasoning"} | thought]}, status, told)
        for thought, status, told in (
            ({"summary": [], "status": None}, 400, "unknown_parameter input[0].status"),
            ({"encrypted_content": "x"}, 400, "missing_required_parameter input[0].summary"),
            ({"summary": [], "content": [{}]}, 400, "array_above_max_length input[0].content"),
            ({"summary": []}, 404, ITEM),
        )
    ),
    (BODY | {"input": [CALL | {"call_id": "c" * 65}]}, 400, "string_above_max_length"),
    (BODY | {"prompt_cache_key": "c" * 65}, 400, "string_above_max_length prompt_cache_key"),
    (BODY | {"text": {"format": {"type": "json_object"}}}, 400, "must contain the word 'json'"),
    (BODY | {"tools": [TOOL], "tool_choice": {"type": "auto"}}, 400, "tool_choice.type"),
    *(
        (BODY | {"tools": [tool]}, 400, f"invalid_function_parameters {place}.parameters")
        for tool, place in (
            (TOOL | {"parameters": {"type": "object"}}, "tools[0]"),
            ({"type": "namespace", "tools": [TOOL | {"parameters": {}}]}, "tools[0].tools[0]"),
        )
    ),
    (
        BODY | {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "gAAAAx"}]},
        400,
        "invalid_encrypted_content",
    ),
    (BODY | {"tools": [{"type": "mcp"}]}, 400, "invalid_value tools[0].type"),
    (BODY | {"tools": [{"type": "web_search_preview"}]}, 400, "invalid_value tools[0].type"),
    (
        BODY | {"tools": [{"type": "function", "function": {"name": "look"}}]},
        400,
        "missing_required_parameter tools[0].name",
    ),
    (
        BODY | {"tools": [TOOL], "tool_choice": {"type": "function", "function": {}}},
        400,
        "missing_required_parameter tool_choice.name",
    ),
    (
        BODY | {"text": {"format": {"type": "json_schema", "json_schema": {}}}},
        400,
        "missing_required_parameter text.format.name",
    ),
]


async def test_each_fault_of_a_body_is_refused() -> None:
    async with opened_backend() as (_, caller):
        for body, status, told in FAULTS:
            found = shown(await caller.post(RESPONSES, body))
            assert (found[0], told in found[1]) == (status, True), (body, found)


@pytest.mark.parametrize(
    ("headers", "status", "told"),
    [
        ([("authorization", "")], 401, "detail: Unauthorized"),
        ([("authorization", "Bearer sk-x")], 401, "token_invalidated"),
        ([("authorization", f"Bearer {STALE.access_token}")], 401, "token_expired"),
        ([], 403, "detail: The account does not match the token."),
        ([("chatgpt-account-id", "acct-b")], 403, "detail: The account does not match"),
    ],
)
async def test_a_wrong_login_is_refused(headers: Pairs, status: int, told: str) -> None:
    async with opened_backend() as (backend, caller):
        backend.logins[STALE.access_token] = STALE
        headers = [(name, value or "Basic x") for name, value in headers]
        found = shown(await caller.post(RESPONSES, BODY, headers))
        assert (found[0], told in found[1]) == (status, True), found


async def test_other_routes_and_bodies_are_refused() -> None:
    async with opened_backend() as (_, caller):
        for path in ("/v1/responses", "/backend-api/codex/chat/completions", "/"):
            assert shown(await caller.post(path, BODY)) == (404, "detail: Not Found")
        compact = {name: BODY[name] for name in ("model", "instructions", "input")}
        assert (await caller.post(COMPACT, compact)).json()["output"][0]["type"] == "compaction"
        for name in ("store", "stream", "include", "tool_choice", "client_metadata"):
            found = shown(await caller.post(COMPACT, compact | {name: False}))
            assert found == (400, f"detail: Unsupported parameter: {name}")


@pytest.mark.parametrize("name", ERRORS)
async def test_each_error_can_be_played(name: str) -> None:
    async with opened_backend(Play(error=name)) as (_, caller):
        thought = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAx"}
        is_encrypted = name.startswith("encrypted")
        body = BODY | ({"input": [thought, USER]} if is_encrypted else {})
        refused = await caller.post(RESPONSES, body)
        assert refused.status >= 400
        assert (await caller.post(RESPONSES, BODY)).status == 200  # and then it is over
        if name == "usage_limit":
            error = refused.error
            assert (error["type"], error["plan_type"]) == ("usage_limit_reached", "plus")
            assert refused.header("x-codex-primary-reset-at") == str(error["resets_at"])
            assert "code" not in error


################################################################
# ANSWERS
################################################################


async def test_a_good_request_is_answered_and_seen() -> None:
    async with opened_backend() as (backend, caller):
        events = await caller.events()
        deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
        assert ("".join(deltas), len(deltas) > 1) == (ANSWER, True)
        assert [event["sequence_number"] for event in events] == [*range(len(events))]
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == ANSWER
        (seen,) = backend.asked()
        assert (seen.account, seen.body) == (GOOD.account_id, BODY)


@pytest.mark.parametrize(
    ("tool", "kind", "key"),
    [(TOOL, "function_call", "arguments"), (CUSTOM, "custom_tool_call", "input")],
)
async def test_a_tool_loop_with_what_was_thought(tool: Json, kind: str, key: str) -> None:
    play = Play(tool="*", arguments="x")
    async with opened_backend(play) as (_, caller):
        events = await caller.events(tools=[tool])
        thought, call = events[-1]["response"]["output"]
        assert (thought["type"], call["type"], call["name"]) == ("reasoning", kind, tool["name"])
        assert call[key] in {"x", '"x"'}
        history = [
            {name: item[name] for name in item if name not in {"id", "status"}}
            for item in (thought, call)
        ]
        result = {"type": f"{kind}_output", "call_id": call["call_id"], "output": "seen"}
        again = await caller.events(tools=[tool], input=[USER, *history, result])
        assert again[-1]["response"]["output"][0]["type"] == "message"


async def test_compaction_structure_and_refusal() -> None:
    async with opened_backend(Play(), Play(), Play(refusal="No.")) as (_, caller):
        compacted = await caller.events(input=[USER, TRIGGER])
        (item,) = compacted[-1]["response"]["output"]
        assert (item["type"], item["encrypted_content"][:5]) == ("compaction", "gAAAA")
        schema = {"type": "object", "properties": {"fruit": {"type": "string"}}}
        form = {"type": "json_schema", "name": "jam", "strict": True, "schema": schema}
        events = await caller.events(text={"format": form})
        (said,) = events[-1]["response"]["output"][0]["content"]
        assert json.loads(said["text"]) == {"fruit": "quinces"}
        refused = await caller.events()
        assert "response.refusal.delta" in [event["type"] for event in refused]


async def test_the_ways_of_a_stream() -> None:
    plays = [
        Play(has_null_output=True, has_content_type=False, newline="\r\n"),
        Play(has_extra_events=True, has_one_delta=True, repeat=1000),
        Play(ends="response.failed", after="handshake"),
        Play(ends="quiet"),
    ]
    async with opened_backend(*plays) as (_, caller):
        bare = await caller.post(RESPONSES, BODY)
        assert bare.header("content-type") is None
        assert bare.header("x-codex-turn-state") == "sticky-backend-1-acct-a"
        assert bare.body.count(b'"output": null') == 3
        assert b"\r\n\r\n" in bare.body
        types = [event["type"] for event in await caller.events()]
        assert types.count("response.output_text.delta") == 1
        assert types[2:5] == ["codex.rate_limits", "response.metadata", "keepalive"]
        failed = await caller.events()
        assert [event["type"] for event in failed[2:]] == ["response.failed"]
        assert failed[-1]["response"]["error"]["code"] == "server_is_overloaded"
        assert (await caller.events())[-1]["type"] == "response.output_text.delta"


async def test_codex_itself_may_send_ids_and_no_instructions() -> None:
    async with opened_backend() as (_, caller):
        body = without("instructions") | {"client_metadata": {}}
        found = await caller.post(RESPONSES, body | {"input": [USER | {"id": "msg_1"}]})
        assert found.status == 200


async def test_a_packed_body_and_a_caller_that_leaves() -> None:
    async with opened_backend(Play(ends="stall")) as (backend, caller):
        packed = gzip.compress(json.dumps(BODY).encode())
        own = [("chatgpt-account-id", GOOD.account_id), ("content-encoding", "gzip")]
        asked = post(RESPONSES, packed, key=GOOD.access_token, headers=own)
        await caller.client.send(asked)
        assert (await caller.client.read_head()).status == 200
        await caller.client.hang_up()
        with trio.fail_after(SECONDS_MAX):
            await backend.left.wait()
        assert backend.seen[0].body == BODY


async def test_a_lite_turn_must_bear_its_mark_and_its_form() -> None:
    update = {"type": "configuration_update", "reasoning": {"effort": "low"}}
    body = BODY | {"input": [update]}
    form = {"reasoning": {"context": "all_turns"}, "parallel_tool_calls": False}
    async with opened_backend() as (_, caller):
        mark = [(LITE, "true"), ("chatgpt-account-id", GOOD.account_id)]
        fault = (400, "unsupported_value reasoning.context")
        assert shown(await caller.post(RESPONSES, body, mark)) == fault
        assert (await caller.post(RESPONSES, body | form, mark)).status == 200


async def test_a_search_is_answered_if_it_has_nothing_of_a_turn() -> None:
    body = {"id": "sess-1", "model": "gpt-6.2-sol", "commands": {"search_query": [{"q": "x"}]}}
    faults: list[tuple[Json, str]] = [
        (body | {"prompt_cache_key": "sess-1"}, "unknown_parameter prompt_cache_key"),
        (body | {"stream": True}, "unknown_parameter stream"),
        ({"id": "sess-1"}, "missing_required_parameter commands"),
        ([], "detail: Bad Request"),
    ]
    async with opened_backend(Play(at="search", error="usage_limit")) as (_, caller):
        for bad, fault in faults:
            assert shown(await caller.post(SEARCH, bad)) == (400, fault)
        assert (await caller.post(SEARCH, body)).status == 429
        assert (await caller.post(SEARCH, body)).json()["output"] == FOUND


async def test_what_is_said_before_the_answer_is_marked() -> None:
    async with opened_backend(Play(commentary="Let me see.")) as (_, caller):
        items = (await caller.events())[-1]["response"]["output"]
    told = [(item["phase"], item["content"][0]["text"]) for item in items]
    assert told == [("commentary", "Let me see."), ("final_answer", ANSWER)]


async def test_the_models_are_told_to_a_known_version() -> None:
    async with opened_backend() as (_, caller):
        own = [("chatgpt-account-id", GOOD.account_id)]
        for query, slugs in (("", []), ("?client_version=0.169.0", [*MODELS])):
            path = f"/backend-api/codex/models{query}"
            asked = request("GET", path, key=GOOD.access_token, headers=own)
            models = (await caller.client.ask(asked)).json()["models"]
            assert [model["slug"] for model in models] == slugs


################################################################
# TOKENS
################################################################


def refresh(token: str, **more: Json) -> Json:
    form = {"client_id": CLIENT_ID, "grant_type": "refresh_token", "refresh_token": token}
    return form | more


async def test_a_refresh_token_is_good_for_one_use() -> None:
    async with opened_backend() as (_, caller):
        for wrong in ({"client_id": "x"}, {"grant_type": "x"}):
            found = await caller.post(TOKENS, refresh(GOOD.refresh_token, **wrong), [])
            assert found.status == 400
        renewed = (await caller.post(TOKENS, refresh(GOOD.refresh_token), [])).json()
        again = await caller.post(TOKENS, refresh(GOOD.refresh_token), [])
        assert shown(again) == (401, "refresh_token_reused")
        unknown = await caller.post(TOKENS, refresh("rt-x"), [])
        assert shown(unknown) == (401, "refresh_token_invalidated")
        bearer = ("authorization", f"Bearer {renewed['access_token']}")
        own = ("chatgpt-account-id", GOOD.account_id)
        assert (await caller.post(RESPONSES, BODY, [bearer, own])).status == 200
        more = await caller.post(TOKENS, refresh(renewed["refresh_token"]), [])
        assert more.json()["refresh_token"] == "rt-acct-a-3"


async def test_a_refresh_can_fail_in_each_shape() -> None:
    async with opened_backend() as (backend, caller):
        for shape in ("object", "string", "top"):
            backend.token_plays.append(TokenPlay(400, "refresh_token_expired", shape))
            failed = await caller.post(TOKENS, refresh(GOOD.refresh_token), [])
            assert (failed.status, b"refresh_token_expired" in failed.body) == (400, True)
        assert GOOD.refresh_token not in backend.spent
        backend.token_plays.append(TokenPlay(0, is_spent=True))
        await caller.client.send(post(TOKENS, refresh(GOOD.refresh_token)))
        assert await caller.client.wait_closed() == b""
        assert GOOD.refresh_token in backend.spent


async def test_it_can_be_told_and_asked_from_outside(tmp_path: Path) -> None:
    async with opened_backend() as (backend, caller):
        login = make_auth_file(tmp_path / "a" / "auth.json", "acct-b", "pro", auth_mode="chatgpt")
        told = {"forget": True, "logins": [asdict(login)], "plays": [{"status": 418, "body": {}}]}
        assert (await caller.post("/_control", told)).status == 200
        assert (backend.logins, backend.plays[0].status) == ({login.access_token: login}, 418)
        bearer = ("authorization", f"Bearer {login.access_token}")
        own = ("chatgpt-account-id", "acct-b")
        assert (await caller.post(RESPONSES, BODY, [bearer, own])).status == 418
        seen = (await caller.client.ask(request("GET", "/_seen"))).json()["seen"]
        assert [one["body"] for one in seen] == [BODY]
        assert (tmp_path / "a" / "auth.json").stat().st_mode & 0o777 == 0o600
