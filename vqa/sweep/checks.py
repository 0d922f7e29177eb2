"""Everything that a sweep refuses before its first trial; `stage=doctor` asks the same beforehand."""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqa.config.check import read_settings as read_job
from vqa.config.typed import refuse_variables
from vqa.errors import UserError
from vqa.results.folder import StudyFolder
from vqa.sweep.final_run import program, refuse_begun
from vqa.sweep.jobs import JobConfigs, refuse_unknown_keys
from vqa.sweep.multirun import hydra_overrides, refuse_what_is_not_ours
from vqa.sweep.search.conditions import read_space
from vqa.sweep.search.sampling import SamplerFactory, build_pruner, probe_sampler
from vqa.sweep.search.space import SearchSpace, overrides_of, read_enqueued
from vqa.sweep.settings import SweepSettings, read_settings
from vqa.sweep.storage import is_within, shown_address, storage_problem
from vqa.sweep.study import refuse_changed
from vqa.sweep.time_budget import size_of
from vqa.sweep.workers.launch import HERE, chosen_launcher
from vqa.sweep.workers.pool import own_slot, visible_gpus


@dataclass(frozen=True)
class AskedSweep:
    """What a command asks for, checked.

    Args:
        settings: The keys of `hydra.sweeper`.
        space: What is searched.
        launcher: Which of Hydra's launchers places the workers; None = none does.
    """

    settings: SweepSettings
    space: SearchSpace
    launcher: str | None


def read_sweep(config: DictConfig, arguments: Sequence[str], loader: ConfigLoader) -> AskedSweep:
    """Read the keys of a sweep, and refuse what no study can have.

    Args:
        config: The composed configuration of the sweep.
        arguments: Overrides of the command line, without those of `hydra.*`.
        loader: Hydra's own.

    Raises:
        UserError: A key, a range, a command or the launcher is wrong.
    """
    try:
        node = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.sweeper cannot be resolved: {error}") from error
    if not isinstance(node, dict):
        raise UserError("hydra.sweeper must be a mapping; choose hydra/sweeper=study.")
    refuse_what_is_not_ours(config)
    refuse_variables(config.hydra)
    launcher = chosen_launcher(config)
    settings = checked(node, launcher, OmegaConf.select(config, "env.device_map"))
    _refuse_commands(settings, config)
    _refuse_storage_elsewhere(settings, config, Path(config.hydra.sweep.dir).absolute())
    if launcher is not None:
        _refuse_beside_a_launcher(settings, launcher)
    return AskedSweep(settings, read_space(settings, arguments, loader), launcher)


def refuse_unusable(asked: AskedSweep, configs: JobConfigs) -> None:
    """Compose the jobs and draw a trial in memory.

    Raises:
        UserError: A searched key does not exist, or the sampler cannot draw from the space.
    """
    refuse_unknown_keys(configs, asked.space, asked.settings)
    probe_sampler(SamplerFactory(asked.settings.sampler, asked.settings.seed, asked.space), asked.space)


def first_tried(settings: SweepSettings, space: SearchSpace, config: DictConfig) -> list[dict[str, Any]]:
    """The configurations to try first; of a file, those parts that are searched.

    Raises:
        UserError: One that was typed is not in the space.
    """
    typed = any(given.startswith("hydra.sweeper.enqueue") for given in hydra_overrides(config))
    return read_enqueued(settings.enqueue, space, leave_out=not typed)


def sweep_problems(config: DictConfig, arguments: Sequence[str], loader: ConfigLoader) -> list[str]:
    """Why a sweep would not begin, or its jobs would refuse their values; changes nothing.

    Args:
        config: The composed configuration of the sweep.
        arguments: Overrides of the command line, without those of `hydra.*`.
        loader: Hydra's own.
    """
    folder = Path(config.hydra.sweep.dir).absolute()
    configs = JobConfigs(loader, config)
    try:
        asked = read_sweep(config, arguments, loader)
        refuse_unusable(asked, configs)
        first_tried(asked.settings, asked.space, config)
        build_pruner(asked.settings.pruner)
        if asked.settings.budget_minutes is not None:
            size_of(config)
        refuse_changed(asked.settings, asked.space, folder)
        if asked.settings.final:
            of_all = [*overrides_of(asked.settings.record), *asked.settings.final_overrides]
            refuse_begun(StudyFolder(folder).final, [*asked.space.fixed, *of_all], asked.space.keys)
    except UserError as error:
        return [str(error)]
    found = [_refused(asked, configs), storage_problem(asked.settings.storage, folder)]
    return [problem for problem in found if problem]


def _refused(asked: AskedSweep, configs: JobConfigs) -> str | None:
    """What the first trial or the final run says of its settings."""
    settings, fixed = asked.settings, [*asked.space.fixed]
    chosen = overrides_of(next(iter(asked.space.samples())))
    final = [*overrides_of(settings.record), *settings.final_overrides]
    jobs = [(fixed, chosen), *([([*fixed, *chosen, *final], [])] if settings.final else [])]
    for shared, own in jobs:
        job = configs.compose(shared, own)
        try:
            read_job(OmegaConf.masked_copy(job, [str(key) for key in job if key != "hydra"]))
        except UserError as error:
            return str(error)
    return None


def checked(node: Mapping[Any, Any], launcher: str | None, device_map: str | None = None) -> SweepSettings:
    """Check the keys of the sweeper; `n_workers=auto` becomes one worker a GPU, or one.

    Args:
        node: `hydra.sweeper`.
        launcher: Hydra's, by name; None: its own.
        device_map: `env.device_map`; "balanced": one model needs all GPUs.
    """
    keys = {str(key): value for key, value in node.items()}
    if keys.get("n_workers") == "auto":
        if keys.get("worker_command") or (launcher is not None and launcher not in HERE):
            raise UserError(
                "hydra.sweeper.n_workers=auto counts the GPUs of this machine, and the workers run on "
                "others. Give their number."
            )
        keys["n_workers"] = 1 if device_map == "balanced" else max(1, len(visible_gpus()))
    return read_settings(keys)


def _refuse_commands(settings: SweepSettings, config: DictConfig) -> None:
    """Refuse a program that a file, maybe a stranger's, wants started, and one that is not there."""
    given = _typed(config)
    for name in ("worker_command", "final_command"):
        key, command = f"hydra.sweeper.{name}", getattr(settings, name)
        if command is None:
            continue
        if key not in given:
            raise UserError(
                f"{key} starts a program, so it must be given on the command line, not in a file; "
                f"got {command!r}. If that is meant: {key}={command!r}"
            )
        words = shlex.split(command)
        if shutil.which(words[0]) is None and own_slot() is None:  # a worker starts neither
            raise UserError(f"{key} starts {words[0]!r}, and this machine has no such program.")
        if set(words) & {*program(), "vqa"} - {"-m"}:
            raise UserError(
                f"{key} must hold only what goes in front of this command, which is put behind it; "
                f"got {command!r}."
            )
    if settings.final_command is not None and not settings.final:
        raise UserError(
            "hydra.sweeper.final_command has no effect with hydra.sweeper.final=false; leave one out."
        )


def _refuse_storage_elsewhere(settings: SweepSettings, config: DictConfig, folder: Path) -> None:
    """Refuse a storage outside the study's folder that a file, maybe a stranger's, names.

    A server of its own would be sent the password of the environment (PGPASSWORD), and a path of its own
    would be written to.
    """
    key, url = "hydra.sweeper.storage", settings.storage
    if key not in _typed(config) and not is_within(url, folder):
        raise UserError(
            f"{key} lies outside the study's folder, so it must be given on the command line, not in a file: "
            f"a password could be sent there, or a file changed; got {shown_address(url)!r}. If that is "
            f"meant: {key}=..."
        )


def _typed(config: DictConfig) -> list[str]:
    """The keys of Hydra's own that the command line gives."""
    return [override.lstrip("+").split("=", 1)[0] for override in hydra_overrides(config)]


def _refuse_beside_a_launcher(settings: SweepSettings, launcher: str) -> None:
    """Refuse what would place the workers a second time, or time a trial on another machine than theirs."""
    if settings.worker_command:
        raise UserError(
            f"hydra/launcher={launcher} and hydra.sweeper.worker_command both place the workers; give one."
        )
    if settings.budget_minutes is not None and launcher not in HERE:
        raise UserError(
            f"hydra.sweeper.budget_minutes times a trial on this machine, and hydra/launcher={launcher} runs "
            "them on others. Give hydra.sweeper.n_trials and hydra.sweeper.timeout_s instead."
        )
