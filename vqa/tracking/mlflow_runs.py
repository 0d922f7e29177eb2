"""Records of runs in MLflow, the default: study > trial > fold, and final under study.

Only this module and `vqa.tracking.store` import mlflow. Every call names its run id: there is no global
"active run" that parallel workers could mix up. A store that cannot be used is refused at the start; one that
goes away later gets its records when it is back (`vqa.machine.retry`), and no training waits for it.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vqa.config.settings import TrackingSettings
from vqa.errors import UserError
from vqa.machine import processes
from vqa.machine.files import replace_text
from vqa.machine.safe_text import mask_secrets
from vqa.results.folder import RunFolder, flatten
from vqa.results.work import git_state, package_versions
from vqa.tracking.record import NullTracker, Run, Tracker
from vqa.tracking.store import (
    SETTLE_S,
    Store,
    artifact_location,
    client_uri,
    open_store,
    refuse_to_send_a_password,
    store_lock,
    store_trouble,
)

PARAM_LIMIT = 6000  # MLflow's own limit on a parameter's length, in characters
PARAMS_PER_CALL = 100  # likewise
TAG_LIMIT = 5000
CUT_MARK = " ...[cut]"

logger = logging.getLogger(__name__)


class MlflowRun(Run):
    """One MLflow run; see `Run`.

    Args:
        store: Where it is kept.
        name: The run's name.
        run_id: The run's id; None = the store did not answer yet.
    """

    def __init__(self, store: Store, name: str, run_id: str | None = None) -> None:
        self._store = store
        self._name = name
        self.run_id: str | None = run_id

    def _send(self, what: str, call: Callable[[Any], object]) -> None:
        """Have `call` made with the store's client."""
        self._store.outbox.send(f"{what} of {self._name}", lambda: call(self._store.client()))

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings; of a continued run the first values stay, MLflow forbids changing them."""
        self._send("settings", lambda client: self._params(client, values))

    def _params(self, client: Any, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        known = client.get_run(self.run_id).data.params
        wanted = {key: _cut(text, PARAM_LIMIT) for key, text in flatten(mask_secrets(values)).items()}
        changed = sorted(key for key, text in wanted.items() if known.get(key, text) != text)
        if changed:
            logger.warning("MLflow keeps the first values of changed parameters: %s", ", ".join(changed))
        new = [Param(key, text) for key, text in wanted.items() if key not in known]
        for start in range(0, len(new), PARAMS_PER_CALL):
            client.log_batch(self.run_id, params=new[start : start + PARAMS_PER_CALL])

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, all at the same step and time."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        entries = [Metric(name, float(value), now_ms, step or 0) for name, value in values.items()]
        self._send("metrics", lambda client: client.log_batch(self.run_id, metrics=entries))

    def tags(self, values: Mapping[str, object]) -> None:
        from mlflow.entities import RunTag

        entries = [
            RunTag(name, _cut(str(mask_secrets(str(v), name)), TAG_LIMIT)) for name, v in values.items()
        ]
        self._send("labels", lambda client: client.log_batch(self.run_id, tags=entries))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file, or a folder under its own name."""
        if path.is_dir():
            inside = "/".join(filter(None, (folder, path.name)))
            self._send(path.name, lambda client: client.log_artifacts(self.run_id, str(path), inside))
        else:
            self._send(path.name, lambda client: client.log_artifact(self.run_id, str(path), folder or None))

    def end(self, state: str) -> None:
        """End the run as COMPLETE, PAUSED, PRUNED, KILLED or FAILED; the first three are successes."""
        self.tags({"state": state})
        status = state if state in ("KILLED", "FAILED") else "FINISHED"
        now_ms = int(time.time() * 1000)
        self._send("end", lambda client: client.set_terminated(self.run_id, status, now_ms))


class MlflowTracker(Tracker):
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
        self._experiment_id = ""

    def prepare(self) -> None:
        """Make the database and the experiment once; of parallel workers one does it, the others wait.

        Raises:
            UserError: The store cannot be used, or the experiment was deleted in it.
        """
        with store_trouble(self._uri):
            self._find_experiment(open_store(client_uri(self._uri)).client())

    def _find_experiment(self, client: Any) -> None:
        if self._experiment_id:
            return
        with store_lock(self._uri):
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

    def run(
        self, name: str, kind: str, folder: Path | None = None, parent_run_id: str | None = None
    ) -> MlflowRun:
        with store_trouble(self._uri):
            store = open_store(client_uri(self._uri))
        if not store.connected and self._parent_run_id is None:
            self.prepare()  # the first to use the store: without an answer now there is no use in going on
        run = MlflowRun(store, name)
        started_ms = int(time.time() * 1000)

        def open_run() -> None:
            run.run_id = self._open(store, name, kind, folder, parent_run_id, started_ms)

        with store_trouble(self._uri):
            store.outbox.send(name, open_run)
        return run

    def _open(
        self, store: Store, name: str, kind: str, folder: Path | None, parent: str | None, started_ms: int
    ) -> str:
        """Continue the run that `folder` remembers, or create one; returns its id."""
        client = store.client()
        self._find_experiment(client)
        with store_lock(self._uri) if folder else nullcontext():
            run_id = self._continue_run(client, folder) if folder else None
            if run_id is None:
                tags = _first_tags(kind, parent or self._parent_run_id)
                created = client.create_run(self._experiment_id, started_ms, tags, run_name=name)
                run_id = str(created.info.run_id)
                if folder:
                    folder.mkdir(parents=True, exist_ok=True)
                    replace_text(RunFolder(folder).tracking_id_file, run_id + "\n")
        return run_id

    @staticmethod
    def _continue_run(client: Any, folder: Path) -> str | None:
        from mlflow.exceptions import MlflowException

        remembered = RunFolder(folder).tracking_id_file
        run_id = remembered.read_text(encoding="utf-8").strip() if remembered.exists() else ""
        if not run_id:
            return None
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None  # another store than last time, or a file that was cut off
            raise
        if run.info.lifecycle_stage == "deleted":
            return None
        client.update_run(run_id, status="RUNNING")
        client.set_tag(run_id, "state", "RUNNING")
        if "error" in run.data.tags:
            client.delete_tag(run_id, "error")
        return run_id

    def end_cut_off(self, run: MlflowRun) -> None:
        """End the trials and folds below a run that still say RUNNING: their processes were killed.

        Trials that paused, and were not taken up again, are pruned.
        """
        store = open_store(client_uri(self._uri))
        store.outbox.send("ends of killed trials", lambda: self._end_below(store, str(run.run_id)))

    def _end_below(self, store: Store, run_id: str) -> None:
        client = store.client()
        below = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
        for child in client.search_runs([self._experiment_id], below):
            if child.data.tags["vqa.kind"] in ("trial", "fold"):
                self._end_below(store, child.info.run_id)
                client.set_tag(child.info.run_id, "state", "KILLED")
                client.set_terminated(child.info.run_id, "KILLED")
        waiting = f"tags.`mlflow.parentRunId` = '{run_id}' and tags.state = 'PAUSED'"
        for child in client.search_runs([self._experiment_id], waiting):
            client.set_tag(child.info.run_id, "state", "PRUNED")

    def settle(self) -> None:
        """Retry what the store did not take yet, for a limited time; then log what is lost."""
        open_store(client_uri(self._uri)).outbox.settle(SETTLE_S)


def _first_tags(kind: str, parent_run_id: str | None) -> dict[str, str]:
    tags = {"vqa.kind": kind, "state": "RUNNING", "mlflow.source.name": "vqa"}
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    git = git_state()
    if git:
        tags |= {"mlflow.source.git.commit": git["commit"], "git.dirty": str(git["dirty"])}
    if kind in ("study", "final"):
        tags |= {f"version.{package}": version for package, version in package_versions().items()}
    return tags


def no_telemetry() -> None:
    """Switch off the usage reports of mlflow and the Hugging Face libraries unless the user set them.

    Call before any of them is imported: they read the variables at import.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def open_tracker(settings: TrackingSettings) -> Tracker:
    """The tracker that the configuration asks for; `MLFLOW_TRACKING_URI` wins over `tracking.uri`.

    Of the processes of one training only the main one keeps records.

    Raises:
        UserError: `tracking.uri` names a server that would be sent a password of the environment.
    """
    if not settings.enabled or not processes.is_main():
        return NullTracker()
    if settings.store == "wandb":
        from vqa.tracking.wandb_runs import WandbTracker

        return WandbTracker(settings.uri, settings.experiment, settings.mode, settings.parent_run_id)
    if settings.store == "tensorboard":
        from vqa.tracking.tensorboard_runs import TensorboardTracker

        return TensorboardTracker(settings.uri, settings.experiment, settings.parent_run_id)
    no_telemetry()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        refuse_to_send_a_password(uri := settings.uri)
    return MlflowTracker(uri, settings.experiment, settings.parent_run_id)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - len(CUT_MARK)] + CUT_MARK
