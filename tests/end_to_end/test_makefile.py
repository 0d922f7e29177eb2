"""What `make` does on a fresh machine, read from its own dry run."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def installation(uv: str) -> list[str]:
    """The commands that install everything where `uv` is the path of uv; empty: there is none."""
    command = ["make", "--dry-run", "--always-make", f"UV={uv}", ".venv/.installed"]
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }  # make test's own
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_line_names_every_step_before_it_is_taken() -> None:
    commands = installation(uv="")
    named = [number for number, line in enumerate(commands) if line.startswith('echo "[')]
    assert [commands[number][6:11] for number in named] == ["[1/3]", "[2/3]", "[3/3]"]
    for number, what in zip(named, (".venv", "torch", '--editable ".[dev,postgresql]"'), strict=True):
        assert commands[number + 1].endswith(what)


@pytest.mark.parametrize(
    ("uv", "tool"), [("", "-m pip install"), ("/a folder/uv", '"/a folder/uv" pip install')]
)
def test_torch_comes_by_pip_and_the_rest_by_uv_where_it_is(uv: str, tool: str) -> None:
    torch, rest = (line for line in installation(uv) if " install " in line)
    assert "-m pip install" in torch
    assert torch.endswith(" torch")
    assert tool in rest
    assert "--constraint constraints.txt" in rest
