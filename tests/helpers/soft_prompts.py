"""How far a soft prompt's gradient may be from its float32 one."""

from dataclasses import dataclass
from typing import Any

import torch

from tests.helpers.tiny_adapters import adapted
from tests.helpers.tiny_models import IMAGE, PAD, VOCAB, Shapes, make_suffixes
from vqa.answer.adapt.prompt_methods import TOKENS, SoftPrompt
from vqa.model.decoder import answer_logits, prefix_key_values
from vqa.model.own_text import OwnText
from vqa.model.packing import Suffix, pack_prefix, pad

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

    In the geometric mean of eight random models, as in tests/model/test_decoder.py.
    """
    ratios = []
    for seed in range(8):
        exact = half_precision_gradient(CPU, torch.float32, False, seed)
        plain, ours = (
            half_precision_gradient(device, torch.bfloat16, way, seed) - exact for way in (False, True)
        )
        ratios.append(torch.linalg.norm(ours) / torch.linalg.norm(plain))
    assert torch.stack(ratios).log().mean().exp() <= 1.15
