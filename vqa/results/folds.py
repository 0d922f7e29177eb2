"""`folds.csv`: what each finished fold of a trial scored. A cut-off trial goes on after the last."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from vqa.errors import UserError
from vqa.machine.files import read_text, replace_text


@dataclass(frozen=True)
class FoldResult:
    """One finished fold; its fields are the file's columns.

    Args:
        fold: The fold's number, from 0.
        n_train: Questions it was trained on.
        n_valid: Questions held out.
        nll: Mean NLL of the held-out questions, nats.
        accuracy: Share of them answered right.
        seconds: Wall time, evaluation included.
    """

    fold: int
    n_train: int
    n_valid: int
    nll: float
    accuracy: float
    seconds: float


def write_folds(path: Path, results: Sequence[FoldResult]) -> None:
    """Write one row per fold; numbers keep all their digits, and the file appears complete or not at all."""
    lines = [",".join(f.name for f in fields(FoldResult))]
    lines += [",".join(repr(value) for value in asdict(result).values()) for result in results]
    replace_text(path, "\n".join(lines) + "\n")


def read_folds(path: Path) -> list[FoldResult]:
    """Read the finished folds, in file order; [] where there is no file.

    Raises:
        UserError: A column is missing or a value is no number.
    """
    if not path.exists():
        return []
    try:
        text = read_text(path)
        rows = list(csv.DictReader(text.splitlines(), restval=""))
        if text and not text.endswith("\n"):
            raise ValueError("its last line is cut off")
        return [
            FoldResult(
                int(row["fold"]),
                int(row["n_train"]),
                int(row["n_valid"]),
                float(row["nll"]),
                float(row["accuracy"]),
                float(row["seconds"]),
            )
            for row in rows
        ]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove the trial's folder to run it again"
        ) from error
