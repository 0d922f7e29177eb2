"""One worker in this process: how a trial may end, and that being cut off changes nothing."""

import errno
import gc
import random
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import tests.helpers.toy_app.app
from tests.helpers.toy_app.harness import board_rows, outcome, run_toy, run_toy_cut_off, starts, trials_of
from vqa.errors import InUseError, UserError
from vqa.progress import report
from vqa.sweep.worker import Worker

SHORT = ("hydra.sweeper.final=false", "hydra.sweeper.n_trials=4", "hydra/sweeper/pruner=hyperband")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_toy(folder, *SHORT)
    return folder


def cut_at(trial: int, step: int, after: bool) -> Callable[[float, int], None]:
    """Stand in for `report`: Ctrl-C once, just before or just after a given report of a given trial."""
    state = {"armed": True, "seen": -1}

    def reporting(value: float, at: int) -> None:
        state["seen"] += at == 1
        if after:
            report(value, at)
        if state["armed"] and (state["seen"], at) == (trial, step):
            state["armed"] = False
            raise KeyboardInterrupt
        if not after:
            report(value, at)

    return reporting


@pytest.mark.parametrize(
    ("trial", "step", "after"),
    [(0, 1, False), (1, 5, True), (2, 2, True), (2, 3, False)],
    ids=["at_the_first_report", "after_a_fold", "after_a_report", "before_a_report"],
)
def test_a_trial_that_is_interrupted_goes_on_with_the_same_number_and_result(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, trial: int, step: int, after: bool
) -> None:
    monkeypatch.setattr(tests.helpers.toy_app.app, "report", cut_at(trial, step, after))
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, *SHORT)
    assert trials_of(tmp_path)[trial].state.name == "RUNNING"
    run_toy(tmp_path, *SHORT)
    assert outcome(tmp_path) == outcome(whole)
    assert starts(tmp_path).count(f"{trial:03d}") == 2
    assert len(starts(tmp_path)) == len(starts(whole)) + 1


def test_a_pruning_that_was_decided_but_not_told_is_told_by_the_next_worker(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = next(trial for trial in trials_of(whole) if trial.state.name == "PRUNED")
    tell = optuna.Study.tell

    def dying(study: optuna.Study, trial: Any, *args: Any, **kwargs: Any) -> Any:
        if trial.number == pruned.number:
            raise KeyboardInterrupt
        return tell(study, trial, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "tell", dying)
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, *SHORT)
    monkeypatch.undo()
    run_toy(tmp_path, *SHORT)
    assert outcome(tmp_path) == outcome(whole)
    assert starts(tmp_path) == starts(whole)  # no job had to run again for it


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["hyperband", "wilcoxon"])
def test_a_study_that_is_cut_off_at_random_instants_ends_like_an_uninterrupted_one(
    tmp_path: Path, pruner: str
) -> None:
    settings = ("pause_s=0.06", "hydra.sweeper.max_retries=50", f"hydra/sweeper/pruner={pruner}")
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    run_toy(tmp_path / "whole", *settings)
    instants = random.Random(5)
    # On an idle machine the study is over after some fifteen cuts. On a busy one it advances little between
    # them: later cuts would strike the same start of a worker again and again.
    for cut in range(20):
        how = signal.SIGKILL if cut % 3 else signal.SIGINT
        longest = 0.5 if cut < 3 else 2.0  # the first cuts come early: the whole takes only a few seconds
        if run_toy_cut_off(tmp_path / "broken", instants.uniform(0.1, longest), how, *settings):
            break
    run_toy(tmp_path / "broken", *settings)
    assert cut >= 3
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")
    assert (tmp_path / "broken/multirun/toy/final/manifest.json").exists()


def test_a_trial_that_keeps_dying_fails_with_that_reason(tmp_path: Path) -> None:
    settings = (*SHORT, "hydra.sweeper.n_trials=1", "hydra.sweeper.max_retries=1")
    for _ in range(2):
        run_toy_cut_off(tmp_path, 30, signal.SIGKILL, *settings, "fails=dies")
    with pytest.raises(UserError, match="has no complete trial"):
        run_toy(tmp_path, *settings, "fails=dies")
    trial = trials_of(tmp_path)[0]
    assert trial.state.name == "FAIL"
    assert trial.user_attrs["error"] == "it was cut off 2 times, more than max_retries=1"
    assert len(starts(tmp_path)) == 2


def test_ctrl_c_does_not_count_as_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (*SHORT, "hydra.sweeper.n_trials=1", "hydra.sweeper.max_retries=0")
    for _ in range(3):
        monkeypatch.setattr(tests.helpers.toy_app.app, "report", cut_at(0, 1, after=False))
        with pytest.raises(KeyboardInterrupt):
            run_toy(tmp_path, *settings)
    monkeypatch.undo()
    run_toy(tmp_path, *settings)
    assert trials_of(tmp_path)[0].state.name == "COMPLETE"


def test_ctrl_c_between_claim_and_job_does_not_count_as_a_death_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(worker: Worker) -> None:
        raise KeyboardInterrupt

    settings = (*SHORT, "hydra.sweeper.n_trials=1", "hydra.sweeper.max_retries=0")
    for _ in range(3):
        monkeypatch.setattr(Worker, "write_results", stop)
        with pytest.raises(KeyboardInterrupt):
            run_toy(tmp_path, *settings)
    monkeypatch.undo()
    run_toy(tmp_path, *settings)
    assert trials_of(tmp_path)[0].state.name == "COMPLETE"


def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(tmp_path: Path) -> None:
    run_toy(tmp_path, *SHORT, "fails=once")
    row = board_rows(tmp_path)[-1]
    assert (row["trial"], row["state"], row["tied_with_best"]) == ("1", "FAIL", "false")
    assert trials_of(tmp_path)[1].user_attrs["error"] == "RuntimeError: the job broke"
    assert "the job broke" in (tmp_path / "multirun/toy/trials/001/run.log").read_text()
    assert len(trials_of(tmp_path)) == 4


@pytest.mark.parametrize(
    ("fails", "message"),
    [("always", "RuntimeError: the job broke"), ("undefined", "must return a finite number")],
)
def test_too_many_failures_stop_the_sweep_and_say_where_to_look(
    tmp_path: Path, fails: str, message: str
) -> None:
    settings = (*SHORT, f"fails={fails}", "hydra.sweeper.max_failures=1")
    for _ in range(2):  # the second run stops at once
        with pytest.raises(UserError, match=rf"2 trials failed(?s:.*){message}(?s:.*)trials/001/run.log"):
            run_toy(tmp_path, *settings)
    assert len(starts(tmp_path)) == 2
    with pytest.raises(UserError, match="has no complete trial"):
        run_toy(tmp_path, *settings, "hydra.sweeper.max_failures=9")
    assert len(trials_of(tmp_path)) == 4


def test_a_users_mistake_stops_the_sweep_at_once_and_costs_no_trial(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.csv, row 7: unknown answer 'x'"):
        run_toy(tmp_path, *SHORT, "fails=user")
    assert trials_of(tmp_path)[0].state.name == "RUNNING"
    assert starts(tmp_path) == ["000"]
    log = (tmp_path / "multirun/toy/trials/000/run.log").read_text()
    assert "row 7" in log
    assert "Traceback" not in log


def test_a_refused_combination_fails_alone_once_another_trial_ended_well(tmp_path: Path) -> None:
    grid = ("hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", "lr=0.001", "image=native")
    queue = "hydra.sweeper.enqueue=[]"
    run_toy(tmp_path, *grid, queue, "hydra.sweeper.final=false", "fails=poison", "seed=1")
    rows = {row["lora.r"]: row["state"] for row in board_rows(tmp_path)}
    assert rows == {"8": "FAIL", "16": "COMPLETE", "32": "COMPLETE"}
    [failed] = [trial for trial in trials_of(tmp_path) if trial.state.name == "FAIL"]
    assert failed.number > 0
    assert failed.user_attrs["error"] == "lora.r=8 contradicts another setting. Take another r."


def test_a_worker_that_finds_its_trial_taken_over_takes_the_next_one(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, taken = tests.helpers.toy_app.app.run_trial, []

    def taken_over_once(cfg: Any, folder: Path) -> float:
        if folder.name in ("000", "003") and folder.name not in taken:
            taken.append(folder.name)
            raise InUseError(f"{folder} is in use")
        return run(cfg, folder)

    monkeypatch.setattr(tests.helpers.toy_app.app, "run_trial", taken_over_once)
    run_toy(tmp_path, *SHORT, "hydra.sweeper.max_retries=0")
    assert taken == ["000", "003"]
    assert outcome(tmp_path) == outcome(whole)  # no failure, no death


def test_a_full_disk_stops_the_sweep_even_when_trials_have_ended_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_toy(tmp_path, *SHORT, "hydra.sweeper.n_trials=2")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/folds.csv")

    monkeypatch.setattr(tests.helpers.toy_app.app, "write_fold", full)
    with pytest.raises(UserError, match=r"/data/folds.csv: No space left on device; mend it"):
        run_toy(tmp_path, *SHORT)
    assert [trial.state.name for trial in trials_of(tmp_path)].count("FAIL") == 0


def test_a_full_disk_stops_the_sweep_and_costs_no_trial(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/folds.csv")

    monkeypatch.setattr(tests.helpers.toy_app.app, "write_fold", full)
    for _ in range(5):  # more often than max_failures and max_retries allow
        with pytest.raises(UserError, match=r"/data/folds.csv: No space left on device; mend it"):
            run_toy(tmp_path, *SHORT)
    monkeypatch.undo()
    run_toy(tmp_path, *SHORT)
    assert outcome(tmp_path) == outcome(whole)


class Tensor:
    """Something that a trial holds."""


def test_what_a_failed_trial_held_is_gone_when_the_next_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def fail(*_: object) -> float:
        left.append(sum(reference() is not None for reference in held))
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tests.helpers.toy_app.app, "run_trial", fail)
    gc.disable()  # on a GPU nothing tells Python that memory is short
    try:
        with pytest.raises(UserError, match="has no complete trial"):
            run_toy(tmp_path, *SHORT, "hydra.sweeper.max_failures=9")
    finally:
        gc.enable()
    assert left == [0, 0, 0, 0]
    assert {row["state"] for row in board_rows(tmp_path)} == {"FAIL"}


def test_a_pruned_trial_is_no_error_in_its_log(whole: Path) -> None:
    pruned = next(trial for trial in trials_of(whole) if trial.state.name == "PRUNED")
    log = (whole / f"multirun/toy/trials/{pruned.number:03d}/run.log").read_text()
    assert f"pruned at step {pruned.last_step}" in log
    assert "Traceback" not in log


def test_each_trial_leaves_its_overrides_and_log_in_its_own_folder(whole: Path) -> None:
    for number in range(4):
        folder = whole / f"multirun/toy/trials/{number:03d}"
        assert "lr=" in (folder / ".hydra/overrides.yaml").read_text()
        assert (folder / "run.log").exists()


def test_wilcoxon_gets_its_reports_question_by_question(tmp_path: Path) -> None:
    run_toy(
        tmp_path, "hydra.sweeper.final=false", "hydra/sweeper/pruner=wilcoxon", "hydra.sweeper.n_trials=6"
    )
    first = trials_of(tmp_path)[0]
    assert list(first.intermediate_values) == list(range(12))  # two folds of six; the last is not reported
    assert any(trial.state.name == "PRUNED" for trial in trials_of(tmp_path))
