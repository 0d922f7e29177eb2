"""Questions as text."""

from dataclasses import replace

import pytest

from tests.conftest import Make
from vqa.errors import UserError
from vqa.model.base import Base
from vqa.model.encode import Encoder
from vqa.model.prompt import render, user_text
from vqa.question import Question

QUESTION = Question("1", None, "", "무엇인가요? {x}", ("개", "고양이", "새", "말"), "a")


def test_options_stand_in_the_given_order(settings: Make) -> None:
    text = user_text(settings().prompt, QUESTION, (2, 0, 3, 1))
    assert "(a) 새\n(b) 개\n(c) 말\n(d) 고양이" in text
    assert "{x}" in text  # braces of a question are not a field


def test_a_template_with_a_field_of_its_own_is_refused(settings: Make) -> None:
    prompt = replace(settings().prompt, user="{question} {a} {b} {c} {d} {e}")
    with pytest.raises(UserError, match=r"prompt.user has a field that is none of"):
        user_text(prompt, QUESTION, (0, 1, 2, 3))


@pytest.mark.parametrize("name", ["direct_en", "direct_ko", "fewshot_ko"])
def test_prefix_and_suffix_tokens_are_those_of_the_whole_text(name: str, base: Base, settings: Make) -> None:
    rendered = render(base.tokenizer, settings(f"prompt={name}").prompt, QUESTION, (0, 1, 2, 3))
    assert base.ids(rendered.prefix) + base.ids(rendered.suffix) == base.ids(
        rendered.prefix + rendered.suffix
    )
    assert rendered.suffix.endswith("assistant\n")


def test_the_prefix_is_the_same_for_every_question(encoder: Encoder, questions: list[Question]) -> None:
    assert len({tuple(encoder.prefix(q).tolist()) for q in questions}) == 1


def test_the_worked_examples_do_not_all_have_the_same_answer(settings: Make) -> None:
    system = settings("prompt=fewshot_ko").prompt.system
    answers = [line.split(": ")[1] for line in system.splitlines() if line.startswith("최종 답: ")]
    assert answers == ["c", "a", "d"]
