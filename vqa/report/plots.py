"""Pictures of one run: confusion matrix, reliability, learning curve. No pyplot, so no global state."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqa.question import CHANCE, LETTERS
from vqa.results.metrics import accuracy, confusion
from vqa.results.predictions import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Source: M. Okabe & K. Ito (2008), Color Universal Design: told apart with every colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C8C8C"
CONFIDENCE_BINS = 10


def new_figure(width_in: float = 6.4, height_in: float = 4.4, panels: int = 1) -> "tuple[Figure, list[Axes]]":
    """Return an empty figure and its panels, side by side, drawn without a display.

    Args:
        width_in: Width in inches.
        height_in: Height in inches.
        panels: Number of panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure, making the folder; returns the path.

    The format is matplotlib's own setting: PNG, and SVG where a page asks for it
    (`vqa.report.page.drawn_for_page`).
    """
    from matplotlib import rcParams

    path = path.with_suffix(f".{rcParams['savefig.format']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def confusion_matrix(predictions: Sequence[Prediction], path: Path) -> Path:
    """Draw how often each gold letter was answered with each letter.

    A column that is darker than the diagonal is a letter the model prefers whatever the picture shows.

    Raises:
        ValueError: there are no predictions or one has no gold letter.
    """
    counts = confusion(predictions)
    columns = [*LETTERS, "none"] if counts[:, -1].any() else [*LETTERS]
    counts = counts[:, : len(columns)]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, (axes,) = new_figure(5.6, 4.6)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count}\n{share[row, column]:.0%}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(LETTERS)), LETTERS)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("letter answered")
    axes.set_ylabel("right letter")
    axes.set_title(
        f"Accuracy {accuracy(predictions):.1%} of {len(predictions)} questions (chance {CHANCE:.0%})"
    )
    figure.colorbar(image, ax=axes, label="share of the right letter's questions", shrink=0.85)
    return save_figure(figure, path)


def reliability(predictions: Sequence[Prediction], path: Path) -> Path:
    """Draw accuracy against confidence (top probability), and how many questions have which confidence.

    Below the diagonal the model is surer than it may be. Whiskers: 95 % Wilson intervals.

    Raises:
        ValueError: there are no predictions or one has no gold letter.
    """
    from vqa.results.metrics import accuracy_interval

    overall = accuracy(predictions)
    confidence = np.array([max(p.p) for p in predictions])
    right = np.array([p.answer == p.gold for p in predictions])
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    bins = np.clip(np.digitize(confidence, edges) - 1, 0, CONFIDENCE_BINS - 1)
    figure, (curve, histogram) = new_figure(9.0, 4.2, panels=2)
    curve.plot([CHANCE, 1], [CHANCE, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    curve.axhline(CHANCE, color=GREY, linestyle=":", label=f"chance {CHANCE:.0%}")
    error = 0.0
    for index in np.unique(bins):
        inside = bins == index
        n, share = int(inside.sum()), float(right[inside].mean())
        x = float(confidence[inside].mean())
        low, high = accuracy_interval(int(right[inside].sum()), n)
        curve.errorbar(x, share, [[share - low], [high - share]], fmt="o", color=BLUE, capsize=3)
        error += abs(share - x) * n / len(predictions)
    curve.set(xlim=(CHANCE - 0.03, 1.03), ylim=(-0.03, 1.03))
    curve.set(xlabel="confidence (top option probability)", ylabel="accuracy")
    curve.set_title(f"Reliability: accuracy {overall:.1%}, calibration error {error:.3f}")
    curve.legend(loc="upper left", frameon=False)
    histogram.hist(confidence, bins=list(edges), color=BLUE, edgecolor="white")
    histogram.set(
        xlim=(CHANCE - 0.03, 1.03), xlabel="confidence (top option probability)", ylabel="questions"
    )
    histogram.set_title(f"Confidence of {len(predictions)} questions")
    return save_figure(figure, path)


def learning_curve(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Draw training loss, held-out NLL and accuracy over optimizer steps.

    Args:
        rows: One mapping per record with `step` (optimizer steps so far) and any of `train_loss`, `nll`
            (nats) and `accuracy` (0..1); a row without a name simply has no point there.
        path: The PNG to write.

    Raises:
        ValueError: no row has a step and one of the three.
    """
    series = {name: _points(rows, name) for name in ("train_loss", "nll", "accuracy")}
    if not any(series.values()):
        raise ValueError(
            f"a learning curve needs rows with step and train_loss, nll or accuracy, got {len(rows)}"
        )
    figure, (losses, scores) = new_figure(9.0, 4.2, panels=2)
    if series["train_loss"]:
        losses.plot(*zip(*series["train_loss"], strict=True), color=GREY, label="training loss")
    if series["nll"]:
        losses.plot(*zip(*series["nll"], strict=True), "o-", color=BLUE, label="held-out NLL")
        step, value = min(series["nll"], key=lambda point: point[1])
        losses.plot(step, value, "*", color=RED, markersize=14, label=f"best {value:.3f} at step {step:g}")
    know_nothing = float(np.log(len(LETTERS)))
    losses.axhline(know_nothing, color=GREY, linestyle=":", label=f"chance ln 4 = {know_nothing:.2f}")
    losses.set(xlabel="optimizer steps", ylabel="loss (nats per question)", title="Loss", ylim=(0, None))
    losses.legend(frameon=False)
    if series["accuracy"]:
        scores.plot(*zip(*series["accuracy"], strict=True), "o-", color=GREEN, label="held-out accuracy")
    scores.axhline(CHANCE, color=GREY, linestyle=":", label=f"chance {CHANCE:.0%}")
    scores.set(xlabel="optimizer steps", ylabel="accuracy", title="Held-out accuracy", ylim=(0, 1.03))
    scores.legend(loc="lower right", frameon=False)
    return save_figure(figure, path)


def _points(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return sorted((row["step"], row[name]) for row in rows if "step" in row and name in row)
