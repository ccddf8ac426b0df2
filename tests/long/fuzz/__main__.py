"""Feed one parser for a while:  python -m tests.long.fuzz NAME --seconds N [--seed S]

With atheris (`pip install atheris`) the inputs are led by coverage; without it they are seeded
mutations of the good ones.  An input that fails is printed; keep it in tests/long/fuzz/kept.json.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

atheris: Any = None
if importlib.util.find_spec("atheris") is not None:
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["pooler", "mcp_server"]):
        importlib.import_module("mcp_server")
        importlib.import_module("pooler")

from tests.long.fuzz.mutate import mutated  # noqa: E402 (instrumented before)
from tests.long.fuzz.targets import TARGETS  # noqa: E402


def run_led(one: Callable[[bytes], None], corpus: Sequence[bytes], seconds: int, seed: int) -> None:
    """By libFuzzer, which ends the process."""
    with tempfile.TemporaryDirectory() as folder:
        for number, raw in enumerate(corpus):
            (Path(folder) / str(number)).write_bytes(raw)
        flags = [
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            "-max_len=4096",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *flags, folder], one)
        atheris.Fuzz()


def run_seeded(
    one: Callable[[bytes], None], corpus: Sequence[bytes], seconds: int, seed: int
) -> int:
    """By mutation alone; how many inputs there were."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    count = 0
    while time.monotonic() < until:
        raw = mutated(rng, corpus)
        try:
            one(raw)
        except BaseException:
            sys.stderr.write(f"input {count} fails: {raw!r}\n")
            raise
        count += 1
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz one parser.")
    parser.add_argument("name", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    target = TARGETS[asked.name]
    if atheris is not None:
        run_led(target.one, target.corpus, asked.seconds, asked.seed)
    count = run_seeded(target.one, target.corpus, asked.seconds, asked.seed)
    sys.stdout.write(f"{asked.name}: {count} inputs, none fails\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
