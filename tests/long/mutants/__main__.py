"""Makes mistakes that a seed chose, one by one, and runs the tests that could find them.

Run: `python -m tests.long.mutants --seed N --count 600 [--section NAME] [--jobs J] [--only ID ...]`

A mutant survives if no quick test that runs its lines fails; the run then ends with 1.  Those of
`equivalent.py` are not made again.  Which tests run which lines is measured once, and kept in a
temporary folder for as long as the sources stay the same.  (No claims.)
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.long.mutants import covering, forks, trial
from tests.long.mutants.covering import Runs, file_of
from tests.long.mutants.draw import DECIDING, Source, draw, named
from tests.long.mutants.equivalent import ARGUED, unfitting
from tests.long.mutants.forks import End, Job, Say
from tests.long.mutants.kinds import Identity, Mutant
from tests.support.paths import POOLER, ROOT

# These tests first; what survives them all meets the rest when everything else is done.
FIRST_TESTS: Final = 400
FIRST_SECONDS: Final = 20.0
FILES_TO_COLLECT: Final = 3  # in each process that imports the source itself

SLOW_TO_IMPORT: Final = ("trio", "h11", "trio_websocket", "jsonschema", "trustme")


def show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Outcome(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    how: str  # "found ...", "hangs", "dies", "survived", "untested", "argued"
    tests: int  # that could find it
    seconds: float

    @property
    def is_lost(self) -> bool:
        return self.how in {"survived", "untested"}


@dataclass
class Campaign:
    """The mutants of a run, and what has become of them."""

    source: Source
    mutants: Sequence[Mutant]
    job_count: int
    folder: Path
    results: Path | None
    is_first_only: bool
    outcomes: dict[Identity, Outcome] = field(default_factory=dict)
    is_sound: dict[str, bool] = field(default_factory=dict)  # tests, without a mistake

    def note(self, outcome: Outcome) -> None:
        identity = outcome.mutant.identity
        self.outcomes[identity] = outcome
        section = self.source.section_of(outcome.mutant)
        show(
            f"{identity.id} {outcome.how} ({outcome.tests} tests, {outcome.seconds:.1f} s)\n"
            f"    {section} {outcome.mutant.first} {identity.place} {identity.kind}"
            f" {identity.occurrence}: {identity.old}  →  {identity.new}"
        )
        if self.results:
            row = [*identity, section, outcome.how, outcome.tests, round(outcome.seconds, 1)]
            with self.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


# Trying them, whichever way they are made.


class Task(NamedTuple):
    """A mutant, or none, and the tests that it has still to meet."""

    mutant: Mutant | None
    tests: list[str]
    test_count: int  # at the start
    is_rest: bool = False  # the first ones have passed


def _how_it_ended(end: End) -> str:
    """What a child said last; with the test that it hung in."""
    if end.how != "hangs":
        return end.how
    tests = [line.removeprefix("runs ") for line in end.lines if line.startswith("runs ")]
    return f"hangs {tests[-1] if tests else ''}"


# What a child does with its task: it says how the mutant ended.
Work = Callable[["Way", Task, Path, Say], None]


class Way:
    """How mutants are tried with their tests in forked processes."""

    def __init__(self, campaign: Campaign, runs: Runs, work: Work, first_files: int) -> None:
        self.campaign, self.runs, self.work = campaign, runs, work
        self.first_files = first_files  # of tests, that a mutant meets first
        self.waiting: deque[Task] = deque()
        self.started: dict[str, Task] = {}
        self.refused: list[Mutant] = []  # they cannot be made in this way

    def try_all(self, mutants: Sequence[Mutant]) -> None:
        """Try each of them, and note what becomes of it."""
        uses = trial.find_uses(self.campaign.source.tree)
        for mutant in mutants:
            tests = trial.tests_of(self.campaign.source, uses, mutant, self.runs)
            if tests:
                self.waiting.append(Task(mutant, tests, len(tests)))
            else:
                self.campaign.note(Outcome(mutant, "untested", 0, 0.0))
        for end in forks.run_jobs(self._next_job, self.campaign.job_count):
            self._take(self._task_of(end), end)

    def _next_job(self) -> Job | None:
        return self._job_of(self.waiting.popleft()) if self.waiting else None

    def _job_of(self, task: Task) -> Job:
        name = str(len(self.started))
        self.started[name] = task
        now = task._replace(tests=self._first(task))
        return Job(name, partial(self.work, self, now, self.campaign.folder / name))

    def _first(self, task: Task) -> list[str]:
        """The tests that a task meets now."""
        if task.is_rest:
            return task.tests
        taken: list[str] = []
        seconds = 0.0
        files = [*dict.fromkeys(map(file_of, task.tests))][: self.first_files]
        for test in task.tests:
            if len(taken) == FIRST_TESTS or seconds > FIRST_SECONDS:
                break
            if file_of(test) in files:
                seconds += self.runs[test].seconds
                taken.append(test)
        return taken

    def _task_of(self, end: End) -> Task:
        shutil.rmtree(self.campaign.folder / end.job.name, ignore_errors=True)
        return self.started[end.job.name]

    def _take(self, task: Task, end: End) -> None:
        """Note what became of a mutant; or what is still to be done with it."""
        assert task.mutant is not None
        how, _, test = end.how.partition(" ")
        if how == "refused":
            self.refused.append(task.mutant)
        elif how == "found" and test in self.runs and not self._is_sound(test):
            others = [one for one in task.tests if one != test]
            self.waiting.append(task._replace(tests=others))
        elif how == "survived" and (rest := self._rest(task)):
            self.waiting.append(task._replace(tests=rest, is_rest=True))
        else:
            self.campaign.note(
                Outcome(task.mutant, _how_it_ended(end), task.test_count, end.seconds)
            )

    def _rest(self, task: Task) -> list[str]:
        """The tests that a mutant meets after those that it has survived."""
        first = {*self._first(task)}
        rest = [one for one in task.tests if one not in first]
        return [] if self.campaign.is_first_only else rest

    def _is_sound(self, test: str) -> bool:
        """Whether a test passes alone, without a mistake."""
        known = self.campaign.is_sound
        if test not in known:
            jobs = deque([self._job_of(Task(None, [test], 1))])
            (end,) = forks.run_jobs(lambda: jobs.popleft() if jobs else None, 1)
            self._task_of(end)
            known[test] = end.how == "survived"
            if not known[test]:
                show(f"without a mistake: {end.how}")
        return known[test]


def work_by_import(way: Way, task: Task, folder: Path, say: Say) -> None:
    """Import the mutated source, and collect the tests."""
    try:
        trial.import_mutated(way.campaign.source, task.mutant)
    except Exception as error:  # noqa: BLE001 - a mistake may raise anything
        say(f"found by the import: {type(error).__name__}")
        return
    trial.collect_and_run(task.tests, way.runs, folder, say)


@dataclass
class Exchanging:
    """The work where everything is imported and collected already: one function's code changes."""

    listener: trial.Listener
    items: dict[str, pytest.Item]
    functions: trial.Functions

    def work(self, way: Way, task: Task, folder: Path, say: Say) -> None:
        source = way.campaign.source
        if task.mutant and not trial.exchange_code(source, self.functions, task.mutant):
            say("refused")
            return
        items = [self.items[test] for test in task.tests]
        self.listener.run_until_failure(items, way.runs, folder, say)


# The processes.


def measure_missing(items: Sequence[pytest.Item], job_count: int) -> Runs:
    """What each test runs: as it is kept, or else measured now."""
    files = [file_of(item.nodeid) for item in items]
    runs, missing = covering.load(files)
    waiting = deque(missing)

    def next_job() -> Job | None:
        if not waiting:
            return None
        file = waiting.popleft()
        own = [item for item in items if file_of(item.nodeid) == file]
        return Job(file, partial(covering.measure, own, trial.Listener.run))

    for end in forks.run_jobs(next_job, job_count):
        show(f"measured {end.job.name}, {end.seconds:.1f} s {end.how[-700:]}")
    return runs | covering.load(missing)[0]


def run_collected(campaign: Campaign, mutants: Sequence[Mutant], kept: Path) -> None:
    """In a process of its own: collect the tests, and try all mutants that are made there."""

    def loop(listener: trial.Listener, session: pytest.Session) -> None:
        functions = trial.live_functions()
        gc.collect()
        gc.freeze()  # forked processes share what nobody writes to
        runs = measure_missing(session.items, campaign.job_count)
        items = {item.nodeid: item for item in session.items}
        runs = {name: run for name, run in runs.items() if name in items}
        way = Way(campaign, runs, Exchanging(listener, items, functions).work, len(items))
        way.try_all(mutants)
        known = campaign.outcomes.values()
        outcomes = [(one.mutant.identity, *one[1:]) for one in known]
        refused = [mutant.identity for mutant in way.refused]
        kept.write_bytes(pickle.dumps((way.runs, outcomes, refused, campaign.is_sound)))

    pytest.main([*trial.PYTEST, "tests"], [trial.Listener(loop)])


def run_campaign(campaign: Campaign) -> None:
    """Try all its mutants: those inside functions first, then those of the import."""
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)
    inside = [one for one in campaign.mutants if one.where.function]
    outside = [one for one in campaign.mutants if not one.where.function]
    kept = campaign.folder / "kept"

    pid = os.fork()
    if pid == 0:
        try:
            run_collected(campaign, inside, kept)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(pid, 0)

    runs, outcomes, refused, is_sound = pickle.loads(kept.read_bytes())  # noqa: S301 - our own
    campaign.is_sound |= is_sound
    for identity, *rest in outcomes:
        campaign.outcomes[identity] = Outcome(campaign.source.mutants[identity], *rest)
    way = Way(campaign, runs, work_by_import, FILES_TO_COLLECT)
    way.try_all(outside + [campaign.source.mutants[one] for one in refused])


# The report.


def _how(outcome: Outcome) -> str:
    return outcome.how.partition(" ")[0]


def show_table(title: str, rows: dict[str, Counter[str]]) -> None:
    columns = sorted({how for counts in rows.values() for how in counts})
    show("".join([f"{title:20}", f"{'made':>10}", *(f"{column:>10}" for column in columns)]))
    total: Counter[str] = Counter()
    for name, counts in [*sorted(rows.items()), ("all", total)]:
        if counts is not total:
            total.update(counts)
        figures = [counts.total(), *(counts[column] for column in columns)]
        show(f"{name:20}" + "".join(f"{figure:>10}" for figure in figures))
    show("")


def report(campaign: Campaign, seconds: float) -> int:
    """Show the figures and what survived; how many did."""
    by_section: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for identity, outcome in campaign.outcomes.items():
        by_section[campaign.source.section_of(outcome.mutant)][_how(outcome)] += 1
        by_kind[identity.kind][_how(outcome)] += 1
    show_table("section", by_section)
    show_table("kind", by_kind)
    lost = [one.mutant.identity.id for one in campaign.outcomes.values() if one.is_lost]
    show(f"{len(campaign.outcomes) - len(lost)} of {len(campaign.outcomes)}, {seconds:.0f} s")
    if lost:
        show(f"survived: {' '.join(sorted(lost))}")
    return len(lost)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.long.mutants",
        description="Are mistakes that nobody chose found by the tests?",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--section", action="append", metavar="NAME", help="all that decide")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="those, argued or not")
    parser.add_argument("--first-only", action="store_true", help="a survivor meets no more tests")
    parser.add_argument("--list", action="store_true", help="show what is drawn only")
    parser.add_argument("--results", type=Path, metavar="FILE", help="a JSON line for each")
    return parser


def _try_drawn(source: Source, drawn: Sequence[Mutant], options: argparse.Namespace) -> int:
    began_at = time.monotonic()
    os.chdir(ROOT)
    argued = [one for one in drawn if one.identity in ARGUED and not options.only]
    tried = [one for one in drawn if one not in argued]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        campaign = Campaign(
            source, tried, options.jobs, Path(folder), options.results, options.first_only
        )
        for mutant in argued:
            campaign.note(Outcome(mutant, f"argued: {ARGUED[mutant.identity]}", 0, 0.0))
        run_campaign(campaign)
        return 1 if report(campaign, time.monotonic() - began_at) else 0


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    source = Source(Path(POOLER).read_text("utf-8"))
    if wrong := unfitting(source):
        show("equivalent.py: " + "\n    ".join(wrong))
        return 1
    sections = options.section or DECIDING
    if unknown := {*sections} - {name for _, name in source.sections}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    drawn = named(source, options.only) or draw(source, options.seed, options.count, sections)
    if not options.list:
        return _try_drawn(source, drawn, options)
    for mutant in drawn:
        show(f"{mutant.identity.id} {mutant.first} {' | '.join(map(str, mutant.identity))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
