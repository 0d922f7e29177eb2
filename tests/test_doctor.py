"""The doctor says what is wrong with the machine, and the exact command that mends it."""

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Make

from vqa.doctor import cache_problem, run_doctor
from vqa.errors import UserError

Usage = namedtuple("Usage", "total used free")
GIB = 2**30
HUB = "model=qwen3_vl_2b"


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """unwritable(folder) makes the folder look like somebody else's, also to root."""
    access = os.access

    def forbid(folder: Path) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and Path(path) != folder)

    return forbid


def test_a_cache_that_belongs_to_root_comes_with_the_fix(
    settings: Make, tmp_path: Path, unwritable: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "owner", lambda self: "root")
    made = settings(HUB, f"env.hf_home={tmp_path}/cache")
    assert cache_problem(made) is None  # not there yet, but can be made
    unwritable(tmp_path)
    assert cache_problem(made) == (
        f"the Hugging Face cache {tmp_path}/cache cannot be written ({tmp_path} belongs to root); "
        f"run: sudo chown -R $USER {tmp_path}   or: export HF_HOME=/a/writable/folder"
    )
    assert cache_problem(settings(f"env.hf_home={tmp_path}/cache")) is None  # asset:tiny needs no cache
    assert cache_problem(settings(HUB, f"env.hf_home={tmp_path}/cache", "env.offline=true")) is None


def test_the_cache_is_looked_for_where_the_hub_library_looks(
    settings: Make, tmp_path: Path, unwritable: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    default = tmp_path / ".cache/huggingface"
    default.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    unwritable(default)
    assert f"sudo chown -R $USER {default} " in str(cache_problem(settings(HUB)))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "elsewhere"))
    assert cache_problem(settings(HUB)) is None


def test_an_owner_the_machine_does_not_know_is_named_by_number(
    settings: Make, tmp_path: Path, unwritable: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(path: Path) -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(Path, "owner", unknown)
    unwritable(tmp_path)
    found = str(cache_problem(settings(HUB, f"env.hf_home={tmp_path}")))
    assert f"({tmp_path} belongs to user {tmp_path.stat().st_uid})" in found


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
    assert [line.split()[0] for line in lines] == ["ok", "wrong", "wrong", "wrong", "ok", "ok"]


def test_a_healthy_machine_is_told_what_to_do_next(
    settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_doctor(settings(f"env.output_root={tmp_path}"))
    assert "all good; next: python -m vqa.run -m +sweep=lora" in capsys.readouterr().out
