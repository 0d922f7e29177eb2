"""Memory that may be taken: the machine's own, or what a container's or a Slurm job's limit leaves of it."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from vqa.machine.device import spare_bytes

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 GiB, 40 of them free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=40 * GIB))


def write_group(folder: Path, version: int, limit: str, used_gib: int, stat: str) -> None:
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[version][0]).write_text(f"{limit}\n")
    (folder / names[version][1]).write_text(f"{used_gib * GIB}\n")
    (folder / "memory.stat").write_text(stat)


def belong_to(root: Path, lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)


def test_a_quarter_of_the_machine_stays_free(tmp_path: Path) -> None:
    assert spare_bytes(tmp_path) == (40 - 16) * GIB  # no /proc, as on macOS
    belong_to(tmp_path, "0::/user.slice\n")
    write_group(tmp_path / "sys/fs/cgroup/user.slice", 2, "max", 30, "")
    assert spare_bytes(tmp_path) == (40 - 16) * GIB  # no limit


def test_the_narrowest_limit_around_the_process_counts(tmp_path: Path) -> None:
    belong_to(tmp_path, "0::/slurm/job_7/step_0\n")
    mount = tmp_path / "sys/fs/cgroup"
    write_group(mount / "slurm/job_7/step_0", 2, "max", 10, "")
    cached = f"anon {4 * GIB}\ninactive_file {5 * GIB}\nactive_file {1 * GIB}\n"
    write_group(mount / "slurm/job_7", 2, str(16 * GIB), 10, cached)
    write_group(mount / "slurm", 2, str(48 * GIB), 20, "")
    assert spare_bytes(tmp_path) == (16 - 10 + 6 - 4) * GIB


def test_a_container_of_version_1_sees_its_limit_at_the_mount(tmp_path: Path) -> None:
    belong_to(tmp_path, "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/\n")
    mount = tmp_path / "sys/fs/cgroup/memory"
    write_group(mount, 1, str(8 * GIB), 3, f"total_inactive_file {GIB}\ninactive_file 7\n")
    assert spare_bytes(tmp_path) == (8 - 3 + 1 - 2) * GIB


def test_nothing_is_spare_when_less_than_a_quarter_is_free(tmp_path: Path) -> None:
    belong_to(tmp_path, "0::/\n")
    write_group(tmp_path / "sys/fs/cgroup", 2, str(20 * GIB), 18, "")
    assert spare_bytes(tmp_path) < 0
