"""Every suffix sees the prefix and itself, nothing else."""

import pytest
import torch
import torch.nn.functional as F

from vqa.model.kernels.attention import LayerTree, attend
from vqa.model.kernels.tree import tree_layout

CPU = torch.device("cpu")


def tree_mask(prefix: int, lengths: list[int]) -> torch.Tensor:
    """(T, T), true where a row's token may look, written down from the definition."""
    parts = torch.cat([torch.zeros(prefix), *(torch.full((n,), i + 1.0) for i, n in enumerate(lengths))])
    own = (parts[:, None] == parts) | (parts == 0)
    return own & torch.ones(len(parts), len(parts), dtype=torch.bool).tril()


@pytest.mark.parametrize("lengths", [[2, 4, 1], [3, 3], [5]])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_result_is_that_of_one_masked_attention(lengths: list[int], groups: int) -> None:
    prefix, heads, width = 3, 4, 8
    generator = torch.Generator().manual_seed(0)

    def random(rows: int) -> torch.Tensor:
        return torch.randn(1, rows, prefix + sum(lengths), width, generator=generator)

    query, key, value = random(heads), random(heads // groups), random(heads // groups)
    tree = LayerTree(tree_layout(prefix, lengths, CPU))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    found = attend(q, k, v, 0.3, tree)
    expected = F.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, dim=1),
        value.repeat_interleave(groups, dim=1),
        attn_mask=tree_mask(prefix, lengths),
        scale=0.3,
    )
    assert torch.allclose(found, expected[0].transpose(0, 1), atol=1e-6)


@pytest.mark.parametrize("lengths", [[2, 4, 1], [3, 3]])
def test_a_prefix_outside_the_row_is_seen_as_one_inside(lengths: list[int]) -> None:
    prefix, heads, width = 5, 2, 8
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(prefix + sum(lengths), heads, width, generator=generator) for _ in range(3))
    inside = attend(q, k, v, 0.3, LayerTree(tree_layout(prefix, lengths, CPU)))
    head = LayerTree(tree_layout(prefix, [], CPU))
    alone = attend(q[:prefix], k[:prefix], v[:prefix], 0.3, head)
    rest = LayerTree(tree_layout(0, lengths, CPU, outside=prefix), outside=(k[:prefix], v[:prefix]))
    found = torch.cat([alone, attend(q[prefix:], k[prefix:], v[prefix:], 0.3, rest)])
    assert torch.allclose(found, inside, atol=1e-6)
