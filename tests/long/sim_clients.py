"""The clients of the simulation, its operators, and whoever else comes by.  (No claims.)"""

from __future__ import annotations

import contextlib
import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from pooler import SESSION_HEADERS, Config, Loaded
from tests.long.sim_answers import Seen, judge, judge_told, read_body, read_event
from tests.long.sim_ground import Ground
from tests.long.sim_names import CALM_KEY, CODEX, TOKEN
from tests.long.sim_page import Page
from tests.long.sim_requests import Task
from tests.long.sim_world import Sim
from tests.support.frames import CLOSE, TEXT, frame
from tests.support.memory_sockets import (
    KEY,
    OTHER_KEY,
    Client,
    Json,
    Response,
    Truncated,
    post,
    request,
)
from tests.support.memory_websockets import SocketClient, read_upgrade, upgrade
from tests.support.world import World

BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
INTRUSIONS: Final = (
    post("/v1/responses", {"model": "m1", "input": "Sim-0000-prompt"}, key="cp-wrong-key"),
    post("/v1/responses", {"model": "m1", "input": "Sim-0000-prompt"}, key=TOKEN),
    post("/v1/responses", b'{"model": "m1", "model": "m2", "input": "Sim-0000-prompt"}'),
    post("/v1/chat/completions", b"\xff\xfe{}"),
    post("/v1/responses", b"{}")[:-40],
    request("GET", "/metrics", key=KEY),
    request("POST", "/v1/responses", headers=[("Transfer-Encoding", "gzip")]),
    b"GET / HTTP/1.1\nHost: localhost\n\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01" * 100,
)
NATIVE: Final = "/backend-api/codex/responses"
PATHS: Final = {
    "responses": "/v1/responses",
    "chat": "/v1/chat/completions",
    "native": NATIVE,
}


NAMING: Final = [name for name in SESSION_HEADERS if "_" not in name]
WAITS: Final = (0, 0, 0, 45, 1000)  # before a client comes
PROXIED: Final = 64  # the bit of a configuration with a proxy
STATE: Final = 256  # the bit of a configuration with a state file


def draw_kind(rng: random.Random) -> int:
    """A configuration; a proxy takes time, so few have one."""
    kind = rng.randrange(STATE)
    return kind if rng.random() < 0.5 else kind & ~PROXIED


def mcp_call(rng: random.Random) -> bytes:
    """An operator's question by MCP."""
    name, arguments = rng.choice(
        [
            ("codex_pooler_diagnose", {}),
            ("codex_pooler_list_upstreams", {}),
            ("codex_pooler_explain_routing", {"pool_selector": "home", "model": "m1"}),
        ]
    )
    params = {"name": name, "arguments": arguments}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    accept = [("Accept", "application/json, text/event-stream")]
    return post("/mcp", message, key=TOKEN, headers=accept)


def loaded(config: Callable[[int], Config], kind: int) -> Loaded:
    """What a reload finds: a configuration that needs no TLS."""
    return config(kind), {}


@dataclass
class Talk:
    """A WebSocket, and what its next turn continues."""

    socket: SocketClient
    key: str
    session: tuple[str, str] | None = None


class Left(Exception):
    """The client has gone, as it had drawn."""


@dataclass
class Manner:
    """How a client behaves."""

    capacity: float = float("inf")
    pace: Sequence[float] = ()  # pauses between its reads
    leaves_after: int = -1  # so many reads
    leaves_at: float = float("inf")
    is_rude: bool = False  # it resets
    half_closes: bool = False
    is_split: bool = False  # what it sends comes in pieces
    drips: bool = False  # with pauses that break timers

    @property
    def is_slow(self) -> bool:
        return bool(self.pace) and self.capacity < 65536


def draw_manner(rng: random.Random) -> Manner:
    manner = Manner(is_rude=rng.random() < 0.5, is_split=rng.random() < 0.3)
    at = rng.random()
    if at < 0.15:
        manner.leaves_after = rng.randint(0, 6)
    elif at < 0.3:
        manner.leaves_at = trio.current_time() + rng.choice([0.0, 0.01, 2, 11, 60, 200])
    elif at < 0.34:
        manner.half_closes = True
    elif at < 0.4:
        manner.drips = manner.is_split = True
    if rng.random() < 0.3:
        manner.capacity = rng.choice([200, 4096, 65536])
        manner.pace = (0.001, 1.0, 15.0)
    return manner


def draw_session(task: Task, rng: random.Random, before: tuple[str, str] | None = None) -> None:
    """What names the session of a request, if not what it was before on a WebSocket."""
    at, number = rng.random(), rng.randint(0, 1)
    if at < 0.2:
        task.session = ("cache key", f"k-{number}")
    elif at < 0.5 and not task.is_turn:
        task.session = ("header", f"h-{number}")
    elif before is not None:
        task.session = before
    elif task.previous:
        task.session = None
    else:
        task.opening = f"Opening {number}" if at < 0.8 else ""
        task.session = ("conversation", task.opening or task.prompt)


def headers_of(task: Task, rng: random.Random) -> list[tuple[str, str]]:
    """A header that names the session, as one of many clients does."""
    if task.session is None or task.session[0] != "header":
        return []
    return [(rng.choice(NAMING), task.session[1])]


def body_of(task: Task) -> Json:
    if task.kind == "chat":
        said = [task.opening, "said before", task.prompt] if task.opening else [task.prompt]
        roles = ["user", "assistant", "user"]
        messages = [
            {"role": role, "content": text} for role, text in zip(roles, said, strict=False)
        ]
        body: Json = {"model": task.asked_model, "messages": messages}
        tool: Json = {"type": "function", "function": {"name": "look", "parameters": {}}}
    else:
        text = [{"type": "input_text", "text": task.prompt}]
        items: list[Json] = [{"type": "message", "role": "user", "content": text}]
        if task.has_reasoning:
            sealed = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAABsealed"}
            items.insert(0, sealed)
        if task.opening:
            items.insert(0, {"role": "user", "content": task.opening})
        body = {"model": task.asked_model, "input": items}
        tool = {"type": "function", "name": "look", "parameters": {}}
    if task.has_tool:
        body["tools"] = [tool]
    if task.session is not None and task.session[0] == "cache key":
        body["prompt_cache_key"] = task.session[1]
    if task.previous:
        body["previous_response_id"] = task.previous
    if task.kind == "native":
        return body | {"instructions": "", "store": False, "stream": True}
    return body | {"stream": task.is_stream}


@dataclass
class Life:
    """The clients of one server, from the first to the last."""

    ground: Ground
    sim: Sim
    world: World
    page: Page
    kind: int  # of its configuration
    logged: list[tuple[float, str]] = field(default_factory=list)  # what happened, for a reader
    is_stopping: bool = False
    has_left: set[int] = field(default_factory=set)

    @property
    def rng(self) -> random.Random:
        return self.ground.rng

    def note(self, what: str) -> None:
        self.logged.append((round(trio.current_time(), 6), what))
        self.ground.counts[what.partition(":")[0]] += 1

    async def pause(self, seconds: float) -> None:
        await trio.sleep_until(trio.current_time() + seconds)

    def new_task(self, kind: str, key: str, *, is_calm: bool, is_stream: bool) -> Task:
        rng, number = self.rng, len(self.ground.tasks) + 1
        task = Task(number, kind, is_stream, key=key, is_calm=is_calm)
        if key != CALM_KEY:
            task.asked_model = rng.choice(["m1", "m1", "m1", "m2", "fast"])
            task.model = "m2" if task.asked_model == "m2" else "m1"
            known = self.ground.book.responses_of(key)
            if kind == "responses" and known and rng.random() < 0.15:
                task.previous = rng.choice(known)
        task.has_tool = rng.random() < 0.2
        task.has_reasoning = kind == "responses" and rng.random() < 0.1
        task.word_count = rng.choice([1, 3, 8])
        if rng.random() < 0.02:
            task.word_count, task.word_bytes = 30, 12_000
        self.ground.tasks[number] = task
        return task

    def begin(self, task: Task) -> None:
        task.began_at = trio.current_time()
        self.ground.book.open_count += 1

    def end_task(self, task: Task, seen: Seen) -> None:
        """What has been answered, whole or not, and its verdict."""
        self.ground.book.open_count -= 1
        if seen.is_whole:
            task.ended_at = trio.current_time()
        judge(task, seen)
        if seen.is_success and not task.attempts[-1].is_lie:
            self.ground.book.note_success(task)

    ############ plain HTTP

    async def visit(self, key: str, *, is_calm: bool) -> None:
        """A client of one connection and some requests."""
        rng = self.rng
        manner = Manner() if is_calm else draw_manner(rng)
        await self.pause(rng.choice(WAITS))
        client = await self.world.connect(capacity=manner.capacity)
        try:
            with trio.CancelScope(deadline=manner.leaves_at):
                for at in range(rng.randint(1, 3)):
                    await self.pause(rng.choice([0, 0.5, 14, 30 if at else 1]))
                    if not await self.ask_once(client, manner, key, is_calm=is_calm):
                        break
        except Left:
            pass
        await self.leave(client, manner)

    async def ask_once(self, client: Client, manner: Manner, key: str, *, is_calm: bool) -> bool:
        """One request and its verdict; whether the connection may carry another."""
        rng = self.rng
        kind = rng.choice(["responses", "chat", "responses", "chat", "native"])
        if is_calm and kind == "native":
            kind = "chat"
        is_stream = kind == "native" or rng.random() < 0.75
        is_easy = is_calm or rng.random() < 0.3
        task = self.new_task(kind, key, is_calm=is_easy, is_stream=is_stream)
        draw_session(task, rng)
        return await self.ask(client, manner, task, is_calm=is_calm)

    async def ask(self, client: Client, manner: Manner, task: Task, *, is_calm: bool) -> bool:
        """The same, of a request that is drawn."""
        rng = self.rng
        task.socket, task.byte_count = client.stream, client.stream.incoming.byte_count
        raw = post(PATHS[task.kind], body_of(task), key=task.key, headers=headers_of(task, rng))
        was_stopping = self.is_stopping
        response = Response(0, [])
        is_whole = False
        self.begin(task)
        try:
            await self.send(client, manner, raw)
            response = await client.read_head()
            await self.read(client, manner, response)
            is_whole = True
        except (Truncated, *BROKEN) as error:
            self.note(f"cut: {type(error).__name__} {response.status}")
            is_ending = was_stopping or self.is_stopping
            is_excused = self.ground.disk.has_crashed or manner.is_slow or manner.half_closes
            is_excused |= response.status == 0 and (is_ending or manner.drips)
            assert is_excused, f"a client's answer was cut: {response}"
        finally:
            seen = read_body(response, is_whole=is_whole)
            self.end_task(task, seen)
            judge_told(task, response, self.sim.secrets)
        self.note(f"{seen.status} {seen.ends[-1:]}: {task.number} {task.attempts}")
        if is_calm and is_whole and not self.is_stopping:
            assert seen.is_success, f"a calm client was answered {response}"
        return is_whole and response.header("connection") != "close"

    async def send(self, client: Client, manner: Manner, raw: bytes) -> None:
        rng = self.rng
        count = rng.randint(1, 5) if manner.is_split else 0
        cuts = sorted({len(raw), *(rng.randint(1, len(raw)) for _ in range(count))})
        start = 0
        with contextlib.suppress(*BROKEN):  # there may be an answer all the same
            for cut in cuts:
                await client.send(raw[start:cut])
                start = cut
                if cut < len(raw):
                    await self.pause(rng.choice([0, 10, 16, 31] if manner.drips else [0, 0.1]))
            if manner.half_closes:
                await client.half_close()

    async def read(self, client: Client, manner: Manner, response: Response) -> None:
        """The body, at the client's own pace.  Raises: Left, Truncated."""
        reads = 0
        while True:
            if reads == manner.leaves_after:
                raise Left
            piece = await client.read_piece()
            if not piece:
                return
            response.body += piece
            reads += 1
            if manner.pace and self.rng.random() < 0.1:
                await self.pause(self.rng.choice(manner.pace))

    async def stay(self) -> None:
        """A conversation with nothing wrong in it, whatever happens to others meanwhile (I10)."""
        rng = self.rng
        key, kind = rng.choice([KEY, KEY, OTHER_KEY]), rng.choice(["responses", "chat"])
        how = rng.choice(["header", "cache key", "conversation"])
        name = f"s-{rng.randint(0, 10**6)}"
        for _ in range(rng.randint(2, 4)):
            await self.pause(rng.choice([0.5, 20, 45, 130]))
            task = self.new_task(kind, key, is_calm=True, is_stream=True)
            task.asked_model, task.model, task.previous = "m1", "m1", ""
            task.session = (how, name)
            task.opening = name if how == "conversation" else ""
            client = await self.world.connect()
            with contextlib.suppress(Left):
                await self.ask(client, Manner(), task, is_calm=False)
            await self.leave(client, Manner())

    async def leave(self, client: Client, manner: Manner) -> None:
        """Hang up; what is under way for this client ends at once."""
        stream = client.stream
        if manner.is_rude:
            client.reset()
        else:
            await client.hang_up()
        self.note("left")
        await self.world.settle()
        left = [
            exchange
            for exchange in self.world.server.exchanges.in_progress
            if getattr(exchange.connection.stream, "incoming", None) is stream.outgoing
        ]
        assert not left, "a request outlives its client"

    ############ WebSockets

    async def converse(self, key: str) -> None:
        """A client of one WebSocket and some turns."""
        rng = self.rng
        manner = draw_manner(rng)
        client = await self.world.connect()
        try:
            with trio.CancelScope(deadline=manner.leaves_at):
                await client.send(upgrade(key=key))
                talk = Talk(await read_upgrade(client), key)
                socket = talk.socket
                for _ in range(rng.randint(1, 4)):
                    await self.pause(rng.choice([0, 0.5, 30]))
                    await self.take_turns(talk, rng.choice([1, 1, 1, 3]))
                if rng.random() < 0.15:
                    await self.dawdle(socket)
                if not manner.is_rude:
                    await client.send(frame(CLOSE, b"\x03\xe8"))
                    await client.wait_closed()
        except AssertionError as error:
            said, _, _ = str(error).partition("\n")  # pytest adds what it has compared
            is_refused = said.startswith("b'HTTP/1.1 ") and "b'HTTP/1.1 101" not in said
            if not is_refused:
                raise
            self.note("no upgrade")
        except (Truncated, *BROKEN):
            self.note("socket over")
        await self.leave(client, manner)

    async def take_turns(self, talk: Talk, count: int) -> None:
        """Turns that are sent ahead, and their verdicts.  Raises: as `hear_turn`."""
        tasks = []
        for _ in range(count):
            is_easy = self.rng.random() < 0.3
            task = self.new_task("responses", talk.key, is_calm=is_easy, is_stream=True)
            task.is_turn = True
            draw_session(task, self.rng, talk.session)
            talk.session = task.session
            if talk.key == OTHER_KEY:  # a turn over its limit names no session for the next
                task.session = None
            tasks.append(task)
        was_stopping = self.is_stopping
        with contextlib.suppress(*BROKEN):  # what has been answered before can be read
            for task in tasks:
                await talk.socket.create(**body_of(task))
                task.began_at = trio.current_time()
        for task in tasks:
            await self.hear_turn(talk.socket, task, was_stopping=was_stopping)

    async def hear_turn(self, socket: SocketClient, task: Task, *, was_stopping: bool) -> None:
        """The answer to one, and its verdict.  Raises: Truncated, where the socket is over."""
        seen, told = Seen(200), b""
        self.ground.book.open_count += 1
        try:
            while not seen.ends:
                opcode, payload = await socket.read_frame()
                if opcode == CLOSE:
                    self.note("closed by the pooler")
                    is_known = self.is_stopping or self.ground.disk.has_crashed
                    assert is_known or not task.attempts, "closed in a turn"
                    raise Truncated
                if opcode == TEXT:
                    told += payload
                    read_event(seen, json.loads(payload))
            seen.is_whole = True
        except (Truncated, *BROKEN):
            is_excused = was_stopping or self.is_stopping or not task.attempts
            is_excused |= self.ground.disk.has_crashed
            assert is_excused, f"a turn was cut: {task.attempts}"
            raise
        finally:
            judge_told(task, Response(200, [], told), self.sim.secrets)
            self.end_task(task, seen)
        self.note(f"turn {seen.ends}: {task.number} {task.attempts}")

    async def dawdle(self, socket: SocketClient) -> None:
        """A message that never becomes whole.  Raises: Truncated, where the socket is over."""
        raw = frame(TEXT, b"{" * self.rng.choice([1, 9, 70_000]))
        await socket.send(raw[: self.rng.randrange(1, len(raw))])
        while (found := await socket.read_frame())[0] != CLOSE:
            pass
        code = int.from_bytes(found[1][:2], "big")
        assert code in {1001, 1008}, code
        self.note(f"given up with {code}")

    ############ the others

    async def look(self) -> None:
        """An operator, by page, text, metrics and MCP."""
        json_form = [("Accept", "application/json")]
        looks = [
            request("GET", "/admin", key=TOKEN, headers=json_form),
            request("GET", "/admin", key=TOKEN, headers=[("Accept", "text/html")]),
            request("GET", "/admin", key=TOKEN, headers=[("Accept", "text/plain")]),
            request("GET", "/metrics", key=TOKEN),
            request("GET", "/readyz", key=None),
        ]
        if self.rng.random() < 0.1:
            looks.append(mcp_call(self.rng))
        for raw in self.rng.sample(looks, 3):
            await self.pause(self.rng.choice([0, 1, 40]))
            client = await self.world.connect()
            with contextlib.suppress(Truncated, *BROKEN):
                response = await client.ask(raw)
                assert response.status in {200, 503}, response
                found = [one for one in self.sim.secrets if one.encode() in response.body]
                assert not found, f"an operator is told {found}"
                assert b"private.example" not in response.body
                self.note("look")
            await client.hang_up()

    async def foresee(self) -> None:
        """A client whose request meets what an operator was told a moment ago (I11)."""
        for _ in range(self.rng.randint(1, 3)):
            await self.pause(self.rng.choice([0.0007, 1.0007, 20.0007, 61.0007, 1000.0007]))
            if self.is_stopping:
                return
            client = await self.world.connect()
            task = self.new_task("responses", KEY, is_calm=True, is_stream=True)
            task.asked_model, task.previous = task.model, ""
            task.session = ("header", f"f-{task.number}")
            task.socket, task.byte_count = client.stream, 0
            raw = post(PATHS["responses"], body_of(task), headers=headers_of(task, self.rng))
            foreseen = await self.page.foresee(task)
            self.begin(task)
            seen = Seen()
            try:
                response = await client.ask(raw)
                seen = read_body(response, is_whole=True)
                judge_told(task, response, self.sim.secrets)
                is_excused = self.is_stopping or self.ground.disk.has_crashed
                self.page.judge_answered(foreseen, seen, is_excused=is_excused)
            except (Truncated, *BROKEN):
                assert self.is_stopping or self.ground.disk.has_crashed
            finally:
                self.end_task(task, seen)
            await client.hang_up()

    def rotate(self, name: str) -> None:
        self.ground.book.note_odd(name)
        self.sim.desk.rotate(name)

    async def disturb(self, config: Callable[[int], Config]) -> None:
        """Reloads, a wall clock that is set, a Codex CLI, and maybe the end."""
        rng, server = self.rng, self.world.server
        for _ in range(rng.randint(0, 3)):
            await self.pause(rng.choice([0.0013, 0.5013, 12.0013, 100.0013]))  # never with others
            at = rng.random()
            if at < 0.3:
                await self.reload(config)
            elif at < 0.6:
                name = rng.choice(CODEX)
                self.note(f"rotated: {name}")
                self.rotate(name)
            elif at < 0.7 and not self.ground.disk.crash_rate:
                self.note("clock set")
                self.ground.book.forget()
                self.ground.unix_offset += rng.choice([-3600, 3600, 10 * 86400])
        if rng.random() < 0.3:
            self.note("stop")
            self.is_stopping = True
            server.stop()

    async def reload(self, config: Callable[[int], Config]) -> None:
        self.kind = draw_kind(self.rng) | (self.kind & STATE)
        self.note(f"reload: {self.kind}")
        await self.world.server.reload(functools.partial(loaded, config, self.kind))
        self.ground.disk.settle()  # whoever reads a file anew takes what is in it for saved
        book = self.ground.book
        book.forget()
        book.is_tight = bool(self.kind & 1)

    async def intrude(self) -> None:
        """Somebody without a key, or without manners."""
        rng = self.rng
        client = await self.world.connect()
        raw = rng.choice(INTRUSIONS)
        cut = rng.randint(1, len(raw))
        with contextlib.suppress(Truncated, *BROKEN):
            for part in (raw[:cut], raw[cut:]):
                await client.send(part)
                await self.pause(rng.choice([0, 1, 20]))
            response = await client.read_response()
            assert response.status >= 400, response
            self.note(f"intruder: {response.status}")
        await self.leave(client, Manner(is_rude=True))

    async def live(self, config: Callable[[int], Config]) -> None:
        """All of it.  Raises: AssertionError, where an invariant does not hold."""
        rng = self.rng
        keys = [KEY, OTHER_KEY]
        async with trio.open_nursery() as nursery:
            for _ in range(rng.randint(1, 4)):
                nursery.start_soon(functools.partial(self.visit, rng.choice(keys), is_calm=False))
            for _ in range(rng.randint(0, 2)):
                nursery.start_soon(self.converse, rng.choice(keys))
            nursery.start_soon(functools.partial(self.visit, CALM_KEY, is_calm=True))
            nursery.start_soon(rng.choice([self.look, self.intrude]))
            if rng.random() < 0.5:
                nursery.start_soon(self.stay)
            if rng.random() < 0.6:
                nursery.start_soon(self.foresee)
            nursery.start_soon(self.disturb, config)
