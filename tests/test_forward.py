"""Logits stand at the answer positions; the loss is cross-entropy on the letter's token."""

import pytest
import torch

from vqa.encode import Encoder
from vqa.forward import answer_loss, letter_logits
from vqa.letters import LetterTokens
from vqa.question import Question

LETTERS = LetterTokens(answer=(11, 3, 7, 5), spellings=((11, 3, 7, 5), (1, 2, 4, 6)))


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, 20, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_cross_entropy_on_the_letters_token(logits: torch.Tensor) -> None:
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    tokens = torch.tensor([11, 3, 7, 5, 11, 3])
    expected = torch.nn.CrossEntropyLoss(reduction="sum")(logits, tokens)
    assert answer_loss(logits, targets, LETTERS).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_sums_over_questions(logits: torch.Tensor) -> None:
    targets = torch.tensor([3, 2, 1, 0, 3, 2])
    parts = [answer_loss(logits[i : i + 1], targets[i : i + 1], LETTERS) for i in range(6)]
    assert answer_loss(logits, targets, LETTERS).item() == pytest.approx(sum(p.item() for p in parts))


def test_half_precision_logits_are_summed_in_float32(logits: torch.Tensor) -> None:
    targets = torch.zeros(6, dtype=torch.long)
    loss = answer_loss(logits.bfloat16(), targets, LETTERS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(answer_loss(logits.bfloat16().float(), targets, LETTERS).item())


def test_there_is_one_row_of_logits_for_each_question(encoder: Encoder, questions: list[Question]) -> None:
    base = encoder.base
    with torch.no_grad():
        whole = letter_logits(base, base.model, encoder.batch(questions[:3]))
        alone = letter_logits(base, base.model, encoder.batch(questions[1:2]))
    assert whole.shape == (3, base.model.config.text_config.vocab_size)
    assert torch.allclose(whole[1], alone[0], atol=1e-4)
