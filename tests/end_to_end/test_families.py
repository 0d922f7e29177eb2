"""The whole job with models that are no Qwen-VL: three trials, the final run, inference, plain PEFT.

One family in the gate; the others are run by hand: pytest -m families.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.conftest import Make
from tests.helpers.command_line import Outcome, vqa
from tests.helpers.tiny_checkpoints import CHECKPOINTS, write_folder
from vqa.answer.score import score
from vqa.config.settings import Settings
from vqa.data.source import split_questions
from vqa.errors import UserError
from vqa.model.adapter import attached, loaded, save_adapter
from vqa.model.base import Base, load_base, read_model_config
from vqa.model.context import refuse_too_long
from vqa.model.encode import Encoder
from vqa.model.forward import letter_logits
from vqa.model.own_text import OwnText

pytestmark = pytest.mark.usefixtures("undrawn")
Vqa = Callable[..., Outcome]
BY_HAND = pytest.mark.families
IN_GATE = "exaone4_5"  # by transformers' forward; what our own decoder computes goes the way of Qwen-VL
OTHERS = ("internvl", "gemma4_e", "llava_onevision", "qwen3_5")
JOBS = [IN_GATE, *(pytest.param(n, marks=BY_HAND) for n in OTHERS)]
SMALL = ("data.train_size=48", "data.test_size=12", "env.threads=1", "tracking=none")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], Path]:
    """checkpoint(name) is the folder of a tiny random model of that family."""
    return lambda name: write_folder(name, tmp_path / name)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_sweep_ends_in_a_submission_that_plain_peft_confirms(
    name: str,
    checkpoint: Callable[[str], Path],
    settings: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    common = (
        *("model=auto", f"model.path={checkpoint(name)}", "model.min_visual_tokens=4", *SMALL),
        *("model.max_visual_tokens=16", "budget=smoke", "study=job", f"env.output_root={tmp_path}"),
    )
    made = settings(*common)  # before the command line: it has a Hydra of its own
    swept = vqa(monkeypatch, capsys, "-m", "+sweep=lora", "hydra.sweeper.n_trials=3", *common)
    assert swept.code == 0, swept.err
    assert len(read_rows(tmp_path / "job/leaderboard.csv")) == 3
    predicted = vqa(monkeypatch, capsys, "stage=predict", *common)
    assert predicted.code == 0, predicted.err
    final, predict = tmp_path / "job/final", tmp_path / "job/predict"
    assert (predict / "submission.csv").read_bytes() == (final / "submission.csv").read_bytes()
    assert {"accuracy", "nll", "base_accuracy"} <= json.loads((final / "metrics.json").read_text()).keys()
    card = (final / "adapter/README.md").read_text()
    assert "How to use it" in card

    base = load_base(made)
    encoder, questions = Encoder(base, made.prompt, made.image), split_questions(made)[0].valid
    with loaded(base, final / "adapter"):
        expected = [p.p for p in score(encoder, questions, 16)]
    plain = PeftModel.from_pretrained(base.model, str(final / "adapter"))
    found = [p.p for p in score(encoder, questions, 16)]
    plain.unload()
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-6)


@pytest.mark.slow
def test_two_families_are_weighed_on_the_questions_that_both_held_out(
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The embedded Qwen3-VL and a random model of another family, trained on the same data with one seed."""
    common = (*SMALL, "budget.epochs=1", f"env.output_root={tmp_path}")
    other = ("model=auto", f"model.path={checkpoint(IN_GATE)}", "model.min_visual_tokens=4")
    for study, words in (("own", ()), ("other", (*other, "model.max_visual_tokens=16"))):
        trained = vqa(monkeypatch, capsys, f"study={study}", *words, *common)
        assert trained.code == 0, trained.err
    splits = [(tmp_path / study / "final/split.csv").read_bytes() for study in ("own", "other")]
    assert splits[0] == splits[1]
    members = ",".join(f"{tmp_path}/{study}/final/test_predictions.csv" for study in ("own", "other"))
    words = ("stage=ensemble", "study=both", f"ensemble.members=[{members}]", "ensemble.selection=fitted")
    weighed = vqa(monkeypatch, capsys, *words, *common)
    assert weighed.code == 0, weighed.err
    metrics = json.loads((tmp_path / "both/ensemble/metrics.json").read_text())
    families = [member["family"] for member in metrics["weighing"]]
    assert len(set(families)) == 2
    assert families[1] == "exaone4_5"
    assert sum(metrics["members"].values()) == pytest.approx(1)
    assert metrics["valid"]["n"] == len(read_rows(tmp_path / "own/final/valid_predictions.csv"))
    assert len(metrics["valid"]["over_best_member"]["nll"]) == 3
    assert len(read_rows(tmp_path / "both/ensemble/submission.csv")) == 12
    assert "over the best member" in weighed.err + weighed.out


def prepared(
    name: str, checkpoint: Callable[[str], Path], settings: Make, *more: str
) -> tuple[Settings, Base]:
    made = settings(f"model.path={checkpoint(name)}", *more)
    return made, load_base(made)


def plain_logits(made: Settings, base: Base, questions: Any) -> torch.Tensor:
    """What transformers alone gives for each question: its processor, its template, its forward."""
    from vqa.data.image import load_image
    from vqa.model.vision.generic_pictures import budget_arguments

    prompts: Any = getattr(base.text, "prompts", base.text)
    writer = prompts.writer
    processor, found = writer.processor, []
    for question in questions:
        inputs = processor(
            images=[[load_image(picture.path) for picture in question.pictures]],
            text=[writer.text(made.prompt, question, pictures=len(question.pictures))],
            images_kwargs=budget_arguments(processor, base.family, made.image),
            add_special_tokens=False,
            return_tensors="pt",
        )
        if hasattr(base.model.model, "rope_deltas"):
            base.model.model.rope_deltas = None
        with torch.no_grad():
            found.append(base.model(**inputs).logits[0, -1])
    return torch.cat([row[None] for row in found])


CHECKED = ("qwen3_5", "gemma4_unified", "internvl")
WITHOUT_MORE_LIBRARIES = [n for n in CHECKPOINTS if n not in ("mistral3", "smolvlm")]


@pytest.mark.parametrize(
    "name", [*CHECKED, *(pytest.param(n, marks=BY_HAND) for n in WITHOUT_MORE_LIBRARIES)]
)
@pytest.mark.parametrize("prompt", ["direct_en", "fewshot_ko"])
def test_a_checkpoint_answers_as_transformers_alone(
    name: str, prompt: str, checkpoint: Callable[[str], Path], settings: Make
) -> None:
    made, base = prepared(name, checkpoint, settings, f"prompt={prompt}")
    questions = split_questions(made)[0].train[:3]
    encoder = Encoder(base, made.prompt, made.image)
    batch = encoder.batch(questions)
    own = isinstance(base.text, OwnText)
    assert own == base.family.is_packed(base.model.config)
    once = batch.row.layout.prefix > 0 if own else batch.prefix is not None
    assert once == (prompt == "fewshot_ko")  # long enough to be computed once
    with torch.no_grad():
        found = letter_logits(base, batch)
    expected = plain_logits(made, base, questions)
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-4


ALONE_ONLY = ("llava_onevision", "minicpmv4_6")
SEVERAL = [n for n in WITHOUT_MORE_LIBRARIES if n not in ALONE_ONLY]


@pytest.mark.parametrize(
    "name", ["qwen3_5", "internvl", "gemma3", *(pytest.param(n, marks=BY_HAND) for n in SEVERAL)]
)
def test_a_checkpoint_answers_on_several_pictures_as_transformers_alone(
    name: str, checkpoint: Callable[[str], Path], settings: Make
) -> None:
    made, base = prepared(name, checkpoint, settings)
    first, second, third = split_questions(made)[0].train[:3]
    questions = [first, replace(second, further=third.pictures), replace(third, further=first.pictures * 2)]
    encoder = Encoder(base, made.prompt, made.image)
    refuse_too_long(encoder, questions)
    with torch.no_grad():
        found = letter_logits(base, encoder.batch(questions))
    expected = plain_logits(made, base, questions)
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-4


@pytest.mark.parametrize("name", ALONE_ONLY)
def test_a_processor_that_treats_pictures_together_in_another_way_refuses_several(
    name: str, checkpoint: Callable[[str], Path], settings: Make
) -> None:
    made, base = prepared(name, checkpoint, settings)
    first, second = split_questions(made)[0].train[:2]
    encoder = Encoder(base, made.prompt, made.image)
    refuse_too_long(encoder, [first, second])
    both = replace(first, id="both", further=second.pictures)
    message = r"question 'both' has 2 pictures. model: \w+ treats a picture beside others in another way"
    with pytest.raises(UserError, match=message):
        refuse_too_long(encoder, [second, both])


@pytest.mark.parametrize("name", ["gemma4_e", "qwen3_5"])
def test_nf4_leaves_pictures_and_vocabulary_and_answers_as_transformers_alone(
    name: str, checkpoint: Callable[[str], Path], settings: Make, tmp_path: Path
) -> None:
    made, base = prepared(name, checkpoint, settings, "quantization=nf4")
    kinds = {n: type(m).__name__ for n, m in base.model.named_modules()}
    four_bit = [n for n, kind in kinds.items() if kind == "Linear4bit"]
    assert four_bit
    assert all(n.startswith(base.structure.layers.rsplit(".", 1)[0]) for n in four_bit)
    questions = split_questions(made)[0].train[:3]
    encoder = Encoder(base, made.prompt, made.image)
    with attached(base, made.lora | {"init_lora_weights": False}, seed=1) as model:
        model.eval()
        with torch.no_grad():
            found = letter_logits(base, encoder.batch(questions))
        expected = plain_logits(made, base, questions)
        assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-4
        save_adapter(model, tmp_path / "adapter", base)
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


def test_adaptation_inside_the_decoder_is_refused_before_weights_are_read(
    checkpoint: Callable[[str], Path], settings: Make
) -> None:
    folder = checkpoint("internvl")
    (folder / "model.safetensors").unlink()
    made = settings(f"model.path={folder}", "adapt=tpt")
    with pytest.raises(UserError, match=r"adapt=tpt needs .* Qwen2.5-VL and Qwen3-VL only; internvl"):
        read_model_config(made)


def test_a_processor_that_needs_another_library_says_which(
    checkpoint: Callable[[str], Path], settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(UserError, match=r"SmolVLMProcessor of smolvlm cannot be loaded: .*num2words"):
        load_base(settings(f"model.path={checkpoint('smolvlm')}"))
