"""An adapter is trained once for all trials of a study that train alike, whoever comes first."""

import threading
import time
from pathlib import Path

import pytest

from tests.conftest import Make
from vqa.config.settings import Settings
from vqa.machine.files import try_lock
from vqa.progress import reporting_to
from vqa.results.folder import OUT_OF_FOLD
from vqa.stages.trial import run_trial
from vqa.train.fold_adapters import fold_digest

SMALL = ("stage=trial", "budget.subsample=32", "budget.batch_size=8")


@pytest.fixture
def keeping(settings: Make, tmp_path: Path) -> Make:
    """keeping("a=b", ...) keeps the adapters of its two folds in this test's own study."""
    return lambda *more: settings(
        *SMALL, f"env.output_root={tmp_path}", "budget.keep_fold_adapters=true", *more
    )


class Steps:
    """Remembers reports."""

    by = "part"

    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def report(self, value: float, step: int) -> bool:
        self.values[step] = value
        return False

    def report_questions(self, values: object) -> bool:
        return False


def run(settings: Settings, folder: Path) -> tuple[float, bytes, dict[int, float]]:
    """Score, out-of-fold predictions and reports of a trial."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = Steps()
    with reporting_to(steps):  # type: ignore[arg-type]  # `by` is a Literal
        score = run_trial(settings, folder)
    return score, (folder / OUT_OF_FOLD).read_bytes(), steps.values


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=3e-3",
        "lora.r=8",
        "seed=1",
        "train_seed=1",
        "loss=choice_ce",
        "prompt=direct_ko",
        "scheduler=linear",
        "budget.epochs=2",
        "budget.subsample=24",
        "image.max_visual_tokens=9",
        "model.path=elsewhere",
        "data.seed=1",
    ],
)
def test_what_training_reads_changes_the_digest(settings: Make, override: str) -> None:
    assert fold_digest(settings(*SMALL, override)) != fold_digest(settings(*SMALL))


@pytest.mark.parametrize(
    "override",
    [
        "inference=cyclic",
        "inference.pride_share=0.5",
        "adapt=tent",
        "study=other",
        "tracking=mlflow",
        "env.threads=2",
        "budget.eval_batch_size=3",
        "budget.keep_fold_adapters=true",
        "lang=ko",
    ],
)
def test_what_only_scoring_or_the_machine_reads_does_not(settings: Make, override: str) -> None:
    assert fold_digest(settings(*SMALL, override)) == fold_digest(settings(*SMALL))


def test_a_trial_on_kept_adapters_is_the_trial_that_trains_anew(
    settings: Make, keeping: Make, tmp_path: Path
) -> None:
    first = run(keeping(), tmp_path / "first")
    saved = {path: path.stat().st_mtime_ns for path in (tmp_path / "default/folds").rglob("*.safetensors")}
    assert len(saved) == 2
    assert run(settings(*SMALL), tmp_path / "anew") == first
    assert run(keeping(), tmp_path / "again") == first
    cyclic = run(keeping("inference=cyclic"), tmp_path / "cyclic")
    assert cyclic == run(settings(*SMALL, "inference=cyclic"), tmp_path / "cyclic_anew")
    assert cyclic[0] != first[0]
    assert {path: path.stat().st_mtime_ns for path in saved} == saved  # nothing was trained twice


def test_adapting_while_answering_does_not_touch_the_kept_adapter(keeping: Make, tmp_path: Path) -> None:
    tent = keeping("adapt=tent", "adapt.batch_size=4")
    adapted = run(tent, tmp_path / "adapted")
    frozen = run(keeping(), tmp_path / "frozen")
    assert adapted[0] != frozen[0]
    assert run(tent, tmp_path / "again") == adapted


def test_other_training_gets_other_adapters(keeping: Make, tmp_path: Path) -> None:
    run(keeping(), tmp_path / "first")
    run(keeping("optimizer.lr=3e-3"), tmp_path / "second")
    assert len(list((tmp_path / "default/folds").rglob("*.safetensors"))) == 4


def test_a_training_that_was_cut_off_is_begun_again(keeping: Make, tmp_path: Path) -> None:
    whole = run(keeping(), tmp_path / "first")
    [adapter] = (tmp_path / "default/folds").glob("*/0")
    (adapter / "adapter_model.safetensors").unlink()
    adapter.rename(adapter.with_name("0.unfinished"))
    assert run(keeping(), tmp_path / "again") == whole


def test_a_worker_waits_for_the_one_that_trains_the_fold(keeping: Make, tmp_path: Path) -> None:
    made = keeping()
    folder = tmp_path / "default/folds" / fold_digest(made)
    folder.mkdir(parents=True)
    lock = try_lock(folder / "0.lock")
    assert lock is not None
    threading.Timer(1.0, lock.close).start()
    began = time.monotonic()
    run(made, tmp_path / "trial")
    assert time.monotonic() - began >= 1.0
