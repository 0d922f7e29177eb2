"""A model spread over two GPUs gives what it gives on one. Run by hand: pytest -m gpu, with two GPUs."""

from typing import Any

import pytest
import torch

from tests.conftest import Make
from vqa.answer.score import score
from vqa.config.settings import Settings
from vqa.data.source import split_questions
from vqa.model.adapter import attached
from vqa.model.base import load_base, release_resident
from vqa.model.encode import Encoder
from vqa.model.forward import letter_logits
from vqa.model.prompt import as_written
from vqa.train.fit import fit
from vqa.train.plan import plan_fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
SMALL = ("budget=smoke", "budget.batch_size=8", "precision=float32", "env.compile=false")


def trained(settings: Settings) -> tuple[Any, torch.Tensor]:
    """The base, and answers after a few steps."""
    base = load_base(settings)
    encoder, rows = Encoder(base, settings.prompt, settings.image), split_questions(settings)[0]
    with attached(base, settings.lora, seed=0) as model:
        fit(encoder, model, rows.train[:32], plan_fit(settings, 32), lambda _: None)
        model.eval()
        return base, torch.tensor([p.p for p in score(encoder, rows.valid[:16], 8)])


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_two_gpus_train_and_answer_as_one_does(settings: Make, quantization: str) -> None:
    quantized = f"quantization={quantization}"
    _, expected = trained(settings(*SMALL, quantized))
    base, found = trained(settings(*SMALL, quantized, "env.device_map=balanced"))
    places = {p.device.index for p in base.model.get_decoder().layers.parameters()}
    release_resident()
    assert places == {0, 1}
    assert torch.allclose(found, expected, atol=0.05 if quantization == "int8" else 5e-3)


def test_dropout_is_drawn_again_on_both_gpus(settings: Make) -> None:
    made = settings(*SMALL, "env.device_map=balanced")
    base = load_base(made)
    encoder, rows = Encoder(base, made.prompt, made.image), split_questions(made)[0].train[:4]
    found = []
    with attached(base, made.lora | {"lora_dropout": 0.5, "init_lora_weights": False}, seed=0) as model:
        model.train()
        for recompute in ("nothing", "mlp", "layer"):
            model.zero_grad()
            torch.manual_seed(5)
            batch = encoder.batch(rows, [as_written(q) for q in rows], False, False)
            letter_logits(base, batch, None, recompute).square().sum().backward()  # type: ignore[no-untyped-call]
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    release_resident()
    for other in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(found[0], other, strict=True))
