"""OpenCode as a program, with the configuration of README.md.  (No claims.)"""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.clients.aimock import MODEL, Asked, Upstream, installed
from tests.support.paths import ROOT
from tests.support.processes import POOL_KEY, PROMPT, Pooler, Running, clean_env

TURN_SECONDS_MAX: Final = 55.0
TITLE: Final = "On quinces"
JSON_LINES: Final = ("--format", "json")
PAGE, TUNED = 1, 2  # how many blocks of README.md are merged
Config = dict[str, Any]


def merged(config: Config, more: Config) -> Config:
    """`config` with the members of `more`; objects are merged member by member."""
    result = dict(config)
    for name, value in more.items():
        is_object = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if is_object else value
    return result


def documented(count: int, pooler: Pooler) -> Config:
    """The first `count` blocks of the README's chapter, merged, with our address."""
    chapter = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## OpenCode\n")[2]
    blocks = re.findall(r"```json\n(.*?)```", chapter.partition("\n## ")[0], re.DOTALL)
    config: Config = {}
    for block in blocks[:count]:
        config = merged(config, json.loads(block))
    options = config["provider"]["openai"]["options"]
    assert options["apiKey"] == "{env:CODEX_POOLER_API_KEY}"
    options["baseURL"] = pooler.base_url
    return config


@dataclass
class Turn:
    """What a run printed, and how it ended."""

    code: int
    events: list[dict[str, Any]]
    seconds: float

    @property
    def text(self) -> str:
        return "".join(event["part"]["text"] for event in self.events if event["type"] == "text")

    @property
    def errors(self) -> list[str]:
        """The messages that are shown."""
        errors = [event["error"]["data"] for event in self.events if event["type"] == "error"]
        return [str(error["message"]) for error in errors]

    @property
    def tools(self) -> list[dict[str, Any]]:
        return [event["part"] for event in self.events if event["type"] == "tool_use"]

    @property
    def session(self) -> str:
        return str(self.events[0]["sessionID"])


class OpenCode:
    """The program in a home and a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.program = installed("opencode-linux-x64", "bin/opencode")
        self.home = folder / "home"
        self.switches: dict[str, str] = {}  # more of its environment
        self.project = folder / "project"
        self.home.mkdir()
        self.project.mkdir()

    def command(self, *arguments: str) -> list[str]:
        """The prompt comes first, because some options take a list."""
        return [self.program, "run", PROMPT, *arguments, "-m", f"openai/{MODEL}", *JSON_LINES]

    def env(self, config: Config, key: str) -> dict[str, str]:
        path = self.home / "opencode.json"
        path.write_text(json.dumps(config))
        switches = "AUTOUPDATE MODELS_FETCH LSP_DOWNLOAD SHARE".split()
        return clean_env(
            HOME=str(self.home),
            OPENCODE_CONFIG=str(path),
            CODEX_POOLER_API_KEY=key,
            **{f"XDG_{it}_HOME": str(self.home / it) for it in "DATA CONFIG CACHE STATE".split()},
            **{f"OPENCODE_DISABLE_{switch}": "1" for switch in switches},
            **self.switches,
        )

    def start(self, config: Config) -> Running:
        """A turn that goes on; what it prints can be waited for."""
        return Running(*self.command(), env=self.env(config, POOL_KEY), cwd=self.project)

    def run(self, *arguments: str, config: Config, key: str = POOL_KEY) -> Turn:
        """A whole turn."""
        started_at = time.monotonic()
        done = self.finish(self.command(*arguments), self.env(config, key))
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert events, done.stderr
        return Turn(done.returncode, events, time.monotonic() - started_at)

    def title(self, turn: Turn, config: Config) -> str:
        """The session's title, as it is kept."""
        command = [self.program, "export", turn.session]
        exported = json.loads(self.finish(command, self.env(config, POOL_KEY)).stdout)
        return str(exported["info"]["title"])

    def finish(self, command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.project,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TURN_SECONDS_MAX,
            check=False,
        )


def turns(upstream: Upstream) -> list[Asked]:
    """The requests of the turn itself: those that offer tools."""
    return [asked for asked in upstream.asked if asked.body.get("tools")]
