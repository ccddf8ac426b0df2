"""Whole lives of the pooler from one random seed each.  (No claims: tests/long/test_simulation.py.)

    python -m tests.long.simulate --seeds 200000 [--first N] [--jobs J]

A run is the real `Server` in virtual time: clients that stall, leave and half-close; accounts of
both types, WebSockets and logins whose upstreams and disk err as tests/long/sim_world.py draws;
reloads, stops and crashes.  Everything is drawn from the seed, Trio's order of tasks included.
What must hold of every run is asserted by
`Life`, `end` and `survive`, by `judge` in tests/long/sim_answers.py, and by `Sim.judge_asked` and
`Gauge` in tests/long/sim_world.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio
import trio._core._run as trio_run
from trio.testing import MockClock

from pooler import (
    REFRESH_URL_VARIABLE,
    Config,
    KeyUse,
    Lasting,
    Ledger,
    Loaded,
    LoginNeeded,
    Roster,
    UpstreamConnection,
    dump_escaped,
    parse_config,
    parse_state,
)
from tests.long.sim_answers import Seen, judge, read_body, read_event
from tests.long.sim_disk import Crash, tokens_in
from tests.long.sim_world import CALM, CALM_KEY, CODEX, MOVED, TOKEN, Sim, Task, probe, run_inline
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
from tests.support.world import TOKEN_PATH, UPSTREAM_KEY, World, describe

LIFE_SECONDS_MAX: Final = 20_000.0  # of virtual time: no client waits longer
SEED_REAL_SECONDS_MAX: Final = 60  # where time stands still
END_SECONDS_MAX: Final = 300.0  # after the last client has gone (I1)
TYPED: Final = ("Sim-", "said by the upstream", ".0 ")  # of prompts, upstreams and answers
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

################################################################
# CONFIGURATIONS
################################################################


def describe_life(folder: Path, kind: int) -> Json:
    """pools.json: a and c with API keys, b and d with logins, and z in a pool of its own."""
    accounts: dict[str, Json] = {}
    for at, name in enumerate("abcdz"):
        accounts[name] = {"websocket": True, "concurrent": 2 if kind & 1 else 16}
        if name in CODEX:
            accounts[name] |= {
                "type": "codex",
                "auth_file": str(folder / name / "auth.json"),
                "api_key": None,
                "base_url": f"http://127.0.0.1:{9001 + at}/backend-api/codex",
            }
    accounts["c"]["priority"] = kind & 2
    if kind & 8:  # for a reload: other servers, and other credentials, under the same names
        accounts["a"] |= {"base_url": "http://127.0.0.1:9101/v1", "api_key": UPSTREAM_KEY + "2a"}
        accounts["b"] |= {
            "auth_file": str(folder / MOVED["b"] / "auth.json"),
            "base_url": "http://127.0.0.1:9102/backend-api/codex",
        }
    whole = describe("abcdz", accounts=accounts)
    home = whole["pools"]["home"]
    home |= {"accounts": list("abcd"), "routing": ["sticky", "soonest_reset"][kind & 1]}
    whole["pools"]["calm"] = {"accounts": [CALM], "keys": {"calm": CALM_KEY}}
    whole["operators"] = {"desk": TOKEN}
    if kind & 2:
        whole["limits"] = {"queue_seconds_max": 1, "attempts_max": 2}
    if kind & 4:  # for a reload: less of everything
        del home["keys"]["ci"], home["accounts"][1]
        whole["accounts"]["a"]["paused"] = True
    return whole


@functools.cache
def config_of(folder: Path, kind: int) -> Config:
    env = {REFRESH_URL_VARIABLE: f"http://127.0.0.1:9{TOKEN_PATH}"}
    return parse_config(json.dumps(describe_life(folder, kind)).encode(), env, str)


################################################################
# CLIENTS
################################################################


def loaded(config: Callable[[int], Config], kind: int) -> Loaded:
    """What a reload finds: a configuration that needs no TLS."""
    return config(kind), {}


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


def body_of(task: Task, rng: random.Random) -> Json:
    if task.kind == "chat":
        body: Json = {"model": "m1", "messages": [{"role": "user", "content": task.prompt}]}
        tool: Json = {"type": "function", "function": {"name": "look", "parameters": {}}}
    else:
        text = [{"type": "input_text", "text": task.prompt}]
        items: list[Json] = [{"type": "message", "role": "user", "content": text}]
        if task.has_reasoning:
            sealed = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAABsealed"}
            items.insert(0, sealed)
        body = {"model": "m1", "input": items}
        tool = {"type": "function", "name": "look", "parameters": {}}
    if task.has_tool:
        body["tools"] = [tool]
    if rng.random() < 0.3:
        body["prompt_cache_key"] = f"session-{rng.randint(0, 2)}"
    if task.kind == "native":
        return body | {"instructions": "", "store": False, "stream": True}
    return body | {"stream": task.is_stream}


@dataclass
class Life:
    """One run, from its seed to its verdict."""

    rng: random.Random
    sim: Sim
    world: World
    counts: Counter[str]
    logged: list[tuple[float, str]] = field(default_factory=list)  # what happened, for a reader
    is_stopping: bool = False

    def note(self, what: str) -> None:
        self.logged.append((round(trio.current_time(), 6), what))
        self.counts[what.partition(":")[0]] += 1

    async def pause(self, seconds: float) -> None:
        await trio.sleep_until(trio.current_time() + seconds)

    def new_task(self, kind: str, *, is_calm: bool, is_stream: bool) -> Task:
        rng, number = self.rng, len(self.sim.tasks) + 1
        task = Task(number, kind, is_stream, is_calm=is_calm)
        task.has_tool = rng.random() < 0.2
        task.has_reasoning = kind == "responses" and rng.random() < 0.1
        task.word_count = rng.choice([1, 3, 8])
        if rng.random() < 0.02:
            task.word_count, task.word_bytes = 30, 12_000
        self.sim.tasks[number] = task
        return task

    ############ plain HTTP

    async def visit(self, key: str, *, is_calm: bool) -> None:
        """A client of one connection and some requests."""
        rng = self.rng
        manner = Manner() if is_calm else draw_manner(rng)
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
        task = self.new_task(kind, is_calm=is_calm or rng.random() < 0.3, is_stream=is_stream)
        task.socket, task.byte_count = client.stream, client.stream.incoming.byte_count
        raw = post(PATHS[kind], body_of(task, rng), key=key)
        was_stopping = self.is_stopping
        response = Response(0, [])
        is_whole = False
        try:
            await self.send(client, manner, raw)
            response = await client.read_head()
            await self.read(client, manner, response)
            is_whole = True
        except (Truncated, *BROKEN) as error:
            self.note(f"cut: {type(error).__name__} {response.status}")
            is_ending = was_stopping or self.is_stopping
            is_excused = self.sim.disk.has_crashed or manner.is_slow or manner.half_closes
            is_excused |= response.status == 0 and (is_ending or manner.drips)
            assert is_excused, f"a client's answer was cut: {response}"
        finally:
            seen = read_body(response, is_whole=is_whole)
            judge(task, seen)
            self.judge_told(task, response.body)
        self.note(f"{seen.status} {seen.ends[-1:]}: {task.number} {task.attempts}")
        if is_calm and is_whole and not self.is_stopping:
            assert seen.is_success, f"a calm client was answered {response}"
        return is_whole and response.header("connection") != "close"

    def judge_told(self, task: Task, body: bytes) -> None:
        """I5: a client is told no secret, and nothing of another's."""
        told = [one for one in self.sim.secrets if one.encode() in body]
        others = {int(number) for number in re.findall(rb"\bw(\d+)\.[a-z0-9]+\.", body)} - {
            task.number
        }
        assert not told, f"a client was told {told}"
        assert not others, f"the client of request {task.number} was told words of {others}"

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
                socket = await read_upgrade(client)
                for _ in range(rng.randint(1, 4)):
                    await self.pause(rng.choice([0, 0.5, 30]))
                    await self.take_turns(socket, rng.choice([1, 1, 1, 3]))
                if rng.random() < 0.15:
                    await self.dawdle(socket)
                if not manner.is_rude:
                    await client.send(frame(CLOSE, b"\x03\xe8"))
                    await client.wait_closed()
        except AssertionError as error:
            is_refused = str(error).startswith("b'HTTP/1.1 ") and "b'HTTP/1.1 101" not in str(error)
            if not is_refused:
                raise
            self.note("no upgrade")
        except (Truncated, *BROKEN):
            self.note("socket over")
        await self.leave(client, manner)

    async def take_turns(self, socket: SocketClient, count: int) -> None:
        """Turns that are sent ahead, and their verdicts.  Raises: as `hear_turn`."""
        tasks = [
            self.new_task("responses", is_calm=self.rng.random() < 0.3, is_stream=True)
            for _ in range(count)
        ]
        was_stopping = self.is_stopping
        with contextlib.suppress(*BROKEN):  # what has been answered before can be read
            for task in tasks:
                await socket.create(**body_of(task, self.rng))
        for task in tasks:
            await self.hear_turn(socket, task, was_stopping=was_stopping)

    async def hear_turn(self, socket: SocketClient, task: Task, *, was_stopping: bool) -> None:
        """The answer to one, and its verdict.  Raises: Truncated, where the socket is over."""
        seen = Seen(200)
        try:
            while not seen.ends:
                opcode, payload = await socket.read_frame()
                if opcode == CLOSE:
                    self.note("closed by the pooler")
                    is_known = self.is_stopping or self.sim.disk.has_crashed
                    assert is_known or not task.attempts, "closed in a turn"
                    raise Truncated
                if opcode == TEXT:
                    read_event(seen, json.loads(payload))
            seen.is_whole = True
        except (Truncated, *BROKEN):
            is_excused = was_stopping or self.is_stopping or not task.attempts
            is_excused |= self.sim.disk.has_crashed
            assert is_excused, f"a turn was cut: {task.attempts}"
            raise
        finally:
            judge(task, seen)
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
        """An operator, and a stranger."""
        for path in ("/admin", "/metrics", "/readyz"):
            await self.pause(self.rng.choice([0, 1, 40]))
            client = await self.world.connect()
            with contextlib.suppress(Truncated, *BROKEN):
                raw = request("GET", path, key=TOKEN, headers=[("Accept", "application/json")])
                response = await client.ask(raw)
                assert response.status in {200, 503}, response
                found = [one for one in self.sim.secrets if one.encode() in response.body]
                assert not found, f"{path} tells {found}"
            await client.hang_up()

    async def disturb(self, config: Callable[[int], Config]) -> None:
        """Reloads, a wall clock that is set, a Codex CLI, and maybe the end."""
        rng, server = self.rng, self.world.server
        for _ in range(rng.randint(0, 3)):
            await self.pause(rng.choice([0.0013, 0.5013, 12.0013, 100.0013]))  # never with others
            at = rng.random()
            if at < 0.3:
                kind = rng.randrange(16)
                self.note(f"reload: {kind}")
                await server.reload(functools.partial(loaded, config, kind))
            elif at < 0.6:
                name = rng.choice(CODEX)
                self.note(f"rotated: {name}")
                self.sim.desk.rotate(name)
            elif at < 0.7 and not self.sim.disk.crash_rate:
                self.sim.unix_offset += rng.choice([-3600, 3600, 10 * 86400])
        if rng.random() < 0.3:
            self.note("stop")
            self.is_stopping = True
            server.stop()

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
            nursery.start_soon(self.disturb, config)


async def end(sim: Sim, world: World) -> None:
    """I1: with the last client gone nothing is left, and the server ends when it is told to."""
    await world.settle()
    world.assert_quiet()
    left = [
        *world.server.connections.counted,
        *world.server.connections.keyless,
        *world.server.websockets.opened,
    ]
    assert left == []
    world.server.stop()
    with trio.fail_after(END_SECONDS_MAX):
        await world.ended.wait()
    await world.settle()
    for name, upstream in world.upstreams.items():
        for line in upstream.lines:
            is_over = line.socket.outgoing.is_deaf or line.socket.is_closed or line.closed_at
            assert is_over, f"a connection to {name} is left open"
    told = json.dumps(world.logged)
    found = [one for one in (*sim.secrets, *TYPED) if one in told]
    assert not found, f"the log tells {found}"
    outlive(sim, world)


def outlive(sim: Sim, world: World) -> None:
    """I7: the state can be saved, contains no secret, and is the same after each restart."""
    lasting = world.server.keeper.lasting()
    raw = dump_escaped(lasting.save())
    found = [one for one in (*sim.secrets, *TYPED) if one.encode() in raw]
    assert not found, f"the state contains {found}"
    versions = [raw]
    for _ in range(2):
        roster, ledger = Roster(lasting.config), Ledger(1)
        restarted = Lasting(
            lasting.config, roster, ledger, defaultdict(KeyUse), 0.0, lasting.unix_now
        )
        restarted.restore(parse_state(versions[-1]))
        versions.append(dump_escaped(restarted.save()))
    assert versions[1] == versions[2]


async def survive(sim: Sim, config: Config) -> None:
    """I6: after a crash and a start, every login that could be saved is good."""
    disk, desk = sim.disk, sim.desk
    lost = set(desk.withdrawn)
    for name in CODEX:
        path = sim.path_of(name)
        fresh = path.with_name(f".{path.name}.new")
        left = disk.durable(fresh) if fresh.exists() else b""
        saved = {tokens_in(disk.durable(path))[1], tokens_in(left)[1]}
        if desk.newest[name].refresh_token not in saved:  # got, and not yet written
            lost.add(name)
    disk.crash()
    disk.fault_rate = disk.crash_rate = 0.0
    desk.told = {token for token in desk.told if token.split("-")[2] not in lost}
    sim.is_calm = True
    async with trio.open_nursery() as nursery:
        world = sim.start_world(config, nursery)
        await world.settle()
        for name in CODEX:
            assert tokens_in(sim.path_of(name).read_bytes())[1], f"{name}: its file is broken"
            if name in lost:
                continue
            login = world.server.shared.endpoints.logins.get(name)
            if login is None:  # it is that of a name that points elsewhere now
                continue
            try:
                await world.server.shared.tokens.credentials(login)
            except LoginNeeded as error:
                raise AssertionError(f"{name}: its login is lost: {error}") from None
        await end(sim, world)


async def run_life(seed: int, folder: Path, counts: Counter[str]) -> list[tuple[float, str]]:
    """The whole of one run; what happened.  Raises: AssertionError."""
    rng = random.Random(seed)
    sim = Sim(rng, folder)
    sim.disk.fault_rate = rng.choice([0, 0, 0.15])
    sim.disk.crash_rate = rng.choice([0, 0, 0.08])
    for name in CODEX:
        sim.desk.log_in(name, rng.choice([10**6, 10**6, 200, 400, 30, -60]))
    configs = functools.partial(config_of, folder)
    logged: list[tuple[float, str]] = []
    with sim.disk.mounted():
        try:
            async with trio.open_nursery() as nursery:
                world = sim.start_world(configs(rng.randrange(4)), nursery)
                life = Life(rng, sim, world, counts, logged)
                with trio.fail_after(LIFE_SECONDS_MAX):
                    await life.live(configs)
                await end(sim, world)
        except* Crash:
            pass
        if sim.disk.has_crashed:
            counts["crash"] += 1
            await survive(sim, configs(0))
    return logged


def run_seed(seed: int, folder: Path, counts: Counter[str]) -> list[tuple[float, str]]:
    """One run, drawn from `seed` alone."""
    places: Sequence[tuple[object, str, object]] = (
        (trio_run, "_r", random.Random(seed)),
        (trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        (trio.to_thread, "run_sync", run_inline),
        (secrets, "token_bytes", random.Random(seed).randbytes),  # of request ids
        (UpstreamConnection, "probe", probe),
    )
    kept = [getattr(place, name) for place, name, _ in places]
    for place, name, value in places:
        setattr(place, name, value)
    for name in CODEX:
        for left in folder.glob(f"{name}/*"):  # hidden ones, too
            left.unlink()
    try:
        return trio.run(
            run_life, seed, folder, counts, clock=MockClock(autojump_threshold=0)
        )  # fmt: skip
    finally:
        for (place, name, _), value in zip(places, kept, strict=True):
            setattr(place, name, value)


################################################################
# MANY
################################################################


def give_up(*_: object) -> None:
    raise TimeoutError("this seed does not end, in real time")


def run_seeds(seeds: Sequence[int]) -> tuple[Counter[str], dict[int, str]]:
    """What happened how often, and the failures by seed."""
    counts: Counter[str] = Counter()
    failures: dict[int, str] = {}
    kept = signal.signal(signal.SIGALRM, give_up)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for seed in seeds:
            signal.alarm(SEED_REAL_SECONDS_MAX)
            try:
                run_seed(seed, folder, counts)
            except Exception as error:  # noqa: BLE001 (it is told, with its seed)
                failures[seed] = "".join(traceback.format_exception(error))
    signal.alarm(0)
    signal.signal(signal.SIGALRM, kept)
    return counts, failures


def run_many(first: int, count: int, jobs: int) -> tuple[Counter[str], dict[int, str]]:
    step = max(1, min(500, count // jobs))
    parts = [range(at, min(at + step, first + count)) for at in range(first, first + count, step)]
    counts: Counter[str] = Counter()
    failures: dict[int, str] = {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for counted, failed in pool.map(run_seeds, parts):
            counts.update(counted)
            failures |= failed
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate lives of the pooler.")
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    counts, failures = run_many(asked.first, asked.seeds, asked.jobs)
    for what, count in counts.most_common():
        sys.stdout.write(f"{count:9} {what}\n")
    for seed, told in list(failures.items())[:5]:
        sys.stdout.write(f"\nseed {seed}\n{told}")
    sys.stdout.write(f"\n{asked.seeds} seeds, {len(failures)} failed: {sorted(failures)[:50]}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
