"""Workers that a launcher of Hydra's starts: who may choose it, how a launched job ends, whole studies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from tests.helpers.toy_app.harness import board_rows, trials_of
from vqa.errors import UserError
from vqa.machine.files import try_lock
from vqa.sweep.workers.launch import BASIC, TARGETS, Launch, LaunchedWorker, chosen_launcher

APP = Path(__file__).parents[2] / "helpers" / "toy_app" / "app.py"
CHOSEN = "hydra/launcher=submitit_slurm"


def config(name: str, given: tuple[str, ...], **changed: Any) -> DictConfig:
    """What Hydra composes where `name` is chosen and `changed` set, by a file or by the overrides given."""
    Plugins.instance()  # finds the launchers' packages
    node: Any = {"_target_": BASIC}
    if name != "basic":
        stored = ConfigStore.instance().load(f"hydra/launcher/{name}.yaml").node
        node = OmegaConf.to_container(OmegaConf.create(stored), resolve=False)
    hydra = {
        "launcher": node | changed,
        "runtime": {"choices": {"hydra/launcher": name}},
        "overrides": {"hydra": list(given)},
        "sweep": {"dir": "multirun/mine"},
        "job": {"name": "vqa"},
    }
    return OmegaConf.create({"hydra": hydra})


def test_hydras_own_launcher_is_no_choice() -> None:
    assert chosen_launcher(config("basic", ())) is None


def test_the_command_line_chooses_and_sets_a_launcher() -> None:
    given = (CHOSEN, "hydra.launcher.partition=low", "+hydra.launcher.additional_parameters={mail-type: END}")
    changed: dict[str, Any] = {"partition": "low", "additional_parameters": {"mail-type": "END"}}
    assert chosen_launcher(config("submitit_slurm", given, **changed)) == "submitit_slurm"


@pytest.mark.parametrize(
    ("given", "changed", "message"),
    [
        ((), {}, r"hydra/launcher starts programs, so it must be given on the command line"),
        ((CHOSEN,), {"setup": ["rm x"]}, r"hydra\.launcher\.setup can start programs.*\['rm x'\]"),
        ((CHOSEN,), {"partition": "low"}, r"hydra\.launcher\.partition .*hydra\.launcher\.partition='low'"),
        (
            (CHOSEN, "hydra.launcher.additional_parameters={mail-type: END}"),
            {"additional_parameters": {"mail-type": "END", "wrap": "rm x"}},
            r"hydra\.launcher\.additional_parameters\.wrap can start programs",
        ),
        ((CHOSEN, "hydra.launcher.comment=x"), {"comment": "x\nrm y"}, r"comment must hold no line break"),
    ],
)
def test_a_file_neither_chooses_nor_sets_a_launcher(
    given: tuple[str, ...], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        chosen_launcher(config("submitit_slurm", given, **changed))


def test_a_launcher_that_starts_no_worker_is_refused_by_name() -> None:
    strange = config("basic", ())
    strange.hydra.launcher._target_ = "some.plugin.Launcher"
    strange.hydra.runtime.choices["hydra/launcher"] = "of_my_own"
    with pytest.raises(UserError, match=f"one of {', '.join(TARGETS)} for a study, got of_my_own"):
        chosen_launcher(strange)


def job(folder: Path, code: str) -> LaunchedWorker:
    return LaunchedWorker(("-c", code), {"VQA_WORKER": "3"}, folder, folder / "3.log", folder / "wanted")


def test_a_job_runs_a_worker_with_its_number_and_gives_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "wanted").touch()
    code = "import os, sys; print(os.environ['VQA_WORKER'], os.getcwd()); sys.exit(5)"
    assert job(tmp_path, code)(OmegaConf.create()) == 5
    assert (tmp_path / "3.log").read_text() == f"3 {tmp_path}\n"


def test_a_job_that_got_its_machine_too_late_starts_nothing(tmp_path: Path) -> None:
    assert job(tmp_path, "raise SystemExit(5)")(OmegaConf.create()) == 0
    assert not (tmp_path / "3.log").exists()


def test_a_job_passes_on_that_its_worker_is_wanted_no_more(tmp_path: Path) -> None:
    (tmp_path / "wanted").touch()
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print(1, flush=True); "
        "time.sleep(60)"
    )
    with ThreadPoolExecutor(1) as thread:
        end = thread.submit(job(tmp_path, code), OmegaConf.create())
        wait_for("a start", lambda: (tmp_path / "3.log").exists() and bool((tmp_path / "3.log").read_text()))
        (tmp_path / "wanted").unlink()
        assert end.result(timeout=30) == 7


def test_a_ctrl_c_in_the_terminal_is_left_to_the_command(tmp_path: Path) -> None:
    (tmp_path / "wanted").touch()
    code = "import os, signal; os.kill(os.getppid(), signal.SIGINT); raise SystemExit(4)"
    before = signal.getsignal(signal.SIGINT)
    assert job(tmp_path, code)(OmegaConf.create()) == 4
    assert signal.getsignal(signal.SIGINT) == before


def slow_number() -> int:
    time.sleep(0.3)
    return 0


def test_a_launch_waits_for_a_machine_until_its_worker_is_up(tmp_path: Path) -> None:
    wanted = tmp_path / "wanted"
    with ThreadPool(1) as threads:
        launch = Launch(threads.apply_async(slow_number), tmp_path / "worker_0", wanted)
        assert launch.poll() is None
        assert launch.is_queued()
        lock = try_lock(tmp_path / "worker_0")
        assert lock is not None
        assert not launch.is_queued()
        lock.close()
        lost = Launch(threads.apply_async(int, ("no number",)), tmp_path / "worker_1", wanted)
        wanted.touch()
        lost.terminate()
        lost.wait()
        assert lost.poll() == 1
        assert not wanted.exists()


def wait_for(what: str, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.05)


def launch(folder: Path, launcher: str, *overrides: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(APP), "-m", "+sweep=toy", f"hydra/launcher={launcher}", *overrides]
    command += ["hydra/sweeper/pruner=none"]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )


def check(process: "subprocess.Popen[str]", folder: Path, n_trials: int) -> str:
    """The study must be whole, and its final run made; returns what the command said."""
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out
    assert [trial.state.name for trial in trials_of(folder)] == ["COMPLETE"] * n_trials
    assert len(board_rows(folder)) == n_trials
    assert (folder / "multirun/toy/final/manifest.json").exists()
    assert not list((folder / "multirun/toy/workers").glob("*.wanted"))
    assert not (folder / "multirun/toy/.submitit").exists() or "launcher says" in out
    return out


@pytest.mark.slow
def test_a_launched_worker_runs_the_study_and_the_command_its_final_run(tmp_path: Path) -> None:
    process = launch(tmp_path, "submitit_local", "hydra.sweeper.n_workers=1", "hydra.sweeper.n_trials=2")
    check(process, tmp_path, 2)
    assert json.loads((tmp_path / "multirun/toy/workers/0.json").read_text())["pid"] != process.pid


@pytest.mark.extras
@pytest.mark.parametrize("launcher", ["submitit_local", "joblib", "ray"])
def test_every_launcher_starts_workers_and_a_killed_one_again(tmp_path: Path, launcher: str) -> None:
    settings = ("hydra.sweeper.n_workers=2", "hydra.sweeper.n_trials=9", "pause_s=0.2")
    process = launch(tmp_path, launcher, *settings)
    state = tmp_path / "multirun/toy/workers/1.json"
    wait_for("the second worker", lambda: state.exists() or process.poll() is not None)
    os.kill(json.loads(state.read_text())["pid"], signal.SIGKILL)
    assert "worker 1 died (-9)" in check(process, tmp_path, 9)
