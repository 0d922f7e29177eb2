"""Library objects straight from configuration, and which of them a file may name: all others are refused.

Only targets on a narrow list are executed; an argument the target does not have is refused before the call.

The arguments are read from the target's source, not by `inspect` after an import, for two reasons. First,
importing costs 9.6 s of CPU time for peft, 10.5 s for `transformers.get_scheduler` and 2.6 s for torch on two
shared cores; `+lora.rnak=8` is refused after 1.1 s in all. Second, settings are checked before `env.hf_home`
is set, and the hub's library reads HF_HOME once, when it is imported.

Reading follows `from ... import` through a package to where the name is defined. What the text alone does not
settle (a name defined twice, a star import, a computed base class) is left open; the target is imported then.
"""

import ast
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from vqa.errors import UserError, require

# What `_target_` may name, per node. Anything else in a configuration file is refused, so that a shared
# YAML file cannot run code of its own.
TRUSTED: dict[str, tuple[str, ...]] = {
    "data": ("vqa.data.*", "my_data.*"),
    "lora": ("peft.*",),
    "optimizer": ("torch.optim.*", "bitsandbytes.optim.*"),
    "scheduler.schedule": ("transformers.*",),
    "quantization.weights": ("transformers.*",),
}

# Beside the module, the kind: a function of a trusted library may load a file or run code that it names.
KINDS: dict[str, tuple[str, re.Pattern[str]]] = {
    "data": ("a class, with a capital letter", re.compile(r"[A-Z]\w*")),
    "lora": ("a class of settings, ending in Config", re.compile(r"[A-Z]\w*Config")),
    "optimizer": ("an optimiser's class", re.compile(r"[A-Z]\w*")),
    "scheduler.schedule": ("a schedule such as get_scheduler", re.compile(r"get_\w*schedule\w*")),
    "quantization.weights": ("a class of settings, ending in Config", re.compile(r"[A-Z]\w*Config")),
}


# A dataset class of one's own: a class of the file my_data.py in the working folder, and of no other file. A
# configuration file can name it and cannot bring it.
OWN_MODULE = "my_data"


def _load_own(name: str, target: str) -> None:
    """Import my_data.py of the working folder where a node names a class of it."""
    module, *inner = target.split(".")
    if module != OWN_MODULE:
        return
    if len(inner) != 1:  # my_data.os.system would be a function of another module
        raise UserError(f"{name}._target_ must be {OWN_MODULE}.Class, got {target!r}")
    path = Path(f"{OWN_MODULE}.py").absolute()
    loaded = sys.modules.get(OWN_MODULE)
    if loaded is None:
        if not path.is_file():
            raise UserError(f"{name}._target_={target}: there is no {path}; put the class there")
        spec = spec_from_file_location(OWN_MODULE, path)
        if spec is None or spec.loader is None:
            raise UserError(f"{name}._target_={target}: {path} cannot be imported")
        sys.modules[OWN_MODULE] = loaded = module_from_spec(spec)
        try:
            spec.loader.exec_module(loaded)
        except (ImportError, SyntaxError) as error:
            del sys.modules[OWN_MODULE]
            raise UserError(f"{path}: {error}") from error
    found = getattr(loaded, inner[0], None)
    if not (isinstance(found, type) and found.__module__ == OWN_MODULE):
        raise UserError(f"{name}._target_={target}: {path} defines no class {inner[0]}")


def check_target(name: str, node: Mapping[str, Any] | None) -> None:
    """Check a node without calling its target.

    Args:
        name: Which node, a key of `TRUSTED`.
        node: `_target_` and arguments; None is fine.

    Raises:
        UserError: The target is not trusted, cannot be imported, or has no such argument.
    """
    if node is None:
        return
    target = node.get("_target_")
    require(isinstance(target, str), f"{name}._target_", "the dotted name of a class or function", target)
    if not any(str(target).startswith(pattern.removesuffix("*")) for pattern in TRUSTED[name]):
        raise UserError(f"{name}._target_ must be one of {', '.join(TRUSTED[name])}, got {target!r}")
    _load_own(name, str(target))
    words, fits = KINDS[name]
    if not fits.fullmatch(str(target).rpartition(".")[2]):
        raise UserError(f"{name}._target_ must be {words}, got {target!r}")
    if hidden := _target_within([value for key, value in node.items() if key != "_target_"]):
        raise UserError(f"{name}: no argument may hold a _target_ of its own, got {hidden!r}")
    parameters = _parameters(name, str(target))
    for key in node:
        if not key.startswith("_") and key not in parameters:
            raise UserError(
                f"{name}.{key}: {target} has no such argument; it has: {', '.join(sorted(parameters))}"
            )


def _target_within(value: Any) -> Any:
    """The first `_target_` at any depth, or an internal flag of Hydra's; None where there is none."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return value["_target_"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((found for part in value if (found := _target_within(part)) is not None), None)
    return None


def _parameters(name: str, target: str) -> list[str]:
    known = argument_names(target)  # so that a typo is refused at once
    if known is not None:
        return known
    from hydra.errors import HydraException
    from hydra.utils import get_object

    try:
        found: Callable[..., Any] = get_object(target)
    except (HydraException, ImportError, ValueError) as error:
        raise UserError(f"{name}._target_: {target!r} cannot be imported ({error})") from error
    home = f"{getattr(found, '__module__', '')}."
    if not any(home.startswith(pattern.removesuffix("*")) for pattern in TRUSTED[name]):
        raise UserError(f"{name}._target_: {target!r} is defined in {home[:-1]}, which is not trusted")
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in inspect.signature(found).parameters.values() if p.kind in named]


def build(name: str, node: Mapping[str, Any], **extra: Any) -> Any:
    """Make the library object a node describes.

    Args:
        name: Which node, a key of `TRUSTED`: only its targets are executed.
        node: `_target_` and arguments.
        extra: Arguments that are known only now.

    Raises:
        UserError: The library refuses the values.
    """
    from hydra.utils import instantiate

    _load_own(name, str(node.get("_target_")))
    with refusals(name):
        # _convert_: libraries want lists, not OmegaConf's
        return instantiate(dict(node), _convert_="all", _execution_whitelist_=TRUSTED[name], **extra)


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """Turn a library's refusals inside the block into the user's message: for calling what is left partial.

    Raises:
        UserError: A value or its type is wrong.
    """
    from hydra.errors import InstantiationException

    try:
        yield
    except (InstantiationException, TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from error


Definition = ast.ClassDef | ast.FunctionDef


def argument_names(target: str) -> list[str] | None:
    """Give the arguments that a target takes by name, without importing it.

    Args:
        target: Dotted name, for instance `peft.LoraConfig`.

    Returns:
        Their names; None when the source does not tell.
    """
    found = _definition(*target.rpartition(".")[::2])
    return None if found is None else _arguments(*found)


def _definition(module: str, name: str) -> tuple[str, Definition] | None:
    """Where a name of a module is defined: that module and the definition; None when it is not plain."""
    path = _source(module)
    if path is None:
        return None
    found: list[tuple[str, str] | Definition] = []
    for node in _statements(_tree(path).body):
        if isinstance(node, Definition) and node.name == name:
            found.append(node)
        elif isinstance(node, ast.ImportFrom):
            origin = _imported(node, module, path)
            found += [(origin, alias.name) for alias in node.names if (alias.asname or alias.name) == name]
    if len(found) != 1:
        return None
    [only] = found
    return _definition(*only) if isinstance(only, tuple) else (module, only)


def _source(module: str) -> Path | None:
    """A module's file. `find_spec` imports the packages around a module, so it finds the outermost only."""
    top, *inner = module.split(".")
    spec = find_spec(top) if top else None
    path = Path(spec.origin) if spec is not None and spec.origin is not None else None
    for part in inner:
        if path is None:
            return None
        choices = (path.parent / part / "__init__.py", path.parent / f"{part}.py")
        path = next((choice for choice in choices if choice.exists()), None)
    return path if path is not None and path.suffix == ".py" else None


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, also those below `if TYPE_CHECKING:` and `try:`."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


def _imported(node: ast.ImportFrom, module: str, path: Path) -> str:
    """The full name of the module that an import statement of `module` takes names from."""
    if not node.level:
        return node.module or ""
    inside = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    return ".".join([*inside[: len(inside) - node.level + 1], *filter(None, [node.module])])


def _arguments(module: str, node: Definition) -> list[str] | None:
    if isinstance(node, ast.FunctionDef):
        return [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
    makers = [m for m in node.body if isinstance(m, ast.FunctionDef) and m.name in ("__init__", "__new__")]
    if node.keywords or len(makers) > 1:  # a metaclass, overloads
        return None
    if makers:
        taken = makers[0].args
        by_name = taken.args if taken.posonlyargs else taken.args[1:]  # without self
        return [argument.arg for argument in (*by_name, *taken.kwonlyargs)]
    if _is_dataclass(node):
        fields = _fields(module, node)
        return None if fields is None else [name for name, given in fields.items() if given]
    bases = _bases(module, node)
    return _arguments(*bases[0]) if bases is not None and len(bases) == 1 else None


def _fields(module: str, node: ast.ClassDef) -> dict[str, bool] | None:
    """A dataclass's fields, those of its bases first: whether the constructor takes each."""
    bases = _bases(module, node)
    if bases is None:
        return None
    fields: dict[str, bool] = {}
    for base in reversed(bases):
        inherited = _fields(*base)
        if inherited is None:
            return None
        fields |= inherited
    if _is_dataclass(node):
        own = [inner for inner in node.body if isinstance(inner, ast.AnnAssign)]
        fields |= {ast.unparse(inner.target): "init=False" not in ast.unparse(inner) for inner in own}
    return fields


def _bases(module: str, node: ast.ClassDef) -> list[tuple[str, ast.ClassDef]] | None:
    """Where a class's bases are defined; None when one of them is not plain."""
    found: list[tuple[str, ast.ClassDef]] = []
    for base in node.bases:
        known = _definition(module, base.id) if isinstance(base, ast.Name) else None
        if known is None or not isinstance(known[1], ast.ClassDef):
            return None
        found.append((known[0], known[1]))
    return found


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(decorator).startswith("dataclass") for decorator in node.decorator_list)
