"""An operator's MCP client in a test: what it sends to `answer`, and what it reads of the response.

(No claims.)
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import mcp_server
import pooler
from tests.support import paths

Json = dict[str, Any]
SNAPSHOT: Final[Json] = json.loads(paths.SNAPSHOT.read_text("utf-8"))
PREFIX: Final = "codex_pooler_"
LEGACY: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MODERN: Final = "2026-07-28"
VERSIONS: Final = (*LEGACY, MODERN)
CANARY: Final = "sk-canary-0123456789"
HEADERS: Final = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
}
PARSE_ERROR, INVALID_REQUEST, NO_METHOD, INVALID_PARAMS = -32700, -32600, -32601, -32602
MISMATCH, UNSUPPORTED = -32020, -32022
LOG: Final = SNAPSHOT["requests"][0]["request_id"]
LISTS: Final = (
    "list_pools",
    "list_upstreams",
    "list_upstream_quotas",
    "list_pool_api_keys",
    "list_operators",
    "list_models",
)
ARGUMENTS: Final[Mapping[str, Json]] = {
    "get_mcp_service_status": {},
    "diagnose": {},
    "usage_summary": {},
    **{name: {} for name in LISTS},
    "list_request_logs": {},
    "get_request_log": {"id": LOG},
    "explain_routing": {"pool_selector": "home", "model": "gpt-5.5"},
}


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> Json:
        message: Json = json.loads(self.body)
        return message

    @property
    def result(self) -> Json:
        assert self.status == 200, self.body
        assert self.headers == {"content-type": "application/json"}
        result: Json = self.message["result"]
        return result

    @property
    def output(self) -> Json:
        assert not self.result["isError"], self.body
        output: Json = self.result["structuredContent"]
        return output

    @property
    def text(self) -> str:
        (content,) = self.result["content"]
        assert content["type"] == "text"
        return str(content["text"])

    @property
    def failure(self) -> tuple[int, int]:
        """The HTTP status and the code of the JSON-RPC error."""
        assert self.headers == {"content-type": "application/json"}
        assert set(self.message) == {"jsonrpc", "id", "error"}
        return self.status, self.message["error"]["code"]


def explained(pool: str, model: str, session: str | None) -> Json:
    """What pooler.py explains of a pool of two accounts."""
    if pool != "home":
        raise LookupError(pool)
    accounts = [
        {
            "name": "personal",
            "is_chosen": True,
            "status": "ready",
            "reason": f"pinned by {session}",
        },
        {
            "name": "platform",
            "is_chosen": False,
            "status": "at_limit",
            "reason": "at its limit for 5 min more: 429 usage_limit_reached",
        },
    ]
    return {"pool": pool, "model": model, "chosen": "personal", "accounts": accounts}


@dataclass
class Desk:
    """An operator's client; all arguments of `answer` can be changed."""

    snapshot: Json = field(default_factory=lambda: copy.deepcopy(SNAPSHOT))
    explain: Callable[[str, str, str | None], Json] = explained
    operator: str = "me"

    async def post(self, body: bytes, headers: Mapping[str, str] = HEADERS) -> Response:
        status, fields, content = await mcp_server.answer(
            headers,
            body,
            operator=self.operator,
            parse=pooler.parse_mcp_message,
            snapshot=lambda: self.snapshot,
            explain=self.explain,
        )
        assert len(fields) == len({name for name, _ in fields})
        return Response(status, dict(fields), content)

    async def ask(
        self, method: str, params: Json | None = None, *, version: str = "2025-11-25"
    ) -> Response:
        """A well-formed request, as a client of this version sends it."""
        body, headers = asked(method, params, version=version)
        return await self.post(json.dumps(body).encode(), headers)

    async def call(self, tool: str, *, version: str = "2025-11-25", **arguments: Any) -> Response:  # noqa: ANN401
        params = {"name": f"{PREFIX}{tool}", "arguments": arguments}
        return await self.ask("tools/call", params, version=version)


def asked(method: str, params: Json | None, *, version: str) -> tuple[Json, dict[str, str]]:
    body: Json = {"jsonrpc": "2.0", "id": 7, "method": method}
    headers = {**HEADERS, "mcp-protocol-version": version}
    if params is not None:
        body["params"] = params
    if version in LEGACY:
        return body, headers
    meta = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body["params"] = {**(params or {}), "_meta": meta}
    headers["mcp-method"] = method
    if isinstance(name := (params or {}).get("name"), str):
        headers["mcp-name"] = name
    return body, headers
