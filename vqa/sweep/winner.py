"""The best trial as an experiment file: what a user runs next."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.sweep.leaderboard import Standing, describe_scores, describe_ties
from vqa.sweep.space import overrides_of, plain_value


def winner_of(standings: Sequence[Standing]) -> Standing | None:
    """Give the best complete trial; None while there is none."""
    return standings[0] if standings and standings[0].state == "COMPLETE" else None


def winner_text(
    standings: Sequence[Standing], record: Mapping[str, Any], is_group: Callable[[str], bool]
) -> str:
    """Give the content of `best.yaml`: an experiment file with the winner's searched values.

    Args:
        standings: In order, the winner first.
        record: Further plain values that belong to the winner.
        is_group: Whether a key names a config group, so that its value is an option.
    """
    best = standings[0]
    values = [override.lstrip("+") for override in overrides_of({**best.params, **record})]
    groups: list[Any] = []
    plain: dict[str, Any] = {}
    for override in values:
        key, value = override.split("=", 1)
        if is_group(key):
            groups.append({f"override /{key}": plain_value(value)})
        else:
            _set_nested(plain, key.split("."), plain_value(value))
    body = {"defaults": [*groups, "_self_"]} if groups else {}
    lines = [
        "# @package _global_",
        f"# Trial {best.trial}: {describe_scores(best)}",
        f"# {describe_ties(standings)}",
        f"# On a command line: {shlex.join(values)}",
    ]
    return "\n".join(lines) + "\n" + OmegaConf.to_yaml(OmegaConf.create({**body, **plain}))


def _set_nested(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def write_winner(text: str, study_folder: Path) -> None:
    """Write `best.yaml`, and again as `experiment/best.yaml` for `--config-dir <study> experiment=best`."""
    (study_folder / "experiment").mkdir(exist_ok=True)
    replace_text(study_folder / "best.yaml", text)
    replace_text(study_folder / "experiment" / "best.yaml", text)


def read_winner(path: Path) -> list[str]:
    """Give the overrides that a `best.yaml` stands for, `key=value` each.

    Args:
        path: A file of `write_winner`.

    Raises:
        UserError: It is no such file.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error}); mend it or give winner=none") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of keys to values; mend it or give winner=none")
    plain = {str(key): value for key, value in content.items()}
    groups = [entry for entry in plain.pop("defaults", []) if isinstance(entry, dict)]
    chosen = {str(key).removeprefix("override /"): value for entry in groups for key, value in entry.items()}
    return overrides_of({**chosen, **_flat(plain)})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
