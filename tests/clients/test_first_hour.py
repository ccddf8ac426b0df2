"""Proves that the README's five commands lead from an empty folder to a pool that works.

Method: the commands as they stand in the README, as processes in an empty folder, with an API key
and a local server added to the first; a person, played by the test, enters each login's code.  What
`init` has printed is then pasted into OpenCode and Codex CLI.  In pools.json only the addresses of
the upstreams are changed, which cannot be reached from a test, and the local server has a key.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients.aimock import MODEL, Upstream, installed, says
from tests.clients.codex import PROGRAM, Backend
from tests.clients.opencode import OpenCode
from tests.support.codex_backend import PREFIX
from tests.support.paths import ROOT
from tests.support.processes import (
    ANSWER,
    API_KEYS,
    PROMPT,
    SECONDS_MAX,
    Running,
    clean_env,
)

LOCAL_MODEL: Final = "qwen3-coder"
COMMANDS_MAX: Final = 5


class FirstHour:
    """A newcomer's folder, and the commands that are run in it."""

    def __init__(self, folder: Path, issuer: Backend, platform: Upstream, local: Upstream) -> None:
        self.folder = folder
        self.issuer = issuer
        self.platform = platform
        self.local = local
        self.count = 0
        self.env = clean_env(
            OPENAI_API_KEY=API_KEYS["first"],
            CODEX_REFRESH_TOKEN_URL_OVERRIDE=f"{issuer.origin}/oauth/token",
        )

    def commands(self) -> Iterator[list[str]]:
        """Those of the README, each as words."""
        chapter = (ROOT / "README.md").read_text(encoding="utf-8").partition("in five commands")[2]
        block = re.search(r"```sh\n(.*?)```", chapter, re.DOTALL)
        assert block is not None
        for line in block[1].splitlines():
            program, *words = shlex.split(line)
            assert program == "pooler"
            yield words

    def start(self, *words: str) -> Running:
        self.count += 1
        command = [sys.executable, str(ROOT / "pooler.py"), *words]
        return Running(*command, env=self.env, cwd=self.folder)

    def run(self, *words: str) -> str:
        """What a command prints; it must end well."""
        running = self.start(*words)
        assert running.process.wait(SECONDS_MAX) == 0, running.output
        running.end()
        return running.output

    def log_in(self, *words: str) -> str:
        """What a login prints, after a person has entered its code."""
        running = self.start(*words)
        code = running.wait_line(r"\b([A-Z0-9]{4}-[A-Z0-9]{4,5})\b")
        self.issuer.approve(code, f"acct-{words[-1]}")
        assert running.process.wait(SECONDS_MAX) == 0, running.output
        running.end()
        return running.output

    def turn_to_fakes(self) -> None:
        """Change what a test must in pools.json: addresses, and the key of the local server."""
        path = self.folder / "pools.json"
        config = json.loads(path.read_text())
        config["listen"] = "127.0.0.1:0"
        for account in config["accounts"].values():
            if account["type"] == "codex":
                account["base_url"] = f"{self.issuer.origin}{PREFIX}"
        config["accounts"]["platform"]["base_url"] = self.platform.base_url
        config["accounts"]["llama"]["api_key"] = API_KEYS["second"]
        path.write_text(json.dumps(config))


@pytest.fixture
def hour(tmp_path: Path, upstreams: tuple[Upstream, Upstream]) -> Iterator[FirstHour]:
    folder = tmp_path / "empty"
    folder.mkdir()
    with contextlib.closing(Backend("tests.support.device_logins")) as issuer:
        platform, local = upstreams
        for upstream in upstreams:
            upstream.reset()
            upstream.will(says())
        yield FirstHour(folder, issuer, platform, local)


def block_in(printed: str, begin: str) -> str:
    """The lines that `init` has printed for a client, up to the next empty line that ends them."""
    after = printed.partition(begin)[2].partition("\n\n")[2]
    return re.split(r"\n\n(?=[A-Z])", after)[0]


def secret_in(printed: str, variable: str) -> str:
    match = re.search(rf"export {variable}=(\S+)", printed)
    assert match is not None, printed
    return match[1]


def run_codex(config: str, key: str, folder: Path) -> str:
    """What the real Codex CLI answers with a configuration as it was printed."""
    home = folder / "codex"
    home.mkdir()
    more = 'approval_policy = "never"\nsandbox_mode = "danger-full-access"\n'
    (home / "config.toml").write_text(more + config)
    done = subprocess.run(
        [installed("@openai/codex-linux-x64", PROGRAM), "exec", "--skip-git-repo-check", PROMPT],
        cwd=folder,
        env=clean_env(HOME=str(home), CODEX_HOME=str(home), CODEX_POOLER_API_KEY=key),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_five_commands_lead_to_a_pool_that_serves_opencode_and_codex(
    hour: FirstHour, tmp_path: Path
) -> None:
    init, first_login, second_login, check, serve = hour.commands()
    local = ["--openai", "--local", f"llama={hour.local.base_url},{LOCAL_MODEL}"]
    printed = hour.run(*init, *local)
    hour.turn_to_fakes()
    for words in (first_login, second_login):
        assert f"acct-{words[-1]}" in hour.log_in(*words)
    checked = hour.run(*check)
    for account in ("personal", "second", "platform", "llama"):
        assert account in checked
    server = hour.start(*serve)
    assert hour.count <= COMMANDS_MAX
    address = server.wait_line(r'"event": ?"listening".*"address": ?"([^"]+)"')

    key = secret_in(printed, "CODEX_POOLER_API_KEY")
    pasted = block_in(printed, "OpenCode:").replace("127.0.0.1:4000", address)
    config: dict[str, Any] = json.loads(pasted)
    opencode = OpenCode(tmp_path)
    opencode.switches["CODEX_POOLER_OPERATOR_TOKEN"] = secret_in(
        printed, "CODEX_POOLER_OPERATOR_TOKEN"
    )
    turn = opencode.run(config=config, key=key)
    assert (turn.text, turn.errors) == (ANSWER, [])

    toml = block_in(printed, "Codex CLI:").replace("127.0.0.1:4000", address)
    assert ANSWER in run_codex(toml, key, tmp_path)
    assert {seen.body["model"] for seen in hour.issuer.turns() if seen.body} == {MODEL}
    assert {seen.account for seen in hour.issuer.turns()} <= {"acct-personal", "acct-second"}

    assert server.end() == 0, server.output
    assert key not in server.output
