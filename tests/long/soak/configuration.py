"""The pools.json of the soak, and what its reloads make of it.  (No claims.)"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.long.soak.clients import KEYS, OPERATOR, Ledger
from tests.long.soak.upstreams import API_KEYS, CODEX_MODEL, MODEL
from tests.support.limits import settable

Json = Any
CODEX_ACCOUNTS: Final = ("acct-1", "acct-2", "acct-3", "acct-4")
DRAIN_SECONDS: Final = 3.0
SMALL: Final = {
    "records_max": 200,
    "pins_max": 100,
    "response_pins_max": 200,
    "cooldown_seconds": 1,
    "untried_seconds_max": 1,
    "demotion_seconds": 1,
    "first_event_seconds_max": 5,
    "between_events_seconds_max": 5,
    "unary_seconds_max": 8,
    "drain_seconds_max": DRAIN_SECONDS,
}


@dataclass
class Configuration:
    """Writes the file as it is first, and as each reload finds it.

    `more` is added to what it has (of accounts, pools and the rest), `limits` are its limits.
    """

    path: Path
    ledger: Ledger
    openai_origin: str = ""
    codex_origin: str = ""
    limits: Mapping[str, float] = field(default_factory=lambda: SMALL)
    more: dict[str, Json] = field(default_factory=dict)

    def describe(self, *, has_brief: bool = True, paused: tuple[str, ...] = ()) -> dict[str, Json]:
        accounts: dict[str, Json] = {
            name: {
                "type": "openai",
                "base_url": f"{self.openai_origin}/v1",
                "api_key": key,
                "models": [MODEL],
                "concurrent": 64,
            }
            for name, key in API_KEYS.items()
        }
        # Nobody listens there: each try is a refused connection.
        dark = {"base_url": "http://127.0.0.1:9/v1", "api_key": "dark-canary-0123456789"}
        accounts["dark"] = {"type": "openai", "models": [MODEL], **dark}
        for name in CODEX_ACCOUNTS:
            accounts[name] = self.codex_account(name)
        for name in paused:
            accounts[name]["paused"] = True

        brief = {"brief": KEYS["brief"]} if has_brief else {}
        pools: dict[str, Json] = {
            "open": {
                "accounts": [*API_KEYS, "dark"],
                "routing": "soonest_reset",
                "keys": {"open": KEYS["open"], **brief},
            },
            "codex": {"accounts": list(CODEX_ACCOUNTS), "keys": {"codex": KEYS["codex"]}},
        }
        return {
            "listen": "127.0.0.1:0",
            "operators": {"me": OPERATOR},
            **self.more,
            "accounts": accounts | self.more.get("accounts", {}),
            "pools": pools | self.more.get("pools", {}),
            "limits": settable(self.limits),
        }

    def codex_account(self, name: str) -> dict[str, Json]:
        return {
            "type": "codex",
            "auth_file": f"{name}.json",
            "models": [CODEX_MODEL],
            "base_url": f"{self.codex_origin}/backend-api/codex",
            "concurrent": 64,
        }

    def write(self, content: dict[str, Json]) -> None:
        self.path.write_text(json.dumps(content))

    ############ what a reload finds

    def broken(self) -> None:
        self.path.write_text('{"accounts": {"one": ')

    def without_key(self) -> None:
        self.ledger.brief_changed_at = time.monotonic()
        self.ledger.is_brief_gone = True
        self.write(self.describe(has_brief=False))

    def with_pause(self) -> None:
        self.bring_key_back()
        paused = ("o2", "acct-2")
        self.ledger.paused_at.update(dict.fromkeys(paused, float("inf")))
        self.write(self.describe(paused=paused))

    def rotated(self) -> None:
        self.whole()

    def whole(self) -> None:
        self.bring_key_back()
        for name in self.ledger.paused_at:
            self.ledger.paused_at[name] = time.monotonic()
        self.write(self.describe())

    def bring_key_back(self) -> None:
        if self.ledger.is_brief_gone:
            self.ledger.is_brief_gone = False
            self.ledger.brief_changed_at = time.monotonic()
