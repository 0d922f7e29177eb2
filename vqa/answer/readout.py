"""Read-outs: letter probabilities, calibrated or debiased, adapted, or generated text.

Generated text is slower and no better than letter probabilities, but some prompts need it.
"""

import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from vqa.answer.debias import cyclic, cyclic_average, entropy, mean_probability, pride, without_prior
from vqa.answer.score import each_number, option_scores, predictions_of, score
from vqa.config.settings import InferenceSettings, Settings
from vqa.errors import UserError
from vqa.machine import processes
from vqa.model.encode import Encoder
from vqa.progress import progress
from vqa.question import Question, letters_of
from vqa.results.calibration import held_out_calibrated, tempered
from vqa.results.metrics import accuracy, mcnemar_p_value, nll
from vqa.results.predictions import NO_ANSWER, Prediction

log = logging.getLogger(__name__)
# A letter that stands alone, as in "c", "(c)", "C.", "정답: c"; the last one counts, after any reasoning.
ALONE = r"(?<![A-Za-z])({letter})(?![A-Za-z])"
ONLY = r"\W*({letter})\W*"
MARKED = r"\(({letter})\)|(?:[:：]|답은?|answer is)\s*\(?({letter})(?![A-Za-z])"
# After reasoning, a letter counts only where it is stated as the answer and ends its line: not "관찰: a ...".
FINAL = r"(?:정답|답|[Aa]nswer)(?:은|는|\s+is)?\s*[:：]?\s*\(?({letter})\)?\s*(?:입니다)?[.。!]?\s*$"
GENERATE_BATCH = 8
# Zhao et al. 2021 average over several strings without content; there is no picture either
CONTENT_FREE = ("N/A", "[MASK]", "-")


def parse_letter(text: str, options: int) -> str | None:
    """The letter a text answers with; None when it holds none. Never a default.

    Args:
        text: What was generated.
        options: Number of options: no other letter counts.

    >>> parse_letter("정답: (C)", 4), parse_letter("a cat", 4), parse_letter("e", 4), parse_letter("e", 5)
    ('c', None, None, 'e')
    """
    text = text.strip()
    if re.fullmatch(_for(ONLY, options), text):
        return re.sub(r"\W", "", text).lower()
    # "a" is also an English article: inside a sentence it must be marked as an option
    letters = [first or second for first, second in re.findall(_for(MARKED, options), text)]
    if not letters:
        letters = [letter for letter in re.findall(_for(ALONE, options), text) if letter not in "aA"]
    return letters[-1].lower() if letters else None


def final_letter(text: str, options: int) -> str | None:
    """The last letter that a text of reasoning states as its answer; None when it was cut off before.

    Args:
        text: What was generated.
        options: Number of options: no other letter counts.

    >>> final_letter("A cat. Answer: c", 4), final_letter("관찰: a 보기", 4), final_letter("b", 2)
    ('c', None, 'b')
    """
    if re.fullmatch(_for(ONLY, options), text.strip()):
        return parse_letter(text, options)
    stated = re.findall(_for(FINAL, options), text, re.MULTILINE)
    return stated[-1].lower() if stated else None


def _for(pattern: str, options: int) -> str:
    """A pattern with the letters of so many options, small or large, in its place for one."""
    last = letters_of(options)[-1]
    return pattern.replace("{letter}", f"[a-{last}A-{last.upper()}]")


def generate_answers(
    encoder: Encoder,
    questions: Sequence[Question],
    max_new_tokens: int,
    read: Callable[[str, int], str | None] = parse_letter,
) -> list[str | None]:
    """Generate greedily and read the letter off.

    Args:
        encoder: Encodes questions; the adapter on its base, if any, is in force.
        questions: In any order.
        max_new_tokens: Per question.
        read: Text and number of options to letter.

    Returns:
        A letter or None per question, in the order given.
    """
    base = encoder.base
    base.vision.unpark()
    letters: list[str | None] = []
    for start in range(0, len(questions), GENERATE_BATCH):
        part = questions[start : start + GENERATE_BATCH]
        inputs = encoder.padded(part)
        with torch.no_grad():
            ids = base.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts = base.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        letters += [read(text, len(q.choices)) for text, q in zip(texts, part, strict=True)]
        progress("generating", len(letters), len(questions))
    return letters


def read_letters(
    encoder: Encoder, questions: Sequence[Question], batch_size: int, inference: InferenceSettings
) -> list[Prediction]:
    """Letter probabilities, averaged over option orders, debiased or calibrated as `inference` says.

    Calibration corrects letters, so it comes before the orders are mapped back to options. Questions with
    unlike numbers of options have letters, orders and priors of their own.
    """
    return each_number(questions, lambda asked: _read_alike(encoder, asked, batch_size, inference))


def _read_alike(
    encoder: Encoder, questions: Sequence[Question], batch_size: int, inference: InferenceSettings
) -> list[Prediction]:
    """`read_letters` of questions that all have as many options."""
    n = len(questions[0].choices)
    orders = cyclic(n) if inference.orders == "cyclic" else None
    log_p, log_mass = option_scores(encoder, questions, batch_size, orders)
    if inference.calibration == "batch":
        log_p = without_prior(log_p, mean_probability(log_p))
    elif inference.calibration == "contextual":
        empty = [Question(text, None, "", text, (text,) * n) for text in CONTENT_FREE]
        free, _ = option_scores(encoder, empty, batch_size, what="content-free questions")
        log_p = without_prior(log_p, mean_probability(free))
    if inference.orders == "cyclic":
        return predictions_of(questions, cyclic_average(log_p), log_mass)
    if inference.debias == "pride":
        # chosen without looking at answers, and the same ones every time
        shuffled = torch.randperm(len(questions), generator=torch.Generator().manual_seed(0))
        chosen = shuffled[: math.ceil(inference.pride_share * len(questions))]
        part = [questions[i] for i in chosen.tolist()]
        others, _ = option_scores(encoder, part, batch_size, cyclic(n)[1:], "cyclic orders")
        asked = torch.cat([log_p[chosen], others], dim=1)  # the first order is the written one
        return predictions_of(questions, pride(log_p[:, 0], asked, chosen), log_mass)
    return predictions_of(questions, log_p[:, 0], log_mass)


def answer(
    encoder: Encoder,
    questions: Sequence[Question],
    settings: Settings,
    facts: dict[str, Any] | None = None,
    source: Sequence[Question] = (),
    temperature: float | None = None,
) -> list[Prediction]:
    """Answer questions the way `inference` and `adapt` say.

    With readout=generate or reasoning the letter comes from generated text; the probabilities beside it are
    still those of the letters. Text without a letter is "no answer": it is flagged and counted. The letter
    probabilities answer it only where `on_no_answer` allows that. A prompt with an entropy threshold
    (prompt=auto) asks a question again with the reasoning prompt where the direct answer's calibrated entropy
    is higher. The probabilities that are returned are the model's own: no temperature is in them.

    Args:
        encoder: Makes batches; the adapter on its base, if any, is in force.
        questions: In any order; with an `adapt` method their order matters.
        settings: Of the run: batch size, how the answer is read off, test-time adaptation.
        facts: A dictionary of the caller's, to be filled: what reasoning or adaptation cost and gained.
        source: Training questions, for adaptation that compares with them.
        temperature: Of calibrated probabilities; None: these are labelled questions that were not trained on,
            and each gets the temperature that is fitted on the others.

    Returns:
        One prediction per question, in the order given.

    Raises:
        UserError: Text without a letter, and inference.on_no_answer=error.
    """
    inference = settings.inference
    if settings.adapt.method == "none":
        predictions = read_letters(encoder, questions, settings.budget.eval_batch_size, inference)
    else:
        predictions = _adapted(encoder, questions, settings, facts, source)
    _warn_of_mass(predictions, inference.min_option_mass)
    if inference.readout != "letters":
        return _by_text(encoder, questions, predictions, inference, inference.readout == "reasoning")
    if encoder.prompt.entropy_threshold is None:
        return predictions
    if temperature is None:
        calibrated = held_out_calibrated(predictions, inference.temperature)
    else:
        calibrated = tempered(predictions, temperature)
    unsure = _unsure(calibrated, encoder.prompt.entropy_threshold)
    return _by_reasoning(encoder, questions, predictions, unsure, inference, facts)


def _warn_of_mass(predictions: Sequence[Prediction], least: float) -> None:
    mass = sum(p.option_mass for p in predictions) / len(predictions)
    if mass < least:
        log.warning(
            "the letters together get only %.2f of the probability on average "
            "(inference.min_option_mass=%.2f): the model wants to say something else; look at the prompt",
            mass,
            least,
        )


def _unsure(calibrated: Sequence[Prediction], limit: float) -> list[int]:
    """Places of the predictions whose entropy is above the limit, nats."""
    most = max(len(p.p) for p in calibrated)  # 0 log 0 is 0: a letter that a question lacks adds nothing
    full = [[*p.p, *[0.0] * (most - len(p.p))] for p in calibrated]
    spread = entropy(torch.tensor(full, dtype=torch.float64).log())
    places: list[int] = (spread > limit).nonzero().flatten().tolist()
    return places


def _adapted(
    encoder: Encoder,
    questions: Sequence[Question],
    settings: Settings,
    facts: dict[str, Any] | None,
    source: Sequence[Question],
) -> list[Prediction]:
    """Predictions of a model that adapts; on labelled questions `facts` compares it with the frozen one."""
    from vqa.answer.adapt.loop import adapted_scores  # here: plain scoring does not load the methods

    log_p, log_mass = adapted_scores(encoder, questions, settings.adapt, facts, source)
    adapted = predictions_of(questions, log_p.double(), log_mass[:, None])
    if facts is not None and all(q.answer for q in questions):
        frozen = score(encoder, questions, settings.budget.eval_batch_size, "without adaptation")
        facts["adapt"] |= {
            "frozen_accuracy": accuracy(frozen),
            "frozen_nll": nll(frozen)[0],
            "p_value_vs_frozen": mcnemar_p_value(frozen, adapted),
        }
    return adapted


def _by_reasoning(
    encoder: Encoder,
    questions: Sequence[Question],
    direct: list[Prediction],
    unsure: Sequence[int],
    inference: InferenceSettings,
    facts: dict[str, Any] | None,
) -> list[Prediction]:
    """Ask the unsure ones, given by their places, again with the reasoning prompt."""
    begun = time.perf_counter()
    before = [direct[i] for i in unsure]
    asked = [questions[i] for i in unsure]
    after = _by_text(encoder, asked, before, inference, reasoning=True) if unsure else []
    if facts is not None:
        facts["reasoning"] = {
            "share": len(unsure) / len(questions),
            "seconds": time.perf_counter() - begun,
            "no_answer": sum(NO_ANSWER in p.flag.split() for p in after),
        }
        if unsure and all(p.gold for p in before):  # on these questions: what reasoning gained
            facts["reasoning"] |= {"accuracy": accuracy(after), "accuracy_direct": accuracy(before)}
    reasoned = dict(zip(unsure, after, strict=True))
    return [reasoned.get(i, p) for i, p in enumerate(direct)]


def _by_text(
    encoder: Encoder,
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    inference: InferenceSettings,
    reasoning: bool,
) -> list[Prediction]:
    """Take the letters of generated text instead; after reasoning only a stated final answer counts."""
    if reasoning:
        thinking = replace(encoder, prompt=replace(encoder.prompt, user=encoder.prompt.reasoning))
        asker, tokens, read = thinking, inference.reasoning_tokens, final_letter
    else:
        asker, tokens, read = encoder, inference.max_new_tokens, parse_letter
    letters = processes.spread(questions, lambda mine: generate_answers(asker, mine, tokens, read))
    silent = sum(letter is None for letter in letters)
    log.info("generated text held no answer for %d of %d questions", silent, len(questions))
    if silent and inference.on_no_answer == "error":
        raise UserError(
            f"generated text held no answer for {silent} of {len(questions)} questions; "
            "use inference.on_no_answer=letters or inference=letters"
        )
    return [_generated(p, letter) for p, letter in zip(predictions, letters, strict=True)]


def _generated(prediction: Prediction, letter: str | None) -> Prediction:
    if letter is not None:
        return replace(prediction, answer=letter)
    flag = f"{prediction.flag} {NO_ANSWER}".strip()
    return replace(prediction, flag=flag)
