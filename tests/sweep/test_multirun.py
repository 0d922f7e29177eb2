"""What Hydra promises of a multirun: what a study keeps, and what it refuses by name."""

from pathlib import Path
from typing import Any

import pytest
from hydra._internal import logging_config
from omegaconf import OmegaConf

from tests.helpers.toy_app.harness import board_rows, run_multirun, run_toy
from tests.sweep.test_settings import GOOD
from vqa.config.typed import guard_log_files
from vqa.errors import UserError
from vqa.sweep.multirun import refuse_what_is_not_ours, write_multirun
from vqa.sweep.search.space import read_enqueued, read_search_space
from vqa.sweep.settings import read_settings


def config(given: tuple[str, ...] = ()) -> Any:
    return OmegaConf.create({"hydra": {"overrides": {"hydra": list(given)}}})


def test_a_folder_name_for_trials_is_refused() -> None:
    with pytest.raises(UserError, match=r"hydra\.sweep\.subdir=x has no effect.*trials/000"):
        refuse_what_is_not_ours(config(("hydra.sweep.subdir=x",)))
    refuse_what_is_not_ours(config(("hydra.sweep.dir=x",)))


@pytest.mark.parametrize("name", ["job_${hydra.job.num}", "${hydra.job.override_dirname}", "${nowhere}"])
def test_a_folder_name_made_of_hydras_own_values_is_refused_by_the_same_message(name: str) -> None:
    with pytest.raises(UserError, match=r"hydra\.sweep\.subdir=.*\$\{.* has no effect.*trials/000"):
        refuse_what_is_not_ours(config((f"hydra.sweep.subdir={name}",)))


def test_another_name_for_the_folder_of_a_jobs_configuration_is_refused() -> None:
    with pytest.raises(UserError, match=r"hydra\.output_subdir=meta has no effect.*\.hydra"):
        refuse_what_is_not_ours(config(("hydra.output_subdir=meta",)))


def test_the_sweeps_configuration_is_kept_for_its_user_alone(tmp_path: Path) -> None:
    write_multirun(config(), tmp_path / "study")
    kept = tmp_path / "study/multirun.yaml"
    assert OmegaConf.load(kept) == config()
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_jobs": 2}, r"no key 'n_jobs'.*hydra\.sweeper\.n_workers"),
        ({"max_failure_rate": 0.1}, r"no key 'max_failure_rate'.*hydra\.sweeper\.max_failures"),
        ({"search_space": {}}, r"no key 'search_space'.*hydra\.sweeper\.params"),
        (
            {"params": {"lora": {"r": "choice(8,16)"}}},
            r"params must name whole keys, got 'lora'.*lora\.r as one",
        ),
    ],
)
def test_keys_of_the_stock_sweeper_are_answered_with_ours(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings({**GOOD, **changed})


def test_known_good_settings_outside_a_narrower_range_are_left_out() -> None:
    space = read_search_space({"lr": "interval(0.1, 0.2)", "r": "choice(8,16)"}, [])
    entries = [{"lr": 0.5, "r": 8}, {"lr": 0.15, "r": 8}]
    assert read_enqueued(entries, space, leave_out=True) == [{"lr": 0.15, "r": 8}]
    with pytest.raises(UserError, match=r"enqueue\[0\]: lr must lie in"):
        read_enqueued(entries, space)


def test_quoted_choices_keep_their_text(tmp_path: Path) -> None:
    run_toy(
        tmp_path,
        "hydra/sweeper/sampler=grid",
        "hydra/sweeper/pruner=none",
        "hydra.sweeper.final=false",
        "hydra.sweeper.enqueue=[]",
        *("lr=1e-3", "lora.r=8", "image=native", "+note='a, b','c=d e'"),
    )
    assert sorted(row["+note"] for row in board_rows(tmp_path)) == ["'a, b'", "'c=d e'"]
    assert (tmp_path / "multirun/toy/multirun.yaml").exists()


def test_an_override_of_hydras_may_hold_what_only_a_job_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging_config, "configure_logging", logging_config.configure_logging)
    guard_log_files()  # as every command does
    run_toy(
        tmp_path,
        "hydra/sweeper/pruner=none",
        *("hydra.sweeper.n_trials=2", "hydra.sweeper.final=false", "hydra.job.chdir=true"),
        "+hydra.job.env_set.VQA_TEST_OF_TRIAL=t${hydra.job.num}",
    )
    assert len(board_rows(tmp_path)) == 2
    kept = OmegaConf.load(tmp_path / "multirun/toy/trials/001/.hydra/hydra.yaml")
    assert OmegaConf.select(kept, "hydra.job.env_set.VQA_TEST_OF_TRIAL") == "t1"


@pytest.mark.parametrize(
    "given",
    [
        ("lora.r=range(8,10)", "image=glob(*)"),
        ("+image@small=native,pad_512", "++new=1,2"),
        ("+image@small=glob(*,exclude=n*)", "+new=1,2"),
        ("note='a, b','c=d e','1',1,null,true",),
        ("budget={folds: 1},{folds: 2}", "pauses_s=[0.0, 0.0, 0.0, 0.0],[]", "~note"),
        ("experiment=other", "lora.r=8,16"),
    ],
)
def test_a_grid_runs_the_very_configurations_that_hydras_own_sweeper_runs(
    tmp_path: Path, given: tuple[str, ...]
) -> None:
    ours = ("hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", "hydra.sweeper.final=false")
    found: dict[str, list[str]] = {}
    for name, words in {
        "study": ("hydra.sweeper.n_trials=99", *ours),
        "basic": ("hydra.output_subdir=.hydra",),  # where a study keeps it in any case
    }.items():
        (tmp_path / name).mkdir()
        run_multirun(tmp_path / name, f"hydra/sweeper={name}", "stage=trial", *words, *given)
        kept = sorted((tmp_path / name).rglob(".hydra/config.yaml"))
        found[name] = sorted(path.read_text(encoding="utf-8") for path in kept)
    assert len(found["basic"]) > 1
    assert found["study"] == found["basic"]


def test_a_narrower_range_on_the_command_line_leaves_out_the_files_first_configurations(
    tmp_path: Path,
) -> None:
    words = ("lr=interval(3e-5,5e-5)", "hydra.sweeper.n_trials=1", "hydra.sweeper.final=false")
    run_toy(tmp_path, *words)
    (row,) = board_rows(tmp_path)
    assert 3e-5 <= float(row["lr"]) <= 5e-5
    with pytest.raises(UserError, match=r"enqueue\[0\]: lr must lie in"):
        run_toy(tmp_path, *words, "study=other", "hydra.sweeper.enqueue=[{lr: 0.5}]")
