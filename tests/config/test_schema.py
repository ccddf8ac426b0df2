"""Proves that the schema of pools.json accepts what the pooler accepts, and refuses what it can.

Method: a validator of JSON Schema on the configurations of README.md and the example, on the table
of single errors that `test_config_is_strict` has, and under Hypothesis on valid configurations with
one random change.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped] # it has no types
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pooler
from pooler import ConfigRefused, config_schema, parse_config
from tests.support.configurations import (
    BASE_URLS,
    CI,
    DIGEST,
    ENV,
    SECRET,
    SECRETS,
    TOKEN,
    TYPED,
    WRONG_TYPES,
    changed_config,
    good_config,
    parse,
    problems_of,
    read_file,
)
from tests.support.paths import ROOT

Json = Any

SCHEMA: Final = config_schema()
# In ECMA 262, whose patterns JSON Schema has, $ is the end; in Python it may have a "\n" behind it.
ENDS: Final = re.compile(r"(?<!\\)\$(?=\)|\||\Z)")


def check_pattern(
    _: object, pattern: str, value: Json, __: object
) -> Iterator[jsonschema.ValidationError]:
    if isinstance(value, str) and not re.search(ENDS.sub(r"\\Z", pattern), value):
        yield jsonschema.ValidationError(f"does not match {pattern}")


VALIDATOR: Final = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"pattern": check_pattern}
)(SCHEMA)


def test_it_is_a_schema_with_a_description_of_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for kind in (SCHEMA, *SCHEMA["$defs"].values()):
        assert kind["additionalProperties"] is False
        for field in kind["properties"].values():
            assert len(field["description"].split()) >= 3


def patterns(value: Json) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            yield value["pattern"]
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from patterns(member)


def test_its_patterns_are_also_those_of_ecma_262() -> None:
    """What is special to Python would be an error in an editor, or never match."""
    assert len(set(patterns(SCHEMA))) > 15
    for pattern in patterns(SCHEMA):
        assert not re.search(r"\(\?[^:=!]|\\[AZz\"'_@%&;<>~`#-]", pattern.replace(r"\-", ""))


################################################################
# ACCEPTED
################################################################

BLOCKS: Final = re.findall(
    r"^ *```json\n(.*?)^ *```$",
    (ROOT / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)
CONFIGS: Final = [block for block in map(json.loads, BLOCKS) if "pools" in block]
EXAMPLE: Final = json.loads((ROOT / "pools.json.example").read_text(encoding="utf-8"))
DEMO: Final = pooler.describe_demo(4000, "http://127.0.0.1:4001", {"well": "well.json"})

WORDS: Final = {
    "chatgpt": ["personal"],
    "openai": ["platform"],
    "local": ["llama=http://127.0.0.1:8080/v1"],
}
PLAN: Final = pooler.plan_setup(WORDS)
FIRST: Final = json.loads(pooler.first_config(PLAN, {"laptop": SECRET}, {"me": TOKEN}))


@pytest.mark.parametrize("config", [*CONFIGS, EXAMPLE, DEMO, FIRST, good_config()])
def test_the_configurations_that_people_see_are_valid(config: Json) -> None:
    text = re.sub(r"sha256:<[^>]*>", DIGEST, json.dumps(config))
    assert list(VALIDATOR.iter_errors(json.loads(text))) == []


def test_each_field_is_valid_in_each_of_its_forms() -> None:
    config = good_config() | {
        "$schema": "./pools.schema.json",
        "listen": ["127.0.0.1:0", "[::1]:65535", "unix:/run/p.sock"],
        "allow_public": True,
        "base_path": "/pooler",
        "hosts": ["h", "[::1]"],
        "allowed_origins": ["https://h:1", "tauri://localhost"],
        "proxy": "http://name:pass%40word@127.0.0.1:3128",
        "notify": {"url": "http://h/x", "token": "{env:API_KEY}", "allow_plain_http": True},
        "state": "state/pooler.json",
        "prices": {"m1": {"input": 0, "cached": 0.5, "output": 10}},
        "limits": {"records_max": 5, "queue_seconds_max": 0.5},
    }
    config["accounts"]["b"] |= {"models": {"m1": "openai/m1"}, "websocket": True, "priority": -1}
    config["accounts"]["b"] |= {"paused": False, "concurrent": 1, "ca_file": "ca.pem"}
    config["accounts"]["c"] = {"type": "codex", "auth_file": "accounts/c.json"}
    config["accounts"]["c"] |= {"client_version": "0.169.0", "first_event_seconds": 0.5}
    pool = config["pools"]["home"]
    pool["routing"] = "soonest_reset"
    pool["aliases"]["high"] = {"model": "m1", "effort": "high", "service_tier": "priority"}
    pool["keys"]["ci"] |= {"expires": "2030-01-01T12:00:00Z", "requests_per_minute": 1}
    pool["keys"]["ci"] |= {"tokens_per_day": 5, "concurrent": 2, "paused": True}
    parse(config)
    assert list(VALIDATOR.iter_errors(config)) == []
    assert list(VALIDATOR.iter_errors(config | {"notify": "https://ntfy.sh/x?auth=a"})) == []


@pytest.mark.parametrize("value", ["./pools.schema.json", ""])
def test_the_name_of_the_schema_is_ignored(value: str) -> None:
    assert repr(parse({"$schema": value} | good_config())) == repr(parse(good_config()))


@pytest.mark.parametrize("value", [1, None, {}, ["x"]])
def test_the_name_of_the_schema_is_a_string(value: Json) -> None:
    config = {"$schema": value} | good_config()
    [problem] = problems_of(config)
    assert problem.startswith("$schema: must be a string")
    assert not VALIDATOR.is_valid(config)


# Texts with which a valid file is changed: much of it is nearly right.
PARTS: Final = [
    *("", " ", "\n", "/", ":", "h", "127.0.0.1", "[::1]", "localhost", "unix:/", "http://", "0"),
    *(
        "https://",
        "65535",
        "65536",
        "x" * 16,
        "sha256:",
        "a" * 64,
        "{env:API_KEY}",
        "{file:key.txt}",
    ),
    *(
        "2030-01-01",
        "T12:00:00",
        "Z",
        "+02:00",
        "é",
        "\u2028",
        "<",
        "'",
        "$HOME",
        "~",
        ".",
        "..",
        "%",
    ),
]
TEXTS: Final = st.lists(st.sampled_from(PARTS), max_size=4).map("".join) | st.text(max_size=6)
SCALARS: Final = TEXTS | st.none() | st.booleans() | st.integers(-2, 70_000) | st.floats(0, 10**6)
VALUES: Final = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2)
)
OBJECTS: Final = {
    "": "top", "accounts.a": "account", "accounts.b": "account", "pools.home": "pool", CI: "key",
    "limits": "limits", "notify": "notify", "prices.m1": "price", "pools.home.aliases.s": "alias",
}  # fmt: skip


def fields_of(kind: str) -> list[str]:
    return sorted((SCHEMA if kind == "top" else SCHEMA["$defs"][kind])["properties"])


@given(data=st.data())
def test_what_the_pooler_accepts_the_schema_accepts(data: st.DataObject) -> None:
    config = copy.deepcopy(good_config())
    config |= {"limits": {}, "notify": {"url": "https://h/x"}}
    config["prices"] = {"m1": {"input": 1, "output": 1}}
    config["pools"]["home"]["aliases"]["s"] = {"model": "m1"}
    path = data.draw(st.sampled_from(sorted(OBJECTS)))
    place = config
    for name in filter(None, path.split(".")):
        place = place[name]

    place[data.draw(st.sampled_from(fields_of(OBJECTS[path])))] = data.draw(VALUES)
    try:
        parse_config(json.dumps(config).encode(), ENV, read_file)
    except ConfigRefused:
        return
    assert list(VALIDATOR.iter_errors(config)) == []


################################################################
# REFUSED
################################################################

# What JSON Schema cannot say, by the words of the pooler's own problem.
UNSAID: Final = {
    "a whole number that is written with a point": "must be a whole number, not a number",
    "a name that stands elsewhere in the file": "no account has this name",
    "a model that stands elsewhere in the file": "must map a name that is not in models to one",
    "a day that no calendar has": "must be a date",
    "a day that is too far away": "is too far away",
    "the name of the file itself": "is pools.json itself",
    "a variable that is not set": "the environment variable",
    "a file that cannot be read": "the file cannot be read",
    "a pool key that stands in a variable or file": "visible ASCII characters; `pooler key",
    "an API key that stands in a variable or file": "must be visible ASCII; use",
    "the same secret twice": "is the same secret as",
}
WRONG: Final = [
    *WRONG_TYPES,
    *SECRETS,
    *(("accounts.a.base_url", value) for value in BASE_URLS),
    *(("accounts.x", account) for account, _ in TYPED.values()),
]


def unsaid_of(path: str, value: Json) -> set[str]:
    """The kinds of UNSAID that a wrong value is of; none, if the schema refuses it."""
    config = changed_config(path, value)
    problems = problems_of(config)
    if not VALIDATOR.is_valid(config):
        return set()

    kinds = {
        kind for kind, words in UNSAID.items() if any(words in problem for problem in problems)
    }
    is_reference = isinstance(value, str) and value.startswith("{")
    assert kinds, f"{path} = {value!r} is refused, and the schema accepts it"
    assert is_reference or not any("in a variable" in kind for kind in kinds)
    return kinds


def test_what_the_pooler_refuses_the_schema_refuses_if_it_can_say_it() -> None:
    assert set().union(*(unsaid_of(path, value) for path, value in WRONG)) == set(UNSAID)
    assert sum(not unsaid_of(path, value) for path, value in WRONG) > 0.85 * len(WRONG)


@pytest.mark.parametrize("path", ["acounts", "accounts.a.apikey", f"{CI}.expire", "pools.home.key"])
def test_a_misspelt_field_is_refused(path: str) -> None:
    config = changed_config(path, 1)
    problems_of(config)
    assert not VALIDATOR.is_valid(config)


def test_every_bound_of_a_limit_is_one_of_the_schema() -> None:
    for name, row in SCHEMA["$defs"]["limits"]["properties"].items():
        for value in (row["minimum"] - 1, row["maximum"] + 1, "1"):
            config = good_config() | {"limits": {name: value}}
            problems_of(config)
            assert not VALIDATOR.is_valid(config)
        assert VALIDATOR.is_valid(good_config() | {"limits": {name: row["maximum"]}})
