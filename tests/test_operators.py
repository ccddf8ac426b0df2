"""Proves what an operator's token opens, what it is shown, and that the journal keeps counts.

Method: the real server in virtual time.  What the pages look like is in test_operator_pages.py,
what MCP says in test_mcp.py.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, NoReturn

import pytest
import trio
from trio.testing import MockClock

import pooler
from pooler import JOURNAL_BYTES_MAX, Journal, Ledger
from tests.fakes import (
    UNIX_START,
    Pause,
    Wait,
    World,
    describe,
    error_answer,
    json_answer,
    make_config,
    opened_world,
    post,
    request,
    responses_events,
    sse_steps,
)
from tests.wires import KEY, Json

TOKEN: Final = "cpo-operator-token-0123456789"
ASK: Final = post("/v1/responses", {"model": "m1", "input": "hi"})
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
    """An answer whose fields may stand there twice."""
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


async def test_a_wrong_method_is_told_and_the_connection_stays(world: World) -> None:
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
    def load_nothing() -> NoReturn:
        raise ImportError("No module named 'mcp'")

    monkeypatch.setattr(pooler, "load_mcp", load_nothing)
    world.server.open_operators()
    [warning] = [fields for level, _, fields in world.logged if level == "warning"]
    assert "codex-pooler[mcp]" in warning["problem"]
    response = await world.ask(post("/mcp", {}, key=TOKEN))
    assert (response.status, response.error["code"]) == (501, "mcp_not_installed")
    assert (await world.ask(admin())).status == 200


async def test_mcp_expects_no_more_than_the_other_routes(world: World) -> None:
    world.server.open_operators()
    response = await world.ask(post("/mcp", {}, key=TOKEN, headers=[("Expect", "tea")]))
    assert (response.status, response.error["code"]) == (417, "expectation_failed")


async def test_a_message_to_mcp_has_so_many_bytes_and_no_more(autojump_clock: MockClock) -> None:
    async with opened_world(described(limits={"mcp_body_bytes_max": 2048})) as world:
        asked: list[bytes] = []

        class Companion:
            async def answer(self, _method: str, _headers: Json, body: bytes, **_: Json) -> Json:
                asked.append(body)
                return 202, [("x-said", "yes")], b""

        world.server.mcp = Companion()
        response = await world.ask(post("/mcp", b"x" * 2048, key=TOKEN))
        assert (response.status, response.header("x-said"), response.body) == (202, "yes", b"")
        response = await world.ask(post("/mcp", b"x" * 2049, key=TOKEN))
        assert response.error["code"] == "request_too_large"
        assert asked == [b"x" * 2048]


################################################################
# WHAT
################################################################


async def test_the_snapshot_tells_what_has_happened(world: World) -> None:
    world.upstreams["a"].always = error_answer(429, "usage_limit_reached", [("Retry-After", "90")])
    world.upstreams["b"].always = json_answer(ANSWER)
    for _ in range(2):
        assert (await world.ask(ASK)).status == 200
    found = world.server.snapshot()
    first, second = found["accounts"]
    assert (first["status"], second["status"]) == ("resting", "ready")
    assert first["rests_until"] == pytest.approx(UNIX_START + 90, abs=2)
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
    assert found["models"] == [{"name": name, "pools": ["home"]} for name in ("m1", "m2")]


async def test_the_snapshot_has_the_shape_that_its_readers_were_made_for(world: World) -> None:
    world.upstreams["a"].always = world.upstreams["b"].always = json_answer(ANSWER)
    await world.ask(ASK)
    found = world.server.snapshot()
    example = json.loads((Path(__file__).parent / "snapshot.json").read_text())

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
        assert len(world.server.snapshot()["requests"]) == 3
        fewer = make_config(described(limits={"records_max": 2}))
        await world.server.reload(lambda: (fewer, {}))
        assert len(world.server.snapshot()["requests"]) == 2
        for _ in range(5):  # who has no key leaves nothing
            await world.ask(request("GET", "/v1/models", key=None))
        assert len(world.server.snapshot()["requests"]) == 2
        assert sum(row["requests"] for row in world.server.snapshot()["totals"]) == 4


def test_counters_have_a_bound_whatever_an_upstream_calls_its_errors() -> None:
    ledger = Ledger(10)
    for number in range(pooler.TOTALS_MAX + 50):
        code = f"code_{number}"
        ledger.add(RECORD | {"code": code, "attempts": [{"account": "a", "reason": code}]})
    assert len(ledger.totals) == len(ledger.attempts) == pooler.TOTALS_MAX + 1
    assert sum(row["requests"] for row in ledger.totals.values()) == pooler.TOTALS_MAX + 50


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


def test_a_line_of_the_journal_is_the_record_that_it_was() -> None:
    assert pooler.read_entry(RECORD) == RECORD


@pytest.mark.parametrize("name", RECORD)
async def test_an_edited_line_of_the_journal_breaks_nothing(name: str, world: World) -> None:
    for odd in ODD:
        entry = pooler.read_entry(RECORD | {name: odd})
        assert pooler.read_entry({name: odd}) is None or name == "at"
        if entry is None:
            assert name in {"at", "request_id", "route", "transport"}
            continue
        world.server.ledger.add(entry)
        pooler.restore_use(pooler.KeyUse(), entry, 1.0, 2e9)
    await world.settle()
    found = world.server.snapshot()
    page = pooler.show_admin(found)
    assert json.dumps(page)
    assert pooler.admin_page(page).startswith("<!DOCTYPE html>")
    assert pooler.metrics_text(found)
    assert pooler.status_text(page, 100, True)


################################################################
# WHO WOULD SERVE
################################################################


def reasons(world: World, model: str = "m1", session: str | None = None) -> Json:
    told = world.server.explain("home", model, session)
    return told["chosen"], {one["name"]: one["reason"] for one in told["accounts"]}


async def test_the_choice_is_explained_account_by_account(autojump_clock: MockClock) -> None:
    changes: Json = {"b": {"priority": 1}, "c": {"models": ["m2"]}, "d": {"paused": True}}
    whole = describe("abcde", accounts=changes, pool={"routing": "failover"})
    async with opened_world(whole) as world:
        world.upstreams["a"].always = error_answer(429, "usage_limit_reached")
        world.upstreams["e"].always = json_answer(ANSWER)
        chosen, told = reasons(world)
        assert (chosen, told) == ("a", {
            "a": "number 1 in order", "b": "number 3 in order", "c": "does not offer the model",
            "d": "paused", "e": "number 2 in order",
        })  # fmt: skip
        session = [("session-id", "mine")]
        await world.ask(post("/v1/responses", {"model": "m1", "input": "x"}, headers=session))
        chosen, told = reasons(world)
        assert chosen == "e"
        assert told["a"] == "resting for 30 s more"
        await trio.sleep_until(trio.current_time() + 40)
        assert reasons(world)[0] == "a"
        assert reasons(world, session="mine")[0] == "e"  # pinned
        with pytest.raises(LookupError):
            world.server.explain("nowhere", "m1", None)


async def test_explaining_asks_nobody_and_changes_nothing(world: World) -> None:
    before = {name: str(health) for name, health in world.server.roster.health.items()}
    reasons(world)
    await world.settle()
    assert {name: str(health) for name, health in world.server.roster.health.items()} == before
    assert world.asked == []


################################################################
# THE JOURNAL
################################################################


def entries(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_request_with_a_key_is_a_line_of_metadata(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "requests.journal"
    async with opened_world(described(journal=str(path))) as world:
        world.server.open_operators()
        world.upstreams["a"].always = world.upstreams["b"].always = json_answer(ANSWER)
        await world.ask(post("/v1/responses", {"model": "m1", "input": "canary-prompt"}))
        await world.ask(request("GET", "/v1/models", key=None))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        [entry] = entries(path)
        assert (entry["key"], entry["status"], entry["tokens"]["input_tokens"]) == (
            "laptop",
            200,
            30,
        )
        assert entry["at"] == pytest.approx(UNIX_START, abs=2)
        assert not [word for word in ("canary", KEY, TOKEN) if word in path.read_text()]


async def test_counts_and_key_limits_survive_a_restart(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "requests.journal"
    keys = {"laptop": {"key": KEY, "requests_per_minute": 3, "tokens_per_day": 1000}}
    whole = described(journal=str(path), pool={"keys": keys})
    for run in range(2):
        async with opened_world(whole) as world:
            world.server.open_operators()
            world.server.restore()
            world.upstreams["a"].always = world.upstreams["b"].always = json_answer(ANSWER)
            assert (await world.ask(ASK)).status == 200
            usage = (await world.ask(request("GET", "/v1/usage"))).json()
            assert usage["request_count"] == run + 1
            [key] = world.server.snapshot()["keys"]
            assert (key["requests"], key["tokens_today"]) == (run + 1, 34 * (run + 1))
        with path.open("a") as file:
            file.write('{"at": 1, "torn')  # the process was killed
    async with opened_world(whole) as world:
        world.server.open_operators()
        world.server.restore()
        world.upstreams["a"].always = world.upstreams["b"].always = json_answer(ANSWER)
        assert (await world.ask(ASK)).status == 200
        assert (await world.ask(ASK)).error["code"] == "key_limit_reached"  # the fourth in a minute
        totals = world.server.snapshot()["totals"]
        assert sum(row["requests"] for row in totals if row["code"] == "ok" and row["account"]) == 3
    assert [line for line in path.read_text().splitlines() if line.endswith("torn")]


async def test_what_a_limit_refused_is_not_counted_after_a_restart(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "requests.journal"
    whole = described(journal=str(path), pool={"keys": {"laptop": {"key": KEY, "concurrent": 1}}})
    async with opened_world(whole) as world:
        world.server.open_operators()
        world.server.uses["home", "laptop"] = use = pooler.KeyUse(in_flight_count=1)
        assert (await world.ask(ASK)).error["code"] == "key_limit_reached"
        assert (await world.ask(request("GET", "/v1/responses"))).status == 426
        use.in_flight_count = 0
    async with opened_world(whole) as world:
        world.server.open_operators()
        world.server.restore()
        [key] = world.server.snapshot()["keys"]
        assert (key["requests"], len(entries(path))) == (0, 2)


async def test_an_entry_says_when_its_request_came(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "requests.journal"
    path.write_text("")
    path.chmod(0o644)
    async with opened_world(described(journal=str(path))) as world:
        world.server.open_operators()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for name in "ab":
            world.upstreams[name].plays([Pause(20), *json_answer(ANSWER)])
        came_at = world.unix_now()
        await world.ask(ASK)
        assert world.unix_now() >= came_at + 20
        assert entries(path)[0]["at"] == pytest.approx(came_at, abs=0.01)


async def test_a_reload_opens_the_file_anew(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "requests.journal"
    whole = described(journal=str(path))
    async with opened_world(whole) as world:
        world.server.open_operators()
        await world.ask(request("GET", "/v1/models"))
        path.rename(tmp_path / "old")
        await world.ask(request("GET", "/v1/models"))
        await world.server.reload(lambda: (make_config(whole), {}))
        await world.ask(request("GET", "/v1/models"))
        assert (len(entries(tmp_path / "old")), len(entries(path))) == (2, 1)
        await world.server.reload(lambda: (make_config(described()), {}))
        await world.ask(request("GET", "/v1/models"))
        assert len(entries(path)) == 1


@pytest.mark.parametrize("kind", ["full", "folder", "nowhere"])
async def test_a_journal_that_cannot_be_written_fails_no_request(
    kind: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = {
        "full": Path("/dev/full"),
        "folder": tmp_path,
        "nowhere": tmp_path / "no" / "where",
    }[kind]
    async with opened_world(described(journal=str(path))) as world:
        world.server.open_operators()
        world.server.restore()
        for _ in range(3):
            assert (await world.ask(request("GET", "/v1/models"))).status == 200
        told = [fields for _, event, fields in world.logged if event == "journal"]
        assert len(told) == 1, told
        assert str(path) in told[0]["problem"]


def test_a_line_that_was_cut_is_not_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b'{"a": 1}\n{"b": ')
    journal = Journal(lambda *_: None)
    journal.open(str(path))
    journal.add({"c": 3})
    assert path.read_bytes() == b'{"a": 1}\n{"b": \n{"c": 3}\n'
    assert list(journal.read_back()) == [{"a": 1}, {"c": 3}]
    journal.close()


def test_a_line_that_is_too_long_is_none(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"[" * 10**6 + b'\n{"a": 1}\n')
    journal = Journal(lambda *_: None)
    journal.open(str(path))
    assert list(journal.read_back()) == [{"a": 1}]
    journal.close()


def test_only_the_last_part_of_a_long_journal_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with path.open("wb") as file:
        file.write(b'{"first": 1}\n')
        file.truncate(JOURNAL_BYTES_MAX)
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"last": 1}\n')
    journal = Journal(lambda *_: None)
    journal.open(str(path))
    assert list(journal.read_back()) == [{"last": 1}]
    journal.close()


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
    """A canary in every secret, prompt, header, answer and error; all that is shown is searched."""
    path = tmp_path / "journal"
    key, token, api_key = SECRETS.values()
    whole = describe(
        "ab",
        accounts={name: {"api_key": api_key} for name in "ab"},
        pool={"keys": {"laptop": key}, "routing": "round_robin"},
        operators={"me": token},
        journal=str(path),
    )
    said = ANSWER | {"output": [{"type": "message", "content": "canary-answer"}], "id": "canary-id"}
    told = {"error": {"message": "canary-words", "code": "canary code", "type": "canary!"}}
    headers = [("session-id", "canary-session"), ("User-Agent", "canary-agent"), ("X", "canary-x")]
    async with opened_world(whole) as world:
        world.server.open_operators()
        for script in (
            json_answer(said),
            json_answer(told, 400),
            json_answer(told, 500),
            json_answer(told, 429),
            [],
        ):
            world.upstreams["a"].always = world.upstreams["b"].always = script or json_answer("x")
            body = {"model": "m1", "input": "canary-prompt", "user": "canary-user"}
            await world.ask(post("/v1/responses?q=canary", body, key=key, headers=headers))
            await world.ask(post("/v1/responses", {"model": "canary-model"}, key=key))
            await world.ask(request("GET", "/v1/models/canary-model", key=key))
            await world.ask(request("GET", "/v1/canary-path", key=key))
        found = world.server.snapshot()
        page = pooler.show_admin(found)
        shown = [
            json.dumps([found, page]),
            pooler.admin_page(page),
            pooler.metrics_text(found),
            pooler.status_text(page, 120, True),
            path.read_text(),
            json.dumps(world.server.explain("home", "m1", "canary-session")),
            json.dumps(world.logged),
        ]
        for path_ in ("/admin", "/metrics"):
            for accept in ("application/json", "text/html"):
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
