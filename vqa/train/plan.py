"""The plan of a fit, made before its first step: length, batch sizes, learning rate, order of questions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vqa.config.settings import Settings
from vqa.model.encode import Order


@dataclass(frozen=True)
class Plan:
    """What one fit does.

    Args:
        epochs: Passes over the questions.
        batch_size: Questions per optimiser step.
        micro_batch_size: Questions on the device at once, at most; does not change the result.
        evaluations: How often `on_evaluation` is called, evenly spread, the last time at the end.
        max_grad_norm: Clipping.
        warmup_ratio: Share of all steps.
        optimizer: The `optimizer` node.
        schedule: The `scheduler.schedule` node.
        lr: Peak learning rate.
        seed: Orders of questions and choices.
        loss: What is minimised, see vqa/train/losses.py.
    """

    epochs: int
    batch_size: int
    micro_batch_size: int
    evaluations: int
    max_grad_norm: float
    warmup_ratio: float
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    lr: float
    seed: int
    loss: str

    def steps(self, questions: int) -> int:
        """Optimiser steps for that many questions; the last batch of an epoch may be smaller."""
        return self.epochs * math.ceil(questions / self.batch_size)

    def evaluation_steps(self, questions: int) -> list[int]:
        """Steps after which to evaluate, rising; the last is the last step."""
        total = self.steps(questions)
        return sorted({max(1, round(total * i / self.evaluations)) for i in range(1, self.evaluations + 1)})


def plan_fit(settings: Settings, questions: int, pool: int = 0) -> Plan:
    """The plan a configuration asks for.

    A learning rate that short trials chose is too large for a long run. `budget.lr_tuned` says how many
    questions those trials saw; the rate is then scaled by (trial passes / passes) ** exponent, never up.

    Args:
        settings: The run.
        questions: How many are trained on.
        pool: How many the trials drew their subsample from; 0 when no trials chose the rate.

    Source: the form is that of Bjorck et al. 2024, "Scaling optimal LR across token horizons". Their exponent
    for pre-training, 0.32, lowers LoRA's rate too far; docs/benchmarks.md measures it beside the default.
    """
    b = settings.budget
    lr = float(settings.optimizer["lr"])
    tuned = b.lr_tuned.passes(pool)
    if tuned:
        lr *= min(1.0, (tuned / (questions * b.epochs)) ** b.lr_horizon_exponent)
    return Plan(
        epochs=b.epochs,
        batch_size=b.batch_size,
        micro_batch_size=min(b.micro_batch_size or b.batch_size, b.batch_size),
        evaluations=b.evaluations_per_fit,
        max_grad_norm=b.max_grad_norm,
        warmup_ratio=settings.scheduler.warmup_ratio,
        optimizer=settings.optimizer,
        schedule=settings.scheduler.schedule,
        lr=lr,
        seed=settings.train_seed,
        loss=settings.loss,
    )


def batches(options: Sequence[int], plan: Plan) -> Iterator[tuple[list[int], list[Order]]]:
    """Question indices and option orders of every step, a function of the seed and the options' numbers.

    Each epoch has its own order of questions and, per question, of its choices: a model must not learn that a
    question's answer is "b". A question with fewer options than others takes the order of as many, without
    those that it lacks: each of its orders is as likely as any other.

    Args:
        options: Number of options of each question that is trained on.
        plan: How long, and with which seed.
    """
    questions, most = len(options), max(options)
    for epoch in range(plan.epochs):
        rng = np.random.default_rng([plan.seed, epoch])
        order = rng.permutation(questions)
        choices = rng.permuted(np.tile(np.arange(most), (questions, 1)), axis=1)
        for start in range(0, questions, plan.batch_size):
            chosen = order[start : start + plan.batch_size]
            yield (
                chosen.tolist(),
                [tuple(place for place in choices[i].tolist() if place < options[i]) for i in chosen],
            )
