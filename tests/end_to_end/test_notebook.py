"""The notebook only calls the commands, and they work as they stand."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.forked_command import Forked

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks/quick_start.ipynb"
# what makes the notebook's very commands short enough for a test
SMALL = "budget=smoke data.train_size=60 data.test_size=12 env.threads=1"


def code_cells() -> list[str]:
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def commands(run: str) -> list[list[str]]:
    """Every line that runs this program, with {RUN...} filled in as IPython does."""
    filled = []
    for cell in code_cells():
        for line in cell.splitlines():
            if line.startswith("!python -m vqa.run"):
                expression = re.compile(r"\{(.*?)\}")
                text = expression.sub(lambda match: str(eval(match[1], {"RUN": run})), line[1:])
                filled.append(shlex.split(text))
    return filled


def test_the_notebook_only_calls_commands() -> None:
    place, install, *rest = code_cells()
    assert "SOURCE = " in place
    assert [line.split(" ")[:4] for line in install.splitlines() if line[0] != "#"] == [
        ["!python", "-m", "pip", "list"],
        ["%pip", "install", "--quiet", "--constraint"],
    ]
    for cell in rest:
        for line in cell.splitlines():
            assert re.match(r"(#|!python -m vqa\.run |RUN = \")", line), line


@pytest.mark.parametrize(
    ("wheel", "folder", "source"),
    [
        (True, ".", "--no-index --find-links /kaggle/input/wheels vqa"),
        (False, str(ROOT), "."),
        (False, str(ROOT / "notebooks"), ".."),
        (False, "", "git+https://example.org/you/vqa.git"),
    ],
)
def test_the_notebook_finds_the_code_by_itself(
    wheel: bool, folder: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder or tmp_path)
    found = ["/kaggle/input/wheels/vqa-0.1.0-py3-none-any.whl"] if wheel else []
    monkeypatch.setattr("glob.glob", lambda *args, **kwargs: found)
    names: dict[str, str] = {}
    exec(code_cells()[0], names)
    assert names["SOURCE"] == source


@pytest.mark.slow
def test_the_notebooks_commands_run_as_they_stand(tmp_path: Path) -> None:
    run: dict[str, str] = {}
    exec(next(cell for cell in code_cells() if "RUN =" in cell), run)
    for command in commands(run["RUN"]):
        assert command[:3] == ["python", "-m", "vqa.run"]
        small = [] if "stage=report" in command else SMALL.split()
        process = Forked(tmp_path, *command[3:], *small)
        said, _ = process.communicate()
        assert process.returncode == 0, (command, said)
    study = tmp_path / "multirun/notebook"
    assert (study / "final/submission.csv").exists()
    assert (study / "report.html").exists()
