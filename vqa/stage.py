"""One stage of one run: check the configuration, claim the folder, do the work, say what comes next."""

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vqa.config.check import read_settings
from vqa.config.messages import message
from vqa.config.settings import Settings
from vqa.machine import processes
from vqa.question import CHANCE
from vqa.results.folder import RunFolder, StudyFolder, begin
from vqa.stages.preflight import prepare

if TYPE_CHECKING:
    import torch


def run_stage(cfg: DictConfig, folder: Path, alone: bool) -> float | None:
    """Run the configured stage.

    Args:
        cfg: The composed configuration, without the `hydra` node.
        folder: The run's output folder.
        alone: A single run, not a job of a sweep: may take the study's winner.

    Returns:
        The score of a trial, None otherwise.

    Raises:
        UserError: Something is wrong with configuration, data, model or machine.
    """
    settings = read_settings(cfg)
    if settings.stage != "final":
        processes.refuse_several(f"stage={settings.stage}")
    from vqa.tracking.mlflow_runs import (
        no_telemetry,  # from here on there is work: a mistake above shows without waiting
    )

    no_telemetry()
    if alone and settings.stage == "final" and settings.winner == "auto":
        cfg, settings = _with_winner(cfg, settings)
    _set_environment(settings)
    if settings.stage in READERS:
        READERS[settings.stage](settings, folder)
        return None
    with processes.joined(lambda: _device(settings)):
        return _run(settings, cfg, folder)


def _device(settings: Settings) -> "torch.device":
    from vqa.machine.device import choose_device  # torch takes seconds to import

    return choose_device(settings.env.device)


def _run(settings: Settings, cfg: DictConfig, folder: Path) -> float | None:
    if not processes.agreed(lambda: begin(folder, cfg)):
        if processes.is_main():
            _print(settings, "complete", folder=folder)
            _add_missing_report(settings, folder)
        return None
    processes.agreed(lambda: prepare(settings))  # the main process first: the others find its copies
    if not processes.is_main():
        prepare(settings)
    from vqa.machine.device import use_threads

    use_threads(settings.env.threads)
    if settings.stage == "trial":
        from vqa.stages.trial import run_trial

        return run_trial(settings, folder)
    from vqa.progress import shown_progress

    with shown_progress() if processes.is_main() else nullcontext():
        metrics = _work(settings.stage)(settings, folder)
    if processes.is_main():
        _say(settings, folder, metrics)
    return None


def _work(stage: str) -> Callable[[Settings, Path], dict[str, Any]]:
    from vqa.stages.ensemble import run_ensemble
    from vqa.stages.final import run_final
    from vqa.stages.merge import run_merge
    from vqa.stages.predict import run_evaluate, run_predict

    stages: dict[str, Callable[[Settings, Path], dict[str, Any]]] = {
        "final": run_final,
        "predict": run_predict,
        "evaluate": run_evaluate,
        "merge": run_merge,
        "ensemble": run_ensemble,
    }
    return stages[stage]


def _doctor(settings: Settings, folder: Path) -> None:
    from vqa.stages.doctor import run_doctor

    run_doctor(settings)


def _report(settings: Settings, folder: Path) -> None:
    """Rebuild the page of the study's final run, or of the run whose folder is given as hydra.run.dir."""
    own, final = RunFolder(folder), StudyFolder.of(settings).final
    _look(settings, _record_report(settings, own if own.complete else final))


def _status(settings: Settings, folder: Path) -> None:
    from vqa.sweep.board import show_status  # optuna

    show_status(StudyFolder.of(settings).path)


def _serve(settings: Settings, folder: Path) -> None:
    from vqa.stages.serve import HOST, run_serve

    prepare(settings)
    _print(settings, "serving", address=f"http://{HOST}:{settings.env.port}")
    run_serve(settings, folder)


# Stages that read what is there; they claim no folder and may be repeated.
READERS: dict[str, Callable[[Settings, Path], None]] = {
    "doctor": _doctor,
    "report": _report,
    "serve": _serve,
    "status": _status,
}


def _record_report(settings: Settings, run: RunFolder) -> Path:
    """Write a run's report and its adapter's card, and keep copies where the run is tracked."""
    from vqa.report.model_card import write_hand_over
    from vqa.report.report import write_report
    from vqa.tracking.mlflow_runs import open_tracker

    whole = run.complete and run.adapter.is_dir()  # it may have been moved: it is large
    card = write_hand_over(run.path) if whole else None
    page = write_report(run.path, settings.lang)
    if run.tracking_id_file.exists():
        with open_tracker(settings.tracking).run("final", "final", run.path) as record:
            record.artifact(page)
            if card:
                record.artifact(card, run.adapter.name)
    return page


def _add_missing_report(settings: Settings, folder: Path) -> None:
    """Write the report of a complete run that was killed before its last lines."""
    if settings.stage == "final" and not RunFolder(folder).report.exists():
        _look(settings, _record_report(settings, RunFolder(folder)))


def _with_winner(cfg: DictConfig, settings: Settings) -> tuple[DictConfig, Settings]:
    """Take the study's best.yaml into the configuration; what the command line says still wins."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    from vqa.sweep.leaderboard import read_winner

    best = StudyFolder.of(settings).winner
    if not best.exists():
        return cfg, settings
    given = list(HydraConfig.get().overrides.task)
    winner = read_winner(best)
    # not logged: the run's log must not change when the run turns out to be complete
    if processes.is_main():
        _print(settings, "winner", path=best)
    with_winner = compose(HydraConfig.get().job.config_name, overrides=[*winner, *given])
    return with_winner, read_settings(with_winner)


def _set_environment(settings: Settings) -> None:
    """What the libraries read from the environment, before they are imported for the first time."""
    if settings.env.hf_home:
        os.environ.setdefault("HF_HOME", settings.env.hf_home)
    if settings.env.offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _print(settings: Settings, name: str, **values: object) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(message(settings.lang, name, **values))


def _say(settings: Settings, folder: Path, metrics: dict[str, Any]) -> None:
    """Print the result and the next step."""
    from rich.console import Console

    console, lang = Console(soft_wrap=True), settings.lang
    if "accuracy" in metrics:
        which = "held-out" if settings.stage == "final" else "evaluated"
        scores, base = _scores(lang, metrics), metrics["base_accuracy"]
        console.print(message(lang, which, scores=scores, base=base, chance=CHANCE))
    if "test" in metrics:
        console.print(message(lang, "test", scores=_scores(lang, metrics["test"])))
    for alarm in metrics.get("alarms", []):
        console.print(f"[bold red]{message(lang, 'alarm')}[/]: {alarm}")
    if settings.stage == "final":
        _look(settings, _record_report(settings, RunFolder(folder)))
    run = RunFolder(folder)
    following = run.submission if run.submission.exists() else run.metrics_file
    if settings.stage == "merge":
        following = metrics["model"]
    console.print(message(lang, "next", what=following))


def _look(settings: Settings, page: Path) -> None:
    from rich.console import Console

    Console(soft_wrap=True).print(message(settings.lang, "look", path=page))


def _scores(lang: str, metrics: dict[str, Any]) -> str:
    low, high = metrics["accuracy_ci95"]
    values = {"accuracy": metrics["accuracy"], "low": low, "high": high, "n": metrics["n"]}
    return message(lang, "scores", **values)
