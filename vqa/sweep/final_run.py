"""What follows from a study's ranking: the winner as `best.yaml`, and the final run with it.

`best.yaml` is an experiment file, what a user runs next. The final run is a job of this process, or a command
such as torchrun.
"""

import logging
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vqa.config.messages import plain_message
from vqa.config.settings import Settings
from vqa.errors import UserError
from vqa.machine.files import read_text, replace_text, try_lock, wait_for_lock
from vqa.machine.safe_text import mask_secrets
from vqa.results.folder import FINAL, RunFolder, StudyFolder
from vqa.sweep.jobs import HydraJobs
from vqa.sweep.leaderboard import Standing, describe_scores, describe_ties, winner_of
from vqa.sweep.multirun import hydra_overrides
from vqa.sweep.search.space import overrides_of
from vqa.sweep.study import SharedStudy, settings_of

log = logging.getLogger(__name__)

# Overrides of Hydra that belong to the sweep and not to a run of its own.
OF_THE_SWEEP = ("hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher", "hydra.mode", "hydra.run")


def winner_text(
    standings: Sequence[Standing],
    record: Mapping[str, Any],
    groups: Collection[str],
    final_trial: int | None = None,
) -> str:
    """Give the content of `best.yaml`: an experiment file with the winner's searched values.

    Args:
        standings: In order, the winner first.
        record: Further plain values that belong to the winner.
        groups: Searched keys that name a config group, so that their value is an option.
        final_trial: The trial that is taken in place of the first.
    """
    best = winner_of(standings, final_trial) or standings[0]
    options: list[Any] = []
    plain: dict[str, Any] = {}
    chosen = {**best.params, **record}
    for key, value in chosen.items():
        if key not in groups:
            _set_nested(plain, key.lstrip("+").split("."), value)
        elif key.startswith("+"):  # the configuration itself chooses nothing there
            options.append({f"/{key.lstrip('+')}": value})
        else:
            options.append({f"override /{key}": value})
    body = {"defaults": [*options, "_self_"]} if options else {}
    command = shlex.join(overrides_of(chosen))
    if "\n" in command:
        command = "not in one line: a value has several, see below"
    lines = [
        "# @package _global_",
        f"# Trial {best.trial}: {describe_scores(best)}",
        f"# {describe_ties(standings) if best is standings[0] else _told(standings[0])}",
        f"# On a command line: {command}",
    ]
    return "\n".join(lines) + "\n" + OmegaConf.to_yaml(OmegaConf.create({**body, **plain}))


def _told(first: Standing) -> str:
    return f"hydra.sweeper.final_trial says so; trial {first.trial} ranks first."


def _set_nested(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def write_winner(text: str, study_folder: Path) -> None:
    """Write `best.yaml`, and again as `experiment/best.yaml` for `--config-dir <study> experiment=best`."""
    folder = StudyFolder(study_folder)
    folder.winner_experiment.parent.mkdir(exist_ok=True)
    replace_text(folder.winner, text)
    replace_text(folder.winner_experiment, text)


def read_winner(path: Path) -> list[str]:
    """Give the overrides that a `best.yaml` stands for, `key=value` each.

    Raises:
        UserError: It is no such file.
    """
    try:
        text = read_text(path)
        content = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else None
    except (OSError, ValueError, RecursionError, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error}); mend it or give winner=none") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: must be a mapping of keys to values; mend it or give winner=none")
    if not text.endswith("\n"):  # of a number, the first digits alone would still be a number
        raise UserError(f"{path}: its last line is cut off; mend it or give winner=none")
    plain = {str(key): value for key, value in content.items()}
    options = [entry for entry in plain.pop("defaults", []) if isinstance(entry, dict)]
    chosen = {_typed(str(key)): value for entry in options for key, value in entry.items()}
    values = {f"++{key}": value for key, value in _flat(plain).items()}  # some may have been added with +
    return overrides_of({**chosen, **values})


def with_winner(name: str, settings: Settings, words: Sequence[str]) -> tuple[DictConfig, list[str]] | None:
    """The configuration with the study's best.yaml in it; what is typed still wins. None without the file.

    Args:
        name: Of the configuration.
        settings: Those without it: they name the study.
        words: What is typed.

    Returns:
        The configuration, and the winner's overrides.

    Raises:
        UserError: The file cannot be read.
    """
    best = StudyFolder.of(settings).winner
    if not best.exists():
        return None
    winner = read_winner(best)
    return compose(name, overrides=[*winner, *words]), winner


def _typed(entry: str) -> str:
    """A key of a defaults list as one types it: `override /image` is image, `/db@backup` is +db@backup."""
    return entry.removeprefix("override /") if entry.startswith("override /") else f"+{entry.lstrip('/')}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


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
    if final.complete:
        if not _is_same(final, overrides):
            log.warning(
                f"{final.path} was made with other settings; move it away to have it made with the winner"
            )
        return True
    refuse_begun(final, overrides)
    return False


def refuse_begun(final: RunFolder, overrides: Sequence[str], searched: Collection[str] = ()) -> None:
    """Refuse to go on with a final run that other settings have begun.

    Args:
        final: Its folder.
        overrides: Those of the final run, as far as they are known.
        searched: Keys that are not compared: the winner decides them.

    Raises:
        UserError: Settings differ.
    """
    if not final.complete and not _is_same(final, overrides, searched):
        raise UserError(
            f"{final.path} was begun with other settings than the winner's now "
            f"(see {final.overrides_file}). "
            "Move it away and repeat the command."
        )


def _is_same(final: RunFolder, overrides: Sequence[str], searched: Collection[str] = ()) -> bool:
    """Whether a final run, if it has begun, has these settings."""
    if (before := final.overrides()) is None:
        return True
    left_out = {key.lstrip("+") for key in searched}
    begun, asked = (
        {key: value for key, value in settings_of(given).items() if key not in left_out}
        for given in (before, mask_secrets(list(overrides)))
    )
    return begun == asked


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
