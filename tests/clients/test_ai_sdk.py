"""Proves that the Vercel AI SDK and openai-node work: answers, streams, tools, their own errors.

Method: each case is a run of `ai_sdk.mjs` or `openai_node.mjs` under the Node of the npm package,
with the SDKs' own defaults (they retry), and prints JSON.
"""

from __future__ import annotations

import json
from typing import Final

import pytest

from tests.clients.ai_sdk import run_script
from tests.clients.aimock import MODEL, USAGE, Providers, calls, fails, says
from tests.support.processes import (
    ANSWER,
    OTHER_POOL_KEY,
    POOL_KEY,
    PROMPT,
    Pooler,
)

CITY: Final = {"city": "Quito"}
APIS: Final = {"responses": "/v1/responses", "chat": "/v1/chat/completions"}
each_release: Final = pytest.mark.parametrize("release", ["5", "7"])
each_api: Final = pytest.mark.parametrize("api", APIS)

Refusal = tuple[str, str, int, str]  # key, model; status, code
each_refusal: Final = pytest.mark.parametrize(
    "refusal",
    [
        pytest.param((OTHER_POOL_KEY, MODEL, 401, "invalid_api_key"), id="wrong-key"),
        pytest.param((POOL_KEY, "gpt-none", 400, "model_not_found"), id="unknown-model"),
    ],
)


################################################################
# THE AI SDK
################################################################


@each_api
def test_text_is_generated(api: str, pooler: Pooler, providers: Providers) -> None:
    providers.first.will(says())
    made = run_script("ai_sdk.mjs", "generate", api, MODEL, PROMPT, pooler=pooler)
    assert (made["text"], made["finish"]) == (ANSWER, "stop")
    assert made["usage"]["inputTokens"] == USAGE["input_tokens"]
    assert [asked.path for asked in providers.first.asked] == [APIS[api]]


@each_api
def test_text_is_streamed(api: str, pooler: Pooler, providers: Providers) -> None:
    providers.first.will(says())
    made = run_script("ai_sdk.mjs", "stream", api, MODEL, PROMPT, pooler=pooler)
    assert (made["text"], made["finish"], made["errors"]) == (ANSWER, "stop", [])
    assert made["deltaCount"] > 1
    assert made["usage"]["outputTokens"] == USAGE["output_tokens"]
    assert [asked.path for asked in providers.first.asked] == [APIS[api]]


@each_api
@pytest.mark.parametrize("case", ["tools", "toolsStream"])
def test_a_tool_is_called_and_its_result_used(
    case: str, api: str, pooler: Pooler, providers: Providers
) -> None:
    providers.first.will(calls("weather", CITY), says(hasToolResult=True))
    made = run_script("ai_sdk.mjs", case, api, MODEL, PROMPT, pooler=pooler)
    assert (made["text"], made["stepCount"]) == (ANSWER, 2)
    asked, answered = providers.first.asked
    assert "rain in Quito" not in asked.text
    assert "rain in Quito" in answered.text


@each_api
@each_release
def test_a_second_turn_is_asked_as_the_sdk_asks_it(
    release: str, api: str, pooler: Pooler, providers: Providers
) -> None:
    """The older one refers to what is stored at this upstream, if it is not told otherwise."""
    providers.first.will(says())
    made = run_script(
        "ai_sdk.mjs", "secondTurn", api, MODEL, PROMPT, pooler=pooler, release=release
    )
    assert (made["first"], made["text"], made["errors"]) == (ANSWER, ANSWER, [])
    _, second = providers.first.asked
    assert ("item_reference" in second.text) is (api == "responses" and release == "5")


@each_api
def test_an_object_is_generated(api: str, pooler: Pooler, providers: Providers) -> None:
    jam = {"fruit": "quinces", "minutes": 50}
    providers.first.will(says(json.dumps(jam)))
    assert run_script("ai_sdk.mjs", "object", api, MODEL, PROMPT, pooler=pooler) == jam


@each_api
@pytest.mark.parametrize("case", ["generate", "stream"])
def test_failover_is_not_seen(case: str, api: str, pooler: Pooler, providers: Providers) -> None:
    providers.first.will(fails(429, "usage_limit_reached", after=3600))
    providers.second.will(says())
    made = run_script("ai_sdk.mjs", case, api, MODEL, PROMPT, pooler=pooler)
    assert made["text"] == ANSWER
    assert [len(upstream.asked) for _, upstream in providers.upstreams()] == [1, 1]
    assert len(pooler.stop_and_read()) == 1


@each_api
@pytest.mark.parametrize("case", ["generate", "stream"])
@each_refusal
def test_an_error_is_final_and_readable(
    refusal: Refusal, case: str, api: str, pooler: Pooler
) -> None:
    key, model, status, code = refusal
    made = run_script("ai_sdk.mjs", case, api, model, PROMPT, pooler=pooler, key=key)
    thrown = made["errors"][0] if case == "stream" else made["thrown"]
    assert (thrown["kind"], thrown["statusCode"]) == ("AI_APICallError", status)
    assert (thrown["isRetryable"], thrown["tries"]) == (False, 1)
    told = json.loads(thrown["responseBody"])["error"]
    assert (told["code"], told["message"]) == (code, thrown["message"])


def test_a_pool_that_is_back_soon_is_asked_again(pooler: Pooler, providers: Providers) -> None:
    for _, upstream in providers.upstreams():
        upstream.will(fails(429, "usage_limit_reached", sequenceIndex=0), says())
    made = run_script("ai_sdk.mjs", "generate", "responses", MODEL, PROMPT, pooler=pooler)
    assert made["text"] == ANSWER
    assert len(providers.first.asked) == 2
    statuses = [line["status"] for line in pooler.stop_and_read()]
    assert (statuses[0], statuses[-1]) == (429, 200)


def test_a_stream_that_is_cut_is_an_error(pooler: Pooler, providers: Providers) -> None:
    providers.first.will({**says(), "latency": 20, "truncateAfterChunks": 6})
    made = run_script("ai_sdk.mjs", "stream", "responses", MODEL, PROMPT, pooler=pooler)
    assert made["errors"] != []
    assert ANSWER.startswith(made["text"])
    assert providers.second.asked == []


################################################################
# OPENAI-NODE
################################################################

ANSWERED: Final = "response responseHelper responseStream chat chatHelper chatStream".split()


@pytest.mark.parametrize("case", ANSWERED)
def test_openai_node_answers(case: str, pooler: Pooler, providers: Providers) -> None:
    providers.first.will(says())
    made = run_script("openai_node.mjs", case, MODEL, PROMPT, pooler=pooler)
    assert made["text"] == ANSWER
    assert made.get("id", "letters").isalpha()


def test_openai_node_runs_tools(pooler: Pooler, providers: Providers) -> None:
    providers.first.will(calls("weather", CITY), says(hasToolResult=True))
    assert run_script("openai_node.mjs", "tools", MODEL, PROMPT, pooler=pooler) == {"text": ANSWER}
    assert "rain in Quito" in providers.first.asked[1].text


def test_openai_node_lists_models(pooler: Pooler) -> None:
    assert run_script("openai_node.mjs", "models", MODEL, PROMPT, pooler=pooler) == {"ids": [MODEL]}


@pytest.mark.parametrize("case", ["response", "responseStream", "chat", "chatStream"])
@each_refusal
def test_openai_node_maps_errors(
    refusal: Refusal, case: str, pooler: Pooler, providers: Providers
) -> None:
    key, model, status, code = refusal
    thrown = run_script("openai_node.mjs", case, model, PROMPT, pooler=pooler, key=key)["thrown"]
    kind = {401: "AuthenticationError", 400: "BadRequestError"}[status]
    assert (thrown["kind"], thrown["status"], thrown["code"]) == (kind, status, code)
    assert thrown["requestID"].isalpha()
    assert providers.first.asked == []


def test_openai_node_does_not_ask_an_exhausted_pool_again(
    pooler: Pooler, providers: Providers
) -> None:
    for _, upstream in providers.upstreams():
        upstream.will(fails(429, "usage_limit_reached", after=3600))
    thrown = run_script("openai_node.mjs", "response", MODEL, PROMPT, pooler=pooler)["thrown"]
    assert (thrown["kind"], thrown["code"]) == ("RateLimitError", "usage_limit_reached")
    assert len(pooler.stop_and_read()) == 1  # by default the SDK tries again


def test_openai_node_raises_where_a_chat_stream_is_cut(
    pooler: Pooler, providers: Providers
) -> None:
    providers.first.will({**says(), "latency": 20, "truncateAfterChunks": 3})
    thrown = run_script("openai_node.mjs", "chatStream", MODEL, PROMPT, pooler=pooler)["thrown"]
    assert (thrown["kind"], thrown["code"]) == ("APIError", "upstream_stream_truncated")
