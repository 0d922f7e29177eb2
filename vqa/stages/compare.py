"""`stage=compare`: two studies, or runs, on the held-out questions that both share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vqa.config.messages import message, shows
from vqa.config.near import nearest
from vqa.config.settings import Settings, is_under
from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.report.page import render
from vqa.results.folder import MAY_DIFFER, RunFolder, StudyFolder, flatten
from vqa.results.pairing import Difference, Paired, paired, shared
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


def run_compare(settings: Settings, folder: Path) -> None:
    """Print a table and write a page that compare `study` with `compare`.

    Args:
        settings: The run; `study` names one study, `compare` another one, or the folder of a run.
        folder: Gets the page, named after the other study.

    Raises:
        UserError: One of them is not there, has no held-out answers, or they share no held-out question.
    """
    other = str(settings.compare)
    root = Path(settings.env.output_root)
    first, second = _run(root, settings.study), _run(root, other)
    compared = compare_runs(first, second, (settings.study, other))
    folder.mkdir(parents=True, exist_ok=True)
    page = write_comparison(compared, folder / f"{other.strip('/').replace('/', '_')}.html", settings.lang)
    lang = "ko" if settings.lang == "ko" and shows("ko") else "en"
    console = Console(soft_wrap=True)
    found = compared.held_out
    first_name, second_name = compared.names
    console.print(
        message(lang, "compared", n=found.n, pictures=found.pictures, first=first_name, second=second_name)
    )
    console.print(_table(compared, lang))
    verdict = comparison_verdict(compared.names, found)[lang == "ko"]
    console.print(verdict, style="bold", markup=False, highlight=False)
    console.print(message(lang, "look", path=page))


def _run(root: Path, name: str) -> RunFolder:
    """The final run of a study of that name, else the run in a folder of that name."""
    study = StudyFolder(root / name)
    if "/" not in name and study.path.is_dir():
        return study.final
    if Path(name).is_dir():
        given = StudyFolder(Path(name))
        return given.final if given.final.path.is_dir() else RunFolder(Path(name))
    known = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    there = ", ".join(sorted(known)) or "none"
    raise UserError(f"there is no study {name!r} in {root}{nearest(name, known)}; studies: {there}")


def _table(compared: Compared, lang: str) -> Table:
    korean = lang == "ko"
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in compared.names:
        table.add_column(Text(name), justify="right")
    table.add_column("차이 (95 % 구간)" if korean else "difference (95 % interval)", justify="right")
    table.add_column("p", justify="right")
    table.add_column("")
    held_out, test = compared.held_out, compared.test
    rows = [("", d) for d in (held_out.accuracy, held_out.nll, *held_out.kinds)]
    rows += [("테스트 " if korean else "test ", d) for d in (test.accuracy, test.nll)] if test else []
    for prefix, difference in rows:
        title = "정확도" if korean and difference.name == "accuracy" else difference.name
        tie = ("동률" if korean else "tie") if difference.tie else ""
        p = "" if difference.p is None else f"{difference.p:.2g}"
        table.add_row(Text(f"{prefix}{title}"), *_cells(difference), p, tie)
    return table


def _cells(difference: Difference) -> tuple[str, str, str]:
    low, high = difference.interval
    if difference.name == "NLL":
        return (
            f"{difference.first:.4f}",
            f"{difference.second:.4f}",
            f"{difference.by:+.4f} ({low:+.4f} .. {high:+.4f})",
        )
    return (
        f"{100 * difference.first:.1f} %",
        f"{100 * difference.second:.1f} %",
        f"{100 * difference.by:+.1f} ({100 * low:+.1f} .. {100 * high:+.1f})",
    )


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
