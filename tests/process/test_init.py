"""Proves that `pooler init` writes a configuration that works, and says all that a user needs next.

Method: the texts are made from values.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

import pooler
from pooler import OfferedModel

URL = "http://127.0.0.1:4000"

################################################################
# OPENCODE'S CONFIGURATION
################################################################


def opencode(*models: OfferedModel, **more: Any) -> Any:  # noqa: ANN401 (JSON)
    return json.loads(pooler.opencode_config(URL, models, **more))


def test_opencode_asks_for_a_models_responses_with_the_keys_of_its_environment() -> None:
    config = opencode(OfferedModel("gpt-5.5"), has_operator=True)
    assert config["model"] == config["small_model"] == "openai/gpt-5.5"
    [provider] = config["provider"].values()
    assert provider["npm"] == "@ai-sdk/openai"
    assert provider["options"] == {
        "baseURL": f"{URL}/v1",
        "apiKey": "{env:CODEX_POOLER_API_KEY}",
        "include": ["reasoning.encrypted_content"],
        "store": False,
    }
    [model] = provider["models"].values()
    assert model["limit"] == {"context": 400_000, "input": 256_000, "output": 128_000}
    assert model["options"]["reasoningEffort"] == "high"
    [server] = config["mcp"].values()
    assert server["url"] == f"{URL}/mcp"
    assert server["headers"] == {"Authorization": "Bearer {env:CODEX_POOLER_OPERATOR_TOKEN}"}


def test_opencode_asks_a_server_that_speaks_only_chat_by_chat() -> None:
    models = [OfferedModel("gpt-5.5"), OfferedModel("qwen", True, 8192), OfferedModel("big", True)]
    config = opencode(*models, small_model="qwen")
    assert (config["model"], config["small_model"]) == ("openai/gpt-5.5", "pooler/qwen")
    assert "mcp" not in config
    assert list(config["provider"]["openai"]["models"]) == ["gpt-5.5"]
    chat = config["provider"]["pooler"]
    assert chat["npm"] == "@ai-sdk/openai-compatible"
    assert chat["options"] == {
        "baseURL": f"{URL}/v1",
        "apiKey": "{env:CODEX_POOLER_API_KEY}",
    }
    assert chat["models"]["qwen"]["limit"] == {"context": 8192, "output": 2048}
    assert "limit" not in chat["models"]["big"]


def test_opencode_may_take_titles_from_a_model_that_is_not_listed() -> None:
    config = opencode(OfferedModel("gpt-5.5"), small_model="gpt-5.4-nano")
    assert config["small_model"] == "openai/gpt-5.4-nano"


@pytest.mark.parametrize(
    "value", [{}, [], {"a": []}, {"a": {"b": ["x" * 60, {"é": "y" * 60}], "c": 1}}, "x", 1.5, None]
)
def test_readable_json_is_json_that_fits_a_terminal(value: Any) -> None:  # noqa: ANN401 (JSON)
    text = pooler.readable_json(value)
    assert json.loads(text) == value
    assert max(map(len, text.split("\n"))) <= 96
