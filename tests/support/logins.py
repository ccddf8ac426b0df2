"""A login, the token endpoint that refreshes it, and another process that holds its lock.

`opened_desk` asserts that no token was logged; the clock stands still unless a test moves it.
(No claims.)
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import pooler
from pooler import (
    BaseUrl,
    Credentials,
    Login,
    LoginNeeded,
    Tokens,
    reveal,
)
from tests.support.codex_backend import CodexBackend, make_auth_file

Json = Any

REAL_SECONDS_MAX: Final = 30.0
PAUSE_SECONDS: Final = pooler.REFRESH_PAUSE_SECONDS
RENEWAL_SECONDS_MAX: Final = pooler.REFRESH_SECONDS_MAX
ENDED, SOON, LONG = -60.0, 60.0, 10**6  # seconds until a token ends


class Desk:
    """A login, the endpoint that refreshes it, and who asks for its access token."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.path = path
        self.nursery = nursery
        self.backend = CodexBackend()
        self.login = Login("one", path)
        self.logged: list[Mapping[str, Json]] = []
        self.origin = ""

    async def start(self) -> None:
        self.origin = await self.nursery.start(self.backend.listen)
        port = int(self.origin.rpartition(":")[2])
        url = BaseUrl(False, "127.0.0.1", port, "/oauth/token")
        self.tokens = Tokens(
            url, pooler.dial, self.note, time.time, pooler.Files(), self.nursery
        )  # fmt: skip

    def note(self, level: str, event: str, fields: Mapping[str, Json]) -> None:
        self.logged.append({"level": level, "event": event, **fields})

    def log_in(self, seconds: float, serial: int = 1) -> None:
        """A new file, whose token ends in so many seconds."""
        login = make_auth_file(
            self.path, "acct-1", expires_at=time.time() + seconds, refresh_token=f"rt-acct-{serial}"
        )
        self.backend.admit(login)

    async def ask(self, rejected: Credentials | None = None) -> str:
        """The access token that a request would use."""
        credentials = await self.tokens.credentials(self.login, rejected)
        return reveal(credentials.access_token)

    @property
    def asked_count(self) -> int:
        return len(self.backend.asked("/oauth/token"))

    def saved(self, name: str = "access_token") -> str:
        return str(json.loads(self.path.read_bytes())["tokens"][name])

    async def rest(self) -> None:
        """Wait until no refresh is in progress."""
        while self.login.refresh is not None:
            await self.login.refresh.wait()


@asynccontextmanager
async def jumping(clock: MockClock, seconds: float) -> AsyncIterator[None]:
    """The clock jumps once every task of the block waits."""

    async def jump() -> None:
        await wait_all_tasks_blocked()
        clock.jump(seconds)

    failure: LoginNeeded | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jump)
        try:
            yield
        except LoginNeeded as error:
            failure = error
    if failure is not None:  # outside of the nursery: not wrapped in a group
        raise failure


@asynccontextmanager
async def opened_desk(folder: Path) -> AsyncIterator[Desk]:
    """A desk whose login is `auth.json` in the folder, and not yet there."""
    async with trio.open_nursery() as nursery:
        desk = Desk(folder / "auth.json", nursery)
        await desk.start()
        yield desk
        await desk.rest()
        log = json.dumps(desk.logged)
        for secret in (*desk.backend.spent, *desk.backend.logins, *desk.backend.refreshable):
            assert secret not in log
        nursery.cancel_scope.cancel()


@contextmanager
def locked_by_another(auth_file: Path) -> Iterator[Callable[[], None]]:
    """Hold the lock of a login as another process would; what it yields lets go of it early."""
    path = pooler.lock_file(auth_file)
    with path.open("w") as lock:
        path.chmod(0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lambda: fcntl.flock(lock, fcntl.LOCK_UN)


@asynccontextmanager
async def asked_while_locked(desk: Desk, clock: MockClock) -> AsyncIterator[list[str]]:
    """A request waits for the lock while the block runs, and tries again after it.

    The list has its access token, or the error message, once the block has ended.
    """
    outcome: list[str] = []

    async def ask() -> None:
        try:
            outcome.append(await desk.ask())
        except LoginNeeded as error:
            outcome.append(str(error))

    with locked_by_another(desk.path) as unlock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            yield outcome
            unlock()
            clock.jump(pooler.LOCK_SECONDS)
