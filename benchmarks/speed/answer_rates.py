"""What every way to answer costs at full size: rows per second and memory, with random weights.

From image files, with a fresh adapter on, through the product's own `answer()`; each way first answers rows
of the same shapes to warm up. Four separate forwards stand beside the cyclic orders, which share prefix and
picture. A way is what one would type on the command line; SAR learns from every question here, as random
weights are never sure.

    python -m benchmarks.speed.answer_rates --work FOLDER --model qwen3_vl_8b --memory-gib 40 --out FILE
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.record import write_rows
from benchmarks.speed.throughput import peak_gib, settings_for
from vqa.answer.debias import cyclic
from vqa.answer.readout import answer
from vqa.answer.score import option_scores
from vqa.data.source import data_source
from vqa.machine.device import release_memory
from vqa.model.adapter import attached
from vqa.model.base import load_base
from vqa.model.encode import Encoder
from vqa.question import Question

WAYS = (
    "inference=letters",
    "inference=cyclic",
    "adapt=tent",
    "adapt=tent adapt.parameters=norm",
    "adapt=sar adapt.entropy_limit=1",
    "adapt=tpt",
    "adapt=zero",
    "adapt=views",
    "adapt=repair",
    "adapt=consistency",
    "adapt=lora_align",
    "adapt=prompt_align",
    "adapt=prompt_tuning_online",
)
SEPARATE = "four orders, one after the other"


def timed(what: str, work: Callable[[], Any], rows: int) -> dict[str, Any]:
    """Rows per second and peak memory of one way, or why it did not run."""
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        work()
    except torch.OutOfMemoryError as error:
        return {"mode": what, "out_of_memory": str(error).splitlines()[0]}
    finally:
        release_memory()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {"mode": what, "n": rows, "samples_s": round(rows / seconds, 2), "peak_gib": peak_gib()}


def measured(way: str, arguments: argparse.Namespace, rows: list[Question]) -> dict[str, Any]:
    """One way, warm."""
    overrides = [] if way == SEPARATE else way.split()
    memory = f"budget.max_memory_gib={arguments.memory_gib}"
    settings = settings_for(arguments.model, "none", arguments.work, memory, *overrides)
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    encoder.look(rows)
    with attached(encoder.base, settings.lora, seed=0) as model:
        model.eval()

        def work(part: list[Question]) -> dict[str, Any]:
            facts: dict[str, Any] = {}
            if way == SEPARATE:
                for order in cyclic(4):
                    option_scores(encoder, part, 64, [order])
            else:
                answer(encoder, part, settings, facts, rows)
            return facts

        learns = way.startswith("adapt")
        first = rows[: settings.adapt.batch_size] if learns else rows
        work(first)  # warm: the shapes that follow are compiled
        facts: dict[str, Any] = {}
        chosen = rows[: arguments.batches * len(first)] if learns else rows
        row = timed(way, lambda: facts.update(work(chosen)), len(chosen))
    cost: dict[str, Any] = facts.get("adapt", {})
    return row | cost


def main() -> None:
    """Parse the command line, time every way, write one row each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that harness.full_size filled")
    parser.add_argument("--model", default="qwen3_vl_8b")
    parser.add_argument("--memory-gib", type=float, default=40)
    parser.add_argument("--rows", type=int, default=128, help="rows of the ways that only read")
    parser.add_argument("--batches", type=int, default=4, help="batches of the ways that adapt")
    parser.add_argument("--ways", nargs="*", default=[*WAYS, SEPARATE])
    parser.add_argument("--limit-s", type=float, default=1e9, help="start no further way after so long")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    settings = settings_for(arguments.model, "none", arguments.work)
    # unlabelled: `answer` would compare with the frozen model otherwise
    rows = [replace(q, answer=None) for q in data_source(settings).train()[: arguments.rows]]
    began = time.perf_counter()
    about = {"who": "vqa", "model": arguments.model, "base": "none", "limit_gib": arguments.memory_gib}
    found: list[dict[str, Any]] = []
    for way in arguments.ways:
        if time.perf_counter() - began > arguments.limit_s:
            print(f"no time left for {way}", flush=True)
            continue
        found.append(about | measured(way, arguments, rows))
        print(found[-1], flush=True)
        if arguments.out:  # after each: a run that is cut off keeps what it has
            write_rows(arguments.out, "answer_rates", found, append=False)


if __name__ == "__main__":
    main()
