"""The Hydra plugin of the sweep. Hydra loads it at every start, so nothing heavy is imported here."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vqa.config.messages import speak


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
            UserError: A key, the search space or the study's state does not allow to go on.
        """
        from vqa.sweep.sweep import run_sweep  # here: a start that is no sweep needs no Optuna

        return run_sweep(self.hydra_context, self.task_function, self.config, arguments)
