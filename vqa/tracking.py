"""Records of runs in MLflow: study > trial > fold, and final under study. Only this module imports mlflow.

Every call names its run id: there is no global "active run" that parallel workers could mix up.
"""

import functools
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omegaconf import DictConfig

from vqa.errors import UserError
from vqa.manifest import git_state, mask_secrets, package_versions
from vqa.record import NullTracker, Tracker, flatten
from vqa.reporting import Pruned
from vqa.settings import TrackingSettings
from vqa.store_address import artifact_location, client_uri, probe, store_lock

RUN_ID_FILE = ".mlflow_run_id"  # in the run's folder: an interrupted run goes on under its own id
PARAM_LIMIT = 6000  # MLflow's own limit on a parameter's length, in characters
PARAMS_PER_CALL = 100  # likewise
TAG_LIMIT = 5000
CUT_MARK = " ...[cut]"

logger = logging.getLogger(__name__)


class MlflowRun:
    """One MLflow run; as a context manager it ends the run with the block's outcome.

    Args:
        client: An `mlflow.MlflowClient`.
        run_id: The run's id.
    """

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self.run_id: str | None = run_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.end("COMPLETE")
        elif issubclass(kind, Pruned):
            self.end("PRUNED")
        elif issubclass(kind, KeyboardInterrupt | SystemExit):
            self.end("KILLED")
        else:
            self.tags({"error": f"{kind.__name__}: {error}"})
            self.end("FAILED")

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings; of a continued run the first values stay, MLflow forbids changing them."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        wanted = {key: _cut(text, PARAM_LIMIT) for key, text in flatten(mask_secrets(values)).items()}
        changed = sorted(key for key, text in wanted.items() if known.get(key, text) != text)
        if changed:
            logger.warning("MLflow keeps the first values of changed parameters: %s", ", ".join(changed))
        new = [Param(key, text) for key, text in wanted.items() if key not in known]
        for start in range(0, len(new), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=new[start : start + PARAMS_PER_CALL])

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, all at the same step and time."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        entries = [Metric(name, float(value), now_ms, step or 0) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=entries)

    def tags(self, values: Mapping[str, object]) -> None:
        """Record labels, secrets masked."""
        from mlflow.entities import RunTag

        entries = [
            RunTag(name, _cut(str(mask_secrets(str(v), name)), TAG_LIMIT)) for name, v in values.items()
        ]
        self._client.log_batch(self.run_id, tags=entries)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file, or a folder under its own name."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), "/".join(filter(None, (folder, path.name))))
        else:
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def end(self, state: str) -> None:
        """End the run as COMPLETE, PRUNED, KILLED or FAILED; pruning is a success."""
        self.tags({"state": state})
        status = state if state in ("KILLED", "FAILED") else "FINISHED"
        self._client.set_terminated(self.run_id, status)


class MlflowTracker:
    """Records in one experiment of an MLflow store.

    Args:
        uri: The store, for instance `sqlite:///mlflow.db` or `http://host:5000`.
        experiment: Name of the experiment; made when missing.
        parent_run_id: The run above those that name none.
    """

    def __init__(self, uri: str, experiment: str, parent_run_id: str | None = None) -> None:
        self._uri = uri
        self._experiment = experiment
        self._parent_run_id = parent_run_id
        self._client: Any = None
        self._experiment_id = ""

    def prepare(self) -> None:
        """Make the database and the experiment once; of parallel workers one does it, the others wait.

        Raises:
            UserError: the store cannot be used, or the experiment was deleted in it.
        """
        if self._client is not None:
            return
        with _store_trouble(self._uri), store_lock(self._uri):
            client = _connect(client_uri(self._uri))
            found = client.get_experiment_by_name(self._experiment)
            if found is None:
                self._experiment_id = client.create_experiment(
                    self._experiment, artifact_location=artifact_location(self._uri, self._experiment)
                )
            elif found.lifecycle_stage == "deleted":
                raise UserError(
                    f"tracking.experiment {self._experiment!r} was deleted in the MLflow store "
                    f"{mask_secrets(self._uri)}; restore it there or choose another name"
                )
            else:
                self._experiment_id = found.experiment_id
            self._client = client

    def run(
        self, name: str, kind: str, folder: Path | None = None, parent_run_id: str | None = None
    ) -> MlflowRun:
        """Start or continue a run, see `Tracker.run`."""
        self.prepare()
        with _store_trouble(self._uri), store_lock(self._uri) if folder else nullcontext():
            run_id = self._continue_run(folder) if folder else None
            if run_id is None:
                run_id = self._create_run(name, kind, parent_run_id or self._parent_run_id)
                if folder:
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / RUN_ID_FILE).write_text(run_id + "\n", encoding="utf-8")
        return MlflowRun(self._client, run_id)

    def _continue_run(self, folder: Path) -> str | None:
        from mlflow.exceptions import MlflowException

        remembered = folder / RUN_ID_FILE
        run_id = remembered.read_text(encoding="utf-8").strip() if remembered.exists() else ""
        if not run_id:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None  # another store than last time
            raise
        if run.info.lifecycle_stage == "deleted":
            return None
        self._client.update_run(run_id, status="RUNNING")
        self._client.set_tag(run_id, "state", "RUNNING")
        if "error" in run.data.tags:
            self._client.delete_tag(run_id, "error")
        return run_id

    def _create_run(self, name: str, kind: str, parent_run_id: str | None) -> str:
        tags = {"vqa.kind": kind, "state": "RUNNING", "mlflow.source.name": "vqa"}
        if parent_run_id:
            tags["mlflow.parentRunId"] = parent_run_id
        git = git_state()
        if git:
            tags |= {"mlflow.source.git.commit": git["commit"], "git.dirty": str(git["dirty"])}
        if kind in ("study", "final"):
            tags |= {f"version.{package}": version for package, version in package_versions().items()}
        return str(self._client.create_run(self._experiment_id, run_name=name, tags=tags).info.run_id)

    def end_cut_off(self, run_id: str) -> None:
        """End the trials and folds below a run that still say RUNNING: their processes were killed."""
        below = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
        for child in self._client.search_runs([self._experiment_id], below):
            if child.data.tags["vqa.kind"] in ("trial", "fold"):
                self.end_cut_off(child.info.run_id)
                MlflowRun(self._client, child.info.run_id).end("KILLED")


def no_telemetry() -> None:
    """Switch off the usage reports of mlflow and the Hugging Face libraries unless the user set them.

    Call before any of them is imported: they read the variables at import.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def open_tracker(settings: TrackingSettings) -> Tracker:
    """Return the tracker that the configuration asks for; `MLFLOW_TRACKING_URI` wins over `tracking.uri`."""
    if not settings.enabled:
        return NullTracker()
    no_telemetry()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.uri
    return MlflowTracker(uri, settings.experiment, settings.parent_run_id)


def open_study(config: DictConfig, study_folder: Path) -> str | None:
    """Start the study's parent run, or go on with it; its id stays in `<study_folder>/.mlflow_run_id`.

    Args:
        config: A composed job configuration with the node `tracking`.
        study_folder: The study's folder.

    Returns:
        The run's id for `tracking.parent_run_id` of the study's jobs; None when tracking is off.

    Raises:
        UserError: the store cannot be read or written.
    """
    tracker = _study_tracker(config)
    return tracker.run(study_folder.name, "study", study_folder).run_id if tracker else None


def close_study(config: DictConfig, study_folder: Path, state: str = "COMPLETE") -> None:
    """Keep the study's tables, plots and best scores on its parent run and end it; changes no study file.

    Args:
        config: As for `open_study`.
        study_folder: The study's folder, with `leaderboard.csv`.
        state: COMPLETE, KILLED or FAILED.

    Raises:
        UserError: the store cannot be read or written, or the leaderboard cannot be read.
    """
    tracker = _study_tracker(config)
    if tracker is None:
        return
    from vqa.study_record import record_study

    run = tracker.run(study_folder.name, "study", study_folder)
    record_study(run, study_folder)
    if state == "COMPLETE" and run.run_id is not None:
        tracker.end_cut_off(run.run_id)
    run.end(state)


def _study_tracker(config: DictConfig) -> MlflowTracker | None:
    keys = {key: config.tracking[key] for key in ("enabled", "uri", "experiment")}
    tracker = open_tracker(TrackingSettings(**keys, parent_run_id=None))
    return tracker if isinstance(tracker, MlflowTracker) else None


@functools.cache
def _connect(uri: str) -> Any:
    """Return the process's one client of a store: every fold of every trial asks for it."""
    import mlflow

    probe(uri)
    # a page of INFO lines while the database is made, and of every error that is raised to us anyway
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return mlflow.MlflowClient(uri)


@contextmanager
def _store_trouble(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        root: BaseException = error
        while root.__cause__ is not None:  # MLflow wraps one line of the driver's in a page of SQL
            root = root.__cause__
        reason = mask_secrets(str(root).strip().partition("\n")[0] or repr(root))
        raise UserError(
            f"tracking.uri {mask_secrets(uri)}: the MLflow store cannot be used: {reason}; mend it, point "
            "MLFLOW_TRACKING_URI or tracking.uri at another store, or go without: tracking=none"
        ) from error


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - len(CUT_MARK)] + CUT_MARK
