"""Proves that what clients really send reaches a codex account's backend in a form it takes.

Method: the real server in virtual time before the strict backend of
`tests/support/codex_backend.py`. Each request is sent by every carrier that can say it: Responses
and Chat, streamed and not, and a WebSocket.  Seen are the answer and what the backend was asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from trio.testing import MockClock

from pooler import LITE_HEADER, LITE_METADATA
from tests.support.codex_backend import Play
from tests.support.codex_turns import ANSWER
from tests.support.codex_world import (
    CARRIERS,
    CHAT_BODY,
    CHAT_CARRIERS,
    FIRST,
    FIRST_ALONE,
    MODEL,
    NATIVE_BODY,
    PLATFORM,
    PREFIX,
    RESPONSES_BODY,
    RESPONSES_CARRIERS,
    SECOND,
    ask_by_carrier,
    describe_codex,
    opened_codex_world,
)
from tests.support.memory_sockets import post
from tests.support.memory_websockets import open_socket, upgrade
from tests.support.world import json_response, responses_events, sse_steps

Json = Any
USER: Final = {"role": "user", "content": "Say it."}


async def passed(folder: Path, carrier: str, body: Json, *, sealed: str = "") -> Json:
    """What the backend took, and answered."""
    async with opened_codex_world(describe_codex(folder, **FIRST_ALONE), folder) as world:
        world.backend.sealed.add(sealed)
        assert await ask_by_carrier(world, carrier, body) == (200, ANSWER)
        [seen] = [seen.body for seen in world.backend.asked() if seen.body is not None]
        return seen


def responses(*items: Json, **more: Json) -> Json:
    return {"model": MODEL, "input": [*items]} | more


def chat(*messages: Json, **more: Json) -> Json:
    return {"model": MODEL, "messages": [*messages]} | more


every_carrier = pytest.mark.parametrize("carrier", CARRIERS)
responses_carriers = pytest.mark.parametrize("carrier", RESPONSES_CARRIERS)


################################################################
# WHAT IS SAID
################################################################


@every_carrier
@pytest.mark.parametrize("role", ["system", "developer"])
async def test_json_mode_finds_its_word_wherever_the_client_says_it(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, role: str
) -> None:
    form = {"type": "json_object"}
    order = {"role": role, "content": "Reply in JSON."}
    body = responses(order, USER, text={"format": form})
    if carrier in CHAT_CARRIERS:
        body = chat(order, USER, response_format=form)
    seen = await passed(tmp_path, carrier, body)
    assert (seen["instructions"], seen["text"]["format"]) == ("", form)
    assert [item["role"] for item in seen["input"]] == ["developer", "user"]
    assert seen["input"][0]["content"][0]["text"] == "Reply in JSON."


@responses_carriers
@pytest.mark.parametrize(
    "more",
    [
        {"status": "completed", "summary": []},
        {"status": None, "content": None, "summary": None},
        {"summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {},
        {"summary": [], "format": "other", "signature": "x"},
    ],
    ids=lambda more: "+".join(more) or "nothing",
)
async def test_a_reasoning_item_is_sent_as_the_backend_knows_it(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, more: Json
) -> None:
    item = {"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAAA"} | more
    answer = {"role": "assistant", "content": "a"}
    seen = await passed(tmp_path, carrier, responses(USER, item, answer, USER), sealed="gAAAA")
    assert seen["input"][1] == {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}


@responses_carriers
@pytest.mark.parametrize("content", [{}, {"encrypted_content": None}, {"encrypted_content": ""}])
async def test_another_provider_s_reasoning_is_left_out(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, content: Json
) -> None:
    thought = [{"type": "reasoning_text", "text": "hm"}]
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "content": thought} | content
    seen = await passed(tmp_path, carrier, responses(USER, item, USER))
    assert [item["type"] for item in seen["input"]] == ["message", "message"]


@every_carrier
@pytest.mark.parametrize("length", [64, 65, 85, 1324])
async def test_a_call_and_its_output_keep_one_id_that_is_short_enough(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, length: int
) -> None:
    call_id = "c" * length
    call = {"type": "function_call", "call_id": call_id, "name": "w", "arguments": "{}"}
    body = responses(
        USER, call, {"type": "function_call_output", "call_id": call_id, "output": "sunny"}
    )
    if carrier in CHAT_CARRIERS:
        inner = {"id": call_id, "type": "function", "function": {"name": "w", "arguments": "{}"}}
        body = chat(
            USER,
            {"role": "assistant", "content": None, "tool_calls": [inner]},
            {"role": "tool", "tool_call_id": call_id, "content": "sunny"},
        )
    seen = await passed(tmp_path, carrier, body)
    digest = hashlib.sha256(call_id.encode()).hexdigest()
    assert {item["call_id"] for item in seen["input"][1:]} == {call_id if length == 64 else digest}


@every_carrier
@pytest.mark.parametrize("length", [64, 65, 300])
async def test_a_cache_key_is_short_enough(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, length: int
) -> None:
    make, key = chat if carrier in CHAT_CARRIERS else responses, "k" * length
    seen = await passed(tmp_path, carrier, make(USER, prompt_cache_key=key))
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert seen["prompt_cache_key"] == (key if length == 64 else digest)


@responses_carriers
async def test_a_shell_s_output_and_citations_stay_as_they_are(
    autojump_clock: MockClock, tmp_path: Path, carrier: str
) -> None:
    output = [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]
    shell = [
        {"type": "shell_call", "call_id": "c1", "status": "completed", "action": {}},
        {"type": "shell_call_output", "call_id": "c1", "status": "completed", "output": output},
    ]
    note = {"type": "url_citation", "start_index": 0, "end_index": 3, "url": "https://e.org"}
    cited = {"type": "output_text", "text": "see", "annotations": [note]}
    answer = {"type": "message", "role": "assistant", "content": [cited]}
    seen = await passed(tmp_path, carrier, responses(USER, *shell, answer, USER))
    assert seen["input"][1:4] == [*shell, answer]


@pytest.mark.parametrize("carrier", CHAT_CARRIERS)
@pytest.mark.parametrize("messages", [{}, {"messages": []}, {"messages": None}], ids=str)
async def test_a_chat_client_may_speak_as_responses_clients_do(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, messages: Json
) -> None:
    tool = {"type": "function", "name": "w", "parameters": {"type": "object"}}
    body = responses(
        {"role": "system", "content": "Be terse."},
        USER,
        tools=[tool],
        tool_choice={"type": "auto"},
        reasoning={"effort": "low"},
        stream_options={"include_usage": True},
    )
    seen = await passed(tmp_path, carrier, body | messages)
    assert seen["instructions"] == "Be terse."
    assert seen["tools"] == [tool | {"parameters": {"type": "object", "properties": {}}}]
    assert (seen["tool_choice"], seen["reasoning"]) == (
        "auto",
        {"effort": "low", "summary": "auto"},
    )


################################################################
# FIELDS
################################################################

BARE: Final = {"type": "function", "name": "now", "parameters": {"type": "object"}}
WORDS: Final = ("auto", "none", "required")


@every_carrier
@pytest.mark.parametrize("word", WORDS)
async def test_a_choice_of_no_certain_tool_is_a_word(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, word: str
) -> None:
    make = chat if carrier in CHAT_CARRIERS else responses
    seen = await passed(tmp_path, carrier, make(USER, tools=[BARE], tool_choice={"type": word}))
    assert seen["tool_choice"] == word


@every_carrier
@pytest.mark.parametrize(
    ("asked", "told"), [("none", "none"), ("ultra", "xhigh"), ("minimal", "low")]
)
async def test_an_effort_is_one_that_the_backend_has(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, asked: str, told: str
) -> None:
    body = responses(USER, reasoning={"effort": asked})
    if carrier in CHAT_CARRIERS:
        body = chat(USER, reasoning_effort=asked)
    seen = await passed(tmp_path, carrier, body)
    assert seen["reasoning"]["effort"] == told


@pytest.mark.parametrize("carrier", CHAT_CARRIERS)
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"reasoning_effort": "high"}, {"effort": "high", "summary": "auto"}),
        ({"reasoning": {"effort": "low"}}, {"effort": "low", "summary": "auto"}),
        ({"reasoning": {"effort": "low", "summary": None}}, {"effort": "low"}),
        ({"reasoning_effort": "low", "reasoning": {"summary": "detailed"}},
         {"effort": "low", "summary": "detailed"}),
    ],
    ids=str,
)  # fmt: skip
async def test_a_chat_client_that_wants_reasoning_is_shown_a_summary(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, asked: Json, told: Json
) -> None:
    seen = await passed(tmp_path, carrier, chat(USER, **asked))
    assert seen["reasoning"] == told


@responses_carriers
@pytest.mark.parametrize(
    "field",
    [
        {"reasoning": {"effort": "high", "context": "all_turns"}},
        {"reasoning": {"effort": "high", "mode": "pro"}},
        {"context_management": [{"type": "compaction", "compact_threshold": 1000}]},
        {"service_tier": "ultrafast"},
    ],
    ids=str,
)
async def test_what_the_backend_knows_is_passed(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, field: Json
) -> None:
    seen = await passed(tmp_path, carrier, responses(USER, **field))
    assert {name: seen.get(name) for name in field} == field


MCP: Final = {"type": "mcp", "server_label": "x", "server_url": "https://x"}
REFERENCE: Final = {"type": "item_reference", "id": "msg_1"}
OBSTACLES: Final[Mapping[str, tuple[Json, str, str]]] = {
    "item_reference": (responses(USER, REFERENCE, USER), "input", "store: false"),
    "item_reference without its type": (
        responses(USER, {"id": "msg_1"}, USER), "input", "store: false"),
    "previous_response_id": (
        responses(USER, previous_response_id="resp_1"), "previous_response_id", "store: false"),
    "response_format": (
        responses(USER, response_format={"type": "json_object"}), "response_format", "text.format"),
    "reasoning_effort": (
        responses(USER, reasoning_effort="high"), "reasoning_effort", "reasoning.effort"),
    "verbosity": (responses(USER, verbosity="low"), "verbosity", "text.verbosity"),
    "system": (responses(USER, system="Be terse."), "system", "instructions"),
    "mcp in additional_tools": (
        responses({"type": "additional_tools", "role": "developer", "tools": [MCP]}, USER),
        "input", ""),
    "mcp in a namespace": (
        responses(USER, tools=[{"type": "namespace", "name": "n", "tools": [MCP]}]), "tools", ""),
}  # fmt: skip


@pytest.mark.parametrize(
    ("carrier", "name"),
    # On a WebSocket an earlier response can be known.
    [(carrier, name) for carrier in RESPONSES_CARRIERS for name in OBSTACLES
     if (carrier, name) != ("websocket", "previous_response_id")],
)  # fmt: skip
async def test_what_would_be_lost_in_silence_is_refused_with_what_to_write(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, name: str
) -> None:
    body, param, instead = OBSTACLES[name]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        status, error = await ask_by_carrier(world, carrier, body)
        assert (status, error["code"], error["param"]) == (400, "unsupported_parameter", param)
        assert instead in error["message"]
        assert not set("0123456789") & set(error["message"])
        assert world.backend.asked() == []


@pytest.mark.parametrize("name", OBSTACLES)
async def test_an_api_key_gets_it_as_it_came(
    autojump_clock: MockClock, tmp_path: Path, name: str
) -> None:
    body = OBSTACLES[name][0]
    async with opened_codex_world(describe_codex(tmp_path, others=PLATFORM), tmp_path) as world:
        world.upstreams["platform"].plays(json_response({"id": "resp_2", "output": []}))
        assert (await world.ask(post("/v1/responses", body))).status == 200
        assert [asked.body for asked in world.asked] == [json.dumps(body).encode()]
        assert world.backend.asked() == []


@pytest.mark.parametrize("value", ["true", "false", 1, 0, [], {}], ids=repr)
@pytest.mark.parametrize(
    ("account", "carrier"),
    [*(("first", carrier) for carrier in ("responses", "chat", "websocket")),
     *(("platform", carrier) for carrier in ("responses", "chat"))],
)  # fmt: skip
async def test_a_switch_is_true_or_false(
    autojump_clock: MockClock, tmp_path: Path, account: str, carrier: str, value: Json
) -> None:
    asked = CHAT_BODY if carrier == "chat" else RESPONSES_BODY
    pool = {"accounts": [account]}
    async with opened_codex_world(
        describe_codex(tmp_path, others=PLATFORM, **pool), tmp_path
    ) as world:
        for name in ("stream", "store"):
            status, error = await ask_by_carrier(world, carrier, asked | {name: value})
            assert (status, error["code"], error["param"]) == (400, "invalid_value", name)
        assert world.asked == []


################################################################
# WHAT IS CODEX CLI'S OWN
################################################################

SEALED: Final = "gAAAA"
COMPACTIONS: Final = ("compaction", "compaction_summary")


@responses_carriers
@pytest.mark.parametrize("kind", COMPACTIONS)
async def test_a_compaction_keeps_the_id_that_it_is_bound_to(
    autojump_clock: MockClock, tmp_path: Path, carrier: str, kind: str
) -> None:
    item = {"type": kind, "id": "cmp_abc", "encrypted_content": SEALED}
    seen = await passed(tmp_path, carrier, responses(item, USER), sealed=SEALED)
    assert seen["input"][0] == item


@pytest.mark.parametrize("kind", COMPACTIONS)
@pytest.mark.parametrize("path", ["/v1/responses", f"{PREFIX}/responses"])
async def test_a_compaction_that_cannot_be_read_is_left_out_whole(
    autojump_clock: MockClock, tmp_path: Path, path: str, kind: str
) -> None:
    item = {"type": kind, "id": "cmp_abc", "encrypted_content": "unknown"}
    body = NATIVE_BODY | {"input": [item, *NATIVE_BODY["input"]], "client_metadata": {}}
    async with opened_codex_world(describe_codex(tmp_path, **FIRST_ALONE), tmp_path) as world:
        assert (await world.ask(post(path, body))).status == 200
        asked = [[one["type"] for one in seen.body["input"]] for seen in world.backend.asked()]
        assert asked == [[kind, "message"], ["message"]]


EXEC: Final = {"type": "function", "name": "exec", "parameters": {"type": "object"}}
HELD: Final = [{"type": "namespace", "name": "functions", "tools": [
    EXEC | {"parameters": {"type": "object", "properties": {}}}]}]  # fmt: skip
LITE: Final[Json] = NATIVE_BODY | {
    "input": [
        {"type": "additional_tools", "role": "developer", "tools": HELD},
        NATIVE_BODY["input"][0] | {"id": "msg_a"},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "exec",
         "namespace": "functions", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "x"},
    ],
    "parallel_tool_calls": False,
    "reasoning": {"effort": "low", "context": "all_turns"},
    "client_metadata": {"a": "b"},
}  # fmt: skip
MARK: Final = [(LITE_HEADER, "true")]
MARKED: Final = LITE | {"client_metadata": {LITE_METADATA: "true"}}


async def test_a_lite_body_is_passed_as_it_came(autojump_clock: MockClock, tmp_path: Path) -> None:
    raw = json.dumps(LITE, indent=1).encode()
    fields = [*MARK, ("session-id", "s"), ("x-codex-turn-state", "foreign"), ("originator", "me")]
    async with opened_codex_world(describe_codex(tmp_path, **FIRST_ALONE), tmp_path) as world:
        world.backend.plays.append(Play(has_extra_events=True))
        response = await world.ask(post("/v1/responses", raw, headers=fields))
        assert response.status == 200
        assert response.header("x-codex-turn-state")
        assert b"codex.rate_limits" in response.body
        [seen] = world.backend.asked()
        assert seen.body == LITE
        assert {name: seen.headers.get(name) for name, _ in fields} == dict(fields) | {
            "x-codex-turn-state": None
        }


@pytest.mark.parametrize(("more", "body"), [(MARK, LITE), ([], MARKED)], ids=["head", "frame"])
async def test_a_lite_turn_of_a_websocket_is_passed_as_it_came(
    autojump_clock: MockClock, tmp_path: Path, more: Json, body: Json
) -> None:
    frame = {"type": "response.create"} | body
    async with opened_codex_world(describe_codex(tmp_path, **FIRST_ALONE), tmp_path) as world:
        client = await open_socket(world, upgrade(more=more))
        await client.say(frame)
        assert (await client.read_turn())[-1]["type"] == "response.completed"
        await client.hang_up()
        assert [seen.body for seen in world.backend.asked() if seen.body is not None] == [frame]


@pytest.mark.parametrize(
    ("fields", "path"),
    [([], "/v1/responses"), ([(LITE_HEADER, "false")], "/v1/responses"),
     (MARK, "/v1/chat/completions")],
    ids=str,
)  # fmt: skip
async def test_a_body_without_the_mark_is_translated(
    autojump_clock: MockClock, tmp_path: Path, fields: Json, path: str
) -> None:
    body = (CHAT_BODY if "chat" in path else RESPONSES_BODY) | {"temperature": 1}
    async with opened_codex_world(describe_codex(tmp_path, **FIRST_ALONE), tmp_path) as world:
        assert (await world.ask(post(path, body, headers=fields))).status == 200
        [seen] = world.backend.asked()
        assert "temperature" not in seen.body
        assert seen.headers["originator"] == "codex-pooler"


@pytest.mark.parametrize("accounts", [["first", "platform"], ["platform"]], ids=str)
async def test_a_lite_body_may_go_to_an_api_key_too(
    autojump_clock: MockClock, tmp_path: Path, accounts: Sequence[str]
) -> None:
    pool = {"accounts": accounts}
    async with opened_codex_world(
        describe_codex(tmp_path, others=PLATFORM, **pool), tmp_path
    ) as world:
        world.backend.plays.append(Play(FIRST, error="usage_limit"))
        world.upstreams["platform"].plays(sse_steps(*responses_events("a")))
        response = await world.ask(post("/v1/responses", LITE, headers=MARK))
        assert response.status == 200
        assert [asked.json() for asked in world.asked] == [LITE]
        assert world.backend.accounts() == [FIRST] * (accounts[0] == "first")


async def test_a_lite_body_moves_without_what_another_account_cannot_read(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": SEALED}
    later = LITE | {"input": [*LITE["input"], thought, *NATIVE_BODY["input"]]}
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.sealed.add(SEALED)
        await world.ask(post("/v1/responses", LITE, headers=MARK))
        world.backend.plays.append(Play(FIRST, error="usage_limit"))
        assert (await world.ask(post("/v1/responses", later, headers=MARK))).status == 200
        assert world.backend.accounts() == [FIRST, FIRST, SECOND]
        assert thought not in world.backend.asked()[-1].body["input"]
        assert world.backend.asked()[-1].body["input"][:4] == LITE["input"]
