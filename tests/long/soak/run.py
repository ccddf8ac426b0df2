"""The soak itself: the world, the process, the reloads, the samples and the verdict.

(No claims.)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import trio

from pooler import REFRESH_URL_VARIABLE
from tests.long.soak.clients import KEYS, OPERATOR, Browser, Ledger
from tests.long.soak.upstreams import (
    ANSWER,
    API_KEYS,
    CODEX_MODEL,
    MODEL,
    PROMPT,
    OpenAiUpstream,
    SoakBackend,
    Told,
    pause,
)
from tests.support.codex_backend import make_auth_file
from tests.support.limits import LAUNCHER, constants, settable
from tests.support.memory_sockets import Client, Truncated, request

CODEX_ACCOUNTS: Final = ("acct-1", "acct-2", "acct-3", "acct-4")
# A leak of 100 bytes a request at 3,000 requests a minute is 290 KiB/min; what the allocator
# itself moves in some minutes is less than the half.  Over short runs a slope says nothing: the
# caches (records, pins) and the arenas are still filling up.
MEMORY_SLOPE_MAX: Final = 150.0  # KiB a minute
DESCRIPTOR_SLOPE_MAX: Final = 1.0  # a minute; a leak of one in a thousand requests would be 3
FLIGHT_SLOPE_MAX: Final = 1.0  # a minute
UNEXPLAINED_SHOWN_MAX: Final = 200
SLOPE_MINUTES_MIN: Final = 5.0  # of samples, for a slope to be judged
WARM_UP_SHARE: Final = 0.25
DRAIN_SECONDS: Final = 3.0
SMALL: Final = {
    "records_max": 200,
    "pins_max": 100,
    "response_pins_max": 200,
    "cooldown_seconds": 1,
    "untried_seconds_max": 1,
    "demotion_seconds": 1,
    "first_event_seconds_max": 5,
    "between_events_seconds_max": 5,
    "unary_seconds_max": 8,
    "drain_seconds_max": DRAIN_SECONDS,
}


@dataclass
class Verdict:
    text: str
    is_good: bool


@dataclass
class Sample:
    minute: float
    memory: float  # KiB
    descriptors: float
    in_flight: float
    connections: float
    websockets: float


def slope(points: list[tuple[float, float]]) -> float:
    """Least squares."""
    count = len(points)
    if count < 2:
        return 0.0
    x_mean = sum(x for x, _ in points) / count
    y_mean = sum(y for _, y in points) / count
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0


async def listen(
    serve: Callable[[trio.abc.Stream], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve connections on the loopback address for ever; the task's value is the origin."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=256)
    task_status.started(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
    await trio.serve_listeners(serve, [listener])


class Soak:
    def __init__(self, folder: Path, seconds: float, seed: str, clients: int) -> None:
        self.folder, self.seconds, self.seed, self.client_count = folder, seconds, seed, clients
        self.told, self.ledger = Told(), Ledger()
        self.codex = SoakBackend(self.told)
        self.backend = self.codex.backend
        self.samples: list[Sample] = []
        self.reloads: Counter[str] = Counter()
        self.log = folder / "stderr.log"
        self.failures: list[str] = []
        self.started_at = time.monotonic()
        self.openai_origin = self.codex_origin = ""
        self.address = ("127.0.0.1", 0)
        self.process: trio.Process | None = None
        self.exit_code: int | None = None
        self.exit_seconds = 0.0

    ############ the configuration

    def config(self, *, has_brief: bool = True, paused: str = "") -> Json:
        accounts: dict[str, Json] = {
            name: {
                "type": "openai",
                "base_url": f"{self.openai_origin}/v1",
                "api_key": key,
                "models": [MODEL],
                "concurrent": 64,
            }
            for name, key in API_KEYS.items()
        }
        # Nobody listens there: each try is a refused connection.
        dark = {"base_url": "http://127.0.0.1:9/v1", "api_key": "dark-canary-0123456789"}
        accounts["dark"] = {"type": "openai", "models": [MODEL], **dark}
        for name in CODEX_ACCOUNTS:
            accounts[name] = {
                "type": "codex",
                "auth_file": f"{name}.json",
                "models": [CODEX_MODEL],
                "base_url": f"{self.codex_origin}/backend-api/codex",
                "concurrent": 64,
            }
        if paused:
            accounts[paused]["paused"] = True
        brief = {"brief": KEYS["brief"]} if has_brief else {}
        return {
            "listen": "127.0.0.1:0",
            "accounts": accounts,
            "pools": {
                "open": {
                    "accounts": [*API_KEYS, "dark"],
                    "routing": "soonest_reset",
                    "keys": {"open": KEYS["open"], **brief},
                },
                "codex": {"accounts": list(CODEX_ACCOUNTS), "keys": {"codex": KEYS["codex"]}},
            },
            "operators": {"me": OPERATOR},
            "limits": settable(SMALL),
        }

    def write_config(self, text: str) -> None:
        (self.folder / "pools.json").write_text(text)

    ############ the process

    async def start(self, nursery: trio.Nursery) -> None:
        self.openai_origin = await nursery.start(listen, OpenAiUpstream(self.told).serve)
        self.codex_origin = await nursery.start(listen, self.codex.serve)
        for name in CODEX_ACCOUNTS:  # at their end: each is renewed when it is used first
            path = self.folder / f"{name}.json"
            self.backend.admit(make_auth_file(path, name, expires_at=time.time() + 60))
        self.write_config(json.dumps(self.config()))
        env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        env[REFRESH_URL_VARIABLE] = f"{self.codex_origin}/oauth/token"
        with self.log.open("wb") as log:
            self.process = await trio.lowlevel.open_process(
                [sys.executable, LAUNCHER, json.dumps(constants(SMALL)), "serve"],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        await self.wait_listening()

    async def wait_listening(self) -> None:
        with trio.fail_after(20):
            while True:
                for line in self.log.read_text().splitlines():
                    if '"listening"' in line and line.endswith("}"):
                        port = json.loads(line)["address"].rpartition(":")[2]
                        self.address = ("127.0.0.1", int(port))
                        return
                await pause(0.05)  # a file cannot be waited for

    ############ reloads

    async def reload(self) -> None:
        every = 60.0 if self.seconds >= 240 else 3.0
        kinds = (self.broken, self.without_key, self.with_pause, self.rotated, self.whole)
        turn = 0
        while True:
            await pause(every)
            if self.ledger.is_draining:
                return
            kind = kinds[turn % len(kinds)]
            kind()
            self.reloads[kind.__name__] += 1
            assert self.process is not None
            self.process.send_signal(signal.SIGHUP)
            turn += 1

    def broken(self) -> None:
        self.write_config('{"accounts": {"one": ')

    def without_key(self) -> None:
        self.ledger.brief_changed_at = time.monotonic()
        self.ledger.is_brief_gone = True
        self.write_config(json.dumps(self.config(has_brief=False)))

    def with_pause(self) -> None:
        self.back()
        self.ledger.paused_at.update(dict.fromkeys(("o2", "acct-2"), float("inf")))
        config = self.config(paused="o2")
        config["accounts"]["acct-2"]["paused"] = True
        self.write_config(json.dumps(config))

    def rotated(self) -> None:
        self.whole()

    def whole(self) -> None:
        self.back()
        for name in self.ledger.paused_at:
            self.ledger.paused_at[name] = time.monotonic()
        self.write_config(json.dumps(self.config()))

    def back(self) -> None:
        if self.ledger.is_brief_gone:
            self.ledger.is_brief_gone = False
            self.ledger.brief_changed_at = time.monotonic()

    ############ samples

    async def sample(self) -> None:
        while not self.ledger.is_draining:
            # As it ends it has no memory, and may leave the question open.
            with suppress(OSError, IndexError, Truncated, trio.BrokenResourceError):
                self.samples.append(await self.take())
            await pause(1)

    async def take(self) -> Sample:
        assert self.process is not None
        folder = Path(f"/proc/{self.process.pid}")
        status = (folder / "status").read_text()
        memory = int(status.partition("VmRSS:")[2].split()[0])
        descriptors = len(list((folder / "fd").iterdir()))
        stream = await trio.open_tcp_stream(*self.address)
        async with stream:
            headers = [("Accept", "application/json"), ("Connection", "close")]
            raw = request("GET", "/admin", key=OPERATOR, headers=headers)
            shown = (await Client(cast("Any", stream)).ask(raw)).json()
        minute = (time.monotonic() - self.started_at) / 60
        counts = (shown["in_flight"], shown["connections"], shown["websockets"])
        return Sample(minute, memory, descriptors, *counts)

    ############ the end

    async def stop(self) -> None:
        """SIGTERM with everybody at work."""
        assert self.process is not None
        self.ledger.is_draining = True
        self.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        with trio.move_on_after(DRAIN_SECONDS + 15):
            self.exit_code = await self.process.wait()
        self.exit_seconds = time.monotonic() - began
        if self.exit_code is None:
            self.process.kill()

    async def run(self) -> Verdict:
        async with trio.open_nursery() as world:
            await self.start(world)
            try:
                async with trio.open_nursery() as watchers:
                    watchers.start_soon(self.sample)
                    watchers.start_soon(self.reload)
                    async with trio.open_nursery() as clients:
                        for number in range(1, self.client_count + 1):
                            made = Browser(self.address, self.told, self.ledger, number, self.seed)
                            clients.start_soon(made.run)
                        await pause(self.seconds)
                        await self.stop()
                    watchers.cancel_scope.cancel()
            finally:
                with suppress(ProcessLookupError):
                    assert self.process is not None
                    self.process.kill()
            await pause(1)  # for what is left at the upstreams to end
            verdict = self.judge()
            world.cancel_scope.cancel()
        return verdict

    def canaries(self) -> list[str]:
        tokens = {*self.backend.logins, *self.backend.refreshable, *self.backend.spent}
        wanted = [PROMPT, ANSWER, "canary", OPERATOR, *KEYS.values(), *API_KEYS.values(), *tokens]
        files = [self.log]
        found = []
        for path in files:
            text = path.read_text(errors="replace")
            found += [f"{path.name}: {one[:24]}" for one in wanted if one in text]
        return found

    def bad_lines(self) -> tuple[list[str], Counter[str]]:
        bad, events = [], Counter[str]()
        for line in self.log.read_text().splitlines():
            try:
                told = json.loads(line)
            except ValueError:
                bad.append(line[:300])
                continue
            events[f"{told.get('level')} {told.get('event')}"] += 1
            is_ours = told["event"] == "reload refused"  # a broken file: it must be told
            if (told["level"] == "error" and not is_ours) or told["event"] == "bug":
                bad.append(line[:300])
        return bad, events

    def check(self, what: bool, why: str) -> None:
        if not what:
            self.failures.append(why)

    def judge(self) -> Verdict:
        lines = [f"soak: {self.seconds:.0f} s, seed {self.seed}, {self.client_count} clients"]
        outcomes = self.ledger.outcomes
        lines.append(f"requests: {sum(outcomes.values())}")
        kinds = sorted({kind for kind, _ in outcomes})
        for kind in kinds:
            row = sorted(((n, o) for (k, o), n in outcomes.items() if k == kind), reverse=True)
            told = ", ".join(f"{outcome} {count}" for count, outcome in row)
            lines.append(f"  {kind} {sum(count for count, _ in row)}: {told}")
        lines.append(f"injected: {dict(self.told.injected)}")
        lines.append(f"reloads: {dict(self.reloads)}")
        self.judge_slopes(lines)
        unexplained = self.ledger.unexplained + self.told.complaints
        lines.append(f"unexplained: {len(unexplained)}")
        lines += [f"  {one}" for one in unexplained[:UNEXPLAINED_SHOWN_MAX]]
        self.check(not unexplained, "something is not explained")
        bad, events = self.bad_lines()
        lines.append(f"log: {dict(events)}")
        lines.append(f"log lines of level error, or bugs: {len(bad)}")
        lines += [f"  {one}" for one in bad[:6]]
        self.check(not bad, "the log has errors")
        refused, broken = events["error reload refused"], self.reloads["broken"]
        self.check(refused == broken, f"{broken} broken files, {refused} refused")
        found = self.canaries()
        lines.append(f"canaries in stderr: {len(found)} {found[:5]}")
        self.check(not found, "a canary was told")
        ends = dict(self.ledger.drain_ends)
        lines.append(f"SIGTERM: exit code {self.exit_code} after {self.exit_seconds:.1f} s, {ends}")
        self.check(self.exit_code == 0, f"the exit code is {self.exit_code}")
        left = (self.told.open, self.backend.open_sockets)
        lines.append(f"left at the upstreams: {left[0]} connections, {left[1]} WebSockets")
        self.check(left == (0, 0), "connections are left")
        lines.append("verdict: " + ("; ".join(self.failures) or "good"))
        return Verdict("\n".join(lines) + "\n", not self.failures)

    def judge_slopes(self, lines: list[str]) -> None:
        warm = self.seconds / 60 * WARM_UP_SHARE
        kept = [one for one in self.samples if one.minute >= warm]
        minutes = kept[-1].minute - kept[0].minute if kept else 0.0
        is_judged = minutes >= SLOPE_MINUTES_MIN
        lines.append(f"samples: {len(self.samples)}, {len(kept)} after a warm-up of {warm:.1f} min")
        for name, bound in (
            ("memory", MEMORY_SLOPE_MAX),
            ("descriptors", DESCRIPTOR_SLOPE_MAX),
            ("in_flight", FLIGHT_SLOPE_MAX),
            ("connections", FLIGHT_SLOPE_MAX),
            ("websockets", FLIGHT_SLOPE_MAX),
        ):
            values = [getattr(one, name) for one in kept] or [0]
            found = slope([(one.minute, getattr(one, name)) for one in kept])
            judged = f"at most {bound}" if is_judged else "too short to judge"
            lines.append(
                f"  {name}: {found:+.2f} a minute ({judged}), {min(values):.0f} to "
                f"{max(values):.0f}, last {values[-1]:.0f}"
            )
            self.check(not is_judged or found <= bound, f"{name} grows by {found:.2f} a minute")
        self.check(bool(kept), "there are no samples")


Json = Any


async def soak(seconds: float, seed: str, clients: int) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        return await Soak(Path(folder), seconds, seed, clients).run()
