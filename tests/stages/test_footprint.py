"""The memory that the doctor foretells against peaks that were measured at true size."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

from benchmarks.harness.full_size import QWEN2_5_7B, QWEN3_8B, TOKENS
from benchmarks.speed import acceptance
from tests.conftest import Make
from vqa.model.families.table import family_of
from vqa.stages.footprint import Footprint, estimate

PREFIX = 881  # tokens of prompt=fewshot_ko
SUFFIX = {"qwen3_vl_8b": 326, "qwen2_5_vl_7b": 394}  # of a question with its picture of 512 x 512


def true_size(model: str) -> Any:
    own: Any
    own, parts = (Qwen3VLConfig, QWEN3_8B) if model == "qwen3_vl_8b" else (Qwen2_5_VLConfig, QWEN2_5_7B)
    return own(**parts, **TOKENS, tie_word_embeddings=False)


def footprint_of(settings: Make, model: str, quantization: str, *lora: str) -> Footprint:
    made = settings(f"model={model}", f"quantization={quantization}", "lora.r=32", *lora)
    config = true_size(model)
    return estimate(made, config, family_of(config))


# peak_gib of training rows in benchmarks/results: benchmarks.throughput, --cases 32:76 16:76 16:24
# (2026-11-25, H100) and `python -m benchmarks.acceptance` (2026-11-28, H200) for INT8
@pytest.mark.parametrize(
    ("model", "quantization", "questions", "recompute", "parked", "peak"),
    [
        ("qwen3_vl_8b", "none", 32, "nothing", False, 55.6),
        ("qwen3_vl_8b", "none", 16, "nothing", False, 38.0),
        ("qwen3_vl_8b", "none", 16, "layer", True, 19.8),
        ("qwen3_vl_8b", "none", 16, "mlp", False, 28.6),
        ("qwen3_vl_8b", "nf4", 16, "nothing", False, 28.6),
        ("qwen3_vl_8b", "nf4", 16, "layer", True, 10.3),
        ("qwen2_5_vl_7b", "none", 32, "nothing", False, 55.6),
        ("qwen2_5_vl_7b", "none", 16, "nothing", False, 37.4),
        ("qwen2_5_vl_7b", "none", 16, "mlp", True, 22.8),
        ("qwen2_5_vl_7b", "nf4", 16, "nothing", False, 28.5),
        ("qwen2_5_vl_7b", "nf4", 16, "layer", True, 9.8),
        ("qwen3_vl_8b", "int8", 16, "nothing", False, 31.8),
    ],
)
def test_the_estimate_is_within_a_tenth_of_what_was_measured(
    settings: Make, model: str, quantization: str, questions: int, recompute: str, parked: bool, peak: float
) -> None:
    found = footprint_of(settings, model, quantization)
    assert found.peak_gib(PREFIX + questions * SUFFIX[model], recompute, parked) == pytest.approx(
        peak, rel=0.1
    )


ACCEPTANCE = Path(acceptance.__file__).parents[1] / "results" / "2026-11-30-h200-acceptance.json"
OWN_PROMPT = "experiment="  # these runs have a prompt of another length
ROWS = [
    row
    for row in json.loads(ACCEPTANCE.read_text(encoding="utf-8"))["rows"]
    if row.get("warm_peak_gib") and not row["name"].startswith(OWN_PROMPT)
]


def test_every_training_of_the_acceptance_run_is_within_a_tenth(settings: Make) -> None:
    """With the tower on the card: measured was the second fit of a shape, which steps down no more."""
    assert len(ROWS) > 40
    off, made = {}, dict[tuple[str, ...], Footprint]()
    for row in ROWS:
        model, quantization = row["base"].replace("-stored", "").split()[:2]
        options = [row["name"]] if row["name"].startswith("lora=") else []
        options += ["lora=dora"] if row["name"].startswith("dora") else []
        options += ["lora.lora_dropout=0.05"] if "dropout" in row["name"] else []
        key = (model, quantization, *options)
        found = made[key] = made.get(key) or footprint_of(settings, *key)
        tokens, flash = PREFIX + row["micro_batch"] * SUFFIX[model], "T4" not in row["name"]
        copies = 0 if flash else row["micro_batch"] * (PREFIX + SUFFIX[model])
        peak = found.peak_gib(tokens, row["recompute"], False, copies)
        if abs(peak / row["warm_peak_gib"] - 1) > 0.1:
            off[row["base"], row["name"], row["gib"]] = (peak, row["warm_peak_gib"])
    assert off == {}


def test_without_flash_attention_a_card_of_16_gb_computes_layers_twice(settings: Make) -> None:
    nf4 = footprint_of(settings, "qwen2_5_vl_7b", "nf4")
    ways = {}
    for flash in (True, False):
        fitting = nf4.fitting(14.5, 16, PREFIX, SUFFIX["qwen2_5_vl_7b"], flash)
        ways[flash] = fitting and fitting[0].recompute
    assert ways == {True: "mlp", False: "layer"}  # both were so in the acceptance run


def test_a_card_gets_the_fastest_way_that_fits(settings: Make) -> None:
    bf16 = footprint_of(settings, "qwen3_vl_8b", "none")
    ways = {}
    for gib in (16, 24, 40, 80):
        fitting = bf16.fitting(gib, 16, PREFIX, SUFFIX["qwen3_vl_8b"])
        ways[gib] = fitting and (fitting[0].micro_batch_size, fitting[0].recompute)
    assert ways == {16: None, 24: (16, "layer"), 40: (16, "nothing"), 80: (16, "nothing")}
