"""How fast pictures are read, in threads, and what that leaves of the interpreter's lock to everything else.

Pictures of 512 x 512 as JPEG files, from the file to the bytes that the vision tower gets. transformers' own
image processor does the same work beside it. On a CPU.

    python -m benchmarks.speed.pictures --out FILE
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.full_size import make_contest
from benchmarks.harness.record import add_output_arguments, write_rows
from vqa.data.image import UNLIMITED_TOKENS, fit_image, load_image
from vqa.model.vision.tower import resized

PICTURES, SIDE, ROUNDS, SPIN_S = 48, 512, 4, 8.0
Read = Callable[[Path], Any]


def count(seconds: float) -> int:
    """What a thread of plain Python gets done in that time."""
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        done += 1
    return done


def beside(read: Read, paths: list[Path]) -> tuple[float, float]:
    """Share of its speed that a busy Python thread keeps while eight threads read; pictures/s they read."""
    alone = count(SPIN_S)
    stop, done = threading.Event(), [0]

    def work() -> None:
        with ThreadPoolExecutor(8) as pool:
            while not stop.is_set():
                list(pool.map(read, paths[:16]))
                done[0] += 16

    thread = threading.Thread(target=work)
    thread.start()
    began = time.perf_counter()
    kept = count(SPIN_S) / alone
    rate = done[0] / (time.perf_counter() - began)
    stop.set()
    thread.join()
    return kept, rate


def measure(who: str, read: Read, paths: list[Path]) -> dict[str, Any]:
    """The best of several rounds."""
    row: dict[str, Any] = {"who": who, "n": len(paths)}
    for threads in (1, 2, 8):
        best = float("inf")
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(ROUNDS):
                began = time.perf_counter()
                list(pool.map(read, paths))
                best = min(best, time.perf_counter() - began)
        row[f"ms, {threads} threads"] = round(1000 * best / len(paths), 2)
    kept, rate = beside(read, paths)
    return row | {"busy_thread_keeps": round(kept, 2), "meanwhile_pictures_s": round(rate, 1)}


def main() -> None:
    """Parse the command line, measure, write the rows."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    parser = argparse.ArgumentParser(description=__doc__)
    add_output_arguments(parser)
    arguments = parser.parse_args()
    processor = Qwen2VLImageProcessorPil(patch_size=16)

    def ours(path: Path) -> torch.Tensor:
        return resized(fit_image(load_image(path), "pad", SIDE), processor, 4, None)

    def own(path: Path) -> torch.Tensor:
        size = {"shortest_edge": 4 * 32**2, "longest_edge": UNLIMITED_TOKENS * 32**2}
        out = processor(
            images=[fit_image(load_image(path), "pad", SIDE)],
            size=size,
            do_rescale=False,
            do_normalize=False,
            return_tensors="pt",
        )
        patches: torch.Tensor = out["pixel_values"].to(torch.uint8)
        return patches

    with tempfile.TemporaryDirectory() as folder:
        make_contest(Path(folder), PICTURES, 0)
        paths = sorted(Path(folder, "train").glob("*.jpg"))
        rows = [measure(who, read, paths) for who, read in (("vqa", ours), ("transformers", own))]
    for row in rows:
        print(row, flush=True)
    write_rows(arguments.out, "pictures", rows, arguments.machine)


if __name__ == "__main__":
    main()
