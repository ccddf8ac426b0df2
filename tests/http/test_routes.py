"""Proves that the route table is total: each path, method and caller has one known answer.

Method: the product of paths, methods and keys against a table; Host and Origin on every route;
what may follow on a connection, with exact bytes; any path at all, under Hypothesis.
"""

from __future__ import annotations

import base64
import re
from typing import Final

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from pooler import LINGER_BYTES_MAX, Access, Route
from pooler import ROUTES as ROUTE_TABLE
from tests.support.memory_sockets import (
    KEY,
    Client,
    Json,
    Pairs,
    Response,
    Truncated,
    ask_responses,
    post,
    request,
)
from tests.support.world import (
    World,
    describe,
    json_response,
    opened_world,
    responses_events,
    sse_event,
    sse_response,
)

METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "X-Y"]
READING: Final = {"GET", "HEAD"}
# Path: who may, and with which methods; every method else is a 405 that lists them.
OPEN, KEYED = "open", "keyed"
ROUTES: Final[dict[str, tuple[str, set[str]]]] = {
    "/healthz": (OPEN, READING),
    "/readyz": (OPEN, READING),
    "/healthz?full=1": (OPEN, READING),
    "/v1/models": (KEYED, READING),
    "/v1/models?client_version=1": (KEYED, READING),
    "/v1/models/m1": (KEYED, READING),
    "/v1/responses": (KEYED, {"POST"}),
    "/v1/responses/compact": (KEYED, {"POST"}),
    "/v1/chat/completions": (KEYED, {"POST"}),
    "/v1/usage": (KEYED, READING),
    "/api/codex/usage": (KEYED, READING),
    "/wham/usage": (KEYED, READING),
    "/backend-api/wham/usage": (KEYED, READING),
}
# Codex CLI's own: not served by a pool without a ChatGPT login.
TOOLS: Final = ("alpha/search", "images/generations", "images/edits")
NATIVE: Final = [
    f"/backend-api/codex/{name}"
    for name in ("models", "responses", "responses/compact", "models?client_version=1", *TOOLS)
]
UNSUPPORTED: Final = [
    "/v1", "/v1/", "/v1?x", "/v1/models/", "/v1/responses/", "/v1/responses/resp_1", "/v1/realtime",
    "/v1/realtime/calls", "/v1/realtime?model=m1", "/v1/embeddings", "/v1/usage/", "/v1/files",
    *NATIVE, *(f"/v1/{name}" for name in TOOLS), "/v1/alpha", "/v1/images", "/v1/images/variations",
    "/v1/responses/compact/", "/v1/completions", "/v1/chat", "/v1/chat/completions/", "/v1/Models",
    "/v1//models", "/v1/../healthz", "/v1/%6dodels", "/v1/models;x", "/v1/audio/speech",
]  # fmt: skip
NOTHING: Final = [
    "/", "/?", "//", "/v1models", "/V1/models", "//v1/models", "/%761/models", "/./v1/models",
    "/.well-known/openid-configuration", "/.well-known/", "/.well-known/oauth-protected-resource",
    "/healthz/", "/healthz%20", "/HEALTHZ", "/favicon.ico", "/admin", "/metrics", "/mcp",
    "/backend-api/codex", "/backend-api/codex/usage", "/backend-api/codex/v1/responses",
    "/wham", "/pooler/v1/models",
]  # fmt: skip
CALL: Final[Json] = {"model": "m1", "input": "x"}
RETRIED: Final = (
    "429", "500", "502", "503", "504", "524", "rate limit", "overloaded", "server error",
    "try again later", "temporarily at capacity", "request timeout",
)  # fmt: skip


def let_answer(world: World) -> None:
    for upstream in world.upstreams.values():
        upstream.always = json_response({"id": "r"})


def raw_request(method: str, path: str, *, key: str | None = KEY, headers: Pairs = ()) -> bytes:
    if method == "POST":
        return post(path, CALL, key=key, headers=headers)
    return request(method, path, key=key, headers=headers)


async def ask(world: World, method: str, raw: bytes) -> Response:
    client = await world.connect()
    await client.send(raw)
    response = await client.read_response(is_head=method == "HEAD")
    await client.half_close()
    assert await client.wait_closed() == b""
    return response


UPGRADED: Final = {"/v1/responses": ["GET"]}  # as a WebSocket


def check_common(response: Response) -> None:
    """What every answer of ours has, and what it must not have."""
    assert re.fullmatch(r"[a-z]{20}", response.header("x-request-id") or "")
    names = {name for name, _ in response.headers}
    assert names.isdisjoint({"server", "x-powered-by", "set-cookie", "via"})
    assert not any(name.startswith("access-control-") for name in names)
    assert "date" in names
    if response.status >= 400 and response.body:
        assert response.header("content-type") == "application/json"
        assert list(response.json()) == ["error"]
        assert set(response.error) == {"message", "type", "code", "param"}
        if response.status < 429:
            assert not [word for word in RETRIED if word in response.body.decode().lower()]


def expected_of(method: str, path: str, *, has_key: bool) -> tuple[int, str | None]:
    """The table as a function: status, and the error's code."""
    bare = path.partition("?")[0]
    row = ROUTES.get(path) or ROUTES.get(bare)
    is_api = path in NATIVE or re.fullmatch(r"/v1(/.*)?", bare)
    if method == "OPTIONS" or (row is None and not is_api):
        return 404, "not_found"
    if not has_key and (row is None or row[0] == KEYED):
        return 401, "invalid_api_key"
    if row is None:
        return 404, "unsupported_endpoint"
    if method in row[1]:
        return 200, None
    if method == "GET" and bare == "/v1/responses":
        return 426, "websocket_unsupported"
    return 405, "method_not_allowed"


@pytest.mark.parametrize("has_key", [True, False], ids=["key", "no-key"])
@pytest.mark.parametrize("path", [*ROUTES, *UNSUPPORTED, *NOTHING])
async def test_each_path_and_method_has_one_answer(world: World, path: str, has_key: bool) -> None:
    let_answer(world)
    for method in METHODS:
        raw = raw_request(method, path, key=KEY if has_key else None)
        response = await ask(world, method, raw)
        status, code = expected_of(method, path, has_key=has_key)
        assert response.status == status, method
        check_common(response)
        if method == "HEAD":
            assert response.body == b""
        elif code is not None:
            assert response.error["code"] == code, method
            assert response.error["type"] == "invalid_request_error"
        allow = response.header("allow")
        listed = set(allow.split(", ")) if allow else set()
        known = {*ROUTES[path][1], *UPGRADED.get(path, ())} if status == 405 else set()
        assert listed == known, method
    assert not any(record["status"] is None for record in world.records)


def test_rows_of_one_path_differ_in_their_methods_alone() -> None:
    for path in {route.path for route in ROUTE_TABLE}:
        rows = [route for route in ROUTE_TABLE if route.path == path]
        assert len({(row.name, row.access) for row in rows}) == 1, path
        methods = [method for row in rows for method in row.methods]
        assert len(methods) == len(set(methods)), path


async def test_every_handler_of_the_table_is_there_and_used(autojump_clock: MockClock) -> None:
    async with opened_world() as world:
        assert {route.handler for route in ROUTE_TABLE} == set(world.server.handlers)


OPERATOR_TOKEN: Final = "op-boss-0123456789"
PRESENTED: Final[dict[str, Pairs]] = {
    "nothing": [],
    "a pool key": [("Authorization", f"Bearer {KEY}")],
    "a token": [("Authorization", f"Bearer {OPERATOR_TOKEN}")],
    "a password": [
        ("Authorization", f"Basic {base64.b64encode(f'me:{OPERATOR_TOKEN}'.encode()).decode()}")
    ],
}
OPENS: Final[dict[Access, set[str]]] = {
    Access.ANYBODY: {*PRESENTED},
    Access.POOL_KEY: {"a pool key"},
    Access.CODEX_KEY: {"a pool key"},
    Access.OPERATOR: {"a token"},
    Access.OPERATOR_PAGE: {"a token", "a password"},
}


@pytest.mark.parametrize("route", ROUTE_TABLE, ids=lambda route: f"{route.name} {route.path}")
async def test_a_row_opens_to_the_credential_that_it_demands_and_to_no_other(
    autojump_clock: MockClock, route: Route
) -> None:
    """The pool has no ChatGPT account, so none of its keys opens what demands one."""
    described = describe("a", operators={"boss": OPERATOR_TOKEN})
    async with opened_world(described) as world:
        let_answer(world)
        path = route.path.replace("{id}", "m1").replace("{any}", "/no/such/path")
        for name, fields in PRESENTED.items():
            for method in (*route.methods, "PUT"):
                closing = [*fields, ("Connection", "close")]
                client = await world.connect()
                await client.send(raw_request(method, path, key=None, headers=closing))
                status = int((await client.wait_closed()).split()[1])
                is_open = name in OPENS[route.access]
                assert (status == 401) == (not is_open), (name, method)
                if is_open and (route.access is Access.CODEX_KEY or not route.methods):
                    assert status == 404
                elif is_open:
                    assert (status == 405) == (method == "PUT")


async def test_head_is_get_without_its_body(world: World) -> None:
    for path in ("/healthz", "/readyz", "/v1/models", "/v1/models/m1", "/v1/models/no", "/x"):
        client = await world.connect()
        whole = await client.ask(request("GET", path))
        await client.send(request("HEAD", path) + request("GET", "/healthz"))
        head = await client.read_response(is_head=True)
        assert (await client.read_response()).status == 200  # nothing between them
        assert head.status == whole.status
        assert head.header("content-length") == str(len(whole.body)) != "0"
        assert head.header("content-type") == whole.header("content-type")


@settings(max_examples=80)
@given(
    method=st.sampled_from(METHODS),
    path=st.text("/v1modelsrpnh.%2Ftz?;:@&=+,~-_!$'()*", max_size=16).map(lambda text: "/" + text)
    | st.builds(
        lambda path, more: path + more,
        st.sampled_from([*ROUTES]),
        st.sampled_from(["", "?", "??", "?/v1", "/", "%2f", "/..", ";a", "&"]),
    ),
    has_key=st.booleans(),
)
def test_any_path_has_its_answer(method: str, path: str, has_key: bool) -> None:
    async def answer() -> Response:
        async with opened_world() as world:
            let_answer(world)
            raw = raw_request(method, path, key=KEY if has_key else None)
            return await ask(world, method, raw)

    response = trio.run(answer, clock=MockClock(autojump_threshold=0))
    check_common(response)
    bare = path.partition("?")[0]
    if bare.startswith("/v1/models/") and bare not in {"/v1/models/", "/v1/models/m1"}:
        assert response.status in {401, 404, 405}
    else:
        assert response.status == expected_of(method, path, has_key=has_key)[0]


################################################################
# BEFORE THE BODY
################################################################


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        pytest.param("/v1/realtime/calls", KEY, 404, id="realtime"),
        pytest.param("/v1/embeddings", KEY, 404, id="unsupported"),
        pytest.param("/v1/embeddings", None, 401, id="unsupported-no-key"),
        pytest.param("/v1/responses", None, 401, id="no-key"),
        pytest.param("/v1/models", KEY, 405, id="method"),
        pytest.param("/upload", None, 404, id="nothing"),
        pytest.param("/healthz", None, 405, id="health"),
        pytest.param("/v1/responses", KEY, 413, id="too-large"),
    ],
)
async def test_an_answer_does_not_wait_for_a_gigabyte(
    world: World, path: str, key: str | None, status: int
) -> None:
    client = await world.connect()
    fields = [("Content-Type", "application/json"), ("Content-Length", str(10**9))]
    await client.send(request("POST", path, key=key, headers=fields))
    response = await client.read_response()
    assert response.status == status
    assert response.header("connection") == "close"
    assert trio.current_time() == 0
    await client.send(b"x" * 2 * LINGER_BYTES_MAX)
    assert await client.wait_closed() == b""
    await world.settle()
    assert trio.current_time() <= 1
    unread = client.stream.outgoing
    assert unread.byte_count - len(unread.buffer) < LINGER_BYTES_MAX + 500_000
    assert world.server.shared.bodies.bytes_held == 0


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 415), ("", 415), ("text/plain", 415), ("application/jsonx", 415), ("*/*", 415),
        ("application/x-www-form-urlencoded", 415), ("multipart/form-data; boundary=x", 415),
        ("text/plain; application/json", 415), ("application/json, text/plain", 415),
        ("application/json", 200), ("Application/JSON", 200),
        ("application/json; charset=utf-8", 200), ("application/json ;x", 200),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_a_body_must_say_that_it_is_json(
    world: World, path: str, content_type: str | None, status: int
) -> None:
    let_answer(world)
    body = b'{"model": "m1"}'
    fields = [("Content-Length", str(len(body)))]
    if content_type is not None:
        fields.append(("Content-Type", content_type))
    response = await world.ask(request("POST", path, headers=fields) + body)
    assert response.status == status
    if status == 415:
        assert response.error["code"] == "unsupported_media_type"


async def test_a_body_is_welcomed_only_after_its_key(world: World) -> None:
    let_answer(world)
    raw = ask_responses(stream=False)
    head, _, body = raw.partition(b"\r\n\r\n")
    for extra, key in ((b"", KEY), (b"", "cp-nobodys-key-0123456789")):
        client = await world.connect()
        with_key = head.replace(KEY.encode(), key.encode())
        await client.send(with_key + b"\r\nExpect: 100-Continue" + extra + b"\r\n\r\n")
        first = await client.read_head()
        assert first.status == (100 if key == KEY else 401)
        if key == KEY:
            assert list(first.headers) == []
            await client.send(body)
            assert (await client.read_response()).status == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        pytest.param((b"/v1/responses", b"/v1/embeddings"), 404, id="unsupported"),
        pytest.param((b"application/json", b"text/plain"), 415, id="media-type"),
        pytest.param((b"100-continue", b"200-ok"), 417, id="unknown"),
        pytest.param((b"100-continue", b"100-continue, x"), 417, id="list"),
        pytest.param((b"Content-Length: ", b"Content-Length: 99999999"), 413, id="too-large"),
        pytest.param((b"Expect", b"Content-Encoding: br\r\nExpect"), 415, id="coding"),
        pytest.param((b"Host: localhost", b"Host: evil.example"), 403, id="host"),
    ],
)
async def test_a_refused_request_is_not_welcomed(
    world: World, change: tuple[bytes, bytes], status: int
) -> None:
    head = ask_responses(stream=False).partition(b"\r\n\r\n")[0] + b"\r\nExpect: 100-continue"
    client = await world.connect()
    await client.send(head.replace(*change) + b"\r\n\r\n")
    response = await client.read_response()
    assert response.status == status
    assert response.header("connection") == "close"


async def test_no_welcome_where_the_body_is_there_already(world: World) -> None:
    let_answer(world)
    head, _, body = ask_responses(stream=False).partition(b"\r\n\r\n")
    response = await world.ask(head + b"\r\nExpect: 100-continue\r\n\r\n" + body)
    assert response.status == 200


async def test_http_1_0_gets_no_interim_answer(world: World) -> None:
    """RFC 9110 §10.1.1: its expectations are ignored."""
    let_answer(world)
    head, _, body = ask_responses(stream=False).partition(b"\r\n\r\n")
    client = await world.connect()
    await client.send(head.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\nExpect: 100-continue\r\n\r\n")
    await world.settle()
    await client.send(body)
    assert (await client.read_head()).status == 200


################################################################
# MODELS
################################################################

NAMES: Final = ["m1", "openai/gpt-x", "qwen3:30b", "a%2Fb", "weird+name~1"]


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("m1", "m1"),
        ("openai/gpt-x", "openai/gpt-x"),
        ("openai%2Fgpt-x", "openai/gpt-x"),
        ("openai%2fgpt%2Dx", "openai/gpt-x"),
        ("qwen3:30b", "qwen3:30b"),
        ("qwen3%3A30b?x=1", "qwen3:30b"),
        ("a%252Fb", "a%2Fb"),
        ("weird+name~1", "weird+name~1"),
        ("small", "small"),
        ("openai", None),
        ("m1/", None),
        ("/m1", None),
        ("M1", None),
        ("a%2Fb", None),
        ("%zz", None),
        ("%ff", None),
        ("%00", None),
        ("m1%0d%0aX-Injected:1", None),
        ("nothing-of-429", None),
    ],
)
async def test_a_model_is_found_by_its_name_in_any_spelling(
    autojump_clock: MockClock, path: str, model: str | None
) -> None:
    described = describe("a", pool={"models": NAMES, "aliases": {"small": "m1"}})
    async with opened_world(described) as world:
        response = await world.ask(request("GET", f"/v1/models/{path}"))
        check_common(response)
        if model is None:
            assert (response.status, response.error["code"]) == (404, "model_not_found")
            assert response.error["param"] == "model"
            assert "429" not in response.error["message"]
        else:
            assert response.status == 200
            found = response.json()
            assert (found["id"], found["object"]) == (model, "model")
            assert isinstance(found["created"], int)
            assert isinstance(found["owned_by"], str)
        listed = (await world.ask(request("GET", "/v1/models"))).json()
        assert listed["object"] == "list"
        assert [one["id"] for one in listed["data"]] == [*NAMES, "small"]


################################################################
# HOST, ORIGIN AND BASE PATH
################################################################

EVERYWHERE: Final = [*ROUTES, "/v1/realtime", "/", "/.well-known/x"]


@pytest.mark.parametrize("path", EVERYWHERE)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_a_foreign_host_or_origin_is_refused_on_every_route(
    world: World, path: str, method: str
) -> None:
    let_answer(world)
    raw = raw_request(method, path)
    is_open = path.startswith(("/healthz", "/readyz"))  # to any name
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "0"):
        response = await world.ask(raw.replace(b"Host: localhost", f"Host: {host}:4000".encode()))
        check_common(response)
        if is_open:
            assert response.status in {200, 404, 405}
            continue
        assert (response.status, response.error["code"]) == (403, "host_not_allowed")
        assert f'"{host}"' in response.error["message"]
    origins = ("http://evil.example", "null", "", "http://localhost:3000", "https://localhost")
    for origin in origins:
        response = await world.ask(raw_request(method, path, headers=[("Origin", origin)]))
        check_common(response)
        assert (response.status, response.error["code"]) == (403, "origin_not_allowed")
        assert "evil" not in response.error["message"]
    assert world.asked == []


async def test_our_own_names_are_served(world: World) -> None:
    for host in ("localhost", "LOCALHOST", "localhost:4000", "127.0.0.1", "127.0.0.1:1", "[::1]:9"):
        assert (await world.ask(request("GET", "/v1/usage", host=host))).status == 200
    old = f"GET /v1/usage HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()  # no browser
    assert (await world.ask(old)).status == 200


@pytest.mark.parametrize(
    ("top", "good", "bad"),
    [
        ({"hosts": ["Pooler.example.com"]}, "pooler.EXAMPLE.com:443", "localhost"),
        ({"hosts": ["[2001:db8::1]"]}, "[2001:DB8::1]:80", "127.0.0.1"),
        ({"listen": "10.0.0.1:4000"}, "anything.example", None),
        ({"listen": "unix:/run/pooler.sock"}, "anything.example", None),
        ({"listen": "127.0.0.9:4000"}, "127.0.0.9:4000", "127.0.0.8:4000"),
        ({"hosts": ["a"], "listen": "10.0.0.1:4000"}, "a", "10.0.0.1"),
    ],
)
async def test_hosts_follow_the_configuration(
    autojump_clock: MockClock, top: Json, good: str, bad: str | None
) -> None:
    async with opened_world(describe("a", **top)) as world:
        assert (await world.ask(request("GET", "/v1/usage", host=good))).status == 200
        if bad is not None:
            assert (await world.ask(request("GET", "/v1/usage", host=bad))).status == 403


async def test_an_allowed_origin_may_call_and_gets_no_cors(autojump_clock: MockClock) -> None:
    described = describe("a", allowed_origins=["https://chat.example.com"])
    async with opened_world(described) as world:
        let_answer(world)
        for origin, status in (
            ("https://chat.example.com", 200),
            ("HTTPS://Chat.Example.com", 200),
            ("http://chat.example.com", 403),
            ("https://chat.example.com:443", 403),
            ("https://chat.example.com.evil", 403),
            ("https://chat.example.com, https://chat.example.com", 403),
        ):
            headers = [("Origin", origin)]
            response = await world.ask(post("/v1/responses", CALL, headers=headers))
            assert response.status == status, origin
            check_common(response)


@pytest.mark.parametrize("base", ["/pooler", "/a/b", "/v1"])
async def test_a_base_path_stands_before_every_route(autojump_clock: MockClock, base: str) -> None:
    async with opened_world(describe("a", base_path=base)) as world:
        let_answer(world)
        for path, status in (
            (f"{base}/healthz", 200),
            (f"{base}/v1/models", 200),
            (f"{base}/v1/models/m1", 200),
            (f"{base}/v1/none", 404),
            (f"{base}/v1", 404),
            (base, 404),
            (f"{base}/", 404),
            (f"{base}x/healthz", 404),
            (f"{base}{base}/healthz", 404),
            ("/healthz", 404),
            ("/v1/models", 404),
        ):
            assert (await world.ask(request("GET", path))).status == status, path
        assert (await world.ask(post(f"{base}/v1/responses", CALL))).status == 200
        assert world.asked[0].target == "/v1/responses"
        assert (await world.ask(post("/v1/responses", CALL))).status == 404


################################################################
# ONE CONNECTION
################################################################


async def still_open(client: Client) -> bool:
    try:
        return (await client.ask(request("GET", "/healthz"))).status == 200
    except (Truncated, trio.BrokenResourceError):
        return False


def changed(version: str, *fields: str, method: str = "GET", path: str = "/v1/models") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", f"Authorization: Bearer {KEY}"]
    return "\r\n".join([*lines, *fields, "", ""]).encode()


@pytest.mark.parametrize(
    ("raw", "connection"),
    [
        pytest.param(changed("1.1"), None, id="1.1"),
        pytest.param(changed("1.1", "Connection: keep-alive"), None, id="1.1-keep-alive"),
        pytest.param(changed("1.1", "Connection: close"), "close", id="1.1-close"),
        pytest.param(changed("1.1", "Connection: x, Close"), "close", id="1.1-in-a-list"),
        pytest.param(changed("1.0"), "close", id="1.0"),
        pytest.param(changed("1.0", "Connection: Keep-Alive"), "keep-alive", id="1.0-keep-alive"),
        pytest.param(changed("1.1", path="/none"), None, id="404"),
        pytest.param(changed("1.1", "Content-Length: 0"), None, id="empty-body"),
        pytest.param(changed("1.1", "Content-Length: 5") + b"hello", "close", id="get-with-body"),
        pytest.param(
            changed("1.1", "Transfer-Encoding: chunked") + b"0\r\n\r\n", "close", id="get-chunked"
        ),
        pytest.param(changed("1.1", method="BAD?"), "close", id="malformed"),
        pytest.param(post("/v1/responses", CALL), None, id="post"),
        pytest.param(post("/v1/responses", b"{"), None, id="bad-json"),
        pytest.param(post("/v1/responses", {"model": "x"}), None, id="bad-model"),
        pytest.param(post("/v1/none", CALL), "close", id="body-not-read"),
        pytest.param(post("/v1/responses", CALL, key=None), "close", id="401-with-body"),
        pytest.param(changed("1.1", "Authorization: x"), "close", id="two-keys"),
    ],
)
async def test_a_connection_goes_on_where_its_next_byte_is_known(
    world: World, raw: bytes, connection: str | None
) -> None:
    let_answer(world)
    client = await world.connect()
    response = await client.ask(raw)
    assert response.header("connection") == connection
    assert await still_open(client) == (connection != "close")


async def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    world.upstreams["a"].always = world.upstreams["b"].always = sse_response(
        responses_events("one")
    )
    world.upstreams["c"].always = sse_response(responses_events("one"))
    client = await world.connect()
    raw = request("GET", "/healthz") + ask_responses() + request("GET", "/v1/models/m2")
    await client.send(raw + ask_responses(model="none") + request("HEAD", "/healthz") + raw)
    events = b"".join(sse_event(event) for event in responses_events("one"))
    for expected in ((200, b'{"status": "ok"}'), (200, events), (200, None), (400, None)):
        response = await client.read_response()
        assert response.status == expected[0]
        assert expected[1] in {None, response.body}
    assert (await client.read_response(is_head=True)).status == 200
    for body in (b'{"status": "ok"}', events, None):
        response = await client.read_response()
        assert response.status == 200
        assert body in {None, response.body}
    ids = [record["request_id"] for record in world.records]
    assert len(ids) == len(set(ids)) == 8


async def test_nothing_follows_a_connection_that_closes(world: World) -> None:
    let_answer(world)
    client = await world.connect()
    await client.send(changed("1.1", "Connection: close") + ask_responses())
    assert (await client.read_response()).status == 200
    assert await client.wait_closed() == b""
    assert world.asked == []


async def test_http_1_0_gets_its_stream_to_the_close(world: World) -> None:
    for upstream in world.upstreams.values():
        upstream.always = sse_response(responses_events("one", "two"))
    raw = ask_responses().replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    for sent in (raw, raw.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1)):
        client = await world.connect()
        response = await client.ask(sent)
        assert response.header("transfer-encoding") is None
        assert response.header("connection") == "close"
        expected = b"".join(sse_event(event) for event in responses_events("one", "two"))
        assert response.body == expected


async def test_ready_says_draining_and_health_stays_well(world: World) -> None:
    client = await world.connect()
    assert (await client.ask(request("GET", "/readyz"))).status == 200
    world.server.shared.is_draining = True
    await client.send(request("GET", "/readyz"))
    response = await client.read_response()
    assert (response.status, response.json()) == (503, {"status": "draining"})
    assert response.header("connection") == "close"
    assert (await world.ask(request("GET", "/healthz"))).status == 200
    world.server.shared.is_draining = False


async def test_an_upgrade_elsewhere_is_no_upgrade(world: World) -> None:
    upgrade = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")]
    assert (await world.ask(request("GET", "/v1/models", headers=upgrade))).status == 200
