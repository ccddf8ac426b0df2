"""Proves that Qwen Code, which names no session of its own, runs a tool loop on one account.

Method: the real program, headless, in an empty home.  It asks for its own memory beside the turn,
so a test looks at the requests that offer the tool.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients.aimock import MODEL, Providers, calls, installed, node, says
from tests.clients.codex import Backend, CodexPool, limited
from tests.support.codex_backend import Play
from tests.support.processes import ANSWER, POOL_KEY, PROMPT, SECONDS_MAX, Pooler, clean_env

RECIPE: Final = "Peel, cut, boil."


class QwenCode:
    """The program in a home and a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.program = installed("@qwen-code/qwen-code", "cli.js")
        self.home = folder / "home"
        self.project = folder / "project"
        self.home.mkdir()
        self.project.mkdir()
        (self.project / "recipe.txt").write_text(RECIPE)

    @property
    def arguments(self) -> dict[str, str]:
        """Those of its tool that reads a file."""
        return {"file_path": str(self.project / "recipe.txt")}

    def run(self, pooler: Pooler) -> dict[str, Any]:
        """The result of a turn, as it tells it at its end."""
        done = subprocess.run(
            [node(), self.program, PROMPT, "--yolo", "--auth-type", "openai", "-o", "json"],
            cwd=self.project,
            env=clean_env(
                HOME=str(self.home),
                OPENAI_BASE_URL=pooler.base_url,
                OPENAI_API_KEY=POOL_KEY,
                OPENAI_MODEL=MODEL,
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)[-1]
        return result


@pytest.fixture
def qwen(tmp_path: Path) -> QwenCode:
    return QwenCode(tmp_path)


def assert_well(result: dict[str, Any]) -> None:
    assert (result["result"], result["is_error"]) == (ANSWER, False)
    assert result["stats"]["tools"]["byName"]["read_file"]["success"] == 1


@pytest.mark.parametrize("is_limited", [False, True], ids=["one-account", "failover"])
def test_a_tool_loop_with_chatgpt_accounts(
    is_limited: bool, qwen: QwenCode, codex_pool: CodexPool, backend: Backend
) -> None:
    backend.will(Play(tool="read_file", arguments=qwen.arguments, with_tools=True))
    codex_pool.log_in("third")
    if is_limited:
        backend.will(limited("acct-first", with_tools=True))
    assert_well(qwen.run(codex_pool.start(routing="in_order" if is_limited else "sticky")))
    loop = [seen for seen in backend.turns() if PROMPT in json.dumps(seen.body["input"])]
    assert RECIPE in json.dumps(loop[-1].body["input"])
    assert len({seen.headers["session-id"] for seen in loop}) == 1
    accounts = [seen.account for seen in loop]
    moved = ["acct-first", "acct-first", "acct-second"]
    assert accounts == (moved if is_limited else accounts[:1] * 2)


def test_a_tool_loop_with_an_api_key(qwen: QwenCode, providers: Providers) -> None:
    for _, upstream in providers.upstreams():
        upstream.will(calls("read_file", qwen.arguments), says(hasToolResult=True), says())
    assert_well(qwen.run(providers.start(pool={"routing": "sticky"})))
    asked = [one for _, upstream in providers.upstreams() for one in upstream.asked]
    assert any(RECIPE in one.text for one in asked)
