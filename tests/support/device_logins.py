"""The issuer of ChatGPT logins, where a person enters a code (F104), well or badly.  (No claims.)

`Issuer(backend)` adds its routes to a `CodexBackend`, whose token endpoint then takes an
authorization code as well.  A test approves or denies for the person, or a person does it with
`curl -d user_code=CODE -d account=NAME ORIGIN/codex/device`.
What it does badly is said by its attributes, and by `plays`, each of which is one response.

`python -m tests.support.device_logins` runs a backend with these routes.  `opened_device_desk` has
one login by device code in memory and in virtual time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import trio
from trio.testing import memory_stream_pair

import pooler
from tests.support.codex_backend import (
    CLIENT_ID,
    TOKEN_SECONDS,
    CodexBackend,
    Login,
    Seen,
    Wire,
    make_token,
    run,
)
from tests.support.codex_turns import Answer, Refused, encode_part, error_body

Json = Any
CODE_PATH: Final = "/api/accounts/deviceauth/usercode"
POLL_PATH: Final = "/api/accounts/deviceauth/token"
PAGE_PATH: Final = "/codex/device"
TOKEN_PATH: Final = "/oauth/token"
PENDING: Final = error_body("deviceauth_authorization_pending", "Device authorization is pending.")
WALL: Final = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
ESCAPE: Final = "\x1b]0;owned\x07\x1b[2J"  # what a terminal would obey


@dataclass(frozen=True, slots=True)
class DevicePlay:
    """One response of a route: JSON, bytes as they are, or with status 0 a cut connection."""

    at: str  # code, poll or token
    status: int = 0
    body: Json = b""
    count: int = 1  # for so many requests


@dataclass(slots=True)
class Asked:
    """A code that was handed out, and what became of it."""

    device_id: str
    account_id: str = ""  # of whoever has approved
    plan: str = "plus"
    is_denied: bool = False


class Issuer:
    """Codes that were handed out, and what is done badly."""

    def __init__(self, backend: CodexBackend) -> None:
        self.backend = backend
        self.plays: list[DevicePlay] = []
        self.codes: dict[str, Asked] = {}  # by what a person enters
        self.grants: dict[str, Asked] = {}  # by authorization code, until it is used
        self.times: list[float] = []  # of the polls, in trio's time
        self.code_field = "user_code"
        self.interval: Json = "5"
        self.expires_at: Json = None
        self.claims: dict[str, Json] = {}  # of the id token, in the place of its own
        self.on_poll: Callable[[Asked], None] | None = None  # what a person does meanwhile
        backend.handlers |= {
            ("POST", CODE_PATH): self.hand_out,
            ("POST", POLL_PATH): self.poll,
            ("POST", PAGE_PATH): self.enter,
            ("POST", TOKEN_PATH): self.redeem,
        }

    async def plays_at(self, wire: Wire, at: str) -> bool | None:
        """Play what comes next at a route; None if that is nothing."""
        for index, play in enumerate(self.plays):
            if play.at == at:
                left = [DevicePlay(at, play.status, play.body, play.count - 1)]
                self.plays[index : index + 1] = left if play.count > 1 else []
                if play.status:
                    await wire.answer(Answer(play.status, play.body))
                return bool(play.status)
        return None

    async def hand_out(self, wire: Wire, seen: Seen) -> bool:
        """A new code."""
        played = await self.plays_at(wire, "code")
        if played is not None:
            return played
        if seen.body != {"client_id": CLIENT_ID}:
            raise Refused(Answer(400, error_body("invalid_client", "Unknown client.")))
        number = len(self.codes) + 1
        code = f"ABCD-{number:05}"
        self.codes[code] = Asked(f"deviceauth_{number}")
        body = {self.code_field: code, "device_auth_id": f"deviceauth_{number}"}
        if self.interval is not None:
            body["interval"] = self.interval
        if self.expires_at is not None:
            body["expires_at"] = self.expires_at
        await wire.answer(Answer(200, body))
        return True

    async def poll(self, wire: Wire, seen: Seen) -> bool:
        """Whether somebody has entered the code."""
        self.times.append(trio.current_time())
        asked = self.codes.get(str(seen.body["user_code"]))
        if asked is None or asked.device_id != seen.body["device_auth_id"]:
            raise Refused(Answer(403, error_body("deviceauth_authorization_unknown", "Unknown.")))
        if self.on_poll is not None:
            self.on_poll(asked)
        played = await self.plays_at(wire, "poll")
        if played is not None:
            return played
        if asked.is_denied:
            raise Refused(Answer(403, error_body("access_denied", "The user has refused.")))
        if not asked.account_id:
            raise Refused(Answer(403, PENDING))
        grant = f"ac-{asked.device_id}"
        self.grants[grant] = asked
        challenge = {"code_challenge": "c", "code_verifier": f"verifier-{asked.device_id}"}
        await wire.answer(Answer(200, {"authorization_code": grant, **challenge}))
        return True

    async def enter(self, wire: Wire, seen: Seen) -> bool:
        """What a person does on the page, as a form."""
        asked = self.codes[seen.body["user_code"]]
        asked.account_id, asked.plan = seen.body["account"], seen.body.get("plan", "plus")
        await wire.answer(Answer(200, b"ok\n"))
        return True

    async def redeem(self, wire: Wire, seen: Seen) -> bool:
        """Tokens for an authorization code, once; a refresh is the backend's."""
        form = seen.body if isinstance(seen.body, dict) else {}
        if form.get("grant_type") != "authorization_code":
            return await self.backend.renew(wire, seen)
        played = await self.plays_at(wire, "token")
        if played is not None:
            return played

        asked = self.grants.pop(str(form.get("code")), None)
        callback = f"://{seen.headers['host']}/deviceauth/callback"
        wanted = {
            "client_id": CLIENT_ID,
            "code_verifier": f"verifier-{asked.device_id if asked else ''}",
        }
        is_form = seen.headers["content-type"] == "application/x-www-form-urlencoded"
        is_good = is_form and form.get("redirect_uri", "").endswith(callback)
        if asked is None or not is_good or any(form.get(key) != wanted[key] for key in wanted):
            raise Refused(Answer(400, {"error": "invalid_grant"}))
        await wire.answer(Answer(200, self.issue(asked)))
        return True

    def issue(self, asked: Asked) -> Json:
        """A new login of whoever has approved, which the backend lets in."""
        expires_at = self.backend.clock() + TOKEN_SECONDS
        access = make_token(asked.account_id, asked.plan, expires_at, asked.device_id)
        refresh = f"rt-{asked.account_id}-{asked.device_id}-1"
        self.backend.admit(Login(asked.account_id, access, refresh, asked.plan))
        id_token = make_token(asked.account_id, asked.plan, expires_at, "id")
        if self.claims:
            id_token = f"{encode_part({'alg': 'none'})}.{encode_part(self.claims)}.c2ln"
        return {
            "id_token": id_token,
            "access_token": access,
            "refresh_token": refresh,
            "expires_in": TOKEN_SECONDS,
        }


class FilesAtOnce(pooler.Files):
    """Without threads: in virtual time nobody would wait for them."""

    async def run(self, _seconds_max: float, call: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override] # any call  # noqa: ANN401
        await trio.lowlevel.checkpoint()
        return call(*args)


@dataclass(slots=True)
class Desk:
    """One login by device code, and what it has shown."""

    issuer: Issuer
    path: Path
    nursery: trio.Nursery
    shown: list[str] = field(default_factory=list)
    dial_plays: list[Exception] = field(default_factory=list)  # each instead of a connection
    unix_start: float = 1_800_000_000.0

    def unix_now(self) -> float:
        return self.unix_start + trio.current_time()

    async def dial(self, _url: object, _tls: object) -> trio.abc.Stream:
        if self.dial_plays:
            raise self.dial_plays.pop(0)
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self.issuer.backend.serve, theirs)
        return ours

    @property
    def login(self) -> pooler.DeviceLogin:
        url = pooler.BaseUrl(False, "127.0.0.1", 9, TOKEN_PATH)
        login = pooler.Login("one", self.path)
        files = FilesAtOnce()
        return pooler.DeviceLogin(login, url, self.dial, files, self.unix_now, self.show)

    def show(self, *lines: str) -> None:
        self.shown += lines

    async def run(self) -> dict[str, Json]:
        """Log in; the file as it is then.  Raises: LoginNeeded."""
        await self.login.run()
        saved: dict[str, Json] = json.loads(self.path.read_bytes())
        return saved

    async def refused(self) -> str:
        """Why there is no login; nothing of one may be left."""
        try:
            await self.login.run()
        except pooler.LoginNeeded as error:
            assert set(self.left) <= {f"{self.path.name}.lock"}
            return str(error)
        raise AssertionError("it has logged in")

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir())


def approving(account_id: str, after: int = 1, plan: str = "plus") -> Callable[[Asked], None]:
    """A person who approves before the poll with this number."""
    count = 0

    def approve(asked: Asked) -> None:
        nonlocal count
        count += 1
        if count >= after:
            asked.account_id, asked.plan = account_id, plan

    return approve


def iso(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat()


@asynccontextmanager
async def opened_device_desk(folder: Path) -> AsyncIterator[Desk]:
    """A desk whose login is not there yet, nor its folder."""
    async with trio.open_nursery() as nursery:
        desk = Desk(Issuer(CodexBackend()), folder / "accounts" / "one.json", nursery)
        desk.issuer.backend.clock = desk.unix_now
        yield desk
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fake issuer of ChatGPT logins on loopback.")
    parser.add_argument("--port", type=int, default=0)
    trio.run(run, parser.parse_args().port, Issuer(CodexBackend()).backend)
