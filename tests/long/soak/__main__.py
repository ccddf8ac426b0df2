"""`python -m tests.long.soak --minutes N [--seed S]`: its verdict is the exit code."""

from __future__ import annotations

import argparse
import sys

import trio

from tests.long.soak.run import soak

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Load, faults and reloads on the real process.")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--clients", type=int, default=24)
    options = parser.parse_args()
    verdict = trio.run(soak, options.minutes * 60, options.seed, options.clients)
    sys.stdout.write(verdict.text)
    sys.exit(0 if verdict.is_good else 1)
