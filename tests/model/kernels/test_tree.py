"""Where prefix and suffixes lie in a row."""

import torch

from vqa.model.kernels.tree import tree_layout

CPU = torch.device("cpu")


def test_suffixes_are_gathered_into_a_grid_and_scattered_back() -> None:
    tree = tree_layout(3, [2, 4, 1], CPU)
    assert tree.gather.tolist() == [[0, 1, 0, 0], [2, 3, 4, 5], [6, 0, 0, 0]]
    assert tree.scatter.tolist() == [0, 1, 4, 5, 6, 7, 8]
    assert (tree.prefix, tree.even) == (3, False)
    tokens = torch.arange(7) * 10
    assert torch.equal(tokens[tree.gather].flatten()[tree.scatter], tokens)


def test_equal_suffixes_need_no_gathering() -> None:
    tree = tree_layout(5, [3, 3], CPU)
    assert tree.even
    assert tree.gather.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tree.scatter.tolist() == list(range(6))


def test_ends_are_counted_after_the_prefix_and_a_prefix_outside_is_known() -> None:
    tree = tree_layout(0, [2, 4, 1], CPU, outside=9)
    assert tree.ends.tolist() == [0, 2, 6, 7]
    assert (tree.prefix, tree.before, tree.longest) == (0, 9, 4)
    assert [part.tolist() for part in tree.whole] == [[0, 9], [0, 7]]
