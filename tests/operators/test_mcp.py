"""Proves that MCP tools give an operator correct metadata, that of the snapshot, and no more.

Method: `answer` is called as pooler.py calls it, with the snapshot that also specifies its shape
(snapshot.json), and its results are validated with the tool's own schemas.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped] # it has no types
import pytest

import mcp_server
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
        assert tool["annotations"] == {
            "readOnlyHint": True,
            "destructiveHint": False,
            "idempotentHint": True,
            "openWorldHint": False,
        }


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
    }


async def test_an_operator_removed_during_the_request_gets_a_response(desk: Desk) -> None:
    desk.operator = "former"
    output = (await desk.call("get_mcp_service_status")).output
    assert output["actor"] == {"id": "former", "display_name": "former", "status": "removed"}


ROWS: Final[Mapping[str, Json]] = {
    "list_pools": {
        "id": "home",
        "name": "home",
        "status": "ready",
        "strategy": "sticky",
        "upstreams": ["personal", "platform"],
        "upstream_count": 2,
        "api_key_count": 2,
        "models": ["gpt-5.5", "qwen3-coder"],
    },
    "list_upstreams": {
        "id": "personal",
        "type": "codex",
        "status": "ready",
        "base_url_host": "chatgpt.com",
        "pools": ["home"],
        "plan_label": "plus",
        "auth_status": "ok",
        "cooldown_until": None,
        "in_flight_requests": 2,
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
    "list_models": {"id": "gpt-5.5", "pools": ["home"]},
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
    assert (other["status"], other["routing_usable"], other["windows"]) == ("resting", False, [])
    assert len(quota["windows"]) == 2
    seen = quota["windows"][0]
    assert (seen["window"], seen["window_minutes"]) == ("codex", None)  # 0: it is not told
    assert (seen["used_percent"], seen["freshness_status"]) == (42.0, freshness)


@pytest.mark.parametrize(
    ("tool", "arguments", "found"),
    [
        ("list_upstreams", {}, ["personal", "platform"]),
        ("list_upstreams", {"status": "resting"}, ["platform"]),
        ("list_upstreams", {"status": "rest"}, []),
        ("list_upstreams", {"query": "CHATGPT"}, ["personal"]),
        ("list_upstreams", {"query": "home"}, ["personal", "platform"]),
        ("list_upstreams", {"query": "nothing like it"}, []),
        ("list_upstreams", {"pool_selector": "home", "limit": 100}, ["personal", "platform"]),
        ("list_upstreams", {"pool_selector": "spare"}, []),
        ("list_pools", {"pool_selector": "home"}, ["home"]),
        ("list_pools", {"pool_selector": "spare"}, ["spare"]),
        ("list_pools", {"pool_selector": "o"}, []),
        ("list_pools", {"status": "ready"}, ["home"]),
        ("list_pool_api_keys", {"status": "expired"}, ["home/ci"]),
        ("list_pool_api_keys", {"query": "laptop"}, ["home/laptop"]),
        ("list_pool_api_keys", {"pool_selector": "o"}, []),
        ("list_operators", {"pool_selector": "home"}, []),
        ("list_models", {"pool_selector": "home"}, ["gpt-5.5"]),
        ("list_models", {"status": "ready"}, []),
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
    ],
)
async def test_request_logs(arguments: Json, found: str, total: int, desk: Desk) -> None:
    output = (await desk.call("list_request_logs", **arguments)).output
    assert "".join(row["id"][0] for row in output["items"]) == found
    assert output["total"] == total
    assert output["limit"] == arguments.get("limit", 25)
    assert output["offset"] == arguments.get("offset", 0)


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
        {"id": "personal", "would_serve": True, "reason": "pinned by None"},
        {"id": "platform", "would_serve": False, "reason": "rests until its limit resets"},
    ]
    assert "personal" in output["message"]
    pinned = await desk.call("explain_routing", pool_selector="home", model="m", session="s-1")
    assert pinned.output["accounts"][0]["reason"] == "pinned by s-1"


async def test_a_reason_with_an_upstream_s_words_is_shortened_and_disarmed(desk: Desk) -> None:
    hostile = "cooling down for 9 s: 429 (a; b), c's <b>\x1b[31m\u202e`x`\n" + "y" * 300
    rows = [{"name": "personal", "is_chosen": False, "reason": hostile}]
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
        "accounts": [{"name": "personal", "is_chosen": False, "reason": "paused"}],
    }
    nobody = (await desk.call("explain_routing", pool_selector="home", model="m")).output
    assert (nobody["chosen"], nobody["accounts"][0]["would_serve"]) == (None, False)
    assert nobody["message"] == "No account can serve the request now."


@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        ("list_pools", {"limit": 0}, "limit"),
        ("list_pools", {"limit": 101}, "limit"),
        ("list_pools", {"limit": 10**31}, "limit"),
        ("list_pools", {"limit": "25"}, "limit"),
        ("list_pools", {"limit": True}, "limit"),
        ("list_pools", {"limit": 2.0}, "limit"),
        ("list_pools", {"query": "x" * 201}, "query"),
        ("list_pools", {"query": None}, "query"),
        ("list_pools", {"query": [CANARY], "status": CANARY * 20}, "query, status"),
        ("list_pools", {CANARY: CANARY}, "(unknown)"),
        ("list_pools", {"offset": 1, "limit": -1}, "(unknown), limit"),
        ("list_request_logs", {"status": CANARY}, "status"),
        ("list_request_logs", {"limit": 51}, "limit"),
        ("list_request_logs", {"offset": 10_001}, "offset"),
        ("list_request_logs", {"offset": -1}, "offset"),
        ("get_request_log", {}, "id"),
        ("get_request_log", {"id": 7}, "id"),
        ("explain_routing", {"pool_selector": "home"}, "model"),
        ("get_mcp_service_status", {"x": 1}, "(unknown)"),
    ],
)
async def test_a_wrong_argument_is_named_and_never_repeated(
    tool: str, arguments: Json, named: str, desk: Desk
) -> None:
    reply = await desk.call(tool, **arguments)
    assert reply.result["isError"] is True
    assert reply.text == f"invalid_arguments: {named}"
    assert "structuredContent" not in reply.result
    assert CANARY not in reply.body.decode()


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
UNTOLD: Final = ("aliases", "totals", "attempts", "tokens", "bytes_in", "expires_at", "reason")


@each_tool
async def test_what_operators_must_not_see_is_not_shown(tool: str, desk: Desk) -> None:
    schema = (await tools(desk))[tool]["outputSchema"]
    allowed = {"reason"} if tool == "explain_routing" else set()
    assert not ({name for n in nodes(schema) for name in n} & set(UNTOLD)) - allowed


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
