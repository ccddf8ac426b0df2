"""Proves that OpenCode works with what `pooler init` writes and prints.

Method: the command as a process, its pools.json served by the real server, and the configuration
that it prints given to the real program; in both only addresses are changed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.clients.aimock import TITLE_MODEL, Providers, says
from tests.clients.opencode import JSON_LINES, TITLE, OpenCode, turns
from tests.support.local_servers import LocalServer, local_server, response
from tests.support.processes import ANSWER, PROMPT, Pooler
from tests.support.server_process import run_pooler
from tests.support.world import chat_events, responses_events

Json = Any
MODEL: Final = "gpt-5.5"
TINY: Final = "tiny"


class Setup(NamedTuple):
    """What `pooler init` has written and printed."""

    config: Json
    opencode: Json
    key: str
    token: str


def init(folder: Path, *arguments: str) -> Setup:
    done = run_pooler("init", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / "pools.json").read_text())
    (folder / "pools.json").unlink()  # the server's is the same, with another address
    pasted = re.search(r"opencode\.json\n\n(\{.*?\n\})\n", done.stdout, re.DOTALL)
    key = re.search(r"CODEX_POOLER_API_KEY=(\S+)", done.stdout)
    token = re.search(r"CODEX_POOLER_OPERATOR_TOKEN=(\S+)", done.stdout)
    assert pasted is not None
    assert key is not None
    assert token is not None
    return Setup(config | {"listen": "127.0.0.1:0"}, json.loads(pasted[1]), key[1], token[1])


def run(setup: Setup, opencode: OpenCode, pooler: Pooler, *arguments: str) -> str:
    """What OpenCode prints with the configuration, at the server's address."""
    text = json.dumps(setup.opencode).replace("http://127.0.0.1:4000", pooler.origin)
    env = opencode.env(json.loads(text), setup.key)
    env["CODEX_POOLER_OPERATOR_TOKEN"] = setup.token
    done = opencode.finish([opencode.program, *arguments], env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def text_of(printed: str) -> str:
    events = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return "".join(event["part"]["text"] for event in events if event["type"] == "text")


@pytest.fixture
def opencode(tmp_path: Path) -> OpenCode:
    (tmp_path / "client").mkdir()
    return OpenCode(tmp_path / "client")


def sse(events: list[Json]) -> bytes:
    lines = [
        b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode())
        for event in events
    ]
    return response(200, b"".join(line + b"\n\n" for line in lines), "text/event-stream")


def will_answer(server: LocalServer, has_responses: bool) -> None:
    if has_responses:
        item = {"type": "message", "id": "i", "role": "assistant", "content": []}
        created, *rest = responses_events(ANSWER, model=TINY)
        added = {"type": "response.output_item.added", "output_index": 0, "item": item}
        server.routes["POST /v1/responses"] = sse([created, added, *rest])
    else:
        server.routes["POST /v1/chat/completions"] = sse(chat_events(ANSWER, model=TINY))


@pytest.mark.parametrize("has_responses", [False, True])
def test_a_local_server_responds_by_the_api_that_it_has(
    has_responses: bool, opencode: OpenCode, tmp_path: Path
) -> None:
    with local_server(TINY, has_responses=has_responses) as server:
        setup = init(tmp_path, "--local", f"llama={server.url}")
        will_answer(server, has_responses)
        pooler = Pooler(setup.config, tmp_path)
        printed = run(setup, opencode, pooler, "run", PROMPT, *JSON_LINES)
        pooler.stop()
    assert text_of(printed) == ANSWER
    path = "responses" if has_responses else "chat/completions"
    assert server.asked[2:] == [f"POST /v1/{path}"] * 2  # the turn, and the title


def test_an_api_key_responds_with_the_effort_that_is_written(
    opencode: OpenCode, providers: Providers, tmp_path: Path
) -> None:
    upstream = providers.first
    upstream.will(says(TITLE, model=TITLE_MODEL), says(model=MODEL))
    setup = init(tmp_path, "--openai")
    setup.config["accounts"]["platform"]["base_url"] = upstream.base_url
    pooler = Pooler(setup.config, tmp_path, OPENAI_API_KEY=upstream.api_key)

    assert "✓ codex_pooler" in run(setup, opencode, pooler, "mcp", "list")
    printed = run(setup, opencode, pooler, "run", PROMPT, *JSON_LINES)
    pooler.stop()
    assert text_of(printed) == ANSWER
    [turn] = turns(upstream)
    assert turn.body["model"] == MODEL
    assert turn.body["reasoning"] == {"effort": "high", "summary": "auto"}
    assert turn.body["text"]["verbosity"] == "medium"
    assert turn.body["store"] is False
    titles = [asked.body["model"] for asked in upstream.asked if asked is not turn]
    assert titles == [TITLE_MODEL]
