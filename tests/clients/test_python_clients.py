"""Proves that what is built on openai-python works: instructor, LangChain and the `llm` command.

Method: the packages as published, in an environment of their own (`.ci/run` makes it), against the
real pooler over ChatGPT accounts and over ones with an API key.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.clients.aimock import HERE, MODEL, Providers, installed_python, says
from tests.clients.codex import Backend, CodexPool
from tests.support.codex_backend import Play
from tests.support.processes import ANSWER, POOL_KEY, PROMPT, SECONDS_MAX, Pooler, clean_env

JAM: Final = {"fruit": "quinces", "minutes": 50}
SYSTEM: Final = "Be brief."
each_client: Final = pytest.mark.parametrize("client", ["instructor", "langchain"])
each_api: Final = pytest.mark.parametrize("api", ["chat", "responses"])


def run(*command: str, env: Mapping[str, str]) -> str:
    """What a program prints."""
    done = subprocess.run(
        [installed_python(command[0]), *command[1:]],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * SECONDS_MAX,  # to load LangChain takes its time
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


################################################################
# JSON MODE, WITH THE WORD ONLY IN THE SYSTEM MESSAGE
################################################################


def ask_for_jam(client: str, pooler: Pooler) -> object:
    script = str(HERE / "python_clients.py")
    env = clean_env(POOLER_URL=pooler.base_url, CODEX_POOLER_API_KEY=POOL_KEY)
    return json.loads(run("python", script, client, MODEL, PROMPT, env=env))


@each_client
def test_json_mode_works_with_a_chatgpt_account(
    client: str, codex_pool: CodexPool, backend: Backend
) -> None:
    backend.will(Play(text=json.dumps(JAM)))
    assert ask_for_jam(client, codex_pool.start()) == JAM
    (seen,) = backend.asked()
    assert seen.body["text"]["format"] == {"type": "json_object"}
    first, *others = seen.body["input"]
    assert first["role"] == "developer"
    assert "json" in json.dumps(first).lower()
    assert "json" not in json.dumps(others).lower()


@each_client
def test_json_mode_works_with_an_api_key(client: str, pooler: Pooler, providers: Providers) -> None:
    providers.first.will(says(json.dumps(JAM)))
    assert ask_for_jam(client, pooler) == JAM
    (asked,) = providers.first.asked
    assert asked.body["response_format"] == {"type": "json_object"}
    assert asked.body["messages"][0]["role"] == "system"


################################################################
# ONE CONVERSATION, ONE ACCOUNT
################################################################


class Llm:
    """The `llm` command, with a home of its own; a second question goes on with the first."""

    def __init__(self, folder: Path, pooler: Pooler, api: str) -> None:
        self.env = clean_env(LLM_USER_PATH=str(folder), HOME=str(folder))
        model = {
            "model_id": "pooled",
            "model_name": MODEL,
            "api_base": pooler.base_url,
            "api_key_name": "pooler",
            "responses": api == "responses",
        }
        (folder / "extra-openai-models.yaml").write_text(json.dumps([model]))

    def ask(self, question: str, *options: str) -> str:
        return run("llm", question, "-m", "pooled", "--key", POOL_KEY, *options, env=self.env)


def converse(folder: Path, pooler: Pooler, api: str) -> None:
    """Two turns of a conversation."""
    folder.mkdir()
    llm = Llm(folder, pooler, api)
    assert llm.ask(PROMPT, "-s", SYSTEM) == f"{ANSWER}\n"
    assert llm.ask("And then?", "-c") == f"{ANSWER}\n"


@each_api
def test_a_conversation_stays_on_one_of_three_chatgpt_accounts(
    api: str, codex_pool: CodexPool, backend: Backend, tmp_path: Path
) -> None:
    codex_pool.log_in("third")
    converse(tmp_path / "llm", codex_pool.start(routing="sticky"), api)
    first, second = backend.asked()
    assert len(second.body["input"]) > len(first.body["input"])
    assert second.account == first.account
    session = first.headers["session-id"]
    assert session
    assert second.headers["session-id"] == session
    assert [seen.body["prompt_cache_key"] for seen in (first, second)] == [session] * 2


@each_api
def test_a_conversation_stays_on_one_api_key(
    api: str, providers: Providers, tmp_path: Path
) -> None:
    for _, upstream in providers.upstreams():
        upstream.will(says())
    converse(tmp_path / "llm", providers.start(pool={"routing": "sticky"}), api)
    counts = sorted(len(upstream.asked) for _, upstream in providers.upstreams())
    assert counts == [0, 2]
    (asked,) = [upstream.asked for _, upstream in providers.upstreams() if upstream.asked]
    assert not [one for one in asked if {"prompt_cache_key", "session_id"} & one.body.keys()]
