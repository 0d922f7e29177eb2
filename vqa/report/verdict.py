"""The result of a study in one sentence: how good it is, against what, which settings tie, what comes next.

The terminal says it at the end of a study, and the report on top. Each part is a function of its own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vqa.results.metrics import chance_of
from vqa.results.trials import OtherLeader, Range, TrialRow, best_trial, complete_trials, other_leader

Both = tuple[str, str]  # English, Korean


def verdict(
    metrics: Mapping[str, Any],
    trials: Sequence[TrialRow],
    following: str = "",
    ranges: Mapping[str, Range] | None = None,
    chance: float = math.nan,
) -> Both:
    """The verdict on a study.

    Args:
        metrics: The final run's metrics.json; {} without one.
        trials: The trials; [] without a sweep.
        following: What the user does next, a command or a file; "" says nothing of it.
        ranges: The intervals that were searched, by key; None says nothing of them.
        chance: Accuracy of guessing on the trials' questions, where there is no final run; NaN: not known.

    Returns:
        The sentence in English and in Korean; empty texts where there is no score at all.
    """
    score = score_part(metrics, trials, chance)
    if score is None:
        return "", ""
    remarks = (tie_part(trials), disagreement_part(trials), edge_part(trials, ranges or {}))
    parts = [part for part in (score, *remarks, next_part(following)) if part]
    english = "; ".join(part[0] for part in parts)
    return f"{english}.", "; ".join(part[1] for part in parts) + "."


def score_part(
    metrics: Mapping[str, Any], trials: Sequence[TrialRow], chance: float = math.nan
) -> Both | None:
    """The tuned model's accuracy beside that of the base model and of guessing."""
    if "accuracy" in metrics:
        tuned, guessed = _percent(metrics["accuracy"]), _percent(chance_of(metrics))
        if "base_accuracy" not in metrics:
            return f"tuned {tuned}, chance {guessed}", f"학습 후 {tuned}, 무작위 {guessed}"
        base = _percent(metrics["base_accuracy"])
        return (
            f"tuned {tuned}, base {base}, chance {guessed}",
            f"학습 후 {tuned}, 기본 모델 {base}, 무작위 {guessed}",
        )
    complete = complete_trials(trials)
    if not complete:
        return None
    best = best_trial(complete)
    score = f"NLL {best.nll:.3f}" if math.isnan(best.accuracy) else _percent(best.accuracy)
    english, korean = f"best short trial {score}", f"가장 좋은 짧은 시도 {score}"
    if math.isnan(chance):
        return english, korean
    return f"{english}, chance {_percent(chance)}", f"{korean}, 무작위 {_percent(chance)}"


def tie_part(trials: Sequence[TrialRow]) -> Both | None:
    """How many of the best settings cannot be told apart; None with fewer than two complete trials."""
    complete = complete_trials(trials)
    if len(complete) < 2:
        return None
    tied = sum(trial.tied for trial in complete)
    if tied <= 1:
        return "one setting is clearly the best", "한 설정이 뚜렷하게 가장 좋음"
    if tied == len(complete) == 2:
        return "both settings tie", "두 설정이 동률"
    if tied == len(complete):
        return f"all {tied} settings tie", f"설정 {tied}개가 모두 동률"
    return f"the best {tied} settings tie", f"상위 설정 {tied}개가 동률"


def disagreement_part(trials: Sequence[TrialRow]) -> Both | None:
    """Which other trial leads by the score that the trials are not ranked by; None where it is the same."""
    complete = sorted(complete_trials(trials), key=lambda trial: trial.rank)
    alike = [trial for trial in complete if trial.trainings == complete[0].trainings]
    by_accuracy = bool(alike) and alike[0].objective == "accuracy"
    other = other_leader([(trial.number, trial.nll, trial.accuracy) for trial in alike], by_accuracy)
    return None if other is None else disagreement_words(other)


def disagreement_words(other: OtherLeader) -> Both:
    """That NLL and accuracy disagree on the best trial; terminal and report say it alike."""
    english, korean = {"nll": ("NLL", "NLL"), "accuracy": ("accuracy", "정확도")}[other.by]
    return (
        f"by {english} trial {other.trial} leads, {other.score:.4f} against {other.best:.4f}",
        f"{korean} 기준으로는 시도 {other.trial}이(가) 앞섬({other.score:.4f}, 최고 시도 {other.best:.4f})",
    )


def edge_part(trials: Sequence[TrialRow], ranges: Mapping[str, Range]) -> Both | None:
    """Which values of the best trial lie at the edge of their range; None when none does."""
    complete = complete_trials(trials)
    best = best_trial(complete).parameters if complete else {}
    said = [words for key, ranged in ranges.items() if (words := edge_words(key, best.get(key), ranged))]
    if not said:
        return None
    return "; ".join(english for english, _ in said), "; ".join(korean for _, korean in said)


def edge_words(key: str, value: Any, ranged: Range) -> Both | None:
    """That a value lies at the edge of its range, worded for terminal and report; None where it does not."""
    edge = ranged.edge_of(value)
    if edge is None:
        return None
    end = {"lower": "아래쪽", "upper": "위쪽"}[edge]
    return (
        f"{key}={value:.3g} lies at the {edge} edge of {ranged}: search wider",
        f"{key}={value:.3g}: {ranged}의 {end} 끝이므로 더 넓게 찾아보세요",
    )


def next_part(following: str) -> Both | None:
    """What comes next."""
    return (f"next: {following}", f"다음: {following}") if following else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
