"""A benchmark's process: one thread, the product's configuration without a command line, and its costs."""

import ctypes
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vqa.config.settings import Settings

MIB = 1024  # KiB, the unit of /proc


def one_thread() -> dict[str, str]:
    """The environment of a process that shares the machine with others."""
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def composed(overrides: Sequence[str]) -> Settings:
    """The settings that a command line with these overrides gives."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from vqa.config.check import read_settings, register_resolvers
    from vqa.config.place import CONF

    torch.set_num_threads(1)
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF)):
        return read_settings(compose("config", overrides=list(overrides)))


@dataclass
class Cost:
    """What a block took; filled in at its end.

    Args:
        seconds: Wall time.
        memory_mib: Peak above what was held before, of this process; on a GPU, of the device.
    """

    seconds: float = 0.0
    memory_mib: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure the block. On the CPU the kernel's own peak is set back, which Linux allows a process."""
    import torch

    cost, gpu = Cost(), torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated() / MIB**2
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or freed memory of earlier cells would hide this one's
        Path("/proc/self/clear_refs").write_text("5")
        held = _status_kib("VmRSS") / MIB
    began = time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / MIB**2 if gpu else _status_kib("VmHWM") / MIB
    cost.memory_mib = max(0.0, peak - held)


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
