"""Every command that the program prints runs as it stands: copied into another shell, in the same folder.

The shells below know none of the variables that the first command was given.
"""

import csv
import html
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import environment
from tests.helpers.forked_command import Forked
from vqa.config.words import command_line

COLUMNS = "data.columns={id: '번호', path: '그림', question: '질문', answer: '정답'}"
SMALL = [
    *("budget=smoke", "budget.batch_size=8", "budget.micro_batch_size=8", "env.threads=1", "tracking=none"),
    *("budget.epochs=1", "study=my quiz"),
]
SWEEP = ["+sweep=lora", "hydra.sweeper.n_trials=1", "hydra/sweeper/pruner=none"]


def shell(folder: Path, command: str, **variables: str) -> str:
    """Run a line in a shell of its own; what it says."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def first(folder: Path, *arguments: str, **variables: str) -> str:
    """Run a command that prints others, as `python -m vqa.run`; what it says."""
    process = Forked(folder, *arguments, **variables)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def typed(*words: str) -> str:
    """A command as a user types it."""
    return " ".join(f'"{word}"' for word in (sys.executable, "-m", "vqa.run", *words))


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    """A folder with a contest file, its pictures elsewhere, in paths with spaces."""
    pictures = tmp_path / "my pictures"
    pictures.mkdir()
    for i in range(40):
        Image.new("RGB", (32, 32), (i * 6, 90, 40)).save(pictures / f"{i}.png")
    with (tmp_path / "my train.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["번호", "그림", "질문", "a", "b", "c", "d", "정답"])
        out.writerows([f"q{i}", f"{i}.png", "색은?", "k", "l", "m", "n", "abcd"[i % 4]] for i in range(40))
    return tmp_path


def next_of(said: str) -> str:
    """What stands behind the last "next: "; a terminal's line may be long, so a pipe has it whole."""
    found: list[str] = re.findall(r"[Nn]ext: (.+)", said)
    return found[-1]


def copied_from(page: Path) -> list[str]:
    """The commands of a page that a button copies."""
    found = re.findall(r'class="copied"><pre[^>]*>([^<]*)</pre>', page.read_text(encoding="utf-8"))
    return [html.unescape(text) for text in found if "git checkout" not in text]


@pytest.mark.slow
def test_doctor_report_and_refusals_print_commands_that_run(quiz: Path) -> None:
    data = ["data=csv", "data.train_csv=my train.csv", COLUMNS]
    pictures, out = str(quiz / "my pictures"), str(quiz / "my results")
    variables = {"DATA_PATH": pictures, "VQA_OUTPUT": out}

    told = first(quiz, "stage=doctor", *data, *SMALL, *SWEEP, "hydra.sweeper.final=false", **variables)
    sweep = next_of(told)
    shell(quiz, sweep)  # searches, and stops before the final run, as it was told to
    study = quiz / "my results/my quiz"
    assert (study / "leaderboard.csv").exists()
    assert not (study / "final").exists()

    first(quiz, "stage=report", "study=my quiz", **variables)
    page = (study / "report.html").read_text(encoding="utf-8")
    shell(quiz, html.unescape(re.findall(r"next: ([^<]+?)\.<", page)[0]))
    assert (study / "final/manifest.json").exists()

    again = copied_from(study / "report.html")
    assert len(again) == 2
    for command in again:
        assert "nothing" in shell(quiz, command)
    assert [path.name for path in (quiz / "my results").iterdir()] == ["my quiz"]


def test_a_search_without_m_is_told_the_command_with_it(quiz: Path) -> None:
    words = [*SWEEP, *SMALL, "data=csv", "data.train_csv=my train.csv", COLUMNS]
    done = subprocess.run(
        ["bash", "-c", typed(*words)],
        cwd=quiz,
        env=environment(DATA_PATH=str(quiz)),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 2
    command = next_of(done.stderr)
    assert command.startswith(f"DATA_PATH={quiz} {sys.executable} -m vqa.run -m +sweep=lora ")
    for word in (*SWEEP, f'"{COLUMNS}"', "'data.train_csv=my train.csv'", "'study=my quiz'"):
        assert f" {word}" in command


def test_a_command_begins_as_this_one_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", [".venv/bin/python", "-m", "vqa.run", "stage=doctor"])
    assert command_line(["-m", "a=b c"]) == ".venv/bin/python -m vqa.run -m 'a=b c'"
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "/opt/x/bin/vqa", "doctor"])
    monkeypatch.setattr(sys, "argv", ["/opt/x/bin/vqa", "doctor"])
    assert command_line(["study=s"]) == "/opt/x/bin/vqa study=s"
    monkeypatch.setenv("PATH", "/opt/x/bin")
    monkeypatch.setattr("shutil.which", lambda name: f"/opt/x/bin/{name}")
    monkeypatch.setenv("DATA_PATH", "/my pictures")
    assert command_line(["study=s"]) == "DATA_PATH='/my pictures' vqa study=s"
