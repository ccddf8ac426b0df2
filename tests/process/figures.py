"""Figures of the source, section by section, and of the plain path.  (No claims.)

    python -m tests.process.figures

The plain path is what one streamed request to an account with an API key runs through: the distinct
lines, statements and functions of pooler.py, from the client's first byte to the response's last.
"""

from __future__ import annotations

import ast
import itertools
import sys
from types import FrameType
from typing import Any, Final

import trio
from trio.testing import MockClock

import pooler
from tests.process import test_tidy as tidy
from tests.support.memory_sockets import post
from tests.support.world import describe, opened_world, responses_events, sse_response

NAMES: Final = ("pooler.py", "mcp_server.py")


def show(*cells: object) -> None:
    """One row: a name, then numbers."""
    name, *numbers = map(str, cells)
    sys.stdout.write(name.ljust(24) + "".join(number.rjust(9) for number in numbers) + "\n")


def show_file(name: str) -> None:
    """The sections of a file, then the whole of it."""
    source = tidy.text_of(name)
    code = tidy.code_lines(source)
    tokens = [token.start[0] for token in tidy.code_tokens(source)]
    prose = tidy.comment_lines(source) | tidy.docstring_lines(tidy.parsed(source))
    complexity = tidy.complexities(source)
    complex_at = [
        node.lineno
        for place, node in tidy.functions_of(source)
        if complexity.get(place, 0) > tidy.COMPLEXITY_MAX
    ]
    line_count = source.count("\n") + 1
    starts = [(1, "(preamble)"), *tidy.banners(source), (line_count, "")]

    show(name, "lines", "code", "tokens", "/line", "prose %", "complex")
    rows = [(section, first, last) for (first, section), (last, _) in itertools.pairwise(starts)]
    for section, first, last in [*rows, ("all", 1, line_count)]:
        codes = sum(first <= line < last for line in code)
        count = sum(first <= line < last for line in tokens)
        words = sum(first <= line < last for line in prose)
        complex_count = sum(first <= line < last for line in complex_at)
        per_line = f"{count / max(1, codes):.1f}"
        show(
            section,
            last - first,
            codes,
            count,
            per_line,
            100 * words // max(1, codes),
            complex_count,
        )
    show("longest class", tidy.figures_of(source).longest_class)
    show("")


async def trace_plain_path() -> tuple[set[int], set[str]]:
    """The lines and the functions of pooler.py that a plain request runs through."""
    lines: set[int] = set()
    functions: set[str] = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401 (another of these)
        if frame.f_code.co_filename != pooler.__file__:
            return None

        lines.add(frame.f_lineno)
        functions.add(frame.f_code.co_qualname)
        return trace

    async with opened_world(describe("a")) as world:
        request = post("/v1/responses", {"model": "m1", "input": "x", "stream": True})
        world.upstreams["a"].plays(sse_response(responses_events("Hello", " world")))
        sys.settrace(trace)
        response = await world.ask(request)
        sys.settrace(None)
        assert response.status == 200
    return lines, functions


def main() -> None:
    for name in NAMES:
        show_file(name)
    lines, functions = trio.run(trace_plain_path, clock=MockClock(autojump_threshold=0))
    statements = {
        node.lineno for _, node in tidy.nodes_of(tidy.POOLER) if isinstance(node, ast.stmt)
    }
    show("plain path, lines", len(lines))
    show("plain path, statements", len(lines & statements))
    show("plain path, functions", len(functions))


if __name__ == "__main__":
    main()
