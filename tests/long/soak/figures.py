"""What the soak measures, and how its figures and the log are judged.  (No claims.)"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import trio

from tests.long.soak.clients import OPERATOR
from tests.support.memory_sockets import Client, request

if TYPE_CHECKING:
    from tests.support.memory_sockets import MemorySocket

# A leak of 100 bytes a request at 3,000 requests a minute is 290 KiB/min; what the allocator
# itself moves in some minutes is less than the half.  Over short runs a slope says nothing: the
# caches (records, pins) and the arenas are still filling up.
MEMORY_SLOPE_MAX: Final = 150.0  # KiB a minute
DESCRIPTOR_SLOPE_MAX: Final = 1.0  # a minute; a leak of one in a thousand requests would be 3
FLIGHT_SLOPE_MAX: Final = 1.0  # a minute
SLOPE_MINUTES_MIN: Final = 5.0  # of samples, for a slope to be judged


@dataclass
class Verdict:
    text: str
    is_good: bool


@dataclass
class Findings:
    """The lines of a report, and what is wrong."""

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def check(self, what: bool, why: str) -> None:
        if not what:
            self.failures.append(why)

    def verdict(self) -> Verdict:
        self.lines.append("verdict: " + ("; ".join(self.failures) or "good"))
        return Verdict("\n".join(self.lines) + "\n", not self.failures)


@dataclass
class Sample:
    minute: float
    memory: float  # KiB
    descriptors: float
    in_flight: float
    connections: float
    websockets: float


async def take_sample(pid: int, address: tuple[str, int], minute: float) -> Sample:
    """What a process holds now.  Raises: OSError and others, of one that ends."""
    folder = Path(f"/proc/{pid}")
    status = (folder / "status").read_text()
    memory = int(status.partition("VmRSS:")[2].split()[0])
    descriptors = len(list((folder / "fd").iterdir()))
    async with await trio.open_tcp_stream(*address) as stream:
        headers = [("Accept", "application/json"), ("Connection", "close")]
        raw = request("GET", "/admin", key=OPERATOR, headers=headers)
        shown = (await Client(cast("MemorySocket", stream)).ask(raw)).json()
    counts = (shown["in_flight"], shown["connections"], shown["websockets"])
    return Sample(minute, memory, descriptors, *counts)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares."""
    count = len(points)
    if count < 2:
        return 0.0
    x_mean = sum(x for x, _ in points) / count
    y_mean = sum(y for _, y in points) / count
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0


def judge_slopes(samples: Sequence[Sample], warm: float, found: Findings) -> None:
    """Nothing grows in the samples after the minute `warm`."""
    kept = [one for one in samples if one.minute >= warm]
    minutes = kept[-1].minute - kept[0].minute if kept else 0.0
    is_judged = minutes >= SLOPE_MINUTES_MIN
    total = f"samples: {len(samples)}, {len(kept)} after a warm-up to minute {warm:.1f}"
    found.lines.append(total)
    for name, bound in (
        ("memory", MEMORY_SLOPE_MAX),
        ("descriptors", DESCRIPTOR_SLOPE_MAX),
        ("in_flight", FLIGHT_SLOPE_MAX),
        ("connections", FLIGHT_SLOPE_MAX),
        ("websockets", FLIGHT_SLOPE_MAX),
    ):
        values = [getattr(one, name) for one in kept] or [0]
        grows = slope([(one.minute, getattr(one, name)) for one in kept])
        judged = f"at most {bound}" if is_judged else "too short to judge"
        found.lines.append(
            f"  {name}: {grows:+.2f} a minute ({judged}), {min(values):.0f} to "
            f"{max(values):.0f}, last {values[-1]:.0f}"
        )
        found.check(not is_judged or grows <= bound, f"{name} grows by {grows:.2f} a minute")


def read_log(path: Path, *, was_killed: bool = False) -> tuple[list[str], Counter[str]]:
    """The lines that must not be there, and how often each event is.

    Of a process that was killed the last line may be cut.
    """
    bad, events = [], Counter[str]()
    text = path.read_text(errors="replace")
    lines = text.split("\n")[:-1] if was_killed else text.splitlines()
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            bad.append(line[:300])
            continue
        events[f"{told.get('level')} {told.get('event')}"] += 1
        is_ours = told["event"] == "reload refused"  # a broken file: it must be told
        if (told["level"] == "error" and not is_ours) or told["event"] == "bug":
            bad.append(line[:300])
    return bad, events


def find_canaries(paths: Sequence[Path], wanted: Sequence[str]) -> list[str]:
    """Which of the texts are in which files."""
    texts = {path.name: path.read_text(errors="replace") for path in paths}
    return [f"{name}: {one[:24]}" for name, text in texts.items() for one in wanted if one in text]
