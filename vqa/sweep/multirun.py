"""What Hydra promises of every multirun, and what a study does with it: docs/multirun.md lists them all.

A study names its own folders. A folder name of the user would be silently without effect, so it is refused by
name.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.machine.safe_text import mask_secrets
from vqa.results.folder import StudyFolder

WITHOUT_EFFECT = {  # keys whose place a study has filled itself
    "hydra.sweep.subdir": "its trials lie in trials/000, trials/001, ...",
    "hydra.output_subdir": "each trial keeps its configuration in .hydra, where stages look for it",
}


def hydra_overrides(config: DictConfig) -> list[str]:
    """Give the overrides of `hydra.*` as typed.

    One may hold `${hydra.job.num}`, which has no value before there is a job. Going through the list itself
    would resolve it.

    Args:
        config: The composed configuration of the sweep.
    """
    plain: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    return [str(override) for override in plain]


def refuse_what_is_not_ours(config: DictConfig) -> None:
    """Refuse what a study would silently leave without effect.

    Args:
        config: The composed configuration of the sweep.

    Raises:
        UserError: One of `WITHOUT_EFFECT` was given.
    """
    for given in hydra_overrides(config):
        if (why := WITHOUT_EFFECT.get(given.lstrip("+~").partition("=")[0])) is not None:
            raise UserError(
                f"{given} has no effect on a study: {why}. "
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
    replace_text(StudyFolder(folder).multirun, OmegaConf.to_yaml(OmegaConf.create(plain)), mode=0o600)
