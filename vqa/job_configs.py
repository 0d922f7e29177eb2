"""The configurations of a sweep's jobs: composed once per choice of groups, then only values change."""

from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from vqa.errors import UserError
from vqa.search_space import SearchSpace, overrides_of, plain_value
from vqa.sweep_settings import SweepSettings

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
        """Give the configuration of one job; it is good until the next call.

        Args:
            fixed: Overrides that all jobs of a kind share.
            searched: Overrides `key=value` of this one; the last word.
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
        return not self.loader.get_group_options(key.lstrip("+"))


def refuse_unknown_keys(configs: JobConfigs, space: SearchSpace, settings: SweepSettings) -> None:
    """Compose a job for every choice of the space, so that a typo shows before any model loads.

    Raises:
        UserError: A searched key or choice does not exist in the configuration.
    """
    attempts = [overrides_of(params) for params in space.samples()]
    if settings.final:
        attempts.append([*attempts[0], *overrides_of(settings.record), *settings.final_overrides])
    for overrides in attempts:
        try:
            configs.loader.load_sweep_config(configs.sweep, [*space.fixed, *overrides])
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(
                f"a job of this sweep cannot be composed ({' '.join(overrides)}): {error}"
            ) from error
