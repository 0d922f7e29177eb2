"""The jobs of a sweep. Each is a Hydra job with its own configuration and folder.

Hydra composes a configuration once per choice of config groups. Jobs with the same choices differ in values
only, and these are set in the composed configuration.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from vqa.errors import UserError, mendable
from vqa.progress import Pruned
from vqa.sweep.search.space import SearchSpace, group_of, overrides_of, plain_value
from vqa.sweep.settings import SweepSettings

Scalar = str | int | float | bool | None


class JobConfigs:
    """Composes the jobs of one sweep. Composing takes Hydra a tenth of a second, changing a value nothing.

    Args:
        loader: Hydra's own.
        sweep: The configuration of the sweep itself.
    """

    def __init__(self, loader: ConfigLoader, sweep: DictConfig) -> None:
        self.loader = loader
        self.sweep = sweep
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, fixed: Sequence[str], searched: Sequence[str]) -> DictConfig:
        """Return the configuration of one job. The next call may change it.

        Args:
            fixed: Overrides that all jobs of a kind share.
            searched: Overrides `key=value` of this job; they win.
        """
        pairs = [override.split("=", 1) for override in searched]
        values = {key.lstrip("+"): plain_value(text) for key, text in pairs if self._is_plain(key)}
        choices = [f"{key}={text}" for key, text in pairs if not self._is_plain(key)]
        name = (*fixed, "", *choices, "", *values)
        config = self._composed.get(name)
        overrides = [*fixed, *searched]
        if config is None or not all(isinstance(value, Scalar) for value in values.values()):
            self._composed[name] = self.loader.load_sweep_config(self.sweep, overrides)
            return self._composed[name]
        for key, value in values.items():
            OmegaConf.update(config, key, value)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.overrides.task = overrides
        return config

    def _is_plain(self, key: str) -> bool:
        """Whether an override gives a value and chooses no file."""
        return not self.loader.get_group_options(group_of(key))


def refuse_unknown_keys(configs: JobConfigs, space: SearchSpace, settings: SweepSettings) -> None:
    """Compose a job for every choice of the space, so that a typo shows before any model loads.

    Raises:
        UserError: A searched key or choice does not exist in the configuration.
    """
    attempts = [([*space.fixed], overrides_of(params)) for params in space.samples()]
    if settings.final:
        final = [*overrides_of(settings.record), *settings.final_overrides]
        attempts.append(([*space.fixed, *attempts[0][1], *final], []))
    for fixed, searched in attempts:
        try:
            configs.compose(fixed, searched)
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: group=null
            raise UserError(
                f"a job of this sweep cannot be composed ({' '.join([*fixed, *searched])}): {error}"
            ) from error


@dataclass(frozen=True)
class HydraJobs:
    """Runs Hydra jobs of one sweep, each in its own folder.

    Args:
        context: Hydra's own.
        task_function: What a job runs.
        config: The configuration of the sweep itself.
        parent_run_id: MLflow run of the study, under which the jobs' runs go; None = none.
    """

    context: HydraContext
    task_function: TaskFunction
    config: DictConfig
    parent_run_id: str | None = None

    @cached_property
    def configs(self) -> JobConfigs:
        """Composes the jobs under the sweep's own configuration."""
        return JobConfigs(self.context.config_loader, self.config)

    def run(self, subdir: str, number: int, fixed: Sequence[str], searched: Sequence[str]) -> JobReturn:
        """Compose and run one job.

        Args:
            subdir: Its folder within the study's folder.
            number: `hydra.job.num`.
            fixed: Overrides that it shares with other jobs.
            searched: Overrides of its own, which win.

        Returns:
            Hydra's result. Its value is a Pruned or a UserError when the job raised one, so that Hydra does
            not log these as failures. A full disk becomes a UserError too.
        """
        config = self.configs.compose(fixed, searched)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.job.num = number
            config.hydra.job.id = f"{self.config.hydra.sweeper.study_name}_{number}"
            config.hydra.sweep.subdir = subdir
            config.hydra.output_subdir = ".hydra"  # part of the study folder's contract
        if self.parent_run_id is not None:
            config.tracking.parent_run_id = self.parent_run_id
        try:
            return run_job(
                task_function=self._task,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
                hydra_context=self.context,
            )
        finally:  # run_job leaves logging on the job's own file
            hydra = self.config.hydra
            configure_log(hydra.hydra_logging, hydra.verbose, self.context.execution_whitelist)

    def _task(self, config: DictConfig) -> object:
        try:
            return self.task_function(config)
        except Pruned as pruned:
            logging.getLogger(__name__).info(f"trial {HydraConfig.get().job.num} {pruned}")
            return pruned
        except UserError as error:
            logging.getLogger(__name__).error(str(error))
            return error
        except OSError as error:
            if (refusal := mendable(error)) is None:
                raise
            logging.getLogger(__name__).error(str(refusal))
            refusal.__cause__ = error  # tells it from a refusal of the trial's values
            return refusal
