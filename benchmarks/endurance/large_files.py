"""Seconds and memory of a large contest: described by the doctor, divided, averaged, scored, reported.

    python -m benchmarks.endurance.large_files --rows 50000 100000 --pictures 5000 --out FILE

Rows are made up; pictures are noise of 64 x 64 pixels. There are half as many predictions as rows, made up
too: no model answers, so that the times are those of the files. Each stage runs in a process of its own; its
memory is that process's peak.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from benchmarks.harness.record import add_output_arguments, write_rows
from tests.helpers.forked import run_vqa
from tests.helpers.written_study import write_study
from vqa.data.contest_csv import ContestCsv
from vqa.data.split import hold_out, make_folds
from vqa.question import LETTERS, Question
from vqa.results.metrics import summary
from vqa.results.predictions import Prediction, read_predictions, write_predictions

Row = dict[str, Any]
STAGES = ("doctor", "read", "split", "evaluate", "ensemble", "report")


def make(folder: Path, rows: int, pictures: int) -> dict[str, Any]:
    """Write a training file and its pictures; returns the data node of its configuration."""
    draw = np.random.default_rng(0)
    for i in range(pictures):
        Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    words = [f"word{i}" for i in range(500)]
    with (folder / "train.csv").open("w") as file:
        file.write("id,path,question,a,b,c,d,answer\n")
        for i in range(rows):
            a, b, c, d = (words[k] for k in draw.choice(500, size=4, replace=False))
            text = f"What is {words[i % 500]}?"
            file.write(f"q{i},{i % pictures}.png,{text},{a},{b},{c},{d},{LETTERS[draw.integers(4)]}\n")
    return {"train_csv": str(folder / "train.csv"), "test_csv": None, "image_root": str(folder)}


def measured(name: str, rows: int, work: Callable[[], Any]) -> Row:
    """Do the work in a forked process; returns its times and peak memory.

    Raises:
        RuntimeError: It failed.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code, wall, cpu = 1, time.perf_counter(), time.process_time()
        try:
            work()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            found = {"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "gib": peak}
            os.write(write, json.dumps({key: round(value, 2) for key, value in found.items()}).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    if not said:
        raise RuntimeError(f"{name} failed")
    row = {"stage": name, "rows": rows, **json.loads(said)}
    print(
        f"{rows:7d}  {name:18} {row['seconds']:7.1f} s  {row['cpu_s']:7.1f} s CPU  {row['gib']:5.2f} GiB",
        flush=True,
    )
    return row


def command(*arguments: str) -> None:
    """Run `vqa`.

    Raises:
        RuntimeError: It failed.
    """
    if code := run_vqa(*arguments):
        raise RuntimeError(f"{arguments[0]} ended with {code}")


def answers(questions: list[Question], seed: int) -> list[Prediction]:
    """Made-up predictions of the questions."""
    p = np.random.default_rng(seed).dirichlet(np.ones(4), len(questions))
    return [
        Prediction(q.id, LETTERS[int(row.argmax())], tuple(row.tolist()), 1.0, q.answer)
        for q, row in zip(questions, p, strict=True)
    ]


def measure(folder: Path, rows: int, pictures: int, stages: Sequence[str]) -> list[Row]:
    """Run stages on a file of so many rows, and half as many predictions.

    Args:
        folder: An empty folder.
        rows: Of the training file.
        pictures: That the rows share.
        stages: Of `STAGES`.
    """
    node = make(folder, rows, pictures)
    typed = ["data=csv", *(f"data.{key}={value}" for key, value in node.items() if value)]
    typed += [f"env.output_root={folder}/out", "tracking=none", "env.threads=1"]
    source = ContestCsv(**node)
    questions = source.train()
    half = questions[: rows // 2]
    files = [folder / f"{number}/test_predictions.csv" for number in range(2)]
    for number, file in enumerate(files):
        file.parent.mkdir()
        write_predictions(file, answers(half, number))
    members = f"ensemble.members=[{files[0]},{files[1]}]"
    final = write_study(folder / "out/made")
    config = final / ".hydra/config.yaml"
    stored = OmegaConf.to_container(OmegaConf.load(config))
    stored["data"] = {"_target_": "vqa.data.contest_csv.ContestCsv", **node}  # type: ignore[index,call-overload]
    OmegaConf.save(stored, config)
    write_predictions(final / "valid_predictions.csv", answers(half, 0))
    write_predictions(final / "base_valid_predictions.csv", answers(half, 1))
    write_predictions(final / "test_predictions.csv", answers(questions[-len(half) :], 2))
    report = ["stage=report", "study=made", f"env.output_root={folder}/out", "tracking=none"]
    works: dict[str, tuple[int, Callable[[], Any]]] = {
        "doctor": (rows, lambda: command("stage=doctor", *typed)),
        "read": (rows, source.train),
        "split": (rows, lambda: make_folds(hold_out(questions, 0.2, 0).train, 3, 0)),
        "evaluate": (len(half), lambda: summary(read_predictions(files[0]))),
        "ensemble": (len(half), lambda: command("stage=ensemble", members, *typed)),
        "report": (len(half), lambda: command(*report)),
    }
    return [measured(name, *works[name]) for name in stages]


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 100_000])
    parser.add_argument("--pictures", type=int, default=5_000)
    parser.add_argument("--run", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--append", action="store_true", help="keep the rows that the file has")
    add_output_arguments(parser)
    given = parser.parse_args()
    rows: list[Row] = []
    for number in given.rows:
        with tempfile.TemporaryDirectory() as name:
            rows += measure(Path(name), number, given.pictures, given.run)
    write_rows(given.out, "large_files", rows, given.machine, append=given.append)


if __name__ == "__main__":
    main()
