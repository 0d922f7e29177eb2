"""The plugin: found by Hydra, and light."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from vqa.sweep.sweeper import StudySweeper

ROOT = Path(__file__).parents[2]
APP = Path(__file__).parents[1] / "helpers" / "toy_app" / "app.py"


def test_hydra_finds_the_plugin() -> None:
    assert any(entry.value.startswith("vqa.sweep.sweeper") for entry in entry_points(group="hydra.plugins"))
    assert StudySweeper in Plugins.instance().discover(Sweeper)


def test_importing_the_plugin_loads_nothing_heavy() -> None:
    heavy = ["optuna", "torch", "scipy", "mlflow"]
    code = f"import sys, vqa.sweep.sweeper; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_checkout_that_was_never_installed_finds_it_too() -> None:
    # an installed package is known by its entry points; without them the refusal must still be the sweeper's
    code = (
        "import importlib.metadata as m, runpy\n"
        "m.entry_points = lambda **_: []\n"
        "runpy.run_module('vqa.run', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "-m", "+sweep=lora", "hydra.sweeper.n_trials=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "vqa: hydra.sweeper.n_trials must be a whole number >= 1, got 0.\n"


@pytest.mark.slow
def test_exit_codes_of_the_command(tmp_path: Path) -> None:
    def run(*overrides: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(APP), "-m", "+sweep=toy", "hydra.sweeper.n_trials=1", *overrides]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    refused = run("hydra.sweeper.n_trials=0")
    assert refused.returncode == 2
    assert refused.stderr == "hydra.sweeper.n_trials must be a whole number >= 1, got 0.\n"
    assert run().returncode == 0
    again = run()
    assert again.returncode == 0
    assert "nothing is left" in again.stdout
