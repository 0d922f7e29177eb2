"""A dataset class in my_data.py of the working folder is taken; nothing else outside the package is."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vqa.config.library import build, check_target
from vqa.errors import UserError

CODE = """
import os
from dataclasses import dataclass

@dataclass(frozen=True)
class Quiz:
    size: int

    def train(self):
        return [self.size]

def function():
    pass
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_data", None)


def test_class_of_the_working_folder_is_built(here: Path) -> None:
    (here / "my_data.py").write_text(CODE)
    node = {"_target_": "my_data.Quiz", "size": 3}
    check_target("data", node)
    assert build("data", node).train() == [3]
    with pytest.raises(UserError, match=r"data\.sise: my_data\.Quiz has no such argument; it has: size"):
        check_target("data", {"_target_": "my_data.Quiz", "sise": 3})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_data.os.system", "must be my_data.Class"),
        ("my_data.os", "defines no class os"),
        ("my_data.function", "defines no class function"),
        ("my_data.dataclass", "defines no class dataclass"),
        ("my_data2.Quiz", "must be one of"),
        ("my_data", "must be one of"),
    ],
)
def test_nothing_else_is_called(here: Path, target: str, message: str) -> None:
    (here / "my_data.py").write_text(CODE)
    for call in (check_target, build):
        with pytest.raises(UserError, match=message if call is check_target else "data"):
            call("data", {"_target_": target, "command": "touch canary"})
    assert not (here / "canary").exists()


@pytest.mark.parametrize(("code", "message"), [(None, "there is no"), ("def", "invalid syntax")])
def test_missing_or_broken_file_is_said(here: Path, code: str | None, message: str) -> None:
    if code is not None:
        (here / "my_data.py").write_text(code)
    with pytest.raises(UserError, match=message):
        check_target("data", {"_target_": "my_data.Quiz"})
