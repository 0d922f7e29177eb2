"""Commands that a sweep starts: how many workers, which programs, and the final run behind a launcher."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from tests.helpers.toy_app.harness import run_toy, trials_of
from tests.sweep.test_settings import GOOD
from vqa.errors import UserError
from vqa.sweep.checks import checked
from vqa.sweep.workers.state import lock_slot

APP = Path(__file__).parents[1] / "helpers" / "toy_app" / "app.py"
FEW = ("hydra.sweeper.n_trials=1", "hydra.sweeper.enqueue=[]", "hydra/sweeper/pruner=none", "lr=2e-3")


@pytest.mark.parametrize(("gpus", "workers"), [("", 1), ("0,3,5", 3)])
def test_auto_is_one_worker_a_gpu(monkeypatch: pytest.MonkeyPatch, gpus: str, workers: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    assert checked({**GOOD, "n_workers": "auto"}, None).n_workers == workers
    assert checked({**GOOD, "n_workers": "auto"}, "joblib").n_workers == workers
    assert checked({**GOOD, "n_workers": "auto"}, None, "balanced").n_workers == 1


def test_auto_cannot_count_the_gpus_of_other_machines() -> None:
    with pytest.raises(UserError, match=r"n_workers=auto counts the GPUs of this machine"):
        checked({**GOOD, "n_workers": "auto"}, "submitit_slurm")
    with pytest.raises(UserError, match=r"n_workers=auto counts the GPUs of this machine"):
        checked({**GOOD, "n_workers": "auto", "worker_command": "srun --gpus=1"}, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["final_command=no_such_program"],
            r"final_command starts 'no_such_program', and this machine has no",
        ),
        (["worker_command=no_such_program"], r"worker_command starts 'no_such_program', and this machine"),
        (["final_command=env", "final=false"], r"final_command has no effect with .*final=false"),
        (["final_command='env app.py'"], r"final_command must hold only what goes in front of this command"),
    ],
)
def test_a_command_that_cannot_do_its_work_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.setattr("vqa.sweep.checks.program", lambda: ["app.py"])  # however pytest was started
    with pytest.raises(UserError, match=message):
        run_toy(tmp_path, *(f"hydra.sweeper.{override}" for override in overrides))
    assert not (tmp_path / "multirun/toy/trials").exists()


@pytest.mark.slow
def test_a_command_makes_the_final_run_with_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa.sweep.final_run.program", lambda: [str(APP)])  # pytest is no part of the toy app
    run_toy(tmp_path, *FEW, "hydra.sweeper.final=false")
    for command, message in (
        ("env sh -c 'exit 3'", "ended with exit code 3"),
        ("true", "ended well, but there is no final run"),
    ):
        with pytest.raises(UserError, match=message):
            run_toy(tmp_path, *FEW, f"hydra.sweeper.final_command={command!r}")
    run_toy(tmp_path, *FEW, f"hydra.sweeper.final_command='env {shlex.quote(sys.executable)}'")
    metrics = json.loads((tmp_path / "multirun/toy/final/metrics.json").read_text())
    assert metrics["lr"] == 2e-3
    assert metrics["tuned_at"] == 3


def test_a_worker_without_a_number_takes_the_first_free_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_toy(tmp_path, *FEW, "hydra.sweeper.final=false")
    taken = lock_slot(tmp_path / "multirun/toy/.locks", 0)
    assert taken is not None
    monkeypatch.setenv("VQA_WORKER", "auto")
    run_toy(tmp_path, *FEW, "hydra.sweeper.n_trials=2", "hydra.sweeper.final=false")
    taken.close()
    assert len(trials_of(tmp_path)) == 2
    assert json.loads((tmp_path / "multirun/toy/workers/1.json").read_text())["slot"] == 1


def test_the_page_is_made_where_the_final_run_was_killed_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[Path] = []
    cards: list[Path] = []

    def note(run: Path, lang: str) -> Path:
        pages.append(run)
        return run

    def note_card(run: Path) -> Path:
        assert len(cards) == len(pages)  # a page tells that the card is there
        cards.append(run)
        return run

    def killed(*given: object) -> None:
        raise KeyboardInterrupt  # the final run is complete, its study not closed

    monkeypatch.setattr("vqa.report.report.write_report", note)
    monkeypatch.setattr("vqa.report.model_card.write_hand_over", note_card)
    with monkeypatch.context() as patch:
        patch.setattr("vqa.sweep.sweep.Sweep._close_tracking", killed)
        with pytest.raises(KeyboardInterrupt):
            run_toy(tmp_path, *FEW)
    final = tmp_path / "multirun/toy/final"
    assert (final / "manifest.json").exists()
    assert pages == []
    metrics = json.loads((final / "metrics.json").read_text())
    (final / "metrics.json").write_text(json.dumps(metrics | {"accuracy": 0.5}))  # as a real one
    (final / "adapter").mkdir()
    run_toy(tmp_path, *FEW)
    assert pages == cards == [final]
    run_toy(tmp_path, *FEW)
    assert len(pages) == len(cards) == 1
