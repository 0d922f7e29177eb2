"""The whole job, small: sweep, final run, inference; again; interrupted and continued."""

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.helpers.command_line import Outcome, vqa
from tests.helpers.forked_command import Forked
from vqa.results.trials import DOUBTS

Vqa = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
UNDRAWN = pytest.mark.usefixtures("undrawn")  # the first test draws
SWEEP = [
    *("-m", "+sweep=lora", "hydra.sweeper.n_trials=4"),
    *("data.train_size=120", "data.test_size=16", "budget.subsample=48", "env.threads=1"),
    *("budget.batch_size=8", "budget.micro_batch_size=8"),
]
# a search alone, of half the questions: where only the ranking counts
SEARCH = [*SWEEP, "hydra.sweeper.final=false", "data.train_size=60", "budget.subsample=24"]
LONGER = [*SEARCH, "hydra.sweeper.n_trials=5"]
HALVING = ("hydra/sweeper/sampler=tpe", "hydra/sweeper/pruner=successive_halving")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Vqa:
    """command("a=b", ...) runs vqa with output under tmp_path and no tracking."""
    return lambda *more: vqa(monkeypatch, capsys, f"env.output_root={tmp_path}", "tracking=none", *more)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def ranking(study: Path) -> list[dict[str, str]]:
    """The leaderboard without its wall-clock column."""
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in rows(study / "leaderboard.csv")
    ]


@pytest.mark.slow
def test_a_sweep_ends_in_a_submission_and_a_rerun_changes_nothing(command: Vqa, tmp_path: Path) -> None:
    first = command(*SWEEP)
    assert first.code == 0, first.err
    study = tmp_path / "lora"
    board = rows(study / "leaderboard.csv")
    fixed = ["trial", "state", "folds", "nll", "nll_se", "accuracy", "accuracy_se", "seconds"]
    searched = ["optimizer.lr", "lora.r", "lora.lora_alpha"]
    assert list(board[0]) == [*fixed, *searched, "tied_with_best", *DOUBTS]
    assert sorted(int(row["trial"]) for row in board) == [0, 1, 2, 3]
    assert {row["state"] for row in board} <= {"COMPLETE", "PRUNED"}
    for row in board:
        folder = study / "trials" / f"{int(row['trial']):03d}"
        assert (folder / ".hydra/overrides.yaml").exists()
        assert (folder / "run.log").exists()
    assert (study / "best.yaml").exists()

    final = study / "final"
    metrics = json.loads((final / "metrics.json").read_text())
    contract = {
        "accuracy",
        "accuracy_ci95",
        "nll",
        "n",
        "base_accuracy",
        "train_samples_per_s",
        "peak_memory_gib",
    }
    assert contract <= metrics.keys()
    low, high = metrics["accuracy_ci95"]
    assert low <= metrics["accuracy"] <= high
    assert metrics["n_train"] == 96  # the final run takes all of the 80 %, not the subsample
    best_lr = float(board[0]["optimizer.lr"])
    assert metrics["learning_rate"] == pytest.approx(best_lr * (32 / (96 * 3)) ** 0.2)
    assert json.loads((final / "manifest.json").read_text())["seed"] == 0
    answers = rows(final / "test_predictions.csv")
    assert [row["id"] for row in rows(final / "submission.csv")] == [row["id"] for row in answers]
    assert all(abs(sum(float(row[f"p_{letter}"]) for letter in "abcd") - 1) < 1e-6 for row in answers)
    held_out = {row["id"] for row in rows(final / "split.csv") if row["part"] == "valid"}
    assert {row["id"] for row in rows(final / "valid_predictions.csv")} == held_out
    for trial in (study / "trials").iterdir():  # the search never sees the held-out part
        seen = rows(trial / "oof_predictions.csv") if (trial / "oof_predictions.csv").exists() else []
        assert not held_out & {row["id"] for row in seen}

    before = stamps(study)
    again = command(*SWEEP)
    assert again.code == 0
    assert stamps(study) == before
    alone = command(
        "study=lora", "stage=final", *[a for a in SWEEP[2:] if not a.startswith(("hydra", "budget.sub"))]
    )
    assert (alone.code, "nothing left to do" in alone.err) == (0, True), alone.err
    assert stamps(study) == before


@UNDRAWN
@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_and_another_seed_another_split(
    command: Vqa, tmp_path: Path
) -> None:
    # of the last only the split is looked at
    for name, seed, trials in (("a", 0, 2), ("b", 0, 2), ("c", 1, 1)):
        short = [*SEARCH, f"hydra.sweeper.n_trials={trials}"]
        assert command(*short, f"env.output_root={tmp_path / name}", f"seed={seed}").code == 0
    assert ranking(tmp_path / "a/lora") == ranking(tmp_path / "b/lora")
    ids = [{row["id"] for row in rows(tmp_path / s / "lora/trials/000/oof_predictions.csv")} for s in "ac"]
    assert ids[0] != ids[1]


@pytest.fixture(scope="module", params=[(), HALVING], ids=["promotion", "halving"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], list[dict[str, str]]]:
    """A study that nothing interrupts: what is typed, and its ranking.

    Once by promotion, which is the default, and once by halving, which stops trials 1 and 2 early.
    """
    root, typed = tmp_path_factory.mktemp("whole"), [*LONGER, *request.param]
    done = subprocess.run(
        [sys.executable, "-m", "vqa.run", f"env.output_root={root}", "tracking=none", *typed],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return typed, ranking(root / "lora")


@UNDRAWN
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_study_ends_as_an_uninterrupted_one(
    how: signal.Signals, command: Vqa, tmp_path: Path, whole: tuple[list[str], list[dict[str, str]]]
) -> None:
    typed, expected = whole
    process = Forked(tmp_path, f"env.output_root={tmp_path}", "tracking=none", *typed)
    trial = tmp_path / "lora/trials/003"  # the last but one; by halving a fold of it is done
    begun = trial / "folds.csv" if HALVING[0] in typed else trial / ".hydra/overrides.yaml"
    deadline = time.monotonic() + 120
    while not begun.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert command(*typed).code == 0
    assert ranking(tmp_path / "lora") == expected
    assert len(expected) == 5


@UNDRAWN
@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_trials_run_on_the_cpu(command: Vqa, tmp_path: Path, quantization: str) -> None:
    outcome = command(*SEARCH, "hydra.sweeper.n_trials=1", f"quantization={quantization}")
    assert outcome.code == 0, outcome.err
    assert rows(tmp_path / "lora/leaderboard.csv")[0]["state"] == "COMPLETE"


@UNDRAWN
@pytest.mark.slow
def test_pruning_by_question_reports_every_question(command: Vqa, tmp_path: Path) -> None:
    import optuna

    outcome = command(*SEARCH, "hydra/sweeper/pruner=wilcoxon", "hydra.sweeper.n_trials=2")
    assert outcome.code == 0, outcome.err
    study = optuna.load_study(study_name="lora", storage=f"sqlite:///{tmp_path / 'lora/study.db'}")
    assert set(study.trials[0].intermediate_values) <= set(range(24))
    assert len(study.trials[0].intermediate_values) == 16  # two of three folds; the last is not reported


@UNDRAWN
@pytest.mark.slow
def test_a_sweep_over_a_group_picks_an_option(command: Vqa, tmp_path: Path) -> None:
    more = ["data.train_size=60", "budget.subsample=24", "hydra.sweeper.final=false", "env.threads=1"]
    outcome = command("-m", "+sweep=prompt", *more)
    assert outcome.code == 0, outcome.err
    board = rows(tmp_path / "prompt/leaderboard.csv")
    assert {row["prompt"] for row in board} == {"direct_en", "direct_ko", "fewshot_ko"}
    best = (tmp_path / "prompt/best.yaml").read_text()
    assert f"override /prompt: {board[0]['prompt']}" in best


@UNDRAWN
def test_the_stock_sweeper_minimises_what_a_final_run_returns(command: Vqa, tmp_path: Path) -> None:
    small = ("data.train_size=60", "data.test_size=12", "budget.epochs=1", "env.threads=1", "winner=none")
    ranks = "+hydra.sweeper.params={lora.r:'choice(2,4)'}"
    outcome = command("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", ranks, *small)
    assert outcome.code == 0, outcome.err
    found = [json.loads(file.read_text())["nll"] for file in tmp_path.rglob("metrics.json")]
    results = next(tmp_path.rglob("optimization_results.yaml")).read_text()
    assert f"best_value: {min(found)}" in results
