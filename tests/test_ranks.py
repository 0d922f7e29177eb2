"""One training in two processes: the same numbers and files as in one, and each goes on for the other."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import vqa
from conftest import environment

from vqa import final, plots, ranks, stage
from vqa.errors import UserError
from vqa.run_folder import MANIFEST
from vqa.scoring import score

# 48 questions in batches of 7: shares of 4 and 3, and a last batch of 6
SMALL = [
    *("stage=final", "tracking=none", "budget=smoke", "env.device=cpu", "env.threads=1", "winner=none"),
    *("data.train_size=60", "data.test_size=12", "budget.epochs=2", "budget.evaluations_per_fit=2"),
    *("budget.batch_size=7", "budget.checkpoint_steps=3", "optimizer.lr=1e-3"),
]
# Two runs in each process: the first dies at its second look at the held-out part, the second goes on.
SCRIPT = """
import os
import sys
import torch.distributed
from hydra.core.global_hydra import GlobalHydra
from vqa import final, run, stage

*common, cut, go_on, second_port = sys.argv
looks = []

def dies(*arguments):
    looks.append(arguments[-1])
    if looks.count("held-out part") == 2:
        raise RuntimeError("cut")
    return score(*arguments)

score, final.score = final.score, dies
final.plots = stage._record_report = lambda *arguments: "unwritten"
final.plots.confusion_matrix = final.plots.reliability = final.plots.learning_curve = final.plots
sys.argv = [*common, cut]
try:
    run.main()
except RuntimeError as error:
    print(error)
torch.distributed.destroy_process_group()
GlobalHydra.instance().clear()
# the launcher's store still holds the addresses of the first run
os.environ.update(MASTER_PORT=second_port, TORCHELASTIC_USE_AGENT_STORE="False")
final.score = score
sys.argv = [*common, go_on]
run.main()
"""


def free_ports() -> tuple[int, int]:
    """Two ports that nobody uses."""
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def in_two(cut: Path, go_on: Path) -> "subprocess.CompletedProcess[str]":
    """Run the final stage in two processes."""
    first, second = free_ports()
    script = cut.parent / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={first}"]
    folders = [f"env.output_root={folder}" for folder in (cut, go_on)]
    here = {"PYTHONPATH": str(Path(ranks.__file__).parents[1])}
    command = [sys.executable, *launcher, str(script), *SMALL, *folders, str(second)]
    return subprocess.run(command, env=environment(**here), capture_output=True, text=True, timeout=120)


def compare(one: Path, other: Path) -> None:
    """The same learning curve, scores, answers and files."""
    a, b = (json.loads((folder / "default/final/metrics.json").read_text()) for folder in (one, other))
    for row, twin in zip(a["epochs"], b["epochs"], strict=True):
        assert row == pytest.approx(twin, abs=1e-5)
    same = ("nll", "base_nll", "accuracy", "base_accuracy")
    assert {name: a[name] for name in same} == pytest.approx({name: b[name] for name in same}, abs=1e-5)
    answers = "default/final/submission.csv"
    assert (one / answers).read_bytes() == (other / answers).read_bytes()
    assert written(one) == written(other)


def written(folder: Path) -> set[str]:
    """The run's files."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_two_processes_give_what_one_gives_and_either_goes_on_for_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two_one, one_two = tmp_path / "one", tmp_path / "two_one", tmp_path / "one_two"
    for name in ("confusion_matrix", "reliability", "learning_curve"):  # they have tests of their own
        monkeypatch.setattr(plots, name, lambda *arguments: None)
    monkeypatch.setattr(stage, "_record_report", lambda *arguments: "unwritten")

    def in_one(folder: Path) -> int:
        return vqa(monkeypatch, capsys, *SMALL, f"env.output_root={folder}").code

    looks: list[str] = []

    def dies(*arguments: Any) -> Any:
        looks.append(arguments[-1])
        if looks.count("held-out part") == 2:
            raise UserError("cut")
        return score(*arguments)

    assert in_one(one) == 0
    with monkeypatch.context() as patch:
        patch.setattr(final, "score", dies)
        assert in_one(one_two) == 2
    done = in_two(cut=two_one, go_on=one_two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cut") == 2
    assert done.stdout.count("next: ") == 1
    left = two_one / "default/final"
    assert [(left / name).exists() for name in (MANIFEST, final.CHECKPOINT)] == [False, True]
    assert in_one(two_one) == 0
    compare(one, two_one)
    compare(one, one_two)
    assert json.loads((one_two / "default/final" / MANIFEST).read_text())["processes"] == 2


def test_alone_nothing_is_shared_or_summed() -> None:
    loss, weight = torch.tensor(2.0), torch.zeros(2, requires_grad=True)
    assert (ranks.count(), ranks.is_main(), ranks.local_rank()) == (1, True, None)
    assert ranks.share([5, 3, 8]) == [0, 1, 2]
    assert ranks.spread([1, 2], lambda part: [-i for i in part]) == [-1, -2]
    assert ranks.agreed(lambda: 3) == 3
    assert ranks.sum_gradients([weight], loss) is loss
    assert weight.grad is None


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_a_batch_is_cut_into_even_shares_that_stay_with_their_process(
    monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    chosen = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:16].tolist()
    for batch in (chosen, chosen[:2]):
        shares = []
        for rank in range(processes):
            monkeypatch.setenv("RANK", str(rank))
            shares.append(ranks.share(batch))
        assert sorted(place for share in shares for place in share) == list(range(len(batch)))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if processes == 2:  # even numbers first
        monkeypatch.setenv("RANK", "0")
        home = [chosen[place] % 2 for place in ranks.share(chosen)]
        assert home.count(0) >= min(len(home), sum(i % 2 == 0 for i in chosen))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["stage=predict"],
            "stage=predict was started in 2 processes; torchrun and accelerate launch are for",
        ),
        (["-m", "+sweep=lora"], r"a sweep, which starts workers of its own .*, was started in 2 processes"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="was started in 2 processes"):
        ranks.refuse_several("this")
    ended = vqa(monkeypatch, capsys, *arguments, f"env.output_root={tmp_path}")
    assert ended.code == 2
    assert re.search(message, ended.err)
