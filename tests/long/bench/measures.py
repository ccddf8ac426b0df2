"""What is measured, and how: processes, their CPU time and memory, one function per figure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.long.bench.load import CHATGPT_KEY, KEY, Connection, connections, request
from tests.support.codex_backend import make_auth_file
from tests.support.paths import ROOT

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
START_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 10.0
CLIENTS: Final = 32
PACED_STREAMS: Final = 50
BURST_STREAMS: Final = 4
BATCH: Final = 50
TURNS_AT_ONCE: Final = 16
SETTLE_SECONDS: Final = 0.5
STREAMS_MAX: Final = 4096
SMALL_BODY: Final = 150_000
LARGE_BODY: Final = 1_000_000
COUNT_SECONDS: Final = 1.0
COUNTED_REQUESTS: Final = 50
COUNTED_BODIES: Final = 4
OPERATOR_TOKEN: Final = "bench-operator-0123456789"
CORES: Final = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Scale:
    """How long the measurements are."""

    rounds: int
    request_seconds: float
    burst_events: int
    bursts: int  # one after the other, on each of BURST_STREAMS connections
    paced_seconds: float
    first_event_seconds: float
    idle_streams: int
    turns: int  # one after the other, on each of TURNS_AT_ONCE connections
    turn_events: int
    bodies: int
    aborts: int


FULL: Final = Scale(
    rounds=5,
    request_seconds=3.0,
    burst_events=20_000,
    bursts=5,
    paced_seconds=5.0,
    first_event_seconds=3.0,
    idle_streams=500,
    turns=1,
    turn_events=600,
    bodies=60,
    aborts=40,
)
QUICK: Final = Scale(
    rounds=1,
    request_seconds=1.0,
    burst_events=20_000,
    bursts=1,
    paced_seconds=2.0,
    first_event_seconds=1.0,
    idle_streams=200,
    turns=1,
    turn_events=200,
    bodies=20,
    aborts=10,
)
SMALLEST: Final = Scale(
    rounds=1,
    request_seconds=0.3,
    burst_events=5_000,
    bursts=1,
    paced_seconds=0.5,
    first_event_seconds=0.5,
    idle_streams=50,
    turns=1,
    turn_events=20,
    bodies=8,
    aborts=3,
)


################################################################
# PROCESSES
################################################################


@dataclass(slots=True)
class Server:
    """A running process that accepts connections at `port`."""

    pid: int
    port: int
    has_chatgpt: bool = False  # whether a key leads to a ChatGPT account
    counts: Path | None = None  # what `launch` writes at SIGUSR1

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def cpu_since(self, before: float) -> float:
        """CPU seconds since `cpu_seconds` was `before`: at least a tick, to divide by it."""
        return max(self.cpu_seconds() - before, 1 / TICKS_PER_SECOND)

    def ask_counts(self) -> dict[str, int]:
        """What `launch` has counted so far."""
        assert self.counts is not None
        self.counts.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while not self.counts.exists():
            assert time.monotonic() < deadline, "no counts came"
            time.sleep(0.001)  # the other process tells by the file alone
        counts: dict[str, int] = json.loads(self.counts.read_text())
        return counts

    def memory_mb(self) -> float:
        """Resident memory, in 1,000,000 bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) * 1024 / 1e6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_accepting(process: subprocess.Popen[bytes], port: int) -> None:
    """Raises RuntimeError when the process ends, or does not accept in time."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.001)  # a port cannot be waited for
    raise RuntimeError(f"{process.args!r} does not accept connections at {port}")


@contextlib.contextmanager
def running(arguments: list[str], port: int, log: Path, core: int = CORES[0]) -> Iterator[Server]:
    """The process `python ARGUMENTS` on `core`, once it accepts at `port`; ended with the block."""
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, *arguments],
            cwd=ROOT,
            env=environment(log.parent),
            stdout=stderr,
            stderr=stderr,
        )
        try:
            wait_accepting(process, port)
            yield Server(process.pid, port)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def environment(folder: Path) -> dict[str, str]:
    """Ours, but modules are kept compiled, as in an installation; outside of the checkout."""
    kept = {name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(folder / "pycache")}


def pooler_config(folder: Path, port: int, upstream_port: int, has_operators: bool) -> Path:
    """A pools.json: an account of each type, a key for each, and caps that are out of the way."""
    shared = {"models": ["m"], "concurrent": STREAMS_MAX}
    login = folder / f"login-{port}" / "auth.json"  # two servers cannot share a login
    make_auth_file(login, "acct-bench")
    origin = f"http://127.0.0.1:{upstream_port}"
    accounts = {
        "bench": {"type": "openai", "base_url": f"{origin}/v1", "api_key": "none", **shared},
        "chatgpt": {
            "type": "codex",
            "base_url": f"{origin}/codex",
            "auth_file": str(login),
            **shared,
        },
    }
    keys = {"bench": KEY, "chatgpt": CHATGPT_KEY}
    pools = {
        name: {
            "accounts": [name],
            "keys": {f"load-{name}": {"key": key, "concurrent": STREAMS_MAX}},
        }
        for name, key in keys.items()
    }
    config: dict[str, object] = {
        "listen": f"127.0.0.1:{port}",
        "accounts": accounts,
        "pools": pools,
    }
    if has_operators:
        config["operators"] = {"me": OPERATOR_TOKEN}
    path = folder / f"pools-{port}.json"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def contestant(
    program: str,
    upstream_port: int,
    folder: Path,
    counts: Path | None = None,
    has_operators: bool = False,
) -> Iterator[Server]:
    """A program of the bench: the folder of a pooler.py, or a name of `proxies` or `reverse`."""
    port = free_port()
    is_pooler = Path(program, "pooler.py").is_file()
    arguments = ["-m", "tests.long.bench.launch", str(counts or "-"), program]
    if is_pooler:
        config = pooler_config(folder, port, upstream_port, has_operators)
        arguments += ["serve", "--config", str(config)]
    else:
        arguments += [str(port), str(upstream_port)]
    log = folder / f"{port}.log"
    with running(arguments, port, log) as server:
        server.has_chatgpt = is_pooler
        server.counts = counts
        yield server


################################################################
# FIGURES
################################################################


async def cold_start(server: Server) -> float:
    """CPU seconds of a fresh process until it has served its first request."""
    async with connections(server.port, 1) as (client,):
        await client.exchange(request("unary", 1, server.port))
        return server.cpu_seconds()


async def request_rate(server: Server, scale: Scale, clients: int) -> float:
    """Unary requests of 1 KiB per CPU second, as fast as they are answered."""
    content = request("unary", 1, server.port)
    count = 0

    async def repeat(connection: Connection) -> None:
        nonlocal count
        while True:
            await connection.exchange(content)
            count += 1

    async with connections(server.port, clients) as opened, asyncio.TaskGroup() as group:
        tasks = [group.create_task(repeat(connection)) for connection in opened]
        await asyncio.sleep(SETTLE_SECONDS)
        cpu, counted = server.cpu_seconds(), count
        await asyncio.sleep(scale.request_seconds)
        rate = (count - counted) / server.cpu_since(cpu)
        for task in tasks:
            task.cancel()
    return rate


async def requests_alone(server: Server, scale: Scale) -> float:
    return await request_rate(server, scale, 1)


async def requests_together(server: Server, scale: Scale) -> float:
    return await request_rate(server, scale, CLIENTS)


async def turn_ms(server: Server, scale: Scale) -> float:
    """CPU ms of an agent's turn: 150 KB up, paced events down, 16 at a time."""
    content = request("paced", scale.turn_events, server.port, SMALL_BODY)

    async def repeat(connection: Connection) -> None:
        for _ in range(scale.turns):
            await connection.stream(content)

    async with connections(server.port, TURNS_AT_ONCE) as opened:
        cpu = server.cpu_seconds()
        async with asyncio.TaskGroup() as group:
            for connection in opened:
                group.create_task(repeat(connection))
        used = server.cpu_since(cpu)
    return used * 1000 / (scale.turns * TURNS_AT_ONCE)


async def body_ms(server: Server, scale: Scale, size: int, is_chatgpt: bool) -> float:
    """CPU ms of a request with a large body, one after the other; its stream is short."""
    key = CHATGPT_KEY if is_chatgpt and server.has_chatgpt else KEY
    content = request("burst", 1, server.port, size, key)
    async with connections(server.port, 1) as opened:
        await opened[0].stream(content)
        cpu = server.cpu_seconds()
        count = scale.bodies * LARGE_BODY // size  # as many bytes of each: CPU time has ticks
        for _ in range(count):
            await opened[0].stream(content)
        used = server.cpu_since(cpu)
    return used * 1000 / count


async def small_body(server: Server, scale: Scale) -> float:
    return await body_ms(server, scale, SMALL_BODY, is_chatgpt=False)


async def large_body(server: Server, scale: Scale) -> float:
    return await body_ms(server, scale, LARGE_BODY, is_chatgpt=False)


async def small_body_chatgpt(server: Server, scale: Scale) -> float:
    return await body_ms(server, scale, SMALL_BODY, is_chatgpt=True)


async def large_body_chatgpt(server: Server, scale: Scale) -> float:
    return await body_ms(server, scale, LARGE_BODY, is_chatgpt=True)


async def abort_ms(server: Server, scale: Scale, upstream_port: int) -> float:
    """The median time from a client's leaving until its upstream connection is closed."""
    watch = request("watch", 1, upstream_port)
    content = request("idle", 1, server.port)
    waits = []
    async with connections(upstream_port, 1) as (watcher,):
        for _ in range(scale.aborts):
            async with connections(server.port, 1) as (client,):
                await client.first_content(content)
                watching = asyncio.create_task(watcher.exchange(watch))
                await asyncio.sleep(0.02)  # until the upstream has read that it is watched
                started = time.perf_counter()
                client.transport.abort()
                await watching
                waits.append(time.perf_counter() - started)
    return statistics.median(waits) * 1000


async def burst_events_per_cpu_second(server: Server, scale: Scale) -> float:
    """Streams whose upstream sends as fast as the proxy takes."""
    content = request("burst", scale.burst_events, server.port)

    async def repeat(connection: Connection) -> None:
        for _ in range(scale.bursts):
            await connection.stream(content)

    async with connections(server.port, BURST_STREAMS) as opened:
        cpu = server.cpu_seconds()
        async with asyncio.TaskGroup() as group:
            for connection in opened:
                group.create_task(repeat(connection))
        used = server.cpu_since(cpu)
    return scale.burst_events * scale.bursts * BURST_STREAMS / used


async def paced_cpu_us_per_event(server: Server, scale: Scale) -> float:
    """50 streams of 50 events a second each."""
    content = request("paced", 1_000_000, server.port)
    async with connections(server.port, PACED_STREAMS) as opened:
        for connection in opened:
            await connection.first_content(content)
        await asyncio.sleep(SETTLE_SECONDS)
        cpu, counted = server.cpu_seconds(), sum(c.event_count for c in opened)
        await asyncio.sleep(scale.paced_seconds)
        used = server.cpu_since(cpu)
        count = sum(c.event_count for c in opened) - counted
    expected = scale.paced_seconds * PACED_STREAMS * 50
    assert 0.8 * expected < count < 1.2 * expected, f"{count} events for {expected}"
    return used * 1e6 / count


async def first_event_ms(server: Server, scale: Scale) -> float:
    """The median time to the first content event: 32 connections, 4 short streams a second each."""
    content = request("burst", 5, server.port)
    waits: list[float] = []

    async def repeat(connection: Connection, phase: float) -> None:
        at = time.perf_counter() + phase
        end = at + scale.first_event_seconds
        while at < end:
            await asyncio.sleep(max(0, at - time.perf_counter()))
            waits.append(await connection.first_content(content))
            await connection.ended
            at += 0.25

    async with connections(server.port, CLIENTS) as opened, asyncio.TaskGroup() as group:
        for index, connection in enumerate(opened):
            group.create_task(repeat(connection, 0.25 * index / CLIENTS))
    return statistics.median(waits) * 1000


async def mb_per_1000_streams(server: Server, scale: Scale) -> float:
    """Memory that open streams take: each has received a content event and waits."""
    content = request("idle", 1, server.port)
    before = server.memory_mb()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(scale.idle_streams // BATCH):  # a crowd without keys would be shown out
            batch = await stack.enter_async_context(connections(server.port, BATCH))
            await asyncio.gather(*(connection.first_content(content) for connection in batch))
        await asyncio.sleep(SETTLE_SECONDS)
        return (server.memory_mb() - before) * 1000 / scale.idle_streams


################################################################
# COUNTS
################################################################


@contextlib.contextmanager
def traced(server: Server, folder: Path) -> Iterator[list[int]]:
    """The system calls of the block, in the list afterwards: strace is attached meanwhile."""
    table = folder / "strace.txt"
    command = ["strace", "-c", "-f", "-p", str(server.pid), "-o", str(table)]
    calls: list[int] = []
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        assert tracer.stderr is not None
        first = tracer.stderr.readline()
        assert b"attached" in first, first
        yield calls
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(STOP_SECONDS_MAX)
    # The columns: % of the time, seconds, us per call, calls, errors if there are any.
    total = table.read_text().splitlines()[-1].split()
    assert total[-1] == "total", total
    calls.append(int(total[3]))


@contextlib.asynccontextmanager
async def paced_streams(server: Server) -> AsyncGenerator[Callable[[], int], None]:
    """Paced streams that flow during the block; how many of their events have come is counted."""
    content = request("paced", 1_000_000, server.port)
    async with connections(server.port, TURNS_AT_ONCE) as opened:
        for connection in opened:
            await connection.first_content(content)
        await asyncio.sleep(SETTLE_SECONDS)
        yield lambda: sum(connection.event_count for connection in opened)


async def calls_per_event(server: Server, folder: Path) -> float:
    """System calls of a paced event."""
    async with paced_streams(server) as count:
        with traced(server, folder) as calls:
            before = count()
            await asyncio.sleep(COUNT_SECONDS)
            event_count = count() - before
    return calls[0] / event_count


async def calls_per_request(server: Server, folder: Path) -> float:
    """System calls of a small request on a connection that is kept."""
    content = request("unary", 1, server.port)
    async with connections(server.port, 1) as (client,):
        await client.exchange(content)
        with traced(server, folder) as calls:
            for _ in range(COUNTED_REQUESTS):
                await client.exchange(content)
    return calls[0] / COUNTED_REQUESTS


async def steps_per_event(server: Server, folder: Path) -> float:
    """How often Trio resumes a task, which is how many waits end, for a paced event."""
    async with paced_streams(server) as count:
        before, steps_before = count(), server.ask_counts()["trio steps"]
        await asyncio.sleep(COUNT_SECONDS)
        return (server.ask_counts()["trio steps"] - steps_before) / (count() - before)


async def parses_of(server: Server, is_chatgpt: bool) -> float:
    """How often a body of 150 KB is parsed as JSON."""
    key = CHATGPT_KEY if is_chatgpt and server.has_chatgpt else KEY
    content = request("burst", 1, server.port, SMALL_BODY, key)
    async with connections(server.port, 1) as (client,):
        before = server.ask_counts()["big JSON parses"]
        for _ in range(COUNTED_BODIES):
            await client.stream(content)
        return (server.ask_counts()["big JSON parses"] - before) / COUNTED_BODIES


async def parses_per_body(server: Server, folder: Path) -> float:
    return await parses_of(server, is_chatgpt=False)


async def parses_per_body_chatgpt(server: Server, folder: Path) -> float:
    return await parses_of(server, is_chatgpt=True)
