"""Proves that a route, a model or a right that an account lacks is reported as exactly that.

Method: the real server in virtual time; upstreams respond like servers that do not know a path, a
plan that lacks a model, an edge that counts addresses. Examined are which account is tried next,
what the client gets when none is left, when the lack is forgotten, and what an operator sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from pooler import MODELS_SHOWN_MAX
from tests.support.memory_sockets import Json, Response, ask_responses, post, request
from tests.support.memory_websockets import codex_described, open_socket, says, socket_world
from tests.support.world import (
    Fin,
    Pause,
    Reset,
    Script,
    Send,
    Step,
    World,
    chat_events,
    describe,
    error_response,
    json_response,
    opened_world,
    response_head,
    responses_events,
    sse_response,
    sse_steps,
)

IN_ORDER: Final = {"routing": "in_order"}
OPERATOR: Final = "cpo-operator-token-0123456789"
RETRIED: Final = re.compile(
    "429|500|502|503|504|524|rate.?limit|overloaded|server.?error|try again|too many requests",
    re.IGNORECASE,
)
FORMS: Final[Mapping[str, tuple[str, Json]]] = {
    "responses": ("/v1/responses", {"model": "m1", "input": []}),
    "responses-stream": ("/v1/responses", {"model": "m1", "input": [], "stream": True}),
    "chat": ("/v1/chat/completions", {"model": "m1", "messages": [{"role": "user"}]}),
    "chat-stream": (
        "/v1/chat/completions",
        {"model": "m1", "messages": [{"role": "user", "content": ""}], "stream": True},
    ),
}
NATIVE: Final[Mapping[str, tuple[str, Json]]] = {
    "native": ("/backend-api/codex/responses", {"model": "m1", "input": [], "stream": True}),
    "compact": ("/backend-api/codex/responses/compact", {"model": "m1", "input": []}),
}


def text(status: int, body: str, content_type: str = "text/plain") -> Script:
    fields = [("content-type", content_type), ("content-length", str(len(body)))]
    return [Send(response_head(status, fields) + body.encode())]


def good(form: str) -> Script:
    if form in {"responses", "chat", "compact"}:
        return json_response({"id": "r", "output": []})
    return sse_response(chat_events("x") if form.startswith("chat") else responses_events("x"))


def question(form: str) -> bytes:
    path, body = {**FORMS, **NATIVE}[form]
    return post(path, body)


def counts(world: World) -> list[int]:
    return [len(upstream.asked) for upstream in world.upstreams.values()]


def check_final(response: Response, code: str, *words: str) -> None:
    """An error that is final for every client, and says what it is about."""
    assert (response.status, response.error["code"]) == (400, code)
    assert response.error["type"] == "invalid_request_error"
    assert not RETRIED.search(str(response.body))
    for word in words:
        assert word in response.error["message"]


################################################################
# ROUTES
################################################################

ROUTELESS: Final[Mapping[str, Script]] = {
    "404-text": text(404, "404 page not found\n"),
    "404-empty": text(404, ""),
    "404-page": text(404, "<html><h1>Not Found</h1></html>", "text/html"),
    "404-detail": json_response({"detail": "Not Found"}, 404),
    "404-error-as-text": json_response({"error": "Not Found"}, 404),
    "404-llama": json_response(
        {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, 404
    ),
    "404-openai": json_response(
        {"error": {"message": "Invalid URL (POST /v1/responses)", "code": None}}, 404
    ),
    "404-nest": json_response(
        {"message": "Cannot POST /v1/responses", "error": "Not Found", "statusCode": 404}, 404
    ),
    "404-groq": json_response(
        {"error": {"message": "Unknown request URL: POST /v1/responses.", "code": "unknown_url"}},
        404,
    ),
    "404-a-pooler": json_response(
        {"error": {"message": "Unsupported.", "code": "unsupported_endpoint"}}, 404
    ),
    "405-empty": text(405, ""),
    "405-detail": json_response({"detail": "Method Not Allowed"}, 405),
    "404-litellm": json_response(
        {"error": {"message": "litellm.NotFoundError: OpenAIException - Not Found", "code": "404"}},
        404,
    ),
    "200-lm-studio": json_response(
        {"error": "Unexpected endpoint or method. (POST /v1/responses). Returning 200 anyway"}
    ),
    "200-code": json_response({"error": {"code": 404, "message": "File Not Found"}}),
    "501-text": text(501, "Unsupported method ('POST')"),
    "501-page": text(501, "<html>Not implemented</html>", "text/html"),
}


@pytest.mark.parametrize("form", [*FORMS, *NATIVE])
@pytest.mark.parametrize("case", ROUTELESS)
async def test_an_upstream_without_the_route_is_passed_over(
    case: str, form: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    whole = describe("ab", pool=IN_ORDER)
    if form in NATIVE:
        whole = codex_described(tmp_path)
    async with opened_world(whole) as world:
        world.upstreams["a"].always = ROUTELESS[case]
        world.upstreams["b"].always = good(form)
        for _ in range(3):
            assert (await world.ask(question(form))).status == 200
        assert counts(world) == [1, 3]

        await trio.sleep_until(300)
        world.upstreams["a"].always = good(form)  # it was updated
        assert (await world.ask(question(form))).status == 200
        assert counts(world) == [2, 3]


@pytest.mark.parametrize("form", [*FORMS, *NATIVE])
@pytest.mark.parametrize("case", ROUTELESS)
async def test_a_route_that_no_upstream_has_is_named_with_its_remedy(
    case: str, form: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = "/chat/completions" if form.startswith("chat") else "/responses"
    async with opened_world(codex_described(tmp_path) if form in NATIVE else describe()) as world:
        for upstream in world.upstreams.values():
            upstream.always = ROUTELESS[case]
        for _ in range(2):
            response = await world.ask(question(form))
            check_final(response, "unsupported_endpoint", path, "upstream")
        assert set(counts(world)) == {1}


async def test_a_code_that_only_begins_like_a_missing_route_s_is_the_request_s_own(
    autojump_clock: MockClock,
) -> None:
    refusal = {"error": {"code": "invalid_url_scheme", "message": "An image's URL is no https."}}
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].always = json_response(refusal, 404)
        for _ in range(2):
            response = await world.ask(question("responses"))
            assert (response.status, response.error["code"]) == (404, "invalid_url_scheme")
        assert counts(world) == [2, 0]


async def test_a_chatgpt_account_s_route_is_lacking_likewise(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    for form in FORMS:
        async with opened_world(codex_described(tmp_path)) as world:
            world.upstreams["a"].always = ROUTELESS["404-detail"]
            world.upstreams["b"].always = sse_response(responses_events("x"))
            assert (await world.ask(question(form))).status == 200
            assert counts(world) == [1, 1]


async def test_an_account_that_lacks_one_route_serves_the_others(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(ROUTELESS["404-text"], good("chat"))
        check_final(await world.ask(question("responses")), "unsupported_endpoint", "chat")
        assert (await world.ask(question("chat"))).status == 200


ITEM: Final = "Item with id 'rs_1' not found. Items are not persisted when `store` is false."
OWN: Final[Mapping[str, tuple[Script, int]]] = {
    "item": (json_response({"error": {"message": ITEM, "param": "input"}}, 404), 404),
    "response": (json_response({"error": {"message": "Response resp_1 not found"}}, 404), 404),
    "item-detail": (json_response({"detail": ITEM}, 404), 404),
    "405-of-an-api": (error_response(405, "method_not_allowed"), 405),
    "501-of-an-api": (error_response(501, "not_implemented"), 501),
    "200-item": (json_response({"error": {"code": 404, "message": ITEM}}), 404),
    "200-words": (
        json_response({"error": {"code": "bad", "message": "This method is not supported"}}),
        400,
    ),
    "no-tools": (
        json_response({"error": {"message": "No endpoints found that support tool use."}}, 404),
        404,
    ),
    "model-settings": (
        json_response({"error": {"message": "Invalid model settings: temperature"}}, 400),
        400,
    ),
}


@pytest.mark.parametrize("case", OWN)
async def test_what_an_api_says_of_a_request_is_no_lacking_route(
    case: str, autojump_clock: MockClock
) -> None:
    script, status = OWN[case]
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays(script, good("responses"))
        assert (await world.ask(question("responses"))).status == status
        assert (await world.ask(question("responses"))).status == 200
        assert counts(world) == [2, 0]


@pytest.mark.parametrize("end", [Fin(), Reset(), Pause(60)], ids=["cut", "reset", "late"])
@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_truncated_response_does_not_prove_a_lacking_route(
    status: int, end: Step, autojump_clock: MockClock
) -> None:
    """A "not found" may be about an item of the request."""
    head = response_head(status, [("content-type", "application/json"), ("content-length", "100")])
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        world.upstreams["a"].plays([Send(head + b'{"error":'), end])
        assert (await world.ask(question("responses"))).status == status
        assert counts(world) == [1, 0]


################################################################
# MODELS
################################################################

NO_PLAN: Final = "The 'm1' model is not supported when using Codex with a ChatGPT account."
NO_ACCESS: Final = "Project `p` does not have access to model `m1`"
GONE: Final[Json] = {"code": "model_not_found", "message": "The model `m1` does not exist."}
MODELLESS: Final[Mapping[str, Script]] = {
    "plan": json_response({"detail": NO_PLAN}, 400),
    "plan-wrapped": json_response(
        {"error": {"message": NO_PLAN, "code": "invalid_request_error"}}, 400
    ),
    "404-detail": json_response({"detail": "Model not found m1"}, 404),
    "404-code": json_response({"error": GONE}, 404),
    "400-code": error_response(400, "model_not_supported"),
    "403-code": json_response({"error": {"message": NO_ACCESS, "code": "model_not_found"}}, 403),
    "unknown": json_response({"error": {"message": "Unknown model: m1"}}, 400),
    "ollama": json_response({"error": "model 'm1' not found"}, 404),
    **{
        text: json_response({"error": {"message": text, "type": "x"}}, status)
        for status, text in (
            (400, "The 'm1' model requires a newer version of Codex. Please upgrade."),
            (400, "/chat/completions: Invalid model name passed in model=m1. Call `/v1/models`."),
            (404, "No endpoints found for vendor/m1."),
            (400, "vendor/m1 is not a valid model ID"),
            (400, "The model `m1` has been decommissioned and is no longer supported."),
            (400, "Invalid model: m1"),
            (400, "Unsupported model"),
        )
    },
    **{
        code: json_response({"error": {"code": code, "message": "No."}}, status)
        for status, code in (
            (404, "DeploymentNotFound"),
            (400, "invalid_model"),
            (400, "model_decommissioned"),
            (403, "model_not_included"),
        )
    },
    "event": sse_steps(
        {"type": "response.created", "response": {"id": "r"}},
        {"type": "response.failed", "response": {"id": "r", "error": GONE}},
    ),
    "event-in-words": sse_steps(
        {"type": "response.failed", "response": {"error": {"code": "x", "message": NO_PLAN}}}
    ),
}


@pytest.mark.parametrize("form", [*FORMS, "native"])
@pytest.mark.parametrize("case", MODELLESS)
async def test_a_model_that_no_account_can_use_is_not_reported_as_forbidden_to_the_key(
    case: str, form: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    whole = codex_described(tmp_path, "abc", pool={"models": ["m1", "m2"]})
    async with opened_world(whole) as world:
        for name in "ab":
            world.upstreams[name].always = MODELLESS[case]
        world.upstreams["c"].plays(sse_response(responses_events("x")), MODELLESS[case])
        assert (await world.ask(question(form))).status == 200
        assert counts(world) == [1, 1, 1]
        at_the_moment = "No account in this pool can use this model at the moment"
        for _ in range(2):
            response = await world.ask(question(form))
            check_final(response, "model_not_found", at_the_moment)
        assert counts(world) == [1, 1, 2]

        unknown = await world.ask(post("/v1/responses", {"model": "m3", "input": []}))
        check_final(unknown, "model_not_found", "m1", "m2")
        assert at_the_moment not in unknown.error["message"]
        assert "m3" not in unknown.error["message"]

        await trio.sleep_until(3601)
        world.upstreams["a"].always = sse_response(responses_events("x"))
        assert (await world.ask(question(form))).status == 200


async def test_the_upstream_s_code_is_shown_if_it_is_one(autojump_clock: MockClock) -> None:
    for code, told in (("model_not_supported", "model_not_supported"), ("model_not_found", "")):
        async with opened_world(describe("ab")) as world:
            for upstream in world.upstreams.values():
                upstream.always = error_response(404, code)
            for _ in range(2):
                check_final(await world.ask(question("chat")), "model_not_found", told)


async def test_a_websocket_gets_the_same_errors(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with socket_world(codex_described(tmp_path)) as world:
        for upstream in world.upstreams.values():
            upstream.plays(says({"type": "error", "status": 400, "error": GONE}))
        [refused] = await (await open_socket(world)).ask()
        assert (refused["status"], refused["error"]["code"]) == (400, "model_not_found")
        assert "at the moment" in refused["error"]["message"]
        assert len(world.turns) == 2


async def test_a_key_is_shown_its_own_models_and_not_too_many(autojump_clock: MockClock) -> None:
    names = [f"m{number}" for number in range(100, 100 + 2 * MODELS_SHOWN_MAX)]
    keys = {"laptop": {"key": "sk-pool-key-of-the-laptop-0001", "models": ["m101", "m102"]}}
    accounts = {"a": {"models": [*names, "m429"]}}
    for pool, expected in (({}, None), ({"keys": keys, "aliases": {"fast": "m101"}}, "m101, m102")):
        async with opened_world(describe("a", accounts=accounts, pool=pool)) as world:
            key = "sk-pool-key-of-the-laptop-0001" if expected else None
            body = {"model": "nobody-has-it", "input": []}
            raw = post("/v1/responses", body, key=key) if key else post("/v1/responses", body)
            response = await world.ask(raw)
            check_final(response, "model_not_found", expected or "m100, m101, m102")
            assert "m429" not in response.error["message"]
            assert response.error["message"].count("m1") <= MODELS_SHOWN_MAX
            if expected:
                assert "m103" not in response.error["message"]
                assert "fast" in response.error["message"]


################################################################
# WHAT STANDS BEFORE AN UPSTREAM
################################################################

EDGES: Final[Mapping[str, tuple[str, Sequence[tuple[str, str]]]]] = {
    "page": ("<html>error code: 1015</html>", [("content-type", "text/html; charset=UTF-8")]),
    "cloudflare-text": ("error code: 1015", [("server", "cloudflare")]),
    "challenge": ("", [("cf-mitigated", "challenge")]),
}


@pytest.mark.parametrize("form", [*FORMS, "native"])
@pytest.mark.parametrize("case", EDGES)
async def test_an_edge_that_counts_addresses_puts_no_account_to_rest(
    case: str, form: str, autojump_clock: MockClock, tmp_path: Path
) -> None:
    body, fields = EDGES[case]
    head = response_head(429, [*fields, ("content-length", str(len(body)))])
    async with opened_world(codex_described(tmp_path)) as world:
        for upstream in world.upstreams.values():
            upstream.plays([Send(head + body.encode())])
            upstream.always = sse_response(responses_events("x"))
        response = await world.ask(question(form))
        assert (response.status, response.error["code"]) == (502, "upstream_blocked")
        healths = world.server.shared.roster.health.values()
        assert not any(cooldown.until for one in healths for cooldown in one.cooldowns)
        assert (await world.ask(question(form))).status == 200


async def test_an_api_s_own_limit_is_one_whatever_its_type_is_called(
    autojump_clock: MockClock,
) -> None:
    limit = json_response(
        {"error": {"code": "rate_limit_exceeded"}}, 429, [("server", "cloudflare")]
    )
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(limit)
        assert (await world.ask(question("chat"))).error["code"] == "usage_limit_reached"
        assert any(one.until for one in world.server.shared.roster.health["a"].cooldowns)


################################################################
# WHAT AN OPERATOR SEES
################################################################


async def test_an_operator_sees_what_an_account_lacks_and_why_it_cools_down(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("ab", pool=IN_ORDER, operators={"me": OPERATOR})) as world:
        world.upstreams["a"].plays(
            ROUTELESS["404-text"],
            MODELLESS["400-code"],
            error_response(402, "deactivated_workspace"),
        )
        world.upstreams["b"].always = good("chat")
        await world.ask(question("responses"))
        for model in ("m1", "m2"):
            body = {"model": model, "messages": [{"role": "user", "content": ""}]}
            assert (await world.ask(post("/v1/chat/completions", body))).status == 200
        asked = request("GET", "/admin", key=OPERATOR, headers=[("Accept", "application/json")])
        account = (await world.ask(asked)).json()["accounts"][0]
        assert (account["status"], account["reason"]) == ("refused", "402 deactivated_workspace")
        lacks = [(one["kind"], one["name"], one["reason"]) for one in account["lacks"]]
        assert lacks == [
            ("model", "m1", "400 model_not_supported"), ("route", "/responses", "404"),
        ]  # fmt: skip
        told = {
            one["name"]: one["reason"]
            for one in world.server.operators.explain("home", "m1", None)["accounts"]
        }
        assert told["a"] == "refused: 402 deactivated_workspace"


async def test_a_model_that_the_pool_lists_but_no_account_offers_is_reported_as_such(
    autojump_clock: MockClock,
) -> None:
    described = describe("a", accounts={"a": {"models": ["m2"]}}, pool={"models": ["m1"]})
    async with opened_world(described) as world:
        response = await world.ask(ask_responses(model="m1", stream=False))
        assert (response.status, response.error["code"]) == (400, "model_not_found")
        assert "No account in this pool" in response.error["message"]


async def test_what_an_account_lacks_is_explained(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        missing = error_response(404, "model_not_found")
        world.upstreams["a"].plays(missing, json_response({"detail": "Not Found"}, 404))
        for model in ("m1", "m2"):
            assert (await world.ask(ask_responses(model=model, stream=False))).status == 400
        told = {
            model: world.server.operators.explain("home", model, None)["accounts"][0]["reason"]
            for model in ("m1", "m2")
        }
        assert told["m1"].startswith("cannot use the model: 404")
        assert told["m2"] == "its upstream has no such route: /responses"
