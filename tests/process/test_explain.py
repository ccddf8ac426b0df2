"""Proves that `check --explain` explains every field, limit, error and event of the log.

Method: the reference as a text, compared with the tables and the source of pooler.py; the real
program as a process.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Final

import pytest

import pooler
from pooler import TOPICS, Limits, config_schema, reference, section_names
from tests.support.paths import ROOT
from tests.support.server_process import run_pooler

SOURCE: Final = (ROOT / "pooler.py").read_text(encoding="utf-8")
SCHEMA: Final = config_schema()
KINDS: Final = {"pools.json": SCHEMA, **SCHEMA["$defs"]}


def test_it_is_plain_text_that_fits() -> None:
    assert re.fullmatch(r"[\n -~]+", reference())
    assert max(map(len, reference().splitlines())) <= 80
    assert not any(line.endswith(" ") for line in reference().splitlines())


def words_in(text: str) -> str:
    """The text with a single space between two words, however its lines are cut."""
    return " ".join(text.split())


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_explained_with_its_default(kind: str) -> None:
    text = words_in(reference(kind))
    for name, row in KINDS[kind]["properties"].items():
        assert re.search(rf"(?:^|[ .]){re.escape(name)}\b", text)
        assert words_in(row["description"]) in text
        assert words_in(row["description"]) in words_in(reference(name))
    assert text.count("(required)") == len(KINDS[kind]["required"])


@pytest.mark.parametrize("limit", dataclasses.fields(Limits), ids=lambda limit: limit.name)
def test_every_limit_is_explained_with_its_default_and_bounds(
    limit: dataclasses.Field[float],
) -> None:
    text = words_in(reference(limit.name))
    assert f"{limit.metadata['low']:.12g} to {limit.metadata['high']:.12g} " in text
    assert f"Default: {getattr(Limits(), limit.name):.12g}" in text
    assert limit.metadata["about"].lower() in text.lower()


def test_every_error_is_explained_with_its_status() -> None:
    text = words_in(reference("errors"))
    for code, (status, message, about) in pooler.ERRORS.items():
        assert f"{code}: {status} {message}" in text
        assert words_in(about) in words_in(reference(code))
        assert len(about.split()) >= 3


def test_every_event_of_the_log_is_explained() -> None:
    calls = re.findall(r'\blog\(\s*(?:level|"\w+"),\s*"([a-z ]+)"', SOURCE)
    assert len(set(calls)) >= 15
    text = words_in(TOPICS["log"])
    assert {event for event in calls if not re.search(rf"\b{event}\b", text)} == set()


def test_every_close_code_is_explained() -> None:
    codes = set(re.findall(r"\b10[01]\d\b", TOPICS["websocket"]))
    assert {"1000", "1001", "1003", "1008", "1009", "1011", "1013"} <= codes


def test_a_word_that_names_nothing_is_looked_for() -> None:
    text = reference("Prompt_Cache_Key")
    assert text.startswith("SESSIONS\n\n  A session is named")
    assert "ROUTING" not in text
    assert reference("no such word anywhere") == ""


@pytest.mark.parametrize("topic", section_names())
def test_each_section_can_be_asked_for(topic: str) -> None:
    assert topic.upper() in reference(topic).splitlines()


def test_a_field_of_several_objects_is_shown_with_the_place_of_each() -> None:
    text = reference("concurrent")
    assert "  accounts.NAME.concurrent: 1 to 10000\n" in text
    assert "  pools.NAME.keys.NAME.concurrent: 1 to 10000\n" in text
    assert text.count("\n  ") < 12


@pytest.mark.slow
def test_the_command_needs_no_file_and_knows_what_was_meant(tmp_path: Path) -> None:
    done = run_pooler("check", "--explain", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert reference() in done.stdout
    assert "Sections: pools.json, account, " in done.stdout

    done = run_pooler("check", "--explain", "routing", cwd=tmp_path)
    assert done.stdout == reference("routing") + "\n"

    done = run_pooler("check", "--explain", "rooting\x1b[31m", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pooler: nothing is known of this word; did you mean 'routing'?\n"


@pytest.mark.slow
def test_the_schema_command_prints_the_schema(tmp_path: Path) -> None:
    done = run_pooler("schema", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == pooler.readable_json(SCHEMA) + "\n"
