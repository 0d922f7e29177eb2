"""Families whose text our own decoder computes: letter logits and every gradient are those of a question alone.

In float32 against transformers as it is; in float64 against transformers with its float32 round trips taken
out and the delta rule one token at a time.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers.float64 import in_float64
from tests.helpers.tiny_families import IMAGE
from tests.model.families.test_families import TARGETS, Case, Gradients, alone, by_adapter, distance, make_case
from vqa.model.decoder import Recompute
from vqa.model.families.table import family_of
from vqa.model.forward import shared_prefix
from vqa.model.own_text import OwnText
from vqa.model.packing import Suffix

CPU = torch.device("cpu")
NAMES = ("internvl", "llava_onevision", "qwen3_5", "minicpmv4_6")


def packed_case(name: str, dtype: torch.dtype = torch.float32) -> tuple[Case, OwnText]:
    """A case of the families' tests, and our own decoder on its model."""
    case = make_case(name, dtype)
    assert family_of(case.model.config).is_packed(case.model.config)
    merge = getattr(case.model.config.vision_config, "spatial_merge_size", 1)
    for i, suffix in enumerate(case.suffixes):
        if suffix.features is not None and hasattr(case.model.model, "get_rope_index"):
            _, height, width = suffix.features.grid_thw  # our own tower counts in visual tokens
            features = replace(suffix.features, grid=(height // merge, width // merge))
            case.suffixes[i] = replace(suffix, features=features)
    return case, OwnText(case.model, None, CPU, case.text)


def ways(case: Case, text: OwnText, recompute: Recompute) -> dict[str, tuple[torch.Tensor, Gradients]]:
    """Logits and gradients with the prefix in the row, repeated in every suffix, and computed before."""
    found = {}
    for name, suffixes in (("in the row", case.suffixes), ("one by one", None)):
        rows = [suffixes] if suffixes else [[suffix] for suffix in case.suffixes]
        batches = [text.batch(case.prefix, row, outside=False, conversation=False) for row in rows]
        logits = torch.cat([text.logits(batch, None, recompute) for batch in batches])
        found[name] = logits.detach(), by_adapter(case, logits)
    found["computed before"] = step(case, text, recompute)
    return found


def step(case: Case, text: OwnText, recompute: Recompute) -> tuple[torch.Tensor, Gradients]:
    """An optimiser step in micro-batches of two and one, the prefix computed once."""
    base: Any = SimpleNamespace(text=text)
    case.model.zero_grad()
    logits = []
    with shared_prefix(base, case.prefix) as known:
        for part in (slice(0, 2), slice(2, 3)):
            batch = text.batch(case.prefix, case.suffixes[part], outside=True, conversation=False)
            found = text.logits(batch, known, recompute)
            loss = torch.nn.functional.cross_entropy(found, TARGETS[part], reduction="sum") / 3
            loss.backward()  # type: ignore[no-untyped-call]
            logits.append(found.detach())
    grads = {name: p.grad.clone() for name, p in case.model.named_parameters() if p.grad is not None}
    return torch.cat(logits), grads


def check(case: Case, text: OwnText, recompute: Recompute, expected: torch.Tensor, tolerance: float) -> None:
    wanted = by_adapter(case, expected)
    for way, (logits, grads) in ways(case, text, recompute).items():
        assert distance(logits, expected) <= tolerance, way
        assert grads.keys() == wanted.keys(), way
        for key, gradient in wanted.items():
            assert distance(grads[key], gradient) <= tolerance, f"{way}: {key}"


@pytest.mark.parametrize("name", NAMES)
def test_a_row_gives_what_each_question_alone_gives(name: str) -> None:
    case, text = packed_case(name)
    check(case, text, "layer", alone(case), 1e-4)


@pytest.mark.parametrize("recompute", ["nothing", "mlp", "layer"])
@pytest.mark.parametrize("name", ["internvl", "qwen3_5"])
def test_a_row_is_exact_in_float64_however_memory_is_saved(
    name: str, recompute: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_float64(monkeypatch)
    case, text = packed_case(name, torch.float64)
    check(case, text, recompute, alone(case), 1e-9)
