"""The doctor says what is wrong with the machine, and the exact command that mends it."""

import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from tests.conftest import Compose, Make
from vqa.config.check import read_settings
from vqa.config.korean import in_korean
from vqa.config.messages import message
from vqa.errors import UserError
from vqa.results.folder import StudyFolder
from vqa.stages.doctor import CHECKS, final_findings, next_command, run_doctor, sweep_findings

Usage = namedtuple("Usage", "total used free")
GIB = 2**30
HUB = "model=qwen3_vl_2b"


def test_a_full_disk_is_reported_in_gib(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GIB, 98 * GIB, 2 * GIB))
    with pytest.raises(
        UserError, match=r"output folder and disk: only 2.0 GiB free under .*, 5 needed; free"
    ):
        run_doctor(settings(f"env.output_root={tmp_path}/out"))


def test_an_output_folder_that_cannot_be_written_is_reported(
    settings: Make, tmp_path: Path, unwritable: Callable[[Path], None]
) -> None:
    unwritable(tmp_path)
    with pytest.raises(UserError, match=r"env.output_root=.*/out cannot be written; set VQA_OUTPUT=/a/writ"):
        run_doctor(settings(f"env.output_root={tmp_path}/out"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [HUB, "model.path=nobody/nothing", "env.offline=true"],
            r"1 thing\(s\) to mend:\n  - model: model.path=nobody/nothing cannot be loaded: .*=/a/f",
        ),
        (["model.path=/nowhere"], r"  - model: model.path=/nowhere: no config.json there"),
        (
            ["optimizer=adamw_8bit", "env.device=cpu"],
            r"device: optimizer: .*AdamW8bit needs a GPU; use optim",
        ),
        (["precision=float16", "env.device=cpu"], r"device: precision=float16 needs a GPU"),
    ],
)
def test_what_cannot_run_here_is_reported(
    settings: Make, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_doctor(settings(f"env.output_root={tmp_path}", *overrides))


def test_every_problem_is_listed_and_every_check_shown(
    settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["model.path=/nowhere", "optimizer=adamw_8bit", "env.device=cpu"]
    with pytest.raises(UserError, match=r"3 thing\(s\) to mend"):
        run_doctor(settings(f"env.output_root={tmp_path}", *wrong))  # the cache check asks for the model too
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "ok", "wrong", "wrong", "wrong", "ok", "ok"]


def test_every_check_and_every_problem_of_one_are_named_in_korean_alike() -> None:
    for name in CHECKS:
        korean = message("ko", f"check {name}")
        assert re.search("[가-힣]", korean)
        assert in_korean(f"  - {name}: is empty") == f"  - {korean}: 비어 있습니다"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra.sweeper.n_trials=0"], r"hydra.sweeper.n_trials must be a whole number >= 1, got 0"),
        (["hydra.sweeper.sampler.n_startup_trials=many"], r"hydra.sweeper.sampler: .* cannot draw from this"),
        (["+hydra.sweeper.sampler.nonsense=1"], r"hydra.sweeper.sampler: .*unexpected keyword argument"),
        (["+hydra.sweeper.pruner.nonsense=1"], r"hydra.sweeper.pruner: .*nonsense"),
        (["hydra/sweeper/sampler=thomson"], r"Could not find 'hydra/sweeper/sampler/thomson'"),
        (["hydra.sweeper.storage=mysql://me@host/db"], r"hydra.sweeper.storage must be sqlite"),
        (["hydra.sweeper.storage=sqlite:////nowhere/study.db"], r"/nowhere is no folder that can be written"),
        (
            ["hydra.sweeper.storage=postgresql+psycopg://me:pw@127.0.0.1:1/db"],
            r":\*\*\*@.* cannot be op",
        ),
        (["++hydra.sweeper.conditions={lora.r: {nothing: [1]}}"], r"conditions.lora.r.nothing"),
        (["hydra.sweeper.enqueue=[{lora.r: 7}]"], r"lora.r"),
        (["++hydra.sweeper.params={lorra.r: 'choice(1,2)'}"], r"a job of this sweep cannot be composed"),
        (["hydra.sweeper.budget_minutes=10", "budget.subsample=null"], r"budget.subsample must be a number"),
        (["hydra.sweeper.worker_command=no-such-program"], r"this machine has no such program"),
        (
            ["hydra.sweeper.final_command=torchrun", "hydra.sweeper.final=false"],
            r"has no (effect|such)",
        ),
        (["lora.r=choice(8,9)", "lora.lora_alpha=-1"], r"lora.lora_alpha"),
        (["hydra.sweep.subdir=x"], r"has no effect on a study"),
    ],
)
def test_what_a_sweep_would_refuse_at_its_start_is_reported(
    composed: Compose, tmp_path: Path, words: list[str], message: str
) -> None:
    composed()  # begins Hydra
    given = ["+sweep=lora", "stage=doctor", "tracking=none", f"env.output_root={tmp_path}", *words]
    (problem,) = sweep_findings(given)
    assert re.search(message, problem)
    assert list(tmp_path.iterdir()) == []  # nothing is made


def test_a_study_that_was_begun_under_other_terms_is_reported(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed()
    study = tmp_path / "lora"
    study.mkdir()
    (study / "study.yaml").write_text("fixed: [model=other]\n")
    monkeypatch.setattr(StudyFolder, "has_results", lambda folder: folder.path == study)
    (problem,) = sweep_findings([f"env.output_root={tmp_path}"])
    assert "study 'lora' was begun under other terms" in problem
    assert sweep_findings([f"env.output_root={tmp_path}", "study=new"]) == []


def test_a_healthy_machine_is_told_what_to_do_next(
    settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = "data.columns={path: [image_1, image_2]}"
    monkeypatch.setattr("vqa.stages.doctor._given", lambda: [columns])
    run_doctor(settings(f"env.output_root={tmp_path}"))
    said = capsys.readouterr().out
    assert "all good; next: python -m vqa.run -m +sweep=lora" in said
    assert f"'{columns}'" in said  # no backslash before the bracket


def test_the_next_command_has_the_users_own_arguments() -> None:
    given = ["stage=doctor", "data=csv", "data.train_csv=my data/train.csv", "lang=ko"]
    columns = "data.columns={id: '번호'}"
    assert next_command([columns]) == f'python -m vqa.run -m +sweep=lora "{columns}"'
    assert next_command(given) == (
        "python -m vqa.run -m +sweep=lora data=csv 'data.train_csv=my data/train.csv' lang=ko"
    )


def _rows(folder: Path, count: int, pictures: int) -> list[str]:
    """A training file of so many rows on so many pictures; the arguments that name it."""
    for i in range(pictures):
        Image.new("RGB", (32, 32), (i * 7 % 256, 90, 40)).save(folder / f"{i}.png")
    rows = [f"q{i},{i % pictures}.png,what?,k,l,m,n,{'abcd'[i % 4]}\n" for i in range(count)]
    (folder / "train.csv").write_text("id,path,question,a,b,c,d,answer\n" + "".join(rows))
    return ["data=csv", f"data.train_csv={folder}/train.csv", f"data.image_root={folder}"]


DOCTOR = ["stage=doctor", "tracking=none"]


@pytest.mark.parametrize(
    ("count", "pictures", "message"),
    [
        (6, 6, r"data: .*holding out 20% needs at least 5 questions of each letter"),
        (60, 1, r"data: .*needs at least 5 different images, got 60 questions on 1 different images"),
    ],
)
def test_data_that_cannot_be_divided_are_not_all_good(
    composed: Compose, tmp_path: Path, count: int, pictures: int, message: str
) -> None:
    data = _rows(tmp_path, count, pictures)
    with pytest.raises(UserError, match=message):
        run_doctor(read_settings(composed(*data, *DOCTOR, f"env.output_root={tmp_path}/out")))


def test_data_that_can_be_held_out_and_make_no_folds_are_not_all_good(
    composed: Compose, tmp_path: Path
) -> None:
    words = [*_rows(tmp_path, 60, 10), *DOCTOR, "budget.folds=10", f"env.output_root={tmp_path}/out"]
    with pytest.raises(UserError, match=r"data: budget.folds=10 needs at least 10 different images"):
        run_doctor(read_settings(composed(*words)))


def _begun_final(root: Path, study: str, words: list[str], config: DictConfig) -> None:
    """A final run that was cut off, as its folder tells of it."""
    final = StudyFolder(root / study).final
    final.config_file.parent.mkdir(parents=True)
    final.overrides_file.write_text(OmegaConf.to_yaml(OmegaConf.create(words)))
    OmegaConf.save(config, final.config_file)
    final.checkpoint.write_text("")


def test_a_final_run_that_other_settings_have_begun_is_reported_before_the_sweep(
    composed: Compose, tmp_path: Path
) -> None:
    root = f"env.output_root={tmp_path}"
    asked = ["+sweep=lora", "study=mine", root]
    _begun_final(tmp_path, "mine", ["budget.epochs=7"], composed())
    (problem,) = sweep_findings(asked)
    assert re.search(r"mine/final was begun with other settings than the winner's now", problem)
    assert sweep_findings([*asked, "hydra.sweeper.final=false"]) == []
    shutil.rmtree(tmp_path / "mine")
    swept = compose("config", overrides=asked, return_hydra_config=True)
    sweeper = swept.hydra.sweeper
    final = [*(f"{key}={value}" for key, value in sweeper.record.items()), *sweeper.final_overrides]
    _begun_final(tmp_path, "mine", [*asked, "optimizer.lr=0.1", *final], composed())
    assert sweep_findings(asked) == []  # the winner decides the searched keys


def test_what_the_final_stage_would_refuse_is_told(composed: Compose, tmp_path: Path) -> None:
    words = ["study=mine", f"env.output_root={tmp_path}"]
    assert final_findings(words) == []
    _begun_final(tmp_path, "mine", words, composed(*words, "lora.r=4"))
    (problem,) = final_findings(words)
    assert re.search(r"mine/final holds a run of another configuration \(lora.r: 4 there, \d+ now\)", problem)
    assert final_findings([*words, "lora.r=4"]) == []
    (problem,) = final_findings([*words, "study=new", "final.members=folds"])
    assert problem.startswith("final.members=folds needs the number of folds: give budget.folds=3")
    assert final_findings([*words, "study=new", "final.members=folds", "budget.folds=3"]) == []


def test_a_missing_adapter_is_reported_where_the_next_command_answers(
    composed: Compose, tmp_path: Path
) -> None:
    data = _rows(tmp_path, 60, 30)
    words = [*data, *DOCTOR, f"env.output_root={tmp_path}/out"]
    run_doctor(read_settings(composed(*words)))
    missing = r"1 thing\(s\) to mend:\n  - model: adapter=.*: no adapter_config.json there"
    with pytest.raises(UserError, match=missing):
        run_doctor(read_settings(composed(*words, f"adapter={tmp_path}/nowhere")))
    answered = [*words, "data.train_csv=null", f"data.test_csv={tmp_path}/train.csv"]
    with pytest.raises(UserError, match=missing):
        run_doctor(read_settings(composed(*answered)))
    (tmp_path / "out/default/final/adapter").mkdir(parents=True)
    (tmp_path / "out/default/final/adapter/adapter_config.json").write_text("{}")
    run_doctor(read_settings(composed(*answered)))
