"""A merged model answers like base plus adapter; quantised bases are refused with the reason."""

from pathlib import Path

import pytest
import torch

from tests.conftest import Make
from vqa.answer.score import score
from vqa.errors import UserError
from vqa.model.adapter import attached, save_adapter
from vqa.model.base import load_base
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.stages.merge import run_merge

ROUNDING = 0.02  # bf16 weights keep 8 bits: probabilities move by up to a percent


def test_the_merged_model_answers_like_base_and_adapter(
    encoder: Encoder, questions: list[Question], settings: Make, tmp_path: Path
) -> None:
    with attached(encoder.base, settings().lora, seed=3) as model:
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # a small step away from the base, as training makes it
                torch.manual_seed(0)
                weight.data.normal_(std=0.02)
        expected = torch.tensor([p.p for p in score(encoder, questions, 16)])
        save_adapter(model, tmp_path / "adapter", encoder.base)
    before = torch.tensor([p.p for p in score(encoder, questions, 16)])
    metrics = run_merge(settings("stage=merge", f"adapter={tmp_path / 'adapter'}"), tmp_path)
    assert metrics["model"] == str(tmp_path / "model")
    assert (tmp_path / "manifest.json").exists()
    after = torch.tensor([p.p for p in score(encoder, questions, 16)])
    assert torch.equal(before, after)  # the resident base was not touched

    made = settings(f"model.path={tmp_path / 'model'}")
    merged = load_base(made)
    found = torch.tensor([p.p for p in score(Encoder(merged, made.prompt, made.image), questions, 16)])
    assert (expected - before).abs().max() > 10 * ROUNDING
    assert (expected - found).abs().max() < ROUNDING


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_is_refused_with_the_reason(
    settings: Make, tmp_path: Path, quantization: str
) -> None:
    with pytest.raises(
        UserError, match=rf"quantization={quantization}: .*without rounding it away; merge into"
    ):
        run_merge(settings("stage=merge", f"quantization={quantization}"), tmp_path)


def test_a_missing_adapter_is_named(settings: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter=.*nowhere: no adapter_config.json there"):
        run_merge(settings("stage=merge", f"adapter={tmp_path / 'nowhere'}"), tmp_path)
