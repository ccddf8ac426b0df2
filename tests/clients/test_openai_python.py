"""Proves that openai-python gets what it expects: answers, streams, tools, its own error classes.

Method: the package as published, synchronous and asynchronous, against the real pooler and two
real upstreams.  A loop in a test ends with its stream; a stream ends, because every read of the
SDK is bounded by `SECONDS_MAX`.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any, Final

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import FunctionToolParam, ResponseInputParam

from tests.clients.aimock import MODEL, USAGE, Providers, calls, fails, says
from tests.clients.jam import JAM, Jam
from tests.support.processes import ANSWER, OTHER_POOL_KEY, POOL_KEY, PROMPT, SECONDS_MAX, Pooler

ASKED: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": PROMPT}]
WEATHER: Final[dict[str, object]] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CITY: Final = {"city": "Marmalade"}


def asynchronous(pooler: Pooler) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=pooler.base_url, api_key=POOL_KEY, max_retries=0, timeout=SECONDS_MAX
    )


################################################################
# ANSWERS
################################################################


def test_a_chat_completion(client: openai.OpenAI, providers: Providers) -> None:
    providers.first.will(says())
    made = client.chat.completions.create(model=MODEL, messages=ASKED)
    assert made.choices[0].message.content == ANSWER
    assert made.choices[0].finish_reason == "stop"
    assert made.usage is not None
    assert made.usage.prompt_tokens == USAGE["prompt_tokens"]
    assert providers.first.asked[0].body == {"model": MODEL, "messages": ASKED}
    assert providers.first.asked[0].path == "/v1/chat/completions"


def test_a_chat_stream(client: openai.OpenAI, providers: Providers) -> None:
    providers.first.will(says())
    with client.chat.completions.create(
        model=MODEL, messages=ASKED, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    told = [choice for chunk in chunks for choice in chunk.choices]
    deltas = [choice.delta.content for choice in told if choice.delta.content]
    assert len(deltas) > 1
    assert "".join(deltas) == ANSWER
    assert told[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == USAGE["completion_tokens"]


def test_a_response(client: openai.OpenAI, providers: Providers) -> None:
    providers.first.will(says())
    made = client.responses.create(model=MODEL, input=PROMPT)
    assert (made.output_text, made.status) == (ANSWER, "completed")
    assert made.usage is not None
    assert made.usage.input_tokens == USAGE["input_tokens"]
    assert providers.first.asked[0].body == {"model": MODEL, "input": PROMPT}


def test_a_response_stream(client: openai.OpenAI, providers: Providers) -> None:
    providers.first.will(says())
    with client.responses.create(model=MODEL, input=PROMPT, stream=True) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == ANSWER
    assert events[0].type == "response.created"
    assert [event.type for event in events].count("response.completed") == 1
    assert events[-1].type == "response.completed"


def test_the_stream_helpers_build_the_whole_answer(
    client: openai.OpenAI, providers: Providers
) -> None:
    providers.first.will(says())
    with client.responses.stream(model=MODEL, input=PROMPT) as response:
        assert response.get_final_response().output_text == ANSWER
    with client.chat.completions.stream(model=MODEL, messages=ASKED) as chat:
        assert chat.get_final_completion().choices[0].message.content == ANSWER


def test_reasoning_is_passed_with_its_encrypted_content(
    client: openai.OpenAI, providers: Providers
) -> None:
    fixture = says()
    fixture["response"]["reasoning"] = "It needs time."
    providers.first.will(fixture)
    made = client.responses.create(
        model=MODEL, input=PROMPT, include=["reasoning.encrypted_content"], store=False
    )
    thought, message = made.output
    assert (thought.type, message.type) == ("reasoning", "message")
    assert thought.type == "reasoning"
    assert thought.encrypted_content
    again: Any = [item.model_dump(exclude_unset=True) for item in made.output]
    again.append({"role": "user", "content": PROMPT})
    client.responses.create(model=MODEL, input=again)
    assert providers.first.asked[1].body["input"] == again


def test_the_asynchronous_client(pooler: Pooler, providers: Providers) -> None:
    async def ask() -> list[str]:
        async with asynchronous(pooler) as client:
            chat = await client.chat.completions.create(model=MODEL, messages=ASKED)
            response = await client.responses.create(model=MODEL, input=PROMPT)
            told = [chat.choices[0].message.content or "", response.output_text, "", ""]
            chunks = await client.chat.completions.create(model=MODEL, messages=ASKED, stream=True)
            async for chunk in chunks:
                told[2] += chunk.choices[0].delta.content or ""
            events = await client.responses.create(model=MODEL, input=PROMPT, stream=True)
            async for event in events:
                if event.type == "response.output_text.delta":
                    told[3] += event.delta
            return told

    providers.first.will(says())
    assert asyncio.run(ask()) == [ANSWER] * 4


def test_many_streams_at_once_are_not_mixed_up(pooler: Pooler, providers: Providers) -> None:
    count = 24  # more than the 16 that one account takes

    async def ask(client: openai.AsyncOpenAI, index: int) -> str:
        events = await client.responses.create(model=MODEL, input=f"jam <{index}>", stream=True)
        told = ""
        async for event in events:
            if event.type == "response.output_text.delta":
                told += event.delta
        return told

    async def ask_all() -> list[str]:
        async with asynchronous(pooler) as client:
            return await asyncio.gather(*(ask(client, index) for index in range(count)))

    fixtures = [says(f"{ANSWER} <{index}>", userMessage=f"<{index}>") for index in range(count)]
    providers.first.will(*fixtures)
    providers.second.will(*fixtures)
    assert asyncio.run(ask_all()) == [f"{ANSWER} <{index}>" for index in range(count)]
    assert len(providers.first.asked) + len(providers.second.asked) == count


################################################################
# TOOLS AND STRUCTURED OUTPUT
################################################################


@pytest.mark.parametrize("is_stream", [False, True], ids=["unary", "stream"])
def test_a_chat_tool_loop(is_stream: bool, client: openai.OpenAI, providers: Providers) -> None:
    providers.first.will(calls("weather", CITY), says(hasToolResult=True))
    tool: ChatCompletionToolParam = {
        "type": "function",
        "function": {"name": "weather", "parameters": WEATHER, "strict": True},
    }
    if is_stream:
        with client.chat.completions.stream(model=MODEL, messages=ASKED, tools=[tool]) as stream:
            choice: Any = stream.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(model=MODEL, messages=ASKED, tools=[tool])
        choice = choice.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == CITY
    reply: Any = [
        *ASKED,
        {"role": "assistant", "tool_calls": [call.model_dump(include={"id", "type", "function"})]},
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    made = client.chat.completions.create(model=MODEL, messages=reply, tools=[tool])
    assert made.choices[0].message.content == ANSWER


@pytest.mark.parametrize("is_stream", [False, True], ids=["unary", "stream"])
def test_a_response_tool_loop(is_stream: bool, client: openai.OpenAI, providers: Providers) -> None:
    providers.first.will(calls("weather", CITY), says(hasToolResult=True))
    tool: FunctionToolParam = {
        "type": "function", "name": "weather", "parameters": WEATHER, "strict": True
    }  # fmt: skip
    asked: ResponseInputParam = [{"role": "user", "content": PROMPT}]
    if is_stream:
        with client.responses.stream(model=MODEL, input=asked, tools=[tool]) as stream:
            made: Any = stream.get_final_response()
    else:
        made = client.responses.create(model=MODEL, input=asked, tools=[tool])
    (call,) = made.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", CITY)
    asked += [
        {
            "type": "function_call",
            "call_id": call.call_id,
            "name": call.name,
            "arguments": call.arguments,
        },
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    made = client.responses.create(model=MODEL, input=asked, tools=[tool])
    assert made.output_text == ANSWER


def test_structured_output_is_parsed(client: openai.OpenAI, providers: Providers) -> None:
    providers.first.will(says(JAM.model_dump_json()))
    chat = client.chat.completions.parse(model=MODEL, messages=ASKED, response_format=Jam)
    assert chat.choices[0].message.parsed == JAM
    response = client.responses.parse(model=MODEL, input=PROMPT, text_format=Jam)
    assert response.output_parsed == JAM
    with client.responses.stream(model=MODEL, input=PROMPT, text_format=Jam) as stream:
        assert stream.get_final_response().output_parsed == JAM
    chat_format, *formats = (asked.body for asked in providers.first.asked)
    assert chat_format["response_format"]["json_schema"]["strict"] is True
    assert [body["text"]["format"]["type"] for body in formats] == ["json_schema"] * 2


################################################################
# MODELS AND REQUEST IDS
################################################################


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-none")
    assert caught.value.code == "model_not_found"


def test_models_are_what_the_upstreams_list(providers: Providers) -> None:
    providers.first.will(says(model=MODEL))
    providers.second.will(says(model="gpt-local"))
    pooler = providers.start({"models": None}, {"models": None})
    deadline = time.monotonic() + SECONDS_MAX
    with openai.OpenAI(base_url=pooler.base_url, api_key=POOL_KEY, max_retries=0) as client:
        while {model.id for model in client.models.list()} != {MODEL, "gpt-local"}:
            assert time.monotonic() < deadline
        client.responses.create(model="gpt-local", input=PROMPT)
    assert [len(providers.first.asked), len(providers.second.asked)] == [0, 1]


def test_an_answer_and_an_error_tell_the_request_id_of_the_log(
    client: openai.OpenAI, pooler: Pooler, providers: Providers
) -> None:
    providers.first.will(says())
    made = client.responses.create(model=MODEL, input=PROMPT)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="gpt-none", input=PROMPT)
    ids = [made._request_id or "", caught.value.request_id or ""]
    assert all(re.fullmatch("[a-z]+", one) for one in ids)
    assert [line["request_id"] for line in pooler.stop_and_read()] == ids


################################################################
# ERRORS
################################################################

Call = Callable[[openai.OpenAI, str], object]
ROUTES: Final[list[Call]] = [
    lambda client, model: client.responses.create(model=model, input=PROMPT),
    lambda client, model: client.responses.create(model=model, input=PROMPT, stream=True),
    lambda client, model: client.chat.completions.create(model=model, messages=ASKED),
    lambda client, model: client.chat.completions.create(model=model, messages=ASKED, stream=True),
]
each_route: Final = pytest.mark.parametrize(
    "call", ROUTES, ids=["responses", "responses-stream", "chat", "chat-stream"]
)


@each_route
def test_a_wrong_key(call: Call, client: openai.OpenAI, providers: Providers) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        call(client.with_options(api_key=OTHER_POOL_KEY), MODEL)
    assert caught.value.code == "invalid_api_key"
    assert providers.first.asked == []


@each_route
def test_an_unknown_model(call: Call, pooler: Pooler, providers: Providers) -> None:
    with (
        openai.OpenAI(base_url=pooler.base_url, api_key=POOL_KEY) as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        call(client, "gpt-none")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert providers.first.asked == []


@each_route
def test_an_exhausted_pool_is_not_asked_again(
    call: Call, pooler: Pooler, providers: Providers
) -> None:
    for _, upstream in providers.upstreams():
        upstream.will(fails(429, "usage_limit_reached", after=3600))
    with (
        openai.OpenAI(base_url=pooler.base_url, api_key=POOL_KEY) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        call(client, MODEL)
    assert (caught.value.code, caught.value.type) == ("usage_limit_reached",) * 2
    assert isinstance(caught.value.body, dict)
    assert 3500 < caught.value.body["resets_in_seconds"] <= 3600
    assert [upstream.statuses() for _, upstream in providers.upstreams()] == [[429], [429]]
    assert len(pooler.stop_and_read()) == 1  # by default the SDK tries again


@each_route
@pytest.mark.parametrize("status", [500, 503])
def test_broken_upstreams(
    status: int, call: Call, client: openai.OpenAI, providers: Providers
) -> None:
    for _, upstream in providers.upstreams():
        upstream.will(fails(status, "server_error"))
    with pytest.raises(openai.InternalServerError) as caught:
        call(client, MODEL)
    assert caught.value.status_code == status
    assert [upstream.statuses() for _, upstream in providers.upstreams()] == [[status], [status]]


@each_route
def test_an_upstream_s_word_about_the_request_is_passed_on(
    call: Call, client: openai.OpenAI, providers: Providers
) -> None:
    providers.first.will(fails(400, "context_length_exceeded", kind="invalid_request_error"))
    with pytest.raises(openai.BadRequestError, match="The upstream is not well") as caught:
        call(client, MODEL)
    assert caught.value.code == "context_length_exceeded"
    assert providers.second.asked == []


def test_a_route_that_is_not_served(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model=MODEL, input=PROMPT)
    assert caught.value.code == "unsupported_endpoint"


@each_route
@pytest.mark.parametrize(
    "fault",
    [fails(429, "usage_limit_reached", after=3600), fails(503, "overloaded"), fails(401, "no")],
    ids=["limited", "overloaded", "refused"],
)
def test_failover_is_not_seen(
    fault: dict[str, Any], call: Call, client: openai.OpenAI, providers: Providers
) -> None:
    providers.first.will(fault)
    providers.second.will(says())
    answer = call(client, MODEL)
    if isinstance(answer, openai.Stream):
        assert len(list(answer)) > 1
        answer.close()
    call(client, MODEL)  # the first one is left alone now
    assert [len(upstream.asked) for _, upstream in providers.upstreams()] == [1, 2]
    assert providers.second.asked[0].body == providers.first.asked[0].body


################################################################
# STREAMS THAT END BADLY
################################################################


def cut(fixture: dict[str, Any], chunk_count: int) -> dict[str, Any]:
    """The same, but slowly, and the upstream drops the connection after some chunks."""
    return {**fixture, "latency": 20, "truncateAfterChunks": chunk_count}


def test_a_cut_response_stream_ends_with_a_failure(
    client: openai.OpenAI, providers: Providers
) -> None:
    providers.first.will(cut(says(), 6))
    with client.responses.create(model=MODEL, input=PROMPT, stream=True) as stream:
        events = list(stream)
    assert "response.output_text.delta" in [event.type for event in events]
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert [event.type for event in events].count("response.failed") == 1
    assert providers.second.asked == []


def test_a_cut_chat_stream_raises(client: openai.OpenAI, providers: Providers) -> None:
    providers.first.will(cut(says(), 3))
    told = []
    with (
        client.chat.completions.create(model=MODEL, messages=ASKED, stream=True) as stream,
        pytest.raises(openai.APIError) as caught,
    ):
        told += [chunk.choices[0].delta.content for chunk in stream]
    assert caught.value.code == "upstream_stream_truncated"
    assert providers.second.asked == []


def test_a_stream_that_is_left_is_left_upstream_too(
    client: openai.OpenAI, providers: Providers
) -> None:
    providers.first.will({**says(ANSWER * 100), "latency": 50})
    with client.responses.create(model=MODEL, input=PROMPT, stream=True) as stream:
        assert any(event.type == "response.output_text.delta" for event in stream)
        assert providers.first.tap.hangups.empty()
    providers.first.tap.hangups.get(timeout=5)
