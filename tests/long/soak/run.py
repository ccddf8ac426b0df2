"""The soak itself: the world, the process, the reloads, the samples and the verdict.

(No claims.)
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from pooler import REFRESH_URL_VARIABLE
from tests.long.soak.clients import KEYS, OPERATOR, Browser, Ledger
from tests.long.soak.configuration import CODEX_ACCOUNTS, DRAIN_SECONDS, SMALL, Configuration
from tests.long.soak.figures import (
    Findings,
    Sample,
    Verdict,
    find_canaries,
    judge_slopes,
    read_log,
    take_sample,
)
from tests.long.soak.process import Served, start_server
from tests.long.soak.upstreams import (
    ANSWER,
    API_KEYS,
    PROMPT,
    OpenAiUpstream,
    SoakBackend,
    Told,
    pause,
)
from tests.support.codex_backend import make_auth_file
from tests.support.memory_sockets import Truncated

UNEXPLAINED_SHOWN_MAX: Final = 200
WARM_UP_SHARE: Final = 0.25


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
        self.found = Findings()
        self.started_at = time.monotonic()
        self.file = Configuration(folder / "pools.json", self.ledger)
        self.server: Served | None = None
        self.exit_code: int | None = None
        self.exit_seconds = 0.0

    ############ the process

    async def start(self, nursery: trio.Nursery) -> None:
        self.file.openai_origin = await nursery.start(listen, OpenAiUpstream(self.told).serve)
        self.file.codex_origin = await nursery.start(listen, self.codex.serve)
        for name in CODEX_ACCOUNTS:  # at their end: each is renewed when it is used first
            path = self.folder / f"{name}.json"
            self.backend.admit(make_auth_file(path, name, expires_at=time.time() + 60))
        self.file.write(self.file.describe())
        env = {REFRESH_URL_VARIABLE: f"{self.file.codex_origin}/oauth/token"}
        self.server = await start_server(self.folder, self.log, SMALL, env)

    async def connect(self) -> trio.abc.Stream:
        assert self.server is not None
        return await trio.open_tcp_stream(*self.server.address)

    ############ reloads

    async def reload(self) -> None:
        every = 60.0 if self.seconds >= 240 else 3.0
        file = self.file
        kinds = (file.broken, file.without_key, file.with_pause, file.rotated, file.whole)
        turn = 0
        while True:
            await pause(every)
            if self.ledger.is_draining:
                return
            kind = kinds[turn % len(kinds)]
            kind()
            self.reloads[kind.__name__] += 1
            assert self.server is not None
            self.server.process.send_signal(signal.SIGHUP)
            turn += 1

    ############ samples

    async def sample(self) -> None:
        while not self.ledger.is_draining:
            # As it ends it has no memory, and may leave the question open.
            with suppress(OSError, IndexError, Truncated, trio.BrokenResourceError):
                assert self.server is not None
                minute = (time.monotonic() - self.started_at) / 60
                self.samples.append(
                    await take_sample(self.server.process.pid, self.server.address, minute)
                )
            await pause(1)

    ############ the end

    async def stop(self) -> None:
        """SIGTERM with everybody at work."""
        assert self.server is not None
        self.ledger.is_ending = self.ledger.is_draining = True
        self.server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        with trio.move_on_after(DRAIN_SECONDS + 15):
            self.exit_code = await self.server.process.wait()
        self.exit_seconds = time.monotonic() - began
        if self.exit_code is None:
            self.server.process.kill()

    async def run(self) -> Verdict:
        async with trio.open_nursery() as world:
            await self.start(world)
            try:
                async with trio.open_nursery() as watchers:
                    watchers.start_soon(self.sample)
                    watchers.start_soon(self.reload)
                    async with trio.open_nursery() as clients:
                        for number in range(1, self.client_count + 1):
                            made = Browser(self.connect, self.told, self.ledger, number, self.seed)
                            clients.start_soon(made.run)
                        await pause(self.seconds)
                        await self.stop()
                    watchers.cancel_scope.cancel()
            finally:
                with suppress(ProcessLookupError):
                    assert self.server is not None
                    self.server.process.kill()
            await pause(1)  # for what is left at the upstreams to end
            verdict = self.judge()
            world.cancel_scope.cancel()
        return verdict

    def canaries(self) -> list[str]:
        tokens = {*self.backend.logins, *self.backend.refreshable, *self.backend.spent}
        wanted = [PROMPT, ANSWER, "canary", OPERATOR, *KEYS.values(), *API_KEYS.values(), *tokens]
        return find_canaries([self.log], wanted)

    def judge(self) -> Verdict:
        lines = self.found.lines
        lines.append(f"soak: {self.seconds:.0f} s, seed {self.seed}, {self.client_count} clients")
        outcomes = self.ledger.outcomes
        lines.append(f"requests: {sum(outcomes.values())}")
        kinds = sorted({kind for kind, _ in outcomes})
        for kind in kinds:
            row = sorted(((n, o) for (k, o), n in outcomes.items() if k == kind), reverse=True)
            told = ", ".join(f"{outcome} {count}" for count, outcome in row)
            lines.append(f"  {kind} {sum(count for count, _ in row)}: {told}")
        lines.append(f"injected: {dict(self.told.injected)}")
        lines.append(f"reloads: {dict(self.reloads)}")
        judge_slopes(self.samples, self.seconds / 60 * WARM_UP_SHARE, self.found)
        self.found.check(bool(self.samples), "there are no samples")
        unexplained = self.ledger.unexplained + self.told.complaints
        lines.append(f"unexplained: {len(unexplained)}")
        lines += [f"  {one}" for one in unexplained[:UNEXPLAINED_SHOWN_MAX]]
        self.found.check(not unexplained, "something is not explained")
        bad, events = read_log(self.log)
        lines.append(f"log: {dict(events)}")
        lines.append(f"log lines of level error, or bugs: {len(bad)}")
        lines += [f"  {one}" for one in bad[:6]]
        self.found.check(not bad, "the log has errors")
        refused, broken = events["error reload refused"], self.reloads["broken"]
        self.found.check(refused == broken, f"{broken} broken files, {refused} refused")
        found = self.canaries()
        lines.append(f"canaries in stderr: {len(found)} {found[:5]}")
        self.found.check(not found, "a canary was told")
        ends = dict(self.ledger.drain_ends)
        lines.append(f"SIGTERM: exit code {self.exit_code} after {self.exit_seconds:.1f} s, {ends}")
        self.found.check(self.exit_code == 0, f"the exit code is {self.exit_code}")
        left = (self.told.open, self.backend.open_sockets)
        lines.append(f"left at the upstreams: {left[0]} connections, {left[1]} WebSockets")
        self.found.check(left == (0, 0), "connections are left")
        return self.found.verdict()


async def soak(seconds: float, seed: str, clients: int) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        return await Soak(Path(folder), seconds, seed, clients).run()
