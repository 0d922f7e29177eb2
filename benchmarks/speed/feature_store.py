"""Does it pay to store vision features on disk? Files of full size, read from page cache and disk.

python -m benchmarks.speed.feature_store --work FOLDER --out FILE
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.record import add_output_arguments, write_rows
from vqa.model.vision.disk import FeatureStore

SHAPE, TAPS = (256, 4096), 3  # Qwen3-VL-8B, a picture of 512 x 512


def forget(store: FeatureStore) -> None:
    """Have the files read from the disk next time."""
    os.sync()
    for path in store.folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, pictures: int) -> list[dict[str, Any]]:
    """Pictures per second of writing, and of reading one after the other or in eight threads."""
    store = FeatureStore(folder, limit_gib=pictures / 64)
    keys = [str(number) for number in range(pictures)]
    made = {name: torch.randn(SHAPE).bfloat16() for name in ("pooled", *map(str, range(TAPS)))}
    rows: list[dict[str, Any]] = []

    def timed(what: str, work: Callable[[str], object], threads: int) -> None:
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            done = list(pool.map(work, keys))
        rows.append({"what": what, "threads": threads, "n": len(done)})
        rows[-1]["pictures_s"] = round(len(done) / (time.perf_counter() - began), 1)
        print(json.dumps(rows[-1]), flush=True)

    timed("write", lambda key: store.write(key, made, {}), 1)
    timed("read, page cache", store.read, 1)
    for threads in (1, 8):
        forget(store)
        timed("read, disk", store.read, threads)
    rows.append({"what": "MiB per picture", "value": store.nbytes / pictures / 2**20})
    return rows


def main() -> None:
    """Parse the command line, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="folder on the disk in question; default: a temporary one")
    parser.add_argument("--pictures", type=int, default=120)
    add_output_arguments(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        rows = measure(Path(folder), given.pictures)
    write_rows(given.out, "feature_store", rows, given.machine, append=False)


if __name__ == "__main__":
    main()
