"""Proves that OpenCode works with the configuration that users are told to paste.

Method: the real program, headless, in an empty home, with its catalogue and updates off.  The
configuration is the one in README.md, read from there, with only the address changed.  The titles
of sessions are asked for beside the turn, so a test names which requests it means.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients.aimock import (
    MODEL,
    TITLE_MODEL,
    Asked,
    Providers,
    Upstream,
    calls,
    fails,
    installed,
    says,
)
from tests.support.paths import ROOT
from tests.support.processes import (
    ANSWER,
    OTHER_POOL_KEY,
    POOL_KEY,
    PROMPT,
    Pooler,
    Running,
    clean_env,
)

TURN_SECONDS_MAX: Final = 55.0
TITLE: Final = "On quinces"
JSON_LINES: Final = ("--format", "json")
PAGE, TUNED = 1, 2  # how many blocks of README.md are merged
Config = dict[str, Any]

# What the pooler says, and what OpenCode therefore shows.
NO_KEY: Final = "A valid pool key is required as Authorization: Bearer."
NO_MODEL: Final = "This key has no such model. It may use gpt-other (GET /v1/models)."


################################################################
# THE PROGRAM
################################################################


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


@pytest.fixture
def opencode(tmp_path: Path) -> OpenCode:
    return OpenCode(tmp_path)


def titles(*models: str) -> list[dict[str, Any]]:
    """Fixtures for the titles, which are asked for with another model, or without tools."""
    return [says(TITLE, model=model, systemMessage="title generator") for model in models]


def turns(upstream: Upstream) -> list[Asked]:
    """The requests of the turn itself: those that offer tools."""
    return [asked for asked in upstream.asked if asked.body.get("tools")]


def title_requests(upstream: Upstream) -> list[Asked]:
    return [asked for asked in upstream.asked if not asked.body.get("tools")]


@pytest.fixture
def both(providers: Providers) -> Providers:
    """Both upstreams give titles; what else they say is the test's."""
    for _, upstream in providers.upstreams():
        upstream.will(*titles(MODEL, TITLE_MODEL))
    return providers


################################################################
# TURNS
################################################################


def test_a_text_turn(opencode: OpenCode, pooler: Pooler, both: Providers) -> None:
    both.first.will(says())
    turn = opencode.run(config=documented(PAGE, pooler))
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    (asked,) = turns(both.first)
    assert asked.path == "/v1/responses"
    assert (asked.body["model"], asked.body["stream"], asked.body["store"]) == (MODEL, True, False)
    assert asked.body["include"] == ["reasoning.encrypted_content"]
    assert asked.body["prompt_cache_key"] == turn.session
    # Why the README has a second configuration: these come from there, not from the provider.
    assert (asked.body["reasoning"]["effort"], asked.body["text"]["verbosity"]) == ("medium", "low")
    assert both.second.asked == []


def test_a_tool_loop_and_the_session_goes_on(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    recipe = opencode.project / "recipe.txt"
    recipe.write_text("Peel, cut, boil.\n")
    call = calls("read", {"filePath": str(recipe)})
    call["response"]["reasoning"] = "The file will tell."
    both.first.will(call, says(hasToolResult=True))
    config = documented(PAGE, pooler)
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [(tool["tool"], tool["state"]["status"]) for tool in turn.tools] == [
        ("read", "completed")
    ]
    first, second = turns(both.first)
    assert "Peel, cut, boil." not in first.text
    outputs = [item for item in second.body["input"] if item.get("type") == "function_call_output"]
    assert "Peel, cut, boil." in json.dumps(outputs)
    thoughts = [item for item in second.body["input"] if item.get("type") == "reasoning"]
    assert [bool(thought["encrypted_content"]) for thought in thoughts] == [True]

    again = opencode.run("--continue", config=config)
    assert (again.code, again.session) == (0, turn.session)
    history = turns(both.first)[2].body["input"]
    assert len([item for item in history if item.get("role") == "user"]) == 2
    assert both.second.asked == []


def test_the_chat_route_of_another_provider_package(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    both.first.will(says())
    config = documented(TUNED, pooler)
    config["provider"]["openai"]["npm"] = "@ai-sdk/openai-compatible"
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [asked.path for asked in turns(both.first)] == ["/v1/chat/completions"]


################################################################
# FAILOVER
################################################################


@pytest.mark.parametrize(
    "fault",
    [fails(429, "usage_limit_reached", after=3600), fails(503, "server_is_overloaded")],
    ids=["limited", "overloaded"],
)
def test_failover_is_not_seen(
    fault: dict[str, Any], opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    both.first.will(fault)
    both.second.will(says())
    turn = opencode.run(config=documented(PAGE, pooler))
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert len(turns(both.first)) == len(turns(both.second)) == 1
    assert turns(both.first)[0].body == turns(both.second)[0].body
    served = [line for line in pooler.stop_and_read() if line["model"] == MODEL]
    assert [line["status"] for line in served] == [200]  # OpenCode asked once


def test_a_session_moves_in_the_middle_of_a_tool_loop(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    recipe = opencode.project / "recipe.txt"
    recipe.write_text("Peel, cut, boil.\n")
    limited = fails(429, "usage_limit_reached", after=3600, hasToolResult=True)
    both.first.will(calls("read", {"filePath": str(recipe)}), limited)
    both.second.will(says(hasToolResult=True))
    turn = opencode.run(config=documented(PAGE, pooler))
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [len(turns(upstream)) for _, upstream in both.upstreams()] == [2, 1]


def test_a_session_stays_on_its_account(opencode: OpenCode, both: Providers) -> None:
    recipe = opencode.project / "recipe.txt"
    recipe.write_text("Peel, cut, boil.\n")
    for _, upstream in both.upstreams():
        upstream.will(calls("read", {"filePath": str(recipe)}), says(hasToolResult=True))
    pooler = both.start(pool={"routing": "sticky", "aliases": {TITLE_MODEL: MODEL}})
    for arguments in ([], ["--continue"]):
        turn = opencode.run(*arguments, config=documented(PAGE, pooler))
        assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    counts = sorted(len(upstream.asked) for _, upstream in both.upstreams())
    assert counts == [0, 5]  # two tool loops, and the title


@pytest.mark.parametrize("package", ["@ai-sdk/openai", "@ai-sdk/openai-compatible"])
def test_opencode_asks_again_where_a_stream_is_cut(
    package: str, opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    cut = {**says(sequenceIndex=0), "latency": 20, "truncateAfterChunks": 6}
    both.first.will(cut, says())
    config = documented(TUNED, pooler)
    config["provider"]["openai"]["npm"] = package
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert len(turns(both.first)) == 2
    assert turns(both.second) == []


def test_opencode_waits_for_a_pool_that_is_back_soon(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    for _, upstream in both.upstreams():
        upstream.will(fails(429, "usage_limit_reached", sequenceIndex=0), says())
    turn = opencode.run(config=documented(PAGE, pooler))
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [len(turns(upstream)) for _, upstream in both.upstreams()] == [2, 1]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_turn_that_is_left_is_left_upstream_too(
    end: signal.Signals, opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    both.first.will({**says(ANSWER * 100), "latency": 50})
    turn = opencode.start(config=documented(PAGE, pooler))
    turn.wait_line('"type":"(step_start)"')
    assert both.first.tap.hangups.empty()
    turn.process.send_signal(end)
    both.first.tap.hangups.get(timeout=5)
    turn.end()


################################################################
# OPTIONS AND MODELS
################################################################


def test_options_of_the_model_take_effect(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    both.first.will(says())
    turn = opencode.run(config=documented(TUNED, pooler))
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    (asked,) = turns(both.first)
    assert asked.body["reasoning"] == {"effort": "high", "summary": "auto"}
    assert asked.body["text"]["verbosity"] == "medium"
    assert asked.body["store"] is False


def test_the_small_model_writes_the_title(
    opencode: OpenCode, pooler: Pooler, both: Providers
) -> None:
    both.first.will(says())
    config = documented(TUNED, pooler)
    turn = opencode.run(config=config)
    assert (turn.code, opencode.title(turn, config)) == (0, TITLE)
    assert [asked.body["model"] for asked in title_requests(both.first)] == [MODEL]


@pytest.mark.parametrize("has_alias", [False, True], ids=["no-alias", "alias"])
def test_the_title_model_may_be_an_alias_and_may_be_missing(
    has_alias: bool, opencode: OpenCode, both: Providers
) -> None:
    both.first.will(says())
    aliases = {TITLE_MODEL: MODEL} if has_alias else {}
    pooler = both.start(pool={"aliases": aliases})
    config = documented(PAGE, pooler)
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert (opencode.title(turn, config) == TITLE) is has_alias
    assert [asked.body["model"] for asked in title_requests(both.first)] == [MODEL] * has_alias
    statuses = sorted(line["status"] for line in pooler.stop_and_read())
    assert statuses == [200, 200 if has_alias else 400]  # no title is asked for twice


################################################################
# REFUSALS
################################################################


def test_a_wrong_key_is_told(opencode: OpenCode, pooler: Pooler, both: Providers) -> None:
    turn = opencode.run(config=documented(PAGE, pooler), key=OTHER_POOL_KEY)
    assert turn.code == 1
    assert turn.errors == [NO_KEY]
    assert both.first.asked == []
    statuses = [line["status"] for line in pooler.stop_and_read()]
    assert statuses in ([401], [401, 401])  # the turn, and perhaps the title


def test_a_key_that_is_not_set_is_told(opencode: OpenCode, pooler: Pooler) -> None:
    turn = opencode.run(config=documented(PAGE, pooler), key="")
    assert turn.code == 1
    assert turn.errors == [NO_KEY]


def test_a_model_that_the_pool_lacks_is_told_at_once(opencode: OpenCode, both: Providers) -> None:
    pooler = both.start(pool={"models": ["gpt-other"]}, accounts={"models": ["gpt-other"]})
    turn = opencode.run(config=documented(PAGE, pooler))
    assert turn.code == 1
    assert turn.errors == [NO_MODEL]
    statuses = [line["status"] for line in pooler.stop_and_read()]
    assert statuses in ([400], [400, 400])  # once, as it would not be after a 404; and the title
    assert turn.seconds < TURN_SECONDS_MAX / 2
