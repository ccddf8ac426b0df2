"""Proves that on Codex CLI's own routes headers pass by name, and tell nothing of an account.

Method: scripted ChatGPT accounts whose upstreams say of their plan, mail, credits and quota
whatever there is to say, in heads, events and frames; the client is told the pool's quota instead.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

from pooler import (
    FORWARDED_TO_CLIENT,
    FORWARDED_TO_UPSTREAM,
    NATIVE_TO_CLIENT,
    NATIVE_TO_UPSTREAM,
    QuotaWindow,
)
from tests.support.codex_world import (
    COMPLETED,
    CREATED,
    DELTA,
    FORMS,
    opened_scripted_world,
    payloads,
)
from tests.support.memory_sockets import Json, Pairs, Response, post
from tests.support.memory_websockets import (
    codex_described,
    error_frame,
    open_socket,
    says,
    socket_world,
)
from tests.support.world import UNIX_START, Step, World, json_response, sse_response

NATIVE: Final = "/backend-api/codex/responses"
HOUR: Final = 3600
SAID: Final = "canary-of-the-account"
TOLD: Final[Pairs] = [
    (f"x-{name}", SAID)
    for name in (
        "codex-plan-type", "codex-credits-balance", "codex-credits-has-credits",
        "codex-credits-unlimited", "codex-promo-message", "codex-active-limit", "codex-email",
        "codex-rate-limit-reached-type", "codex-primary-reset-after-seconds", "codex-user-id",
        "codex-bengalfox-limit-name", "codex-account", "openai-authorization-error", "error-json",
        "codex-turn-state-2", "oai-account", "models-etag",
    )
]  # fmt: skip
LISTED: Final[Pairs] = [
    ("openai-model", "m1"), ("x-codex-turn-state", "state"),
    ("x-reasoning-included", "true"), ("x-oai-request-id", "oai"), ("cf-ray", "ray"),
]  # fmt: skip


def quota(primary: float, secondary: float) -> Pairs:
    """What an account says of its windows, of five hours and of a week."""
    return [
        (f"x-codex-{position}-{name}", str(value))
        for position, used, minutes in (("primary", primary, 300), ("secondary", secondary, 10080))
        for name, value in (
            ("used-percent", used), ("window-minutes", minutes), ("reset-at", UNIX_START + HOUR),
        )
    ]  # fmt: skip


def test_what_may_cross_is_a_list_of_names() -> None:
    for names in (FORWARDED_TO_CLIENT, FORWARDED_TO_UPSTREAM, NATIVE_TO_CLIENT, NATIVE_TO_UPSTREAM):
        assert all(re.fullmatch("[a-z0-9_-]+", name) for name in names)
    credentials = {"authorization", "cookie", "set-cookie", "chatgpt-account-id"}
    assert not credentials & (NATIVE_TO_CLIENT | NATIVE_TO_UPSTREAM)


################################################################
# TO THE UPSTREAM
################################################################

UNLISTED: Final = (
    "x-codex-a", "x-codex-turn-states", "x-codex-secret-project", "x-openai-internal-codex-user",
    "x-openai-internal-codex-responses", "x-codex-", "thread.id", "x-codex-turn.state",
)  # fmt: skip


async def test_only_names_on_the_list_go_on(autojump_clock: MockClock, tmp_path: Path) -> None:
    path, body = FORMS["native"]
    left_out = {"x-codex-turn-state", "accept"}  # each has its own rule
    # The upstream of these tests takes no name with an underscore.
    listed = sorted(name for name in NATIVE_TO_UPSTREAM - left_out if "_" not in name)
    headers = [(name, f"v-{name}") for name in (*UNLISTED, *listed)]
    async with opened_scripted_world(tmp_path) as world:
        world.upstreams["a"].plays(sse_response([CREATED, DELTA, COMPLETED]))
        assert (await world.ask(post(path, body, headers=headers))).status == 200
        [asked] = world.asked
        assert not {name for name, _ in asked.headers} & set(UNLISTED)
        assert {name: asked.header(name) for name in listed} == dict(headers[len(UNLISTED) :])


################################################################
# TO THE CLIENT
################################################################


async def ask(world: World, form: str, script: list[Step]) -> Response:
    path, body = FORMS["native"]
    world.upstreams["a"].plays(script)
    if form == "compact":
        return await world.ask(post(f"{path}/compact", body | {"stream": False}))
    return await world.ask(post(path, body))


def script_of(form: str, headers: Pairs) -> list[Step]:
    if form == "compact":
        return json_response({"output": []}, headers=headers)
    return sse_response([CREATED, DELTA, COMPLETED], headers=headers)


@pytest.mark.parametrize("form", ["stream", "compact"])
async def test_an_answer_s_head_tells_nothing_of_the_account(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    async with opened_scripted_world(tmp_path) as world:
        response = await ask(world, form, script_of(form, [*TOLD, *LISTED]))
        assert response.status == 200
        assert SAID not in json.dumps(response.headers)
        assert {name: response.header(name) for name, _ in LISTED} == dict(LISTED)


@pytest.mark.parametrize("form", ["stream", "compact"])
async def test_of_quota_an_answer_s_head_tells_the_pool_s(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    async with opened_scripted_world(tmp_path) as world:
        response = await ask(world, form, script_of(form, quota(80.9, 12.5)))
        shown = {name: value for name, value in response.headers if name.startswith("x-codex-")}
        assert shown == {
            "x-codex-primary-used-percent": "80",
            "x-codex-primary-window-minutes": "300",
            "x-codex-primary-reset-at": str(UNIX_START + HOUR),
            "x-codex-secondary-used-percent": "12",
            "x-codex-secondary-window-minutes": "10080",
            "x-codex-secondary-reset-at": str(UNIX_START + HOUR),
        }


async def test_the_pool_s_quota_is_that_of_its_best_account(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whoever serves, the window that has most left is shown; nothing is made up."""
    events = [{"type": "codex.rate_limits", "plan_type": SAID}, CREATED, COMPLETED]
    async with socket_world(codex_described(tmp_path)) as world:
        for upstream in world.upstreams.values():
            upstream.always = sse_response(events, headers=quota(60, 70))
        world.server.shared.roster.health["b"].quota.windows[("codex", 7 * 24 * HOUR)] = (
            QuotaWindow(5.0, HOUR)
        )
        response = await world.ask(post(NATIVE, {"model": "m1", "input": [], "stream": True}))
        assert world.records[-1]["account"] == "a"
        assert response.header("x-codex-primary-used-percent") == "60"
        assert response.header("x-codex-secondary-used-percent") == "5"
        assert payloads(response) == events  # Codex CLI's own routes change no event


@pytest.mark.parametrize("is_late", [False, True])
async def test_an_error_frame_tells_nothing_of_the_account(
    autojump_clock: MockClock, tmp_path: Path, is_late: bool
) -> None:
    told = error_frame(400, "a_code", dict([*TOLD, *LISTED, *quota(80, 12)]))
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstreams["a"].plays([*(says(DELTA) if is_late else []), *told])
        client = await open_socket(world, path=NATIVE)
        error = (await client.ask())[-1]
        assert (error["status"], error["error"]["code"]) == (400, "a_code")
        assert error["headers"] == dict(LISTED)


@pytest.mark.parametrize("event", [CREATED, DELTA, {"type": "response.metadata", "x": 1}])
async def test_an_event_that_tells_nothing_stays_as_it_came(
    autojump_clock: MockClock, tmp_path: Path, event: Json
) -> None:
    raw = json.dumps(event | {"note": "  é", "headers": dict(LISTED)}, indent=1).replace("\n", "")
    async with opened_scripted_world(tmp_path) as world:
        script = sse_response([raw.encode(), DELTA, COMPLETED])
        response = await ask(world, "stream", script)
        assert response.body.startswith(b"data: " + raw.encode() + b"\n\n")
