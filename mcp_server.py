"""The operator's MCP tools: what the pooler does, read-only and as metadata only.

`answer` takes one POST to `/mcp`; pooler.py has bounded its body, checked Host and Origin, and
knows which operator asks.  This file never imports pooler.py, which under `python pooler.py`
would be a second one: what it shows comes in as `snapshot` and `explain`.  Of the snapshot only
what a shape below names is shown: a new field stays private.  Nothing outlives the call.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Annotated, Any, Final, Literal

import mcp_types as types
import trio
from mcp.server import Server, caching, connection, context, runner
from mcp.shared import exceptions, inbound, message, transport_context
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, KNOWN_PROTOCOL_VERSIONS
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

Facts = Mapping[str, Any]  # the snapshot, or a part of it
Look = Callable[[], Facts]
Explain = Callable[[str, str, str | None], Facts]
More = Callable[[Facts, Facts], Facts]
Headers = Mapping[str, str]
Request = types.JSONRPCRequest
Answer = tuple[int, list[tuple[str, str]], bytes]

################################################################
# LIMITS
################################################################

ROWS_MAX: Final = 100  # of a list in one answer; pools.json seldom has as many
LOGS_MAX: Final = 50  # of requests in one answer: about 20 kB
LOG_OFFSET_MAX: Final = 10_000  # more than the pooler remembers
TEXT_CHARS_MAX: Final = 200  # of an argument
WORD_CHARS_MAX: Final = 64  # of a name that a client or an upstream may have chosen
JSON_DEPTH_MAX: Final = 100  # as everywhere in the pooler
JSON_SEPARATORS_MAX: Final = 10_000  # a request has some dozens; so many are parsed in 5 ms
FRESH_SECONDS_MAX: Final = 15 * 60  # a resting account is asked again as often
LIST_TTL_MS: Final = 300_000  # the tools change with the program only

################################################################
# WHAT AN OPERATOR MAY SEE
################################################################
# One strict model per input and output: schema, validation and allow-list in one.


class Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


def word(name: str | None) -> str | None:
    """A name that a client or an upstream may have chosen: short, without markup or controls."""
    return None if name is None else re.sub(r"[^A-Za-z0-9._:/@+-]", "?", name[:WORD_CHARS_MAX])


def moment(unix: float | None) -> str | None:
    """RFC 3339, to the second."""
    return None if unix is None else f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%dT%H:%M:%SZ}"


def outcome(code: str | None) -> str:
    return "ok" if code is None else "aborted" if code == "client_gone" else "error"


def shape(title: str, /, **fields: Any) -> Any:
    """An output: the type of each field, and its name in the snapshot where it has another."""
    pairs = {key: it if isinstance(it, tuple) else (it, key) for key, it in fields.items()}
    described: Any = {key: (it, Field(validation_alias=a)) for key, (it, a) in pairs.items()}
    return create_model(title, __base__=Shape, **described)


Text = Annotated[str, Field(max_length=TEXT_CHARS_MAX)]
Query = Annotated[Text, Field(description="Only rows that hold this text, in any case.")]
PoolName = Annotated[Text, Field(description="The name of a pool; only what belongs to it.")]
ListLimit = Annotated[int, Field(ge=1, le=ROWS_MAX)]
LogLimit = Annotated[int, Field(ge=1, le=LOGS_MAX)]
LogOffset = Annotated[int, Field(ge=0, le=LOG_OFFSET_MAX)]
Word = Annotated[str, BeforeValidator(word)]
Moment = Annotated[str, BeforeValidator(moment)]
Count = Annotated[int, BeforeValidator(len)]
Retries = Annotated[int, BeforeValidator(lambda attempts: max(0, len(attempts) - 1))]
Minutes = Annotated[int | None, BeforeValidator(lambda minutes: minutes or None)]
IsReady = (Annotated[bool, BeforeValidator("ready".__eq__)], "status")
AccountStatus = Literal["ready", "resting", "refused", "login_needed", "paused"]
KeyStatus = Literal["active", "paused", "expired"]
Login = Literal["api_key", "ok", "renewal_due", "needed"]
Auth = Annotated[Login, BeforeValidator(lambda login: login or "api_key")]
Outcome = Annotated[Literal["ok", "error", "aborted"], BeforeValidator(outcome)]
Source = Literal["literal", "env", "file", "sha256"]
Strategy = Literal["sticky", "quota_first", "soonest_reset"]
Found = Literal["ok", "not_found"]
LogStatus = Literal["", "ok", "error", "aborted"]
Name = (str, "name")

# fmt: off
ListArguments = create_model(
    "ListArguments", __base__=Shape, query=(Query, ""), status=(Text, ""),
    pool_selector=(PoolName, ""), limit=(ListLimit, 25))
LogArguments = create_model(
    "LogArguments", __base__=Shape, pool_selector=(PoolName, ""), status=(LogStatus, ""),
    limit=(LogLimit, 25), offset=(LogOffset, 0))
OneLogArguments = create_model("OneLogArguments", __base__=Shape, id=(Text, ...))
RouteArguments = create_model(
    "RouteArguments", __base__=Shape, pool_selector=(PoolName, ...), model=(Text, ...),
    session=(Text, ""))
Actor = shape("Actor", id=Name, display_name=Name, status=str)
ServiceStatus = shape(
    "ServiceStatus", actor=Actor, protocolVersion=str, supportedProtocolVersions=list[str],
    supportedToolCount=int, version=str, started_at=Moment, uptime_seconds=int,
    pool_count=(Count, "pools"), upstream_count=(Count, "accounts"),
    in_flight_requests=(int, "in_flight"))
Pool = shape(
    "Pool", id=Name, name=str, status=Literal["ready", "limited", "down"],
    strategy=(Strategy, "routing"), upstreams=(list[str], "accounts"),
    upstream_count=(Count, "accounts"), api_key_count=(int, "key_count"), models=list[Word])
Upstream = shape(
    "Upstream", id=Name, type=Literal["codex", "openai"], status=AccountStatus,
    base_url_host=(str, "host"), pools=list[str], plan_label=(Word | None, "plan"),
    auth_status=(Auth, "login"), cooldown_until=Moment | None,
    in_flight_requests=(int, "in_flight"))
Window: Any = shape(
    "Window", window=(Word, "family"), window_minutes=Minutes, used_percent=float | None,
    reset_at=(Moment | None, "resets_at"), observed_at=Moment | None,
    freshness_status=Literal["fresh", "stale", "unknown"])
Quota = shape(
    "Quota", upstream=Name, status=AccountStatus, routing_usable=IsReady, windows=list[Window])
ApiKey = shape("ApiKey", id=str, pool=str, display_name=Name, source=Source, status=KeyStatus)
Operator = shape("Operator", id=Name, display_name=Name, source=Source, status=str)
Model = shape("Model", id=(Word, "name"), pools=list[str])
Log: Any = shape(
    "Log", id=(str, "request_id"), pool=str | None, api_key=(str | None, "key"),
    upstream=(str | None, "account"), requested_model=(Word | None, "model"),
    endpoint=(str, "route"), transport=Literal["http", "sse", "websocket"],
    status=(Outcome, "code"), error_code=(Word | None, "code"),
    response_status_code=(int | None, "status"), retry_count=(Retries, "attempts"),
    latency_ms=(int | None, "duration_ms"), admitted_at=(Moment, "at"))
LogPage = shape("LogPage", items=list[Log], total=int, limit=int, offset=int)
OneLog = shape("OneLog", status=Found, kind=Literal["request_log"], item=Log | None, message=str)
Candidate: Any = shape("Candidate", id=Name, would_serve=(bool, "is_chosen"), reason=str)
Route = shape(
    "Route", pool=Word, model=Word, chosen=str | None, accounts=list[Candidate], message=str)
# fmt: on

################################################################
# TOOLS
################################################################


@dataclass(frozen=True, slots=True)
class Asked:
    operator: str
    protocol_version: str
    snapshot: Facts  # taken for this one request
    explain: Explain


@dataclass(frozen=True, slots=True)
class Tool:
    about: str
    takes: type[Shape]
    gives: type[Shape]
    run: Callable[[Asked, Any], Shape]


def see(kind: type[Shape], facts: Facts, **more: object) -> Shape:
    """Exactly the fields of this kind.  KeyError, TypeError: the facts do not fit, a bug."""
    known = {**facts, **more}
    names = [str(it.validation_alias) for it in kind.model_fields.values()]
    try:
        return kind.model_validate({name: known[name] for name in names})
    except ValidationError as error:  # the kernel would take it for the client's
        raise TypeError(str(error)) from None


def service_status(asked: Asked, _: Shape) -> Shape:
    operators = {it["name"]: it for it in asked.snapshot["operators"]}
    just_removed = {"name": asked.operator, "status": "removed"}
    ours = {
        "actor": see(Actor, operators.get(asked.operator, just_removed)),
        "protocolVersion": asked.protocol_version,
        "supportedProtocolVersions": list(KNOWN_PROTOCOL_VERSIONS),
        "supportedToolCount": len(TOOLS),
    }
    return see(ServiceStatus, asked.snapshot, **ours)


def listing(about: str, key: str, row: Any, pools: str, more: More | None = None) -> Tool:
    """The tool that lists the snapshot's `key`; `pools`: the field that names a row's pools."""
    page = shape(f"{row.__name__}s", status=Found, count=int, limit=int, items=list[row])

    def run(asked: Asked, wanted: Any) -> Shape:
        snapshot, pool, found = asked.snapshot, wanted.pool_selector, []
        for facts in snapshot[key]:
            extra = more(facts, snapshot) if more else {}
            seen, inside = see(row, facts, **extra), facts.get(pools, ())
            fits = not pool or pool in ([inside] if isinstance(inside, str) else inside)
            fits = fits and wanted.status in ("", getattr(seen, "status", None))
            texts = " ".join(str(value) for _, value in seen).casefold()
            found += [seen] if fits and wanted.query.casefold() in texts else []
        is_known = not pool or pool in [it["name"] for it in snapshot["pools"]]
        items, status = found[: wanted.limit], "ok" if is_known else "not_found"
        return see(page, {}, status=status, count=len(found), limit=wanted.limit, items=items)

    return Tool(about, ListArguments, page, run)


def windows(account: Facts, snapshot: Facts) -> Facts:
    """A window is stale when it has ended, or has not been heard of for long."""
    now, found = snapshot["at"], []
    for window in account["windows"]:
        ends_at, observed_at, freshness = window["resets_at"], window["observed_at"], "unknown"
        if observed_at is not None:
            is_old = now - observed_at > FRESH_SECONDS_MAX
            freshness = "stale" if is_old or (ends_at or now + 1) <= now else "fresh"
        found.append(see(Window, window, freshness_status=freshness))
    return {"windows": found}


def list_request_logs(asked: Asked, wanted: Any) -> Shape:
    pool, status = wanted.pool_selector, wanted.status
    found = [it for it in asked.snapshot["requests"] if pool in ("", it["pool"])]
    found = [it for it in found if status in ("", outcome(it["code"]))]
    items = [see(Log, it) for it in found[wanted.offset : wanted.offset + wanted.limit]]
    return see(LogPage, wanted.model_dump(), items=items, total=len(found))


def get_request_log(asked: Asked, wanted: Any) -> Shape:
    told = {"status": "not_found", "kind": "request_log", "message": "It is not remembered."}
    for it in asked.snapshot["requests"]:
        if it["request_id"] == wanted.id:
            return see(OneLog, told, status="ok", item=see(Log, it), message="")
    return see(OneLog, told, item=None)


def explain_routing(asked: Asked, wanted: Any) -> Shape:
    try:
        route = asked.explain(wanted.pool_selector, wanted.model, wanted.session or None)
    except LookupError:
        nobody = {"model": wanted.model, "chosen": None, "accounts": []}
        return see(Route, nobody, pool=wanted.pool_selector, message="No such pool or model in it.")
    accounts, chosen = [see(Candidate, it) for it in route["accounts"][:ROWS_MAX]], route["chosen"]
    told = f"It would go to {chosen}." if chosen else "No account would serve it now."
    return see(Route, route, accounts=accounts, message=told)


TOOLS: Final[Mapping[str, Tool]] = {
    "codex_pooler_get_mcp_service_status": Tool(
        "Who you are here, and how busy the pooler is.", Shape, ServiceStatus, service_status),
    "codex_pooler_list_pools": listing(
        "Pools. Status: ready, limited (all accounts rest), down.", "pools", Pool, "name"),
    "codex_pooler_list_upstreams": listing(
        "Accounts: ready, resting, refused, login_needed, paused.", "accounts", Upstream, "pools"),
    "codex_pooler_list_upstream_quotas": listing(
        "Use and reset of quota windows, by account.", "accounts", Quota, "pools", windows),
    "codex_pooler_list_pool_api_keys": listing(
        "Names of the pools' keys. Status: active, paused, expired.", "keys", ApiKey, "pool",
        lambda key, _: {"id": f"{key['pool']}/{key['name']}"}),
    "codex_pooler_list_operators": listing("Names of the operators.", "operators", Operator, ""),
    "codex_pooler_list_models": listing("Models and their pools.", "models", Model, "pools"),
    "codex_pooler_list_request_logs": Tool(
        "Latest requests (aborted: by the client).", LogArguments, LogPage, list_request_logs),
    "codex_pooler_get_request_log": Tool(
        "Metadata of one of the latest requests.", OneLogArguments, OneLog, get_request_log),
    "codex_pooler_explain_routing": Tool(
        "Which account would get a request for a model now, and why not the others. Sends nothing.",
        RouteArguments, Route, explain_routing),
}  # fmt: skip

################################################################
# PROTOCOL
################################################################
# Streamable HTTP without sessions: one POST, one JSON answer.  The official SDK's kernel serves
# it by itself in every version: those with a handshake, of which nothing is remembered ("legacy"),
# and 2026-07-28, where each request has an envelope instead.

INSTRUCTIONS: Final = (
    "Read-only view of codex-pooler, which pools AI accounts (upstreams) behind one address: "
    "codex_pooler_list_upstreams (which are usable), codex_pooler_list_upstream_quotas (how much "
    "is used, when it resets), codex_pooler_explain_routing (which account a model's next request "
    "goes to, and why), codex_pooler_list_request_logs (what went wrong), and the pools, keys, "
    "models and operators. Metadata only: no secrets, prompts or answers; nothing can be changed."
)
READ_ONLY: Final = types.ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
LISTED: Final = types.ListToolsResult(
    tools=[
        types.Tool(
            name=name, description=tool.about, annotations=READ_ONLY,
            input_schema=tool.takes.model_json_schema(),
            output_schema=tool.gives.model_json_schema(mode="serialization"),
        )
        for name, tool in TOOLS.items()
    ]
)  # fmt: skip
HTTP: Final = transport_context.TransportContext(kind="http", can_send_request=False)
Context = context.ServerRequestContext[Any, Asked]
logging.getLogger("mcp").addHandler(logging.NullHandler())  # stderr is the pooler's own
ACCEPTED: Final = frozenset({"application/json", "application/*", "*/*"})
NOT_JSON: Final = {"code": types.INVALID_REQUEST, "message": "Both ways only application/json."}


async def list_tools(_: Context, params: Any) -> types.ListToolsResult:
    await trio.lowlevel.checkpoint()
    if params.cursor is not None:
        raise exceptions.MCPError(types.INVALID_PARAMS, "There are no more pages.")
    return LISTED


async def call_tool(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    await trio.lowlevel.checkpoint()
    tool, output = TOOLS.get(params.name), None
    if tool is None or ctx.request is None:
        raise exceptions.MCPError(types.INVALID_PARAMS, "There is no tool of this name.")
    try:
        wanted = tool.takes.model_validate(params.arguments or {})
    except ValidationError as error:
        given = {str(fault["loc"][0]) for fault in error.errors(include_input=False)}
        known = {name if name in tool.takes.model_fields else "(unknown)" for name in given}
        told = f"invalid_arguments: {', '.join(sorted(known))}"
    else:
        output = tool.run(ctx.request, wanted).model_dump(mode="json")
        told = json.dumps(output, separators=(",", ":"))
    content: list[Any] = [types.TextContent(type="text", text=told)]
    is_error = output is None
    return types.CallToolResult(content=content, structured_content=output, is_error=is_error)


def make_server(version: str) -> Server[None]:
    hint = caching.CacheHint(ttl_ms=LIST_TTL_MS, scope="private")  # behind a token (F92)
    server: Server[None] = Server(
        "codex-pooler",
        version=version,
        instructions=INSTRUCTIONS,
        cache_hints={"tools/list": hint, "server/discover": hint},
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    server.middleware.clear()  # OpenTelemetry's (F92)
    return server


def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in an object twice")
    return found


def parse(body: bytes) -> Any:
    """Of UTF-8, no name twice, no NaN, no lone surrogate.  Raises: ValueError, RecursionError."""
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > JSON_SEPARATORS_MAX:
        raise ValueError("too many members")
    level = [value := json.loads(body.decode(), object_pairs_hook=read_object)]
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    for _ in range(JSON_DEPTH_MAX):
        lists = [[*it.values()] if isinstance(it, dict) else it for it in level]
        level = [it for inner in lists if isinstance(inner, list) for it in inner]
    if any(isinstance(it, (dict, list)) for it in level):
        raise ValueError("nested too deeply")
    return value


def read_request(body: bytes) -> Request | None:
    """The request in the body; None: a notification, without response (F93).  Raises: MCPError."""
    try:
        value = parse(body)
        if isinstance(value, dict) and "id" not in value:
            types.JSONRPCNotification.model_validate(value)
            return None
        return Request.model_validate(value)
    except ValidationError:  # is a ValueError, so it comes first
        raise exceptions.MCPError(types.INVALID_REQUEST, "Not a JSON-RPC request.") from None
    except (ValueError, RecursionError):
        raise exceptions.MCPError(types.PARSE_ERROR, "Not strict JSON.") from None


def connect(request: Request, headers: Headers) -> connection.Connection:
    """What the kernel has to know of the client.  Raises: MCPError."""
    version = headers.get(inbound.MCP_PROTOCOL_VERSION_HEADER, types.DEFAULT_NEGOTIATED_VERSION)
    meta = (request.params or {}).get("_meta")
    has_envelope = isinstance(meta, dict) and types.PROTOCOL_VERSION_META_KEY in meta
    is_legacy = request.method == "initialize" or not has_envelope
    if version in HANDSHAKE_PROTOCOL_VERSIONS and is_legacy:
        return connection.Connection.from_envelope(version, None, None)
    route = inbound.classify_inbound_request(request.model_dump(), headers=headers)
    if isinstance(route, inbound.InboundLadderRejection):
        raise exceptions.MCPError(route.code, route.message, route.data)
    client = route.client_info, route.client_capabilities
    return connection.Connection.from_envelope(route.protocol_version, *client)


async def serve(request: Request, client: connection.Connection, asked: Asked) -> Facts:
    """The result.  Raises: MCPError."""
    # As much of a DispatchContext as is read: our handlers send nothing but their answer.
    metadata = message.ServerMessageMetadata(request_context=asked)
    exchange: Any = SimpleNamespace(
        request_id=request.id, message_metadata=metadata, transport=HTTP, can_send_request=False
    )
    server = make_server(asked.snapshot["version"])
    try:
        return await runner.serve_one(
            server, exchange, request.method, request.params, connection=client, lifespan_state=None
        )
    except ValidationError:
        raise exceptions.MCPError(types.INVALID_PARAMS, "Invalid parameters.") from None


def media_types(value: str) -> set[str]:
    return {part.partition(";")[0].strip().lower() for part in value.split(",")}


def reply(status: int, request: Request | None, **outcome: object) -> Answer:
    body = {"jsonrpc": "2.0", "id": request.id if request else None, **outcome}
    encoded = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    return status, [("content-type", "application/json")], encoded


async def answer(
    method: str, headers: Headers, body: bytes, *, operator: str, snapshot: Look, explain: Explain
) -> Answer:
    """Status, headers and body of the answer; names of `headers` are in lower case."""
    if method != "POST":
        return 405, [("allow", "POST")], b""
    if media_types(headers.get("content-type", "")) != {"application/json"}:
        return reply(415, None, error=NOT_JSON)
    if not media_types(headers.get("accept", "*/*")) & ACCEPTED:
        return reply(406, None, error=NOT_JSON)
    request, statuses = None, inbound.ERROR_CODE_HTTP_STATUS
    try:
        request = read_request(body)
        if request is None:
            return 202, [], b""
        client = connect(request, headers)
        if client.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
            statuses = {}
        asked = Asked(operator, client.protocol_version, snapshot(), explain)
        return reply(200, request, result=await serve(request, client, asked))
    except exceptions.MCPError as failure:
        # Only one error needs its data; that of others would give back what the client sent.
        told = None if failure.code == types.UNSUPPORTED_PROTOCOL_VERSION else {"data"}
        error = failure.error.model_dump(exclude_none=True, exclude=told)
        return reply(statuses.get(failure.code, 200), request, error=error)
