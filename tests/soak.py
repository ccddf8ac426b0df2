"""The real process under mixed real traffic for as long as it is told.  (No claims.)

    python -m tests.soak --minutes 20 [--seed S]

The clients, the upstreams and the verdicts are those of the simulation (tests/simulate.py), but
here the process, its sockets, its files and the time are real.  5 % of what upstreams do goes
wrong.  Once a minute (of a short run: more often) comes SIGHUP, every third time with a
pools.json that is broken; logins are renewed, rotated by others, withdrawn and made again.  It
ends with SIGTERM under load.  What is printed at the end must hold no error that was not injected.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from pooler import RENEWAL_URL_VARIABLE
from tests import codex_backend
from tests.sim_disk import Disk
from tests.sim_world import (
    CALM_KEY,
    CODEX,
    TOKEN,
    TOKEN_PATH,
    Sim,
    SimUpstream,
    SimWorld,
    Task,
)
from tests.simulate import TYPED, Life, Manner, config_of, describe_life
from tests.wires import KEY, OTHER_KEY, Client, MemorySocket, Pipe, Truncated, post, request

ROOT: Final = Path(__file__).parent.parent
PACE: Final = 0.1  # of the simulation's pauses, and of the limits below
LIMITS: Final[Mapping[str, float]] = {
    "head_seconds_max": 10,
    "body_idle_seconds_max": 3,
    "first_event_seconds_max": 12,
    "between_events_seconds_max": 30,
    "connect_seconds_max": 2,
    "hold_seconds_max": 1,
    "comment_seconds": 1.5,
    "queue_seconds_max": 2,
    "cooldown_seconds": 3,
    "demotion_seconds": 3,
    "drain_seconds_max": 4,
    "refresh_seconds_max": 2,
    "refresh_pause_seconds": 1,
    "records_max": 100,
    "pins_max": 64,
    "response_pins_max": 64,
}
FAULT_SHARE: Final = 0.05
VISITORS: Final = 32
TOKEN_SECONDS: Final = 330  # so that a login is due for a renewal after half a minute
CAPACITY_CODES: Final = frozenset(
    "usage_limit_reached pool_busy no_usable_account key_limit_reached server_stopping".split()
)
DIAL_CODES: Final = frozenset({"upstream_unreachable", "upstream_timeout"})
WARM_UP: Final = 0.25  # of the run, until caches are full
SLOPE_KIB_MAX: Final = 256.0  # per minute, of a run that is long enough to tell
SLOPE_MINUTES_MIN: Final = 5.0
GROWTH_KIB_MAX: Final = 40 * 1024  # of any run: what is loaded lazily, and the caches
END_SECONDS_MAX: Final = 30.0
RESET: Final = struct.pack("ii", 1, 0)

################################################################
# REAL SOCKETS FOR THE SIMULATION
################################################################


class RealSocket(MemorySocket):
    """A client's end of a real connection, with the manners of one in memory."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(Pipe(), Pipe())
        self.stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    def close(self) -> None:
        self.is_closed = True
        self.stream.socket.close()

    def reset(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close()


async def carry(upstream: SimUpstream, real: trio.SocketStream) -> None:
    """One connection of the process to an upstream that lives in memory."""
    try:
        memory = await upstream.connect()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry_answers, memory, real, nursery.cancel_scope)
                while received := await real.receive_some(65536):
                    await memory.send_all(received)
                nursery.cancel_scope.cancel()
        finally:
            memory.close()
            real.socket.close()
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def carry_answers(
    memory: MemorySocket, real: trio.SocketStream, scope: trio.CancelScope
) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        try:
            while received := await memory.receive_some(65536):
                await real.send_all(received)
        except trio.BrokenResourceError:
            real.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    scope.cancel()


class RealDisk(Disk):
    """The disk that there is: what is read is what is there."""

    def durable(self, path: Path) -> bytes:
        return path.read_bytes()


class RealWorld(SimWorld):
    """The upstreams of a process that is somebody else's."""

    port = 0

    async def connect(self, *, capacity: float = 0) -> Client:
        """`capacity` is the kernel's here."""
        del capacity
        return Client(RealSocket(await trio.open_tcp_stream("127.0.0.1", self.port)))

    async def settle(self) -> None:
        await trio.lowlevel.checkpoint()

    async def listen(self, name: str, task_status: trio.TaskStatus[int]) -> None:
        upstream = self.upstreams.setdefault(name, SimUpstream(name, self))
        assert isinstance(upstream, SimUpstream)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def serve(stream: trio.SocketStream) -> None:
            await carry(upstream, stream)

        task_status.started(listener.socket.getsockname()[1])
        await trio.serve_listeners(serve, [listener])


################################################################
# THE PROCESS
################################################################


@dataclass
class Sample:
    at: float
    rss_kib: int
    descriptors: int
    in_flight: int
    connections: int


def slope(samples: Sequence[Sample], read: Callable[[Sample], float]) -> float:
    """Least squares, per minute."""
    xs, ys = [one.at / 60 for one in samples], [read(one) for one in samples]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((one - x) ** 2 for one in xs)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / spread if spread else 0.0


def rss_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


@dataclass
class Soak(Life):
    """The traffic, and what was seen of the process."""

    world: RealWorld  # type: ignore[mutable-override] # it is never set anew
    process: trio.Process | None = None
    config_path: Path = Path()
    ports: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    began_at: float = 0.0
    is_over: bool = False

    def note(self, what: str) -> None:
        self.counts[what.partition(":")[0]] += 1

    def judge_answer(self, task: Task, manner: Manner, body: bytes) -> None:
        """An error that nobody injected."""
        code = json.loads(body)["error"]["code"] if body.startswith(b'{"error"') else "stream"
        is_known = any(attempt.is_faulty for attempt in task.attempts) or code in CAPACITY_CODES
        is_known |= code == "request_timeout" and manner.drips
        if not is_known and not (code in DIAL_CODES and self.sim.dial_fault_count):
            self.unexplained.append(f"{task.kind} was answered {body[:300]!r}: {task.attempts}")

    def write_config(self, kind: int) -> None:
        whole = describe_life(self.sim.folder, kind)
        for name, account in whole["accounts"].items():
            path = "backend-api/codex" if name in CODEX else "v1"
            account["base_url"] = f"http://127.0.0.1:{self.ports[name]}/{path}"
        whole["limits"] = LIMITS
        whole["listen"] = f"127.0.0.1:{self.world.port}"
        whole["journal"] = str(self.sim.folder / "requests.journal")
        self.config_path.write_text(json.dumps(whole), encoding="utf-8")
        self.config_path.chmod(0o600)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep_until(trio.current_time() + seconds)

    async def come_and_go(self, number: int) -> None:
        """One visitor after another, in one place."""
        while not self.is_over:
            key = CALM_KEY if number == 0 else self.rng.choice([KEY, OTHER_KEY])
            try:
                if number % 4 == 3:
                    await self.converse(key)
                elif number % 8 == 5:
                    await self.rng.choice([self.look, self.intrude, self.ask_mcp])()
                else:
                    await self.visit(key, is_calm=number == 0)
            except AssertionError as error:
                self.unexplained.append(f"{type(error).__name__}: {error}"[:600])
            except OSError:
                if not self.is_stopping:
                    self.unexplained.append("a connection was refused")
                return

    async def ask_mcp(self) -> None:
        """An MCP host that lists the tools."""
        client = await self.world.connect()
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        accepts = [("Accept", "application/json, text/event-stream")]
        with contextlib.suppress(Truncated, trio.BrokenResourceError):
            response = await client.ask(post("/mcp", message, key=TOKEN, headers=accepts))
            assert response.status == 200, response
            self.note("mcp")
        await self.leave(client, Manner())

    async def disturb_often(self, seconds: float) -> None:
        """SIGHUP, every third time for a file that is broken; other programs and their logins."""
        assert self.process is not None
        turn = 0
        while not self.is_over:
            await self.sleep(seconds)
            turn += 1
            self.write_config([0, 1, 2, 4][turn % 4])
            if turn % 3 == 0:
                self.config_path.write_text('{"accounts": {"a"', encoding="utf-8")
            journal = self.sim.folder / "requests.journal"
            if turn % 5 == 0:
                journal.replace(journal.with_suffix(".old"))
            self.process.send_signal(signal.SIGHUP)
            self.note("SIGHUP")
            for name in CODEX:
                if name in self.sim.desk.withdrawn:
                    self.sim.desk.withdrawn.discard(name)
                    self.sim.desk.log_in(name, TOKEN_SECONDS)
                elif self.rng.random() < 0.3:
                    self.sim.desk.rotate(name)

    async def watch(self) -> None:
        """A sample a second."""
        assert self.process is not None
        headers = [("Accept", "application/json")]
        client = await self.world.connect()
        while not self.is_over:
            shown = (await client.ask(request("GET", "/admin", key=TOKEN, headers=headers))).json()
            self.samples.append(
                Sample(
                    trio.current_time() - self.began_at,
                    rss_kib(self.process.pid),
                    len(os.listdir(f"/proc/{self.process.pid}/fd")),
                    sum(account["in_flight"] for account in shown["accounts"]),
                    shown["connections"],
                )
            )
            await self.sleep(1)

    ############ the whole

    async def live_for(self, seconds: float, log: Path) -> int:
        """Start, disturb, stop under load; the exit code.  Everything else is in `self`."""
        world, nursery = self.world, self.world.nursery
        for name in "abcdz":
            self.ports[name] = await nursery.start(world.listen, name)
        self.ports[TOKEN_PATH] = await nursery.start(world.listen, TOKEN_PATH)
        with socket.create_server(("127.0.0.1", 0)) as free:
            world.port = free.getsockname()[1]
        self.write_config(0)
        url = f"http://127.0.0.1:{self.ports[TOKEN_PATH]}{TOKEN_PATH}"
        command = [sys.executable, str(ROOT / "pooler.py"), "serve", "--config"]
        with log.open("wb") as stderr:
            self.process = await trio.lowlevel.open_process(
                [*command, str(self.config_path)],
                env={**os.environ, RENEWAL_URL_VARIABLE: url},
                stderr=stderr,
            )
        await self.wait_ready()
        self.began_at = trio.current_time()
        async with trio.open_nursery() as visitors:
            for number in range(VISITORS):
                visitors.start_soon(self.come_and_go, number)
            visitors.start_soon(self.watch)
            visitors.start_soon(self.disturb_often, min(60.0, seconds / 6))
            await self.sleep(seconds)
            self.is_stopping = self.is_over = True
            self.process.send_signal(signal.SIGTERM)
            with trio.fail_after(END_SECONDS_MAX):
                code = await self.process.wait()
            visitors.cancel_scope.deadline = trio.current_time() + END_SECONDS_MAX
        return int(code)

    async def wait_ready(self) -> None:
        with trio.fail_after(END_SECONDS_MAX):
            while True:
                try:
                    await (await self.world.connect()).hang_up()
                except OSError:
                    await self.sleep(0.02)  # a port cannot be waited for
                else:
                    return

    def complaints_of(self, code: int, log: Path) -> list[str]:
        """Everything that is not as it must be."""
        told = log.read_text(encoding="utf-8", errors="replace")
        lines = [json.loads(line) for line in told.splitlines()]
        journals = [path.read_text(encoding="utf-8") for path in self.sim.folder.glob("*.journal")]
        found = [*dict.fromkeys(self.sim.complaints), *self.unexplained]
        found += [f"exit code {code}"] * (code != 0)
        found += [
            f"log: {line}"
            for line in lines
            if line["event"] == "bug"
            or (line["level"] == "error" and "reload" not in line["event"])
        ]
        kept = [
            one for one in (*self.sim.secrets, *TYPED) if any(one in t for t in [told, *journals])
        ]
        found += [f"the log or the journal tells {one[:12]}" for one in kept]
        samples = self.samples[int(len(self.samples) * WARM_UP) :]
        growth = samples[-1].rss_kib - samples[0].rss_kib
        found += [f"{growth} KiB more than after the start"] * (growth > GROWTH_KIB_MAX)
        if samples[-1].at >= 60 * SLOPE_MINUTES_MIN:
            leak = slope(samples, lambda one: one.rss_kib)
            found += [f"memory grows by {leak:.0f} KiB a minute"] * (leak > SLOPE_KIB_MAX)
        return found


async def soak(seconds: float, seed: int, folder: Path) -> tuple[Soak, list[str]]:
    """The run, and what is wrong with it."""
    rng = random.Random(seed)
    sim = Sim(rng, folder)
    sim.disk = RealDisk(rng)
    sim.unix_offset = time.time() - trio.current_time()
    sim.fault_share, sim.pace = FAULT_SHARE, PACE
    kept, codex_backend.TOKEN_SECONDS = codex_backend.TOKEN_SECONDS, TOKEN_SECONDS  # type: ignore[misc] # shorter lives
    for name in CODEX:
        sim.desk.log_in(name, TOKEN_SECONDS)
    log = folder / "stderr.log"
    try:
        async with trio.open_nursery() as nursery:
            world = RealWorld(config_of(folder, 0), nursery, sim)
            life = Soak(rng, sim, world, Counter(), config_path=folder / "pools.json")
            try:
                code = await life.live_for(seconds, log)
            finally:
                if life.process is not None:
                    life.process.kill()
            nursery.cancel_scope.cancel()
    finally:
        codex_backend.TOKEN_SECONDS = kept  # type: ignore[misc] # as above
    return life, life.complaints_of(code, log)


def report(life: Soak, complaints: Sequence[str]) -> str:
    samples = life.samples[int(len(life.samples) * WARM_UP) :]
    rows = [f"{count:9} {what}" for what, count in life.counts.most_common()]
    last = samples[-1]
    rows.append(f"{len(life.sim.tasks)} requests in {last.at:.0f} s")
    for name in ("rss_kib", "descriptors", "in_flight", "connections"):
        values = [getattr(one, name) for one in samples]
        trend = slope(samples, operator.attrgetter(name))
        ends = f"{values[0]} to {values[-1]}, most {max(values)}"
        rows.append(f"{name}: {ends}; {trend:+.2f} a minute")
    rows.append(f"errors that were not injected: {len(complaints)}")
    return "\n".join([*rows, *complaints[:20]]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak the real process.")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        life, complaints = trio.run(soak, asked.minutes * 60, asked.seed, folder)
        sys.stdout.write(report(life, complaints))
        return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
