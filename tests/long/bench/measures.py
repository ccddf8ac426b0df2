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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.long.bench.load import KEY, Connection, connections, request
from tests.support.limits import LAUNCHER
from tests.support.paths import ROOT

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
START_SECONDS_MAX: Final = 20.0
STOP_SECONDS_MAX: Final = 10.0
CLIENTS: Final = 32
PACED_STREAMS: Final = 50
BURST_STREAMS: Final = 4
BATCH: Final = 50
SETTLE_SECONDS: Final = 0.5
STREAMS_MAX: Final = 4096


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
    imports: int


FULL: Final = Scale(
    rounds=5,
    request_seconds=3.0,
    burst_events=20_000,
    bursts=5,
    paced_seconds=5.0,
    first_event_seconds=3.0,
    idle_streams=500,
    imports=15,
)
QUICK: Final = Scale(
    rounds=1,
    request_seconds=1.0,
    burst_events=20_000,
    bursts=1,
    paced_seconds=2.0,
    first_event_seconds=1.0,
    idle_streams=200,
    imports=5,
)


################################################################
# PROCESSES
################################################################


@dataclass(frozen=True, slots=True)
class Server:
    """A running process that accepts connections at `port`."""

    pid: int
    port: int
    cold_start_seconds: float

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

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
    raise RuntimeError(f"{process.args!r} does not accept connections")


@contextlib.contextmanager
def running(arguments: list[str], port: int, log: Path) -> Iterator[Server]:
    """The process `python ARGUMENTS`, once it accepts at `port`; ended with the block."""
    with log.open("ab") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment(log.parent), stderr=stderr
        )
        try:
            wait_accepting(process, port)
            yield Server(process.pid, port, time.perf_counter() - started)
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


def pooler_config(port: int, upstream_port: int) -> str:
    """A pools.json with one account and one key, whose caps are out of the way."""
    account = {
        "type": "openai",
        "base_url": f"http://127.0.0.1:{upstream_port}/v1",
        "api_key": "none",
        "models": ["m"],
        "concurrent": STREAMS_MAX,
    }
    key = {"key": KEY, "concurrent": STREAMS_MAX}
    return json.dumps(
        {
            "listen": f"127.0.0.1:{port}",
            "accounts": {"bench": account},
            "pools": {"bench": {"accounts": ["bench"], "keys": {"load": key}}},
        }
    )


def arguments_of(name: str, port: int, upstream_port: int, folder: Path) -> list[str]:
    """The command line, after `python`, of one of the contestants."""
    if name == "pooler":
        config = folder / f"pools-{port}.json"
        config.write_text(pooler_config(port, upstream_port))
        # As many idle connections as are in use at once.
        changed = json.dumps({"IDLE_CONNECTIONS_MAX": CLIENTS})
        return [LAUNCHER, changed, "serve", "--config", str(config)]
    return ["-m", "tests.long.bench.proxies", name, str(port), str(upstream_port)]


################################################################
# FIGURES
################################################################


async def requests_per_cpu_second(server: Server, scale: Scale) -> float:
    """Unary requests of 1 KiB, as fast as they are answered, on 32 connections."""
    content = request("unary", 1, server.port)
    count = 0

    async def repeat(connection: Connection) -> None:
        nonlocal count
        while True:
            await connection.exchange(content)
            count += 1

    async with connections(server.port, CLIENTS) as opened, asyncio.TaskGroup() as group:
        tasks = [group.create_task(repeat(connection)) for connection in opened]
        await asyncio.sleep(SETTLE_SECONDS)
        cpu, counted = server.cpu_seconds(), count
        await asyncio.sleep(scale.request_seconds)
        rate = (count - counted) / (server.cpu_seconds() - cpu)
        for task in tasks:
            task.cancel()
    return rate


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
        used = server.cpu_seconds() - cpu
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
        used = server.cpu_seconds() - cpu
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


def import_cpu_seconds(modules: str, folder: Path) -> float:
    """CPU time of `import MODULES` in a fresh interpreter."""
    code = f"import time; t = time.process_time(); import {modules}; print(time.process_time() - t)"
    command = [sys.executable, "-c", code]
    return float(subprocess.check_output(command, cwd=ROOT, env=environment(folder)))
