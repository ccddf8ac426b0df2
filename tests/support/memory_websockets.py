"""WebSockets in memory: a client and upstreams that make their frames by hand.  (No claims.)

Neither uses the library that the pooler uses, and both can be as hostile as they like:

    async def test_a_turn_is_relayed(autojump_clock: MockClock) -> None:
        async with socket_world() as world:
            world.upstreams["a"].plays(turn("hello"))
            client = await open_socket(world)
            events = await client.ask(input="hi")
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar, Final

import trio

from pooler import BaseUrl
from tests.support.codex_backend import make_auth_file
from tests.support.memory_sockets import (
    KEY,
    Client,
    Json,
    MemorySocket,
    Pairs,
    Response,
    read_fields,
    request,
)
from tests.support.world import (
    UNIX_START,
    FakeUpstream,
    Line,
    Script,
    Send,
    Step,
    World,
    describe,
    opened_world,
    responses_events,
)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
CLIENT_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="  # the sample of RFC 6455 §1.3
MASK: Final = b"\x0f\x1e\x2d\x3c"
TERMINAL: Final = {"response.completed", "response.failed", "response.incomplete", "error"}
UPGRADE: Final = (
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", CLIENT_KEY),
)


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes = MASK, rsv: int = 0
) -> bytes:
    """One frame (RFC 6455 §5.2); an empty `mask`: none, as a server's."""
    first = opcode | (0x80 if fin else 0) | rsv
    size = len(payload)
    masked = 0x80 if mask else 0
    if size < 126:
        head = bytes([first, masked | size])
    elif size < 65536:
        head = bytes([first, masked | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, masked | 127]) + size.to_bytes(8, "big")
    return head + mask + unmasked(payload, mask)


def accept_of(key: str) -> str:
    """What a server says to a nonce (RFC 6455 §4.2.2)."""
    digest = hashlib.sha1((key + GUID).encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def unmasked(payload: bytes, mask: bytes) -> bytes:
    if not mask or not payload:
        return payload
    keys = (mask * (len(payload) // 4 + 1))[: len(payload)]
    size = len(payload)
    return (int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")).to_bytes(size, "big")


def split_frame(raw: bytes) -> tuple[int, bool, bytes, bytes, bytes] | None:
    """Opcode, whether it is the last, mask, payload, rest; None if it is not whole yet."""
    if len(raw) < 2:
        return None
    size, at = raw[1] & 0x7F, 2
    if size > 125:
        extra = 2 if size == 126 else 8
        size, at = int.from_bytes(raw[2 : 2 + extra], "big"), 2 + extra
    mask = raw[at : at + 4] if raw[1] & 0x80 else b""
    at += len(mask)
    if len(raw) < at + size:
        return None
    payload = unmasked(raw[at : at + size], mask)
    assert raw[0] & 0x70 == 0, "reserved bits"
    return raw[0] & 0x0F, bool(raw[0] & 0x80), mask, payload, raw[at + size :]


################################################################
# THE CLIENT
################################################################


class SocketClient:
    """A client after its upgrade; every frame of the pooler is judged."""

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
        while (found := await self.read_frame())[0] in {PING, PONG}:
            pass
        opcode, payload = found
        assert opcode == TEXT, found
        value = json.loads(payload)
        assert isinstance(value, dict)
        return value

    async def read_frame(self) -> tuple[int, bytes]:
        """The next whole frame."""
        while (found := split_frame(self.client.buffer)) is None:
            await self.client._receive()
        opcode, is_last, mask, payload, self.client.buffer = found
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
    """Upgrade, and judge the answer; `behind`: bytes glued to the request."""
    client = await world.connect()
    await client.send((raw or upgrade(**more)) + behind)
    return await read_upgrade(client)


async def read_upgrade(client: Client) -> SocketClient:
    """The answer to an upgrade, which is nothing but agreed to."""
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
# UPSTREAMS
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
    """A whole answer."""
    text = json.dumps(responses_events(*words)).replace("resp_1", response_id)
    return says(*[event | more for event in json.loads(text)])


def error_frame(status: int, code: str, headers: Mapping[str, str] | None = None) -> list[Step]:
    error = {"type": code, "code": code, "message": f"The upstream says {code}.", "param": None}
    return says({"type": "error", "status": status, "error": error, "headers": dict(headers or {})})


class SocketUpstream(FakeUpstream):
    """An upstream whose upgrades and turns are scripted.

    `plays` queues scripts for turns; `upgrades` scripts instead of a 101.  `turns`: what was
    asked, with the number of its connection; `handshakes`: the fields of each upgrade.
    """

    def __init__(self, name: str, world: World) -> None:
        super().__init__(name, world)
        self.upgrades: deque[Script] = deque()
        self.turns: list[tuple[int, Json]] = []
        self.frames: list[tuple[int, bytes]] = []  # all but those of a turn
        self.handshakes: list[dict[str, str]] = []

    @property
    def asked_bodies(self) -> list[Json]:
        return [body for _, body in self.turns]

    async def _serve_request(self, line: Line) -> bool:
        if line in self.open_lines:
            return await self._serve_frame(line)
        return await super()._serve_request(line)

    @property
    def open_lines(self) -> list[Line]:
        return [line for line in self.lines if line.request_count < 0]

    async def _play(self, script: Script, line: Line) -> bool:
        """A GET with an upgrade comes here with the catalogue's script."""
        asked = self.catalogue_asked[-1] if self.catalogue_asked else None
        is_upgrade = script is self.catalogue and asked is not None and asked.header("upgrade")
        if not is_upgrade or asked is None:
            return await super()._play(script, line)
        headers = dict(asked.headers)
        self.handshakes.append(headers)
        if self.upgrades:
            return await super()._play(self.upgrades.popleft(), line)
        line.request_count = -len(self.handshakes)
        lines = (
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_of(headers['sec-websocket-key'])}",
        )
        await line.socket.send_all("".join(f"{text}\r\n" for text in (*lines, "")).encode())
        return True

    def script_for_turn(self, _body: Json) -> Script | None:
        script = self.scripts.popleft() if self.scripts else self.always
        return None if callable(script) else script

    async def _serve_frame(self, line: Line) -> bool:
        payload = b""
        while True:
            while (found := split_frame(line.buffer)) is None:
                line.buffer += await self._receive(line)
            opcode, is_last, mask, part, line.buffer = found
            if not mask:
                self.world.complaints.append(f"{self.name}: a frame without a mask")
            if opcode in {TEXT, CONTINUATION}:
                payload += part
                if is_last:
                    break
                continue
            self.frames.append((opcode, part))
            if opcode == CLOSE:
                return False
            if opcode == PING:
                await line.socket.send_all(frame(PONG, part, mask=b""))
        body = json.loads(payload)
        if body.get("type") != "response.create":
            self.frames.append((TEXT, payload))
            return True
        self.turns.append((-line.request_count, body))
        script = self.script_for_turn(body)
        if script is None:
            self.world.complaints.append(f"{self.name}: a turn that no script awaits")
            return False
        return await self._play(script, line)


class SocketWorld(World):
    upstream_type: ClassVar[type[FakeUpstream]] = SocketUpstream

    async def dial(self, url: BaseUrl, tls: object) -> MemorySocket:
        if url == self.server.shared.config.token_url:
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError(111, "refused")
        return await super().dial(url, tls)

    def upstream(self, name: str = "a") -> SocketUpstream:
        found = self.upstreams[name]
        assert isinstance(found, SocketUpstream)
        return found

    @property
    def turns(self) -> list[tuple[str, int, Json]]:
        """Account, connection and body of every turn, of one account after the other."""
        return [
            (name, number, body)
            for name in self.upstreams
            for number, body in self.upstream(name).turns
        ]

    @property
    def open_count(self) -> int:
        """Connections to upstreams that are still open."""
        lines = [line for one in self.upstreams.values() for line in one.lines]
        return sum(not (line.closed_at or line.socket.outgoing.is_deaf) for line in lines)


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
async def socket_world(described: Mapping[str, Json] | None = None) -> AsyncIterator[SocketWorld]:
    described = socket_described() if described is None else described
    opened: AbstractAsyncContextManager[World] = opened_world(described, SocketWorld)
    async with opened as world:
        assert isinstance(world, SocketWorld)
        await world.settle()
        yield world
