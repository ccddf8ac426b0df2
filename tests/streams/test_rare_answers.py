"""Proves that answers which hardly ever come are understood, refused or passed on as is right.

Method: values, and a whole server in virtual time whose upstream answers so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing
from trio.testing import MockClock

import pooler
from pooler import (
    OUTPUT_ITEMS_MAX,
    WRITTEN_BYTES_MAX,
    BadSyntax,
    CallKind,
    ChatTranslator,
    ConfigRefused,
    EventKind,
    OutputCollector,
    events_of,
    read_error,
)
from tests.support.memory_sockets import Json, ask_responses, post
from tests.support.world import (
    describe,
    error_response,
    json_response,
    make_config,
    opened_world,
    sse_event,
)

KIB: Final = 1024
CALL: Final[Json] = {"type": "function_call", "name": "f", "arguments": "{}"}


def chunks(raw: bytes) -> list[Json]:
    found = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(data) for data in found if data != b"[DONE]"]


################################################################
# AN ANSWER IN ONE PIECE, AS EVENTS
################################################################


@pytest.mark.parametrize("count", [0, OUTPUT_ITEMS_MAX + 1])
def test_what_is_no_chat_answer_becomes_no_stream(count: int) -> None:
    with pytest.raises(BadSyntax):
        events_of({"choices": [{}] * count}, CallKind.CHAT)


def test_a_chat_answer_becomes_chunks_with_what_it_has() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"content": "x", "tool_calls": [call]}
    plain = {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "length"}]}
    full = {"choices": [{"index": 0, "message": message}], "usage": {"total_tokens": 1}}
    [said, end] = chunks(events_of(plain, CallKind.CHAT))
    assert said["choices"][0]["delta"] == {"content": "x", "role": "assistant"}
    assert end["choices"][0]["finish_reason"] == "length"
    [said, end, usage] = chunks(events_of(full, CallKind.CHAT))
    assert said["choices"][0]["delta"]["tool_calls"] == [call | {"index": 0}]
    assert end["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"] == {"total_tokens": 1}


def test_an_error_becomes_one_event_and_no_end() -> None:
    raw = events_of({"error": {"message": "no", "code": "x"}}, CallKind.CHAT)
    assert [chunk["error"]["code"] for chunk in chunks(raw)] == ["x"]
    assert b"[DONE]" not in raw


def test_a_part_of_a_kind_that_nobody_knows_is_told_whole() -> None:
    part = {"type": "hologram", "light": 1}
    item = {"type": "message", "role": "assistant", "content": [part]}
    answer = {"object": "response", "status": "completed", "output": [item]}
    told = chunks(events_of(answer, CallKind.RESPONSES))
    parts = [event["part"] for event in told if "part" in event]
    assert parts == [part, part]


async def test_a_large_answer_in_the_place_of_a_stream_is_not_understood(
    autojump_clock: MockClock,
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(json_response({"output": "x" * WRITTEN_BYTES_MAX}))
        response = await world.ask(ask_responses())
        assert (response.status, response.error["code"]) == (502, "upstream_invalid_response")


################################################################
# MUCH, AND DEEP
################################################################


def test_items_without_a_name_are_bounded() -> None:
    answer = ChatTranslator(OutputCollector(10**9))
    event = sse_event({"type": "response.output_item.added", "item": CALL})
    for _ in range(OUTPUT_ITEMS_MAX):
        answer.feed(EventKind.CONTENT, event)
    with pytest.raises(BadSyntax, match="too large"):
        answer.feed(EventKind.CONTENT, event)


def test_an_error_is_looked_for_so_deep_and_no_deeper() -> None:
    value: Json = {"code": "token_expired"}
    for _ in range(3):
        value = {"error": value}
    assert read_error(value).code == "token_expired"
    for _ in range(20):
        value = {"error": value}
    assert read_error(value).code == ""


@pytest.mark.parametrize("is_error", [False, True])
async def test_an_answer_that_finds_no_room_is_no_fault_of_its_upstream(
    is_error: bool, autojump_clock: MockClock
) -> None:
    """An error's status is told all the same."""
    total = 1024 * KIB
    async with opened_world(describe("a", limits={"events_bytes_max": total})) as world:
        large: Json = {"id": "r", "x": "y" * (total // 2)}
        refusal = {"error": {"message": "no", "code": "x", "x": large["x"]}}
        world.upstreams["a"].plays(
            json_response(refusal, 422) if is_error else json_response(large)
        )
        response = await world.ask(ask_responses(stream=False))
        wanted = (422, "upstream_error") if is_error else (503, "pool_busy")
        assert (response.status, response.error["code"]) == wanted


################################################################
# THE REST
################################################################


async def test_a_model_whose_member_s_name_is_escaped_is_renamed(
    autojump_clock: MockClock,
) -> None:
    described = describe("a", accounts={"a": {"models": {"m1": "vendor/m1"}}})
    async with opened_world(described) as world:
        world.upstreams["a"].plays(json_response({"id": "r"}))
        body = b'{"\\u006dodel":"m1","input":"x"}'
        assert (await world.ask(post("/v1/responses", body))).status == 200
        assert world.asked[0].json() == {"model": "vendor/m1", "input": "x"}


async def test_a_renamed_body_finds_room_or_is_refused(autojump_clock: MockClock) -> None:
    described = describe(
        "a",
        accounts={"a": {"models": {"m1": "vendor/m1"}}},
        limits={"bodies_bytes_max": 1024 * KIB, "body_bytes_max": 512 * KIB},
    )
    async with opened_world(described) as world:
        body = {"model": "m1", "input": "x" * (400 * KIB)}
        response = await world.ask(post("/v1/responses", body))
        assert (response.status, response.error["code"]) == (503, "pool_busy")
        assert world.asked == []


async def test_a_model_that_the_pool_lists_and_no_account_does_is_told_as_that(
    autojump_clock: MockClock,
) -> None:
    described = describe("a", accounts={"a": {"models": ["m2"]}}, pool={"models": ["m1"]})
    async with opened_world(described) as world:
        response = await world.ask(ask_responses(model="m1", stream=False))
        assert (response.status, response.error["code"]) == (400, "model_not_found")
        assert "No account in this pool" in response.error["message"]


async def test_who_leaves_while_a_tunnel_is_dug_leaves_no_connection(
    autojump_clock: MockClock,
) -> None:
    """The proxy has not said yet whether there will be one."""
    assert autojump_clock.autojump_threshold == 0
    ours, theirs = trio.testing.memory_stream_pair()
    url = pooler.BaseUrl(True, "upstream.example", 443, "")
    with trio.move_on_after(1) as scope:
        await pooler.open_tunnel(ours, url, pooler.Proxy(url), pooler.Limits())
    assert scope.cancelled_caught
    assert (await theirs.receive_some()).startswith(b"CONNECT upstream.example:443 HTTP/1.1")
    assert await theirs.receive_some() == b""


def test_a_token_that_tells_no_end_has_no_margin(tmp_path: Path) -> None:
    login = pooler.Login("a", tmp_path / "auth.json")
    tokens = {"access_token": "opaque", "refresh_token": "r", "account_id": "acct"}
    login.unsaved = json.dumps({"tokens": tokens}).encode()
    login.note_issue(b"{}", 1.0, 300.0)
    assert login.issued_margin_seconds == float("inf")


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


async def test_what_an_account_lacks_is_explained(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        missing = error_response(404, "model_not_found")
        world.upstreams["a"].plays(missing, json_response({"detail": "Not Found"}, 404))
        for model in ("m1", "m2"):
            assert (await world.ask(ask_responses(model=model, stream=False))).status == 400
        told = {
            model: world.server.explain("home", model, None)["accounts"][0]["reason"]
            for model in ("m1", "m2")
        }
        assert told["m1"].startswith("cannot use the model: 404")
        assert told["m2"] == "its upstream has no /responses"


def test_a_configuration_that_is_gone_is_no_reason_to_fail(tmp_path: Path) -> None:
    config = make_config(describe("a"))
    with pytest.raises(ConfigRefused):
        pooler.doubts_of_modes(tmp_path / "pools.json", config)


def test_the_demo_lists_its_model() -> None:
    kind, [body] = pooler.demo_response("/v1/models", {})
    assert kind == "application/json"
    assert [one["id"] for one in json.loads(body)["data"]] == [pooler.DEMO_MODEL]
