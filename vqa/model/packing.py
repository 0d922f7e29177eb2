"""Batches: encoded questions laid out as one row with a shared prefix, or as plain padded rows.

Notation: P prefix tokens, B questions, S suffix tokens, T tokens of the whole row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vqa.machine.device import to_device
from vqa.model.decoder import Row
from vqa.model.kernels.tree import branch_layout, tree_layout
from vqa.model.vision.features import VisionFeatures, encoder_outputs, join_features

MAX_FILL = 1.15  # fill up and repeat while that adds at most 15 % tokens each


@dataclass(frozen=True)
class Suffix:
    """One encoded question.

    Args:
        ids: (S,) token ids; a picture holds one image token per visual token.
        features: What the vision tower made of each picture, in the order of their tokens.
        target: Index of the gold choice's letter, -1 when unknown.
        options: Number of options, 2 to 6.
    """

    ids: torch.Tensor
    features: tuple[VisionFeatures, ...]
    target: int
    options: int


def features_of(suffixes: Sequence[Suffix]) -> list[VisionFeatures]:
    """Those of all their pictures, in the order of the questions and of each one's pictures."""
    return [features for suffix in suffixes for features in suffix.features]


@dataclass(frozen=True)
class Conversation:
    """The tokens that a batch of whole conversations teaches, for the places in `Row.answers`.

    Args:
        labels: (N,) the token that follows each place.
        weights: (N,) in how many conversations it does.
        tokens: Sum of the weights.
    """

    labels: torch.Tensor
    weights: torch.Tensor
    tokens: int


@dataclass(frozen=True)
class PackedBatch:
    """Questions laid out as one row: the prefix once, unless it stands outside, then every suffix.

    Args:
        row: What goes into the language model.
        targets: (B,) index of each gold choice's letter, -1 when unknown.
        options: Number of options of each question.
        conversation: What every token teaches; None: only the answers are asked for.
    """

    row: Row
    targets: torch.Tensor
    options: Sequence[int]
    conversation: Conversation | None = None


def suffix_positions(
    ids: torch.Tensor, image_token: int, grids: Sequence[tuple[int, int]], start: int
) -> torch.Tensor:
    """Multimodal rotary positions of one suffix.

    Text counts on by one. A picture's tokens share the temporal position `start of the picture` and add
    their row and column; what comes after it goes on from the larger side.

    Args:
        ids: (S,).
        image_token: Id of the placeholder.
        grids: Rows and columns of visual tokens of each picture, in the order of their tokens.
        start: First position, P.

    Returns:
        (3, S). Source: Qwen2-VL paper, section 2.1, as in transformers' get_rope_index.

    Raises:
        ValueError: The number of placeholders is not that of the grids.
    """
    places = (ids == image_token).nonzero().flatten().tolist()
    if len(places) != sum(rows * columns for rows, columns in grids):
        wanted = sum(rows * columns for rows, columns in grids)
        raise ValueError(f"suffix must hold {wanted} image tokens for grids {list(grids)}, got {len(places)}")
    parts, done, position = [], 0, start  # tokens before `done` have their positions, up to `position`
    for rows, columns in grids:
        first, n = places[0], rows * columns
        places = places[n:]
        parts.append((torch.arange(first - done) + position).expand(3, -1))
        position += first - done
        cells = torch.arange(n)
        parts.append(torch.stack([torch.zeros_like(cells), cells // columns, cells % columns]) + position)
        done, position = first + n, position + max(rows, columns)
    parts.append((torch.arange(len(ids) - done) + position).expand(3, -1))
    return torch.cat(parts, dim=1)


def _positions(suffix: Suffix, ids: torch.Tensor, image_token: int, start: int, flat: bool) -> torch.Tensor:
    """(3, S), or (1, S) where pictures count on as text does."""
    if flat:
        return torch.arange(start, start + len(ids))[None]
    return suffix_positions(ids, image_token, [f.grid for f in suffix.features], start)


def is_short(prefix: torch.Tensor, suffixes: Sequence[Suffix]) -> bool:
    """Whether repeating the prefix in every suffix costs less than sharing it."""
    repeated = len(prefix) * (len(suffixes) - 1)
    return repeated <= (MAX_FILL - 1) * sum(len(s.ids) for s in suffixes)


def pack(
    prefix: torch.Tensor,
    suffixes: Sequence[Suffix],
    image_token: int,
    pad_token: int,
    device: torch.device,
    outside: bool = False,
    conversation: bool = False,
    flat: bool = False,
) -> PackedBatch:
    """Lay out a micro-batch as one row.

    Suffixes of nearly the same length are filled up where attention works on a padded grid (CPU), and
    a prefix of a few tokens is repeated in every suffix: both cost less than gathering and joining in every
    layer. Neither changes the result.

    Args:
        prefix: (P,) ids that all questions share.
        suffixes: The questions.
        image_token: Id of the placeholder.
        pad_token: Id to fill up with.
        device: Where the tensors go.
        outside: The prefix was computed before: it is left out of the row, the positions go on after it.
        conversation: The suffixes end with answer and end of turn, and every token is taught, not the
            answers alone; needs the prefix in the row.
        flat: Positions only count on, also over a picture.
    """
    if conversation and outside:
        raise ValueError("whole conversations need their prefix in the row, got outside=True")
    rows = [s.ids for s in suffixes]
    start = len(prefix)
    if outside:
        prefix = prefix[:0]
    elif is_short(prefix, suffixes):
        rows, prefix, start = [torch.cat([prefix, ids]) for ids in rows], prefix[:0], 0
    P = len(prefix)
    true_lengths = torch.tensor([len(ids) for ids in rows])
    S = int(true_lengths.max())
    fill = device.type == "cpu" and len(rows) * S <= MAX_FILL * int(true_lengths.sum())
    lengths = [S] * len(rows) if fill else true_lengths.tolist()
    ids, positions = [prefix], [torch.arange(P).expand(1 if flat else 3, -1)]
    for text, suffix, length in zip(rows, suffixes, lengths, strict=True):
        missing = length - len(text)
        ids.append(torch.nn.functional.pad(text, (0, missing), value=pad_token))
        found = _positions(suffix, text, image_token, start, flat)
        positions.append(torch.nn.functional.pad(found, (0, missing), value=start))
    starts = P + torch.cumsum(torch.tensor(lengths), 0) - torch.tensor(lengths)
    whole = torch.cat(ids)
    places, taught = starts + true_lengths - 1, None
    if conversation:
        places, taught = _conversation(whole, P, starts, true_lengths, image_token, device)
    row = Row(
        ids=to_device(whole, device),
        positions=to_device(torch.cat(positions, dim=1), device),
        layout=tree_layout(P, lengths, device, outside=start if outside else 0),
        visual=to_device((whole == image_token).nonzero().flatten(), device),
        features=join_features(features_of(suffixes), device),
        answers=to_device(places, device),
    )
    targets = to_device(torch.tensor([s.target for s in suffixes]), device)
    return PackedBatch(row, targets, [s.options for s in suffixes], taught)


def _conversation(
    ids: torch.Tensor,
    P: int,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    image_token: int,
    device: torch.device,
) -> tuple[torch.Tensor, Conversation]:
    """Places (N,) in the row that have a token to teach after them, and those tokens."""
    B = len(starts)
    pairs = [(torch.arange(max(P - 1, 0)), torch.arange(1, max(P, 1)), B)]  # the prefix stands in all
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        if P:  # the prefix's last token is followed by the first one of each suffix
            pairs.append((torch.tensor([P - 1]), torch.tensor([start]), 1))
        inner = torch.arange(start, start + length - 1)
        pairs.append((inner, inner + 1, 1))
    places = torch.cat([before for before, _, _ in pairs])
    following = torch.cat([after for _, after, _ in pairs])
    weights = torch.cat([torch.full((len(before),), float(weight)) for before, _, weight in pairs])
    kept = ids[following] != image_token
    weights = weights[kept]
    labels = to_device(ids[following[kept]], device)
    return places[kept], Conversation(labels, to_device(weights, device), int(weights.sum()))


def pack_orders(
    prefix: torch.Tensor,
    asked: Sequence[Sequence[Suffix]],
    image_token: int,
    device: torch.device,
    outside: bool = False,
    flat: bool = False,
) -> PackedBatch:
    """Lay out questions that are each asked several times: what a question's suffixes begin with stands once.

    Args:
        prefix: (P,) ids that all questions share.
        asked: By question its suffixes, the same pictures in each; as many for every question.
        image_token: Id of the placeholder.
        device: Where the tensors go.
        outside: The prefix was computed before; else it stands in every stem, which suits a short one.
        flat: Positions only count on, also over a picture.

    Returns:
        A batch whose answers and targets are those of all suffixes, question by question.
    """
    start, before = (len(prefix), prefix[:0]) if outside else (0, prefix)
    stem_ids, branch_ids, stem_places, branch_places = [], [], [], []
    stems, branches = [], []
    for suffixes in asked:
        common = len(before) + _common([s.ids for s in suffixes])
        whole = [torch.cat([before, s.ids]) for s in suffixes]
        places = [_positions(suffixes[0], ids, image_token, start, flat) for ids in whole]
        stems.append(common)
        branches.append([len(ids) - common for ids in whole])
        stem_ids.append(whole[0][:common])
        stem_places.append(places[0][:, :common])
        branch_ids += [ids[common:] for ids in whole]
        branch_places += [place[:, common:] for place in places]
    ids = torch.cat(stem_ids + branch_ids)
    layout = tree_layout(0, stems, device, outside=start)
    ends = sum(stems) + torch.tensor(branches).flatten().cumsum(0)
    row = Row(
        ids=to_device(ids, device),
        positions=to_device(torch.cat(stem_places + branch_places, dim=1), device),
        layout=replace(layout, branches=branch_layout(stems, branches, device)),
        visual=to_device((ids == image_token).nonzero().flatten(), device),
        features=join_features(features_of([s[0] for s in asked]), device),
        answers=to_device(ends - 1, device),
    )
    targets = torch.tensor([s.target for suffixes in asked for s in suffixes])
    return PackedBatch(row, to_device(targets, device), [s.options for suffixes in asked for s in suffixes])


def _common(rows: Sequence[torch.Tensor]) -> int:
    """How many tokens all rows begin with, short of the last one of any."""
    shortest = min(len(ids) for ids in rows) - 1
    same = torch.stack([ids[:shortest] == rows[0][:shortest] for ids in rows]).all(0)
    return int(same.int().cumprod(0).sum())


def pack_prefix(prefix: torch.Tensor, device: torch.device, flat: bool = False) -> Row:
    """The prefix alone as a row, for its keys and values."""
    nothing = torch.empty(0, dtype=torch.long, device=device)
    positions = torch.arange(len(prefix), device=device).expand(1 if flat else 3, -1)
    layout = tree_layout(len(prefix), [], device)
    return Row(to_device(prefix, device), positions, layout, nothing, None, None)


def pad(
    prefix: torch.Tensor, suffixes: Sequence[Suffix], image_token: int, pad_token: int, device: torch.device
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
    features = features_of(suffixes)
    inputs: dict[str, Any] = {
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "mm_token_type_ids": (ids == image_token).int().to(device),
    }
    if features:
        inputs["image_grid_thw"] = torch.tensor([f.grid_thw for f in features], device=device)
        inputs["mm_encoder_outputs"] = encoder_outputs(features, device)
    return inputs
