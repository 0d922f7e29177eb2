"""A job's configuration is the one that Hydra would compose, however it was come by."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vqa.sweep.jobs import JobConfigs

CONF = Path(__file__).parents[1] / "helpers" / "toy_app" / "conf"


class CountingLoader:
    """Hydra's loader; counts how often it composes a job."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.composed = 0

    def load_sweep_config(self, sweep: DictConfig, overrides: list[str]) -> DictConfig:
        self.composed += 1
        return self.loader.load_sweep_config(sweep, overrides)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


@pytest.fixture
def sweep() -> Iterator[tuple[JobConfigs, CountingLoader]]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), job_name="app"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = CountingLoader(hydra.config_loader)
        config = loader.load_configuration("config", ["+sweep=toy"], RunMode.MULTIRUN)
        yield JobConfigs(loader, config), loader  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "searched",
    [
        ["lr=0.003", "lora.r=32", "image=native"],
        ["lr=1e-05", "lora.r=16", "image=pad_512"],
        ["lr=0.003", "lora.r=32", "image=native", "fails=null"],
    ],
)
def test_a_changed_value_gives_what_composing_anew_would(
    sweep: tuple[JobConfigs, CountingLoader], searched: list[str]
) -> None:
    jobs, loader = sweep
    fixed = ["+sweep=toy", "pause_s=0.5"]
    for image in ("native", "pad_512"):
        jobs.compose(fixed, ["lr=0.1", "lora.r=8", f"image={image}"])
    jobs.compose(fixed, ["lr=0.1", "lora.r=8", "image=native", "fails=once"])
    before = loader.composed
    config = jobs.compose(fixed, searched)
    assert loader.composed == before
    fresh = loader.load_sweep_config(jobs.sweep, [*fixed, *searched])
    assert OmegaConf.to_container(config) == OmegaConf.to_container(fresh)


def test_another_choice_of_files_or_keys_is_composed(sweep: tuple[JobConfigs, CountingLoader]) -> None:
    jobs, loader = sweep
    for searched in (["lr=0.1"], ["lr=0.1", "lora.r=8"], ["image=native"], ["image=pad_512"], ["lr=0.2"]):
        jobs.compose(["+sweep=toy"], searched)
    assert loader.composed == 4


def test_a_list_is_composed_since_hydra_would_merge_it(sweep: tuple[JobConfigs, CountingLoader]) -> None:
    jobs, loader = sweep
    for names in ([1, 2], [3]):
        assert jobs.compose(["+sweep=toy"], [f"+lora.names={names}"]).lora.names == names
    assert loader.composed == 2
