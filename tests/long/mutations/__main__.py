"""Makes mistakes one by one in copies of the checkout, and runs the named tests.  (No claims.)

Run: `python -m tests.long.mutations [NAME ...] [--jobs N] [--list | --check]`
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.long import mutations
from tests.long.mutations.apply import FILES, Mutation, Program
from tests.support.paths import ROOT

SECONDS_MAX: Final = 90.0
LEFT_OUT: Final = (".git", "node_modules", "__pycache__", ".hypothesis", ".*_cache", "*venv")
FIRST: Final = "without a mistake"


def node_ids(tests: str) -> list[str]:
    """`keys::a_b` is test_a_b of the only test_keys.py in a folder of tests/, `keys` that file."""
    ids = []
    for module, _, name in (test.partition("::") for test in tests.split()):
        paths = (ROOT / "tests").glob(f"*/test_{module}.py")
        (path,) = (path for path in paths if path.parent.name != "clients")
        ids.append(str(path.relative_to(ROOT)) + (f"::test_{name}" if name else ""))
    return ids


class Runner:
    """Runs tests in copies of the checkout, one copy for each job."""

    def __init__(self, folder: Path, job_count: int) -> None:
        self.program = Program({name: (ROOT / name).read_text("utf-8") for name in FILES})
        self.copies: queue.Queue[Path] = queue.Queue()
        for number in range(job_count):
            copy = folder / str(number)
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
            self.copies.put(copy)

    @contextlib.contextmanager
    def changed_copy(self, changes: dict[str, str]) -> Iterator[Path]:
        """A copy of the checkout with those files changed."""
        copy = self.copies.get()
        try:
            for name, source in (self.program.sources | changes).items():
                (copy / name).write_text(source, "utf-8")
                # Two sources of one length, written in one second, look alike to Python's cache.
                for cached in copy.glob(f"__pycache__/{Path(name).stem}.*"):
                    cached.unlink()
            yield copy
        finally:
            self.copies.put(copy)

    def run(self, tests: Sequence[str], changes: dict[str, str], seconds_max: float) -> str:
        """How the tests end in a changed copy: passed, found, found (it hangs), error ..."""
        with self.changed_copy(changes) as copy:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a hang may have children
            )
            try:
                output, _ = process.communicate(timeout=seconds_max)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.communicate()
                return "found (it hangs)"
        if process.returncode in {0, 1}:
            return "found" if process.returncode else "passed"
        return "error\n" + output.decode(errors="replace")[-2000:]

    def run_unchanged(self, tests: Sequence[str]) -> str:
        """How the tests of all mistakes end without any: the first job that does not pass."""
        job_count = self.copies.qsize()
        shares = [tests[number::job_count] for number in range(job_count)]
        with concurrent.futures.ThreadPoolExecutor(job_count) as pool:
            ends = pool.map(
                lambda share: self.run(share, {}, 10 * SECONDS_MAX), filter(None, shares)
            )
            return next((end for end in ends if end != "passed"), "passed")

    def try_mutation(self, mutation: Mutation) -> tuple[str, float]:
        """What became of a mistake, and the seconds that it took."""
        began_at = time.monotonic()
        try:
            name, source = self.program.apply(mutation)
        except (LookupError, SyntaxError) as error:
            end = f"cannot be applied: {error}"
        else:
            end = self.run(node_ids(mutation.tests), {name: source}, SECONDS_MAX)
        shown = f"SURVIVED: {mutation.promise}" if end == "passed" else end
        return shown, time.monotonic() - began_at


def show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def check(chosen: Sequence[Mutation]) -> int:
    """Show the mistakes that the source has no place for, without running a test."""
    program = Program({name: (ROOT / name).read_text("utf-8") for name in FILES})
    lost = 0
    for mutation in chosen:
        try:
            program.apply(mutation)
            node_ids(mutation.tests)
        except (LookupError, SyntaxError, ValueError) as error:
            lost += 1
            show(f"{mutation.name:26} at {mutation.place}: {error}\n    {mutation.old}")
    show(f"{len(chosen) - lost} of {len(chosen)} can be applied")
    return 1 if lost else 0


def run_all(chosen: Sequence[Mutation], job_count: int) -> int:
    """Run the tests without a mistake and with each; 1 if a mistake is not found."""
    began_at = time.monotonic()
    lost = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        runner = Runner(Path(folder), job_count)
        tests = [*dict.fromkeys(node for row in chosen for node in node_ids(row.tests))]
        good = runner.run_unchanged(tests)
        show(f"{FIRST:26} {good}, {time.monotonic() - began_at:.1f} s")
        if good != "passed":
            return 1
        with concurrent.futures.ThreadPoolExecutor(job_count) as pool:
            ends = pool.map(runner.try_mutation, chosen)
            for mutation, (end, seconds) in zip(chosen, ends, strict=True):
                lost += not end.startswith("found")
                show(f"{mutation.name:26} {end}, {seconds:.1f} s")
    seconds = time.monotonic() - began_at
    show(f"{len(chosen) - lost} of {len(chosen)} found, {seconds:.0f} s")
    return 1 if lost else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.long.mutations", description="Are single mistakes found by the tests?"
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="show names and promises only")
    parser.add_argument("--check", action="store_true", help="show what cannot be applied only")
    options = parser.parse_args(arguments)

    rows = {mutation.name: mutation for mutation in mutations.MUTATIONS}
    if unknown := set(options.names) - rows.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    chosen = [rows[name] for name in options.names] or [*mutations.MUTATIONS]

    if options.list:
        for mutation in chosen:
            show(f"{mutation.name:26} {mutation.promise}")
        return 0
    return check(chosen) if options.check else run_all(chosen, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
