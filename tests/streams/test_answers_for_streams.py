"""Proves that an upstream's reason, and its answer in one piece, are told as was asked for.

Method: JSON where a stream was asked for, by accounts of both types to clients of both APIs, in
one piece and in drips; refusals in JSON, text and other letters, with what is not for clients.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

import pooler
from pooler import (
    ERRORS,
    OUTPUT_ITEMS_MAX,
    TRANSLATED_BYTES_MAX,
    WRITTEN_BYTES_MAX,
    BadSyntax,
    CallKind,
    EventKind,
    EventScanner,
    events_of,
)
from tests.support.codex_world import ask_scripted, opened_scripted_world, payloads, text_of
from tests.support.hostile_bytes import NAMING_ERRORS
from tests.support.memory_sockets import Json, Pairs, ask_chat, ask_responses
from tests.support.world import (
    Pause,
    Script,
    Send,
    asked_counts,
    describe,
    error_response,
    json_response,
    opened_world,
    response_head,
    sse_response,
)

IN_ORDER: Final = {"routing": "in_order"}
CALL: Final = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "f", "arguments": '{"a":1}'},
}
CHAT: Final[dict[str, Json]] = {
    "id": "c1", "object": "chat.completion", "created": 7, "model": "m1",
    "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
        "role": "assistant", "content": "two words", "tool_calls": [CALL, CALL]}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}  # fmt: skip
ITEMS: Final[list[Json]] = [
    {"id": "rs", "type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"id": "m", "type": "message", "role": "assistant", "status": "completed",
     "content": [{"type": "output_text", "text": "two words", "annotations": []}]},
    {"id": "f", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
]  # fmt: skip
RESPONSE: Final[dict[str, Json]] = {
    "id": "resp_1", "object": "response", "status": "completed", "model": "m1", "error": None,
    "output": ITEMS, "usage": {"input_tokens": 3, "output_tokens": 4},
}  # fmt: skip


def dripped(value: Json, headers: Pairs = ()) -> Script:
    """An answer whose head, and each few bytes, come a second after the other."""
    body = b" \r\n" + json.dumps(value).encode()
    parts = [body[at : at + 200] for at in range(0, len(body), 200)]
    head = response_head(200, [("content-length", str(len(body))), *headers])
    return [Send(head), *(step for part in parts for step in (Pause(4.0), Send(part)))]


@pytest.mark.parametrize("content_type", [None, "application/json", "text/event-stream"])
@pytest.mark.parametrize("is_slow", [True, False], ids=["slow", "at once"])
@pytest.mark.parametrize("kind", ["responses", "chat"])
async def test_an_answer_in_one_piece_becomes_a_stream(
    autojump_clock: MockClock, kind: str, content_type: str | None, *, is_slow: bool
) -> None:
    value = RESPONSE if kind == "responses" else CHAT
    headers = [("content-type", content_type)] if content_type else []
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(
            dripped(value, headers) if is_slow else json_response(value, headers=headers[:0])
        )
        response = await world.ask(ask_chat() if kind == "chat" else ask_responses())
        assert response.status == 200
        assert str(response.header("content-type")).startswith("text/event-stream")
        assert text_of(response) == "two words"
        assert world.records[0]["code"] is None
        assert world.records[0]["tokens"]["output_tokens"] == 4
        events = payloads(response)
        if kind == "responses":
            assert events[-1]["response"]["output"] == ITEMS
            assert [event["sequence_number"] for event in events] == [*range(len(events))]
            done = [event["item"] for event in events if event["type"].endswith("item.done")]
            assert done == ITEMS
        else:
            assert events[-1] == "[DONE]"
            assert events[0]["choices"][0]["delta"]["tool_calls"][1] == CALL | {"index": 1}
            assert events[1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("form", ["responses", "responses-stream", "chat", "chat-stream"])
async def test_so_does_a_login_s(autojump_clock: MockClock, tmp_path: Path, form: str) -> None:
    async with opened_scripted_world(tmp_path) as world:
        response = await ask_scripted(world, form, json_response(RESPONSE))
        assert (response.status, text_of(response)) == (200, "two words")


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
def test_the_events_end_as_the_answer_did(status: str) -> None:
    scanner = EventScanner(CallKind.RESPONSES)
    scanner.feed(events_of(RESPONSE | {"status": status}, CallKind.RESPONSES))
    assert scanner.terminal is (EventKind.FAILURE if status == "failed" else EventKind.SUCCESS)


@pytest.mark.parametrize("value", [CHAT, {}, {"id": "r"}, {"data": []}, [], [1], {"output": "x"}])
@pytest.mark.parametrize("is_slow", [True, False], ids=["slow", "at once"])
async def test_other_json_is_a_clear_error(
    autojump_clock: MockClock, value: Json, *, is_slow: bool
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(dripped(value) if is_slow else json_response(value))
        response = await world.ask(ask_responses())
        assert "upstream_invalid_response" in str(response.body)
        assert world.records[0]["code"] == "upstream_invalid_response"


async def test_an_error_that_comes_late_is_told_in_the_stream(autojump_clock: MockClock) -> None:
    error = {"error": {"code": "bad_shape", "message": "No such field." + " " * 1000}}
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(dripped(error))
        response = await world.ask(ask_responses())
        assert response.status == 200
        assert payloads(response)[-1]["error"]["code"] == "bad_shape"
        assert world.records[0]["code"] == "upstream:bad_shape"


################################################################
# AN UPSTREAM'S REASON
################################################################

REASON: Final = "image input is not supported - hint: give it an mmproj"
TOLD: Final[dict[str, Script]] = {
    "json": error_response(500, "server_error", message=REASON),
    "number": json_response(
        {"error": {"code": 500, "message": REASON, "type": "server_error"}}, 500
    ),
    "error is text": json_response({"error": REASON}, 500),
    "detail": json_response({"detail": REASON}, 503),
    "text": [Send(response_head(500, [("content-length", str(len(REASON)))]) + REASON.encode())],
    "text of a 400": [Send(response_head(400, [("content-type", "text/plain"),
                           ("content-length", str(len(REASON)))]) + REASON.encode())],
    "list": json_response([{"error": {"code": 400, "message": REASON}}], 400),
    "event": json_response({"error": {"code": 500, "message": REASON}}),
}  # fmt: skip


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "unary"])
@pytest.mark.parametrize("name", TOLD)
async def test_a_client_reads_why_its_request_failed(
    autojump_clock: MockClock, name: str, *, is_stream: bool
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(TOLD[name])
        response = await world.ask(ask_responses(stream=is_stream))
        assert REASON in response.error["message"]
        assert response.error["code"] in {"upstream_error", "server_error"}
        assert "mmproj" not in json.dumps(world.records)


@pytest.mark.parametrize("body", [
    "Modèle indisponible".encode("latin-1"), '{"error": "Modèle indisponible"}'.encode("latin-1"),
    "Modèle indisponible".encode(), b"Mod\xe8le\r\n\x00indisponible\x1b",
])  # fmt: skip
@pytest.mark.parametrize("status", [400, 422, 500])
async def test_other_letters_are_read(autojump_clock: MockClock, status: int, body: bytes) -> None:
    async with opened_world(describe("a")) as world:
        head = response_head(status, [("content-length", str(len(body)))])
        world.upstreams["a"].plays([Send(head + body)])
        response = await world.ask(ask_responses())
        assert response.status == status
        assert re.search("Modèle indisponible$", response.error["message"])


@pytest.mark.parametrize("reason", [
    "Incorrect API key provided: sk-proj-abc123def", "owner jane@example.com must pay",
    "organization org-abcDEF123 is gone", "Your workspace is out of credits",
    "<!DOCTYPE html><html><title>no</title></html>", "<html>no", "see billing",
    "token eyJhbGciOiJIUzI1NiJ9.e30 refused", "session 0123456789abcdef0123456789abcdef",
])  # fmt: skip
async def test_a_reason_that_is_not_for_clients_is_not_told(
    autojump_clock: MockClock, reason: str
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(error_response(500, None, message=reason))
        response = await world.ask(ask_responses())
        assert response.error["message"] == "The upstream failed."


NAMING_CARRIERS: Final = {
    "400": lambda error: json_response({"error": error}, 400),
    "too large": lambda error: json_response(
        {"error": error | {"code": "tokens"}}, 429 if "Limit" in error["message"] else 413
    ),
    "422 flat": lambda error: json_response({"detail": error["message"]}, 422),
    "json": lambda error: json_response({"error": error | {"code": 400}}),
    "first event": lambda error: sse_response(
        [{"type": "response.failed", "response": {"status": "failed", "error": error}}]
    ),
    "last event": lambda error: sse_response(
        [
            {"type": "response.output_text.delta", "delta": "x"},
            {"type": "response.failed", "response": {"status": "failed", "error": error}},
        ]
    ),
    "in a detail": lambda error: sse_response(
        [
            {"type": "response.output_text.delta", "delta": "x"},
            {"type": "error", "error": error | {"details": [{"owner": error["message"]}]}},
        ]
    ),
    "failing upstream": lambda error: sse_response(
        [
            {"type": "response.output_text.delta", "delta": "x"},
            {"type": "error", "error": error | {"code": "server_error"}},
        ]
    ),
}


@pytest.mark.parametrize("carrier", NAMING_CARRIERS)
@pytest.mark.parametrize(("message", "public"), NAMING_ERRORS)
async def test_what_names_an_account_is_left_out_of_a_reason(
    autojump_clock: MockClock, carrier: str, message: str, public: str
) -> None:
    error: dict[str, Json] = {"message": message, "code": "invalid_prompt"}
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(NAMING_CARRIERS[carrier](error))
        is_stream = "event" in carrier or "failing" in carrier or "detail" in carrier
        response = await world.ask(ask_responses(stream=is_stream))
        shown = response.body.decode()
        assert public in shown
        for name in re.findall(
            r"\S*(?:org-|acct_|proj_|gsk_|AIza|xai-|hf_|@|\*|sk-|4f2c)\S*", message
        ):
            assert name not in shown
            assert name not in json.dumps(world.records)


KEYS_OF_PROVIDERS: Final = (
    *(f"{prefix}{mark}Ab12cd34" for prefix in pooler.ID_PREFIXES for mark in "-_"),
    *(f"{beginning}SyA1b2c3d4e5" for beginning in pooler.KEY_BEGINNINGS),
    "sk-ant-api03-abcdefgh", "sk-or-v1-01234567", "github_pat_11ABCDEFG0abcdefgh",
    "nvapi-Ab_cd-12345678", "r8_abcdefgh12345678", "pplx-0123456789abcdef",
)  # fmt: skip
NO_KEYS: Final = (
    "task-manager",
    "user_location",
    "user-defined",
    "org-level",
    "project.proj-wide",
    "key_value_pairs",
    "at-most-once",
    "sess_options",
    "whisky_bottle",
    "gsk",
    "hf_1",
    "AIza1234",
    "csk-",
    "https://x.ai",
)


@pytest.mark.parametrize("text", KEYS_OF_PROVIDERS)
def test_a_provider_s_key_is_left_out_of_every_text(text: str) -> None:
    message = f"Incorrect key provided: {text}."
    assert text[:8] not in pooler.without_names(message)
    assert pooler.cleaned(message) == ""


@pytest.mark.parametrize("text", NO_KEYS)
def test_what_resembles_a_provider_s_key_is_shown(text: str) -> None:
    message = f"No such thing: {text}."
    assert pooler.without_names(message) == message


@pytest.mark.parametrize("place", ["code", "type", "param"])
@pytest.mark.parametrize("carrier", NAMING_CARRIERS)
async def test_what_names_an_account_is_left_out_of_every_member(
    autojump_clock: MockClock, carrier: str, place: str
) -> None:
    error: dict[str, Json] = {"message": "m", "code": "invalid_prompt", place: "org-abcDEFghi"}
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(NAMING_CARRIERS[carrier](error))
        is_stream = "event" in carrier or "failing" in carrier or "detail" in carrier
        response = await world.ask(ask_responses(stream=is_stream))
        assert b"org-abcDEFghi" not in response.body
        assert "org-abcDEFghi" not in json.dumps(world.records)


async def test_the_id_of_a_request_is_left_in_its_error(autojump_clock: MockClock) -> None:
    """Who asks the upstream for help needs it."""
    message = "Please include the request ID 4f2c7a9e-3b1d-4c5e-8f60-123456789abc in your message."
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(error_response(400, "invalid_prompt", message=message))
        response = await world.ask(ask_responses())
        assert response.error["message"] == message


async def test_a_reason_is_short_and_names_no_host(autojump_clock: MockClock) -> None:
    async with opened_world(describe("a")) as world:
        reason = "cannot reach http://10.0.0.7:8080/v1 (10.0.0.7) " + "x" * 4000
        world.upstreams["a"].plays(error_response(502, None, message=reason))
        response = await world.ask(ask_responses())
        told = response.error["message"]
        assert told.startswith("The upstream failed: cannot reach [...] ([...]) xxx")
        assert len(told) < 400


OURS: Final = sorted(code for code, (status, *_) in ERRORS.items() if status >= 500)


@pytest.mark.parametrize("code", OURS)
@pytest.mark.parametrize("carrier", ["400", "500", "json", "event"])
async def test_no_error_of_an_upstream_has_a_code_of_ours(
    autojump_clock: MockClock, carrier: str, code: str
) -> None:
    """It would send whoever reads it to look for a bug of ours."""
    error = {"code": code, "message": "m", "type": "server_error"}
    answers = {
        "400": json_response({"error": error}, 400),
        "500": json_response({"error": error}, 500),
        "json": json_response({"error": error}),
        "event": json_response({"error": error | {"code": 500, "type": code}}),
    }
    async with opened_world(describe("ab", pool=IN_ORDER)) as world:
        for upstream in world.upstreams.values():
            upstream.always = answers[carrier]
        response = await world.ask(ask_responses(stream=carrier == "event"))
        assert response.error["code"] == "upstream_error"
        assert asked_counts(world) in ([1, 0], [1, 1])
        assert code == "upstream_error" or world.records[0]["code"] == f"upstream:{code}"


@pytest.mark.parametrize("count", [0, OUTPUT_ITEMS_MAX + 1])
def test_what_is_no_chat_answer_becomes_no_stream(count: int) -> None:
    with pytest.raises(BadSyntax):
        events_of({"choices": [{}] * count}, CallKind.CHAT)


LONG: Final = "A" * 100_000
SHORT_WITH_MANY_EVENTS: Final[dict[CallKind, Json]] = {
    CallKind.CHAT: {"id": LONG, "choices": [{}] * (TRANSLATED_BYTES_MAX // len(LONG))},
    CallKind.RESPONSES: {
        "output": [
            {
                "type": "message",
                "id": LONG,
                "content": [{"type": "output_text"}] * (TRANSLATED_BYTES_MAX // len(LONG)),
            }
        ]
    },
}


@pytest.mark.parametrize("kind", CallKind)
def test_a_short_answer_never_becomes_a_stream_without_bound(kind: CallKind) -> None:
    """What each of its events repeats multiplies: a megabyte was made into gigabytes."""
    with pytest.raises(BadSyntax, match="too large"):
        events_of(SHORT_WITH_MANY_EVENTS[kind], kind)


def test_the_longest_answer_in_one_piece_still_becomes_a_stream() -> None:
    text = "A" * (WRITTEN_BYTES_MAX - 1000)
    part = {"type": "output_text", "text": text}
    answer = RESPONSE | {"output": [{"type": "message", "id": "m", "content": [part]}]}
    assert events_of(answer, CallKind.RESPONSES).count(text.encode()) == 5


def chunks(raw: bytes) -> list[Json]:
    found = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(data) for data in found if data != b"[DONE]"]


def test_a_part_without_a_text_is_added_as_it_is() -> None:
    """Upstreams have kinds of parts of their own."""
    part = {"type": "output_image", "image_url": "data:image/png;base64,AAAA"}
    item = {"id": "m", "type": "message", "role": "assistant", "content": [part]}
    lines = events_of({**RESPONSE, "output": [item]}, CallKind.RESPONSES).splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]
    assert [event["part"] for event in events if "part" in event] == [part, part]
    assert not [event for event in events if event["type"].endswith(".delta")]


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
