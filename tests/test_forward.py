"""Logits stand at the answer positions, whatever stands outside the row."""

from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from test_packing import IMAGE, LANGUAGE, PAD, VOCAB, gradients, make_suffixes, tiny_qwen3

from vqa.encode import Encoder
from vqa.forward import known_prefix, letter_logits, shared_prefix
from vqa.packing import pack
from vqa.question import Question


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
