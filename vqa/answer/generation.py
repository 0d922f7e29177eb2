"""Answers as generated text: slower and no better than letter probabilities, but some prompts need it."""

import re
from collections.abc import Callable, Sequence

import torch

from vqa.model.encode import Encoder
from vqa.progress import progress
from vqa.question import Question, letters_of

# A letter that stands alone, as in "c", "(c)", "C.", "정답: c"; the last one counts, after any reasoning.
ALONE = r"(?<![A-Za-z])({letter})(?![A-Za-z])"
ONLY = r"\W*({letter})\W*"
MARKED = r"\(({letter})\)|(?:[:：]|답은?|answer is)\s*\(?({letter})(?![A-Za-z])"
# After reasoning, a letter counts only where it is stated as the answer and ends its line: not "관찰: a ...".
FINAL = r"(?:정답|답|[Aa]nswer)(?:은|는|\s+is)?\s*[:：]?\s*\(?({letter})\)?\s*(?:입니다)?[.。!]?\s*$"
GENERATE_BATCH = 8


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
