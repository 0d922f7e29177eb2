"""Two identical commands at once: one does the work, the other says who does; nothing is destroyed."""

from pathlib import Path

import pytest

from benchmarks.endurance.study_damage import damage
from tests.helpers.command_line import vqa
from tests.helpers.forked import forked
from tests.helpers.toy_app.harness import run_toy, trials_of
from tests.helpers.two_processes import FORKS
from vqa.machine.files import try_lock
from vqa.results import work
from vqa.results.folder import RUN_LOCK, RunFolder
from vqa.results.work import at_work

SMALL = ["tracking=none", "env.threads=1", "data.train_size=60", "data.test_size=12", "budget=smoke"]


@pytest.mark.parametrize("stage", ["final", "trial", "predict", "evaluate", "merge", "ensemble"])
def test_a_stage_that_is_at_work_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    adapter, folder = tmp_path / "adapter", tmp_path / "out/default" / stage
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(work, "TRIES", 2)
    with at_work(folder):
        (folder / "half.csv").write_text("of the first")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        command = [f"stage={stage}", f"env.output_root={tmp_path / 'out'}", *SMALL]
        command += [f"adapter={adapter}", "ensemble.members=[a.csv,b.csv]"]
        told = vqa(monkeypatch, capsys, *command)
        assert told.code == 2, told.err
        assert f"{folder} is in use by process " in told.err
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_of_two_final_runs_at_once_one_ends_and_the_other_is_told(tmp_path: Path) -> None:
    command = ["stage=final", f"env.output_root={tmp_path}", "budget.subsample=16", *SMALL]
    both = [forked(tmp_path / f"said{number}", *command) for number in range(2)]
    ended = [each.ended() for each in both]
    assert sorted(code for code, _ in ended) == [0, 2], ended
    [(_, said)] = [each for each in ended if each[0] == 2]
    assert "is in use by process " in said
    assert "Traceback" not in said
    assert RunFolder(tmp_path / "default/final").complete


def test_another_test_file_is_answered_beside_the_one_that_is_being_answered(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from vqa.results.work import folder_of_file

    first = tmp_path / "predict"
    (first / ".hydra").mkdir(parents=True)
    (first / ".hydra/config.yaml").write_text(f"data: {{test_csv: {tmp_path}/a.csv}}\n")
    mine, other = (
        OmegaConf.create({"data": {"test_csv": str(tmp_path / name)}}) for name in ("a.csv", "b.csv")
    )
    assert folder_of_file(first, other) == first  # a run that had hardly begun when it was stopped
    lock = try_lock(first / RUN_LOCK)
    assert lock is not None
    with lock:
        assert folder_of_file(first, mine) == first
        assert folder_of_file(first, other) == tmp_path / "predict_b"


def test_two_heads_of_one_sweep_share_its_trials(tmp_path: Path) -> None:
    sweep = ("hydra.sweeper.n_trials=4", "hydra/sweeper/pruner=none")
    heads = [FORKS.Process(target=run_toy, args=(tmp_path, *sweep)) for _ in range(2)]
    for head in heads:
        head.start()
    for head in heads:
        head.join()
    assert [head.exitcode for head in heads] == [0, 0]
    assert damage(tmp_path / "multirun/toy", trials_of(tmp_path), 4) == []
    assert RunFolder(tmp_path / "multirun/toy/final").complete
