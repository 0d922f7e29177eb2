"""The terms of a study: what it compares, fixed by its first run. Trials under other terms do not compare."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vqa.errors import UserError
from vqa.results.folder import MAY_DIFFER
from vqa.sweep.settings import SweepSettings
from vqa.sweep.space import SearchSpace

# Where and how, not what: the study compares the same whatever these are. An override of a node's part counts
# with its node (env.threads), one of the node around (budget=smoke) does not.
NOT_PART_OF_THE_TERMS = ("study", *MAY_DIFFER)


def study_terms(settings: SweepSettings, space: SearchSpace) -> dict[str, Any]:
    """Give the terms as plain values: equal terms give equal mappings."""
    return {
        "direction": settings.direction,
        "seed": settings.seed,
        "sampler": settings.sampler,
        "pruner": settings.pruner,
        "space": {name: str(distribution) for name, distribution in space.distributions.items()},
        "fixed": sorted(override for override in space.fixed if _matters(override)),
    }


def _matters(override: str) -> bool:
    key = override.lstrip("+~").split("=", 1)[0]
    return not any(key == name or key.startswith(f"{name}.") for name in NOT_PART_OF_THE_TERMS)


def refuse_other_terms(study: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the terms of an earlier run with those of this one.

    Raises:
        UserError: They differ; the message names each difference.
    """
    lines: list[str] = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            lines += [
                f"  {key} {n}: {old.get(n, 'nothing')} before, {new.get(n, 'nothing')} now" for n in names
            ]
        elif isinstance(old, list) and isinstance(new, list):
            gone, come = [x for x in old if x not in new], [x for x in new if x not in old]
            lines.append(f"  {key}: {' '.join(gone) or 'nothing'} before, {' '.join(come) or 'nothing'} now")
        else:
            lines.append(f"  {key}: {old} before, {new} now")
    if lines:
        raise UserError(
            f"study {study!r} was begun under other terms, its trials would not compare:\n"
            + "\n".join(lines)
            + "\nRepeat the earlier command to go on with it, or start another one with study=other."
        )


def has_results(study_folder: Path) -> bool:
    """Whether a trial of the study has ended; before that its terms may still be mended."""
    board = study_folder / "leaderboard.csv"
    ended = (",COMPLETE,", ",PRUNED,", ",FAIL,")
    return board.exists() and any(state in board.read_text(encoding="utf-8") for state in ended)


def read_terms(path: Path) -> dict[str, Any] | None:
    """Read `study.yaml`; None when there is none."""
    if not path.exists():
        return None
    terms = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(terms, dict):
        raise UserError(f"{path} must be a mapping; remove it, the study's storage knows its terms too.")
    return {str(key): value for key, value in terms.items()}


def terms_text(terms: Mapping[str, Any]) -> str:
    """Give the content of `study.yaml`."""
    return "# What this study compares; another run must ask the same.\n" + OmegaConf.to_yaml(dict(terms))
