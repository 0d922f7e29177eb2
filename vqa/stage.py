"""One stage of one run: check the configuration, claim the folder, do the work, say what comes next."""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vqa.config.check import language, read_settings
from vqa.config.messages import in_language, message, told, worded
from vqa.config.settings import Settings
from vqa.config.stages import STAGES
from vqa.data.places import missing_data_files
from vqa.errors import UserError
from vqa.machine import processes
from vqa.results.adapter_record import TAKEN, read_record, weights_sha256, with_record
from vqa.results.folder import RunFolder, StudyFolder, adapter_folder, refuse_no_adapters
from vqa.results.work import at_work, begin, folder_of_file
from vqa.stages.preflight import prepare

if TYPE_CHECKING:
    import torch
    from rich.console import Console


def run_stage(cfg: DictConfig, folder: Path, alone: bool) -> float | None:
    """Run the configured stage.

    Args:
        cfg: The composed configuration, without the `hydra` node.
        folder: The run's output folder.
        alone: A single run, not a job of a sweep: may take the study's winner.

    Returns:
        The score of a trial; of another run with labelled questions its NLL, nats, which a sweeper of Hydra's
        can search for. None without one.

    Raises:
        UserError: Something is wrong with configuration, data, model or machine.
    """
    if cfg.stage != "final":
        processes.refuse_several(f"stage={cfg.stage}")
    if cfg.stage in TAKEN:
        cfg = _with_adapters_record(cfg)
    settings = read_settings(cfg)
    winner: list[str] = []
    from vqa.tracking.mlflow_runs import no_telemetry  # late: a mistake above shows without waiting for it

    no_telemetry()
    if alone and settings.stage == "final" and settings.winner == "auto":
        cfg, settings, winner = _with_winner(cfg, settings)
    if settings.stage in ("predict", "evaluate") and not _names_folder():
        folder = folder_of_file(folder, cfg)
        _log_into(folder)
    _refuse_missing_files(settings, folder)
    _set_environment(settings)
    stage = STAGES[settings.stage]
    if not stage.claims:
        stage.load()(settings, folder)
        return None
    with processes.joined(lambda: _device(settings)), ExitStack() as held:
        return _run(settings, cfg, folder, winner, held)


def _with_adapters_record(cfg: DictConfig) -> DictConfig:
    """Take over what the adapter was trained with; what the command line says still wins, and is told.

    Raises:
        UserError: There is no adapter, or no such language.
    """
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    lang = language(cfg)
    study = StudyFolder(Path(cfg.env.output_root) / str(cfg.study))
    adapter = Path(cfg.adapter) if cfg.adapter else study.final.adapter
    refuse_no_adapters(adapter)
    record = read_record(adapter)
    if record is None:
        _tell(message(lang, "no record", adapter=adapter), "bold yellow")
        return cfg
    hydra_cfg = HydraConfig.get()
    experiment = hydra_cfg.runtime.choices.get("experiment")
    other = experiment is not None and experiment != record.choices.get("experiment")
    standard = compose(hydra_cfg.job.config_name) if other else None
    cfg, differing = with_record(cfg, record, list(hydra_cfg.overrides.task), standard)
    _tell(message(lang, "record", path=record.path))
    for line in differing:
        _tell(message(lang, "differs", line=line), "bold yellow")
    return cfg


def _names_folder() -> bool:
    """Whether the command line says where the results go."""
    from hydra.core.hydra_config import HydraConfig

    return any(word.startswith("hydra.run.dir=") for word in HydraConfig.get().overrides.hydra)


def _log_into(folder: Path) -> None:
    """Have the run's log written into the folder of its results; nothing was logged yet."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and handler.stream is None:
            handler.baseFilename = str((folder / Path(handler.baseFilename).name).absolute())


def _refuse_missing_files(settings: Settings, folder: Path) -> None:
    """Tell of a data file that is not there before torch is imported; a complete run needs none."""
    reads = settings.stage in ("final", "trial", "predict", "evaluate", "doctor")
    if reads and not RunFolder(folder).complete and (missing := missing_data_files(settings.data)):
        raise UserError("\n".join(missing))


def _device(settings: Settings) -> "torch.device":
    from vqa.machine.device import choose_device  # torch takes seconds to import

    return choose_device(settings.env.device)


def _run(
    settings: Settings, cfg: DictConfig, folder: Path, winner: Sequence[str], held: ExitStack
) -> float | None:
    """Do the work of a stage that claims its folder; `held` keeps the lock on it."""

    def begun() -> bool:
        held.enter_context(at_work(folder))
        return begin(folder, cfg, winner)

    if not processes.agreed(begun):
        if processes.is_main():
            _refuse_stale(settings, RunFolder(folder))
            _print(settings, "complete", folder=folder)
            _add_missing_report(settings, folder)
        return _objective(RunFolder(folder).metrics())
    processes.agreed(lambda: prepare(settings))  # the main process first: the others find its copies
    if not processes.is_main():
        prepare(settings)
    from vqa.machine.device import use_threads

    use_threads(settings.env.threads)
    work = STAGES[settings.stage].load()
    if settings.stage == "trial":
        score: float = work(settings, folder)
        return score
    from vqa.progress import shown_progress

    shown = shown_progress(partial(worded, settings.lang)) if processes.is_main() else nullcontext()
    with shown:
        metrics = work(settings, folder)
    if processes.is_main():
        _say(settings, folder, metrics)
    return _objective(metrics)


def _refuse_stale(settings: Settings, run: RunFolder) -> None:
    """Refuse to call answers complete whose questions or adapter have changed since.

    Raises:
        UserError: Says which of them, and what to do.
    """
    if settings.stage not in ("predict", "evaluate"):
        return
    from vqa.data.source import data_sha256, test_questions

    made, adapter, changed = run.manifest(), adapter_folder(settings), []
    if not missing_data_files(settings.data) and (
        data_sha256(test_questions(settings) or []) != made.get("data_sha256")
    ):
        changed.append(f"{settings.data.get('test_csv') or 'the test set'} has other rows now")
    if weights_sha256(adapter) != made.get("adapter_sha256", weights_sha256(adapter)):
        changed.append(f"{adapter} has other weights now")
    if changed:
        raise UserError(
            f"{run.path} holds complete results, but {' and '.join(changed)}. Nothing was changed: move that "
            "folder away and repeat the command, or give another one (hydra.run.dir=...)"
        )


def _objective(metrics: dict[str, Any] | None) -> float | None:
    nll = (metrics or {}).get("nll")
    return None if nll is None else float(nll)


def _add_missing_report(settings: Settings, folder: Path) -> None:
    """Write the report of a complete run that was killed before its last lines."""
    if settings.stage == "final" and not RunFolder(folder).report.exists():
        from vqa.stages.report import show_report

        show_report(settings, RunFolder(folder))


def _with_winner(cfg: DictConfig, settings: Settings) -> tuple[DictConfig, Settings, list[str]]:
    """Take the study's best.yaml into the configuration; what the command line says still wins.

    Returns:
        Configuration, the same checked, and the winner's overrides.
    """
    from hydra.core.hydra_config import HydraConfig

    from vqa.sweep.final_run import with_winner

    command = HydraConfig.get()
    found = with_winner(str(command.job.config_name), settings, list(command.overrides.task))
    if found is None:
        return cfg, settings, []
    # not logged: the run's log must not change when the run turns out to be complete
    if processes.is_main():
        _print(settings, "winner", path=StudyFolder.of(settings).winner)
    return found[0], read_settings(found[0]), found[1]


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


def _tell(text: str, style: str = "") -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(text, style=style, highlight=False)


def _say(settings: Settings, folder: Path, metrics: dict[str, Any]) -> None:
    """Print the result and the next step."""
    from rich.console import Console
    from rich.markup import escape

    console, lang = Console(soft_wrap=True), settings.lang
    if "accuracy" in metrics:
        which = "held-out" if settings.stage == "final" else "evaluated"
        scores, base = _scores(lang, metrics), metrics["base_accuracy"]
        console.print(message(lang, which, scores=scores, base=base, chance=metrics["chance"]))
    if "test" in metrics:
        console.print(message(lang, "test", scores=_scores(lang, metrics["test"])))
    for alarm in metrics.get("alarms", []):
        console.print(f"[bold red]{message(lang, 'alarm')}[/]: {escape(told(lang, alarm))}")
    if settings.stage == "final":
        from vqa.stages.report import show_report

        show_report(settings, RunFolder(folder))
        _print_verdict(console, lang, folder, metrics)
    run = RunFolder(folder)
    following = run.handed_in if run.submission.exists() else run.metrics_file
    if settings.stage == "merge":
        following = metrics["model"]
    console.print(message(lang, "next", what=following))


def _print_verdict(console: "Console", lang: str, folder: Path, metrics: dict[str, Any]) -> None:
    """Say in one sentence what the study came to."""
    from vqa.report.verdict import verdict

    study = RunFolder(folder).study
    said = in_language(lang, verdict(metrics, study.trials(), ranges=study.ranges()))
    console.print(said, style="bold", markup=False, highlight=False)


def _scores(lang: str, metrics: dict[str, Any]) -> str:
    low, high = metrics["accuracy_ci95"]
    values = {"accuracy": metrics["accuracy"], "low": low, "high": high, "n": metrics["n"]}
    return message(lang, "scores", **values)
