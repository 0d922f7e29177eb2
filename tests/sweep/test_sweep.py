"""A whole sweep: total trials over all runs, terms, results, final run."""

import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from tests.helpers.toy_app.app import main
from tests.helpers.toy_app.harness import board_rows, outcome, run_toy, stamps, starts, trials_of
from vqa.errors import UserError
from vqa.machine.files import try_lock
from vqa.report.report import write_report
from vqa.sweep.workers.pool import shared_deadline, worker_environment

SHORT = ("hydra.sweeper.n_trials=4", "hydra/sweeper/pruner=none")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_toy(folder, *SHORT)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "multirun", tmp_path / "multirun")
    return tmp_path


def test_a_complete_study_is_left_as_it_is(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stamps(whole)
    run_toy(whole, *SHORT)
    assert stamps(whole) == before
    assert "4 of 4 trials done, the final run too: nothing is left" in capsys.readouterr().out


def test_more_trials_go_on_where_the_study_stopped(tmp_path: Path, whole: Path) -> None:
    run_toy(tmp_path, *SHORT, "hydra.sweeper.n_trials=2", "hydra.sweeper.final=false")
    assert [trial.number for trial in trials_of(tmp_path)] == [0, 1]
    run_toy(tmp_path, *SHORT)
    assert outcome(tmp_path) == outcome(whole)


def test_enqueued_configurations_come_first(whole: Path) -> None:
    first, second, *_ = trials_of(whole)
    assert first.params == {"lr": 2e-3, "lora.r": 16, "image": "native"}
    assert second.params["lr"] == 1e-4


def test_another_seed_searches_elsewhere(tmp_path: Path, whole: Path) -> None:
    run_toy(tmp_path, *SHORT, "seed=1", "hydra.sweeper.n_trials=3", "hydra.sweeper.final=false")
    assert trials_of(tmp_path)[2].params != trials_of(whole)[2].params


def test_the_final_run_gets_winner_record_and_final_overrides(whole: Path) -> None:
    [best, *_] = board_rows(whole)
    metrics = json.loads((whole / "multirun/toy/final/metrics.json").read_text())
    assert metrics == {"lr": float(best["lr"]), "r": int(best["lora.r"]), "tuned_at": 3}
    overrides = yaml.safe_load((whole / "multirun/toy/final/.hydra/overrides.yaml").read_text())
    assert overrides[0] == "+sweep=toy"
    assert overrides[-2:] == ["budget.tuned_at=3", "stage=final"]


def test_best_yaml_is_an_experiment_that_composes(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(whole)
    command = "app.py --config-dir multirun/toy experiment=best --cfg job"
    monkeypatch.setattr(sys, "argv", command.split())
    main()
    plain = OmegaConf.create(capsys.readouterr().out)
    [best, *_] = board_rows(whole)
    assert (plain.lr, plain.lora.r) == (float(best["lr"]), int(best["lora.r"]))
    assert plain.image.size == (512 if best["image"] == "pad_512" else None)
    assert plain.budget.tuned_at == 3


def test_a_group_can_be_searched_under_a_name_of_its_own(tmp_path: Path) -> None:
    grid = ("hydra/sweeper/sampler=grid", "lr=0.001", "lora.r=8", "image=native", "hydra/sweeper/pruner=none")
    run_toy(tmp_path, *grid, "+image@small=glob(*)")
    assert {row["+image@small"] for row in board_rows(tmp_path)} == {"native", "pad_512"}
    trials = [OmegaConf.load(tmp_path / f"multirun/toy/trials/00{n}/.hydra/config.yaml") for n in (0, 1)]
    assert {trial.small.size for trial in trials} == {None, 512}
    final = OmegaConf.load(tmp_path / "multirun/toy/final/.hydra/overrides.yaml")
    assert f"+image@small={board_rows(tmp_path)[0]['+image@small']}" in final


def test_a_final_run_that_was_cut_off_is_made_on_the_next_run(copy: Path) -> None:
    (copy / "multirun/toy/final/manifest.json").unlink()
    run_toy(copy, *SHORT)
    assert (copy / "multirun/toy/final/manifest.json").exists()
    assert (copy / "multirun/toy/starts.txt").read_text().split() == ["final", "final"]


def test_a_second_command_waits_for_the_final_run_of_the_first(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "multirun/toy/final/manifest.json").unlink()
    held = try_lock(copy / "multirun/toy/.locks/final")
    assert held is not None
    ends = threading.Timer(5.0, held.close)  # killed: the second command has to make the final run
    ends.start()
    run_toy(copy, *SHORT)
    assert not ends.is_alive()
    assert "another process is at the final run; waiting for its end" in capsys.readouterr().out
    assert (copy / "multirun/toy/final/manifest.json").exists()


def test_final_can_be_asked_for_later(tmp_path: Path) -> None:
    run_toy(tmp_path, *SHORT, "hydra.sweeper.n_trials=1", "hydra.sweeper.final=false")
    assert not (tmp_path / "multirun/toy/final").exists()
    run_toy(tmp_path, *SHORT, "hydra.sweeper.n_trials=1")
    assert (tmp_path / "multirun/toy/final/manifest.json").exists()


def test_a_search_alone_ends_in_its_report(tmp_path: Path) -> None:
    search = (*SHORT, "hydra.sweeper.n_trials=2", "hydra.sweeper.final=false")
    run_toy(tmp_path, *search, charts=True)
    text = (tmp_path / "multirun/toy/report.html").read_text(encoding="utf-8")
    assert '<html lang="en"' in text
    assert "lora.r" in text
    assert "<svg" in text
    assert not (tmp_path / "multirun/toy/final").exists()
    before = stamps(tmp_path)
    run_toy(tmp_path, *search)
    assert stamps(tmp_path) == before


def test_the_same_words_in_another_order_are_the_same_final_run(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = copy / "multirun/toy/final/.hydra/overrides.yaml"
    words = began.read_text().splitlines()
    began.write_text("\n".join([*reversed(words), "- env.threads=7"]) + "\n")
    run_toy(copy, *SHORT, "hydra.sweeper.n_trials=5")
    assert "was made with other settings" not in capsys.readouterr().out


def test_a_value_in_another_spelling_is_the_same_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = ("hydra.sweeper.n_trials=1", "hydra/sweeper/pruner=none")
    run_toy(tmp_path, *once, "pause_s=1e-3", "note='a b'")
    before = stamps(tmp_path / "multirun/toy/final")
    capsys.readouterr()
    run_toy(tmp_path, *once, "pause_s=0.001", 'note="a b"')
    assert stamps(tmp_path / "multirun/toy/final") == before
    assert "the final run too: nothing is left" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"fixed: pause_s=0.001 before, pause_s=0.002 now"):
        run_toy(tmp_path, *once, "pause_s=0.002", 'note="a b"')


def test_a_final_run_of_another_winner_is_kept_but_not_mixed(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = copy / "multirun/toy/final/.hydra/overrides.yaml"
    began.write_text("[lr=0.5]\n")
    run_toy(copy, *SHORT, "hydra.sweeper.n_trials=5")
    assert "was made with other settings" in capsys.readouterr().out
    (copy / "multirun/toy/final/manifest.json").unlink()
    with pytest.raises(UserError, match="was begun with other settings than the winner's now"):
        run_toy(copy, *SHORT, "hydra.sweeper.n_trials=5")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            ("lora.r=16",),
            r"space lora.r: CategoricalDistribution\(choices=\(8, 16, 32\)\) before, nothing now",
        ),
        (("pause_s=0.001",), r"fixed: nothing before, pause_s=0.001 now"),
        (("hydra/sweeper/sampler=random",), r"sampler _target_: optuna.samplers.TPESampler before"),
        (("seed=3",), r"seed: 0 before, 3 now(?s:.*)start another one with study=other"),
    ],
)
def test_a_study_refuses_to_go_on_under_other_terms(whole: Path, changed: tuple[str], message: str) -> None:
    before = stamps(whole)
    with pytest.raises(UserError, match=rf"study 'toy' was begun under other terms(?s:.*){message}"):
        run_toy(whole, *SHORT, *changed)
    assert stamps(whole) == before


def test_terms_are_kept_in_the_storage_too(copy: Path) -> None:
    (copy / "multirun/toy/study.yaml").unlink()
    with pytest.raises(UserError, match="under other terms"):
        run_toy(copy, *SHORT, "lora.r=16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rank=1,2",), r"a job of this sweep cannot be composed(?s:.*)rank"),
        (("image=native,null",), r"cannot be composed \(.*image=null\): Config group override must be a"),
        (("image=native,pad_1024",), r"cannot be composed(?s:.*)pad_1024"),
        (("hydra.sweeper.final_overrides=['stagee=final']",), r"cannot be composed(?s:.*)stagee"),
        (("+hydra.sweeper.trials=3",), r"hydra.sweeper has no key 'trials'"),
        (("+hydra.sweeper.record.lr=${nothing}",), r"hydra.sweeper cannot be resolved"),
        (
            ("hydra.sweeper.storage=postgresql+psycopg://nobody@127.0.0.1:1/x",),
            r"storage(?s:.*)cannot be opened",
        ),
    ],
)
def test_a_mistake_is_refused_before_any_trial(tmp_path: Path, arguments: tuple[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_toy(tmp_path, *arguments)
    assert not (tmp_path / "multirun/toy/trials").exists()


def test_a_sampler_that_cannot_draw_is_refused_before_any_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)  # as if it were not installed
    sampler = "hydra.sweeper.sampler._target_=optuna.samplers.CmaEsSampler"
    with pytest.raises(UserError, match=r"CmaEsSampler cannot draw from this space: .*cmaes"):
        run_toy(tmp_path, "hydra/sweeper/sampler=random", sampler, "hydra.sweeper.params.image=null")
    assert not (tmp_path / "multirun/toy/trials").exists()


def test_time_up_starts_no_further_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (*SHORT, "pause_s=0.05", "hydra.sweeper.final=false")
    run_toy(tmp_path, *settings, "hydra.sweeper.timeout_s=0.2")
    assert 1 <= len(starts(tmp_path)) < 4
    assert "out of time (hydra.sweeper.timeout_s=0.2); the same command goes on" in capsys.readouterr().out
    run_toy(tmp_path, *settings)
    assert [trial.state.name for trial in trials_of(tmp_path)] == ["COMPLETE"] * 4


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
@pytest.mark.parametrize(("left_s", "n_trials"), [(60.0, 2), (-1.0, 0)], ids=["time_left", "time_up"])
def test_the_sweep_ends_for_a_worker_when_it_ends_whatever_the_worker_s_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float, left_s: float, n_trials: int
) -> None:
    run_toy(tmp_path, *SHORT, "hydra.sweeper.timeout_s=0.001")  # the study is there, and no trial
    right = time.time
    until = shared_deadline(tmp_path / "multirun/toy", right() + left_s)  # of a machine whose clock is right
    for name, value in worker_environment(0, [], until, elsewhere=True).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "time", lambda: right() + ahead_s)
    run_toy(tmp_path, *SHORT, "hydra.sweeper.n_trials=2")
    assert [trial.state.name for trial in trials_of(tmp_path) if trial.state.is_finished()] == [
        "COMPLETE"
    ] * n_trials


def test_a_grid_ends_with_its_last_point(tmp_path: Path) -> None:
    run_toy(tmp_path, *SHORT, "hydra/sweeper/sampler=grid", "lr=0.001", "hydra.sweeper.n_trials=99")
    assert len(trials_of(tmp_path)) == 6
    assert len({tuple(trial.params.values()) for trial in trials_of(tmp_path)}) == 6


def test_a_study_without_a_complete_trial_has_no_final_run(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="study toy has no complete trial, so there is nothing for the final run"
    ):
        run_toy(tmp_path, "fails=always", "hydra.sweeper.n_trials=1")


def test_a_search_in_which_nothing_completed_is_no_success(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=r"no complete trial, so there is no winner(?s:.*)leaderboard"):
            run_toy(tmp_path, "fails=always", "hydra.sweeper.n_trials=1", "hydra.sweeper.final=false")
    assert starts(tmp_path) == ["000"]


def test_a_direction_can_be_turned_round(tmp_path: Path) -> None:
    run_toy(tmp_path, *SHORT, "hydra.sweeper.direction=maximize", "hydra.sweeper.final=false")
    values = [float(row["nll"]) for row in board_rows(tmp_path)]
    assert values == sorted(values, reverse=True)


def test_a_journal_file_serves_as_storage(tmp_path: Path) -> None:
    (tmp_path / "multirun/toy").mkdir(parents=True)
    settings = (
        *SHORT,
        "hydra.sweeper.storage=journal:${hydra.sweep.dir}/study.log",
        "hydra.sweeper.n_trials=2",
    )
    run_toy(tmp_path, *settings)
    before = stamps(tmp_path)
    run_toy(tmp_path, *settings)
    assert stamps(tmp_path) == before
    assert len(board_rows(tmp_path)) == 2


def test_the_page_is_refreshed_while_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def noted(final: Path, lang: str) -> Path:
        written.append((final.parent / "leaderboard.csv").read_text())
        return write_report(final, lang)

    monkeypatch.setattr("vqa.report.report.write_report", noted)
    monkeypatch.setattr("vqa.sweep.sweep.PAGE_EVERY_S", 0)
    monkeypatch.setattr("vqa.sweep.sweep.PAGE_SHARE", 1e9)
    run_toy(tmp_path, *SHORT, "hydra.sweeper.final=false", charts=True)
    assert len(written) > 1
    assert written[0] != written[-1]
    assert (tmp_path / "multirun/toy/report.html").exists()


def test_the_page_is_refreshed_while_workers_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Pool:
        """What watches the workers; here one that works by itself."""

        def __init__(self, shared: Any, start: Any, deadline: float, on_poll: Any) -> None:
            self.on_poll = on_poll

        def run(self) -> None:
            page = tmp_path / "multirun/toy/report.html"
            self.on_poll()  # nothing to show yet
            seen.append(page.exists())
            (worker,) = self.on_poll.args
            worker.after_trial = lambda: None
            worker.run()
            self.on_poll()
            seen.append(page.exists())

    monkeypatch.setattr("vqa.sweep.sweep.WorkerPool", Pool)
    monkeypatch.setattr("vqa.sweep.sweep.PAGE_EVERY_S", 0)
    run_toy(tmp_path, *SHORT, "hydra.sweeper.final=false", "hydra.sweeper.n_workers=2", charts=True)
    assert seen == [False, True]


def test_a_page_that_cannot_be_written_stops_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def once(final: Path, lang: str) -> Path:
        calls.append(final)
        if len(calls) == 1:
            raise UserError("the data cannot be read")
        return write_report(final, lang)

    monkeypatch.setattr("vqa.report.report.write_report", once)
    monkeypatch.setattr("vqa.sweep.sweep.PAGE_EVERY_S", 0)
    run_toy(tmp_path, *SHORT, "hydra.sweeper.final=false")
    assert len(board_rows(tmp_path)) == 4
    assert len(calls) > 1
