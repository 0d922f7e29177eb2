"""A model folder or adapter of a stranger whose files name code: refused or without effect, never run."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from transformers import AutoTokenizer

from tests.conftest import Make
from vqa.answer.score import score
from vqa.config.settings import Settings
from vqa.data.source import split_questions
from vqa.errors import UserError
from vqa.model.base import Base, load_base, model_folder, read_model_config, read_processor
from vqa.model.encode import Encoder
from vqa.model.generic_prompt import PromptWriter
from vqa.model.prompt import as_written, render
from vqa.question import Question
from vqa.results.adapter_record import read_record, with_record

pytestmark = pytest.mark.hostile
CODE = "theirs.Bird"
BIRD = """
from pathlib import Path
Path({bird!r}).touch()


class Bird:
    def __init__(self, *arguments, **named):
        Path({bird!r}).touch()

    @classmethod
    def from_pretrained(cls, *arguments, **named):
        return cls()


generate = Bird
"""


class Egg:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A copy of the embedded model with a module that leaves a file when it runs, and that file."""
    folder, bird = tmp_path / "theirs", tmp_path / "sang"
    shutil.copytree(model_folder("asset:tiny"), folder)
    for path in ("theirs.py", "custom_generate/generate.py"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(BIRD.format(bird=str(bird)))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("vqa.model.base._resident", {})
    return folder, bird


def changed(name: str, **values: Any) -> Callable[[Path], None]:
    """Adds values to a JSON file of the folder."""

    def change(folder: Path) -> None:
        path = folder / name
        stored = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(stored | values))

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(
        pickle.dumps({"lm_head.weight": Egg(folder.with_name("sang"))})
    )


def pickled_shards(folder: Path) -> None:
    pickled(folder)
    (folder / "pytorch_model.bin").rename(folder / "one.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "one.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def outside_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../../../../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def jinja(folder: Path) -> None:
    text = "{{ cycler.__init__.__globals__.os.mkdir('BIRD') }}{{ messages.__class__.__mro__ }}"
    text = text.replace("BIRD", str(folder.with_name("sang")))
    (folder / "chat_template.jinja").write_text(text)


AUTO: dict[str, Any] = {
    "AutoConfig": CODE,
    "AutoModel": CODE,
    "AutoModelForImageTextToText": CODE,
    "AutoTokenizer": [CODE, CODE],
    "AutoProcessor": CODE,
    "AutoImageProcessor": CODE,
}
FILES: dict[str, Callable[[Path], None]] = {
    "config": changed("config.json", auto_map=AUTO),
    "config of another type": changed("config.json", auto_map=AUTO, model_type="theirs"),
    "architecture": changed("config.json", auto_map=AUTO, architectures=["Bird"]),
    "tokenizer": changed("tokenizer_config.json", auto_map=AUTO),
    "tokenizer of another class": changed("tokenizer_config.json", auto_map=AUTO, tokenizer_class="Bird"),
    "pictures": changed("preprocessor_config.json", auto_map=AUTO),
    "pictures of another class": changed(
        "preprocessor_config.json", auto_map=AUTO, image_processor_type="Bird"
    ),
    "processor": changed("processor_config.json", auto_map=AUTO, processor_class="Bird"),
    "processor in the tokenizer": changed("tokenizer_config.json", auto_map=AUTO, processor_class="Bird"),
    "generation": changed("generation_config.json", custom_generate="theirs", trust_remote_code=True),
    "trust in the config": changed("config.json", auto_map=AUTO, trust_remote_code=True),
    "kernel of the hub": changed("config.json", _attn_implementation="theirs/kernel", use_kernels=True),
    "pickled weights": pickled,
    "pickled shards": pickled_shards,
    "shards elsewhere": outside_shards,
    "chat template": jinja,
}


HARMLESS = {
    *("config", "architecture", "tokenizer", "pictures", "generation", "trust in the config"),
    *("processor", "processor in the tokenizer", "tokenizer of another class"),
}


@pytest.mark.parametrize("file", sorted(FILES.keys() - HARMLESS))
def test_a_model_folder_that_needs_code_is_refused(
    theirs: tuple[Path, Path], settings: Make, file: str
) -> None:
    folder, bird = theirs
    FILES[file](folder)
    refusal = r"^model(.path)?(=|: ).*(cannot be (loaded|filled in)|code of others)"
    with pytest.raises(UserError, match=refusal):
        ask(settings(f"model.path={folder}", "env.offline=true"))
    assert not bird.exists()


TEMPLATES = {
    "{{ 1 / 0 }}": "ZeroDivisionError: division by zero",
    "{{ 1 + 'x' }}": "TypeError",
    "{{ 'x'.index('y') }}": "ValueError: substring not found",
    "{{ '%d' % 'x' }}": "TypeError",
    "{{ '%(a)s' % {} }}": "KeyError",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError",
    "{% for a in range(10 ** 9) %}{% endfor %}": "OverflowError",
    "{{ 'x' * 10 ** 15 }}": "MemoryError",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "TimeoutError",
    "{% if %}": "TemplateSyntaxError",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_goes_wrong_or_does_not_end_is_refused(
    settings: Make, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    for module in ("prompt", "generic_prompt"):
        monkeypatch.setattr(f"vqa.model.{module}.TEMPLATE_S", 0.2)
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder("asset:tiny"))
    tokenizer.chat_template = template
    processor = SimpleNamespace(chat_template=template)
    question, prompt = Question("q", None, "", "What?", ("1", "2", "3", "4")), settings().prompt
    reason = re.escape(TEMPLATES[template])
    with pytest.raises(UserError, match=rf"its chat template cannot be filled in \({reason}"):
        render(tokenizer, prompt, question, as_written(question))
    with pytest.raises(UserError, match=rf"its chat template refuses the prompt \({reason}"):
        PromptWriter(processor, tokenizer, {}, ["<image>"]).text(prompt, question)


def test_code_that_a_model_folder_does_not_need_stays_where_it_is(
    theirs: tuple[Path, Path], settings: Make
) -> None:
    folder, bird = theirs
    for file in HARMLESS:
        FILES[file](folder)
    ask(settings(f"model.path={folder}", "env.offline=true"))
    assert not bird.exists()


def ask(made: Settings) -> None:
    """Configuration, processor, weights, and one question through templates and model."""
    read_processor(made, read_model_config(made))
    split, _ = split_questions(made)
    assert score(Encoder(load_base(made), made.prompt, made.image), split.valid[:1], 1)


ADAPTERS: dict[str, dict[str, Any]] = {
    "another base": {"base_model_name_or_path": "{theirs}"},
    "mapping": {"auto_mapping": {"base_model_class": "Bird", "parent_library": "theirs"}},
    "method": {"peft_type": "THEIRS"},
    "corda": {"corda_config": {"cache_file": "{theirs}/corda.pt"}, "init_lora_weights": "corda"},
    "eva": {"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"},
    "start from a file": {"init_lora_weights": "{theirs}/weights.pt"},
    "runtime": {"runtime_config": {"ephemeral_gpu_offload": "theirs.Bird"}},
    "megatron": {"megatron_config": {}, "megatron_core": "theirs"},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_runs_no_code_and_brings_no_base(
    theirs: tuple[Path, Path], base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from safetensors.torch import save_file

    from vqa.model.adapter import loaded

    folder, bird = theirs
    monkeypatch.syspath_prepend(str(folder))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "asset:tiny",
    }
    text = json.dumps(config | ADAPTERS[kind]).replace("{theirs}", str(folder))
    (adapter / "adapter_config.json").write_text(text)
    save_file({}, adapter / "adapter_model.safetensors")
    (folder / "weights.pt").write_bytes(pickle.dumps(Egg(bird)))
    (folder / "corda.pt").write_bytes(pickle.dumps(Egg(bird)))
    with pytest.raises(UserError, match=r"adapter="), loaded(base, adapter):
        pass
    assert not bird.exists()
    assert not hasattr(base.model, "peft_config")


TOO_MUCH: dict[str, dict[str, Any]] = {
    "rank": {"r": 10**9},
    "rank of one module": {"rank_pattern": {"q_proj": 10**9}},
    "rank that is none": {"rank_pattern": {"q_proj": "x"}},
    "target": {"target_modules": "(([a-z._0-9]+)+)+!"},
    "excluded": {"exclude_modules": "(([a-z._0-9]+)+)+!"},
    "pattern of a rank": {"rank_pattern": {"(([a-z._0-9]+)+)+!": 4}},
    "pattern of an alpha": {"alpha_pattern": {"(([a-z._0-9]+)+)+!": 4}},
    "no expression": {"target_modules": "((("},
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_an_adapter_that_takes_all_memory_or_time_is_refused(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from safetensors.torch import save_file

    from vqa.model.adapter import loaded

    monkeypatch.setattr("vqa.model.adapter.PATTERN_S", 0.5)
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | TOO_MUCH[kind]))
    save_file(
        {"base_model.model.q_proj.lora_A.weight": torch.zeros(4, 8)}, tmp_path / "adapter_model.safetensors"
    )
    with (
        pytest.raises(UserError, match=r"adapter=.*(adapter_config.json has r=|takes longer|no regular)"),
        loaded(base, tmp_path),
    ):
        pass
    assert not hasattr(base.model, "peft_config")


RECORDS = {
    "empty": "",
    "a list": "[1, 2]",
    "a text": "x",
    "no configuration": "choices: {}",
    "no choices": "config: {model: {path: x}}",
    "wrong kinds": "{choices: [], config: []}",
    "an object": "config: !!python/object/apply:os.system ['true']",
    "another class of data": "{choices: {}, config: {data: {_target_: os.system, command: 'true'}}}",
    "a text for a group": "{choices: {}, config: {data: x, model: y, prompt: z}}",
    "a resolver": "{choices: {}, config: {model: {path: '${theirs:}'}}}",
    "nested too deeply": "{choices: {}, config: " + "[" * 3000 + "]" * 3000 + "}",
    "itself": "{choices: {}, config: {model: {path: '${model.path}'}}}",
}


@pytest.mark.parametrize("kind", RECORDS)
def test_an_adapters_record_is_checked_like_a_configuration(
    composed: Callable[..., DictConfig], tmp_path: Path, kind: str
) -> None:
    from vqa.config.check import read_settings

    (tmp_path / "vqa.yaml").write_text(RECORDS[kind])
    cfg = composed("stage=predict")

    def take() -> None:
        record = read_record(tmp_path)
        assert record is not None
        read_settings(with_record(cfg, record, [], None)[0])

    # the command line ends with 2 at both
    with pytest.raises((UserError, OmegaConfBaseException), match=r"vqa.yaml|data|model|prompt"):
        take()
