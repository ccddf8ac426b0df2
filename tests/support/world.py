"""A whole world for the pooler in memory: clients, upstreams, sockets and time.  (No claims.)

Nothing here touches the network or waits for real: use it with the `autojump_clock` fixture of
pytest-trio, so that every time is virtual and exact.  How a test looks:

    async def test_an_answer_arrives(world: World) -> None:
        world.upstreams["a"].plays(json_response({"id": "r"}))
        response = await world.ask(post("/v1/responses", {"model": "m1", "input": "x"}))
        assert (response.status, response.body) == (200, b'{"id": "r"}')

`world` is the fixture of conftest.py: accounts a, b, c in one pool.  For another configuration:

    async with opened_world(describe("a", limits={"attempts_max": 2})) as world: ...

When the world closes it hangs up all clients, and asserts that nothing is left: see
`World.assert_quiet`.  What the upstream reads and the client is sent is checked strictly.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pooler import BaseUrl, Config, Server, digest_parts, parse_config
from tests.support.codex_backend import PREFIX, CodexBackend
from tests.support.frames import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    accept_of,
    frame,
    split_frame,
)
from tests.support.limits import with_limits
from tests.support.memory_sockets import (
    KEY,
    OTHER_KEY,
    Client,
    Json,
    MemoryListener,
    MemorySocket,
    Pairs,
    Response,
    put_in_order,
    read_fields,
    request,
    socket_pair,
)

UPSTREAM_KEY: Final = "sk-upstream-key-of-"  # with the account's name behind it
MODELS: Final = ("m1", "m2")
TOKEN_PATH: Final = "/oauth/token"
UNIX_START: Final = 1_800_000_000  # the wall clock when virtual time is 0

################################################################
# CONFIGURATION
################################################################


def describe(
    names: str = "abc",
    *,
    accounts: Mapping[str, Mapping[str, Json]] | None = None,
    pool: Mapping[str, Json] | None = None,
    limits: Mapping[str, float] | None = None,
    **top: Json,
) -> dict[str, Json]:
    """pools.json as an object: one account for each letter, one pool `home`, two keys.

    `accounts` adds fields to single accounts (None takes a field away), `pool` to the pool, in
    which {"routing": "in_order"} is short for priorities (see tests/support/memory_sockets.py),
    `top` to the whole: describe("ab", accounts={"b": {"priority": 1}}, limits={...}).
    """
    described = {}
    for index, name in enumerate(names):
        account = {
            "type": "openai",
            "base_url": f"http://127.0.0.1:{9001 + index}/v1",
            "api_key": UPSTREAM_KEY + name,
            "models": list(MODELS),
        } | dict((accounts or {}).get(name, {}))
        described[name] = {key: value for key, value in account.items() if value is not None}
    keys = {"laptop": KEY, "ci": OTHER_KEY}
    home = {"accounts": list(names), "keys": keys} | dict(pool or {})
    whole = {"accounts": described, "pools": {"home": home}, "limits": with_limits(limits or {})}
    return put_in_order(whole | top)


def sessions_of(order: str) -> Iterator[str]:
    """Names of sessions, of the first key, which begin at the accounts in that order."""
    for number in itertools.count():
        digest = digest_parts("home", "laptop", "session", f"s{number}")
        ranks = {hashlib.sha256(digest + name.encode()).digest(): name for name in order}
        if "".join(ranks[rank] for rank in sorted(ranks)) == order:
            yield f"s{number}"


def make_config(described: Mapping[str, Json]) -> Config:
    def read_file(name: str) -> str:
        raise FileNotFoundError(2, "No such file", name)

    return parse_config(json.dumps(described).encode(), {}, read_file)


################################################################
# WHAT AN UPSTREAM PLAYS
################################################################
# A script is a list of steps, played once a request has been read whole.  When it ends without
# Fin or Reset, the connection waits for its next request.


@dataclass(frozen=True)
class Send:
    data: bytes


@dataclass(frozen=True)
class Pause:
    """Virtual seconds; cut short when the pooler closes the connection."""

    seconds: float


@dataclass(frozen=True)
class Wait:
    """Until the test sets the event."""

    event: trio.Event


class Settable(Protocol):
    def set(self) -> None: ...


@dataclass(frozen=True)
class Tell:
    """Set the event: the script has come here."""

    event: Settable


@dataclass(frozen=True)
class Fin:
    """Close; also what to do at a dial: connect, and close at once."""


@dataclass(frozen=True)
class Reset:
    """The pooler reads what was sent, then gets BrokenResourceError."""


@dataclass(frozen=True)
class Stall:
    """Say nothing until the pooler closes the connection."""


@dataclass(frozen=True)
class ReadOnly:
    """As the first step: play on after that many bytes of the request, and never read the rest.

    The pooler's send blocks beyond that.
    """

    byte_count: int


@dataclass(frozen=True)
class Refuse:
    """At a dial: fail."""

    error: BaseException = field(default_factory=lambda: ConnectionRefusedError(111, "refused"))


Step = Send | Pause | Wait | Tell | Fin | Reset | Stall | ReadOnly
Script = Sequence[Step]
DialStep = Refuse | Stall | Pause | Fin | Reset


def response_head(status: int = 200, headers: Pairs = ()) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode("latin-1")


def json_response(content: Json, status: int = 200, headers: Pairs = ()) -> list[Step]:
    """A whole response; `content` is sent as it is if it is bytes."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    fields = [("content-type", "application/json"), ("content-length", str(len(body))), *headers]
    return [Send(response_head(status, fields) + body)]


def error_response(status: int, code: str | None, headers: Pairs = (), **more: Json) -> list[Step]:
    error = {"message": "said by the upstream", "type": code, "code": code, "param": None}
    return json_response({"error": error | more}, status, headers)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"


def sse_head(framing: str = "chunked", length: int = 0, headers: Pairs = ()) -> bytes:
    """`framing`: chunked, length or close."""
    fields = [("content-type", "text/event-stream"), *headers]
    if framing == "chunked":
        fields.append(("transfer-encoding", "chunked"))
    elif framing == "length":
        fields.append(("content-length", str(length)))
    return response_head(200, fields)


def sse_event(payload: Json, newline: bytes = b"\n", *, with_event_line: bool = False) -> bytes:
    """One event; `payload` is an object, or the bytes of its data."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    name = re.search(rb'"type": ?"([a-z_.]+)"', data)
    line = b"event: " + name[1] + newline if with_event_line and name else b""
    return line + b"data: " + data + newline * 2


def sse_response(
    payloads: Iterable[Json],
    *,
    framing: str = "chunked",
    newline: bytes = b"\n",
    with_event_lines: bool = False,
    headers: Pairs = (),
) -> list[Step]:
    """A whole stream in one piece.  Nothing is added: a Chat stream names its b"[DONE]"."""
    body = b"".join(
        sse_event(payload, newline, with_event_line=with_event_lines) for payload in payloads
    )
    head = sse_head(framing, len(body), headers)
    steps: list[Step] = [Send(head + body)]
    if framing == "chunked":
        steps = [Send(head + chunk(body) + LAST_CHUNK)]
    elif framing == "close":
        steps.append(Fin())
    return steps


def sse_steps(*parts: Json, is_whole: bool = True, headers: Pairs = ()) -> list[Step]:
    """A chunked stream, each event in a chunk of its own; `parts` are payloads, or steps.

    `is_whole` False leaves the last chunk away: end with Fin(), Reset() or Stall().
    """
    steps: list[Step] = [Send(sse_head(headers=headers))]
    for part in parts:
        is_step = isinstance(part, Step)
        steps.append(part if is_step else Send(chunk(sse_event(part))))
    return steps + ([Send(LAST_CHUNK)] if is_whole else [])


def responses_events(*words: str, model: str = "m1") -> list[dict[str, Json]]:
    """created, in_progress, a delta for each word, completed: numbered from 0."""
    response = {"id": "resp_1", "object": "response", "created_at": 7, "model": model}
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    done = response | {"status": "completed", "output": [], "usage": usage}
    events: list[dict[str, Json]] = [
        {"type": "response.created", "response": response | {"status": "in_progress"}},
        {"type": "response.in_progress", "response": response | {"status": "in_progress"}},
        *({"type": "response.output_text.delta", "item_id": "i", "delta": w} for w in words),
        {"type": "response.completed", "response": done},
    ]
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


def chat_events(*words: str, model: str = "m1", is_done: bool = True) -> list[Json]:
    """A role, a delta for each word, a finish_reason, usage, and [DONE] if `is_done`."""

    def piece(delta: Json, finish: str | None = None) -> dict[str, Json]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"id": "c1", "object": "chat.completion.chunk", "model": model, "choices": [choice]}

    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    tail = [piece({}, "stop"), piece({}) | {"choices": [], "usage": usage}]
    says = [piece({"content": word}) for word in words]
    return [piece({"role": "assistant", "content": ""}), *says, *tail, *[b"[DONE]"] * is_done]


################################################################
# UPSTREAMS
################################################################


@dataclass
class Asked:
    """One request as an upstream read it."""

    method: str
    target: str
    headers: Pairs  # names in lower case, in their order
    head: bytes  # raw, with its blank line
    body: bytes
    at: float
    connection: Line

    def header(self, name: str) -> str | None:
        return next((value for field, value in self.headers if field == name), None)

    def json(self) -> Json:
        return json.loads(self.body)


@dataclass
class Line:
    """One connection to an upstream."""

    socket: MemorySocket
    opened_at: float
    closed_at: float | None = None  # when the pooler closed, or the script did
    buffer: bytes = b""
    request_count: int = 0
    socket_number: int = 0  # from 1 once it is a WebSocket


class Misread(AssertionError):
    """The pooler sent an upstream what is no strict HTTP."""


_REQUEST_LINE: Final = re.compile(rb"(GET|POST) (/[!-~]*) HTTP/1\.1")


class FakeUpstream:
    """The other end of one account, over HTTP and WebSockets.

    `plays(script, ...)` queues one script for each coming request or turn of a WebSocket; `always`
    is played when the queue is empty (a script, or a function from the request to one), and for
    turns `on_turn`, if it is set.  `dials` holds a step for each coming dial.  A GET (the model
    list) gets the response `catalogue` and is kept apart; an upgrade is accepted, unless
    `upgrades` holds a script for it.

    What else an upstream does is given to it: `observe` is called with each request once it has
    been read; `handle` serves one request or turn of a connection, and returns whether the
    connection stays open; `next_dial` returns what to do at a dial.
    """

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.world = world
        self.scripts: deque[Script] = deque()
        self.always: Script | Callable[[Asked], Iterable[Step]] | None = None
        self.dials: deque[DialStep] = deque()
        self.catalogue: Iterable[Step] = error_response(404, "not_found")
        self.asked: list[Asked] = []  # the POSTs
        self.catalogue_asked: list[Asked] = []
        self.usage: Iterable[Step] = error_response(404, "not_found")
        self.usage_asked: list[Asked] = []
        self.lines: list[Line] = []
        self.dial_count = 0
        self.capacity: float = math.inf  # unread bytes of what it sends

        self.upgrades: deque[Iterable[Step]] = deque()  # instead of a 101
        self.on_turn: Callable[[Json], Script] | None = None
        self.turns: list[tuple[int, Json]] = []  # the number of the WebSocket, and the body
        self.frames: list[tuple[int, bytes]] = []  # all but those of a turn
        self.handshakes: list[dict[str, str]] = []  # the fields of each upgrade

        self.observe: Callable[[Asked], None] | None = None
        self.handle: Callable[[Line], Awaitable[bool]] = self.serve_request
        self.next_dial: Callable[[], DialStep | None] = self.queued_dial

    def plays(self, *scripts: Script) -> None:
        self.scripts.extend(scripts)

    def queued_dial(self) -> DialStep | None:
        return self.dials.popleft() if self.dials else None

    @property
    def asked_bodies(self) -> list[Json]:
        """The bodies of all turns."""
        return [body for _, body in self.turns]

    @property
    def open_lines(self) -> list[Line]:
        """The connections that have become WebSockets."""
        return [line for line in self.lines if line.socket_number]

    async def connect(self) -> MemorySocket:
        """Open a connection, and return the pooler's end of it."""
        self.dial_count += 1
        await trio.lowlevel.checkpoint()
        step = self.next_dial()
        if isinstance(step, Refuse):
            raise step.error
        if isinstance(step, Stall):
            await trio.sleep_forever()
        if isinstance(step, Pause):
            with trio.move_on_after(step.seconds):
                await trio.sleep_forever()
        first = self.scripts[0][0] if self.scripts and self.scripts[0] else None
        room = max(first.byte_count, 1) if isinstance(first, ReadOnly) else math.inf
        ours, theirs = socket_pair(self.capacity, room)
        theirs.complaints = self.world.complaints
        line = Line(ours, trio.current_time())
        self.lines.append(line)
        if isinstance(step, Fin):
            ours.close()
        elif isinstance(step, Reset):
            ours.reset()
        else:
            self.world.nursery.start_soon(self.serve, line)
        return theirs

    async def accept(self, socket: MemorySocket) -> None:
        """Serve a connection that somebody else has made, as a proxy does."""
        line = Line(socket, trio.current_time())
        self.lines.append(line)
        await self.serve(line)

    async def serve(self, line: Line) -> None:
        """Serve one connection to its end."""
        try:
            is_open = True
            while is_open:
                is_open = await self.handle(line)
        except trio.BrokenResourceError:
            pass
        finally:
            line.closed_at = trio.current_time()
            line.socket.outgoing.set(ended=True)
            line.socket.incoming.set(deaf=True)

    async def serve_request(self, line: Line) -> bool:
        """Read one request or turn, and play its script; return whether another may come."""
        if line.socket_number:
            return await self._serve_turn(line)
        next_script = self.scripts[0] if self.scripts else ()
        if next_script and isinstance(next_script[0], ReadOnly):
            while len(line.buffer) < next_script[0].byte_count:
                line.buffer += await self._receive(line)
            return await self.play(self.scripts.popleft()[1:], line)
        asked = await self.read(line)
        if asked is None:
            return False
        if asked.method == "GET":
            is_usage = asked.target.endswith("/wham/usage")
            (self.usage_asked if is_usage else self.catalogue_asked).append(asked)
            if asked.header("upgrade"):
                return await self._upgrade(asked)
            return await self.play(self.usage if is_usage else self.catalogue, line)
        self.asked.append(asked)
        return await self.play(self._script_for(asked), line)

    async def _upgrade(self, asked: Asked) -> bool:
        """Accept an upgrade, or play the script that is queued for it."""
        line, headers = asked.connection, dict(asked.headers)
        self.handshakes.append(headers)
        if self.upgrades:
            return await self.play(self.upgrades.popleft(), line)
        line.socket_number = len(self.handshakes)
        lines = (
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_of(headers['sec-websocket-key'])}",
        )
        await line.socket.send_all("".join(f"{text}\r\n" for text in (*lines, "")).encode())
        return True

    async def _serve_turn(self, line: Line) -> bool:
        """Read one message of a WebSocket; if it asks for a turn, play a script."""
        payload = await self._read_message(line)
        if payload is None:
            return False
        body = json.loads(payload)
        if body.get("type") != "response.create":
            self.frames.append((TEXT, payload))
            return True
        self.turns.append((line.socket_number, body))
        script = self._script_for_turn(body)
        if script is None:
            self.world.complaints.append(f"{self.name}: a turn that no script awaits")
            return False
        return await self.play(script, line)

    async def _read_message(self, line: Line) -> bytes | None:
        """The next message of a WebSocket, or None at a Close; a Ping gets its Pong."""
        payload = b""
        while True:
            while (whole := split_frame(line.buffer)) is None:
                line.buffer += await self._receive(line)
            opcode, is_last, mask, part, line.buffer = whole
            if not mask:
                self.world.complaints.append(f"{self.name}: a frame without a mask")
            if opcode in {TEXT, CONTINUATION}:
                payload += part
                if is_last:
                    return payload
                continue
            self.frames.append((opcode, part))
            if opcode == CLOSE:
                return None
            if opcode == PING:
                await line.socket.send_all(frame(PONG, part, mask=b""))

    def _script_for_turn(self, body: Json) -> Script | None:
        if self.scripts:
            return self.scripts.popleft()
        if self.on_turn is not None:
            return self.on_turn(body)
        return None if callable(self.always) else self.always

    def _script_for(self, asked: Asked) -> Iterable[Step]:
        if self.scripts:
            return self.scripts.popleft()
        if self.always is None:
            self.world.complaints.append(f"{self.name}: a request that no script awaits")
            return [Reset()]
        return self.always(asked) if callable(self.always) else self.always

    async def _receive(self, line: Line) -> bytes:
        received = await line.socket.receive_some(65536)
        if not received:
            raise trio.BrokenResourceError
        return received

    async def read(self, line: Line) -> Asked | None:
        """The next request, or None if the pooler closes between two."""
        while b"\r\n\r\n" not in line.buffer:
            received = await line.socket.receive_some(65536)
            if not received:
                return None
            line.buffer += received
        at = trio.current_time()
        head, _, rest = line.buffer.partition(b"\r\n\r\n")
        try:
            lines = head.split(b"\r\n")
            start = _REQUEST_LINE.fullmatch(lines[0])
            assert start is not None, lines[0]
            headers = read_fields(lines[1:])
            by_name = dict(headers)
            length = int(by_name.get("content-length", "0"))
            assert "transfer-encoding" not in by_name
            assert "host" in by_name
            assert (start[1] == b"POST") == ("content-length" in by_name)
        except (AssertionError, ValueError) as error:
            self.world.complaints.append(f"{self.name}: bad request head: {error}")
            raise Misread(str(error)) from error
        while len(rest) < length:
            rest += await self._receive(line)
        body, line.buffer = rest[:length], rest[length:]
        if line.buffer:
            self.world.complaints.append(f"{self.name}: bytes behind a request")
        line.request_count += 1
        method, target = start[1].decode(), start[2].decode()
        asked = Asked(method, target, headers, head + b"\r\n\r\n", body, at, line)
        if self.observe is not None:
            self.observe(asked)
        return asked

    async def play(self, script: Iterable[Step], line: Line) -> bool:
        """Play the steps of a script; return whether the connection stays open."""
        for step in script:
            if isinstance(step, Send):
                await line.socket.send_all(step.data)
            elif isinstance(step, Tell):
                step.event.set()
            elif isinstance(step, Fin):
                return False
            elif isinstance(step, Reset):
                line.socket.reset()
                return False
            elif not await self._wait(step, line):
                return False
        return True

    async def _wait(self, step: Step, line: Line) -> bool:
        """Wait as the step says; return False if the pooler closes the connection meanwhile."""
        is_done = False
        async with trio.open_nursery() as nursery:

            async def wait_gone() -> None:
                await line.socket.wait_peer_gone()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_gone)
            seconds = step.seconds if isinstance(step, Pause) else math.inf
            with trio.move_on_after(seconds):
                if isinstance(step, Wait):
                    await step.event.wait()
                else:
                    await trio.sleep_forever()
            is_done = True
            nursery.cancel_scope.cancel()
        return is_done


################################################################
# THE WORLD
################################################################


Service = Callable[[], Awaitable[MemorySocket]]  # opens a connection: the pooler's end of it


async def refuse_connection() -> MemorySocket:
    """A service that nobody can connect to."""
    await trio.lowlevel.checkpoint()
    raise ConnectionRefusedError(111, "refused")


class World:
    """A running server, its upstreams by account name, its clients and its log.

    What surrounds the server can be given to it: how its upstreams are made, its wall clock, who
    else gets its log, and which service a URL names.  Without the last, `services` are looked at
    first, by the path of the URL; `serve_backend` puts `backend` there, the ChatGPT backend with
    its token endpoint.
    """

    def __init__(
        self,
        config: Config,
        nursery: trio.Nursery,
        *,
        make_upstream: Callable[[str, World], FakeUpstream] = FakeUpstream,
        find_service: Callable[[BaseUrl], Service] | None = None,
        clock: Callable[[], float] | None = None,
        log: Callable[[str, str, Mapping[str, Json]], None] | None = None,
    ) -> None:
        self.config = config
        self.nursery = nursery  # holds: the server, the upstreams' connections
        self.listener = MemoryListener()
        self.logged: list[tuple[str, str, dict[str, Json]]] = []  # level, event, fields
        self.complaints: list[str] = []  # what the upstreams hold against the pooler
        self.make_upstream = make_upstream
        self.find_service = find_service or self.service_at
        self.services: dict[str, Service] = {}
        self.upstreams = {name: make_upstream(name, self) for name in config.accounts}
        self.clients: list[Client] = []
        self.unix_offset: float = UNIX_START  # move it to move the wall clock alone
        self.unix_now = clock or self.virtual_unix_now
        self.backend = CodexBackend(self.unix_now)
        self.log = log
        self.accepted: list[MemorySocket] = []  # the pooler's ends of the clients' connections
        self.server = Server(config, {}, dial=self.dial, unix_now=self.unix_now, log=self.note_log)
        self.ended = trio.Event()  # the server has stopped

    def start(self) -> None:
        self.nursery.start_soon(self.serve)

    async def serve(self) -> None:
        await self.server.serve([self.listener])
        self.ended.set()

    async def dial(self, url: BaseUrl, tls: object) -> MemorySocket:
        """In the place of `pooler.dial`."""
        assert tls is None
        return await self.find_service(url)()

    def service_at(self, url: BaseUrl) -> Service:
        """What a URL names: a service by its path, or an account's upstream by its address."""
        config = self.server.shared.config
        if url.path in self.services:
            return self.services[url.path]
        if url == config.token_url:
            return refuse_connection
        for name, account in config.accounts.items():
            if account.base_url == url:
                return self.upstream(name).connect
        raise AssertionError(f"dialled {url}, which is no account's")

    def upstream(self, name: str = "a") -> FakeUpstream:
        """The upstream of that name; it is made if a reload has brought the name."""
        if name not in self.upstreams:
            self.upstreams[name] = self.make_upstream(name, self)
        return self.upstreams[name]

    def serve_backend(self) -> None:
        """Let the ChatGPT backend and its token endpoint be reached, by their paths."""
        self.services |= dict.fromkeys((PREFIX, TOKEN_PATH), self.connect_to_backend)

    async def connect_to_backend(self) -> MemorySocket:
        await trio.lowlevel.checkpoint()
        ours, theirs = socket_pair()
        self.nursery.start_soon(self.backend.serve, theirs)
        return ours

    def virtual_unix_now(self) -> float:
        return self.unix_offset + trio.current_time()

    def note_log(self, level: str, event: str, fields: Mapping[str, Json]) -> None:
        json.dumps(fields)  # what the real log would do
        self.logged.append((level, event, dict(fields)))
        if self.log is not None:
            self.log(level, event, fields)

    @property
    def records(self) -> list[dict[str, Json]]:
        """The log's lines about requests, oldest first.  After `Client.ask`: `settle` before."""
        return [fields for _, event, fields in self.logged if event == "request"]

    @property
    def asked(self) -> list[Asked]:
        """The POSTs of all upstreams, oldest first."""
        every = itertools.chain.from_iterable(
            upstream.asked for upstream in self.upstreams.values()
        )
        return sorted(every, key=lambda asked: asked.at)

    @property
    def turns(self) -> list[tuple[str, int, Json]]:
        """Account, connection and body of every turn, of one account after the other."""
        return [
            (name, number, body)
            for name, upstream in self.upstreams.items()
            for number, body in upstream.turns
        ]

    @property
    def open_count(self) -> int:
        """Connections to upstreams that are still open."""
        lines = [line for upstream in self.upstreams.values() for line in upstream.lines]
        return sum(not (line.closed_at or line.socket.outgoing.is_deaf) for line in lines)

    async def connect(self, *, capacity: float = math.inf) -> Client:
        """A new client; `capacity`: how many bytes it leaves unread before it blocks the pooler."""
        await trio.lowlevel.checkpoint()
        ours, theirs = socket_pair(back=capacity)
        client = Client(ours)
        self.clients.append(client)
        self.accepted.append(theirs)
        self.listener.arrive(theirs)
        return client

    async def ask(self, raw: bytes) -> Response:
        """One request on a connection of its own, which is closed once all is settled."""
        client = await self.connect()
        try:
            response = await client.ask(raw)
            await self.settle()  # the record is written after the last byte
            return response
        finally:
            client.stream.close()

    async def settle(self) -> None:
        """Return when everybody waits for something (virtual time does not move)."""
        await wait_all_tasks_blocked()

    def assert_quiet(self) -> None:
        """No request is under way and nothing is held.  Call `settle` before."""
        server = self.server
        assert not server.exchanges.in_progress
        leases = server.shared.roster.leases
        for counts in (leases.in_flight, leases.of_key, leases.of_key_at):
            assert set(counts.values()) <= {0}, counts
        assert {use.in_flight_count for use in server.shared.uses.values()} <= {0}
        assert {
            pool: len(queue) for pool, queue in server.shared.queues.by_pool.items() if queue
        } == {}
        assert server.shared.bodies.bytes_held == 0
        assert server.shared.events.bytes_held == 0
        assert [fields for _, event, fields in self.logged if event == "bug"] == []
        assert self.complaints == [], self.complaints

    async def close(self) -> None:
        """Hang up, and see that nothing is left, neither here nor at the upstreams."""
        for client in self.clients:
            if not client.stream.is_closed:
                await client.hang_up()
        await self.settle()
        self.assert_quiet()
        assert not self.server.connections.counted
        assert not self.server.connections.keyless
        assert not self.server.websockets.opened
        self.server.stop()
        await self.settle()
        open_lines = [
            upstream.name
            for upstream in self.upstreams.values()
            for line in upstream.lines
            if not (line.socket.outgoing.is_deaf or line.socket.is_closed or line.closed_at)
        ]
        assert open_lines == []


@asynccontextmanager
async def opened_world(described: Mapping[str, Json] | None = None) -> AsyncIterator[World]:
    """A world that runs inside the `async with`, and is left quiet; else an AssertionError."""
    is_virtual = isinstance(trio.lowlevel.current_clock(), MockClock)
    assert is_virtual, "the test must ask for the fixture autojump_clock"
    failure: BaseException | None = None
    config = make_config(describe() if described is None else described)
    async with trio.open_nursery() as nursery:
        world = World(config, nursery)
        world.start()
        try:
            yield world
            await world.close()
        except Exception as error:  # noqa: BLE001 (raised again below)
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:  # outside of the nursery: not wrapped in a group
        raise failure


def check_error(response: Response, status: int, code: str) -> None:
    """The response is an error of the server with this status and code."""
    assert (response.status, response.error["code"]) == (status, code)


async def is_closed(client: Client) -> bool:
    """Whether the pooler has closed the connection, without a word."""
    with trio.move_on_after(0.01):
        assert await client.wait_closed() == b""
        return True
    return False


async def connect_with_key(world: World) -> Client:
    """A connection that has shown a valid key, and is idle."""
    client = await world.connect()
    assert (await client.ask(request("GET", "/v1/models"))).status == 200
    return client


def asked_counts(world: World) -> list[int]:
    """How many requests each upstream was sent, in the order of the accounts."""
    return [len(upstream.asked) for upstream in world.upstreams.values()]
