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
SHOUTED: Final = DIGEST.upper()
HALF_DAY: Final = "2027-01-01T12:00:00"


# Single faults: the path of a field, and what is refused there.


def each(path: str, *wrong: Json) -> list[tuple[str, Json]]:
    return [(path, value) for value in wrong]


WRONG_TYPES: Final[list[tuple[str, Json]]] = [
    *each("accounts", [], "x", 1, None, True),
    *each("pools", [], "x", 1, None, True),
    *each("operators", [], "x", 1, None),
    *each("operators.me", 1, None, {}, [TOKEN]),
    *each("accounts.a", [], "x", 1, None, False),
    *each("accounts.a.type", 1, None, "", "OpenAI", "anthropic", ["openai"]),
    *each("accounts.a.api_key", 1, None, "", [API_KEY], {"env": "X"}),
    *each("accounts.a.priority", "1", 1.5, True, None, -1001, 1001),
    *each("accounts.a.paused", 0, 1, "true", None),
    *each("accounts.a.concurrent", 0, -1, 10_001, True, 2.0, "4"),
    *each("accounts.a.models", "m", {}, [1], [""], [" "], ["m", "m"], ["\n"]),
    *each("accounts.a.first_event_seconds", 0, 3601, True, "9", None),
    *each("accounts.a.ca_file", 1, None, "", "a\x00b"),
    *each("accounts.b.allow_plain_http", 1, "yes", None),
    *each("pools.home", [], "x", 1, None),
    *each("pools.home.accounts", "a", {}, None, []),
    *each("pools.home.accounts", [1], ["a", "a"], ["nobody"], [None]),
    *each("pools.home.models", "m1", [1], ["m1", "m2", "m1"], [" "]),
    *each("pools.home.aliases", [], "x", {"small": 1}, {"small": None}),
    *each("pools.home.aliases", {"a\nb": "m1"}, {"": "m1"}, {"small": ""}),
    *each("pools.home.aliases", {"small": "m9"}, {"m1": "m2"}, {"\x7f": "m1"}),
    *each("pools.home.routing", 1, None, "random", "Sticky", ["sticky"]),
    *each("pools.home.keys", [], SECRET, 1, {"a b": SECRET}, {"": SECRET}),
    *each(KEY_PATH, 1, None, [], True, ""),
    *each(f"{CI}.key", 1, None, "", {}),
    *each(f"{CI}.models", "m1", [1], [""]),
    *each(f"{CI}.requests_per_minute", 0, -1, True, 1.5, "60", 100_001),
    *each(f"{CI}.tokens_per_day", 0, True, 1e6, "1", 10**12 + 1),
    *each(f"{CI}.concurrent", 0, True, 10_001, None),
    *each(f"{CI}.paused", 0, 1, "no", None),
    *each(f"{CI}.expires", 1, None, "", "tomorrow", "2027-02-30", HALF_DAY),
    *each(f"{CI}.expires", "2027-1-1", "20270101", "9999-12-31", "2027-W01-1"),
    *each("listen", 4000, None, {}, [], [4000], "", "4000", ":4000"),
    *each("listen", "127.0.0.1", "127.0.0.1:", "h:65536", "h:-1", "::1:4000"),
    *each("listen", "unix:relative", "h:4000/x", "http://h:1", ["h:1", "h:1"]),
    *each("allow_public", 1, "true", None),
    *each("base_path", 1, None, "/", "pooler", "/pooler/", "/a b", "/a//b"),
    *each("base_path", "/a?b", "/%2e", "/a\n", []),
    *each("allowed_origins", "https://h", [1], ["*"], ["null"], ["h"]),
    *each("allowed_origins", ["https://h/"], ["https://H"], ["file://x"]),
    *each("hosts", "h", [1], [""], ["h:4000"], ["a b"], ["::1"], ["https://h"]),
    *each("state", 1, None, "", {}, "~/state.json", "a\x00b", "http://h/x", "pools.json"),
    *each("prices", [], "x", 1, None, {" ": {}}, {"m1\n": {"input": 1, "output": 1}}),
    *each("prices", {"m1": 1}, {"m1": []}, {"m1": {}}, {"m1": {"input": 1}}),
    *each("prices", *({"m1": {"input": 1, "output": wrong}} for wrong in (-1, "1", True, 1e7))),
    *each("prices", {"m1": {"input": 1, "output": 1, "cached": None}}),
    *each("prices", {"m1": {"input": 1, "output": 1, "reasoning": 1}}),
    *each("limits", [], "x", 1, None),
]
SECRETS: Final[list[tuple[str, Json]]] = [
    *((KEY_PATH, f"{{env:{name}}}") for name in ("NOT_SET", "EMPTY", "SHORT")),
    *((KEY_PATH, f"{{file:{name}}}") for name in ("missing.txt", "empty.txt", "binary.bin")),
    *each(KEY_PATH, "{env:}", "{vault:x}", "{env:API_KEY", "{}"),
    *each(KEY_PATH, "<printed by: pooler key>", "sha256:<printed by>"),
    *each(KEY_PATH, "sha256:", "sha256:" + "0" * 63, "sha256:" + "g" * 64),
    *each(KEY_PATH, "fifteen-letters", "has a blank inside it", "é" * 16),
    *each(f"{CI}.key", "short", "{env:NO}", SHOUTED),
    *each("operators.me", SECRET, DIGEST, "", "short", "{env:NOT_SET}"),
    *each("operators.me", "<here>", "sha256:<printed by: pooler key>"),
    *each("accounts.a.api_key", "{env:NOT_SET}", "{env:EMPTY}", "<key>"),
    *each("accounts.a.api_key", DIGEST, "{file:missing.txt}", "a b", "a\nb"),
    *each("accounts.a.api_key", "ключ", "{file:empty.txt}", "{file:../x}"),
]
BASE_URLS: Final = [
    *("", "api.openai.com", "ftp://h/v1", "HTTPS://h/v1", "https://", "https:///v1"),
    *("https://h:65536/v1", "https://h:0/v1", "https://h:/v1", "https://user:pw@h/v1"),
    *("https://h/v1?a=b", "https://h/v1#f", "https://h/a b", "https://h\r\nX: y/v1", "https://é/"),
    *("http://192.168.1.5/v1", "http://localhost.evil.example/v1", "http://127.0.0.1.evil.example"),
    *("http://0.0.0.0:8080/v1", "http://[2001:db8::1]/v1", 1, None, ["https://h"]),
    *("https://a..b/v1", f"https://{'a' * 64}.com/v1", "https://a.-b/v1"),  # cannot be resolved
]

# Accounts of which the type and the other fields contradict each other, and their problems.
A_PATH: Final = "must be a path that does not begin with ~"
TYPED: Final[dict[str, tuple[Json, list[str]]]] = {
    "codex-without": ({"type": "codex"}, ["auth_file: is required and must not be empty"]),
    "codex-empty": ({"type": "codex", "auth_file": ""}, [f"auth_file: {A_PATH}"]),
    "codex-home": ({"type": "codex", "auth_file": "~/auth.json"}, [f"auth_file: {A_PATH}"]),
    "openai-without": ({"type": "openai"}, ["api_key: is required and must not be empty"]),
    "codex-with-key": (
        {"type": "codex", "auth_file": "a.json", "api_key": "none"},
        ["api_key: does not apply to type 'codex'"],
    ),
    "openai-with-file": (
        {"type": "openai", "api_key": "none", "auth_file": "a.json"},
        ["auth_file: does not apply to type 'openai'"],
    ),
    "neither": (
        {"type": "claude", "api_key": "none"},
        ["type: must be 'openai' or 'codex'"],
    ),
}
