"""Finds what sees foreign bytes, makes inputs that hurt it, and measures how its time grows.

Patterns are found in a module's globals, in its classes and in its calls of `re`; parsers by the
annotations of their arguments.  Inputs for a pattern are made from its parse tree.  (No claims.)
"""

from __future__ import annotations

import ast
import gc
import importlib
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import mcp_server
import pooler

Function = ast.FunctionDef | ast.AsyncFunctionDef
Run = Callable[[], object]
Maker = Callable[[int], Run]  # a run on an input of so many units

################################################################
# HOW TIME GROWS
################################################################
# Processor time, of which a busy machine steals little.  What looks bad is measured again, and is
# believed if it looks bad every time.  The garbage collector waits: it counts all objects of the
# process, which are those of a thousand other tests.

QUICK_SECONDS: Final = 0.0005  # too short to be judged, and nothing that could hurt
LONG_SECONDS: Final = 0.25  # so long a run is not doubled any more
STEEP: Final = 1.5  # the exponent: linear work shows 1, quadratic 2
HOPELESS: Final = 3.3  # the exponent of what is not run again with twice as much
APART: Final = 1.4  # sizes closer than this show noise as a large exponent
ROUNDS: Final = 5
ROUNDS_MIN: Final = 2  # one slow run alone shows nothing
CONFIRMATIONS: Final = 3


def seconds_of(run: Run, times: int = 1) -> float:
    """The processor time of a run, at best of so many, or fewer if it takes long."""
    taken: list[float] = []
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        while len(taken) < times and sum(taken) < LONG_SECONDS:
            began = time.process_time()
            run()
            taken.append(time.process_time() - began)
    finally:
        if is_collecting:
            gc.enable()
    return min(taken)


def exponent(before: float, after: float, ratio: float) -> float:
    return math.log(max(after, 1e-7) / max(before, 1e-7)) / math.log(ratio)


def sizes(largest: int) -> Iterator[int]:
    """Small ones first and close together: exponential work shows there, and ends."""
    size = 4.0
    while size < largest:
        yield int(size)
        size *= 1.5 if size < 64 else 2
    yield largest


def growth(make: Maker, steps: Iterable[int]) -> str | None:
    """How the time grows, if it grows faster than the input; None if it does not."""
    before, last = 0.0, 0
    for size in steps:
        took = seconds_of(make(size))
        is_steep = last and exponent(before, took, size / last) > STEEP
        if took > QUICK_SECONDS and is_steep and (told := confirmed_often(make, last, size)):
            return told
        if took > LONG_SECONDS:
            return None
        before, last = took, size
    return None


def _rounds(runs: tuple[Run, ...]) -> Iterator[tuple[float, ...]]:
    """The seconds of each run, round after round, until there are enough or they took too long."""
    spent = 0.0
    for number in range(1, ROUNDS + 1):
        taken = tuple(seconds_of(run) for run in runs)
        yield taken
        spent += sum(taken)
        if spent > LONG_SECONDS and number >= ROUNDS_MIN:
            return


def confirmed_often(make: Maker, small: int, large: int) -> str | None:
    """The last of what `confirmed` says, if it finds growth each time."""
    told = None
    for _ in range(CONFIRMATIONS):
        told = confirmed(make, small, large)
        if told is None:
            return None
    return told


def confirmed(make: Maker, small: int, large: int) -> str | None:
    """How the time grows between two sizes, measured again, and once more with twice as much.

    The two are measured in turn, and the best of each counts: what else the machine does then
    slows neither of them alone.
    """
    runs = make(small), make(large)
    first, second = (min(taken) for taken in zip(*_rounds(runs), strict=True))
    power = exponent(first, second, large / small)
    is_apart = large / small >= APART
    if is_apart and power > HOPELESS and second > QUICK_SECONDS:
        return f"{large} units take {second:.4f} s, {small} took {first:.6f} s"
    third = seconds_of(make(2 * large), 3)
    if min(power, exponent(second, third, 2)) <= STEEP or third < 4 * QUICK_SECONDS:
        return None
    return f"{large} units take {second:.4f} s, twice as many {third:.4f} s"


################################################################
# PATTERNS
################################################################

PATTERN_CALLS: Final = frozenset(
    {"compile", "search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn"}
)
METHODS: Final = PATTERN_CALLS - {"compile"}


@dataclass
class Patterns:
    """The patterns of a module, by where they are, and the calls that could not be read."""

    found: dict[str, re.Pattern[Any]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # the functions that they stand in
    methods: dict[str, set[str]] = field(default_factory=dict)  # how a named one is used


def patterns_in(value: object, name: str) -> Iterator[tuple[str, re.Pattern[Any]]]:
    """The compiled patterns in a value, which may hold others."""
    if isinstance(value, re.Pattern):
        yield name, value
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from patterns_in(member, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, member in enumerate(value):
            yield from patterns_in(member, f"{name}[{index}]")


def placed(tree: ast.AST, place: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every node with the dotted name of the class and function that it is written in."""
    for child in ast.iter_child_nodes(tree):
        yield place, child
        inner = place
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{place}.{child.name}".lstrip(".")
        yield from placed(child, inner)


def methods_in(source: str) -> dict[str, set[str]]:
    """By name of what has them, the methods of patterns that are called, or handed on."""
    found: dict[str, set[str]] = {}
    for _, node in placed(ast.parse(source)):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            continue
        if node.attr in METHODS:
            found.setdefault(node.value.id, set()).add(node.attr)
    return found


def patterns_of(module: ModuleType, source: str) -> Patterns:
    """All patterns of a module, whatever they are used for."""
    known = Patterns(methods=methods_in(source))
    for name, value in list(vars(module).items()):
        known.found |= dict(patterns_in(value, name))
        if isinstance(value, type) and value.__module__ == module.__name__:
            for member, inner in vars(value).items():
                known.found |= dict(patterns_in(inner, f"{name}.{member}"))
    compiled = {pattern.pattern for pattern in known.found.values()}
    for place, node in placed(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        if isinstance(owner, ast.Name) and owner.id == "re" and name in PATTERN_CALLS:
            try:
                text = eval(  # noqa: S307 (an expression of the source)
                    compile(ast.Expression(node.args[0]), f"<{place}>", "eval"), dict(vars(module))
                )
            except NameError:
                known.unread.append(place)
                continue
            pattern = re.compile(text)
            if pattern.pattern not in compiled or name != "compile":
                before = sum(one.partition(" ")[0] == place for one in known.found)
                known.found[f"{place} {before + 1}" if before else place] = pattern
    return known


class Pump(NamedTuple):
    """A text that may hurt: `unit` is repeated."""

    before: str
    unit: str
    behind: str

    def text(self, count: int) -> str:
        return self.before + self.unit * count + self.behind


_PARSER: Any = importlib.import_module("re._parser")
_NAMES: Any = importlib.import_module("re._constants")
ALPHABET: Final = [chr(code) for code in (*range(128), 0xE9, 0xFF, 0x2028, 0x1F600)]
SEEDS: Final = 3
SUFFIXES: Final = ("", "\0", "!")


def is_in(char: str, items: Iterable[tuple[Any, Any]]) -> bool:
    """Whether a set of a parse tree has a character."""
    is_negated = is_found = False
    for kind, value in items:
        if kind is _NAMES.NEGATE:
            is_negated = True
        elif kind is _NAMES.LITERAL:
            is_found |= ord(char) == value
        elif kind is _NAMES.RANGE:
            is_found |= value[0] <= ord(char) <= value[1]
        else:
            name = str(value).lower().removeprefix("category_")
            letter = {"digit": "d", "space": "s", "word": "w"}[name.removeprefix("not_")]
            letter = letter.upper() if name.startswith("not_") else letter
            is_found |= re.match(f"\\{letter}", char) is not None
    return is_found != is_negated


def chars_of(kind: object, value: Any) -> list[str]:  # noqa: ANN401 (of a parse tree)
    """Of one node that takes a single character: those of the alphabet that it takes."""
    if kind is _NAMES.LITERAL:
        return [chr(value)]
    if kind is _NAMES.NOT_LITERAL:
        return [char for char in ALPHABET if ord(char) != value]
    if kind is _NAMES.ANY:
        return [char for char in ALPHABET if char != "\n"]
    return [char for char in ALPHABET if is_in(char, value)] if kind is _NAMES.IN else []


def inner_of(kind: object, value: Any) -> list[Any]:  # noqa: ANN401
    """The sequences inside a node."""
    if kind is _NAMES.BRANCH:
        return list(value[1])
    if kind in {_NAMES.SUBPATTERN, _NAMES.MAX_REPEAT, _NAMES.MIN_REPEAT, _NAMES.POSSESSIVE_REPEAT}:
        return [value[-1]]
    if kind in {_NAMES.ASSERT, _NAMES.ATOMIC_GROUP}:
        return [value[-1] if kind is _NAMES.ASSERT else value]
    return []


def sample(sequence: Iterable[Any], rng: random.Random) -> str:
    """A text that a sequence of nodes matches, or nearly."""
    made = ""
    for kind, value in sequence:
        if chars := chars_of(kind, value):
            made += rng.choice(chars)
        elif inner := inner_of(kind, value):
            count = 1
            if "REPEAT" in str(kind):
                count = rng.randint(value[0], min(max(value[0], 1) + 1, int(value[1])))
            made += "".join(sample(rng.choice(inner), rng) for _ in range(count))
    return made


def pumps(pattern: re.Pattern[Any], seed: int = 0) -> set[Pump]:
    """Texts that repeat each part of a pattern that may be repeated, or that a search may begin."""
    rng = random.Random(seed)
    found: set[Pump] = set()

    def walk(sequence: Any, before: str) -> None:  # noqa: ANN401
        nodes = list(sequence)
        for at, (kind, value) in enumerate(nodes):
            lead = before + sample(nodes[:at], rng)
            units = {lead + sample(nodes[at : at + 1], rng)}  # begun again and again
            for inner in inner_of(kind, value):
                if "REPEAT" in str(kind):
                    units |= {sample(inner, rng) for _ in range(SEEDS)}
                    units |= set(common_chars(inner, nodes[at + 1 :]))
                walk(inner, lead)
            for unit in filter(None, units):
                for behind in SUFFIXES:
                    found.add(Pump(lead, unit, behind))
                    found.add(Pump("", unit, behind + sample(nodes[at + 1 :], rng)[:-1]))

    walk(_PARSER.parse(pattern.pattern, pattern.flags), "")
    return found


def common_chars(inner: Iterable[Any], others: Iterable[Any], most: int = 4) -> list[str]:
    """Characters that a repeated part takes, and what follows it takes as well."""

    def heads(sequence: Iterable[Any]) -> set[str]:
        chars: set[str] = set()
        for kind, value in sequence:
            chars.update(chars_of(kind, value))
            for one in inner_of(kind, value):
                chars |= heads(one)
        return chars

    both = sorted(heads(inner) & heads(others))
    return both[:: max(1, len(both) // most)]


def uses(
    pattern: re.Pattern[Any], methods: Iterable[str], extra: Iterable[str] = ()
) -> Iterator[tuple[str, int, Maker]]:
    """What may hurt a pattern: in words, the characters of one unit, and the run of a use.

    `extra`: more units to repeat.
    """
    is_text = isinstance(pattern.pattern, str)
    for pump in sorted(pumps(pattern) | {Pump("", unit, "\0") for unit in extra}):
        for method in sorted(methods):
            use = getattr(pattern, method)

            def make(size: int, pump: Pump = pump, use: Any = use, method: str = method) -> Run:  # noqa: ANN401
                told = pump.text(size)
                text: Any = told if is_text else told.encode("latin-1", "replace")
                if method in {"sub", "subn"}:
                    return lambda: use(text[:0], text)
                return lambda: list(use(text) or ()) if method == "finditer" else use(text)

            yield f"{method} of {pump.before[:40]!r} + {pump.unit[:40]!r} * n", len(pump.unit), make


def check_pattern(
    pattern: re.Pattern[Any], methods: Iterable[str], extra: Iterable[str], chars_max: int
) -> str | None:
    """On which text the time of a pattern grows too fast, and how; None if on none."""
    for words, length, make in uses(pattern, methods, extra):
        if told := growth(make, sizes(max(8, chars_max // length))):
            return f"{words}: {told}"
    return None


def worst_use(pattern: re.Pattern[Any], methods: Iterable[str], chars_max: int) -> tuple[str, Run]:
    """The use that takes longest for each character, with a text of so many."""
    slowest = -1.0
    found: tuple[str, int, Maker] | None = None
    for words, length, make in uses(pattern, methods):
        took = seconds_of(make(4096 // length + 1), 2) / (4096 + length)
        if took > slowest:
            slowest, found = took, (words, length, make)
    assert found is not None
    words, length, make = found
    return words, make(chars_max // length + 1)


################################################################
# PARSERS
################################################################


class Parser(NamedTuple):
    """A function or method that is given something foreign."""

    name: str  # with its class
    arguments: tuple[tuple[str, str], ...]  # names and annotations, without `self`
    section: str


def parsers_of(
    source: str, foreign: Iterable[str], ours: Iterable[str], until: str
) -> list[Parser]:
    """The functions above the section `until` that have an argument of a foreign kind.

    `ours`: names of arguments that are of such a kind, and made by us.
    """
    box = re.compile(r"^#{64}\n# ([A-Z][A-Z ]*)\n#{64}$", re.MULTILINE)
    sections = [(source.count("\n", 0, match.start()), match[1]) for match in box.finditer(source)]
    border = min((line for line, name in sections if name == until), default=10**9)
    found = []
    for place, node in placed(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.lineno > border:
            continue
        given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        pairs = [(one.arg, ast.unparse(one.annotation)) for one in given if one.annotation]
        if any(kind in set(foreign) and name not in set(ours) for name, kind in pairs):
            section = [name for line, name in sections if line < node.lineno][-1:]
            name = f"{place}.{node.name}".lstrip(".")
            found.append(Parser(name, tuple(pairs), "".join(section)))
    return found


MODULES: Final = {module.__name__: module for module in (pooler, mcp_server)}
SOURCES: Final = {
    name: Path(str(module.__file__)).read_text(encoding="utf-8")
    for name, module in MODULES.items()
}  # fmt: skip
PATTERNS: Final = {name: patterns_of(MODULES[name], SOURCES[name]) for name in MODULES}
EVERY_METHOD: Final = frozenset({"search", "match", "fullmatch"})
# Calls with a pattern that is an argument of the function that they stand in, and why that is well.
BY_ARGUMENT: Final[Mapping[str, str]] = {
    "_text.check": "of pools.json, the operator's own; the table of its fields has the pattern",
    "_named.check": "the same",
}
NAMED: Final = [(module, name) for module in PATTERNS for name in PATTERNS[module].found]


def methods_of(module: str, name: str) -> Iterable[str]:
    return PATTERNS[module].methods.get(name, EVERY_METHOD)


RESPONSES: Final[dict[str, Callable[[], Any]]] = {
    "responses": lambda: pooler.ResponsesTranslator(pooler.OutputCollector(2**25)),
    "responses, collected": lambda: pooler.ResponsesTranslator(
        pooler.OutputCollector(2**25, is_whole=True)
    ),
    "chat": lambda: pooler.ChatTranslator(pooler.OutputCollector(2**25), request_id="r"),
    "chat, collected": lambda: pooler.ChatTranslator(
        pooler.OutputCollector(2**25, is_whole=True), request_id="r"
    ),
    "none": lambda: None,
}
