"""Proves that a codex account answers a Responses and a Chat client as OpenAI's own API would.

Method: the vectors in tests/support/vectors/*.json go through the pure functions of TRANSLATION;
each names what it shows.  `expect_upstream` leaves out the members of ALWAYS, `expect_chunks` what
every chunk contains.  Bodies and events that Hypothesis makes up, a recording of our own, and
recordings of real upstreams if ../shared/fixtures exists next to the checkout, show that nothing
else is raised and that no text is lost.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

import pooler
from pooler import (
    OUTPUT_ITEMS_MAX,
    BadSyntax,
    CallKind,
    ChatTranslator,
    Event,
    EventKind,
    EventScanner,
    OutputCollector,
    PoolerError,
    ResponsesTranslator,
    Translator,
    codex_obstacle,
    drop_reasoning,
    to_codex,
)
from tests.support.paths import OWN_RECORDINGS, RECORDINGS, VECTORS
from tests.support.world import sse_event

Json = Any
EXAMPLES: Final = pytest.mark.parametrize(
    "examples", [100, pytest.param(1500, marks=pytest.mark.slow)]
)
RECORDED: Final = [
    path
    for folder in (OWN_RECORDINGS, RECORDINGS)
    for path in sorted(folder.rglob("responses/*.chunks.txt"))
]
KINDS: Final = {"responses": CallKind.RESPONSES, "chat": CallKind.CHAT}
ALWAYS: Final = {
    "model": "gpt-5.5",
    "instructions": "",
    "include": ["reasoning.encrypted_content"],
    "store": False,
    "stream": True,
}
RESPONSE_BYTES_MAX: Final = 100_000
LF, CRLF = b"\n", b"\r\n"


def vectors(name: str) -> list[Any]:
    found = json.loads((VECTORS / name).read_text(encoding="utf-8"))
    return [pytest.param(vector, id=vector["name"]) for vector in found]


def framed(event: Json, newline: bytes = LF, *, is_named: bool = True) -> bytes:
    data = event if isinstance(event, str) else json.dumps(event)
    lines = [f"data: {data}".encode(), b"", b""]
    if is_named and isinstance(event, dict):
        lines.insert(0, f"event: {event.get('type')}".encode("ascii", "replace"))
    return newline.join(lines)


def fed(answer: Translator, body: bytes) -> list[bytes]:
    """What `answer` makes of each event of a stream."""
    scanner = EventScanner(CallKind.RESPONSES)
    events = scanner.feed(body) + scanner.feed(b"", is_end=True)
    return [answer.feed(event) for event in events]


def payloads(events: bytes) -> list[Json]:
    """The data of each event, parsed; `[DONE]` as it is."""
    data = re.findall(rb"^data: (.*?)\r?$", events, re.MULTILINE)
    return [part.decode() if part == b"[DONE]" else json.loads(part) for part in data]


def chat_response(*, include_usage: bool = False) -> ChatTranslator:
    return ChatTranslator(
        OutputCollector(RESPONSE_BYTES_MAX),
        request_id="spare",
        model="asked",
        created_unix=1,
        include_usage=include_usage,
    )


################################################################
# REQUESTS
################################################################


@pytest.mark.parametrize(
    "vector", vectors("responses-requests.json") + vectors("chat-requests.json")
)
def test_a_request_becomes_what_the_backend_takes(vector: Json) -> None:
    kind, body = KINDS[vector["kind"]], vector["request"]
    before = json.dumps(body)
    obstacle = codex_obstacle(kind, body)
    if "expect_upstream" in vector:
        assert obstacle is None
        made = to_codex(kind, body, body["model"], vector.get("efforts"))
        assert made == ALWAYS | vector["expect_upstream"]
        assert to_codex(CallKind.RESPONSES, made, made["model"], vector.get("efforts")) == made
    elif vector["expect_error"]["code"] == "unsupported_parameter":
        assert obstacle is not None
        assert obstacle.param == vector["expect_error"]["param"]
    else:
        assert obstacle is None
        with pytest.raises(PoolerError) as caught:
            to_codex(kind, body, body["model"], None)
        assert caught.value.status == 400
        assert {"code": caught.value.code, "param": caught.value.param} == vector["expect_error"]
    assert json.dumps(body) == before


def test_the_pool_decides_the_model() -> None:
    body = {"model": "alias", "input": "Hi"}
    assert to_codex(CallKind.RESPONSES, body, "gpt-5.5", None)["model"] == "gpt-5.5"


def test_the_encrypted_content_repair_works_on_what_was_made() -> None:
    items = [
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        {"type": "compaction", "encrypted_content": "y"},
        {"role": "user", "content": "Hi"},
    ]
    made = to_codex(CallKind.RESPONSES, {"input": items}, "m", None)
    repaired = drop_reasoning(made)
    assert repaired is not None
    assert [item["type"] for item in repaired["input"]] == ["message"]


NAMES: Final = (
    "allowed_tools annotations arguments audio call_id content context_management custom detail "
    "effort encrypted_content file file_data file_id format function function_call grammar id "
    "image_url include input instructions json_schema messages modalities mode model n name "
    "output parallel_tool_calls parameters phase prompt_cache_key reasoning reasoning_effort "
    "refusal response_format role schema service_tier status strict summary text tool_call_id "
    "tool_calls tool_choice tools type url url_citation verbosity"
).split()
WORDS: Final = (
    "allowed_tools assistant auto compaction custom custom_tool_call custom_tool_call_output "
    "developer fast file function function_call function_call_output grammar image_url "
    "input_audio input_file input_image input_text item_reference json_schema low message "
    "minimal output_text priority reasoning refusal system text tool ultra user "
    "web_search_preview"
).split()
SCALARS: Final = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=4),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
)


def objects(values: st.SearchStrategy[Json]) -> st.SearchStrategy[dict[str, Json]]:
    return st.dictionaries(st.sampled_from(NAMES), values, max_size=5)


ANYTHING: Final = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), objects(inner)), max_leaves=12
)
PARTS: Final = st.one_of(
    st.text(max_size=3),
    st.lists(
        st.fixed_dictionaries({"type": st.sampled_from(WORDS)}, optional={"text": st.text()}),
        max_size=3,
    ),
)
ITEMS: Final = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        "type": st.sampled_from(WORDS),
        "content": PARTS,
        "output": PARTS,
        "call_id": ANYTHING,
        "tool_call_id": st.text(max_size=2),
        "tool_calls": st.lists(objects(ANYTHING), max_size=2),
        "id": ANYTHING,
    },
)
LIKELY_BODIES: Final = st.fixed_dictionaries(
    {"input": st.lists(ITEMS, max_size=4), "messages": st.lists(ITEMS, max_size=4)},
    optional={
        "tools": st.lists(objects(ANYTHING), max_size=2),
        "tool_choice": objects(ANYTHING),
        "reasoning": objects(st.sampled_from(WORDS)),
        "response_format": objects(ANYTHING),
    },
)
EFFORTS: Final = st.one_of(st.none(), st.lists(st.sampled_from(WORDS), max_size=3))


@EXAMPLES
def test_a_hostile_body_is_translated_or_refused(examples: int) -> None:
    bodies = st.one_of(objects(ANYTHING), LIKELY_BODIES)
    check = given(st.sampled_from(CallKind), bodies, EFFORTS)(check_translated_or_refused)
    settings(max_examples=examples)(check)()


def check_translated_or_refused(
    kind: CallKind, body: dict[str, Json], efforts: list[str] | None
) -> None:
    obstacle = codex_obstacle(kind, body)
    assert obstacle is None or obstacle.param in body
    made, refusal = {}, None
    try:
        made = to_codex(kind, body, "m", efforts)
    except PoolerError as error:
        refusal = error
    if refusal is not None:
        assert refusal.status == 400
        assert refusal.param in NAMES
        return
    assert made["store"] is False
    assert made["stream"] is True
    named = [item for item in made["input"] if "id" in item]
    assert {item["type"] for item in named} <= {"compaction"}
    if obstacle is None:
        assert not any(item["type"] == "item_reference" for item in made["input"])
    roles = {item["role"] for item in made["input"] if item["type"] == "message"}
    assert roles <= {"user", "assistant", "developer"}
    json.dumps(made).encode()
    again = to_codex(CallKind.RESPONSES, made, "m", efforts)
    assert json.dumps(again) == json.dumps(made)


################################################################
# ANSWERS
################################################################


@pytest.mark.parametrize("newline", [LF, CRLF], ids=["lf", "crlf"])
@pytest.mark.parametrize("is_named", [True, False], ids=["named", "bare"])
@pytest.mark.parametrize("vector", vectors("responses-responses.json"))
def test_a_responses_client_gets_repaired_events(
    vector: Json, newline: bytes, is_named: bool
) -> None:
    answer = ResponsesTranslator(OutputCollector(RESPONSE_BYTES_MAX))
    given = [framed(event, newline, is_named=is_named) for event in vector["events"]]
    got = [event for event in fed(answer, b"".join(given)) if event]
    assert [payloads(event) for event in got] == [[event] for event in vector["expect_events"]]
    for event in got:
        assert event.endswith(newline * 2)
        assert event.startswith(b"event: ") is is_named
        assert event in given or b'"output":' in event  # only snapshots are written anew
    if "expect_response" in vector:
        assert answer.whole() == vector["expect_response"]


def expanded(chunk: Json) -> Json:
    """A chunk of a vector with what the vectors leave out."""
    if isinstance(chunk, str) or "error" in chunk:
        return chunk
    head = {"object": "chat.completion.chunk"}
    if "usage" in chunk:
        return {**head, "choices": [], "usage": chunk["usage"]}
    choice = {
        "index": 0,
        "delta": chunk.get("delta", {}),
        "finish_reason": chunk.get("finish_reason"),
    }
    return {**head, "choices": [choice]}


@pytest.mark.parametrize("newline", [LF, CRLF], ids=["lf", "crlf"])
@pytest.mark.parametrize("vector", vectors("chat-responses.json"))
def test_a_chat_client_gets_chunks(vector: Json, newline: bytes) -> None:
    include_usage = vector.get("include_usage", False)
    answer = chat_response(include_usage=include_usage)
    got = payloads(b"".join(fed(answer, b"".join(framed(e, newline) for e in vector["events"]))))
    names_itself = vector["events"][0]["type"] in {"response.created", "codex.rate_limits"}
    for chunk in got:
        if isinstance(chunk, dict) and "error" not in chunk:
            identity = (chunk.pop("id"), chunk.pop("created"), chunk.pop("model"))
            if names_itself:
                assert identity == ("chatcmpl-abc", 1700000000, "gpt-5.5-2026")
            if include_usage and chunk["choices"]:
                assert chunk.pop("usage") is None
    assert got == [expanded(chunk) for chunk in vector["expect_chunks"]]
    if "expect_response" in vector:
        whole = answer.whole()
        choice = {name: vector["expect_response"][name] for name in ("message", "finish_reason")}
        assert whole == {
            "id": "chatcmpl-abc",
            "object": "chat.completion",
            "created": 1700000000,
            "model": "gpt-5.5-2026",
            "choices": [{"index": 0, "logprobs": None, **choice}],
            **{n: v for n, v in vector["expect_response"].items() if n not in choice},
        }


@pytest.mark.parametrize("vector", vectors("chat-responses.json"))
def test_openai_python_knows_every_member_of_a_chat_answer(vector: Json) -> None:
    answer = chat_response(include_usage=True)
    made = payloads(b"".join(fed(answer, b"".join(map(framed, vector["events"])))))
    for chunk in made:
        # The library has no type for a custom tool's deltas, nor for errors in a stream.
        if isinstance(chunk, dict) and "error" not in chunk and '"custom"' not in json.dumps(chunk):
            ChatCompletionChunk.model_validate(chunk)
    if "expect_response" in vector:
        ChatCompletion.model_validate(answer.whole())


def test_what_the_upstream_does_not_say_is_stood_in_for() -> None:
    answer = chat_response()
    body = framed({"type": "response.completed"})
    chunks = payloads(b"".join(fed(answer, body)))
    assert {(c["id"], c["created"], c["model"]) for c in chunks[:-1]} == {
        ("chatcmpl-spare", 1, "asked")
    }
    assert answer.whole()["choices"][0]["message"]["content"] == ""


def test_comments_reach_a_responses_client_only() -> None:
    body = b": ping\n\n" + framed({"type": "keepalive"})
    assert fed(ResponsesTranslator(OutputCollector(RESPONSE_BYTES_MAX)), body) == [
        b": ping\n\n",
        b"",
    ]
    assert fed(chat_response(), body + b"data: [DONE]\n\n") == [b"", b"", b""]


def test_a_type_with_line_ends_makes_no_event_that_nobody_has_read() -> None:
    """A stream that was cut would look complete."""
    hidden = 'data: {"type":"response.completed","response":{}}'
    value = {"type": f"response.x\n\n{hidden}\n\n", "headers": {}, "x": "output_item.done"}
    event = b"event: response.done\ndata: " + json.dumps(value).encode() + b"\n\n"
    [rewritten] = fed(ResponsesTranslator(OutputCollector(RESPONSE_BYTES_MAX)), event)
    del value["headers"]
    [name, data, *rest] = rewritten.splitlines()
    assert (name, json.loads(data[6:]), rest) == (b"event: response.done", value, [b""])


def test_other_lines_of_a_rewritten_event_stay() -> None:
    event = (
        b"\xef\xbb\xbfid: 7\r\nevent: response.created\r\n"
        b'data: {"type":"response.created",\r\ndata: "response":{"output":null}}\r\n\r\n'
    )
    rewritten = (
        b"id: 7\r\nevent: response.created\r\n"
        b'data: {"type":"response.created","response":{"output":[]}}\r\n\r\n'
    )
    assert fed(ResponsesTranslator(OutputCollector(RESPONSE_BYTES_MAX)), event) == [rewritten]


@pytest.mark.parametrize(
    "answer", [ResponsesTranslator(OutputCollector(RESPONSE_BYTES_MAX)), chat_response()], ids=str
)
def test_the_items_that_are_kept_have_a_bound(answer: Translator) -> None:
    part = {"type": "output_text", "text": ""}
    item = {"type": "message", "content": [part]}
    event = {"type": "response.output_item.done", "output_index": 0, "item": item}
    part["text"] = "x" * (RESPONSE_BYTES_MAX - len(framed(event)))
    assert len(framed(event)) == RESPONSE_BYTES_MAX
    answer.feed(Event(EventKind.CONTENT, framed(event)))
    with pytest.raises(BadSyntax):
        answer.feed(Event(EventKind.CONTENT, framed(event)))


EVENT_TYPES: Final = [
    f"response.{name}"
    for name in (
        "created in_progress completed incomplete failed output_text.delta refusal.delta "
        "reasoning_summary_text.delta reasoning_text.delta output_item.added output_item.done "
        "function_call_arguments.delta function_call_arguments.done "
        "custom_tool_call_input.delta custom_tool_call_input.done "
        "output_text.annotation.added metadata"
    ).split()
]
EVENT_NAMES: Final = (
    "annotation arguments call_id code content created_at delta error id incomplete_details input "
    "item item_id message model name output output_index param phase reason refusal response "
    "status summary summary_index text type url usage input_tokens"
).split()
EVENT_WORDS: Final = (
    "commentary custom_tool_call function_call incomplete message output_text reasoning refusal "
    "reasoning_text summary_text url_citation"
).split()
EVENT_VALUES: Final = st.recursive(
    st.one_of(SCALARS, st.sampled_from(EVENT_WORDS), st.integers(0, 2)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(EVENT_NAMES), inner, max_size=4),
    ),
    max_leaves=10,
)
EVENTS: Final = st.builds(
    lambda kind, more: {"type": kind, **{n: v for n, v in more.items() if n != "type"}},
    st.one_of(st.sampled_from(EVENT_TYPES), ANYTHING),
    st.dictionaries(st.sampled_from(EVENT_NAMES), EVENT_VALUES, max_size=5),
)


@EXAMPLES
def test_hostile_events_raise_nothing(examples: int) -> None:
    check = given(st.lists(EVENTS, max_size=6), st.booleans())(check_events_raise_nothing)
    settings(max_examples=examples)(check)()


def check_events_raise_nothing(events: list[Json], is_named: bool) -> None:
    body = b"".join(framed(event, is_named=is_named) for event in events)
    for answer in (
        ResponsesTranslator(OutputCollector(RESPONSE_BYTES_MAX)),
        chat_response(include_usage=True),
    ):
        made = b"".join(fed(answer, body))
        payloads(made)
        assert json.dumps(answer.whole())
        assert made.count(b"[DONE]") <= 1


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(st.sampled_from(["output_text", "refusal"]), st.integers(0, 2), st.text()),
        max_size=8,
    )
)
def test_no_text_is_lost_on_the_way_to_chunks(deltas: list[tuple[str, int, str]]) -> None:
    events = [
        {"type": f"response.{kind}.delta", "output_index": index, "delta": text}
        for kind, index, text in deltas
    ]
    body = b"".join(framed(event) for event in [*events, {"type": "response.completed"}])
    chunks = payloads(b"".join(fed(chat_response(), body)))
    told = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    for kind, member in (("output_text", "content"), ("refusal", "refusal")):
        sent, before = "", None
        for name, index, text in deltas:
            if name == kind and text:
                is_next = kind == "output_text" and before not in {None, index}
                sent += "\n\n" * is_next + text
                before = index
        assert "".join(delta.get(member) or "" for delta in told) == sent


@pytest.mark.parametrize("size", range(0, 60, 7))
def test_an_event_that_is_no_json_harms_nothing(size: int) -> None:
    torn = b'data: {"type":"response.completed","response":{"id":"resp_1","output":[]}}'[:size]
    assert fed(ResponsesTranslator(OutputCollector(RESPONSE_BYTES_MAX)), torn + b"\n\n") == [
        torn + b"\n\n"
    ]
    fed(chat_response(), torn + b"\n\n")


################################################################
# RECORDED STREAMS
################################################################


def test_all_recorded_streams_are_read() -> None:
    assert any(path.is_relative_to(OWN_RECORDINGS) for path in RECORDED)
    if RECORDINGS.is_dir():
        assert len(RECORDED) >= 21


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_recorded_streams_keep_their_text_and_calls(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    ends = [at for at, event in enumerate(events) if event["type"] == "response.completed"]
    del events[ends[0] + 1 :]  # some files hold several turns
    given = [framed(event) for event in events]
    answer = ResponsesTranslator(OutputCollector(10_000_000))
    assert fed(answer, b"".join(given)) == given
    output = events[-1]["response"]["output"]
    assert answer.whole() == events[-1]["response"]
    chat = chat_response()
    chat.output.bytes_max = 10_000_000
    chunks = payloads(b"".join(fed(chat, b"".join(given))))
    told = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    message = chat.whole()["choices"][0]["message"]
    said = [
        "".join(part["text"] for part in item["content"])
        for item in output
        if item["type"] == "message" and item.get("phase") != "commentary"
    ]
    assert (message["content"] or "") == "\n\n".join(said)
    streamed: dict[int, str] = {}  # of each message; some files leave out a part of them
    for event in events:
        if event["type"] == "response.output_text.delta":
            at = event["output_index"]
            streamed[at] = streamed.get(at, "") + event["delta"]
    added = [event for event in events if event["type"] == "response.output_item.added"]
    comments = {e["output_index"] for e in added if e["item"].get("phase") == "commentary"}
    text = "\n\n".join(one for at, one in streamed.items() if at not in comments)
    assert "".join(delta.get("content", "") for delta in told) == text
    calls = [item for item in output if item["type"] == "function_call"]
    assert [call["id"] for call in message.get("tool_calls", [])] == [c["call_id"] for c in calls]
    pieces = [call for delta in told for call in delta.get("tool_calls", [])]
    for index, call in enumerate(calls):
        joined = "".join(p["function"]["arguments"] for p in pieces if p["index"] == index)
        assert joined == call["arguments"]


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        ({"a": ["é", 1]}, '{"a":["é",1]}'.encode()),
        ({"a": "é\ud800"}, '{"a":"é\\ud800"}'.encode()),  # half a character has no UTF-8
    ],
)
def test_json_is_made_as_short_as_it_can_be(value: Json, raw: bytes) -> None:
    assert pooler.dump_json(value) == raw
    assert json.loads(raw) == value


def test_there_are_only_so_many_items() -> None:
    items = [{"role": "user", "content": ""}] * pooler.INPUT_ITEMS_MAX
    made = to_codex(CallKind.CHAT, {"messages": items}, "m", None)
    assert len(made["input"]) == len(items)
    with pytest.raises(PoolerError) as refused:
        to_codex(CallKind.CHAT, {"messages": [*items, items[0]]}, "m", None)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "input")


CALL: Final[Json] = {"type": "function_call", "name": "f", "arguments": "{}"}


def test_items_without_a_name_are_bounded() -> None:
    answer = ChatTranslator(OutputCollector(10**9))
    event = sse_event({"type": "response.output_item.added", "item": CALL})
    for _ in range(OUTPUT_ITEMS_MAX):
        answer.feed(Event(EventKind.CONTENT, event))
    with pytest.raises(BadSyntax, match="too large"):
        answer.feed(Event(EventKind.CONTENT, event))
