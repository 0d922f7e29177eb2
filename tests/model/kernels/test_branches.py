"""Questions asked in several orders, picture shared: each order's logits are those it has alone."""

import pytest
import torch

from tests.helpers.tiny_adapters import adapted
from tests.helpers.tiny_models import END, FAMILIES, IMAGE, PAD, VOCAB, features
from vqa.model.decoder import answer_logits, prefix_key_values
from vqa.model.packing import Suffix, pack, pack_orders, pack_prefix

CPU = torch.device("cpu")
SHAPES = [(2, 2, 5), (3, 4, 3), (4, 2, 9)]  # rows, columns, tokens of the question


def asked(model: torch.nn.Module, pictures: int) -> list[list[Suffix]]:
    """Three questions in four orders: the pictures, the question, then the same options in another order."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for rows, columns, n in SHAPES:
        seen = tuple(features(model, rows, columns, generator) for _ in range(pictures))
        picture = torch.tensor([END, *[IMAGE] * (rows * columns)] * pictures, dtype=torch.long)[1:]
        text = torch.randint(20, VOCAB, (n,), generator=generator)
        options = torch.randint(20, VOCAB, (4, 3), generator=generator)
        orders = [torch.cat([picture, text, options.roll(k, 0).flatten()[: 12 - k % 2]]) for k in range(4)]
        made.append([Suffix(ids, seen, k, 4) for k, ids in enumerate(orders)])
    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pictures", [0, 1, 3])
@pytest.mark.parametrize("outside", [False, True], ids=["prefix inside", "prefix outside"])
def test_shared_pictures_give_every_order_the_logits_it_has_alone(
    family: str, pictures: int, outside: bool
) -> None:
    model = adapted(family)
    questions = asked(model, pictures)
    prefix = torch.randint(20, VOCAB, (13,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        alone = [
            answer_logits(model, pack(prefix, [suffix], IMAGE, PAD, CPU).row)
            for suffixes in questions
            for suffix in suffixes
        ]
        known = prefix_key_values(model, pack_prefix(prefix, CPU)) if outside else None
        batch = pack_orders(prefix, questions, IMAGE, CPU, outside)
        found = answer_logits(model, batch.row, known)
    assert torch.allclose(found, torch.cat(alone), atol=1e-5)
    assert batch.targets.tolist() == [0, 1, 2, 3] * len(SHAPES)
    repeated = sum(len(suffix.ids) for suffixes in questions for suffix in suffixes)
    assert len(batch.row.ids) < repeated  # the pictures stand once
