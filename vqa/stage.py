"""One stage of one run: check the configuration, claim the folder, do the work, say what comes next."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from vqa.config import read_settings
from vqa.device import use_threads
from vqa.doctor import run_doctor
from vqa.progress_bar import shown_progress
from vqa.question import CHANCE
from vqa.run_folder import begin
from vqa.settings import Settings
from vqa.tracking import no_telemetry


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
    no_telemetry()
    settings = read_settings(cfg)
    if alone and settings.stage == "final" and settings.winner == "auto":
        cfg, settings = _with_winner(cfg, settings)
    _set_environment(settings)
    if settings.stage == "doctor":
        run_doctor(settings)
        return None
    if settings.stage == "status":
        from vqa.status import show_status  # optuna

        show_status(Path(settings.env.output_root) / settings.study)
        return None
    if not begin(folder, cfg):
        Console(stderr=True, soft_wrap=True).print(
            f"nothing left to do: {folder} is complete; study=other starts another"
        )
        return None
    use_threads(settings.env.threads)
    if settings.stage == "trial":
        from vqa.trial import run_trial

        return run_trial(settings, folder)
    with shown_progress():
        metrics = _work(settings.stage)(settings, folder)
    _say(settings, folder, metrics)
    return None


def _work(stage: str) -> Callable[[Settings, Path], dict[str, Any]]:
    from vqa.final import run_final
    from vqa.predict import run_evaluate, run_predict

    return {"final": run_final, "predict": run_predict, "evaluate": run_evaluate}[stage]


def _with_winner(cfg: DictConfig, settings: Settings) -> tuple[DictConfig, Settings]:
    """Take the study's best.yaml into the configuration; what the command line says still wins."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    from vqa.winner import read_winner

    best = Path(settings.env.output_root) / settings.study / "best.yaml"
    if not best.exists():
        return cfg, settings
    given = list(HydraConfig.get().overrides.task)
    winner = read_winner(best)
    # not logged: the run's log must not change when the run turns out to be complete
    Console(stderr=True, soft_wrap=True).print(
        f"taking the study's winner from {best} (winner=none leaves it out)"
    )
    with_winner = compose(HydraConfig.get().job.config_name, overrides=[*winner, *given])
    return with_winner, read_settings(with_winner)


def _set_environment(settings: Settings) -> None:
    """What the libraries read from the environment, before they are imported for the first time."""
    if settings.env.hf_home:
        os.environ.setdefault("HF_HOME", settings.env.hf_home)
    if settings.env.offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _say(settings: Settings, folder: Path, metrics: dict[str, Any]) -> None:
    """Print the result and the next step."""
    console = Console(soft_wrap=True)
    if "accuracy" in metrics:
        which = "held-out" if settings.stage == "final" else "test"
        console.print(
            f"{which} {_accuracy(metrics)}, base model {metrics['base_accuracy']:.3f}, chance {CHANCE:.3f}"
        )
    if "test" in metrics:
        console.print(f"test {_accuracy(metrics['test'])}")
    for alarm in metrics.get("alarms", []):
        console.print(f"[bold red]alarm[/]: {alarm}")
    submission = folder / "submission.csv"
    console.print(f"next: {submission if submission.exists() else folder / 'metrics.json'}")


def _accuracy(metrics: dict[str, Any]) -> str:
    low, high = metrics["accuracy_ci95"]
    return f"accuracy {metrics['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, n={metrics['n']})"
