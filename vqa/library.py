"""Library objects straight from configuration: a new option of theirs needs no code of ours.

Only targets on a narrow list are executed; an argument the target does not have is refused before the call.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vqa.arguments import argument_names
from vqa.errors import UserError, require

# What `_target_` may name, per node. Anything else in a configuration file is refused, so that a shared
# YAML file cannot run code of its own.
TRUSTED: dict[str, tuple[str, ...]] = {
    "data": ("vqa.*",),
    "lora": ("peft.*",),
    "optimizer": ("torch.optim.*", "bitsandbytes.optim.*"),
    "scheduler.schedule": ("transformers.*",),
    "quantization.weights": ("transformers.*",),
}


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
    parameters = _parameters(name, str(target))
    for key in node:
        if not key.startswith("_") and key not in parameters:
            raise UserError(
                f"{name}.{key}: {target} has no such argument; it has: {', '.join(sorted(parameters))}"
            )


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
