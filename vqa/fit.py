"""The one training loop, for trials and the final run.

Not transformers.Trainer: a batch here is one row with a shared prefix, the step must survive running out of
memory by halving its micro-batch, and a resumed run must be bit-equal; Trainer's collator, accumulation and
checkpoint hooks would all have to be bent. accelerate does what it does well: loss scaling and clipping.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqa.device import release_memory
from vqa.encode import Encoder, Order
from vqa.forward import answer_loss, letter_logits
from vqa.library import build, refusals
from vqa.plan import Plan, batches
from vqa.question import Question
from vqa.reporting import progress

log = logging.getLogger(__name__)


class DivergedError(Exception):
    """The loss is not a number any more; the trial fails, the sweep goes on."""


@dataclass(frozen=True)
class Moment:
    """Where a fit stands at an evaluation.

    Args:
        index: Number of this evaluation, from 0.
        step: Optimiser steps done.
        passes: Questions seen, counted with repetition.
        train_loss: Mean loss since the last evaluation.
        learning_rate: At this step.
        last: Nothing follows.
    """

    index: int
    step: int
    passes: int
    train_loss: float
    learning_rate: float
    last: bool


@dataclass(frozen=True)
class FitRecord:
    """What a fit cost. Seconds and rate count training only, not evaluation."""

    seconds: float
    train_samples_per_s: float
    micro_batch_size: int


def fit(
    encoder: Encoder,
    model: Any,
    train: Sequence[Question],
    plan: Plan,
    on_evaluation: Callable[[Moment], None],
    checkpoint: Path | None = None,
    checkpoint_steps: int = 0,
    extra: dict[str, Any] | None = None,
) -> FitRecord:
    """Train the adapter.

    Args:
        encoder: Makes batches; its base is the one under `model`.
        model: The PEFT model.
        train: Labelled questions.
        plan: What to do.
        on_evaluation: Called with the model in evaluation mode; may raise to stop.
        checkpoint: File to save to and resume from; None: no checkpoints.
        checkpoint_steps: Save every so many steps, and after every evaluation.
        extra: A dictionary of the caller's that is saved and restored with the checkpoint.

    Raises:
        DivergedError: The loss became NaN or infinite.
        UserError: The optimiser or the schedule refuses its values.
    """
    trainer = _Trainer(encoder, model, plan, len(train))
    extra = {} if extra is None else extra
    done = trainer.load(checkpoint, extra) if checkpoint and checkpoint.exists() else 0
    points = plan.evaluation_steps(len(train))
    total = plan.steps(len(train))
    seconds = 0.0
    model.train()
    for step, (chosen, orders) in enumerate(batches(len(train), plan), start=1):
        if step <= done:
            continue
        started = time.perf_counter()
        trainer.step([train[i] for i in chosen], orders, step)
        seconds += time.perf_counter() - started
        progress("training", step, total)
        if step in points:
            model.eval()
            on_evaluation(trainer.moment(points.index(step), step, last=step == total))
            model.train()
            release_memory()
        if checkpoint and (step in points or step % checkpoint_steps == 0):
            trainer.save(checkpoint, step, extra)
    model.eval()
    seen = len(train) * plan.epochs - min(done * plan.batch_size, len(train) * plan.epochs)
    return FitRecord(seconds, seen / seconds if seconds else 0.0, trainer.micro_batch_size)


class _Trainer:
    """Optimiser, schedule and float32 master weights of one fit."""

    def __init__(self, encoder: Encoder, model: Any, plan: Plan, questions: int) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        base = encoder.base
        AcceleratorState._reset_state(reset_partial_state=True)  # a process may train in several precisions
        self.accelerator = Accelerator(
            cpu=base.device.type == "cpu",
            mixed_precision="fp16" if base.dtype == torch.float16 else "no",
        )
        self.encoder, self.model, self.plan = encoder, model, plan
        self.micro_batch_size = plan.micro_batch_size
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # bfloat16 keeps 8 bits: small updates to bfloat16 weights would be rounded away
        self.masters = [
            p if p.dtype in (torch.float32, torch.float16) else p.detach().float().requires_grad_()
            for p in self.parameters
        ]
        node = plan.optimizer | {"lr": plan.lr}
        with refusals("optimizer"):
            optimizer = build("optimizer", node)(self.masters)
        self.optimizer = self.accelerator.prepare(optimizer)
        total = plan.steps(questions)
        warmup = round(plan.warmup_ratio * total)
        with refusals("scheduler.schedule"):
            self.scheduler = build("scheduler.schedule", plan.schedule)(
                optimizer=self.optimizer.optimizer, num_warmup_steps=warmup, num_training_steps=total
            )
        self.losses: list[float] = []
        self.passes = 0

    def step(self, questions: list[Question], orders: list[Order], step: int) -> None:
        """One optimiser step over an effective batch, in micro-batches that fit."""
        while True:
            try:
                loss = self._accumulate(questions, orders)
                break
            except torch.OutOfMemoryError:
                if self.micro_batch_size == 1:
                    raise
                self.micro_batch_size = max(1, self.micro_batch_size // 2)
                log.warning(
                    "out of memory: micro-batches of %d from here, same result", self.micro_batch_size
                )
            self._clear_gradients()
            release_memory()
        if not math.isfinite(loss):
            raise DivergedError(
                f"loss is {loss} at step {step}; lower optimizer.lr or raise scheduler.warmup_ratio"
            )
        self.accelerator.clip_grad_norm_(self.masters, self.plan.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if parameter is not master:
                    parameter.copy_(master)
        self._clear_gradients()
        self.losses.append(loss)
        self.passes += len(questions)

    def _accumulate(self, questions: list[Question], orders: list[Order]) -> float:
        total = torch.zeros((), device=self.encoder.base.device)
        for start in range(0, len(questions), self.micro_batch_size):
            part = slice(start, start + self.micro_batch_size)
            batch = self.encoder.batch(questions[part], orders[part])
            with self.accelerator.autocast():
                logits = letter_logits(self.encoder.base, self.model, batch)
            # divided by the effective batch, not the micro-batch: accumulation equals the big batch
            loss = answer_loss(logits, batch.targets, self.encoder.base.letters) / len(questions)
            self.accelerator.backward(loss)
            total += loss.detach()
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if parameter is not master and parameter.grad is not None:
                    gradient = parameter.grad.float()
                    master.grad = gradient if master.grad is None else master.grad + gradient
                    parameter.grad = None
        return float(total)

    def _clear_gradients(self) -> None:
        for tensor in (*self.parameters, *self.masters):
            tensor.grad = None

    def moment(self, index: int, step: int, last: bool) -> Moment:
        """Where the fit stands; starts a new mean of the training loss."""
        mean = float(np.mean(self.losses)) if self.losses else math.nan
        self.losses = []
        return Moment(index, step, self.passes, mean, self.scheduler.get_last_lr()[0], last)

    def save(self, path: Path, step: int, extra: dict[str, Any]) -> None:
        """Write everything the next step depends on; the file appears complete or not at all."""
        state = {
            "step": step,
            "masters": self.masters,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None,
            "losses": self.losses,
            "passes": self.passes,
            "extra": extra,
        }
        unfinished = path.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.replace(path)

    def load(self, path: Path, extra: dict[str, Any]) -> int:
        """Take up a saved state; returns the number of steps it has done."""
        state = torch.load(path, map_location=self.encoder.base.device, weights_only=True)
        with torch.no_grad():
            for parameter, master, saved in zip(self.parameters, self.masters, state["masters"], strict=True):
                master.copy_(saved)
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] is not None and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"].cpu())
        if state["rng_cuda"] is not None:
            torch.cuda.set_rng_state_all([rng.cpu() for rng in state["rng_cuda"]])
        self.losses, self.passes = state["losses"], state["passes"]
        extra.update(state["extra"])
        log.info("resumed at step %d", state["step"])
        return int(state["step"])
