"""`stage=doctor`: everything that can be checked before the full model is loaded, as one list.

`doctor.html` says what was found in a contest file, on one page with a contact sheet.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from vqa.config.check import read_settings
from vqa.config.library import build
from vqa.config.messages import message, plain_message, told, worded
from vqa.config.near import with_advice
from vqa.config.settings import Settings
from vqa.config.words import command_line
from vqa.data.contest_csv import ContestCsv, reading_once
from vqa.data.csv_rows import Part
from vqa.data.source import data_source, split_questions
from vqa.data.split import make_folds, subsample
from vqa.errors import UserError
from vqa.machine.device import cards_for, choose_device, choose_dtype
from vqa.machine.files import replace_text
from vqa.model.base import model_source, read_model_config, read_processor
from vqa.model.context import context_length, describe_too_long, refuse_options, too_long
from vqa.model.families.table import family_of
from vqa.model.letters import letter_tokens
from vqa.model.prompt import rows_with_control_words, token_ids
from vqa.model.vision.generic_pictures import budget_arguments, refuse_several_pictures
from vqa.progress import shown_progress
from vqa.question import Question, guessing, letters_of
from vqa.report import doctor_facts as facts
from vqa.report.page import render, thumbnails
from vqa.results.folder import StudyFolder, adapter_folder, refuse_no_adapters
from vqa.results.work import refuse_other_run
from vqa.stages.final import refuse_settings
from vqa.stages.footprint import foreseen, memory_lines
from vqa.stages.preflight import cache_problem, drive_problem, hub_problem
from vqa.stages.time_forecast import NOT_OF_A_SWEEP, time_lines, words_of_sweep
from vqa.sweep.checks import sweep_problems
from vqa.sweep.final_run import with_winner
from vqa.tracking.mlflow_runs import open_tracker

LOW_DISK_GIB = 5.0
GPU_ONLY = "bitsandbytes.optim."
SHOWN = 5  # rows that a line names
PAGE = "doctor.html"
ON_SHEET = 60  # pictures of the contact sheet
SHEET_BYTES = 3 * 2**20


@reading_once()
def run_doctor(settings: Settings, folder: Path | None = None) -> None:
    """Check configuration, data, model files, cache folder, device, disk and tracking.

    Prints one line per check, and writes a page about the data of a contest file.

    Args:
        settings: What is checked.
        folder: Not used: nothing is run.

    Raises:
        UserError: Lists everything that is wrong.
    """
    console, lang = Console(soft_wrap=True), settings.lang
    problems: list[str] = []
    for name, check in CHECKS.items():
        with shown_progress(partial(worded, lang)):
            found = _findings(check, settings)
        problems += [f"{name}: {problem}" for problem in found]
        word, colour = ("wrong", "red") if found else ("ok", "green")
        console.print(f"[{colour}]{message(lang, word)}[/] {message(lang, f'check {name}')}")
    if not problems:
        long, notes = text_findings(settings)
        problems += [f"data: {problem}" for problem in long]
        known = foreseen(settings)
        forecasts = [*memory_lines(settings, known), *time_lines(settings, known, _given())] if known else []
        for line in [*notes, *_final_notes(settings), *forecasts]:
            console.print(line)
    with shown_progress(partial(worded, lang)):
        page = _page(settings, problems)
    if page:
        console.print(message(lang, "look", path=page))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"{len(problems)} thing(s) to mend:\n{listed}")
    trains = settings.data.get("train_csv", "") is not None
    said = plain_message(lang, "healthy", command=next_command(_given(), trains))
    console.print(said, markup=False, highlight=False)


def next_command(given: Sequence[str], trains: bool = True) -> str:
    """The command of a first sweep over what was checked; of a test file alone, that of its answers.

    Args:
        given: What the command line of the check gave, `key=value` each.
        trains: Whether there are questions to train on.
    """
    if trains:
        return command_line(["-m", *words_of_sweep(given)])
    return command_line(["stage=predict", *(word for word in given if not word.startswith(NOT_OF_A_SWEEP))])


def _given() -> list[str]:
    if not HydraConfig.initialized():
        return []
    given = HydraConfig.get().overrides
    return [*given.task, *given.hydra]


def _page(settings: Settings, problems: list[str]) -> Path | None:
    try:
        return write_doctor_page(settings, problems)
    except (UserError, OSError):  # data that cannot even be described stand among the problems already
        return None


def _findings(check: Callable[[Settings], list[str]], settings: Settings) -> list[str]:
    try:
        return check(settings)
    except UserError as error:
        return [str(error)]


def _data(settings: Settings) -> list[str]:
    """What is wrong with the files; of good ones, why they cannot be divided as a run or a trial would."""
    problems = data_source(settings).check()
    if problems or settings.data.get("train_csv", "") is None:  # a test file alone is not divided
        return problems
    split, _ = split_questions(settings)
    if settings.budget.folds > 1:
        drawn = subsample(split.train, settings.budget.subsample, settings.seed)
        make_folds(drawn, settings.budget.folds, settings.seed)
    return []


def _model(settings: Settings) -> list[str]:
    if problem := hub_problem(settings):
        return [problem]
    read_processor(settings, read_model_config(settings))
    answers_alone = settings.data.get("train_csv", "") is None and settings.data.get("test_csv") is not None
    if answers_alone or settings.adapter:
        refuse_no_adapters(adapter_folder(settings))
    return []


def _cache(settings: Settings) -> list[str]:
    problem = cache_problem(settings)
    return [problem] if problem else []


def _device(settings: Settings) -> list[str]:
    device = choose_device(settings.env.device)
    choose_dtype(settings.precision, device)
    cards_for(settings.env.device_map, device)
    target = str(settings.optimizer["_target_"])
    if device.type == "cpu" and target.startswith(GPU_ONLY):
        return [f"optimizer: {target} needs a GPU; use optimizer=adamw"]
    return []


def _output(settings: Settings) -> list[str]:
    if problem := drive_problem(settings):
        return [problem]
    root = Path(settings.env.output_root).absolute()
    existing = next(p for p in (root, *root.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return [f"env.output_root={root} cannot be written; set VQA_OUTPUT=/a/writable/folder"]
    free = shutil.disk_usage(existing).free / 2**30
    if free < LOW_DISK_GIB:
        return [
            f"only {free:.1f} GiB free under {existing}, {LOW_DISK_GIB:.0f} needed; "
            "free some, or set VQA_OUTPUT"
        ]
    return []


def _tracking(settings: Settings) -> list[str]:
    open_tracker(settings.tracking).prepare()
    return []


def _sweep(settings: Settings) -> list[str]:
    """What the sweep that follows would refuse at its start; of a test file alone, nothing."""
    trains = settings.data.get("train_csv", "") is not None
    return sweep_findings(_given()) if trains and HydraConfig.initialized() else []


def sweep_findings(given: Sequence[str]) -> list[str]:
    """Why the sweep of a command would not begin.

    Args:
        given: What the command line of the check gave; without a sweep the one that is proposed is meant.
    """
    loader, words = GlobalHydra.instance().config_loader(), words_of_sweep(given)
    try:
        config = loader.load_configuration("config", words, RunMode.MULTIRUN)
        return sweep_problems(config, list(config.hydra.overrides.task), loader)
    except (HydraException, OmegaConfBaseException) as error:
        return [with_advice(str(error))]


def _final_notes(settings: Settings) -> list[str]:
    """A line on why `stage=final` would refuse the same words; a sweep has its final run checked with it."""
    trains = settings.data.get("train_csv", "") is not None
    given = _given()
    if not trains or not HydraConfig.initialized() or any(word.startswith("+sweep=") for word in given):
        return []
    lang = settings.lang
    return [message(lang, "final refuses", why=told(lang, problem)) for problem in final_findings(given)]


def final_findings(given: Sequence[str]) -> list[str]:
    """Why the final run of a command's words would not begin.

    Args:
        given: What the command line of the check gave.
    """
    words = [*(word for word in given if not word.startswith(NOT_OF_A_SWEEP)), "stage=final"]
    try:
        config = compose("config", overrides=words)
        settings = read_settings(config)
        if settings.winner == "auto" and (found := with_winner("config", settings, words)):
            config, settings = found[0], read_settings(found[0])
        refuse_settings(settings)
        refuse_other_run(StudyFolder.of(settings).final.path, config)
    except UserError as error:
        return [str(error)]
    return []


CHECKS: dict[str, Callable[[Settings], list[str]]] = {
    "data": _data,
    "sweep": _sweep,
    "model": _model,
    "cache folder": _cache,
    "device": _device,
    "output folder and disk": _output,
    "tracking store": _tracking,
}


def text_findings(settings: Settings) -> tuple[list[str], list[str]]:
    """Questions that the model cannot be asked, how many options there are, and rows with control words.

    Returns:
        Problems (a question longer than the context, options that prompt, read-out or tokenizer do not suit),
        and lines about the options and about rows whose control words are asked as plain text.

    Raises:
        UserError: Data or model configuration cannot be read.
    """
    from transformers import AutoTokenizer

    config = read_model_config(settings)
    folder, where = model_source(settings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    except (OSError, ValueError):  # no tokenizer beside the configuration; loading the model will say why
        return [], []
    problems, notes = [], []
    source, context = data_source(settings), context_length(config)
    parts: dict[str, list[Question]] = {"test": source.test() or []}
    if settings.data.get("train_csv", "") is not None:
        parts["train"] = source.train()
    numbers = [len(question.choices) for questions in parts.values() for question in questions]
    if numbers:
        fewest, most = min(numbers), max(numbers)
        said = f"{fewest}" if fewest == most else f"{fewest} - {most}"
        notes.append(message(settings.lang, "options", said=said))
        try:
            refuse_options(settings, [parts["test"]], parts.get("train", ()))
            letter_tokens(lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]), most)
        except UserError as error:
            problems.append(str(error))
    problems += _several_pictures(settings, config, [q for questions in parts.values() for q in questions])
    for part, questions in parts.items():
        if found := rows_with_control_words(tokenizer, questions):
            shown = ", ".join(f"{id_} ({word})" for id_, word in found[:SHOWN])
            more = " ..." if len(found) > SHOWN else ""
            notes.append(message(settings.lang, "control", part=part, count=len(found), shown=shown + more))
        if context is not None:
            system = len(token_ids(tokenizer, settings.prompt.system))
            visual = settings.image.max_visual_tokens
            long = too_long(tokenizer, settings.prompt, questions, context - system, visual)
            problems += [f"{part}: {describe_too_long(long, context)}"] if long else []
    return problems, notes


def _several_pictures(settings: Settings, config: Any, questions: Sequence[Question]) -> list[str]:
    """Why the model's processor cannot be asked about the first question on several pictures; else []."""
    several = next((question for question in questions if question.further), None)
    processor = read_processor(settings, config) if several else None
    if several is None or processor is None:
        return []
    family = family_of(config, settings.env.device_map)
    try:
        refuse_several_pictures(processor, budget_arguments(processor, family, settings.image))
    except UserError as error:
        return [f"question {several.id!r} has {len(several.pictures)} pictures. {error}"]
    return []


def write_doctor_page(settings: Settings, problems: Sequence[str]) -> Path | None:
    """Write the page of a contest file; None for other data, which need no doctor.

    Rows that cannot be used are left out of the numbers; the problems tell of them.

    Returns:
        The page, in the study's folder.
    """
    source = build("data", settings.data)
    if not isinstance(source, ContestCsv):
        return None
    parts = _readable(source)
    everything = [q for questions in parts.values() for q in questions]
    labelled = [q for q in parts.get("train", []) if q.answer]
    numbers = facts.option_numbers(everything)
    pictures = list(dict.fromkeys(p.path for q in everything for p in q.pictures))
    sheet = pictures[:: max(1, len(pictures) // ON_SHEET)][:ON_SHEET]
    page = render(
        "doctor.html",
        language=settings.lang,
        title="doctor",
        study=settings.study,
        problems=problems,
        parts=[(name, _part(source, name, questions)) for name, questions in parts.items()],
        options=numbers,
        letters=letters_of(max(numbers, default=0)),
        chance=guessing(len(q.choices) for q in labelled or everything).accuracy if everything else None,
        exact=facts.exact_twins(parts),
        near=facts.near_twins(parts),
        equal_options=facts.equal_options(everything),
        contradictions=facts.contradictions(everything),
        hinted=facts.hinted(everything),
        longest=facts.longest_is_right(labelled),
        floor=facts.text_floor(labelled, settings.seed),
        sizes={} if any(p.startswith("model:") for p in problems) else _sizes(settings, everything),
        sheet=list(thumbnails(sheet, SHEET_BYTES).values()),
    )
    folder = Path(settings.env.output_root) / settings.study
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / PAGE, page)
    return folder / PAGE


def _readable(source: ContestCsv) -> dict[str, list[Question]]:
    """Every row that can be read, whatever is wrong with the others."""
    parts: tuple[Part, ...] = "train", "test"
    found = {part: source.readable(part) for part in parts}
    return {part: questions for part, questions in found.items() if questions}


def _part(source: ContestCsv, name: str, questions: Sequence[Question]) -> dict[str, Any]:
    return {
        "file": source.train_csv if name == "train" else source.test_csv,
        "questions": len(questions),
        "pictures": len({p.sha256 for q in questions for p in q.pictures}),
        "without": sum(q.image is None for q in questions),
        "letters": facts.letter_balance(questions) if any(q.answer for q in questions) else {},
    }


def _sizes(settings: Settings, questions: Sequence[Question]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    if not questions:
        return {}
    folder, where = model_source(settings)
    try:
        config = read_model_config(settings)
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    except (OSError, ValueError):  # no tokenizer beside the configuration; loading the model will say why
        return {}
    family = family_of(config, settings.env.device_map)
    if family.is_own(config):
        return facts.sizes(settings, questions, config, tokenizer)
    return facts.sizes_by_processor(settings, questions, read_processor(settings, config), family)
