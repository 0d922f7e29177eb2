"""A soft prompt that is untouched is the frozen model; its gradient is that of transformers' own forward."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import Make
from test_decoder import adapted, exactly
from test_packing import FAMILIES, IMAGE, PAD, VOCAB, Shapes, make_suffixes

from vqa.decoder import Recompute, SoftTokens, answer_logits, early_states, prefix_key_values
from vqa.encode import Encoder
from vqa.own_text import OwnText
from vqa.packing import Suffix, pack, pack_prefix, pad
from vqa.question import Question
from vqa.scoring import option_scores
from vqa.soft_prompt import TOKENS, SoftPrompt

CPU = torch.device("cpu")
SHAPES: Shapes = [(2, 2, 5), (3, 2, 9), (2, 2, 4)]
LONG = torch.randint(20, VOCAB, (40,), generator=torch.Generator().manual_seed(2))


def shifted(suffixes: list[Suffix], generator: int = 3) -> torch.Tensor:
    """One shift (K, C) per suffix, as large as embeddings."""
    shift = torch.randn(len(suffixes), TOKENS, 48, generator=torch.Generator().manual_seed(generator))
    return (0.02 * shift).requires_grad_()


@dataclass
class FakeBase:
    """What a soft prompt needs of a base, around a randomly initialised model."""

    model: Any
    image_token: int = IMAGE

    @property
    def device(self) -> torch.device:
        return self.model.device  # type: ignore[no-any-return]

    @property
    def text(self) -> OwnText:
        return OwnText(self.model, self.tokenizer, self.device)

    @property
    def tokenizer(self) -> Any:
        return type("Tokenizer", (), {"pad_token_id": PAD})


def made(model: Any, prefix: torch.Tensor, outside: bool) -> SoftPrompt:
    """A soft prompt on the last tokens of any prefix."""
    soft = SoftPrompt.__new__(SoftPrompt)
    soft.base = FakeBase(model)  # type: ignore[assignment]
    soft.fixed, soft.soft = prefix[:-TOKENS], prefix[-TOKENS:]
    with torch.no_grad():
        known = pack_prefix(soft.fixed, model.device)
        soft.known = prefix_key_values(model, known) if outside else None
    return soft


def reference(model: Any, prefix: torch.Tensor, suffixes: list[Suffix], shift: torch.Tensor) -> Any:
    """transformers' own padded forward over embeddings that the shift is added to."""
    plain = pad(prefix, suffixes, IMAGE, PAD, model.device)
    ids, P = plain.pop("input_ids"), len(prefix)
    embedded = model.model.language_model.embed_tokens(ids)
    begin = ids.shape[1] - P - torch.tensor([len(s.ids) for s in suffixes])
    rows = []
    for row, first in enumerate((begin + P - TOKENS).tolist()):
        parts = [embedded[row, :first], embedded[row, first : first + TOKENS] + shift[row]]
        rows.append(torch.cat([*parts, embedded[row, first + TOKENS :]]))
    positions, _ = model.model.get_rope_index(
        ids,
        mm_token_type_ids=plain["mm_token_type_ids"],
        image_grid_thw=plain["image_grid_thw"],
        attention_mask=plain["attention_mask"],
    )
    out = model(inputs_embeds=torch.stack(rows), position_ids=positions, use_cache=False, **plain)
    return out.logits[:, -1]


@exactly
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("tokens", "outside"), [(4, False), (6, False), (40, False), (40, True)])
@pytest.mark.parametrize("recompute", ["nothing", "layer"])
def test_gradient_is_that_of_the_padded_batch(
    family: str,
    tokens: int,
    outside: bool,
    recompute: Recompute,
    b_size: float,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = adapted(family, 0, b_size, dtype)
    model.requires_grad_(False)
    suffixes, prefix = make_suffixes(model, SHAPES), LONG[:tokens]
    shift = shifted(suffixes).detach().to(dtype).requires_grad_()
    logits = reference(model, prefix, suffixes, shift)
    (expected,) = torch.autograd.grad(logits.square().sum(), shift)
    soft = made(model, prefix, outside)
    found = answer_logits(model, soft.row(suffixes, shift), soft.known, recompute)
    (gradient,) = torch.autograd.grad(found.square().sum(), shift)
    assert torch.allclose(found, logits, rtol=0, atol=tolerance)
    assert torch.linalg.norm(gradient - expected) <= tolerance * torch.linalg.norm(expected)


def half_precision_gradient(device: torch.device, dtype: torch.dtype, ours: bool, seed: int) -> torch.Tensor:
    """By the shift, on the CPU; not ours: transformers' own forward."""
    model = adapted("qwen3_vl", seed, b_size=0.1)
    model.requires_grad_(False)
    suffixes = make_suffixes(model, SHAPES)
    shift = shifted(suffixes).detach().to(device).requires_grad_()
    for parameter in model.parameters():
        # adapters too: ours are multiplied in the base's type wherever they are kept, PEFT's in their own
        parameter.data = parameter.data.to(device, dtype)
    model.model.language_model.rotary_emb.to(device)
    if ours:
        soft = made(model, LONG, True)
        logits = answer_logits(model, soft.row(suffixes, shift), soft.known, "layer")
    else:
        logits = reference(model, LONG, suffixes, shift.to(dtype))
    (gradient,) = torch.autograd.grad(logits.float().square().mean(), shift)
    return gradient.cpu().double()


def check_distance_of_gradient(device: torch.device) -> None:
    """Half precision rounds; ours may round no further from float32 than the padded batch does.

    In the geometric mean of eight random models, as in tests/test_decoder.py.
    """
    ratios = []
    for seed in range(8):
        exact = half_precision_gradient(CPU, torch.float32, False, seed)
        plain, ours = (
            half_precision_gradient(device, torch.bfloat16, way, seed) - exact for way in (False, True)
        )
        ratios.append(torch.linalg.norm(ours) / torch.linalg.norm(plain))
    assert torch.stack(ratios).log().mean().exp() <= 1.15


def test_a_bfloat16_gradient_is_as_near_to_float32_as_transformers_own() -> None:
    check_distance_of_gradient(CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_could_be_trained_get_no_gradient(family: str) -> None:
    model = adapted(family)
    suffixes = make_suffixes(model, SHAPES)
    shift = shifted(suffixes)
    soft = made(model, LONG[:6], False)
    torch.autograd.grad(answer_logits(model, soft.row(suffixes, shift)).sum(), shift)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_one_shift_for_all_collects_the_gradients_of_each(family: str) -> None:
    model = adapted(family)
    suffixes = make_suffixes(model, SHAPES)
    soft = made(model, LONG[:6], False)
    one = shifted(suffixes)[0].detach().requires_grad_()
    each = one.detach().expand(len(suffixes), -1, -1).clone().requires_grad_()
    (found,) = torch.autograd.grad(answer_logits(model, soft.row(suffixes, one)).square().sum(), one)
    (parts,) = torch.autograd.grad(answer_logits(model, soft.row(suffixes, each)).square().sum(), each)
    assert torch.allclose(found, parts.sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untouched_prompt_changes_no_bit(family: str) -> None:
    model = adapted(family)
    suffixes = make_suffixes(model, SHAPES)
    soft = made(model, LONG, True)
    row = soft.row(suffixes, torch.zeros(TOKENS, 48))
    with torch.no_grad():
        found = answer_logits(model, row, soft.known)
        assert torch.equal(found, answer_logits(model, replace(row, soft=None), soft.known))


@pytest.mark.parametrize("family", FAMILIES)
def test_early_states_are_those_that_transformers_passes_on(family: str) -> None:
    model = adapted(family)
    suffixes = make_suffixes(model, SHAPES)
    plain = pad(LONG, suffixes, IMAGE, PAD, CPU)
    with torch.no_grad():
        states = model(**plain, use_cache=False, output_hidden_states=True).hidden_states
        row = pack(LONG, suffixes, IMAGE, PAD, CPU).row
        found = early_states(model, row, 2)
    visual = plain["input_ids"] == IMAGE
    taps = row.features.deepstack if row.features else ()
    assert len(found) == 2
    for i, state in enumerate(found):
        # transformers notes a layer's output before DeepStack is added to it
        expected = states[i + 1][visual] + (taps[i] if i < len(taps) else 0)
        assert torch.allclose(state, expected, atol=1e-5)


def test_only_a_prompt_before_the_picture_moves_visual_tokens() -> None:
    model = adapted("qwen3_vl")
    suffixes = make_suffixes(model, SHAPES)
    soft = made(model, LONG, True)
    row = soft.row(suffixes, shifted(suffixes))
    assert row.answers is not None
    behind = SoftTokens(row.answers, 0.02 * torch.ones(len(suffixes), 48))
    with torch.no_grad():
        still, moved, after = (
            early_states(model, replace(row, soft=way), 2, soft.known)[-1] for way in (None, row.soft, behind)
        )
    assert torch.equal(still, after)
    assert (still - moved).abs().max() > 1e-4


@pytest.mark.parametrize("prompt", ["direct_en", "fewshot_ko"])
def test_answers_of_an_untouched_prompt_are_the_frozen_ones(
    prompt: str, encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    asking = replace(encoder, prompt=settings(f"prompt={prompt}").prompt)
    part = questions[:6]
    soft = SoftPrompt(asking, part[0])
    assert (soft.known is not None) == (prompt == "fewshot_ko")
    log_p, log_mass = soft.ask(asking.suffixes(part), soft.untouched(), 4)
    expected, mass = option_scores(asking, part, 6)
    assert torch.allclose(log_p.double(), expected[:, 0], atol=1e-5)
    assert torch.allclose(log_mass, mass[:, 0], atol=1e-5)


class SmallDevice(SoftPrompt):
    """Has room for two questions."""

    def row(self, suffixes: Any, shift: torch.Tensor) -> Any:
        if len(suffixes) > 2:
            raise torch.OutOfMemoryError
        return super().row(suffixes, shift)


def test_what_does_not_fit_is_asked_in_halves(encoder: Encoder, questions: list[Question]) -> None:
    suffixes = encoder.suffixes(questions[:7])
    plain, small = SoftPrompt(encoder, questions[0]), SmallDevice(encoder, questions[0])
    shift = torch.randn(7, *plain.untouched().shape, generator=torch.Generator().manual_seed(0)) * 0.1
    expected, found = plain.ask(suffixes, shift, 7)[0], small.ask(suffixes, shift, 7)[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - plain.ask(suffixes, plain.untouched(), 7)[0]).abs().max() > 1e-3
