"""What an operator is shown, held against what requests meet in the simulation.  (No claims.)"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from pooler import Account, Call, Lease, Server, digest_parts
from tests.long.sim_answers import Seen
from tests.long.sim_ground import Ground
from tests.long.sim_names import CALM, MOVED
from tests.long.sim_requests import Task
from tests.support.memory_sockets import Json

TRIED: frozenset[str] = frozenset({"ready", "failing", "unreachable"})  # as the page calls them
BARRED: frozenset[str] = frozenset(
    {"cooling_down", "at_limit", "refused", "login_needed", "paused"}
)
OF_KEY: frozenset[str] = frozenset({"refused", "cooling_down"})  # it may be of one key alone
# Of a refusal that is the request's or its key's own, or the server's as it ends.
OWN_CODES: frozenset[str] = frozenset({"key_limit_reached", "server_stopping"})


@dataclass
class Foreseen:
    """What `explain` says of a request just before it is sent."""

    session: str
    model: str
    chosen: str | None
    statuses: list[tuple[str, str]]
    around: object  # what else decides, and changes with other requests
    at: float
    is_met: bool = False  # a choice was made for it


@dataclass(eq=False)
class Page:
    """Stands between a server and its choices."""

    ground: Ground
    server: Server
    foreseen: dict[bytes, Foreseen] = field(default_factory=dict)
    choice_count: int = 0

    def __post_init__(self) -> None:
        roster = self.server.shared.roster
        self.begin_really = roster.begin
        roster.begin = self.begin  # type: ignore[method-assign] # of this one

    def begin(self, account: Account, call: Call, now: float) -> Lease:
        """In the place of `Roster.begin`: an account has been chosen."""
        self.choice_count += 1
        if account.name != CALM and self.choice_count % 3 == 0:
            self.judge_shown(account, call)
        foreseen = self.foreseen.get(call.session or b"")
        if foreseen is not None:
            self.judge_foreseen(foreseen, account)
        return self.begin_really(account, call, now)

    def judge_shown(self, account: Account, call: Call) -> None:
        """I11: who is asked is shown as somebody who may be asked."""
        shown = self.server.operators.snapshot()
        row = next(row for row in shown["accounts"] if row["name"] == account.name)
        status, retry_at = row["status"], row["next_try_at"]
        is_due = retry_at is not None and retry_at <= self.ground.unix_now() + 1
        names = (account.name, MOVED.get(account.name, ""))  # as its upstream may be called
        is_roomy = any((name, call.model) in self.ground.book.roomy for name in names)
        has_own_room = status == "at_limit" and is_roomy
        self.ground.note(f"shown: {status}")
        if not (status in TRIED or is_due or has_own_room):
            self.ground.complaints.append(f"I11: {account.name} is chosen, and shown as {row}")

    async def foresee(self, task: Task) -> Foreseen:
        """What an operator is told of a request that is about to be sent."""
        shared = self.server.shared
        await shared.look_at_logins(shared.config.accounts.values())  # as each of its routes does
        assert task.session is not None
        session = task.session[1]
        foreseen = Foreseen(
            session, task.model, *self.explained(session, task.model), trio.current_time()
        )
        self.judge_page(foreseen)
        digest = digest_parts("home", "laptop", "session", session)
        self.foreseen[digest] = foreseen
        return foreseen

    def judge_page(self, foreseen: Foreseen) -> None:
        """I11: its parts agree: the accounts, what can be served, and where it goes."""
        shown = self.server.operators.snapshot()
        accounts = {row["name"]: row["status"] for row in shown["accounts"]}
        home = next(pool for pool in shown["pools"] if pool["name"] == "home")
        serving = [row["status"] for row in home["serving"] if row["model"] == foreseen.model]
        statuses = {status for _, status in foreseen.statuses}
        contrary = [
            name for name, status in foreseen.statuses if self.differs(name, status, accounts[name])
        ]
        is_served = foreseen.chosen is not None or "at_cap" in statuses
        is_contrary = serving == ["ready"] and not is_served and "lacks_route" not in statuses
        passed = [one for row in home["serving"] for one in row["passed_over"]]
        is_lacking = any(one["status"].startswith("lacks") for one in passed)  # perhaps for one key
        is_contrary |= serving in (["down"], ["limited"]) and "ready" in statuses and not is_lacking
        if contrary or is_contrary:
            told = f"{accounts}, {home['serving']}, {foreseen}"
            self.ground.complaints.append(f"I11: the page contradicts itself: {contrary} {told}")

    def differs(self, name: str, status: str, shown: str) -> bool:
        """Whether an account is shown as ready, and barred for a request, or the reverse."""
        if status == "ready":  # a used-up plan may leave room for the model
            return shown in BARRED - {"at_limit"}
        # What one key's requests have met alone does not count for others, nor for the page.
        until = self.server.shared.roster.health[name].whole.until
        is_of_key = status in OF_KEY and until <= trio.current_time()
        return shown == "ready" and status in BARRED and not is_of_key

    def explained(
        self, session: str, model: str
    ) -> tuple[str | None, list[tuple[str, str]], object]:
        roster = self.server.shared.roster
        windows = {name: {**health.quota.windows} for name, health in roster.health.items()}
        around = (dict(roster.leases.in_flight), windows)
        try:
            told: Json = self.server.operators.explain("home", model, session)
        except LookupError:
            return None, [], around
        return told["chosen"], [(row["name"], row["status"]) for row in told["accounts"]], around

    def is_unchanged(self, foreseen: Foreseen) -> bool:
        """Whether nothing has arisen since: then it must have come as it was foreseen."""
        _, statuses, around = self.explained(foreseen.session, foreseen.model)
        is_now = trio.current_time() == foreseen.at
        return is_now and statuses == foreseen.statuses and around == foreseen.around

    def judge_foreseen(self, foreseen: Foreseen, account: Account) -> None:
        if not foreseen.is_met and self.is_unchanged(foreseen):
            self.ground.note("foreseen: served")
            if account.name != foreseen.chosen:
                self.ground.complaints.append(f"I11: {account.name} is asked, not as in {foreseen}")
        foreseen.is_met = True

    def judge_answered(self, foreseen: Foreseen, seen: Seen, *, is_excused: bool) -> None:
        """I11: what is said to be servable was tried; what is not was refused."""
        if foreseen.is_met or is_excused or seen.code in OWN_CODES:
            return
        if not self.is_unchanged(foreseen):
            return
        self.ground.note("foreseen: refused")
        assert foreseen.chosen is None, f"nobody was asked: {foreseen}, {seen}"
