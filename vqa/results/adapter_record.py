"""What an adapter was trained with, and how a later run takes it over.

An adapter answers as it was measured only with the model, quantisation, prompt, pixels and read-out that it
was trained with. The final run's own configuration says which. A copy of it without paths goes with the
weights, for an adapter that leaves its run's folder.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vqa.config.settings import is_under
from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.results.folder import CALIBRATION, MEMBER, RunFolder, member_folders, read_yaml

RECORD = "vqa.yaml"  # in the adapter's folder
ANSWERING = ("model", "quantization", "prompt", "image", "inference", "precision", "data")
# test-time methods compare with the training questions: these are drawn again
ADAPTING = ("adapt", "seed", "budget.subsample", "budget.holdout_share")
TAKEN: dict[str, tuple[str, ...]] = {
    "predict": (*ANSWERING, *ADAPTING),
    "evaluate": (*ANSWERING, *ADAPTING),
    "serve": ANSWERING,
    "merge": ("model",),
}
# Where a run computes and what it answers: what the command line says now.
OF_NOW = ("image.cache_gib", "image.cache_dir", "image.cache_disk_gib", "model.license")
# Which files are read: a later run is for others, and a copy of the adapter should not name them.
PATHS = tuple(f"data.{key}" for key in ("train_csv", "test_csv", "image_root", "sample_submission", "folder"))
# Of a model, what changes no answer.
NO_MATTER = (
    *(*PATHS, "data.train_size", "data.test_size", "data.seed", *OF_NOW),
    *("model.name", "model.lr", "model.lr_low", "model.lr_high", "model.known_good"),
    *("quantization.name", "seed", "budget"),
)


@dataclass(frozen=True)
class AdapterRecord:
    """How an adapter was trained.

    Args:
        path: The file that says so.
        config: The run's configuration, interpolations as they were written.
        choices: The option of each group, by the group's name.
    """

    path: Path
    config: DictConfig
    choices: Mapping[str, str]


def write_record(run: RunFolder) -> None:
    """Put what later runs need to know beside the weights of a final run, without paths of this machine."""
    record = _of_run(run)
    if record is None:
        return
    config = OmegaConf.create({})
    for key in (*ANSWERING, *ADAPTING):
        OmegaConf.update(config, key, _raw(record.config, key), force_add=True)
    for name, value in list(_raw(config, "data").items()):
        if f"data.{name}" in PATHS and "${" not in str(value):
            config.data[name] = None
    plain = {"choices": dict(record.choices), "config": OmegaConf.to_container(config, resolve=False)}
    replace_text(run.adapter / RECORD, OmegaConf.to_yaml(OmegaConf.create(plain)))


def read_record(adapter: Path) -> AdapterRecord | None:
    """Read how an adapter was trained: in its run's folder, else beside its weights; None where nothing says.

    Args:
        adapter: Its folder, or that of one of several members.

    Raises:
        UserError: The record is no YAML.
    """
    folder = adapter.parent if adapter.name.startswith(MEMBER) else adapter
    if folder.name == RunFolder(folder.parent).adapter.name and (found := _of_run(RunFolder(folder.parent))):
        return found
    path = folder / RECORD
    if not path.exists():
        return None
    stored = read_yaml(path)
    plain: Any = OmegaConf.to_container(stored, resolve=False)
    config, choices = (plain.get("config"), plain.get("choices")) if isinstance(plain, dict) else (None, None)
    if not isinstance(config, dict) or not isinstance(choices, dict):
        raise UserError(
            f"{path}: must hold `config` and `choices`; copy the adapter again, or remove the file"
        )
    return AdapterRecord(path, OmegaConf.create(config), choices)


def weights_sha256(adapter: Path) -> str:
    """Digest of what decides an adapter's answers: the weights of all members and their temperatures."""
    digest = hashlib.sha256()
    for folder in member_folders(adapter):
        for path in (folder / "adapter_model.safetensors", folder / CALIBRATION, adapter / CALIBRATION):
            digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def _of_run(run: RunFolder) -> AdapterRecord | None:
    if not run.config_file.exists():
        return None
    choices: Any = {}
    if run.hydra_file.exists():
        choices = OmegaConf.to_container(read_yaml(run.hydra_file).hydra.runtime.choices)
    return AdapterRecord(run.config_file, read_yaml(run.config_file), choices)


def with_record(
    cfg: DictConfig, record: AdapterRecord, given: Sequence[str], standard: DictConfig | None
) -> tuple[DictConfig, list[str]]:
    """Take the adapter's record into a configuration; what the command line says still wins.

    A word that chooses the option that the adapter was trained with says nothing new: what else was set of
    that group at the time stays.

    Args:
        cfg: The composed configuration.
        record: How the adapter was trained.
        given: Overrides of the command line, as typed.
        standard: The configuration without any override, where an experiment was chosen that the adapter was
            not trained with: what differs from it counts as typed. None: none was.

    Returns:
        The configuration, and a line for each value that differs from the adapter's own and changes answers.
    """
    words = [word.lstrip("+~").partition("=") for word in given]
    made = cfg.copy()
    OmegaConf.set_struct(made, False)
    for key in TAKEN[str(cfg.stage)]:
        group = key.partition(".")[0]
        if _raw(record.config, group) is None:
            continue  # an earlier version did not know it
        chosen = any(name == group and option != record.choices.get(group) for name, _, option in words)
        by_file = standard is not None and _raw(standard, key) != _raw(cfg, key)
        if not chosen and not by_file:
            _take(made, key, record)
    for name, _, _ in words:
        if "." in name and is_under(name, TAKEN[str(cfg.stage)]):
            _set(made, name, OmegaConf.select(cfg, name))
        elif name in ("precision", "seed"):
            _set(made, name, cfg[name])
    for key in OF_NOW:
        _set(made, key, _raw(cfg, key))
    OmegaConf.set_struct(made, True)
    return made, _differences(made, record, TAKEN[str(cfg.stage)])


def _take(made: DictConfig, key: str, record: AdapterRecord) -> None:
    """Put a recorded value into a configuration; keys that the record does not know stay as they are."""
    recorded, now = _raw(record.config, key), _raw(made, key)
    if isinstance(recorded, dict) and isinstance(now, dict) and "_target_" not in recorded:
        recorded = {**now, **{name: value for name, value in recorded.items() if name in now}}
    _set(made, key, recorded)


def _set(made: DictConfig, key: str, value: Any) -> None:
    OmegaConf.update(made, key, value, merge=False, force_add=True)


def _raw(cfg: DictConfig, key: str) -> Any:
    """A value with its interpolations as they were written."""
    node, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, node) if node else cfg
    plain: Any = OmegaConf.to_container(parent, resolve=False) if OmegaConf.is_config(parent) else {}
    return plain.get(name) if isinstance(plain, dict) else None


def _differences(made: DictConfig, record: AdapterRecord, keys: Sequence[str]) -> list[str]:
    trained = made.copy()  # what the record does not hold, such as `env`, is the same in both
    OmegaConf.set_struct(trained, False)
    for key in keys:
        _set(trained, key, _raw(record.config, key))
    known = [key for key in keys if _raw(record.config, key) is not None]  # by an earlier version not all
    return [line for key in known for line in _differing(key, _resolved(trained, key), _resolved(made, key))]


def _resolved(cfg: DictConfig, key: str) -> Any:
    value = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _differing(key: str, old: Any, new: Any) -> list[str]:
    """A line for each value below a key that is another now; a key that one of them does not know is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        known = [name for name in new if name in old]
        return [line for name in known for line in _differing(f"{key}.{name}", old[name], new[name])]
    before, now = _text(old), _text(new)
    if before == now or is_under(key, NO_MATTER):
        return []
    return [f"{key}={_short(now)}, trained with {_short(before)}"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(text: str, most: int = 60) -> str:
    words = " ".join(text.split())
    return words if len(words) <= most else f"{words[: most - 3]}..."
