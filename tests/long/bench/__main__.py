"""Runs the bench: rounds of every measurement on every contestant in turn, then one table.

Each program has a core of its own; the load and the upstream share the other one.  A ratio is the
median of the rounds' ratios to the aiohttp proxy: what slowed a whole round cancels out.  Goals are
for `pooler`.  System calls are counted by `strace -c -f`, in processes that nothing else measures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.long.bench import measures
from tests.long.bench.measures import FULL, QUICK, SMALLEST, Scale, Server
from tests.support.paths import ROOT

CONTESTANTS: Final = ("pooler", "aiohttp", "relay", "minimal")
BASE: Final = "aiohttp"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.  The goal is for the ratio to aiohttp, or for the figure itself."""

    title: str
    at_least: float | None = None
    at_most: float | None = None
    is_ratio: bool = True

    def is_met(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is None or value <= self.at_most

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"


Measure = Callable[[Server, Scale], Awaitable[float]]
Count = Callable[[Server, Path], Awaitable[float]]

MEMORY: Final = Row("MB per 1,000 streams", at_most=0.7)
ALONE: Final = Row("requests / CPU-s, 1 connection", at_least=0.6)
TOGETHER: Final = Row("requests / CPU-s, 32 connections", at_least=0.6)
TOGETHER_TO_ALONE: Final = Row("requests, 32 to 1 connection", at_least=1.0, is_ratio=False)
FIRST_EVENT: Final = Row("added ms to first event, p50 of 32", at_most=1.2)
ABORT: Final = Row("abort to upstream closed, ms", at_most=1.2)
COLD: Final = Row("cold start, CPU s", at_most=0.6)
COLD_OPERATORS: Final = Row("cold start with operators, CPU s", at_most=0.6)

MEASURES: Final[Sequence[tuple[Row, Measure]]] = (
    (MEMORY, measures.mb_per_1000_streams),  # first: the process must be fresh
    (Row("agent's turn, CPU ms", at_most=1.2), measures.turn_ms),
    (Row("paced event, CPU us", at_most=1.15), measures.paced_cpu_us_per_event),
    (Row("burst events / CPU-s", at_least=1.1), measures.burst_events_per_cpu_second),
    (ALONE, measures.requests_alone),
    (TOGETHER, measures.requests_together),
    (Row("150 KB body, CPU ms"), measures.small_body),
    (Row("150 KB body, ChatGPT account"), measures.small_body_chatgpt),
    (Row("1 MB body, CPU ms", at_most=3), measures.large_body),
    (Row("1 MB body, ChatGPT account", at_most=7), measures.large_body_chatgpt),
    (FIRST_EVENT, measures.first_event_ms),
)
COUNTS: Final[Sequence[tuple[Row, Count]]] = (
    (Row("system calls / event"), measures.calls_per_event),
    (Row("system calls / request"), measures.calls_per_request),
    (Row("Trio waits / event", is_ratio=False), measures.steps_per_event),
    (Row("JSON passes / body", is_ratio=False), measures.parses_per_body),
    (Row("JSON passes, ChatGPT account", is_ratio=False), measures.parses_per_body_chatgpt),
)
ROWS: Final = (
    *(row for row, _ in MEASURES),
    TOGETHER_TO_ALONE,
    ABORT,
    COLD,
    COLD_OPERATORS,
    *(row for row, _ in COUNTS),
)
Figures = dict[Row, dict[str, list[float]]]


def run_round(programs: dict[str, str], scale: Scale, folder: Path, figures: Figures) -> None:
    """Start every contestant, measure each figure on one after the other, end them."""
    with contextlib.ExitStack() as stack:
        port = measures.free_port()
        arguments = ["-m", "tests.long.bench.upstream", str(port)]
        log = folder / "upstream.log"
        core = measures.CORES[-1]
        upstream = stack.enter_context(measures.running(arguments, port, log, core))
        servers = {}
        for name, program in programs.items():
            with measures.contestant(program, port, folder, has_operators=True) as server:
                figures[COLD_OPERATORS][name].append(asyncio.run(measures.cold_start(server)))
            servers[name] = stack.enter_context(measures.contestant(program, port, folder))
            figures[COLD][name].append(asyncio.run(measures.cold_start(servers[name])))

        for row, measure in MEASURES:
            for name, server in servers.items():
                figures[row][name].append(asyncio.run(run(measure(server, scale))))
        direct = asyncio.run(measures.first_event_ms(upstream, scale))
        for name, server in servers.items():
            figures[FIRST_EVENT][name][-1] -= direct
            rate = figures[TOGETHER][name][-1] / figures[ALONE][name][-1]
            figures[TOGETHER_TO_ALONE][name].append(rate)
            wait = measures.abort_ms(server, scale, port)
            figures[ABORT][name].append(asyncio.run(wait))


async def run(figure: Awaitable[float]) -> float:
    return await figure


def count_calls(programs: dict[str, str], folder: Path, figures: Figures) -> None:
    """Count, on processes of their own, what is counted and not measured."""
    port = measures.free_port()
    arguments = ["-m", "tests.long.bench.upstream", str(port)]
    with measures.running(arguments, port, folder / "upstream.log", measures.CORES[-1]):
        for name, program in programs.items():
            counts = folder / "counts.json"
            with (
                measures.contestant(program, port, folder) as plain,
                measures.contestant(program, port, folder, counts) as counted,
            ):
                for row, count in COUNTS:
                    server = plain if row.is_ratio else counted
                    figures[row][name].append(asyncio.run(run(count(server, folder))))


def ratios(values: dict[str, list[float]], name: str) -> list[float]:
    """Of each round, the figure of `name` by that of aiohttp."""
    pairs = zip(values[name], values[BASE], strict=True)
    return [value / base if base else float("nan") for value, base in pairs]


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_spread(values: Sequence[float]) -> str:
    """The median, and half of the distance between the least and the greatest, in per cent."""
    median = statistics.median(values)
    if len(values) == 1 or median == 0:
        return shown(median)
    spread = (max(values) - min(values)) / 2 / abs(median)
    return f"{shown(median)} ±{spread:.0%}"


def line_of(row: Row, values: dict[str, list[float]], names: Sequence[str]) -> list[str]:
    """The cells of a line: figures, ratios to aiohttp, the goal and whether `pooler` meets it."""
    line = [row.title, *(with_spread(values[name]) for name in names)]
    judged = values["pooler"]
    for name in names:
        if name == BASE:
            continue
        ratio = ratios(values, name) if row.is_ratio else []
        line.append(f"{statistics.median(ratio):.2f}" if ratio else "")
        if name == "pooler" and ratio:
            judged = ratio
    if row.goal:
        is_met = row.is_met(statistics.median(judged))
        return [*line, row.goal, "OK" if is_met else "missed"]
    return [*line, "", ""]


def report(figures: Figures, names: Sequence[str]) -> None:
    """Print the table."""
    by_base = [f"{name}/{BASE}" for name in names if name != BASE]
    lines = [["", *names, *by_base, "goal", ""]]
    lines += [line_of(row, figures[row], names) for row in ROWS]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    for line in lines:
        cells = [text.rjust(width) for text, width in zip(line, widths, strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip())


def warm_up(programs: dict[str, str], folder: Path) -> None:
    """Start each program once, so that no cold start compiles modules."""
    for program in programs.values():
        with measures.contestant(program, measures.free_port(), folder, has_operators=True):
            pass


def programs_of(against: Path | None) -> dict[str, str]:
    """The contestants by name, and what `launch` is to start for each."""
    programs = {name: name for name in CONTESTANTS}
    programs["pooler"] = str(ROOT)
    if against is not None:
        folder = against if against.is_dir() else against.parent
        assert (folder / "pooler.py").is_file(), f"no pooler.py in {folder}"
        programs = {"pooler": programs.pop("pooler"), "against": str(folder.resolve()), **programs}
    return programs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--smallest", action="store_true", help="only to see that all of it runs")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    parser.add_argument("--against", type=Path, help="another pooler.py, measured in the same run")
    parser.add_argument("--json", type=Path, help="a file for all figures of all rounds")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    if options.smallest:
        scale = SMALLEST
    programs = programs_of(options.against)
    names = list(programs)
    os.sched_setaffinity(0, {measures.CORES[-1]})
    figures: Figures = defaultdict(functools.partial(defaultdict, list))
    with tempfile.TemporaryDirectory() as folder:
        warm_up(programs, Path(folder))
        rounds = options.rounds or scale.rounds
        for number in range(rounds):
            first = number % len(names)  # nobody is always first
            turn = [*names[first:], *names[:first]]
            run_round({name: programs[name] for name in turn}, scale, Path(folder), figures)
            print(f"round {number + 1} of {rounds} done", file=sys.stderr)
        count_calls(programs, Path(folder), figures)
    report(figures, names)
    if options.json is not None:
        content = {row.title: figures[row] for row in ROWS}
        options.json.write_text(json.dumps(content, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
