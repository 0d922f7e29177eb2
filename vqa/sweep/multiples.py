"""Numbers that are searched as a multiple of another: `lora.lora_alpha: tag(times:lora.r, choice(1, 2, 4))`.

LoRA adds its update times alpha / r, so a good alpha moves with r, and a sampler that knows only alpha learns
little from trials of another r. The study draws the ratio, under the name of what it is
(`lora.lora_alpha / lora.r`); jobs, leaderboard and best.yaml get the plain values.

Source: Hydra's tags, which its grammar keeps for sweepers, as in tag(log, interval(1e-5, 1e-3)).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from vqa.errors import UserError

OVER = " / "
TIMES = "times:"


def key_of(name: str) -> str:
    """The configuration key behind a searched name."""
    return name.partition(OVER)[0]


def other_of(name: str) -> str:
    """The key of which a searched name is a multiple; empty for one that is searched by itself."""
    return name.partition(OVER)[2]


def searched_name(key: str, tags: Iterable[str]) -> str:
    """The name under which the study draws `key`, given the tags of its range.

    Raises:
        UserError: A tag has no meaning here.
    """
    others = [tag for tag in tags if tag != "log"]
    multiples = [tag.removeprefix(TIMES) for tag in others if tag.startswith(TIMES) and tag != TIMES]
    if len(multiples) > 1 or len(multiples) < len(others):
        raise UserError(f"{key}: tag must be log or one {TIMES}KEY, got {', '.join(sorted(others))}")
    return f"{key}{OVER}{multiples[0]}" if multiples else key


def with_constants(
    space: Mapping[str, BaseDistribution], fixed: Mapping[str, Any]
) -> dict[str, BaseDistribution]:
    """Make sure that every multiple knows its other number; a fixed one becomes a range of one value.

    Args:
        space: Searched name -> its range.
        fixed: Key -> value, of the keys that are not searched.

    Raises:
        UserError: The other number is neither searched nor fixed, or something is not a number.
    """
    complete: dict[str, BaseDistribution] = {}
    for name, distribution in space.items():
        key, _, other = name.partition(OVER)
        if other and other not in space:
            if other not in fixed:
                raise UserError(
                    f"{key} is searched as a multiple of {other}, so {other} must be searched by itself or "
                    f"fixed, got neither. Give a range or a value, such as {other}=16."
                )
            complete[other] = CategoricalDistribution([fixed[other]])
        complete[name] = distribution
    for name in complete:
        for part in (name, other_of(name)) if OVER in name else ():
            if not _has_numbers(complete[part]):
                raise UserError(f"{part} must be numbers, as {name} is searched, got {complete[part]}.")
    return complete


def _has_numbers(distribution: BaseDistribution) -> bool:
    return not isinstance(distribution, CategoricalDistribution) or all(
        _is_number(choice) for choice in distribution.choices
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain_values(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what the study drew into the values of its keys.

    Args:
        params: Searched name -> value; a multiple whose other number is not drawn yet is left out.
    """
    values: dict[str, Any] = {}
    for name, value in params.items():
        key, _, other = name.partition(OVER)
        if not other:
            values[name] = value
        elif other in params:
            values[key] = _whole(value * params[other], params[other])
    return values


def drawn_values(where: str, values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Turn values of keys into what the study would have drawn; the inverse of `plain_values`.

    Args:
        where: For messages.
        values: Key -> value.
        names: Searched names.

    Raises:
        UserError: A multiple stands without its other number.
    """
    drawn = dict(values)
    for name in names:
        key, _, other = name.partition(OVER)
        if not other or key not in values:
            continue
        if other not in values:
            raise UserError(f"{where} names {key} without {other}, of which it is a multiple. Add {other}.")
        top, bottom = drawn.pop(key), values[other]
        fits = _is_number(top) and _is_number(bottom) and bottom != 0
        drawn[name] = _whole(top / bottom, 1) if fits else math.nan
    return drawn


def _whole(value: float, like: float) -> float:
    """A whole number as such, where a whole number belongs: alpha = 0.5 x 16 is 8."""
    return int(value) if isinstance(like, int) and float(value).is_integer() else value
