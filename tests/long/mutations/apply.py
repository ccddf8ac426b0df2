"""A single mistake in the program, and how it is made in the source.  (No claims.)"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

FILES: Final = ("pooler.py", "mcp_server.py")

# What a node must consist of to count as the same: wording and layout of the source do not matter.
Shape = tuple[object, ...]


class Mutation(NamedTuple):
    """One mistake: in the definition `place`, the code `old` becomes `new`.

    `place` is a function, method, class or assigned name in one of FILES, dotted from the module
    level ("Server.serve", "_BY_STATUS", "Limits.body_bytes_max"); "" means anywhere.  `old` and
    `new` are both parts of one string ('…part…'), expressions, entries of a dictionary ("404: x")
    or statements; an empty `new` deletes.  `old` is there exactly `times` times.  `tests` leaves
    out every "test_".
    """

    name: str
    promise: str
    place: str
    old: str
    new: str
    tests: str
    times: int = 1


Rows = tuple[tuple[str, str, str, str, str, str], ...]


class Snippet(NamedTuple):
    """Parsed code of a row: a run of siblings in a tree; entries are pairs of key and value."""

    kind: str
    nodes: list[Any]


def _parse(code: str, kind: str) -> list[Any]:
    """Raises: SyntaxError, if the code is not of that kind."""
    if kind == "statements":
        return [*ast.parse(code).body]
    if kind == "expression":
        return [ast.parse(code, mode="eval").body]
    # The first entry makes a dictionary of it, whatever follows.
    entries = ast.parse(f"{{0: 0, {code}\n}}", mode="eval").body
    assert isinstance(entries, ast.Dict)
    return [*zip(entries.keys, entries.values, strict=True)][1:]


def _text_part(nodes: list[Any]) -> str | None:
    """What stands between the ellipses of a string, if this is one."""
    value = getattr(nodes[0], "value", None) if nodes else None
    if isinstance(value, str) and len(value) >= 2 and value[0] == value[-1] == "…":
        return value[1:-1]
    return None


def parse_pair(old: str, new: str) -> tuple[Snippet, list[Any]]:
    """The code to find and what takes its place: the first kind that both of them are.

    Raises: SyntaxError.
    """
    for kind in ("expression", "entries"):
        try:
            found, put = Snippet(kind, _parse(old, kind)), _parse(new, kind)
        except SyntaxError:
            continue
        texts = _text_part(found.nodes), _text_part(put)
        return found if None in texts else Snippet("text", [*texts]), put
    return Snippet("statements", _parse(old, "statements")), _parse(new, "statements")


def shape(node: object) -> Shape:
    """Equal for two nodes that are written differently but parsed alike, loaded or stored."""
    if isinstance(node, ast.expr_context):
        return ("context",)
    if isinstance(node, ast.AST):
        return (type(node), *(shape(value) for _, value in ast.iter_fields(node)))
    if isinstance(node, (list, tuple)):
        return (list, *map(shape, node))
    return (type(node), node)


def _members(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What is defined or assigned directly inside a module, class or function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child.name, child
            continue
        targets = child.targets if isinstance(child, ast.Assign) else []
        if isinstance(child, ast.AnnAssign):
            targets = [child.target]
        yield from ((target.id, child) for target in targets if isinstance(target, ast.Name))
        if isinstance(child, ast.stmt):
            yield from _members(child)


def nodes_at(tree: ast.Module, place: str) -> list[ast.AST]:
    """All definitions of that dotted name."""
    nodes: list[ast.AST] = [tree]
    for name in filter(None, place.split(".")):
        nodes = [node for parent in nodes for own, node in _members(parent) if own == name]
    return nodes


def _swap_run(items: list[Any], old: Snippet, new: list[Any]) -> int:
    """Replace each run of siblings that looks like `old`, else look inside; how many there were."""
    count = at = 0
    wanted = [shape(node) for node in old.nodes]
    while at < len(items):
        run = items[at : at + len(wanted)]
        if type(run[0]) is type(old.nodes[0]) and [*map(shape, run)] == wanted:
            items[at : at + len(wanted)] = copy.deepcopy(new)
            count, at = count + 1, at + len(new)
            continue
        inner = run[0] if isinstance(run[0], tuple) else (run[0],)
        count += sum(swap(node, old, new) for node in inner if isinstance(node, ast.AST))
        at += 1
    return count


def _swap_entries(node: ast.Dict, old: Snippet, new: list[Any]) -> int:
    entries: list[Any] = [*zip(node.keys, node.values, strict=True)]
    count = _swap_run(entries, old, new)
    node.keys, node.values = [key for key, _ in entries], [value for _, value in entries]
    return count


def _swap_text(node: ast.AST, old: str, new: str) -> int:
    """Replace a part of the strings, and of the bytes, inside `node`."""
    count = 0
    for part in ast.walk(node):
        value = part.value if isinstance(part, ast.Constant) else None
        if isinstance(part, ast.Constant) and isinstance(value, str):
            count += value.count(old)
            part.value = value.replace(old, new)
        elif isinstance(part, ast.Constant) and isinstance(value, bytes):
            count += value.count(old.encode())
            part.value = value.replace(old.encode(), new.encode())
    return count


def swap(node: ast.AST, old: Snippet, new: list[Any]) -> int:
    """Replace `old` everywhere inside `node`; how often it was there."""
    if old.kind == "text":
        return _swap_text(node, *old.nodes)
    if isinstance(node, ast.Dict) and old.kind == "entries":
        return _swap_entries(node, old, new)
    count = 0
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            count += _swap_run(value, old, new)
            if name == "body" and not value and isinstance(node, ast.stmt):
                value.append(ast.Pass())
        elif isinstance(value, ast.AST):
            single = [value]
            count += _swap_run(single, old, new)
            setattr(node, name, single[0])
    return count


class Program:
    """The parsed sources: parsed once, changed in copies."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.sources = sources
        self.trees = {name: ast.parse(source) for name, source in sources.items()}

    def _parts(self, mutation: Mutation) -> tuple[str, list[tuple[ast.stmt, str]]]:
        """The file that is changed, its top-level statements that are, and their new code.

        Raises: SyntaxError, if `old` or `new` is no code.
        Raises: LookupError, if `old` is not at `place` as often as it should be.
        """
        old, new = parse_pair(mutation.old, mutation.new)
        count, is_place = 0, False
        changed: dict[str, list[tuple[ast.stmt, str]]] = {}

        for name, tree in self.trees.items():
            for statement in tree.body:
                if not nodes_at(ast.Module([statement], []), mutation.place):
                    continue
                is_place = True
                part = ast.Module([copy.deepcopy(statement)], [])
                swapped = sum(swap(node, old, new) for node in nodes_at(part, mutation.place))
                if swapped:
                    count += swapped
                    changed.setdefault(name, []).append((statement, ast.unparse(part)))

        if not is_place:
            raise LookupError(f"there is no {mutation.place}")
        if count != mutation.times or len(changed) != 1:
            raise LookupError(f"the old code is there {count} times")
        ((name, parts),) = changed.items()
        return name, parts

    def apply(self, mutation: Mutation) -> tuple[str, str]:
        """The file that is changed and its new source.  Raises: LookupError, SyntaxError."""
        name, parts = self._parts(mutation)
        lines = self.sources[name].splitlines(keepends=True)
        for statement, code in reversed(parts):  # what stands before it keeps its lines
            decorators = getattr(statement, "decorator_list", [])
            first = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
            lines[first - 1 : statement.end_lineno] = [code, "\n"]
        return name, "".join(lines)

    def changed_part(self, mutation: Mutation) -> str:
        """The new code of the top-level statements that are changed."""
        return "\n".join(code for _, code in self._parts(mutation)[1])
