"""A good configuration, its changes, and the problems that are found in one.  (No claims.)"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import pytest

from pooler import Config, ConfigRefused, parse_config

Json = Any

SECRET: Final = "cp-Qk3vT8xZ1mW6bN4rS9dF"
OTHER: Final = "cp-Hy7pL2cJ5gA0uE8oX3tV"
TOKEN: Final = "cpo-Zr4kB9wM1sD6fY2nC7hG"
API_KEY: Final = "sk-Vx5jP0eU8qI3aR7lK2mO"
DIGEST: Final = "sha256:" + hashlib.sha256(SECRET.encode()).hexdigest()
ENV: Final = {
    "API_KEY": API_KEY,
    "PADDED": f"  {SECRET}\n",
    "EMPTY": "",
    "SHORT": "fifteen-letters",
    "HASHED": DIGEST,
}
FILES: Final = {"key.txt": f"{SECRET}\nsecond line\n", "crlf.txt": f"{SECRET}\r\n", "empty.txt": ""}


def good_config() -> dict[str, Json]:
    """A fresh one, which the test may change."""
    return {
        "accounts": {
            "a": {"type": "openai", "api_key": API_KEY},
            "b": {"type": "openai", "api_key": "none", "base_url": "http://127.0.0.1:8080/v1"},
        },
        "pools": {
            "home": {
                "accounts": ["a", "b"],
                "models": ["m1", "m2"],
                "aliases": {"small": "m1"},
                "keys": {"laptop": SECRET, "ci": {"key": OTHER, "models": ["m1"]}},
            },
        },
        "operators": {"me": TOKEN},
    }


def read_file(name: str) -> str:
    """What a configuration's `{"file": name}` reads: one of `FILES`, or no text at all."""
    if name == "binary.bin":
        b"\xff".decode("utf-8")
    if name not in FILES:
        raise FileNotFoundError(2, "No such file or directory", name)
    return FILES[name]


def parse(described: Json) -> Config:
    raw = described if isinstance(described, bytes) else json.dumps(described).encode()
    return parse_config(raw, ENV, read_file)


def changed_config(path: str, value: Json) -> dict[str, Json]:
    """The good configuration with another value at a dotted path."""
    described = good_config()
    *way, last = path.split(".")
    place = described
    for name in way:
        place = place[name]
    place[last] = value
    return described


def problems_of(described: Json) -> list[str]:
    """All problems of a configuration that must be refused."""
    with pytest.raises(ConfigRefused) as refused:
        parse(described)
    problems = list(refused.value.problems)
    assert problems
    return problems


KEY_PATH: Final = "pools.home.keys.laptop"
CI: Final = "pools.home.keys.ci"
