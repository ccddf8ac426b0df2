"""Proves that an operator reads of each account why, since when, how often and what to do.

Method: the real server in virtual time, whose accounts fail in each way.  What is searched is the
snapshot, from which every page is made, and the log: one line for each change, a warning if it is
for the worse.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from pooler import (
    MODEL_BLOCK_SECONDS,
    Cause,
    Condition,
    ConnectFailed,
    LoginState,
    Model,
    Status,
    advice_for,
    duration_text,
    refusal_text,
)
from tests.support.codex_backend import Play, TokenPlay, make_auth_file
from tests.support.codex_world import FIRST, FORMS, describe_codex, opened_codex_world
from tests.support.memory_sockets import Json, ask_responses, post, request
from tests.support.memory_websockets import codex_described, socket_world
from tests.support.world import (
    UNIX_START,
    World,
    describe,
    error_response,
    json_response,
    make_config,
    opened_world,
    responses_events,
    sse_response,
)

ASK: Final = post("/v1/responses", {"model": "m1", "input": ""})
SERVED: Final = json_response({"id": "r"})
TOKEN: Final = "cpo-operator-token-0123456789"
# What OpenCode and others repeat an error for, whatever its status.
TRAPS: Final = re.compile(
    "429|50[0234]|524|rate.?limit|overloaded|server error|try again|at capacity|timeout|too many",
    re.IGNORECASE,
)


def account(world: World, name: str = "a") -> Json:
    rows = world.server.operators.snapshot()["accounts"]
    return next(row for row in rows if row["name"] == name)


def pool(world: World) -> Json:
    return world.server.operators.snapshot()["pools"][0]


def changes(world: World, event: str = "account") -> list[dict[str, Json]]:
    """The log's lines of an event, oldest first."""
    return [fields | {"level": level} for level, name, fields in world.logged if name == event]


async def let_pass(world: World, clock: MockClock, seconds: float) -> None:
    clock.jump(seconds)
    await world.settle()


async def refuse(*_: object) -> trio.abc.Stream:
    await trio.lowlevel.checkpoint()
    raise ConnectFailed(Cause.REFUSED)


################################################################
# AN ACCOUNT
################################################################

# A response; the status, and the reason, that its account has after it.
CONDITIONS: Final[dict[str, tuple[Json, str, str]]] = {
    "key refused": (error_response(401, "invalid_api_key"), "refused", "401 invalid_api_key"),
    "unpaid": (error_response(402, "billing_not_active"), "refused", "402 billing_not_active"),
    "used up": (error_response(429, "insufficient_quota"), "at_limit", "429 insufficient_quota"),
    "too fast": (
        error_response(429, "rate_limit_exceeded"), "cooling_down", "429 rate_limit_exceeded"),
    "down": (error_response(503, "server_error"), "failing", "503 server_error"),
    "forbidden": (error_response(403, "forbidden"), "failing", "403 forbidden"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONDITIONS)
async def test_a_failure_is_shown_with_its_reason_and_since_when(
    case: str, autojump_clock: MockClock
) -> None:
    response, status, reason = CONDITIONS[case]
    async with opened_world(describe("ab")) as world:
        world.upstreams["a"].always = response
        world.upstreams["b"].always = SERVED
        await let_pass(world, autojump_clock, 100)
        while account(world)["status"] == "ready":
            await world.ask(ASK)

        shown = account(world)
        assert (shown["status"], shown["reason"], shown["failures"]) == (status, reason, 1)
        assert shown["since"] == pytest.approx(UNIX_START + 100, abs=1)
        assert shown["last_error"] == {
            "at": pytest.approx(UNIX_START + 100, abs=1),
            "reason": reason,
        }
        assert shown["last_success_at"] is None
        assert shown["needs_operator"] is (status == "refused")

        [line] = changes(world)
        expected = ("warning", "a", status, "ready", reason)
        found = tuple(line[name] for name in ("level", "account", "status", "before", "reason"))
        assert found == expected


async def test_an_account_that_serves_again_is_ready_and_that_is_no_warning(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(error_response(503, "server_error"))
        await world.ask(ASK)
        world.upstreams["a"].always = SERVED
        await let_pass(world, autojump_clock, 5)
        assert (await world.ask(ASK)).status == 200

        shown = account(world)
        assert (shown["status"], shown["since"], shown["failures"]) == ("ready", None, 0)
        assert shown["last_success_at"] == pytest.approx(UNIX_START + 5, abs=1)
        assert shown["last_error"]["reason"] == "503 server_error"
        assert [(line["level"], line["status"]) for line in changes(world)] == [
            ("warning", "failing"), ("info", "ready"),
        ]  # fmt: skip


async def test_a_single_failure_counts_for_a_minute_and_two_until_a_success(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].always = error_response(503, "server_error")
        await world.ask(ASK)
        await let_pass(world, autojump_clock, 61)
        assert account(world)["status"] == "ready"

        await world.ask(ASK)
        await let_pass(world, autojump_clock, 3600)
        assert (account(world)["status"], account(world)["failures"]) == ("failing", 2)
        assert [line["status"] for line in changes(world)] == ["failing", "ready", "failing"]


async def test_a_limit_that_ends_by_time_alone_is_logged_when_it_ends(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        limit = error_response(429, "usage_limit_reached", [("Retry-After", "600")])
        world.upstreams["a"].plays(limit)
        await world.ask(ASK)
        assert account(world)["until"] == pytest.approx(UNIX_START + 600, abs=1)

        await let_pass(world, autojump_clock, 599)
        assert [line["status"] for line in changes(world)] == ["at_limit"]
        await let_pass(world, autojump_clock, 2)
        assert account(world)["status"] == "ready"
        first, last = changes(world)
        assert (first["level"], first["status"]) == ("warning", "at_limit")
        assert (last["level"], last["status"]) == ("info", "ready")


async def test_a_server_that_is_down_is_named_and_stays_unreachable_until_it_is_back(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_world(describe("a")) as world:
        dial = world.server.shared.dial
        monkeypatch.setattr(world.server.shared, "dial", refuse)
        for _ in range(3):
            assert (await world.ask(ASK)).status == 502
            await let_pass(world, autojump_clock, 120)

        shown = account(world)
        assert (shown["status"], shown["failures"]) == ("unreachable", 3)
        host = world.server.shared.config.accounts["a"].base_url.authority
        assert shown["reason"] == f"connection refused at {host}"
        assert shown["advice"] == f"Start the server at {host}, or check base_url."
        assert pool(world)["status"] == "down"

        monkeypatch.setattr(world.server.shared, "dial", dial)
        world.upstreams["a"].always = SERVED
        assert (await world.ask(ASK)).status == 200
        assert (account(world)["status"], pool(world)["status"]) == ("ready", "ready")


async def test_a_broken_proxy_demotes_nobody_and_is_shown(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise ConnectFailed(Cause.PROXY_UNREACHABLE)

    async with opened_world(describe("a")) as world:
        monkeypatch.setattr(world.server.shared, "dial", fail)
        await world.ask(ASK)
        shown = account(world)
        assert (shown["status"], shown["reason"]) == ("unreachable", "proxy unreachable")
        assert (shown["is_demoted"], shown["unreached"]) == (False, None)
        assert shown["advice"] == "Check the proxy that pools.json names."


async def test_a_bot_protection_that_blocks_the_pooler_blames_no_account(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        challenge = error_response(403, None, [("cf-mitigated", "challenge")])
        world.upstreams["a"].always = challenge
        for _ in range(3):
            assert (await world.ask(ASK)).error["code"] == "upstream_blocked"
        assert (account(world)["status"], changes(world)) == ("ready", [])


async def test_an_account_that_nobody_asks_is_looked_at_when_an_operator_does(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path, "a", operators={"me": TOKEN})) as world:
        await world.settle()
        (tmp_path / "a" / "auth.json").unlink()
        await world.ask(request("GET", "/metrics", key=TOKEN))
        assert [line["status"] for line in changes(world)] == ["login_needed"]


async def test_a_refused_key_that_is_replaced_and_refused_again_is_told_again(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].always = error_response(401, "invalid_api_key")
        for key in ("sk-first-0123456789", "sk-second-0123456789"):
            config = make_config(describe("a", accounts={"a": {"api_key": key}}))
            world.server.apply(config, {})
            await world.ask(ASK)
            assert ("a",) not in world.server.shared.account_watch.notices.known
        assert [line["status"] for line in changes(world)] == ["refused", "refused"]


async def test_a_name_of_an_upstream_that_names_an_account_is_shown_to_nobody(
    autojump_clock: MockClock,
) -> None:
    described = describe("a", accounts={"a": {"models": None}}, pool={})
    async with opened_world(described) as world:
        health = world.server.shared.roster.health["a"]
        health.catalogue = {"m1": Model(), "sk-proj-0123456789abcdefABCDEF": Model()}
        assert list(serving(world)) == ["m1"]
        world.server.shared.roster.touched.add("a")
        world.server.shared.account_watch.look()
        assert "sk-proj" not in str(world.logged)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_request_that_is_to_blame_changes_no_account(
    status: int, autojump_clock: MockClock
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].always = error_response(status, "invalid_value")
        assert (await world.ask(ASK)).status == status
        assert (account(world)["status"], account(world)["failures"]) == ("ready", 0)
        assert changes(world) == []


@pytest.mark.parametrize(
    ("source", "reference", "advice"),
    [
        ("env", "{env:THE_KEY}", "Put a valid key into {env:THE_KEY} and restart."),
        ("file", "{file:key}", "Put a valid key into {file:key}, then reload (SIGHUP)."),
        ("literal", "", "Put a valid key into accounts.a.api_key, then reload (SIGHUP)."),
    ],
)
def test_the_advice_names_where_the_key_is_from(source: str, reference: str, advice: str) -> None:
    account = make_config(describe("a")).accounts["a"]
    account = dataclasses.replace(account, source=source, reference=reference)
    condition = Condition(Status.REFUSED, "401 invalid_api_key")
    assert advice_for(account, condition, LoginState(), None) == advice


def test_the_advice_for_a_chatgpt_account_that_is_refused_has_the_command(tmp_path: Path) -> None:
    account = make_config(codex_described(tmp_path, "a")).accounts["a"]
    condition = Condition(Status.REFUSED, "403 x")
    login = LoginState(command="pooler login a")
    words = "Check the account's plan with its provider, or log in again: pooler login a"
    assert advice_for(account, condition, login, None) == words
    # What is known of the login itself says more.
    login = LoginState(command="pooler login a", advice="Remove CODEX_HOME.")
    assert advice_for(account, condition, login, None) == "Remove CODEX_HOME."


async def test_the_advice_for_a_refused_key_is_shown(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].always = error_response(401, "invalid_api_key")
        await world.ask(ASK)
        advice = "Put a valid key into accounts.a.api_key, then reload (SIGHUP)."
        assert account(world)["advice"] == advice
        assert changes(world)[0]["advice"] == advice


async def test_a_login_that_is_gone_is_needed_and_the_command_is_shown(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with socket_world(codex_described(tmp_path, "a")) as world:
        (tmp_path / "a" / "auth.json").unlink()
        assert (await world.ask(ask_responses(input=[]))).status == 503
        shown = account(world)
        assert (shown["status"], shown["needs_operator"]) == ("login_needed", True)
        assert shown["advice"].startswith("Log in with: pooler login a --config /")
        assert str(tmp_path) not in shown["reason"]

        path = tmp_path / "a" / "auth.json"
        make_auth_file(path, "acct-a", expires_at=UNIX_START + 86400)
        world.upstreams["a"].always = sse_response(responses_events("x"))
        await world.ask(ask_responses(input=[]))
        assert account(world)["status"] == "ready"
        statuses = [line["status"] for line in changes(world)]
        assert statuses == ["login_needed", "ready"]


async def test_what_failed_with_a_revoked_login_does_not_count_against_the_next_one(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(FIRST, count=0, error="token_invalidated"))
        world.backend.token_plays.append(TokenPlay(401, "refresh_token_invalidated"))
        assert (await world.ask(post(*FORMS["responses"]))).status == 200
        shown = account(world, "first")
        assert (shown["status"], shown["failures"]) == ("login_needed", 1)

        world.backend.plays.clear()
        path = tmp_path / "first" / "auth.json"
        login = make_auth_file(path, FIRST, expires_at=UNIX_START + 86401, refresh_token="rt-2")
        world.backend.admit(login)
        assert (await world.ask(request("GET", "/v1/models"))).status == 200
        shown = account(world, "first")
        assert (shown["status"], shown["failures"]) == ("ready", 0)
        statuses = [line["status"] for line in changes(world) if line["account"] == "first"]
        assert statuses == ["login_needed", "ready"]


################################################################
# A POOL
################################################################


def serving(world: World) -> dict[str, tuple[str, list[str]]]:
    return {row["model"]: (row["status"], row["accounts"]) for row in pool(world)["serving"]}


async def test_a_pool_says_by_model_what_it_can_serve(autojump_clock: MockClock) -> None:
    described = describe(
        "ab",
        accounts={"a": {"models": ["m1"]}, "b": {"models": ["m2"]}},
        pool={"models": ["m1", "m2"]},
    )
    async with opened_world(described) as world:
        assert serving(world) == {"m1": ("ready", ["a"]), "m2": ("ready", ["b"])}
        limit = error_response(429, "usage_limit_reached", [("Retry-After", "7200")])
        world.upstreams["a"].always = limit
        for _ in range(3):
            assert (await world.ask(ASK)).status == 429

        assert serving(world) == {"m1": ("limited", []), "m2": ("ready", ["b"])}
        assert pool(world)["status"] == "degraded"
        row = pool(world)["serving"][0]
        assert row["until"] == pytest.approx(UNIX_START + 7200, abs=1)
        assert row["since"] == pytest.approx(UNIX_START, abs=1)
        assert row["failed"] == 3
        passed_over = {one["account"]: one["status"] for one in row["passed_over"]}
        assert passed_over == {"a": "at_limit", "b": "not_offered"}

        [line] = changes(world, "pool")
        assert (line["level"], line["model"], line["status"]) == ("warning", "m1", "limited")
        await let_pass(world, autojump_clock, 7201)
        assert pool(world)["status"] == "ready"
        lines = [(line["level"], line["status"]) for line in changes(world, "pool")]
        assert lines == [("warning", "limited"), ("info", "ready")]


@pytest.mark.parametrize(
    ("lacking", "served"),
    [("/v1/responses", "/v1/chat/completions"), ("/v1/chat/completions", "/v1/responses")],
)
async def test_a_client_that_asks_on_the_wrong_api_alarms_no_operator(
    lacking: str, served: str, autojump_clock: MockClock
) -> None:
    bodies: dict[str, Json] = {
        "/v1/responses": {"model": "m1", "input": ""},
        "/v1/chat/completions": {"model": "m1", "messages": [{"role": "user", "content": "hi"}]},
    }
    described = describe("a", accounts={"a": {"models": ["m1"]}}, pool={"models": ["m1"]})
    async with opened_world(described) as world:
        world.upstreams["a"].always = json_response({"detail": "Not Found"}, 404)
        assert (await world.ask(post(lacking, bodies[lacking]))).status == 400
        assert serving(world) == {"m1": ("ready", ["a"])}
        assert changes(world, "pool") == []

        # What has neither API serves nobody.
        assert (await world.ask(post(served, bodies[served]))).status == 400
        assert serving(world) == {"m1": ("down", [])}


async def test_a_model_that_can_be_served_again_is_noticed_when_its_block_ends(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(error_response(404, "model_not_found"))
        assert (await world.ask(ASK)).status == 400
        assert [line["status"] for line in changes(world, "pool")] == ["down"]
        assert account(world)["status"] == "ready"

        await let_pass(world, autojump_clock, MODEL_BLOCK_SECONDS - 1)
        assert serving(world)["m1"] == ("down", [])
        await let_pass(world, autojump_clock, 2)
        assert [line["status"] for line in changes(world, "pool")] == ["down", "ready"]


async def test_outages_of_models_and_pools_that_a_reload_removes_are_forgotten(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_world(describe("a", pool={"models": ["m1", "m2"]})) as world:
        world.upstreams["a"].always = error_response(429, "usage_limit_reached")
        await world.ask(ASK)
        outages = world.server.shared.account_watch.outages
        assert {*outages} == {("home", "m1"), ("home", "m2")}

        world.upstreams["a"].always = SERVED
        world.server.apply(make_config(describe("a", pool={"models": ["m2"]})), {})
        assert outages == {}
        world.upstreams["a"].always = error_response(401, "invalid_api_key")
        await world.ask(post("/v1/responses", {"model": "m2", "input": ""}))
        assert {*outages} == {("home", "m2")}

        described = describe("a")
        described["pools"] = {"other": described["pools"]["home"]}
        monkeypatch.setattr("pooler.OUTAGES_MAX", 0)
        world.server.apply(make_config(described), {})
        assert outages == {}
        await world.ask(ASK)
        assert (account(world)["status"], outages) == ("refused", {})


async def test_an_account_that_is_tried_although_it_fails_is_explained_so(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].always = error_response(503, "server_error")
        await world.ask(ASK)
        [row] = world.server.operators.explain("home", "m1", None)["accounts"]
        assert (row["status"], row["is_chosen"]) == ("failing", True)
        assert row["reason"] == "number 1 in order; failing: 503 server_error"


async def test_a_pool_that_only_its_operator_can_mend_is_down(autojump_clock: MockClock) -> None:
    async with opened_world(describe("ab")) as world:
        for upstream in world.upstreams.values():
            upstream.always = error_response(401, "invalid_api_key")
        assert (await world.ask(ASK)).status == 503
        assert pool(world)["status"] == "down"


################################################################
# A REQUEST
################################################################


async def test_a_request_that_nobody_could_take_records_who_was_passed_over_and_why(
    autojump_clock: MockClock,
) -> None:
    described = describe("abc", accounts={"c": {"paused": True}})
    async with opened_world(described) as world:
        world.upstreams["a"].always = error_response(401, "invalid_api_key")
        limit = error_response(429, "usage_limit_reached", [("Retry-After", "5400")])
        world.upstreams["b"].always = limit
        await world.ask(ASK)
        response = await world.ask(ASK)

        assert response.status == 429
        assert response.error["message"] == (
            "No account of this pool can serve the request: one account has reached its limit and "
            "one account needs its operator. The first is back in 1 h 30 min."
        )
        record = world.records[-1]
        assert record["attempts"] == []
        assert record["passed_over"] == [
            {"account": "a", "reason": "refused: 401 invalid_api_key"},
            {"account": "b", "reason": "at_limit: 429 usage_limit_reached"},
            {"account": "c", "reason": "paused"},
        ]


async def test_a_request_that_failed_here_is_a_warning_and_a_clients_mistake_is_not(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].always = error_response(400, "invalid_value")
        await world.ask(ASK)
        world.upstreams["a"].always = error_response(401, "invalid_api_key")
        await world.ask(ASK)
        world.upstreams["a"].always = SERVED
        lines = changes(world, "request")
        assert [(line["level"], line["status"]) for line in lines] == [
            ("info", 400), ("warning", 503),
        ]  # fmt: skip


@given(
    limited=st.integers(0, 2000),
    stuck=st.integers(0, 2000),
    seconds=st.floats(0, 32 * 86400),
)
def test_no_words_of_a_refusal_make_a_client_repeat_it(
    limited: int, stuck: int, seconds: float
) -> None:
    text = refusal_text(limited, stuck, seconds)
    assert not TRAPS.search(text)
    assert len(text) < 200


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.2, "1 s"),
        (59.5, "1 min"),
        (90, "1 min 30 s"),
        (5340, "1 h 29 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_wait_is_written_in_two_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
