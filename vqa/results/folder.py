"""A run's own folder: its configuration is written once, and nothing in it is ever overwritten by another."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vqa.errors import UserError

BOOKKEEPING = (".hydra", "run.log", ".mlflow_run_id", "split.csv")  # not worth protecting on their own
MANIFEST = "manifest.json"  # written last: its presence means "complete"
# Where and how, not what: a run may go on with other values of these.
MAY_DIFFER = (
    "tracking",
    "env",
    "winner",
    "lang",
    "model.license",
    "budget.micro_batch_size",
    "budget.max_memory_gib",
    "budget.eval_batch_size",
    "budget.checkpoint_steps",
    "image.cache_gib",
    "image.cache_dir",
    "image.cache_disk_gib",
)


def begin(folder: Path, cfg: DictConfig) -> bool:
    """Claim a folder for a configuration.

    Args:
        folder: The run's output folder; made when missing.
        cfg: The composed configuration.

    Returns:
        False when the folder holds the complete result of this very configuration already.

    Raises:
        UserError: It holds a run of another configuration, or cannot be written.
    """
    stored = folder / ".hydra" / "config.yaml"
    if stored.exists() and any(path.name not in BOOKKEEPING for path in folder.iterdir()):
        _refuse_other(folder, OmegaConf.load(stored), cfg)
        return not (folder / MANIFEST).exists()
    try:
        stored.parent.mkdir(parents=True, exist_ok=True)
        hydra_cfg = HydraConfig.get()
        OmegaConf.save(list(hydra_cfg.overrides.task), stored.parent / "overrides.yaml")
        OmegaConf.save(OmegaConf.create({"hydra": hydra_cfg}), stored.parent / "hydra.yaml")
        OmegaConf.save(cfg, stored)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error}); set VQA_OUTPUT=/a/writable/folder or env.output_root=..."
        ) from error
    return True


def _refuse_other(folder: Path, before: Any, now: DictConfig) -> None:
    old, new = _asked(before), _asked(now)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        shown = "; ".join(f"{key}: {old.get(key)} there, {new.get(key)} now" for key in differing[:5])
        raise UserError(
            f"{folder} holds a run of another configuration ({shown}). Nothing was changed: "
            "name another study (study=other), or another folder (hydra.run.dir=...)"
        )


def _asked(cfg: Any) -> dict[str, str]:
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return {key: text for key, text in flatten(plain).items() if not key.startswith(MAY_DIFFER)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted names and texts: strings as they are, the rest as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = (
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            )
    return flat
