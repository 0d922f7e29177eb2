"""Cells of a table, evaluated in parallel processes; a finished one is a line of a file, never run again."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

Cell = dict[str, Any]  # what is asked: plain values
Result = dict[str, Any]  # what was found: plain values, beside the cell's own


def finished(path: Path) -> list[Result]:
    """The results on file; a last line that was cut off does not count."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def missing(cells: Sequence[Cell], results: Sequence[Result]) -> list[Cell]:
    """The cells that no result answers, in their order."""
    return [cell for cell in cells if not any(cell.items() <= result.items() for result in results)]


def run_cells(
    cells: Sequence[Cell],
    evaluate: Callable[[Cell], Result],
    path: Path,
    processes: int,
    limit_s: float,
) -> list[str]:
    """Evaluate what is missing, first things first; dear cells belong to the front.

    Args:
        cells: All cells of the table.
        evaluate: A function of a module; runs in a process of its own, with one thread.
        path: The file of results; each is appended when it is there.
        processes: Cells at a time.
        limit_s: Seconds after which no further cell starts.

    Returns:
        What went wrong: one text per cell that failed.
    """
    _mend(path)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    began = time.monotonic()
    todo = missing(cells, finished(path))
    running: dict[Future[Result], Cell] = {}
    failures: list[str] = []
    done, total = 0, len(todo)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool, path.open("a") as file:
        while todo or running:
            while todo and len(running) < processes and time.monotonic() - began < limit_s:
                cell = todo.pop(0)
                running[pool.submit(evaluate, cell)] = cell
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, done = running.pop(future), done + 1
                error = future.exception()
                if error is not None:
                    failures.append(f"{cell}: {type(error).__name__}: {error}")
                    print(failures[-1], flush=True)
                    continue
                file.write(json.dumps(cell | future.result(), ensure_ascii=False) + "\n")
                file.flush()
                print(f"{done}/{total} {time.monotonic() - began:.0f} s {_short(cell)}", flush=True)
    return failures


def _short(cell: Cell) -> str:
    return " ".join(str(value) for value in cell.values())


def _mend(path: Path) -> None:
    """Cut a half-written last line off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (text := path.read_text(encoding="utf-8")).endswith("\n") and text:
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
