"""Nodes become library objects; only trusted targets run, and their refusals become messages."""

from typing import Any

import pytest
import torch

from tests.conftest import Make
from vqa.config.library import build, check_target
from vqa.errors import UserError

LORA = "peft.LoraConfig"
BITS = "transformers.BitsAndBytesConfig"


@pytest.mark.parametrize(
    ("name", "node", "message"),
    [
        ("lora", {"r": 8}, r"lora._target_ must be the dotted name of a class or function, got None"),
        ("lora", {"_target_": "os.system"}, r"lora._target_ must be one of peft.\*, got 'os.system'"),
        ("lora", {"_target_": "peftless.Evil"}, r"lora._target_ must be one of peft.\*, got 'peftless.Evil'"),
        ("optimizer", {"_target_": LORA}, r"optimizer._target_ must be one of torch.optim.\*, bitsandbytes"),
        ("lora", {"_target_": "peft.NoConfig"}, r"lora._target_: 'peft.NoConfig' cannot be imported"),
        ("lora", {"_target_": LORA, "rnak": 8}, r"lora.rnak: peft.LoraConfig has no such argument; it has: "),
    ],
)
def test_a_wrong_node_is_refused_before_the_call(name: str, node: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_target(name, node)


def test_a_right_node_passes_and_none_is_fine() -> None:
    check_target("lora", {"_target_": LORA, "_partial_": True, "r": 8})
    check_target("quantization.weights", None)


def test_a_refusal_of_the_library_is_the_users_message() -> None:
    node = {"_target_": BITS, "load_in_4bit": "yes"}
    with pytest.raises(UserError, match=r"quantization.weights: (?s:.*)load_in_4bit must be a boolean"):
        build("quantization.weights", node)


def test_an_untrusted_target_is_not_executed() -> None:
    with pytest.raises(UserError, match="lora: "):
        build("lora", {"_target_": "builtins.print"})


def test_lists_stay_lists(settings: Make) -> None:
    optimizer = build("optimizer", settings().optimizer)
    assert type(optimizer.keywords["betas"]) is list
    skip = ["model.visual", "lm_head"]
    weights = build(
        "quantization.weights", {"_target_": BITS, "load_in_8bit": True, "llm_int8_skip_modules": skip}
    )
    assert type(weights.llm_int8_skip_modules) is list
    assert weights.llm_int8_skip_modules == skip


def test_a_partial_node_takes_its_last_argument_later(settings: Make) -> None:
    made = build("optimizer", settings("optimizer.lr=3e-3").optimizer)([torch.zeros(2, requires_grad=True)])
    assert isinstance(made, torch.optim.AdamW)
    assert made.defaults["lr"] == 3e-3


def test_what_is_known_only_now_is_added() -> None:
    node = {"_target_": BITS, "load_in_4bit": True}
    made = build("quantization.weights", node, bnb_4bit_compute_dtype=torch.bfloat16)
    assert made.bnb_4bit_compute_dtype == torch.bfloat16
