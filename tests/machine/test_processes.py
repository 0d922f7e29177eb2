"""One training in two processes: the same numbers and files as in one, and each goes on for the other."""

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from tests.conftest import CONF, environment
from tests.conftest import SMALL as SMALLEST
from tests.helpers.command_line import vqa
from tests.helpers.two_processes import free_port, in_two
from vqa import run
from vqa.answer.score import score
from vqa.config.check import read_settings, register_resolvers
from vqa.data.source import split_questions
from vqa.errors import UserError
from vqa.machine import processes
from vqa.model import forward
from vqa.model.adapter import adapter_state, attached
from vqa.model.base import load_base
from vqa.model.encode import Encoder
from vqa.report import plots
from vqa.results.folder import CHECKPOINT, MANIFEST
from vqa.stages import final, report
from vqa.train import fit
from vqa.train.plan import plan_fit

# 48 questions in batches of 7: shares of 4 and 3, and a last batch of 6
SMALL = [
    *("stage=final", "tracking=none", "budget=smoke", "env.device=cpu", "env.threads=1", "winner=none"),
    *("data.train_size=60", "data.test_size=12", "budget.epochs=2", "budget.evaluations_per_fit=2"),
    *("budget.batch_size=7", "budget.checkpoint_steps=3", "optimizer.lr=1e-3"),
]


@contextmanager
def undrawn() -> Iterator[pytest.MonkeyPatch]:
    """No pictures and no report: they have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("confusion_matrix", "reliability", "learning_curve"):
            patch.setattr(plots, name, lambda *arguments: None)
        patch.setattr(report, "show_report", lambda *arguments: None)
        yield patch


def short_of_memory(patch: pytest.MonkeyPatch, most: int) -> None:
    """The second process's device holds no more than so many questions."""

    def refuse(base: Any, batch: Any, *rest: Any) -> torch.Tensor:
        if os.environ.get("RANK") == "1" and len(batch.targets) > most:
            print(f"refused {len(batch.targets)}")
            raise torch.OutOfMemoryError("too large")
        return forward.letter_logits(base, batch, *rest)

    patch.setattr(fit, "letter_logits", refuse)


def dies_at_the_second_look(patch: pytest.MonkeyPatch) -> None:
    """At the end of the second epoch; the last checkpoint is older."""
    looks: list[str] = []

    def dies(*arguments: Any) -> Any:
        looks.append(arguments[-1])
        if looks.count("held-out part") == 2:
            raise UserError("cut")
        return score(*arguments)

    patch.setattr(final, "score", dies)


def cut_then_go_on(cut: Path, go_on: Path, port: int) -> None:
    """Two runs: the first dies; the second takes up what another left, and one process is short of memory."""
    with undrawn() as patch:
        dies_at_the_second_look(patch)
        patch.setattr(sys, "argv", ["vqa", *SMALL, f"env.output_root={cut}"])
        with pytest.raises(SystemExit):
            run.main()
    torch.distributed.destroy_process_group()
    GlobalHydra.instance().clear()
    os.environ["MASTER_PORT"] = str(port)
    with undrawn() as patch:
        short_of_memory(patch, most=2)
        patch.setattr(sys, "argv", ["vqa", *SMALL, f"env.output_root={go_on}"])
        run.main()


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

    def in_one(folder: Path) -> int:
        return vqa(monkeypatch, capsys, *SMALL, f"env.output_root={folder}").code

    with undrawn() as patch:
        assert in_one(one) == 0
        dies_at_the_second_look(patch)
        assert in_one(one_two) == 2
    both = in_two(tmp_path, cut_then_go_on, two_one, one_two, free_port())
    assert [ended.code for ended in both] == [0, 0], both
    assert [ended.said.count("cut") for ended in both] == [1, 1]
    assert [ended.said.count("next: ") for ended in both] == [1, 0]
    assert "refused 4" in both[1].said
    left = two_one / "default/final"
    assert [(left / name).exists() for name in (MANIFEST, CHECKPOINT)] == [False, True]
    with undrawn():
        assert in_one(two_one) == 0
    compare(one, two_one)
    compare(one, one_two)
    assert json.loads((one_two / "default/final" / MANIFEST).read_text())["processes"] == 2


class ScalesLosses(Accelerator):  # type: ignore[misc]  # accelerate ships no types
    """Scales losses on a CPU as accelerate does on a GPU in float16; keeps the last one made."""

    last: "ScalesLosses"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.scaler = torch.amp.GradScaler("cpu")
        ScalesLosses.last = self

    def unscale_gradients(self, optimizer: Any = None) -> None:
        for prepared in self._optimizers:
            self.scaler.unscale_(prepared.optimizer)


def overflows(patch: pytest.MonkeyPatch, step: int) -> None:
    """In that step the gradients of the process of the step's last question are too large for float16."""
    accumulate, steps = fit._Trainer._accumulate, iter(range(1, 100))

    def accumulated(trainer: Any, batch: Any) -> torch.Tensor:
        loss = accumulate(trainer, batch)
        if next(steps) == step and processes.rank() == processes.count() - 1:
            trainer.parameters[0].grad.mul_(torch.inf)
        return loss

    patch.setattr(fit._Trainer, "_accumulate", accumulated)


def train_small(folder: Path, batch_size: int, most: int = 100, overflow: int | None = None) -> None:
    """Train on 10 questions; leave weights and loss scale in folder/RANK.pt."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF)):
        settings = read_settings(compose("config", overrides=[*SMALLEST, "optimizer.lr=1"]))
    questions = split_questions(settings)[0].train[:10]
    # plain descent: AdamW moves a weight whose gradient is nearly zero by a whole step, either way
    descent = {"_target_": "torch.optim.SGD", "_partial_": True}
    plan = replace(plan_fit(settings, 10), epochs=2, evaluations=1, batch_size=batch_size, optimizer=descent)
    with pytest.MonkeyPatch.context() as patch, processes.joined(lambda: torch.device("cpu")):
        short_of_memory(patch, most)
        if overflow is not None:
            patch.setattr("accelerate.Accelerator", ScalesLosses)
            overflows(patch, overflow)
        encoder = Encoder(load_base(settings), settings.prompt, settings.image)
        with attached(encoder.base, settings.lora, seed=0) as model:
            fit.fit(encoder, model, questions, plan, lambda moment: None)
            weights = torch.cat([w.detach().flatten() for w in adapter_state(model).values()])
    scale = ScalesLosses.last.scaler.get_scale() if overflow is not None else 1.0
    torch.save({"weights": weights, "scale": scale}, folder / f"{processes.rank()}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [4, 1])
def test_an_overflow_in_one_process_is_skipped_by_all(tmp_path: Path, batch_size: int) -> None:
    both = in_two(tmp_path, train_small, tmp_path, batch_size, 100, 2)
    assert [ended.code for ended in both] == [0, 0], both
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    with warnings.catch_warnings():  # torch warns when `step` was replaced after the schedule was made
        warnings.filterwarnings("error", message="Seems like `optimizer.step", category=UserWarning)
        train_small(tmp_path, batch_size, overflow=2)
    alone = torch.load(tmp_path / "0.pt")
    assert first["scale"] == second["scale"] == alone["scale"] == 2.0**15  # half of where torch begins
    assert torch.equal(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], alone["weights"], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_process_that_no_batch_is_small_enough_for_ends_the_other_too(tmp_path: Path) -> None:
    both = in_two(tmp_path, train_small, tmp_path, 4, 0)
    assert [ended.code for ended in both] == [1, 1], both
    assert [f"refused {n}" in both[1].said for n in (2, 1)] == [True, True]
    assert "DoesNotFitError: training with one question at a time" in both[1].said
    assert "(too large)" in both[1].said


def test_torchrun_sets_the_variables_that_are_read(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command = [sys.executable, *launcher, "-m", "vqa.run", "stage=predict", f"env.output_root={tmp_path}"]
    here = environment(PYTHONPATH=str(Path(processes.__file__).parents[2]))
    done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "stage=predict was started in 2 processes" in done.stderr


def test_alone_nothing_is_shared_or_summed() -> None:
    loss, weight = torch.tensor(2.0), torch.zeros(2, requires_grad=True)
    assert (processes.count(), processes.is_main(), processes.local_rank()) == (1, True, None)
    assert processes.share([5, 3, 8]) == [0, 1, 2]
    assert processes.spread([1, 2], lambda part: [-i for i in part]) == [-1, -2]
    assert processes.agreed(lambda: 3) == 3
    assert processes.sum_gradients([weight], loss) is loss
    assert weight.grad is None


@pytest.mark.parametrize("number", [2, 3, 5])
def test_a_batch_is_cut_into_even_shares(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(number))
    chosen = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:16].tolist()
    for batch in (chosen, chosen[:2]):
        shares = []
        for rank in range(number):
            monkeypatch.setenv("RANK", str(rank))
            shares.append(processes.share(batch))
        assert sorted(place for share in shares for place in share) == list(range(len(batch)))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_few_pictures_are_looked_at_by_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    shuffle = torch.Generator().manual_seed(0)
    steps = [part.tolist() for _ in range(5) for part in torch.randperm(640, generator=shuffle).chunk(10)]
    seen = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        seen.append({chosen[place] for chosen in steps for place in processes.share(chosen)})
    assert len(seen[0] | seen[1]) == 640
    assert len(seen[0] & seen[1]) < 0.2 * 640


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
        processes.refuse_several("this")
    ended = vqa(monkeypatch, capsys, *arguments, f"env.output_root={tmp_path}")
    assert ended.code == 2
    assert re.search(message, ended.err)
