"""What `stage=doctor` says of the questions' texts as the model's tokenizer takes them."""

from vqa.answer.options import refuse_options
from vqa.config.messages import message
from vqa.config.settings import Settings
from vqa.data.source import data_source
from vqa.errors import UserError
from vqa.model.base import model_source, read_model_config, read_processor
from vqa.model.context import context_length, describe_too_long, too_long
from vqa.model.families.table import family_of
from vqa.model.letters import letter_tokens
from vqa.model.prompt import rows_with_control_words, token_ids
from vqa.model.vision.generic_pictures import budget_arguments, refuse_several_pictures
from vqa.question import Question

SHOWN = 5


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
    several = next((q for questions in parts.values() for q in questions if q.further), None)
    processor = read_processor(settings, config) if several else None
    if several is not None and processor is not None:
        try:
            refuse_several_pictures(
                processor,
                budget_arguments(processor, family_of(config, settings.env.device_map), settings.image),
            )
        except UserError as error:
            problems.append(f"question {several.id!r} has {len(several.pictures)} pictures. {error}")
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
