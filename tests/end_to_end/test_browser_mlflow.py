"""MLflow's own pages in a real browser, over stores that the product's tracker wrote. Needs Chromium."""

import copy
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote

import pytest

from benchmarks.endurance.own_postgresql import OwnPostgresql
from tests.conftest import Make, environment
from tests.helpers.browser_pages import DESKTOP, opened
from vqa.config.settings import TrackingSettings
from vqa.stages.serve import HOST
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.record import Run

pytestmark = pytest.mark.browser
TRIALS = {"trial 000": (2e-3, 8, 0.41), "trial 001": (1e-4, 16, 0.52), "trial 002": (5e-3, 32, 0.63)}
# An address that MLflow's page asks its own server for in vain; what a machine without a GPU says of WebGL.
# And what its table says of its own library.
OF_MLFLOW = ("/mlflow/users/current", "GL Driver Message", "AG Grid: ")


def unexplained(trouble: list[str]) -> list[str]:
    return [line for line in trouble if not any(known in line for known in OF_MLFLOW)]


def comparison(address: str, ids: list[str | None]) -> str:
    """The page that "Compare" leads to."""
    return f"{address}/#/compare-runs?runs={quote(json.dumps(ids))}&experiments={quote(json.dumps(['1']))}"


def test_mlflow_compares_the_trials_of_a_study(browser: Any, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = open_tracker(TrackingSettings(True, "mlflow", store, "vqa", "online", None))
    ids = []
    with tracker.run("study", "study") as study:
        for name, (lr, rank, nll) in TRIALS.items():
            with tracker.run(name, "trial", None, study.run_id) as run:
                run.params({"optimizer": {"lr": lr}, "lora": {"r": rank}})
                for step in (1, 2):
                    run.metrics({"nll": nll + 1 - step / 2, "accuracy": 1 - nll}, step)
            ids.append(run.run_id)
    with mlflow_server("ui", store) as address:
        page, trouble = opened(browser, comparison(address, ids), DESKTOP)
        page.wait_for_selector(".js-plotly-plot text.axis-title >> nth=2", timeout=60_000)
        axes = page.locator(".js-plotly-plot text.axis-title").all_text_contents()
        shown = page.inner_text("body")
    assert axes == ["lora.r", "optimizer.lr", "nll"]
    assert "Comparing 3 Runs from 1 Experiment" in shown
    for name, (lr, rank, nll) in TRIALS.items():
        assert all(text in shown for text in (name, str(lr), str(rank), str(nll)))
    assert unexplained(trouble) == []


def record_trial(run: Run, plain: dict[str, Any], random_: random.Random) -> None:
    """What a trial of three folds with three reports each leaves on its run: all settings, nine reports."""
    settings = copy.deepcopy(plain)
    settings["optimizer"]["lr"] = 10 ** random_.uniform(-3.5, -2)
    settings["lora"]["r"] = random_.choice([8, 16, 32])
    settings["lora"]["lora_alpha"] = settings["lora"]["r"] * random_.choice([1, 2, 4])
    run.params(settings)
    nll = random_.uniform(0.3, 1.2)
    for step in range(1, 10):
        run.metrics({"nll": nll + 1 / step, "train_loss": 2 / step, "learning_rate": 1e-3 / step}, step)
    run.metrics(
        {"nll": nll, "nll_se": 0.02, "accuracy": 1.2 - nll / 1.5, "seconds": 9.0, "peak_memory_gib": 1}
    )


def test_a_server_on_postgresql_shows_and_compares_a_study_of_100_trials(
    browser: Any, settings: Make, tmp_path: Path
) -> None:
    chance, plain = random.Random(0), settings().plain
    artifacts = ("--artifacts-destination", str(tmp_path / "artifacts"))
    with OwnPostgresql() as database, mlflow_server("server", database.url, *artifacts) as address:
        tracker = open_tracker(TrackingSettings(True, "mlflow", address, "vqa", "online", None))
        ids = []
        with tracker.run("study", "study") as study:
            for number in range(100):
                with tracker.run(f"trial {number:03d}", "trial", None, study.run_id) as run:
                    record_trial(run, plain, chance)
                ids.append(run.run_id)
        page, trouble = opened(browser, f"{address}/#/experiments/1/runs", DESKTOP)
        listed = "document.body.innerText.includes('101 matching runs')"  # the trials, below their study
        page.wait_for_function(listed, timeout=60_000)
        page.screenshot(path=tmp_path / "runs.png")
        page, more = opened(browser, comparison(address, ids), DESKTOP)
        page.wait_for_selector(".js-plotly-plot text.axis-title >> nth=2", timeout=60_000)
        page.screenshot(path=tmp_path / "compare.png")
        axes = page.locator(".js-plotly-plot text.axis-title").all_text_contents()
        shown = page.inner_text("body")
    assert axes[:3] == ["lora.lora_alpha", "lora.r", "optimizer.lr"]  # what differs, of all that was recorded
    assert all(f"trial {number:03d}" in shown for number in range(100))
    assert "Comparing 100 Runs from 1 Experiment" in shown
    assert unexplained([*trouble, *more]) == []


@contextmanager
def mlflow_server(command: str, store: str, *arguments: str) -> Iterator[str]:
    """`mlflow ui` or `mlflow server` of the README, on a free port of this machine."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "mlflow", command, "--backend-store-uri", store, "--port", str(port)]
    quiet = environment(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    address = f"http://{HOST}:{port}"
    with subprocess.Popen(
        [*program, "--workers", "1", *arguments],
        env=quiet,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            wait_until_up(f"{address}/health", server)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)  # it has a process of its own below it


def wait_until_up(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(address):
                return
        except URLError:
            assert server.poll() is None, "the server ended by itself"
            time.sleep(0.5)
    pytest.fail(f"nobody answers at {address}")
