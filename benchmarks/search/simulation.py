"""One search replayed on a grid that was evaluated in full: workers, time, and what each report costs.

A report takes one unit of time. A report that was paid for before is free, so a search that draws the same
configuration twice pays once: in a real, continuous space it would hardly ever draw the same one. Several
workers ask the study in the order of time, as real ones do. Questions can be resampled: then the search sees
another sample of them, the same for all configurations, and what it found is judged by the questions
themselves.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from vqa.sweep.search.promotion import PAUSED, UNTIL, Extent, PromotionPruner, is_paused, pauses_of
from vqa.sweep.search.proposals import Proposer
from vqa.sweep.search.sampling import SamplerFactory, draw
from vqa.sweep.search.space import SearchSpace

MINIMIZE = StudyDirection.MINIMIZE  # the NLL


@dataclass(frozen=True)
class Point:
    """One configuration of the grid.

    Args:
        params: Searched key -> value.
        reports: Out-of-fold NLL so far, report by report; the last is the whole trial's.
        nll: NLL of each question, in the order in which the folds score them.
        per_fold: Questions of each fold.
    """

    params: dict[str, Any]
    reports: list[float]
    nll: list[float]
    per_fold: list[int]

    def cut(self, folds: int) -> "Point":
        """The same trial with its first folds only."""
        per_fold = self.per_fold[:folds]
        nll = self.nll[: sum(per_fold)]
        each = len(self.reports) // len(self.per_fold)
        reports = self.reports[: folds * each]
        reports[-1] = sum(nll) / len(nll)
        return Point(self.params, reports, nll, per_fold)


@dataclass(frozen=True)
class Grid:
    """All configurations as one search sees them.

    Args:
        points: What is reported.
        truth: NLL of each configuration over the questions as they were asked.
        per_fold: Reports of a fold.
    """

    points: list[Point]
    truth: list[float]
    per_fold: int

    @property
    def whole(self) -> int:
        """Reports of the whole grid."""
        return sum(len(point.reports) for point in self.points)

    @property
    def best(self) -> float:
        """The lowest NLL that a search can see."""
        return min(point.reports[-1] for point in self.points)

    @property
    def good(self) -> float:
        """The NLL one standard error above the best."""
        best = min(self.points, key=lambda point: point.reports[-1])
        return best.reports[-1] + float(np.std(best.nll, ddof=1)) / math.sqrt(len(best.nll))


def see(points: Sequence[Point], resample: int | None) -> Grid:
    """The grid as measured, or with its questions drawn again with replacement, fold by fold.

    Args:
        points: As measured.
        resample: Seed of the draw; None = as measured.
    """
    truth = [sum(point.nll) / len(point.nll) for point in points]
    each = len(points[0].reports) // len(points[0].per_fold)
    if resample is None:
        return Grid(list(points), truth, each)
    random = np.random.default_rng(resample)
    begins = np.cumsum([0, *points[0].per_fold[:-1]])
    chosen = [b + random.integers(0, n, n) for b, n in zip(begins, points[0].per_fold, strict=True)]
    return Grid([_resampled(point, chosen, each) for point in points], truth, each)


def _resampled(point: Point, chosen: Sequence[np.ndarray], each: int) -> Point:
    """What a trial would report on other questions; within a fold its reports move as its end does."""
    nll = np.array(point.nll)
    new = [nll[index] for index in chosen]
    reports: list[float] = []
    was, now, asked = 0.0, 0.0, 0  # sums over the folds before
    begin = 0
    for fold, size in enumerate(point.per_fold):
        old_mean, new_mean = float(nll[begin : begin + size].mean()), float(new[fold].mean())
        for part in range(each):
            last = part == each - 1
            so_far = point.reports[fold * each + part] * (asked + size)
            in_fold = old_mean if last else (so_far - was) / size
            reports.append((now + in_fold * new_mean / old_mean * size) / (asked + size))
        was, now, asked, begin = was + old_mean * size, now + new_mean * size, asked + size, begin + size
    return Point(point.params, reports, [float(v) for values in new for v in values], point.per_fold)


def nearest(points: Sequence[Point], params: dict[str, Any]) -> int:
    """The grid's configuration for drawn parameters: the learning rate goes to the nearest on a log scale."""
    same = [
        index
        for index, point in enumerate(points)
        if all(point.params[key] == params[key] for key in ("lora.r", "lora.lora_alpha"))
    ]
    rate = params["optimizer.lr"]
    return min(same, key=lambda index: abs(math.log(points[index].params["optimizer.lr"] / rate)))


@dataclass
class Replay:
    """A study in memory that workers share.

    Args:
        grid: What is searched.
        space: The same as a search space.
        samplers: Builds the sampler of each trial.
        pruner: Stops or pauses trials.
        seed: Of the study's name, from which Hyperband derives a trial's bracket.
        n_trials: Trials that may be started.
        whole_trials: Work of a search that promotes, in whole trials; None = as its pruner says.
    """

    grid: Grid
    space: SearchSpace
    samplers: SamplerFactory
    pruner: optuna.pruners.BasePruner
    seed: int
    n_trials: int = 10_000
    whole_trials: float | None = None
    pay_again: bool = False  # whether a report that was paid for before costs as much again
    paid: dict[int, int] = field(default_factory=dict)  # reports that were paid for, by configuration
    complete: list[int] = field(default_factory=list)  # configurations, in the order of their ends
    started: list[int] = field(default_factory=list)  # configurations, in the order of their trials

    def run(self, workers: int) -> Iterator[float]:
        """Let the workers work; yields the cost so far, workers x time, whenever a trial has ended."""
        steps = self._promote if isinstance(self.pruner, PromotionPruner) else self._stop
        shared = steps()
        queue = [(0.0, worker, next(shared, None)) for worker in range(workers)]
        heapq.heapify(queue)
        ended = 0
        while queue:
            now, worker, job = heapq.heappop(queue)
            if job is None:
                continue
            took = next(job, None)
            if took is None:
                if len(self.complete) > ended:
                    ended = len(self.complete)
                    yield now * workers
                job = next(shared, None)
                if job is None and queue:  # what others are at may give this one work
                    later = min(entry[0] for entry in queue)
                    heapq.heappush(queue, (max(now, later) + 1e-6, worker, iter(())))
                    continue
                took = 0.0
            heapq.heappush(queue, (now + took, worker, job))

    def _pay(self, index: int, step: int) -> float:
        """What report `step` of a configuration costs."""
        known = self.paid.get(index, 0)
        self.paid[index] = max(known, step)
        return float(step > known or self.pay_again)

    def _stop(self) -> Iterator[Iterator[float] | None]:
        """Trials of Optuna's sampler, which its pruner stops for good."""
        # Hyperband derives a trial's bracket from the study's name
        study = optuna.create_study(study_name=f"replay-{self.seed}", pruner=self.pruner)
        for number in range(self.n_trials):
            study.sampler = self.samplers.build(number)
            trial = study.ask()
            draw(trial, self.space)
            yield self._stopped(study, trial, nearest(self.grid.points, trial.params))

    def _stopped(self, study: optuna.Study, trial: optuna.Trial, index: int) -> Iterator[float]:
        point = self.grid.points[index]
        self.started.append(index)
        for step in range(1, len(point.reports) + 1):
            yield self._pay(index, step)
            if step < len(point.reports) and self._would_stop(trial, point, step):
                study.sampler = optuna.samplers.RandomSampler()
                study.tell(trial, state=TrialState.PRUNED)
                return
        study.sampler = optuna.samplers.RandomSampler()
        study.tell(trial, point.reports[-1])
        self.complete.append(index)

    def _would_stop(self, trial: optuna.Trial, point: Point, step: int) -> bool:
        if not isinstance(trial.study.pruner, optuna.pruners.WilcoxonPruner):
            trial.report(point.reports[step - 1], step)
            return trial.should_prune()
        fold, rest = divmod(step, self.grid.per_fold)
        if rest:
            return False
        begin = sum(point.per_fold[: fold - 1])
        for question in range(begin, begin + point.per_fold[fold - 1]):
            trial.report(point.nll[question], question)
        return trial.should_prune()

    def _promote(self) -> Iterator[Iterator[float] | None]:
        """Pieces of trials, as `SharedStudy.claim` hands them out."""
        pruner = self.pruner
        if not isinstance(pruner, PromotionPruner):
            raise TypeError(f"{pruner} does not promote")
        proposer = Proposer(self.samplers, self.space, pruner.random_share_of, MINIMIZE)
        extent = pruner.extent(min(self.n_trials, len(self.grid.points)), self.whole_trials)
        trials: list[FrozenTrial] = []
        of_trial = self.started
        while True:
            piece = pruner.next_piece(MINIMIZE, trials, extent)
            if piece is None:
                yield None
                if all(trial.state.is_finished() or is_paused(trial) for trial in trials):
                    return
                continue
            number = piece.number
            if number is None:
                number = len(trials)
                params = proposer.propose(number, trials)
                index = nearest(self.grid.points, params)
                if index in of_trial:  # a new draw of a known cell: take the nearest free one
                    index = self._free(params, of_trial)
                of_trial.append(index)
                trials.append(
                    create_trial(
                        params=self.grid.points[index].params,
                        distributions=self.space.distributions,
                        state=TrialState.RUNNING,
                    )
                )
                trials[number].number = number
            trials[number].user_attrs[UNTIL] = piece.until
            yield self._piece(trials, number, of_trial[number], pruner, extent)

    def _free(self, params: dict[str, Any], taken: Sequence[int]) -> int:
        points = [point for index, point in enumerate(self.grid.points) if index not in taken]
        same = [p for p in points if all(p.params[k] == params[k] for k in ("lora.r", "lora.lora_alpha"))]
        chosen = same or points
        rate = params["optimizer.lr"]
        best = min(chosen, key=lambda point: abs(math.log(point.params["optimizer.lr"] / rate)))
        return self.grid.points.index(best)

    def _piece(
        self, trials: list[FrozenTrial], number: int, index: int, pruner: PromotionPruner, extent: Extent
    ) -> Iterator[float]:
        """Reports of a trial until it pauses or ends; after a pause it repeats the fold that it had begun."""
        trial, point, rungs = trials[number], self.grid.points[index], pruner.rungs
        done = (trial.last_step or 0) // rungs.resume_every * rungs.resume_every
        while True:
            until = trial.user_attrs[UNTIL]
            for _ in range(done, until):
                yield 1.0
            for step in range(1, min(until, len(point.reports) - 1) + 1):
                trial.intermediate_values[step] = point.reports[step - 1]
            if until == rungs.whole:
                trial.state, trial.value = TrialState.COMPLETE, point.reports[-1]
                self.complete.append(index)
                return
            piece = pruner.next_piece(MINIMIZE, trials, extent, at_hand=number)
            if piece is None or piece.number != number:
                trial.user_attrs[PAUSED] = [*pauses_of(trial), until]
                return
            trial.user_attrs[UNTIL], done = piece.until, until
