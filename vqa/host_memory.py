"""Memory of the machine that the process may still use, with the limits of its control groups."""

from collections.abc import Iterator
from pathlib import Path

import psutil

LEFT_FREE = 0.25  # of all memory, for what else runs there


def spare_bytes(root: Path = Path("/")) -> int:
    """Bytes that may be taken while a quarter of the memory stays free; negative when less is free already.

    Args:
        root: Of the file system that /proc and /sys are read from.
    """
    machine = psutil.virtual_memory()
    seen = [(machine.total, machine.available), *_limits(root)]
    total, available = (min(values) for values in zip(*seen, strict=True))
    return int(available - LEFT_FREE * total)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and free bytes of the process's control groups and those around them (containers, Slurm).

    Source: the Linux kernel's documentation of cgroup v1 and v2. Cached files count as free.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, limit, usage, prefix = root / "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            limit, usage, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        group = mount / path.lstrip("/")  # in a container often not there: it sees its own at the mount
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            try:
                most = (folder / limit).read_text().strip()
                used = int((folder / usage).read_text())
                parts = dict(part.split() for part in (folder / "memory.stat").read_text().splitlines())
            except OSError:
                continue
            if most != "max":
                cached = sum(int(parts.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
                yield int(most), int(most) - used + cached
