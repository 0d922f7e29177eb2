"""Seconds and memory of a large contest file: read, split, described for the doctor, answered, shown.

    python -m benchmarks.endurance.large_files --rows 100000 --pictures 5000

Rows are made up; pictures are noise of 64 x 64 pixels. No model is loaded.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vqa.data.contest_csv import ContestCsv
from vqa.data.split import hold_out, make_folds
from vqa.question import LETTERS, Question
from vqa.report import doctor_facts
from vqa.report.page import gallery
from vqa.results.metrics import summary
from vqa.results.predictions import Prediction, read_predictions, write_predictions


def make(folder: Path, rows: int, pictures: int) -> ContestCsv:
    """Write a training file and its pictures."""
    draw = np.random.default_rng(0)
    for i in range(pictures):
        Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    words = [f"word{i}" for i in range(500)]
    with (folder / "train.csv").open("w") as file:
        file.write("id,path,question,a,b,c,d,answer\n")
        for i in range(rows):
            a, b, c, d = (words[k] for k in draw.integers(500, size=4))
            text = f"What is {words[i % 500]}?"
            file.write(f"q{i},{i % pictures}.png,{text},{a},{b},{c},{d},{LETTERS[draw.integers(4)]}\n")
    return ContestCsv(str(folder / "train.csv"), None, str(folder))


def timed(name: str, work: Callable[[], Any]) -> Any:
    """Do the work; print what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:24} {wall:7.1f} s  {cpu:7.1f} s CPU  peak {peak:5.2f} GiB", flush=True)
    return found


def answers(questions: list[Question]) -> list[Prediction]:
    """Made-up predictions of the questions."""
    p = np.random.default_rng(1).dirichlet(np.ones(4), len(questions))
    return [
        Prediction(q.id, LETTERS[int(row.argmax())], tuple(row.tolist()), 1.0, q.answer)
        for q, row in zip(questions, p, strict=True)
    ]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=5_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make(folder, asked.rows, asked.pictures)
        timed("doctor: check", source.check)
        questions = timed("read again", source.train)
        split = timed("split", lambda: hold_out(questions, 0.2, 0))
        timed("folds", lambda: make_folds(split.train, 3, 0))
        parts = {"train": questions}
        timed("doctor: exact twins", lambda: doctor_facts.exact_twins(parts))
        timed("doctor: near twins", lambda: doctor_facts.near_twins(parts))
        timed("doctor: doubtful rows", lambda: doctor_facts.contradictions(questions))
        timed("doctor: floor", lambda: doctor_facts.text_floor(questions, 0))
        predictions = answers(questions[: asked.rows // 2])
        path = folder / "test_predictions.csv"
        timed("write predictions", lambda: write_predictions(path, predictions))
        timed("read predictions", lambda: read_predictions(path))
        timed("evaluate", lambda: summary(predictions))
        known = {q.id: q for q in questions}
        timed("report: gallery", lambda: gallery({"test": predictions}, {"test": known}))


if __name__ == "__main__":
    main()
