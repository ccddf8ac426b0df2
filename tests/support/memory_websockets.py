"""WebSockets in memory: a client and upstreams that make their frames by hand.  (No claims.)

Neither uses the library that the pooler uses, and both can be as hostile as they like:

    async def test_a_turn_is_relayed(autojump_clock: MockClock) -> None:
        async with socket_world() as world:
            world.upstreams["a"].plays(turn("hello"))
            client = await open_socket(world)
            events = await client.ask(input="hi")
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.support.codex_backend import make_auth_file
from tests.support.frames import CLOSE, PING, PONG, TEXT, accept_of, frame, split_frame
from tests.support.memory_sockets import (
    KEY,
    Client,
    Json,
    Pairs,
    Response,
    read_fields,
    request,
)
from tests.support.world import (
    UNIX_START,
    Send,
    Step,
    World,
    describe,
    opened_world,
    responses_events,
)

CLIENT_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="  # the sample of RFC 6455 §1.3
TERMINAL: Final = {"response.completed", "response.failed", "response.incomplete", "error"}
UPGRADE: Final = (
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", CLIENT_KEY),
)


################################################################
# THE CLIENT
################################################################


class SocketClient:
    """A client after its upgrade; every frame of the pooler is validated."""

    def __init__(self, client: Client, response: Response) -> None:
        self.client = client
        self.response = response

    async def send(self, raw: bytes) -> None:
        await self.client.send(raw)

    async def say(self, message: Json) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        await self.send(frame(TEXT, text.encode()))

    async def create(self, **body: Json) -> None:
        """Ask for a turn."""
        await self.say({"type": "response.create", "model": "m1", "input": "hi"} | body)

    async def ask(self, **body: Json) -> list[Json]:
        """The events of a turn, up to the terminal one."""
        await self.create(**body)
        return await self.read_turn()

    async def read_turn(self) -> list[Json]:
        events = [await self.read_event()]
        while events[-1]["type"] not in TERMINAL:
            events.append(await self.read_event())
        return events

    async def read_event(self) -> Json:
        while (whole := await self.read_frame())[0] in {PING, PONG}:
            pass
        opcode, payload = whole
        assert opcode == TEXT, whole
        value = json.loads(payload)
        assert isinstance(value, dict)
        return value

    async def read_frame(self) -> tuple[int, bytes]:
        """The next whole frame."""
        while (whole := split_frame(self.client.buffer)) is None:
            await self.client._receive()
        opcode, is_last, mask, payload, self.client.buffer = whole
        assert is_last
        assert not mask
        return opcode, payload

    async def read_close(self) -> int:
        """The code of the pooler's Close, which comes next; then it closes the connection."""
        opcode, payload = await self.read_frame()
        assert opcode == CLOSE, (opcode, payload)
        await self.hang_up()
        return int.from_bytes(payload[:2], "big")

    async def hang_up(self) -> None:
        await self.client.hang_up()


def upgrade(
    path: str = "/v1/responses",
    *,
    key: str | None = KEY,
    fields: Mapping[str, str | None] | None = None,
    more: Pairs = (),
) -> bytes:
    """The head of an upgrade; `fields` replaces some of it, or with None takes it away."""
    changed = dict(UPGRADE) | dict(fields or {})
    headers = [(name, value) for name, value in changed.items() if value is not None]
    return request("GET", path, key=key, headers=[*headers, *more])


async def open_socket(
    world: World, raw: bytes = b"", *, behind: bytes = b"", **more: Json
) -> SocketClient:
    """Upgrade, and validate the response; `behind`: bytes sent with the request."""
    client = await world.connect()
    await client.send((raw or upgrade(**more)) + behind)
    return await read_upgrade(client)


async def read_upgrade(client: Client) -> SocketClient:
    """The client after its upgrade, whose response has nothing but what it must have."""
    head = await client._read_to(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    headers = read_fields(lines[1:])
    accept = accept_of(CLIENT_KEY)
    assert lines[0].startswith(b"HTTP/1.1 101 "), lines[0]
    assert {name: value.lower() for name, value in headers if name != "x-request-id"} == {
        "upgrade": "websocket",
        "connection": "upgrade",
        "sec-websocket-accept": accept.lower(),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }
    return SocketClient(client, Response(101, headers))


################################################################
# WHAT AN UPSTREAM PLAYS
################################################################


def says(*events: Json) -> list[Step]:
    """A frame for each event; steps and raw bytes stay what they are."""
    steps: list[Step] = []
    for event in events:
        if isinstance(event, Step):
            steps.append(event)
        else:
            data = event if isinstance(event, bytes) else json.dumps(event).encode()
            steps.append(Send(frame(TEXT, data, mask=b"")))
    return steps


def turn(*words: str, response_id: str = "resp_1", **more: Json) -> list[Step]:
    """A whole response."""
    text = json.dumps(responses_events(*words)).replace("resp_1", response_id)
    return says(*[event | more for event in json.loads(text)])


def error_frame(status: int, code: str, headers: Mapping[str, str] | None = None) -> list[Step]:
    error = {"type": code, "code": code, "message": f"The upstream says {code}.", "param": None}
    return says({"type": "error", "status": status, "error": error, "headers": dict(headers or {})})


def socket_described(names: str = "ab", *, accounts: Json = None, **more: Json) -> dict[str, Json]:
    """`describe`, and every account takes WebSockets."""
    changes = {name: {"websocket": True} | (accounts or {}).get(name, {}) for name in names}
    return describe(names, accounts=changes, **more)


def codex_described(folder: Path, names: str = "ab", **more: Json) -> dict[str, Json]:
    """The same with ChatGPT accounts, whose logins are written to `folder`."""
    changes = {}
    for name in names:
        path = folder / name / "auth.json"
        make_auth_file(path, f"acct-{name}", expires_at=UNIX_START + 10**6)
        changes[name] = {"type": "codex", "auth_file": str(path), "api_key": None}
    pool = {"routing": "in_order"} | more.pop("pool", {})
    return describe(names, accounts=changes, pool=pool, **more)


@asynccontextmanager
async def socket_world(described: Mapping[str, Json] | None = None) -> AsyncIterator[World]:
    """A world whose accounts take WebSockets; it has read their catalogues."""
    described = socket_described() if described is None else described
    async with opened_world(described) as world:
        await world.settle()
        yield world
