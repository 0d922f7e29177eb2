"""Each part that changes answers comes from the adapter's record, in each stage that asks an adapter."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.conftest import Compose
from vqa.results.adapter_record import AdapterRecord, with_record

TRAINED = {
    "model": "qwen3_vl_2b",
    "quantization": "nf4",
    "prompt": "direct_ko",
    "image": "resize_448",
    "inference": "cyclic",
    "precision": "float32",
    "data": "csv",
}
STAGES = {stage: tuple(TRAINED) for stage in ("predict", "evaluate", "serve")} | {"merge": ("model",)}


@pytest.fixture
def record(composed: Compose) -> AdapterRecord:
    config = composed(*(f"{part}={value}" for part, value in TRAINED.items()))
    return AdapterRecord(Path("vqa.yaml"), config, TRAINED)


def plain(cfg: DictConfig, part: str) -> object:
    """A part without what is of now: where a cache lies, what the licence is."""
    node = OmegaConf.select(cfg, part)
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


@pytest.mark.parametrize(
    ("stage", "part"), [(stage, part) for stage, parts in STAGES.items() for part in parts]
)
def test_a_part_comes_from_the_record(
    stage: str, part: str, composed: Compose, record: AdapterRecord
) -> None:
    now = composed(f"stage={stage}")
    assert plain(now, part) != plain(record.config, part)
    made, differing = with_record(now, record, [f"stage={stage}"], None)
    assert plain(made, part) == plain(record.config, part)
    assert differing == []


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("quantization=none", 'quantization.weights=null, trained with {"_target_"'),
        ("image.size=96", "image.size=96, trained with 448"),
        ("precision=bfloat16", "precision=bfloat16, trained with float32"),
    ],
)
def test_a_word_that_changes_answers_wins_and_is_told(
    word: str, told: str, composed: Compose, record: AdapterRecord
) -> None:
    more = ["image=resize_448"] if word.startswith("image") else []
    now = composed("stage=evaluate", *more, word)
    made, differing = with_record(now, record, ["stage=evaluate", *more, word], None)
    part = word.partition("=")[0]
    assert plain(made, part) == plain(now, part)
    assert any(line.startswith(told) for line in differing), differing


def test_a_part_that_an_earlier_version_did_not_know_is_no_difference(
    composed: Compose, record: AdapterRecord
) -> None:
    OmegaConf.set_struct(record.config, False)
    del record.config["inference"]
    made, differing = with_record(composed("stage=evaluate"), record, ["stage=evaluate"], None)
    assert plain(made, "inference") == plain(composed(), "inference")
    assert differing == []
