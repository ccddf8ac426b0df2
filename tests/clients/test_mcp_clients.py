"""Proves that real MCP clients work with the pooler's `/mcp`, and that it conforms.

Method: OpenCode, MCP Inspector, the SDKs in Python and TypeScript, and the conformance suite, which
cannot send a token and so has a relay before the pooler that adds it.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import pytest
import trio
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from tests.clients.aimock import HERE, Providers, Tap, calls, installed, node, says
from tests.clients.opencode import PAGE, TITLE, OpenCode, documented, turns
from tests.clients.suites import explain
from tests.support.mcp_client import ARGUMENTS, PREFIX
from tests.support.processes import (
    ANSWER,
    OPERATOR_TOKEN,
    POOL_KEY,
    SECONDS_MAX,
    Json,
    Pooler,
    clean_env,
)

BEARER: Final = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
STATUS: Final = f"{PREFIX}get_mcp_service_status"
UNKNOWN: Final = "invalid_arguments: an unknown one (this tool takes nothing)"
TOOLS: Final = [f"{PREFIX}{name}" for name in ARGUMENTS]
HANDSHAKE, STATELESS = "2025-11-25", "2026-07-28"
# What users paste; only the address and the token are theirs.
PASTED: Final = """
{
"mcp": {
"codex_pooler": {
"type": "remote",
"url": "https://pooler.example.com/mcp",
"oauth": false,
"headers": {
"Authorization": "Bearer <operator-mcp-token>"
},
"enabled": true,
"timeout": 30000
}
}
}
"""


def endpoint(pooler: Pooler) -> str:
    return f"{pooler.origin}/mcp"


@pytest.fixture
def mcp_pooler(providers: Providers) -> Pooler:
    """A pooler with an operator."""
    return providers.start(operators={"me": OPERATOR_TOKEN})


@pytest.fixture
def url(mcp_pooler: Pooler) -> str:
    return endpoint(mcp_pooler)


def run(folder: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A program of Node's, in a home of its own."""
    return subprocess.run(
        [node(), *command],
        cwd=HERE,
        env=clean_env(HOME=str(folder), **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


################################################################
# OPENCODE
################################################################


def pasted(url: str, token: str = OPERATOR_TOKEN) -> Json:
    text = PASTED.replace("https://pooler.example.com/mcp", url)
    config: Json = json.loads(text.replace("<operator-mcp-token>", token))
    return config


@pytest.fixture
def opencode(tmp_path: Path) -> OpenCode:
    return OpenCode(tmp_path)


def listed(opencode: OpenCode, config: Json) -> str:
    done = opencode.finish([opencode.program, "mcp", "list"], opencode.env(config, POOL_KEY))
    assert done.returncode == 0
    return done.stdout + done.stderr


def test_opencode_is_connected_with_the_pasted_block(opencode: OpenCode, url: str) -> None:
    for _ in range(3):  # a server that closes after the GET fails in one run of eight
        shown = listed(opencode, pasted(url))
        assert "✓ codex_pooler" in shown
        assert "connected" in shown
        assert "ailed" not in shown


@pytest.mark.parametrize("token", [POOL_KEY, "cp-operator-of-nobody-0123456789"])
def test_opencode_is_not_connected_without_an_operators_token(
    token: str, opencode: OpenCode, url: str
) -> None:
    shown = listed(opencode, pasted(url, token))
    assert "✓ codex_pooler" not in shown
    assert "401" in shown


def test_a_model_in_opencode_asks_what_needs_its_operator(
    opencode: OpenCode, mcp_pooler: Pooler, url: str, providers: Providers
) -> None:
    tool = f"codex_pooler_{PREFIX}diagnose"
    providers.first.will(
        says(TITLE, systemMessage="title generator"), calls(tool, {"pool_selector": "home"}), says()
    )
    config = {**documented(PAGE, mcp_pooler), **pasted(url)}
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    _, second = turns(providers.first)
    outputs = [it for it in second.body["input"] if it.get("type") == "function_call_output"]
    output = json.loads(outputs[-1]["output"])
    assert output["status"] == "ok"
    assert output["needs_you_count"] == len(output["items"])
    assert output["summary"]


def test_a_model_in_opencode_asks_the_pooler(
    opencode: OpenCode, mcp_pooler: Pooler, url: str, providers: Providers
) -> None:
    tool = f"codex_pooler_{PREFIX}list_pools"  # OpenCode's own prefix comes first
    providers.first.will(
        says(TITLE, systemMessage="title generator"), calls(tool, {"limit": 5}), says()
    )
    config = {**documented(PAGE, mcp_pooler), **pasted(url)}
    turn = opencode.run(config=config)
    assert (turn.code, turn.text, turn.errors) == (0, ANSWER, [])
    assert [(it["tool"], it["state"]["status"]) for it in turn.tools] == [(tool, "completed")]
    first, second = turns(providers.first)
    offered = {it["name"] for it in first.body["tools"]}
    assert {f"codex_pooler_{name}" for name in TOOLS} <= offered
    outputs = [it for it in second.body["input"] if it.get("type") == "function_call_output"]
    output = json.loads(outputs[-1]["output"])
    assert (output["status"], output["limit"]) == ("ok", 5)
    assert [pool["id"] for pool in output["items"]] == ["home"]


################################################################
# MCP INSPECTOR
################################################################

INSPECTOR: Final = "clients/launcher/build/index.js"
each_era: Final = pytest.mark.parametrize("era", ["legacy", "modern"])


def inspect(
    folder: Path, url: str, *more: str, era: str, token: str = OPERATOR_TOKEN
) -> subprocess.CompletedProcess[str]:
    program = installed("@modelcontextprotocol/inspector", INSPECTOR)
    header = f"Authorization: Bearer {token}"
    where = ("--transport", "http", "--protocol-era", era, "--header", header)
    return run(folder, program, "--cli", url, *where, *more)


@each_era
def test_the_inspector_finds_no_fault_in_the_tools(era: str, url: str, tmp_path: Path) -> None:
    done = inspect(tmp_path, url, "--method", "tools/list", "--strict", era=era)
    assert done.returncode == 0, done.stderr
    assert [tool["name"] for tool in json.loads(done.stdout)["tools"]] == TOOLS


@each_era
def test_the_inspector_calls_tools(era: str, url: str, tmp_path: Path) -> None:
    call = ("--method", "tools/call", "--tool-name", f"{PREFIX}list_upstreams")
    good = inspect(tmp_path, url, *call, "--tool-arg", "limit=1", era=era)
    assert good.returncode == 0, good.stderr
    output = json.loads(good.stdout)["structuredContent"]
    assert (output["count"], output["limit"], len(output["items"])) == (2, 1, 1)
    bad = inspect(tmp_path, url, *call, "--tool-arg", "limit=0", era=era)
    assert "invalid_arguments: limit (1 to 100)" in bad.stdout + bad.stderr
    bad = inspect(tmp_path, url, *call, "--tool-arg", "status=broken", era=era)
    assert "status (one of any, ready, cooling_down" in bad.stdout + bad.stderr


@each_era
def test_the_inspector_shows_what_needs_an_operator(era: str, url: str, tmp_path: Path) -> None:
    call = ("--method", "tools/call", "--tool-name", f"{PREFIX}diagnose")
    done = inspect(tmp_path, url, *call, era=era)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)["structuredContent"]
    assert output["summary"] == "Nothing needs you."


def test_the_inspector_is_told_of_a_wrong_token(url: str, tmp_path: Path) -> None:
    done = inspect(tmp_path, url, "--method", "tools/list", era="legacy", token=POOL_KEY)
    assert done.returncode != 0
    assert json.loads(done.stderr)["error"]["code"] == "auth_required"


################################################################
# THE SDKS
################################################################


@contextlib.asynccontextmanager
async def connected(url: str, mode: str, headers: Mapping[str, str] = BEARER) -> Any:  # noqa: ANN401
    async with (
        httpx2.AsyncClient(headers=dict(headers), timeout=SECONDS_MAX) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


@pytest.mark.parametrize(("mode", "version"), [("legacy", HANDSHAKE), ("auto", STATELESS)])
async def test_the_python_sdk(mode: str, version: str, url: str) -> None:
    async with connected(url, mode) as client:
        assert client.instructions
        assert [tool.name for tool in (await client.list_tools()).tools] == TOOLS
        called = await client.call_tool(STATUS, {})  # judged by the output schema
        assert called.structured_content["protocolVersion"] == version
        assert called.structured_content["actor"]["id"] == "me"
        bad = await client.call_tool(STATUS, {"x": 1})
        assert bad.is_error
        with pytest.raises(MCPError):
            await client.call_tool("no_such_tool", {})


async def test_many_python_clients_at_once(url: str) -> None:
    async def work(mode: str) -> None:
        async with connected(url, mode) as client:
            for _ in range(10):
                assert not (await client.call_tool(f"{PREFIX}list_pools", {})).is_error

    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            for mode in ["legacy", "auto"] * 4:
                nursery.start_soon(work, mode)


@pytest.mark.parametrize(
    ("package", "version"),
    [("sdk", HANDSHAKE), ("client-legacy", HANDSHAKE), ("client-auto", STATELESS)],
)
def test_the_typescript_sdks(package: str, version: str, url: str, tmp_path: Path) -> None:
    script = str(HERE / "mcp_sdk.mjs")
    done = run(tmp_path, script, package, url, STATUS, CODEX_POOLER_OPERATOR_TOKEN=OPERATOR_TOKEN)
    assert (done.returncode, done.stderr) == (0, "")
    learned = json.loads(done.stdout)
    assert learned["server"] == "codex-pooler"
    assert learned["instructions"]
    assert learned["tools"] == TOOLS
    assert learned["output"]["protocolVersion"] == version
    assert (learned["isBadAnError"], learned["text"]) == (True, UNKNOWN)


################################################################
# CONFORMANCE
################################################################


def with_token(request: bytes) -> bytes:
    """A request, with the operator's token of a client that has none."""
    line, end, rest = request.partition(b"\r\n")
    return line + end + f"Authorization: Bearer {OPERATOR_TOKEN}\r\n".encode() + rest


@pytest.fixture
def porter(providers: Providers) -> Iterator[str]:
    """The address of a relay that adds the token, before a pooler that allows its origin."""
    with contextlib.closing(Tap(0, with_token)) as opened:
        port = opened.listening.port
        origins = [f"http://{host}:{port}" for host in ("127.0.0.1", "localhost")]
        started = providers.start(operators={"me": OPERATOR_TOKEN}, allowed_origins=origins)
        opened.port = urlsplit(endpoint(started)).port or 0
        yield f"http://127.0.0.1:{port}/mcp"


# By version: what a server that has tools only, and its own, passes of the suite; at least so many
# checks.
PASSED: Final[dict[str, dict[str, int]]] = {
    HANDSHAKE: {
        "server-initialize": 2,
        "ping": 2,
        "tools-list": 3,
        "dns-rebinding-protection": 2,
    },
    STATELESS: {
        "tools-list": 4,
        "dns-rebinding-protection": 2,
        "http-header-validation": 14,
        "sep-2164-resource-not-found": 2,
        "server-sse-multiple-streams": 1,
        "input-required-result-unsupported-methods": 2,
        "input-required-result-validate-input": 3,
        "input-required-result-ignore-extra-params": 1,
        "input-required-result-missing-input-response": 1,
        "server-stateless": 21,
        "caching": 4,
    },
}
# The checks that fail, by what they need and the pooler has not; those of a scenario with one check
# are named like it.  First, tools that only a server for tests has.
OF_TOOLS: Final = "simple-text image audio embedded-resource mixed-content error with-progress"
OF_OLDER_TOOLS: Final = "with-logging sampling elicitation"
RESOURCES: Final = "list read-text read-binary templates-read"
PROMPTS: Final = "list get-simple get-with-args get-embedded-resource get-with-image"
INPUT: Final = {  # tools that ask their client something
    "basic-elicitation": "elicitation-incomplete",
    "basic-sampling": "sampling-incomplete",
    "basic-list-roots": "list-roots-incomplete",
    "request-state": "request-state-incomplete",
    "multiple-input-requests": "multiple-inputs-incomplete",
    "multi-round": "multi-round-r1",
    "non-tool-request": "non-tool-incomplete",
    "result-type": "result-type-included",
    "tampered-state": "reject-tampered-state",
    "capability-check": "respect-client-capabilities",
}


def alike(prefix: str, names: str) -> dict[str, set[str]]:
    return {f"{prefix}-{name}": {f"{prefix}-{name}"} for name in names.split()}


OF_BOTH: Final = {
    **alike("tools-call", OF_TOOLS),
    **alike("resources", RESOURCES),
    **alike("prompts", PROMPTS),
    **alike("completion", "complete"),
    "json-schema-2020-12": {"json-schema-2020-12-tool-found"},
}
FAILED: Final[dict[str, dict[str, set[str]]]] = {
    HANDSHAKE: {
        **OF_BOTH,
        **alike("tools-call", OF_OLDER_TOOLS),
        **alike("resources", "subscribe unsubscribe"),
        **alike("logging", "set-level"),
        "elicitation-sep1034-defaults": {"elicitation-sep1034-general"},
        "elicitation-sep1330-enums": {"elicitation-sep1330-general"},
    },
    STATELESS: {
        **OF_BOTH,
        **{f"input-required-result-{name}": {f"sep-2322-{check}"} for name, check in INPUT.items()},
        "server-stateless": {  # a tool for tests
            "sep-2575-server-rejects-undeclared-capability",
            "sep-2575-missing-capability-http-400",
            "sep-2575-http-server-no-independent-requests-on-stream",
            "sep-2575-server-no-log-without-loglevel",
        },
        "caching": {
            "sep-2549-prompts-list-caching-hints",
            "sep-2549-resources-list-caching-hints",
            "sep-2549-resources-templates-list-caching-hints",
        },
        "http-custom-header-server-validation": {  # a tool whose arguments are headers
            "sep-2243-server-no-xmcp-tool",
            "sep-2243-server-decode-base64",
            "sep-2243-server-validate-param-match",
            "sep-2243-server-reject-param-mismatch",
            "sep-2243-server-reject-invalid-param-chars",
        },
    },
}


@pytest.mark.parametrize("version", [HANDSHAKE, STATELESS])
def test_conformance(version: str, porter: str, tmp_path: Path) -> None:
    program = installed("@modelcontextprotocol/conformance", "dist/index.js")
    what = ("--url", porter, "--suite", "all", "--spec-version", version)
    done = run(tmp_path, program, "server", *what, "-o", str(tmp_path / "results"))
    failed: dict[str, set[str]] = {}
    passed: dict[str, int] = {}
    for results in tmp_path.glob("results/*/checks.json"):
        scenario = re.sub(r"^server-(.*)-\d{4}-\d\d-\d\dT.*$", r"\1", results.parent.name)
        checks = json.loads(results.read_text("utf-8"))
        passed[scenario] = [check["status"] for check in checks].count("SUCCESS")
        if bad := {check["id"] for check in checks if check["status"] == "FAILURE"}:
            failed[scenario] = bad
    assert explain(failed, FAILED[version]) == ""
    assert done.returncode == 1
    assert [name for name, least in PASSED[version].items() if passed[name] < least] == []
