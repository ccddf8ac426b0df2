"""Proves that the maps are true: the first page of pooler.py, and SECURITY.md.

Method: names that they give are looked up in the sources; a streamed request to an account with an
API key is served under a profiler, and must pass each function of the reading list.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

import pytest

import pooler
from tests.support.memory_sockets import post
from tests.support.paths import ROOT
from tests.support.world import Pause, World, responses_events, sse_steps

GUIDE: Final = pooler.__doc__ or ""
WORDS_MAX: Final = 15
KEEPERS: Final = range(3, 9)  # functions that keep one promise


def block_after(line: str) -> str:
    """The indented block of the first page that follows the line."""
    return GUIDE.split(f"{line}\n\n")[1].split("\n\n")[0]


def names_in(source: str) -> Iterator[str]:
    """All functions and classes, those of classes as `Class.name`."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield f"{node.name}.{member.name}"


SOURCES: Final = [(ROOT / name).read_text() for name in ("pooler.py", "mcp_server.py")]
DEFINED: Final = {name for source in SOURCES for name in names_in(source)}
READING_LIST: Final = re.findall(
    r"[\w.]+", block_after("everything else is a variant of one of them.")
)
PROMISES: Final = dict(
    re.findall(
        r"^(\d+)\. .*?Kept\s+by\s(.*?)\.\s+Proved\s+by\s",
        (ROOT / "SECURITY.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)


def test_the_words_are_few_and_each_stands_for_itself() -> None:
    words = re.findall(
        r"^    (\w[\w ]*?)  ", block_after("Words that have one meaning here:"), re.MULTILINE
    )
    assert 10 <= len(words) == len(set(words)) <= WORDS_MAX


def test_every_section_is_on_the_map() -> None:
    way = block_after("The steps of serving a request, and the sections that take them:")
    named = set(re.findall(r"\b[A-Z]{3,}(?: [A-Z]+)*\b", way))
    assert named == set(re.findall(r"^#{64}\n# ([A-Z ]+)$", SOURCES[0], re.MULTILINE))


@pytest.mark.parametrize("name", READING_LIST)
def test_what_is_to_be_read_first_is_there(name: str) -> None:
    assert name in DEFINED


async def test_a_plain_streamed_request_passes_all_that_is_to_be_read_first(world: World) -> None:
    called: set[str] = set()
    events = responses_events("hi")

    def note(frame: FrameType, event: str, _: Any) -> None:  # noqa: ANN401 (as `setprofile` has it)
        if event == "call" and frame.f_code.co_filename == pooler.__file__:
            called.add(frame.f_code.co_qualname)

    for upstream in world.upstreams.values():
        upstream.always = sse_steps(*events[:-1], Pause(1), events[-1])
    sys.setprofile(note)
    try:
        raw = post("/v1/responses", {"model": "m1", "input": "x", "stream": True})
        response = await world.ask(raw)
    finally:
        sys.setprofile(None)
    assert response.status == 200
    assert set(READING_LIST) - called == set()


def test_every_promise_names_the_functions_that_keep_it() -> None:
    assert list(PROMISES) == [str(number) for number in range(1, 16)]


@pytest.mark.parametrize("number", PROMISES)
def test_the_functions_that_keep_a_promise_are_few_and_there(number: str) -> None:
    keepers = re.findall(r"`([\w.]+)`", PROMISES[number])
    assert len(keepers) in KEEPERS
    assert set(keepers) <= DEFINED
