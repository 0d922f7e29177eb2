"""Questions per second of training and scoring at full size, through the product's own fit() and score().

From image files: reading, vision tower, tokens, batches, optimiser. Speeds are those of a warm process
(kernels compiled, features known); what the first look at a picture costs stands in a row of its own. A case
is batch:GiB, the GPU memory the process may use.

    python -m benchmarks.harness.full_size --work FOLDER --tokenizer FOLDER --only-files
    python -m benchmarks.speed.throughput --work FOLDER --cases 16:76 32:76 16:24 --out FILE
"""

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from benchmarks.harness.record import write_rows
from vqa.answer.score import score
from vqa.config.check import read_settings, register_resolvers
from vqa.config.settings import Settings
from vqa.data.source import data_source
from vqa.machine.device import cards_for, limit_memory, release_memory
from vqa.model.adapter import attached
from vqa.model.base import load_base
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.train.fit import Evaluation, fit
from vqa.train.plan import Plan, plan_fit

CONF = Path(__file__).parents[2] / "conf"


def settings_for(model: str, quantization: str, work: Path, *more: str) -> Settings:
    """The configuration of the workload: fewshot_ko (about 880 prefix tokens), 512 x 512, r 32."""
    register_resolvers()
    contest = work / "contest"
    overrides = [
        *("tracking=none", f"model={model}", f"model.path={work / model}", f"quantization={quantization}"),
        *("prompt=fewshot_ko", "image=pad_512", "lora.r=32", "lora.lora_alpha=32"),
        *("data=csv", f"data.train_csv={contest / 'train.csv'}", f"data.image_root={contest}", *more),
    ]
    with initialize_config_dir(str(CONF)):
        return read_settings(compose("config", overrides=overrides))


def embedded_settings() -> Settings:
    """The embedded model on easy-VQA, in bfloat16."""
    register_resolvers()
    with initialize_config_dir(str(CONF)):
        return read_settings(compose("config", overrides=["tracking=none", "precision=bfloat16"]))


@contextmanager
def busy_share() -> Iterator[list[float]]:
    """Share of the time in which the GPU had a kernel running, by its own counter, read every 250 ms."""
    seen: list[float] = []
    done = threading.Event()

    def read() -> None:
        while not done.wait(0.25):
            seen.append(torch.cuda.utilization() / 100)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def nothing(evaluation: Evaluation) -> None:
    """No evaluation."""


def peak_gib() -> float:
    """Most memory tensors took since the last reset, GiB; on the fullest of several GPUs."""
    cards = range(torch.cuda.device_count())
    return round(max(torch.cuda.max_memory_allocated(card) for card in cards) / 2**30, 1)


def train_row(encoder: Encoder, settings: Settings, plan: Plan, case: str, rows: list[Question]) -> Any:
    """Train on the rows twice, the first time to warm up; the figures of the second time."""
    batch, gib = (int(part) for part in case.split(":"))
    limit_memory(gib, encoder.base.device, cards_for(settings.env.device_map, encoder.base.device))
    plan = replace(plan, epochs=1, batch_size=batch, micro_batch_size=batch, evaluations=1)
    with attached(encoder.base, settings.lora, seed=0) as model:
        began = time.perf_counter()
        fit(encoder, model, rows[: 3 * batch], plan, nothing)
        warm_up = time.perf_counter() - began
        torch.cuda.reset_peak_memory_stats()
        with busy_share() as busy:
            record = fit(encoder, model, rows, plan, nothing)
    release_memory()
    return {
        "mode": "train",
        "batch": batch,
        "limit_gib": gib,
        "samples_s": round(record.train_samples_per_s, 2),
        "peak_gib": peak_gib(),
        "micro_batch": record.micro_batch_size,
        "recompute": record.recompute,
        "gpu_busy": round(sum(busy) / max(1, len(busy)), 3),
        "n": len(rows),
        "warm_up_s": round(warm_up, 1),
    }


def score_row(encoder: Encoder, settings: Settings, rows: list[Question], gib: int, new: bool) -> Any:
    """Score the rows twice with an adapter on; the figures of the second time. `new`: all unknown."""
    limit_memory(gib, encoder.base.device, cards_for(settings.env.device_map, encoder.base.device))
    with attached(encoder.base, settings.lora, seed=0) as model:
        model.eval()
        for _ in range(2):
            if new:
                encoder.base.vision.forget()
            torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            with busy_share() as busy:
                score(encoder, rows, 64)
            seconds = time.perf_counter() - began
    release_memory()
    return {
        "mode": "score, pictures new" if new else "score",
        "batch": 64,
        "limit_gib": gib,
        "samples_s": round(len(rows) / seconds, 1),
        "peak_gib": peak_gib(),
        "gpu_busy": round(sum(busy) / max(1, len(busy)), 3),
        "n": len(rows),
    }


KERNELS = {  # parts of kernel names; the first that fits counts: attention's have "cutlass" in them too
    "attention": ("flash", "fmha"),
    "matrix products": ("nvjet", "gemm", "cutlass", "cublas", "splitK"),
    "elementwise": ("triton_", "elementwise", "vectorized", "reduce_kernel"),
    "copies": ("Memcpy", "Memset", "CatArray", "copy_kernel"),
}


def profile_row(encoder: Encoder, settings: Settings, plan: Plan, rows: list[Question]) -> Any:
    """Where the GPU's time of a warm step goes, ms per step of 16."""
    from torch.profiler import ProfilerActivity, profile

    batch, steps = 16, 4
    limit_memory(None, encoder.base.device)
    plan = replace(plan, epochs=1, batch_size=batch, micro_batch_size=batch, evaluations=1)
    with attached(encoder.base, settings.lora, seed=0) as model:
        fit(encoder, model, rows[: 3 * batch], plan, nothing)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            fit(encoder, model, rows[: steps * batch], plan, nothing)
    parts = dict.fromkeys([*KERNELS, "other"], 0.0)
    for event in seen.key_averages():
        names = (part for part, marks in KERNELS.items() if any(mark in event.key for mark in marks))
        parts[next(names, "other")] += event.self_device_time_total / 1000 / steps
    return {"mode": "profile", "batch": batch, **{f"{name}, ms": round(ms, 1) for name, ms in parts.items()}}


def main() -> None:
    """Parse the command line, measure, write one row per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that harness.full_size filled")
    parser.add_argument("--model", default="qwen3_vl_8b")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--cases", nargs="*", default=["16:76"], help="batch:GiB of training runs")
    parser.add_argument("--score-gib", type=int, help="memory for scoring; left out: no scoring")
    parser.add_argument("--profile", action="store_true", help="add a row on where a step's time goes")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    settings = settings_for(arguments.model, arguments.quantization, arguments.work)
    rows = data_source(settings).train()
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    began = time.perf_counter()
    encoder.look(rows)
    first_look = {"mode": "pictures", "samples_s": round(len(rows) / (time.perf_counter() - began), 1)}
    found = [first_look | {"n": len(rows), "peak_gib": peak_gib()}]
    plan = plan_fit(settings, len(rows))
    for case in arguments.cases:
        try:
            found.append(train_row(encoder, settings, plan, case, rows[: arguments.rows]))
        except torch.OutOfMemoryError as error:
            found.append({"mode": "train", "batch": case, "out_of_memory": str(error).splitlines()[0]})
            release_memory()
        print(found[-1], flush=True)
    if arguments.profile:
        found.append(profile_row(encoder, settings, plan, rows))
    if arguments.score_gib:
        found += [score_row(encoder, settings, rows, arguments.score_gib, new) for new in (True, False)]
    about = {"who": "vqa", "model": arguments.model, "base": arguments.quantization}
    write_rows(arguments.out, "throughput", [about | row for row in found])
    print(found[0], found[-1], flush=True)


if __name__ == "__main__":
    main()
