"""Every example of docs/bring_your_own.md works as it stands there."""

import importlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

import vqa.data
from tests.conftest import SMALL
from vqa.config.check import read_settings, register_resolvers
from vqa.config.library import build
from vqa.data.source import data_source
from vqa.model.base import model_folder, read_model_config

PAGE = Path(__file__).parents[2] / "docs/bring_your_own.md"
CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A folder with every example, on Hydra's search path."""
    for name, text in re.findall(
        r"```(?:yaml|python)\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF)):
        yield tmp_path


def composed(folder: Path, *overrides: str, hydra: bool = False) -> DictConfig:
    path = f"hydra.searchpath=[file://{folder}]"
    return compose("config", overrides=[path, *SMALL, *overrides], return_hydra_config=hydra)


def test_the_page_has_its_five_examples(mine: Path) -> None:
    names = sorted(path.relative_to(mine).as_posix() for path in mine.rglob("*") if path.is_file())
    assert names == [
        "data/quiz_jsonl.yaml",
        "hydra/sweeper/pruner/percentile.yaml",
        "model/mine.yaml",
        "scheduler/hard_restarts.yaml",
        "vqa/data/quiz_jsonl.py",
    ]


def test_the_model_of_the_page_is_read(mine: Path) -> None:
    shutil.copytree(model_folder("asset:tiny"), mine / "checkpoint")
    settings = read_settings(composed(mine, "model=mine", f"model.path={mine}/checkpoint"))
    assert (settings.model.license, settings.model.max_visual_tokens) == ("other", 512)
    assert read_model_config(settings).model_type == "qwen3_vl"


def test_the_dataset_of_the_page_is_read(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqa.data, "__path__", [*vqa.data.__path__, str(mine / "vqa/data")])
    importlib.invalidate_caches()
    Image.new("RGB", (64, 64)).save(mine / "1.png")
    row = '{"id": "1", "image": "1.png", "question": "?", "options": ["w", "x", "y", "z"], "answer": "b"}'
    (mine / "quiz.jsonl").write_text(row + "\n")
    overrides = [o for o in SMALL if not o.startswith("data.")]
    path = f"hydra.searchpath=[file://{mine}]"
    made = compose("config", overrides=[path, *overrides, "data=quiz_jsonl", f"data.file={mine}/quiz.jsonl"])
    source = data_source(read_settings(made))
    assert source.train()[0].choices == ("w", "x", "y", "z")
    assert source.check() == []


def test_the_scheduler_of_the_page_lowers_the_rate(mine: Path) -> None:
    settings = read_settings(composed(mine, "scheduler=hard_restarts"))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build("scheduler.schedule", settings.scheduler.schedule)(
        optimizer=optimizer, num_warmup_steps=2, num_training_steps=22
    )
    rates = []
    for _ in range(22):
        optimizer.step()
        rates.append(schedule.get_last_lr()[0])
        schedule.step()
    assert rates[2] == pytest.approx(1.0)
    assert rates[11] < 0.1 < rates[12]  # the second of two cycles begins after half of the 20 steps
    assert settings.scheduler.warmup_ratio == 0.1


def test_the_pruner_of_the_page_is_built(mine: Path) -> None:
    found = composed(mine, "+sweep=lora", "hydra/sweeper/pruner=percentile", hydra=True)
    node = found.hydra.sweeper.pruner
    pruner = instantiate(node, _execution_whitelist_=("optuna.pruners.*",))
    assert type(pruner).__name__ == "PercentilePruner"
