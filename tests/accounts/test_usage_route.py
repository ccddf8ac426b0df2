"""Proves that quota is known without a request, and that asking for it harms nothing.

Method: reports of the usage route are read as values; whole servers in virtual time ask the strict
backend, or an upstream that plays scripts, and their accounts, logs and responses are examined.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from pooler import (
    USAGE_BYTES_MAX,
    USAGE_PAUSE_SECONDS,
    USAGE_REQUESTS_MAX,
    USAGE_SECONDS,
    USAGE_SPREAD,
    Window,
    read_usage_report,
)
from tests.support.codex_backend import Play, make_auth_file
from tests.support.codex_turns import Login, usage_report
from tests.support.codex_world import (
    FIRST,
    FORMS,
    SECOND,
    WHOLE,
    describe_codex,
    opened_codex_world,
    opened_scripted_world,
    sse_script,
    stream_of,
)
from tests.support.memory_sockets import Json, MemorySocket, post
from tests.support.world import (
    UNIX_START,
    Fin,
    Pause,
    Reset,
    Script,
    Send,
    World,
    error_response,
)

RESETS_AT: Final = UNIX_START + 9000
PLAN: Final = {"used_percent": 12.5, "limit_window_seconds": 18000, "reset_at": RESETS_AT}


def shown(world: World, name: str) -> dict[str, Any]:
    accounts = world.server.operators.snapshot()["accounts"]
    return next(account for account in accounts if account["name"] == name)


def used(world: World, name: str) -> dict[tuple[str, str], float]:
    windows = shown(world, name)["windows"]
    return {(window["family"], window["window"]): window["used_percent"] for window in windows}


async def pass_seconds(seconds: float) -> None:
    """Let virtual time pass, with all that happens in it."""
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


def problems(world: World) -> list[tuple[str, Json]]:
    return [(level, fields["problem"]) for level, event, fields in world.logged if event == "usage"]


REPORTS: Final[dict[str, tuple[Json, list[Window]]]] = {
    "a real one": (
        usage_report(Login("a", "t", "r"), UNIX_START),
        [
            Window("codex", 18000, 12.5, RESETS_AT),
            Window("codex", 604800, 40.0, UNIX_START + 3 * 24 * 3600),
            Window("codex_bengalfox", 18000, 0.0, RESETS_AT, "GPT-5.3-Codex-Spark"),
        ],
    ),
    "one window of a week in the first place": (
        {"rate_limit": {"primary_window": {**PLAN, "limit_window_seconds": 604800}}},
        [Window("codex", 604800, 12.5, RESETS_AT)],
    ),
    "more than all of it": (
        {"rate_limit": {"primary_window": {**PLAN, "used_percent": 140}}},
        [Window("codex", 18000, 100.0, RESETS_AT)],
    ),
    "no limits": ({"plan_type": "free", "rate_limit": None, "additional_rate_limits": None}, []),
    "no data": (
        {"rate_limit": {"primary_window": {"used_percent": 0, "limit_window_seconds": None}}},
        [],
    ),
    "a limit without a name": ({"additional_rate_limits": [{"rate_limit": {"x": PLAN}}]}, []),
    "a name that is none": (
        {
            "additional_rate_limits": [
                {"metered_feature": "a b\n", "rate_limit": {"primary_window": PLAN}}
            ]
        },
        [],
    ),
    "odd types": ({"rate_limit": [PLAN], "additional_rate_limits": {"x": PLAN}}, []),
    "numbers that are none": (
        {"rate_limit": {"primary_window": {**PLAN, "used_percent": "much"}}},
        [],
    ),
}


@pytest.mark.parametrize("case", REPORTS)
def test_a_report_is_read_as_far_as_it_is_plausible(case: str) -> None:
    report, windows = REPORTS[case]
    assert read_usage_report(report) == windows


async def test_quota_is_known_before_the_first_request(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    url = "http://127.0.0.1:9300/v1"
    others = {"platform": {"type": "openai", "api_key": "sk-1234567890", "base_url": url}}
    async with opened_codex_world(describe_codex(tmp_path, others=others), tmp_path) as world:
        asked = world.backend.usage_seen
        assert sorted(seen.account for seen in asked) == [FIRST, SECOND]
        assert {seen.path for seen in asked} == {"/backend-api/wham/usage"}
        assert used(world, "first") == {
            ("codex", "5h"): 12.5,
            ("codex", "7d"): 40.0,
            ("codex_bengalfox", "5h"): 0.0,
        }
        assert world.backend.seen == []
        assert problems(world) == []


async def test_only_accounts_that_can_be_used_are_asked(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    described = describe_codex(tmp_path)
    described["accounts"]["first"]["paused"] = True
    described["accounts"]["second"]["auth_file"] = str(tmp_path / "none" / "auth.json")
    async with opened_codex_world(described, tmp_path) as world:
        autojump_clock.jump(4 * USAGE_SECONDS)
        await world.settle()
        assert world.backend.usage_seen == []

        # As soon as the login is there, without a request.
        path = tmp_path / "none" / "auth.json"
        world.backend.admit(make_auth_file(path, SECOND, expires_at=UNIX_START + 10**6))
        await world.server.shared.login_watch.look(world.config.accounts.values())
        await world.settle()
        assert [seen.account for seen in world.backend.usage_seen] == [SECOND]


async def test_an_account_is_asked_again_after_a_time_without_news(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        asked = world.backend.usage_seen
        await pass_seconds(0.9 * USAGE_SECONDS)
        path, body = FORMS["responses"]
        assert (await world.ask(post(path, body))).status == 200  # by the first, which reports

        asked.clear()
        await pass_seconds((0.1 + USAGE_SPREAD) * USAGE_SECONDS + 1)
        assert [seen.account for seen in asked] == [SECOND]
        asked.clear()
        await pass_seconds(0.7 * USAGE_SECONDS)
        assert [seen.account for seen in asked] == [FIRST]


async def test_a_plan_that_is_used_up_is_known_before_the_first_request(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        report = usage_report(Login(FIRST, "t", "r", primary_used=100.0), UNIX_START)
        world.backend.plays.append(Play(at="usage", account=FIRST, status=200, body=report))
        await pass_seconds((1 + USAGE_SPREAD) * USAGE_SECONDS + 1)
        assert shown(world, "first")["status"] == "at_limit"
        path, body = FORMS["responses"]
        assert (await world.ask(post(path, body))).status == 200
        assert {seen.account for seen in world.backend.seen if seen.method == "POST"} == {SECOND}


async def test_a_report_keeps_the_reason_of_a_limit_that_a_request_met(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(FIRST, count=0, error="usage_limit", seconds=90_000))
        world.backend.plays.append(Play(SECOND, count=0, error="usage_limit", seconds=90_000))
        path, body = FORMS["responses"]
        assert (await world.ask(post(path, body))).status == 429
        for account in (FIRST, SECOND):
            report = usage_report(Login(account, "t", "r", secondary_used=100.0), UNIX_START)
            world.backend.plays.append(Play(account, at="usage", status=200, body=report))
        await pass_seconds((1 + USAGE_SPREAD) * USAGE_SECONDS + 1)
        assert len(world.backend.usage_seen) >= 2
        for name in ("first", "second"):
            assert shown(world, name)["status"] == "at_limit"
            assert "usage_limit_reached" in shown(world, name)["reason"]


LARGE: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n"
FAULTS: Final[dict[str, Script]] = {
    "401": error_response(401, "token_invalidated"),
    "402": error_response(402, "deactivated_workspace"),
    "403": error_response(403, "account_deactivated"),
    "429": error_response(429, "usage_limit_reached"),
    "500": error_response(500, "server_error"),
    "redirect": [Send(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n")],
    "not HTTP": [Send(b"hello\r\n\r\n"), Fin()],
    "reset": [Reset()],
    "cut": [Send(LARGE), Fin()],
    "hangs": [Pause(10**6)],
    "64 MiB": [Send(LARGE + b"{" * 2 * USAGE_BYTES_MAX), Pause(10**6)],
    "no JSON": [Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n<>")],
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failure_changes_no_account(
    autojump_clock: MockClock, tmp_path: Path, fault: str
) -> None:
    async with opened_scripted_world(tmp_path) as world:
        upstream = world.upstreams["a"]
        before = (tmp_path / "auth.json").read_bytes()
        upstream.usage = FAULTS[fault]
        upstream.usage_asked.clear()
        world.server.shared.roster.health["a"].usage_at = 0
        world.logged.clear()
        world.server.shared.login_watch.changed.set()
        await world.settle()

        # It waits for nothing of that.
        path, body = FORMS["responses-stream"]
        upstream.plays(sse_script(stream_of(WHOLE)))
        began_at = trio.current_time()
        assert (await world.ask(post(path, body))).status == 200
        assert trio.current_time() - began_at < 1

        await pass_seconds(5 * (1 + USAGE_SPREAD) * USAGE_SECONDS)
        assert len(upstream.usage_asked) == 6
        account = shown(world, "a")
        assert (account["status"], account["failures"]) == ("ready", 0)
        assert len(problems(world)) == (fault != "no JSON")  # for as long as it lasts
        assert (tmp_path / "auth.json").read_bytes() == before
        assert not world.server.shared.tokens.outcomes


async def test_an_upstream_without_the_route_is_asked_once_a_day(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_scripted_world(tmp_path) as world:
        upstream = world.upstreams["a"]
        await pass_seconds(USAGE_PAUSE_SECONDS - 10)
        assert len(upstream.usage_asked) == 1
        assert problems(world) == [("info", "its quota is not known: status 404")]
        await pass_seconds(USAGE_SPREAD * USAGE_PAUSE_SECONDS + 20)
        assert len(upstream.usage_asked) == 2


async def test_few_are_asked_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    described = describe_codex(tmp_path)
    template = described["accounts"]["second"]
    for number in range(3, 8):
        name = f"n{number}"
        described["accounts"][name] = {
            **template, "auth_file": str(tmp_path / name / "auth.json")
        }  # fmt: skip
        make_auth_file(tmp_path / name / "auth.json", name, expires_at=UNIX_START + 10**6)
    described["pools"]["home"]["accounts"] = list(described["accounts"])
    async with opened_codex_world(described, tmp_path) as world:
        dialled: list[float] = []

        async def hang() -> MemorySocket:
            dialled.append(trio.current_time())
            await trio.sleep_forever()
            raise AssertionError

        for health in world.server.shared.roster.health.values():
            health.usage_at = 0
            health.quota.windows.clear()
        world.services = dict.fromkeys(world.services, hang)
        world.server.shared.login_watch.changed.set()
        await world.settle()
        assert len(dialled) == USAGE_REQUESTS_MAX
        await pass_seconds(60)
        assert len(dialled) == 7
        assert json.dumps(problems(world)).count("no response in time") == 7
