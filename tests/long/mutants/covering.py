"""Which tests run which lines of pooler.py, and how long they take.  (No claims.)"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import coverage
import pytest

from tests.support.paths import POOLER, ROOT

# What a test file's tests may depend on besides the file itself.
SHARED: Final = (
    "pooler.py",
    "mcp_server.py",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/support/**/*.py",
)


class Run(NamedTuple):
    """What one test did: the lines of pooler.py that it ran, as bits."""

    seconds: float
    lines: int


Runs = dict[str, Run]  # by the test's node id


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


def cache_of(file: str) -> Path:
    """Where the runs of a test file's tests are kept while no source of theirs changes."""
    shared = [path for pattern in SHARED for path in ROOT.glob(pattern)]
    folder = Path(tempfile.gettempdir()) / "pooler-mutants" / _digest(shared)
    return folder / f"{Path(file).stem}-{_digest([ROOT / file])}"


def bits_of(numbers: Iterable[int]) -> int:
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits


def file_of(node_id: str) -> str:
    return node_id.partition("::")[0]


def measure(
    items: Sequence[pytest.Item],
    run: Callable[[pytest.Item, pytest.Item | None], None],
    say: Callable[[str], None],
) -> None:
    """Run tests, and keep what each of them ran."""
    cover = coverage.Coverage(data_file=None, config_file=False, include=[POOLER], messages=False)
    cover.set_option("run:disable_warnings", ["no-data-collected"])  # it may test no source
    seconds: dict[str, float] = {}
    cover.start()
    for item, following in zip(items, [*items[1:], None], strict=True):
        cover.switch_context(item.nodeid)
        began_at = time.perf_counter()
        run(item, following)
        seconds[item.nodeid] = time.perf_counter() - began_at
    cover.stop()

    data = cover.get_data()
    by_file: defaultdict[str, Runs] = defaultdict(dict)
    for node_id, took in seconds.items():
        data.set_query_context(node_id)
        by_file[file_of(node_id)][node_id] = Run(took, bits_of(data.lines(POOLER) or ()))
    for file, runs in by_file.items():
        path = cache_of(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(runs))
    say("done")


def load(files: Iterable[str]) -> tuple[Runs, list[str]]:
    """What is kept of those test files, and the files of which nothing is."""
    runs: Runs = {}
    missing = []
    for file in dict.fromkeys(files):
        path = cache_of(file)
        if path.is_file():
            runs |= pickle.loads(path.read_bytes())  # noqa: S301 - our own, in our own folder
        else:
            missing.append(file)
    return runs, missing
