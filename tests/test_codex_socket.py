"""Proves that the WebSocket of the tests' Codex backend is as strict as the real one.

Method: the client of trio-websocket on a pair of streams in memory, a turn at a time; the facts
are upstream-facts §1.8.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

import trio
import trio.testing
from trio_websocket import WebSocketConnection, wrap_client_stream

from tests.codex_backend import PREFIX, CodexBackend, make_token
from tests.codex_turns import ANSWER, Json, Login, Play

FAR_UNIX: Final = 4_000_000_000
GOOD: Final = Login("acct-a", make_token("acct-a", "plus", FAR_UNIX), "rt-acct-a-1")
USER: Final = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
CREATE: Final[dict[str, Json]] = {
    "type": "response.create",
    "model": "gpt-5.5",
    "instructions": "",
    "input": [USER],
    "store": False,
}
HEADERS: Final = {
    "authorization": f"Bearer {GOOD.access_token}",
    "chatgpt-account-id": GOOD.account_id,
    "openai-beta": "responses_websockets=2026-02-06",
}


class Caller:
    """One WebSocket to the backend."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket

    async def tell(self, **more: Json) -> None:
        await self.socket.send_message(json.dumps(CREATE | more))

    async def read(self) -> Json:
        return json.loads(await self.socket.get_message())

    async def events(self, **more: Json) -> list[Json]:
        """Those of one turn, up to its last one."""
        await self.tell(**more)
        events = [await self.read()]
        while events[-1]["type"] not in {"response.completed", "error"}:
            events.append(await self.read())
        return events


@asynccontextmanager
async def opened_socket(
    *plays: Play, headers: dict[str, str] = HEADERS
) -> AsyncIterator[tuple[CodexBackend, Caller]]:
    backend = CodexBackend()
    backend.admit(GOOD)
    backend.plays += plays
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.serve, theirs)
        socket = await wrap_client_stream(
            nursery,
            cast("trio.SocketStream", ours),
            "backend",
            f"{PREFIX}/responses?a=1",
            extra_headers=[(name.encode(), value.encode()) for name, value in headers.items()],
        )
        async with socket:
            yield backend, Caller(socket)
    assert backend.open_sockets == 0


async def test_turns_follow_one_another_on_one_connection() -> None:
    async with opened_socket() as (backend, caller):
        events = await caller.events()
        assert events[0]["type"] == "codex.rate_limits"
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == ANSWER
        again = await caller.events(previous_response_id="resp_1", stream=True)
        assert again[-1]["response"]["id"] == "resp_2"
        assert backend.open_sockets == 1
    seen = [(one.method, one.connection, one.query) for one in backend.seen]
    assert seen == [("GET", 0, {"a": "1"}), *[("WEBSOCKET", 1, {"a": "1"})] * 2]
