"""Every option that reaches a GPU, on models of the true size, within the memory of the card it is meant for.

Options that pass on the embedded model have crashed on a true size, so this is run after every change to
model, kernels, memory or adapters. Weights are random: speed and memory do not depend on what they are. Rows
of one base share the loaded model. A row fails when it raises, leaves a number that is not finite, or takes
more memory than its card has; one failed row makes the exit code 1.

    python -m benchmarks.harness.full_size --work FOLDER --tokenizer FOLDER --only-files
    python -m benchmarks.speed.acceptance --work FOLDER --out FILE
    python -m benchmarks.speed.acceptance --work FOLDER --out FILE --only "qwen3_vl_8b nf4"
"""

import argparse
import itertools
import json
import logging
import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hydra import compose, initialize_config_dir
from transformers import AutoModelForImageTextToText

import vqa.data.source
from benchmarks.harness.record import write_rows
from vqa.config.check import read_settings, register_resolvers
from vqa.config.settings import Settings
from vqa.data.source import data_source
from vqa.machine.device import choose_device, limit_memory, release_memory, restart_peak
from vqa.model import base as model
from vqa.model.adapter import attached, loaded
from vqa.model.base import load_base
from vqa.model.encode import Encoder
from vqa.model.letters import option_log_probabilities
from vqa.question import Question
from vqa.results.predictions import read_predictions
from vqa.stages.final import run_final
from vqa.stages.merge import run_merge
from vqa.stages.predict import run_evaluate, run_predict
from vqa.train.fit import Evaluation, fit
from vqa.train.plan import plan_fit

CONF = Path(__file__).parents[2] / "conf"
FAMILIES = ("qwen3_vl_8b", "qwen2_5_vl_7b")
HELD_OUT = 24
LARGE_CARD = 76  # GiB of an 80 GB card
DATA = ("data=csv", "prompt=fewshot_ko", "image=pad_512", "lora.r=32", "lora.lora_alpha=32")
READ_OUTS = ("cyclic", "pride", "batch_calibration", "contextual", "generate")
ADAPT = (
    *("views", "zero", "tent", "sar", "consistency", "lora_align", "repair"),
    *("tpt", "prompt_tuning_online", "prompt_align"),
)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        base: "<model> <quantisation>": cases of one base share the loaded weights.
        name: The option that is tried.
        gib: Memory of the card, GiB.
        overrides: What makes it differ from the usual workload.
        stage: "train" (final run, then a warm training for the rate), or a stage, or "peft".
        flash: False: behave as a card without FlashAttention.
    """

    base: str
    name: str
    gib: float
    overrides: tuple[str, ...] = ()
    stage: str = "train"
    flash: bool = True


def cases_of(family: str) -> Iterator[Case]:
    """All cases of one family, those of one base side by side."""
    bf16 = f"{family} none"
    yield Case(bf16, "plain", LARGE_CARD, ("budget.batch_size=32",))
    yield Case(bf16, "plain", 24)
    yield Case(bf16, "adapter reloaded by plain PEFT", LARGE_CARD, stage="peft")
    yield Case(bf16, "stage=evaluate", 24, stage="evaluate")
    yield Case(bf16, "stage=predict", 24, stage="predict")
    for name, gib in (("rslora", 24), ("attention", 24), ("dora", LARGE_CARD), ("dora", 40)):
        yield Case(bf16, f"lora={name}", gib, (f"lora={name}",))
    for gib in (LARGE_CARD, 24):
        yield Case(bf16, "dropout 0.05", gib, ("lora.lora_dropout=0.05",))
    yield Case(bf16, "dora and dropout 0.05", 40, ("lora=dora", "lora.lora_dropout=0.05"))
    for name in ("adamw_8bit", "paged"):
        yield Case(bf16, f"optimizer={name}", 24, (f"optimizer={name}",))
    for name in ("choice_ce", "full"):
        yield Case(bf16, f"loss={name}", 40, (f"loss={name}",))
    for name in READ_OUTS:
        yield Case(bf16, f"inference={name}", 24, (f"inference={name}",), "predict")
    yield Case(bf16, "prompt=auto_ko", 24, ("prompt=auto_ko",), "predict")
    for name in ADAPT:
        yield Case(bf16, f"adapt={name}", 40, (f"adapt={name}",), "predict")
    # random weights never end a text, so this takes longest
    yield Case(bf16, "inference=reasoning", 24, ("inference=reasoning",), "predict")
    if family == "qwen2_5_vl_7b":
        yield Case(bf16, "experiment=team_a_final", 40, ("experiment=team_a_final",))
    else:
        yield Case(bf16, "stage=merge", LARGE_CARD, stage="merge")
    nf4 = f"{family} nf4"
    yield Case(nf4, "plain", 12)
    yield Case(nf4, "plain", 16)
    yield Case(nf4, "lora=dora", 16, ("lora=dora",))
    yield Case(nf4, "adapt=tent", 16, ("adapt=tent",), "predict")
    if family == "qwen2_5_vl_7b":
        yield Case(nf4, "experiment=team_a_baseline", 15, ("experiment=team_a_baseline",))
    else:
        yield Case(nf4, "experiment=team_b_final", 40, ("experiment=team_b_final",))
    yield Case(f"{family} nf4-stored", "a checkpoint stored as NF4", 12)
    int8 = f"{family} int8"
    yield Case(int8, "plain", 24, ("budget.batch_size=16",))
    yield Case(int8, "plain", 40)
    yield Case(int8, "lora=dora", 40, ("lora=dora",))
    # a T4: 16 GB, float16, no FlashAttention
    yield Case(f"{family} nf4 float16", "a T4-class card", 14.5, ("precision=float16",), flash=False)


class Bench:
    """Runs cases on one folder of checkpoints.

    Args:
        work: Where benchmarks.harness.full_size wrote checkpoints and the contest.
        rows: Questions of a warm training.
        quick: Questions of the final run before it.
    """

    def __init__(self, work: Path, rows: int, quick: int) -> None:
        self.work, self.rows, self.quick, self.base = work, rows, quick, ""
        self.out = work / "acceptance"
        shutil.rmtree(self.out, ignore_errors=True)

    def settings(self, case: Case, *more: str) -> Settings:
        """The checked configuration of a case."""
        family, quantization = case.base.split()[:2]
        path = self.work / family
        if quantization == "nf4-stored":
            path, quantization = self._stored(family), "none"
        contest = self.work / "contest"
        experiment = [text for text in case.overrides if text.startswith("experiment=")]
        usual = [] if experiment else [*DATA, f"model={family}", f"quantization={quantization}"]
        overrides = [
            *usual,
            *case.overrides,
            *("tracking=none", f"model.path={path}", f"env.output_root={self.out}"),
            *(f"data.train_csv={contest / 'train.csv'}", f"data.test_csv={contest / 'test.csv'}"),
            *(f"data.image_root={contest}", "budget.epochs=1", f"budget.subsample={self.quick}"),
            *("budget.test_limit=32", f"budget.max_memory_gib={case.gib}", *more),
        ]
        with initialize_config_dir(str(CONF)):
            return read_settings(compose("config", overrides=overrides))

    def run(self, case: Case) -> dict[str, Any]:
        """The figures of one case; raises what it raises."""
        device = torch.device("cuda")
        if case.base != self.base:  # the base before would count as this row's peak
            model._resident.clear()
            self.base = case.base
        release_memory()
        restart_peak(device)
        torch.cuda.reset_peak_memory_stats()
        folder = self.out / f"{case.base} {case.name} {case.gib}".replace(" ", "_").replace("=", "-")
        folder.mkdir(parents=True, exist_ok=True)
        with without_flash() if not case.flash else no_change():
            found = self._train(case, folder) if case.stage == "train" else self._answer(case, folder)
        peak = max(torch.cuda.max_memory_allocated() / 2**30, found.pop("earlier_peak_gib", 0.0))
        found["peak_gib"] = round(peak, 1)
        check_numbers(found)
        if peak > case.gib:
            raise ValueError(f"peak {peak:.1f} GiB on a card of {case.gib} GiB")
        return found

    def _train(self, case: Case, folder: Path) -> dict[str, Any]:
        settings = self.settings(case)
        with small_holdout():
            metrics = run_final(settings, folder)
        encoder = Encoder(load_base(settings), settings.prompt, settings.image)
        rows = self._questions(settings)
        plan = replace(plan_fit(settings, len(rows)), evaluations=1)
        with attached(encoder.base, settings.lora, seed=0) as made:
            fit(encoder, made, rows[: 2 * plan.batch_size], plan, nothing)
            before = torch.cuda.max_memory_allocated()  # it counts attempts that ran out of memory too
            torch.cuda.reset_peak_memory_stats()
            record = fit(encoder, made, rows, plan, nothing)
            warm = torch.cuda.max_memory_allocated()
        release_memory()
        return {
            "samples_s": round(record.train_samples_per_s, 2),
            "warm_peak_gib": round(warm / 2**30, 1),
            "earlier_peak_gib": round(before / 2**30, 1),
            "micro_batch": record.micro_batch_size,
            "recompute": record.recompute,
            "nll": metrics["nll"],
            "accuracy": metrics["accuracy"],
            "train_loss": metrics["epochs"][-1]["train_loss"],
        }

    def _answer(self, case: Case, folder: Path) -> dict[str, Any]:
        family = case.base.split()[0]
        adapter = next(self.out.glob(f"{family}_none_plain_*")) / "adapter"
        if case.stage == "evaluate":
            train = self.work / "contest" / "train.csv"
            settings = self.settings(
                case, f"adapter={adapter}", "stage=evaluate", f"data.test_csv={train}", "budget.test_limit=64"
            )
            metrics = run_evaluate(settings, folder)
            return {"rows_s": round(metrics["rows_per_s"], 1), "nll": metrics["nll"]}
        settings = self.settings(case, f"adapter={adapter}", f"stage={case.stage.replace('peft', 'predict')}")
        if case.stage == "merge":
            model._resident.clear()
            release_memory()
            return {
                "bytes": sum(f.stat().st_size for f in Path(run_merge(settings, folder)["model"]).iterdir())
            }
        if case.stage == "peft":
            return self._reloaded(settings, adapter)
        metrics = run_predict(settings, folder)
        answers = read_predictions(folder / "test_predictions.csv")
        spread = max(p.p[0] for p in answers)
        return {"rows_s": round(metrics["rows_per_s"], 1), "largest_p_a": spread}

    def _reloaded(self, settings: Settings, adapter: Path) -> dict[str, Any]:
        """The saved adapter by plain PEFT and transformers' own forward, against the final run's answers."""
        encoder = Encoder(load_base(settings), settings.prompt, settings.image)
        questions = data_source(settings).test() or []
        asked = questions[:8]
        ours = {p.id: p for p in read_predictions(adapter.parent / "test_predictions.csv")}
        with loaded(encoder.base, adapter) as made, torch.no_grad():
            inputs = encoder.padded(asked)
            logits = made(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
            log_p, _ = option_log_probabilities(logits, encoder.base.letters[4])
        plain = log_p.float().softmax(1).cpu()
        mine = torch.tensor([ours[q.id].p for q in asked])
        difference = float((plain - mine).abs().max())
        if difference > 0.05:
            raise ValueError(f"plain PEFT's probabilities differ by {difference:.3f}")
        return {"largest_difference": round(difference, 4)}

    def _questions(self, settings: Settings) -> list[Question]:
        questions = data_source(settings).train()
        return list(itertools.islice(itertools.cycle(questions), self.rows))

    def _stored(self, family: str) -> Path:
        """A checkpoint stored as NF4, made from the one in 16 bits."""
        path = self.work / f"{family}_nf4"
        if not path.exists():
            settings = self.settings(Case(f"{family} nf4", "", LARGE_CARD))
            # not by load_base: its vision tower has padded layers, which no published checkpoint has
            weights = model._quantization(settings, model.read_model_config(settings), torch.bfloat16)
            published: Any = AutoModelForImageTextToText.from_pretrained(
                self.work / family, dtype=torch.bfloat16, device_map={"": "cuda"}, quantization_config=weights
            )
            published.save_pretrained(path)
            del published
            release_memory()
            for file in (self.work / family).iterdir():
                wanted = file.suffix in (".json", ".jinja") and "index" not in file.name
                if wanted and not (path / file.name).exists():
                    shutil.copy(file, path)
        return path


@contextmanager
def small_holdout() -> Iterator[None]:
    """Score a few held-out rows instead of a fifth of all: what is tried is training."""
    before = vqa.data.source.split_questions

    def fewer(settings: Settings) -> Any:
        split, digest = before(settings)
        return replace(split, valid=split.valid[:HELD_OUT]), digest

    with patch("vqa.stages.final.split_questions", fewer):
        yield


@contextmanager
def without_flash() -> Iterator[None]:
    """Behave as a GPU that FlashAttention does not take."""
    model._resident.clear()
    with (
        patch("vqa.model.kernels.attention.has_flash", no_flash),
        patch("vqa.model.vision.tower_kernels.has_flash", no_flash),
    ):
        yield
    model._resident.clear()


@contextmanager
def no_change() -> Iterator[None]:
    """Everything as it is."""
    yield


def no_flash(query: torch.Tensor) -> bool:
    """What `has_flash` says on a card without it."""
    return False


def nothing(evaluation: Evaluation) -> None:
    """No evaluation."""


def check_numbers(found: dict[str, Any]) -> None:
    """Refuse figures that are not finite."""
    for key, value in found.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} is {value}")


def report(row: dict[str, Any]) -> None:
    """One line of the table."""
    shown = {k: v for k, v in row.items() if k not in ("base", "name", "gib", "ok", "seconds", "trace")}
    mark = "ok  " if row["ok"] else "FAIL"
    print(
        f"{mark} {row['base']:28} {row['name']:38} {row['gib']:>5} {row['seconds']:6.1f} s {shown}",
        flush=True,
    )


def main() -> int:
    """Run the chosen cases and write the table; 1 when a row failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--only", nargs="*", default=[], help="words of base or name; any of them chooses a case"
    )
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--quick", type=int, default=32)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("vqa").setLevel(logging.ERROR)
    register_resolvers()
    choose_device("auto")  # sets up the allocator, which is too late once CUDA was used
    bench = Bench(arguments.work, arguments.rows, arguments.quick)
    rows: list[dict[str, Any]] = []
    chosen: Callable[[Case], bool] = lambda case: (  # noqa: E731
        not arguments.only or any(word in f"{case.base} {case.name} {case.gib:g}" for word in arguments.only)
    )
    for case in filter(chosen, itertools.chain(*map(cases_of, arguments.families))):
        began = time.perf_counter()
        row: dict[str, Any] = {"base": case.base, "name": case.name, "gib": case.gib, "ok": True}
        try:
            row |= bench.run(case)
        except Exception as error:  # noqa: BLE001  # a row that fails is the result
            row |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]}
            row["trace"] = traceback.format_exc()[-3000:]
        limit_memory(None, torch.device("cuda"))
        release_memory()
        row["seconds"] = round(time.perf_counter() - began, 1)
        rows.append(row)
        report(row)
        if arguments.out:
            write_rows(arguments.out, "acceptance", rows, append=False)
    failed = [row for row in rows if not row["ok"]]
    print(json.dumps({"rows": len(rows), "failed": len(failed)}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
