"""Model folders and adapters whose files are cut off, empty, or hold odd values: refused with a message."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Make
from tests.model.test_foreign_model import ask
from vqa.errors import UserError
from vqa.model.base import load_base, model_folder

pytestmark = pytest.mark.hostile
Change = Callable[[Path], None]


def with_value(name: str, value: Any, part: str = "") -> Change:
    """Sets a value of config.json, or of a part of it."""

    def change(folder: Path) -> None:
        stored = json.loads((folder / "config.json").read_text())
        (stored[part] if part else stored)[name] = value
        (folder / "config.json").write_text(json.dumps(stored))

    return change


def with_bytes(name: str, content: bytes | None) -> Change:
    """Writes a file anew; None: the first half of what it holds."""

    def change(folder: Path) -> None:
        old = (folder / name).read_bytes()
        (folder / name).write_bytes(old[: len(old) // 2] if content is None else content)

    return change


ODD: dict[tuple[str, str], list[Any]] = {
    ("text_config", "hidden_size"): [96, 0, -4, "x", None, 10**9],
    ("text_config", "num_hidden_layers"): [0, -1, "x", 10**9],
    ("text_config", "vocab_size"): [10, -1, "x", 10**12],
    ("text_config", "num_attention_heads"): [0, 7, "x"],
    ("text_config", "head_dim"): [0, "x"],
    ("text_config", "hidden_act"): ["os.system"],
    ("text_config", "rope_parameters"): [7],
    ("vision_config", "depth"): [0, 10**9, "x"],
    ("vision_config", "patch_size"): [0, 10**6, "x"],
    ("", "image_token_id"): [10**9, -1, "x"],
    ("", "vision_config"): [[], {}, 7],
    ("", "text_config"): [{}, []],
    ("", "dtype"): ["float99"],
    ("", "model_type"): [7],
    ("", "quantization_config"): [7, {"quant_method": "x"}],
}
CASES: dict[str, Change] = {
    f"{part}.{name}={value}": with_value(name, value, part)
    for (part, name), values in ODD.items()
    for value in values
}
FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json"),
    *("preprocessor_config.json", "model.safetensors"),
)
CONTENTS = {"empty": b"", "a list": b"[]", "no text": b"\xff\xfe\0\1", "half": None, "nested": b"[" * 100_000}
CASES |= {f"{file} {kind}": with_bytes(file, content) for file in FILES for kind, content in CONTENTS.items()}


class _Fault:
    """Stands for code of ours that is wrong."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *arguments: object) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("our shapes differ"), TypeError("x"), KeyError("x")])
def test_a_fault_of_our_own_while_a_model_loads_keeps_its_traceback(
    settings: Make, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa.model.base._resident", {})
    monkeypatch.setattr("vqa.model.base.structure_of", _Fault(error))
    with pytest.raises(type(error), match=str(error)):
        load_base(settings())


def test_a_model_that_is_asked_wrongly_while_it_loads_is_a_fault_of_our_own(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa.model.base._resident", {})
    monkeypatch.setattr("vqa.model.base.structure_of", lambda model: model(torch.zeros(1, 3)))
    with pytest.raises(RuntimeError, match="Long, Int"):
        load_base(settings())


@pytest.mark.parametrize("case", CASES)
def test_a_broken_model_folder_is_refused_with_a_message(
    tmp_path: Path, settings: Make, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqa.model.base._resident", {})
    folder = tmp_path / "theirs"
    shutil.copytree(model_folder("asset:tiny"), folder)
    CASES[case](folder)
    with pytest.raises(UserError, match=r"^model"):
        ask(settings(f"model.path={folder}", "env.offline=true"))
