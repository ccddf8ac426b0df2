"""Proves that what an upstream says as JSON is read within bounds, wherever it says it.

Method: JSON that is too deep, too long, has too many members or lines, or is none, in every place
where it is read: events, answers in one piece, refusals, frames, model lists, logins.  It is
"nothing known" or an invalid answer, never a bug; what is at a bound passes, one past it does not.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import pooler
from pooler import (
    CATALOGUE_BYTES_MAX,
    CATALOGUE_MEMBERS_MAX,
    CATALOGUE_MODELS_MAX,
    CATALOGUE_PAUSE_SECONDS,
    EVENT_LINES_MAX,
    JSON_DEPTH_MAX,
    JSON_MEMBERS_MAX,
    MESSAGE_CHARS_MAX,
    OUTPUT_ITEMS_MAX,
    UNARY_READ_BYTES_MAX,
    WRITTEN_BYTES_MAX,
    WRITTEN_MEMBERS_MAX,
    BadSyntax,
    BaseUrl,
    CallKind,
    ChatTranslator,
    Event,
    EventKind,
    EventScanner,
    LoginNeeded,
    Model,
    OutputCollector,
    RefreshOutcome,
    ResponsesTranslator,
    ask_once,
    classify_refresh,
    classify_response,
    count_members,
    dump_json,
    event_data,
    load_json,
    load_object,
    parse_auth_file,
    read_catalogue,
    read_error,
    uncollected,
)
from tests.support.codex_world import CREATED, DELTA, ask_scripted, opened_scripted_world, payloads
from tests.support.hostile_bytes import JSON_OBJECTS, JSON_SHAPES
from tests.support.memory_sockets import (
    Json,
    MemorySocket,
    ask_responses,
    post,
    request,
    socket_pair,
)
from tests.support.memory_websockets import open_socket, says, socket_described, socket_world, turn
from tests.support.world import (
    Pause,
    describe,
    json_response,
    opened_world,
    response_head,
    sse_event,
    sse_steps,
)


def listed(count: int) -> bytes:
    """A list that has so many members in all, itself not counted."""
    return b"[" + b",".join([b"1"] * count) + b"]"


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


TOO_MUCH: Final[dict[str, bytes]] = {
    "deep": deep(JSON_DEPTH_MAX + 1),
    "far too deep": deep(100_000),
    "many": listed(JSON_MEMBERS_MAX + 1),
    "many at every level": b"[" + b"[]," * (JSON_MEMBERS_MAX // 2) + b"0]",
}
NO_JSON: Final[dict[str, bytes]] = {
    "cut": b'{"a":', "latin-1": b'{"a":"\xe9"}', "utf-16": '{"a":1}'.encode("utf-16-le"),
    "two": b"{}{}", "words": b"Bad Gateway", "nothing": b"", "nul": b"\0",
}  # fmt: skip


################################################################
# BY VALUE
################################################################


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_would_take_long_is_not_read(name: str) -> None:
    raw = TOO_MUCH[name]
    with pytest.raises(BadSyntax):
        load_json(raw)
    inside = b'{"a":' + raw + b"}"
    with pytest.raises(BadSyntax):
        load_object(inside)
    with pytest.raises(BadSyntax):
        Event(EventKind.CONTENT, b"data: " + inside + b"\n\n").load()
    assert Event(EventKind.CONTENT, b"data: " + inside + b"\n\n").try_load() == {}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_no_json_holds_no_object(name: str) -> None:
    with pytest.raises(ValueError, match=r"line 1|codec"):
        load_json(NO_JSON[name])
    assert load_object(NO_JSON[name]) == {}


def test_each_bound_and_one_past_it() -> None:
    assert load_json(deep(JSON_DEPTH_MAX))
    assert len(load_json(listed(JSON_MEMBERS_MAX))) == JSON_MEMBERS_MAX
    assert load_json(listed(10), members_max=10)
    for raw, members_max in ((deep(JSON_DEPTH_MAX + 1), 10**6), (listed(11), 10)):
        with pytest.raises(BadSyntax):
            load_json(raw, members_max)


def test_what_was_read_at_any_depth_can_be_written() -> None:
    assert dump_json(load_json(deep(JSON_DEPTH_MAX))) == deep(JSON_DEPTH_MAX)


@given(value=JSON_OBJECTS, is_marked=st.booleans())
def test_what_is_within_the_bounds_is_read_as_json_loads_reads_it(
    value: dict[str, Json], is_marked: bool
) -> None:
    raw = b"\xef\xbb\xbf" * is_marked + b" \r\n" * (not is_marked) + json.dumps(value).encode()
    assert load_json(raw) == load_object(raw) == value


@given(raw=st.binary(max_size=40) | JSON_SHAPES.map(str.encode))
def test_any_bytes_are_an_object_or_none(raw: bytes) -> None:
    expected: Json = {}
    with contextlib.suppress(ValueError):
        expected = json.loads(raw.decode())
    assert load_object(raw) == (expected if isinstance(expected, dict) else {})


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (b"9" * 32, int("9" * 32)),
        (b"9" * 33, float("9" * 33)),
        (b"9" * 400, None),
        (b"-" + b"9" * 5000, None),
        (b"1e999", None),
        (b"NaN", None),
        (b"-Infinity", None),
        (b"1.5", 1.5),
    ],
)
def test_a_number_that_cannot_be_written_again_says_nothing(number: bytes, value: Json) -> None:
    found = load_json(b"[" + number + b"]")
    assert found == [value]
    assert json.loads(dump_json(found), parse_constant=pytest.fail) == found


@pytest.mark.parametrize("is_enabled", [True, False])
def test_garbage_is_sought_afterwards_as_before(is_enabled: bool) -> None:
    was_enabled = gc.isenabled()
    (gc.enable if is_enabled else gc.disable)()
    try:
        for raw in (b"{}", b"{"):
            with contextlib.suppress(ValueError):
                load_json(raw)
            assert gc.isenabled() == is_enabled
        assert uncollected(gc.isenabled) is False
    finally:
        (gc.enable if was_enabled else gc.disable)()


@given(value=JSON_OBJECTS)
def test_members_are_counted_at_every_level(value: dict[str, Json]) -> None:
    def slowly(one: Json) -> int:
        members = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        return len(members) + sum(map(slowly, members))

    assert count_members(value) == slowly(value)


LINES: Final[dict[str, Callable[[int], bytes]]] = {
    "lf": lambda count: b"a\n" * (count - 1) + b"\n",
    "cr": lambda count: b"a\r" * (count - 1) + b"\r",
    "crlf": lambda count: b"a\r\n" * (count - 1) + b"\r\n",
    "data": lambda count: b"data:1\n" * (count - 1) + b"\n",
}


@pytest.mark.parametrize("name", LINES)
def test_an_event_has_so_many_lines_and_no_more(name: str) -> None:
    event_data(LINES[name](EVENT_LINES_MAX))
    for reader in (event_data, lambda raw: Event(EventKind.CONTENT, raw).load()):
        with pytest.raises(BadSyntax):
            reader(LINES[name](EVENT_LINES_MAX + 1))


def test_an_event_that_cannot_be_read_is_content_like_any_that_is_not_known() -> None:
    deep = (
        b'data: {"x":'
        + b"[" * JSON_DEPTH_MAX
        + b"]" * JSON_DEPTH_MAX
        + b',"type":"response.completed"}\n\n'
    )
    scanner = EventScanner(CallKind.RESPONSES)
    assert scanner.feed(deep) == [Event(EventKind.CONTENT, deep)]
    assert scanner.terminal is None


def test_a_message_is_one_event_however_many_lines_it_has() -> None:
    scanner = EventScanner(CallKind.RESPONSES, is_socket=True)
    message = b"{" + b"\n" * EVENT_LINES_MAX + b'"type":"response.created"}'
    event = scanner.take_message(message)
    assert (event.kind, event.raw) == (EventKind.HANDSHAKE, message)
    assert event.load() == {"type": "response.created"}


################################################################
# REFUSALS AND LOGINS
################################################################


def test_an_upstream_s_words_are_cut() -> None:
    for value in ({"error": {"message": "x" * 10**6}}, {"detail": "x" * 10**6}):
        assert read_error(value).message == "x" * MESSAGE_CHARS_MAX
    body = json.dumps({"detail": "y" * 10**5}).encode()
    fault = classify_response(400, {}, body, 0.0, is_reshaped=True)
    assert fault.error.public == "y" * MESSAGE_CHARS_MAX
    event = {"type": "error", "code": "c" * 10**5, "message": "m" * 10**5, "param": "p" * 10**5}
    told = ChatTranslator(OutputCollector(10**6), request_id="r").feed(
        Event(EventKind.FAILURE, sse_event(event))
    )
    assert len(told) < 4 * MESSAGE_CHARS_MAX


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ("The encrypted content gAAA...Rg== could not be verified.", "REPAIR"),
        ("The encrypted content for item rs_1 could\nnot, and could not be decrypted.", "REPAIR"),
        ("encrypted content encrypted content could not be verified", "REPAIR"),
        ("could not be verified: the encrypted content x", "RETURN"),
        ("The encrypted content could not be read.", "RETURN"),
    ],
)
def test_what_is_said_of_encrypted_content_is_understood(message: str, action: str) -> None:
    body = json.dumps({"error": {"message": message}}).encode()
    assert classify_response(400, {}, body, 0.0).action.name == action


@pytest.mark.parametrize("raw", [*TOO_MUCH.values(), *NO_JSON.values()])
def test_a_refusal_that_is_not_read_is_judged_by_its_status(raw: bytes) -> None:
    headers = {"content-type": "application/json"}
    for status in (400, 401, 429, 500):
        fault = classify_response(status, headers, b'{"error":' + raw + b"}", 0.0)
        assert fault.error.content()[0].startswith(b'{"error": {"message": "')
    assert classify_refresh(200, b'{"access_token":"a","x":' + raw + b"}") is RefreshOutcome.FAILED


@pytest.mark.parametrize("raw", TOO_MUCH.values())
def test_claims_and_logins_that_are_not_read_say_nothing(raw: bytes) -> None:
    with pytest.raises(LoginNeeded):
        parse_auth_file(b'{"tokens":{"access_token":"a"},"x":' + raw + b"}")
    claims = base64.urlsafe_b64encode(b'{"exp":1,"x":' + raw[:40_000] + b"}").decode()
    login = {"tokens": {"access_token": "a", "id_token": f"a.{claims}.c"}}
    assert parse_auth_file(json.dumps(login).encode()).plan is None


################################################################
# ANSWERS IN ONE PIECE
################################################################

ASK: Final = post("/v1/responses", {"model": "m1", "input": "x"})
USAGE: Final = b'"usage":{"input_tokens":3,"output_tokens":4}'


@pytest.mark.parametrize("name", [*TOO_MUCH, "long"])
async def test_an_answer_that_takes_long_to_read_is_passed_on_unread(
    autojump_clock: MockClock, name: str
) -> None:
    raw = TOO_MUCH.get(name) or b'"' + b"x" * UNARY_READ_BYTES_MAX + b'"'
    body = b'{"id":"r",' + USAGE + b',"x":' + raw + b"}"
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(json_response(body), json_response(b'{"id":"r",' + USAGE + b"}"))
        response = await world.ask(ASK)
        assert (response.status, response.body) == (200, body)
        await world.ask(ASK)
        tokens = [record["tokens"] and record["tokens"]["input_tokens"] for record in world.records]
        assert tokens == [None, 3]


@pytest.mark.parametrize("name", NO_JSON)
async def test_an_answer_that_is_no_json_is_an_invalid_one(
    autojump_clock: MockClock, name: str
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(json_response(NO_JSON[name]))
        response = await world.ask(ASK)
        assert (response.status, response.error["code"]) == (502, "upstream_invalid_response")


################################################################
# EVENTS
################################################################


def test_what_an_untranslated_event_holds_is_not_known_if_it_takes_long() -> None:
    """It passes as it came: its type is all that is needed."""
    events = [
        b'data: {"type":"response.created","response":{"id":"r"}}\n\n',
        b'data: {"type":"response.completed","response":{"x":' + deep(600) + b"}}\n\n",
    ]
    scanner = EventScanner(CallKind.RESPONSES)
    found = [one for event in events for one in scanner.feed(event)]
    assert [event.raw for event in found] == events
    assert (scanner.terminal, scanner.usage) == (EventKind.SUCCESS, None)
    assert scanner.response == {"id": "r"}


@pytest.mark.parametrize("kind", CallKind)
def test_an_event_without_a_type_that_takes_long_is_content(kind: CallKind) -> None:
    event = b'data: {"x":' + deep(600) + b',"type":"response.completed","error":1}\n\n'
    scanner = EventScanner(kind)
    assert scanner.feed(event) == [Event(EventKind.CONTENT, event)]
    assert scanner.terminal is None


def test_of_a_response_only_what_is_short_is_remembered() -> None:
    scanner = EventScanner(CallKind.RESPONSES)
    response = {"id": "r" * 10**6, "object": [1], "created_at": 7, "model": {"a": 1}}
    scanner.feed(sse_event({"type": "response.created", "response": response}))
    assert scanner.response == {"created_at": 7}


@pytest.mark.parametrize("answer", [ResponsesTranslator, ChatTranslator])
@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_translated_event_that_takes_long_is_an_invalid_answer(
    name: str, answer: type[ResponsesTranslator | ChatTranslator]
) -> None:
    event = b'data: {"type":"response.completed","response":' + TOO_MUCH[name] + b"}\n\n"
    with pytest.raises(BadSyntax):
        answer(OutputCollector(10**9)).feed(Event(EventKind.SUCCESS, event))


def item_event(index: int, item: Json) -> bytes:
    done = {"type": "response.output_item.done", "output_index": index, "item": item}
    return sse_event(done)


def test_the_members_of_all_items_together_are_bounded() -> None:
    half = {"a": [1] * (WRITTEN_MEMBERS_MAX // 2 - 1)}
    answer = ResponsesTranslator(OutputCollector(10**9))
    for index in range(2):
        answer.feed(Event(EventKind.CONTENT, item_event(index, half)))
    with pytest.raises(BadSyntax):
        answer.feed(Event(EventKind.CONTENT, item_event(2, {"a": 1})))


def test_items_are_bounded_in_number() -> None:
    answer = ResponsesTranslator(OutputCollector(10**9))
    for _ in range(OUTPUT_ITEMS_MAX):
        answer.feed(Event(EventKind.CONTENT, item_event(-1, {})))
    with pytest.raises(BadSyntax):
        answer.feed(Event(EventKind.CONTENT, item_event(-1, {})))
    for count in (OUTPUT_ITEMS_MAX, OUTPUT_ITEMS_MAX + 1):
        end = {"type": "response.completed", "response": {"output": [{}] * count}}
        chat = ChatTranslator(OutputCollector(10**9), request_id="r")
        if count > OUTPUT_ITEMS_MAX:
            with pytest.raises(BadSyntax):
                chat.feed(Event(EventKind.SUCCESS, sse_event(end)))
        else:
            assert b"[DONE]" in chat.feed(Event(EventKind.SUCCESS, sse_event(end)))


@pytest.mark.parametrize(
    "response",
    [{"x": [1] * WRITTEN_MEMBERS_MAX}, {"x": "x" * WRITTEN_BYTES_MAX}],
    ids=["members", "bytes"],
)
def test_what_is_written_anew_is_bounded(response: Json) -> None:
    event = sse_event({"type": "response.completed", "response": response | {"output": None}})
    with pytest.raises(BadSyntax):
        ResponsesTranslator(OutputCollector(10**9)).feed(Event(EventKind.SUCCESS, event))


def test_only_the_end_is_filled_with_the_items() -> None:
    """Else each of many small events would be as large as all that came before it."""
    answer = ResponsesTranslator(OutputCollector(10**9))
    for index in range(50):
        answer.feed(Event(EventKind.CONTENT, item_event(index, {"x": "y" * 1000})))
    again = {"type": "response.in_progress", "response": {"output": None}}
    told = answer.feed(Event(EventKind.HANDSHAKE, sse_event(again)))
    assert json.loads(event_data(told)) == {**again, "response": {"output": []}}
    end = {"type": "response.completed", "response": {"output": None}}
    told = answer.feed(Event(EventKind.SUCCESS, sse_event(end)))
    assert len(json.loads(event_data(told))["response"]["output"]) == 50


EXCESSIVE: Final[dict[str, bytes]] = {
    "deep": b'{"type":"response.completed","response":' + deep(600) + b"}",
    "many": b'{"type":"response.completed","response":' + listed(JSON_MEMBERS_MAX + 1) + b"}",
    "lines": b'{"type":"response.completed"' + b"\ndata:" * EVENT_LINES_MAX + b"}",
}


@pytest.mark.parametrize("form", ["responses", "responses-stream", "chat", "chat-stream"])
@pytest.mark.parametrize("name", EXCESSIVE)
async def test_a_chatgpt_account_s_excess_is_an_invalid_answer(
    autojump_clock: MockClock, tmp_path: Path, form: str, name: str
) -> None:
    async with opened_scripted_world(tmp_path) as world:
        response = await ask_scripted(
            world, form, sse_steps(CREATED, DELTA, Pause(1), EXCESSIVE[name])
        )
        code = "upstream_invalid_response"
        assert world.records[-1]["code"] == code
        if "stream" not in form:
            assert (response.status, response.error["code"]) == (502, code)
            return
        last = payloads(response)[-1]
        assert (last.get("error") or last["response"]["error"])["code"] == code


@pytest.mark.parametrize("name", EXCESSIVE)
async def test_of_an_account_with_an_api_key_it_passes_as_it_came(
    autojump_clock: MockClock, name: str
) -> None:
    async with opened_world(describe("a")) as world:
        world.upstreams["a"].plays(sse_steps(CREATED, DELTA, Pause(1), EXCESSIVE[name]))
        response = await world.ask(ask_responses())
        assert response.body == b"".join(map(sse_event, (CREATED, DELTA, EXCESSIVE[name])))
        assert world.records[-1]["code"] is None


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_a_frame_s_excess_ends_its_turn_and_no_more(
    autojump_clock: MockClock, name: str
) -> None:
    frame = b'{"type":"error","status":429,"error":' + TOO_MUCH[name] + b"}"
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays(says(frame), turn("word"))
        client = await open_socket(world)
        await client.create()
        assert (await client.read_frame())[1] == frame
        assert (await client.ask())[-1]["type"] == "response.completed"


async def test_a_frame_of_many_lines_is_one_event(autojump_clock: MockClock) -> None:
    frame = b'{"type":"error"' + b"\n" * EVENT_LINES_MAX + b"}"
    async with socket_world(socket_described("a")) as world:
        world.upstreams["a"].plays(says(DELTA, frame))
        client = await open_socket(world)
        assert (await client.ask())[-1] == {"type": "error"}


################################################################
# MODEL LISTS, AND WHAT IS ASKED BESIDES
################################################################


@pytest.mark.parametrize("raw", [*TOO_MUCH.values(), *NO_JSON.values(), b"[7]", b'{"data":{}}'])
def test_a_list_that_is_not_read_is_none(raw: bytes) -> None:
    assert read_catalogue(raw) is None
    assert read_catalogue(b'{"data":[],"x":' + raw + b"}") in (None, {})


def test_a_list_has_so_many_members_and_models() -> None:
    for member, name in (("data", "id"), ("models", "slug")):
        entries = [{name: f"m{index}"} for index in range(CATALOGUE_MODELS_MAX + 1)]
        raw = json.dumps({member: entries}).encode()
        found = read_catalogue(raw, is_codex=name == "slug")
        assert found is not None
        assert (len(found), f"m{CATALOGUE_MODELS_MAX}" in found) == (CATALOGUE_MODELS_MAX, False)
    for count, is_read in ((CATALOGUE_MEMBERS_MAX - 3, True), (CATALOGUE_MEMBERS_MAX, False)):
        raw = b'{"data":[],"x":' + listed(count) + b"}"
        assert (read_catalogue(raw) is not None) == is_read


def test_of_a_model_is_kept_what_is_shown_of_it() -> None:
    levels = [{"effort": name} for name in ("low", "low", "brisk", "high", "x" * 10**5)]
    entry = {"slug": "m1", "context_window": 100, "supported_reasoning_levels": levels, "é": [1.5]}
    found = read_catalogue(json.dumps({"models": [entry]}).encode(), is_codex=True)
    assert found == {"m1": Model(95, ("low", "high"), dump_json(entry), "m1")}
    found = read_catalogue(json.dumps({"data": [{"id": "m1", "x": "y" * 10**5}]}).encode())
    assert found == {"m1": Model()}


async def test_a_model_list_has_so_many_bytes_and_no_more(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    accounts = {"a": {"models": None}}
    for extra, is_read in ((0, True), (1, False)):
        shell = b'{"data":[{"id":"m7"}],"x":""}'
        padding = b"x" * (CATALOGUE_BYTES_MAX + extra - len(shell))
        async with opened_world(describe("a", accounts=accounts)) as world:
            world.upstreams["a"].catalogue = json_response(shell[:-2] + padding + shell[-2:])
            await world.ask(request("GET", "/v1/models"))
            shown = (await world.ask(request("GET", "/v1/models"))).json()
            assert [model["id"] for model in shown["data"]] == ["m7"] * is_read


async def test_the_list_that_codex_gets_is_joined_from_what_is_kept(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [{"slug": f"m{index}", "text": "é\ud800"} for index in range(3)]
    async with opened_scripted_world(tmp_path, models=None) as world:
        world.upstreams["a"].catalogue = json_response({"models": entries})
        autojump_clock.jump(CATALOGUE_PAUSE_SECONDS)
        await world.ask(request("GET", "/backend-api/codex/models"))
        monkeypatch.setattr(pooler, "dump_json", None)
        response = await world.ask(request("GET", "/backend-api/codex/models"))
        assert response.json() == {"models": entries}


async def test_an_answer_to_a_question_besides_has_so_many_bytes(
    autojump_clock: MockClock,
) -> None:
    """So the token endpoint's: it has to fit into the login's file."""
    for byte_count, fits in ((1000, True), (1001, False)):
        ours, theirs = socket_pair()
        head = response_head(200, [("content-length", str(byte_count))])
        await theirs.send_all(head + b"x" * byte_count)

        async def dial(*_: object, stream: MemorySocket = ours) -> MemorySocket:
            await trio.lowlevel.checkpoint()
            return stream

        url = BaseUrl(is_tls=False, host="h", port=1, path="")
        asked = functools.partial(ask_once, dial, url, None, b"x", proxy=None, bytes_max=1000)
        if fits:
            assert await asked() == (200, b"x" * byte_count)
        else:
            with pytest.raises(BadSyntax):
                await asked()
