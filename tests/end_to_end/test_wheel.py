"""The wheel holds all that a run needs, adds no other name, and runs away from the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import CONF, environment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools works in the source's folder, and takes up what an earlier build left."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("vqa", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, target], cwd=source, capture_output=True, check=True)
    [made] = target.glob("vqa-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installer makes of the wheel: its files, in a folder on Python's path."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(installed: Path, cwd: Path, *arguments: str) -> str:
    """What `python -m vqa.run` prints when the wheel's files come before the checkout."""
    command = [sys.executable, "-m", "vqa.run", *arguments]
    env = environment(PYTHONPATH=str(installed))
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def files(folder: Path, *, within: Path) -> set[str]:
    return {
        path.relative_to(within).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_only_importable_name_is_vqa(installed: Path) -> None:
    names = sorted(path.name for path in installed.iterdir())
    assert [name for name in names if not name.endswith(".dist-info")] == ["vqa"]


def test_nothing_of_the_source_is_missing(installed: Path) -> None:
    assert files(installed / "vqa", within=installed) == files(ROOT / "vqa", within=ROOT) | {
        f"vqa/{name}" for name in files(CONF, within=ROOT)
    }


def test_the_configuration_is_the_wheels_own(installed: Path, tmp_path: Path) -> None:
    assert f"file://{installed}/vqa/conf" in run(installed, tmp_path, "--info", "searchpath")
    assert "quantization: int8, nf4, none" in run(installed, tmp_path, "--help")
    assert "study: lora\n" in run(installed, tmp_path, "--cfg", "job", "+sweep=lora")


def test_a_folder_of_ones_own_is_searched_too(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine/sweep").mkdir(parents=True)
    own = "# @package _global_\ndefaults: [grid]\nstudy: mine\n"
    (tmp_path / "mine/sweep/mine.yaml").write_text(own)
    assert "study: mine\n" in run(installed, tmp_path, "--config-dir", "mine", "--cfg", "job", "+sweep=mine")


def test_the_doctor_finds_all_good(installed: Path, tmp_path: Path) -> None:
    assert "all good" in run(installed, tmp_path, "stage=doctor", "tracking=none", "env.threads=1")
