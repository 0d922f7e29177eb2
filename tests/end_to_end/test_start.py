"""Everyday commands start at once: heavy libraries are imported only where there is work for them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import CONF, environment

HEAVY = ("torch", "transformers", "mlflow", "matplotlib", "sklearn", "peft", "optuna")


@pytest.mark.parametrize(
    ("arguments", "code", "seconds"),
    [
        (["--help"], 0, 1.5),
        (["budget.epochs=0"], 2, 2.0),
        (["modle=tiny"], 2, 2.0),
        (["model=qwen9"], 2, 2.0),
        (["+data.trian_size=3"], 2, 2.0),
        (["+image.sise=3"], 2, 2.0),
        (["+lora.rnak=8"], 2, 2.0),
        (["+optimizer.momentum=0.9"], 2, 2.0),
        (["optimizer=adamw_8bit", "+optimizer.fused=true"], 2, 2.0),
        (["+scheduler.schedule.warmup=3"], 2, 2.0),
        (["stage=doctor", "data=csv", "data.train_csv=nope.csv"], 2, 2.0),
        (["quantization=nf4", "+quantization.weights.load_in_4bits=true"], 2, 2.0),
    ],
)
def test_help_and_mistakes_show_at_once(arguments: list[str], code: int, seconds: float) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "vqa.run", *arguments]
    for _ in range(3):  # the machine may be busy with something else
        begun = time.perf_counter()
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        if (taken := time.perf_counter() - begun) < seconds:
            break
    assert done.returncode == code, done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert imported & {*HEAVY} == set()
    assert taken < seconds


def test_a_sweep_tells_of_a_missing_file_before_it_opens_a_study(tmp_path: Path) -> None:
    given = ["+sweep=lora", "data=csv", "data.train_csv=nope.csv", f"hydra.sweep.dir={tmp_path}/mine"]
    command = [sys.executable, "-X", "importtime", "-m", "vqa.run", "-m", *given]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "data.train_csv=nope.csv: there is no such file in" in done.stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert imported & {*HEAVY, "sqlalchemy", "rich"} == set()
    assert not (tmp_path / "mine").exists()


def test_a_right_configuration_imports_no_library_before_its_environment_is_set() -> None:
    """The hub library reads HF_HOME when it is imported; `env.hf_home` is set after the settings are read."""
    code = f"""
import sys
from hydra import compose, initialize_config_dir
from vqa.config.check import read_settings, register_resolvers
register_resolvers()
with initialize_config_dir({str(CONF)!r}):
    read_settings(compose("config", ["quantization=nf4", "optimizer=adamw_8bit"]))
print(*sorted(sys.modules.keys() & {{"torch", "transformers", "huggingface_hub", "peft", "bitsandbytes"}}))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
