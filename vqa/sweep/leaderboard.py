"""The ranking of a study's trials, from what each left in its folder; its first trial is the winner.

`leaderboard.csv` holds the ranking, `best.yaml` the winner as an experiment file: what a user runs next.
"""

import csv
import io
import math
import shlex
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState
from yaml import YAMLError

from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.results.folder import RunFolder, StudyFolder
from vqa.results.metrics import paired_p_value, per_question_nll
from vqa.results.predictions import read_fold_predictions
from vqa.results.trials import RESULT_COLUMNS, TIED
from vqa.sweep.promotion import WORKED_S, is_paused
from vqa.sweep.space import override_value, overrides_of, plain_value, plain_values

TIE_LEVEL = 0.05  # trials whose difference has a p-value of at least this are a tie


@dataclass(frozen=True)
class Scores:
    """What a trial's finished folds say, question by question.

    Args:
        folds: Finished folds.
        seconds: Their training and scoring time; None without folds.csv.
        nll: Negative log-probability of the right letter (nats), by question id.
        correct: Whether the right letter was the most probable, by question id.
    """

    folds: int
    seconds: float | None
    nll: Mapping[str, float]
    correct: Mapping[str, bool]


@dataclass(frozen=True)
class Standing:
    """One line of the ranking.

    Args:
        trial: The trial's number.
        state: COMPLETE, PAUSED, PRUNED, FAIL, RUNNING or WAITING.
        value: The objective that was told; a pruned or paused trial's last report.
        last_step: The last step that was reported; None without a report.
        seconds: Time of the finished folds, else what was worked on it, else from start to end; None while
            running.
        params: Searched key -> value, multiples written out.
        scores: Out-of-fold results so far.
        tied: Whether a paired t-test cannot tell the trial from the best one. None when the two have no
            questions in common, so that nothing was compared.
        error: Why the trial failed.
    """

    trial: int
    state: str
    value: float | None
    last_step: int | None
    seconds: float | None
    params: Mapping[str, Any]
    scores: Scores
    tied: bool | None = False
    error: str = ""

    @property
    def nll(self) -> float | None:
        """Mean NLL over the questions of the finished folds; without any, the objective."""
        return statistics.fmean(self.scores.nll.values()) if self.scores.nll else self.value

    @property
    def nll_se(self) -> float | None:
        """Standard error of `nll` over the questions."""
        return _standard_error(list(self.scores.nll.values()))

    @property
    def accuracy(self) -> float | None:
        """Share of right answers."""
        return statistics.fmean(self.scores.correct.values()) if self.scores.correct else None

    @property
    def accuracy_se(self) -> float | None:
        """Standard error of `accuracy` over the questions."""
        return _standard_error([float(right) for right in self.scores.correct.values()])


def _standard_error(values: list[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def read_scores(folder: Path) -> Scores:
    """Read `folds.csv` and `oof_predictions.csv` of a trial; files that are not there count as empty."""
    files = [RunFolder(folder).folds_file, RunFolder(folder).out_of_fold]
    stamps = [(file.stat().st_mtime_ns, file.stat().st_size) if file.exists() else (0, 0) for file in files]
    return _read_scores(folder, tuple(stamps))


@lru_cache(maxsize=4096)  # finished trials do not change, and the ranking reads all of them after each trial
def _read_scores(folder: Path, stamps: tuple[tuple[int, int], ...]) -> Scores:
    folds = RunFolder(folder).folds()
    finished = {result.fold for result in folds}
    out_of_fold = RunFolder(folder).out_of_fold
    rows = read_fold_predictions(out_of_fold) if out_of_fold.exists() else []
    labelled = [p for p, fold in rows if fold in finished and p.gold is not None]
    seconds = sum(result.seconds for result in folds) if folds else None
    return Scores(
        folds=len(finished),
        seconds=seconds,
        nll=per_question_nll(labelled) if labelled else {},
        correct={p.id: p.answer == p.gold for p in labelled},
    )


def ranking(trials: Sequence[FrozenTrial], study_folder: Path, direction: str) -> list[Standing]:
    """Order the trials from best to worst.

    COMPLETE by objective, then PAUSED and PRUNED by how far they came, then FAIL, then those that run or
    wait. Complete trials are ordered by the objective in Optuna's storage. The NLL from the files is summed
    in another order, and its last digit could swap two trials.

    Args:
        trials: As Optuna gives them.
        study_folder: Where `trials/` lies.
        direction: "minimize" or "maximize".
    """
    standings = [standing_of(trial, study_folder) for trial in trials]
    sign = 1.0 if direction == "minimize" else -1.0
    standings.sort(key=lambda standing: _sort_key(standing, sign))
    if not standings or standings[0].state != "COMPLETE":
        return standings
    best = standings[0].scores.nll
    return [
        replace(standing, tied=index == 0 or is_tied(standing.scores.nll, best))
        if standing.state == "COMPLETE"
        else standing
        for index, standing in enumerate(standings)
    ]


def _sort_key(standing: Standing, sign: float) -> tuple[int, int, int, float, int]:
    state = "PRUNED" if standing.state == "PAUSED" else standing.state
    order = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING").index(state)
    value = math.inf if standing.value is None else sign * standing.value
    if state != "PRUNED":
        return order, 0, 0, value, standing.trial
    reached = -1 if standing.last_step is None else standing.last_step
    return order, -standing.scores.folds, -reached, value, standing.trial


def standing_of(trial: FrozenTrial, study_folder: Path) -> Standing:
    """One trial by itself: not compared with any other."""
    scores = read_scores(StudyFolder(study_folder).trial(trial.number).path)
    seconds = scores.seconds
    if seconds is None:
        seconds = trial.user_attrs.get(WORKED_S)
    if seconds is None and trial.state.is_finished() and trial.duration is not None:
        seconds = trial.duration.total_seconds()
    paused = is_paused(trial)
    value = trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    if paused and trial.last_step is not None:
        value = trial.intermediate_values[trial.last_step]
    return Standing(
        trial=trial.number,
        state="PAUSED" if paused else trial.state.name,
        value=value,
        last_step=trial.last_step,
        seconds=seconds,
        params=plain_values(trial.params or trial.system_attrs.get("fixed_params", {})),
        scores=scores,
        error=trial.user_attrs.get("error", ""),
    )


def is_tied(nll: Mapping[str, float], best: Mapping[str, float]) -> bool | None:
    """Whether two trials tie: a paired, two-sided t-test on the NLL of each question.

    Args:
        nll: NLL by question id of one trial.
        best: The same of the best trial.

    Returns:
        True when p >= 0.05 or all differences are equal to zero; None with fewer than two common questions.
    """
    if len(nll.keys() & best.keys()) < 2:
        return None
    return paired_p_value(nll, best) >= TIE_LEVEL


def leaderboard_text(standings: Sequence[Standing], names: Sequence[str]) -> str:
    """Give the content of `leaderboard.csv`: the trials that are done or paused, best first.

    Args:
        standings: In order, as `ranking` gives them.
        names: Searched keys, one column each.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*RESULT_COLUMNS, *names, TIED])
    for standing in standings:
        if standing.state in ("RUNNING", "WAITING"):
            continue
        numbers = (standing.nll, standing.nll_se, standing.accuracy, standing.accuracy_se)
        table.writerow(
            [
                standing.trial,
                standing.state,
                standing.scores.folds,
                *("" if number is None else f"{number:.6f}" for number in numbers),
                "" if standing.seconds is None else f"{standing.seconds:.2f}",
                *(override_value(standing.params[n]) if n in standing.params else "" for n in names),
                "" if standing.tied is None else str(standing.tied).lower(),
            ]
        )
    return out.getvalue()


def write_leaderboard(standings: Sequence[Standing], names: Sequence[str], path: Path) -> None:
    """Write `leaderboard.csv` in one step; unchanged content leaves the file alone."""
    replace_text(path, leaderboard_text(standings, names))


def describe_scores(standing: Standing) -> str:
    """Give NLL and accuracy with their standard errors in a few words."""
    if standing.nll is None:
        return "no score"
    nll = f"NLL {standing.nll:.4f}" + (f" ± {standing.nll_se:.4f}" if standing.nll_se is not None else "")
    if standing.accuracy is None or standing.accuracy_se is None:
        return nll
    return f"{nll}, accuracy {standing.accuracy:.4f} ± {standing.accuracy_se:.4f}"


def describe_ties(standings: Sequence[Standing]) -> str:
    """Say which trials tie with the best one."""
    others = [standing for standing in standings[1:] if standing.state == "COMPLETE"]
    tied = [str(standing.trial) for standing in others if standing.tied]
    unknown = [str(standing.trial) for standing in others if standing.tied is None]
    lines = []
    if tied:
        lines.append(
            f"Not told apart from it by a paired t-test over the questions at 5 %: trials {', '.join(tied)}."
        )
    if unknown:
        lines.append(f"Not compared with it, for want of common questions: trials {', '.join(unknown)}.")
    return " ".join(lines) or "No other complete trial ties with it (paired t-test over the questions, 5 %)."


def winner_of(standings: Sequence[Standing]) -> Standing | None:
    """Give the best complete trial; None while there is none."""
    return standings[0] if standings and standings[0].state == "COMPLETE" else None


def winner_text(standings: Sequence[Standing], record: Mapping[str, Any], groups: Collection[str]) -> str:
    """Give the content of `best.yaml`: an experiment file with the winner's searched values.

    Args:
        standings: In order, the winner first.
        record: Further plain values that belong to the winner.
        groups: Searched keys that name a config group, so that their value is an option.
    """
    best = standings[0]
    options: list[Any] = []
    plain: dict[str, Any] = {}
    values: list[str] = []
    for override in overrides_of({**best.params, **record}):
        key, value = override.split("=", 1)
        if key not in groups:
            _set_nested(plain, key.lstrip("+").split("."), plain_value(value))
        elif key.startswith("+"):  # the configuration itself chooses nothing there
            options.append({f"/{key.lstrip('+')}": plain_value(value)})
        else:
            options.append({f"override /{key}": plain_value(value)})
        values.append(override if key in groups else override.lstrip("+"))
    body = {"defaults": [*options, "_self_"]} if options else {}
    lines = [
        "# @package _global_",
        f"# Trial {best.trial}: {describe_scores(best)}",
        f"# {describe_ties(standings)}",
        f"# On a command line: {shlex.join(values)}",
    ]
    return "\n".join(lines) + "\n" + OmegaConf.to_yaml(OmegaConf.create({**body, **plain}))


def _set_nested(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def write_winner(text: str, study_folder: Path) -> None:
    """Write `best.yaml`, and again as `experiment/best.yaml` for `--config-dir <study> experiment=best`."""
    folder = StudyFolder(study_folder)
    folder.winner_experiment.parent.mkdir(exist_ok=True)
    replace_text(folder.winner, text)
    replace_text(folder.winner_experiment, text)


def read_winner(path: Path) -> list[str]:
    """Give the overrides that a `best.yaml` stands for, `key=value` each.

    Args:
        path: A file of `write_winner`.

    Raises:
        UserError: It is no such file.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error}); mend it or give winner=none") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of keys to values; mend it or give winner=none")
    plain = {str(key): value for key, value in content.items()}
    options = [entry for entry in plain.pop("defaults", []) if isinstance(entry, dict)]
    chosen = {_typed(str(key)): value for entry in options for key, value in entry.items()}
    return overrides_of({**chosen, **_flat(plain)})


def _typed(entry: str) -> str:
    """A key of a defaults list as one types it: `override /image` is image, `/db@backup` is +db@backup."""
    return entry.removeprefix("override /") if entry.startswith("override /") else f"+{entry.lstrip('/')}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
