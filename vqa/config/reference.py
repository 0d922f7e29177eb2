"""Every setting in words: `python -m vqa.config.reference` prints docs/settings.md, `--help` a short form.

Meaning and range come from `vqa.config.settings`, defaults from conf/. The arguments of library objects are
declared in conf/ only; their meaning is the comment there.
"""

import ast
import inspect
import json
import types
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from vqa.config import settings
from vqa.config.place import CONF

KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", list: "a list"}
LIBRARY_FILES = {
    "lora": ("lora/all_linear",),
    "optimizer": ("optimizer/adamw",),
    "data": ("data/easy_vqa", "data/emoji_quiz", "data/csv"),
}
HEAD = """\
# Settings

Every key of a run. On the command line: `key=value`. A default such as `${model.lr}` is the value of that
key. The defaults are those of the default options; other options of a group change some of them
([Configuration](configuration.md)).

This page is made from `vqa/config/settings.py` and `conf/` by
`python -m vqa.config.reference > docs/settings.md`.
"""
LIBRARY = """
The values of `conf/{file}.yaml`; every other argument of the class that it names works too.

| key | default | meaning |
|---|---|---|"""


def type_of(path: Sequence[str]) -> Any:
    """The declared type of a key.

    Args:
        path: The parts of the key; none of them gives `Settings`.
    """
    found: Any = settings.Settings
    for part in path:
        found = get_type_hints(found, include_extras=True)[part]
    return found


def rule(declared: Any, with_kind: bool = False) -> str:
    """What a value must be: ">= 1 or null", "in (0, 0.5]", "one of all, greedy".

    Args:
        declared: The type of a key.
        with_kind: Put the kind of value before a range: "a whole number >= 1".
    """
    origin, parts = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):  # with None, or a word beside a number
        return " or ".join("null" if part is type(None) else rule(part, with_kind) for part in parts)
    if origin is Literal:
        return parts[0] if len(parts) == 1 else f"one of {', '.join(parts)}"
    if origin is Annotated:
        kind = f"{KINDS[parts[0]]} " if with_kind else ""
        return kind + _range(parts[1:])
    return KINDS.get(origin or declared, "a mapping")


def _range(limits: Sequence[Any]) -> str:
    unit = "".join(f" {limit}" for limit in limits if isinstance(limit, str))
    low = next((limit for limit in limits if isinstance(limit, Ge | Gt)), None)
    high = next((limit for limit in limits if isinstance(limit, Le | Lt)), None)
    least = getattr(low, "ge", getattr(low, "gt", None))
    if high is None:
        return f"{'>=' if isinstance(low, Ge) else '>'} {least}{unit}"
    most = getattr(high, "le", getattr(high, "lt", None))
    return (
        f"in {'[' if isinstance(low, Ge) else '('}{least}, {most}{']' if isinstance(high, Le) else ')'}{unit}"
    )


@cache
def meanings() -> dict[str, dict[str, str]]:
    """The string below each field of `vqa.config.settings`, by class and field."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(settings)).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {
                ast.unparse(one.target): " ".join(str(after.value.value).split())
                for one, after in pairwise(node.body)
                if isinstance(one, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            }
    return found


def keys(group: Any = settings.Settings, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every key with its declared type and its meaning; those at the top first."""
    hints = get_type_hints(group, include_extras=True)
    for name, meaning in meanings()[group.__name__].items():
        yield prefix + name, hints[name], meaning
    for name, declared in hints.items():
        if is_dataclass(declared):
            yield from keys(declared, f"{prefix}{name}.")


def help_text() -> str:
    """Every key with its meaning and its rule, one a line; the resolver `${key_meanings:}` of `--help`."""
    return "\n".join(f"  {key:<30} {meaning} ({rule(declared)})" for key, declared, meaning in keys())


def page() -> str:
    """The page docs/settings.md."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONF)):
        defaults = compose("config")
    lines, heading = [HEAD], ""
    for key, declared, meaning in keys():
        group = key.rpartition(".")[0].partition(".")[0] or "the run"
        if group != heading:
            heading = group
            lines.append(f"\n## {heading}\n\n| key | default | values | meaning |\n|---|---|---|---|")
        node, _, name = key.rpartition(".")
        parent = OmegaConf.select(defaults, node) if node else defaults
        default = OmegaConf.to_container(parent, resolve=False)[name]  # type: ignore[index, call-overload]
        lines.append(f"| `{key}` | {_shown(default)} | {rule(declared, with_kind=True)} | {meaning} |")
    for node, files in LIBRARY_FILES.items():
        for file in files:
            lines.append(f"\n## {node}: {file.partition('/')[2]}\n{LIBRARY.format(file=file)}")
            lines += _library_rows(node, file)
    return "\n".join(lines) + "\n"


def _library_rows(node: str, file: str) -> Iterator[str]:
    for line in (CONF / f"{file}.yaml").read_text(encoding="utf-8").splitlines():
        key, colon, rest = line.partition(": ")
        if colon and not line.startswith(("#", "_")):
            value, _, comment = rest.partition(" #")
            yield f"| `{node}.{key}` | `{value.strip()}` | {comment.strip()} |"


def _shown(default: Any) -> str:
    if isinstance(default, dict):
        return "arguments"
    if isinstance(default, str) and "\n" in default:
        return "a template"
    text = default if isinstance(default, str) else json.dumps(default)
    return f"`{text}`" if text else "empty"


if __name__ == "__main__":
    print(page(), end="")
