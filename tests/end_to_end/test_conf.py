"""Every option of every group composes, and passes the checks."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import CONF, Compose
from vqa.config.check import read_settings
from vqa.sweep.search.sampling import SamplerFactory, build_pruner
from vqa.sweep.search.space import read_search_space

GROUPS = [
    *("model", "quantization", "lora", "optimizer", "scheduler", "data", "image", "prompt", "budget"),
    *("inference", "adapt", "tracking", "env", "experiment"),
]
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
SWEEPS = [path.stem for path in sorted((CONF / "sweep").glob("*.yaml"))]
PRUNERS = [path.stem for path in sorted((CONF / "hydra/sweeper/pruner").glob("*.yaml"))]
SAMPLERS = [path.stem for path in sorted((CONF / "hydra/sweeper/sampler").glob("*.yaml"))]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: str(value))
def test_every_option_composes(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, group: str, option: str
) -> None:
    monkeypatch.setenv("DATA_PATH", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    settings = read_settings(composed(f"{group}={option}"))
    assert settings.budget.batch_size >= 1


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_sweep_composes_into_a_trial(composed: Compose, sweep: str) -> None:
    settings = read_settings(composed(f"+sweep={sweep}"))
    assert (settings.stage, settings.study, settings.budget.folds) == ("trial", sweep, 3)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_pruner_and_sampler_can_be_built(composed: Compose, pruner: str, sampler: str) -> None:
    from hydra import compose

    overrides = ["+sweep=lora", f"hydra/sweeper/pruner={pruner}", f"hydra/sweeper/sampler={sampler}"]
    node = compose("config", overrides=overrides, return_hydra_config=True).hydra.sweeper
    nodes: dict[str, Any] = {
        name: OmegaConf.to_container(node[name], resolve=True) for name in ("pruner", "sampler")
    }
    assert type(build_pruner(nodes["pruner"])).__name__ == nodes["pruner"]["_target_"].rpartition(".")[2]
    space = read_search_space({"lora.r": "choice(8, 16)"}, [], None)
    built = SamplerFactory(nodes["sampler"], 0, space).build(1)
    assert type(built).__name__ == nodes["sampler"]["_target_"].rpartition(".")[2]


def test_a_config_file_is_short() -> None:
    # the fixed few-shot prompt is one text; the help page is text too
    long = {"fewshot_ko.yaml", "vqa.yaml", "config.yaml"}
    for path in CONF.rglob("*.yaml"):
        assert path.name in long or len(path.read_text(encoding="utf-8").splitlines()) <= 25, path


def setting_lines(path: Path) -> list[str]:
    """The lines of an option that say something: no comments, and not what it inherits from."""
    text = re.sub(r"^defaults:.*\n(?:[ -].*\n)*", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    bare = [re.sub(r"(^|\s+)#.*", "", line).rstrip() for line in text.splitlines()]
    return [line for line in bare if line]


def test_an_option_states_what_differs() -> None:
    """At most 20 % of the lines stand in their group a second time; all copies count."""
    groups = sorted({path.parent for path in CONF.rglob("*.yaml")} - {CONF, CONF / "hydra/help"})
    lines = Counter(
        (group, line) for group in groups for p in group.glob("*.yaml") for line in setting_lines(p)
    )
    repeated = sum(times for times in lines.values() if times > 1)
    assert repeated <= 0.2 * lines.total()


@pytest.mark.parametrize(
    ("experiment", "facts"),
    [
        # the facts of the two teams' write-ups, seeds.md
        (
            "team_a_baseline",
            {"lora.r": 8, "lora.lora_alpha": 16, "quantization.name": "nf4", "budget.epochs": 1},
        ),
        (
            "team_a_final",
            {"optimizer.lr": 2e-5, "precision": "bfloat16", "quantization.name": "none", "budget.epochs": 5},
        ),
        ("team_a_final", {"image.mode": "resize", "image.size": 448, "scheduler.schedule.name": "linear"}),
        (
            "team_b_final",
            {"lora.r": 32, "lora.lora_alpha": 32, "lora.lora_dropout": 0.05, "lora.use_rslora": True},
        ),
        (
            "team_b_final",
            {"optimizer.lr": 1e-4, "optimizer.weight_decay": 0.01, "scheduler.warmup_ratio": 0.05},
        ),
        ("team_b_final", {"budget.batch_size": 16, "budget.epochs": 5}),
        ("team_b_final", {"image.mode": "pad", "image.size": 512, "inference.readout": "letters"}),
    ],
)
def test_the_teams_facts_are_expressed(composed: Compose, experiment: str, facts: dict[str, object]) -> None:
    cfg = composed(f"experiment={experiment}", "data.image_root=.")
    assert {key: OmegaConf.select(cfg, key) for key in facts} == facts


def test_every_enqueued_read_out_of_the_answers_sweep_passes_the_checks(composed: Compose) -> None:
    from hydra import compose

    node = compose("config", overrides=["+sweep=answers"], return_hydra_config=True).hydra.sweeper
    assert len(node.enqueue) == node.n_trials
    for entry in node.enqueue:
        chosen = [f"{key}={value}" for key, value in entry.items()]
        settings = read_settings(composed("+sweep=answers", *chosen))
        assert settings.budget.keep_fold_adapters
