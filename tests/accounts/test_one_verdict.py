"""Proves that a failure means the same however an upstream reports it.

Method: each word that upstreams use for an account's trouble, in every shape and on every carrier:
a response's own status, an event or a body of a 200, a Chat chunk, a frame of a WebSocket, for
accounts with a key and with a login. Another account serves, the first is taken out, and messages
for its owner reach no client and no log.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from trio.testing import MockClock

from pooler import (
    Action,
    Effect,
    Fault,
    classify_event,
    classify_response,
    failure_of,
    own_fault,
    public_error,
    read_error,
)
from tests.support.codex_turns import ANSWER, Play
from tests.support.codex_world import (
    FIRST,
    FORMS,
    SECOND,
    describe_codex,
    opened_codex_world,
    payloads,
    text_of,
)
from tests.support.memory_sockets import Json, ask_chat, ask_responses, post
from tests.support.memory_websockets import open_socket, says, socket_described, socket_world, turn
from tests.support.world import (
    UNIX_START,
    Script,
    asked_counts,
    chat_events,
    describe,
    error_response,
    json_response,
    opened_world,
    responses_events,
    sse_response,
    sse_steps,
)

IN_ORDER: Final = {"routing": "in_order"}
OWN: Final = "Your workspace of jane@example.com is out of order."
CREDENTIAL: Final = (Action.REFRESH, Effect.REFUSED)
ACCOUNT: Final = (Action.NEXT, Effect.REFUSED)
LIMIT: Final = (Action.NEXT, Effect.LIMITED)
DENIED: Final = (Action.NEXT, Effect.FORBIDDEN)
BROKEN: Final = (Action.NEXT, Effect.DEMOTED)
Verdict = tuple[Action, Effect]
STATUSES: Final = (200, 400, 401, 403, 404, 429, 500, 504)
# Of these the word counts, whatever the status.
FIRM: Final[dict[str, Verdict]] = {
    **dict.fromkeys(
        "token_invalidated token_expired token_revoked invalid_api_key invalid_authentication "
        "session_expired authentication_error AuthenticationError API_KEY_INVALID "
        "account_auth_invalidated login_expired not_authorized invalid_grant".split(),
        CREDENTIAL,
    ),
    **dict.fromkeys(
        "account_deactivated account_suspended deactivated_workspace invalid_workspace_selected "
        "workspace_deleted organization_disabled user_suspended billing_not_active "
        "subscription_expired no_active_subscription organization_past_due".split(),
        ACCOUNT,
    ),
    **dict.fromkeys(
        "usage_limit_reached usage_limit_exceeded rate_limit_exceeded insufficient_quota "
        "workspace_member_credits_depleted workspace_owner_usage_limit_reached rate_limit_error "
        "litellm.RateLimitError RESOURCE_EXHAUSTED billing_hard_limit_reached out_of_credits "
        "plan_limit_reached weekly_limit_reached daily_token_limit_exceeded".split(),
        LIMIT,
    ),
}
# These only where there is no status beside them.
SOFT: Final[dict[str, Verdict]] = {
    **dict.fromkeys("server_error internal_error InternalServerError api_error".split(), BROKEN),
    **dict.fromkeys("overloaded_error service_unavailable slow_down".split(), BROKEN),
    **dict.fromkeys("permission_error PermissionDeniedError".split(), DENIED),
}


def shapes(error: Json) -> dict[str, dict[str, Json]]:
    """An error as the body of a response, or as the data of an event."""
    return {
        "error": {"error": error},
        "detail": {"detail": error},
        "error in detail": {"detail": {"error": error}},
        "nested": {"type": "error", "error": error},
        "failed": {"type": "response.failed", "response": {"id": "r", "error": error}},
        "flat": {"type": "error", **error},
        "bare": {"object": "error", **error},
        "chunk": {"id": "c", "choices": [{"index": 0, "delta": {}, "error": error}]},
    }


def judged(value: Json, status: int = 200) -> Verdict:
    """What is decided of a request and its account."""
    fault: Fault | None
    if status == 200:
        fault = classify_event(value, UNIX_START)
    else:
        headers = {"content-type": "application/json"}
        fault = classify_response(status, headers, json.dumps(value).encode(), UNIX_START)
    return (fault.action, fault.effect) if fault else (Action.RETURN, Effect.NONE)


################################################################
# BY VALUE
################################################################


@pytest.mark.parametrize("shape", shapes({}))
@pytest.mark.parametrize("word", FIRM)
def test_an_account_s_fault_is_classified_by_its_code(word: str, shape: str) -> None:
    for status, name in itertools.product(STATUSES, ("code", "type")):
        error = {"type": "invalid_request_error", name: word, "message": OWN}
        if name == "type" and shape in {"nested", "failed", "flat"}:
            error = {"code": word, "message": OWN}  # their own type is an event's
        assert judged(shapes(error)[shape], status) == FIRM[word]


@pytest.mark.parametrize("shape", shapes({}))
@pytest.mark.parametrize("word", SOFT)
def test_other_words_count_where_no_status_came_with_them(word: str, shape: str) -> None:
    value = shapes({"code": word, "message": OWN})[shape]
    assert judged(value) == SOFT[word]
    assert judged(value, 429) == LIMIT
    assert judged(value, 504) == (Action.RETURN, Effect.DEMOTED)  # it may be at work


@pytest.mark.parametrize(
    "as_code", [int, str, lambda status: {"status": status}], ids=["number", "text", "object"]
)
@pytest.mark.parametrize(
    ("status", "verdict"),
    [(401, CREDENTIAL), (402, ACCOUNT), (403, DENIED), (429, LIMIT), (500, BROKEN), (503, BROKEN),
     (507, BROKEN), (400, (Action.RETURN, Effect.NONE)), (422, (Action.RETURN, Effect.NONE))],
)  # fmt: skip
def test_a_number_counts_as_that_status(
    status: int, verdict: Verdict, as_code: Callable[[int], Json]
) -> None:
    """Also as text, and next to an error with an unknown code."""
    number = as_code(status)
    more = number if isinstance(number, dict) else {"code": number}
    for value in shapes({"message": OWN, **more}).values():
        assert judged(value) == verdict
    assert judged({"type": "error", **more, "error": {"code": "x_new", "message": "m"}}) == verdict


@pytest.mark.parametrize("code", [1, -429, 200, 399, 600, 4290, "4 29", "", "0429", 429.5, True])
def test_another_number_is_none(code: Json) -> None:
    assert judged({"error": {"code": code, "type": "invalid_request_error"}}) == (
        Action.RETURN,
        Effect.NONE,
    )


@pytest.mark.parametrize(
    "told", ["Rate limit exceeded", "429 Too Many Requests", {"message": "Rate limit hit"}]
)
def test_a_throttle_is_recognized_by_its_text_alone(told: Json) -> None:
    for value in ({"error": told}, {"detail": told}, {"type": "response.failed", "error": told}):
        assert judged(value) == LIMIT


@pytest.mark.parametrize("status", [200, 400, 403])
@pytest.mark.parametrize("place", ["error", "detail"])
def test_a_code_that_stands_where_a_text_is_usual_is_one(place: str, status: int) -> None:
    """As in OAuth's errors, with the text elsewhere."""
    for word, verdict in FIRM.items():
        if "_" in word and word.islower():
            assert judged({place: word, "error_description": OWN}, status) == verdict
    assert judged({place: "a_new_word"}) == (Action.NEXT, Effect.NONE)


@pytest.mark.parametrize("told", ["boom", {"message": "unexpected EOF"}, {"message": ""}, [1]])
def test_what_names_nothing_is_nobody_s_fault_and_may_go_elsewhere(told: Json) -> None:
    assert judged({"error": told}) == (Action.NEXT, Effect.NONE)


@pytest.mark.parametrize(
    "code", ["context_length_exceeded", "invalid_prompt", "cyber_policy", "max_tokens_exceeded",
             "previous_response_not_found", "invalid_request_error", "x_new"],
)  # fmt: skip
def test_the_request_s_own_fault_stays_its_own(code: str) -> None:
    for value in shapes({"code": code, "message": "m"}).values():
        assert judged(value) == (Action.RETURN, Effect.NONE)


CONTENT: Final[list[Json]] = [
    {"code": "moderation_blocked"}, {"code": "content_filter"}, {"type": "moderation"},
    {"code": "safety_violation"}, {"code": "responsible_ai_policy_violation"},
    {"code": "input_flagged"}, {"type": "image_generation_user_error", "code": "invalid_image"},
    {"code": 403, "message": "Your chosen model requires moderation and your input was flagged"},
    {"message": "This request was rejected by our safety system."},
]  # fmt: skip


@pytest.mark.parametrize("error", CONTENT)
def test_what_a_client_s_content_provokes_is_the_request_s(error: dict[str, Json]) -> None:
    for status in (400, 403):
        assert judged({"error": error}, status) == (Action.RETURN, Effect.NONE)


@pytest.mark.parametrize(
    "code", ["user_not_found", "project_not_found", "unknown_user", "invalid_project"]
)
def test_a_name_in_a_client_s_content_takes_no_account_out(code: str) -> None:
    for status in (200, 400, 404):
        assert judged({"error": {"code": code}}, status) == (Action.RETURN, Effect.NONE)
    assert judged({"error": {"code": code}}, 403) == DENIED  # three in a row are the account's


def test_an_account_that_is_out_for_what_was_sent_is_still_out() -> None:
    text = "Your account is suspended: a request was flagged by our safety system."
    assert judged({"error": {"code": "account_suspended", "message": text}}, 403) == ACCOUNT
    assert judged({"error": {"message": text}}, 403) == DENIED


@pytest.mark.parametrize("place", ["header", "text", "object"])
@pytest.mark.parametrize("status", [429, 402, 200])
def test_the_way_in_which_a_limit_was_reached_is_in_the_reason(status: int, place: str) -> None:
    reached = "workspace_member_credits_depleted"
    headers = {"content-type": "application/json", "x-codex-rate-limit-reached-type": reached}
    error: dict[str, Json] = {"type": "usage_limit_reached", "message": OWN}
    if place != "header":
        del headers["x-codex-rate-limit-reached-type"]
        error["rate_limit_reached_type"] = reached if place == "text" else {"type": reached}
    if status == 200:
        fault = classify_event({"type": "error", "error": error, "headers": headers}, 1.0)
    else:
        fault = classify_response(status, headers, json.dumps({"error": error}).encode(), 1.0)
    assert fault is not None
    assert fault.reason == f"{status} usage_limit_reached {reached}"


@pytest.mark.parametrize("value", [
    {"detail": {"code": "deactivated_workspace"}}, {"detail": {"type": "deactivated_workspace"}},
    {"error": {"code": None, "type": "deactivated_workspace"}}, {"code": "deactivated_workspace"},
])  # fmt: skip
@pytest.mark.parametrize("status", [402, 403])
def test_the_code_is_in_the_reason_whichever_member_had_it(status: int, value: Json) -> None:
    fault = classify_response(status, {}, json.dumps(value).encode(), 1.0)
    assert fault.reason == f"{status} deactivated_workspace"


################################################################
# BY EVERY CARRIER
################################################################

WORD: Final = {"code": "account_deactivated", "message": OWN}
NUMBER: Final = {"code": 429, "message": OWN}
TEXT: Final = "Rate limit exceeded"


def streamed(kind: str, *last: Json) -> Script:
    """A failure before content, and after a handshake where there is one."""
    return sse_response([*(responses_events()[:2] if kind == "responses" else []), *last])


CARRIERS: Final[dict[str, tuple[str, bool, Callable[[Json], Script]]]] = {
    "failed event": ("responses", True, lambda error: streamed(
        "responses", {"type": "response.failed", "response": {"error": error}})),
    "first event": ("responses", True, lambda error: streamed("", {"error": error})),
    "json for a stream": ("responses", True, lambda error: json_response({"error": error})),
    "json in a 200": ("responses", False, lambda error: json_response({"error": error})),
    "detail in a 200": ("responses", False, lambda error: json_response({"detail": error})),
    "chat chunk": ("chat", True, lambda error: sse_response(
        [chat_events("x")[0], {"error": error}])),
    "chat json for a stream": ("chat", True, lambda error: json_response({"error": error})),
    "chat json": ("chat", False, lambda error: json_response({"error": error, "choices": []})),
    "list in a 200": ("responses", False, lambda error: json_response(
        {"success": False, "errors": [error if isinstance(error, dict) else {"message": error}]})),
    "choice": ("chat", False, lambda error: json_response(
        {"choices": [{"finish_reason": "error", "error": error}]})),
}  # fmt: skip


def asks(kind: str, *, is_stream: bool) -> bytes:
    return ask_chat(stream=is_stream) if kind == "chat" else ask_responses(stream=is_stream)


def well(kind: str, *, is_stream: bool) -> Script:
    if not is_stream:
        return json_response({"id": "well"})
    return sse_response(chat_events("well") if kind == "chat" else responses_events("well"))


@pytest.mark.parametrize("error", [WORD, NUMBER, TEXT], ids=["word", "number", "text"])
@pytest.mark.parametrize("carrier", CARRIERS)
async def test_another_account_serves_and_the_first_is_left_out(
    autojump_clock: MockClock, carrier: str, error: Json
) -> None:
    kind, is_stream, make = CARRIERS[carrier]
    if carrier == "choice" and error is TEXT:
        error = {"message": TEXT}
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(make(error))
        world.upstreams["b"].always = well(kind, is_stream=is_stream)
        for b_count in (1, 2):
            response = await world.ask(asks(kind, is_stream=is_stream))
            assert (response.status, asked_counts(world)) == (200, [1, b_count])
            assert b"well" in response.body
            assert b"jane" not in response.body
        assert "jane" not in json.dumps(world.records)
        assert world.records[0]["attempts"][0]["reason"].startswith("200")


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_an_error_in_a_200_is_no_success_for_the_client(
    autojump_clock: MockClock, carrier: str
) -> None:
    kind, is_stream, make = CARRIERS[carrier]
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(make({"code": "bad_shape", "message": "No such field."}))
        response = await world.ask(asks(kind, is_stream=is_stream))
        assert asked_counts(world) == [1, 0]
        assert (response.status == 400) == (not is_stream or "json" in carrier)
        assert b"No such field." in response.body
        assert world.records[0]["code"] == "upstream:bad_shape"


@pytest.mark.parametrize("value", [
    {"id": "r", "error": None}, {"error": False, "choices": []}, {"error": {}, "output": []},
    {"code": 0, "message": "success", "data": {}}, {"code": 200, "message": "ok"},
    {"status": "processing", "message": "loading"}, {"detail": "high", "object": "response"},
    {"object": "response", "status": "completed", "output": [{"error": "a word"}]},
    {"id": "r", "output": [], "errors": [{"message": "a remark"}]}, {"errors": []},
])  # fmt: skip
async def test_what_only_looks_like_an_error_is_a_response(
    autojump_clock: MockClock, value: Json
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(json_response(value))
        response = await world.ask(ask_responses(stream=False))
        assert (response.status, response.json(), asked_counts(world)) == (200, value, [1, 0])


@pytest.mark.parametrize("name", ["response.failed", "response.completed", "response.done"])
async def test_a_response_that_has_failed_is_no_success_whatever_its_event_is_called(
    autojump_clock: MockClock, name: str
) -> None:
    failed = {"type": name, "response": {"status": "failed", "error": WORD}}
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(streamed("responses", failed))
        world.upstreams["b"].always = well("responses", is_stream=True)
        response = await world.ask(ask_responses())
        assert (response.status, asked_counts(world)) == (200, [1, 1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ends", ["response.failed", "error"])
@pytest.mark.parametrize("code", ["token_invalidated", "deactivated_workspace", "usage_limit"])
async def test_a_login_s_trouble_in_a_200_is_as_good_as_a_status(
    autojump_clock: MockClock, tmp_path: Path, form: str, ends: str, code: str
) -> None:
    """A credential is refreshed once, on its account; then the next account is tried."""
    path, body = FORMS[form]
    renewals = int(code == "token_invalidated")
    plays = [Play(FIRST, ends=ends, after="handshake", code=code) for _ in range(renewals + 1)]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays += plays
        for _ in range(2):
            response = await world.ask(post(path, body))
            assert (response.status, text_of(response)) == (200, ANSWER)
        assert world.backend.accounts() == [FIRST] * (renewals + 1) + [SECOND] * 2
        assert len(world.backend.asked("/oauth/token")) == renewals


FRAMES: Final[dict[str, list[Any]]] = {
    "with a status": [{"type": "error", "status": 403, "error": WORD}],
    "without a status": [{"type": "error", "error": WORD}],
    "a number in its code": [{"type": "error", "error": {"code": "429", "message": OWN}}],
    "status as text": [{"type": "error", "status": "429", "error": {"message": OWN}}],
    "detail": [{"type": "error", "status": 402, "detail": {"code": "deactivated_workspace"}}],
    "without a type": [{"error": WORD}],
    "after the handshake": [responses_events()[0], {"type": "error", "status": 429,
                            "error": {"code": "x_new", "message": OWN}}],
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
async def test_a_frame_of_a_websocket_is_classified_alike(
    autojump_clock: MockClock, name: str
) -> None:
    async with socket_world(socket_described("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(says(*FRAMES[name]))
        world.upstreams["b"].plays(turn("well"), turn("well"))
        client = await open_socket(world)
        for _ in range(2):
            events = await client.ask()
            assert events[-1]["type"] == "response.completed"
            assert "jane" not in json.dumps(events)
        assert [name for name, _, _ in world.turns] == ["a", "b", "b"]


@pytest.mark.parametrize("name", [name for name in FRAMES if name != "after the handshake"])
async def test_so_is_the_first_frame_of_a_later_turn(autojump_clock: MockClock, name: str) -> None:
    async with socket_world(socket_described("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(turn("well"), says(*FRAMES[name]))
        world.upstreams["b"].plays(turn("well"))
        client = await open_socket(world)
        for _ in range(2):
            assert (await client.ask())[-1]["type"] == "response.completed"
        assert [name for name, _, _ in world.turns] == ["a", "a", "b"]


################################################################
# A REFUSAL WITHOUT A REASON
################################################################


@pytest.mark.parametrize("answer", [
    error_response(403, "x_new"), json_response({"detail": "Forbidden"}, 403),
    streamed("responses", {"type": "error", "status": 403, "error": {"code": "x_new"}}),
])  # fmt: skip
async def test_refused_three_times_in_a_row_an_account_is_left_out(
    autojump_clock: MockClock, answer: Script
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        a, b = world.upstreams.values()
        b.always = sse_response(responses_events("y"))
        for round_number, before in enumerate(([answer] * 2, [answer] * 2, [])):
            a.plays(*before, sse_response(responses_events("x")))
            for _ in before:
                await world.ask(ask_responses())
                autojump_clock.jump(61)  # it is demoted for a minute
            assert (await world.ask(ask_responses())).status == 200
            assert len(a.asked) == (3, 6, 7)[round_number]  # a success between: it counts anew
        a.plays(*[answer] * 4)
        for _ in range(4):
            await world.ask(ask_responses())
            autojump_clock.jump(61)
        assert len(a.asked) == 10
        autojump_clock.jump(900)
        await world.ask(ask_responses())
        assert len(a.asked) == 11  # its probe


################################################################
# WHAT CLIENTS READ
################################################################


@pytest.mark.parametrize("kind", ["responses", "chat"])
@pytest.mark.parametrize(
    "code", ["token_invalidated", "account_deactivated", "usage_limit_reached"]
)
async def test_a_message_about_an_account_is_not_shown_in_a_stream_that_has_begun(
    autojump_clock: MockClock, kind: str, code: str
) -> None:
    begun = chat_events("x")[:2] if kind == "chat" else responses_events("x")[:3]
    error = {"code": code, "message": OWN}
    last: Json = {"error": error}
    if kind == "responses":
        last = {"type": "response.failed", "sequence_number": 3, "response": last}
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(sse_steps(*begun, last))
        response = await world.ask(asks(kind, is_stream=True))
        told = payloads(response)[-1]
        assert "jane" not in str(response.body)
        failed = told["error"] if kind == "chat" else told["response"]["error"]
        own_code = code if code == "usage_limit_reached" else "no_usable_account"
        assert failed["code"] == own_code
        assert kind == "chat" or told["sequence_number"] == 3


@pytest.mark.parametrize("form", FORMS)
async def test_a_message_about_a_login_is_not_shown_in_a_stream_that_has_begun(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    path, body = FORMS[form]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(FIRST, ends="response.failed", code="token_invalidated"))
        response = await world.ask(post(path, body))
        assert world.backend.accounts() == [FIRST]
        assert b"token_invalidated" not in response.body
        assert b"no_usable_account" in response.body


@pytest.mark.parametrize("code", ["internal_error", "pool_busy", "upstream_timeout"])
@pytest.mark.parametrize("form", FORMS)
async def test_a_stream_that_has_begun_does_not_end_in_the_pooler_s_name(
    autojump_clock: MockClock, tmp_path: Path, form: str, code: str
) -> None:
    path, body = FORMS[form]
    async with opened_codex_world(describe_codex(tmp_path), tmp_path) as world:
        world.backend.plays.append(Play(FIRST, ends="response.failed", code=code))
        response = await world.ask(post(path, body))
        assert world.backend.accounts() == [FIRST]
        assert (code.encode() in response.body) is (form == "native")
        assert (b"upstream_error" in response.body) is (form != "native")


def test_an_error_is_looked_for_so_deep_and_no_deeper() -> None:
    value: Json = {"code": "token_expired"}
    for _ in range(3):
        value = {"error": value}
    assert read_error(value).code == "token_expired"
    for _ in range(20):
        value = {"error": value}
    assert read_error(value).code == ""


async def test_a_response_that_its_request_is_to_blame_for_is_passed_on(
    autojump_clock: MockClock,
) -> None:
    failed = {
        "object": "response", "status": "failed",
        "error": {"code": "content_policy_violation", "message": "no"},
    }  # fmt: skip
    async with opened_world(describe("ab")) as world:
        for upstream in world.upstreams.values():
            upstream.always = json_response(failed)
        response = await world.ask(ask_responses(stream=False))
        assert (response.status, response.json()) == (200, failed)
        assert len(world.asked) == 1


@pytest.mark.parametrize(("told", "status"), [(413, 413), (499, 499), (500, 400), (200, 400)])
def test_a_200_that_blames_the_request_is_an_error_with_the_status_that_it_names(
    told: int, status: int
) -> None:
    """A 5xx would have the client ask again, and a 2xx is none."""
    fault = own_fault({"error": {"code": "context_length_exceeded", "status": told}})
    assert (fault.error.status, fault.is_refusal) == (status, True)


@pytest.mark.parametrize(
    "code",
    [
        "sk-or-v1-0123456789abcdef0123456789abcdef",
        "sk-proj-AbCdEfGh12345678",
        "acct.12345678901234567",
        "123e4567-e89b-12d3-a456-426614174000",
        "live_0a1b2c3d4e5f6a7b",  # it has no beginning that we know
    ],
)
def test_a_code_that_may_be_a_key_or_an_id_is_not_repeated(code: str) -> None:
    for name in ("code", "type"):
        fault = classify_response(401, {}, json.dumps({"error": {name: code}}).encode(), UNIX_START)
        assert fault is not None
        assert fault.reason == "401"
        assert code not in fault.error.record_code


def test_a_failed_response_without_an_error_is_not_searched_for_names() -> None:
    """Whatever else it shows is the client's own: its instructions may name anybody."""
    response = {"status": "failed", "output": [], "instructions": "ask org-abcDEF123"}
    for event in ({"type": "response.failed", "response": response}, response):
        assert public_error(None, failure_of(event)) is None
