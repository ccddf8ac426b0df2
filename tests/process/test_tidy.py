"""Proves that the source keeps its own rules: size, style, order, purity, one reveal, few risks.

Method: each check reads a source text with `ast`, `tokenize` or radon and returns its complaints.
The real files must give none, or at most as many as CEILINGS says, and a snippet that breaks a rule
must give the right one.  Each text is parsed once.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import pytest
from radon.complexity import cc_visit
from radon.visitors import Class

from tests.support.paths import ROOT

POOLER: Final = (ROOT / "pooler.py").read_text(encoding="utf-8")

COLUMNS_MAX: Final = 100
TEST_LINES_MAX: Final = 1000
FUNCTION_LINES_MAX: Final = 60
COMPLEXITY_MAX: Final = 10  # as radon counts it: and, or, if-else and comprehensions, too
STEPLESS_LINES_MAX: Final = 15  # of a function's body without a blank line
STATEMENTS_MAX: Final = 12  # that follow each other without a blank line or a comment

# What may be at most in a file, today and in the end.  Only a smaller figure may be written here.
CEILINGS: Final[dict[str, dict[str, tuple[int, int]]]] = {
    "pooler.py": {
        "tokens": (118_760, 49_000),
        "tokens_per_100_lines": (850, 850),
        "longest_class": (340, 300),
        "check_length": (0, 0),
        "check_complexity": (0, 0),
        "check_one_condition": (0, 0),
        "check_steps": (0, 0),
        "check_predicates": (0, 0),
        "check_composition": (0, 0),
    },
    "mcp_server.py": {
        "tokens": (17_400, 16_000),
        "tokens_per_100_lines": (850, 850),
        "longest_class": (100, 100),
        "check_length": (0, 0),
        "check_complexity": (0, 0),
        "check_one_condition": (0, 0),
        "check_steps": (0, 0),
        "check_predicates": (0, 0),
        "check_composition": (0, 0),
    },
}
# Lines of comment and docstring for 100 of code, at least: today and in the end.
PROSE_FLOORS: Final = {"pooler.py": (37, 30), "mcp_server.py": (30, 30)}
# Places that would be worse if they kept a rule, and why: at most ten.
EXCEPTIONS: Final[dict[str, str]] = {}
EXCEPTIONS_MAX: Final = 10

SECTIONS: Final = (
    "LIMITS",
    "ERRORS",
    "JSON",
    "SECRETS",
    "CREDENTIALS",
    "CONFIGURATION",
    "SETUP",
    "KEYS",
    "ROUTES",
    "HTTP SYNTAX",
    "WEBSOCKET SYNTAX",
    "REQUEST BODIES",
    "EVENT STREAMS",
    "TRANSLATION",
    "VERDICTS",
    "ACCOUNTS",
    "RECORDS",
    "CONNECTIONS",  # from here on code may block
    "FILES",
    "LOG",
    "UPSTREAM",
    "TOKENS",
    "NOTICES",
    "RELAY",
    "WEBSOCKET",
    "OPERATORS",
    "SERVER",
    "COMMAND LINE",
)
FIRST_BLOCKING: Final = "CONNECTIONS"

# Every function that opens a nursery, and every one that catches all bugs.  A new entry is a
# decision about concurrency or about hiding errors, so it is taken here, in the open.
NURSERIES: Final = frozenset(
    {
        "Server.serve",  # the services, and one task for each connection
        "Server.serve_connection",  # the reader of one connection
        "QuotaWatch.run",  # a few requests for quota
        "WebSockets.serve_socket",  # the readers of a client's WebSocket and its upstream's
        "UpstreamConnection.send_rest",  # the reader of an answer that comes before its time
        "Demo.run",  # the server, and the built-in upstream
        "serve_demo_socket",  # the reader of a WebSocket
        "ask_accounts",  # one request to each of a few accounts, and refreshes
        "serve_with_signals",  # the server, beside the wait for signals
    }
)
BUG_CATCHERS: Final = frozenset(
    {
        "Relay.relay_on",  # a stream that has begun still gets its end
        "Exchanges.conclude",  # a request is answered
        "Server.serve_connection",  # a bug stays within its connection
        "ClientSocket.guard",  # the client is told, and the turn under way has its last event
        "StateKeeper.restore",  # the server starts, without a part of its state
        "StateKeeper.save",  # the server goes on, and operators see that nothing is saved
        "run_serve",  # the server ends, and the log says where the bug is but not its text
    }
)

# What the pure half may not touch: whatever an import of these modules binds, and these names.
BLOCKING_MODULES: Final = frozenset(
    "trio trio_websocket time random secrets os socket select selectors asyncio threading "
    "subprocess signal tempfile shutil uuid urllib.request http.client".split()
)
BLOCKING_NAMES: Final = frozenset({"open", "input", "print", "breakpoint", "__import__"})
CLOCKS: Final = frozenset({"now", "utcnow", "today"})
FILE_METHODS: Final = frozenset(
    "read_text read_bytes write_text write_bytes exists is_file is_dir unlink touch mkdir "
    "iterdir glob resolve cwd home expanduser".split()
)

TOP_LEVEL: Final = frozenset(
    "pyproject.toml README.md LICENSE CHANGELOG.md SECURITY.md pooler.py mcp_server.py "
    "pools.json.example tests".split()
)
LEFT_BEHIND: Final = frozenset(
    "PKG-INFO __pycache__ .hypothesis .mypy_cache .pytest_cache .ruff_cache .venv "
    "node_modules".split()
)
CHANGING: Final = frozenset(
    "add append appendleft clear discard extend insert move_to_end pop popitem popleft remove "
    "reverse set setdefault sort update".split()
)
# Put together here, or this file would accuse itself.
MACHINE_PATHS: Final = tuple(f"/{folder}/".encode() for folder in ("work", "root"))

NO_CODE: Final = frozenset(
    {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
)  # fmt: skip
Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
Complaints = list[str]
NO_MODULES: Final[Mapping[str, str]] = MappingProxyType({})


################################################################
# READING SOURCE
################################################################


@functools.cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


@functools.cache
def nodes_of(source: str) -> tuple[tuple[str, ast.AST], ...]:
    """Every node of a text but the module itself: see `placed`."""
    return tuple(placed(parsed(source)))


@functools.cache
def tokens_of(source: str) -> tuple[tokenize.TokenInfo, ...]:
    """The tokens; an f-string is one, although Python 3.12 and later take it apart."""
    tokens: list[tokenize.TokenInfo] = []
    starts: list[tokenize.TokenInfo] = []  # of the f-strings around a token
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind.endswith("STRING_START"):
            starts.append(token)
        elif kind.endswith("STRING_END"):
            token = starts.pop()._replace(type=tokenize.STRING, end=token.end)  # noqa: PLW2901
        if not starts:
            tokens.append(token)
    return tuple(tokens)


def dotted(node: ast.expr) -> str:
    """`trio.open_nursery` for that expression; "" for anything but names and attributes."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return ""


def placed(tree: ast.AST, place: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every node with the dotted name of the class and function that it is written in."""
    for child in ast.iter_child_nodes(tree):
        yield place, child
        inner = place
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            inner = f"{place}.{child.name}".lstrip(".")
        yield from placed(child, inner)


def docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def code_lines(source: str) -> set[int]:
    """The numbers of the lines that are not blank, comment or docstring.

    Of a text of several lines these are the first and the last: the rest is for its readers.
    """
    lines: set[int] = set()
    for token in code_tokens(source):
        lines.update({token.start[0], token.end[0]})
    return lines


def code_tokens(source: str) -> list[tokenize.TokenInfo]:
    """What stands in the lines of code: no comment, docstring, line end or indentation."""
    docstrings = docstring_lines(parsed(source))
    return [
        token
        for token in tokens_of(source)
        if token.type not in NO_CODE and token.start[0] not in docstrings
    ]


def comment_lines(source: str) -> set[int]:
    return {token.start[0] for token in tokens_of(source) if token.type == tokenize.COMMENT}


def banners(source: str) -> list[tuple[int, str]]:
    """Line number and name of each section."""
    box = re.compile(r"^#{64}\n# ([A-Z][A-Z ]*)\n#{64}$", re.MULTILINE)
    return [(source.count("\n", 0, m.start()) + 1, m[1]) for m in box.finditer(source)]


def section_of(line: int, starts: list[int]) -> int:
    """0 above the first banner, then 1, 2, ..."""
    return sum(start <= line for start in starts)


def imported(tree: ast.AST) -> Iterator[tuple[ast.stmt, str, str]]:
    """Statement, module and bound name of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node, node.module or "", alias.asname or alias.name


################################################################
# CHECKS OF THE PRODUCT
################################################################


def check_columns(source: str) -> Complaints:
    return [
        f"line {number}: {len(line)} columns"
        for number, line in enumerate(source.splitlines(), 1)
        if len(line) > COLUMNS_MAX
    ]


def functions_of(source: str) -> Iterator[tuple[str, Function]]:
    """Each function with its dotted name."""
    for place, node in nodes_of(source):
        if isinstance(node, FUNCTIONS):
            yield f"{place}.{node.name}".lstrip("."), node


def length_of(node: ast.stmt) -> int:
    """The lines of a function or a class, from its name to its end."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def check_length(source: str) -> Complaints:
    return [
        f"{place} has {length_of(node)} lines"
        for place, node in functions_of(source)
        if length_of(node) > FUNCTION_LINES_MAX
    ]


@functools.cache
def complexities(source: str) -> dict[str, int]:
    """What radon says of each function and method, closures with the function around them."""
    found: dict[str, int] = {}
    for block in cc_visit(source):
        for function in block.methods if isinstance(block, Class) else [block]:
            found[".".join(filter(None, (function.classname, function.name)))] = function.complexity
    return found


def check_complexity(source: str) -> Complaints:
    return [
        f"{place} has a complexity of {complexity}"
        for place, complexity in complexities(source).items()
        if complexity > COMPLEXITY_MAX
    ]


def check_one_condition(source: str) -> Complaints:
    """No conditional expression inside another."""
    return [
        f"{place} has a condition in a condition, line {node.lineno}"
        for place, node in nodes_of(source)
        if isinstance(node, ast.IfExp)
        if any(isinstance(inner, ast.IfExp) for inner in ast.walk(node) if inner is not node)
    ]


def body_of(function: Function) -> list[ast.stmt]:
    """The statements of a function after its docstring."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return function.body[1:] if is_docstring else function.body


def check_steps(source: str) -> Complaints:
    """A blank line stands between the steps of a long function.

    A program cannot tell steps from each other, but it can tell where none can be seen: in a
    function whose body has more than STEPLESS_LINES_MAX lines and more than one statement, and no
    blank line at all; and in one where more than STATEMENTS_MAX statements follow each other, at
    whatever depth, without a blank line or a line of comment, which opens a step as well.  A
    statement counts once however many lines it has, so a table or a long call breaks no rule.
    """
    lines = source.splitlines()
    found = []
    for place, function in functions_of(source):
        body = body_of(function)
        if not body:
            continue
        first, last = body[0].lineno, function.end_lineno or function.lineno
        blank = {at for at in range(first, last + 1) if not lines[at - 1].strip()}
        if len(body) > 1 and last - first + 1 > STEPLESS_LINES_MAX and not blank:
            found.append(f"{place} has no blank line")
            continue
        starts = {node.lineno for node in ast.walk(function) if isinstance(node, ast.stmt)}
        in_a_row = 0
        for at in range(first, last + 1):
            is_break = at in blank or lines[at - 1].lstrip().startswith("#")
            in_a_row = 0 if is_break else in_a_row + (at in starts)
            if in_a_row > STATEMENTS_MAX:
                found.append(f"{place} has more than {STATEMENTS_MAX} statements in a row")
                break
    return found


def effect_of(node: ast.AST) -> str:
    """What this one node changes outside of its function, as far as it shows; or ""."""
    if isinstance(node, (ast.Await, ast.Yield, ast.YieldFrom, ast.AsyncFor, ast.AsyncWith)):
        return "waits"
    if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
        return f"sets {dotted(node) or 'a member'}"
    if isinstance(node, (ast.Global, ast.Nonlocal)):
        return "rebinds a name"
    called = node.func if isinstance(node, ast.Call) else None
    is_member = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Attribute)
    if called is not None and is_member and dotted(called).split(".")[-1] in CHANGING:
        return f"calls {dotted(called)}"
    return ""


def check_predicates(source: str) -> Complaints:
    """A function that is named like a question changes nothing and waits for nothing."""
    return [
        f"{place} {effects[0]}"
        for place, function in functions_of(source)
        if function.name.lstrip("_").startswith(("is_", "has_"))
        if (effects := [text for node in ast.walk(function) if (text := effect_of(node))])
    ]


def check_composition(source: str, modules: Mapping[str, str] = NO_MODULES) -> Complaints:
    """No class inherits what another class of ours does; exceptions may, enums and records.

    `modules` holds the sources from which a class of ours may be imported, by their dotted names.
    """
    classes = {
        name: classes_of(modules[module])[name]
        for _, module, name in imported(parsed(source))
        if module in modules and name in classes_of(modules[module])
    } | classes_of(source)

    def is_kind(name: str) -> bool:
        """Whether a class is there to be inherited from, or is a record."""
        if name not in classes:
            return name.endswith(("Exception", "Error", "Enum", "Protocol", "NamedTuple"))
        return any(is_kind(base) for base in base_names(classes[name]))

    return [
        f"{name} inherits from {base}"
        for name, node in classes_of(source).items()
        for base in base_names(node)
        if base in classes and not is_kind(base)
    ]


@functools.cache
def classes_of(source: str) -> dict[str, ast.ClassDef]:
    """The classes of a text by their names, wherever they are written."""
    return {node.name: node for _, node in nodes_of(source) if isinstance(node, ast.ClassDef)}


def base_names(node: ast.ClassDef) -> list[str]:
    """The bases of a class, without the module and the parameters: Listener of abc.Listener[T]."""
    bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return [dotted(base).split(".")[-1] for base in bases]


class Figures(NamedTuple):
    """What is measured of a file.  Prose: lines with a comment, and those of docstrings."""

    tokens: int
    tokens_per_100_lines: int
    prose_per_100_lines: int
    longest_class: int


def figures_of(source: str) -> Figures:
    tokens, lines = len(code_tokens(source)), max(1, len(code_lines(source)))
    prose = len(comment_lines(source) | docstring_lines(parsed(source)))
    classes = [length_of(node) for _, node in nodes_of(source) if isinstance(node, ast.ClassDef)]
    return Figures(tokens, 100 * tokens // lines, 100 * prose // lines, max(classes, default=0))


def check_sections(source: str) -> Complaints:
    """Known sections only, in their order, and no box that is drawn differently."""
    sections = banners(source)
    names = [name for _, name in sections]
    found = [f"unknown section {name}" for name in names if name not in SECTIONS]
    if names != sorted(set(names), key=[*SECTIONS, *names].index):
        found.append(f"section order: {names}")
    box_lines = {line for start, _ in sections for line in (start, start + 2)}
    for number, line in enumerate(source.splitlines(), 1):
        if re.match(r"^\s*#{8}", line) and number not in box_lines:
            found.append(f"line {number}: malformed banner")
    return found


def top_level_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each name that the module itself binds, with its line; not what functions bind."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif not isinstance(node, (ast.Lambda, ast.comprehension)):
            waiting.extend(ast.iter_child_nodes(node))


def local_names(function: Function | ast.Lambda) -> set[str]:
    """What the function binds for itself: these names do not mean the module's."""
    kinds = [node for node in ast.walk(function) if node is not function]
    bound = {node.arg for node in kinds if isinstance(node, ast.arg)}
    bound |= {n.id for n in kinds if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {node.name for node in kinds if isinstance(node, (*FUNCTIONS, ast.ClassDef))}
    return bound - {name for node in kinds if isinstance(node, ast.Global) for name in node.names}


def global_loads(node: ast.AST, hidden: frozenset[str] = frozenset()) -> Iterator[ast.Name]:
    """Each use of a name, annotations included, that no enclosing function binds."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in hidden:
        yield node
    if isinstance(node, (*FUNCTIONS, ast.Lambda)):
        hidden |= local_names(node)
    for child in ast.iter_child_nodes(node):
        yield from global_loads(child, hidden)


def check_bottom_up(source: str) -> Complaints:
    """A section uses its own names and those of the sections above it."""
    tree = parsed(source)
    sections = banners(source)
    starts = [start for start, _ in sections]
    home: dict[str, int] = {}
    for name, line in top_level_names(tree):
        section = section_of(line, starts)
        home[name] = min(section, home.get(name, section))
    return [
        f"line {use.lineno}: uses {use.id} of {sections[home[use.id] - 1][1]} further down"
        for use in global_loads(tree)
        if home.get(use.id, 0) > section_of(use.lineno, starts)
    ]


def impurity(node: ast.AST, banned: frozenset[str]) -> str:
    """What about this one node waits, asks the clock or the dice, or touches the system."""
    if isinstance(node, (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)):
        return "waits"
    if isinstance(node, ast.Name) and node.id in banned:
        return f"uses {node.id}"
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value).split(".")[-1]
        if node.attr in CLOCKS and owner in {"datetime", "date"}:
            return f"uses {owner}.{node.attr}"
        if node.attr in FILE_METHODS:
            return f"uses .{node.attr}"
    return ""


def check_purity(source: str) -> Complaints:
    """Above CONNECTIONS nothing waits, and nothing enters but by arguments."""
    tree = parsed(source)
    border = min((at for at, name in banners(source) if name == FIRST_BLOCKING), default=10**9)
    names = {name for _, module, name in imported(tree) if is_within(module, BLOCKING_MODULES)}
    banned = BLOCKING_NAMES | names
    return [
        f"line {line}: {what}"
        for node in ast.walk(tree)
        if (line := getattr(node, "lineno", border)) < border and (what := impurity(node, banned))
    ]


def is_within(module: str, roots: frozenset[str]) -> bool:
    """True for one of `roots` and for what is inside it."""
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def check_one_reveal(source: str) -> Complaints:
    """A Secret's value is named by its class and by `reveal` alone, also as a string."""
    return [
        f"line {node.lineno}: _value in {place or 'the module'}"
        for place, node in nodes_of(source)
        if (isinstance(node, ast.Attribute) and node.attr == "_value")
        or (isinstance(node, ast.Constant) and node.value == "_value")
        if place.split(".")[0] != "Secret" and place != "reveal"
    ]


def check_imports(source: str) -> Complaints:
    """All at the top, if need be tried; never `mcp`; `mcp_server` only inside a function."""
    tree = parsed(source)
    tried = {id(inner) for node in tree.body if isinstance(node, ast.Try) for inner in node.body}
    at_top = {id(node) for node in tree.body} | tried
    first_banner = min((at for at, _ in banners(source)), default=10**9)
    found = []
    for statement, module, _ in imported(tree):
        if module.split(".")[0] == "mcp":
            found.append(f"line {statement.lineno}: imports mcp")
        elif module != "mcp_server" and (
            statement.lineno > first_banner or id(statement) not in at_top
        ):
            found.append(f"line {statement.lineno}: imports {module} below the top")
    for place, node in nodes_of(source):
        text = called_import(node)
        if text.split(".")[0] == "mcp":
            found.append(f"line {getattr(node, 'lineno', 0)}: imports mcp")
        elif text == "mcp_server" and not place:
            found.append(f"line {getattr(node, 'lineno', 0)}: imports mcp_server at the top")
    return found


def called_import(node: ast.AST) -> str:
    """The module that this node imports without `import` at the top of the file; or ""."""
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        if dotted(node.func).split(".")[-1] in {"import_module", "__import__"}:
            return str(node.args[0].value)
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        return next((name for _, name, _ in imported(node) if name == "mcp_server"), "")
    return ""


def nurseries(source: str) -> frozenset[str]:
    """The functions that open a nursery."""
    return frozenset(
        place
        for place, node in nodes_of(source)
        if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] == "open_nursery"
    )


def caught(handler: ast.ExceptHandler) -> set[str]:
    """The last part of each class that the handler names; "BaseException" for a bare one."""
    if handler.type is None:
        return {"BaseException"}
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {dotted(kind).split(".")[-1] for kind in kinds}


def bug_catchers(source: str) -> frozenset[str]:
    """The functions with an `except Exception`."""
    return frozenset(
        place
        for place, node in nodes_of(source)
        if isinstance(node, ast.ExceptHandler) and "Exception" in caught(node)
    )


def check_excepts(source: str) -> Complaints:
    """What could swallow Cancelled raises it again; nothing is hidden by `suppress`."""
    found = []
    for _, node in nodes_of(source):
        if isinstance(node, ast.TryStar):
            found.append(f"line {node.lineno}: except*")
        if isinstance(node, ast.ExceptHandler) and caught(node) & {"BaseException", "Cancelled"}:
            last = node.body[-1]
            if not (isinstance(last, ast.Raise) and last.exc is None):
                found.append(f"line {node.lineno}: swallows Cancelled")
        if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] == "suppress":
            kinds = {dotted(kind).split(".")[-1] for kind in node.args}
            if kinds & {"Exception", "BaseException", "Cancelled"}:
                found.append(f"line {node.lineno}: suppresses everything")
    return found


def check_asserts(source: str) -> Complaints:
    """With `python -O` there is none: so it compares what there is, and checks nothing else."""
    asserts = [(at, node.test) for at, node in nodes_of(source) if isinstance(node, ast.Assert)]
    return [
        f"{place or 'the module'} does something in an assert"
        for place, test in asserts
        for node in ast.walk(test)
        if isinstance(node, (ast.NamedExpr, ast.Await))
        or (isinstance(node, ast.Call) and dotted(node.func) != "isinstance")
    ]


def is_bounded_shield(call: ast.Call) -> bool:
    """True for `move_on_after(A_CONSTANT, shield=True)`."""
    bound = dotted(call.args[0]).split(".")[-1] if call.args else ""
    return dotted(call.func).split(".")[-1] == "move_on_after" and bound.isupper()


def check_shields(source: str) -> Complaints:
    """A shield has a constant bound."""
    found = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Call) and any(k.arg == "shield" for k in node.keywords):
            if not is_bounded_shield(node):
                found.append(f"line {node.lineno}: a shield without a constant bound")
        elif isinstance(node, ast.Attribute) and node.attr == "shield":
            found.append(f"line {node.lineno}: a shield is moved")
    return found


STYLE: Final = (
    check_length,
    check_complexity,
    check_one_condition,
    check_steps,
    check_predicates,
    check_composition,
)
CHECKS: Final = (
    check_sections,
    check_bottom_up,
    check_purity,
    check_one_reveal,
    check_imports,
    check_excepts,
    check_shields,
)


################################################################
# CHECKS OF THE TESTS AND OF THE REPOSITORY
################################################################


def check_test_waits(source: str) -> Complaints:
    """No test sleeps: virtual time, events and deadlines do."""
    tree = parsed(source)
    sleeps = {"time.sleep", "trio.sleep", "asyncio.sleep"}
    bare = {name for _, module, name in imported(tree) if f"{module}.{name}" in sleeps}
    return [
        f"line {node.lineno}: {dotted(node.func)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and dotted(node.func) in sleeps | bare
    ]


def check_test_skips(source: str) -> Complaints:
    """A test proves its claim or fails."""
    excuses = {"skip", "skipif", "xfail", "importorskip"}
    return [
        f"line {node.lineno}: {dotted(node)}"
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.Attribute)
        if node.attr in excuses and dotted(node).startswith("pytest.")
    ]


def check_test_size(source: str) -> Complaints:
    """How long a file of tests is, if it is too long."""
    count = len(source.splitlines())
    return [f"{count} lines"] if count > TEST_LINES_MAX else []


def check_test_claim(source: str) -> Complaints:
    claim = ast.get_docstring(parsed(source)) or ""
    return [] if claim.startswith("Proves") else ["the docstring does not start with Proves"]


def check_repository(files: list[str]) -> Complaints:
    names = {file.split("/")[0] for file in files}
    return sorted(n for n in names - TOP_LEVEL if not n.startswith("."))


def check_machine_paths(content: bytes) -> Complaints:
    """No file reveals where it was written."""
    return [path.decode() for path in MACHINE_PATHS if path in content]


def repository_files() -> list[str]:
    """What git has or would take: tracked, and new but not ignored.

    A source archive has only such files, and what its tests have left.
    """
    if not (ROOT / ".git").exists():
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
        return [str(path) for path in paths if LEFT_BEHIND.isdisjoint(path.parts)]
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, check=True).stdout
    return [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def text_of(name: str) -> str:
    """The text of a file; "" for one that is yet to come."""
    return (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).exists() else ""


def is_python_test(name: str) -> bool:
    return re.fullmatch(r"tests/.*\.py", name) is not None


def is_test_source(name: str) -> bool:
    return re.fullmatch(r"tests/(?!long/bench/).*\.py", name) is not None


################################################################
# THE REAL FILES
################################################################

FILES: Final = repository_files()


@pytest.mark.parametrize("check", CHECKS)
def test_pooler_is_tidy(check: Callable[[str], Complaints]) -> None:
    assert check(POOLER) == []


@pytest.mark.parametrize("name", CEILINGS)
def test_lines_are_short(name: str) -> None:
    assert check_columns(text_of(name)) == []


@pytest.mark.parametrize("name", CEILINGS)
def test_assertions_can_be_left_out(name: str) -> None:
    assert check_asserts(text_of(name)) == []


@pytest.mark.parametrize("name", CEILINGS)
@pytest.mark.parametrize("check", STYLE)
def test_style_gets_no_worse(name: str, check: Callable[[str], Complaints]) -> None:
    complaints = [text for text in check(text_of(name)) if text.split()[0] not in EXCEPTIONS]
    ceiling, _ = CEILINGS[name][check.__name__]
    assert len(complaints) <= ceiling, "\n".join(complaints)


@pytest.mark.parametrize("name", CEILINGS)
@pytest.mark.parametrize("figure", ["tokens", "tokens_per_100_lines", "longest_class"])
def test_size_gets_no_worse(name: str, figure: str) -> None:
    ceiling, _ = CEILINGS[name][figure]
    actual = figures_of(text_of(name))._asdict()[figure]
    assert actual <= ceiling


@pytest.mark.parametrize("name", PROSE_FLOORS)
def test_prose_gets_no_scarcer(name: str) -> None:
    floor, _ = PROSE_FLOORS[name]
    actual = figures_of(text_of(name)).prose_per_100_lines
    assert actual >= floor


def test_exceptions_are_few_and_still_needed() -> None:
    assert len(EXCEPTIONS) <= EXCEPTIONS_MAX
    complaints = [text for name in CEILINGS for check in STYLE for text in check(text_of(name))]
    assert EXCEPTIONS.keys() <= {text.split()[0] for text in complaints}


def test_the_mcp_server_does_not_load_a_second_pooler() -> None:
    modules = {module for _, module, _ in imported(ast.parse(text_of("mcp_server.py")))}
    assert "pooler" not in modules


def test_nurseries_are_the_known_ones() -> None:
    assert nurseries(POOLER) == NURSERIES


def test_bugs_are_caught_only_where_it_is_known() -> None:
    assert bug_catchers(POOLER) == BUG_CATCHERS


def test_no_class_of_the_tests_inherits_behaviour() -> None:
    names = [*CEILINGS, *filter(is_python_test, FILES)]
    modules = {name.removesuffix(".py").replace("/", "."): text_of(name) for name in names}
    accused = {name: check_composition(source, modules) for name, source in modules.items()}
    assert {name: complaints for name, complaints in accused.items() if complaints} == {}


@pytest.mark.parametrize("name", [name for name in FILES if is_test_source(name)])
def test_tests_are_tidy(name: str) -> None:
    source = (ROOT / name).read_text(encoding="utf-8")
    assert check_test_waits(source) + check_test_skips(source) + check_test_size(source) == []
    if re.fullmatch(r"tests/(\w+/)*test_\w+\.py", name):
        assert check_test_claim(source) == []


def test_the_repository_holds_what_it_should() -> None:
    assert check_repository(FILES) == []


def test_no_file_names_a_machine() -> None:
    accused = {name: check_machine_paths((ROOT / name).read_bytes()) for name in FILES}
    assert {name: paths for name, paths in accused.items() if paths} == {}


################################################################
# THE CHECKS THEMSELVES
################################################################


def boxed(**sections: str) -> str:
    """A source with these sections; `_` in a name stands for a blank."""
    box = "#" * 64
    return "".join(
        f"{box}\n# {name.replace('_', ' ')}\n{box}\n{body}\n" for name, body in sections.items()
    )


BROKEN: Final = [
    (check_columns, "x = '" + "y" * COLUMNS_MAX + "'", "columns"),
    (check_length, "def f():\n" + "    pass\n" * FUNCTION_LINES_MAX, "f has 61 lines"),
    (check_length, "class A:\n  async def f():\n" + "    pass\n" * 60, "A.f has 61 lines"),
    (check_complexity, "def f(a):\n  return " + "a or " * 10 + "a", "f has a complexity of 11"),
    (check_complexity, "class A:\n  def f(s):\n" + "    if s: g()\n" * 10, "A.f has a compl"),
    (check_one_condition, "def f(a): return 1 if a else (2 if b else 3)", "f has a condition in"),
    (check_one_condition, "x = (1 if a else 2) if b else 3", "condition in a condition"),
    (check_steps, "def f():\n" + "    pass\n" * 16, "f has no blank line"),
    (check_steps, "def f():\n    pass\n\n" + "    pass\n" * 13, "f has more than 12 statements"),
    (check_steps, "def f():\n  if a:\n" + "    b()\n" * 12 + "\n  c()", "statements in a row"),
    (check_predicates, "class A:\n  def is_b(self):\n    self.c = 1", "A.is_b sets self.c"),
    (check_predicates, "class A:\n  def has_b(self):\n    self.c += 1", "A.has_b sets self.c"),
    (check_predicates, "def _is_b(c):\n    c.d[0] = 1", "_is_b sets a member"),
    (check_predicates, "async def is_b(c):\n    return await c", "is_b waits"),
    (check_predicates, "def is_b(c):\n    return c.d.pop()", "is_b calls c.d.pop"),
    (check_composition, "class A: ...\nclass B(A): ...", "B inherits from A"),
    (check_sections, boxed(MISC=""), "unknown section MISC"),
    (check_sections, boxed(ERRORS="", LIMITS=""), "section order"),
    (check_sections, boxed(LIMITS="") * 2, "section order"),
    (check_sections, "#" * 63 + "\n# LIMITS", "malformed banner"),
    (check_bottom_up, boxed(LIMITS="def f():\n    return g()", ERRORS="g = 1"), "uses g of ERR"),
    (check_bottom_up, boxed(LIMITS="def f(x: G): ...", ERRORS="class G: ..."), "uses G of ERR"),
    (check_bottom_up, boxed(LIMITS="class F(G): ...", ERRORS="class G: ..."), "uses G of ERR"),
    (
        check_bottom_up,
        boxed(LIMITS="class F:\n  def a(self, g): ...\n  def b(self): g", ERRORS="g = 1"),
        "line 6: uses g of ERR",
    ),
    (check_purity, "async def f(): ...", "waits"),
    (check_purity, "import time\ndef f(): return time.time()", "uses time"),
    (check_purity, "from time import monotonic as m\ndef f(): return m()", "uses m"),
    (check_purity, "import os.path\nx = os.sep", "uses os"),
    (check_purity, boxed(LIMITS="x = open('y')", CONNECTIONS=""), "uses open"),
    (check_purity, "from datetime import datetime\nx = datetime.now()", "uses datetime.now"),
    (check_purity, "import datetime\nx = datetime.datetime.now()", "uses datetime.now"),
    (check_purity, "def f(path): return path.read_bytes()", "uses .read_bytes"),
    (check_one_reveal, "class Other:\n  def f(self, s): return s._value", "_value in Other.f"),
    (check_one_reveal, "x = getattr(s, '_value')", "_value in the module"),
    (check_imports, "import mcp.server", "imports mcp"),
    (check_imports, "def f():\n  from mcp import types", "imports mcp"),
    (check_imports, "def f():\n  import_module('mcp')", "imports mcp"),
    (check_imports, "import mcp_server", "mcp_server at the top"),
    (check_imports, "x = importlib.import_module('mcp_server')", "mcp_server at the top"),
    (check_imports, "def f():\n  import json", "imports json below the top"),
    (check_imports, boxed(LIMITS="import json"), "imports json below the top"),
    (check_excepts, "try: f()\nexcept: g()", "swallows Cancelled"),
    (check_excepts, "try: f()\nexcept (A, BaseException): raise B", "swallows Cancelled"),
    (check_excepts, "try: f()\nexcept trio.Cancelled: pass", "swallows Cancelled"),
    (check_excepts, "try: f()\nexcept* A: pass", "except*"),
    (check_excepts, "with contextlib.suppress(Exception): f()", "suppresses everything"),
    (check_shields, "with trio.CancelScope(shield=True): ...", "constant bound"),
    (check_shields, "with trio.move_on_after(seconds, shield=True): ...", "constant bound"),
    (check_shields, "with trio.fail_after(CLOSE, shield=True): ...", "constant bound"),
    (check_shields, "scope.shield = True", "is moved"),
    (check_asserts, "def f(): assert g(1)", "f does something in an assert"),
    (check_asserts, "assert (x := y)", "the module does something"),
    (check_test_waits, "import trio\nasync def f(): await trio.sleep(0)", "trio.sleep"),
    (check_test_waits, "from time import sleep\nsleep(1)", "sleep"),
    (check_test_skips, "@pytest.mark.skipif(True)\ndef f(): ...", "pytest.mark.skipif"),
    (check_test_skips, "x = pytest.importorskip('x')", "pytest.importorskip"),
    (check_test_size, "\n" * (TEST_LINES_MAX + 1), "1001 lines"),
    (check_test_claim, '"""Tests of x."""', "does not start with Proves"),
]


@pytest.mark.parametrize(("check", "source", "complaint"), BROKEN)
def test_a_broken_rule_is_found(
    check: Callable[[str], Complaints], source: str, complaint: str
) -> None:
    found = check(source)
    assert len(found) == 1
    assert complaint in found[0]


WELL: Final = [
    (check_length, "def f():\n" + "    pass\n" * (FUNCTION_LINES_MAX - 1)),
    (check_columns, "x = '" + "y" * (COLUMNS_MAX - 6) + "'"),
    (check_complexity, "def f(a):\n  return " + "a or " * 9 + "a"),
    (check_one_condition, "x = [1 if a else 2, 3 if b else 4]"),
    (check_steps, "def f():\n" + "    pass\n" * 12),
    (check_steps, "def f():\n" + "    pass\n" * 8 + "\n" + "    pass\n" * 12),
    (check_steps, "def f():\n    pass\n\n" + "    pass\n" * 9 + "    # so\n" + "    pass\n" * 9),
    (check_steps, "def f():\n    return [\n" + "        1,\n" * 20 + "    ]"),
    (check_steps, "def f():\n    x = [\n" + "        1,\n" * 20 + "    ]\n\n    return x"),
    (check_predicates, "class A:\n  def is_b(self):\n    c = [*self.d]\n    return c.pop() > 1"),
    (check_predicates, "class A:\n  def b(self):\n    self.is_c = True"),
    (check_composition, "class A(Exception): ...\nclass B(A): ...\nclass C(enum.Enum): ..."),
    (check_sections, boxed(LIMITS="", SECRETS="", COMMAND_LINE="")),
    (check_bottom_up, boxed(LIMITS="def f(g):\n    return g, h()\ndef h(): ...", ERRORS="g = 1")),
    (check_bottom_up, boxed(LIMITS="g = 1", ERRORS="def f(): return g")),
    (check_purity, boxed(LIMITS="x = 1", CONNECTIONS="async def f(): open(await g())")),
    (check_purity, "import time\ndef f(a): return a.time, a.now()"),
    (check_one_reveal, "class Secret:\n  __slots__ = ('_value',)\ndef reveal(s): return s._value"),
    (check_imports, "import json\ndef f():\n  import mcp_server"),
    (check_imports, "try:\n  import trio\nexcept ImportError: raise"),
    (check_excepts, "try: f()\nexcept BaseException:\n  g()\n  raise"),
    (check_shields, "with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True): ..."),
    (check_asserts, "assert isinstance(a, b) and c.d < 1"),
    (check_test_waits, "async def f(clock): await trio.sleep_forever(); clock.sleep()"),
    (check_test_claim, '"""Proves that x.\n\nMethod: y."""'),
]


@pytest.mark.parametrize(("check", "source"), WELL)
def test_a_kept_rule_is_not_accused(check: Callable[[str], Complaints], source: str) -> None:
    assert check(source) == []


def test_a_class_of_another_module_is_not_inherited_from() -> None:
    modules = {"tests.a": "class A: ...\nclass R(NamedTuple): ..."}
    inherits = "from tests.a import A\nclass B(A): ..."
    assert check_composition(inherits, modules) == ["B inherits from A"]
    assert check_composition("from tests.a import A\nclass B(a.A[int]): ...", modules) != []
    assert check_composition("from tests.a import R\nclass B(R): ...", modules) == []
    assert check_composition("from other import A\nclass B(A): ...", modules) == []


def test_lists_of_functions_name_the_innermost_one() -> None:
    source = (
        "class A:\n  async def f(self):\n    async with trio.open_nursery(): ...\n"
        "def g():\n  try: ...\n  except (KeyError, Exception): ...\n"
    )
    assert nurseries(source) == {"A.f"}
    assert bug_catchers(source) == {"g"}


def test_a_code_line_is_no_comment_blank_or_docstring() -> None:
    source = '"""Doc\n\ndoc."""\n\n# note\nx = """a\nb"""  # note\n\ndef f():\n    """Doc."""\n'
    assert code_lines(source) == {6, 7, 9}


def test_strange_files_and_machine_paths_are_found() -> None:
    assert check_repository(["pooler.py", ".ci/run", "tests/a.py", "docs/x", "b.py"]) == [
        "b.py",
        "docs",
    ]
    assert check_machine_paths(b"see " + MACHINE_PATHS[0] + b"x") == [MACHINE_PATHS[0].decode()]
    assert check_machine_paths(b"homework/ and roots") == []
