"""The English sentences that the code tells its user, read from the source.

A sentence is a pattern: `{0}`, `{1}`, ... stand where an f-string or a log line puts a value.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import vqa

ROOT = Path(vqa.__file__).parent
FIELD = "\0"
SAID_BY = {
    "UserError": 0,
    "DoesNotFitError": 0,
    "Problem": 0,
    "GoneError": 0,
    "InUseError": 0,
    "require": 2,
    "ImageError": 2,
}
LOGGED_BY = ("warning", "info", "error")
# functions whose texts reach the user by way of another function
WORDED_BY = (
    *("collapse_alarm", "alarm", "_setting_problems", "_option_problems", "_remedy", "_sample_problems"),
    *("resolve_inside", "_winner", "_rule", "nearest", "_data", "_output", "_device"),
)
WORDED_ELSEWHERE = ("rule",)  # put together letter by letter; tests/config/test_korean.py goes over all keys
LOG_FIELD = re.compile(r"%(?:\.\d+)?[sdfgr]")


@dataclass(frozen=True)
class Said:
    """One sentence and where it stands; `text` is None where the source does not show it."""

    place: str
    text: str | None
    source: str


def said_in(room: str) -> list[Said]:
    """All sentences of a room or a module of `vqa`, such as "data" or "stage.py"."""
    path = ROOT / room
    files = [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
    return [said for file in files for said in _of_file(file)]


def _of_file(file: Path) -> Iterator[Said]:
    for function, call in _calls(_tree(file)):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        of_log = name in LOGGED_BY and isinstance(call.func, ast.Attribute) and _is_log(call.func.value)
        place = 0 if of_log else SAID_BY.get(name)
        if place is None or len(call.args) <= place:
            continue
        argument = call.args[place]
        where = f"{file.relative_to(ROOT)}: {ast.unparse(argument)}"
        found: list[str | None] = [*_texts(argument, function, file)]
        for text in found or [None]:
            plain = LOG_FIELD.sub(FIELD, text) if of_log and text and len(call.args) > 1 else text
            yield Said(where, None if plain is None else _numbered(plain), ast.unparse(argument))
    for function in _functions(file).values():
        if function.name in WORDED_BY:
            for text in _returned(function, file):
                yield Said(f"{file.relative_to(ROOT)}: {function.name}", _numbered(text), function.name)


def _is_log(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("log", "_log")


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _functions(file: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(_tree(file)) if isinstance(node, ast.FunctionDef)}


@cache
def _everywhere() -> dict[str, tuple[ast.FunctionDef, Path]]:
    files = sorted(ROOT.rglob("*.py"))
    return {name: (node, file) for file in files for name, node in _functions(file).items()}


def _calls(
    tree: ast.AST, function: ast.FunctionDef | None = None
) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
    for node in ast.iter_child_nodes(tree):
        inside = node if isinstance(node, ast.FunctionDef) else function
        if isinstance(node, ast.Call):
            yield inside, node
        yield from _calls(node, inside)


def _texts(node: ast.expr, function: ast.FunctionDef | None, file: Path, depth: int = 0) -> Iterator[str]:
    """Every pattern that an expression may come to; FIELD stands for a value."""
    if depth > 4:
        return
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str) and node.value:
            yield node.value
    elif isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else FIELD for part in node.values)
        yield "".join(map(str, parts))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left = list(_texts(node.left, function, file, depth + 1)) or [FIELD]
        right = list(_texts(node.right, function, file, depth + 1)) or [FIELD]
        yield from (a + b for a in left for b in right)
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, function, file, depth)
        yield from _texts(node.orelse, function, file, depth)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _texts(value, function, file, depth)
    elif isinstance(node, ast.List | ast.Tuple):
        for element in node.elts:
            yield from _texts(element, function, file, depth)
    elif isinstance(node, ast.ListComp):
        yield from _texts(node.elt, function, file, depth)
    elif isinstance(node, ast.Name) and function is not None:
        yield from _assigned(node.id, function, file, depth)
    elif isinstance(node, ast.Call):
        yield from _called(node, function, file, depth)


def _called(node: ast.Call, function: ast.FunctionDef | None, file: Path, depth: int) -> Iterator[str]:
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    if name in ("join", "str") and node.args:
        yield from _texts(node.args[0], function, file, depth + 1)
    elif name in WORDED_ELSEWHERE:
        yield FIELD
    elif name in _functions(file):
        yield from _returned(_functions(file)[name], file, depth + 1)
    elif name in _everywhere():
        other, home = _everywhere()[name]
        yield from _returned(other, home, depth + 1)


def _returned(function: ast.FunctionDef, file: Path, depth: int = 0) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
            yield from _texts(node.value, function, file, depth)


def _assigned(name: str, function: ast.FunctionDef, file: Path, depth: int) -> Iterator[str]:
    for node in ast.walk(function):
        value: ast.expr | None = None
        match node:
            case ast.Assign(targets=targets) if any(_is(target, name) for target in targets):
                value = node.value
            case ast.NamedExpr(target=target) if _is(target, name):
                value = node.value
            case ast.Call(func=ast.Attribute(value=owner, attr="append")) if _is(owner, name):
                value = node.args[0]
        if value is not None:
            yield from _texts(value, function, file, depth + 1)


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _numbered(text: str) -> str:
    pieces = text.replace("{", "{{").replace("}", "}}").split(FIELD)
    return pieces[0] + "".join(f"{{{i}}}{piece}" for i, piece in enumerate(pieces[1:]))
