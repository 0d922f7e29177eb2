"""What test-time methods gain on shifted pictures and cost on clean ones: emoji quiz and easy-VQA, several seeds.

`train` makes one adapter per dataset and seed through the product's final run. `run` answers every cell
(dataset x shift x method x seed) in parallel processes, keeps each in WORK/cells.jsonl, and goes on from
there when it is called again. `table` prints what is on file.

    python -m benchmarks.shifts train --work WORK --seeds 3 --processes 6
    python -m benchmarks.shifts run --work WORK --seeds 3 --processes 16 --out FILE
    python -m benchmarks.shifts table FILE
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.cells import Cell, Result, finished, run_cells
from benchmarks.process import composed, measured, one_thread
from benchmarks.record import write_rows
from benchmarks.shift_rows import CLEAN, SHIFTS, rows, shifted, write_training_csv
from benchmarks.shift_table import compared, markdown

# dear ones first: the last cells of a run are short ones, so that no process works long after the others
METHODS: dict[str, tuple[str, ...]] = {
    "tpt": ("adapt=tpt",),
    "prompt_align": ("adapt=prompt_align",),
    "consistency": ("adapt=consistency",),
    "prompt_tuning_online": ("adapt=prompt_tuning_online",),
    "sar": ("adapt=sar",),
    "lora_align": ("adapt=lora_align",),
    "views": ("adapt=views",),
    "zero": ("adapt=zero",),
    "tent_lora": ("adapt=tent",),
    "tent_norm": ("adapt=tent", "adapt.parameters=norm"),
    "cyclic": ("inference=cyclic",),
    "batch_calibration": ("inference=batch_calibration",),
    "frozen": (),
}
TUNING = "tuning"  # questions that no table reports: a seed's own held-out part, for choosing a method's values


def training(dataset: str, seed: int, work: Path) -> list[str]:
    """The overrides of an adapter's run."""
    common = [f"seed={seed}", "tracking=none", "env.threads=1", "env.device=cpu", f"env.output_root={work}"]
    if dataset == "easy_vqa":
        return [*common, "data=easy_vqa", "data.test_size=1"]
    files = [f"data.train_csv={work / 'train.csv'}", f"data.image_root={work / 'pictures'}"]
    return [*common, "data=csv", *files, "prompt=direct_ko"]


def adapter_folder(dataset: str, seed: int, work: Path) -> Path:
    """The folder of an adapter's run."""
    return work / "adapters" / f"{dataset}-{seed}"


def train(dataset: str, seed: int, work: Path, more: Sequence[str]) -> None:
    """Make one adapter, unless it is there."""
    folder = adapter_folder(dataset, seed, work)
    if (folder / "manifest.json").exists():
        return
    began = time.monotonic()
    overrides = ["stage=final", "winner=none", *training(dataset, seed, work), *more, f"hydra.run.dir={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "vqa.run", *overrides], env=one_thread(), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(overrides)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    scores = json.loads((folder / "metrics.json").read_text())
    print(f"{dataset} seed {seed}: {scores['accuracy']:.3f}, {time.monotonic() - began:.0f} s", flush=True)


def evaluate(work: Path, cell: Cell) -> Result:
    """Answer the questions of one cell; labels are looked at only afterwards."""
    from vqa.adapter import loaded
    from vqa.encode import Encoder
    from vqa.model import load_base
    from vqa.questions import split_questions
    from vqa.scoring import answer

    tuning = cell["dataset"] == TUNING
    dataset = "emoji_quiz" if tuning else cell["dataset"]
    settings = composed([*training(dataset, cell["seed"], work), *cell["overrides"]])
    split, _ = split_questions(settings)
    if tuning:
        questions = shifted(split.valid[: cell["rows"]], cell["shift"], work)
    else:
        questions = rows(dataset, cell["shift"], cell["rows"], work)
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    with loaded(encoder.base, adapter_folder(dataset, cell["seed"], work) / "adapter") as model, measured() as cost:
        found = answer(encoder, model, questions, settings.budget.eval_batch_size, settings.inference)
    return {
        "ids": [p.id for p in found],
        "right": "".join(str(int(p.answer == p.gold)) for p in found),
        "nll": [round(-_log_p(p.p, p.gold), 5) for p in found],
        "seconds_per_row": cost.seconds / len(found),
        "memory_mib": cost.memory_mib,
    }
