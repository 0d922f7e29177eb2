"""Everyday commands start at once: heavy libraries are imported only where there is work for them."""

import subprocess
import sys
import time

import pytest
from conftest import environment

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
        (["quantization=nf4", "+quantization.weights.load_in_4bits=true"], 2, 2.0),
    ],
)
def test_help_and_mistakes_show_at_once(arguments: list[str], code: int, seconds: float) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "vqa.run", *arguments]
    taken = []
    for _ in range(3):  # the machine may be busy with something else
        begun = time.perf_counter()
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        taken.append(time.perf_counter() - begun)
    assert done.returncode == code, done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert imported & {*HEAVY} == set()
    assert min(taken) < seconds
