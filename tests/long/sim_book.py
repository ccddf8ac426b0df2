"""What accounts have told of themselves in the simulation, and where sessions stay.  (No claims.)

A reference for three invariants, which knows nothing of how the pooler keeps these things.  It is
careful: where the pooler may know less, or more, than the book does, the book asks for nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from tests.long.sim_names import CODEX, MOVED
from tests.long.sim_requests import Attempt, Task

UNTRIED_SECONDS: Final = 900.0  # then one may be asked, whatever was announced
UNSAID_SECONDS: Final = 30.0  # of a throttle whose end is not told
REFUSALS_MAX: Final = 3  # without a reason, in a row: then the account is out
LACK_SECONDS: Final = {"lacks model": 3600.0, "lacks route": 300.0}
SPARE_SECONDS: Final = 1.0  # times are saved in whole seconds
LOGIN_SECONDS: Final = 60.0  # so long the pooler may not have noticed a new login


@dataclass(frozen=True)
class Trouble:
    """What an answer tells of its account."""

    effect: str  # plan, throttle, model limit, refused, doubt, forbidden, lacks model, lacks route
    seconds: float | None = None  # until it is over, if that is told


@dataclass
class Fact:
    """Why an account is not to be asked, and by which attempts that is known."""

    effect: str
    attempts: list[Attempt]
    told_at: float
    barred_until: float
    model: str = ""  # "": all of them
    path: str = ""
    key: str = ""  # whose requests have met it, where these may have caused it

    @property
    def known_at(self) -> float:
        """When the pooler certainly knew it: it had told the client, or asked somebody else."""
        return max(map(self.known_by, self.attempts))

    def known_by(self, attempt: Attempt) -> float:
        task = attempt.task
        assert task is not None
        moments = [task.ended_at, *(other.at for other in task.attempts if other is not attempt)]
        return min((at for at in moments if at >= attempt.told_at), default=math.inf)

    def bars(self, task: Task, now: float) -> bool:
        """Whether a request is not to be sent to the account: it began after that was known."""
        is_meant = self.model in {"", task.model} and self.path in {"", task.path}
        is_meant &= self.key in {"", task.key}
        return is_meant and now < self.barred_until and task.began_at > self.known_at


@dataclass
class Session:
    """Where the requests of one session went."""

    accounts: set[str] = field(default_factory=set)
    home: str = ""  # the only one that was ever asked, and served
    home_at: float = -math.inf  # then it was in order
    served: set[tuple[str, str, bool]] = field(default_factory=set)


@dataclass(eq=False)
class Book:
    """All of it, for one life."""

    complaints: list[str]
    note: Callable[[str], None]
    facts: dict[str, list[Fact]] = field(default_factory=lambda: defaultdict(list))
    # Without a reason, by account and key.
    refusals: dict[tuple[str, str], list[Attempt]] = field(
        default_factory=lambda: defaultdict(list)
    )
    odd_at: dict[str, float] = field(default_factory=dict)  # when something went wrong there
    login_at: dict[str, float] = field(default_factory=dict)  # when it got another login
    window_ends: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    was_full: set[str] = field(default_factory=set)  # it has told of a used-up plan
    roomy: set[tuple[str, str]] = field(default_factory=set)  # models with a limit of their own
    no_sockets: set[str] = field(default_factory=set)
    withdrawn: set[str] = field(default_factory=set)  # accounts whose login is over
    sessions: dict[tuple[str, tuple[str, str]], Session] = field(default_factory=dict)
    # Of responses, by their id: whose client has it, and who made it.
    creators: dict[str, tuple[str, str]] = field(default_factory=dict)
    forgot_at: float = -math.inf
    open_count: int = 0  # requests under way
    is_tight: bool = False  # accounts have little room

    ############ what happens

    def note_odd(self, *names: str) -> None:
        for name in names:
            self.odd_at[name] = trio.current_time()

    def note_login(self, name: str) -> None:
        """A new login ends a refusal."""
        self.login_at[name] = trio.current_time()
        self.end_refusal(name)

    def end_refusal(self, name: str) -> None:
        self.facts[name] = [fact for fact in self.facts[name] if fact.effect != "refused"]
        self.end_refusals(name)

    def end_refusals(self, name: str) -> None:
        self.refusals = defaultdict(
            list, {who: told for who, told in self.refusals.items() if who[0] != name}
        )

    def forget(self, *, is_restart: bool = False) -> None:
        """A reload ends what is known of accounts; a restart without a state all else, too."""
        self.forgot_at = trio.current_time()
        self.facts.clear()
        self.refusals.clear()
        self.no_sockets.clear()
        for session in self.sessions.values():  # its pin may be kept, wherever that was
            session.home = ""
        if is_restart:
            self.sessions.clear()
            self.creators.clear()

    def restart(self) -> None:
        """With a state: what an account lacks, and may not do, is not in it."""
        for name, facts in self.facts.items():
            # Nor the limits of models that only a client has named.
            unsaved = {*LACK_SECONDS, "model limit"}
            self.facts[name] = [fact for fact in facts if fact.effect not in unsaved]
        self.refusals.clear()
        self.no_sockets.clear()
        # Of responses, those of accounts that a reload has pointed elsewhere are not in it either.
        moved = {*MOVED, *MOVED.values()}
        kept = {one: made for one, made in self.creators.items() if made[1] not in moved}
        self.creators = kept

    def note_window(
        self, name: str, attempt: Attempt | None, percent: float, ends_at: float
    ) -> None:
        """An answer reports how far its plan is used up, and until when."""
        self.window_ends[name].append(ends_at)
        if percent < 100:
            return
        self.note_odd(name)
        is_news = name not in self.was_full
        self.was_full.add(name)
        if attempt is not None and is_news:  # a window is used up once
            self.add(
                name,
                Fact("plan", [attempt], attempt.told_at, self.barred(ends_at - attempt.told_at)),
            )

    def note_trouble(self, attempt: Attempt, trouble: Trouble, *, is_late: bool) -> None:
        """An answer tells of its account's trouble; `is_late`: behind its first content."""
        name, task = attempt.account, attempt.task
        assert task is not None
        self.note_odd(name)
        self.note(f"trouble: {trouble.effect}")
        now = attempt.told_at
        fact = Fact(trouble.effect, [attempt], now, 0.0)
        if trouble.effect in LACK_SECONDS:
            if is_late:
                return
            fact.barred_until = now + LACK_SECONDS[trouble.effect] - SPARE_SECONDS
            fact.model = task.model if trouble.effect == "lacks model" else ""
            fact.path = task.path if trouble.effect == "lacks route" else ""
            fact.key = task.key
        elif trouble.effect in {"plan", "throttle", "model limit"}:
            self.note_limit(fact, name, task, trouble.seconds)
        elif not self.is_refused(attempt, trouble.effect, is_late=is_late):
            return
        else:
            fact.effect = "refused"
            if trouble.effect == "forbidden":
                fact.key = task.key
                fact.attempts = self.refusals[name, task.key][-REFUSALS_MAX:]
            fact.barred_until = self.barred(UNTRIED_SECONDS)
        self.add(name, fact)

    def note_limit(self, fact: Fact, name: str, task: Task, seconds: float | None) -> None:
        if fact.effect == "plan":
            self.end_refusal(name)  # the request was counted, so its sender is accepted
        if seconds is None and fact.effect == "throttle":
            seconds = UNSAID_SECONDS
        if seconds is None:
            ends = [at - fact.told_at for at in self.window_ends[name] if at > fact.told_at]
            seconds = min([*ends, UNTRIED_SECONDS])
        # A reset may be a moment, and the answer has been under way.
        passed = fact.told_at - fact.attempts[0].at
        fact.barred_until = self.barred(seconds - passed)
        fact.model = task.model if fact.effect == "model limit" else ""

    def is_refused(self, attempt: Attempt, effect: str, *, is_late: bool) -> bool:
        """Whether an account is out: the pooler repairs some, and forgives some."""
        name, task = attempt.account, attempt.task
        assert task is not None
        if effect == "forbidden":
            self.refusals[name, task.key].append(attempt)
            return len(self.refusals[name, task.key]) >= REFUSALS_MAX
        self.end_refusals(name)
        if name not in CODEX:
            return True
        if effect == "doubt" and not is_late:
            before = [other for other in task.attempts if other is not attempt]
            return bool(before) and before[-1].account == name and before[-1].is_doubt
        # A login that came a moment ago may not have been noticed: it ends a refusal.
        return self.login_at.get(name, -math.inf) < attempt.at - LOGIN_SECONDS

    def barred(self, seconds: float) -> float:
        return trio.current_time() + min(seconds, UNTRIED_SECONDS) - SPARE_SECONDS

    def add(self, name: str, fact: Fact) -> None:
        now = trio.current_time()
        kept = [one for one in self.facts[name] if one.barred_until > now]
        self.facts[name] = [*kept, fact]

    def note_service(self, attempt: Attempt) -> None:
        """An answer begins that tells of no trouble: what was told before it was asked is over."""
        name = attempt.account
        self.end_refusals(name)
        self.facts[name] = [
            fact
            for fact in self.facts[name]
            if fact.effect in LACK_SECONDS or fact.told_at > attempt.at
        ]

    def responses_of(self, key: str) -> list[str]:
        """The ids of responses that a key's clients have."""
        return [response for response, (holder, _) in self.creators.items() if holder == key]

    def note_success(self, task: Task) -> None:
        """A client has a whole answer: its session is at home there, if it was nowhere else."""
        name = task.attempts[-1].account
        if task.kind == "responses":
            creator = "codex" if name in CODEX else name
            self.creators[task.response_id(name)] = task.key, creator
        session = self.session_of(task)
        is_of_now = task.began_at > self.forgot_at  # else a reload may have moved the account
        if session is not None and session.accounts == {name} and is_of_now:
            session.home, session.home_at = name, task.began_at
            session.served.add((task.kind, task.model, task.is_turn))

    def session_of(self, task: Task) -> Session | None:
        if task.session is None:
            return None
        return self.sessions.setdefault((task.key, task.session), Session())

    ############ what must hold

    def judge_asked(self, name: str, task: Task) -> None:
        """I9, I10: what an upstream is sent, it may be sent.  Call before the attempt is noted."""
        now = trio.current_time()
        for fact in self.facts[name]:
            is_exempt = fact.effect == "plan" and (name, task.model) in self.roomy
            if fact.bars(task, now) and not is_exempt:
                told = f"told at {fact.told_at:.1f}, until {fact.barred_until:.1f}"
                self.complaints.append(f"I9: {name} is asked at {now:.1f}: {fact.effect}, {told}")
        if task.previous:
            self.judge_continued(name, task)
        session = self.session_of(task)
        if session is not None:
            if not task.attempts:
                self.judge_home(name, task, session)
            session.accounts.add(name)

    def judge_continued(self, name: str, task: Task) -> None:
        _, creator = self.creators.get(task.previous, ("", name))
        is_known = creator == "codex" and name in CODEX and (task.is_turn or task.kind == "native")
        if creator == name:
            self.note("continued")
        elif not is_known:
            self.complaints.append(f"I10: {name} is sent what continues a response of {creator}")

    def judge_home(self, name: str, task: Task, session: Session) -> None:
        home = session.home
        has_room = not self.is_tight or self.open_count <= 1
        is_well = (
            bool(home)
            and home not in self.withdrawn
            and has_room
            and self.odd_at.get(home, -math.inf) < session.home_at
            and (task.kind, task.model, task.is_turn) in session.served
            and not (task.is_turn and home in self.no_sockets)
            and not task.previous
            and task.began_at > session.home_at
        )
        if not is_well:
            return
        self.note(f"stayed: {session_kind(task)}")
        if name != home:
            self.complaints.append(f"I10: {task.session} went from {home} to {name}")


def session_kind(task: Task) -> str:
    assert task.session is not None
    return task.session[0]
