"""Proves that accounts and logins keep their rules whatever happens, in whatever order.

Method: a state machine of Hypothesis drives the real server, step by step, through a guest run of
Trio in virtual time. Upstreams and the token endpoint hold every request until a rule responds to
it. The model is what a careful reader of README.md would write down: which account cools down until
when, how often a request was sent and after which responses, which refresh tokens were spent.
"""

from __future__ import annotations

import json
import queue
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from trio.testing import MockClock

from pooler import REFRESH_URL_VARIABLE, parse_config
from tests.long.sim_world import run_inline
from tests.support.codex_backend import CodexBackend, make_auth_file
from tests.support.codex_turns import Refused
from tests.support.memory_sockets import Client, Json, ask_responses
from tests.support.world import (
    TOKEN_PATH,
    UNIX_START,
    Asked,
    FakeUpstream,
    Fin,
    Reset,
    Script,
    Step,
    Wait,
    World,
    describe,
    error_response,
    json_response,
    responses_events,
    sse_response,
)

ACCOUNTS: Final = "abc"  # b has a login; d is in no pool
LOGIN: Final = "b"
ATTEMPTS_MAX: Final = 3
PROBE_SECONDS: Final = 900.0
REPEATABLE: Final = frozenset({401, 402, 429, 500, 503})
FINAL: Final = frozenset({400, 408, 504})
GUEST_SECONDS_MAX: Final = 30.0  # for one step, in real time


################################################################
# A SERVER THAT IS DRIVEN FROM OUTSIDE
################################################################


class Guest:
    """A Trio run that advances only while a step is in progress."""

    def __init__(self, main: Callable[[], Awaitable[None]]) -> None:
        self.calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.outcome: Any = None
        self.clock = MockClock(autojump_threshold=0)
        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=self.calls.put,
            done_callback=self.end,
            clock=self.clock,
            host_uses_signal_set_wakeup_fd=True,
        )

    def end(self, outcome: Any) -> None:  # noqa: ANN401 (an outcome of whatever `main` is)
        self.outcome = outcome

    def run_until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            if self.outcome is not None:
                self.outcome.unwrap()
                raise AssertionError("the server has ended")
            self.calls.get(timeout=GUEST_SECONDS_MAX)()


@dataclass
class Held:
    """A request that an upstream or the token endpoint has read, but not responded to."""

    place: str
    asked: Asked
    decided: trio.Event = field(default_factory=trio.Event)
    steps: Script = ()

    def script(self) -> Iterator[Step]:
        yield Wait(self.decided)
        yield from self.steps

    def decide(self, steps: Script) -> None:
        self.steps = steps
        self.decided.set()


@dataclass
class Ask:
    """A client's request, in the model."""

    client: Client
    post_count: int = 0
    repeatable_count: int = 0  # answers that say "not executed"
    is_over: bool = False


################################################################
# THE MACHINE
################################################################


class AccountMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.run_sync, trio.to_thread.run_sync = trio.to_thread.run_sync, run_inline  # type: ignore[assignment] # threads take real time
        self.asks: dict[int, Ask] = {}
        self.cooldowns: dict[str, tuple[float, float]] = {}  # account: since, until
        self.spent: set[str] = set()
        self.backend: CodexBackend
        self.world: World
        self.held: list[Held] = []
        self.actions: trio.MemorySendChannel[Callable[[], Awaitable[None]]]
        self.guest = Guest(self.main)
        self.guest.run_until(lambda: hasattr(self, "actions"))

    @property
    def auth_file(self) -> Path:
        return self.folder / "auth.json"

    def config(self, kind: int) -> Any:  # noqa: ANN401 (what parse_config gives)
        accounts: dict[str, Json] = {LOGIN: {"type": "codex", "auth_file": str(self.auth_file)}}
        accounts[LOGIN] |= {"api_key": None}
        accounts["a"] = {"paused": kind == 1}
        pool = {"accounts": list(ACCOUNTS), "routing": ["sticky", "soonest_reset"][kind % 2]}
        limits = {"attempts_max": ATTEMPTS_MAX}
        whole = describe("abcd", accounts=accounts, pool=pool, limits=limits)
        env = {REFRESH_URL_VARIABLE: f"http://127.0.0.1:9{TOKEN_PATH}"}
        return parse_config(json.dumps(whole).encode(), env, str)

    async def main(self) -> None:
        send, receive = trio.open_memory_channel[Callable[[], Awaitable[None]]](0)
        self.backend = CodexBackend(self.unix_now)
        self.log_in(seconds=10**6)
        async with trio.open_nursery() as nursery:
            self.world = World(self.config(0), nursery, make_upstream=self.make_upstream)
            self.world.services[TOKEN_PATH] = self.world.upstream(TOKEN_PATH).connect
            self.world.start()
            await self.world.settle()
            self.actions = send
            async for action in receive:
                await action()
            nursery.cancel_scope.cancel()

    def unix_now(self) -> float:
        return UNIX_START + trio.current_time()

    def log_in(self, seconds: float) -> None:
        number = len(self.spent) + 1
        made = make_auth_file(
            self.auth_file, "acct-b", "plus", UNIX_START + seconds, f"rt-{number}00-1"
        )
        self.backend.admit(made)

    def act(self, action: Callable[[], Awaitable[None]]) -> None:
        """Do it, and wait until all tasks wait; time stands still."""
        done: list[bool] = []

        async def act() -> None:
            await action()
            await self.world.settle()
            done.append(True)

        self.guest.clock.autojump_threshold = float("inf")
        self.actions.send_nowait(act)
        self.guest.run_until(lambda: bool(done))

    def make_upstream(self, name: str, world: World) -> FakeUpstream:
        """An upstream that holds every request until a rule decides on it."""
        upstream = FakeUpstream(name, world)
        upstream.always = partial(self.hold, name)
        return upstream

    def hold(self, place: str, asked: Asked) -> Iterator[Step]:
        """The steps of the response, which a later rule decides."""
        held = Held(place, asked)
        self.held.append(held)
        self.note_asked(held)
        return held.script()

    def note_asked(self, held: Held) -> None:
        """The model's view of a request that goes out; what must not be is noted at once."""
        now, name = trio.current_time(), held.place
        if name == TOKEN_PATH:
            token = held.asked.json()["refresh_token"]
            assert token not in self.spent, "a refresh token was sent twice"
            assert sum(held.place == TOKEN_PATH for held in self.held) == 1, "two refreshes"
            return
        assert name in ACCOUNTS, "an account of no pool was asked"
        since, until = self.cooldowns.get(name, (0.0, 0.0))
        assert now >= min(until, since + PROBE_SECONDS), f"{name} was asked while it rests"
        self.asks[self.number_of(held)].post_count += 1

    def number_of(self, held: Held) -> int:
        found = re.search(rb"ask-(\d+)", held.asked.body)
        assert found is not None
        return int(found[1])

    def waiting(self, *, at_endpoint: bool) -> list[Held]:
        return [held for held in self.held if (held.place == TOKEN_PATH) == at_endpoint]

    ############ clients

    @rule(is_stream=st.booleans(), session=st.sampled_from(["", "s1", "s2"]))
    def ask(self, *, is_stream: bool, session: str) -> None:
        number = len(self.asks) + 1

        async def ask() -> None:
            client = await self.world.connect()
            self.asks[number] = Ask(client)
            more = {"prompt_cache_key": session} if session else {}
            await client.send(ask_responses(stream=is_stream, input=f"ask-{number}", **more))

        self.act(ask)

    @precondition(lambda self: any(not one.is_over for one in self.asks.values()))
    @rule(data=st.data(), is_rude=st.booleans())
    def leave(self, data: st.DataObject, *, is_rude: bool) -> None:
        left = [one for one in self.asks.values() if not one.is_over]
        ask = data.draw(st.sampled_from(range(len(left))))

        async def leave() -> None:
            left[ask].is_over = True
            if is_rude:
                left[ask].client.reset()
            else:
                await left[ask].client.hang_up()

        self.act(leave)
        self.forget_ended()

    def forget_ended(self) -> None:
        """A request that the server has given up gets no response."""
        self.held = [
            held for held in self.held if not held.asked.connection.socket.outgoing.is_deaf
        ]

    ############ upstreams

    def decide(self, held: Held, steps: Script) -> None:
        async def decide() -> None:
            await trio.lowlevel.checkpoint()
            self.held.remove(held)
            held.decide(steps)

        self.act(decide)

    @precondition(lambda self: self.waiting(at_endpoint=False))
    @rule(
        data=st.data(),
        status=st.sampled_from([200, 200, *sorted(REPEATABLE | FINAL)]),
        seconds=st.sampled_from([0, 5, 1000]),
    )
    def answer(self, data: st.DataObject, status: int, seconds: int) -> None:
        held = data.draw(st.sampled_from(self.waiting(at_endpoint=False)))
        ask = self.asks[self.number_of(held)]
        if status == 200:
            self.cooldowns.pop(held.place, None)
            is_stream = held.asked.json().get("stream")
            whole = sse_response(responses_events("x")) if is_stream else json_response({"id": "r"})
            self.decide(held, whole)
            return
        ask.repeatable_count += status in REPEATABLE
        headers = [("retry-after", str(seconds))] if seconds and status == 429 else []
        since = self.guest.clock.current_time()
        if status == 429:
            _, until = self.cooldowns.get(held.place, (0.0, 0.0))
            # Another's success may have ended the rest before: then it is shorter, never longer.
            self.cooldowns[held.place] = (since, max(until, since + (seconds or 30)))
        self.decide(
            held, error_response(status, "rate_limit_exceeded" if status == 429 else "odd", headers)
        )

    @precondition(lambda self: self.waiting(at_endpoint=False))
    @rule(data=st.data(), is_reset=st.booleans())
    def cut(self, data: st.DataObject, *, is_reset: bool) -> None:
        """Without a response: the upstream may be working on it."""
        held = data.draw(st.sampled_from(self.waiting(at_endpoint=False)))
        self.decide(held, [Reset() if is_reset else Fin()])

    ############ logins

    @precondition(lambda self: self.waiting(at_endpoint=True))
    @rule(how=st.sampled_from(["ok", "ok", "denied", "busy", "cut"]))
    def renew(self, how: str) -> None:
        [held] = self.waiting(at_endpoint=True)
        token = held.asked.json()["refresh_token"]
        steps: Script = [Fin()]
        if how == "busy":
            steps = error_response(503, "busy")
        elif how == "denied":
            self.backend.refreshable.pop(token, None)
        if how in {"ok", "denied"}:
            try:
                steps = json_response(self.backend.exchange(token))
                self.spent.add(token)
            except Refused as refused:
                steps = json_response(refused.answer.body, 401)
        self.decide(held, steps)

    @rule(seconds=st.sampled_from([-60, 60, 10**6]))
    def log_in_again(self, seconds: int) -> None:
        """Another program writes the file: a new login, or one that is about to expire."""

        async def log_in() -> None:
            await trio.lowlevel.checkpoint()
            self.spent.add(f"log in {len(self.spent)}")
            self.log_in(trio.current_time() + seconds)

        self.act(log_in)
        self.cooldowns.pop(LOGIN, None)

    ############ the rest

    @rule(kind=st.integers(0, 2))
    def reload(self, kind: int) -> None:
        async def reload() -> None:
            await self.world.server.reload(lambda: (self.config(kind), {}))

        self.act(reload)
        self.cooldowns.clear()  # a person may have mended what was wrong

    @rule(seconds=st.sampled_from([0.5, 6.0, 31.0, 400.0, 901.0]))
    def wait(self, seconds: float) -> None:
        async def wait() -> None:
            await trio.lowlevel.checkpoint()
            self.guest.clock.jump(seconds)

        self.act(wait)
        self.forget_ended()

    ############ what always holds

    @initialize()
    def begin(self) -> None:
        assert not self.world.asked

    @invariant()
    def no_request_is_asked_more_often_than_it_may(self) -> None:
        for number, ask in self.asks.items():
            # A login that was refused is renewed, and the account asked once more.
            assert ask.post_count <= 1 + ask.repeatable_count, number
            assert ask.post_count <= ATTEMPTS_MAX + 1, number

    @invariant()
    def what_runs_is_counted(self) -> None:
        server = self.world.server
        running = sum(server.shared.roster.leases.in_flight.values())
        assert running <= len(server.exchanges.in_progress)
        assert len(self.waiting(at_endpoint=False)) <= running
        assert self.world.complaints == []
        assert [line for line in self.world.logged if line[1] == "bug"] == []

    @invariant()
    def a_login_is_whole(self) -> None:
        assert json.loads(self.auth_file.read_bytes())["tokens"]["refresh_token"]

    def teardown(self) -> None:
        async def end() -> None:
            for ask in self.asks.values():
                if not ask.client.stream.is_closed:
                    await ask.client.hang_up()
            await self.world.settle()
            self.world.assert_quiet()

        try:
            self.act(end)
            self.actions.close()
            self.guest.run_until(lambda: self.guest.outcome is not None)
        finally:
            trio.to_thread.run_sync = self.run_sync
            shutil.rmtree(self.folder)


@pytest.mark.parametrize(
    ("step_count", "examples"),
    [
        (12, 10),
        pytest.param(12, 80, marks=pytest.mark.slow),
        pytest.param(40, 40, marks=pytest.mark.slow),
    ],
)
def test_accounts_and_logins_keep_their_rules(step_count: int, examples: int) -> None:
    run_state_machine_as_test(
        AccountMachine,
        settings=settings(
            max_examples=examples, stateful_step_count=step_count, deadline=None, derandomize=True
        ),
    )
