"""The same command on a cluster: real Slurm, two nodes, workers cancelled and preempted."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.own_slurm import OwnSlurm
from tests.helpers.toy_app.harness import board_rows, trials_of

APP = Path(__file__).parents[1] / "helpers" / "toy_app" / "app.py"
SWEEP = [
    *(sys.executable, str(APP), "-m", "+sweep=toy", "pause_s=0.2", "hydra/sweeper/pruner=none"),
    *("hydra.sweeper.n_trials=12", "hydra.sweeper.n_workers=2"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[OwnSlurm]:
    with OwnSlurm(nodes=2) as running:
        yield running


def wait_for(what: str, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not happened():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.2)


def begun(folder: Path) -> set[str]:
    log = folder / "multirun/toy/trials/starts.txt"
    return set(log.read_text().split()) if log.exists() else set()


def trouble(slurm: OwnSlurm, folder: Path) -> None:
    """Cancel one of the two workers; when there are two again, take a node away from one for two seconds."""
    wait_for("two workers at work", lambda: len(begun(folder)) >= 3 and len(slurm.running()) == 2)
    slurm.call("scancel", slurm.running()[0])
    wait_for("further trials", lambda: len(begun(folder)) >= 6)
    count = max(1, len(slurm.running()))
    slurm.call("sbatch", "-p", "high", "-N", str(count), "--output=/dev/null", "--wrap", "srun sleep 2")
    wait_for("a preemption", lambda: len(slurm.running()) < count)


def check(folder: Path) -> None:
    assert [trial.state.name for trial in trials_of(folder)] == ["COMPLETE"] * 12
    assert len(board_rows(folder)) == 12
    assert (folder / "multirun/toy/final/manifest.json").exists()


@pytest.mark.service
@pytest.mark.slow
def test_a_sweep_whose_workers_srun_starts_outlives_a_cancelled_and_a_preempted_one(
    slurm: OwnSlurm, tmp_path: Path
) -> None:
    launcher = "hydra.sweeper.worker_command='srun --quiet --ntasks=1 --partition=low'"
    with (tmp_path / "sweep.log").open("wb") as log:
        sweep = subprocess.Popen(
            [*SWEEP, launcher], cwd=tmp_path, env=slurm.environment, stdout=log, stderr=subprocess.STDOUT
        )
    trouble(slurm, tmp_path)
    assert sweep.wait(timeout=180) == 0, (tmp_path / "sweep.log").read_text()
    check(tmp_path)


@pytest.mark.service
@pytest.mark.slow
def test_a_sweep_whose_workers_submitit_starts_outlives_a_cancelled_and_a_preempted_one(
    slurm: OwnSlurm, tmp_path: Path
) -> None:
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=low"]
    with (tmp_path / "sweep.log").open("wb") as log:
        sweep = subprocess.Popen(
            [*SWEEP, *launcher], cwd=tmp_path, env=slurm.environment, stdout=log, stderr=subprocess.STDOUT
        )
    trouble(slurm, tmp_path)
    assert sweep.wait(timeout=180) == 0, (tmp_path / "sweep.log").read_text()
    check(tmp_path)


@pytest.mark.service
@pytest.mark.slow
def test_a_job_array_of_workers_outlives_a_cancelled_and_a_preempted_one(
    slurm: OwnSlurm, tmp_path: Path
) -> None:
    worker = "VQA_WORKER=$SLURM_ARRAY_TASK_ID " + " ".join(f"'{word}'" for word in SWEEP)
    slurm.call(
        *("sbatch", "--parsable", "--array=0-1", "--partition=low", "--requeue", f"--chdir={tmp_path}"),
        *("--output=worker-%a.log", "--open-mode=append", "--wrap", worker),
    )
    trouble(slurm, tmp_path)
    wait_for("the workers' end", lambda: not slurm.call("squeue", "-h", "-p", "low"))
    assert [trial.state.name for trial in trials_of(tmp_path)] == ["COMPLETE"] * 12
    assert not (tmp_path / "multirun/toy/final").exists()  # workers leave it to the command itself
    done = subprocess.run(SWEEP, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    check(tmp_path)
