"""Search by promotion: a trial pauses at a rung, and goes on when it is among the best that came so far.

A pruner that stops trials for good loses a good one to one unlucky report. Here nothing is lost: a paused
trial may be promoted at any later time, when more trials have come to its rung or when nothing is left to
start. Only whole folds survive a pause, so a promoted trial first repeats what it had begun of a fold. A
trial that is among the best when it comes to its rung goes on at once and repeats nothing.

`next_piece` decides from plain values; `vqa.sweep.study` asks it under the study's lock, and
`benchmarks/search` replays it.

Source: L. Li and others (2020), "A System for Massively Parallel Hyperparameter Tuning", MLSys, algorithm 2
(get_job). Ours differs in the end: when all trials have been started, the best paused ones go on, those at
the highest rung first, until enough trials are complete to be compared, or the given work is done. Towards
the end of a given work only what can still be completed starts or goes on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

UNTIL = "until"  # user attribute of a trial: the rung where it may pause, or the last one, its end
PAUSED = "paused"  # user attribute of a trial: the rungs where it did pause
WORKED_S = "worked_s"  # user attribute of a trial: seconds that were spent on it until it last paused


@dataclass(frozen=True)
class Rungs:
    """Where trials pause, in reports from 1.

    Args:
        steps: Of each rung, rising; the last is a whole trial.
        factor: One of so many is promoted.
        resume_every: Reports between two points from which a trial can be taken up again: those of a fold.
    """

    steps: tuple[int, ...]
    factor: int
    resume_every: int

    @property
    def whole(self) -> int:
        """Reports of a whole trial."""
        return self.steps[-1]

    def after(self, step: int) -> int:
        """The rung above `step`."""
        return next(rung for rung in self.steps if rung > step)


@dataclass(frozen=True)
class Climber:
    """A trial as `next_piece` sees it.

    Args:
        number: Its number.
        reports: Objective so far, by step.
        until: The rung that it is at, or is on the way to.
        state: What it does: "paused" at a rung, "running" up to `until`, "complete", or "ended" otherwise.
        pauses: The rungs where it paused.
    """

    number: int
    reports: Mapping[int, float]
    until: int
    state: Literal["paused", "running", "complete", "ended"]
    pauses: tuple[int, ...] = ()

    def at(self, rung: int) -> float | None:
        """What it reported when it came to a rung; None before that."""
        return next((self.reports[step] for step in sorted(self.reports) if step >= rung), None)

    def work(self, resume_every: int) -> int:
        """Reports computed so far or being computed; what is repeated after a pause counts again."""
        return self.until + sum(rung % resume_every for rung in self.pauses if rung < self.until)


@dataclass(frozen=True)
class Piece:
    """What a worker does next.

    Args:
        number: The paused trial that goes on; None = a new one.
        until: The rung where it pauses, or a whole trial's last report.
    """

    number: int | None
    until: int


@dataclass(frozen=True)
class Extent:
    """How much a study does.

    Args:
        n_trials: Trials that may be started.
        least_complete: Complete trials after which no paused one goes on merely because nothing else is left.
        whole_trials: Work, in whole trials, which is then done instead; None = as `least_complete` says.
    """

    n_trials: int
    least_complete: int
    whole_trials: float | None = None


def work_of(climbers: Sequence[Climber], rungs: Rungs) -> float:
    """Work begun so far, in whole trials; repeated folds are counted."""
    return sum(climber.work(rungs.resume_every) for climber in climbers) / rungs.whole


def next_piece(
    climbers: Sequence[Climber], rungs: Rungs, extent: Extent, sign: float = 1.0, at_hand: int | None = None
) -> Piece | None:
    """Choose what a free worker does.

    Args:
        climbers: All trials that were started.
        rungs: Where they pause.
        extent: How much the study does. A study without a complete trial goes on all the same.
        sign: 1 where a small objective is good, -1 where a large one is.
        at_hand: The trial that has just come to its rung, still in the worker's hands: of the trials that
            deserve it, it goes on first, since it repeats nothing.

    Returns:
        None when nothing is left, or all that is left waits for trials that are running.
    """

    def value(climber: Climber, rung: int) -> tuple[float, int]:
        reported = climber.at(rung)
        return math.inf if reported is None else sign * reported, climber.number

    def rest(climber: Climber) -> int:
        """Reports until its end."""
        repeated = 0 if climber.number == at_hand else climber.until % rungs.resume_every
        return rungs.whole - climber.until + repeated

    complete = sum(climber.state != "ended" and climber.until == rungs.whole for climber in climbers)
    limit = extent.whole_trials
    left = math.inf if limit is None else (limit - work_of(climbers, rungs)) * rungs.whole
    paused = [c for c in climbers if c.state == "paused" and (not complete or rest(c) <= left)]
    deserving: list[Climber] = []
    for rung in reversed(rungs.steps[:-1]):
        reached = [climber for climber in climbers if climber.at(rung) is not None]
        reached.sort(key=lambda climber: value(climber, rung))
        best = {climber.number for climber in reached[: len(reached) // rungs.factor]}
        waiting = sorted((c for c in paused if c.until == rung), key=lambda climber: value(climber, rung))
        deserving += [climber for climber in waiting if climber.number in best]
    if deserving:
        first = next((climber for climber in deserving if climber.number == at_hand), deserving[0])
        return Piece(first.number, rungs.after(first.until))
    if len(climbers) < extent.n_trials and (left >= rungs.whole or not climbers):
        return Piece(None, rungs.steps[0])
    if not paused or (limit is None and complete >= extent.least_complete):
        return None
    first = min(paused, key=lambda climber: (-climber.until, value(climber, climber.until)))
    return Piece(first.number, rungs.after(first.until))


class PromotionPruner(optuna.pruners.BasePruner):
    """Pauses a trial at the rung that it was sent to, unless `next_piece` sends it on.

    Args:
        first_rung: Reports until the first pause.
        reduction_factor: Rungs lie so many times apart, and one of so many trials is promoted.
        last_rung: Reports of a whole trial.
        resume_every: Reports of a fold: a trial is taken up again only after whole folds.
        least_complete: Trials that run to their end at the least, so that there is something to compare.
        random_share: Share of trials whose values are drawn at random at the least, whatever the sampler
            thinks.
        random_early: Trial n, from 1, is drawn at random with probability random_early / n, if that is more.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        first_rung: int,
        reduction_factor: int,
        last_rung: int,
        resume_every: int,
        least_complete: int,
        random_share: float,
        random_early: float = 0.0,
    ) -> None:
        if not 1 <= first_rung <= last_rung:
            raise ValueError(f"first_rung must be from 1 to last_rung={last_rung}, got {first_rung}")
        if reduction_factor < 2:
            raise ValueError(f"reduction_factor must be >= 2, got {reduction_factor}")
        if resume_every < 1:
            raise ValueError(f"resume_every must be >= 1, got {resume_every}")
        if least_complete < 1:
            raise ValueError(f"least_complete must be >= 1, got {least_complete}")
        if not 0 <= random_share <= 1:
            raise ValueError(f"random_share must be from 0 to 1, got {random_share}")
        if random_early < 0:
            raise ValueError(f"random_early must be >= 0, got {random_early}")
        steps = [first_rung]
        while steps[-1] * reduction_factor < last_rung:
            steps.append(steps[-1] * reduction_factor)
        if steps[-1] != last_rung:
            steps.append(last_rung)
        self.rungs = Rungs(tuple(steps), reduction_factor, resume_every)
        self.least_complete = least_complete
        self.random_share = random_share
        self.random_early = random_early

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial has come to the rung where it pauses."""
        until = trial.user_attrs.get(UNTIL, self.rungs.whole)
        return trial.last_step is not None and trial.last_step >= until

    def random_share_of(self, number: int) -> float:
        """The probability that trial `number` is drawn at random."""
        return min(1.0, max(self.random_share, self.random_early / (number + 1)))

    def extent(self, n_trials: int, whole_trials: float | None) -> Extent:
        """How much a study with these keys does."""
        return Extent(n_trials, min(n_trials, self.least_complete), whole_trials)

    def next_piece(
        self,
        direction: StudyDirection,
        trials: Sequence[FrozenTrial],
        extent: Extent,
        at_hand: int | None = None,
    ) -> Piece | None:
        """As the function of this name, for Optuna's trials."""
        sign = 1.0 if direction == StudyDirection.MINIMIZE else -1.0
        climbers = [
            replace(climber, state="paused") if climber.number == at_hand else climber
            for climber in self._climbers(trials)
        ]
        return next_piece(climbers, self.rungs, extent, sign, at_hand)

    def work(self, trials: Sequence[FrozenTrial]) -> float:
        """Work begun so far, in whole trials."""
        return work_of(self._climbers(trials), self.rungs)

    def _climbers(self, trials: Sequence[FrozenTrial]) -> list[Climber]:
        return [_climber(trial, self.rungs) for trial in trials if trial.state != TrialState.WAITING]


def is_paused(trial: FrozenTrial) -> bool:
    """Whether a trial waits at its rung.

    A trial that died after it had reported its rung, before anybody said whether it goes on, is none that
    waits: whoever adopts it asks that first.
    """
    return trial.state == TrialState.RUNNING and trial.user_attrs.get(UNTIL) in pauses_of(trial)


def pauses_of(trial: FrozenTrial) -> list[int]:
    """The rungs where a trial paused."""
    return list(trial.user_attrs.get(PAUSED, ()))


def _climber(trial: FrozenTrial, rungs: Rungs) -> Climber:
    until, pauses = trial.user_attrs.get(UNTIL, rungs.whole), tuple(pauses_of(trial))
    if trial.state == TrialState.COMPLETE:  # a job that does not report is complete at once
        return Climber(trial.number, trial.intermediate_values, rungs.whole, "complete", pauses)
    if trial.state.is_finished():
        return Climber(trial.number, trial.intermediate_values, until, "ended", pauses)
    state: Literal["paused", "running"] = "paused" if is_paused(trial) else "running"
    return Climber(trial.number, trial.intermediate_values, until, state, pauses)
