"""A finished study's files, written by hand: no model is trained for a test of the report."""

import json
import random
from pathlib import Path

from omegaconf import OmegaConf

from vqa.data.easy_vqa import EasyVqa
from vqa.question import LETTERS, Question
from vqa.results.predictions import Prediction, write_predictions

RANKS = (8, 16, 32)


def write_study(folder: Path, trials: int = 6, train_size: int = 60, test_size: int = 12) -> Path:
    """Write leaderboard, trials and final run below `folder`; every fourth trial is pruned.

    Returns:
        The final run's folder.
    """
    data = {
        "_target_": "vqa.data.easy_vqa.EasyVqa",
        "train_size": train_size,
        "test_size": test_size,
        "seed": 0,
    }
    source = EasyVqa(train_size, test_size, 0)
    final = folder / "final"
    write_leaderboard(folder, trials)
    terms = {"fixed": ["+sweep=lora", "data.train_size=60"]}
    OmegaConf.save(terms, folder / "study.yaml")
    (final / ".hydra").mkdir(parents=True)
    OmegaConf.save(_config(data), final / ".hydra/config.yaml")
    OmegaConf.save(["+sweep=lora", "optimizer.lr=0.001"], final / ".hydra/overrides.yaml")
    write_predictions(final / "valid_predictions.csv", answers(source.train()))
    write_predictions(final / "base_valid_predictions.csv", answers(source.train(), wrong_every=2))
    write_predictions(final / "test_predictions.csv", answers(source.test()))
    history = [
        {"evaluation": i, "step": 10 * i, "train_loss": 1 / i, "nll": 0.9 / i, "accuracy": 0.3 * i}
        for i in (1, 2, 3)
    ]
    scores = {"accuracy": 0.75, "accuracy_ci95": [0.6, 0.85], "nll": 0.6, "nll_se": 0.05, "n": train_size}
    base = {"base_accuracy": 0.5, "base_accuracy_ci95": [0.4, 0.6], "p_value_vs_base": 0.001}
    speed = {"train_samples_per_s": 60.0, "peak_memory_gib": 0.9, "n_train": 240, "learning_rate": 8e-4}
    calibrated = {"temperature": 1.2, "nll": 0.58, "nll_se": 0.05, "ece": 0.02, "ece_by_chance": 0.03}
    sure = {"ece": 0.04, "ece_by_chance": 0.03, "temperature": 1.2, "calibrated": calibrated}
    metrics = (
        scores | base | speed | sure | {"epochs": history, "best_epoch": 3, "alarms": [], "test": scores}
    )
    (final / "metrics.json").write_text(json.dumps(metrics))
    made = {"finished_utc": "2026-11-22T07:00:00+00:00", "wall_time_s": 120.5, "git": {"commit": "abc123"}}
    digests = {"data_sha256": "d" * 64, "split_sha256": "e" * 64}
    (final / "manifest.json").write_text(json.dumps(made | digests | {"device": "cpu", "seed": 0}))
    return final


def write_leaderboard(folder: Path, trials: int) -> None:
    head = "trial,state,folds,nll,nll_se,accuracy,accuracy_se,seconds,optimizer.lr,lora.r,tied_with_best"
    lines = [head]
    for i in range(trials):
        rate = 0.001 * 1.2**i
        if i % 4 == 3:
            lines.append(f"{i},PRUNED,0,1.2,,,,4.0,{rate},{RANKS[i % 3]},false")
            continue
        tied = str(i < 2).lower()
        lines.append(f"{i},COMPLETE,3,{0.4 + 0.03 * i},0.03,0.8,0.02,20.0,{rate},{RANKS[i % 3]},{tied}")
        trial = folder / "trials" / f"{i:03d}"
        trial.mkdir(parents=True)
        folds = [f"{k},300,150,{0.4 + 0.03 * i + 0.01 * k},0.8,6.0" for k in range(3)]
        (trial / "folds.csv").write_text(
            "fold,n_train,n_valid,nll,accuracy,seconds\n" + "\n".join(folds) + "\n"
        )
    (folder / "leaderboard.csv").write_text("\n".join(lines) + "\n")


def answers(questions: list[Question], wrong_every: int = 4) -> list[Prediction]:
    """Made-up answers, by default three of four right."""
    draw = random.Random(0)
    made = []
    for i, question in enumerate(questions):
        gold = LETTERS.index(str(question.answer))
        top = gold if i % wrong_every else (gold + 1) % 4
        sure = draw.uniform(0.4, 0.97)
        p = [(1 - sure) / 3] * 4
        p[top] = sure
        made.append(
            Prediction(
                question.id, LETTERS[top], (p[0], p[1], p[2], p[3]), 0.99, question.answer, question.kind
            )
        )
    return made


def _config(data: dict[str, object]) -> dict[str, object]:
    return {
        "study": "made",
        "stage": "final",
        "seed": 0,
        "model": {"name": "tiny", "path": "asset:tiny", "revision": None, "license": "apache-2.0"},
        "quantization": {"name": "none"},
        "lora": {"r": 8, "lora_alpha": 32},
        "optimizer": {"lr": 0.001},
        "image": {"mode": "native", "size": None, "min_visual_tokens": 4, "max_visual_tokens": 16},
        "prompt": {"system": "Answer.", "user": "{question} <b>{a}</b>"},
        "data": data,
    }
