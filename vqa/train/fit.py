"""The one training loop, for trials and the final run.

Not transformers.Trainer: a batch here is one row with a shared prefix, the step must survive running out of
memory by halving its micro-batch, and a resumed run must be bit-equal; Trainer's collator, accumulation and
checkpoint hooks would all have to be replaced. accelerate does the loss scaling and the clipping.
"""

import logging
import math
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vqa.config.library import build, refusals
from vqa.errors import UserError
from vqa.machine import processes
from vqa.machine.device import memory_share, prefetched, sent_to_host
from vqa.model.encode import Encoder, Order
from vqa.model.forward import letter_logits, shared_prefix
from vqa.model.memory import LARGE, Ladder, does_not_fit
from vqa.model.packing import PackedBatch
from vqa.progress import progress
from vqa.question import Question
from vqa.train.checkpoint import Checkpoints, CheckpointWriter
from vqa.train.losses import batch_loss
from vqa.train.plan import Plan, batches

log = logging.getLogger(__name__)
# What torch raises of a file that is cut off or hostile: its unpickler checks little but what may be called.
UNREADABLE = (
    *(pickle.UnpicklingError, EOFError, RuntimeError, LookupError, TypeError, ValueError, AttributeError),
)


class DivergedError(Exception):
    """The loss became NaN or infinite; the trial fails, the sweep goes on."""


@dataclass(frozen=True)
class Evaluation:
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
    recompute: str


def fit(
    encoder: Encoder,
    model: Any,
    train: Sequence[Question],
    plan: Plan,
    on_evaluation: Callable[[Evaluation], None],
    checkpoints: Checkpoints | None = None,
) -> FitRecord:
    """Train the adapter.

    Args:
        encoder: Makes batches; its base is the one under `model`.
        model: The PEFT model.
        train: Labelled questions.
        plan: What to do.
        on_evaluation: Called with the model in evaluation mode; may raise to stop.
        checkpoints: Where and how often to save, and to resume from; None: not at all.

    Raises:
        DivergedError: The loss became NaN or infinite.
        UserError: The optimiser or the schedule refuses its values.
        DoesNotFitError: One question at a time needs more memory than there is.
        OSError: A checkpoint cannot be written.
    """
    _compute_features(encoder, train, plan)
    trainer = _Trainer(encoder, model, plan, train)
    done = trainer.load(checkpoints) if checkpoints and checkpoints.path.exists() else 0
    points = plan.evaluation_steps(len(train))
    total = plan.steps(len(train))
    seconds = 0.0
    model.train()
    with CheckpointWriter(checkpoints.path if checkpoints and processes.is_main() else None) as writer:
        started = time.perf_counter()
        for step, batch in enumerate(trainer.batches(done), start=done + 1):
            trainer.step(batch, step)
            progress("training", step, total)
            if step in points:
                model.eval()
                reached = trainer.evaluation(points.index(step), step, last=step == total)
                seconds += time.perf_counter() - started
                on_evaluation(reached)
                model.train()
                started = time.perf_counter()
            if checkpoints and (step in points or step % checkpoints.every_steps == 0):
                writer.write(trainer.state(step), {"extra": checkpoints.extra})
    model.eval()
    seen = len(train) * plan.epochs - min(done * plan.batch_size, len(train) * plan.epochs)
    rung = trainer.ladder.rung
    return FitRecord(seconds, seen / seconds if seconds else 0.0, rung.micro_batch_size, rung.recompute)


def _compute_features(encoder: Encoder, train: Sequence[Question], plan: Plan) -> None:
    """Compute the features of all pictures that this process trains on, in the order of training."""
    own = (chosen[place] for chosen, _ in batches(_options(train), plan) for place in processes.share(chosen))
    encoder.look([train[i] for i in dict.fromkeys(own)])


def _options(questions: Sequence[Question]) -> list[int]:
    return [len(question.choices) for question in questions]


@dataclass(frozen=True)
class _Batch:
    """This process's questions of one optimiser step, and the micro-batches they were cut into.

    Args:
        whole: The step's questions in all processes.
        questions: This process's.
        orders: Of the options of each.
        size: Questions of a micro-batch, at most.
        parts: The micro-batches.
        outside: The prefix is in none of them; its keys and values come from outside.
    """

    whole: int
    questions: list[Question]
    orders: list[Order]
    size: int
    parts: list[PackedBatch]
    outside: bool


class _Trainer:
    """Optimiser and schedule of one fit."""

    def __init__(self, encoder: Encoder, model: Any, plan: Plan, train: Sequence[Question]) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        base = encoder.base
        AcceleratorState._reset_state(reset_partial_state=True)  # a process may train in several precisions
        precision = "fp16" if base.dtype == torch.float16 else "no"
        self.accelerator = Accelerator(cpu=base.device.type == "cpu", mixed_precision=precision)
        self.encoder, self.model, self.plan, self.train = encoder, model, plan, train
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        with refusals("optimizer"):
            optimizer = build("optimizer", plan.optimizer | {"lr": plan.lr})(self.parameters)
        with refusals("scheduler.schedule"):
            total = plan.steps(len(train))
            self.scheduler = build("scheduler.schedule", plan.schedule)(
                optimizer=optimizer,
                num_warmup_steps=round(plan.warmup_ratio * total),
                num_training_steps=total,
            )
        # after the schedule, which counts the calls of `step`: for float16, accelerate replaces that method
        self.optimizer = self.accelerator.prepare(optimizer)
        if self.accelerator.scaler:  # it starts with its first loss: a process may have no question yet
            self.accelerator.scaler.scale(torch.zeros((), device=base.device))
        work = encoder.prompt.system, encoder.image.size, sum(p.numel() for p in self.parameters), plan.loss
        shape = (base.path, *work, memory_share(base.device))
        self.ladder = Ladder(
            min(plan.micro_batch_size, math.ceil(plan.batch_size / processes.count())), shape
        )
        self.conversation = plan.loss == "full"  # the prefix's own tokens are taught too: it stays in the row
        self.outside = not self.conversation and encoder.shares_prefix(train[0])
        self.losses, self.passes = list[float](), 0
        self.unread: list[tuple[int, Callable[[], torch.Tensor]]] = []
        processes.equalise(self.parameters)

    def batches(self, done: int) -> Iterable[_Batch]:
        """The batches of all steps after the first `done`."""
        steps = list(batches(_options(self.train), self.plan))[done:]
        return prefetched(lambda step: self.cut_own(*step), steps, self.encoder.base.device)

    def cut_own(self, chosen: list[int], orders: list[Order]) -> _Batch:
        """Lay out this process's share of a step."""
        own = processes.share(chosen)
        return self.cut(len(chosen), [self.train[chosen[i]] for i in own], [orders[i] for i in own])

    def cut(self, whole: int, questions: list[Question], orders: list[Order]) -> _Batch:
        """Lay out one batch in micro-batches of the size that fits."""
        size = self.ladder.rung.micro_batch_size
        starts = range(0, len(questions), size)
        # for two small micro-batches the prefix's own passes cost more launches than computing it twice
        outside = self.outside and (len(starts) > 2 or (len(starts) > 1 and size >= LARGE))
        parts = [
            self.encoder.batch(questions[i : i + size], orders[i : i + size], outside, self.conversation)
            for i in starts
        ]
        return _Batch(whole, questions, orders, size, parts, outside)

    def step(self, batch: _Batch, step: int) -> None:
        """One optimiser step, in micro-batches that fit."""
        while True:
            if batch.size != self.ladder.rung.micro_batch_size:
                batch = self.cut(batch.whole, batch.questions, batch.orders)
            try:
                loss = self._accumulate(batch)
                break
            except torch.OutOfMemoryError as error:
                self.optimizer.zero_grad()
                self.encoder.base.vision.park()
                if not self.ladder.step_down():
                    doing = "training with one question at a time and every layer computed twice"
                    raise does_not_fit(doing, self.encoder.base.device, error) from error
        # after the last attempt: each process comes here once a step, however often it ran out of memory
        loss = processes.sum_gradients(self.parameters, loss)
        self.accelerator.clip_grad_norm_(self.parameters, self.plan.max_grad_norm)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:  # float16 overflowed: the schedule waits with the weights
            self.scheduler.step()
        self.optimizer.zero_grad()
        self._note_loss(step, loss)
        self.passes += batch.whole

    def _accumulate(self, batch: _Batch) -> torch.Tensor:
        base, recompute, kind = self.encoder.base, self.ladder.rung.recompute, self.plan.loss
        total = torch.zeros((), device=base.device)
        first = batch.questions[0] if batch.outside else None
        prefix = shared_prefix(base, self.encoder.prefix(first)) if first else nullcontext()
        tokens = sum(part.conversation.tokens for part in batch.parts if part.conversation)
        with self.accelerator.autocast(), prefix as known:
            for part in batch.parts:
                logits = letter_logits(base, part, known, recompute)
                # divided by the effective batch, not the micro-batch: accumulation equals the big batch
                loss = batch_loss(kind, logits, part, base.letters) / (tokens or batch.whole)
                self.accelerator.backward(loss)
                total += loss.detach()
        return total

    def _note_loss(self, step: int, loss: torch.Tensor) -> None:
        """Have the loss copied to the host without waiting for it."""
        self.unread.append((step, sent_to_host(loss)))
        self._read_losses(keep=1 if loss.is_cuda else 0)

    def _read_losses(self, keep: int) -> None:
        """Read the losses of all but the last `keep` steps."""
        while len(self.unread) > keep:
            step, loss = self.unread.pop(0)
            value = float(loss())
            if not math.isfinite(value):
                raise DivergedError(
                    f"loss is {value} at step {step}; lower optimizer.lr or raise scheduler.warmup_ratio"
                )
            self.losses.append(value)

    def evaluation(self, index: int, step: int, last: bool) -> Evaluation:
        """Where the fit stands; starts a new mean of the training loss."""
        self._read_losses(keep=0)
        mean = float(np.mean(self.losses)) if self.losses else math.nan
        self.losses = []
        return Evaluation(index, step, self.passes, mean, self.scheduler.get_last_lr()[0], last)

    def state(self, step: int) -> dict[str, Any]:
        """Everything the step after this one depends on."""
        self._read_losses(keep=0)
        return {
            "step": step,
            "parameters": self.parameters,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "losses": self.losses,
            "passes": self.passes,
        }

    def load(self, checkpoints: Checkpoints) -> int:
        """Take up a saved state; returns the number of steps it has done.

        Raises:
            UserError: The file is cut off, of another training, or holds more than numbers and tensors.
        """
        try:
            return self._take_up(checkpoints)
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{checkpoints.path}: cannot be taken up ({reason}); "
                "put an intact copy back, or remove it: the training then begins again"
            ) from error

    def _take_up(self, checkpoints: Checkpoints) -> int:
        state = torch.load(checkpoints.path, map_location=self.encoder.base.device, weights_only=True)
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] is not None and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"].cpu())
        if state["rng_cuda"] is not None:
            torch.cuda.set_rng_state(state["rng_cuda"].cpu())
        self.losses, self.passes = state["losses"], state["passes"]
        checkpoints.extra.update(state["extra"])
        log.info("resumed at step %d", state["step"])
        return int(state["step"])
