"""Proves that real clients work through a pool of two ChatGPT accounts, and see one of OpenAI's.

Method: Codex CLI, OpenCode, openai-python and the AI SDK as published, the real pooler, and a
backend (tests/support/codex_backend.py) that refuses whatever the real one is known to refuse.  The
accounts are folders with an auth.json, as `codex login` leaves it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.clients.ai_sdk import run_script as run_node
from tests.clients.aimock import MODEL, USAGE
from tests.clients.codex import (
    ECHO,
    LIMIT_SHOWN,
    LITE_MODEL,
    LOOK_UP,
    PROOFS,
    Backend,
    CodexCli,
    CodexPool,
    limited,
    script,
    shell,
    types,
)
from tests.clients.jam import JAM, Jam
from tests.clients.opencode import PAGE, TUNED, OpenCode, documented
from tests.support.codex_backend import PREFIX, Play, TokenPlay
from tests.support.codex_turns import CALL_ID, FOUND, LITE, THOUGHT
from tests.support.processes import ANSWER, PROMPT, SECONDS_MAX, Pooler

NOTHING_STORED: Final = "Nothing is stored here. Send the whole input, with store: false."
FIRST, SECOND = "acct-first", "acct-second"
TOKENS: Final = "/oauth/token"
each_door: Final = pytest.mark.parametrize("door", ["native", "v1"])
each_api: Final = pytest.mark.parametrize("api", ["responses", "chat"])


@pytest.fixture
def pooler(codex_pool: CodexPool) -> Pooler:
    return codex_pool.start()


def assert_only_first(backend: Backend, count: int) -> None:
    """So many requests, and none that had to be sent again."""
    assert [seen.account for seen in backend.asked()] == [FIRST] * count


################################################################
# CODEX CLI
################################################################


@pytest.fixture
def codex(door: str, codex_pool: CodexPool, tmp_path: Path) -> CodexCli:
    return CodexCli(tmp_path, codex_pool.door(door))


@each_door
@pytest.mark.parametrize("proof", PROOFS)
def test_codex_works_through_the_pool(proof: str, codex: CodexCli, backend: Backend) -> None:
    PROOFS[proof](codex, backend)
    if proof != "limit":
        assert set(backend.accounts()) == {FIRST}


@each_door
def test_codex_does_not_see_that_a_limit_is_reached(codex: CodexCli, backend: Backend) -> None:
    backend.will(limited(FIRST))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert backend.accounts() == [FIRST, SECOND]


@each_door
def test_codex_does_not_see_it_in_the_middle_of_a_tool_loop(
    codex: CodexCli, backend: Backend
) -> None:
    backend.will(shell("echo peel, cut, boil"), limited(FIRST))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert backend.accounts() == [FIRST, FIRST, SECOND]
    moved = backend.turns()[-1]
    assert types(moved)[-3:] == ["reasoning", "function_call", "function_call_output"]
    assert "x-codex-turn-state" not in moved.headers  # it was the first account's


@each_door
def test_a_lite_turn_goes_elsewhere_in_the_middle_of_a_tool_loop(
    codex: CodexCli, backend: Backend
) -> None:
    codex.model = LITE_MODEL
    codex.can_search = True
    backend.will(script(ECHO), limited(FIRST), script(LOOK_UP))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert backend.accounts() == [FIRST, FIRST, SECOND, SECOND]
    (search,) = backend.asked(f"{PREFIX}/alpha/search")
    assert search.account == SECOND  # where its session is now
    moved = backend.turns()[-1]
    assert moved.headers[LITE] == "true"
    assert types(moved).count("custom_tool_call_output") == 2


@each_door
def test_a_search_goes_elsewhere_where_a_limit_is_reached(
    codex: CodexCli, backend: Backend
) -> None:
    backend.will(Play(FIRST, at="search", error="usage_limit"))
    backend.will(script(LOOK_UP))
    codex.model = LITE_MODEL
    codex.can_search = True
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    searches = backend.asked(f"{PREFIX}/alpha/search")
    assert [seen.account for seen in searches] == [FIRST, SECOND]
    assert FOUND in json.dumps(backend.turns()[-1].body["input"][-1]["output"])


@pytest.mark.parametrize("door", ["native"])
def test_the_native_route_changes_nothing_but_credentials(
    codex: CodexCli, backend: Backend
) -> None:
    backend.will(shell("true"))
    assert codex.run().code == 0
    first, second = backend.turns()
    assert "instructions" not in first.body
    assert "x-codex-installation-id" in first.body["client_metadata"]
    assert all("id" in item for item in first.body["input"])
    assert first.headers["originator"] == "codex_exec"
    assert first.headers["user-agent"].startswith("codex_exec/")
    assert second.headers["x-codex-turn-state"] == f"sticky-backend-1-{FIRST}"


@each_door
def test_codex_tells_that_the_pool_is_used_up_until_the_earliest_reset(
    codex: CodexCli, backend: Backend
) -> None:
    backend.will(limited(FIRST, seconds=7200), limited(SECOND, seconds=3600))
    started_at = time.monotonic()
    turn = codex.run()
    assert turn.code == 1
    assert LIMIT_SHOWN in turn.errors[-1]
    assert backend.accounts() == [FIRST, SECOND]
    assert codex.run().code == 1
    assert backend.accounts() == [FIRST, SECOND]  # they rest
    assert time.monotonic() - started_at < SECONDS_MAX


@each_door
def test_codex_does_not_see_that_a_token_is_renewed(
    codex_pool: CodexPool, door: str, backend: Backend, tmp_path: Path
) -> None:
    codex_pool.log_in("first", expires_at=time.time() + 60)  # within the margin of 5 minutes
    before = codex_pool.logins["first"]
    turn = CodexCli(tmp_path, codex_pool.door(door)).run()
    assert (turn.code, turn.text) == (0, ANSWER)
    assert len(backend.asked(TOKENS)) == 1
    assert backend.accounts() == [FIRST]
    kept = json.loads(codex_pool.auth_file("first").read_text())["tokens"]
    assert kept["refresh_token"] != before.refresh_token
    assert backend.asked()[0].headers["authorization"] == f"Bearer {kept['access_token']}"
    assert codex_pool.auth_file("first").stat().st_mode & 0o777 == 0o600


@each_door
def test_codex_does_not_see_that_an_account_needs_a_login(
    codex_pool: CodexPool, door: str, backend: Backend, tmp_path: Path
) -> None:
    codex_pool.log_in("first", expires_at=time.time() - 60)
    backend.will_refresh(TokenPlay(401, "refresh_token_invalidated"))
    turn = CodexCli(tmp_path, codex_pool.door(door)).run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert backend.accounts() == [SECOND]


################################################################
# OPENCODE
################################################################


@pytest.fixture
def opencode(tmp_path: Path) -> OpenCode:
    return OpenCode(tmp_path)


@pytest.mark.parametrize("package", ["@ai-sdk/openai", "@ai-sdk/openai-compatible"])
def test_opencode_gets_a_text(
    package: str, opencode: OpenCode, pooler: Pooler, backend: Backend
) -> None:
    config = documented(TUNED, pooler)
    config["provider"]["openai"]["npm"] = package
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    (seen,) = backend.turns()
    assert seen.body["instructions"]
    assert (seen.body["store"], seen.body["stream"]) == (False, True)
    assert seen.headers["originator"] != "codex_cli_rs"


@pytest.mark.parametrize("package", ["@ai-sdk/openai", "@ai-sdk/openai-compatible"])
@pytest.mark.parametrize("is_limited", [False, True], ids=["one-account", "failover"])
def test_opencode_runs_a_tool_loop(
    package: str, is_limited: bool, opencode: OpenCode, pooler: Pooler, backend: Backend
) -> None:
    recipe = opencode.project / "recipe.txt"
    recipe.write_text("Peel, cut, boil.\n")
    backend.will(Play(tool="read", arguments={"filePath": str(recipe)}, with_tools=True))
    if is_limited:
        backend.will(limited(FIRST, with_tools=True))
    config = documented(PAGE, pooler)
    config["provider"]["openai"]["npm"] = package
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [(it["tool"], it["state"]["status"]) for it in turn.tools] == [("read", "completed")]
    last = backend.turns()[-1]
    assert "Peel, cut, boil." in json.dumps(last.body["input"][-1]["output"])
    assert backend.accounts() == ([FIRST, FIRST, SECOND] if is_limited else [FIRST, FIRST])


def test_opencode_tells_that_the_pool_is_used_up(
    opencode: OpenCode, pooler: Pooler, backend: Backend
) -> None:
    backend.will(limited(seconds=1))  # so that it does not wait long to ask again
    turn = opencode.run(config=documented(PAGE, pooler))
    assert turn.code == 1
    assert "have reached their limit" in turn.errors[-1]
    assert turn.text == ""


################################################################
# OPENAI-PYTHON
################################################################

ASKED: Final[list[ChatCompletionMessageParam]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": PROMPT},
]
PARAMETERS: Final[dict[str, object]] = {"type": "object", "properties": {}}
LOOK: Final[ChatCompletionToolParam] = {
    "type": "function",
    "function": {"name": "look", "parameters": PARAMETERS},
}


@pytest.mark.parametrize("has_null_output", [False, True])
def test_a_response_of_the_python_sdk(
    has_null_output: bool, client: openai.OpenAI, backend: Backend
) -> None:
    backend.will(Play(count=2, has_null_output=has_null_output, has_extra_events=True))
    made = client.responses.create(model=MODEL, input=PROMPT, temperature=0.5, store=True)
    assert (made.output_text, made.status) == (ANSWER, "completed")
    assert made.usage is not None
    assert made.usage.input_tokens == USAGE["input_tokens"]
    with client.responses.stream(model=MODEL, input=PROMPT, max_output_tokens=500) as stream:
        kinds: list[str] = [event.type for event in stream]
        assert stream.get_final_response().output_text == ANSWER
    assert not [kind for kind in kinds if kind.startswith(("codex", "keepalive"))]
    assert not [kind for kind in kinds if kind == "response.metadata"]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert_only_first(backend, 2)


def test_a_chat_of_the_python_sdk(client: openai.OpenAI, backend: Backend) -> None:
    made = client.chat.completions.create(model=MODEL, messages=ASKED, temperature=0, stop="x")
    assert made.choices[0].message.content == ANSWER
    assert made.choices[0].finish_reason == "stop"
    assert made.usage is not None
    assert made.usage.prompt_tokens == USAGE["prompt_tokens"]
    with client.chat.completions.create(
        model=MODEL, messages=ASKED, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    told = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in told) == ANSWER
    assert told[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert [seen.body["instructions"] for seen in backend.asked()] == ["Be brief."] * 2


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_a_tool_loop_in_a_chat(is_streamed: bool, client: openai.OpenAI, backend: Backend) -> None:
    backend.will(Play(tool="look", arguments={"at": "it"}))
    messages = list(ASKED)
    made: Any
    if is_streamed:
        with client.chat.completions.stream(model=MODEL, messages=messages, tools=[LOOK]) as stream:
            made = stream.get_final_completion().choices[0]
    else:
        made = client.chat.completions.create(model=MODEL, messages=messages, tools=[LOOK]).choices[
            0
        ]
    (call,) = made.message.tool_calls
    assert (made.finish_reason, made.message.content or None) == ("tool_calls", None)
    assert (call.id, call.function.name) == (CALL_ID, "look")
    assert json.loads(call.function.arguments) == {"at": "it"}
    assert made.message.reasoning_content == THOUGHT
    messages += [
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": "look", "arguments": call.function.arguments},
                }
            ],
        },
        {"role": "tool", "tool_call_id": call.id, "content": "seen"},
    ]
    again = client.chat.completions.create(model=MODEL, messages=messages, tools=[LOOK])
    assert again.choices[0].message.content == ANSWER


def test_a_tool_loop_of_responses_replays_what_was_thought(
    client: openai.OpenAI, backend: Backend
) -> None:
    backend.will(Play(tool="look"))
    tool: Any = {"type": "function", "name": "look", "parameters": PARAMETERS, "strict": False}
    history: Any = [{"role": "user", "content": PROMPT}]
    made = client.responses.create(model=MODEL, input=history, tools=[tool])
    assert [item.type for item in made.output] == ["reasoning", "function_call"]
    result = {"type": "function_call_output", "call_id": CALL_ID, "output": "seen"}
    history += [*(item.model_dump(exclude_none=True) for item in made.output), result]
    again = client.responses.create(model=MODEL, input=history, tools=[tool])
    assert again.output_text == ANSWER
    assert types(backend.asked()[1])[-3:] == ["reasoning", "function_call", "function_call_output"]


@each_api
def test_structured_output_is_parsed(api: str, client: openai.OpenAI, pooler: Pooler) -> None:
    parsed: Any
    if api == "responses":
        made = client.responses.parse(model=MODEL, input=PROMPT, text_format=Jam)
        parsed = made.output_parsed
    else:
        chat = client.chat.completions.parse(model=MODEL, messages=ASKED, response_format=Jam)
        parsed = chat.choices[0].message.parsed
    assert parsed == JAM


@pytest.mark.parametrize("is_streamed", [False, True], ids=["parse", "stream"])
def test_a_chat_helper_gets_the_answer_without_what_is_said_before_it(
    is_streamed: bool, client: openai.OpenAI, backend: Backend
) -> None:
    text = json.dumps(JAM.model_dump())
    backend.will(Play(commentary="Let me see."))
    if is_streamed:
        with client.chat.completions.stream(
            model=MODEL, messages=ASKED, response_format=Jam
        ) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            message: Any = stream.get_final_completion().choices[0].message
        assert "".join(deltas) == text
    else:
        made = client.chat.completions.parse(model=MODEL, messages=ASKED, response_format=Jam)
        message = made.choices[0].message
    assert (message.content, message.parsed) == (text, JAM)
    assert "Let me see." in message.reasoning_content


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_a_tool_is_called_after_something_is_said(
    is_streamed: bool, client: openai.OpenAI, backend: Backend
) -> None:
    backend.will(Play(commentary="Let me see.", tool="look", arguments={"at": "it"}))
    message: Any
    if is_streamed:
        with client.chat.completions.stream(model=MODEL, messages=ASKED, tools=[LOOK]) as stream:
            message = stream.get_final_completion().choices[0].message
    else:
        made = client.chat.completions.create(model=MODEL, messages=ASKED, tools=[LOOK])
        message = made.choices[0].message
    assert not message.content
    assert [call.function.name for call in message.tool_calls] == ["look"]
    assert "Let me see." in message.reasoning_content


def test_a_refusal_is_told_as_one(client: openai.OpenAI, backend: Backend) -> None:
    backend.will(Play(refusal="No.", count=2))
    made = client.chat.completions.create(model=MODEL, messages=ASKED).choices[0].message
    assert (made.content, made.refusal) == (None, "No.")
    with client.chat.completions.stream(model=MODEL, messages=ASKED) as stream:
        assert stream.get_final_completion().choices[0].message.refusal == "No."


@pytest.mark.parametrize("error", ["encrypted_a", "encrypted_b"])
def test_encrypted_content_that_is_refused_is_left_out_once(
    error: str, client: openai.OpenAI, backend: Backend
) -> None:
    backend.will(Play(error=error, count=0))
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAx"}
    history: Any = [{"role": "user", "content": "hi"}, thought, {"role": "user", "content": PROMPT}]
    made = client.responses.create(model=MODEL, input=history)
    assert made.output_text == ANSWER
    first, second = backend.asked()
    assert (types(first).count("reasoning"), types(second).count("reasoning")) == (1, 0)
    assert first.account == second.account == FIRST


def ask(client: openai.OpenAI, api: str, *, is_streamed: bool) -> str:
    """The text of an answer; raises what the SDK raises."""
    if api == "responses":
        if not is_streamed:
            return client.responses.create(model=MODEL, input=PROMPT).output_text
        with client.responses.create(model=MODEL, input=PROMPT, stream=True) as events:
            return "".join(e.delta for e in events if e.type == "response.output_text.delta")
    if not is_streamed:
        made = client.chat.completions.create(model=MODEL, messages=ASKED)
        return made.choices[0].message.content or ""
    with client.chat.completions.create(model=MODEL, messages=ASKED, stream=True) as chunks:
        told = [choice for chunk in chunks for choice in chunk.choices]
    return "".join(choice.delta.content or "" for choice in told)


@each_api
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "fault",
    [
        limited(FIRST),
        Play(account=FIRST, error="overloaded"),
        Play(account=FIRST, ends="response.failed", after="handshake"),
        Play(account=FIRST, error="model_unsupported"),
        Play(account=FIRST, error="account_deactivated"),
        Play(account=FIRST, error="workspace_off"),
    ],
    ids=["limit", "overloaded", "failed-in-200", "model", "deactivated", "workspace"],
)
def test_failover_is_not_seen(
    fault: Play, is_streamed: bool, api: str, client: openai.OpenAI, backend: Backend
) -> None:
    backend.will(fault)
    assert ask(client, api, is_streamed=is_streamed) == ANSWER
    assert [seen.account for seen in backend.asked()] == [FIRST, SECOND]


@each_api
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_a_pool_that_is_used_up_is_told(
    is_streamed: bool, api: str, client: openai.OpenAI, backend: Backend
) -> None:
    backend.will(limited(FIRST, seconds=7200), limited(SECOND, seconds=3600))
    with pytest.raises(openai.RateLimitError) as raised:
        ask(client, api, is_streamed=is_streamed)
    error: Any = raised.value.body
    assert (raised.value.code, raised.value.type) == ("usage_limit_reached",) * 2
    assert 3590 <= error["resets_in_seconds"] <= 3600  # the earlier one
    assert abs(error["resets_at"] - time.time() - 3600) < SECONDS_MAX
    assert raised.value.response.headers["x-should-retry"] == "false"


@each_api
def test_an_answer_that_breaks_off_is_told(
    api: str, client: openai.OpenAI, backend: Backend
) -> None:
    backend.will(Play(ends="cut"))
    if api == "chat":
        with pytest.raises(openai.APIError):
            ask(client, api, is_streamed=True)
        return
    with client.responses.create(model=MODEL, input=PROMPT, stream=True) as stream:
        assert [event.type for event in stream][-1] == "response.failed"
    assert len(backend.asked()) == 1


################################################################
# THE AI SDK
################################################################


@each_api
def test_the_ai_sdk_generates_and_streams(api: str, pooler: Pooler, backend: Backend) -> None:
    made = run_node("ai_sdk.mjs", "generate", api, MODEL, PROMPT, pooler=pooler)
    assert (made["text"], made["finish"]) == (ANSWER, "stop")
    told = run_node("ai_sdk.mjs", "stream", api, MODEL, PROMPT, pooler=pooler)
    assert (told["text"], told["finish"], told["errors"]) == (ANSWER, "stop", [])
    assert told["deltaCount"] > 1
    assert told["usage"]["inputTokens"] == USAGE["input_tokens"]
    assert_only_first(backend, 2)


@each_api
@pytest.mark.parametrize("name", ["tools", "toolsStream"])
def test_the_ai_sdk_runs_a_tool_loop(name: str, api: str, pooler: Pooler, backend: Backend) -> None:
    backend.will(Play(tool="weather", arguments={"city": "Quito"}))
    made = run_node("ai_sdk.mjs", name, api, MODEL, PROMPT, "unstored", pooler=pooler)
    assert (made["text"], made["stepCount"]) == (ANSWER, 2)
    assert "rain in Quito" in json.dumps(backend.asked()[1].body["input"][-1]["output"])


@each_api
def test_the_ai_sdk_makes_an_object(api: str, pooler: Pooler) -> None:
    made = run_node("ai_sdk.mjs", "object", api, MODEL, PROMPT, pooler=pooler)
    assert made == JAM.model_dump()


@pytest.mark.parametrize(
    ("release", "api", "options"),
    [
        ("5", "chat", []),
        ("5", "responses", ["unstored"]),
        ("7", "chat", []),
        ("7", "responses", []),
        ("7", "responses", ["unstored"]),
    ],
)
def test_the_ai_sdk_has_a_second_turn(
    release: str, api: str, options: list[str], pooler: Pooler, backend: Backend
) -> None:
    asked = ["secondTurn", api, MODEL, PROMPT, *options]
    made = run_node("ai_sdk.mjs", *asked, pooler=pooler, release=release)
    assert (made["first"], made["text"], made["errors"]) == (ANSWER, ANSWER, [])
    _, second = backend.asked()
    said = [item for item in second.body["input"] if item.get("role") == "assistant"]
    assert [item["content"][0]["text"] for item in said] == [ANSWER]
    assert_only_first(backend, 2)


@pytest.mark.parametrize(
    ("release", "name"), [("5", "secondTurn"), ("5", "toolsStream"), ("7", "toolsStream")]
)
def test_the_ai_sdk_is_told_that_nothing_is_stored(
    name: str, release: str, pooler: Pooler, backend: Backend
) -> None:
    """By default it refers to what it was told before, which a ChatGPT account does not keep."""
    if name == "toolsStream":
        backend.will(Play(tool="weather", arguments={"city": "Quito"}))
    made = run_node("ai_sdk.mjs", name, "responses", MODEL, PROMPT, pooler=pooler, release=release)
    (told,) = made["errors"]
    assert (told["kind"], told["statusCode"], told["tries"]) == ("AI_APICallError", 400, 1)
    assert told["message"] == NOTHING_STORED
    assert_only_first(backend, 1)
