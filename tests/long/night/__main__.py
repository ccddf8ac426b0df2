"""`python -m tests.long.night --minutes N [--seed S]`: its verdict is the exit code."""

from __future__ import annotations

import argparse
import sys

import trio

from tests.long.night.run import spend_night

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Two replicas behind README's HAProxy: load, faults, reloads, one killed."
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--clients", type=int, default=12)
    options = parser.parse_args()
    verdict = trio.run(spend_night, options.minutes * 60, options.seed, options.clients)
    sys.stdout.write(verdict.text)
    sys.exit(0 if verdict.is_good else 1)
