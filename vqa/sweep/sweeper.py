"""The Hydra plugin of the sweep. Hydra loads it at every start, so nothing heavy is imported here."""

from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vqa.config.check import language
from vqa.config.messages import speak
from vqa.errors import UserError


class StudySweeper(Sweeper):
    """Runs a sweep as one Optuna study of Hydra jobs, pruned early and resumable at any instant.

    Hydra creates it from `conf/hydra/sweeper/*.yaml`; `vqa.sweep.settings` says what each key means.
    """

    def __init__(self, **settings: Any) -> None:
        """Ignore the keys: `sweep` reads them, resolved, from the whole configuration."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what the jobs of this sweep are composed from."""
        self.hydra_context: HydraContext = hydra_context
        self.task_function = task_function
        self.config: DictConfig = config
        speak(OmegaConf.select(config, "lang"))

    def sweep(self, arguments: list[str]) -> float | None:
        """Run what is missing of the study, then the final run.

        Args:
            arguments: The overrides of the command line, without those of `hydra.*`.

        Returns:
            The objective of the best trial; None while no trial is complete.

        Raises:
            UserError: A data file is missing, or a key, the search space or the study's state does not allow
                to go on.
        """
        _refuse_missing_files(self.config, arguments)
        from vqa.sweep.sweep import run_sweep  # here: neither a refusal nor a single run needs Optuna

        return run_sweep(self.hydra_context, self.task_function, self.config, arguments)


def _refuse_missing_files(config: DictConfig, arguments: list[str]) -> None:
    """Tell of a data file that is not there before anything is loaded; a complete study needs none."""
    from vqa.data.places import missing_data_files
    from vqa.results.folder import StudyFolder

    language(config)  # a mistake of its own, and what the next line is said in
    data = OmegaConf.select(config, "data")
    searched = any(given.lstrip("+").startswith("data") and "," in given for given in arguments)
    complete = StudyFolder(Path(config.hydra.sweep.dir)).final.complete
    if not isinstance(data, DictConfig) or searched or complete:
        return
    plain: Any = OmegaConf.to_container(data, resolve=True)
    if missing := missing_data_files(plain):
        raise UserError("\n".join(missing))
