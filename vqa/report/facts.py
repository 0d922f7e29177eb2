"""What the report says in numbers: read from a study's files alone, so that it can be rebuilt at any time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa.data import image
from vqa.question import Guessing, Question, letters_of
from vqa.results.folder import StudyFolder
from vqa.results.metrics import accuracy_ci95, guessing_of, most_options
from vqa.results.predictions import Prediction, read_predictions
from vqa.results.trials import NOT_SEARCHED, TrialRow, Value, best_trial, complete_trials
from vqa.results.uncertainty import Z95

SIZE_GROUPS = 4


@dataclass(frozen=True)
class Share:
    """Right answers within a group of questions.

    Args:
        name: The group.
        n: Its questions.
        accuracy: Share of right answers.
        low: Lower end of the 95 % Wilson interval, over pictures.
        high: Its upper end.
    """

    name: str
    n: int
    accuracy: float
    low: float
    high: float


def leaderboard(study: StudyFolder) -> tuple[list[str], list[dict[str, Any]]]:
    """The ranking as the page shows it.

    Args:
        study: The study; without a leaderboard nothing is shown.

    Returns:
        Names of the searched parameters, and one row per trial in file order with 95 % intervals.
    """
    trials = study.ranking()
    names = list(trials[0].parameters) if trials else []
    shown = []
    for trial in trials:
        interval = {
            name: (_known(score), Z95 * (_known(error) or 0.0))
            for name, score, error in (
                ("nll", trial.nll, trial.nll_se),
                ("accuracy", trial.accuracy, trial.accuracy_se),
            )
        }
        parameters = [_short(trial.parameters[name]) for name in names]
        seconds = "" if math.isnan(trial.seconds) else str(trial.seconds)
        row = {"trial": str(trial.number), "state": trial.state, "folds": trial.folds, "seconds": seconds}
        costs = [f"{cost:.4g}" if not math.isnan(cost) else "" for cost in trial.costs.values()]
        told = {"parameters": parameters, "tied": trial.tied, "costs": costs, "front": trial.front}
        shown.append(row | interval | told)
    return names, shown


def study_guessing(study: StudyFolder) -> Guessing | None:
    """What guessing scores on the trials' questions, the same for all; None without their answers."""
    complete = complete_trials(study.trials())
    if not complete:
        return None
    answers = study.trial(best_trial(complete).number).out_of_fold
    return guessing_of(read_predictions(answers)) if answers.exists() else None


def doubts(ranking: Sequence[TrialRow]) -> tuple[str, str] | None:
    """Say in words which trials are not told apart, what the best is worth, how noisy training is.

    Args:
        ranking: The leaderboard's rows, the best first.

    Returns:
        English and Korean; None without a complete trial.
    """
    complete = complete_trials(ranking)
    if not complete:
        return None
    best, tied = complete[0], [trial for trial in complete if trial.tied]
    names = ", ".join(str(trial.number) for trial in tied)
    if len(tied) == len(complete) > 1:
        english = f"The {len(tied)} complete trials are not told apart: take any of them."
        korean = f"완료된 시도 {len(tied)}개는 서로 구별되지 않습니다. 어느 것을 골라도 됩니다."
    elif len(tied) > 1:
        english = f"{len(tied)} of {len(complete)} complete trials are not told apart ({names}): "
        english += "take any of them."
        korean = f"완료된 시도 {len(complete)}개 중 {len(tied)}개({names})는 구별되지 않습니다. "
        korean += "어느 것을 골라도 됩니다."
    elif len(complete) > 1:
        english = f"Trial {best.number} is better than every other complete trial ({len(complete) - 1})."
        korean = f"시도 {best.number}이(가) 완료된 다른 시도 {len(complete) - 1}개보다 좋습니다."
    else:
        english, korean = "Only one trial is complete.", "완료된 시도가 하나뿐입니다."
    if not math.isnan(best.corrected):
        english += f" Expected NLL of the best, corrected for its having been picked: {best.corrected:.3f}"
        english += f" (as measured: {best.nll:.3f})."
        korean += f" 골라진 것을 감안한 최고 시도의 기대 NLL: {best.corrected:.3f} (측정값 {best.nll:.3f})."
    if math.isnan(best.retraining_sd) and best.trainings > 1:  # measured in another score than NLL
        pass
    elif math.isnan(best.retraining_sd):
        english += " Noise of training the same configuration again: not measured (hydra.sweeper.confirm)."
        korean += " 같은 설정을 다시 학습할 때의 잡음: 측정하지 않음 (hydra.sweeper.confirm)."
    else:
        english += (
            f" Training the same configuration again moves its NLL by {best.retraining_sd:.3f} (1 s.d.);"
        )
        english += f" it was trained {best.trainings} times."
        korean += f" 같은 설정을 다시 학습하면 NLL이 {best.retraining_sd:.3f}만큼 움직입니다 (표준편차);"
        korean += f" 학습 횟수 {best.trainings}."
    return english, korean


def shares(groups: Mapping[str, Sequence[Prediction]]) -> list[Share]:
    """Accuracy of each group with its interval."""
    found = []
    for name, predictions in groups.items():
        right = sum(p.answer == p.gold for p in predictions)
        low, high = accuracy_ci95(predictions)
        found.append(Share(name, len(predictions), right / len(predictions), low, high))
    return found


def by_kind(predictions: Sequence[Prediction]) -> list[Share]:
    """Accuracy by type of question; empty where the data know no types."""
    kinds = sorted({p.kind for p in predictions if p.kind})
    return shares({kind: [p for p in predictions if p.kind == kind] for kind in kinds})


def by_size(predictions: Sequence[Prediction], questions: Mapping[str, Question]) -> list[Share]:
    """Accuracy by size of the picture, in up to four groups of about equal number.

    Args:
        predictions: Labelled.
        questions: By id; of several pictures the first counts; those without a readable one are left out.
    """
    measured = [(size, p) for p in predictions if (size := picture_size(questions.get(p.id))) is not None]
    measured.sort(key=lambda entry: entry[0][0] * entry[0][1])
    if not measured:
        return []
    areas = sorted(size[0] * size[1] for size, _ in measured)
    edges = sorted({areas[len(areas) * k // SIZE_GROUPS] for k in range(1, SIZE_GROUPS)})
    groups: dict[int, list[tuple[tuple[int, int], Prediction]]] = {}
    for size, p in measured:  # equal sizes stay together
        groups.setdefault(sum(size[0] * size[1] > edge for edge in edges), []).append((size, p))
    named = {}
    for entries in groups.values():
        first, last = entries[0][0], entries[-1][0]
        name = f"{first[0]} × {first[1]}" + (f" – {last[0]} × {last[1]}" if last != first else "")
        named[name] = [p for _, p in entries]
    return shares(named)


_sizes: dict[Path, tuple[int, int] | None] = {}


def picture_size(question: Question | None) -> tuple[int, int] | None:
    """Width and height in pixels of the first picture as stored; None without a readable one."""
    return None if question is None or question.image is None else stored_size(question.image)


def stored_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a picture in pixels as stored; None where it is not readable."""
    if path not in _sizes:
        try:
            _sizes[path] = image.picture_size(path)
        except image.ImageError:
            _sizes[path] = None
    return _sizes[path]


def confusion_table(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Answers by right letter, and how often each letter was right and answered."""
    letters = letters_of(most_options(predictions))
    columns = [*letters, *(["none"] if any(p.answer is None for p in predictions) else [])]
    rows = []
    for gold in letters:
        answers = [p.answer or "none" for p in predictions if p.gold == gold]
        counts = [answers.count(column) for column in columns]
        rows.append((gold, [(count, count / len(answers) if answers else 0.0) for count in counts]))
    n = len(predictions)
    answered = [sum((p.answer or "none") == column for p in predictions) / n for column in columns]
    labelled = [sum(p.gold == column for p in predictions) / n for column in columns]
    return {"columns": columns, "rows": rows, "answered": answered, "labelled": labelled}


def fold_agreement(study: StudyFolder, trials: Sequence[TrialRow]) -> dict[str, Any] | None:
    """Do the folds agree on the order of the complete trials? None with fewer than three of them.

    Returns:
        `tau`, the mean Kendall rank correlation over pairs of folds (1: same order, 0: no relation), the
        number of `folds` and of `trials`.
    """
    scores = [[fold.nll for fold in study.trial(t.number).folds()] for t in complete_trials(trials)]
    scores = [row for row in scores if row]
    folds = min(map(len, scores), default=0)
    if len(scores) < 3 or folds < 2:
        return None
    from scipy.stats import kendalltau

    pairs = [(i, j) for i in range(folds) for j in range(i)]
    taus = [float(kendalltau([r[i] for r in scores], [r[j] for r in scores]).statistic) for i, j in pairs]
    return {"tau": sum(taus) / len(taus), "folds": folds, "trials": len(scores)}


def long_runs(study: StudyFolder, trials: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """What short trials promised and full-length runs kept, for every complete final run of the study."""
    found = []
    for run in study.scored_runs():
        config = run.config()
        if config.get("stage") not in ("final", "trial") or not run.complete:
            continue
        metrics = run.metrics()
        for trial in complete_trials(trials):
            searched = {name: v for name, v in trial.parameters.items() if v != NOT_SEARCHED}
            if all(_same(_lookup(config, name), value) for name, value in searched.items()):
                found.append({"name": run.path.name, "trial": trial, "metrics": metrics})
                break
    return found


def rank_correlation(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Kendall's tau between the NLL of trials and of their full-length runs; None for fewer than three."""
    if len(runs) < 3:
        return None
    from scipy.stats import kendalltau

    return float(
        kendalltau([run["trial"].nll for run in runs], [run["metrics"]["nll"] for run in runs]).statistic
    )


def _lookup(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _same(configured: Any, searched: float | str) -> bool:
    if isinstance(configured, Mapping):  # a group: its option's name
        configured = configured.get("name")
    if isinstance(searched, float) and isinstance(configured, int | float):
        return abs(configured - searched) <= 1e-9 * abs(searched)
    return str(configured) == str(searched)


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value
