"""Checkpoints: written by a thread while the training goes on; an interrupted `fit` reads the last one."""

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import torch

from vqa.machine.device import pinned_copy
from vqa.machine.files import replacing

Copy = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often a fit is saved, so that it goes on after an interruption.

    Args:
        path: File to save to and resume from.
        every_steps: Save after so many optimiser steps; after every evaluation it is saved anyway.
        extra: A dictionary of the caller's that is saved and restored along; only `on_evaluation` may change
            it, and never a tensor in it.
    """

    path: Path
    every_steps: int
    extra: dict[str, Any] = field(default_factory=dict)


class CheckpointWriter:
    """Writes the states of one training, each over the last; the file is complete or the older one.

    A state is copied when it is given, and written by a thread while the training goes on. Leaving the block
    waits for what is still being written.

    Args:
        path: The file; None: nothing is written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if kind is None:
            self.wait()

    def write(self, state: dict[str, Any], unchanging: dict[str, Any]) -> None:
        """Write a state once the last one is written.

        Args:
            state: Numbers and tensors, in dictionaries and lists; its tensors may change afterwards.
            unchanging: More of them; only its dictionaries and lists may change.

        Raises:
            OSError: The last one could not be written.
        """
        self.wait()
        if self.path is None:
            return
        copy = copied(state, _on_host) | copied(unchanging, torch.Tensor.detach)
        arrived = None
        if torch.cuda.is_available():
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._writing = self._pool.submit(_write, self.path, copy, arrived)

    def wait(self) -> None:
        """Wait until the last state is in the file.

        Raises:
            OSError: It could not be written.
        """
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()


def copied(value: Any, copy: Copy) -> Any:
    """The same dictionaries, lists and tuples, with a copy of every tensor in them."""
    if isinstance(value, torch.Tensor):
        return copy(value)
    if isinstance(value, dict):
        return {key: copied(part, copy) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(part, copy) for part in value)
    return value


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory; from a GPU without waiting for it."""
    tensor = tensor.detach()
    return pinned_copy(tensor) if tensor.is_cuda else tensor.clone()


def _write(path: Path, state: dict[str, Any], arrived: Any) -> None:
    if arrived is not None:
        arrived.synchronize()
    with replacing(path) as unfinished, unfinished.open("wb", buffering=0) as file:
        noted = _Noted(file, path)
        try:
            torch.save(state, cast(IO[bytes], noted))
        except RuntimeError as error:  # torch closes its archive all the same, and complains of that instead
            if noted.error is None:
                raise
            raise noted.error from error


class _Noted(io.RawIOBase):
    """A file to write to that keeps the first error of the system.

    Args:
        file: Where it goes.
        path: The file's name, for the message.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__()
        self.file, self.path = file, path
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        left = memoryview(data).cast("B")
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            error.filename = str(self.path)
            self.error = self.error or error
            raise
        return len(memoryview(data).cast("B"))
