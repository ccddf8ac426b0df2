"""Proves that the table of mistakes fits the source, and that its script tells found from lost.

Method: each mistake is made in memory and compiled; a quick one, and one that no test can find,
go through the script to their end.
"""

from __future__ import annotations

import ast
from typing import Final

import pytest

from tests.long import mutations
from tests.long.mutation import Mutation
from tests.long.mutations import MUTATIONS
from tests.support.paths import ROOT

pytestmark: Final = pytest.mark.measures


def test_names_are_unique_and_mistakes_many() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 45


def statements_with(mutation: Mutation, source: str, tree: ast.Module) -> str:
    """The top-level statements of the changed source that hold the change: all would be slow."""
    first = source.count("\n", 0, source.index(mutation.old)) + 1
    last = first + mutation.old.count("\n")
    spans = [
        (min([node.lineno, *(it.lineno for it in getattr(node, "decorator_list", ()))]), node)
        for node in tree.body
    ]
    held = [(at, node.end_lineno or at) for at, node in spans if (node.end_lineno or at) >= first]
    held = [(at, end) for at, end in held if at <= last]
    more = mutation.new.count("\n") - mutation.old.count("\n")
    lines = mutations.mutated(mutation, source).splitlines(keepends=True)
    return "".join(lines[held[0][0] - 1 : held[-1][1] + more])


def test_every_mistake_can_be_made_and_compiles() -> None:
    names = {mutation.file for mutation in MUTATIONS}
    sources = {name: (ROOT / name).read_text(encoding="utf-8") for name in names}
    trees = {name: ast.parse(source) for name, source in sources.items()}
    for mutation in MUTATIONS:
        source = sources[mutation.file]
        assert mutations.mutated(mutation, source) != source, mutation.name
        changed = statements_with(mutation, source, trees[mutation.file])
        assert mutation.new in changed, mutation.name
        compile(changed, mutation.name, "exec")


def test_every_named_test_is_there() -> None:
    for mutation in MUTATIONS:
        for node in mutations.node_ids(mutation.tests):
            path, _, name = node.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8") or not name, node


def test_a_text_that_is_gone_cannot_be_changed() -> None:
    gone = Mutation("gone", "None.", "this text is\0nowhere", "", "keys")
    assert mutations.judge(gone)[0] == "cannot be applied: old text occurs 0 times"


def test_the_script_tells_found_from_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = next(mutation for mutation in MUTATIONS if mutation.name == "paused_account")
    idle = real._replace(name="idle", old="MIB: Final = 1024 * KIB", new="MIB: Final = KIB * 1024")
    monkeypatch.setattr(mutations, "MUTATIONS", (real, idle))
    assert mutations.main([]) == 1
    told = [line.split(", ")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == [
        f"{mutations.FIRST:26} passed",
        f"{real.name:26} found",
        f"{idle.name:26} SURVIVED: {idle.promise}",
        "1 of 2 found",
    ]
