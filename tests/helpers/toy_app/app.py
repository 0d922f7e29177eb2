"""A trial whose score is a formula: the same files, reports and resuming as a real one, no training.

Run it as `python tests/helpers/toy_app/app.py -m +sweep=toy` in an empty folder.
"""

import csv
import errno
import io
import json
import logging
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.progress import progress, report, report_questions
from vqa.results.work import at_work

QUESTIONS_PER_FOLD = 6
log = logging.getLogger(__name__)


def question_nll(cfg: DictConfig, question: int) -> float:
    """NLL of one question: best at lr 1e-3 and a high r; the noise depends on nothing but the arguments."""
    distance = math.log10(float(cfg.lr) / 1e-3)
    again = f" {cfg.train_seed}" if cfg.train_seed else ""
    noise = random.Random(f"{cfg.lr} {cfg.lora.r} {question}{again}").random()
    return 0.3 + 0.2 * distance**2 + 1.0 / float(cfg.lora.r) + 0.1 * noise + (0.05 if cfg.image.size else 0.0)


def write_fold(folder: Path, fold: int, nll: list[float]) -> None:
    """Append a finished fold to the two files, questions first, as a real trial does."""
    fields = ["id", "answer", "p_a", "p_b", "p_c", "p_d", "margin", "option_mass", "gold", "fold"]
    rows: list[list[object]] = []
    for index, value in enumerate(nll):
        p = math.exp(-value)
        rest = (1 - p) / 3
        answer = "a" if p > rest else "b"
        rows.append([f"q{fold}_{index}", answer, p, rest, rest, rest, p - rest, 1.0, "a", fold])
    extend(folder / "oof_predictions.csv", fields, rows, fold)
    header = ["fold", "n_train", "n_valid", "nll", "accuracy", "seconds"]
    extend(folder / "folds.csv", header, [[fold, 12, len(nll), sum(nll) / len(nll), 1.0, 1.5]], fold)


def extend(path: Path, header: list[str], rows: list[list[object]], fold: int) -> None:
    """Add a fold in one step, as the real trial does: a kill leaves no half file and no row twice."""
    kept: list[list[str]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [list(row.values()) for row in csv.DictReader(file) if row["fold"] != str(fold)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *kept, *rows])
    replace_text(path, text.getvalue())


def finished_folds(folder: Path) -> int:
    """How many folds an earlier, cut-off run of the trial left."""
    if not (folder / "folds.csv").exists():
        return 0
    with (folder / "folds.csv").open(newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def run_trial(cfg: DictConfig, folder: Path) -> float:
    """Score the folds that are missing; returns the mean NLL over all questions."""
    everything: list[float] = []
    (folder / "adapter_size.json").write_text(json.dumps({"parameters": 1000 * cfg.lora.r}))
    pause_s = cfg.pauses_s[HydraConfig.get().job.num] if cfg.pauses_s else cfg.pause_s
    for fold in range(cfg.budget.folds):
        first = fold * QUESTIONS_PER_FOLD
        nll = [question_nll(cfg, first + index) for index in range(QUESTIONS_PER_FOLD)]
        last = fold == cfg.budget.folds - 1
        if fold >= finished_folds(folder):
            for part in range(cfg.budget.parts):
                time.sleep(pause_s)
                progress(f"fold {fold + 1} of {cfg.budget.folds}", part + 1, cfg.budget.parts)
                if part < cfg.budget.parts - 1:
                    report(sum(nll) / len(nll), fold * cfg.budget.parts + part + 1)
            write_fold(folder, fold, nll)
        if not last:
            report(sum(nll) / len(nll), (fold + 1) * cfg.budget.parts)
            report_questions({first + index: value for index, value in enumerate(nll)})
        everything += nll
    return sum(everything) / len(everything)


def run_stage(cfg: DictConfig) -> float:
    """Be a trial or a final run."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    starts = folder.parent / "starts.txt"  # one line a start, to see what ran how often
    with starts.open("a") as file:
        file.write(f"{folder.name}\n")
    log.info(f"lr {cfg.lr}, r {cfg.lora.r}")
    if cfg.fails == "user":
        raise UserError("train.csv, row 7: unknown answer 'x'. Mend the row.")
    if cfg.fails == "poison" and cfg.lora.r == 8:
        raise UserError("lora.r=8 contradicts another setting. Take another r.")
    if cfg.fails == "always" or (cfg.fails == "once" and folder.name == "001"):
        raise RuntimeError("the job broke")
    if cfg.fails == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "folds.csv")
    if cfg.fails == "dies":
        os._exit(9)
    if cfg.fails == "undefined":
        return math.nan
    if cfg.stage == "trial":
        with at_work(folder):  # as a real one
            return run_trial(cfg, folder)
    metrics = {"lr": cfg.lr, "r": cfg.lora.r, "tuned_at": cfg.budget.tuned_at}
    metrics |= {"note": cfg.note} if cfg.note else {}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "manifest.json").write_text("{}")
    return 0.0


class Events(Callback):
    """Writes down which of Hydra's events happened, one a line."""

    def _note(self, event: str) -> None:
        with Path("events.txt").open("a") as file:
            file.write(f"{event}\n")

    def on_multirun_start(self, config: DictConfig, **more: Any) -> None:
        self._note("multirun starts")

    def on_multirun_end(self, config: DictConfig, **more: Any) -> None:
        self._note("multirun ends")

    def on_job_start(self, config: DictConfig, **more: Any) -> None:
        self._note("job starts")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **more: Any) -> None:
        self._note(f"job ends: {job_return.status.name}")


@hydra.main(config_path=str(Path(__file__).parent / "conf"), config_name="config")
def main(cfg: DictConfig) -> float:
    return run_stage(cfg)


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would print a UserError as a crash
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
