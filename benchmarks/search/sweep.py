"""Time to rank at full size: a study through the command line, then a whole contest's time from its parts.

Runs `-m +sweep=lora` with the final run and inference, and reads what each part took. With 24 trials, 5
epochs and a contest of 3,875 and 3,900 rows that is the whole job. From a smaller run, and the speeds of
`speed.throughput`, the time of 24 trials x 3 folds on 400 rows, the final run (3,100 rows x 5 epochs) and
3,900 test rows is added up. The stock way (no pruning, a model load per trial, padded batches) is computed
from the speeds of `speed.peers` given as --padded-train and --padded-score.

    python -m benchmarks.harness.full_size --work FOLDER --tokenizer FOLDER --only-files \\
        --rows 3875 --test-rows 3900
    python -m benchmarks.search.sweep --work FOLDER --model qwen3_vl_8b --trials 24 --epochs 5 --out FILE
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.record import write_rows

TRIALS, FOLDS, SUBSAMPLE, EVALUATIONS = 24, 3, 400, 3
FINAL = ("stage=final", "budget=final", "budget.subsample=null")
FINAL_ROWS, EPOCHS, HELD_OUT, TEST_ROWS = 3100, 5, 775, 3900


def run_study(arguments: argparse.Namespace) -> tuple[float, Path]:
    """Run the study; returns wall seconds and its folder."""
    contest, root = arguments.work / "contest", arguments.work / "multirun"
    final = (*FINAL, f"budget.epochs={arguments.epochs}")
    command = [
        *(sys.executable, "-m", "vqa.run", "-m", "+sweep=lora", "study=timed", f"model={arguments.model}"),
        *(f"model.path={arguments.work / arguments.model}", f"quantization={arguments.quantization}"),
        *("prompt=fewshot_ko", "image=pad_512", f"budget.subsample={SUBSAMPLE}"),
        *("data=csv", f"data.train_csv={contest / 'train.csv'}", f"data.test_csv={contest / 'test.csv'}"),
        *(f"data.image_root={contest}", "tracking=none", f"env.output_root={root}"),
        *(f"hydra.sweeper.n_trials={arguments.trials}", "budget.batch_size=16"),
        f"hydra.sweeper.final_overrides=[{','.join(map(repr, final))}]",
        *arguments.extra,
    ]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began, root / "timed"


def read_trials(study: Path) -> dict[str, Any]:
    """Folds run and seconds per fold, of the trials after the first (which also compiles and looks)."""
    with (study / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        trials = sorted(csv.DictReader(file), key=lambda row: int(row["trial"]))
    seconds = [float(row["seconds"]) for row in trials]
    later, whole = list[float](), 0
    for row in trials:
        path = study / "trials" / f"{int(row['trial']):03d}" / "folds.csv"
        if path.exists():  # a trial pruned in its first fold has none
            with path.open(newline="") as file:
                folds = [float(fold["seconds"]) for fold in csv.DictReader(file)]
            whole += len(folds)
            later += folds if row is not trials[0] else folds[1:]
    fold = sum(later) / len(later)
    return {
        "trials": len(trials),
        "pruned": sum(row["state"] == "PRUNED" for row in trials),
        "trial_seconds": [round(s, 1) for s in seconds],
        "whole_folds": whole,
        "fold_s": round(fold, 2),
        "share_of_work": round(sum(seconds[1:]) / (fold * FOLDS * (len(trials) - 1)), 3),
    }


def added_up(a: argparse.Namespace, trials: dict[str, Any]) -> dict[str, Any]:
    """The whole job's time from the measured trials and the given speeds."""
    pictures = (FINAL_ROWS + HELD_OUT + TEST_ROWS) / a.picture_rate
    search = TRIALS * FOLDS * trials["fold_s"] * trials["share_of_work"]
    training = FINAL_ROWS * EPOCHS / a.train_rate
    scoring = (HELD_OUT * (EPOCHS + 1) + TEST_ROWS) / a.score_rate
    return {
        "who": "vqa",
        "mode": "24 trials x 3 folds x 400 rows, final run, 3,900 test rows; added up",
        "load_s": a.load_s,
        "pictures_s": round(pictures),
        "search_s": round(search),
        "final_s": round(training),
        "scoring_s": round(scoring),
        "minutes": round((a.load_s + pictures + search + training + scoring) / 60, 1),
    }


def main() -> None:
    """Parse the command line, run, add up, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that harness.full_size filled")
    parser.add_argument("--model", default="qwen3_vl_8b")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1, help="of the final run")
    parser.add_argument(
        "--train-rate", type=float, help="warm training samples/s; left out: nothing is added up"
    )
    parser.add_argument("--score-rate", type=float, help="warm rows scored per second")
    parser.add_argument("--picture-rate", type=float, help="pictures per second through the tower")
    parser.add_argument("--load-s", type=float, default=20.0, help="process start to loaded model")
    parser.add_argument("--padded-train", type=float, help="samples/s of padded training")
    parser.add_argument("--padded-score", type=float, help="rows/s of padded scoring")
    parser.add_argument("--out", type=Path)
    parser.add_argument("extra", nargs="*", help="more overrides")
    a = parser.parse_args()
    wall, study = run_study(a)
    trials = read_trials(study)
    final = json.loads((study / "final" / "metrics.json").read_text())
    test_rows = len((study / "final" / "test_predictions.csv").read_text(encoding="utf-8").splitlines()) - 1
    measured = {"who": "vqa", "mode": "measured", "wall_s": round(wall, 1), "minutes": round(wall / 60, 1)}
    measured |= trials | {"search_s": round(sum(trials["trial_seconds"]), 1), "test_rows": test_rows}
    measured |= {"final_samples_s": final["train_samples_per_s"], "final_n": final["n_train"]}
    rows = [measured | {"epochs": a.epochs}]
    if a.train_rate:
        rows.append(added_up(a, trials))
    if a.padded_train and a.padded_score:
        passes = SUBSAMPLE * (FOLDS - 1) / FOLDS
        valid = SUBSAMPLE / FOLDS * EVALUATIONS
        trial = a.load_s + FOLDS * (passes / a.padded_train + valid / a.padded_score)
        last = FINAL_ROWS * EPOCHS / a.padded_train
        last += (HELD_OUT * EPOCHS + TEST_ROWS) / a.padded_score
        rows.append(
            {
                "who": "stock",
                "mode": "the same, computed: no pruning, a load per trial, padded batches",
                "search_s": round(TRIALS * trial),
                "final_s": round(last),
                "minutes": round((TRIALS * trial + a.load_s + last) / 60, 1),
            }
        )
    for row in rows:
        print(row, flush=True)
    write_rows(a.out, "sweep", [row | {"model": a.model, "base": a.quantization} for row in rows])


if __name__ == "__main__":
    main()
