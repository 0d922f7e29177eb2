"""What a second GPU brings: the final run in one and in two processes, and a study with one and two workers.

Random weights at full size. The final run's speeds are those of a warm process: a few steps come first. Of
the study, each worker's first trial, in which it loads, compiles and looks at the pictures, is left out.

    python -m benchmarks.harness.full_size --work FOLDER --tokenizer FOLDER --only-files \\
        --models qwen3_vl_8b:none
    python -m benchmarks.speed.two_gpus --work FOLDER --model qwen3_vl_8b --out FILE
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness.record import write_rows


def overrides(given: argparse.Namespace) -> list[str]:
    """The workload: 512 x 512 pictures, a few-shot prompt; `--model tiny` tries the benchmark on a CPU."""
    common = ["tracking=none", f"model={given.model}", f"env.output_root={given.work / 'two_gpus'}"]
    if given.model == "tiny":
        return [*common, "data.train_size=80", "data.test_size=12", "env.threads=1"]
    contest = given.work / "contest"
    return [
        *(*common, f"model.path={given.work / given.model}", "image=pad_512"),
        *(f"prompt={given.prompt}", "lora.r=32", "lora.lora_alpha=32", "data=csv"),
        *(f"data.train_csv={contest / 'train.csv'}", f"data.test_csv={contest / 'test.csv'}"),
        f"data.image_root={contest}",
    ]


def train_once(given: argparse.Namespace) -> None:
    """One process of the final run: warm up, then the run itself; the main one prints its figures."""
    from dataclasses import replace

    from hydra import compose, initialize_config_dir

    from benchmarks.speed.throughput import CONF, nothing
    from vqa.config.check import read_settings, register_resolvers
    from vqa.data.source import split_questions
    from vqa.machine import processes
    from vqa.machine.device import choose_device
    from vqa.model.adapter import attached
    from vqa.model.base import load_base
    from vqa.model.encode import Encoder
    from vqa.stages.final import run_final
    from vqa.train.fit import fit
    from vqa.train.plan import plan_fit

    register_resolvers()
    more = [f"budget.batch_size={given.batch}", f"budget.epochs={given.epochs}", f"seed={given.seed}"]
    with initialize_config_dir(str(CONF)):
        settings = read_settings(compose("config", overrides=[*overrides(given), *more, "budget=final"]))
    with processes.joined(lambda: choose_device(settings.env.device)):
        folder = given.work / "two_gpus" / f"final_{processes.count()}_{given.seed}_{time.time_ns()}"
        folder = Path(processes.agreed(lambda: str(folder)))
        encoder = Encoder(load_base(settings), settings.prompt, settings.image)
        rows = split_questions(settings)[0].train
        plan = replace(plan_fit(settings, len(rows)), epochs=1, evaluations=1)
        with attached(encoder.base, settings.lora, seed=0) as model:
            fit(encoder, model, rows[: 3 * given.batch], plan, nothing)
        encoder.base.vision.forget()  # the run looks at every picture itself
        if processes.is_main():
            folder.mkdir(parents=True)
        processes.agreed(lambda: None)
        began = time.perf_counter()
        metrics = run_final(settings, folder)
        seconds = time.perf_counter() - began
        if processes.is_main():
            kept = ("train_samples_per_s", "n_train", "nll", "nll_se", "base_nll", "peak_memory_gib")
            print("FINAL " + json.dumps({"seconds": seconds} | {name: metrics[name] for name in kept}))


def measure_final(given: argparse.Namespace, processes: int) -> dict[str, Any]:
    """The final run in so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    again = ["--part", "train", "--work", str(given.work), "--model", given.model, "--prompt", given.prompt]
    again += ["--batch", str(given.batch), "--epochs", str(given.epochs), "--seed", str(given.seed)]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        "-m",
        "benchmarks.speed.two_gpus",
        *again,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("FINAL ")] or [""]
    if done.returncode or not line:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}")
    about = {"what": "final run", "gpus": processes, "batch": given.batch, "prompt": given.prompt}
    figures: dict[str, Any] = json.loads(line.removeprefix("FINAL "))
    return about | figures


def measure_study(given: argparse.Namespace, workers: int) -> dict[str, Any]:
    """A study of short trials by so many workers; trials per hour once all are warm."""
    import optuna

    study = f"study_{workers}_{time.time_ns()}"
    command = [
        *(sys.executable, "-m", "vqa.run", "-m", "+sweep=lora", f"study={study}", *overrides(given)),
        *("hydra.sweeper.final=false", "hydra/sweeper/pruner=none", "hydra/sweeper/sampler=random"),
        *(f"hydra.sweeper.n_trials={given.trials}", f"hydra.sweeper.n_workers={workers}"),
        *("hydra.sweeper.enqueue=[]", "lora.r=32", "lora.lora_alpha=32", "budget.folds=2"),
        *(f"budget.subsample={given.subsample}", f"budget.batch_size={min(16, given.batch)}"),
    ]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    folder = given.work / "two_gpus" / study
    trials = optuna.load_study(study_name=study, storage=f"sqlite:///{folder / 'study.db'}").get_trials()
    rate, loads = 0.0, 0
    for spans in by_worker(trials, folder).values():
        loads += sum("loading " in (folder / f"trials/{n:03d}/run.log").read_text() for n, _, _ in spans)
        gaps = [after - before for (_, _, before), (_, _, after) in pairwise(spans)]
        rate += len(gaps) / sum(gaps) if gaps else 0.0
    return {
        "what": "study",
        "workers": workers,
        "trials": len(trials),
        "complete": sum(trial.state.name == "COMPLETE" for trial in trials),
        "wall_s": round(wall, 1),
        "model_loads": loads,
        "warm_trials_per_hour": round(3600 * rate, 1),
    }


def by_worker(trials: list[Any], folder: Path) -> dict[int, list[tuple[int, float, float]]]:
    """Number, start and end of each worker's trials, in order.

    A worker begins a trial the moment its last one ended, so each trial belongs to the worker that has been
    free for the shortest time. The logs say who loaded the model, that is, whose first trial it was.
    """
    found: dict[int, list[tuple[int, float, float]]] = {}
    for trial in sorted(trials, key=lambda trial: trial.datetime_start):
        span = (trial.number, trial.datetime_start.timestamp(), trial.datetime_complete.timestamp())
        log = (folder / f"trials/{trial.number:03d}/run.log").read_text()
        free = {worker: spans[-1][2] for worker, spans in found.items() if spans[-1][2] <= span[1]}
        if re.search(r"vqa\.model: loading ", log) or not free:
            found[len(found)] = [span]
        else:
            found[max(free, key=lambda worker: free[worker])].append(span)
    return found


def main() -> None:
    """Parse the command line, measure, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that harness.full_size filled")
    parser.add_argument("--model", default="qwen3_vl_8b")
    parser.add_argument("--prompt", default="fewshot_ko")
    parser.add_argument("--part", choices=("both", "final", "study", "train"), default="both")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--subsample", type=int, default=120)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.work = given.work.absolute()
    os.environ.setdefault("OMP_NUM_THREADS", "4")
    if given.part == "train":
        train_once(given)
        return
    rows: list[dict[str, Any]] = []
    for part, measure, rate in (
        ("final", measure_final, "train_samples_per_s"),
        ("study", measure_study, "warm_trials_per_hour"),
    ):
        if given.part in ("both", part):
            one, two = measure(given, 1), measure(given, 2)
            two["speed_up"] = round(two[rate] / one[rate], 2)
            if part == "final":
                two["speed_up_whole_run"] = round(one["seconds"] / two["seconds"], 2)
            rows += [one, two]
            print(*map(json.dumps, (one, two)), sep="\n", flush=True)
    write_rows(given.out, "two_gpus", [row | {"model": given.model} for row in rows])


if __name__ == "__main__":
    main()
