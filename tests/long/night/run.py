"""The night itself: who asks, what happens to the replicas, and the verdict.

(No claims.)
"""

from __future__ import annotations

import itertools
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import trio

from tests.deployment.fronts import Front, in_front
from tests.long.night.world import (
    CALM_API_KEYS,
    CALM_KEYS,
    CHANGES,
    LIMITS,
    Life,
    Replicas,
    Upstreams,
)
from tests.long.soak.clients import KEYS, OPERATOR, Browser, NotOurs
from tests.long.soak.figures import (
    Findings,
    Verdict,
    find_canaries,
    judge_slopes,
    read_log,
    take_sample,
)
from tests.long.soak.upstreams import ANSWER, API_KEYS, PROMPT, pause
from tests.support.memory_sockets import PROXY_SIZES, Truncated

NAMES: Final = ("one", "two")
# `anchored` is not among them: each replica keeps the ids of stored responses for itself.
MIXED: Final = frozenset(
    "responses chat codex native socket hang_up models usage operate brief wrong".split()
)
OF_SESSIONS: Final = frozenset({"responses", "chat", "codex", "native"})
VISITOR_PART: Final = 3  # one in so many clients is of a session that must not move
HOW: Final = (signal.SIGTERM, signal.SIGKILL)
# A client may learn so late that a killed process has cut its connection: it reads on what came.
NOTICED_SECONDS_MAX: Final = 10.0
KILLED_SECONDS_MAX: Final = 0.5  # from a process's end until its address is refused for everybody
WARM_UP_SHARE: Final = 0.3
SHOWN_MAX: Final = 100


@dataclass
class Kill:
    replica: str
    at: float
    gone_at: float
    cut: list[str] = field(default_factory=list)  # ids of requests; "" before there is one

    def explains(self, began: float, now: float) -> bool:
        """Whether a request from `began` to `now` may have been at the process that was killed."""
        is_over = now > self.gone_at + NOTICED_SECONDS_MAX
        return began <= self.gone_at + KILLED_SECONDS_MAX and self.at <= now and not is_over


@dataclass
class Plan:
    """When what happens: 30 minutes have a reload a minute and a kill each five."""

    seconds: float

    @property
    def reload_seconds(self) -> float:
        return min(60.0, self.seconds / 16)

    @property
    def kill_seconds(self) -> float:
        return min(300.0, self.seconds / 4.5)

    @property
    def renew_seconds(self) -> float:
        return min(40.0, self.seconds / 10)

    @property
    def away_seconds(self) -> float:
        return min(8.0, self.seconds / 40)


class Night:
    def __init__(self, folder: Path, seconds: float, seed: str, clients: int) -> None:
        self.seconds, self.seed, self.client_count = seconds, seed, clients
        self.plan = Plan(seconds)
        self.folder = folder
        self.world = Upstreams(folder, seed, self.plan.renew_seconds)
        self.told, self.ledger = self.world.told, self.world.ledger
        self.replicas = Replicas(folder, self.world.file)
        self.kills: list[Kill] = []
        self.reloads: Counter[str] = Counter()
        self.homes: dict[str, Counter[str]] = defaultdict(Counter)  # by session and pool
        self.changing = trio.Lock()  # a reload does not meet a restart: each has to be told apart
        self.found = Findings()
        self.front: Front | None = None

    ############ who asks

    async def connect(self) -> trio.abc.Stream:
        assert self.front is not None
        return await self.front.connect()

    def explain(self, browser: Browser, began: float, fault: BaseException) -> str:
        """Whether a request was cut because the process that had it was killed."""
        if not isinstance(fault, (Truncated, OSError, trio.BrokenResourceError, NotOurs)):
            return ""
        for kill in self.kills:
            if kill.explains(began, time.monotonic()):
                kill.cut.append(browser.request_id)
                return "cut by SIGKILL"
        return ""

    def make_client(self, number: int) -> Browser:
        make = partial(Browser, self.connect, self.told, self.ledger, number, self.seed)
        make = partial(make, explain=self.explain, sizes=PROXY_SIZES)
        if number % VISITOR_PART:
            return make(names=MIXED)
        return make(names=OF_SESSIONS, keys=CALM_KEYS, session=f"night-{number}")

    async def visit(self, browser: Browser) -> None:
        """Ask in one session after the other, each of which must find its account again."""
        kinds = [browser.responses, browser.chat, browser.codex, browser.native]
        sessions = [f"{browser.session}-{index}" for index in range(6)]
        for turn in itertools.count():
            if self.ledger.is_ending:
                break
            browser.session = sessions[turn % len(sessions)]
            await browser.one(browser.random.choice(kinds))
            self.note_home(browser)
            if browser.random.random() < 0.3:
                await browser.drop()
            await pause(browser.random.expovariate(4))
        await browser.drop()

    def note_home(self, browser: Browser) -> None:
        account = self.told.accounts.pop(browser.mark.number, "")
        if account:
            pool = "open" if account in CALM_API_KEYS else "codex"
            self.homes[f"{browser.session} in {pool}"][account] += 1

    ############ what happens

    async def reload(self) -> None:
        file = self.world.file
        kinds = (file.without_key, file.broken, file.with_pause, file.whole)
        for turn in itertools.count():
            await pause(self.plan.reload_seconds)
            kind = kinds[turn % len(kinds)]
            async with self.changing:
                file.limits = LIMITS | CHANGES[turn % len(CHANGES)]
                kind()
                await self.replicas.reload(kind.__name__)
                self.reloads[kind.__name__] += 1
                if kind == file.broken:  # its owner mends it
                    file.whole()
                    await self.replicas.reload("whole")

    async def kill(self) -> None:
        """One is ended, in turns and in turns of how, and comes back."""
        for turn in itertools.count():
            await pause(self.plan.kill_seconds)
            name, how = NAMES[turn // 2 % 2], HOW[turn % 2]
            async with self.changing:
                self.ledger.is_one_leaving = True
                if how == signal.SIGKILL:
                    self.kills.append(Kill(name, time.monotonic(), float("inf")))
                await self.replicas.end(name, how)
                if how == signal.SIGKILL:
                    self.kills[-1].gone_at = time.monotonic()
                await pause(self.plan.away_seconds)
                self.ledger.is_one_leaving = False
                await self.replicas.start(name)
                await self.replicas.reload("whole")  # the other one has what this one has read

    async def sample(self) -> None:
        while True:
            for life in list(self.replicas.up.values()):
                assert life.served is not None
                with suppress(OSError, IndexError, Truncated, trio.BrokenResourceError):
                    address = life.served.address
                    taken = await take_sample(life.process.pid, address, self.replicas.minute)
                    life.samples.append(taken)
            await pause(2)

    async def report(self) -> None:
        """A line a minute."""
        while True:
            await pause(60)
            lives = self.replicas.up.values()
            memory = [f"{life.samples[-1].memory / 1024:.0f}" for life in lives if life.samples]
            counts = sum(self.ledger.outcomes.values())
            sys.stderr.write(
                f"minute {self.replicas.minute:.0f}: {counts} requests, "
                f"{self.world.tokens.outcomes['renewed']} refreshes, {' and '.join(memory)} MiB, "
                f"{len(self.ledger.unexplained) + len(self.told.complaints)} unexplained\n"
            )

    async def stop(self) -> None:
        """SIGTERM for both, when nobody asks any more."""
        for name in NAMES:
            await self.replicas.end(name, signal.SIGTERM)

    async def ask(self) -> None:
        """Clients ask until the time is over; what they have begun ends."""
        async with trio.open_nursery() as clients:
            for number in range(1, self.client_count + 1):
                browser = self.make_client(number)
                clients.start_soon(partial(self.visit, browser) if browser.session else browser.run)
            await pause(self.seconds)
            self.ledger.is_ending = True

    async def run(self) -> Verdict:
        async with trio.open_nursery() as nursery:
            await self.world.start(nursery)
            try:
                for name in NAMES:
                    await self.replicas.start(name)
                ports = [self.replicas.ports[name] for name in NAMES]
                async with in_front("haproxy", self.folder, ports) as self.front:
                    async with trio.open_nursery() as watchers:
                        for task in (self.sample, self.report, self.reload, self.kill):
                            watchers.start_soon(task)
                        await self.ask()
                        await self.changing.acquire()
                        watchers.cancel_scope.cancel()
                    await self.stop()
            finally:
                self.replicas.kill_all()
            await pause(1)  # for what is left at the upstreams to end
            verdict = self.judge()
            nursery.cancel_scope.cancel()
        return verdict

    ############ the verdict

    def judge(self) -> Verdict:
        lines = self.found.lines
        lines.append(f"night: {self.seconds:.0f} s, seed {self.seed}, {self.client_count} clients")
        self.judge_requests()
        self.judge_kills()
        self.judge_sessions()
        self.judge_tokens()
        self.judge_lives()
        self.judge_words()
        left = (self.told.open, self.world.codex.backend.open_sockets)
        lines.append(f"left at the upstreams: {left[0]} connections, {left[1]} WebSockets")
        self.found.check(left == (0, 0), "connections are left")
        return self.found.verdict()

    def judge_requests(self) -> None:
        lines, outcomes = self.found.lines, self.ledger.outcomes
        total = sum(outcomes.values())
        lines.append(f"requests: {total}, {total / self.seconds:.1f} a second")
        for kind in sorted({kind for kind, _ in outcomes}):
            row = sorted(((n, o) for (k, o), n in outcomes.items() if k == kind), reverse=True)
            told = ", ".join(f"{outcome} {count}" for count, outcome in row)
            lines.append(f"  {kind} {sum(count for count, _ in row)}: {told}")
        lines.append(f"injected: {dict(self.told.injected)}")
        unexplained = self.ledger.unexplained + self.told.complaints
        lines.append(f"unexplained: {len(unexplained)}")
        lines += [f"  {one}" for one in unexplained[:SHOWN_MAX]]
        self.found.check(not unexplained, "something is not explained")

    def judge_kills(self) -> None:
        """A request that was cut was at the process that was killed, and at no other."""
        for kill in self.kills:
            others = [life.log for life in self.replicas.lives if life.replica != kill.replica]
            text = "".join(log.read_text(errors="replace") for log in others)
            elsewhere = [one for one in kill.cut if one and one in text]
            begun = sum(bool(one) for one in kill.cut)
            self.found.lines.append(
                f"SIGKILL of {kill.replica}: {len(kill.cut)} requests cut, {begun} of them begun, "
                f"{len(elsewhere)} of them at the other replica"
            )
            self.found.check(not elsewhere, f"cut at the other replica: {elsewhere[:5]}")

    def judge_sessions(self) -> None:
        asked = sum(sum(accounts.values()) for accounts in self.homes.values())
        moved = {name: dict(found) for name, found in self.homes.items() if len(found) > 1}
        used = {account for found in self.homes.values() for account in found}
        self.found.lines.append(
            f"sessions: {len(self.homes)} on {len(used)} accounts, {asked} requests, "
            f"{len(moved)} sessions moved {list(moved.items())[:5]}"
        )
        self.found.check(not moved, f"{len(moved)} sessions moved")
        self.found.check(len(used) > 2, "all sessions are on the same accounts")

    def judge_tokens(self) -> None:
        outcomes = self.world.tokens.outcomes
        told = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
        self.found.lines.append(f"refreshes: {told}; sent twice {outcomes['sent twice']}")
        self.found.check(outcomes["renewed"] > 0, "no login was refreshed")
        self.found.check(not outcomes["sent twice"], "a refresh token was sent twice")

    def judge_lives(self) -> None:
        lines = self.found.lines
        lines.append(f"reloads: {dict(self.reloads)}")
        for life in self.replicas.lives:
            last = life.samples[-1].minute if life.samples else life.began
            lines.append(
                f"replica {life.replica}, minutes {life.began:.1f} to {last:.1f}: "
                f"{life.ended_by}, exit code {life.exit_code}"
            )
            warm = life.began + (last - life.began) * WARM_UP_SHARE
            judge_slopes(life.samples, warm, self.found)
            self.judge_log(life)
            is_short = last - life.began < 1
            self.found.check(bool(life.samples) or is_short, "there are no samples")
            good = -signal.SIGKILL if life.ended_by == "SIGKILL" else 0
            self.found.check(life.exit_code == good, f"the exit code is {life.exit_code}")

    def judge_log(self, life: Life) -> None:
        bad, events = read_log(life.log, was_killed=life.ended_by == "SIGKILL")
        self.found.lines.append(f"  log: {dict(events)}")
        self.found.lines += [f"  bad: {one}" for one in bad[:6]]
        self.found.check(not bad, f"the log of {life.log.name} has errors")
        refused, asked = events["error reload refused"], life.reloads["reload refused"]
        self.found.check(refused == asked, f"{asked} broken files, {refused} refused")

    def judge_words(self) -> None:
        backend = self.world.codex.backend
        tokens = {*backend.logins, *backend.refreshable, *backend.spent}
        wanted = [PROMPT, ANSWER, "canary", OPERATOR, *KEYS.values(), *API_KEYS.values(), *tokens]
        found = find_canaries([life.log for life in self.replicas.lives], wanted)
        self.found.lines.append(f"secrets or prompts in the logs: {len(found)} {found[:5]}")
        self.found.check(not found, "a secret or a prompt was told")


async def spend_night(seconds: float, seed: str, clients: int) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        return await Night(Path(folder), seconds, seed, clients).run()
