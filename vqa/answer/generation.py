"""Answers as generated text: slower and no better than letter probabilities, but some prompts need it."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vqa.model.encode import Encoder
from vqa.progress import progress
from vqa.question import Question

# A letter that stands alone, as in "c", "(c)", "C.", "정답: c"; the last one counts, after any reasoning.
ALONE = re.compile(r"(?<![A-Za-z])([a-dA-D])(?![A-Za-z])")
# After reasoning, a letter counts only where it is stated as the answer and ends its line: not "관찰: a ...".
FINAL = re.compile(
    r"(?:정답|답|[Aa]nswer)(?:은|는|\s+is)?\s*[:：]?\s*\(?([a-dA-D])\)?\s*(?:입니다)?[.。!]?\s*$",
    re.MULTILINE,
)
GENERATE_BATCH = 8


def parse_letter(text: str) -> str | None:
    """The letter a text answers with; None when it holds none. Never a default.

    >>> parse_letter("정답: (C)"), parse_letter("a cat"), parse_letter("dog")
    ('c', None, None)
    """
    text = text.strip()
    if re.fullmatch(r"\W*([a-dA-D])\W*", text):
        return re.sub(r"\W", "", text).lower()
    # "a" is also an English article: inside a sentence it must be marked as an option
    marked = re.findall(r"\(([a-dA-D])\)|(?:[:：]|답은?|answer is)\s*\(?([a-dA-D])(?![A-Za-z])", text)
    letters = [first or second for first, second in marked]
    letters += [m.group(1) for m in ALONE.finditer(text) if m.group(1) not in "aA"] if not letters else []
    return letters[-1].lower() if letters else None


def final_letter(text: str) -> str | None:
    """The last letter that a text of reasoning states as its answer; None when it was cut off before.

    >>> final_letter("A cat. Answer: c"), final_letter("관찰: a 보기"), final_letter("b")
    ('c', None, 'b')
    """
    if re.fullmatch(r"\W*([a-dA-D])\W*", text.strip()):
        return parse_letter(text)
    stated = FINAL.findall(text)
    return stated[-1].lower() if stated else None


def generate_answers(
    encoder: Encoder,
    model: Any,
    questions: Sequence[Question],
    max_new_tokens: int,
    read: Callable[[str], str | None] = parse_letter,
) -> list[str | None]:
    """Generate greedily and read the letter off.

    Args:
        encoder: Encodes questions.
        model: The base's model, or the PEFT model around it.
        questions: In any order.
        max_new_tokens: Per question.
        read: Text to letter.

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
            ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts = base.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        letters += [read(text) for text in texts]
        progress("generating", len(letters), len(questions))
    return letters
