"""Work in two processes of one training, with the variables that torchrun sets."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A server that forks has the imports behind it and no thread: quicker than two fresh interpreters, and safe
# where a fork of the test process, whose autograd has been at work, is not.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("tests.conftest", "accelerate", "peft", "transformers", "vqa.stages.final", "vqa.run"),
        *("matplotlib.figure", "optuna", "sklearn.metrics", "sqlalchemy.orm", "vqa.sweep.sweep"),
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, and all it said."""

    code: int | None
    said: str


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_two(folder: Path, job: Callable[..., None], *arguments: Any, timeout_s: float = 90) -> list[Ended]:
    """Call job(*arguments) in two processes; one that outlives the time is killed and has the code -9.

    Args:
        folder: An existing folder for what they say.
        job: A function at the top of a module.
        arguments: The same for both.
        timeout_s: For each.
    """
    port = free_port()
    logs = [folder / f"rank_{rank}.log" for rank in range(2)]
    pair = [FORKS.Process(target=_be_one, args=(i, port, logs[i], job, arguments)) for i in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
    return [Ended(process.exitcode, log.read_text()) for process, log in zip(pair, logs, strict=True)]


def _be_one(rank: int, port: int, log: Path, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    job(*arguments)
