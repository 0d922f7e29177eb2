"""Charts of one run: confusion matrix, reliability, learning curve.

Ours rather than scikit-learn's displays: these import pyplot, whose figures are global state, and know
no Wilson intervals and no missing answers. Every label is given in both languages where it is drawn.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqa.machine.files import replacing
from vqa.question import Guessing, letters_of
from vqa.results.metrics import (
    CONFIDENCE_BINS,
    accuracy,
    accuracy_ci95,
    calibration_error,
    confidence_bins,
    confusion,
    guessing_of,
)
from vqa.results.predictions import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Source: M. Okabe & K. Ito (2008), Color Universal Design: told apart with every colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C8C8C"


def new_figure(width_in: float = 6.4, height_in: float = 4.4, panels: int = 1) -> "tuple[Figure, list[Axes]]":
    """Return an empty figure and its panels, side by side, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


_korean: ContextVar[dict[str, str] | None] = ContextVar("korean", default=None)


@contextmanager
def drawn_for_page() -> Iterator[dict[str, str]]:
    """Inside the block charts become SVG with texts that stay texts: they scale, and can be translated.

    Yields:
        The Korean of every label that has been drawn in the block, by its English.
    """
    import matplotlib

    korean: dict[str, str] = {}
    token = _korean.set(korean)
    try:
        with matplotlib.rc_context({"savefig.format": "svg", "svg.fonttype": "none", "svg.hashsalt": "vqa"}):
            yield korean
    finally:
        _korean.reset(token)


def label(english: str, korean: str) -> str:
    """A chart's label: English in the picture; a page shows the Korean to those who read it."""
    if (found := _korean.get()) is not None:
        found[english] = korean
    return english


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure, making the folder; returns the path.

    The format is matplotlib's own setting: PNG, and SVG where a page asks for it
    (`drawn_for_page`).
    """
    from matplotlib import rcParams

    kind = rcParams["savefig.format"]
    path = path.with_suffix(f".{kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=130, format=kind)
    return path


def confusion_matrix(predictions: Sequence[Prediction], path: Path) -> Path:
    """Draw how often each gold letter was answered with each letter.

    A column that is darker than the diagonal is a letter the model prefers whatever the picture shows.

    Raises:
        ValueError: there are no predictions or one has no gold letter.
    """
    counts = confusion(predictions)
    letters = letters_of(len(counts))
    columns = [*letters, "none"] if counts[:, -1].any() else [*letters]
    counts = counts[:, : len(columns)]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, (axes,) = new_figure(5.6, 4.6)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count}\n{share[row, column]:.0%}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(letters)), letters)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("letter answered")
    axes.set_ylabel("right letter")
    chance = guessing_of(predictions).accuracy
    axes.set_title(
        f"Accuracy {accuracy(predictions):.1%} of {len(predictions)} questions (chance {chance:.0%})"
    )
    figure.colorbar(image, ax=axes, label="share of the right letter's questions", shrink=0.85)
    return save_figure(figure, path)


def reliability(predictions: Sequence[Prediction], path: Path) -> Path:
    """Draw accuracy against confidence (top probability), and how many questions have which confidence.

    Below the diagonal the model is surer than it may be. Whiskers: 95 % Wilson intervals, over pictures.

    Raises:
        ValueError: there are no predictions or one has no gold letter.
    """
    overall, by_guessing = accuracy(predictions), guessing_of(predictions)
    chance = by_guessing.accuracy
    bins, confidence = confidence_bins(predictions)
    right = np.array([p.answer == p.gold for p in predictions])
    figure, (curve, histogram) = new_figure(9.0, 4.2, panels=2)
    curve.plot(
        [chance, 1],
        [chance, 1],
        color=GREY,
        linestyle="--",
        label=label("perfectly calibrated", "완벽한 보정"),
    )
    curve.axhline(chance, color=GREY, linestyle=":", label=chance_label(by_guessing))
    confidence_label = label("confidence (top option probability)", "확신도 (가장 높은 보기 확률)")
    error = calibration_error(predictions)
    for index in np.unique(bins):
        inside = bins == index
        n, share = int(inside.sum()), float(right[inside].mean())
        x = float(confidence[inside].mean())
        low, high = accuracy_ci95([predictions[i] for i in np.flatnonzero(inside).tolist()])
        curve.errorbar(x, share, [[share - low], [high - share]], fmt="o", color=BLUE, capsize=3)
    curve.set(xlim=(chance - 0.03, 1.03), ylim=(-0.03, 1.03))
    curve.set(xlabel=confidence_label, ylabel=label("accuracy", "정확도"))
    curve.set_title(
        label(
            f"Reliability: accuracy {overall:.1%}, calibration error {error:.3f}",
            f"신뢰도: 정확도 {overall:.1%}, 보정 오차 {error:.3f}",
        )
    )
    curve.legend(loc="upper left", frameon=False)
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    histogram.hist(confidence, bins=list(edges), color=BLUE, edgecolor="white")
    histogram.set(xlim=(chance - 0.03, 1.03), xlabel=confidence_label, ylabel=label("questions", "문항 수"))
    n = len(predictions)
    histogram.set_title(label(f"Confidence of {n} questions", f"문항 {n}개의 확신도"))
    return save_figure(figure, path)


def learning_curve(
    rows: Sequence[Mapping[str, float]], path: Path, by_guessing: Guessing | None = None
) -> Path:
    """Draw training loss, held-out NLL and accuracy over optimizer steps.

    Args:
        rows: One mapping per record with `step` (optimizer steps so far) and any of `train_loss`, `nll`
            (nats) and `accuracy` (0..1); a row without a name simply has no point there.
        path: The PNG to write.
        by_guessing: What guessing scores on the held-out questions; None: not known, no line.

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
        losses.plot(
            *zip(*series["train_loss"], strict=True), color=GREY, label=label("training loss", "학습 손실")
        )
    if series["nll"]:
        losses.plot(
            *zip(*series["nll"], strict=True), "o-", color=BLUE, label=label("held-out NLL", "검증 NLL")
        )
        step, value = min(series["nll"], key=lambda point: point[1])
        best = label(f"best {value:.3f} at step {step:g}", f"최고 {value:.3f} (단계 {step:g})")
        losses.plot(step, value, "*", color=RED, markersize=14, label=best)
    if by_guessing:
        losses.axhline(by_guessing.nll, color=GREY, linestyle=":", label=chance_nll_label(by_guessing))
    steps = label("optimizer steps", "학습 단계")
    loss = label("loss (nats per question)", "손실 (문항당 nat)")
    losses.set(xlabel=steps, ylabel=loss, title=label("Loss", "손실"), ylim=(0, None))
    losses.legend(frameon=False)
    if series["accuracy"]:
        scores.plot(
            *zip(*series["accuracy"], strict=True),
            "o-",
            color=GREEN,
            label=label("held-out accuracy", "검증 정확도"),
        )
    if by_guessing:
        scores.axhline(by_guessing.accuracy, color=GREY, linestyle=":", label=chance_label(by_guessing))
    scores.set(xlabel=steps, ylabel=label("accuracy", "정확도"), ylim=(0, 1.03))
    scores.set_title(label("Held-out accuracy", "검증 정확도"))
    scores.legend(loc="lower right", frameon=False)
    return save_figure(figure, path)


def chance_label(by_guessing: Guessing) -> str:
    """The label of the accuracy that guessing has."""
    return label(f"chance {by_guessing.accuracy:.0%}", f"무작위 {by_guessing.accuracy:.0%}")


def chance_nll_label(by_guessing: Guessing) -> str:
    """The label of the NLL that guessing has."""
    formula = "" if by_guessing.options is None else f"ln {by_guessing.options} = "
    return label(f"chance {formula}{by_guessing.nll:.2f}", f"무작위 {formula}{by_guessing.nll:.2f}")


def _points(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return sorted((row["step"], row[name]) for row in rows if "step" in row and name in row)
