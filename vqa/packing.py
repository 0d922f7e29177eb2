"""Batches: encoded questions laid out as one row with a shared prefix, or as plain padded rows.

Notation: P prefix tokens, B questions, S suffix tokens, T tokens of the whole row.
"""

from dataclasses import dataclass
from typing import Any

import torch

from vqa.attention import TreeLayout, tree_layout
from vqa.vision import VisionFeatures, join_features

MAX_FILL = 1.15  # fill up and repeat while that adds at most 15 % tokens each


@dataclass(frozen=True)
class Suffix:
    """One encoded question.

    Args:
        ids: (S,) token ids; a picture holds one image token per visual token.
        features: What the vision tower made of the picture; None without a picture.
        target: Index of the gold choice's letter (0..3), -1 when unknown.
    """

    ids: torch.Tensor
    features: VisionFeatures | None
    target: int


@dataclass(frozen=True)
class PackedBatch:
    """One row: the prefix once, then every suffix.

    Args:
        input_ids: (1, T); T = P + suffixes, as laid out.
        position_ids: (3, 1, T), temporal, height, width.
        answers: (B,) place of each suffix's last token, whose logits predict the letter.
        tree: Who sees whom.
        encoded: The pictures of the batch as the model's `mm_encoder_outputs`; None without any.
        targets: (B,).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    answers: torch.Tensor
    tree: TreeLayout
    encoded: dict[str, Any] | None
    targets: torch.Tensor


def suffix_positions(
    ids: torch.Tensor, image_token: int, grid: tuple[int, int] | None, start: int
) -> torch.Tensor:
    """Multimodal rotary positions of one suffix.

    Text counts on by one. The picture's tokens share the temporal position `start of the picture` and add
    their row and column; the text after it goes on from the larger side.

    Args:
        ids: (S,).
        image_token: Id of the placeholder.
        grid: Rows and columns of visual tokens; None without a picture.
        start: First position, P.

    Returns:
        (3, S). Source: Qwen2-VL paper, section 2.1, as in transformers' get_rope_index.

    Raises:
        ValueError: The number of placeholders is not that of the grid.
    """
    S = len(ids)
    first = int((ids == image_token).int().argmax()) if grid else S
    rows, columns = grid or (0, 0)
    n = rows * columns
    if int((ids == image_token).sum()) != n:
        raise ValueError(
            f"suffix must hold {n} image tokens for grid {grid}, got {int((ids == image_token).sum())}"
        )
    before = torch.arange(first).expand(3, -1)
    cells = torch.arange(n)
    row, column = cells // max(columns, 1), cells % max(columns, 1)
    picture = torch.stack([torch.zeros_like(cells), row, column]) + first
    after = (torch.arange(S - first - n) + first + max(rows, columns)).expand(3, -1)
    return torch.cat([before, picture, after], dim=1) + start


def pack(
    prefix: torch.Tensor, suffixes: list[Suffix], image_token: int, pad_token: int, device: torch.device
) -> PackedBatch:
    """Lay out a micro-batch as one row.

    Suffixes of nearly the same length are filled up to the longest, and a prefix of a few tokens is repeated
    in every suffix: both cost less than gathering and joining in every layer. Neither changes the result.

    Args:
        prefix: (P,) ids that all questions share.
        suffixes: The questions.
        image_token: Id of the placeholder.
        pad_token: Id to fill up with.
        device: Where the tensors go.
    """
    rows = [s.ids for s in suffixes]
    if len(prefix) * (len(rows) - 1) <= (MAX_FILL - 1) * sum(map(len, rows)):
        rows, prefix = [torch.cat([prefix, ids]) for ids in rows], prefix[:0]
    P = len(prefix)
    true_lengths = torch.tensor([len(ids) for ids in rows])
    S = int(true_lengths.max())
    fill = len(rows) * S <= MAX_FILL * int(true_lengths.sum())
    lengths = [S] * len(rows) if fill else true_lengths.tolist()
    ids, positions = [prefix], [torch.arange(P).expand(3, -1)]
    for row, suffix, length in zip(rows, suffixes, lengths, strict=True):
        grid = suffix.features.grid if suffix.features else None
        missing = length - len(row)
        ids.append(torch.nn.functional.pad(row, (0, missing), value=pad_token))
        found = suffix_positions(row, image_token, grid, P)
        positions.append(torch.nn.functional.pad(found, (0, missing), value=P))
    starts = P + torch.cumsum(torch.tensor(lengths), 0) - torch.tensor(lengths)
    return PackedBatch(
        input_ids=torch.cat(ids)[None].to(device),
        position_ids=torch.cat(positions, dim=1)[:, None].to(device),
        answers=(starts + true_lengths - 1).to(device),
        tree=tree_layout(P, lengths, device),
        encoded=join_features([s.features for s in suffixes if s.features], device),
        targets=torch.tensor([s.target for s in suffixes], device=device),
    )


def pad(
    prefix: torch.Tensor, suffixes: list[Suffix], image_token: int, pad_token: int, device: torch.device
) -> dict[str, Any]:
    """Lay out the same micro-batch as plain left-padded rows, the model's ordinary inputs.

    The reference that packing is tested against, and what text generation uses.

    Returns:
        input_ids, attention_mask, mm_token_type_ids: (B, P + S); image_grid_thw: (pictures, 3), in patches;
        mm_encoder_outputs.
    """
    S = max(len(s.ids) for s in suffixes)
    ids = torch.full((len(suffixes), len(prefix) + S), pad_token)
    mask = torch.zeros_like(ids)
    for row, suffix in enumerate(suffixes):
        n = len(prefix) + len(suffix.ids)
        ids[row, -n:] = torch.cat([prefix, suffix.ids])
        mask[row, -n:] = 1
    features = [s.features for s in suffixes if s.features]
    inputs: dict[str, Any] = {
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "mm_token_type_ids": (ids == image_token).int().to(device),
    }
    if features:
        inputs["image_grid_thw"] = torch.tensor([f.grid_thw for f in features], device=device)
        inputs["mm_encoder_outputs"] = join_features(features, device)
    return inputs
