"""Proves that the tables of mistakes fit the source, and that their script tells found from lost.

Method: each mistake is made in memory and compiled; a quick one, and one that no test can find,
go through the script to their end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.long import mutations
from tests.long.mutations import MUTATIONS
from tests.long.mutations import __main__ as script
from tests.long.mutations.apply import FILES, Mutation, Program
from tests.support.paths import ROOT

pytestmark: Final = pytest.mark.measures

SMALL = """\
AT_MOST: int = 10
TABLE = {1: "a b c", 2: f"{AT_MOST}", **{3: "d"}}


class Box:
    size: int = 1

    @property
    def value(self, by: int = 2) -> int:
        if self.size > by:  # a comment
            return (self.size +
                    1)
        def inner() -> int:
            return by
        return inner()
"""


def changed(place: str, old: str, new: str, times: int = 1) -> str:
    row = Mutation("name", "Promise.", place, old, new, "keys", times)
    name, source = Program({"pooler.py": SMALL, "mcp_server.py": ""}).apply(row)
    assert name == "pooler.py"
    compile(source, "small", "exec")
    return source


@pytest.mark.parametrize(
    ("place", "old", "new", "expected"),
    [
        ("AT_MOST", "10", "11", "AT_MOST: int = 11\n"),
        ("", "AT_MOST: int = 10", "AT_MOST = 1", "AT_MOST = 1\n"),
        ("TABLE", "1: 'a b c'", "", "TABLE = {2: f'{AT_MOST}', **{3: 'd'}}"),
        ("TABLE", "1: 'a b c'", "1: '', 4: ''", "TABLE = {1: '', 4: '', 2: f'"),
        ("TABLE", "**{3: 'd'}", "", "TABLE = {1: 'a b c', 2: f'{AT_MOST}'}"),
        ("TABLE", "'…b …'", "'……'", "TABLE = {1: 'a c', 2: f'"),
        ("TABLE", "AT_MOST", "1", "2: f'{1}'"),
        ("Box.size", "1", "2", "    size: int = 2\n"),
        ("Box", "size: int = 1", "", "class Box:\n\n    @property"),
        ("Box.value", "property", "staticmethod", "    @staticmethod\n"),
        ("Box.value", "2", "3", "(self, by: int=3)"),
        ("Box.value", "self.size + 1", "self.size", "            return self.size\n"),
        (
            "Box.value",
            "if self.size > by:\n    return self.size + 1",
            "return 5",
            "        return 5\n",
        ),
        ("Box.value", "return self.size + 1", "", "if self.size > by:\n            pass\n"),
        ("Box.value.inner", "return by", "return 1", "            return 1\n"),
    ],
)
def test_code_is_changed_wherever_it_stands_in_its_place(
    place: str, old: str, new: str, expected: str
) -> None:
    assert expected in changed(place, old, new)


def test_code_is_there_as_often_as_the_row_says() -> None:
    assert changed("Box.value", "by", "0", 2).count("0") == 3
    with pytest.raises(LookupError, match="2 times"):
        changed("Box.value", "by", "0")
    with pytest.raises(LookupError, match="0 times"):
        changed("Box.size", "by", "0")
    with pytest.raises(LookupError, match=r"there is no Box\.value\.outer"):
        changed("Box.value.outer", "by", "0")


def test_names_are_unique_and_mistakes_many() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 45


def test_every_table_is_used() -> None:
    files = {path.stem for path in Path(mutations.__path__[0]).glob("*.py")}
    tables = {table.__name__.rpartition(".")[2] for table in mutations.TABLES}
    assert files - {"__init__", "__main__", "apply"} == tables


def test_every_mistake_can_be_made_and_compiles() -> None:
    program = Program({name: (ROOT / name).read_text("utf-8") for name in FILES})
    failures = []
    for mutation in MUTATIONS:
        try:
            assert mutation.old != mutation.new
            compile(program.changed_part(mutation), mutation.name, "exec")
        except (LookupError, SyntaxError, AssertionError) as error:
            failures.append(f"{mutation.name}: {error}")
    assert failures == []


def test_every_named_test_is_there() -> None:
    for mutation in MUTATIONS:
        for node in script.node_ids(mutation.tests):
            path, _, name = node.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text("utf-8") or not name, node


def test_code_that_is_gone_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Mutation("gone", "None.", "Server", "no_such_name", "None", "keys")
    monkeypatch.setattr(mutations, "MUTATIONS", (gone,))
    assert script.main(["--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{'gone':26} at Server: the old code is there 0 times"
    assert lines[-1] == "0 of 1 can be applied"


def test_the_script_tells_found_from_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = next(mutation for mutation in MUTATIONS if mutation.name == "paused_account")
    idle = real._replace(name="idle", place="MIB", old="1024 * KIB", new="KIB * 1024")
    monkeypatch.setattr(mutations, "MUTATIONS", (real, idle))
    assert script.main([]) == 1
    lines = [line.split(", ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        f"{script.FIRST:26} passed",
        f"{real.name:26} found",
        f"{idle.name:26} SURVIVED: {idle.promise}",
        "1 of 2 found",
    ]
