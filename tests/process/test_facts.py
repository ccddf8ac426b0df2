"""Proves that each fact about other programs is written down once, and cited by code on it.

Method: tests/FACTS.md numbers the facts.  Every citation like (F12), in the source and in the
tests, must have its fact; every fact must be cited in the source and have a source and a date; and
no comment or docstring may cite a document that is not in the repository.  Each check is tried on
texts that break it.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from typing import Final

import pytest

from tests.support.paths import ROOT

THIS: Final = "tests/process/test_facts.py"  # it breaks the rules to show that they hold
PRODUCT: Final = ("pooler.py", "mcp_server.py")
FACTS: Final = (ROOT / "tests" / "FACTS.md").read_text(encoding="utf-8")

_FACT: Final = re.compile(r"^- \*\*F([0-9]+)\*\* (.*?)(?=^- |^## |\Z)", re.MULTILINE | re.DOTALL)
_CITED: Final = re.compile(r"\bF([0-9]{1,3})\b")
_SOURCE: Final = re.compile(r"\*(?:Source|Reported|Measured)\b[^*]*\*\s*\Z")
# A section sign without a standard before it, and the names of papers that nobody else has.
_SECTION: Final = re.compile(r"(?P<standard>RFC[ \n#]+[0-9]+|X\.[0-9]+)?[ \n#]*§")
_PAPERS: Final = re.compile(
    r"\b(?:upstream|client|security|performance|mcp)[- ]facts\b|\bthe contract\b|\bcontract §"
    r"|\b(?:card|field|pains|review|style)\.md\b",
    re.IGNORECASE,
)


def numbered(text: str) -> dict[str, str]:
    """The facts of a text: number -> all of its text."""
    return {match[1]: match[2] for match in _FACT.finditer(text)}


@functools.cache
def prose_of(source: str) -> list[tuple[int, str]]:
    """Line and text of every docstring, and every comment: those on adjacent lines are one."""
    found: list[tuple[int, str]] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if line == last + 1:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{token.string}")
        else:
            found.append((line, token.string))
        last = line
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                found.append((node.body[0].lineno, text))
    return found


def citations(source: str) -> set[str]:
    return {number for _, text in prose_of(source) for number in _CITED.findall(text)}


def foreign_papers(source: str) -> list[str]:
    """Where a comment cites a document that is not in the repository."""
    found = []
    for line, text in prose_of(source):
        if any(match["standard"] is None for match in _SECTION.finditer(text)):
            found.append(f"line {line}: a section of nothing")
        found += [f"line {line}: {match[0]}" for match in _PAPERS.finditer(text)]
    return found


def unfounded(facts: dict[str, str]) -> list[str]:
    """The facts that do not end with their source, and the year in which that was so."""
    return [
        f"F{number}"
        for number, text in facts.items()
        if not (_SOURCE.search(text.strip()) and re.search(r"\b20[0-9]{2}\b|#[0-9]+", text))
    ]


def sources() -> dict[str, str]:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    installed = {"node_modules", ".venv"}  # in tests/clients
    ours = [path for path in tests if not installed & {*path.parts}]
    names = [ROOT / name for name in PRODUCT] + ours
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in names}


SOURCES: Final = sources()


def test_every_citation_has_its_fact() -> None:
    facts = numbered(FACTS)
    for name, source in SOURCES.items():
        if name != THIS:
            assert citations(source) <= facts.keys(), name


def test_every_fact_is_cited_in_the_source() -> None:
    cited: set[str] = set().union(*(citations(SOURCES[name]) for name in PRODUCT))
    assert sorted(numbered(FACTS).keys() - cited, key=int) == []


def test_facts_are_numbered_once_and_have_a_source() -> None:
    numbers = re.findall(r"^- \*\*F([0-9]+)\*\*", FACTS, re.MULTILINE)
    assert len(numbers) == len(set(numbers)) == len(numbered(FACTS))
    assert unfounded(numbered(FACTS)) == []


@pytest.mark.parametrize("name", [name for name in SOURCES if name != THIS])
def test_no_comment_cites_what_is_not_here(name: str) -> None:
    assert foreign_papers(SOURCES[name]) == []


@pytest.mark.parametrize(
    ("source", "papers"),
    [
        ("x = 1  # as in upstream facts §2.4", 2),
        ('def f():\n    """The contract says so."""', 1),
        ("# It was so (§5.1).", 1),
        ("# RFC 9112 §7.1 and RFC\n# 6455 §5.2", 0),
        ("# F12 says so, and RFC 9110 §8.6 (F64)", 0),
        ("x = '§5.1'", 0),
    ],
)
def test_references_to_missing_documents_are_found(source: str, papers: int) -> None:
    assert len(foreign_papers(source)) == papers


def test_citations_are_found_in_comments_and_docstrings_only() -> None:
    source = '"""Says (F1, F2)."""\nF3 = "F4"  # as F5 says\nasync def f():\n    """Of F6."""\n'
    assert citations(source) == {"1", "2", "5", "6"}


def test_a_fact_without_a_source_is_found() -> None:
    text = "- **F1** So.\n  *Measured: a 1.0, 2026-11.*\n\n## Next\n\n- **F2** So it is, 2026.\n"
    assert unfounded(numbered(text)) == ["F2"]
    assert numbered(text)["1"].startswith("So.")
