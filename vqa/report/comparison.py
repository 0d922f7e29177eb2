"""`compare`: two runs side by side, on one page and in one sentence."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa.config.settings import is_under
from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.report.page import render
from vqa.results.folder import MAY_DIFFER, RunFolder, flatten
from vqa.results.pairing import Paired, paired, shared
from vqa.results.predictions import read_predictions

Both = tuple[str, str]  # English, Korean
OWN_NAME = ("study", "stage", "data.sample_submission")  # which run it is, not how it was made
COSTS: dict[str, Both] = {  # of metrics.json, and of the manifest
    "train_samples_per_s": ("training speed, questions/s", "학습 속도, 문항/초"),
    "peak_memory_gib": ("peak memory, GiB", "최대 메모리, GiB"),
    "learning_rate": ("learning rate", "학습률"),
    "temperature": ("temperature of the probabilities", "확률 보정 온도"),
    "n_train": ("training questions", "학습 문항 수"),
    "wall_time_s": ("wall time, s", "걸린 시간, 초"),
}
MOST_ROWS = 300  # of the questions that one answers rightly and the other does not


@dataclass(frozen=True)
class Compared:
    """Two runs and what a comparison of them found.

    Args:
        first: The first run.
        second: The run that is compared with it.
        names: How both are called.
        held_out: On the held-out questions.
        test: On the labelled test questions of both; None where they share none.
    """

    first: RunFolder
    second: RunFolder
    names: tuple[str, str]
    held_out: Paired
    test: Paired | None


def compare_runs(first: RunFolder, second: RunFolder, names: tuple[str, str]) -> Compared:
    """Compare two runs on what both were scored on.

    Raises:
        UserError: One has no held-out answers, they share no held-out question, or both are the same run.
    """
    if first.path.resolve() == second.path.resolve():
        raise UserError(f"compare must be another run than {names[0]}, got {names[1]!r}: the same one")
    for run, name in zip((first, second), names, strict=True):
        if not run.valid_predictions.exists():
            raise UserError(
                f"{name} has no held-out answers to compare: {run.valid_predictions} is not there. "
                "Make its final run (stage=final), or name the folder of a run that has them."
            )
    held_out = paired(read_predictions(first.valid_predictions), read_predictions(second.valid_predictions))
    return Compared(first, second, names, held_out, _tests(first, second))


def _tests(first: RunFolder, second: RunFolder) -> Paired | None:
    if not (first.test_predictions.exists() and second.test_predictions.exists()):
        return None
    a, b, _ = shared(read_predictions(first.test_predictions), read_predictions(second.test_predictions))
    try:
        return paired(a, b)
    except UserError:  # unlabelled, or other test questions: that is no mistake
        return None


def comparison_verdict(names: tuple[str, str], found: Paired) -> Both:
    """What the comparison came to, in a sentence: a tie is called a tie."""
    first, second = names
    better = second if found.accuracy.by > 0 else first
    surer = second if found.nll.by < 0 else first
    points, points_ko, nats, nats_ko = _sizes(found)
    if found.accuracy.tie and found.nll.tie:
        return (
            f"{first} and {second} tie: accuracy {points}; NLL {nats}.",
            f"{first}, {second} 동률: 정확도 {points_ko}, NLL {nats_ko}.",
        )
    english = f"{better} is more accurate: {points}"
    korean = f"{better}의 정확도가 더 높음: {points_ko}"
    if found.accuracy.tie:
        english, korean = f"{first} and {second} tie in accuracy: {points}", f"정확도 동률: {points_ko}"
    if found.nll.tie:
        return f"{english}; the NLL ties: {nats}.", f"{korean}; NLL 동률: {nats_ko}."
    return (
        f"{english}; {surer} has the lower NLL: {nats}.",
        f"{korean}; {surer}의 NLL이 더 낮음: {nats_ko}.",
    )


def _sizes(found: Paired) -> tuple[str, str, str, str]:
    """How far apart accuracy and NLL are, each in English and Korean."""
    low, high = (100 * end for end in found.accuracy.interval)
    points = f"{100 * found.accuracy.by:+.1f}"
    nats = f"{found.nll.by:+.3f} ({found.nll.interval[0]:+.3f} to {found.nll.interval[1]:+.3f})"
    return (
        f"{points} points ({low:+.1f} to {high:+.1f})",
        f"{points}%p ({low:+.1f} ~ {high:+.1f})",
        nats,
        nats.replace(" to ", " ~ "),
    )


def differing_settings(first: RunFolder, second: RunFolder) -> list[tuple[str, str, str]]:
    """The settings in which two runs differ: key and both values, "" where one has none.

    Raises:
        UserError: A stored configuration cannot be read.
    """
    left_out = (*MAY_DIFFER, *OWN_NAME)
    old, new = (
        {key: text for key, text in flatten(run.config()).items() if not is_under(key, left_out)}
        for run in (first, second)
    )
    return [
        (key, old.get(key, ""), new.get(key, ""))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def write_comparison(compared: Compared, path: Path, language: str) -> Path:
    """Write the page of a comparison.

    Args:
        compared: The two runs.
        path: The page.
        language: In which it opens, "en" or "ko".

    Raises:
        UserError: A file of a run cannot be read.
    """
    parts = [(("held-out questions", "검증 문항"), compared.held_out)]
    parts += [(("test questions", "테스트 문항"), compared.test)] if compared.test else []
    page = render(
        "comparison.html",
        language=language,
        title=" / ".join(compared.names),
        names=compared.names,
        verdict=comparison_verdict(compared.names, compared.held_out),
        parts=parts,
        settings=differing_settings(compared.first, compared.second),
        costs=_costs(compared),
        most_rows=MOST_ROWS,
    )
    replace_text(path, page)
    return path


def _costs(compared: Compared) -> list[tuple[Both, Any, Any]]:
    runs = (compared.first, compared.second)
    a, b = (run.metrics() | {"wall_time_s": run.manifest().get("wall_time_s")} for run in runs)
    rows = [(words, a.get(name), b.get(name)) for name, words in COSTS.items()]
    return [row for row in rows if row[1:] != (None, None)]
