"""Proves that `/mcp` speaks every MCP version that the SDK knows, and rejects everything else.

Method: `answer` is called as pooler.py calls it; each message is sent well-formed, and then with
one error at a time, down to bytes that are not JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import mcp_server
import pooler
from tests.support.mcp_client import (
    ARGUMENTS,
    CANARY,
    HEADERS,
    INVALID_PARAMS,
    INVALID_REQUEST,
    LEGACY,
    MISMATCH,
    MODERN,
    NO_METHOD,
    PARSE_ERROR,
    PREFIX,
    UNSUPPORTED,
    VERSIONS,
    Desk,
    Json,
    Response,
    asked,
)

each_version: Final = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def desk() -> Desk:
    return Desk()


################################################################
# PROTOCOL VERSIONS
################################################################


def greeting(version: str) -> Json:
    client = {"name": "test", "version": "1"}
    return {"protocolVersion": version, "capabilities": {}, "clientInfo": client}


@pytest.mark.parametrize("version", [*LEGACY, MODERN, "2099-01-01", CANARY])
async def test_initialize_agrees_on_a_version(version: str, desk: Desk) -> None:
    body = {"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": greeting(version)}
    response = await desk.post(json.dumps(body).encode())
    assert response.message["id"] == "a"
    assert response.result["protocolVersion"] == (version if version in LEGACY else LEGACY[-1])
    assert response.result["serverInfo"] == {"name": "codex-pooler", "version": "0.1.0"}
    assert set(response.result["capabilities"]) == {"tools"}
    assert f"{PREFIX}explain_routing" in response.result["instructions"]


async def test_initialize_gets_a_response_whatever_else_it_claims(desk: Desk) -> None:
    """Clients of both eras may stamp their envelope on it."""
    body, _ = asked("initialize", greeting(MODERN), version=MODERN)
    response = await desk.post(json.dumps(body).encode())
    assert response.result["protocolVersion"] == LEGACY[-1]


async def test_a_client_that_names_no_version_is_served(desk: Desk) -> None:
    params = {"name": f"{PREFIX}get_mcp_service_status"}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    response = await desk.post(json.dumps(body).encode())
    assert response.output["protocolVersion"] == "2025-03-26"


@pytest.mark.parametrize("version", LEGACY)
async def test_after_a_handshake_nothing_is_requested(version: str, desk: Desk) -> None:
    assert (await desk.ask("ping", version=version)).result == {}
    output = (await desk.call("get_mcp_service_status", version=version)).output
    assert output["protocolVersion"] == version
    assert (await desk.ask("server/discover", version=version)).failure == (200, NO_METHOD)
    assert (await desk.ask("resources/list", version=version)).failure == (200, NO_METHOD)


async def test_the_version_without_a_handshake(desk: Desk) -> None:
    found = (await desk.ask("server/discover", version=MODERN)).result
    assert found["supportedVersions"] == [MODERN]
    assert "instructions" in found
    listed = (await desk.ask("tools/list", version=MODERN)).result
    for result in (found, listed):
        assert result["resultType"] == "complete"
        assert (result["ttlMs"], result["cacheScope"]) == (mcp_server.LIST_TTL_MS, "private")
    called = await desk.call("get_mcp_service_status", version=MODERN)
    assert called.result["resultType"] == "complete"
    assert called.output["protocolVersion"] == MODERN
    for method in ("ping", "initialize", "logging/setLevel", "resources/list", "a/b"):
        assert (await desk.ask(method, {}, version=MODERN)).failure == (404, NO_METHOD)


VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY: Final = "io.modelcontextprotocol/clientCapabilities"


@pytest.mark.parametrize(
    ("headers", "meta", "failure"),
    [
        ({"mcp-method": "tools/list"}, {}, MISMATCH),
        ({"mcp-method": ""}, {}, MISMATCH),
        ({"mcp-method": None}, {}, MISMATCH),
        ({"mcp-name": "codex_pooler_list_pools"}, {}, MISMATCH),
        ({"mcp-name": "=?base64?!!!?="}, {}, MISMATCH),
        ({"mcp-name": None}, {}, MISMATCH),
        ({"mcp-protocol-version": None}, {}, MISMATCH),
        ({"mcp-protocol-version": "2025-11-25"}, {}, MISMATCH),
        ({"mcp-protocol-version": "2026-07-28, 2026-07-28"}, {}, MISMATCH),
        ({"mcp-protocol-version": "2099-01-01"}, {VERSION_KEY: "2099-01-01"}, UNSUPPORTED),
        ({}, {VERSION_KEY: None}, MISMATCH),
        ({}, {VERSION_KEY: ...}, INVALID_PARAMS),
        ({}, {CAPABILITIES_KEY: ...}, INVALID_PARAMS),
        ({}, {CAPABILITIES_KEY: 7}, INVALID_PARAMS),
    ],
)
async def test_headers_and_envelope_must_agree(
    headers: Json, meta: Json, failure: int, desk: Desk
) -> None:
    """None: no such header; ...: no such key."""
    params = {"name": f"{PREFIX}get_mcp_service_status"}
    body, sent = asked("tools/call", params, version=MODERN)
    sent = {name: it for name, it in {**sent, **headers}.items() if it is not None}
    stamped = {**body["params"]["_meta"], **meta}
    body["params"]["_meta"] = {key: it for key, it in stamped.items() if it is not ...}
    response = await desk.post(json.dumps(body).encode(), sent)
    assert response.failure == (400, failure)
    assert response.message["id"] == 7
    if failure == UNSUPPORTED:
        assert response.message["error"]["data"]["supported"] == [MODERN]


async def test_a_name_in_a_header_may_be_encoded(desk: Desk) -> None:
    body, headers = asked("tools/call", {"name": f"{PREFIX}list_models"}, version=MODERN)
    headers["mcp-name"] = "=?base64?Y29kZXhfcG9vbGVyX2xpc3RfbW9kZWxz?="
    assert (await desk.post(json.dumps(body).encode(), headers)).output["count"] == 2


@each_version
async def test_what_is_not_there_is_refused_without_repeating_it(version: str, desk: Desk) -> None:
    cases: list[tuple[str, Json, int]] = [
        ("tools/call", {"name": CANARY}, INVALID_PARAMS),
        ("tools/call", {"name": 7}, INVALID_PARAMS),
        ("tools/call", {"arguments": {}}, INVALID_PARAMS),
        ("tools/call", {"name": f"{PREFIX}list_pools", "arguments": [CANARY]}, INVALID_PARAMS),
        ("tools/list", {"cursor": CANARY}, INVALID_PARAMS),
        ("tools/list", {"cursor": ""}, INVALID_PARAMS),
        (CANARY, {}, NO_METHOD),
    ]
    for method, params, code in cases:
        response = await desk.ask(method, params, version=version)
        is_mismatch = version == MODERN and params.get("name") == 7  # no header can be that
        modern = 404 if code == NO_METHOD else 400
        expected = (modern if version == MODERN else 200, MISMATCH if is_mismatch else code)
        assert response.failure == expected
        assert CANARY not in response.body.decode()


################################################################
# HTTP AND JSON-RPC
################################################################

PING: Final = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "Application/JSON"}, 200),
        ({"content-type": None}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/jsonl"}, 415),
        ({"content-type": "application/json, text/plain"}, 415),
        ({"accept": "application/json"}, 200),
        ({"accept": "text/event-stream, APPLICATION/JSON;q=0.9"}, 200),
        ({"accept": "*/*"}, 200),
        ({"accept": "application/*"}, 200),
        ({"accept": None}, 200),
        ({"accept": "text/event-stream"}, 406),
        ({"accept": "text/html, application/xml"}, 406),
    ],
)
async def test_media_types(headers: Json, status: int, desk: Desk) -> None:
    sent = {name: it for name, it in {**HEADERS, **headers}.items() if it is not None}
    response = await desk.post(PING, sent)
    assert response.status == status
    if status != 200:
        assert response.failure == (status, INVALID_REQUEST)
        assert response.message["id"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"method": "notifications/initialized"},
        {"method": "notifications/cancelled", "params": {"requestId": 1}},
        {"method": "notifications/cancelled", "params": {"requestId": [CANARY]}},
        {"method": "notifications/of/my/own", "params": {}},
        {"method": "tools/call"},
    ],
)
@each_version
async def test_a_notification_is_accepted_without_a_response(
    body: Json, version: str, desk: Desk
) -> None:
    headers = {**HEADERS, "mcp-protocol-version": version}
    response = await desk.post(json.dumps({"jsonrpc": "2.0", **body}).encode(), headers)
    assert response == Response(202, {}, b"")


@pytest.mark.parametrize("request_id", [0, -1, 2**63, 10**31, "", "a\u00e9\U0001f600", "7"])
async def test_an_id_comes_back_as_it_was(request_id: int | str, desk: Desk) -> None:
    body = {"jsonrpc": "2.0", "id": request_id, "method": "ping"}
    response = await desk.post(json.dumps(body).encode())
    assert response.message == {"jsonrpc": "2.0", "id": request_id, "result": {}}
    assert type(response.message["id"]) is type(request_id)


def nested(depth: int) -> bytes:
    """A ping whose JSON is so deep: three objects, and lists."""
    lists = b"[" * (depth - 3) + b"]" * (depth - 3)
    return PING[:-1] + b',"params":{"_meta":{"x":' + lists + b"}}}"


def crowded(separators: int) -> bytes:
    """A ping with so many marks that begin or separate members."""
    begun = PING[:-1] + b',"params":{"_meta":{"x":[0'
    taken = sum(begun.count(mark) for mark in (b",", b"[", b"{"))
    return begun + b",0" * (separators - taken) + b"]}}}"


DEPTH, SEPARATORS = pooler.MCP_DEPTH_MAX, pooler.MCP_MEMBERS_MAX
HOSTILE: Final[Mapping[str, tuple[bytes, int]]] = {
    "nothing": (b"", PARSE_ERROR),
    "blank": (b" \n", PARSE_ERROR),
    "no JSON": (b"hello", PARSE_ERROR),
    "cut off": (PING[:-1], PARSE_ERROR),
    "two values": (PING + PING, PARSE_ERROR),
    "NUL": (b"\0" * 100, PARSE_ERROR),
    "no UTF-8": (b'{"jsonrpc":"2.0","id":"\xff","method":"ping"}', PARSE_ERROR),
    "UTF-16": (PING.decode().encode("utf-16"), PARSE_ERROR),
    "UTF-32": (PING.decode().encode("utf-32-le"), PARSE_ERROR),
    "BOM": (b"\xef\xbb\xbf" + PING, PARSE_ERROR),
    "overlong UTF-8": (PING.replace(b"ping", b"\xc0\xafing"), PARSE_ERROR),
    "surrogate bytes": (PING.replace(b"ping", b"\xed\xa0\x80"), PARSE_ERROR),
    "surrogate in a value": (PING.replace(b'"ping"', rb'"\ud800"'), PARSE_ERROR),
    "surrogate in the id": (PING.replace(b"1", rb'"\udc00x"', 1), PARSE_ERROR),
    "surrogate in a name": (PING[:-1] + rb',"\ud83d":1}', PARSE_ERROR),
    "NaN": (PING.replace(b":1,", b":NaN,"), PARSE_ERROR),
    "Infinity": (PING[:-1] + b',"params":{"a":-Infinity}}', PARSE_ERROR),
    "1e999": (PING[:-1] + b',"params":{"a":1e999}}', PARSE_ERROR),
    "a number of 5,000 digits": (PING.replace(b":1,", b":" + b"9" * 5000 + b","), PARSE_ERROR),
    "a name twice": (PING[:-1] + b',"method":"tools/list"}', PARSE_ERROR),
    "a name twice inside": (PING[:-1] + b',"params":{"a":{"b":1,"b":2}}}', PARSE_ERROR),
    "control in a string": (PING.replace(b"ping", b"pi\nng"), PARSE_ERROR),
    "too deep": (nested(DEPTH + 1), PARSE_ERROR),
    "too deep, objects": (b'{"a":' * (DEPTH + 1) + b"1" + b"}" * (DEPTH + 1), PARSE_ERROR),
    "far too deep": (b"[" * 9_000, PARSE_ERROR),
    "100,000 brackets": (b"[" * 100_000, PARSE_ERROR),
    "crowded": (crowded(SEPARATORS + 1), PARSE_ERROR),
    "a mebibyte of members": (b"[" + b"{}," * 349_000 + b"{}]", PARSE_ERROR),
    "batch": (b"[" + PING + b"]", INVALID_REQUEST),
    "empty batch": (b"[]", INVALID_REQUEST),
    "string": (b'"ping"', INVALID_REQUEST),
    "number": (b"7", INVALID_REQUEST),
    "null": (b"null", INVALID_REQUEST),
    "empty object": (b"{}", INVALID_REQUEST),
    "no method": (b'{"jsonrpc":"2.0","id":1}', INVALID_REQUEST),
    "a method that is none": (PING.replace(b'"ping"', b"7"), INVALID_REQUEST),
    "a response": (b'{"jsonrpc":"2.0","id":1,"result":{}}', INVALID_REQUEST),
    "an error": (b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}', INVALID_REQUEST),
    "another JSON-RPC": (PING.replace(b"2.0", b"1.0"), INVALID_REQUEST),
    "JSON-RPC 2": (PING.replace(b'"2.0"', b"2.0"), INVALID_REQUEST),
    "id null": (PING.replace(b":1,", b":null,"), INVALID_REQUEST),
    "id true": (PING.replace(b":1,", b":true,"), INVALID_REQUEST),
    "id object": (PING.replace(b":1,", b":{},"), INVALID_REQUEST),
    "id list": (PING.replace(b":1,", b":[1],"), INVALID_REQUEST),
    "id fraction": (PING.replace(b":1,", b":1.5,"), INVALID_REQUEST),
    "id 1.0": (PING.replace(b":1,", b":1.0,"), INVALID_REQUEST),
    "params list": (PING[:-1] + b',"params":[1]}', INVALID_REQUEST),
    "params string": (PING[:-1] + b',"params":"a"}', INVALID_REQUEST),
    "notification, no method": (b'{"jsonrpc":"2.0","method":7}', INVALID_REQUEST),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_hostile_bytes_get_an_error(
    case: str, desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    body, code = HOSTILE[case]
    for version in (None, "2025-11-25", MODERN):
        headers = HEADERS if version is None else {**HEADERS, "mcp-protocol-version": version}
        response = await desk.post(body, headers)
        assert response.failure == (400, code)
        assert response.message["id"] is None
    assert capfd.readouterr() == ("", "")


async def test_json_at_its_bounds_is_taken(desk: Desk) -> None:
    for body in (nested(DEPTH), crowded(SEPARATORS), b" " * 900_000 + PING):
        assert (await desk.post(body)).result == {}


@given(body=st.one_of(st.binary(), st.recursive(st.none(), st.lists).map(repr).map(str.encode)))
def test_any_bytes_get_a_response(body: bytes) -> None:
    response = trio.run(Desk().post, body)
    assert response.failure[0] == 400


JSON_VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    method=st.sampled_from(["initialize", "ping", "tools/list", "tools/call", "server/discover"]),
    tool=st.sampled_from([*ARGUMENTS]) | JSON_VALUES,
    arguments=JSON_VALUES,
    meta=JSON_VALUES,
    version=st.sampled_from([*VERSIONS, "x", ""]),
)
def test_any_request_gets_a_response(
    method: str, tool: object, arguments: object, meta: object, version: str
) -> None:
    name = f"{PREFIX}{tool}" if isinstance(tool, str) else tool
    params = {"name": name, "arguments": arguments, "_meta": meta}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    headers = {**HEADERS, "mcp-protocol-version": version, "mcp-method": method}
    response = trio.run(Desk().post, body.encode(errors="replace"), headers)
    assert response.status in {200, 400, 404}
