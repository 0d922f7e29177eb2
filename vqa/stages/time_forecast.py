"""What `stage=doctor` says of time before anything is loaded: a whole contest on one card and on two.

An estimate from floating-point operations. What a run computes follows from configurations; how much of a
card's peak a run reaches was measured on an H200 and is nearly the same for all that was tried there
(tests/stages/test_time_forecast.py holds the estimate to those rates). Another card is expected between that
share of its peak and what its power limit or its memory may leave of it. No such card was measured, so both
ends are told.

Notation: P tokens of the prefix, S of a question with its picture, B questions a step, Q width of all query
heads.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra import compose
from omegaconf import OmegaConf

from vqa.config.check import read_settings
from vqa.config.messages import message
from vqa.config.settings import BudgetSettings, Settings
from vqa.question import Question
from vqa.stages.footprint import GIB, HALF, USABLE, Foreseen, Widths, fitting_step, way_on, widths_of

HOUR = 3600
SEARCH = "+sweep=lora"  # the search of a command that names none
NOT_OF_A_SWEEP = ("stage=", "doctor.", "hydra.", "hydra/")  # words of the doctor's command alone
# Of a card's peak, measured on an H200: benchmarks/results/2026-11-29-h200-acceptance.json. float16 without
# FlashAttention is the T4-class row. What is quantised makes less difference than the rows among themselves.
SHARE, SHARE_WITHOUT_FLASH = 0.46, 0.35
# How much less of its peak a card may keep up than an H200. Plain products alone run at 790 of 989 TFLOP/s on
# an H200 and at 24 of 65 on a T4, which its limit of 70 W slows down.
# Source: https://forums.developer.nvidia.com/t/about-gpu-peak-performance/264462
LESS = 2.2
SPREAD = 1.25  # of rates on cards that were measured


@dataclass(frozen=True)
class Card:
    """What a card's datasheet says.

    Args:
        name: As people call it.
        gb: Memory, GB.
        tflops: Peak of dense float16 products with float32 sums, TFLOP/s.
        gb_per_s: Memory bandwidth, GB/s.
        flash: Whether FlashAttention runs on it, and bfloat16.
        measured: Whether rates on it were measured.
    """

    name: str
    gb: int
    tflops: float
    gb_per_s: float
    flash: bool = True
    measured: bool = False

    def seconds(self, flop: float) -> tuple[float, float]:
        """Shortest and longest time that so many floating-point operations may take."""
        shortest = flop / (self.tflops * 1e12 * (SHARE if self.flash else SHARE_WITHOUT_FLASH))
        if self.measured:
            return shortest / SPREAD, shortest * SPREAD
        starved = (self.tflops / self.gb_per_s) / (H200.tflops / H200.gb_per_s)
        return shortest, shortest * max(LESS, starved)


H200 = Card("H200", 141, 989, 4800, measured=True)
CARDS = {  # values of doctor.card
    "t4": Card("T4", 16, 65, 320, flash=False),
    "l4": Card("L4", 24, 121, 300),
    "rtx3090": Card("RTX 3090", 24, 71, 936),
    "rtx4090": Card("RTX 4090", 24, 165, 1008),
    "a100": Card("A100", 80, 312, 2039),
    "h100": Card("H100", 80, 989, 3350, measured=True),
    "h200": H200,
}


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a model on questions of a typical length.

    Args:
        widths: Of the decoder.
        prefix: P.
        suffix: S.
        picture: Operations of one picture in the vision tower.
    """

    widths: Widths
    prefix: int
    suffix: int
    picture: float

    def answering(self, batch: int) -> float:
        """Operations of one question that is answered, its picture known."""
        return self._forward(batch)

    def training(self, batch: int, recompute: str) -> float:
        """Operations of one question that is trained on; frozen weights have no gradients of their own.

        Args:
            batch: B.
            recompute: nothing, mlp or layer: what the backward computes again.
        """
        widths, forward = self.widths, self._forward(batch)
        again = {
            "nothing": 0.0,
            "mlp": 2 * widths.gated * widths.layers * self._tokens(batch),
            "layer": forward,
        }
        return 2 * forward + again[recompute]

    def _tokens(self, batch: int) -> float:
        return self.suffix + self.prefix / batch

    def _forward(self, batch: int) -> float:
        pairs = self.suffix * self.prefix + self.suffix**2 / 2 + self.prefix**2 / 2 / batch
        widths = self.widths
        return widths.layers * (2 * widths.linear * self._tokens(batch) + 4 * widths.Q * pairs)


def work_of(known: Foreseen) -> Work:
    """What a model computes, from its configuration and the lengths of the questions."""
    vision, tokens = known.config.vision_config, known.lengths.visual_median
    patches = tokens * vision.spatial_merge_size**2
    whole = getattr(vision, "fullatt_block_indexes", None)  # the other layers attend within windows
    pairs = (vision.depth if whole is None else len(whole)) * patches**2
    picture = 2 * known.footprint.tower / HALF * patches + 4 * vision.hidden_size * pairs
    return Work(widths_of(known.config), known.lengths.prefix, known.lengths.suffix_median, picture)


@dataclass(frozen=True)
class Contest:
    """What the command that the doctor proposes would compute.

    Args:
        trials: Trials that run to their end, if none is pruned.
        minutes: `hydra.sweeper.budget_minutes`.
        trial: The budget of each.
        final: The budget of the final run.
        members: Adapters that it trains: a number, or folds.
        orders: How often each question is asked for its answer.
        train: Questions of the 80 %.
        valid: Those held out.
        test: Those to answer.
        pictures: Pictures of all of them.
    """

    trials: float
    minutes: float | None
    trial: BudgetSettings
    final: BudgetSettings
    members: Any
    orders: float
    train: int
    valid: int
    test: int
    pictures: int

    @property
    def sample(self) -> int:
        """Questions of one trial."""
        return min(self.trial.subsample or self.train, self.train)

    def adapters(self) -> tuple[int, float]:
        """Adapters of the final run, and the questions that each is trained on."""
        train = min(self.final.subsample or self.train, self.train)
        if self.members != "folds":
            return int(self.members), train
        folds = self.final.folds if self.final.folds > 1 else self.trial.folds
        return folds, train * (folds - 1) / folds


def words_of_sweep(given: Sequence[str]) -> list[str]:
    """Overrides of a sweep over what a command names; the usual search is put in where it names none."""
    own = ("hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")
    kept = [word for word in given if word.startswith(own) or not word.startswith(NOT_OF_A_SWEEP)]
    return kept if any(word.startswith("+sweep=") for word in kept) else [SEARCH, *kept]


def planned_contest(known: Foreseen, given: Sequence[str]) -> Contest:
    """The contest that a command would make of these data.

    Args:
        known: The data, and what is known of the model.
        given: Overrides of the command line; without a sweep the one that the doctor proposes is meant.

    Raises:
        UserError: The sweep's configuration, or that of its final run, is wrong.
    """
    words = words_of_sweep(given)
    swept = compose("config", overrides=[*words, "stage=trial"], return_hydra_config=True)
    sweeper = swept.hydra.sweeper
    trial = read_settings(OmegaConf.masked_copy(swept, [str(key) for key in swept if key != "hydra"]))
    final = read_settings(compose("config", overrides=[*words, *sweeper.final_overrides]))
    questions, test = len(known.train), len(known.test)
    valid = round(questions * final.budget.holdout_share)
    return Contest(
        trials=min(sweeper.n_trials, sweeper.whole_trials or sweeper.n_trials),
        minutes=sweeper.budget_minutes,
        trial=trial.budget,
        final=final.budget,
        members=final.final.members,
        orders=_orders(final, known.train),
        train=questions - valid,
        valid=valid,
        test=min(test, final.budget.test_limit or test),
        pictures=known.pictures,
    )


def _orders(settings: Settings, questions: Sequence[Question]) -> float:
    """How often the read-out asks a question: in one order of its options or in several."""
    options = sum(len(q.choices) for q in questions) / len(questions)
    if settings.inference.orders == "cyclic":
        return options
    return 1 + settings.inference.pride_share * (options - 1) * (settings.inference.debias == "pride")


@dataclass(frozen=True)
class Hours:
    """Shortest and longest time of the parts of a contest, hours of one card.

    `shared` is False where the sweep was given a time, which it takes whatever the number of cards.
    """

    sweep: tuple[float, float]
    final: tuple[float, float]
    answers: tuple[float, float]
    shared: bool = True

    def on(self, cards: int) -> tuple[float, float]:
        """Hours of wall time with so many workers: they share the trials, and one makes the final run."""
        return self._sum(0, cards), self._sum(1, cards)

    def _sum(self, end: int, cards: int) -> float:
        return self.sweep[end] / (cards if self.shared else 1) + self.final[end] + self.answers[end]


def hours_of(contest: Contest, work: Work, card: Card, recompute: str) -> Hours:
    """Time of a contest on one card, without download, loading and compiling.

    Args:
        contest: What is computed.
        work: What a question costs.
        card: The card.
        recompute: What its memory makes a training step compute again.
    """
    b, f = contest.trial, contest.final
    train, answer = work.training(b.batch_size, recompute), work.answering(b.eval_batch_size)
    passes = contest.sample * (b.folds - 1) * b.epochs
    one_trial = passes * train + contest.sample * b.evaluations_per_fit * answer
    adapters, questions = contest.adapters()
    train = work.training(f.batch_size, recompute)
    evaluated = contest.valid * f.evaluations_per_fit * answer
    final = adapters * (questions * f.epochs * train + evaluated)
    # the base model is asked once; every picture passes the tower once
    asked = contest.valid + adapters * contest.orders * (contest.valid + contest.test)
    answers = asked * work.answering(f.eval_batch_size) + contest.pictures * work.picture

    def hours(flop: float) -> tuple[float, float]:
        short, long = card.seconds(flop)
        return short / HOUR, long / HOUR

    found = Hours(hours(contest.trials * one_trial), hours(final), hours(answers))
    if contest.minutes is None:
        return found
    return replace(found, sweep=(contest.minutes / 60, contest.minutes / 60), shared=False)


def time_lines(settings: Settings, known: Foreseen, given: Sequence[str]) -> list[str]:
    """What a whole contest takes on the card in question, with one of them and with several.

    Args:
        settings: The run; `doctor.card` names a card.
        known: Its data and model.
        given: Overrides of the command line.

    Raises:
        UserError: As `planned_contest`.
    """
    lang = settings.lang
    if not known.footprint.layers:
        return [message(lang, "time unknown")]
    found, count = found_cards()
    card = CARDS[settings.doctor.card] if settings.doctor.card else found or CARDS["t4"]
    contest = planned_contest(known, given)
    gib = min(card.gb * 1e9 / GIB * USABLE, settings.budget.max_memory_gib or math.inf)
    way = fitting_step(contest.final, known, gib, card.flash)
    if way is None:
        return [message(lang, "time none", card=card.name)]
    hours = hours_of(contest, work_of(known), card, way[0].recompute)
    cards = max(2, count if card is found else 0)
    parts = {name: _span(lang, getattr(hours, name)) for name in ("sweep", "final", "answers")}
    one, several = _span(lang, hours.on(1)), _span(lang, hours.on(cards))
    adapters, questions = contest.adapters()
    what = {
        "trials": f"{contest.trials:g}",
        "folds": contest.trial.folds,
        "sample": contest.sample,
        "passes": adapters * contest.final.epochs,
        "train": round(questions),
        "answers": contest.valid + contest.test,
    }
    source = "time measured" if card.measured else "time estimated"
    lines = [
        message(lang, "time", card=card.name, one=one, cards=cards, several=several, **parts),
        message(lang, "time of", **what),
        message(lang, source, card=card.name, way=way_on(settings, known, gib, card.flash)),
    ]
    left_out = _left_out(settings)
    return [*lines, message(lang, "time more", what=", ".join(left_out))] if left_out else lines


def found_cards() -> tuple[Card | None, int]:
    """The first GPU of this machine, where its datasheet is known, and how many GPUs there are."""
    if not torch.cuda.is_available():
        return None, 0
    gpu = torch.cuda.get_device_properties(0)
    words = set(re.split(r"[ -]", gpu.name.upper()))
    known = [card for card in CARDS.values() if words.issuperset(card.name.upper().split())]
    gb = round(gpu.total_memory / 1e9)  # some are sold with more memory or with less
    return (replace(known[0], gb=gb) if known else None), torch.cuda.device_count()


def _left_out(settings: Settings) -> list[str]:
    """Settings that cost time which is not counted."""
    ways = {
        f"inference.readout={settings.inference.readout}": settings.inference.readout != "letters",
        "prompt.entropy_threshold": settings.prompt.entropy_threshold is not None,
        f"adapt={settings.adapt.method}": settings.adapt.method != "none",
        "lora.use_dora": bool(settings.lora.get("use_dora")),
        "lora.lora_dropout": bool(settings.lora.get("lora_dropout")),
    }
    return [way for way, used in ways.items() if used]


def _span(lang: str, hours: tuple[float, float]) -> str:
    """Two times with their unit said once: "3 to 7 h", "20 to 45 min"."""
    unit, times = ("min", 60) if hours[1] < 2 else ("h", 1)
    low, high = (f"{value:.2g}" if (value := hour * times) < 10 else f"{value:.0f}" for hour in hours)
    both = low if low == high else message(lang, "time span", low=low, high=high)
    return message(lang, f"board unit {unit}", n=both)
