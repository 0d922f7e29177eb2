import random
from pathlib import Path

import pytest
from PIL import Image

from vqa.question import letters_of
from vqa.report.plots import confusion_matrix, learning_curve, reliability
from vqa.results.predictions import Prediction

FOUR = letters_of(4)


def predictions(n: int = 60) -> list[Prediction]:
    draw = random.Random(0)
    rows = []
    for i in range(n):
        weights = [draw.random() ** 3 for _ in FOUR]
        p = [weight / sum(weights) for weight in weights]
        answer = FOUR[p.index(max(p))] if i % 20 else None
        rows.append(Prediction(str(i), answer, (p[0], p[1], p[2], p[3]), 1.0, draw.choice(FOUR)))
    return rows


def assert_is_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors() or []) > 20  # something is drawn


def test_pictures_of_predictions_are_drawn(tmp_path: Path) -> None:
    assert_is_picture(confusion_matrix(predictions(), tmp_path / "new" / "confusion.png"))
    assert_is_picture(reliability(predictions(), tmp_path / "reliability.png"))


def test_pictures_refuse_unlabelled_rows(tmp_path: Path) -> None:
    unlabelled = [Prediction("1", "a", (0.25, 0.25, 0.25, 0.25), 1.0)]
    with pytest.raises(ValueError, match="gold letter for every question"):
        confusion_matrix(unlabelled, tmp_path / "x.png")
    with pytest.raises(ValueError, match="gold letter for every question"):
        reliability(unlabelled, tmp_path / "x.png")


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "train_loss": 1.4}, {"step": 2, "train_loss": 1.0}],
        [{"step": 10, "nll": 0.9, "accuracy": 0.7}, {"step": 1, "train_loss": 1.4}],
    ],
)
def test_learning_curve_draws_what_there_is(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    assert_is_picture(learning_curve(rows, tmp_path / "curve.png"))


def test_learning_curve_refuses_rows_without_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs rows with step and train_loss, nll or accuracy, got 1"):
        learning_curve([{"step": 1}], tmp_path / "curve.png")
