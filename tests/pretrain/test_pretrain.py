"""How the tiny model is pre-trained and what comes out: network, training, folder."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3VLForConditionalGeneration,
)

from pretrain.batches import GeneratedBatches
from pretrain.examples import IMAGE, render_chat
from pretrain.network import LeanForward, make_config, make_model, patchify
from pretrain.scenes import draw_scene
from pretrain.tokenizer import IMAGE_PAD, token_id, train_tokenizer
from pretrain.train import main, make_optimizer, measure, schedule, train


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(examples=3_000, seed=0)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(0)
    return make_model(make_config(tokenizer))


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    sizes = {"steps": 2, "scenes": 2, "questions": 2, "workers": 0, "corpus": 2000}
    main([str(out), *(f"--{name}={size}" for name, size in sizes.items())])
    return out


def test_lean_forward_equals_the_librarys_forward(
    tokenizer: Tokenizer, model: Qwen3VLForConditionalGeneration
) -> None:
    batch = GeneratedBatches(tokenizer, steps=1, scenes=3, questions=2, seed=0)[0]
    ids = batch.ids.long()
    last = (batch.positions[:, 0] + 1).tolist()  # prompt lengths: they differ, so the padding is tested too
    assert len(set(last)) > 1
    with torch.no_grad():
        lean = LeanForward(model)(ids, batch.images, batch.positions.long())[:, 0]
        for row, length in enumerate(last):
            prompt = ids[row : row + 1, :length]
            expected = model(
                input_ids=prompt,
                pixel_values=patchify(batch.images[row // 2 : row // 2 + 1])[0],
                image_grid_thw=torch.tensor([[1, 8, 8]]),
                mm_token_type_ids=(prompt == token_id(tokenizer, IMAGE_PAD)).int(),
            ).logits[0, -1]
            torch.testing.assert_close(lean[row], expected, atol=1e-4, rtol=0)
            assert expected.abs().max() > 0.5  # the comparison is of something


def test_learning_rate_warms_up_stays_flat_and_ends_at_two_percent() -> None:
    rates = [schedule(step, 12_400) for step in range(12_400)]
    assert rates[0] == pytest.approx(1 / 400)
    assert rates[399] == rates[4_960] == 1.0
    assert rates[5_500] < 1.0
    assert rates[-1] == pytest.approx(0.02, abs=1e-4)


def test_training_lowers_the_loss_on_a_batch_it_repeats(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    network = LeanForward(make_model(make_config(tokenizer)))
    batch = GeneratedBatches(tokenizer, steps=1, scenes=2, questions=2, seed=0)[0]
    optimizer = make_optimizer(network)
    losses = []
    for _ in range(5):
        loss, _ = measure(network, batch)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


class BrokenOnce(LeanForward):
    """Yields NaN in its first forward, as a faulty GPU kernel would."""

    calls = 0

    def forward(self, ids: torch.Tensor, images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(ids, images, positions) * (float("nan") if self.calls == 1 else 1.0)


@pytest.mark.parametrize(("steps", "moved"), [(1, False), (2, True)])
def test_a_step_with_nan_gradients_is_skipped_and_counted(
    tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str], steps: int, moved: bool
) -> None:
    network = BrokenOnce(make_model(make_config(tokenizer)))
    before = [weight.detach().clone() for weight in network.parameters()]
    data = GeneratedBatches(tokenizer, steps=steps, scenes=1, questions=2, seed=0)
    train(network, data, torch.tensor([0]), workers=0)
    assert all(weight.isfinite().all() for weight in network.parameters())
    same = all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    assert same is not moved
    assert "skipped 1" in capsys.readouterr().out.splitlines()[-1]


def test_the_folder_loads_and_answers_a_chat_with_a_picture(trained_folder: Path) -> None:
    model: Any = AutoModelForImageTextToText.from_pretrained(trained_folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(trained_folder)
    processor = Qwen2VLImageProcessorPil.from_pretrained(trained_folder)
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id

    scene = draw_scene(Random(0))
    pixels = processor(images=[scene.image], return_tensors="pt")
    assert pixels["image_grid_thw"].tolist() == [[1, 8, 8]]
    torch.testing.assert_close(pixels["pixel_values"], patchify(torch.tensor(scene.image)[None])[0])

    ids = tokenizer(render_chat("What is it?"), return_tensors="pt")["input_ids"]
    answer = model.generate(
        input_ids=ids,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        max_new_tokens=1,
        do_sample=False,
        **pixels,
    )
    assert answer.shape == (1, ids.shape[1] + 1)


def test_the_chat_template_writes_what_pretraining_showed(trained_folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(trained_folder)
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "무엇이 보이나요?"}]}
    chat = [{"role": "system", "content": "Look."}, user]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.replace(IMAGE_PAD, IMAGE_PAD * 16) == render_chat("무엇이 보이나요?", "Look.")
    assert IMAGE in render_chat("")


def test_the_folder_holds_small_bf16_weights_and_all_its_parts(trained_folder: Path) -> None:
    assert {path.name for path in trained_folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "chat_template.jinja",
    }
    assert (trained_folder / "model.safetensors").stat().st_size <= 8_000_000
    assert json.loads((trained_folder / "config.json").read_text())["dtype"] == "bfloat16"
