"""One mutant, tried: which tests run it, and what they say of it.  (No claims.)

Code inside functions is exchanged in a process that has imported and collected everything: a mutant
costs a fork and its tests.  What runs at the import (tables, defaults, decorators) needs a process
that has not imported pooler.py yet: the mutated source is imported there, and the tests collected.
"""

from __future__ import annotations
import __future__

import ast
import gc
import importlib.util
import signal
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.long.mutants.covering import Runs, bits_of, file_of
from tests.long.mutants.draw import Source
from tests.long.mutants.forks import Say
from tests.long.mutants.kinds import DEFINITIONS, Mutant
from tests.support.paths import POOLER

FLAGS: Final = __future__.annotations.compiler_flag
# This package is imported before pytest, and asserts nothing that should be rewritten.
IMPORTED: Final = "ignore:Module already imported so cannot be rewritten"
PYTEST: Final = ("-n", "0", "-q", "-s", "-p", "no:cacheprovider", "-W", IMPORTED)
# Of the processor: a test that takes longer spins.
SECONDS_MAX: Final = 10.0
TIMES_MAX: Final = 10.0


# Which tests run a mutant.


class Uses(NamedTuple):
    """Where a name is used: lines inside functions, and names that are made of it."""

    lines: set[int]
    names: set[str]


def find_uses(tree: ast.Module) -> dict[str, Uses]:
    """Of each name or attribute in a module."""
    uses: defaultdict[str, Uses] = defaultdict(lambda: Uses(set(), set()))

    def visit(node: ast.AST, maker: str, in_function: bool) -> None:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and not in_function:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            maker = getattr(target, "id", maker)
        if isinstance(node, DEFINITIONS) and not in_function:
            maker = node.name
        in_function = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        name = getattr(node, "id", None) or getattr(node, "attr", None)
        if name and in_function:
            uses[name].lines.add(node.lineno)  # type: ignore[attr-defined] # an expression
        elif name and name != maker:
            uses[name].names.add(maker)
        for child in ast.iter_child_nodes(node):
            visit(child, maker, in_function)

    for statement in tree.body:
        visit(statement, "", in_function=False)
    return dict(uses)


def _definition(tree: ast.AST, place: str) -> ast.AST | None:
    """The function or class of a dotted name."""
    found: ast.AST | None = tree
    for name in place.split("."):
        found = next(
            (
                node
                for node in ast.walk(found or ast.Pass())
                if isinstance(node, DEFINITIONS) and node.name == name
            ),
            None,
        )
    return found


def lines_that_read(source: Source, uses: dict[str, Uses], mutant: Mutant) -> int:
    """The lines that depend on a mutant that is read at the import, as bits."""
    statement = mutant.where.statement
    target = getattr(statement, "target", None) or next(
        iter(getattr(statement, "targets", [])), None
    )
    waiting = {mutant.identity.place.rpartition(".")[2], getattr(target, "id", "")} - {""}
    lines: set[int] = set()
    if definition := _definition(source.tree, mutant.identity.place):
        nodes = ast.walk(definition)
        lines |= {node.lineno for node in nodes if isinstance(node, (ast.stmt, ast.expr))}

    done: set[str] = set()
    while waiting:
        name = waiting.pop()
        done.add(name)
        if name in uses:
            lines |= uses[name].lines
            waiting |= uses[name].names - done
    return bits_of(lines)


def tests_of(source: Source, uses: dict[str, Uses], mutant: Mutant, runs: Runs) -> list[str]:
    """The tests that run a mutant, in the order in which they should meet it."""
    statement = mutant.where.statement
    spans = [bits_of(range(mutant.first, mutant.last + 1))]
    if not mutant.where.function:
        spans = [lines_that_read(source, uses, mutant)]
    elif isinstance(statement, ast.stmt):
        spans.append(bits_of(range(statement.lineno, (statement.end_lineno or 0) + 1)))

    for span in spans:
        covering = {node_id: run for node_id, run in runs.items() if run.lines & span}
        if covering:
            return in_order(covering)
    return []


def in_order(runs: Runs) -> list[str]:
    """One test of each function first, with one set of parameters: another set says little more.

    Among those, the quickest and most specific first.
    """
    cost = {name: run.seconds * run.lines.bit_count() for name, run in runs.items()}
    seen: Counter[str] = Counter()
    turn: dict[str, int] = {}
    for name in sorted(runs, key=lambda one: cost[one]):
        function = name.partition("[")[0]
        turn[name] = seen[function]
        seen[function] += 1
    return sorted(runs, key=lambda one: (turn[one], cost[one]))


# Making the mistake.


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """A code object and all inside it."""
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return [code, *(deep for one in inner for deep in _codes(one))]


Functions = dict[tuple[str, int], list[types.FunctionType]]


def live_functions() -> Functions:
    """The functions of pooler.py in this process, by their qualified names and first lines."""
    found: defaultdict[tuple[str, int], list[types.FunctionType]] = defaultdict(list)
    for one in gc.get_objects():
        if isinstance(one, types.FunctionType) and one.__code__.co_filename == POOLER:
            found[one.__code__.co_qualname, one.__code__.co_firstlineno].append(one)
    return dict(found)


def exchange_code(
    source: Source,
    functions: Functions,
    mutant: Mutant,
) -> bool:
    """Whether the mutant's function has its new code, which it may have while the process runs."""
    with mutant.site.made():
        part = ast.Module([source.tree.body[mutant.where.top]], [])
        compiled = compile(part, POOLER, "exec", flags=FLAGS, dont_inherit=True)
    found = False
    for code in _codes(compiled):
        if code.co_qualname != mutant.where.function:
            continue
        for function in functions.get((code.co_qualname, code.co_firstlineno), []):
            if function.__code__.co_freevars != code.co_freevars:
                return False
            function.__code__ = code
            found = True
    return found


def import_mutated(source: Source, mutant: Mutant | None) -> None:
    """Import pooler.py with the mistake in it."""
    assert "pooler" not in sys.modules
    spec = importlib.util.spec_from_file_location("pooler", POOLER)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pooler"] = module
    if mutant is None:
        code = compile(source.tree, POOLER, "exec", dont_inherit=True)
    else:
        with mutant.site.made():
            code = compile(source.tree, POOLER, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 - our own source


# Running the tests.


class Listener:
    """A pytest plugin: what is to be done with the collected tests, and whether one failed."""

    def __init__(self, loop: Callable[[Listener, pytest.Session], None]) -> None:
        self.loop = loop
        self.has_failed = False
        self.is_run = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.is_run = True
        self.loop(self, session)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.has_failed = self.has_failed or report.failed

    @staticmethod
    def run(item: pytest.Item, following: pytest.Item | None) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def run_until_failure(
        self, items: Sequence[pytest.Item], runs: Runs, folder: Path, say: Say
    ) -> None:
        """Run tests, their files in `folder`; say each, and how it ended."""
        factory = items[0].config._tmp_path_factory  # type: ignore[attr-defined] # it has no other name
        folder.mkdir(parents=True, exist_ok=True)
        factory._basetemp = folder
        for item, following in zip(items, [*items[1:], None], strict=True):
            say(f"runs {item.nodeid}")
            seconds = SECONDS_MAX + TIMES_MAX * runs[item.nodeid].seconds
            signal.setitimer(signal.ITIMER_PROF, seconds)
            self.run(item, following)
            if self.has_failed:
                say(f"found {item.nodeid}")
                return
        say("survived")


def collect_and_run(tests: Sequence[str], runs: Runs, folder: Path, say: Say) -> None:
    """Collect those tests, and run them: in a process that has imported the mutated source."""

    def loop(listener: Listener, session: pytest.Session) -> None:
        items = {item.nodeid: item for item in session.items}
        # A table may have lost the row that was a test's parameter: the others decide.
        here = [items[one] for one in tests if one in items]
        if not here:
            say("found by the collection: its tests are gone")
            return
        listener.run_until_failure(here, runs, folder, say)

    files = [*dict.fromkeys(map(file_of, tests))]
    listener = Listener(loop)
    if pytest.main([*PYTEST, *files], [listener]) and not listener.is_run:
        say(f"found by the collection of {' '.join(files)}")
