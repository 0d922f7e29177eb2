"""What Hydra promises of every multirun, and what a study does with it: docs/multirun.md lists them all.

A study places its own workers and names its own folders. A launcher or a folder name of the user would be
silently without effect, so it is refused by name.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.machine.safe_text import mask_secrets

MULTIRUN = "multirun.yaml"  # as Hydra's own sweeper calls it
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
# What each of Hydra's launchers is for, and how a study has the same.
INSTEAD = {
    "joblib": "hydra.sweeper.n_workers=N starts N worker processes on this machine, one per GPU",
    "submitit_local": "hydra.sweeper.n_workers=N starts N worker processes on this machine, one per GPU",
    "submitit_slurm": (
        "hydra.sweeper.n_workers=N hydra.sweeper.worker_command=\"'srun --ntasks=1 --gpus=1'\" starts N "
        "workers through Slurm, and so does a job array of this command with VQA_WORKER=$SLURM_ARRAY_TASK_ID"
    ),
    "ray": (
        "`ray job submit` starts this command as a worker with VQA_WORKER=0, 1, ... in its environment; see "
        "docs/sweeps_and_clusters.md, Ray"
    ),
}


def refuse_what_is_not_ours(config: DictConfig) -> None:
    """Refuse what a study would silently leave without effect.

    Args:
        config: The composed configuration of the sweep.

    Raises:
        UserError: `hydra/launcher` or `hydra.sweep.subdir` was chosen.
    """
    if config.hydra.launcher._target_ != BASIC:
        name = str(config.hydra.runtime.choices.get("hydra/launcher", config.hydra.launcher._target_))
        instead = INSTEAD.get(
            name, "hydra.sweeper.n_workers and hydra.sweeper.worker_command place the workers"
        )
        raise UserError(
            f"hydra/launcher={name} has no effect on a study, whose workers take trials one after another. "
            f"Leave it out; {instead}."
        )
    for given in config.hydra.overrides.hydra:
        if given.lstrip("+~").partition("=")[0] == "hydra.sweep.subdir":
            raise UserError(
                f"{given} has no effect on a study: its trials lie in trials/000, trials/001, ... "
                "Leave it out; hydra.sweep.dir names the study's own folder."
            )


def write_multirun(config: DictConfig, folder: Path) -> None:
    """Keep the sweep's own configuration as Hydra does, with secrets masked.

    Args:
        config: The composed configuration of the sweep.
        folder: The study's folder; made when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = mask_secrets(OmegaConf.to_container(config, resolve=False))
    replace_text(folder / MULTIRUN, OmegaConf.to_yaml(OmegaConf.create(plain)), mode=0o600)
