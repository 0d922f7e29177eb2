"""Where files lie; a run's folder belongs to one configuration, nothing in it is overwritten by another."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tests.conftest import Compose
from tests.helpers.written_study import write_study
from vqa.errors import UserError
from vqa.machine.interrupt import time_limit
from vqa.results.folder import MANIFEST, RunFolder, StudyFolder, read_json, read_yaml
from vqa.results.predictions import read_predictions
from vqa.results.trials import read_folds, read_leaderboard
from vqa.results.work import begin
from vqa.sweep.final_run import read_winner


@pytest.fixture
def cfg(composed: Compose) -> Iterator[DictConfig]:
    """The plain configuration, inside a Hydra job."""
    HydraConfig.instance().set_config(compose("config", overrides=["seed=3"], return_hydra_config=True))
    yield composed("seed=3")
    HydraConfig.instance().cfg = None


def test_a_new_folder_is_claimed_with_its_configuration(cfg: DictConfig, tmp_path: Path) -> None:
    folder = tmp_path / "study" / "final"
    assert begin(folder, cfg)
    assert OmegaConf.load(folder / ".hydra/config.yaml") == cfg
    assert OmegaConf.load(folder / ".hydra/overrides.yaml") == ["seed=3"]
    assert (folder / ".hydra/hydra.yaml").is_file()


def test_a_cut_off_run_goes_on_and_a_complete_one_does_not(cfg: DictConfig, tmp_path: Path) -> None:
    assert begin(tmp_path, cfg)
    before = (tmp_path / ".hydra/config.yaml").stat().st_mtime_ns
    (tmp_path / "checkpoint.pt").touch()
    assert begin(tmp_path, cfg)
    for unfinished in (
        "",
        '{"seed": 3, "ver',
        "[]",
    ):  # what a power loss left is no finished run
        (tmp_path / MANIFEST).write_text(unfinished)
        assert begin(tmp_path, cfg)
    (tmp_path / MANIFEST).write_text("{}")
    assert not begin(tmp_path, cfg)
    assert (tmp_path / ".hydra/config.yaml").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", [MANIFEST, "folds.csv"])
def test_a_run_of_another_configuration_is_refused_and_left_alone(
    cfg: DictConfig, composed: Compose, tmp_path: Path, name: str
) -> None:
    begin(tmp_path, cfg)
    (tmp_path / name).touch()
    with pytest.raises(
        UserError,
        match=r"holds a run of another configuration \(lora.r: 16 there, 4 now\). Nothing was changed",
    ):
        begin(tmp_path, composed("seed=3", "lora.r=4"))
    assert OmegaConf.load(tmp_path / ".hydra/config.yaml") == cfg


def test_an_option_added_or_left_out_is_another_configuration(
    cfg: DictConfig, composed: Compose, tmp_path: Path
) -> None:
    begin(tmp_path, cfg)
    (tmp_path / "folds.csv").touch()
    with pytest.raises(UserError, match=r"lora.bias: None there, all now"):
        begin(tmp_path, composed("seed=3", "+lora.bias=all"))


def test_a_folder_with_bookkeeping_only_is_taken_over(
    cfg: DictConfig, composed: Compose, tmp_path: Path
) -> None:
    begin(tmp_path, cfg)
    for name in ("run.log", ".mlflow_run_id", "split.csv"):
        (tmp_path / name).touch()
    other = composed("seed=3", "lora.r=4")
    assert begin(tmp_path, other)
    assert OmegaConf.load(tmp_path / ".hydra/config.yaml") == other


@pytest.mark.parametrize(
    "override",
    ["tracking=none", "env.threads=7", "winner=none", "budget.micro_batch_size=1", "image.cache_gib=0"],
)
def test_where_and_how_may_differ(cfg: DictConfig, composed: Compose, tmp_path: Path, override: str) -> None:
    begin(tmp_path, cfg)
    (tmp_path / "checkpoint.pt").touch()
    assert begin(tmp_path, composed("seed=3", override))


def test_a_folder_that_cannot_be_made_is_named(cfg: DictConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/final cannot be written .*set VQA_OUTPUT=/a/writable/folder"):
        begin(tmp_path / "file" / "final", cfg)


def test_trials_folders_come_from_the_number(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    assert study.trial(7).path == tmp_path / "trials/007"
    assert study.trial(1234).path == tmp_path / "trials/1234"


def test_a_studys_files_are_found_and_read(tmp_path: Path) -> None:
    final = RunFolder(write_study(tmp_path))
    study = final.study
    assert (study.path, study.final.path) == (tmp_path, final.path)
    assert final.complete
    assert final.metrics()["accuracy"] == 0.75
    assert final.manifest()["device"] == "cpu"
    assert final.config()["lora"]["r"] == 8
    assert [run.path.name for run in study.scored_runs()] == ["final"]
    assert [trial.number for trial in study.trials()] == [0, 1, 2, 3, 4, 5]
    assert [result.fold for result in study.trial(0).folds()] == [0, 1, 2]
    assert study.has_results()
    assert [file.name for file in study.tables()] == ["study.yaml", "leaderboard.csv", "metrics.json"]
    assert [file.name for file in final.results()] == [
        *("metrics.json", "valid_predictions.csv", "test_predictions.csv")
    ]


def test_an_empty_folder_reads_as_nothing(tmp_path: Path) -> None:
    run, study = RunFolder(tmp_path / "final"), StudyFolder(tmp_path)
    assert not run.complete
    assert (run.metrics(), run.manifest(), run.config(), run.folds()) == ({}, {}, {}, [])
    assert (run.overrides(), run.command()) == (None, "")
    assert (study.trials(), study.ranking(), study.scored_runs(), study.tables()) == ([], [], [], [])
    assert not study.has_results()


def test_a_report_lies_in_the_study_or_beside_a_run_without_one(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "final").report == tmp_path / "report.html"
    other = RunFolder(tmp_path / "seed2")
    assert other.report == tmp_path / "seed2/report.html"
    (tmp_path / "leaderboard.csv").touch()
    assert other.report == tmp_path / "report.html"


def test_the_command_is_what_was_typed_and_leads_into_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = "python -m vqa.run +sweep=lora optimizer.lr=0.001"
    final = RunFolder(write_study(tmp_path / "multirun/made"))
    assert final.command() == f"{typed} \"hydra.run.dir='{final.path}'\""
    monkeypatch.chdir(tmp_path)
    assert final.command() == typed  # it is the usual folder, seen from here


def test_a_broken_json_file_is_named(tmp_path: Path) -> None:
    assert read_json(tmp_path / "no.json") == {}
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics.json: is no JSON .*run the stage that writes it again"):
        read_json(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(UserError, match=r"metrics.json: must be a JSON object"):
        read_json(tmp_path / "metrics.json")


READERS: dict[str, Callable[[Path], object]] = {
    "predictions": read_predictions,
    "folds": read_folds,
    "leaderboard": read_leaderboard,
    "a JSON file": read_json,
    "a YAML file": read_yaml,
    "best.yaml": read_winner,
}


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "nested", "no text"])
@pytest.mark.parametrize("reader", READERS)
def test_a_file_of_others_that_is_none_is_refused_at_once(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "theirs"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        path.write_bytes(b"[" * 5000 if kind == "nested" else b"\xff\xfe\n")
    with time_limit(10), pytest.raises(UserError, match=re.escape(str(path))):
        READERS[reader](path)
