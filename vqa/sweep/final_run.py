"""The final run with the winner of a study: a job of this process, or a command such as torchrun."""

import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence

from vqa.config.messages import plain_message
from vqa.errors import UserError
from vqa.machine.files import try_lock, wait_for_lock
from vqa.machine.safe_text import mask_secrets
from vqa.results.folder import FINAL, StudyFolder
from vqa.sweep.jobs import HydraJobs
from vqa.sweep.leaderboard import Standing
from vqa.sweep.multirun import hydra_overrides
from vqa.sweep.search.space import overrides_of
from vqa.sweep.study import SharedStudy, settings_of

log = logging.getLogger(__name__)

# Overrides of Hydra that belong to the sweep and not to a run of its own.
OF_THE_SWEEP = ("hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher", "hydra.mode", "hydra.run")


def make_final_run(shared: SharedStudy, jobs: HydraJobs, best: Standing, lang: str = "en") -> None:
    """Make the final run with the winner, or go on with it; do nothing where it is there.

    Args:
        shared: The study.
        jobs: Runs it, where no command does.
        best: The winner.
        lang: Of what is said on the terminal.

    Raises:
        UserError: The run refused its settings, its command failed, or another winner began it.
    """
    settings = shared.settings
    params = {name: best.params[name] for name in shared.space.keys if name in best.params}
    chosen = [*overrides_of(params), *overrides_of(settings.record), *settings.final_overrides]
    overrides = [*shared.space.fixed, *chosen]
    if (lock := try_lock(shared.locks / FINAL)) is None:
        log.info("another process is at the final run; waiting for its end")
        lock = wait_for_lock(shared.locks / FINAL, say_every_s=1800)  # it takes hours
    with lock:
        if _exists(shared, overrides):
            return
        values = " ".join(chosen)
        log.info(plain_message(lang, "study final", study=settings.study_name, n=best.trial, values=values))
        if settings.final_command is not None:
            _run_command(shared, jobs, settings.final_command, overrides)
            return
        result = jobs.run(FINAL, best.trial, overrides, []).return_value
    if isinstance(result, UserError):
        raise result


def _exists(shared: SharedStudy, overrides: Sequence[str]) -> bool:
    """Whether the final run is done; refuses to go on with one that another winner began."""
    final = StudyFolder(shared.folder).final
    before = final.overrides()
    same = before is None or settings_of(before) == settings_of(mask_secrets(list(overrides)))
    if final.complete:
        if not same:
            log.warning(
                f"{final.path} was made with other settings; move it away to have it made with the winner"
            )
        return True
    if not same:
        raise UserError(
            f"{final.path} was begun with other settings than the winner's now "
            f"(see {final.overrides_file}). "
            "Move it away and repeat the command."
        )
    return False


def program() -> list[str]:
    """How Python was told to start this program, without its arguments."""
    spec = sys.modules["__main__"].__spec__
    return [sys.argv[0]] if spec is None else ["-m", spec.name]


def _run_command(shared: SharedStudy, jobs: HydraJobs, command: str, overrides: Sequence[str]) -> None:
    """Run `final_command` with this program and the final run's overrides behind it, and wait for its end."""
    if "vqa.model.base" in sys.modules:  # trainings for `confirm`, or a measured trial, were this process's
        from vqa.model.base import release_resident

        release_resident()
    final = StudyFolder(shared.folder).final
    given = [text for text in hydra_overrides(jobs.config) if not text.lstrip("+~").startswith(OF_THE_SWEEP)]
    parent = [] if jobs.parent_run_id is None else [f"tracking.parent_run_id={jobs.parent_run_id}"]
    words = [*shlex.split(command), *program(), *given, f"hydra.run.dir='{final.path}'", *overrides, *parent]
    process = subprocess.Popen(words, process_group=0)  # a Ctrl-C reaches it once, through this process
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code == 0 and final.complete:
        return
    why = f"ended with exit code {code}" if code else "ended well, but there is no final run"
    raise UserError(
        f"hydra.sweeper.final_command {why}: {shlex.join(words[:4])} ... Its messages stand above and in "
        f"{final.path}/run.log. Mend the cause and repeat the command; the run goes on from its checkpoint."
    )
