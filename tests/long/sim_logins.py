"""Logins in the simulation: their files, the token endpoint, and Codex CLI.  (No claims.)"""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path

from tests.long.sim_ground import Ground
from tests.support.codex_backend import CodexBackend, make_token
from tests.support.codex_turns import Login, Refused
from tests.support.world import (
    FakeUpstream,
    Line,
    Pause,
    error_response,
    json_response,
)


def login_file(login: Login, unix_now: float, expires_at: float) -> bytes:
    """An auth.json, as Codex CLI leaves it."""
    tokens = {
        "id_token": make_token(login.account_id, login.plan, expires_at, "id"),
        "access_token": login.access_token,
        "refresh_token": login.refresh_token,
        "account_id": login.account_id,
    }
    at = datetime.fromtimestamp(unix_now, UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": at}).encode()


def tokens_in(raw: bytes) -> tuple[str, str]:
    """Access and refresh token of an auth.json; ("", "") of anything else."""
    try:
        tokens = json.loads(raw)["tokens"]
        return str(tokens["access_token"]), str(tokens["refresh_token"])
    except (ValueError, KeyError, TypeError):
        return "", ""


class TokenDesk:
    """The token endpoint: each refresh token works once; and the Codex CLI that uses it, too."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.backend = CodexBackend(ground.unix_now)
        self.backend.note_login = self.note_login
        self.newest: dict[str, Login] = {}  # by account
        self.told: set[str] = set()  # refresh tokens whose answer the pooler has got whole
        self.withdrawn = ground.book.withdrawn
        self.secrets: set[str] = set()

    def path_of(self, name: str) -> Path:
        return self.ground.folder / name / "auth.json"

    def log_in(self, name: str, seconds: float) -> None:
        """A new login, whose token ends in so many seconds."""
        expires_at = self.ground.unix_now() + seconds
        access = make_token(f"acct-{name}", "plus", expires_at)
        self.backend.admit(Login(f"acct-{name}", access, f"rt-acct-{name}-1", "plus"))
        self.path_of(name).parent.mkdir(exist_ok=True)
        self.write(name, expires_at, 3600.0)

    def write(self, name: str, expires_at: float, age: float = 0.0) -> None:
        raw = login_file(self.newest[name], self.ground.unix_now() - age, expires_at)
        self.ground.disk.write(self.path_of(name), raw)

    def note_login(self, login: Login) -> None:
        name = login.account_id.removeprefix("acct-")
        self.newest[name] = login
        self.ground.book.note_login(name)
        self.secrets |= {login.access_token, login.refresh_token}

    def rotate(self, name: str) -> None:
        """What a Codex CLI on the same file does, if its refresh token is still good."""
        held = tokens_in(self.path_of(name).read_bytes())[1]
        if held in self.backend.refreshable:
            self.backend.exchange(held)
            self.write(name, self.ground.unix_now() + 10**6)

    def restart(self) -> None:
        """A login that could not be saved is lost with its process."""
        for name, login in self.newest.items():
            path = self.path_of(name)
            fresh = path.with_name(f".{path.name}.new")
            left = [one.read_bytes() for one in (path, fresh) if one.exists()]
            if login.refresh_token not in [tokens_in(raw)[1] for raw in left]:
                self.told = {token for token in self.told if token.split("-")[2] != name}

    async def serve_token(self, upstream: FakeUpstream, line: Line) -> bool:
        """Serve one refresh; return whether the connection stays open."""
        asked = await upstream.read(line)
        if asked is None:
            return False
        rng, held = self.ground.rng, str(asked.json()["refresh_token"])
        name = held.split("-")[2]
        if held in self.told:
            self.ground.complaints.append(f"{name}: a spent refresh token was sent again")
        at = 1.0 if self.ground.is_calm else rng.random()
        self.ground.note("refresh")
        if at < 0.3:
            self.ground.book.note_odd(name)
        if at < 0.06:  # it works, and nobody is told
            with contextlib.suppress(Refused):
                self.backend.exchange(held)
            return False
        if at < 0.14:
            return await upstream.play(error_response(rng.choice([500, 503, 429]), "busy"), line)
        if at < 0.18:
            self.backend.refreshable.pop(held, None)
            self.withdrawn.add(name)
        if at < 0.3 and not await upstream.play([Pause(rng.choice([1, 14, 16, 40]))], line):
            return False
        try:
            answer = self.backend.exchange(held)
        except Refused as refused:
            self.withdrawn.add(name)
            self.ground.book.note_odd(name)
            return await upstream.play(json_response(refused.answer.body, 401), line)
        if not (line.socket.outgoing.is_deaf or at < 0.3):
            self.told.add(held)
        return await upstream.play(json_response(answer), line)
