"""Proves what an operator's token opens, what it shows, and that counts are kept.

Method: the real server in virtual time. What the pages look like is in test_operator_pages.py, what
MCP shows in test_mcp.py.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, cast

import pytest
import trio
from trio.testing import MockClock

import pooler
from pooler import Ledger
from tests.support.codex_backend import make_auth_file
from tests.support.memory_sockets import KEY, Json, post, request
from tests.support.memory_websockets import codex_described, socket_world
from tests.support.paths import SNAPSHOT
from tests.support.world import (
    UNIX_START,
    Wait,
    World,
    describe,
    error_response,
    json_response,
    make_config,
    opened_world,
    responses_events,
    sse_steps,
)

TOKEN: Final = "cpo-operator-token-0123456789"
ASK: Final = post("/v1/responses", {"model": "m1", "input": ""})  # of no conversation
ROUTES: Final = ("/mcp", "/admin", "/metrics")
ANSWER: Final[Json] = {
    "id": "r1", "object": "response", "output": [],
    "usage": {"input_tokens": 30, "output_tokens": 4},
}  # fmt: skip


def described(**more: Json) -> Json:
    return describe("ab", operators={"me": TOKEN}, **more)


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    async with opened_world(described()) as opened:
        yield opened


def admin(key: str | None = TOKEN, accept: str = "application/json") -> bytes:
    return request("GET", "/admin", key=key, headers=[("Accept", accept)])


def basic(text: str) -> bytes:
    coded = base64.b64encode(text.encode()).decode()
    return request("GET", "/admin", key=None, headers=[("Authorization", f"Basic {coded}")])


async def shown(world: World) -> Json:
    return (await world.ask(admin())).json()


################################################################
# WHO
################################################################


@pytest.mark.parametrize("key", [None, KEY, "cpo-nobody-0123456789abcdef", TOKEN + "x", TOKEN[:-1]])
@pytest.mark.parametrize("path", ROUTES)
async def test_only_an_operators_token_opens_the_operators_routes(
    path: str, key: str | None, world: World
) -> None:
    client = await world.connect()
    for method in ("GET", "POST", "DELETE"):
        await client.send(request(method, path, key=key))
        status, names = await read_raw(client)
        assert status == 401
        offered = ["Bearer", 'Basic realm="codex-pooler"'] if path == "/admin" else ["Bearer"]
        assert [value for name, value in names if name == "www-authenticate"] == offered


async def read_raw(client: Json) -> tuple[int, list[tuple[str, str]]]:
    """A response whose fields may occur twice."""
    head = await client._read_to(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    fields = [(n.lower(), v) for n, _, v in (line.partition(": ") for line in lines[1:])]
    await client._read_exactly(int(dict(fields)["content-length"]))
    return int(lines[0].split(" ")[1]), fields


async def test_the_token_opens_nothing_of_the_clients(world: World) -> None:
    for raw in (
        request("GET", "/v1/models", key=TOKEN),
        post("/v1/responses", {"model": "m1", "input": "x"}, key=TOKEN),
        request("GET", "/v1/usage", key=TOKEN),
    ):
        assert (await world.ask(raw)).status == 401


async def test_a_browser_may_give_the_token_as_a_password(world: World) -> None:
    for text, status in (
        (f"anybody:{TOKEN}", 200),
        (f":{TOKEN}", 200),
        (f"{TOKEN}:", 401),
        (TOKEN, 401),
        (f"me:{KEY}", 401),
    ):
        client = await world.connect()
        await client.send(basic(text))
        assert (await read_raw(client))[0] == status
    for path in ("/metrics", "/mcp"):  # only there
        raw = basic(f"me:{TOKEN}").replace(b"/admin", path.encode())
        assert (await world.ask(raw)).status == 401


async def test_without_operators_there_is_nothing(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        for path in ROUTES:
            for method in ("GET", "POST"):
                response = await world.ask(request(method, path, key=TOKEN))
                assert (response.status, response.error["code"]) == (404, "not_found")


async def test_a_wrong_method_is_refused_and_the_connection_stays(world: World) -> None:
    client = await world.connect()
    for path, allowed in (("/mcp", "POST"), ("/admin", "GET, HEAD"), ("/metrics", "GET, HEAD")):
        for method in ("GET", "DELETE") if path == "/mcp" else ("POST", "DELETE"):
            response = await client.ask(request(method, path, key=TOKEN))
            assert (response.status, response.header("allow")) == (405, allowed)
            assert response.header("connection") is None


async def test_a_page_of_elsewhere_and_a_strange_host_are_refused(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(described(hosts=["localhost"])) as world:
        for path in ROUTES:
            origin = [("Origin", "https://evil.example")]
            response = await world.ask(request("GET", path, key=TOKEN, headers=origin))
            assert response.error["code"] == "origin_not_allowed"
            response = await world.ask(request("GET", path, key=TOKEN, host="evil.example"))
            assert response.error["code"] == "host_not_allowed"


async def test_mcp_that_is_not_installed_says_what_to_install(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server", None)  # so that an import fails
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "mcp_server" or None)
    world.server.operators.warn_of_missing_modules()
    [warning] = [fields for level, _, fields in world.logged if level == "warning"]
    assert warning["problem"] == f"operators: /mcp needs the package mcp: {pooler.mcp_command()}"
    response = await world.ask(post("/mcp", {}, key=TOKEN))
    assert (response.status, response.error["code"]) == (501, "mcp_not_installed")
    assert (await world.ask(admin())).status == 200


async def test_without_the_companion_operators_get_501_and_clients_are_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.upstreams["a"].always = world.upstreams["b"].always = json_response(ANSWER)
    monkeypatch.setitem(sys.modules, "mcp_server", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    world.server.operators.warn_of_missing_modules()
    [warning] = [fields for level, _, fields in world.logged if level == "warning"]
    assert "/admin, /metrics and /mcp need mcp_server.py" in warning["problem"]
    for raw in (admin(), request("GET", "/metrics", key=TOKEN), post("/mcp", {}, key=TOKEN)):
        response = await world.ask(raw)
        assert (response.status, response.error["code"]) == (501, "operators_not_installed")
    assert (await world.ask(ASK)).status == 200


async def test_mcp_expects_no_more_than_the_other_routes(world: World) -> None:
    response = await world.ask(post("/mcp", {}, key=TOKEN, headers=[("Expect", "tea")]))
    assert (response.status, response.error["code"]) == (417, "expectation_failed")


async def test_a_message_to_mcp_has_so_many_bytes_and_no_more(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_world(described(limits={"mcp_body_bytes_max": 2048})) as world:
        asked: list[bytes] = []

        class Companion:
            SDK = ()

            async def answer(self, _headers: Json, body: bytes, **_: Json) -> Json:
                asked.append(body)
                return 202, [("x-said", "yes")], b""

        monkeypatch.setitem(sys.modules, "mcp_server", cast("Any", Companion()))
        response = await world.ask(post("/mcp", b"x" * 2048, key=TOKEN))
        assert (response.status, response.header("x-said"), response.body) == (202, "yes", b"")
        response = await world.ask(post("/mcp", b"x" * 2049, key=TOKEN))
        assert response.error["code"] == "request_too_large"
        assert asked == [b"x" * 2048]


################################################################
# WHAT
################################################################


async def test_the_snapshot_shows_what_has_happened(world: World) -> None:
    world.upstreams["a"].always = error_response(
        429, "usage_limit_reached", [("Retry-After", "90")]
    )
    world.upstreams["b"].always = json_response(ANSWER)
    for _ in range(2):
        assert (await world.ask(ASK)).status == 200
    found = world.server.operators.snapshot()
    first, second = found["accounts"]
    assert (first["status"], second["status"]) == ("at_limit", "ready")
    assert first["until"] == pytest.approx(UNIX_START + 90, abs=2)
    laptop = found["keys"][0]
    tries = {(one["account"], one["reason"]): one["count"] for one in found["attempts"]}
    assert tries.pop(("b", "ok")) == 2
    assert {name for name, _ in tries} == {"a"}
    assert sum(tries.values()) >= 1
    assert laptop["tokens"]["input_tokens"] == 60
    [pool] = found["pools"]
    assert (pool["status"], pool["key_count"], pool["in_flight"]) == ("ready", 2, 0)
    assert (laptop["name"], laptop["requests"], laptop["tokens_today"]) == ("laptop", 2, 68)
    assert (laptop["source"], laptop["status"]) == ("literal", "active")
    assert found["operators"] == [{"name": "me", "source": "literal", "status": "active"}]
    newest = found["requests"][0]
    assert (newest["account"], newest["status"], newest["transport"]) == ("b", 200, "http")
    [total] = [one for one in found["totals"] if one["account"] == "b"]
    sums = (total["requests"], total["input_tokens"], total["output_tokens"], total["code"])
    assert sums == (2, 60, 8, "ok")
    assert found["models"] == [
        {"name": name, "pools": ["home"], "targets": [name]} for name in ("m1", "m2")
    ]


async def test_the_snapshot_has_the_shape_that_its_readers_were_made_for(world: World) -> None:
    world.upstreams["a"].always = world.upstreams["b"].always = json_response(ANSWER)
    await world.ask(ASK)
    found = world.server.operators.snapshot()
    example = json.loads(SNAPSHOT.read_text())

    def shape(value: Json) -> Json:
        if isinstance(value, dict):
            return {name: shape(member) for name, member in value.items()}
        return [shape(value[0])] if isinstance(value, list) and value else None

    ours, theirs = shape(found), shape(example)
    for name in ("pools", "accounts", "keys", "operators", "models", "totals", "attempts"):
        assert ours[name][0].keys() == theirs[name][0].keys(), name
    assert ours["requests"][0].keys() == theirs["requests"][0].keys()
    assert ours.keys() == theirs.keys()


async def test_a_stream_and_who_is_under_way_are_shown(world: World) -> None:
    go_on = trio.Event()
    events = responses_events("x")
    for name in "ab":
        world.upstreams[name].plays(sse_steps(*events[:3], Wait(go_on), *events[3:]))
    client = await world.connect()
    await client.send(post("/v1/responses", {"model": "m1", "input": "x", "stream": True}))
    await world.settle()
    found = await shown(world)
    assert (found["in_flight"], found["pools"][0]["in_flight"]) == (1, 1)
    go_on.set()
    await client.read_response()
    await world.settle()
    found = await shown(world)
    assert found["in_flight"] == 0
    assert found["requests"][0]["transport"] == "sse"


async def test_only_so_many_requests_are_remembered(autojump_clock: MockClock) -> None:
    async with opened_world(described(limits={"records_max": 3})) as world:
        for _ in range(4):
            await world.ask(request("GET", "/v1/models"))
        assert len(world.server.operators.snapshot()["requests"]) == 3
        fewer = make_config(described(limits={"records_max": 2}))
        await world.server.reload(lambda: (fewer, {}))
        assert len(world.server.operators.snapshot()["requests"]) == 2
        for _ in range(5):  # who has no key leaves nothing
            await world.ask(request("GET", "/v1/models", key=None))
        assert len(world.server.operators.snapshot()["requests"]) == 2
        assert sum(row["requests"] for row in world.server.operators.snapshot()["totals"]) == 4


def test_counters_have_a_bound_whatever_an_upstream_calls_its_errors() -> None:
    """And what one account's upstream invents takes nothing from the rows of another."""
    ledger, count = Ledger(10), pooler.TOTALS_MAX + 50
    for number in range(count):
        code, model = pooler.upstream_name(f"code_{number}"), f"model_{number}"
        attempts = [{"account": "a", "reason": code}]
        ledger.add(RECORD | {"account": "a", "code": code, "model": model, "attempts": attempts})
        ledger.add(RECORD | {"account": "b", "code": None, "attempts": [{"account": "b"}]})
    assert len(ledger.totals["a"]) == len(ledger.attempts["a"]) == pooler.TOTALS_MAX + 1
    assert sum(row["requests"] for row in ledger.totals["a"].values()) == count
    codes = {row[-1] for row in ledger.totals["a"]}
    assert codes == {
        *(pooler.upstream_name(f"code_{number}") for number in range(pooler.UPSTREAM_CODES_MAX)),
        pooler.upstream_name("other"), "other",
    }  # fmt: skip
    [(row, sums)] = ledger.totals["b"].items()
    assert (row[-1], sums["requests"]) == ("ok", count)


def test_accounts_that_reloads_have_brought_are_counted_within_a_bound() -> None:
    ledger, count = Ledger(10), pooler.ACCOUNTS_COUNTED_MAX + 50
    for number in range(count):
        name = f"a{number}"
        ledger.add(RECORD | {"account": name, "attempts": [{"account": name}]})
    assert len(ledger.totals) == len(ledger.attempts) == pooler.ACCOUNTS_COUNTED_MAX + 1
    rows = [sums["requests"] for rows in ledger.totals.values() for sums in rows.values()]
    assert sum(rows) == count


RECORD: Final[Json] = {
    "at": 1.0, "request_id": "a" * 20, "method": "POST", "route": "responses", "transport": "sse",
    "pool": "home", "key": "laptop", "account": "a", "model": "m1", "stream": True, "status": 200,
    "code": None, "attempts": [{"account": "a", "reason": "429"}, {"account": "b"}],
    "first_byte_ms": 1, "duration_ms": 2, "bytes_in": 3, "bytes_out": 4,
    "tokens": dict.fromkeys(pooler.Usage._fields, 5),
}  # fmt: skip
ODD: Final[tuple[Json, ...]] = (
    [],
    [1],
    {},
    {"a": 1},
    -5,
    0,
    True,
    1e308,
    10**30,
    "x",
    "x" * 9999,
    None,
    [{}, 7, None],
)


################################################################
# WHO WOULD SERVE
################################################################


def reasons(world: World, model: str = "m1", session: str | None = None) -> Json:
    told = world.server.operators.explain("home", model, session)
    return told["chosen"], {one["name"]: one["reason"] for one in told["accounts"]}


async def test_the_choice_is_explained_account_by_account(autojump_clock: MockClock) -> None:
    changes: Json = {"b": {"priority": 1}, "c": {"models": ["m2"]}, "d": {"paused": True}}
    whole = describe("abcde", accounts=changes)
    async with opened_world(whole) as world:
        world.upstreams["a"].always = error_response(429, "rate_limit_exceeded")
        world.upstreams["e"].always = json_response(ANSWER)
        chosen, told = reasons(world)
        assert (chosen, told) == ("a", {
            "a": "number 1 in order", "b": "number 3 in order", "c": "does not offer the model",
            "d": "paused", "e": "number 2 in order",
        })  # fmt: skip
        session = [("session-id", "mine")]
        await world.ask(post("/v1/responses", {"model": "m1", "input": "x"}, headers=session))
        chosen, told = reasons(world)
        assert chosen == "e"
        assert told["a"] == "cooling down for 30 s more: 429 rate_limit_exceeded"
        await trio.sleep_until(trio.current_time() + 40)
        assert reasons(world)[0] == "a"
        assert reasons(world, session="mine")[0] == "e"  # pinned
        with pytest.raises(LookupError):
            world.server.operators.explain("nowhere", "m1", None)


async def test_explaining_asks_nobody_and_changes_nothing(world: World) -> None:
    await world.settle()
    before = {name: str(health) for name, health in world.server.shared.roster.health.items()}
    reasons(world)
    await world.settle()
    assert {
        name: str(health) for name, health in world.server.shared.roster.health.items()
    } == before
    assert world.asked == []


################################################################
# NOTHING ELSE
################################################################

CANARY: Final = "canary"
LISTS: Final = "pools upstreams upstream_quotas pool_api_keys operators models request_logs".split()
TOOLS: Final[dict[str, Json]] = {
    "get_mcp_service_status": {},
    **{f"list_{name}": {} for name in LISTS},
    "get_request_log": {"id": "nothing"},
    "explain_routing": {"pool_selector": "home", "model": "m1", "session": "s"},
}
SECRETS: Final = {
    "pool key": "canary-pool-key-0123456789",
    "operator token": "canary-operator-token-0123456789",
    "api key": "canary-api-key-0123456789",
}


async def test_no_secret_prompt_or_word_of_an_upstream_is_shown_anywhere(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Each secret, prompt, header, response and error has a canary; all output is searched."""
    key, token, api_key = SECRETS.values()
    whole = describe(
        "ab",
        accounts={name: {"api_key": api_key} for name in "ab"},
        pool={"keys": {"laptop": key}},
        operators={"me": token},
    )
    said = ANSWER | {"output": [{"type": "message", "content": "canary-answer"}], "id": "canary-id"}
    told = {"error": {"message": "canary-words", "code": "canary code", "type": "canary!"}}
    headers = [("session-id", "canary-session"), ("User-Agent", "canary-agent"), ("X", "canary-x")]
    async with opened_world(whole) as world:
        for script in (
            json_response(said),
            json_response(told, 400),
            json_response(told, 500),
            json_response(told, 429),
            [],
        ):
            world.upstreams["a"].always = world.upstreams["b"].always = script or json_response("x")
            body = {"model": "m1", "input": "canary-prompt", "user": "canary-user"}
            await world.ask(post("/v1/responses?q=canary", body, key=key, headers=headers))
            await world.ask(post("/v1/responses", {"model": "canary-model"}, key=key))
            await world.ask(request("GET", "/v1/models/canary-model", key=key))
            await world.ask(request("GET", "/v1/canary-path", key=key))
        found = world.server.operators.snapshot()
        shown = [
            json.dumps(found),
            json.dumps(world.server.operators.explain("home", "m1", "canary-session")),
            json.dumps(world.logged),
        ]
        for path_ in ("/admin", "/metrics"):
            for accept in ("application/json", "text/html", "text/plain"):
                got = await world.ask(
                    request("GET", path_, key=token, headers=[("Accept", accept)])
                )
                assert got.status == 200
                shown.append(str(got.headers) + got.body.decode())
        for tool, arguments in TOOLS.items():
            params = {"name": f"codex_pooler_{tool}", "arguments": arguments}
            message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            accepted = [("Accept", "application/json, text/event-stream")]
            got = await world.ask(post("/mcp", message, key=token, headers=accepted))
            assert got.status == 200
            assert got.json()["result"]["isError"] is False, tool
            shown.append(got.body.decode())
        assert all(len(text) > 20 for text in shown)
        assert [text[text.index(CANARY) - 60 :][:120] for text in shown if CANARY in text] == []


async def test_a_password_that_is_no_base64_is_none(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", operators={"me": TOKEN})) as world:
        for coded in ("A", "AA=A", "=", "QUJD=="):
            fields = [("Authorization", f"Basic {coded}")]
            client = await world.connect()
            await client.send(request("GET", "/admin", key=None, headers=fields))
            assert (await client._read_to(b"\r\n")).split()[1] == b"401"


async def test_the_state_of_every_login_is_shown(autojump_clock: MockClock, tmp_path: Path) -> None:
    """One is valid, one about to expire, one missing, and one's file is not a login."""
    whole = codex_described(tmp_path, "abcd", operators={"me": TOKEN})
    make_auth_file(tmp_path / "b" / "auth.json", "acct-b", expires_at=UNIX_START + 60)
    (tmp_path / "c" / "auth.json").unlink()
    (tmp_path / "d" / "auth.json").write_text("{}")
    accept = [("Accept", "application/json")]
    async with socket_world(whole) as world:
        shown = (await world.ask(request("GET", "/admin", key=TOKEN, headers=accept))).json()
        states = {one["name"]: (one["status"], one["login"]) for one in shown["accounts"]}
        assert states == {
            "a": ("ready", "ok"),
            "b": ("ready", "renewal_due"),
            "c": ("login_needed", "needed"),
            "d": ("login_needed", "needed"),
        }
        told = world.server.operators.explain("home", "m1", None)["accounts"]
        assert [one["reason"] for one in told] == [
            "number 1 in order",
            "number 2 in order",
            "login needed: does not exist",
            "login needed: is empty or not valid JSON",
        ]  # fmt: skip
