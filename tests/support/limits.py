"""Other limits for a test: those that pools.json sets, and constants of the program.  (No claims.)

Run: `python tests/support/limits.py CONSTANTS ARGUMENT ...` is `pooler ARGUMENT ...` with the
constants that a JSON object names.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pooler

LAUNCHER: Final = str(Path(__file__).resolve())
SETTABLE: Final = frozenset(field.name for field in dataclasses.fields(pooler.Limits))


def settable(limits: Mapping[str, float]) -> dict[str, float]:
    """Those that pools.json may set."""
    return {name: value for name, value in limits.items() if name in SETTABLE}


def constants(limits: Mapping[str, float]) -> dict[str, float]:
    """The others, by the names of their constants."""
    return {name.upper(): value for name, value in limits.items() if name not in SETTABLE}


def set_constants(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        assert hasattr(pooler, name), name
        setattr(pooler, name, value)


def with_limits(limits: Mapping[str, float]) -> dict[str, float]:
    """`limits` of a pools.json for this process; constants change until the end of the test."""
    set_constants(constants(limits))
    return settable(limits)


if __name__ == "__main__":
    set_constants(json.loads(sys.argv[1]))
    sys.exit(pooler.main(sys.argv[2:]))
