"""Several workers: copies of the command, each with its share of the machine."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optuna.distributions import FloatDistribution

from tests.helpers.forked_command import Forked
from tests.helpers.studies import settings as study_settings
from tests.helpers.toy_app.harness import board_rows, starts, trials_of
from tests.helpers.two_processes import FORKS
from tests.machine.test_processes import train_small
from vqa.errors import UserError
from vqa.sweep.search.space import SearchSpace
from vqa.sweep.study import SharedStudy
from vqa.sweep.workers.pool import (
    DEADLINE,
    SLOT,
    WorkerPool,
    log_file,
    own_deadline,
    own_slot,
    share_out,
    start_here,
    visible_gpus,
    worker_environment,
)

APP = Path(__file__).parents[2] / "helpers" / "toy_app" / "app.py"


def start(folder: Path, *overrides: str) -> Forked:
    return Forked(folder, "-m", "+sweep=toy", "hydra.sweeper.n_workers=2", *overrides, program=str(APP))


def wait_for_starts(folder: Path, count: int, process: Forked) -> None:
    log = folder / "multirun/toy/trials/starts.txt"
    deadline = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().split()) >= count):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def finish(process: Forked) -> tuple[int | None, str]:
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


def test_each_worker_gets_its_gpu_or_one_thread() -> None:
    on_gpus = [worker_environment(slot, ["4", "6"], 1.5, False)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert on_gpus == ["4", "6", "4"]
    assert worker_environment(2, [], 1.5, False) == {SLOT: "2", DEADLINE: "1.5", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("workers", "seen"),
    [(1, ["0,1,2,3"]), (2, ["0,2", "1,3"]), (3, ["0,3", "1", "2"]), (4, list("0123")), (6, list("0123"))],
)
def test_fewer_workers_than_gpus_see_several_each(workers: int, seen: list[str]) -> None:
    assert share_out(["0", "1", "2", "3"], workers) == seen


def test_started_workers_see_one_card_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    (tmp_path / "workers").mkdir()
    shared: Any = SimpleNamespace(folder=tmp_path, settings=SimpleNamespace(worker_command=None, n_workers=2))
    told = "import os; print(os.environ['VQA_WORKER'], os.environ['CUDA_VISIBLE_DEVICES'])"
    start_one = start_here(shared, [sys.executable, "-c", told], 1.5)
    for worker in [start_one(slot) for slot in range(2)]:
        worker.wait()
    said = [log_file(tmp_path, slot).read_text() for slot in range(2)]
    assert said == ["0 4\n", "1 6\n"]


def train_as_worker(folder: Path, slot: int) -> None:
    """One worker's training with scaled losses, as on a T4; the first step overflows and is skipped."""
    os.environ.update(worker_environment(slot, ["4", "6"], 1.5, False))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(lr_scheduler|optimizer).step", category=UserWarning)
        train_small(folder, 4, overflow=1)
    (folder / "card").write_text(os.environ["CUDA_VISIBLE_DEVICES"])


@pytest.mark.slow
def test_two_workers_skip_an_overflown_step_each_without_a_warning(tmp_path: Path) -> None:
    """float16 needs a GPU, so the losses alone are scaled; a CPU has no FlashAttention either."""
    folders = [tmp_path / str(slot) for slot in range(2)]
    pair = [FORKS.Process(target=train_as_worker, args=(folder, i)) for i, folder in enumerate(folders)]
    for folder, process in zip(folders, pair, strict=True):
        folder.mkdir()
        process.start()
    for process in pair:
        process.join(300)
    assert [process.exitcode for process in pair] == [0, 0]
    assert [(folder / "card").read_text() for folder in folders] == ["4", "6"]
    found = [torch.load(folder / "0.pt") for folder in folders]
    assert [one["scale"] for one in found] == [2.0**15] * 2  # half of where torch begins
    assert torch.equal(found[0]["weights"], found[1]["weights"])


@pytest.mark.parametrize(("named", "gpus"), [("", []), ("-1", []), ("0,3", ["0", "3"])])
def test_only_visible_gpus_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, named: str, gpus: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus


def test_a_copy_knows_its_slot_and_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SLOT, raising=False)
    monkeypatch.delenv(DEADLINE, raising=False)
    assert own_slot() is None
    assert own_deadline(tmp_path) == float("inf")  # a worker that a cluster starts has none
    for name, value in worker_environment(1, [], float("inf"), False).items():
        monkeypatch.setenv(name, value)
    assert own_slot() == 1
    assert own_deadline(tmp_path) == float("inf")
    monkeypatch.setenv(DEADLINE, "1.5")
    assert own_deadline(tmp_path) == pytest.approx(1.5, abs=0.5)  # one machine has one clock
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["first", "-1", ""])
def test_a_worker_has_a_number_or_takes_a_free_one(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(SLOT, "auto")
    assert own_slot() == "auto"
    monkeypatch.setenv(SLOT, given)
    with pytest.raises(UserError, match=f"VQA_WORKER must be a whole number >= 0.*or auto, got '{given}'"):
        own_slot()


@pytest.mark.slow
def test_two_workers_share_a_study_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    process = start(tmp_path, "pause_s=0.1", "hydra/sweeper/pruner=none", "hydra.sweeper.n_trials=6")
    log = tmp_path / "multirun/toy/trials/starts.txt"
    deadline = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().split()) >= 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()
    assert len(children) == 2
    os.kill(int(children[0]), signal.SIGKILL)
    code, out = finish(process)
    assert code == 0, out
    assert "died (-9)" in out
    assert [trial.state.name for trial in trials_of(tmp_path)] == ["COMPLETE"] * 6
    assert len(starts(tmp_path)) in (6, 7)  # 6 when the signal came between two trials
    assert len(board_rows(tmp_path)) == 6
    assert (tmp_path / "multirun/toy/final/manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("user", "train.csv, row 7: unknown answer 'x'"),
        ("full", "No space left on device; mend it"),
        ("dies", "every worker died more than max_retries=0"),
    ],
)
def test_what_ends_a_worker_for_good_ends_the_sweep(tmp_path: Path, fails: str, message: str) -> None:
    code, out = finish(
        start(tmp_path, f"fails={fails}", "hydra.sweeper.max_retries=0", "hydra.sweeper.max_failures=9")
    )
    assert code == 2, out
    assert message in out


@pytest.mark.slow
def test_workers_that_end_at_once_with_0_are_no_storm_but_an_error(tmp_path: Path) -> None:
    began = time.monotonic()
    code, out = finish(
        start(tmp_path, "hydra.sweeper.worker_command='sh -c \"exit 0\"'", "hydra.sweeper.max_retries=2")
    )
    assert code == 2, out
    assert out.count("ended without taking a trial, although some are left") == 2 * 3
    assert "every worker died more than max_retries=2 times" in out
    assert time.monotonic() - began > 0.5 + 1  # the pauses between the starts of a slot
    assert {trial.state.name for trial in trials_of(tmp_path)} == {"WAITING"}


class Clock:
    """Stands in for `time`: it goes on only in `sleep`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Ended:
    """A worker that has ended before anybody asks."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def is_queued(self) -> bool:
        return False

    def terminate(self) -> None:
        pass

    kill = wait = terminate


def pool_of(folder: Path, start_one: Callable[[int], Ended]) -> WorkerPool:
    """One worker, for a study with three retries."""
    space = SearchSpace({"lr": FloatDistribution(0.0, 1.0)}, ())
    asked = study_settings(storage=f"sqlite:///{folder}/study.db", max_retries=3)
    return WorkerPool(SharedStudy(asked, space, folder, []), start_one, float("inf"), lambda: None)


@pytest.mark.parametrize("code", [0, 9])
def test_the_pause_before_a_worker_starts_again_doubles_while_it_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    clock, began = Clock(), []
    monkeypatch.setattr("vqa.sweep.workers.pool.time", clock)

    def start_one(slot: int) -> Ended:
        began.append(clock.now)
        return Ended(code)

    with pytest.raises(UserError, match="every worker died more than max_retries=3 times"):
        pool_of(tmp_path, start_one).run()
    pauses = [later - earlier for earlier, later in itertools.pairwise(began)]
    assert pauses == [1.5, 2.5, 4.5]  # half a second until the end is seen, then 1, 2 and 4


def test_a_worker_that_dies_where_nothing_can_be_written_ends_the_sweep_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[int] = []

    def start_one(slot: int) -> Ended:
        began.append(slot)
        return Ended(2)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pool = pool_of(tmp_path, start_one)
    monkeypatch.setattr("vqa.sweep.workers.pool.replace_text", full)
    with pytest.raises(UserError, match=r"/workers: No space left on device; mend it.*same command goes on"):
        pool.run()
    assert began == [0]


@pytest.mark.slow
def test_callbacks_hear_of_the_multirun_once_and_of_every_job(tmp_path: Path) -> None:
    code, out = finish(
        start(tmp_path, "+hydra.callbacks.events={_target_: app.Events}", "hydra.sweeper.n_trials=3")
    )
    assert code == 0, out
    events = Counter((tmp_path / "events.txt").read_text().splitlines())
    jobs = 3 + 1  # the final run is one too
    assert events == {
        "multirun starts": 1,
        "multirun ends": 1,
        "job starts": jobs,
        "job ends: COMPLETED": jobs,
    }


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_and_loses_nothing(tmp_path: Path) -> None:
    settings = (
        "pause_s=0.3",  # both trials still run when the signal comes, on a busy machine too
        "hydra/sweeper/pruner=none",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.final=false",
    )
    process = start(tmp_path, *settings)
    wait_for_starts(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert code not in (0, 2), out
    assert "the same command goes on from here" in out
    assert [trial.user_attrs["deaths"] for trial in trials_of(tmp_path) if trial.state.name == "RUNNING"] == [
        -1,
        -1,
    ]
    assert finish(start(tmp_path, *settings))[0] == 0
    assert [trial.state.name for trial in trials_of(tmp_path)] == ["COMPLETE"] * 4


@pytest.mark.slow
def test_a_second_ctrl_c_ends_all_workers_at_once(tmp_path: Path) -> None:
    settings = ("pause_s=30", "hydra/sweeper/pruner=none", "hydra.sweeper.final=false")
    process = start(tmp_path, *settings)
    wait_for_starts(tmp_path, 2, process)
    children = subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()
    for child in children:
        os.kill(int(child), signal.SIGSTOP)  # they hear nothing
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert code not in (0, 2), out
    assert "stopped at once" in out
    assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.slow
def test_a_preempted_sweep_ends_its_workers_and_costs_no_retry(tmp_path: Path) -> None:
    settings = (
        *("pause_s=0.1", "hydra/sweeper/pruner=none", "hydra.sweeper.n_trials=3"),
        *("hydra.sweeper.final=false", "hydra.sweeper.max_retries=0"),
    )
    process = start(tmp_path, *settings)
    wait_for_starts(tmp_path, 2, process)
    process.terminate()
    _, out = finish(process)
    assert "the same command goes on from here" in out
    assert finish(start(tmp_path, *settings))[0] == 0
    assert [trial.state.name for trial in trials_of(tmp_path)] == ["COMPLETE"] * 3


def test_a_launcher_places_workers_by_itself() -> None:
    assert worker_environment(1, ["0"], 1.5, elsewhere=True) == {SLOT: "1", DEADLINE: "1.5"}
