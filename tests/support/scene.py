"""A roster without a server: who is chosen, what is refused, what is used up.  (No claims.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pooler import (
    Account,
    Call,
    Choice,
    Fault,
    Key,
    KeyUse,
    PoolerError,
    Roster,
    Window,
    call_route,
    classify_response,
    read_call,
    show_codex_usage,
    show_key_usage,
)
from tests.support.memory_sockets import Json
from tests.support.world import UNIX_START, describe, make_config

HOUR: Final = 3600
FIVE_HOURS: Final = 5 * HOUR
JSON_HEAD: Final = ("content-type", "application/json")
NO_MODEL: Final = b'{"error": {"message": "x", "code": "model_not_found", "param": null}}'


def window(
    used: float, resets_in: float | None = HOUR, length: int = FIVE_HOURS, family: str = "codex"
) -> Window:
    return Window(family, length, used, None if resets_in is None else UNIX_START + resets_in)


class Scene:
    """One roster, and the accounts of its pool by their letters."""

    def __init__(self, names: str = "abc", **described: Json) -> None:
        self.config = make_config(describe(names, **described))
        self.roster = Roster(self.config)
        self.pool = self.config.pools["home"]

    def key(self, name: str = "laptop", pool: str = "home") -> Key:
        return next(key for key in self.config.pools[pool].keys if key.name == name)

    def call(
        self,
        session: str | None = None,
        *,
        headers: Sequence[tuple[str, str]] = (),
        key: str = "laptop",
        pool: str = "home",
        **body: Json,
    ) -> Call:
        if session is not None:
            headers = [("session-id", session)]
        body = {"model": "m1", "store": False} | body
        where = self.config.pools[pool]
        return read_call(
            call_route("/v1/responses"), body, dict(headers), where, self.key(key, pool)
        )

    def account(self, name: str) -> Account:
        return self.config.accounts[name]

    def order(self, call: Call | None = None, now: float = 0.0, tried: str = "") -> str:
        ranked = Choice(self.roster, call or self.call(), tried, now).ranked()
        return "".join(account.name for account in ranked)

    def answers(self, name: str, status: int, now: float = 0.0, seconds: float = 0.0) -> None:
        """Let an account respond with an error; `seconds`: its Retry-After."""
        fault = self.fault(status, seconds)
        self.roster.note_fault(self.account(name), fault, "m1", now)

    def fault(self, status: int, seconds: float = 0.0) -> Fault:
        headers = [JSON_HEAD, ("retry-after", f"{seconds:g}")] if seconds else [JSON_HEAD]
        body = NO_MODEL if status in {400, 404} else b"{}"
        return classify_response(status, dict(headers), body, UNIX_START)

    def serves(self, name: str, call: Call, now: float = 0.0) -> None:
        """One whole, successful request of a session."""
        lease = self.roster.begin(self.account(name), call, now)
        self.roster.note_served(call, self.account(name), now)
        self.roster.note_success(lease, now)
        self.roster.end(lease)

    def refusal(self, now: float = 0.0, **call: Json) -> PoolerError:
        return Choice(self.roster, self.call(**call), "", now).refusal(UNIX_START + now)

    def hang_on(self, name: str, now: float = 0.0) -> None:
        """One request that does not end."""
        self.roster.begin(self.account(name), self.call(), now)

    ############ quota

    def tell(self, name: str, *windows: Window, now: float = 0.0) -> None:
        self.roster.note_quota(self.account(name), windows, now, UNIX_START + now)

    def use(self, **percents: float) -> None:
        """Let one five-hour window of each account be used up so far."""
        for name, percent in percents.items():
            self.tell(name, window(percent))

    def left(self, name: str, now: float = 0.0) -> float:
        return self.roster.health[name].quota.left_percent(now)

    def codex_usage(self, now: float = 0.0) -> dict[str, Any]:
        return show_codex_usage(self.roster, self.pool, now, UNIX_START + now)

    def key_usage(self, use: KeyUse | None = None, now: float = 0.0) -> dict[str, Any]:
        times = {"now": now, "unix_now": UNIX_START + now}
        return show_key_usage(self.roster, self.pool, self.key(), use or KeyUse(), **times)
