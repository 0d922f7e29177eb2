"""The study that all workers share: which trial comes next, and who is at work on it.

A study can be killed at any instant and goes on as if nothing had happened. Three decisions make it so:

- A trial that was cut off is neither failed nor queued again. The next worker adopts it, with its number,
  folder, parameters and reports.
- A worker holds a file lock for the trial that it runs. The kernel drops the lock when the worker dies, so a
  running trial without a lock was cut off.
- Each trial has a sampler of its own, seeded by (seed, trial number). A draw does not depend on how many
  draws this process has made before.

All trials of a study must answer the same question. Its terms say which: search space, fixed overrides,
sampler, pruner, direction and seed. The first run fixes them, and a run under other terms is refused.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import optuna
from hydra.errors import HydraException
from omegaconf import OmegaConf
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from vqa.config.settings import is_under
from vqa.errors import UserError
from vqa.machine.files import is_locked, replace_text, try_lock, wait_for_lock
from vqa.machine.safe_text import mask_secrets, shown
from vqa.results.folder import MAY_DIFFER, StudyFolder, read_yaml
from vqa.sweep.search.conditions import in_words
from vqa.sweep.search.promotion import PAUSED, UNTIL, Piece, PromotionPruner, is_paused, pauses_of
from vqa.sweep.search.proposals import Proposer
from vqa.sweep.search.sampling import SamplerFactory, build_pruner, draw, is_grid, quieten_optuna
from vqa.sweep.search.space import SearchSpace, override_value, plain_value
from vqa.sweep.settings import SweepSettings
from vqa.sweep.storage import open_storage

log = logging.getLogger(__name__)

RUNG_MARK = "completed_rung_"  # optuna.pruners._successive_halving notes a passed rung under this name


# These say where and how the study runs, not what it compares. A key below one of them counts as well
# (env.threads); a group that holds one among others does not (budget=smoke).
NOT_PART_OF_THE_TERMS = ("study", "final", *MAY_DIFFER)


def study_terms(settings: SweepSettings, space: SearchSpace) -> dict[str, Any]:
    """Give the terms as plain values: equal terms give equal mappings."""
    conditions = {name: in_words(wanted) for name, wanted in space.conditions.items()}
    return {
        "direction": settings.direction,
        "seed": settings.seed,
        "sampler": settings.sampler,
        "pruner": settings.pruner,
        "space": {name: str(distribution) for name, distribution in space.distributions.items()},
        "fixed": sorted(mask_secrets(override) for override in space.fixed if _matters(override)),
        **({"conditions": conditions} if conditions else {}),
    }


def _matters(override: str) -> bool:
    return not is_under(override.lstrip("+~").split("=", 1)[0], NOT_PART_OF_THE_TERMS)


def settings_of(overrides: Sequence[str]) -> dict[str, str]:
    """What overrides set, by key, whatever their order; without what says where and how a run computes.

    Args:
        overrides: As typed; of a key that is set twice the last one counts.
    """
    pairs = [_spelled(override.lstrip("+")).partition("=") for override in overrides if _matters(override)]
    return {key: value for key, _, value in pairs}


def _spelled(override: str) -> str:
    """An override in one spelling of its value: 1e-3 is 0.001, and "a" in quotes is a."""
    key, equals, text = override.partition("=")
    try:
        return f"{key}={override_value(plain_value(text))}" if equals else override
    except HydraException:
        return override


def refuse_other_terms(study: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the terms of an earlier run with those of this one.

    Raises:
        UserError: They differ; the message names each difference.
    """
    lines: list[str] = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            lines += [
                f"  {key} {n}: {old.get(n, 'nothing')} before, {new.get(n, 'nothing')} now" for n in names
            ]
        elif isinstance(old, list) and isinstance(new, list):
            gone, come = _without(old, new), _without(new, old)
            told = f"  {key}: {' '.join(gone) or 'nothing'} before, {' '.join(come) or 'nothing'} now"
            lines += [told] if gone or come else []
        else:
            old, new = before.get(key, "nothing"), now.get(key, "nothing")
            lines.append(f"  {key}: {old} before, {new} now")
    if lines:
        raise UserError(
            f"study {study!r} was begun under other terms, its trials would not compare:\n"
            + "\n".join(lines)
            + "\nRepeat the earlier command to go on with it, or start another one with study=other."
        )


def _without(overrides: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those that the others do not say in any spelling."""
    said = set(map(_spelled, others))
    return [override for override in overrides if _spelled(override) not in said]


def refuse_changed(settings: SweepSettings, space: SearchSpace, folder: Path) -> dict[str, Any]:
    """The terms of a study, which are those of its folder's results.

    Raises:
        UserError: The folder has results under other terms.
    """
    terms = study_terms(settings, space)
    before = read_terms(StudyFolder(folder).terms)
    if before is not None and StudyFolder(folder).has_results():
        refuse_other_terms(settings.study_name, before, terms)
    return terms


def read_terms(path: Path) -> dict[str, Any] | None:
    """Read `study.yaml`; None when there is none."""
    if not path.exists():
        return None
    try:
        terms = OmegaConf.to_container(read_yaml(path))
    except UserError:
        terms = None
    if not isinstance(terms, dict) or not terms:
        raise UserError(f"{path} must be a mapping; remove it, the study's storage knows its terms too.")
    return {str(key): value for key, value in terms.items()}


def terms_text(terms: Mapping[str, Any]) -> str:
    """Give the content of `study.yaml`."""
    return "# What this study compares; another run must ask the same.\n" + OmegaConf.to_yaml(dict(terms))


@dataclass(frozen=True)
class Claim:
    """A trial that this worker has taken.

    Args:
        trial: The trial; RUNNING, all its parameters are drawn.
        lock: Held until after the result is in the storage.
        adopted: Whether it was begun before and cut off.
    """

    trial: Trial
    lock: IO[str]
    adopted: bool


@dataclass(frozen=True)
class Tally:
    """How many trials are done (COMPLETE, PRUNED or FAIL), failed (part of these), running and paused."""

    done: int
    failed: int
    running: int
    paused: int

    @classmethod
    def of(cls, trials: Iterable[FrozenTrial]) -> Self:
        """Count `trials`."""
        trials = list(trials)
        states = Counter(trial.state for trial in trials)
        paused = sum(is_paused(trial) for trial in trials)
        done = states[TrialState.COMPLETE] + states[TrialState.PRUNED] + states[TrialState.FAIL]
        return cls(done, states[TrialState.FAIL], states[TrialState.RUNNING] - paused, paused)

    @property
    def started(self) -> int:
        """Trials that are done, running or paused."""
        return self.done + self.running + self.paused


class SharedStudy:
    """A study in its storage, as this process sees it. Loaded, or created, here.

    An existing study is only read, unless it was killed while its first trials were being queued.

    Args:
        settings: The checked keys of `hydra.sweeper`.
        space: What is searched and what is fixed.
        folder: The study's folder, `hydra.sweep.dir`.
        enqueued: Parameters of the first trials.
        begun: Whether another process had the storage open before: then it is waited for while it is away.

    Raises:
        UserError: Sampler, pruner or storage cannot be had, or the study was begun under other terms.
    """

    def __init__(
        self,
        settings: SweepSettings,
        space: SearchSpace,
        folder: Path,
        enqueued: list[dict[str, Any]],
        begun: bool = False,
    ) -> None:
        quieten_optuna()
        self.settings = settings
        self.space = space
        self.folder = folder
        self.begun = begun
        self._left_alone: set[int] = set()  # trials of which that was said
        self.locks = StudyFolder(folder).locks
        grid = is_grid(settings.sampler)  # the grid sampler would go on with points it had before
        self.n_trials = min(settings.n_trials, space.size()) if grid else settings.n_trials
        self._samplers = SamplerFactory(settings.sampler, settings.seed, space)
        pruner = build_pruner(settings.pruner)
        self.promotion = pruner if isinstance(pruner, PromotionPruner) else None
        if self.promotion is not None and space.is_finite():  # it tries no point twice
            self.n_trials = min(self.n_trials, space.size())
        terms = refuse_changed(settings, space, folder)
        self.locks.mkdir(parents=True, exist_ok=True)
        with self.locked():
            self.study = self._load_or_create(pruner)
            if self._is_blank() and self.study.user_attrs.get("terms", terms) != terms:
                # nothing but a mistake so far, such as a misspelt file: the mended command may have the name
                optuna.delete_study(study_name=settings.study_name, storage=self.study._storage)
                self.study = self._load_or_create(pruner)
            self._settle(terms, [] if grid else enqueued)

    def _load_or_create(self, pruner: optuna.pruners.BasePruner) -> optuna.Study:
        storage = open_storage(self.settings.storage, self.settings.storage_wait_s, self.begun)
        name = self.settings.study_name
        if name in optuna.get_all_study_names(storage):
            return optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        direction = StudyDirection[self.settings.direction.upper()]
        return optuna.create_study(study_name=name, storage=storage, pruner=pruner, direction=direction)

    def _is_blank(self) -> bool:
        """Whether no trial has ended or reported anything, and none is being run."""
        return not any(
            trial.state.is_finished()
            or trial.intermediate_values
            or (trial.state == TrialState.RUNNING and is_locked(self.locks / str(trial.number)))
            for trial in self.trials()
        )

    def _settle(self, terms: dict[str, Any], enqueued: list[dict[str, Any]]) -> None:
        """Write what a new study needs; a step that was done before is skipped."""
        before = self.study.user_attrs.get("terms")
        if before is None:
            self.study.set_user_attr("terms", terms)
        else:
            refuse_other_terms(self.settings.study_name, before, terms)
        replace_text(StudyFolder(self.folder).terms, terms_text(terms))
        if self.tally().started < self.n_trials:
            for params in enqueued:
                self.study.enqueue_trial(params, skip_if_exists=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other worker from counting, adopting and asking."""
        with wait_for_lock(self.locks / "study"):
            yield

    def trials(self) -> list[FrozenTrial]:
        """All trials so far, by number; not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def now(self, trial: Trial) -> FrozenTrial:
        """One trial as the storage has it: reading all of them takes time, those that have not ended most."""
        return self.study._storage.get_trial(trial._trial_id)

    def tally(self) -> Tally:
        """Count the trials."""
        return Tally.of(self.trials())

    def too_many_failures(self) -> bool:
        """Whether more trials failed than max_failures allows."""
        return self.tally().failed > self.settings.max_failures

    def is_over(self) -> bool:
        """Whether every trial has ended and no other one is wanted."""
        trials = self.trials()
        tally = Tally.of(trials)
        if self.promotion is None:
            return tally.done >= self.n_trials
        return tally.running + tally.paused == 0 and self._next_piece(trials) is None

    def has_more(self) -> bool:
        """Whether a worker that is free now could start or go on with a trial nobody works on."""
        trials = self.trials()
        if self.promotion is None:
            return Tally.of(trials).started < self.n_trials
        return self._next_piece(trials) is not None

    def may_have_more(self) -> bool:
        """Whether trials that run elsewhere may pause, and so leave work to a worker that is free now."""
        trials = self.trials()
        limit = self.settings.whole_trials
        if self.promotion is None or Tally.of(trials).running == 0 or self.too_many_failures():
            return False
        return limit is None or self.promotion.work(trials) < limit

    def _next_piece(self, trials: list[FrozenTrial], at_hand: int | None = None) -> Piece | None:
        if self.promotion is None:
            raise TypeError(f"{self.study.pruner} does not promote")
        extent = self.promotion.extent(self.n_trials, self.settings.whole_trials)
        return self.promotion.next_piece(self.study.direction, trials, extent, at_hand)

    def _wants_more(self, trials: list[FrozenTrial]) -> bool:
        tally = Tally.of(trials)
        return tally.done < self.n_trials and tally.failed <= self.settings.max_failures

    def claim(self) -> Claim | None:
        """Take the next trial: one that was cut off, a paused one, or a new one. Call it inside `locked()`.

        A trial that was cut off more than `max_retries` times ends as FAIL with that reason. When no trial is
        left to promote, those that are paused end as PRUNED.

        Returns:
            The trial with its lock; None when all n_trials are done or run elsewhere, or too many failed.
        """
        trials = self.trials()
        if not self._wants_more(trials):
            return None
        for frozen in [t for t in trials if t.state == TrialState.RUNNING and not is_paused(t)]:
            if (claim := self._adopt(frozen)) is not None:
                return claim
            trials = self.trials()  # it may have ended as FAIL
        if not self._wants_more(trials):
            return None
        if self.promotion is not None:
            return self._claim_piece(trials)
        if Tally.of(trials).started >= self.n_trials:
            return None
        return self._begin(trials)

    def _claim_piece(self, trials: list[FrozenTrial]) -> Claim | None:
        """Take up a paused trial, or begin a new one, as the promotion says."""
        piece = self._next_piece(trials)
        if piece is None:
            if Tally.of(trials).running == 0:
                for frozen in filter(is_paused, trials):
                    self.tell(Trial(self.study, frozen._trial_id), TrialState.PRUNED)
            return None
        if piece.number is None:
            claim = self._begin(trials)
            claim.trial.set_user_attr(UNTIL, piece.until)
            return claim
        lock = self._take(piece.number)
        if lock is None:
            return None  # whoever ran it has not let go yet
        self.study.sampler = optuna.samplers.RandomSampler()  # its values are drawn
        trial = Trial(self.study, trials[piece.number]._trial_id)
        trial.set_user_attr(UNTIL, piece.until)
        return Claim(trial, lock, adopted=True)

    def goes_on(self, trial: Trial) -> bool:
        """Say whether a trial that has come to its rung goes on at once; else it pauses there.

        Either is written down under the study's lock, so that no other worker takes it in between. A trial
        that has ended meanwhile stays as it is: this worker stood still, and another one took over.
        """
        with self.locked():
            now = self.now(trial)
            if now.state.is_finished():
                return False
            piece = self._next_piece(self.trials(), at_hand=trial.number)
            if piece is not None and piece.number == trial.number:
                trial.set_user_attr(UNTIL, piece.until)
                return True
            trial.set_user_attr(PAUSED, sorted({*pauses_of(now), now.user_attrs[UNTIL]}))
            return False

    def _begin(self, trials: list[FrozenTrial]) -> Claim:
        """Create the next trial, or take one that is enqueued, and draw its parameters."""
        waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        number = waiting[0] if waiting else len(trials)
        lock = wait_for_lock(self.locks / str(number))
        self.study.sampler = self._sampler(number, trials)
        trial = self.study.ask()
        if trial.number != number:  # the storage's answer got lost, and the trial was created once more
            lock.close()
            lock = wait_for_lock(self.locks / str(trial.number))
        draw(trial, self.space)
        return Claim(trial, lock, adopted=False)

    def _sampler(self, number: int, trials: list[FrozenTrial]) -> optuna.samplers.BaseSampler:
        """What draws the parameters of trial `number`; a search that promotes makes its proposals itself."""
        if self.promotion is None:
            return self._samplers.build(number)
        others = [trial for trial in trials if trial.number != number]
        share = self.promotion.random_share_of
        proposer = Proposer(self._samplers, self.space, share, self.study.direction)
        proposed = proposer.propose(number, others)
        return optuna.samplers.PartialFixedSampler(proposed, optuna.samplers.RandomSampler())

    def _take(self, number: int) -> IO[str] | None:
        """Take the lock of a trial that was begun before; None while somebody is at work on it.

        A worker that stood still may have lost that lock, as on a server that forgets locks. It still holds
        the one in the trial's folder, and goes on when it wakes: the trial is left to it.
        """
        lock = try_lock(self.locks / str(number))
        if lock is not None and StudyFolder(self.folder).trial(number).in_use:
            lock.close()
            if number not in self._left_alone:
                self._left_alone.add(number)
                log.warning(
                    f"trial {number} has lost its lock in {self.locks}, but a process is still at work in "
                    "its folder: it is left to that process. If that hangs, end it: another then goes on."
                )
            return None
        return lock

    def _adopt(self, frozen: FrozenTrial) -> Claim | None:
        lock = self._take(frozen.number)
        if lock is None:
            return None  # somebody is at work on it
        now = self.trials()[frozen.number]
        if now.state != TrialState.RUNNING:  # it came to its end since the list was read
            lock.close()
            return None
        deaths = now.user_attrs.get("deaths", 0) + 1
        self.study.sampler = self._sampler(frozen.number, self.trials())
        trial = Trial(self.study, frozen._trial_id)
        trial.set_user_attr("deaths", deaths)
        if self.promotion is not None and UNTIL not in now.user_attrs:  # it died before it was sent anywhere
            trial.set_user_attr(UNTIL, self.promotion.rungs.steps[0])
        if deaths > self.settings.max_retries:
            reason = f"it was cut off {deaths} times, more than max_retries={self.settings.max_retries}"
            self.tell(trial, TrialState.FAIL, error=reason)
            log.warning(f"trial {trial.number} failed: {reason}")
            lock.close()
            return None
        draw(trial, self.space)
        return Claim(trial, lock, adopted=True)

    def forgive(self, trial: Trial) -> None:
        """Do not count the next adoption of the trial as a death: the user stopped it, it did not die.

        Nothing is counted of a trial that has ended, or that pauses.
        """
        now = self.now(trial)
        if now.state != TrialState.RUNNING or is_paused(now):
            return
        trial.set_user_attr("deaths", trial.user_attrs.get("deaths", 0) - 1)

    def would_stop(self, number: int) -> bool:
        """Ask the pruner again about the last report of a trial that was cut off.

        Successive halving marks a rung as passed before it answers. A death in between would turn "stop" into
        "go on". So the marks that the last report may have set are hidden from it.
        """
        frozen = self.study.get_trials()[number]  # a copy: it is changed below
        if frozen.last_step is None:
            return False
        last = frozen.intermediate_values[frozen.last_step]
        marks = {key: value for key, value in frozen.system_attrs.items() if key.startswith(RUNG_MARK)}
        hidden = [key for key, value in marks.items() if value == last]
        frozen._system_attrs = {k: v for k, v in frozen.system_attrs.items() if k not in hidden}
        return self.study.pruner.prune(self.study, frozen)

    def tell(
        self, trial: Trial, state: TrialState, value: float | None = None, error: str | None = None
    ) -> None:
        """End a trial in the storage; a FAIL comes with its reason.

        Of a trial that has ended already nothing changes: this worker stood still between the end of its job
        and this call, and another one took over.
        """
        if error is not None and self.now(trial).state.is_finished():
            return
        if error is not None:
            trial.set_user_attr("error", shown(error))
        # Grid and brute-force samplers call study.stop() after a trial, which only study.optimize allows;
        # no sampler keeps anything here that would outlive its trial.
        self.study.sampler = optuna.samplers.RandomSampler()
        self.study.tell(trial, values=value, state=state, skip_if_finished=True)
