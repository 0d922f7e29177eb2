"""What only a GPU can show: fused kernels and FlashAttention against the portable formulas. Run by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import Make
from tests.helpers.soft_prompts import check_distance_of_gradient
from tests.helpers.tiny_adapters import check_distance_to_float32
from tests.helpers.tiny_models import FAMILIES
from vqa.answer.adapt.loop import weight_digest
from vqa.answer.readout import generate_answers
from vqa.answer.score import score
from vqa.data.source import data_source
from vqa.machine.device import copied_beside, sent_to_host
from vqa.model.base import load_base
from vqa.model.decoder import Recompute
from vqa.model.encode import Encoder
from vqa.model.forward import letter_logits
from vqa.model.kernels import pointwise
from vqa.model.kernels.attention import LayerTree, attend
from vqa.model.kernels.tree import tree_layout
from vqa.model.letters import option_log_probabilities
from vqa.model.vision import tower
from vqa.model.vision.features import HostCopies
from vqa.model.vision.tower import Tower, join_pictures
from vqa.model.vision.tower_kernels import FLASH

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
CPU = torch.device("cpu")


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative distance, in the reference's own precision."""
    expected = expected.double()
    return float(torch.linalg.norm(found.to(expected) - expected) / torch.linalg.norm(expected))


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


@pytest.mark.parametrize(("prefix", "outside"), [(37, 0), (0, 37), (0, 0), (130, 0)])
@pytest.mark.parametrize("lengths", [[45, 80, 33], [64, 64], [300]])
def test_flash_attention_gives_the_portable_result(prefix: int, outside: int, lengths: list[int]) -> None:
    T = prefix + sum(lengths)
    shapes = [(T, 8, 128), (T, 2, 128), (T, 2, 128)] + [(outside, 2, 128)] * 2 * bool(outside)
    grad = randn(T, 8, 128, seed=9)
    results = []
    for device, dtype in ((CPU, torch.float32), (CUDA, torch.bfloat16)):
        leaves = [randn(*shape, seed=i).to(device, dtype).requires_grad_() for i, shape in enumerate(shapes)]
        known = (leaves[3], leaves[4]) if outside else None
        tree = LayerTree(tree_layout(prefix, lengths, device, outside), known)
        found = attend(leaves[0], leaves[1], leaves[2], 0.088, tree)
        grads = torch.autograd.grad(found, leaves, grad.to(device, dtype))
        results.append([found.detach().cpu(), *(g.cpu() for g in grads)])
    for expected, found in zip(*results, strict=True):
        assert off(found, expected) < 1e-2  # bfloat16


@pytest.mark.parametrize("rows", [5, 64, 129])
def test_compiled_kernels_give_the_plain_result(rows: int) -> None:
    x, weight, grad = (randn(rows, 256, seed=i).to(CUDA) for i in range(3))
    cases: list[tuple[Any, tuple[Any, ...]]] = [
        (pointwise.rms_norm, (x, weight[0], 1e-6)),
        (pointwise.rms_norm_backward, (grad, x, weight[0], 1e-6, weight)),
        (pointwise.swiglu, (x, weight)),
        (pointwise.swiglu_backward, (grad, x, weight)),
        (pointwise.column_products, (grad, x, weight[0])),
        (pointwise.dropped, (x, 11, 0.3)),
        (pointwise.dropped, (x, 2**31 - 5, 0.3)),
    ]
    for function, arguments in cases:
        fast, plain = function(*arguments), function.__wrapped__(*arguments)
        pairs = zip(fast, plain, strict=True) if isinstance(fast, tuple) else [(fast, plain)]
        assert all(off(one, other) < 1e-5 for one, other in pairs)


@pytest.mark.parametrize("b_size", [0.1, 0.01])
@pytest.mark.parametrize("recompute", ["nothing", "mlp", "layer"])
def test_a_bfloat16_step_is_as_near_to_float32_as_transformers_own(
    recompute: Recompute, b_size: float
) -> None:
    check_distance_to_float32(CUDA, recompute, b_size)


def test_a_soft_prompts_bfloat16_gradient_is_as_near_to_float32_as_transformers_own() -> None:
    check_distance_of_gradient(CUDA)


@contextmanager
def waiting_forbidden() -> Iterator[None]:
    """Raise where the host waits for what the GPU has still to do."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "sizes", [[(96, 64), (32, 160), (128, 128)], [(128, 160)] * 3], ids=["mixed", "alike"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_pictures_in_one_call_are_as_near_to_float32_as_one_by_one(
    family: str, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    shape = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    processor = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3, rescale_factor=1 / 255, **shape)
    drawn = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8) for size in sizes]
    exact = Tower(model, processor).features(join_pictures(drawn, CPU))
    fast_tower = Tower(deepcopy(model).to(CUDA, torch.bfloat16), processor)
    assert fast_tower.visual.config._attn_implementation == FLASH
    together = fast_tower.features(join_pictures(drawn, CUDA))
    with waiting_forbidden():
        fast_tower.features(join_pictures(drawn, CUDA))
    monkeypatch.setattr(tower, "use_fast_kernels", lambda visual, device: None)
    one_by_one = Tower(model.to(CUDA, torch.bfloat16), processor).features(join_pictures(drawn, CUDA))
    for ours, own, wanted in zip(together, one_by_one, exact, strict=True):
        assert ours.grid == wanted.grid
        pairs = zip((ours.pooled, *ours.deepstack), (own.pooled, *own.deepstack), strict=True)
        for (fast, plain), target in zip(pairs, (wanted.pooled, *wanted.deepstack), strict=True):
            assert off(fast.cpu(), target) < 1.1 * off(plain.cpu(), target) < 0.05
    from_disk = together[0].mapped(torch.Tensor.cpu)
    *copied, kept = HostCopies().begin([*together, from_disk]).result()
    assert kept.pooled is from_disk.pooled
    for ours, moved in zip(together, copied, strict=True):
        assert not moved.pooled.is_pinned()
        assert torch.equal(moved.pooled, ours.pooled.cpu())
        assert all(torch.equal(a, b.cpu()) for a, b in zip(moved.deepstack, ours.deepstack, strict=True))


def test_what_is_copied_beside_the_computation_is_there_when_it_is_used() -> None:
    busy = torch.randn(4096, 4096, device=CUDA)
    found = []
    for i in range(20):
        busy = (busy @ busy).clamp(-1, 1)
        moved = copied_beside(torch.full((1 << 22,), float(i)).pin_memory(), CUDA)
        found.append(torch.stack([moved.min(), moved.max()]))
        del moved  # its memory is free for the next one, before the GPU came to it
    assert torch.equal(torch.stack(found).cpu(), torch.arange(20.0)[:, None].expand(-1, 2))


def test_a_result_is_read_while_the_next_is_computed() -> None:
    result = sent_to_host(torch.arange(3, device=CUDA) * 2)
    torch.cuda._sleep(4_000_000_000)  # type: ignore[no-untyped-call]  # clock cycles: two seconds
    next_one: Any = torch.cuda.current_stream().record_event()
    assert result().tolist() == [0, 2, 4]
    assert not next_one.query()


def test_answers_are_the_same_when_pictures_are_looked_at_between_them(settings: Make) -> None:
    made = settings("env.device=cuda", "data.train_size=300")
    questions = data_source(made).train()
    encoder = Encoder(load_base(made), made.prompt, made.image)
    cache = encoder.base.vision
    between = score(encoder, questions, 64)
    assert len(cache.kept) == cache.misses > 64
    cache.forget()
    encoder.look(questions)
    before = score(encoder, questions, 64)
    assert torch.allclose(
        torch.tensor([p.p for p in between]), torch.tensor([p.p for p in before]), atol=0.02
    )


def test_answering_a_batch_waits_for_nothing(settings: Make) -> None:
    made = settings("env.device=cuda")
    encoder = Encoder(load_base(made), made.prompt, made.image)
    batch = encoder.batch(data_source(made).train()[:32])

    def begin() -> None:
        with torch.no_grad():
            option_log_probabilities(letter_logits(encoder.base, batch), encoder.base.letters[4])

    begin()  # kernels are compiled
    with waiting_forbidden():
        begin()


def test_a_tower_that_waits_in_host_memory_hinders_neither_text_nor_adaptation(settings: Make) -> None:
    made = settings("env.device=cuda")
    encoder = Encoder(load_base(made), made.prompt, made.image)
    questions = data_source(made).train()[:4]
    expected = generate_answers(encoder, questions, 4)
    digest = weight_digest(encoder.base.model)
    encoder.base.vision.park()
    assert weight_digest(encoder.base.model) == digest
    assert generate_answers(encoder, questions, 4) == expected
