"""Proves for each field of pools.json that a reload changes what a restart would change.

Method: a table has every field of every kind of object, with its value before and after, and how
it is seen from outside: from a server that was started with the old value and one that was started
with the new one, which must differ, and from one that was started with the old value and reloaded
while a client's connection and its WebSocket were open.  What needs a restart is a row, too.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import trio
from trio.testing import MockClock

import pooler
from pooler import parse_config
from tests.support.codex_backend import make_auth_file
from tests.support.frames import CLOSE, split_frame
from tests.support.memory_sockets import KEY, Client, Response, post, request
from tests.support.memory_websockets import SocketClient, read_upgrade, turn, upgrade
from tests.support.processes import OPERATOR_TOKEN
from tests.support.world import (
    UNIX_START,
    Pause,
    Script,
    Stall,
    World,
    describe,
    error_response,
    json_response,
    opened_world,
    responses_events,
    sse_response,
    sse_steps,
)

Json = Any
MIB: Final = 1024 * 1024
NEW_KEY: Final = "cp-another-key-0123456789"
EVENTS: Final = responses_events("x")
DELTA: Final = EVENTS[2]
SPECS: Final = {
    "": pooler._TOP,
    "accounts.": pooler._ACCOUNT,
    "pools.": pooler._POOL,
    "keys.": pooler._KEY,
    "aliases.": pooler._ALIAS,
    "prices.": pooler._PRICE,
    "notify.": pooler._NOTIFY,
    "limits.": pooler._LIMITS,
}


class Open(NamedTuple):
    """A world, and what a client has opened before the reload."""

    world: World
    client: Client
    socket: SocketClient | None

    async def ask(self, raw: bytes) -> Response:
        """On the connection that was there before the reload."""
        response = await self.client.ask(raw)
        await self.world.settle()
        return response


Look = Callable[[Open], Awaitable[object]]


class Row(NamedTuple):
    """How the file changes, and what is seen of that."""

    before: Json
    after: Json
    look: Look
    needs_restart: bool = False
    has_socket: bool = False


def with_member(path: str, value: Json, whole: Json = None) -> Json:
    """A configuration with that value at a path."""
    whole = copy.deepcopy(describe("ab")) if whole is None else copy.deepcopy(whole)
    *parents, name = path.split(".")
    part = whole
    for parent in parents:
        part = part.setdefault(parent, {})
    if value is None:
        part.pop(name, None)
    else:
        part[name] = value
    return whole


def changing(path: str, before: Json, after: Json, look: Look, **more: Json) -> Row:
    """The value at a path, which is None where it is left out."""
    whole = more.pop("whole", None)
    return Row(with_member(path, before, whole), with_member(path, after, whole), look, **more)


################################################################
# HOW IT IS SEEN
################################################################


def call(*, key: str = KEY, model: str = "m1", stream: bool = False, **more: Json) -> bytes:
    body = {"model": model, "input": "x", "stream": stream} | more
    return post("/v1/responses", body, key=key)


def of_length(byte_count: int) -> bytes:
    return call(input="x" * byte_count)


def answering(world: World, script: Script) -> None:
    for name in "abc":
        world.upstream(name).always = script


def told(response: Response) -> tuple[int, str | None]:
    """The status and the code of an error."""
    value = response.json() if response.body.startswith(b"{") else {}
    return response.status, (value.get("error") or {}).get("code")


async def status_of(opened: Open, raw: bytes = b"") -> object:
    answering(opened.world, json_response({"id": "r"}))
    return told(await opened.ask(raw or call()))


async def sent(opened: Open, raw: bytes = b"") -> object:
    """Which account was asked, with which key and for what."""
    await status_of(opened, raw)
    return [
        (name, asked.header("host"), asked.header("authorization"), asked.json())
        for name, upstream in opened.world.upstreams.items()
        for asked in upstream.asked
    ]


async def who_is_asked(opened: Open) -> object:
    await status_of(opened)
    return {name: len(each.asked) for name, each in opened.world.upstreams.items()}


async def how_many_at_once(opened: Open, count: int = 6, byte_count: int = 1) -> object:
    """How many of some requests reach an upstream while none is answered."""
    world = opened.world
    answering(world, [Stall()])
    clients = [await world.connect() for _ in range(count)]
    for client in clients:
        await client.send(of_length(byte_count))
        await world.settle()
    asked_count = sum(len(upstream.asked) for upstream in world.upstreams.values())
    for client in clients:
        await client.hang_up()
    await world.settle()
    return asked_count


async def how_long(opened: Open, script: Script, raw: bytes) -> object:
    """When a response to a silent upstream ends, and how."""
    answering(opened.world, script)
    began_at = trio.current_time()
    response = await opened.client.ask(raw)
    return trio.current_time() - began_at, response.status


async def asked_after_failures(opened: Open) -> object:
    answering(opened.world, error_response(500, "server_error"))
    await opened.ask(call())
    return [len(upstream.asked) for upstream in opened.world.upstreams.values()]


async def first_comment(opened: Open) -> object:
    answering(opened.world, sse_steps(DELTA, Pause(100), EVENTS[-1]))
    began_at = trio.current_time()
    await opened.client.send(call(stream=True))
    await opened.client.read_head()
    while not (await opened.client.read_event()).startswith(b":"):
        pass
    seconds = trio.current_time() - began_at
    while await opened.client.read_event():
        pass
    return seconds


async def wait_in_the_queue(opened: Open) -> object:
    answering(opened.world, [Stall()])
    first = await opened.world.connect()
    await first.send(call())
    await opened.world.settle()
    began_at = trio.current_time()
    status = told(await opened.client.ask(call()))
    await first.hang_up()
    return trio.current_time() - began_at, status


async def rest_after_a_throttle(opened: Open) -> object:
    answering(opened.world, error_response(429, "rate_limit_exceeded"))
    response = await opened.ask(call())
    return response.status, response.header("retry-after")


async def socket_idle(opened: Open) -> object:
    assert opened.socket is not None
    opened.world.upstreams["a"].on_turn = lambda _: turn("x")
    await opened.socket.ask()
    began_at = trio.current_time()
    while (await opened.socket.read_frame())[0] != 0x8:
        pass
    await opened.socket.hang_up()
    return trio.current_time() - began_at


async def drain(opened: Open) -> object:
    answering(opened.world, [Stall()])
    await opened.client.send(call(stream=True))
    await opened.world.settle()
    began_at = trio.current_time()
    opened.world.server.stop()
    await opened.client.read_response()
    return trio.current_time() - began_at


async def records_kept(opened: Open) -> object:
    for _ in range(4):
        await status_of(opened)
    return len(opened.world.server.shared.ledger.requests)


async def connections_let_in(opened: Open) -> object:
    world = opened.world
    answering(world, [Stall()])
    clients = [await world.connect() for _ in range(8)]
    for client in clients:
        with contextlib.suppress(trio.BrokenResourceError):  # it was not let in
            await client.send(call())
        await world.settle()
    count = len(world.server.connections.counted)
    for client in clients:
        await client.hang_up()
    await world.settle()
    return count


async def cost(opened: Open) -> object:
    usage = {"input_tokens": 7000, "output_tokens": 500, "total_tokens": 7500}
    usage |= {"input_tokens_details": {"cached_tokens": 3000}}  # type: ignore[dict-item] # JSON
    answering(opened.world, json_response({"id": "r", "usage": usage}))
    await opened.ask(call())
    raw = request("GET", "/admin", key=OPERATOR_TOKEN, headers=[("Accept", "application/json")])
    return (await opened.ask(raw)).json()["today"]["cost"]


async def admin(opened: Open) -> object:
    raw = request("GET", "/admin", key=OPERATOR_TOKEN, headers=[("Accept", "application/json")])
    return (await opened.ask(raw)).status


async def list_of_models(opened: Open) -> object:
    response = await opened.ask(request("GET", "/v1/models"))
    return response.status, response.json()


async def some_calls(opened: Open, count: int = 3) -> object:
    """A call that is refused unread ends its connection, so each has its own."""
    answering(opened.world, json_response({"id": "r"}))
    return [told(await opened.world.ask(call())) for _ in range(count)]


async def carriers(opened: Open) -> object:
    """Turns by WebSocket and requests, of each upstream, on a WebSocket that was open before."""
    assert opened.socket is not None
    upstreams = opened.world.upstreams.values()
    for upstream in upstreams:
        upstream.on_turn = lambda _: turn("x")
        upstream.always = sse_response(EVENTS)
    await opened.socket.ask()
    await opened.socket.hang_up()
    return [(len(upstream.turns), len(upstream.asked)) for upstream in upstreams]


async def way_out(opened: Open) -> object:
    """Of requests, of refreshes, and of notices."""
    await opened.world.settle()
    shared = opened.world.server.shared
    return [
        *(endpoint.proxy for endpoint in shared.endpoints.by_name.values()),
        *(login.proxy for login in shared.endpoints.logins.values()),
        shared.notices.proxy,
    ]


async def login_files(opened: Open) -> object:
    await opened.world.settle()
    return {
        name: (login.path, login.is_retired, login.credentials and login.credentials.account_id)
        for name, login in opened.world.server.shared.endpoints.logins.items()
    }


async def pass_time(seconds: float) -> None:
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


async def version_told(opened: Open) -> object:
    """The list of models is asked for again with it."""
    await opened.world.settle()
    health = opened.world.server.shared.roster.health["a"]
    due_at = health.catalogue_at + pooler.CATALOGUE_SECONDS
    await pass_time(due_at - trio.current_time())
    await opened.world.settle()
    return opened.world.upstreams["a"].catalogue_asked[-1].target


async def notice_of(opened: Open) -> object:
    await opened.world.settle()
    notify = opened.world.server.shared.notices.notify
    assert notify is not None
    return notify.url, pooler.reveal(notify.target), notify.token and pooler.reveal(notify.token)


async def routing(opened: Open) -> object:
    await opened.world.settle()
    return opened.world.server.shared.roster.pools["home"].routing


async def seen_in_config(opened: Open, name: str) -> object:
    await opened.world.settle()
    return getattr(opened.world.server.shared.config, name)


async def trusted(opened: Open) -> object:
    await opened.world.settle()
    return [
        endpoint.account.ca_file
        for endpoint in opened.world.server.shared.endpoints.by_name.values()
    ]


################################################################
# THE TABLE
################################################################

BASE: Final = describe("ab", pool={"routing": "in_order"}, operators={"me": OPERATOR_TOKEN})
ALONE: Final = describe("a", operators={"me": OPERATOR_TOKEN})
SOCKET: Final = describe("a", accounts={"a": {"websocket": True}})
PRICE: Final = {"input": 2, "cached": 0.5, "output": 10}
PRICED: Final = ALONE | {"prices": {"m1": PRICE}}
HOOK: Final = "https://hooks.example/one"
LOGIN: Final = describe(
    "a",
    accounts={"a": {"type": "codex", "api_key": None, "auth_file": "FOLDER/one.json"}},
)
NO_MODELS: Final = with_member("accounts.a.models", None, LOGIN)
ORIGIN: Final = request("GET", "/v1/models", headers=[("Origin", "https://app.example")])
ALIASED: Final = with_member("pools.home.aliases", {"best": {"model": "m1"}}, ALONE)
KEYED: Final = with_member("pools.home.keys.laptop", {"key": KEY}, ALONE)
EARLY: Final = "2027-01-15T07:00:00Z"  # an hour before UNIX_START


def limit(name: str, before: float, after: float, look: Look, **more: Json) -> Row:
    whole = more.pop("whole", ALONE)
    return changing(f"limits.{name}", before, after, look, whole=whole, **more)


def of_key(name: str, before: Json, after: Json, look: Look = status_of) -> Row:
    return changing(f"pools.home.keys.laptop.{name}", before, after, look, whole=KEYED)


def of_account(name: str, before: Json, after: Json, look: Look, whole: Json = BASE) -> Row:
    has_socket = name == "websocket"
    path = f"accounts.a.{name}"
    return changing(path, before, after, look, whole=whole, has_socket=has_socket)


def asking(raw: bytes, look: Callable[..., Awaitable[object]] = status_of) -> Look:
    return functools.partial(look, raw=raw)


RESERVE: Final = describe("ab", accounts={"a": {"priority": 1}, "b": {"priority": 2}})
SECOND_TAKES_SOCKETS: Final = with_member("accounts.b.websocket", True, BASE)
ROWS: Final[dict[str, Row]] = {
    "accounts": Row(describe("a"), describe("b"), who_is_asked),
    "pools": Row(
        ALONE,
        with_member("pools.second", {"accounts": ["a"], "keys": {"n": NEW_KEY}}, ALONE),
        asking(call(key=NEW_KEY)),
    ),
    "operators": changing("operators", None, {"me": OPERATOR_TOKEN}, admin, whole=describe("a")),
    "listen": changing(
        "listen", "127.0.0.1:1", "127.0.0.1:2", functools.partial(seen_in_config, name="listen"),
        needs_restart=True,
    ),
    "allow_public": changing(
        "allow_public", None, True, functools.partial(seen_in_config, name="warnings"),
        whole=ALONE | {"listen": "0.0.0.0:4000"},
    ),
    "base_path": changing(
        "base_path", None, "/pool", asking(request("GET", "/pool/v1/models")), whole=ALONE
    ),
    "allowed_origins": changing(
        "allowed_origins", None, ["https://app.example"], asking(ORIGIN), whole=ALONE
    ),
    "hosts": changing("hosts", None, ["pool.example"], status_of, whole=ALONE),
    "proxy": changing("proxy", None, "http://127.0.0.1:3128", way_out, whole=ALONE),
    "state": changing(
        "state", None, "FOLDER/state.json", functools.partial(seen_in_config, name="state"),
        needs_restart=True,
    ),
    "prices": changing("prices", None, {"m1": PRICE}, cost, whole=ALONE),
    "notify": changing("notify", HOOK, "https://hooks.example/two", notice_of),
    "limits": changing("limits", {}, {"body_bytes_max": 2048}, asking(of_length(3000))),
    "prices.input": changing("prices.m1.input", 2, 3, cost, whole=PRICED),
    "prices.cached": changing("prices.m1.cached", None, 0.5, cost, whole=PRICED),
    "prices.output": changing("prices.m1.output", 10, 11, cost, whole=PRICED),
    "notify.url": changing(
        "notify.url", HOOK, "https://hooks.example/two", notice_of,
        whole=ALONE | {"notify": {"url": HOOK}},
    ),
    "notify.token": changing(
        "notify.token", None, "a-token-of-the-hooks", notice_of,
        whole=ALONE | {"notify": {"url": HOOK}},
    ),
    "pools.accounts": changing("pools.home.accounts", ["a"], ["b"], who_is_asked),
    "pools.models": changing("pools.home.models", None, ["m2"], list_of_models, whole=ALONE),
    "pools.aliases": changing(
        "pools.home.aliases", None, {"best": "m1"}, asking(call(model="best"), sent), whole=ALONE
    ),
    "pools.routing": changing(
        "pools.home.routing", None, "quota_first", routing, whole=ALONE
    ),
    "pools.keys": changing(
        "pools.home.keys", {"laptop": KEY}, {"laptop": KEY, "n": NEW_KEY},
        asking(call(key=NEW_KEY)), whole=ALONE,
    ),
    "accounts.base_url": of_account("base_url", "http://127.0.0.1:9001/v1",
        "http://127.0.0.1:9500/v1", sent, ALONE),
    "accounts.api_key": of_account("api_key", "sk-before-0123456789", "sk-after-0123456789",
        sent, ALONE),
    "accounts.auth_file": of_account(
        "auth_file", "FOLDER/one.json", "FOLDER/two.json", login_files, LOGIN),
    "accounts.priority": of_account("priority", 1, 3, who_is_asked, RESERVE),
    "accounts.paused": of_account("paused", None, True, who_is_asked),
    "accounts.concurrent": of_account("concurrent", 2, 4, how_many_at_once, ALONE),
    "accounts.models": of_account("models", {"m1": "one"}, {"m1": "two"}, sent, ALONE),
    "accounts.first_event_seconds": of_account(
        "first_event_seconds", 20, 30,
        functools.partial(how_long, script=[Stall()], raw=call(stream=True)), ALONE),
    "accounts.ca_file": of_account("ca_file", None, "authority.pem", trusted, ALONE),
    "accounts.websocket": of_account("websocket", False, True, carriers, SECOND_TAKES_SOCKETS),
    "accounts.client_version": of_account(
        "client_version", "0.150.0", "0.160.0", version_told, NO_MODELS),
    "accounts.type": Row(ALONE, LOGIN, login_files),
    "keys.models": of_key("models", None, ["m2"]),
    "keys.requests_per_minute": of_key("requests_per_minute", None, 2, some_calls),
    "keys.tokens_per_day": of_key("tokens_per_day", None, 1, some_calls),
    "keys.concurrent": of_key("concurrent", 2, 4, how_many_at_once),
    "keys.expires": of_key("expires", None, EARLY),
    "keys.paused": of_key("paused", None, True),
    "keys.key": of_key("key", KEY, NEW_KEY),
    "aliases.model": changing("pools.home.aliases.best.model", "m1", "m2",
        asking(call(model="best"), sent), whole=ALIASED),
    "aliases.effort": changing("pools.home.aliases.best.effort", None, "high",
        asking(call(model="best"), sent), whole=ALIASED),
    "aliases.service_tier": changing("pools.home.aliases.best.service_tier", None, "priority",
        asking(call(model="best"), sent), whole=ALIASED),
    "limits.body_bytes_max": limit("body_bytes_max", 2048, 4096, asking(of_length(3000))),
    "limits.bodies_bytes_max": limit(
        "bodies_bytes_max", MIB, 2 * MIB,
        functools.partial(how_many_at_once, count=8, byte_count=MIB // 9),
        whole=ALONE | {"limits": {"body_bytes_max": MIB // 8}},
    ),
    "limits.connections_max": limit("connections_max", 4, 6, connections_let_in),
    "limits.key_streams_max": limit("key_streams_max", 2, 4, how_many_at_once),
    "limits.account_streams_max": limit("account_streams_max", 2, 4, how_many_at_once),
    "limits.queue_seconds_max": limit(
        "queue_seconds_max", 5, 7, wait_in_the_queue,
        whole=with_member("accounts.a.concurrent", 1, ALONE)),
    "limits.attempts_max": limit("attempts_max", 1, 2, asked_after_failures, whole=BASE),
    "limits.cooldown_seconds": limit("cooldown_seconds", 20, 30, rest_after_a_throttle),
    "limits.first_event_seconds_max": limit(
        "first_event_seconds_max", 20, 30,
        functools.partial(how_long, script=[Stall()], raw=call(stream=True))),
    "limits.between_events_seconds_max": limit(
        "between_events_seconds_max", 20, 30,
        functools.partial(how_long, script=sse_steps(DELTA, Stall()), raw=call(stream=True))),
    "limits.unary_seconds_max": limit(
        "unary_seconds_max", 20, 30, functools.partial(how_long, script=[Stall()], raw=call())),
    "limits.comment_seconds": limit("comment_seconds", 5, 7, first_comment),
    "limits.websocket_idle_seconds_max": limit(
        "websocket_idle_seconds_max", 100, 200, socket_idle, whole=SOCKET, has_socket=True),
    "limits.drain_seconds_max": limit("drain_seconds_max", 5, 7, drain),
    "limits.records_max": limit("records_max", 2, 3, records_kept),
}  # fmt: skip

# What a field like these says is whether a file is accepted, and so is a reload of it.
ACCEPTING: Final[dict[str, Json]] = {
    "accounts.allow_plain_http": (
        "accounts.a.allow_plain_http",
        with_member("accounts.a.base_url", "http://upstream.example/v1", ALONE),
    ),
    "notify.allow_plain_http": (
        "notify.allow_plain_http",
        ALONE | {"notify": {"url": "http://hooks.example/one"}},
    ),
}
IGNORED: Final = {"$schema"}


def test_every_field_of_the_file_has_its_row() -> None:
    fields = {prefix + name for prefix, spec in SPECS.items() for name in spec}
    assert fields == ROWS.keys() | ACCEPTING.keys() | IGNORED


def loaded(whole: Json, folder: Path) -> pooler.Config:
    for account_id in ("one", "two"):
        path = folder / f"{account_id}.json"
        if not path.exists():
            make_auth_file(path, account_id, expires_at=UNIX_START + 10**6)
    text = json.dumps(whole).replace("FOLDER", str(folder))
    return parse_config(text.encode(), {}, str)


async def seen(row: Row, folder: Path, first: Json, second: Json | None = None) -> object:
    """What is seen of a server that was started with one file and perhaps reloaded with another."""
    async with opened_world(json.loads(json.dumps(first).replace("FOLDER", str(folder)))) as world:
        for name in "ab":
            world.upstream(name).catalogue = json_response({"models": []})
        client = await world.connect()
        assert (await client.ask(request("GET", "/healthz"))).status in {200, 404}
        socket = None
        if row.has_socket:
            opener = await world.connect()
            await opener.send(upgrade())
            socket = await read_upgrade(opener)
        await world.settle()
        if second is not None:
            await world.server.reload(lambda: (loaded(second, folder), {}))
            await world.settle()
        shown = await row.look(Open(world, client, socket))
        if not client.stream.is_closed:
            await client.hang_up()
        await world.settle()
        return shown


@pytest.mark.parametrize("name", ROWS)
async def test_a_reload_changes_what_a_restart_would(
    autojump_clock: MockClock, tmp_path: Path, name: str
) -> None:
    row = ROWS[name]
    loaded(ALONE, tmp_path)  # writes the logins
    before, after = [await seen(row, tmp_path, whole) for whole in (row.before, row.after)]
    assert before != after
    there = await seen(row, tmp_path, row.before, row.after)
    assert there == (before if row.needs_restart else after)
    back = await seen(row, tmp_path, row.after, row.before)
    assert back == (after if row.needs_restart else before)


@pytest.mark.parametrize("name", ACCEPTING)
async def test_a_reload_is_accepted_where_a_restart_would_be(
    autojump_clock: MockClock, tmp_path: Path, name: str
) -> None:
    path, refused = ACCEPTING[name]
    accepted = with_member(path, True, refused)
    async with opened_world(ALONE) as world:
        before = world.server.shared.config
        await world.server.reload(lambda: (loaded(refused, tmp_path), {}))
        [told] = [fields for _, event, fields in world.logged if event == "reload refused"]
        assert "allow_plain_http" in told["problem"]
        assert world.server.shared.config is before
        await world.server.reload(lambda: (loaded(accepted, tmp_path), {}))
        assert world.server.shared.config is not before
        assert world.server.shared.config.listen == before.listen


async def test_a_websocket_that_rests_is_bound_by_the_new_limit(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """It has rested for longer than that already, or has much longer than it had."""
    short, long = (
        with_member("limits.websocket_idle_seconds_max", seconds, SOCKET) for seconds in (100, 1000)
    )
    for first, second, rested, expected in ((long, short, 500, 30), (short, long, 90, 910)):
        async with opened_world(first) as world:
            opener = await world.connect()
            await opener.send(upgrade())
            client = await read_upgrade(opener)
            await pass_time(rested)
            while split_frame(opener.buffer) is not None:  # pings
                await client.read_frame()
            await world.server.reload(functools.partial(reloaded, second, tmp_path))
            began_at = trio.current_time()
            while (await client.read_frame())[0] != CLOSE:
                pass
            assert 0 < trio.current_time() - began_at <= expected
            await client.hang_up()


def reloaded(whole: Json, folder: Path) -> pooler.Loaded:
    return loaded(whole, folder), {}


async def test_a_websocket_of_another_authority_is_not_used_after_a_reload(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whoever was trusted before need not be trusted now."""
    async with opened_world(SOCKET) as world:
        upstream = world.upstreams["a"]
        upstream.on_turn = lambda _: turn("x")
        opener = await world.connect()
        await opener.send(upgrade())
        client = await read_upgrade(opener)
        for whole in (SOCKET, SOCKET, with_member("accounts.a.ca_file", "other.pem", SOCKET)):
            await world.server.reload(functools.partial(reloaded, whole, tmp_path))
            assert (await client.ask())[-1]["type"] == "response.completed"
        assert [number for number, _ in upstream.turns] == [1, 1, 2]
        await client.hang_up()
