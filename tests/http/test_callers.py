"""Proves who may call by which name, from which page and in what coding, and what is not kept.

Method: the real server in virtual time; tables of Host, Origin and Content-Encoding on every route,
and every kind of answer, an upstream's own beside ours.
"""

from __future__ import annotations

import json
from typing import Final

import pytest
from trio.testing import MockClock

from pooler import ROUTES, ConfigRefused, is_origin_allowed, parse_config
from tests.support.memory_sockets import KEY, Json, Pairs, Response, post, request
from tests.support.world import (
    World,
    describe,
    error_response,
    json_response,
    make_config,
    opened_world,
    sse_response,
)

TOKEN: Final = "operator-token-0123456789"
CALL: Final[Json] = {"model": "m1", "input": "x"}
MCP: Final[Json] = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


def with_operators(base_path: str = "") -> Json:
    return describe("a", base_path=base_path, operators={"me": TOKEN})


################################################################
# HEALTH
################################################################

HOSTS: Final = ("pooler.example.com", "localhost:4000", "10.42.0.17:4000", "evil.example", "[::1]")


@pytest.mark.parametrize("top", [{}, {"hosts": ["pooler.example.com"]}, {"hosts": []}])
@pytest.mark.parametrize("base", ["", "/pooler"])
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/healthz?full=1"])
async def test_health_is_told_under_any_name(
    autojump_clock: MockClock, path: str, base: str, top: Json
) -> None:
    async with opened_world(describe("a", base_path=base, **top)) as world:
        for host in HOSTS:
            response = await world.ask(request("GET", base + path, host=host, key=None))
            assert (response.status, response.json()) == (200, {"status": "ok"})
            client = await world.connect()
            await client.send(request("HEAD", base + path, host=host, key=None))
            assert (await client.read_response(is_head=True)).status == 200
            response = await world.ask(request("DELETE", base + path, host=host, key=None))
            assert (response.status, response.header("allow")) == (405, "GET, HEAD")
            # A page is nobody here, too.
            origin = [("Origin", "https://evil.example")]
            response = await world.ask(request("GET", base + path, host=host, headers=origin))
            assert (response.status, response.error["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize("base", ["", "/pooler"])
@pytest.mark.parametrize(
    "path", ["/healthz/", "/healthz/x", "/healthzz", "/HEALTHZ", "/v1/healthz", "/%68ealthz", "/"]
)
async def test_what_only_looks_like_a_health_route_is_none(
    autojump_clock: MockClock, path: str, base: str
) -> None:
    async with opened_world(describe("a", base_path=base)) as world:
        response = await world.ask(request("GET", base + path, host="10.42.0.17"))
        assert (response.status, response.error["code"]) == (403, "host_not_allowed")
        if base:
            response = await world.ask(request("GET", "/healthz", host="10.42.0.17"))
            assert response.status == 403


################################################################
# ORIGINS
################################################################

LOOPBACK: Final = (
    "http://localhost", "http://localhost:6274", "https://localhost:8443", "http://127.0.0.1:3000",
    "http://[::1]:5173", "https://127.0.0.1", "HTTP://LocalHost:80", "http://localhost:65535",
    "http://127.0.0.2:6274", "http://127.255.0.1",
)  # fmt: skip
ALIKE: Final = (
    "null", "", "*", "http://localhost.evil.example", "http://evil.example/localhost", "localhost",
    "http://localhost:3000@evil.example", "http://localhost@evil.example:80", "http://127.0.0.1.nip.io",
    "http://evil.localhost:3000", "http://localhost.", "http://localhost:", "http://localhost:0",
    "http://localhost:3000/", "http://localhost:123456", "http://localhost:3000, http://localhost",
    "ftp://localhost", "ws://localhost:3000", "file://localhost", "tauri://localhost",
    "http://[::1", "http://::1", "http://[::2]:1", "http://127.0.0.1:03000", "http://0.0.0.0:3000",
    "http://1270.0.0.1", "http://127.0.0.11.evil", "http://128.0.0.1", "http://2130706433",
    "http://xlocalhost", "xhttp://localhost", "http://localhost#x", "http://localhost?x",
    "//localhost", "http://127.0.1", "http://127.1:3000", "http://127.0.0.1.1",
)  # fmt: skip


@pytest.mark.parametrize("origin", LOOPBACK)
async def test_a_page_of_this_machine_may_use_mcp(autojump_clock: MockClock, origin: str) -> None:
    headers = [("Origin", origin)]
    async with opened_world(with_operators()) as world:
        response = await world.ask(post("/mcp", MCP, key=TOKEN, headers=headers))
        assert response.status == 200
        assert not [name for name, _ in response.headers if name.startswith("access-control-")]
        for key in (None, KEY, "wrong-token-0123456789"):
            response = await world.ask(post("/mcp", MCP, key=key, headers=headers))
            assert response.status == 401
        for path in ("/admin", "/metrics", "/v1/models", "/healthz", "/mcp/", "/"):
            response = await world.ask(request("GET", path, key=TOKEN, headers=headers))
            assert (response.status, response.error["code"]) == (403, "origin_not_allowed")
        raw = post("/mcp", MCP, key=TOKEN, headers=headers)
        response = await world.ask(raw.replace(b"Host: localhost", b"Host: evil.example"))
        assert (response.status, response.error["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("origin", ALIKE)
async def test_a_page_that_only_looks_like_it_may_not(
    autojump_clock: MockClock, origin: str
) -> None:
    async with opened_world(with_operators()) as world:
        headers = [("Origin", origin)]
        response = await world.ask(post("/mcp", MCP, key=TOKEN, headers=headers))
        assert (response.status, response.error["code"]) == (403, "origin_not_allowed")


async def test_with_a_base_path_mcp_is_what_stands_behind_it(autojump_clock: MockClock) -> None:
    headers = [("Origin", "http://localhost:6274")]
    async with opened_world(with_operators("/pooler")) as world:
        for path, status in (("/pooler/mcp", 200), ("/mcp", 403), ("/pooler/v1/mcp", 403)):
            response = await world.ask(post(path, MCP, key=TOKEN, headers=headers))
            assert response.status == status


SERIALISED: Final = (
    "tauri://localhost", "app://obsidian.md", "capacitor://localhost", "ionic://localhost",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop", "http+unix://x", "vscode-webview://1a2b",
    "moz-extension://0b7c-11", "safari-web-extension://E9F0-AB", "https://chat.example.com:8443",
    "http://[::1]:5173", "http://intra_net", "app://.", "x.y-z://a~b%20c:1",
)  # fmt: skip
NOT_SERIALISED: Final = (
    "null", "*", "", "https://host/", "https://host/path", "tauri://localhost/", "app://a/index.html",
    "https://*.example.com", "https://a https://b", "https://user@host", "host", "//host", "https://",
    "tauri:", "tauri://", "1tauri://localhost", "file://", "file://x", "data://x", "https://host?x",
    "https://host#x", "https://h:123456", "app://obsidian.md\n", "https://Höst", "https://HOST",
)  # fmt: skip


@pytest.mark.parametrize("origin", SERIALISED)
async def test_an_origin_of_any_scheme_may_be_allowed(
    autojump_clock: MockClock, origin: str
) -> None:
    async with opened_world(describe("a", allowed_origins=[origin])) as world:
        world.upstreams["a"].always = json_response({"id": "r"})
        for sent, status in (
            (origin, 200), (origin.upper(), 200), (f"{origin}x", 403), (f"x{origin}", 403),
            (f"{origin}/", 403), ("https://chat.example.com", 403), ("null", 403),
        ):  # fmt: skip
            headers = [("Origin", sent)]
            response = await world.ask(post("/v1/responses", CALL, headers=headers))
            assert response.status == status, sent
            assert (await world.ask(request("GET", "/healthz", headers=headers))).status == status


@pytest.mark.parametrize("origin", NOT_SERIALISED)
def test_what_is_no_origin_is_refused_with_a_reason(origin: str) -> None:
    raw = json.dumps(describe("a", allowed_origins=["https://good.example", origin])).encode()
    with pytest.raises(ConfigRefused) as refused:
        parse_config(raw, {}, str)
    [problem] = refused.value.problems
    assert problem.startswith("allowed_origins[1]: must be like https://host or tauri://localhost")
    assert "null, *, file: and data: would allow pages that anybody can make" in problem


def test_only_mcp_knows_loopback_origins() -> None:
    config = make_config(describe("a"))
    allowed = {route.path for route in ROUTES if is_origin_allowed(LOOPBACK[1], route, config)}
    assert allowed == {"/mcp"}


################################################################
# CODINGS
################################################################

CODED: Final = (
    "gzip", "GZIP", " gzip ", "x-gzip", "deflate", "zstd", "Zstd", "br", "compress", "dcb",
    "unknown",
    "gzip, identity", "identity, gzip", "gzip,gzip", "identity\t,\tzstd", ",br", "identity;q=1",
    "*", "identity gzip", "identity-x",
)  # fmt: skip
PLAIN: Final = ("identity", "Identity", "IDENTITY ", "identity, identity", "identity,", "", ",")
PATHS: Final = {
    "/v1/responses": KEY, "/v1/chat/completions": KEY, "/v1/responses/compact": KEY, "/mcp": TOKEN,
}  # fmt: skip


@pytest.mark.parametrize("coding", CODED)
async def test_a_compressed_body_is_refused_before_it_is_read(
    autojump_clock: MockClock, coding: str
) -> None:
    async with opened_world(with_operators()) as world:
        for path, key in PATHS.items():
            for framing in (b"Content-Length: 9000000", b"Transfer-Encoding: chunked"):
                head = post(path, CALL, key=key, headers=[("Content-Encoding", coding)])
                lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
                kept = [line for line in lines if not line.lower().startswith(b"content-length")]
                client = await world.connect()
                await client.send(b"\r\n".join([*kept, framing, b"Expect: 100-continue", b"", b""]))
                response = await client.read_response()
                assert response.status == 415  # and no 100 before it
                assert response.error["code"] == "unsupported_content_encoding"
                assert "enable_request_compression = false" in response.error["message"]
                assert response.header("connection") == "close"
        assert world.asked == []
        assert world.server.shared.bodies.bytes_held == 0


@pytest.mark.parametrize("coding", PLAIN)
async def test_identity_is_no_coding(autojump_clock: MockClock, coding: str) -> None:
    async with opened_world(with_operators()) as world:
        world.upstreams["a"].always = json_response({"id": "r", "choices": []})
        for path, key in PATHS.items():
            body = MCP if path == "/mcp" else CALL
            headers = [("Content-Encoding", coding)]
            assert (await world.ask(post(path, body, key=key, headers=headers))).status == 200
        assert not [asked for asked in world.asked if asked.header("content-encoding")]


################################################################
# WHAT IS OURS IS NOT KEPT
################################################################


def is_ours(response: Response) -> bool:
    """Whether an answer says so: both fields, once each."""
    named = ("cache-control", "x-content-type-options")
    found = sorted(pair for pair in response.headers if pair[0] in named)
    assert len({name for name, _ in found}) == len(found)
    return found == [("cache-control", "no-store"), ("x-content-type-options", "nosniff")]


OURS: Final[dict[str, tuple[str, str, str | None, Pairs, int]]] = {
    "health": ("GET", "/healthz", None, (), 200),
    "ready-head": ("HEAD", "/readyz", None, (), 200),
    "models": ("GET", "/v1/models", KEY, (), 200),
    "models-head": ("HEAD", "/v1/models", KEY, (), 200),
    "model": ("GET", "/v1/models/m1", KEY, (), 200),
    "no-model": ("GET", "/v1/models/none", KEY, (), 404),
    "usage": ("GET", "/v1/usage", KEY, (), 200),
    "codex-usage": ("GET", "/api/codex/usage", KEY, (), 200),
    "admin": ("GET", "/admin", TOKEN, (), 200),
    "admin-json": ("GET", "/admin", TOKEN, [("Accept", "application/json")], 200),
    "metrics-401": ("GET", "/metrics", None, (), 401),
    "metrics": ("GET", "/metrics", TOKEN, (), 200),
    "mcp": ("POST", "/mcp", TOKEN, (), 200),
    "mcp-405": ("GET", "/mcp", TOKEN, (), 405),
    "mcp-406": ("POST", "/mcp", TOKEN, [("Accept", "text/html")], 406),
    "unauthorised": ("GET", "/v1/models", "wrong-key-0123456789", (), 401),
    "405": ("POST", "/v1/models", KEY, (), 405),
    "404": ("GET", "/nothing", None, (), 404),
    "well-known": ("GET", "/.well-known/x", None, (), 404),
    "options": ("OPTIONS", "/v1/models", None, (), 404),
    # No preflight: a page of this machine may send to /mcp, and no browser shows it the response.
    "mcp-options": ("OPTIONS", "/mcp", None, [("Origin", "http://localhost:6274")], 404),
    "mcp-options-elsewhere": ("OPTIONS", "/mcp", None, [("Origin", "https://evil.example")], 403),
    "unsupported": ("POST", "/v1/embeddings", KEY, (), 404),
    "upgrade-wanted": ("GET", "/v1/responses", KEY, (), 426),
    "origin": ("GET", "/v1/models", KEY, [("Origin", "https://evil.example")], 403),
    "no-such-model": ("POST", "/v1/responses", KEY, (), 400),
    "coding": ("POST", "/v1/responses", KEY, [("Content-Encoding", "gzip")], 415),
    "expectation": ("POST", "/v1/responses", KEY, [("Expect", "x")], 417),
    "target": ("GET", f"/{'x' * 9000}", KEY, (), 414),
    "head": ("GET", "/v1/models", KEY, [("X", "x" * 40_000)], 431),
    "syntax": ("GET", "/v1/models", KEY, [("Content-Length", "x")], 400),
}


@pytest.mark.parametrize("name", OURS)
async def test_an_answer_of_ours_says_that_nobody_should_keep_it(
    autojump_clock: MockClock, name: str
) -> None:
    method, path, key, headers, status = OURS[name]
    async with opened_world(with_operators()) as world:
        raw = request(method, path, key=key, headers=headers)
        if method == "POST":
            raw = post(path, MCP if path == "/mcp" else {"model": "no"}, key=key, headers=headers)
        client = await world.connect()
        await client.send(raw)
        response = await client.read_response(is_head=method == "HEAD")
        assert response.status == status
        assert is_ours(response)
        assert not [name for name, _ in response.headers if name.startswith("access-control-")]


FAILED: Final = {"type": "response.failed", "response": {"error": {"code": "x", "message": "x"}}}


@pytest.mark.parametrize(
    ("script", "status", "ours"),
    [
        pytest.param(json_response({"id": "r"}), 200, False, id="passed on"),
        pytest.param(error_response(400, "invalid_value"), 400, False, id="a refusal passed on"),
        pytest.param(error_response(500, "x"), 500, True, id="a failure"),
        pytest.param(error_response(429, "usage_limit_reached"), 429, True, id="a limit"),
        pytest.param(error_response(401, "x"), 503, True, id="an account refused"),
        pytest.param(sse_response([FAILED]), 502, True, id="nonsense"),
    ],
)
async def test_what_an_upstream_said_keeps_its_head(
    world: World, script: Json, status: int, *, ours: bool
) -> None:
    for upstream in world.upstreams.values():
        upstream.always = script
    response = await world.ask(post("/v1/responses", CALL))
    assert response.status == status
    assert is_ours(response) == ours
    if not ours:
        assert response.header("cache-control") is None
