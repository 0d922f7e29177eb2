"""The race after the trials: those that are tied with the best are trained again with other seeds.

A trial's score holds the luck of one training. `hydra.sweeper.confirm` trainings are spent on the best ones,
one seed for all that are still in the race, until one is left or the budget is. Each lies in the trial's own
folder, `again/001`, and is no trial of the study: sampler and pruner never see it. The race is read off the
files, so that a sweep that was cut off goes on with it.
"""

import logging
import time

from vqa.errors import UserError
from vqa.machine.files import replace_text, wait_for_lock
from vqa.results.comparison import next_trainings
from vqa.results.folder import DONE, RunFolder, StudyFolder
from vqa.sweep.jobs import HydraJobs
from vqa.sweep.leaderboard import Standing
from vqa.sweep.search.space import overrides_of
from vqa.sweep.study import SharedStudy
from vqa.sweep.worker import Worker

log = logging.getLogger(__name__)
TRAIN_SEED = "train_seed"


def confirm(shared: SharedStudy, jobs: HydraJobs, worker: Worker) -> None:
    """Train the best trials again while the race goes on and time is left, then rank anew.

    Args:
        shared: The study, all its trials done.
        jobs: Runs the trainings.
        worker: Ranks the trials, writes the results.

    Raises:
        UserError: The configuration has no `train_seed`, or a training refused data or machine.
    """
    if not shared.settings.confirm:
        return
    if jobs.config.get(TRAIN_SEED) is None:
        raise UserError(
            f"hydra.sweeper.confirm={shared.settings.confirm} needs a key train_seed in the configuration; "
            "add it, or give hydra.sweeper.confirm=0"
        )
    with wait_for_lock(shared.locks / "confirm"):  # of two sweeps at once one trains
        while time.time() < worker.deadline:
            wanted = _next_round(shared, [s for s in worker.standings() if s.state == "COMPLETE"])
            if not wanted:
                break
            for standing, again in wanted:
                worker.interrupt.check()
                _train(shared, jobs, standing, again)
    worker.write_results()


def _next_round(shared: SharedStudy, standings: list[Standing]) -> list[tuple[Standing, int]]:
    """The trainings to do next, each a trial and how often it was trained before."""
    left = shared.settings.confirm - sum(len(standing.again) for standing in standings)
    note = StudyFolder(shared.folder).race
    if note.exists():
        again, *chosen = map(int, note.read_text(encoding="utf-8").split())
        behind = [(s, again) for s in standings if s.trial in chosen and len(s.again) < again]
        if behind:  # the round was cut off
            return behind[: max(0, left)]
    chosen = next_trainings([standing.trained for standing in standings], left)
    wanted = [(s, 1 + len(s.again)) for s in standings if s.trial in chosen]
    if wanted:
        replace_text(note, " ".join(map(str, (wanted[0][1], *chosen))) + "\n")
    return wanted


def _train(shared: SharedStudy, jobs: HydraJobs, standing: Standing, again: int) -> None:
    """Train a trial once more; its folds continue where they were cut off."""
    folder = StudyFolder(shared.folder).trial(standing.trial).again(again)
    seed = int(jobs.config[TRAIN_SEED]) + again
    log.info(f"trial {standing.trial} is trained again with {TRAIN_SEED}={seed}")
    chosen = {name: standing.params[name] for name in shared.space.keys if name in standing.params}
    overrides = [*overrides_of(chosen), f"{TRAIN_SEED}={seed}"]
    subdir = str(folder.relative_to(shared.folder))
    value = jobs.run(subdir, standing.trial, shared.space.fixed, overrides).return_value
    if isinstance(value, UserError):
        raise value
    if RunFolder(folder).folds():
        replace_text(folder / DONE, "")
