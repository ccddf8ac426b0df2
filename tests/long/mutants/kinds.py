"""The single mistakes that can be made in a source, by its syntax.  (No claims.)"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

Code = Any  # a node of whatever class, its fields read by name; or a list of nodes

TEXT_MAX: Final = 160  # of an identity's code: it is read by people; equal ones are counted

# Each operator's neighbours: what a tired person would have written.
COMPARISONS: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_PAIRS: Final = (
    ("min", "max"),
    ("any", "all"),
    ("startswith", "endswith"),
    ("removeprefix", "removesuffix"),
    ("lstrip", "rstrip"),
    ("partition", "rpartition"),
    ("split", "rsplit"),
    ("find", "rfind"),
    ("append", "appendleft"),
    ("popleft", "pop"),
    ("add", "discard"),
    ("lower", "upper"),
    ("match", "search"),
    ("fullmatch", "match"),
)
COUNTERPARTS: Final = {
    **{two: one for one, two in _PAIRS},
    **dict(_PAIRS),
}

# Fields of nodes that are for type checkers, or changed with their node.
UNCHANGED: Final = {
    *("annotation", "returns", "type_comment", "type_params"),
    *("ctx", "op", "ops", "format_spec"),
}
TYPE_CALLS: Final = {"cast", "TypeVar", "TypeVarTuple", "ParamSpec", "NewType"}
DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

# Words for people: nothing decides on them, and no test should repeat them.
PROSE: Final = re.compile(r"\w\W* \W*\w.* ", re.DOTALL)
SPACED: Final = re.compile(r"[a-z,.:;)] | [a-z(]|^[.,:;()]+$")


class Identity(NamedTuple):
    """What a mutant is called: it stays the same when the source changes elsewhere."""

    place: str  # dotted, as in `__qualname__`; "" is the module itself
    kind: str
    old: str
    new: str
    occurrence: int = 1  # among equal ones in the place, in the source's order

    @property
    def id(self) -> str:
        """Ten letters, for the command line."""
        return hashlib.sha256(repr(tuple(self)).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Where:
    """What surrounds a node."""

    place: str = ""
    function: str = ""  # the outermost function, dotted; "" for what runs at the import
    statement: ast.AST | None = None
    top: int = 0  # index of the statement at the module's level
    returns: str = ""  # what the innermost function's annotation says


@dataclass(frozen=True)
class Site:
    """A mistake that can be made: what takes the place of one child of a node."""

    owner: Any  # the node
    name: str  # its field
    index: int | None  # in a field that is a list
    put: Any  # a node; or a list, in the place of the one member

    @contextlib.contextmanager
    def made(self) -> Iterator[None]:
        """The mistake is in the tree inside the `with` block."""
        before = getattr(self.owner, self.name)
        after = self.put
        if self.index is not None:
            put = self.put if isinstance(self.put, list) else [self.put]
            after = [*before[: self.index], *put, *before[self.index + 1 :]]
        if isinstance(self.owner, ast.Dict) and self.put == []:
            values = self.owner.values
            self.owner.values = [v for at, v in enumerate(values) if at != self.index]
        else:
            values = []
        setattr(self.owner, self.name, after)
        for new in self.put if isinstance(self.put, list) else [self.put]:
            ast.fix_missing_locations(new)
        try:
            yield
        finally:
            setattr(self.owner, self.name, before)
            if values:
                self.owner.values = values


@dataclass(frozen=True)
class Mutant:
    """One mistake, where it stands, and how it is made."""

    identity: Identity
    site: Site
    where: Where
    first: int  # the lines of the code that is changed
    last: int


class Step(NamedTuple):
    """A node on the way through the tree, and how its parent holds it."""

    node: Code
    owner: Any
    name: str
    at: int | None  # in a field that is a list
    where: Where


# A kind says for a node which (new node or nodes, their text) may take its place.
Change = tuple[Code, str]
Kind = Callable[[Step], Iterator[Change]]


def text_of(node: Code) -> str:
    """The code of an expression or simple statement, on one line and not too long."""
    code = " ".join(ast.unparse(node).split())
    return code if len(code) <= TEXT_MAX else code[: TEXT_MAX - 1] + "…"


def _changed(node: Code, **fields: object) -> Code:
    """A copy of a node with other fields; its children are shared."""
    copied = copy.copy(node)
    for name, value in fields.items():
        setattr(copied, name, value)
    return copied


def _shown(node: Code) -> Change:
    return node, text_of(node)


def _constant(value: Code) -> ast.Constant:
    return ast.Constant(value)


def _replaced(items: Sequence[Any], at: int, value: Code) -> list[Any]:
    return [*items[:at], value, *items[at + 1 :]]


def _without(items: Sequence[Any], at: int) -> list[Any]:
    return [*items[:at], *items[at + 1 :]]


def compares(step: Step) -> Iterator[Change]:
    """Each comparison by its neighbours."""
    if isinstance(step.node, ast.Compare):
        for at, operator in enumerate(step.node.ops):
            for other in COMPARISONS[type(operator)]:
                yield _shown(_changed(step.node, ops=_replaced(step.node.ops, at, other())))


def numbers(step: Step) -> Iterator[Change]:
    """Each number by the next and the one before."""
    value: Any = getattr(step.node, "value", None)
    if isinstance(step.node, ast.Constant) and type(value) in {int, float}:
        for by in (1, -1):
            yield _shown(_constant(value + by))


def truths(step: Step) -> Iterator[Change]:
    """True for False, and the other way round."""
    if isinstance(step.node, ast.Constant) and isinstance(step.node.value, bool):
        yield _shown(_constant(not step.node.value))


def junctions(step: Step) -> Iterator[Change]:
    """`and` for `or`, and the other way round."""
    if isinstance(step.node, ast.BoolOp):
        other = ast.Or() if isinstance(step.node.op, ast.And) else ast.And()
        yield _shown(_changed(step.node, op=other))


def operands(step: Step) -> Iterator[Change]:
    """An operand of `and` or `or` is missing."""
    if isinstance(step.node, ast.BoolOp):
        for at in range(len(step.node.values)):
            rest = _without(step.node.values, at)
            yield _shown(rest[0] if len(rest) == 1 else _changed(step.node, values=rest))


def negations(step: Step) -> Iterator[Change]:
    """A `not` is missing, or stands before a condition."""
    if isinstance(step.node, ast.UnaryOp) and isinstance(step.node.op, ast.Not):
        yield _shown(step.node.operand)
    elif step.name == "test" and not isinstance(step.node, (ast.Compare, ast.Constant)):
        yield _shown(ast.UnaryOp(ast.Not(), step.node))


def conditions(step: Step) -> Iterator[Change]:
    """A condition that is always true, or never."""
    if step.name == "test" and not isinstance(step.node, ast.Constant):
        yield _shown(_constant(True))
        yield _shown(_constant(False))
    elif step.name == "ifs":
        yield [], ""


def operators(step: Step) -> Iterator[Change]:
    """Arithmetic and bits: the opposite operator."""
    if isinstance(step.node, (ast.BinOp, ast.AugAssign)):
        other = ARITHMETIC[type(step.node.op)]()
        yield _shown(_changed(step.node, op=other))
    if isinstance(step.node, ast.UnaryOp) and isinstance(step.node.op, (ast.USub, ast.Invert)):
        yield _shown(step.node.operand)


def returned(step: Step) -> Iterator[Change]:
    """Something simple is returned."""
    if not isinstance(step.node, ast.Return) or step.node.value is None:
        return
    by_type: dict[str, tuple[object, ...]] = {
        "bool": (True, False),
        "int": (0,),
        "float": (0.0,),
        "str": ("",),
        "bytes": (b"",),
    }
    for value in by_type.get(step.where.returns, (None,)):
        if not isinstance(step.node.value, ast.Constant):
            yield _shown(_changed(step.node, value=_constant(value)))


_SIMPLE: Final = (ast.AugAssign, ast.Raise, ast.Continue, ast.Break, ast.Delete)


def _is_removable(step: Step) -> bool:
    """Whether a statement can be missing without a name that is then unknown."""
    node = step.node
    if isinstance(node, ast.Expr):
        return isinstance(node.value, (ast.Call, ast.Await))
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and step.where.function:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets)
    if isinstance(node, ast.Return):
        # At a function's end the return is what `returned` changes.
        return not (isinstance(step.owner, DEFINITIONS) and step.owner.body[-1] is node)
    return isinstance(node, _SIMPLE)


def statements(step: Step) -> Iterator[Change]:
    """A statement is missing."""
    if _is_removable(step):
        yield [], ""


def jumps(step: Step) -> Iterator[Change]:
    """`break` for `continue`, and the other way round."""
    if isinstance(step.node, ast.Continue):
        yield _shown(ast.Break())
    elif isinstance(step.node, ast.Break):
        yield _shown(ast.Continue())


def exchanges(step: Step) -> Iterator[Change]:
    """Two arguments beside each other, exchanged."""
    arguments = step.node.args if isinstance(step.node, ast.Call) else []
    if arguments and text_of(step.node.func) in {"min", "max"}:
        return  # their order says nothing
    for at in range(len(arguments) - 1):
        one, two = arguments[at : at + 2]
        if not isinstance(one, ast.Starred) and not isinstance(two, ast.Starred):
            args = [*arguments[:at], two, one, *arguments[at + 2 :]]
            yield _shown(_changed(step.node, args=args))


def keywords(step: Step) -> Iterator[Change]:
    """A keyword argument is missing."""
    if isinstance(step.node, ast.Call):
        for at in range(len(step.node.keywords)):
            yield _shown(_changed(step.node, keywords=_without(step.node.keywords, at)))


def strings(step: Step) -> Iterator[Change]:
    """A string that the program may decide on, or that is a name on a wire, in another spelling."""
    value = getattr(step.node, "value", None)
    if not isinstance(step.node, ast.Constant) or not isinstance(value, (str, bytes)):
        return
    text = value if isinstance(value, str) else value.decode("latin-1")
    in_fstring = isinstance(step.owner, ast.JoinedStr)
    if PROSE.search(text) or (in_fstring and SPACED.search(text)):
        return
    other = f"XX{text}" if text else "XX"
    yield _shown(_constant(other if isinstance(value, str) else other.encode("latin-1")))


def slices(step: Step) -> Iterator[Change]:
    """A bound of a slice is missing."""
    if isinstance(step.node, ast.Slice):
        for name in ("lower", "upper", "step"):
            if getattr(step.node, name) is not None:
                yield _shown(_changed(step.node, **{name: None}))


def handlers(step: Step) -> Iterator[Change]:
    """An exception that is caught no longer."""
    node = step.node
    if not isinstance(node, ast.ExceptHandler) or node.type is None:
        return
    if isinstance(node.type, ast.Tuple):
        for at, one in enumerate(node.type.elts):
            rest = ast.Tuple(_without(node.type.elts, at), ast.Load())
            yield _changed(node, type=rest), f"without {text_of(one)}"
    else:
        yield _changed(node, type=ast.Tuple([], ast.Load())), "nothing"


def counterparts(step: Step) -> Iterator[Change]:
    """The opposite function or method: `max` for `min`."""
    function = step.node.func if isinstance(step.node, ast.Call) else None
    if isinstance(function, ast.Name) and function.id in COUNTERPARTS:
        other: Any = ast.Name(COUNTERPARTS[function.id], ast.Load())
        yield _shown(_changed(step.node, func=other))
    elif isinstance(function, ast.Attribute) and function.attr in COUNTERPARTS:
        other = _changed(function, attr=COUNTERPARTS[function.attr])
        yield _shown(_changed(step.node, func=other))


def bodies(step: Step) -> Iterator[Change]:
    """What a statement holds is missing."""
    node = step.node
    if isinstance(node, (ast.If, ast.For, ast.AsyncFor)) and not _is_single(node.body):
        nothing = ast.copy_location(ast.Pass(), node)
        yield _changed(node, body=[nothing]), "pass"
    if isinstance(node, ast.If) and not _is_single(node.orelse):
        yield _changed(node, orelse=[]), "no else"


def wrappings(step: Step) -> Iterator[Change]:
    """Only what a statement holds is left: no context manager, no `finally`."""
    node = step.node
    if isinstance(node, (ast.With, ast.AsyncWith)) and not node.items[0].optional_vars:
        yield [*node.body], "its body alone"
    if isinstance(node, ast.Try) and node.finalbody:
        yield (_changed(node, finalbody=[]) if node.handlers else [*node.body]), "no finally"


def _is_single(body: Sequence[ast.stmt]) -> bool:
    """Whether there is one statement at most, which `statements` leaves out by itself."""
    return len(body) <= 1


def decorators(step: Step) -> Iterator[Change]:
    """A decorator is missing."""
    if step.name == "decorator_list":
        yield [], ""


def entries(step: Step) -> Iterator[Change]:
    """A member of a display is missing."""
    node = step.node
    if isinstance(node, (ast.Set, ast.List, ast.Tuple)):
        is_stored = isinstance(getattr(node, "ctx", None), ast.Store)
        if len(node.elts) > 1 and not is_stored:
            for at, one in enumerate(node.elts):
                yield _changed(node, elts=_without(node.elts, at)), f"without {text_of(one)}"
    elif isinstance(node, ast.Dict):
        for at, key in enumerate(node.keys):
            changed = _changed(node, keys=_without(node.keys, at), values=_without(node.values, at))
            yield changed, f"without {text_of(key) if key else text_of(node.values[at])}"


KINDS: Final[dict[str, Kind]] = {
    "comparison": compares,
    "number": numbers,
    "truth": truths,
    "junction": junctions,
    "operand": operands,
    "negation": negations,
    "condition": conditions,
    "operator": operators,
    "return": returned,
    "statement": statements,
    "jump": jumps,
    "exchange": exchanges,
    "keyword": keywords,
    "string": strings,
    "slice": slices,
    "handler": handlers,
    "counterpart": counterparts,
    "body": bodies,
    "wrapping": wrappings,
    "decorator": decorators,
    "entry": entries,
}
CONSTANTS: Final = {"number", "truth", "string"}


def _head(node: Code) -> str:
    """The code of a node, without the statements inside it."""
    if isinstance(node, ast.ExceptHandler):
        return f"except {text_of(node.type)}"
    if isinstance(node, (ast.For, ast.AsyncFor)):
        return f"for {text_of(node.target)} in {text_of(node.iter)}"
    if isinstance(node, ast.If):
        return f"if {text_of(node.test)}"
    if isinstance(node, (ast.With, ast.AsyncWith)):
        return "with " + ", ".join(text_of(item) for item in node.items)
    if isinstance(node, ast.Try):
        return f"try: {text_of(node.body[0])}"
    return text_of(node)


_UNSEEN: Final = (ast.Import, ast.ImportFrom, ast.Assert, ast.Global, ast.Nonlocal)


def _is_type_only(node: Code) -> bool:
    """Whether a node is there for the type checker, for readers or as an assertion."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.ClassDef):
        return "Protocol" in map(text_of, node.bases)
    if isinstance(node, ast.Call):
        return text_of(node.func) in TYPE_CALLS
    if isinstance(node, ast.Assign):
        return not {"__all__", "__slots__"}.isdisjoint(map(text_of, node.targets))
    return isinstance(node, _UNSEEN)


def _inside(step: Step) -> Where:
    """What surrounds the nodes inside a node."""
    node, where = step.node, step.where
    if not isinstance(node, DEFINITIONS):
        return where
    place = f"{where.place}.{node.name}" if where.place else node.name
    if isinstance(node, ast.ClassDef):
        return dataclasses.replace(where, place=place)
    returns = ast.unparse(node.returns) if node.returns else ""
    function = where.function or place
    return dataclasses.replace(where, place=place, function=function, returns=returns)


def _children(step: Step) -> Iterator[Step]:
    inner = _inside(step)
    for name, value in ast.iter_fields(step.node):
        if name in UNCHANGED:
            continue
        around = inner
        if name in {"args", "decorator_list"}:
            # Defaults and decorators are read where the function is defined.
            around = dataclasses.replace(step.where, place=inner.place)
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.stmt):
                around = dataclasses.replace(around, statement=child)
            if isinstance(child, ast.AST):
                yield Step(child, step.node, name, index if child is not value else None, around)


def _walk(step: Step) -> Iterator[Step]:
    if _is_type_only(step.node):
        return
    yield step
    for child in _children(step):
        yield from _walk(child)


def _in_default(step: Step) -> bool:
    return step.name in {"defaults", "kw_defaults"}


def _assigned(statement: ast.stmt) -> str:
    """The name that a statement assigns, or ""."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return next((target.id for target in targets if isinstance(target, ast.Name)), "")


def find_mutants(tree: ast.Module) -> Iterator[Mutant]:
    """Each mistake that can be made in a module, in the order of its source."""
    seen: Counter[Identity] = Counter()
    for top, statement in enumerate(tree.body):
        where = Where(place=_assigned(statement), statement=statement, top=top)
        line = statement.lineno
        for step in _walk(Step(statement, tree, "body", top, where)):
            line = getattr(step.node, "lineno", line)
            last = getattr(step.node, "end_lineno", line)
            if isinstance(step.node, (ast.If, ast.For, ast.AsyncFor)):
                last = step.node.body[0].lineno
            for kind, changes in KINDS.items():
                shown_kind = "default" if _in_default(step) and kind in CONSTANTS else kind
                for put, new in changes(step):
                    named = Identity(step.where.place, shown_kind, _head(step.node), new)
                    seen[named] += 1
                    site = Site(step.owner, step.name, step.at, _placed(step.node, put))
                    yield Mutant(
                        named._replace(occurrence=seen[named]), site, step.where, line, last
                    )


def _placed(node: Code, put: Code) -> Code:
    """What takes the place of a node, on the node's lines; no body becomes empty."""
    if put == [] and isinstance(node, ast.stmt):
        put = ast.Pass()
    for new in put if isinstance(put, list) else [put]:
        if not hasattr(new, "lineno"):
            ast.copy_location(new, node)
    return put


def sections_of(source: str) -> list[tuple[int, str]]:
    """The first line and the name of each section of pooler.py."""
    lines = source.splitlines()
    found = [(1, "")]
    for number in range(1, len(lines) - 1):
        is_rule = lines[number - 1].startswith("#####") and lines[number + 1].startswith("#####")
        if is_rule and re.fullmatch(r"# [A-Z][A-Z ,]+", lines[number]):
            found.append((number + 1, lines[number][2:]))
    return found
