"""Every file of a study, emptied or cut off: a message or the right result, never a traceback."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.helpers.rough_times import files_up_to
from tests.helpers.toy_app.harness import outcome, run_toy
from tests.helpers.written_study import write_study
from vqa.errors import UserError, mendable
from vqa.machine.files import replace_text, replacing, replacing_folder
from vqa.report.report import write_report
from vqa.results.folder import RunFolder
from vqa.sweep.board import show_status
from vqa.sweep.final_run import read_winner
from vqa.sweep.time_budget import PLAN, read_plan

pytestmark = pytest.mark.hostile
SWEEP = ("hydra.sweeper.n_trials=2", "hydra/sweeper/pruner=none")
FILES = [
    *(".sweep.json", "study.yaml", "study.db", "leaderboard.csv", "best.yaml", "experiment/best.yaml"),
    *("trials/001/folds.csv", "trials/001/oof_predictions.csv", "workers/0.json", "final/manifest.json"),
    *("final/.hydra/overrides.yaml", "final/.hydra/config.yaml", "final/metrics.json", "trials/001/run.log"),
]
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) * 2 // 3],
    "bytes": lambda data: b"\xff\x00{[",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_toy(folder, *SWEEP)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_study_is_told_or_made_again(
    whole: Path, tmp_path: Path, name: str, damage: str
) -> None:
    shutil.copytree(whole / "multirun", tmp_path / "multirun")
    study = tmp_path / "multirun/toy"
    if not (study / name).exists():
        pytest.fail(f"{name} is no file of a study any more")
    (study / name).write_bytes(DAMAGES[damage]((study / name).read_bytes()))
    told = []
    for look in (
        lambda: show_status(study, Console(file=io.StringIO())),
        lambda: read_winner(study / "best.yaml"),
        lambda: run_toy(tmp_path, *SWEEP),
    ):
        try:
            look()
        except UserError as error:
            told.append(str(error))
    same = outcome(tmp_path) == outcome(whole) if not told else True
    assert same or told
    if name in (".sweep.json", "best.yaml", "final/manifest.json") and damage == "empty":
        assert RunFolder(study / "final").complete  # the sweep made it again


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name",
    [
        *("leaderboard.csv", "study.yaml", "final/metrics.json", "final/manifest.json"),
        *("final/.hydra/config.yaml", "final/.hydra/overrides.yaml", "final/valid_predictions.csv"),
        *("final/test_predictions.csv", "trials/000/folds.csv"),
    ],
)
def test_the_report_of_a_damaged_file_is_refused_with_its_name(
    tmp_path: Path, name: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa.report.report.study_charts", lambda trials, by_guessing: {})
    monkeypatch.setattr("vqa.report.report.run_charts", lambda history, labelled: {})
    final = write_study(tmp_path, trials=2)
    path = tmp_path / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    told = "made again"
    try:
        write_report(final, "en")
    except UserError as error:
        told = str(error)
    assert told == "made again" or path.name in told or "configuration" in told


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"size": 3}', '{"size": {}}'])
def test_a_damaged_plan_is_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(UserError, match=r"plan.json: "):
        read_plan(tmp_path)


@pytest.mark.parametrize("room", [0, 1, 1000, 4096, 9999])
def test_a_write_that_finds_no_room_leaves_the_old_file_and_nothing_else(tmp_path: Path, room: int) -> None:
    path, folder = tmp_path / "한국어 📷 file", tmp_path / "adapter"
    replace_text(path, "old")
    with replacing_folder(folder) as unfinished:
        (unfinished / "weights").write_text("old")
    with files_up_to(room), pytest.raises(OSError, match="File too large") as raised:
        replace_text(path, "new" * 5000)
    assert mendable(raised.value)
    with files_up_to(room), pytest.raises(OSError), replacing_folder(folder) as unfinished:
        (unfinished / "weights").write_text("new" * 5000)
    assert path.read_text() == "old"
    assert (folder / "weights").read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter", path.name]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    import os

    path = tmp_path / "x"
    child = os.fork()
    if child == 0:
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            os._exit(9)
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 1
    replace_text(path, "whole")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    long = tmp_path / ("ㄱ" * 80)  # 240 bytes; with a suffix it would be too long
    replace_text(long, "whole")
    assert long.read_text() == "whole"
