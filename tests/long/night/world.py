"""The world of the night: upstreams, the token endpoint, and the replicas with one pools.json.

(No claims.)
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from pooler import REFRESH_URL_VARIABLE
from tests.deployment.snippets import NAME, free_port
from tests.long.soak.clients import Ledger
from tests.long.soak.configuration import CODEX_ACCOUNTS, SMALL, Configuration
from tests.long.soak.figures import Sample
from tests.long.soak.process import Served, start_server
from tests.long.soak.run import listen
from tests.long.soak.upstreams import MODEL, OpenAiUpstream, SoakBackend, Told
from tests.support.codex_backend import Seen, Wire, make_auth_file
from tests.support.codex_turns import TokenPlay

# Accounts with which nothing goes wrong, so that nothing is a reason for a session to move.
CALM_KEYS: Final = {name: f"calm-key-canary-{name}-0123456789" for name in ("open", "codex")}
CALM_API_KEYS: Final = {f"calm-o{n}": f"calm-account-canary-{n}-0123456789" for n in range(1, 5)}
CALM_LOGINS: Final = ("calm-c1", "calm-c2", "calm-c3", "calm-c4")
TOKEN_FAULT_SHARE: Final = 0.05
MARGIN_SECONDS: Final = 300  # before its expiry a token is renewed
DRAIN_SECONDS: Final = 30.0  # longer than any request takes: all must finish
LIMITS: Final = SMALL | {"drain_seconds_max": DRAIN_SECONDS}
# What the reloads make of the limits, one after the other.
CHANGES: Final[tuple[dict[str, float], ...]] = (
    {"records_max": 150, "queue_seconds_max": 8},
    {"key_streams_max": 48, "comment_seconds": 2},
    {"attempts_max": 4, "first_event_seconds_max": 6},
    {"between_events_seconds_max": 6, "account_streams_max": 32},
    {},
)


class TokenEndpoint:
    """Each refresh token works once; it fails now and then, and then spends none."""

    def __init__(self, backend: SoakBackend, told: Told, seed: str) -> None:
        self.backend, self.told = backend.backend, told
        self.random = random.Random(f"{seed} tokens")
        self.outcomes: Counter[str] = Counter()
        self.asked: set[str] = set()  # tokens that wait for their answer
        self.renew = self.backend.handlers["POST", "/oauth/token"]
        self.backend.handlers["POST", "/oauth/token"] = self.serve

    async def serve(self, wire: Wire, seen: Seen) -> bool:
        token = str(seen.body.get("refresh_token")) if isinstance(seen.body, dict) else ""
        if token in self.backend.spent or token in self.asked:
            self.outcomes["sent twice"] += 1
            login = token.rpartition("-")[0]
            self.told.complaints.append(f"a refresh token of {login} was sent twice")
        elif self.random.random() < TOKEN_FAULT_SHARE:
            play = self.random.choice([TokenPlay(status=0), TokenPlay(500), TokenPlay(503)])
            self.backend.token_plays.append(play)
            self.outcomes[f"failed with {play.status or 'a cut'}"] += 1
        else:
            self.outcomes["renewed"] += 1
        self.asked.add(token)
        try:
            return await self.renew(wire, seen)
        finally:
            self.asked.discard(token)


@dataclass
class Life:
    """One process of a replica, from its start to its end."""

    replica: str
    log: Path
    began: float  # minutes
    served: Served | None = None
    samples: list[Sample] = field(default_factory=list)
    reloads: Counter[str] = field(default_factory=Counter)
    ended_by: str = ""
    exit_code: int | None = None

    @property
    def process(self) -> trio.Process:
        assert self.served is not None
        return self.served.process


@dataclass
class Replicas:
    """The two, each at an address of its own that a restart does not change."""

    folder: Path
    file: Configuration
    began_at: float = field(default_factory=time.monotonic)
    ports: dict[str, int] = field(default_factory=dict)
    lives: list[Life] = field(default_factory=list)
    up: dict[str, Life] = field(default_factory=dict)

    @property
    def minute(self) -> float:
        return (time.monotonic() - self.began_at) / 60

    async def start(self, name: str) -> Life:
        """All else in the file is one for both; `listen` counts at the start only."""
        port = self.ports.setdefault(name, free_port())
        self.file.more["listen"] = f"127.0.0.1:{port}"
        self.file.whole()
        number = sum(life.replica == name for life in self.lives) + 1
        life = Life(name, self.folder / f"{name}-{number}.log", self.minute)
        self.lives.append(life)
        env = {REFRESH_URL_VARIABLE: f"{self.file.codex_origin}/oauth/token"}
        life.served = await start_server(self.folder, life.log, LIMITS, env)
        self.up[name] = life
        return life

    async def end(self, name: str, how: signal.Signals) -> Life:
        life = self.up.pop(name)
        life.ended_by = how.name
        life.process.send_signal(how)
        with trio.move_on_after(DRAIN_SECONDS + 15):
            life.exit_code = await life.process.wait()
        return life

    async def reload(self, kind: str) -> None:
        """Both read the file again."""
        event = "reload refused" if kind == "broken" else "reloaded"
        for life in self.up.values():
            life.reloads[event] += 1
            life.process.send_signal(signal.SIGHUP)
        for life in self.up.values():
            assert life.served is not None
            await life.served.wait_told(event, life.reloads[event])

    def kill_all(self) -> None:
        for life in self.lives:
            if life.served is not None and life.process.returncode is None:
                life.process.kill()


class Upstreams:
    """Those of the soak, and more accounts at them, whose tokens run out soon and often."""

    def __init__(self, folder: Path, seed: str, renew_seconds: float) -> None:
        self.folder = folder
        self.told, self.ledger = Told(), Ledger()
        self.openai = OpenAiUpstream(self.told)
        self.openai.accounts |= {key: name for name, key in CALM_API_KEYS.items()}
        self.codex = SoakBackend(self.told)
        self.codex.backend.token_seconds = MARGIN_SECONDS + renew_seconds
        self.tokens = TokenEndpoint(self.codex, self.told, seed)
        self.file = Configuration(folder / "pools.json", self.ledger, limits=LIMITS)

    async def start(self, nursery: trio.Nursery) -> None:
        file = self.file
        file.openai_origin = await nursery.start(listen, self.openai.serve)
        file.codex_origin = await nursery.start(listen, self.codex.serve)
        for name in (*CODEX_ACCOUNTS, *CALM_LOGINS):
            expires_at = time.time() + MARGIN_SECONDS + 10
            path = self.folder / f"{name}.json"
            self.codex.backend.admit(make_auth_file(path, name, expires_at=expires_at))

        calm = {
            name: {
                "type": "openai",
                "base_url": f"{file.openai_origin}/v1",
                "api_key": key,
                "models": [MODEL],
            }
            for name, key in CALM_API_KEYS.items()
        }
        calm |= {name: file.codex_account(name) for name in CALM_LOGINS}
        file.more = {
            "hosts": [NAME, "localhost", "127.0.0.1"],
            "state": "state.json",
            "accounts": calm,
            "pools": {
                "calm": {
                    "accounts": list(CALM_API_KEYS),
                    "keys": {"calm": CALM_KEYS["open"]},
                },
                "calm-codex": {
                    "accounts": list(CALM_LOGINS),
                    "keys": {"calm": CALM_KEYS["codex"]},
                },
            },
        }
