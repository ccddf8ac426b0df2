"""What upstreams say of an account's trouble, in every form that was seen.  (No claims.)

One trouble may come as a status with a body, with headers that say more; in a stream of either API
before its content or behind it; in a 200 of one piece; and as a message of a WebSocket.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.long.sim_book import Trouble
from tests.long.sim_names import CODEX, private_words
from tests.support.memory_sockets import Json

DAY: Final = 86400
FAMILY: Final = "codex-bengalfox"  # of a model that has a limit of its own
# Of plans: minutes, a week, and the 24 days of a window of 43,200 minutes.
RESETS: Final = (5, 600, 7 * DAY, 24 * DAY)
UNBELIEVED: Final = (-60, 40 * DAY)  # past, or beyond any window
WORDS: Final = (
    "said by the upstream",
    "Your account {0} has a problem",
    "said by the upstream, for organization {1} on requests",
    "said of account {2}",
    "Incorrect key provided: {3}",
)


@dataclass
class Said:
    """A trouble in words: a status, an error object, and headers."""

    trouble: Trouble
    status: int
    error: dict[str, Json]
    headers: list[tuple[str, str]] = field(default_factory=list)
    is_detail: bool = False  # {"detail": ...}, as the backend has it


@dataclass
class Speaker:
    """Who says it, of which model, and when."""

    rng: random.Random
    name: str
    model: str  # as the upstream calls it
    unix_now: float

    @property
    def is_codex(self) -> bool:
        return self.name in CODEX

    def words(self) -> str:
        return self.rng.choice(WORDS).format(*private_words(self.name))

    def draw(self, *, in_head: bool) -> Said:
        """A trouble; `in_head`: it has a status and headers."""
        kinds: list[Callable[[], Said]] = [
            self.plan, self.plan, self.no_reset, self.throttle, self.number, self.refusal,
            self.account, self.account,
        ]  # fmt: skip
        if in_head:
            kinds += [self.forbidden, self.forbidden, self.header_limit]
            kinds += [self.lacks_model, self.lacks_model]
        if in_head and self.is_codex:
            kinds += [self.model_limit] * 3
        return self.rng.choice(kinds)()

    ############ the kinds

    def plan(self) -> Said:
        """Used up until a reset, which may be weeks away."""
        rng, seconds = self.rng, self.rng.choice([*RESETS, *UNBELIEVED])
        error: dict[str, Json] = {"type": "usage_limit_reached", "message": self.words()}
        error["plan_type"] = "plus"
        if rng.random() < 0.5:
            error["resets_at"] = int(self.unix_now) + seconds
        else:
            error["resets_in_seconds"] = seconds
        if rng.random() < 0.5:
            error["code"] = "usage_limit_reached"
        return Said(Trouble("plan", seconds if seconds in RESETS else None), 429, error)

    def no_reset(self) -> Said:
        """Out of credits, as a workspace may be, or of quota."""
        code = self.rng.choice(["insufficient_quota", "usage_limit_reached", "quota_exceeded"])
        headers = [("x-codex-rate-limit-reached-type", "workspace_credits_depleted")]
        return Said(Trouble("plan"), 429, {"code": code, "message": self.words()}, headers)

    def throttle(self) -> Said:
        text, seconds = self.rng.choice(
            [
                ("try again in 1.5s", 1.5), ("try again in 40s", 40.0), ("retry after 6m0s", 360.0),
                ("nothing else", None),
            ]
        )  # fmt: skip
        error = {"code": "rate_limit_exceeded", "message": f"{self.words()}: {text}"}
        return Said(Trouble("throttle", seconds), 429, error)

    def number(self) -> Said:
        """A number as a code, or a type alone (OpenRouter, LiteLLM, vLLM)."""
        marks: Sequence[dict[str, Json]] = (
            {"code": 429}, {"code": "429"}, {"type": "rate_limit_error"}, {"status": 429},
            {"code": "429", "type": "too_many_requests"},
        )  # fmt: skip
        mark = self.rng.choice(marks)
        return Said(Trouble("throttle"), 429, mark | {"message": self.words()})

    def refusal(self) -> Said:
        """A credential that does not count any more."""
        codes = (
            ["token_invalidated", "token_expired"] if self.is_codex else ["invalid_api_key", 401]
        )
        code = self.rng.choice(codes)
        return Said(Trouble("doubt"), 401, {"code": code, "message": self.words()})

    def account(self) -> Said:
        """The account itself is out; seen with more than one status."""
        status, code = self.rng.choice(
            [(402, "deactivated_workspace"), (403, "account_deactivated"), (402, "402"),
             (403, "invalid_workspace_selected"), (400, "account_suspended")]
        )  # fmt: skip
        error: dict[str, Json] = {"code": int(code) if code == "402" else code}
        said = Said(Trouble("refused"), status, error | {"message": self.words()})
        said.is_detail = code.startswith("invalid_workspace")
        return said

    def forbidden(self) -> Said:
        return Said(Trouble("forbidden"), 403, {"message": self.words()}, is_detail=True)

    def header_limit(self) -> Said:
        """Only headers say when it is over."""
        name, value, seconds = self.rng.choice(
            [("retry-after", "40", 40.0), ("x-ratelimit-reset-requests", "6m0s", 360.0)]
        )
        headers = [(name, value), ("x-ratelimit-remaining-requests", "0")]
        error = {"code": "rate_limit_exceeded", "message": self.words()}
        return Said(Trouble("throttle", seconds), 429, error, headers)

    def lacks_model(self) -> Said:
        if self.is_codex:
            text = f"The '{self.model}' model is not supported when using Codex with a ChatGPT "
            text += "account."
            return Said(Trouble("lacks model"), 400, {"message": text}, is_detail=True)
        error = {"code": "model_not_found", "message": f"The model {self.model} does not exist"}
        return Said(Trouble("lacks model"), self.rng.choice([400, 404]), error)

    def model_limit(self) -> Said:
        """The limit of a model that has its own; the plan has room."""
        seconds = self.rng.choice([600, 5 * DAY])
        end = str(int(self.unix_now) + seconds)
        headers = window_headers("codex", 4, str(int(self.unix_now) + 9000), 300)
        headers += window_headers(FAMILY, 100, end, 10080)
        headers.append((f"x-{FAMILY}-limit-name", self.model))
        if self.rng.random() < 0.5:
            headers.append(("x-codex-active-limit", FAMILY))
        error = {
            "type": "usage_limit_reached",
            "message": self.words(),
            "resets_in_seconds": seconds,
        }
        return Said(Trouble("model limit", seconds), 429, error, headers)


def window_headers(
    family: str, percent: float, ends_at: str, minutes: int
) -> list[tuple[str, str]]:
    """The headers that report a window (F33)."""
    return [
        (f"x-{family}-primary-used-percent", str(percent)),
        (f"x-{family}-primary-window-minutes", str(minutes)),
        (f"x-{family}-primary-reset-at", ends_at),
    ]


def window_event(percent: float, ends_at: float, minutes: int) -> dict[str, Json]:
    """The event that does."""
    window = {"used_percent": percent, "window_minutes": minutes, "reset_at": int(ends_at)}
    rates = {"allowed": percent < 100, "limit_reached": percent >= 100, "primary": window}
    return {"type": "codex.rate_limits", "plan_type": "plus", "rate_limits": rates}


def body_of(said: Said, rng: random.Random) -> dict[str, Json]:
    """The body of a refusal."""
    if said.is_detail:
        error = dict(said.error)
        message = error.get("message", "")
        return {"detail": error if "code" in error or rng.random() < 0.3 else message}
    return {"error": said.error}
