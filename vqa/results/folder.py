"""The folders that runs and studies leave: every file's name and reader.

All other modules ask `RunFolder` and `StudyFolder` where a file lies.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vqa.config.settings import Settings
from vqa.config.words import command_line, quoted
from vqa.errors import UserError, refuse_no_adapter
from vqa.machine.files import is_locked, read_text
from vqa.machine.safe_text import mask_secrets
from vqa.results.trials import (
    FoldResult,
    Range,
    TrialRow,
    ranges_of,
    read_folds,
    read_leaderboard,
    read_trials,
)

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"  # written last: its presence means "complete"
CHECKPOINT = "checkpoint.pt"  # there while the training is not over
FINAL, SPEED = "final", "speed"  # folders in a study's: the final run, the trial that measures the speed
AGAIN, DONE = "again", "done"  # further trainings of a trial; written last into each
FOLDS, OUT_OF_FOLD = "folds.csv", "oof_predictions.csv"
CALIBRATION = "calibration.json"  # beside an adapter's weights: its temperature
MEMBER = "member_"  # and its number, from 0: one of several adapters in the folder of all
RUN_LOCK = ".run.lock"  # held by the process that works in a run's folder, see `vqa.results.work`
# a folder with only these may be claimed by another run
BOOKKEEPING = (".hydra", "run.log", ".mlflow_run_id", ".wandb_run_id", "split.csv", RUN_LOCK)
# Where and how a run computes, not what: it may be resumed with other values of these keys.
MAY_DIFFER = (
    "tracking",
    "env",
    "winner",
    "lang",
    "compare",
    "doctor",
    "notify",
    "data.sample_submission",
    "model.license",
    "budget.micro_batch_size",
    "budget.max_memory_gib",
    "budget.eval_batch_size",
    "budget.checkpoint_steps",
    "image.cache_gib",
    "image.cache_dir",
    "image.cache_disk_gib",
)


class RunFolder:
    """The files of one run: the final run, a trial, or any other stage that writes results.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / ".hydra" / "config.yaml"
        self.overrides_file = path / ".hydra" / "overrides.yaml"
        self.hydra_file = path / ".hydra" / "hydra.yaml"
        self.tracking_id_file = path / ".mlflow_run_id"
        self.split_file = path / "split.csv"
        self.checkpoint = path / CHECKPOINT
        self.adapter = path / "adapter"
        self.merged_model = path / "model"
        self.plots = path / "plots"
        self.metrics_file = path / "metrics.json"
        self.valid_predictions = path / "valid_predictions.csv"
        self.base_valid_predictions = path / "base_valid_predictions.csv"
        self.test_predictions = path / "test_predictions.csv"
        self.base_predictions = path / "base_predictions.csv"
        self.submission = path / "submission.csv"
        self.as_sample = path / "submission_as_sample.csv"  # only with data.sample_submission
        self.manifest_file = path / MANIFEST
        self.folds_file = path / FOLDS  # of a trial, as is the next
        self.out_of_fold = path / OUT_OF_FOLD
        self.adapter_size = path / "adapter_size.json"  # of a trial: how many weights were trained

    def again(self, seed: int) -> Path:
        """The folder of a trial's further training with another `train_seed`."""
        return self.path / AGAIN / f"{seed:03d}"

    def trained_again(self) -> list[Path]:
        """The folders of a trial's further trainings that are done, by rising seed."""
        if not (self.path / AGAIN).is_dir():  # of most trials; the ranking asks each
            return []
        folders = sorted(self.path.glob(f"{AGAIN}/*"))
        return [folder for folder in folders if (folder / DONE).exists()]

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end: the manifest is its last file.

        One that cannot be read, such as an empty one after a power loss, is no end.
        """
        if not self.manifest_file.is_file():
            return False
        try:
            self.manifest()
        except UserError as error:
            log.warning("%s: the run is not taken for finished", error)
            return False
        return True

    @property
    def in_use(self) -> bool:
        """Whether a process is at work in it now, see `vqa.results.work`."""
        lock = self.path / RUN_LOCK
        return lock.exists() and is_locked(lock)

    @property
    def claimed(self) -> bool:
        """Whether another run must leave the folder alone: one has begun here, and got beyond its records."""
        return self.config_file.exists() and any(p.name not in BOOKKEEPING for p in self.path.iterdir())

    @property
    def study(self) -> "StudyFolder":
        """The folder above, as a study's."""
        return StudyFolder(self.path.parent)

    @property
    def report(self) -> Path:
        """The run's page: in its study's folder, or beside its own files where there is no study."""
        of_study = self.study.leaderboard.exists() or self.path == self.study.final.path
        return self.study.report if of_study else self.path / "report.html"

    def member(self, number: int) -> "RunFolder":
        """The files of one of several adapters that the run trains and averages, from 0."""
        return RunFolder(self.path / "members" / str(number))

    @property
    def handed_in(self) -> Path:
        """The submission in the form that the contest takes, as far as it was told."""
        return self.as_sample if self.as_sample.exists() else self.submission

    def results(self) -> list[Path]:
        """The files worth a copy where the run is tracked, those that exist."""
        files = (
            *(self.adapter, self.plots, self.metrics_file),
            *(self.valid_predictions, self.test_predictions, self.base_predictions),
            *(self.submission, self.as_sample),
        )
        return [file for file in files if file.exists()]

    def metrics(self) -> dict[str, Any]:
        """Read metrics.json; {} where there is none.

        Raises:
            UserError: The file is no JSON object.
        """
        return read_json(self.metrics_file)

    def manifest(self) -> dict[str, Any]:
        """Read manifest.json; {} while the run is not complete.

        Raises:
            UserError: The file is no JSON object.
        """
        return read_json(self.manifest_file)

    def folds(self) -> list[FoldResult]:
        """Read a trial's finished folds; [] where there are none."""
        return read_folds(self.folds_file)

    def config(self) -> dict[str, Any]:
        """Read the run's configuration; {} where none is stored or a variable it needs is not set.

        Raises:
            UserError: The file is no YAML.
        """
        if not self.config_file.exists():
            return {}
        try:
            plain = OmegaConf.to_container(read_yaml(self.config_file), resolve=True)
        except OmegaConfBaseException:
            return {}
        return {str(k): mask_secrets(v, str(k)) for k, v in plain.items()} if isinstance(plain, dict) else {}

    def overrides(self) -> list[str] | None:
        """Read what the command line gave; None where nothing is stored.

        Raises:
            UserError: The file is no YAML.
        """
        if not self.overrides_file.exists():
            return None
        given = OmegaConf.to_container(read_yaml(self.overrides_file))
        return [str(override) for override in mask_secrets(given) or []]

    def command(self) -> str:
        """The command line that makes the run again, into the same folder; "" where none is stored."""
        given = self.overrides()
        if given is None:
            return ""
        config = self.config()
        root = Path(str((config.get("env") or {}).get("output_root", "multirun")))
        usual = root / str(config.get("study", "")) / self.path.name
        place = (
            [] if self.path.absolute() == usual.absolute() else [f"hydra.run.dir={quoted(str(self.path))}"]
        )
        return command_line([*given, *place])


class StudyFolder:
    """The files of one study: its trials, their ranking, the winner and the final run.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.terms = path / "study.yaml"
        self.multirun = path / "multirun.yaml"  # the sweep's configuration, as Hydra's own sweeper names it
        self.leaderboard = path / "leaderboard.csv"
        self.winner = path / "best.yaml"
        self.winner_experiment = path / "experiment" / "best.yaml"  # for --config-dir FOLDER experiment=best
        self.report = path / "report.html"
        self.locks = path / ".locks"
        self.workers = path / "workers"
        self.race = path / ".race"  # the round of trainings that is run: seed, then trials

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The folder of a run's study."""
        return cls(Path(settings.env.output_root) / settings.study)

    @property
    def final(self) -> RunFolder:
        """The final run."""
        return RunFolder(self.path / FINAL)

    @property
    def speed(self) -> RunFolder:
        """The small trial that measures how fast a trial is."""
        return RunFolder(self.path / SPEED)

    @staticmethod
    def trial_name(number: int) -> str:
        """Where trial `number` lies within its study, for instance `trials/007`."""
        return f"trials/{number:03d}"

    def trial(self, number: int) -> RunFolder:
        """Trial `number`."""
        return RunFolder(self.path / self.trial_name(number))

    def fold_adapter(self, digest: str, number: int) -> Path:
        """The folder of a fold's kept adapter.

        Args:
            digest: Of the settings that training reads.
            number: The fold's number, from 0.
        """
        return self.path / "folds" / digest / str(number)

    def scored_runs(self) -> list[RunFolder]:
        """The runs in this folder that have metrics, by name: the final one and others beside it."""
        return [RunFolder(file.parent) for file in sorted(self.path.glob("*/metrics.json"))]

    def tables(self) -> list[Path]:
        """The files worth a copy where the study is tracked, those that exist."""
        files = (self.terms, self.leaderboard, self.winner, self.report, self.final.metrics_file)
        return [file for file in files if file.exists()]

    def has_results(self) -> bool:
        """Whether a trial of the study has ended, as far as the leaderboard can be read."""
        try:
            return bool(self.trials())
        except UserError:  # the sweep writes it anew
            return False

    def trials(self) -> list[TrialRow]:
        """Read the leaderboard, by trial number; [] where there is none.

        Raises:
            UserError: The file lacks a column or holds a bad number.
        """
        return read_trials(self.leaderboard) if self.leaderboard.exists() else []

    def ranking(self) -> list[TrialRow]:
        """Read the leaderboard, best trial first; [] where there is none.

        Raises:
            UserError: The file lacks a column or holds a bad number.
        """
        return read_leaderboard(self.leaderboard) if self.leaderboard.exists() else []

    def ranges(self) -> dict[str, Range]:
        """The intervals that the study searched, by key; {} where its terms are not there.

        Raises:
            UserError: `study.yaml` cannot be read.
        """
        terms = OmegaConf.to_container(read_yaml(self.terms)) if self.terms.exists() else {}
        return ranges_of({str(key): value for key, value in terms.items()} if isinstance(terms, dict) else {})


def adapter_folder(settings: Settings) -> Path:
    """The adapter a run works with: the one it was given, else that of its study's final run."""
    return Path(settings.adapter) if settings.adapter else StudyFolder.of(settings).final.adapter


def member_folder(adapter: Path, number: int) -> Path:
    """Where a member's weights lie within the folder of all."""
    return adapter / f"{MEMBER}{number}"


def member_folders(adapter: Path) -> list[Path]:
    """The adapters in a folder, by number; the folder itself where it is one adapter.

    Raises:
        UserError: Members are missing that the answers were calibrated with.
    """
    found = [path for path in adapter.glob(f"{MEMBER}*") if path.name[len(MEMBER) :].isdigit()]
    wanted = read_json(adapter / CALIBRATION).get("members", len(found))
    if len(found) != wanted:
        raise UserError(
            f"adapter={adapter}: {CALIBRATION} tells of {wanted} members, but {len(found)} folders "
            f"{MEMBER}* are there; copy the whole folder, or name one member's"
        )
    return sorted(found, key=lambda path: int(path.name[len(MEMBER) :])) or [adapter]


def refuse_no_adapters(adapter: Path) -> None:
    """Refuse a folder that holds no adapter, or lacks one of several members.

    Raises:
        UserError: Says which folder, and what to do.
    """
    for folder in member_folders(adapter):
        refuse_no_adapter(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} when there is no such file.

    Raises:
        UserError: The file is no JSON object.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({error}); run the stage that writes it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object; run the stage that writes it again")
    return content


def read_yaml(path: Path) -> Any:
    """Read a YAML file as OmegaConf's node.

    Raises:
        UserError: It is no YAML.
    """
    try:
        return OmegaConf.create(read_text(path))
    except (YAMLError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read ({reason}); mend it or move the run's folder away and repeat the command"
        ) from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and texts: strings as they are, the rest as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = (
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            )
    return flat
