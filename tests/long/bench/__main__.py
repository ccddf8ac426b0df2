"""Runs the bench: rounds of every measurement on every contestant in turn, then one table."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.long.bench import measures
from tests.long.bench.measures import FULL, QUICK, Scale, Server

CONTESTANTS: Final = ("pooler", "reverse", "relay")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.  The bound is on `pooler`, or on its ratio to `against`."""

    title: str
    at_least: float | None = None
    at_most: float | None = None
    against: str | None = None
    is_best: bool = False  # the best run counts: the first one compiles

    def summary(self, values: Sequence[float]) -> float:
        return min(values) if self.is_best else statistics.median(values)

    def is_met(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )

    @property
    def bound(self) -> str:
        if self.at_least is None and self.at_most is None:
            return ""
        sign, value = (">=", self.at_least) if self.at_most is None else ("<=", self.at_most)
        return f"{sign} {value:g}" + (f" x {self.against}" if self.against else "")


REQUESTS: Final = Row("requests / CPU-s", at_least=0.6, against="reverse")
BURST: Final = Row("burst events / CPU-s", at_least=0.6, against="reverse")
PACED: Final = Row("paced CPU us / event", at_most=1.5, against="reverse")
FIRST_EVENT: Final = Row("first event p50 ms")
MEMORY: Final = Row("RSS MB")
STREAM_MEMORY: Final = Row("RSS MB per 1000 streams", at_most=20)
COLD_START: Final = Row("cold start s")
IMPORT: Final = Row("import CPU s", at_most=1.4, against="trio, h11", is_best=True)

Measure = Callable[[Server, Scale], Coroutine[None, None, float]]
MEASURES: Final[Sequence[tuple[Row, Measure]]] = (
    (STREAM_MEMORY, measures.mb_per_1000_streams),  # first: the process must be fresh
    (REQUESTS, measures.requests_per_cpu_second),
    (BURST, measures.burst_events_per_cpu_second),
    (PACED, measures.paced_cpu_us_per_event),
    (FIRST_EVENT, measures.first_event_ms),
)
ROWS: Final = (REQUESTS, BURST, PACED, FIRST_EVENT, MEMORY, STREAM_MEMORY, COLD_START, IMPORT)
Figures = dict[Row, dict[str, list[float]]]


def run_round(names: Sequence[str], scale: Scale, folder: Path, figures: Figures) -> None:
    """Start every contestant, measure each figure on one after the other, end them."""
    with contextlib.ExitStack() as stack:
        port = measures.free_port()
        arguments = ["-m", "tests.long.bench.upstream", str(port)]
        upstream = stack.enter_context(
            measures.running(arguments, port, folder / "upstream.log")
        )  # fmt: skip
        servers = {}
        for name in names:
            port = measures.free_port()
            arguments = measures.arguments_of(name, port, upstream.port, folder)
            servers[name] = stack.enter_context(
                measures.running(arguments, port, folder / f"{name}.log")
            )
            figures[COLD_START][name].append(servers[name].cold_start_seconds)
            figures[MEMORY][name].append(servers[name].memory_mb())
        for row, measure in MEASURES:
            for name, server in servers.items():
                figures[row][name].append(asyncio.run(measure(server, scale)))
        direct = asyncio.run(measures.first_event_ms(upstream, scale))
        figures[FIRST_EVENT]["direct"].append(direct)


def measure_imports(scale: Scale, folder: Path, figures: Figures) -> None:
    for _ in range(scale.imports):
        for modules in ("trio, h11", "pooler"):
            figures[IMPORT][modules].append(measures.import_cpu_seconds(modules, folder))


def judged(row: Row, values: dict[str, list[float]]) -> tuple[float, bool]:
    """The pooler's figure for the bound, and whether it is met.

    A ratio is the median of the rounds' ratios: what slowed a whole round cancels out.
    """
    if row.is_best:
        assert row.against is not None
        value = row.summary(values["pooler"]) / row.summary(values[row.against])
    elif row.against is not None:
        pairs = zip(values["pooler"], values[row.against], strict=True)
        value = statistics.median(ours / theirs for ours, theirs in pairs)
    else:
        value = row.summary(values["pooler"])
    return value, row.is_met(value)


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def report(figures: Figures) -> bool:
    """Print the table; True when every bound is met."""
    columns = (*CONTESTANTS, "direct", "trio, h11")
    titles = ["", *columns, "pooler is", "bound", ""]
    lines = [titles]
    is_well = True
    for row in ROWS:
        values = figures[row]
        line = [row.title]
        line += [shown(row.summary(values[c])) if values.get(c) else "" for c in columns]
        if row.bound and values.get("pooler"):
            value, is_met = judged(row, values)
            ratio = f"{value:.2f}" + (f" x {row.against}" if row.against else "")
            line += [ratio, row.bound, "ok" if is_met else "MISSED"]
            is_well = is_well and is_met
        else:
            line += ["", "", ""]
        lines.append(line)
    widths = [max(len(line[index]) for line in lines) for index in range(len(titles))]
    for line in lines:
        cells = [text.rjust(width) for text, width in zip(line, widths, strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return is_well


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short, and no judgement")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    parser.add_argument("--only", choices=CONTESTANTS, action="append", help="for development")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    names = options.only or CONTESTANTS
    figures: Figures = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds or scale.rounds):
            turn = number % len(names)  # nobody is always first
            run_round([*names[turn:], *names[:turn]], scale, Path(folder), figures)
            print(f"round {number + 1} done", file=sys.stderr)
        if "pooler" in names:
            measure_imports(scale, Path(folder), figures)
    is_well = report(figures)
    return 0 if is_well or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
