"""Reading a letter off generated text."""

import pytest
import torch

from tests.conftest import Make
from vqa.answer.readout import final_letter, generate_answers, parse_letter
from vqa.model.adapter import attached
from vqa.model.encode import Encoder
from vqa.question import Question


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("c", "c"),
        (" B.", "b"),
        ("(d)", "d"),
        ("정답: (C)", "c"),
        ("정답은 b", "b"),
        ("The answer is d.", "d"),
        ("관찰: 개가 있다. 추론: (a)는 아니다. 최종 답: b", "b"),
        ("a cat sits on a mat", None),
        ("dog", None),
        ("", None),
        ("모르겠습니다", None),
    ],
)
def test_a_letter_is_read_and_never_made_up(text: str, letter: str | None) -> None:
    assert parse_letter(text, 4) == letter


def test_the_embedded_model_generates_letters(encoder: Encoder, questions: list[Question]) -> None:
    answers = generate_answers(encoder, questions[:10], max_new_tokens=2)
    assert len(answers) == 10
    assert set(answers) <= set("abcd")


def test_an_adapter_on_the_base_generates_as_pefts_model_around_it(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    asked = questions[:8]
    without = generate_answers(encoder, asked, max_new_tokens=2)
    with attached(encoder.base, settings().lora, seed=0) as model, torch.no_grad():
        model.eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        inputs = encoder.padded(asked)
        ids = model.generate(**inputs, max_new_tokens=2, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        texts = encoder.base.tokenizer.batch_decode(ids, skip_special_tokens=True)
        found = generate_answers(encoder, asked, max_new_tokens=2)
    assert found == [parse_letter(text, 4) for text in texts]
    assert found != without


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("It is round and red.\nAnswer: c", "c"),
        ("관찰: 개가 있다.\n정답: b", "b"),
        ("정답은 (D)입니다.", "d"),
        ("b", "b"),
        ("Answer: b\nNo, wait.\nThe answer is d.", "d"),
        ("Observation: a cat sits", None),
        ("Answer: a cat", None),
        ("관찰: 사진에는 (a)", None),  # cut off before the answer
        ("", None),
    ],
)
def test_reasoning_counts_only_with_a_stated_answer(text: str, letter: str | None) -> None:
    assert final_letter(text, 4) == letter
