"""Logits stand at the answer positions; the loss is cross-entropy on the letter's token."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_packing import IMAGE, LANGUAGE, PAD, VOCAB, gradients, make_suffixes, tiny_qwen3

from vqa.encode import Encoder
from vqa.forward import answer_loss, known_prefix, letter_logits, shared_prefix
from vqa.letters import LetterTokens
from vqa.packing import pack
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
        whole = letter_logits(base, encoder.batch(questions[:3]))
        alone = letter_logits(base, encoder.batch(questions[1:2]))
    assert whole.shape == (3, base.model.config.text_config.vocab_size)
    assert torch.allclose(whole[1], alone[0], atol=1e-4)


def test_a_prefix_shared_by_micro_batches_gives_the_big_batchs_gradients() -> None:
    torch.manual_seed(0)
    model = tiny_qwen3()
    model.requires_grad_(False)
    get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=LANGUAGE, init_lora_weights=False))
    base: Any = SimpleNamespace(model=model, device=torch.device("cpu"))
    prefix = torch.randint(20, VOCAB, (13,), generator=torch.Generator().manual_seed(2))
    suffixes = make_suffixes(model, [(2, 2, 5), (3, 2, 9), (2, 2, 4)])

    def loss(part: slice, known: Any = None) -> torch.Tensor:
        batch = pack(prefix, suffixes[part], IMAGE, PAD, base.device, outside=known is not None)
        return letter_logits(base, batch, known).square().sum()

    expected = gradients(model, loss(slice(0, 3)))
    model.zero_grad()
    with shared_prefix(base, prefix) as known:
        for part in (slice(0, 2), slice(2, 3)):
            loss(part, known).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            difference = torch.linalg.norm(parameter.grad - expected[name])
            assert difference <= 1e-5 * torch.linalg.norm(expected[name]), name


def test_a_known_prefix_scores_as_the_whole_row(encoder: Encoder, questions: list[Question]) -> None:
    base = encoder.base
    known = known_prefix(base, encoder.prefix(questions[0]))
    with torch.no_grad():
        expected = letter_logits(base, encoder.batch(questions[:3]))
        found = letter_logits(base, encoder.batch(questions[:3], outside=True), known)
    assert torch.allclose(found, expected, atol=1e-4)
