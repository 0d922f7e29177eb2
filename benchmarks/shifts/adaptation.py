"""What test-time methods gain on shifted pictures and cost on clean ones, on two datasets and several seeds.

`train` makes one adapter per dataset and seed through the product's final run. `run` answers every cell
(dataset x shift x method x seed) in parallel processes, keeps each in WORK/cells.jsonl, and goes on from
there when it is called again. `table` prints what is on file.

    python -m benchmarks.shifts.adaptation train --work WORK --seeds 3 --processes 6
    python -m benchmarks.shifts.adaptation run --work WORK --seeds 3 --processes 16 --out FILE
    python -m benchmarks.shifts.adaptation table FILE
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.cells import Cell, Result, finished, run_cells
from benchmarks.harness.process import composed, measured, one_thread
from benchmarks.harness.record import write_rows
from benchmarks.shifts.rows import SHIFTS, TUNING, rows, shifted, write_training_csv
from benchmarks.shifts.table import compared, markdown

# The product's own values, which were chosen on tuning rows (`--datasets tuning`, brightness, seed 0).
# frozen first, as all are compared with it; then dear ones: the last cells of a run are short, so that no
# process works long after the others
METHODS: dict[str, tuple[str, ...]] = {
    "frozen": (),
    "tpt": ("adapt=tpt",),
    "prompt_align": ("adapt=prompt_align",),
    "consistency": ("adapt=consistency",),
    "prompt_tuning_online": ("adapt=prompt_tuning_online",),
    "sar": ("adapt=sar",),
    "lora_align": ("adapt=lora_align",),
    "views": ("adapt=views",),
    "zero": ("adapt=zero",),
    "repair": ("adapt=repair",),
    "tent_lora": ("adapt=tent",),
    "tent_norm": ("adapt=tent", "adapt.parameters=norm"),
    "cyclic": ("inference=cyclic",),
    "batch_calibration": ("inference=batch_calibration",),
}


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
    overrides = [
        "stage=final",
        "winner=none",
        *training(dataset, seed, work),
        *more,
        f"hydra.run.dir={folder}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "vqa.run", *overrides], env=one_thread(), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(overrides)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    scores = json.loads((folder / "metrics.json").read_text())
    print(f"{dataset} seed {seed}: {scores['accuracy']:.3f}, {time.monotonic() - began:.0f} s", flush=True)


def evaluate(work: Path, cell: Cell) -> Result:
    """Answer the questions of one cell; labels are looked at only afterwards."""
    from vqa.answer.readout import answer
    from vqa.data.source import source_questions, split_questions
    from vqa.model.adapter import loaded
    from vqa.model.base import load_base
    from vqa.model.encode import Encoder
    from vqa.results.metrics import nll

    tuning = cell["dataset"] == TUNING
    dataset = "emoji_quiz" if tuning else cell["dataset"]
    settings = composed([*training(dataset, cell["seed"], work), *cell["overrides"]])
    if tuning:
        split, _ = split_questions(settings)
        questions = shifted(split.valid[: cell["rows"]], cell["shift"], work)
    else:
        questions = rows(dataset, cell["shift"], cell["rows"], work)
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    adapter = adapter_folder(dataset, cell["seed"], work) / "adapter"
    facts: dict[str, Any] = {}
    with loaded(encoder.base, adapter):
        encoder.look(questions)  # pictures are read before the clock starts, for every method alike
        with measured() as cost:
            found = answer(encoder, questions, settings, facts, source_questions(settings))
    return {
        "values": values(settings.adapt),
        # a seed's own held-out part has questions of its own: these are paired by their place
        "ids": [str(place) if tuning else p.id for place, p in enumerate(found)],
        "right": "".join(str(int(p.answer == p.gold)) for p in found),
        "nll": nll(found)[0],
        # an adapted answer comes with the frozen one for comparison, which the method's own clock leaves out
        "seconds_per_row": facts["adapt"]["seconds_per_row"]
        if "adapt" in facts
        else cost.seconds / len(found),
        "memory_mib": cost.memory_mib,
        "facts": facts,
    }


def values(adapt: Any) -> str:
    """The values that a method ran with, those that it reads; "" for none."""
    if adapt.method == "none":
        return ""
    learns = adapt.method not in ("views", "zero", "repair")
    named = {"rate": f"{adapt.rate:g}", "optimizer": adapt.optimizer, "steps": adapt.steps} if learns else {}
    named |= {"views": adapt.views} if adapt.views > 1 else {}
    if adapt.method in ("zero", "tpt", "prompt_tuning_online", "prompt_align"):
        named["keep_share"] = adapt.keep_share
    named |= {"batch_size": adapt.batch_size}
    if adapt.method == "sar":
        named |= {"entropy_limit": adapt.entropy_limit, "reset_below": adapt.reset_below, "rho": adapt.rho}
    if adapt.method in ("consistency", "lora_align", "prompt_align"):
        named["weight"] = adapt.weight
    return " ".join(f"{name}={value}" for name, value in named.items())


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """Every cell that the command line asks for, the dear methods first."""
    named = METHODS | {name: tuple(text.split()) for name, text in map(_variant, arguments.variants)}
    wanted = arguments.methods or list(METHODS)
    unknown = [name for name in wanted if name not in named]
    if unknown:
        raise SystemExit(f"--methods must be among {', '.join(named)}, got {', '.join(unknown)}")
    chosen = [name for name in named if name in wanted or name not in METHODS]
    return [
        {
            "method": method,
            "dataset": dataset,
            "shift": shift,
            "seed": seed,
            "rows": arguments.rows,
            "overrides": list(named[method]),
        }
        for method in chosen
        for dataset in arguments.datasets
        for shift in SHIFTS[dataset]
        if not arguments.shifts or shift in arguments.shifts
        for seed in range(arguments.seeds)
    ]


def _variant(text: str) -> tuple[str, str]:
    name, _, overrides = text.partition(":")
    return name, overrides


def run_train(arguments: argparse.Namespace) -> None:
    """Make the adapters of all datasets and seeds."""
    work = arguments.work.absolute()
    write_training_csv(work)
    jobs = [(dataset, seed) for seed in range(arguments.seeds) for dataset in ("emoji_quiz", "easy_vqa")]
    with ThreadPoolExecutor(arguments.processes) as pool:
        for future in [pool.submit(train, *job, work, arguments.override) for job in jobs]:
            future.result()


def run_cells_of(arguments: argparse.Namespace) -> None:
    """Answer what is missing, and write the table of what is there."""
    work = arguments.work.absolute()
    cells, path = cells_of(arguments), work / "cells.jsonl"
    for cell in cells:  # pictures are made once, before processes could make the same ones at once
        if cell["dataset"] != TUNING:
            rows(cell["dataset"], cell["shift"], cell["rows"], work)
    failures = run_cells(cells, partial(evaluate, work), path, arguments.processes, arguments.limit_s)
    asked = [result for result in finished(path) if any(cell.items() <= result.items() for cell in cells)]
    found = compared(asked)
    print(markdown(found))
    print(f"{len(asked)} of {len(cells)} cells")
    if arguments.out:
        write_rows(arguments.out, "shifts", found, arguments.machine, append=False)
    if failures:
        raise SystemExit(f"{len(failures)} cells failed; the same command tries them again")


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making, running = commands.add_parser("train"), commands.add_parser("run")
    for one in (making, running):
        one.add_argument("--work", type=Path, required=True)
        one.add_argument("--seeds", type=int, default=3)
        one.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    making.add_argument("--override", nargs="*", default=[], help="further overrides, e.g. budget.epochs=1")
    running.add_argument("--rows", type=int, default=300)
    running.add_argument("--limit-s", type=float, default=math.inf)
    running.add_argument("--datasets", nargs="+", default=["emoji_quiz", "easy_vqa"], choices=list(SHIFTS))
    running.add_argument("--shifts", nargs="+", default=[])
    running.add_argument("--methods", nargs="+", default=[])
    running.add_argument("--variants", nargs="+", default=[], help="NAME:OVERRIDES, beside --methods")
    running.add_argument("--machine", default="CPU")
    running.add_argument("--out", type=Path)
    printing = commands.add_parser("table")
    printing.add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "train":
        run_train(arguments)
    elif arguments.command == "run":
        run_cells_of(arguments)
    else:
        print(markdown(json.loads(arguments.file.read_text(encoding="utf-8"))["rows"]))


if __name__ == "__main__":
    main()
