"""The time that the doctor estimates, against rates that were measured at true size."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import Compose, Make
from tests.stages.test_footprint import ACCEPTANCE, PREFIX, SUFFIX, footprint_of, true_size
from tests.stages.test_memory_forecast import known, true_folder
from vqa.config.check import read_settings
from vqa.config.settings import Settings
from vqa.stages import time_forecast
from vqa.stages.footprint import Foreseen, Lengths
from vqa.stages.time_forecast import (
    CARDS,
    LESS,
    Contest,
    Work,
    found_cards,
    hours_of,
    planned_contest,
    time_lines,
    words_of_sweep,
    work_of,
)

VISUAL = {"qwen3_vl_8b": 256, "qwen2_5_vl_7b": 324}  # tokens of a picture of 512 x 512


Planned = tuple[Settings, Foreseen, Contest, list[str]]
_works: dict[str, Work] = {}
_foreseen: dict[tuple[str, ...], Foreseen] = {}  # a model of the true size takes seconds to read


def work(settings: Make, model: str) -> Work:
    if model not in _works:
        _works[model] = new_work(settings, model)
    return _works[model]


def new_work(settings: Make, model: str) -> Work:
    lengths = Lengths(PREFIX, SUFFIX[model], SUFFIX[model], VISUAL[model], VISUAL[model])
    footprint = footprint_of(settings, model, "none")
    return work_of(Foreseen(true_size(model), footprint, lengths, [], [], 0))


# questions/s of training in benchmarks/results: 2026-11-28-h200-acceptance.json,
# 2026-11-29-h200-acceptance.json, 2026-11-25-h100-throughput.json,
# 2026-11-25-h100-throughput-qwen2_5.json, 2026-11-28-h100-answering.json
TRAINED = [
    ("h200", "qwen3_vl_8b", 32, "nothing", 46.67),
    ("h200", "qwen3_vl_8b", 16, "layer", 29.6),
    ("h200", "qwen3_vl_8b", 16, "layer", 25.56),  # NF4
    ("h200", "qwen3_vl_8b", 16, "nothing", 37.8),  # INT8
    ("h200", "qwen3_vl_8b", 16, "mlp", 31.97),  # INT8
    ("h200", "qwen2_5_vl_7b", 32, "nothing", 42.95),
    ("h200", "qwen2_5_vl_7b", 16, "layer", 28.15),
    ("h200", "qwen2_5_vl_7b", 16, "layer", 26.33),  # INT8
    ("h100", "qwen3_vl_8b", 32, "nothing", 42.9),
    ("h100", "qwen3_vl_8b", 16, "layer", 27.8),
    ("h100", "qwen3_vl_8b", 16, "layer", 25.8),  # NF4
    ("h100", "qwen2_5_vl_7b", 16, "mlp", 31.9),
    ("h100", "qwen2_5_vl_7b", 16, "layer", 25.4),  # NF4
    ("h100", "qwen2_5_vl_7b", 16, "nothing", 37.1),  # NF4
]


@pytest.mark.parametrize(("card", "model", "batch", "recompute", "rate"), TRAINED)
def test_measured_rates_of_training_lie_within_the_estimate(
    settings: Make, card: str, model: str, batch: int, recompute: str, rate: float
) -> None:
    shortest, longest = CARDS[card].seconds(work(settings, model).training(batch, recompute))
    assert 1 / longest < rate < 1 / shortest


# rows/s of answering, pictures known and new: benchmarks/results/2026-11-28-h100-answering.json and
# 2026-11-25-h100-throughput-qwen2_5.json
@pytest.mark.parametrize(
    ("model", "pictures", "rate"),
    [
        ("qwen3_vl_8b", 0, 109.6),
        ("qwen3_vl_8b", 1, 83.0),
        ("qwen3_vl_8b", 1, 81.8),
        ("qwen2_5_vl_7b", 0, 100.1),
        ("qwen2_5_vl_7b", 1, 70.4),
    ],
)
def test_measured_rates_of_answering_lie_within_the_estimate(
    settings: Make, model: str, pictures: int, rate: float
) -> None:
    made = work(settings, model)
    shortest, longest = CARDS["h100"].seconds(made.answering(64) + pictures * made.picture)
    assert 1 / longest < rate < 1 / shortest


def test_without_flash_attention_an_h200_reaches_the_share_that_a_t4_is_given(settings: Make) -> None:
    alone = ACCEPTANCE.with_name("2026-11-29-h200-acceptance.json")  # the later run shared its GPU
    rows = [row for row in json.loads(alone.read_text())["rows"] if "T4" in row["name"]]
    assert len(rows) == 2
    h200 = replace(CARDS["h200"], flash=False)
    for row in rows:
        made = work(settings, row["base"].split()[0])
        shortest, longest = h200.seconds(made.training(row["micro_batch"], row["recompute"]))
        assert 2 / (shortest + longest) == pytest.approx(row["samples_s"], rel=0.1)


def test_a_t4_takes_fifteen_times_as_long_as_an_h200_or_twice_that() -> None:
    """65 of 989 TFLOP/s, and 320 of 4800 GB/s."""
    h200 = replace(CARDS["h200"], flash=False, measured=False)
    short, long = CARDS["t4"].seconds(1e15)
    assert short / h200.seconds(1e15)[0] == pytest.approx(989 / 65)
    assert long / short == pytest.approx(LESS)


@pytest.fixture
def contest_of(composed: Compose, tmp_path: Path) -> Callable[..., Planned]:
    """A contest of a model of the true size, as a command of the doctor names it."""
    folder = true_folder(tmp_path)

    def make(*words: str) -> Planned:
        given = [
            *("model=qwen3_vl_8b", f"model.path={folder}", "quantization=nf4", "tracking=none"),
            *("data.train_size=1000", "data.test_size=300", *words),
        ]
        made = read_settings(composed(*given, "stage=doctor"))
        model = tuple(word for word in words if word.startswith(("quantization=", "lora=")))
        if model not in _foreseen:
            _foreseen[model] = known(made)
        return made, _foreseen[model], planned_contest(_foreseen[model], given), given

    return make


def test_the_contest_is_the_search_that_the_doctor_proposes_and_its_final_run(contest_of: Any) -> None:
    _, _, contest, _ = contest_of()
    assert (contest.trials, contest.trial.folds, contest.trial.epochs, contest.sample) == (12, 3, 1, 450)
    assert (contest.final.folds, contest.final.epochs, contest.final.subsample) == (1, 3, None)
    assert (contest.train, contest.valid, contest.test) == (800, 200, 300)
    assert contest.adapters() == (1, 800)


def test_what_the_command_names_is_counted(contest_of: Any) -> None:
    words = ("+sweep=trials", "budget.epochs=2", "final.members=folds", "inference=cyclic")
    _, _, contest, _ = contest_of(*words)
    assert (contest.trials, contest.trial.epochs, contest.orders) == (16, 2, pytest.approx(3.5, abs=0.6))
    assert contest.adapters() == (3, pytest.approx(800 * 2 / 3))


def test_words_of_the_doctor_alone_are_not_of_the_sweep() -> None:
    given = ["stage=doctor", "doctor.card=t4", "hydra.run.dir=x", "hydra.sweeper.n_trials=5", "seed=3"]
    assert words_of_sweep(given) == ["+sweep=lora", "hydra.sweeper.n_trials=5", "seed=3"]
    assert words_of_sweep(["+sweep=grid", "seed=3"]) == ["+sweep=grid", "seed=3"]


def test_two_cards_share_the_sweep_and_one_makes_the_rest(contest_of: Any) -> None:
    _, found, contest, _ = contest_of()
    hours = hours_of(contest, work_of(found), CARDS["t4"], "layer")
    for end in (0, 1):
        rest = hours.final[end] + hours.answers[end]
        assert hours.on(1)[end] == pytest.approx(hours.sweep[end] + rest)
        assert hours.on(2)[end] == pytest.approx(hours.sweep[end] / 2 + rest)
    trained = contest.trials * contest.sample * (contest.trial.folds - 1) * contest.trial.epochs
    training = CARDS["t4"].seconds(trained * work_of(found).training(16, "layer"))[0] / 3600
    assert training < hours.sweep[0] < 2 * training  # scoring the folds comes on top


def test_minutes_that_were_given_are_the_sweeps_time_whatever_the_card(contest_of: Any) -> None:
    _, found, contest, _ = contest_of("+sweep=lora", "hydra.sweeper.budget_minutes=90")
    hours = hours_of(contest, work_of(found), CARDS["t4"], "layer")
    assert hours.on(2)[0] == pytest.approx(1.5 + hours.final[0] + hours.answers[0])


def test_the_doctor_says_hours_for_one_t4_and_for_two(contest_of: Any) -> None:
    made, found, _, given = contest_of("doctor.card=t4")
    first, second, third = time_lines(made, found, given)
    assert "time, an estimate: a whole contest takes about " in first
    assert " on one T4, " in first
    assert " on 2 (sweep " in first
    assert second.strip().startswith(
        "that is 12 trials x 3 folds x 450 questions if none is pruned, 3 passes over 800"
    )
    assert "No T4 was measured" in third
    assert "16 questions a step" in third


def test_what_is_not_counted_is_named(contest_of: Any) -> None:
    made, found, _, given = contest_of("lora=dora", "inference=generate", "lang=ko")
    lines = time_lines(made, found, given)
    assert "T4 1장으로 약" in lines[0]
    assert lines[-1].endswith("inference.readout=generate, lora.use_dora")


def test_a_card_that_is_too_small_gets_no_time(contest_of: Any) -> None:
    made, found, _, given = contest_of("quantization=none", "doctor.card=t4")
    assert time_lines(made, found, given) == [
        "     no time for a T4: its memory is too small for this model (doctor.card names another)"
    ]


@pytest.mark.parametrize(
    ("name", "gib", "card"),
    [
        ("Tesla T4", 15, "T4"),
        ("NVIDIA A100-SXM4-40GB", 40, "A100"),
        ("NVIDIA GeForce RTX 4090", 24, "RTX 4090"),
        ("NVIDIA L40S", 45, None),
    ],
)
def test_a_gpu_is_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, gib: int, card: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = SimpleNamespace(name=name, total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    found, count = found_cards()
    assert (found and found.name, count) == (card, 2)
    if found:
        assert found.gb == round(gib * 2**30 / 1e9)


def test_every_card_of_the_key_is_known(settings: Make) -> None:
    for name in CARDS:
        assert settings(f"doctor.card={name}").doctor.card == name
    assert time_forecast.H200 in CARDS.values()
