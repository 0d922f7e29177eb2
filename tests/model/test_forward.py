"""Logits stand at the answer positions, whatever stands outside the row."""

from types import SimpleNamespace
from typing import Any

import torch

from tests.helpers.tiny_adapters import adapted, close, exactly
from tests.helpers.tiny_models import IMAGE, PAD, VOCAB, gradients, make_suffixes
from vqa.model.encode import Encoder
from vqa.model.forward import known_prefix, letter_logits, shared_prefix
from vqa.model.own_text import OwnText
from vqa.model.packing import pack
from vqa.question import Question


def test_there_is_one_row_of_logits_for_each_question(encoder: Encoder, questions: list[Question]) -> None:
    base = encoder.base
    with torch.no_grad():
        whole = letter_logits(base, encoder.batch(questions[:3]))
        alone = letter_logits(base, encoder.batch(questions[1:2]))
    assert whole.shape == (3, base.model.config.text_config.vocab_size)
    assert torch.allclose(whole[1], alone[0], atol=1e-4)


@exactly
def test_a_prefix_shared_by_micro_batches_gives_the_big_batchs_gradients(
    b_size: float, dtype: torch.dtype, tolerance: float
) -> None:
    model = adapted("qwen3_vl", 0, b_size, dtype)
    base: Any = SimpleNamespace(text=OwnText(model, None, torch.device("cpu")), device=torch.device("cpu"))
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
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert close(found, expected, tolerance)


def test_a_known_prefix_scores_as_the_whole_row(encoder: Encoder, questions: list[Question]) -> None:
    base = encoder.base
    known = known_prefix(base, encoder.prefix(questions[0]))
    with torch.no_grad():
        expected = letter_logits(base, encoder.batch(questions[:3]))
        found = letter_logits(base, encoder.batch(questions[:3], outside=True), known)
    assert torch.allclose(found, expected, atol=1e-4)
