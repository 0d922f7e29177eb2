"""What the source says is what importing says, for every target of conf/; what it leaves open is None."""

import inspect
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_object

from tests.conftest import CONF
from vqa.config.library import argument_names

PLACES = ("lora", "optimizer", "scheduler", "quantization", "data")


def configured_targets() -> list[str]:
    """Every `_target_` of the groups that `vqa.config.library` checks."""
    texts = [yaml.safe_load(path.read_text()) for place in PLACES for path in (CONF / place).glob("*.yaml")]
    nodes = [node for text in texts for node in (text, *text.values()) if isinstance(node, dict)]
    return sorted({node["_target_"] for node in nodes if "_target_" in node})


@pytest.mark.parametrize("target", [*configured_targets(), "peft.LoraConfig", "torch.optim.SGD"])
def test_the_source_tells_what_an_import_tells(target: str) -> None:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    imported = inspect.signature(get_object(target)).parameters.values()
    found = argument_names(target)
    assert found is not None
    assert sorted(found) == sorted(p.name for p in imported if p.kind in named)


PACKAGE = {
    "__init__.py": """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from .deep import Made as Chosen
from .deep import *
from .deep import Twice
if TYPE_CHECKING:
    from .other import Twice
""",
    "deep/__init__.py": """
from .inner import Computed, Heir, Made, Meta, Told, grown
from ..other import Twice
""",
    "deep/inner.py": """
from dataclasses import dataclass, field
from ..other import Base, Twice
import other
@dataclass
class Made(Base):
    own: int
    hidden: int = field(init=False)
    count = 3
class Heir(Twice): ...
class Computed(other.Base): ...
class Told:
    def __init__(self, /, a, b): ...
class Meta(Twice, metaclass=type): ...
def grown(a, /, b, *args, c=1, **kwargs): ...
""",
    "other.py": """
from dataclasses import dataclass
class Plain: ...
@dataclass
class Base(Plain):
    inherited: int
class Twice:
    def __init__(self, x, *, y=0): ...
""",
}


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("sourced.Chosen", ["inherited", "own"]),
        ("sourced.deep.Made", ["inherited", "own"]),
        ("sourced.deep.Heir", ["x", "y"]),
        ("sourced.deep.grown", ["b", "c"]),
        ("sourced.deep.Told", ["a", "b"]),
        ("sourced.deep.Computed", None),
        ("sourced.deep.Meta", None),
        ("sourced.Twice", None),
        ("sourced.Star", None),
        ("sourced.nowhere.Made", None),
        ("no_such_package.Made", None),
        ("Made", None),
    ],
)
def test_names_are_followed_to_their_definition_or_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, names: list[str] | None
) -> None:
    for name, text in PACKAGE.items():
        path = tmp_path / "sourced" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert argument_names(target) == names
