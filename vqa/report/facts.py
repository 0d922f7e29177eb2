"""What the report says in numbers: read from a study's files alone, so that it can be rebuilt at any time."""

import csv
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqa.errors import UserError
from vqa.question import LETTERS, Question
from vqa.results.metrics import accuracy_interval
from vqa.results.predictions import Prediction
from vqa.results.trials import RESULT_COLUMNS, TrialRow, complete_trials

Z95 = 1.959964  # two-sided 95 % of the normal distribution
SIZE_GROUPS = 4


@dataclass(frozen=True)
class Share:
    """Right answers within a group of questions.

    Args:
        name: The group.
        n: Its questions.
        accuracy: Share of right answers.
        low: Lower end of the 95 % Wilson interval.
        high: Its upper end.
    """

    name: str
    n: int
    accuracy: float
    low: float
    high: float


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} when there is no such file.

    Raises:
        UserError: The file is no JSON object.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); run the stage that writes it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object; run the stage that writes it again")
    return content


def leaderboard(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The ranking as the page shows it.

    Args:
        path: leaderboard.csv.

    Returns:
        Names of the searched parameters, and one row per trial in file order with 95 % intervals.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    names = [n for n in (rows[0] if rows else {}) if n not in RESULT_COLUMNS and n != "tied_with_best"]
    shown = []
    for row in rows:
        interval = {
            name: (_number(row[name]), Z95 * (_number(row[f"{name}_se"]) or 0.0))
            for name in ("nll", "accuracy")
        }
        parameters = [_short(row[name]) for name in names]
        tied = row["tied_with_best"] == "true"
        shown.append(
            {key: row[key] for key in ("trial", "state", "folds", "seconds")}
            | interval
            | {"parameters": parameters, "tied": tied}
        )
    return names, shown


def shares(groups: Mapping[str, Sequence[Prediction]]) -> list[Share]:
    """Accuracy of each group with its interval."""
    found = []
    for name, predictions in groups.items():
        right = sum(p.answer == p.gold for p in predictions)
        low, high = accuracy_interval(right, len(predictions))
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
        questions: By id; those without a readable picture are left out.
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
    """Width and height in pixels as stored; None without a readable picture. Reads the header only."""
    from PIL import Image, UnidentifiedImageError

    if question is None or question.image is None:
        return None
    path = question.image
    if path not in _sizes:
        try:
            with Image.open(path) as picture:
                _sizes[path] = picture.size
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            _sizes[path] = None
    return _sizes[path]


def confusion_table(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Answers by right letter, and how often each letter was right and answered."""
    columns = [*LETTERS, *(["none"] if any(p.answer is None for p in predictions) else [])]
    rows = []
    for gold in LETTERS:
        answers = [p.answer or "none" for p in predictions if p.gold == gold]
        counts = [answers.count(column) for column in columns]
        rows.append((gold, [(count, count / len(answers) if answers else 0.0) for count in counts]))
    n = len(predictions)
    answered = [sum((p.answer or "none") == column for p in predictions) / n for column in columns]
    labelled = [sum(p.gold == column for p in predictions) / n for column in columns]
    return {"columns": columns, "rows": rows, "answered": answered, "labelled": labelled}


def fold_agreement(study: Path, trials: Sequence[TrialRow]) -> dict[str, Any] | None:
    """Do the folds agree on the order of the complete trials? None with fewer than three of them.

    Returns:
        `tau`, the mean Kendall rank correlation over pairs of folds (1: same order, 0: no relation), the
        number of `folds` and of `trials`.
    """
    scores = [_fold_nll(study / "trials" / f"{t.number:03d}" / "folds.csv") for t in complete_trials(trials)]
    scores = [row for row in scores if row]
    folds = min(map(len, scores), default=0)
    if len(scores) < 3 or folds < 2:
        return None
    from scipy.stats import kendalltau

    pairs = [(i, j) for i in range(folds) for j in range(i)]
    taus = [float(kendalltau([r[i] for r in scores], [r[j] for r in scores]).statistic) for i, j in pairs]
    return {"tau": sum(taus) / len(taus), "folds": folds, "trials": len(scores)}


def long_runs(study: Path, trials: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """What short trials promised and full-length runs kept, for every complete final run of the study."""
    found = []
    for metrics_file in sorted(study.glob("*/metrics.json")):
        config = stored_config(metrics_file.parent)
        if (
            config.get("stage") not in ("final", "trial")
            or not (metrics_file.parent / "manifest.json").exists()
        ):
            continue
        metrics = read_json(metrics_file)
        for trial in complete_trials(trials):
            if all(_same(_lookup(config, name), value) for name, value in trial.parameters.items()):
                found.append({"name": metrics_file.parent.name, "trial": trial, "metrics": metrics})
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


def stored_config(folder: Path) -> dict[str, Any]:
    """The configuration a run was made with; {} where none is stored or a variable it needs is not set."""
    path = folder / ".hydra" / "config.yaml"
    if not path.exists():
        return {}
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except OmegaConfBaseException:
        return {}
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def command(folder: Path) -> str:
    """The command line that makes the run in `folder` again; "" where none is stored."""
    path = folder / ".hydra" / "overrides.yaml"
    if not path.exists():
        return ""
    given = [str(override) for override in OmegaConf.to_container(OmegaConf.load(path)) or []]
    return shlex.join(["python", "-m", "vqa.run", *given])


def _fold_nll(path: Path) -> list[float]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [float(row["nll"]) for row in csv.DictReader(file)]


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


def _number(text: str) -> float | None:
    return float(text) if text else None


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text
