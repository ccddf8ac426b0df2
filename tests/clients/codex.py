"""Codex on both sides: its backend as a process, the real Codex CLI, and a pooler between them.

What Codex CLI must be able to do is written once, as `PROOFS`: the tests run them straight
against the backend, which proves that the backend is good enough, and then through the pooler.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

from tests.clients.aimock import MODEL, TITLE_MODEL, installed
from tests.support.codex_backend import PREFIX, Login, Play, Seen, TokenPlay, make_auth_file
from tests.support.codex_turns import FOUND, LITE, LITE_IN_FRAME, offered
from tests.support.paths import ROOT
from tests.support.processes import (
    ANSWER,
    POOL_KEY,
    PROMPT,
    SECONDS_MAX,
    Json,
    Pooler,
    Running,
    clean_env,
)

NAMES: Final = ("first", "second")
LITE_MODEL: Final = "gpt-6.2-sol"
PROGRAM: Final = "vendor/x86_64-unknown-linux-musl/bin/codex"
LIMIT_SHOWN: Final = "hit your usage limit"  # Codex's own words, behind an apostrophe of its own
COMPACTING: Final = "model_auto_compact_token_limit = 5000"


################################################################
# THE BACKEND
################################################################


class Backend:
    """`python -m tests.support.codex_backend`, or another backend, and its outside control."""

    def __init__(self, module: str = "tests.support.codex_backend") -> None:
        command = [sys.executable, "-m", module]
        self.process = Running(*command, env=clean_env(), cwd=ROOT)
        self.origin = self.process.wait_line(r"listening on (http://\S+)")
        self.base_url = f"{self.origin}{PREFIX}"

    def ask(self, method: str, path: str, body: Json | None = None) -> Json:
        connection = http.client.HTTPConnection(urlsplit(self.origin).netloc, timeout=SECONDS_MAX)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            read: Json = json.loads(answer.read())
            return read

    def reset(self) -> None:
        self.ask("POST", "/_control", {"forget": True})

    def approve(self, code: str, account: str) -> None:
        """Enter the code of a login by device code, as a person does (`device_logins`)."""
        form = urlencode({"user_code": code, "account": account}).encode()
        with urlopen(f"{self.origin}/codex/device", form) as page:  # noqa: S310 (our own address)
            assert page.status == 200

    def admit(self, *logins: Login) -> None:
        self.ask("POST", "/_control", {"logins": [asdict(login) for login in logins]})

    def will(self, *plays: Play) -> None:
        """What to do with the next requests, after what it has been told already."""
        self.ask("POST", "/_control", {"plays": [asdict(play) for play in plays]})

    def will_refresh(self, *plays: TokenPlay) -> None:
        self.ask("POST", "/_control", {"token_plays": [asdict(play) for play in plays]})

    def asked(self, path: str = f"{PREFIX}/responses") -> list[Seen]:
        seen = [Seen(**one) for one in self.ask("GET", "/_seen")["seen"]]
        return [one for one in seen if one.path == path]

    def turns(self) -> list[Seen]:
        """The requests that offer tools: those of an agent's turn, and not for a title."""
        return [seen for seen in self.asked() if seen.body and offered(seen.body, "*")]

    def frames(self) -> list[Seen]:
        """The turns on WebSockets, warm-ups among them."""
        return [seen for seen in self.asked() if seen.method == "WEBSOCKET"]

    def accounts(self) -> list[str]:
        """Which account each request of a turn came with."""
        return [seen.account for seen in self.turns()]

    def close(self) -> None:
        assert self.process.end() == 0, self.process.output


def limited(account: str = "", **more: Any) -> Play:  # noqa: ANN401
    """For ever: the account, or each one, has used up its plan."""
    return Play(account=account, error="usage_limit", count=0, **more)


################################################################
# CODEX CLI
################################################################


@dataclass
class CodexTurn:
    """What a run printed, and how it ended."""

    code: int
    events: list[Json]

    @property
    def items(self) -> list[Json]:
        return [event["item"] for event in self.events if event["type"] == "item.completed"]

    @property
    def text(self) -> str:
        return "".join(item["text"] for item in self.items if item["type"] == "agent_message")

    @property
    def errors(self) -> list[str]:
        return [event["message"] for event in self.events if event["type"] == "error"]


@dataclass
class Door:
    """Where Codex CLI is sent to, and with what."""

    base_url: str
    key: str
    headers: Mapping[str, str] = field(default_factory=dict)


class CodexCli:
    """The program, headless, in a home and a folder of its own."""

    def __init__(self, folder: Path, door: Door) -> None:
        self.program = installed("@openai/codex-linux-x64", PROGRAM)
        self.door = door
        self.model = MODEL
        self.uses_websockets = False
        self.can_search = False  # on the server, with a request of its own
        self.stream_retries = 0
        self.home = folder / "codex"
        self.project = folder / "project"
        self.home.mkdir()
        self.project.mkdir()

    def configure(self, *settings: str) -> None:
        """config.toml as users of the pooler have it, with few retries; `settings` stand first."""
        headers = ", ".join(f'"{name}" = "{value}"' for name, value in self.door.headers.items())
        lines = [
            *settings,
            f'model = "{self.model}"',
            f'web_search = "{"live" if self.can_search else "disabled"}"',
            'model_provider = "pooler"',
            'approval_policy = "never"',
            'sandbox_mode = "danger-full-access"',  # a sandbox in a container does not start
            "check_for_update_on_startup = false",
            "[model_providers.pooler]",
            'name = "OpenAI"',
            f'base_url = "{self.door.base_url}"',
            'env_key = "CODEX_POOLER_API_KEY"',
            'wire_api = "responses"',
            f"supports_websockets = {str(self.uses_websockets).lower()}",
            f"supports_standalone_web_search = {str(self.can_search).lower()}",
            "request_max_retries = 0",
            f"stream_max_retries = {self.stream_retries}",
            f"http_headers = {{ {headers} }}",
            "[analytics]",
            "enabled = false",
        ]
        (self.home / "config.toml").write_text("\n".join(lines))

    def run(self, *settings: str) -> CodexTurn:
        """A whole turn."""
        self.configure(*settings)
        done = subprocess.run(
            [self.program, "exec", "--skip-git-repo-check", "--json", PROMPT],
            cwd=self.project,
            env=clean_env(
                HOME=str(self.home), CODEX_HOME=str(self.home), CODEX_POOLER_API_KEY=self.door.key
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert events, done.stderr
        return CodexTurn(done.returncode, events)


################################################################
# WHAT CODEX CLI MUST BE ABLE TO DO
################################################################


def shell(command: str, **more: Any) -> Play:  # noqa: ANN401
    return Play(tool="exec_command", arguments={"cmd": command}, **more)


def script(code: str, **more: Any) -> Play:  # noqa: ANN401
    """A Responses-Lite model has one tool, which runs scripts that call the others."""
    return Play(tool="exec", arguments=code, **more)


ECHO: Final = 'const ran = await tools.exec_command({cmd: "echo peel, cut"}); text(ran.output)'
LOOK_UP: Final = 'text(await tools.web__run({search_query: [{q: "quinces"}]}))'


def types(seen: Seen) -> list[str]:
    return [item.get("type", "message") for item in seen.body["input"]]


def prove_text(codex: CodexCli, backend: Backend) -> None:
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    (seen,) = backend.asked()
    assert (seen.body["model"], seen.body["stream"], seen.body["store"]) == (MODEL, True, False)
    assert PROMPT in json.dumps(seen.body["input"])


def prove_tool_loop(codex: CodexCli, backend: Backend) -> None:
    backend.will(shell("echo peel, cut, boil"))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    (ran,) = [item for item in turn.items if item["type"] == "command_execution"]
    assert (ran["exit_code"], ran["aggregated_output"]) == (0, "peel, cut, boil\n")
    first, second = backend.asked()
    assert types(second)[len(types(first)) :] == [
        "reasoning",
        "function_call",
        "function_call_output",
    ]
    assert second.body["input"][-3]["encrypted_content"].startswith("gAAAA")
    assert first.body["prompt_cache_key"] == second.body["prompt_cache_key"]
    assert first.account == second.account


def prove_custom_tool(codex: CodexCli, backend: Backend) -> None:
    patch = "*** Begin Patch\n*** Add File: jam.txt\n+quinces\n*** End Patch"
    backend.will(Play(tool="apply_patch", arguments=patch))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert (codex.project / "jam.txt").read_text() == "quinces\n"
    assert types(backend.asked()[1])[-2:] == ["custom_tool_call", "custom_tool_call_output"]


def prove_compaction(codex: CodexCli, backend: Backend) -> None:
    backend.will(shell("true", input_tokens=9000))
    turn = codex.run(COMPACTING)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    _, compacted, after = backend.asked()
    assert types(compacted)[-1] == "compaction_trigger"
    assert types(after)[-1] == "compaction"
    assert after.body["input"][-1]["encrypted_content"].startswith("gAAAA")


def prove_limit(codex: CodexCli, backend: Backend) -> None:
    backend.will(limited())
    turn = codex.run()
    assert turn.code == 1
    (shown,) = turn.errors
    assert LIMIT_SHOWN in shown
    assert "try again at" in shown.lower()


def prove_lite(codex: CodexCli, backend: Backend) -> None:
    codex.model = LITE_MODEL
    backend.will(script(ECHO), script(ECHO))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    ran = [item for item in turn.items if item["type"] == "command_execution"]
    assert [item["aggregated_output"] for item in ran] == ["peel, cut\n"] * 2
    first, _, last = backend.asked()
    assert {seen.headers[LITE] for seen in backend.asked()} == {"true"}
    assert types(first)[0] == "additional_tools"
    assert types(last)[-3:] == ["reasoning", "custom_tool_call", "custom_tool_call_output"]
    assert last.body["input"][-2]["namespace"] == "functions"
    assert last.body["reasoning"]["context"] == "all_turns"


def prove_search(codex: CodexCli, backend: Backend) -> None:
    codex.model = LITE_MODEL
    codex.can_search = True
    backend.will(script(LOOK_UP))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    (found,) = [item for item in turn.items if item["type"] == "web_search"]
    assert found["query"] == "quinces"
    first, last = backend.asked()
    (search,) = backend.asked(f"{PREFIX}/alpha/search")
    assert search.body["commands"] == {"search_query": [{"q": "quinces"}]}
    assert search.body["id"] == first.body["prompt_cache_key"]
    assert {search.account, last.account} == {first.account}
    assert FOUND in json.dumps(last.body["input"][-1]["output"])


Proof = Callable[[CodexCli, Backend], None]
PROOFS: Final[Mapping[str, Proof]] = {
    "text": prove_text,
    "tool-loop": prove_tool_loop,
    "custom-tool": prove_custom_tool,
    "compaction": prove_compaction,
    "limit": prove_limit,
    "lite": prove_lite,
    "search": prove_search,
}

# The same on a WebSocket: Codex CLI warms up, and then sends only what is new.


def prove_socket_text(codex: CodexCli, backend: Backend) -> None:
    codex.uses_websockets = True
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [seen.method for seen in backend.asked()] == ["GET", "WEBSOCKET", "WEBSOCKET"]
    warm_up, asked = backend.frames()
    assert (warm_up.body["generate"], types(warm_up)) == (False, ["message"])
    assert asked.body["previous_response_id"]
    assert PROMPT in json.dumps(asked.body["input"])


def prove_socket_tool_loop(codex: CodexCli, backend: Backend) -> None:
    codex.uses_websockets = True
    backend.will(shell("echo peel"), shell("echo boil"))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [seen.method for seen in backend.asked()] == ["GET", *["WEBSOCKET"] * 4]
    first, *others = backend.frames()
    assert {seen.connection for seen in others} == {first.connection}
    anchors = {seen.body["previous_response_id"] for seen in others}
    assert len(anchors) == 3  # each one names the one before
    assert [types(seen) for seen in others[1:]] == [["function_call_output"]] * 2


def prove_socket_lite(codex: CodexCli, backend: Backend) -> None:
    codex.model = LITE_MODEL
    codex.uses_websockets = True
    backend.will(script(ECHO), script(ECHO))
    turn = codex.run()
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [seen.method for seen in backend.asked()] == ["GET", *["WEBSOCKET"] * 4]
    assert {seen.body["client_metadata"][LITE_IN_FRAME] for seen in backend.frames()} == {"true"}
    assert [types(seen) for seen in backend.frames()[2:]] == [["custom_tool_call_output"]] * 2


def prove_socket_limit(codex: CodexCli, backend: Backend) -> None:
    codex.uses_websockets = True
    prove_limit(codex, backend)


SOCKET_PROOFS: Final[Mapping[str, Proof]] = {
    "text": prove_socket_text,
    "tool-loop": prove_socket_tool_loop,
    "limit": prove_socket_limit,
    "lite": prove_socket_lite,
}


################################################################
# A POOL OF TWO ACCOUNTS
################################################################


class CodexPool:
    """Two accounts with an auth.json each, and the pooler once it is started."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self.backend = backend
        self.folder = folder
        self.logins: dict[str, Login] = {}
        self.started: Pooler | None = None
        for name in NAMES:
            self.log_in(name)

    def log_in(self, name: str, expires_at: float | None = None) -> None:
        """What `codex login` does; once more: with other tokens.  A new name: one more account."""
        login = make_auth_file(self.auth_file(name), f"acct-{name}", expires_at=expires_at)
        self.logins[name] = login
        self.backend.admit(login)

    def auth_file(self, name: str) -> Path:
        return self.folder / "accounts" / f"{name}.json"

    def start(self, **pool: object) -> Pooler:
        """A pooler over both, the first one preferred."""
        return self.start_with({}, **pool)

    def start_with(self, account: Mapping[str, object], **pool: object) -> Pooler:
        """The same; `account`: more fields of both accounts."""
        accounts = {
            name: {
                "type": "codex",
                "auth_file": f"accounts/{name}.json",
                "base_url": self.backend.base_url,
                **account,
            }
            for name in self.logins
        }
        home = {
            "accounts": [*self.logins],
            "models": [MODEL, LITE_MODEL],
            "aliases": {TITLE_MODEL: MODEL},
            "routing": "in_order",
            "keys": {"laptop": POOL_KEY},
            **pool,
        }
        config = {"listen": "127.0.0.1:0", "accounts": accounts, "pools": {"home": home}}
        endpoint = f"{self.backend.origin}/oauth/token"
        assert self.started is None
        self.started = Pooler(config, self.folder, CODEX_REFRESH_TOKEN_URL_OVERRIDE=endpoint)
        return self.started

    def door(self, kind: str) -> Door:
        """`native` or `v1`, of a pooler that is started for it."""
        pooler = self.started or self.start()
        return Door({"native": f"{pooler.origin}{PREFIX}", "v1": pooler.base_url}[kind], POOL_KEY)

    def check(self) -> None:
        """The pooler ends well; no token is in its log, and the pool key went no further."""
        if self.started is not None:
            self.started.stop()
            log = self.started.process.output
            tokens = [t for it in self.logins.values() for t in (it.access_token, it.refresh_token)]
            assert not [token for token in tokens if token in log]
        assert POOL_KEY not in json.dumps(self.backend.ask("GET", "/_seen"))


@contextmanager
def opened_pool(backend: Backend, folder: Path) -> Iterator[CodexPool]:
    pool = CodexPool(backend, folder)
    yield pool
    pool.check()
