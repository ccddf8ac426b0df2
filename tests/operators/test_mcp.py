"""Proves that MCP tools give an operator correct metadata, that of the snapshot, and no more.

Method: `answer` is called as pooler.py calls it, with the snapshot that also specifies its shape
(snapshot.json), and its results are validated with the tool's own schemas.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped] # it has no types
import pytest

import mcp_server
from tests.support import paths
from tests.support.mcp_client import (
    ARGUMENTS,
    CANARY,
    LOG,
    PREFIX,
    SNAPSHOT,
    VERSIONS,
    Desk,
    Json,
    explained,
)
from tests.support.snapshots import watched

each_tool: Final = pytest.mark.parametrize("tool", ARGUMENTS)
each_version: Final = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def tools(desk: Desk, version: str = "2025-11-25") -> dict[str, Json]:
    listed = (await desk.ask("tools/list", version=version)).result["tools"]
    return {tool["name"].removeprefix(PREFIX): tool for tool in listed}


################################################################
# THE TOOLS
################################################################


@each_version
async def test_all_tools_are_offered_as_read_only(version: str, desk: Desk) -> None:
    offered = await tools(desk, version)
    assert list(offered) == list(ARGUMENTS)
    for tool in offered.values():
        assert tool["name"].startswith(PREFIX)
        assert tool["description"]
        assert version < "2025-06-18" or tool["title"]
        assert tool["annotations"] == {
            "readOnlyHint": True,
            "destructiveHint": False,
            "idempotentHint": True,
            "openWorldHint": False,
        }


def test_readme_lists_each_tool() -> None:
    readme = (paths.ROOT / "README.md").read_text("utf-8")
    item = readme.partition("with the tools `codex_pooler_")[2].partition("\n- ")[0]
    assert sorted(re.findall("`([a-z_]+)`", item)) == sorted(ARGUMENTS)


def nodes(schema: object) -> list[Json]:
    """Every object in a schema, at any depth."""
    if isinstance(schema, list):
        return [node for one in schema for node in nodes(one)]
    if isinstance(schema, dict):
        return [schema, *(node for one in schema.values() for node in nodes(one))]
    return []


async def test_schemas_allow_nothing_else_and_inputs_are_flat(desk: Desk) -> None:
    for tool in (await tools(desk)).values():
        for schema in (tool["inputSchema"], tool["outputSchema"]):
            jsonschema.Draft202012Validator.check_schema(schema)
            assert schema["type"] == "object"
            objects = [node for node in nodes(schema) if node.get("type") == "object"]
            assert [node["additionalProperties"] for node in objects] == [False] * len(objects)
        assert not [n for n in nodes(tool["inputSchema"]) if {"anyOf", "$ref"} & set(n)]
        fields = set(tool["outputSchema"]["properties"])
        assert set(tool["outputSchema"]["required"]) == fields


@each_tool
@each_version
async def test_each_output_fits_its_schema(tool: str, version: str, desk: Desk) -> None:
    schema = (await tools(desk, version))[tool].get("outputSchema")
    reply = await desk.call(tool, version=version, **ARGUMENTS[tool])
    jsonschema.validate(reply.output, schema)
    assert json.loads(reply.text) == reply.output


async def test_the_service_status(desk: Desk) -> None:
    assert (await desk.call("get_mcp_service_status")).output == {
        "actor": {"id": "me", "display_name": "me", "status": "active"},
        "protocolVersion": "2025-11-25",
        "supportedProtocolVersions": list(VERSIONS),
        "supportedToolCount": len(ARGUMENTS),
        "version": "0.1.0",
        "started_at": "2027-01-15T08:00:00Z",
        "uptime_seconds": 3600,
        "pool_count": 1,
        "upstream_count": 2,
        "in_flight_requests": 3,
        "pools_not_ready_count": 1,
        "upstreams_not_ready_count": 1,
        "needs_you_count": 2,
    }


async def test_an_operator_removed_during_the_request_gets_a_response(desk: Desk) -> None:
    desk.operator = "former"
    output = (await desk.call("get_mcp_service_status")).output
    assert output["actor"] == {"id": "former", "display_name": "former", "status": "removed"}


# The condition of an account that serves, and of one that does not.
WELL: Final[Json] = {
    "status": "ready",
    "reason": None,
    "since": None,
    "until": None,
    "next_try_at": None,
    "failures": 0,
    "last_success_at": "2027-01-15T08:59:50Z",
    "last_error": {"at": "2027-01-15T08:51:40Z", "reason": "429 usage_limit_reached"},
    "advice": None,
    "needs_operator": False,
}
COOLS_DOWN: Final[Json] = {
    "status": "cooling_down",
    "reason": "429 rate_limit_exceeded",
    "since": "2027-01-15T08:58:20Z",
    "until": "2027-01-15T09:06:40Z",
    "next_try_at": "2027-01-15T09:06:40Z",
    "failures": 3,
    "last_success_at": "2027-01-15T08:56:40Z",
    "last_error": {"at": "2027-01-15T08:58:20Z", "reason": "429 rate_limit_exceeded"},
    "advice": None,
    "needs_operator": False,
}
PLATFORM_COOLS_DOWN: Final[Json] = {
    "upstream": "platform",
    "status": "cooling_down",
    "reason": "429 rate_limit_exceeded",
    "until": "2027-01-15T09:06:40Z",
}
NOBODY_SERVES: Final[Json] = {
    "status": "limited",
    "upstreams": [],
    "since": "2027-01-15T08:58:20Z",
    "until": "2027-01-15T09:06:40Z",
    "failed_requests": 2,
    "passed_over": [
        {
            "upstream": "personal",
            "status": "not_listed",
            "reason": "its catalogue does not list the model",
            "until": None,
        },
        PLATFORM_COOLS_DOWN,
    ],
}
ROWS: Final[Mapping[str, Json]] = {
    "list_pools": {
        "id": "home",
        "name": "home",
        "status": "degraded",
        "strategy": "sticky",
        "upstreams": ["personal", "platform"],
        "upstream_count": 2,
        "api_key_count": 2,
        "models": ["gpt-5.5", "qwen3-coder"],
        "serving": [
            {
                "model": "gpt-5.5",
                "status": "ready",
                "upstreams": ["personal"],
                "since": None,
                "until": None,
                "failed_requests": 0,
                "passed_over": [PLATFORM_COOLS_DOWN],
            },
            {"model": "qwen3-coder", **NOBODY_SERVES},
        ],
    },
    "list_upstreams": {
        "id": "personal",
        "type": "codex",
        "status": "ready",
        "base_url_host": "chatgpt.com",
        "pools": ["home"],
        "plan_label": "plus",
        "auth_status": "ok",
        "in_flight_requests": 2,
        **WELL,
    },
    "list_upstream_quotas": {
        "upstream": "personal",
        "routing_usable": True,
        "windows": [
            {
                "window": "codex",
                "window_minutes": 300,
                "used_percent": 42.0,
                "reset_at": "2027-01-15T10:46:40Z",
                "observed_at": "2027-01-15T08:58:20Z",
                "freshness_status": "fresh",
            },
            {
                "window": "codex",
                "window_minutes": 10080,
                "used_percent": 97.5,
                "reset_at": "2027-01-18T19:20:00Z",
                "observed_at": "2027-01-15T08:58:20Z",
                "freshness_status": "fresh",
            },
        ],
        **WELL,
    },
    "list_pool_api_keys": {
        "id": "home/laptop",
        "pool": "home",
        "display_name": "laptop",
        "source": "sha256",
        "status": "active",
    },
    "list_operators": {
        "id": "me",
        "display_name": "me",
        "source": "sha256",
        "status": "active",
    },
    "list_models": {
        "id": "gpt-5.5",
        "pools": ["home"],
        "status": "ready",
        "serving": [
            {
                "pool": "home",
                "model": "gpt-5.5",
                "status": "ready",
                "upstreams": ["personal"],
                "since": None,
                "until": None,
                "failed_requests": 0,
                "passed_over": [PLATFORM_COOLS_DOWN],
            }
        ],
    },
    "list_request_logs": {
        "id": LOG,
        "pool": "home",
        "api_key": "laptop",
        "upstream": "platform",
        "requested_model": "gpt-5.5",
        "endpoint": "responses",
        "transport": "sse",
        "status": "ok",
        "error_code": None,
        "response_status_code": 200,
        "retry_count": 1,
        "attempts": [
            {"upstream": "personal", "reason": "429 usage_limit_reached"},
            {"upstream": "platform", "reason": None},
        ],
        "passed_over": [],
        "tokens": {
            "input_tokens": 8120,
            "output_tokens": 960,
            "cached_tokens": 7680,
            "reasoning_tokens": 640,
        },
        "first_event_ms": 412,
        "latency_ms": 5120,
        "admitted_at": "2027-01-15T08:59:50Z",
    },
}


@pytest.mark.parametrize("tool", ROWS)
async def test_what_a_row_shows(tool: str, desk: Desk) -> None:
    assert (await desk.call(tool)).output["items"][0] == ROWS[tool]


NOW: Final = SNAPSHOT["at"]
FRESH_SECONDS: Final = mcp_server.FRESH_SECONDS_MAX


@pytest.mark.parametrize(
    ("observed_at", "resets_at", "freshness"),
    [
        (None, None, "unknown"),
        (None, NOW + 60, "unknown"),
        (NOW - FRESH_SECONDS, NOW + 1, "fresh"),
        (NOW - FRESH_SECONDS - 1, NOW + 1, "stale"),
        (NOW - 1, None, "fresh"),
        (NOW - 1, NOW, "stale"),
    ],
)
async def test_how_fresh_a_quota_window_is(
    observed_at: float | None, resets_at: float | None, freshness: str, desk: Desk
) -> None:
    window = desk.snapshot["accounts"][0]["windows"][0]
    window.update(observed_at=observed_at, resets_at=resets_at, window_minutes=0)
    quota, other = (await desk.call("list_upstream_quotas")).output["items"]
    assert (quota["upstream"], quota["routing_usable"]) == ("personal", True)
    assert other == {
        "upstream": "platform",
        "routing_usable": False,
        "windows": [],
        **COOLS_DOWN,
    }
    assert len(quota["windows"]) == 2
    seen = quota["windows"][0]
    assert (seen["window"], seen["window_minutes"]) == ("codex", None)  # 0: it is not told
    assert (seen["used_percent"], seen["freshness_status"]) == (42.0, freshness)


@pytest.mark.parametrize(
    ("tool", "arguments", "found"),
    [
        ("list_upstreams", {}, ["personal", "platform"]),
        ("list_upstreams", {"status": "cooling_down"}, ["platform"]),
        ("list_upstreams", {"status": "paused"}, []),
        ("list_upstreams", {"status": "any"}, ["personal", "platform"]),
        ("list_upstreams", {"status": "", "query": ""}, ["personal", "platform"]),
        ("list_upstreams", {"query": "CHATGPT"}, ["personal"]),
        ("list_upstreams", {"query": "rate_limit_EXCEEDED"}, ["platform"]),
        ("list_upstreams", {"query": "last_error"}, []),
        ("list_upstreams", {"query": "home"}, ["personal", "platform"]),
        ("list_upstreams", {"query": "nothing like it"}, []),
        ("list_upstreams", {"pool_selector": "home", "limit": 100}, ["personal", "platform"]),
        ("list_upstreams", {"pool_selector": "spare"}, []),
        ("list_pools", {"pool_selector": "home"}, ["home"]),
        ("list_pools", {"pool_selector": "spare"}, ["spare"]),
        ("list_pools", {"pool_selector": "o"}, []),
        ("list_pools", {"status": "degraded"}, ["home"]),
        ("list_pool_api_keys", {"status": "expired"}, ["home/ci"]),
        ("list_pool_api_keys", {"query": "laptop"}, ["home/laptop"]),
        ("list_pool_api_keys", {"pool_selector": "o"}, []),
        ("list_operators", {"pool_selector": "home"}, []),
        ("list_models", {"pool_selector": "home"}, ["gpt-5.5", "qwen3-coder"]),
        ("list_models", {"pool_selector": "spare"}, []),
        ("list_models", {"status": "ready"}, ["gpt-5.5"]),
        ("list_models", {"status": "limited"}, ["qwen3-coder"]),
        ("list_models", {"status": "unknown"}, []),
    ],
)
async def test_rows_that_fit(tool: str, arguments: Json, found: list[str], desk: Desk) -> None:
    spare = {**desk.snapshot["pools"][0], "name": "spare", "status": "down", "accounts": []}
    desk.snapshot["pools"].append(spare)
    output = (await desk.call(tool, **arguments)).output
    assert [row["id"] for row in output["items"]] == found
    assert (output["count"], output["limit"]) == (len(found), arguments.get("limit", 25))
    assert output["status"] == ("not_found" if arguments.get("pool_selector") == "o" else "ok")


async def test_a_list_is_cut_at_its_limit_and_says_how_many_there_are(desk: Desk) -> None:
    account = desk.snapshot["accounts"][0]
    desk.snapshot["accounts"] = [{**account, "name": f"a{i}"} for i in range(150)]
    for limit in (1, 25, mcp_server.ROWS_MAX):
        output = (await desk.call("list_upstreams", limit=limit)).output
        assert [row["id"] for row in output["items"]] == [f"a{i}" for i in range(limit)]
        assert (output["count"], output["limit"]) == (150, limit)


@pytest.mark.parametrize(
    ("arguments", "found", "total"),
    [
        ({}, "qab", 3),
        ({"limit": 1}, "q", 3),
        ({"limit": 1, "offset": 1}, "a", 3),
        ({"offset": 3}, "", 3),
        ({"offset": 10_000, "limit": 50}, "", 3),
        ({"status": "ok"}, "qa", 2),
        ({"status": "aborted"}, "b", 1),
        ({"status": "error"}, "", 0),
        ({"pool_selector": "home", "status": "ok", "offset": 1}, "a", 2),
        ({"pool_selector": "spare"}, "", 0),
        ({"pool_selector": "any"}, "", 0),
        ({"key": "laptop"}, "qab", 3),
        ({"key": "home/laptop", "model": "gpt-5.5"}, "q", 1),
        ({"key": "ci"}, "", 0),
        ({"key": "home"}, "", 0),
        ({"upstream": "personal"}, "qb", 2),  # also one that it did not serve in the end
        ({"upstream": "platform"}, "q", 1),
        ({"upstream": "home", "pool_selector": "home"}, "", 0),
        ({"model": "other"}, "b", 1),
        ({"model": "any"}, "", 0),
        ({"since": "2027-01-15T08:59:50.5Z"}, "q", 1),
        ({"since": "2027-01-15T09:59:40+01:00"}, "qa", 2),
        ({"since": "2027-01-15T08:59:40Z", "status": "ok", "limit": 1}, "q", 2),
        ({"since": "2027-01-15T09:00:00Z"}, "", 0),
        ({"since": "0001-01-01T00:00:00+14:00"}, "qab", 3),
        ({"since": "9999-12-31T23:59:59-14:00"}, "", 0),
        ({"since": "", "key": "", "status": ""}, "qab", 3),
    ],
)
async def test_request_logs(arguments: Json, found: str, total: int, desk: Desk) -> None:
    output = (await desk.call("list_request_logs", **arguments)).output
    assert "".join(row["id"][0] for row in output["items"]) == found
    assert output["total"] == total
    assert output["limit"] == arguments.get("limit", 25)
    assert output["offset"] == arguments.get("offset", 0)


@pytest.mark.parametrize(
    ("tool", "arguments", "status"),
    [
        ("list_request_logs", {"pool_selector": "home", "key": "ci"}, "ok"),
        ("list_request_logs", {"key": "home/ci", "upstream": "platform"}, "ok"),
        ("list_request_logs", {"pool_selector": "hom"}, "not_found"),
        ("list_request_logs", {"key": "spare/ci"}, "not_found"),
        ("list_request_logs", {"upstream": "home"}, "not_found"),
        ("list_upstreams", {"pool_selector": "personal"}, "not_found"),
    ],
)
async def test_a_name_that_pools_json_does_not_have_is_not_found(
    tool: str, arguments: Json, status: str, desk: Desk
) -> None:
    assert (await desk.call(tool, **arguments)).output["status"] == status


async def test_who_was_passed_over_is_listed(desk: Desk) -> None:
    row = {"account": "platform", "reason": "at_limit: 429 usage_limit_reached"}
    desk.snapshot["requests"][0].update(passed_over=[row] * 100, tokens=None)
    (log, *_) = (await desk.call("list_request_logs")).output["items"]
    assert log["passed_over"][0] == {"upstream": "platform", "reason": row["reason"]}
    assert len(log["passed_over"]) == mcp_server.NAMES_MAX
    assert log["tokens"] is None


async def test_an_alias_is_served_like_the_model_that_it_means_in_each_pool(desk: Desk) -> None:
    home = desk.snapshot["pools"][0]
    down = {**home["serving"][0], "status": "down", "accounts": []}
    desk.snapshot["pools"].append({**home, "name": "spare", "serving": [down]})
    desk.snapshot["models"] = [
        {
            "name": "best",
            "pools": ["home", "spare", "quiet"],
            "targets": ["qwen3-coder", "gpt-5.5", "gpt-5.5"],
        }
    ]
    for pool, status, served in (
        ("", "down", [("home", "qwen3-coder"), ("spare", "gpt-5.5")]),
        ("home", "limited", [("home", "qwen3-coder")]),
        ("spare", "down", [("spare", "gpt-5.5")]),
        ("quiet", "unknown", []),
    ):
        (row,) = (await desk.call("list_models", pool_selector=pool)).output["items"]
        assert (row["id"], row["status"]) == ("best", status)
        assert [(place["pool"], place["model"]) for place in row["serving"]] == served


HOSTILE: Final = '<b onload="x">`\x1b[31m\u202e\n' + "y" * 300


@pytest.mark.parametrize(
    "tool",
    [
        "diagnose",
        "usage_summary",
        "list_pools",
        "list_upstreams",
        "list_models",
        "list_request_logs",
    ],
)
async def test_what_an_upstream_may_have_chosen_is_disarmed(tool: str, desk: Desk) -> None:
    (pool,) = desk.snapshot["pools"]
    pool["models"].append(HOSTILE)
    for serving in pool["serving"]:
        serving["model"] = HOSTILE
        for passed in serving["passed_over"]:
            passed.update(status=HOSTILE, reason=HOSTILE)
    for account in desk.snapshot["accounts"]:
        error = {"at": 1.0, "reason": HOSTILE}
        account.update(reason=HOSTILE, advice=HOSTILE[:150], plan=HOSTILE, last_error=error)
        account.update(status="refused", needs_operator=True, since=1.0)
    desk.snapshot["last_hour"]["causes"][0]["code"] = HOSTILE
    for model in desk.snapshot["models"]:
        model.update(name=HOSTILE, targets=[HOSTILE])
    for request in desk.snapshot["requests"]:
        tried = {"account": "personal", "reason": HOSTILE}
        request.update(model=HOSTILE, code=HOSTILE, attempts=[tried], passed_over=[tried])
    text = (await desk.call(tool)).text
    assert "yyyy" in text
    assert not set("<>`") & set(text)
    assert "\\u" not in text
    assert tool == "diagnose" or "y" * 200 not in text


async def test_a_failed_request_is_an_error_with_our_code(desk: Desk) -> None:
    desk.snapshot["requests"][0].update(code="usage_limit_reached", status=429)
    (row,) = (await desk.call("list_request_logs", status="error")).output["items"]
    assert (row["status"], row["error_code"]) == ("error", "usage_limit_reached")
    assert row["response_status_code"] == 429


async def test_one_request_log(desk: Desk) -> None:
    found = (await desk.call("get_request_log", id=LOG)).output
    assert (found["status"], found["kind"]) == ("ok", "request_log")
    assert found["item"] == ROWS["list_request_logs"]
    missing = (await desk.call("get_request_log", id=CANARY)).output
    assert (missing["status"], missing["item"]) == ("not_found", None)
    assert missing["message"]


async def test_a_model_of_the_clients_own_making_is_shortened_and_disarmed(desk: Desk) -> None:
    desk.snapshot["requests"][0]["model"] = '<b onload="x">\x1b[31m\u202e' + "y" * 100
    (row, *_) = (await desk.call("list_request_logs")).output["items"]
    assert row["requested_model"] == "?b?onload??x????31m?".ljust(64, "y")


async def test_routing_is_explained(desk: Desk) -> None:
    output = (await desk.call("explain_routing", pool_selector="home", model="gpt-5.5")).output
    assert (output["pool"], output["model"], output["chosen"]) == ("home", "gpt-5.5", "personal")
    assert output["accounts"] == [
        {"id": "personal", "would_serve": True, "status": "ready", "reason": "pinned by None"},
        {
            "id": "platform",
            "would_serve": False,
            "status": "at_limit",
            "reason": "at its limit for 5 min more: 429 usage_limit_reached",
        },
    ]
    assert "personal" in output["message"]
    pinned = await desk.call("explain_routing", pool_selector="home", model="m", session="s-1")
    assert pinned.output["accounts"][0]["reason"] == "pinned by s-1"


async def test_a_try_at_an_account_that_is_not_ready_is_said_to_be_one(desk: Desk) -> None:
    reason = "number 1 in order; at its limit"
    rows = [{"name": "personal", "is_chosen": True, "status": "at_limit", "reason": reason}]
    desk.explain = lambda *_: {"chosen": "personal", "accounts": rows}
    output = (await desk.call("explain_routing", pool_selector="home", model="m")).output
    assert output["message"].startswith("The request would go to personal. That is a try")


async def test_an_account_that_never_failed_has_no_last_error(desk: Desk) -> None:
    desk.snapshot["accounts"][0]["last_error"] = None
    row, _ = (await desk.call("list_upstreams")).output["items"]
    assert row["last_error"] is None


async def test_a_reason_with_an_upstream_s_words_is_shortened_and_disarmed(desk: Desk) -> None:
    hostile = "cooling down for 9 s: 429 (a; b), c's <b>\x1b[31m\u202e`x`\n" + "y" * 300
    rows = [{"name": "personal", "is_chosen": False, "status": "refused", "reason": hostile}]
    desk.explain = lambda *_: {"chosen": None, "accounts": rows}
    output = (await desk.call("explain_routing", pool_selector="home", model="m")).output
    disarmed = "cooling down for 9 s: 429 (a; b), c's ?b???31m??x??"
    assert output["accounts"][0]["reason"] == disarmed.ljust(200, "y")


async def test_routing_to_nobody_and_in_no_pool_is_explained(desk: Desk) -> None:
    unknown = (await desk.call("explain_routing", pool_selector="spare", model="m")).output
    assert (unknown["chosen"], unknown["accounts"]) == (None, [])
    assert unknown["message"] == "Unknown pool, or the pool does not serve this model."
    desk.explain = lambda pool, model, _: {
        "pool": pool,
        "model": model,
        "chosen": None,
        "accounts": [
            {"name": "personal", "is_chosen": False, "status": "paused", "reason": "paused"}
        ],
    }
    nobody = (await desk.call("explain_routing", pool_selector="home", model="m")).output
    assert (nobody["chosen"], nobody["accounts"][0]["would_serve"]) == (None, False)
    assert nobody["message"] == "No account can serve the request now."


# What a call is told of an argument that does not fit.
LIMIT: Final = "limit (1 to 100)"
SHORT: Final = "(a text of at most 200 characters)"
LIST_TAKES: Final = "(this tool takes query, status, pool_selector, limit)"
SINCE: Final = "since (a time of RFC 3339 with its zone, such as 2027-01-15T02:00:00Z)"


@pytest.mark.parametrize(
    ("tool", "arguments", "hints"),
    [
        ("list_pools", {"limit": 0}, [LIMIT]),
        ("list_pools", {"limit": 101}, [LIMIT]),
        ("list_pools", {"limit": 10**31}, [LIMIT]),
        ("list_pools", {"limit": "25"}, [LIMIT]),
        ("list_pools", {"limit": True}, [LIMIT]),
        ("list_pools", {"limit": 2.0}, [LIMIT]),
        ("list_pools", {"query": "x" * 201}, [f"query {SHORT}"]),
        ("list_pools", {"query": None}, [f"query {SHORT}"]),
        (
            "list_pools",
            {"status": CANARY * 20, "query": [CANARY]},
            [f"query {SHORT}", "status (one of any, ready, degraded, limited, down)"],
        ),
        ("list_pools", {CANARY: CANARY}, [f"an unknown one {LIST_TAKES}"]),
        ("list_pools", {"offset": 1, "limit": -1}, [LIMIT, f"an unknown one {LIST_TAKES}"]),
        (
            "list_pool_api_keys",
            {"status": "Active"},
            ["status (one of any, active, paused, expired)"],
        ),
        ("list_operators", {"status": "gone"}, ["status (one of any, active)"]),
        (
            "list_models",
            {"status": "degraded"},
            ["status (one of any, ready, limited, down, unknown)"],
        ),
        ("list_request_logs", {"status": CANARY}, ["status (one of any, ok, error, aborted)"]),
        ("list_request_logs", {"limit": 51}, ["limit (1 to 50)"]),
        ("list_request_logs", {"offset": 10_001}, ["offset (0 to 10000)"]),
        ("list_request_logs", {"offset": -1}, ["offset (0 to 10000)"]),
        ("list_request_logs", {"since": "yesterday"}, [SINCE]),
        ("list_request_logs", {"since": "2027-01-15"}, [SINCE]),
        ("list_request_logs", {"since": "2027-01-15T08:00:00"}, [SINCE]),
        ("list_request_logs", {"since": 1800000000}, [SINCE]),
        ("get_request_log", {}, [f"id {SHORT}"]),
        ("get_request_log", {"id": ""}, [f"id {SHORT}"]),
        ("get_request_log", {"id": 7}, [f"id {SHORT}"]),
        ("explain_routing", {"pool_selector": "home"}, [f"model {SHORT}"]),
        ("get_mcp_service_status", {"x": 1}, ["an unknown one (this tool takes nothing)"]),
    ],
)
async def test_a_wrong_argument_is_named_with_what_it_may_be_and_never_repeated(
    tool: str, arguments: Json, hints: list[str], desk: Desk
) -> None:
    reply = await desk.call(tool, **arguments)
    assert reply.result["isError"] is True
    assert reply.text == f"invalid_arguments: {'; '.join(hints)}"
    assert "structuredContent" not in reply.result
    assert CANARY not in reply.body.decode()


ACCOUNT_WORDS: Final = (
    "ready cooling_down at_limit refused login_needed failing unreachable paused".split()
)


@pytest.mark.parametrize("tool", ["list_upstreams", "list_upstream_quotas"])
async def test_a_wrong_word_for_an_accounts_status_is_an_error_that_names_all(
    tool: str, desk: Desk
) -> None:
    reply = await desk.call(tool, status="broken")
    words = ", ".join(["any", *ACCOUNT_WORDS])
    assert reply.result["isError"] is True
    assert reply.text == f"invalid_arguments: status (one of {words})"
    for word in ACCOUNT_WORDS:
        desk.snapshot["accounts"][0]["status"] = word
        rows = (await desk.call(tool, status=word)).output["items"]
        assert {row["status"] for row in rows} == {word}


async def test_no_choice_of_an_argument_is_empty(desk: Desk) -> None:
    for tool in (await tools(desk)).values():
        for node in nodes(tool["inputSchema"]):
            assert "" not in node.get("enum", [])


async def test_each_word_of_a_status_is_in_the_description_of_its_tool(desk: Desk) -> None:
    for tool in (await tools(desk)).values():
        status = tool["inputSchema"]["properties"].get("status", {"enum": ["any"]})
        assert status["enum"][0] == status.get("default", "any") == "any"
        for word in status["enum"][1:]:
            assert word in tool["description"], tool["name"]


################################################################
# WHAT IS WRONG, AND WHAT WAS USED
################################################################


async def test_a_diagnosis_is_the_list_of_the_page_as_text_and_as_data(desk: Desk) -> None:
    output = (await desk.call("diagnose")).output
    needs = mcp_server.attention(mcp_server.overview(desk.snapshot))
    assert output["needs_you_count"] == len(needs) == 2
    assert [row["title"] for row in output["items"]] == [need.title for need in needs]
    assert [row["text"] for row in output["items"]] == [need.text for need in needs]
    first, second = output["items"]
    assert (first["severity"], first["pool"], first["models"]) == ("bad", "home", ["qwen3-coder"])
    assert (first["since"], first["upstream"]) == ("2027-01-15T08:58:20Z", None)
    assert (second["severity"], second["api_key"]) == ("fair", "home/ci")

    lines = output["summary"].splitlines()
    assert lines[0] == "2 need you, the worst first (times in UTC)."
    for line, row in zip(lines[1:], output["items"], strict=True):
        assert line.startswith(f"- {row['title']}. {row['text']}")
        assert line.endswith(row["advice"] or row["text"])


async def test_nothing_needs_you_if_all_is_well(desk: Desk) -> None:
    desk.snapshot["pools"][0]["serving"].pop()
    desk.snapshot["keys"].pop()
    assert (await desk.call("diagnose")).output == {
        "status": "ok",
        "summary": "Nothing needs you.",
        "needs_you_count": 0,
        "items": [],
    }


async def test_a_diagnosis_has_the_command_that_mends_an_account(desk: Desk) -> None:
    command = "pooler login personal --config '/a b/it'\"'\"'s; pools.json'"
    desk.snapshot["accounts"][0].update(
        status="login_needed", reason="revoked", advice=command, needs_operator=True, since=1.0
    )
    found = (await desk.call("diagnose")).output["items"]
    advice = {row["upstream"]: row["advice"] for row in found}
    assert advice["personal"] == command
    desk.snapshot["accounts"][0]["advice"] = "Put a valid key into {env:OPENAI_API_KEY}: 90 % `x`"
    (row, _) = (await desk.call("list_upstreams")).output["items"]
    assert row["advice"] == "Put a valid key into {env:OPENAI_API_KEY}: 90 % ?x?"


@pytest.mark.parametrize(
    ("pool", "status", "about"),
    [
        ("", "ok", ["home", "personal", "spare/old", "home/ci", "state"]),
        ("home", "ok", ["home", "personal", "home/ci", "state"]),
        ("spare", "ok", ["spare/old", "state"]),
        ("spar", "not_found", []),
    ],
)
async def test_a_diagnosis_of_one_pool(
    pool: str, status: str, about: list[str], desk: Desk
) -> None:
    given = desk.snapshot
    spare = {**given["pools"][0], "name": "spare", "accounts": ["platform"], "serving": []}
    given["pools"].append(spare)
    given["keys"].append({**given["keys"][1], "pool": "spare", "name": "old"})
    given["accounts"][0].update(status="refused", needs_operator=True, since=1.0)
    given["state_problem"] = "no space left"
    output = (await desk.call("diagnose", pool_selector=pool)).output
    subjects = [
        row["upstream"] or row["api_key"] or row["pool"] or "state" for row in output["items"]
    ]
    assert sorted(subjects) == sorted(about)
    assert (output["status"], output["needs_you_count"]) == (status, len(about))


async def test_what_was_used(desk: Desk) -> None:
    output = (await desk.call("usage_summary")).output
    assert output["today"] == desk.snapshot["today"]
    assert output["last_hour"] == desk.snapshot["last_hour"]
    assert (output["status"], output["has_prices"], output["count"]) == ("ok", True, 2)
    laptop, ci = output["keys"]
    assert (laptop["id"], ci["id"]) == ("home/laptop", "home/ci")
    assert laptop["days"] == desk.snapshot["keys"][0]["days"]
    assert laptop["tokens_per_day"] == 2_000_000
    assert ci["days"] == []  # it had no requests
    assert (ci["status"], ci["expires_at"]) == ("expired", "2027-01-15T05:13:20Z")
    assert (ci["requests_per_minute"], ci["tokens_per_day"], ci["concurrent"]) == (60, None, 4)


@pytest.mark.parametrize(
    ("arguments", "status", "ids"),
    [
        ({"pool_selector": "home"}, "ok", ["home/laptop", "home/ci"]),
        ({"pool_selector": "spare"}, "ok", ["spare/laptop"]),
        ({"key": "laptop"}, "ok", ["spare/laptop", "home/laptop"]),
        ({"key": "home/laptop"}, "ok", ["home/laptop"]),
        ({"key": "laptop", "pool_selector": "home"}, "ok", ["home/laptop"]),
        ({"key": "lap"}, "not_found", []),
        ({"pool_selector": "other"}, "not_found", []),
    ],
)
async def test_what_some_keys_used_today(
    arguments: Json, status: str, ids: list[str], desk: Desk
) -> None:
    given = desk.snapshot
    laptop = given["keys"][0]
    busier = [{**day, "requests": day["requests"] + 1} for day in laptop["days"]]
    given["keys"].append({**laptop, "pool": "spare", "days": busier})
    given["pools"].append({**given["pools"][0], "name": "spare"})
    output = (await desk.call("usage_summary", **arguments)).output
    assert (output["status"], [key["id"] for key in output["keys"]]) == (status, ids)
    busy = {"home/laptop": 40, "spare/laptop": 41}
    assert output["today"]["requests"] == sum(busy.get(name, 0) for name in ids)
    assert output["today"]["cost"] == pytest.approx(0.04 * sum(name in busy for name in ids))


async def test_an_unknown_cost_makes_the_sum_unknown(desk: Desk) -> None:
    desk.snapshot["keys"][0]["days"][-1]["cost"] = None
    output = (await desk.call("usage_summary", pool_selector="home")).output
    assert output["today"]["cost"] is None


async def test_a_summary_of_very_many_keys_is_cut(desk: Desk) -> None:
    key = desk.snapshot["keys"][0]
    desk.snapshot["keys"] = [{**key, "name": f"k{i}"} for i in range(150)]
    output = (await desk.call("usage_summary", limit=3)).output
    assert (output["count"], output["limit"], len(output["keys"])) == (150, 3, 3)


################################################################
# PRIVACY
################################################################


def planted(facts: Any) -> Any:  # noqa: ANN401
    """The same with a secret in an unknown field of every object."""
    if isinstance(facts, list):
        return [planted(one) for one in facts]
    if isinstance(facts, dict):
        kept = {name: planted(value) for name, value in facts.items()}
        return {**kept, "token": CANARY, "new": {"nested": [CANARY]}}
    return facts


@each_tool
@each_version
async def test_a_new_field_stays_private(tool: str, version: str, desk: Desk) -> None:
    plain = await desk.call(tool, version=version, **ARGUMENTS[tool])
    desk.snapshot = planted(desk.snapshot)
    desk.explain = lambda *asked: planted(explained(*asked))
    reply = await desk.call(tool, version=version, **ARGUMENTS[tool])
    assert reply == plain
    assert CANARY not in reply.body.decode()


@each_tool
async def test_a_tool_reads_nothing_but_what_is_listed(tool: str, desk: Desk) -> None:
    plain = await desk.call(tool, **ARGUMENTS[tool])
    desk.snapshot = watched(desk.snapshot)
    assert await desk.call(tool, **ARGUMENTS[tool]) == plain


# What the snapshot has, and MCP does not tell.
UNTOLD: Final = ("aliases", "totals", "bytes_in", "method")


@each_tool
async def test_what_operators_must_not_see_is_not_shown(tool: str, desk: Desk) -> None:
    schema = (await tools(desk))[tool]["outputSchema"]
    assert not {name for n in nodes(schema) for name in n} & set(UNTOLD)


@pytest.mark.parametrize(
    ("tool", "spoil"),
    [
        ("list_pools", lambda facts: facts["pools"][0].update(status=CANARY)),
        ("list_pools", lambda facts: facts["pools"][0].update(accounts={CANARY: 1})),
        ("list_upstreams", lambda facts: facts["accounts"][0].update(login=CANARY)),
        ("list_pool_api_keys", lambda facts: facts["keys"][0].update(source=CANARY)),
        ("list_request_logs", lambda facts: facts["requests"][0].update(transport=[CANARY])),
    ],
)
async def test_a_snapshot_of_another_shape_is_a_bug_that_reveals_nothing(
    tool: str, spoil: Callable[[Json], None], desk: Desk
) -> None:
    spoil(desk.snapshot)
    with pytest.raises(TypeError) as caught:
        await desk.call(tool)
    shown = [str(error) for error in (caught.value, caught.value.__cause__)]
    assert not [text for text in shown if CANARY in text]


################################################################
# COST
################################################################


@pytest.mark.measures
@pytest.mark.parametrize("tool", [None, "list_request_logs", "list_upstreams"])
@each_version
async def test_a_response_costs_less_than_5_ms(tool: str | None, version: str, desk: Desk) -> None:
    desk.snapshot["requests"] *= 333  # as many as are remembered
    costs = []
    for _ in range(21):
        started_at = time.process_time()
        await (
            desk.call(tool, version=version) if tool else desk.ask("tools/list", version=version)
        )
        costs.append(time.process_time() - started_at)
    assert sorted(costs)[10] < 0.005


def test_an_object_with_other_members_does_not_fit() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert mcp_server.fits({"a": 1}, schema)
    assert not mcp_server.fits({}, schema)
    assert not mcp_server.fits({"a": 1, "b": 2}, schema)
