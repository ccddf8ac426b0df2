"""Proves how long a limit holds, what it limits, and that no request is sent in the meantime.

Method: the real server in virtual time. A limit is reported by every carrier: the status of a
response with JSON or for a stream, a failed event in a 200, the error frame of a WebSocket.
Examined are what the client gets, which account is tried when, and what the log says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from pooler import SHORT_COOLDOWN_SECONDS_MAX, SPAN_PARTS_MAX, _span_of
from tests.support.memory_sockets import Json, Response, ask_chat, ask_responses, post
from tests.support.memory_websockets import codex_described, open_socket, says, socket_world, turn
from tests.support.world import (
    UNIX_START,
    Script,
    World,
    chat_events,
    describe,
    error_response,
    json_response,
    opened_world,
    responses_events,
    sse_response,
    sse_steps,
)

DAY: Final = 86400
PROBE: Final = 900
USAGE: Final[Json] = {"type": "usage_limit_reached", "message": "The limit has been reached."}
CREATED: Final[Json] = {"type": "response.created", "response": {"id": "resp_1"}}
IN_ORDER: Final = {"routing": "in_order"}
SPARK: Final = "gpt-5.3-codex-spark"
NIGHT: Final = "gpt-6-night"
PLAIN: Final = "gpt-5.5"
FAMILIES: Final = {SPARK: ("codex-bengalfox", "GPT-5.3-Codex-Spark"), NIGHT: ("owl", "GPT-6 Night")}
CARRIERS: Final = ("json", "stream", "event", "chat", "chat-event", "native")


def question(carrier: str, **body: Json) -> bytes:
    """A request whose response comes on the carrier."""
    if carrier.startswith("chat"):
        return ask_chat(stream="event" in carrier, **body)
    path = "/backend-api/codex/responses" if carrier == "native" else "/v1/responses"
    asked = {"model": "m1", "input": [], "stream": carrier != "json"} | body
    return post(path, asked)


def limited(carrier: str, error: Json, headers: Sequence[tuple[str, str]] = ()) -> Script:
    """A response that reports a limit."""
    if "event" not in carrier:
        return json_response({"error": error}, 429, headers)
    if carrier == "chat-event":
        return sse_response([{"error": error}])
    failed = {"type": "response.failed", "response": {"id": "resp_1", "error": error}}
    return sse_steps(CREATED, failed, headers=headers)


def good(carrier: str) -> Script:
    if carrier in {"json", "chat"}:
        return json_response({"id": "r"})
    return sse_response(chat_events("x") if carrier == "chat-event" else responses_events("x"))


def check_told(response: Response, seconds: float) -> None:
    """The client learns when the first account is back, and whether to retry by itself."""
    assert (response.status, response.error["code"]) == (429, "usage_limit_reached")
    assert response.error["resets_in_seconds"] == pytest.approx(math.ceil(seconds), abs=2)
    told_at = response.error["resets_at"]
    assert told_at == pytest.approx(UNIX_START + trio.current_time() + seconds, abs=3)
    if seconds > 60:
        assert response.header("retry-after") is None


def counts(world: World) -> list[int]:
    return [len(upstream.asked) for upstream in world.upstreams.values()]


################################################################
# HOW LONG
################################################################


def written(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat().replace("+00:00", "Z")


def spaced(unix: float) -> str:
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M:%S}"


def left_of(limit: str, count: int, reset: str) -> list[tuple[str, str]]:
    """What a head reports of a throttle, as OpenAI's and others' do."""
    stem = f"-{limit}" if limit else ""
    return [(f"x-ratelimit-remaining{stem}", str(count)), (f"x-ratelimit-reset{stem}", reset)]


RESETS: Final[Mapping[str, tuple[Json, Sequence[tuple[str, str]], float]]] = {
    "at": ({"resets_at": UNIX_START + 24 * DAY}, (), 24 * DAY),
    "at-as-text": ({"resets_at": str(UNIX_START + 24 * DAY)}, (), 24 * DAY),
    "at-as-date": ({"resets_at": written(UNIX_START + 30 * DAY)}, (), 30 * DAY),
    "in": ({"resets_in_seconds": 31 * DAY}, (), 31 * DAY),
    "the-furthest": ({"resets_in_seconds": 32 * DAY}, (), 32 * DAY),
    "too-far": ({"resets_in_seconds": 32 * DAY + 60}, (), PROBE),
    "at-too-far": ({"resets_at": UNIX_START + 40 * DAY}, (), PROBE),
    "past": ({"resets_at": UNIX_START - 5}, (), PROBE),
    "in-words": ({"message": "Try again in 12 days, 3 hours and 20 minutes."}, (), 1_048_800),
}


@pytest.mark.parametrize("carrier", ["json", "stream", "event", "chat", "chat-event"])
@pytest.mark.parametrize("case", RESETS)
async def test_a_reset_weeks_away_is_honoured_and_reported_and_the_account_tried_before_it(
    case: str, carrier: str, autojump_clock: MockClock
) -> None:
    told, headers, seconds = RESETS[case]
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].always = limited(carrier, USAGE | told, headers)
        first = await world.ask(question(carrier))
        check_told(first, seconds)
        assert first.header("x-should-retry") == "false"
        await trio.sleep_until(PROBE - 2)
        check_told(await world.ask(question(carrier)), seconds - PROBE + 2)
        assert counts(world) == [1]

        await trio.sleep_until(PROBE + 1)
        world.upstreams["a"].always = limited(carrier, USAGE)
        again = await world.ask(question(carrier))
        assert counts(world) == [2]
        check_told(again, max(seconds - PROBE - 1, PROBE))  # no shorter than was announced

        await trio.sleep_until(2 * PROBE + 2)
        world.upstreams["a"].always = good(carrier)
        assert (await world.ask(question(carrier))).status == 200  # resets come early
        assert (await world.ask(question(carrier))).status == 200


UNTOLD: Final[Mapping[str, tuple[Json, Sequence[tuple[str, str]], float]]] = {
    **{
        code: ({"code": code}, (), PROBE)
        for code in (
            "usage_limit_reached", "insufficient_quota", "quota_exceeded",
            "workspace_member_credits_depleted", "workspace_owner_usage_limit_reached",
            "billing_hard_limit_reached", "usage_not_included",
        )
    },
    "type-alone": ({"type": "usage_limit_reached", "code": None}, (), PROBE),
    "throttle": ({"code": "rate_limit_exceeded"}, (), 30),
    "throttle-by-type": ({"type": "rate_limit_error"}, (), 30),
    "no-code": ({"message": "Too many requests."}, (), 30),
    "throttle-with-a-hint": ({"code": "rate_limit_exceeded"}, [("retry-after", "7")], 7),
    "hint-in-words": ({"message": "Please retry after 20 seconds."}, (), 20),
    "please-wait": ({"message": "Slow down. Wait at least 20s before retrying."}, (), 20),
    "moment-in-words": (
        {"message": f"Limit reached. Try again at {written(UNIX_START + 50)}"}, (), 50
    ),
    "litellm": ({"message": f"Limit resets at: {spaced(UNIX_START + 300)} UTC"}, (), 300),
    "zone": ({"message": f"Retry after {spaced(UNIX_START + 3600 + 90)}+01:00."}, (), 90),
    "in-the-body": ({"retry_after": 17}, (), 17),
    "google": ({"details": [{"@type": "x"}, 7, {"retryDelay": "44s"}]}, (), 44),
    "in-parts": ({"details": [{"retryDelay": "1m2s and 1 second"}]}, (), 63),
    "head-as-moment": ({}, [("retry-after", written(UNIX_START + 40))], 40),
    "nothing-left": ({}, left_of("requests", 0, "12s") + left_of("tokens", 7, "6m0s"), 12),
    "no-tokens-left": ({}, left_of("requests", 3, "12s") + left_of("tokens", 0, "1m30s"), 90),
    "something-left": ({}, left_of("requests", 3, "12s"), 30),
    "in-milliseconds": ({}, left_of("", 0, f"{(UNIX_START + 50) * 1000:.0f}"), 50),
    "unix": ({}, left_of("", 0, f"{UNIX_START + 50:.0f}"), 50),
    "as-seconds": ({}, left_of("", 0, "55"), 55),
    "in-an-inner-head": (
        {"metadata": {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "55"}}},
        (), 55,
    ),
    "daily": ({"code": "daily_limit_reached"}, (), PROBE),
}  # fmt: skip


def test_a_time_to_wait_of_any_length_is_read_in_a_moment() -> None:
    """Of each second of eight million one was added to the next, in one step."""
    for part in ("1s", "1s, and "):
        assert _span_of(part * 10_000) == SPAN_PARTS_MAX


@pytest.mark.parametrize("case", UNTOLD)
async def test_only_a_throttle_without_a_hint_is_short(
    case: str, autojump_clock: MockClock
) -> None:
    error, headers, seconds = UNTOLD[case]
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(limited("json", error, headers))
        response = await world.ask(question("json"))
        check_told(response, seconds)
        assert response.header("retry-after") == (f"{seconds:g}" if seconds <= 60 else None)
        world.upstreams["a"].always = good("json")
        await trio.sleep_until(seconds - 0.5)
        assert (await world.ask(question("json"))).status == 429
        await trio.sleep_until(seconds)
        assert (await world.ask(question("json"))).status == 200


def windows(which: str, percent: float, minutes: int, seconds: float) -> list[tuple[str, str]]:
    """The three fields of one quota window; `which`: its limit and position."""
    values = {"used-percent": percent, "window-minutes": minutes, "reset-at": UNIX_START + seconds}
    return [(f"x-{which}-{name}", f"{value:.0f}") for name, value in values.items()]


REACHED: Final = "x-codex-rate-limit-reached-type"
OUT: Final = "workspace_member_credits_depleted"


PACE: Final[Json] = {"code": "rate_limit_exceeded"}
HOURS: Final = windows("codex-primary", 20, 300, 3600)
WEEK: Final = windows("codex-secondary", 70, 10080, DAY)
OF_PLANS: Final[Mapping[str, tuple[str, Json, Sequence[tuple[str, str]], float]]] = {
    **{
        f"{name}-{carrier}": (carrier, *case)
        for carrier in ("json", "event", "native")
        for name, case in {
            "the-fullest-window": (USAGE, [*HOURS, *WEEK], DAY),
            "a-past-one": (USAGE, windows("codex-primary", 20, 300, -5), PROBE),
            "none": (USAGE, [], PROBE),
            "pace": (PACE, HOURS, 30),
        }.items()
    },
    "credits-by-the-head-alone": ("json", {"code": "x"}, [(REACHED, OUT)], PROBE),
}


@pytest.mark.parametrize("case", OF_PLANS)
async def test_a_plan_s_limit_without_a_reset_lasts_as_its_fullest_window(
    case: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    carrier, error, headers, seconds = OF_PLANS[case]
    async with opened_world(codex_described(tmp_path, "a")) as world:
        world.upstreams["a"].plays(limited(carrier, error, headers))
        check_told(await world.ask(question(carrier)), seconds)


@pytest.mark.parametrize("carrier", ["json", "event", "native", "socket"])
async def test_the_way_in_which_a_limit_was_reached_is_in_the_log(
    carrier: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    for told, reason in ((OUT, f"usage_limit_reached {OUT}"), ("a b<c>", "usage_limit_reached")):
        async with socket_world(codex_described(tmp_path, "a")) as world:
            head = {REACHED: told}
            if carrier == "socket":
                frame = {"type": "error", "status": 429, "error": USAGE, "headers": head}
                world.upstreams["a"].plays(says(frame))
                await (await open_socket(world)).ask()
            else:
                world.upstreams["a"].plays(limited(carrier, USAGE, [*head.items()]))
                await world.ask(question(carrier))
            await world.settle()
            [attempt] = world.records[-1]["attempts"]
            assert attempt["reason"].partition(" ")[2] == reason


################################################################
# OF WHAT
################################################################


def families(**percents: float) -> list[tuple[str, str]]:
    """A head with the windows of the plan and of two models; by name, how full they are."""
    found = windows("codex-primary", percents.get("plan", 0), 300, 18000)
    found += windows("codex-secondary", percents.get("plan", 0) or 4, 10080, 5 * DAY)
    for model, (family, name) in FAMILIES.items():
        percent = percents.get(family.replace("-", "_"), 0)
        found += windows(f"{family}-secondary", percent, 10080, 4 * DAY)
        found.append((f"x-{family}-limit-name", name))
        assert model
    return found


def models_described(folder: Path, names: str = "a") -> Json:
    whole = codex_described(folder, names)
    for account in whole["accounts"].values():
        account["models"] = [PLAIN, SPARK, NIGHT]
    return whole


SAID: Final[Json] = USAGE | {"resets_in_seconds": 4 * DAY}
ACTIVE: Final = "x-codex-active-limit"


@pytest.mark.parametrize("carrier", ["json", "stream", "event", "native"])
@pytest.mark.parametrize("active", ["premium", None, "the family"])
@pytest.mark.parametrize("model", FAMILIES)
async def test_a_model_s_own_limit_cools_down_that_model_alone(
    model: str, active: str | None, carrier: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    family = FAMILIES[model][0]
    head = families(**{family.replace("-", "_"): 100})
    head += [(ACTIVE, family if active == "the family" else active)] if active else []
    async with opened_world(models_described(tmp_path)) as world:
        upstream = world.upstreams["a"]
        upstream.plays(limited(carrier, SAID, head))
        check_told(await world.ask(question(carrier, model=model)), 4 * DAY)
        upstream.always = sse_response(responses_events("x"))
        others = {PLAIN, *FAMILIES} - {model}
        for other in others:
            assert (await world.ask(question(carrier, model=other))).status == 200
        check_told(await world.ask(question(carrier, model=model)), 4 * DAY)
        assert len(upstream.asked) == 1 + len(others)

        await trio.sleep_until(PROBE + 1)  # a reset comes early
        assert (await world.ask(question(carrier, model=model))).status == 200
        assert (await world.ask(question(carrier, model=model))).status == 200


@pytest.mark.parametrize("is_frame", [False, True])
async def test_a_model_s_own_limit_is_read_from_events_too(
    is_frame: bool, autojump_clock: MockClock, tmp_path: Path
) -> None:
    rates = {"used_percent": 100, "window_minutes": 10080, "reset_at": UNIX_START + 4 * DAY}
    plan = {"type": "codex.rate_limits", "rate_limits": {"primary": rates | {"used_percent": 4}}}
    own = {
        "type": "codex.rate_limits", "metered_limit_name": "codex_bengalfox",
        "limit_name": "GPT-5.3-Codex-Spark", "rate_limits": {"primary": rates},
    }  # fmt: skip
    end = {"type": "error", "error": USAGE} | ({"status": 429} if is_frame else {})
    async with socket_world(models_described(tmp_path)) as world:
        world.upstreams["a"].plays(says(plan, own, *([] if is_frame else [CREATED]), end))
        client = await open_socket(world)
        [refused] = await client.ask(model=SPARK)
        assert refused["error"]["resets_in_seconds"] == pytest.approx(4 * DAY, abs=2)
        world.upstreams["a"].plays(turn("one"))
        assert (await client.ask(model=PLAIN))[-1]["type"] == "response.completed"
        assert (await client.ask(model=SPARK))[-1]["status"] == 429
        assert len(world.turns) == 2


@pytest.mark.parametrize("carrier", ["json", "event", "native"])
async def test_a_used_up_plan_bars_no_model_whose_own_limit_has_room(
    carrier: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    head = families(plan=100, owl=100)
    async with opened_world(models_described(tmp_path)) as world:
        upstream = world.upstreams["a"]
        upstream.plays(limited(carrier, SAID, head))
        check_told(await world.ask(question(carrier, model=PLAIN)), 5 * DAY)
        upstream.plays(sse_response(responses_events("x"), headers=head))
        assert (await world.ask(question(carrier, model=SPARK))).status == 200
        for model in (PLAIN, NIGHT):  # its success proves nothing for those
            assert (await world.ask(question(carrier, model=model))).status == 429
        assert len(upstream.asked) == 2

        upstream.plays(limited(carrier, SAID, head))  # refused in spite of what the head says
        for _ in range(3):
            assert (await world.ask(question(carrier, model=SPARK))).status == 429
        assert len(upstream.asked) == 3


async def test_a_model_s_own_limit_is_known_by_its_upstream_s_name(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whatever the pool calls the model."""
    head = families(plan=100, owl=100)
    described = models_described(tmp_path)
    for account in described["accounts"].values():
        account["models"] = {"plain": PLAIN, "quick": SPARK, "late": NIGHT}
    async with opened_world(described) as world:
        upstream = world.upstreams["a"]
        upstream.plays(
            limited("json", SAID, head), sse_response(responses_events("x"), headers=head)
        )
        check_told(await world.ask(question("json", model="plain")), 5 * DAY)
        assert (await world.ask(question("json", model="quick"))).status == 200
        for model in ("plain", "late"):
            assert (await world.ask(question("json", model=model))).status == 429
        assert len(upstream.asked) == 2


async def test_a_throttle_and_a_refusal_bar_every_model(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    head = families(plan=100)
    for refusal, status in ((limited("json", PACE), 429), (error_response(402, "x"), 503)):
        async with opened_world(models_described(tmp_path)) as world:
            upstream = world.upstreams["a"]
            upstream.plays(limited("json", SAID, head), refusal)
            for model in (PLAIN, SPARK, SPARK, NIGHT, PLAIN):
                response = await world.ask(question("json", model=model))
                assert response.status in {429, status}
            assert len(upstream.asked) == 2


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(families(plan=100, codex_bengalfox=100), id="the-plan-is-full-too"),
        pytest.param([*families(codex_bengalfox=100), (ACTIVE, "codex")], id="the-plan-s-by-name"),
        pytest.param(families(codex_bengalfox=90), id="nothing-is-full"),
    ],
)
async def test_what_may_be_the_plan_s_limit_is_taken_for_it(
    head: Sequence[tuple[str, str]], autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened_world(models_described(tmp_path)) as world:
        world.upstreams["a"].plays(limited("json", SAID, head))
        for _ in range(2):
            assert (await world.ask(question("json", model=PLAIN))).status == 429
        assert counts(world) == [1]


################################################################
# A MOMENT ONLY
################################################################

SHORT: Final[Mapping[str, tuple[Json, Sequence[tuple[str, str]]]]] = {
    "words": (PACE | {"message": "Rate limit reached. Please try again in 1.5s."}, ()),
    "milliseconds": (PACE | {"message": "Please try again in 28ms."}, ()),
    "head": (PACE, [("retry-after", "3")]),
    "head-in-milliseconds": ({}, [("retry-after-ms", "900")]),
    "body": (PACE | {"resets_in_seconds": 2}, ()),
}
SESSION: Final = [("session-id", "mine")]


def of_session(carrier: str) -> bytes:
    body = {"model": "m1", "input": [], "stream": carrier != "json", "prompt_cache_key": "mine"}
    path = "/v1/responses"
    if carrier == "chat":
        path = "/v1/chat/completions"
        body = {"model": "m1", "messages": [], "prompt_cache_key": "mine"}
    return post(path, body)


@pytest.mark.parametrize("carrier", ["json", "stream", "event", "chat"])
@pytest.mark.parametrize("case", SHORT)
async def test_a_session_waits_a_moment_for_its_own_account(
    case: str, carrier: str, autojump_clock: MockClock
) -> None:
    error, headers = SHORT[case]
    if carrier == "event":  # it has no head of its own
        error, headers = PACE | {"message": "Please try again in 1.5s."}, ()
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        for upstream in world.upstreams.values():
            upstream.always = good(carrier)
        assert (await world.ask(of_session(carrier))).status == 200
        world.upstreams["a"].plays(limited(carrier, error, headers))
        response = await world.ask(of_session(carrier))
        assert response.status == 200
        assert counts(world) == [3, 0]
        assert response.ended_at <= SHORT_COOLDOWN_SECONDS_MAX + 0.1
        # Others that have no cache to lose do not wait for it.
        world.upstreams["a"].plays(limited("json", PACE | {"resets_in_seconds": 2}))
        assert (await world.ask(question(carrier))).status == 200
        assert counts(world) == [4, 1]
        # And the session's next request finds its account at rest, and waits likewise.
        assert (await world.ask(of_session(carrier))).status == 200
        assert counts(world) == [5, 1]


@pytest.mark.parametrize(
    ("seconds", "limits", "count"),
    [
        pytest.param(3, {}, 3, id="three-seconds"),
        pytest.param(3.1, {}, 2, id="more-than-that"),
        pytest.param(3, {"queue_seconds_max": 2}, 2, id="longer-than-the-queue-may-last"),
        pytest.param(3, {"queue_length_max": 0}, 2, id="no-queue"),
        pytest.param(1, {"attempts_max": 1}, 2, id="no-other-attempt"),
    ],
)
async def test_nobody_waits_longer_than_the_queue_allows(
    seconds: float, limits: Mapping[str, float], count: int, autojump_clock: MockClock
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER, limits=limits)) as world:
        for upstream in world.upstreams.values():
            upstream.always = good("json")
        await world.ask(of_session("json"))
        world.upstreams["a"].plays(limited("json", PACE | {"resets_in_seconds": seconds}))
        response = await world.ask(of_session("json"))
        assert response.status == (503 if "attempts_max" in limits else 200)
        assert len(world.upstreams["a"].asked) == count


async def test_a_throttle_that_goes_on_is_waited_for_once(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        for upstream in world.upstreams.values():
            upstream.always = good("json")
        await world.ask(of_session("json"))
        world.upstreams["a"].always = limited("json", PACE | {"resets_in_seconds": 1})
        response = await world.ask(of_session("json"))
        assert response.status == 200
        assert counts(world) == [3, 1]
        assert trio.current_time() < 2


async def test_a_websocket_waits_a_moment_for_its_account_too(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    wait = {"type": "error", "status": 429, "error": PACE | {"message": "try again in 1.5s"}}
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstreams["a"].plays(turn("one"), says(wait), turn("two"))
        client = await open_socket(world)
        for _ in range(2):
            assert (await client.ask())[-1]["type"] == "response.completed"
        assert [name for name, _, _ in world.turns] == ["a", "a", "a"]


EVENTS: Final = responses_events("x", "y")


async def test_a_limit_of_one_model_is_distinguished_from_a_cooldown(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    limit = [
        ("x-codex-active-limit", "codex_other"),
        ("x-codex-other-primary-used-percent", "100"),
        ("x-codex-other-primary-window-minutes", "300"),
        ("x-codex-other-primary-reset-after-seconds", "600"),
    ]
    async with socket_world(codex_described(tmp_path)) as world:
        world.upstreams["a"].plays(error_response(429, "usage_limit_reached", limit))
        world.upstreams["b"].always = sse_response(EVENTS)
        assert (await world.ask(ask_responses(input=[]))).status == 200
        for model, reasons in (
            (
                "m1",
                [
                    "limited for this model for 15 min more: 429 usage_limit_reached",
                    "number 1 in order",
                ],
            ),
            ("m2", ["number 1 in order", "number 2 in order"]),
        ):
            told = world.server.operators.explain("home", model, None)["accounts"]
            assert [one["reason"] for one in told] == reasons
