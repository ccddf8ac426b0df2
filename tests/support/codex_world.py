"""Servers whose accounts are ChatGPT logins, in virtual time, and what clients ask of them.

`opened_codex_world` has two accounts before the strict backend of `codex_backend.py`, and
`opened_scripted_world` one, whose upstream plays scripts.  Each is left quiet and without a bug in
its log, else an AssertionError.  (No claims.)
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from pooler import REFRESH_URL_VARIABLE, Config, parse_config
from tests.support.codex_backend import make_auth_file
from tests.support.limits import with_limits
from tests.support.memory_sockets import KEY, Json, Response, post, put_in_order
from tests.support.memory_websockets import open_socket
from tests.support.world import (
    LAST_CHUNK,
    UNIX_START,
    Fin,
    Script,
    Send,
    World,
    chunk,
    json_response,
    sse_event,
    sse_head,
)

PREFIX: Final = "/backend-api/codex"
MODEL: Final = "gpt-5.5"
FIRST, SECOND = "acct-first", "acct-second"
NAMES: Final = {FIRST: "first", SECOND: "second"}
RESPONSES_BODY: Final[Json] = {"model": MODEL, "input": "Say it."}
CHAT_BODY: Final[Json] = {"model": MODEL, "messages": [{"role": "user", "content": "Say it."}]}
NATIVE_BODY: Final[Json] = {
    "model": MODEL,
    "instructions": "",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
    ],
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "thread",
}  # fmt: skip


def describe_codex(folder: Path, *, others: Json = None, **pool: Json) -> Json:
    """Two codex accounts in order, and `others` behind them."""
    accounts: dict[str, Json] = {
        name: {
            "type": "codex",
            "auth_file": str(folder / name / "auth.json"),
            "base_url": f"http://127.0.0.1:9{at}00{PREFIX}",
        }
        for at, name in enumerate(NAMES.values())
    } | (others or {})
    home = {"accounts": list(accounts), "keys": {"laptop": KEY}, "routing": "in_order"} | pool
    return put_in_order({"accounts": accounts, "pools": {"home": home}})


@asynccontextmanager
async def opened_codex_world(described: Json, folder: Path) -> AsyncIterator[World]:
    """The server of `describe_codex`; both of its accounts are logged in."""
    env = {REFRESH_URL_VARIABLE: "http://127.0.0.1:9/oauth/token"}
    config: Config = parse_config(json.dumps(described).encode(), env, str)
    async with trio.open_nursery() as nursery:
        world = World(config, nursery)
        world.serve_backend()
        for account_id, name in NAMES.items():
            path = folder / name / "auth.json"
            world.backend.admit(make_auth_file(path, account_id, expires_at=UNIX_START + 10**6))
        world.start()
        await world.settle()  # the catalogues have been read
        world.backend.seen.clear()
        yield world
        await world.close()
        nursery.cancel_scope.cancel()


def streamed(body: Json) -> Json:
    return body | {"stream": True}


def text_of(response: Response) -> str:
    """What the model says in a response of any form."""
    if response.body.startswith(b"{"):
        value = response.json()
        if "choices" in value:
            return str(value["choices"][0]["message"]["content"])
        parts = [part for item in value["output"] for part in item.get("content", [])]
        return "".join(part["text"] for part in parts)
    events = [event for event in payloads(response) if event != "[DONE]"]
    chunks = [event["choices"][0]["delta"] for event in events if event.get("choices")]
    deltas = [event for event in events if event.get("type") == "response.output_text.delta"]
    texts = [*(chunk.get("content") for chunk in chunks), *(event["delta"] for event in deltas)]
    return "".join(text or "" for text in texts)


FORMS: Final = {
    "responses": ("/v1/responses", RESPONSES_BODY),
    "responses-stream": ("/v1/responses", streamed(RESPONSES_BODY)),
    "chat": ("/v1/chat/completions", CHAT_BODY),
    "chat-stream": ("/v1/chat/completions", streamed(CHAT_BODY)),
    "native": (f"{PREFIX}/responses", NATIVE_BODY),
}
every_form = pytest.mark.parametrize("form", FORMS)
ITEM: Final[Json] = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Hi."}],
}
CALL: Final[Json] = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESPONSE: Final[Json] = {"id": "resp_1", "object": "response", "created_at": 7, "model": "m1"}
CREATED: Final[Json] = {"type": "response.created", "response": RESPONSE | {"output": None}}
DELTA: Final[Json] = {"type": "response.output_text.delta", "output_index": 0, "delta": "Hi."}
DONE: Final[Json] = {"type": "response.output_item.done", "output_index": 0, "item": ITEM}
CALLED: Final[Json] = {"type": "response.output_item.done", "output_index": 1, "item": CALL}
COMPLETED: Final[Json] = {
    "type": "response.completed",
    "response": RESPONSE | {"status": "completed", "output": None},
}
WHOLE: Final = (CREATED, DELTA, DONE, CALLED, COMPLETED)


@asynccontextmanager
async def opened_scripted_world(
    folder: Path, *, models: Json = ("gpt-5.5",), pool: Json = None, **limits: float
) -> AsyncIterator[World]:
    """One codex account, whose upstream plays scripts."""
    path = folder / "auth.json"
    make_auth_file(path, "acct-1", expires_at=UNIX_START + 10**6)
    account = {
        "type": "codex",
        "auth_file": str(path),
        "base_url": f"http://127.0.0.1:9001{PREFIX}",
    } | ({"models": models} if models else {})
    pools = {"home": {"accounts": ["a"], "keys": {"laptop": KEY}} | (pool or {})}
    whole = {"accounts": {"a": account}, "pools": pools, "limits": with_limits(limits)}
    config = parse_config(json.dumps(whole).encode(), {}, str)
    async with trio.open_nursery() as nursery:
        world = World(config, nursery)
        if models:
            world.upstreams["a"].catalogue = json_response({"models": []})
        world.start()
        await world.settle()
        yield world
        await world.close()
        nursery.cancel_scope.cancel()


async def ask_scripted(world: World, form: str, script: Script) -> Response:
    """The response to a request of one of `FORMS`, for which the upstream plays the script."""
    world.upstreams["a"].plays(script)
    path, body = FORMS[form]
    return await world.ask(post(path, body))


def stream_of(events: Sequence[Json], newline: bytes = b"\n") -> bytes:
    """The events as bytes of an event stream."""
    return b"".join(sse_event(event, newline) for event in events)


def sse_script(raw: bytes, *, is_whole: bool = True) -> Script:
    """A streamed response with these bytes; not whole: the connection ends within it."""
    return [Send(sse_head() + chunk(raw)), Send(LAST_CHUNK) if is_whole else Fin()]


def payloads(response: Response) -> list[Json]:
    """The data of a stream's events; as text if it is not JSON."""
    data: list[Json] = []
    for line in response.body.decode().splitlines():
        if line.startswith("data: "):
            try:
                data.append(json.loads(line[6:]))
            except ValueError:
                data.append(line[6:])
    return data


def check_end(form: str, response: Response) -> bool:
    """Whether the response is a success; it has exactly one end, whichever that is."""
    if form in {"responses", "chat"}:
        assert response.status in {200, 502}
        assert ("error" in response.json()) == (response.status == 502) or form == "responses"
        return response.status == 200
    if response.status != 200:
        assert response.error["code"] in {"upstream_stream_truncated", "upstream_invalid_response"}
        return False
    events = payloads(response)
    if form == "chat-stream":
        errors = [event for event in events if isinstance(event, dict) and "error" in event]
        assert events.count("[DONE]") + len(errors) == 1
        assert events[-1] == "[DONE]" or "error" in events[-1]
        return not errors
    kinds = [event.get("type") for event in events if isinstance(event, dict)]
    ends = [kind for kind in kinds if kind in {"response.completed", "response.failed"}]
    assert ends == [events[-1]["type"]]
    return ends == ["response.completed"]


FIRST_ALONE: Final = {"accounts": ["first"]}
RESPONSES_CARRIERS: Final = ("responses", "responses-stream", "websocket")
CHAT_CARRIERS: Final = ("chat", "chat-stream")
CARRIERS: Final = (*RESPONSES_CARRIERS, *CHAT_CARRIERS)


async def ask_by_carrier(world: World, carrier: str, body: Json) -> tuple[int, Json]:
    """The status that a client gets, and the model's text or the error."""
    if carrier == "websocket":
        client = await open_socket(world)
        await client.say({"type": "response.create"} | body)
        events = await client.read_turn()
        await client.hang_up()
        if events[-1]["type"] == "error":
            return int(events[-1]["status"]), events[-1]["error"]
        return 200, "".join(event.get("delta", "") for event in events if "text" in event["type"])
    path = "/v1/chat/completions" if carrier in CHAT_CARRIERS else "/v1/responses"
    response = await world.ask(post(path, streamed(body) if "stream" in carrier else body))
    return response.status, text_of(response) if response.status == 200 else response.error


PLATFORM: Final[Json] = {
    "platform": {
        "type": "openai", "api_key": "sk-platform", "models": [MODEL],
        "base_url": "http://127.0.0.1:9500/v1",
    }
}  # fmt: skip
