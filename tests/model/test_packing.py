"""The packed row gives exactly what padded rows give: loss and every adapter gradient, both families."""

from typing import Any

import pytest
import torch

from tests.helpers.tiny_models import (
    END,
    FAMILIES,
    IMAGE,
    PAD,
    START,
    TEXT,
    Shapes,
    gradients,
    keep_norms_in_own_type,
    trained_case,
)
from vqa.model.decoder import answer_logits
from vqa.model.packing import Suffix, pack, pad, suffix_positions

CASES = {
    "equal lengths": [(2, 2, 5), (2, 2, 5), (2, 2, 5)],
    "nearly equal texts": [(2, 2, 15), (2, 2, 16), (2, 2, 14)],
    "unequal texts": [(2, 2, 5), (2, 2, 11), (2, 2, 3)],
    "unequal pictures": [(2, 2, 5), (3, 4, 7), (4, 2, 5), (2, 5, 4)],
    "a question without its picture": [(2, 3, 5), None, (4, 2, 9)],
    "one question": [(3, 3, 6)],
    "two pictures each": [(2, 2, 3, 4, 5), (4, 2, 2, 2, 7), (3, 3, 2, 5, 4)],
    "none, one, two and three pictures": [None, (2, 3, 5), (2, 2, 3, 4, 9), (4, 2, 2, 2, 2, 5, 3)],
}


def check_packed_equals_padded(
    base: Any, model: Any, prefix: torch.Tensor, suffixes: list[Suffix], tolerance: float
) -> None:
    """Loss and each adapter gradient of one step, relative."""
    targets = torch.tensor([s.target for s in suffixes]) + 30

    plain = pad(prefix, suffixes, IMAGE, PAD, torch.device("cpu"))
    logits = model(**plain, use_cache=False).logits[:, -1]
    reference_loss = torch.nn.functional.cross_entropy(logits, targets)
    reference = gradients(model, reference_loss)

    packed = pack(prefix, suffixes, IMAGE, PAD, torch.device("cpu"))
    logits = answer_logits(base, packed.row)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    found = gradients(model, loss)

    assert loss.item() == pytest.approx(reference_loss.item(), rel=tolerance)
    assert found.keys() == reference.keys()
    assert len(found) == 2 * 7 * TEXT["num_hidden_layers"]  # A and B of every linear layer
    for name, gradient in reference.items():
        error = torch.linalg.norm(found[name] - gradient)
        assert error <= tolerance * torch.linalg.norm(gradient), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("prefix_tokens", [2, 13])
def test_packed_loss_and_gradients_equal_the_padded_batch(
    family: str, shapes: Shapes, prefix_tokens: int
) -> None:
    check_packed_equals_padded(*trained_case(family, shapes, prefix_tokens), tolerance=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("prefix_tokens", [2, 13])
def test_in_float64_packed_and_padded_differ_by_nothing_but_its_rounding(
    family: str, shapes: Shapes, prefix_tokens: int
) -> None:
    case = trained_case(family, shapes, prefix_tokens, b_size=1.0, dtype=torch.float64)
    keep_norms_in_own_type(case[0])
    check_packed_equals_padded(*case, tolerance=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_those_of_transformers(family: str) -> None:
    model = FAMILIES[family]()
    ids = torch.cat([torch.tensor([30, START]), torch.full((12,), IMAGE), torch.tensor([END, 31, 32])])
    prefix = torch.arange(40, 45)
    whole = torch.cat([prefix, ids])[None]
    expected, _ = model.model.get_rope_index(
        whole, mm_token_type_ids=(whole == IMAGE).int(), image_grid_thw=torch.tensor([[1, 6, 8]])
    )
    assert torch.equal(suffix_positions(ids, IMAGE, [(3, 4)], len(prefix)), expected[:, 0, len(prefix) :])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("between", [[END, START], [END, 33, 34, START], [31]])
def test_positions_of_several_pictures_are_those_of_transformers(family: str, between: list[int]) -> None:
    model = FAMILIES[family]()
    grids = [(3, 4), (2, 2), (1, 5)]
    ids = [30, START]
    for rows, columns in grids:
        ids += [IMAGE] * (rows * columns) + between
    ids += [35, 36]
    prefix = torch.arange(40, 45)
    whole = torch.cat([prefix, torch.tensor(ids)])[None]
    expected, _ = model.model.get_rope_index(
        whole,
        mm_token_type_ids=(whole == IMAGE).int(),
        image_grid_thw=torch.tensor([[1, rows * 2, columns * 2] for rows, columns in grids]),
    )
    found = suffix_positions(torch.tensor(ids), IMAGE, grids, len(prefix))
    assert torch.equal(found, expected[:, 0, len(prefix) :])


def test_a_grid_that_does_not_match_the_placeholders_is_refused() -> None:
    with pytest.raises(ValueError, match=r"suffix must hold 6 image tokens for grids \[\(2, 3\)\], got 2"):
        suffix_positions(torch.tensor([START, IMAGE, IMAGE, END]), IMAGE, [(2, 3)], 0)
