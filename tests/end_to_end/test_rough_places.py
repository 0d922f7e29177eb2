"""A command in a rough place: odd names, no home, another locale, nobody else may read, a clock set back."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.helpers.command_line import vqa
from vqa.results.predictions import Prediction, write_predictions
from vqa.results.work import Provenance, write_manifest

ODD = "한국어 📷 'a\" b"
ROWS = [Prediction(f"q{i} 한글 📷", "a", (0.7, 0.1, 0.1, 0.1), 1.0, "a") for i in range(4)]


def members(folder: Path) -> str:
    """Two runs' answers below a folder, as the option that names them."""
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        write_predictions(folder / name / "test_predictions.csv", ROWS)
    return "ensemble.members=[one/test_predictions.csv,two/test_predictions.csv]"


def test_odd_names_without_home_in_the_c_locale_with_umask_077(tmp_path: Path) -> None:
    folder = tmp_path / ODD
    given = members(folder)
    env = environment(LC_ALL="C", PYTHONPATH=str(Path.cwd()))
    env = {name: value for name, value in env.items() if name not in ("HOME", "LANG", "LC_CTYPE")}
    words = ["stage=ensemble", given, "tracking=none", "env.output_root='나온 것'"]
    command = [sys.executable, "-m", "vqa.run", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, check=False, umask=0o077)
    assert done.returncode == 0, done.stderr
    out = folder / "나온 것/default/ensemble"
    lines = (out / "submission.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["id,answer", *(f"{row.id},a" for row in ROWS)]
    assert {path.stat().st_mode & 0o077 for path in out.rglob("*")} == {0}
    assert b"Traceback" not in done.stderr


def test_a_clock_that_was_set_back_makes_no_negative_time(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", Provenance({}, 0, started=time.time() + 3600))
    assert json.loads((tmp_path / "manifest.json").read_text())["wall_time_s"] == 0


def test_a_folder_on_a_read_only_file_system_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = members(tmp_path)
    monkeypatch.chdir(tmp_path)
    mkdir = Path.mkdir

    def refuse(self: Path, *arguments: object, **named: object) -> None:
        if "ro" in self.parts:
            raise OSError(30, os.strerror(30), str(self))  # also root gets this one
        mkdir(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refuse)
    told = vqa(monkeypatch, capsys, "stage=ensemble", given, "tracking=none", "env.output_root=ro")
    assert told.code == 2
    assert "Read-only file system" in told.err
    assert "Traceback" not in told.err
