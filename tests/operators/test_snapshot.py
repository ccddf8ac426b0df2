"""Proves that the snapshot shows the state of keys and accounts, and what accounts lack.

Method: a server in virtual time, whose accounts and leases are put into the state in question; the
words are those that operators read.
"""

from __future__ import annotations

import re
from typing import Final

import pytest
import trio
from trio.testing import MockClock

import mcp_server
from pooler import Cause, Effect
from tests.support.memory_sockets import KEY, Json, request
from tests.support.world import World, describe, opened_world

PAUSED_KEY: Final = "cp-key-that-is-paused-0123456789"
EXPIRED_KEY: Final = "cp-key-that-is-expired-0123456789"
PLACE: Final = ("home", "laptop")


def snapshot(world: World) -> Json:
    return world.server.operators.snapshot()


def reasons(world: World) -> Json:
    explained = world.server.operators.explain("home", "m1", None)
    return {account["name"]: account["reason"] for account in explained["accounts"]}


def statuses(world: World, model: str = "m1") -> Json:
    explained = world.server.operators.explain("home", model, None)
    return {account["name"]: account["status"] for account in explained["accounts"]}


async def test_the_names_that_clients_may_use_are_listed_with_what_they_mean(
    autojump_clock: MockClock,
) -> None:
    pool = {"models": ["m2"], "aliases": {"best": "m2"}}
    async with opened_world(describe("a", pool=pool)) as world:
        listed = (await world.ask(request("GET", "/v1/models"))).json()["data"]
        names = [row["name"] for row in snapshot(world)["models"]]
        assert names == sorted(model["id"] for model in listed) == ["best", "m2"]
        assert snapshot(world)["models"] == [
            {"name": name, "pools": ["home"], "targets": ["m2"]} for name in names
        ]


async def test_routing_is_explained_in_the_words_of_accounts_passed_over(
    autojump_clock: MockClock,
) -> None:
    accounts: Json = {"a": {"models": ["m2"]}, "b": {"paused": True}}
    async with opened_world(describe("abc", accounts=accounts)) as world:
        assert statuses(world) == {"a": "not_offered", "b": "paused", "c": "ready"}
        (row,) = [row for row in snapshot(world)["pools"][0]["serving"] if row["model"] == "m1"]
        passed_over = {over["account"]: over["status"] for over in row["passed_over"]}
        assert passed_over == {"a": "not_offered", "b": "paused"}


async def test_a_key_is_active_paused_or_expired(autojump_clock: MockClock) -> None:
    keys = {
        "laptop": KEY,
        "off": {"key": PAUSED_KEY, "paused": True},
        "old": {"key": EXPIRED_KEY, "expires": "2027-01-15T08:00:00Z"},
    }
    async with opened_world(describe("a", pool={"keys": keys})) as world:
        states = {key["name"]: key["status"] for key in snapshot(world)["keys"]}
        assert states == {"laptop": "active", "off": "paused", "old": "expired"}


@pytest.mark.parametrize(
    ("effect", "kind", "name"),
    [
        (Effect.LACKS_MODEL, "model", "m1"),
        (Effect.LACKS_ROUTE, "route", "/responses"),
        (Effect.LACKS_WEBSOCKET, "WebSocket", ""),
    ],
)
async def test_what_an_account_lacks_is_shown_until_it_is_tried_again(
    autojump_clock: MockClock, effect: Effect, kind: str, name: str
) -> None:
    async with opened_world(describe("a")) as world:
        health = world.server.shared.roster.health["a"]
        health.block(effect, name, trio.current_time() + 60, "404 not_found")

        (lack,) = snapshot(world)["accounts"][0]["lacks"]
        assert (lack["kind"], lack["name"], lack["reason"]) == (kind, name, "404 not_found")
        shown = mcp_server.status_text(snapshot(world), 1000, is_coloured=False)
        words = " ".join(filter(None, [kind, name, "(404 not_found)"]))
        assert re.search(f"{re.escape(words)}, again \\d\\d:\\d\\d \\(in 1 min\\)", shown)

        await trio.sleep_until(trio.current_time() + 61)
        assert snapshot(world)["accounts"][0]["lacks"] == []


async def test_a_model_that_only_a_client_named_is_not_shown(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        health = world.server.shared.roster.health["a"]
        health.block(Effect.LACKS_MODEL, "of-a-client", trio.current_time() + 60, "404 not_found")
        assert snapshot(world)["accounts"][0]["lacks"] == []


async def test_an_account_at_its_cap_is_shown_as_busy(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a", accounts={"a": {"concurrent": 1}})) as world:
        places = world.server.shared.roster.leases
        places.take("a", PLACE)
        assert reasons(world) == {"a": "number 1 in order, and busy: at its cap"}
        assert statuses(world) == {"a": "at_cap"}
        assert world.server.operators.explain("home", "m1", None)["chosen"] is None

        places.give_back("a", PLACE)
        assert reasons(world) == {"a": "number 1 in order"}


async def test_an_account_whose_host_did_not_connect_is_shown_to_come_last(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("abc")) as world:
        address = world.config.accounts["a"].base_url.address
        until = trio.current_time() + 60
        world.server.shared.roster.hosts.unreached[address, None] = (until, Cause.REFUSED)
        assert statuses(world) == {"a": "unreachable", "b": "ready", "c": "ready"}
        assert reasons(world)["a"] == (
            f"number 3 in order; tried last, for it did not connect: {Cause.REFUSED.value}"
        )
