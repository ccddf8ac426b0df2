"""Proves that mutants are made as their kinds say, keep their names, and meet the tests they need.

Method: a small source is mutated in every way, and each mutant is read again as code; the list of
argued mutants is read against pooler.py; one mutant that a test finds, and one that hangs, go
through forked processes to their end.
"""

from __future__ import annotations

import ast
import signal
import types
from collections import deque
from pathlib import Path

import pytest

from tests.long.mutants import equivalent, forks, trial
from tests.long.mutants.covering import Run, bits_of
from tests.long.mutants.draw import DECIDING, Source, draw, named
from tests.long.mutants.equivalent import ARGUED, unfitting
from tests.long.mutants.forks import Job, Say
from tests.long.mutants.kinds import Identity
from tests.support.paths import POOLER

SMALL = '''\
"""What it is for, in words."""

import math

################################################################
# FIRST
################################################################
LENGTH_MAX: int = 10
NAMES = ("a", "b")


################################################################
# SECOND PART
################################################################
class Box:
    """A box."""

    size: int = 1

    @property
    def is_full(self) -> bool:
        return self.size >= LENGTH_MAX and not self.paused

    def put(self, thing: str, by: int = 2, *, is_late: bool = False) -> int:
        """Put a thing in."""
        assert by > 0
        if self.is_full:
            raise ValueError("the box is full now")
        for name in NAMES[1:]:
            if name == thing:
                continue
            self.size += by
        try:
            keep(thing, name, at=3)
        except (KeyError, OSError):
            self.size = min(self.size, by)
            raise
        with lock:
            log(f"put {thing}", size=self.size)
        return self.size
'''


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(SMALL)


@pytest.fixture(scope="module")
def program() -> Source:
    """The real one."""
    return Source(Path(POOLER).read_text("utf-8"))


def changed_to(source: Source, identity: Identity) -> str:
    """The whole source with that mistake in it."""
    with source.mutants[identity].site.made():
        return ast.unparse(ast.parse(ast.unparse(source.tree)))


@pytest.mark.parametrize(
    ("kind", "old", "new", "expected"),
    [
        ("comparison", "self.size >= LENGTH_MAX", "self.size > LENGTH_MAX", "> LENGTH_MAX and"),
        ("comparison", "name == thing", "name != thing", "if name != thing:"),
        ("number", "10", "11", "LENGTH_MAX: int = 11"),
        ("number", "10", "9", "LENGTH_MAX: int = 9"),
        ("default", "2", "3", "by: int=3, *"),
        ("default", "False", "True", "is_late: bool=True"),
        (
            "junction",
            "self.size >= LENGTH_MAX and (not self.paused)",
            "self.size >= LENGTH_MAX or not self.paused",
            "return self.size >= LENGTH_MAX or not self.paused",
        ),
        (
            "operand",
            "self.size >= LENGTH_MAX and (not self.paused)",
            "not self.paused",
            "return not self.paused",
        ),
        ("negation", "not self.paused", "self.paused", "LENGTH_MAX and self.paused"),
        ("negation", "self.is_full", "not self.is_full", "if not self.is_full:"),
        ("condition", "self.is_full", "False", "if False:"),
        ("operator", "self.size += by", "self.size -= by", "self.size -= by"),
        ("return", "return self.size", "return 0", "return 0"),
        (
            "statement",
            "raise ValueError('the box is full now')",
            "",
            "if self.is_full:\n            pass",
        ),
        ("statement", "self.size = min(self.size, by)", "", "OSError):\n            pass\n"),
        ("jump", "continue", "break", "break"),
        (
            "exchange",
            "keep(thing, name, at=3)",
            "keep(name, thing, at=3)",
            "keep(name, thing, at=3)",
        ),
        ("keyword", "keep(thing, name, at=3)", "keep(thing, name)", "keep(thing, name)"),
        ("string", "'a'", "'XXa'", "NAMES = ('XXa', 'b')"),
        ("entry", "('a', 'b')", "without 'a'", "NAMES = ('b',)"),
        ("slice", "1:", ":", "NAMES[:]"),
        ("handler", "except (KeyError, OSError)", "without KeyError", "except (OSError,):"),
        ("counterpart", "min(self.size, by)", "max(self.size, by)", "max(self.size, by)"),
        ("body", "for name in NAMES[1:]", "pass", "in NAMES[1:]:\n            pass\n"),
        ("wrapping", "with lock", "its body alone", "            raise\n        log("),
        ("decorator", "property", "", "size: int = 1\n\n    def is_full"),
    ],
)
def test_each_kind_makes_the_mistake_that_it_says(
    source: Source, kind: str, old: str, new: str, expected: str
) -> None:
    (identity,) = (one for one in source.mutants if one[1:4] == (kind, old, new))
    assert expected in changed_to(source, identity)
    assert ast.unparse(source.tree) == ast.unparse(ast.parse(SMALL))


def test_every_mutant_is_code_and_differs(source: Source) -> None:
    unchanged = ast.unparse(source.tree)
    for identity in source.mutants:
        code = changed_to(source, identity)
        compile(code, "small", "exec")
        assert code != unchanged, identity


def test_words_types_and_assertions_are_left_alone(source: Source) -> None:
    olds = " ".join(identity.old for identity in source.mutants if identity.kind == "string")
    assert not [word for word in ("What", "box", "put ") if word in olds]
    assert not [one for one in source.mutants if "by > 0" in one.old or one.old == "import math"]


def test_a_mutant_keeps_its_name_when_the_source_changes_elsewhere(source: Source) -> None:
    edited = SMALL.replace("class Box:", "def other(a):\n    return a >= 2\n\n\nclass Box:")
    again = Source(edited.replace("LENGTH_MAX: int", "# A comment.\nLENGTH_MAX: int"))
    assert source.mutants.keys() < again.mutants.keys()
    assert {one.id for one in source.mutants} < {one.id for one in again.mutants}


def test_equal_mutants_of_one_function_are_counted() -> None:
    twice = Source("def f(a):\n    g(a == 1)\n    g(a == 1)\n")
    found = [one for one in twice.mutants if one.kind == "comparison"]
    assert [one.occurrence for one in found] == [1, 2]
    assert changed_to(twice, found[1]) == "def f(a):\n    g(a == 1)\n    g(a != 1)"


def test_a_seed_draws_the_same_mutants_again_and_another_seed_draws_others(source: Source) -> None:
    sections = ("FIRST", "SECOND PART")
    drawn = draw(source, 19, 20, sections)
    names = [one.identity for one in drawn]
    assert names == [one.identity for one in draw(Source(SMALL), 19, 40, sections)][:20]
    assert names != [one.identity for one in draw(source, 20, 20, sections)]
    assert {source.section_of(one) for one in drawn} == {*sections}
    assert {source.section_of(one) for one in draw(source, 19, 99, ["FIRST"])} == {"FIRST"}


def test_a_mutant_is_found_by_its_short_name(source: Source) -> None:
    identity = next(iter(source.mutants))
    assert named(source, [identity.id]) == [source.mutants[identity]]


def test_the_tests_that_run_a_line_come_quickest_first(source: Source) -> None:
    line = next(n for n, text in enumerate(SMALL.splitlines(), 1) if "self.size += by" in text)
    runs = {
        "broad": Run(1.0, bits_of(range(1, 60))),
        "narrow": Run(1.0, bits_of([line])),
        "elsewhere": Run(0.1, bits_of([line + 1])),
    }
    (mutant,) = (
        one for i, one in source.mutants.items() if i[1:3] == ("operator", "self.size += by")
    )
    assert trial.tests_of(source, trial.find_uses(source.tree), mutant, runs) == ["narrow", "broad"]


def test_one_test_of_each_function_comes_before_its_other_parameters() -> None:
    runs = {"t::a[1]": Run(1.0, 1), "t::a[2]": Run(2.0, 1), "t::b": Run(3.0, 1)}
    assert trial.in_order(runs) == ["t::a[1]", "t::b", "t::a[2]"]


def test_a_constant_meets_the_tests_of_the_functions_that_read_it(source: Source) -> None:
    lines = SMALL.splitlines()
    reader = next(n for n, text in enumerate(lines, 1) if ">= LENGTH_MAX" in text)
    runs = {"reads": Run(1.0, bits_of([reader])), "other": Run(1.0, bits_of([reader + 3]))}
    (mutant,) = (one for i, one in source.mutants.items() if i[1:4] == ("number", "10", "11"))
    assert trial.tests_of(source, trial.find_uses(source.tree), mutant, runs) == ["reads"]


@pytest.mark.measures  # the whole of pooler.py is mutated
def test_an_argued_mutant_fits_the_source_and_has_a_reason(program: Source) -> None:
    assert unfitting(program) == []
    assert len(equivalent.ROWS) == len(ARGUED)
    sections = {program.section_of(program.mutants[identity]) for identity in ARGUED}
    assert sections <= {*DECIDING}


def test_an_argued_mutant_that_is_gone_or_has_no_reason_is_told(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = next(iter(source.mutants))
    lost = known._replace(place="Gone")
    monkeypatch.setattr(equivalent, "ARGUED", {known: "short", lost: "nobody can see it at all"})
    assert len(unfitting(source)) == 2
    monkeypatch.setattr(equivalent, "ARGUED", {known: "nobody can see it at all"})
    assert unfitting(source) == []


def test_a_live_function_gets_the_mutated_code() -> None:
    text = "def double(a):\n    return a * 2\n"
    source = Source(text)
    made: dict[str, types.FunctionType] = {}
    exec(compile(text, POOLER, "exec"), made)  # noqa: S102 - the line above
    (mutant,) = (one for i, one in source.mutants.items() if i.new == "a // 2")
    assert made["double"](5) == 10
    assert trial.exchange_code(source, {("double", 1): [made["double"]]}, mutant)
    assert made["double"](5) == 2


def ends_of(*works: Job) -> dict[str, str]:
    waiting = deque(works)
    ends = forks.run_jobs(lambda: waiting.popleft() if waiting else None, 2)
    return {end.job.name: end.how for end in ends}


def test_a_child_is_heard_and_one_that_spins_dies_or_raises_is_told_apart() -> None:
    def spin(say: Say) -> None:
        say("runs forever")
        signal.setitimer(signal.ITIMER_PROF, 0.01)
        while True:
            pass

    def fail(_say: Say) -> None:
        raise ValueError("odd")

    jobs = [
        Job("says", lambda say: say("survived")),
        Job("spins", spin),
        Job("raises", fail),
        Job("dies", lambda say: say("runs something")),
    ]
    ends = ends_of(*jobs)
    assert ends.pop("raises").startswith("raised ")
    assert ends == {"says": "survived", "spins": "hangs", "dies": "dies"}
