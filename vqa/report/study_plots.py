"""Charts of a whole study, all from its leaderboard.csv, wherever the Optuna storage is.

Ours rather than `optuna.visualization.matplotlib`: that draws through pyplot (global state), and shows
neither standard errors nor pruned trials nor the NLL of guessing. The importance of parameters is Optuna's.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqa.question import Guessing
from vqa.report.plots import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    chance_nll_label,
    label,
    new_figure,
    save_figure,
)
from vqa.results.trials import (
    COST_COLUMNS,
    NOT_SEARCHED,
    TrialRow,
    Value,
    best_trial,
    complete_trials,
    varied_parameters,
)
from vqa.results.uncertainty import Z95

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna.study import Study


RANK_NAMES = ("r", "rank")
RATE_NAMES = ("lr", "learning_rate")
BELOW = -0.12  # where a parallel line passes a parameter that its trial did not search
LOG_RATIO = 8  # a parameter whose largest value is that many times its smallest is drawn on a log axis


def study_plots(trials: Sequence[TrialRow], folder: Path, by_guessing: Guessing | None = None) -> list[Path]:
    """Draw every picture that the trials have data for.

    Args:
        trials: Of the study.
        folder: Where the pictures go.
        by_guessing: What guessing scores on the trials' questions; None: not known, no line.

    Returns:
        The PNGs; none without a complete trial.
    """
    if not complete_trials(trials):
        return []
    pictures = [optimisation_history(trials, folder / "optimisation_history.png", by_guessing)]
    names = varied_parameters(trials)
    if names and len(complete_trials(trials)) >= 2:
        pictures.append(parallel_coordinates(trials, folder / "parallel_coordinates.png"))
    if len(names) >= 2 and len(complete_trials(trials)) >= 4:
        pictures.append(parameter_importance(trials, folder / "parameter_importance.png"))
    pair = _rate_and_rank([name for name in names if all(_is_number(t.parameters[name]) for t in trials)])
    if pair:
        pictures.append(parameter_map(trials, *pair, folder / "learning_rate_by_rank.png"))
    for column in complete_trials(trials)[0].costs:
        if not any(trial.front for trial in trials):
            break  # no trial has all of its costs
        pictures.append(front_by_cost(trials, column, folder / f"front_{column}.png"))
    return pictures


def cost_label(column: str) -> tuple[str, str]:
    """What a cost's column of the leaderboard holds, in English and Korean."""
    return {
        COST_COLUMNS["seconds"]: ("seconds per question", "문항당 초"),
        COST_COLUMNS["parameters"]: ("trained weights", "학습한 가중치 수"),
    }[column]


def front_by_cost(trials: Sequence[TrialRow], column: str, path: Path) -> Path:
    """Draw each complete trial's NLL against a cost; those on the Pareto front are joined and numbered.

    Args:
        trials: The trials.
        column: Of the cost, in the leaderboard.
        path: The PNG to write.
    """
    figure, (axes,) = new_figure(6.8, 4.6)
    priced = [trial for trial in complete_trials(trials) if not math.isnan(trial.costs[column])]
    front = sorted((trial for trial in priced if trial.front), key=lambda trial: trial.costs[column])
    others = [trial for trial in priced if not trial.front]
    for shown, style, colour, text in (
        (others, "o", GREY, label("complete", "완료")),
        (front, "o-", BLUE, label("Pareto front", "파레토 프런트")),
    ):
        if not shown:
            continue
        errors = [Z95 * trial.nll_se for trial in shown]
        places, losses = [trial.costs[column] for trial in shown], [trial.nll for trial in shown]
        axes.errorbar(places, losses, errors, fmt=style, color=colour, capsize=2, label=text)
    for trial in front:
        at = (trial.costs[column], trial.nll)
        axes.annotate(str(trial.number), at, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel=label(*cost_label(column)), ylabel=_nll_label())
    axes.set_title(label("What a lower NLL costs", "낮은 NLL의 비용"))
    axes.legend(frameon=False)
    return save_figure(figure, path)


def optimisation_history(trials: Sequence[TrialRow], path: Path, by_guessing: Guessing | None = None) -> Path:
    """Draw each trial's NLL in the order tried, the best so far, and which were pruned."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = new_figure(7.2, 4.4)
    complete = complete_trials(trials)
    pruned = [trial for trial in _cut_short(trials) if math.isfinite(trial.nll)]
    numbers, values = [t.number for t in complete], [t.nll for t in complete]
    errors = [Z95 * t.nll_se for t in complete]  # as everywhere on the page
    done = label("complete (± 95 %)", "완료 (± 95 %)")
    axes.errorbar(numbers, values, errors, fmt="o", color=BLUE, capsize=2, label=done)
    if pruned:
        numbers_cut = [t.number for t in pruned]
        axes.plot(numbers_cut, [t.nll for t in pruned], "x", color=ORANGE, label=_cut_label(pruned))
    so_far = label("best so far", "지금까지 최고")
    axes.step(numbers, np.minimum.accumulate(values), where="post", color=RED, label=so_far)
    _draw_chance(axes, values + [t.nll for t in pruned], by_guessing)
    axes.set(xlabel=label("trial", "시도"), ylabel=_nll_label())
    axes.set_title(
        label(
            f"Optimisation history: {len(complete)} of {len(trials)} trials complete",
            f"탐색 과정: 시도 {len(trials)}회 중 {len(complete)}회 완료",
        )
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return save_figure(figure, path)


def _cut_short(trials: Sequence[TrialRow]) -> list[TrialRow]:
    """The trials that did not come to their end: pruned, or paused while the search goes on."""
    return [trial for trial in trials if trial.state in ("PRUNED", "PAUSED")]


def _cut_label(trials: Sequence[TrialRow]) -> str:
    if all(trial.state == "PRUNED" for trial in trials):
        return label("pruned", "조기 중단")
    return label("pruned or paused", "조기 중단 또는 일시 중지")


def parameter_importance(trials: Sequence[TrialRow], path: Path) -> Path:
    """Draw how much of the NLL's variation among the complete trials each searched parameter explains.

    Source: F. Hutter, H. Hoos, K. Leyton-Brown (2014), fANOVA; Optuna's implementation, seed 0.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    shares = get_param_importances(_as_study(trials), evaluator=FanovaImportanceEvaluator(seed=0))
    names = list(shares)[::-1]
    figure, (axes,) = new_figure(6.8, 1.6 + 0.45 * len(names))
    bars = axes.barh(names, [shares[name] for name in names], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    explained = label("share of the NLL's variation explained (fANOVA)", "NLL 변동 중 설명하는 비율 (fANOVA)")
    axes.set(xlim=(0, 1.08), xlabel=explained)
    n = len(complete_trials(trials))
    axes.set_title(label(f"Parameter importance, {n} complete trials", f"파라미터 중요도, 완료된 시도 {n}회"))
    return save_figure(figure, path)


def parallel_coordinates(trials: Sequence[TrialRow], path: Path) -> Path:
    """Draw each complete trial as a line through its parameters' values; dark lines are good trials."""
    from matplotlib import colormaps

    complete = sorted(complete_trials(trials), key=lambda trial: -trial.nll)  # the best one is drawn on top
    names = varied_parameters(trials)
    scales = [_Scale([trial.parameters[name] for trial in complete]) for name in names]
    losses = _Scale([trial.nll for trial in complete], may_be_log=False)
    figure, (axes,) = new_figure(2.6 + 1.7 * len(names), 4.6)
    palette = colormaps["plasma"]  # its middle stays visible when the dark mode turns lightness round
    for trial in complete:
        heights = [scale.place(trial.parameters[name]) for name, scale in zip(names, scales, strict=True)]
        height = losses.place(trial.nll)
        axes.plot([*heights, height], color=palette(0.8 * height), linewidth=1.8, alpha=0.85)
    plate = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}
    for x, scale in enumerate([*scales, losses]):
        axes.axvline(x, color=GREY, linewidth=0.8)
        shift, side = (0.03, "left") if scale is losses else (-0.03, "right")
        for height, text in scale.ticks():
            axes.text(x + shift, height, text, ha=side, va="center", fontsize=8, bbox=plate)
    labels = [f"{n}\n(log)" if s.log else n for n, s in zip(names, scales, strict=True)]
    axes.set_xticks(range(len(names) + 1), [*labels, "NLL\n(nats)"])
    axes.set(yticks=[], xlim=(-0.45, len(names) + 0.4))
    axes.spines[:].set_visible(False)
    n = len(complete)
    axes.set_title(label(f"{n} complete trials, coloured by NLL", f"완료된 시도 {n}회, 색은 NLL"))
    return save_figure(figure, path)


def parameter_map(trials: Sequence[TrialRow], x: str, y: str, path: Path) -> Path:
    """Draw trials in the plane of two numeric parameters, coloured by NLL; the best is ringed.

    Args:
        trials: The trials.
        x: Config path of the parameter on the horizontal axis.
        y: Config path of the other one.
        path: The PNG to write.
    """
    figure, (axes,) = new_figure(6.8, 4.6)
    complete, pruned = complete_trials(trials), _cut_short(trials)
    losses = [trial.nll for trial in complete]
    scales = [_Scale([trial.parameters[name] for trial in trials]) for name in (x, y)]
    columns, rows = ([trial.parameters[name] for trial in complete] for name in (x, y))
    if pruned:
        where = [[trial.parameters[name] for trial in pruned] for name in (x, y)]
        axes.plot(where[0], where[1], "x", color=ORANGE, label=_cut_label(pruned))
    dots = axes.scatter(columns, rows, c=losses, cmap="viridis", s=70, edgecolors="white", zorder=3)
    best = best_trial(complete)
    ringed = label(
        f"best: trial {best.number}, NLL {best.nll:.3f}", f"최고: 시도 {best.number}, NLL {best.nll:.3f}"
    )
    axes.scatter(
        best.parameters[x],
        best.parameters[y],
        s=220,
        facecolors="none",
        edgecolors=RED,
        linewidths=2,
        label=ringed,
        zorder=4,
    )
    axes.set(xscale="log" if scales[0].log else "linear", xlabel=x, ylabel=y)
    axes.set_yscale("log" if scales[1].log else "linear")
    if len(scales[1].distinct) <= 8:
        axes.set_yticks(scales[1].distinct, [f"{value:g}" for value in scales[1].distinct])
        axes.yaxis.minorticks_off()
    axes.margins(0.12)
    axes.set_title(label("Where the good trials are", "좋은 시도가 있는 곳"))
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.colorbar(dots, ax=axes, label=_nll_label())
    return save_figure(figure, path)


def _nll_label() -> str:
    return label("out-of-fold NLL (nats per question)", "교차검증 NLL (문항당 nat)")


class _Scale:
    """Places one parameter's values between 0 and 1: numbers in proportion or by logarithm, words evenly.

    A trial that did not search the parameter lies below 0.
    """

    def __init__(self, values: Sequence[Value], may_be_log: bool = True) -> None:
        self.whole = NOT_SEARCHED not in values
        values = [value for value in values if value != NOT_SEARCHED]
        numbers = [float(value) for value in values if _is_number(value)]
        self.words = [] if len(numbers) == len(values) else sorted({_word(value) for value in values})
        self.distinct = sorted(set(numbers))
        self.low, self.high = (min(numbers), max(numbers)) if numbers else (0.0, 0.0)
        self.log = may_be_log and not self.words and self.low > 0 and self.high / self.low >= LOG_RATIO

    def place(self, value: Value) -> float:
        if value == NOT_SEARCHED:
            return BELOW
        if self.words:
            return (self.words.index(_word(value)) + 0.5) / len(self.words)
        low, high, x = self.low, self.high, float(value)
        if self.log:
            low, high, x = math.log(low), math.log(high), math.log(x)
        return 0.5 if high == low else (x - low) / (high - low)

    def filled(self, value: Value) -> Value:
        """The value for an analysis that wants one of every trial: the middle of the numbers, or no word."""
        if value != NOT_SEARCHED:
            return _word(value) if self.words else value
        if self.words:
            return NOT_SEARCHED
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2

    def ticks(self) -> list[tuple[float, str]]:
        return [*([] if self.whole else [(BELOW, "–")]), *self._ticks()]

    def _ticks(self) -> list[tuple[float, str]]:
        if self.words:
            return [(self.place(word), word) for word in self.words]
        if len(self.distinct) <= 6:
            return [(self.place(value), f"{value:.3g}") for value in self.distinct]
        space = np.geomspace if self.log else np.linspace
        between = space(self.low, self.high, 5)
        return [(height, f"{value:.3g}") for height, value in zip(np.linspace(0, 1, 5), between, strict=True)]


def _is_number(value: Value) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _word(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else value


def _rate_and_rank(names: Sequence[str]) -> tuple[str, str] | None:
    rates = [name for name in names if name.rpartition(".")[2] in RATE_NAMES]
    ranks = [name for name in names if name.rpartition(".")[2] in RANK_NAMES]
    return (rates[0], ranks[0]) if rates and ranks else None


def _draw_chance(axes: "Axes", values: Sequence[float], by_guessing: Guessing | None) -> None:
    """Mark the NLL of a model that knows nothing, unless that would squeeze the trials into a strip."""
    if by_guessing and max(values) > 0.4 * by_guessing.nll:
        axes.axhline(by_guessing.nll, color=GREY, linestyle=":", label=chance_nll_label(by_guessing))


def _as_study(trials: Sequence[TrialRow]) -> "Study":
    """Rebuild a study in memory, so that Optuna's analysis works whatever the storage was."""
    import optuna

    complete, names = complete_trials(trials), varied_parameters(trials)
    distributions: dict[str, Any] = {}
    scales: dict[str, _Scale] = {}
    for name in names:
        values = [trial.parameters[name] for trial in complete]
        scale = scales[name] = _Scale(values)
        if scale.words:
            words = [*scale.words, *([] if scale.whole else [NOT_SEARCHED])]
            distributions[name] = optuna.distributions.CategoricalDistribution(words)
        else:
            distributions[name] = optuna.distributions.FloatDistribution(scale.low, scale.high, log=scale.log)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # "A new study created" would only puzzle
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    optuna.logging.set_verbosity(verbosity)
    for trial in complete:
        parameters = {name: scales[name].filled(trial.parameters[name]) for name in names}
        frozen = optuna.create_trial(params=parameters, distributions=distributions, value=trial.nll)
        study.add_trial(frozen)
    return study
