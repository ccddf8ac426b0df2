"""What a ChatGPT Codex backend refuses and sends: the pure half of `codex_backend.py`.

`check_body` raises `Refused` for everything that tests/FACTS.md says is refused (F2 to F13),
with the raw shape of the real error; `make_events` gives the events of a turn, as a `Play`
wants it.

Where the facts leave a choice this takes the strictest reading.  One exception: Codex CLI itself
sends no `instructions`, and `id`s on its items (measured: Codex CLI 0.169.0), so a request with
`client_metadata`, which only Codex sends, may do both.
(No claims.)
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

Json = Any
Pairs = Sequence[tuple[str, str]]

ANSWER: Final = "It is best made of quinces, and slowly, on a rainy afternoon."
THOUGHT: Final = "The fruit will tell."
FOUND: Final = "A page about quinces, and how long they boil."
CALL_ID: Final = "call_a"
TURN_STATE: Final = "sticky-backend-1"
MODELS: Final[Mapping[str, Sequence[str]]] = {  # with the efforts that each one has
    "gpt-5.5": ("low", "medium", "high", "xhigh"),
    "gpt-5.4": ("none", "low", "medium", "high"),
    "gpt-6.2-sol": ("low", "medium", "high", "xhigh", "max", "ultra"),
}
LITE_MODELS: Final = frozenset({"gpt-6.2-sol"})


################################################################
# LOGINS
################################################################


@dataclass(frozen=True, slots=True)
class Login:
    """What the backend knows of one account."""

    account_id: str
    access_token: str
    refresh_token: str
    plan: str = "plus"
    primary_used: float = 12.5  # percent of the window of 5 hours
    secondary_used: float = 40.0  # of the week


def encode_part(content: Json) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


################################################################
# REFUSALS
################################################################


@dataclass(frozen=True, slots=True)
class Answer:
    """A response in one piece; a `body` of bytes is sent as it is."""

    status: int
    body: Json
    headers: Pairs = ()


class Refused(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


def deny(detail: str, status: int = 400) -> NoReturn:
    """The raw shape of the backend itself (F2)."""
    raise Refused(Answer(status, {"detail": detail}))


def error_body(code: str | None, message: str, param: str | None = None) -> Json:
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid(code: str | None, message: str, param: str, status: int = 400) -> NoReturn:
    """The shape of the API behind the backend (F6)."""
    raise Refused(Answer(status, error_body(code, message, param)))


ALLOWED: Final = frozenset(
    "model instructions input tools tool_choice parallel_tool_calls reasoning store stream include "
    "prompt_cache_key text service_tier context_management client_metadata".split()
)
SERVICE_TIERS: Final = frozenset({"priority", "ultrafast"})
ID_CHARS_MAX: Final = 64
ALLOWED_COMPACT: Final = frozenset(
    "model instructions input tools parallel_tool_calls reasoning text".split()
)
TOOL_TYPES: Final = frozenset(
    "function custom web_search image_generation local_shell tool_search namespace".split()
)
ALLOWED_SEARCH: Final = frozenset(
    "id model reasoning input commands settings max_output_tokens".split()
)
ITEM_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    kind: frozenset(fields.split())
    for kind, fields in {
        "message": "role content status phase",
        "reasoning": "summary content encrypted_content",
        "function_call": "call_id name arguments namespace",
        "function_call_output": "call_id output",
        "custom_tool_call": "call_id name input namespace",
        "custom_tool_call_output": "call_id output",
        "local_shell_call": "call_id action status",
        "web_search_call": "action status",
        "tool_search_call": "call_id execution arguments status",
        "tool_search_output": "call_id execution tools status",
        "image_generation_call": "result revised_prompt status",
        "shell_call": "call_id action status",
        "shell_call_output": "call_id output status",
        "additional_tools": "role tools",
        "configuration_update": "reasoning",
        **dict.fromkeys(("compaction", "compaction_summary"), "id encrypted_content"),
        "compaction_trigger": "",
    }.items()
}
NATIVE_FIELDS: Final = frozenset({"id", "status", "internal_chat_message_metadata_passthrough"})
LITE: Final = "x-openai-internal-codex-responses-lite"
LITE_IN_FRAME: Final = f"ws_request_header_{LITE.replace('-', '_')}"  # in client_metadata
LITE_ITEMS: Final = frozenset({"additional_tools", "configuration_update"})
INPUT_PARTS: Final = frozenset({"input_text", "input_image", "input_file"})
PART_TYPES: Final[Mapping[str, frozenset[str]]] = {
    "user": INPUT_PARTS,
    "developer": INPUT_PARTS,
    "assistant": frozenset({"output_text", "refusal"}),
}
CALLS: Final = {  # the type of an output, and that of its call
    "function_call_output": "function_call",
    "custom_tool_call_output": "custom_tool_call",
}


def check_top(body: Mapping[str, Json]) -> None:
    """What is not allowed, and what must be there (F2, F3)."""
    if "instructions" not in body and "client_metadata" not in body:
        deny("Instructions are required")
    if not isinstance(body.get("instructions", ""), str):
        deny("Instructions are not valid")
    if body.get("store") is not False:
        deny("Store must be set to false")
    if body.get("stream") is not True:
        deny("Stream must be set to true")
    check_names(body, ALLOWED)
    if len(body.get("prompt_cache_key") or "") > ID_CHARS_MAX:
        invalid("string_above_max_length", "String too long.", "prompt_cache_key")
    if body.get("service_tier", "priority") not in SERVICE_TIERS:
        deny(f"Unsupported service_tier: {body['service_tier']}")


def check_names(body: Mapping[str, Json], allowed: frozenset[str]) -> None:
    for name in body:
        if name not in allowed:
            deny(f"Unsupported parameter: {name}")


def check_model(body: Mapping[str, Json]) -> None:
    model = body.get("model")
    if model not in MODELS:
        deny(f"The '{model}' model is not supported when using Codex with a ChatGPT account.")
    effort = (body.get("reasoning") or {}).get("effort")
    if effort not in {None, "none", *MODELS[str(model)]}:
        invalid("unsupported_value", f"Unsupported value: '{effort}'.", "reasoning.effort")


def check_input(items: Json, *, is_native: bool, is_anchored: bool) -> None:
    """The input, item by item (F4, F6); an anchored request's calls may be in earlier turns."""
    if not isinstance(items, list):
        deny("Input must be a list")
    called: set[tuple[str, str]] = set()
    for index, item in enumerate(items):
        place = f"input[{index}]"
        kind = check_item(item, place, is_native=is_native)
        if kind == "compaction_trigger" and item is not items[-1]:
            invalid("invalid_value", "A compaction trigger must be the last item.", place)
        call_id = str(item.get("call_id"))
        is_known = is_anchored or (CALLS.get(kind, ""), call_id) in called
        if kind in CALLS and not is_known:
            message = f"No tool call found for function call output with call_id {call_id}."
            invalid(None, message, "input")
        called.add((kind, call_id))


def check_item(item: Json, place: str, *, is_native: bool) -> str:
    """The type of a good item."""
    kind = str(item.get("type", "message"))
    is_known = is_native or "id" in ITEM_FIELDS.get(kind, ())
    if kind == "item_reference" or ("id" in item and not is_known):
        message = (
            f"Item with id '{item.get('id')}' not found. Items are not persisted when `store` is "
            "set to false. Try again with `store` set to true, or remove this item from your input."
        )
        invalid(None, message, "input", status=404)
    if kind not in ITEM_FIELDS:
        invalid("invalid_value", f"Invalid value: '{kind}'.", f"{place}.type")
    fields = ITEM_FIELDS[kind] | {"type"} | (NATIVE_FIELDS if is_native else frozenset())
    for name in item:
        if name not in fields:
            invalid("unknown_parameter", "Unknown parameter.", f"{place}.{name}")
    if len(str(item.get("call_id"))) > ID_CHARS_MAX:
        message = f"Invalid '{place}.call_id': string too long."
        invalid("string_above_max_length", message, f"{place}.call_id")
    check_tools(item.get("tools"), f"{place}.tools")
    if kind == "message":
        check_message(item, place)
    elif kind == "reasoning":
        check_reasoning(item, place)
    elif kind in CALLS and isinstance(item.get("output"), list):
        check_parts(item["output"], INPUT_PARTS, f"{place}.output")
    return kind


def check_message(item: Mapping[str, Json], place: str) -> None:
    role = str(item.get("role"))
    if role == "system":
        deny("System messages are not allowed")
    if role not in PART_TYPES:
        invalid("invalid_value", f"Invalid value: '{role}'.", f"{place}.role")
    check_parts(item.get("content"), PART_TYPES[role], f"{place}.content")


def check_reasoning(item: Mapping[str, Json], place: str) -> None:
    if not isinstance(item.get("summary"), list):
        invalid("missing_required_parameter", "Missing parameter.", f"{place}.summary")
    if item.get("content"):
        invalid("array_above_max_length", "Array too long.", f"{place}.content")
    if not item.get("encrypted_content"):
        invalid(None, f"Item with id '{item.get('id')}' not found.", "input", status=404)


def check_parts(parts: Json, allowed: frozenset[str], place: str) -> None:
    if not isinstance(parts, list):
        invalid("invalid_type", "Invalid type: expected a list of parts.", place)
    for index, part in enumerate(parts):
        kind = part.get("type")
        if kind not in allowed:
            invalid("invalid_value", f"Invalid value: '{kind}'.", f"{place}[{index}].type")
        if not isinstance(part.get("image_url", ""), str):
            invalid("invalid_type", "Invalid type for 'image_url'.", f"{place}[{index}].image_url")


def check_tools(tools: Json, place: str) -> None:
    for index, tool in enumerate(tools or []):
        kind = tool.get("type")
        if kind not in TOOL_TYPES:
            invalid("invalid_value", f"Invalid value: '{kind}'.", f"{place}[{index}].type")
        if kind in {"function", "custom"} and not isinstance(tool.get("name"), str):
            invalid("missing_required_parameter", "Missing parameter.", f"{place}[{index}].name")
        schema = tool.get("parameters", {"properties": {}})
        if kind == "function" and schema is not None and "properties" not in schema:
            message = "In context=(), object schema missing properties."
            invalid("invalid_function_parameters", message, f"{place}[{index}].parameters")
        check_tools(tool.get("tools"), f"{place}[{index}].tools")


def check_choice(choice: Json) -> None:
    if not isinstance(choice, dict):
        return
    if choice.get("type") in {"auto", "none", "required"}:
        invalid("invalid_value", f"Invalid value: '{choice['type']}'.", "tool_choice.type")
    if not choice.keys() & {"name", "tools", "mode"}:
        invalid("missing_required_parameter", "Missing parameter.", "tool_choice.name")


def check_text(body: Mapping[str, Json]) -> None:
    form = (body.get("text") or {}).get("format") or {"type": "text"}
    if form.get("type") not in {"text", "json_object", "json_schema"}:
        invalid("invalid_value", "Invalid value.", "text.format.type")
    for name in ("name", "schema"):
        if form["type"] == "json_schema" and name not in form:
            invalid("missing_required_parameter", "Missing parameter.", f"text.format.{name}")
    if form["type"] == "json_object" and "json" not in json.dumps(texts_of(body["input"])).lower():
        message = (
            "Response input messages must contain the word 'json' in some form to use "
            "'text.format' of type 'json_object'."
        )
        invalid(None, message, "input")


def texts_of(items: Json) -> list[Json]:
    """What the messages say."""
    contents = [item.get("content") for item in items if item.get("type") == "message"]
    return [part.get("text") for content in contents for part in content]


def check_search(body: Json) -> None:
    """Raises: Refused.  Unlike a turn, a search names each fault as the API behind it does."""
    if not isinstance(body, dict):
        deny("Bad Request")
    for name in ("id", "commands"):
        if name not in body:
            invalid("missing_required_parameter", "Missing parameter.", name)
    for name in body:
        if name not in ALLOWED_SEARCH:
            invalid("unknown_parameter", f"Unknown parameter: '{name}'.", name)


def check_lite(body: Mapping[str, Json], headers: Mapping[str, str]) -> None:
    """A turn that is marked as Responses Lite is in its form, and has what only that form has."""
    metadata = body.get("client_metadata") or {}
    is_marked = "true" in {headers.get(LITE), metadata.get(LITE_IN_FRAME)}
    is_whole = (body.get("reasoning") or {}).get("context") == "all_turns"
    if is_marked and not (is_whole and body.get("parallel_tool_calls") is False):
        message = "Responses Lite requires reasoning.context all_turns and no parallel tool calls."
        invalid("unsupported_value", message, "reasoning.context")
    for index, item in enumerate(body["input"]):
        if not is_marked and (item.get("type") in LITE_ITEMS or "namespace" in item):
            invalid("unknown_parameter", "Unknown parameter.", f"input[{index}]")


def check_body(
    body: Json,
    *,
    headers: Mapping[str, str] | None = None,
    is_compact: bool = False,
    is_anchored: bool = False,
) -> None:
    """Raises: Refused, for the first fault."""
    if not isinstance(body, dict):
        deny("Bad Request")
    if is_compact:
        check_names(body, ALLOWED_COMPACT)
    else:
        check_top(body)
    check_model(body)
    # A compact body has no client_metadata: there Codex's own ids cannot be told from others.
    is_native = is_compact or "client_metadata" in body
    check_input(body.get("input"), is_native=is_native, is_anchored=is_anchored)
    check_lite(body, headers or {})
    check_tools(body.get("tools"), "tools")
    check_choice(body.get("tool_choice", "auto"))
    check_text(body)


################################################################
# PLAYS
################################################################


@dataclass(frozen=True, slots=True)
class Play:
    """What the next `count` requests that match get; the fields are also those of the script.

    `error` is a name of ERRORS; `status`, `body` and `headers` are any other response.  Otherwise a
    stream: a call of `tool` ("*": the first one offered) if it is offered, else `text`.
    """

    account: str = ""  # only with this account's id
    at: str = "turn"  # or search; of a WebSocket: upgrade | warm_up (only an error is sent there)
    with_tools: bool = False  # only where tools are offered
    count: int = 1  # 0: for ever
    error: str = ""
    seconds: int = 3600  # until a limit is over
    status: int = 0
    body: Json = None
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ANSWER
    repeat: int = 1  # how often the text is sent
    commentary: str = ""  # sent before the text, which is then the final answer
    refusal: str = ""
    tool: str = ""
    arguments: Json = None  # of the tool; a string for a custom tool
    input_tokens: int = 11  # as they are reported
    ends: str = "completed"  # incomplete | response.failed | error | cut | quiet | stall; and of a
    # WebSocket: close | limit (of its age)
    close_code: int = 0  # of a WebSocket, which is closed with it after what there is of the turn
    code: str = "server_is_overloaded"  # of what failed
    after: str = "content"  # or handshake | nothing: when another end than `completed` comes
    has_null_output: bool = False  # in every snapshot
    has_content_type: bool = True
    has_extra_events: bool = False  # codex.rate_limits, keepalive, response.metadata
    has_one_delta: bool = False
    newline: str = "\n"


@dataclass(frozen=True, slots=True)
class TokenPlay:
    """What the next refresh gets: a refusal, or nothing (status 0: the connection is cut)."""

    status: int = 401
    code: str = "refresh_token_expired"
    shape: str = "object"  # or string | top: where the code stands
    is_spent: bool = False  # the token has been exchanged all the same

    def body(self) -> Json:
        shapes: dict[str, Json] = {
            "object": error_body(self.code, "The refresh was refused."),
            "string": {"error": self.code, "error_description": "The refresh was refused."},
            "top": {"code": self.code},
        }
        return shapes[self.shape]


Maker = Callable[[Login, Play, float], Answer]


def usage_limit(login: Login, play: Play, now: float) -> Answer:
    error = {
        "type": "usage_limit_reached",
        "message": "The usage limit has been reached",
        "plan_type": login.plan,
        "resets_at": int(now) + play.seconds,
        "resets_in_seconds": play.seconds,
    }
    used_up = replace(login, primary_used=100.0)
    headers = [*limit_headers(used_up, now, play.seconds), ("x-codex-active-limit", "codex")]
    return Answer(429, {"error": error}, headers)


def limit_headers(login: Login, now: float, seconds: int = 9000) -> Pairs:
    """The headers that report quota (F33)."""
    windows = (
        ("primary", login.primary_used, 300, seconds),
        ("secondary", login.secondary_used, 10080, 3 * 24 * 3600),
    )
    return [
        ("x-codex-plan-type", login.plan),
        *(
            (f"x-codex-{name}-{what}", str(value))
            for name, used, minutes, left in windows
            for what, value in (
                ("used-percent", used),
                ("window-minutes", minutes),
                ("reset-at", int(now) + left),
            )
        ),
    ]


def usage_report(login: Login, now: float, seconds: int = 9000) -> dict[str, Json]:
    """What the usage route reports of the same quota (F36)."""

    def window(used: float, length: int, left: int) -> dict[str, Json]:
        return {
            "used_percent": used,
            "limit_window_seconds": length,
            "reset_after_seconds": left,
            "reset_at": int(now) + left,
        }

    used_up = max(login.primary_used, login.secondary_used) >= 100
    rates = {
        "allowed": not used_up,
        "limit_reached": used_up,
        "primary_window": window(login.primary_used, 18000, seconds),
        "secondary_window": window(login.secondary_used, 604800, 3 * 24 * 3600),
    }
    spark = {**rates, "primary_window": window(0, 18000, seconds), "secondary_window": None}
    return {
        "user_id": f"user-{login.account_id}",
        "account_id": login.account_id,
        "email": f"{login.account_id}@example.com",
        "plan_type": login.plan,
        "rate_limit": rates,
        "code_review_rate_limit": None,
        "credits": {"has_credits": False, "unlimited": False, "balance": "0"},
        "additional_rate_limits": [
            {
                "limit_name": "GPT-5.3-Codex-Spark",
                "metered_feature": "codex_bengalfox",
                "rate_limit": spark,
            }
        ],
        "rate_limit_reset_credits": {"available_count": 0},
    }


def failing(status: int, code: str | None, message: str, headers: Pairs = ()) -> Maker:
    return lambda login, play, now: Answer(status, error_body(code, message), headers)


NOT_VERIFIED: Final = "The encrypted content gAAA...Rg== could not be verified."
REASON: Final = "Reason: Encrypted content could not be decrypted or parsed."
UNSUPPORTED: Final = "model is not supported when using Codex with a ChatGPT account."
ENCRYPTED: Final = {"encrypted_a", "encrypted_b"}  # only if there is encrypted content
CHALLENGE: Final = [("content-type", "text/html"), ("cf-mitigated", "challenge")]
ERRORS: Final[Mapping[str, Maker]] = {
    "usage_limit": usage_limit,
    "usage_not_included": failing(429, "usage_not_included", "Your plan has no Codex."),
    "rate_limited": failing(
        429, "rate_limit_exceeded", "Please try again in 1.5s.", [("retry-after", "2")]
    ),
    "insufficient_quota": failing(429, "insufficient_quota", "You exceeded your quota."),
    "overloaded": failing(503, "server_is_overloaded", "Our servers are overloaded."),
    "token_expired": failing(401, "token_expired", "The token is expired."),
    "token_invalidated": failing(401, "token_invalidated", "The token was invalidated."),
    "workspace_off": lambda login, play, now: Answer(402, {"detail": "deactivated_workspace"}),
    "account_deactivated": failing(403, "account_deactivated", "The account is deactivated."),
    "model_unsupported": lambda login, play, now: Answer(
        400, {"detail": f"The 'gpt-5.5' {UNSUPPORTED}"}
    ),
    "encrypted_a": failing(400, "invalid_encrypted_content", NOT_VERIFIED),
    "encrypted_b": failing(400, None, f"{NOT_VERIFIED} {REASON}"),
    "context_length": failing(400, "context_length_exceeded", "The input is too long."),
    "challenge": lambda login, play, now: Answer(403, b"<html>Just a moment</html>", CHALLENGE),
}


def has_encrypted_content(body: Mapping[str, Json]) -> bool:
    return any(item.get("encrypted_content") for item in body["input"])


################################################################
# ANSWERS
################################################################


def usage(play: Play) -> Json:
    return {
        "input_tokens": play.input_tokens,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": play.input_tokens + 7,
    }


def sample(schema: Mapping[str, Json]) -> Json:
    """A value of the schema; enough for objects of plain values."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: sample(inner) for name, inner in schema.get("properties", {}).items()}
    plain: dict[Json, Json] = {"integer": 50, "number": 50, "boolean": True, "array": []}
    return plain.get(kind, "quinces")


def offered(body: Mapping[str, Json], name: str) -> Mapping[str, Json] | None:
    added = [item for item in body["input"] if item.get("type") == "additional_tools"]
    lists = [body.get("tools") or [], *(item["tools"] for item in added)]
    tools = [tool for tools in lists for tool in unfolded(tools)]
    return next((tool for tool in tools if name in {"*", tool["name"]}), None)


def unfolded(tools: Sequence[Mapping[str, Json]]) -> Iterator[Mapping[str, Json]]:
    """The tools that can be called; one in a namespace has its name before its own."""
    for tool in tools:
        if tool["type"] == "namespace":
            yield from ({**inner, "namespace": tool["name"]} for inner in unfolded(tool["tools"]))
        elif tool["type"] in {"function", "custom"}:
            yield tool


def output_text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def said(part: Json) -> Json:
    return {"type": "message", "status": "completed", "role": "assistant", "content": [part]}


def make_items(body: Mapping[str, Json], play: Play, sealed: str) -> list[dict[str, Json]]:
    """The output of a turn; `sealed` is its encrypted content.  A warm-up has none."""
    if body.get("generate") is False:
        return []
    last = body["input"][-1] if body["input"] else {}
    if last.get("type") == "compaction_trigger":
        return [{"type": "compaction", "id": "cmp_1", "encrypted_content": sealed}]
    before = said(output_text(play.commentary)) | {"id": "msg_0", "phase": "commentary"}
    phased = [before] if play.commentary else []
    tool = offered(body, play.tool) if play.tool else None
    if tool is None:
        form = (body.get("text") or {}).get("format") or {}
        text = json.dumps(sample(form["schema"])) if "schema" in form else play.text * play.repeat
        part = {"type": "refusal", "refusal": play.refusal} if play.refusal else output_text(text)
        phase = {"phase": "final_answer"} if phased else {}
        return [*phased, said(part) | {"id": "msg_1"} | phase]
    summary = [{"type": "summary_text", "text": THOUGHT}]
    thought = {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": sealed}
    call = {"id": "fc_1", "status": "completed", "call_id": CALL_ID, "name": tool["name"]}
    if "namespace" in tool:
        call["namespace"] = tool["namespace"]
    if tool["type"] == "custom":
        call |= {"type": "custom_tool_call", "id": "ctc_1", "input": play.arguments or ""}
    else:
        call |= {"type": "function_call", "arguments": json.dumps(play.arguments or {})}
    return [thought, *phased, call]


def pieces(text: str, *, is_whole: bool) -> list[str]:
    return [text] if is_whole else text.replace(" ", " \0").split("\0")


DELTAS: Final = {  # of a part or an item: the name of its events, and the field with the text
    "output_text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "summary_text": ("response.reasoning_summary_text", "text"),
    "function_call": ("response.function_call_arguments", "arguments"),
    "custom_tool_call": ("response.custom_tool_call_input", "input"),
}
PARTS: Final = {  # of an item with parts: their field, their events, their index
    "message": ("content", "response.content_part", "content_index"),
    "reasoning": ("summary", "response.reasoning_summary_part", "summary_index"),
}


def text_events(holder: Mapping[str, Json], place: Json, play: Play) -> Iterator[dict[str, Json]]:
    name, key = DELTAS[holder["type"]]
    for piece in pieces(holder[key], is_whole=play.has_one_delta):
        yield {"type": f"{name}.delta", **place, "delta": piece}
    yield {"type": f"{name}.done", **place, key: holder[key]}


def item_events(index: int, item: dict[str, Json], play: Play) -> Iterator[dict[str, Json]]:
    """What a stream has of one item, from `added` to `done`."""
    place = {"item_id": item["id"], "output_index": index}
    kind = item["type"]
    field_name, part_event, index_name = PARTS.get(kind, ("", "", ""))
    blank = item | ({field_name: []} if field_name else {})
    if kind in DELTAS:
        blank[DELTAS[kind][1]] = ""
    yield {"type": "response.output_item.added", "output_index": index, "item": blank}
    for number, part in enumerate(item.get(field_name, [])):
        spot = place | {index_name: number}
        empty = part | {DELTAS[part["type"]][1]: ""}
        yield {"type": f"{part_event}.added", **spot, "part": empty}
        yield from text_events(part, spot, play)
        yield {"type": f"{part_event}.done", **spot, "part": part}
    if kind in DELTAS:
        yield from text_events(item, place, play)
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def extra_events(login: Login, now: float) -> list[dict[str, Json]]:
    reset_at = int(now) + 9000
    window = {"used_percent": login.primary_used, "window_minutes": 300, "reset_at": reset_at}
    limits = {"allowed": True, "limit_reached": False, "primary": window, "secondary": None}
    headers = {"openai-model": "gpt-5.5", "x-codex-turn-state": TURN_STATE}
    return [
        {"type": "codex.rate_limits", "plan_type": login.plan, "rate_limits": limits},
        {"type": "response.metadata", "headers": headers, "metadata": {}},
        {"type": "keepalive"},
    ]


UNNUMBERED: Final = ("codex.", "keepalive", "response.metadata")


def make_events(
    body: Mapping[str, Json], play: Play, login: Login, number: int, now: float
) -> list[dict[str, Json]]:
    """The events of a turn, as far as it gets; `number` makes its id."""
    items = make_items(body, play, f"gAAAA{encode_part([login.account_id, number])}")
    none: Json = None if play.has_null_output else []
    response = {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": int(now),
        "status": "in_progress",
        "model": body["model"],
        "output": none,
        "error": None,
        "incomplete_details": None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    events: list[dict[str, Json]] = [
        {"type": "response.created", "response": response},
        {"type": "response.in_progress", "response": response},
    ]
    if play.has_extra_events:
        events += extra_events(login, now)
    if play.ends == "completed" or play.after == "content":
        events += [event for at, item in enumerate(items) for event in item_events(at, item, play)]
    if play.ends not in {"completed", "incomplete"}:
        is_delta = [str(event["type"]).endswith(".delta") for event in events]
        events = events[: is_delta.index(True) + 1] if True in is_delta else events
    if play.ends != "completed" and play.after == "nothing":
        events = []
    whole = none if play.has_null_output else items
    events += [*last_events(play, response | {"output": whole, "usage": usage(play)})]
    numbered = [event for event in events if not str(event["type"]).startswith(UNNUMBERED)]
    for index, event in enumerate(numbered):
        event["sequence_number"] = index
    return events


def last_events(play: Play, response: dict[str, Json]) -> Iterator[dict[str, Json]]:
    """The terminal event, if there is one."""
    error = {"code": play.code, "message": "The upstream is not well."}
    if play.ends == "completed":
        yield {"type": "response.completed", "response": response | {"status": "completed"}}
    elif play.ends == "incomplete":
        details = {"reason": "max_output_tokens"}
        more = {"status": "incomplete", "incomplete_details": details}
        yield {"type": "response.incomplete", "response": response | more}
    elif play.ends == "response.failed":
        more = {"status": "failed", "error": error, "output": []}
        yield {"type": "response.failed", "response": response | more}
    elif play.ends == "error":
        yield {"type": "error", "error": error}


def framed(event: Mapping[str, Json], newline: str) -> bytes:
    return newline.join([f"event: {event['type']}", f"data: {json.dumps(event)}", "", ""]).encode()
