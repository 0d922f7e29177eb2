"""Shared prefix against the padded batch: the same LoRA training step on the embedded model, on the CPU.

python -m benchmarks.speed.prefix_sharing --out FILE
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from benchmarks.harness.record import add_output_arguments, write_rows
from vqa.config.check import read_settings, register_resolvers
from vqa.data.source import split_questions
from vqa.model.adapter import attached
from vqa.model.base import load_base
from vqa.model.encode import Encoder
from vqa.model.forward import letter_logits
from vqa.train.losses import answer_loss

CONF = Path(__file__).parents[2] / "conf"
BATCH, REPEATS = 16, 7


def measure(prompt: str, threads: int) -> dict[str, Any]:
    """Median samples per second of forward and backward, both ways, on the same questions."""
    with initialize_config_dir(str(CONF)):
        settings = read_settings(compose("config", overrides=["tracking=none", f"prompt={prompt}"]))
    torch.set_num_threads(threads)
    base = load_base(settings)
    encoder = Encoder(base, settings.prompt, settings.image)
    questions = split_questions(settings)[0].train[:BATCH]
    prefix, suffixes = encoder.prefix(questions[0]), encoder.suffixes(questions)
    packed, padded = encoder.batch(questions), encoder.padded(questions)
    with attached(base, settings.lora, seed=0) as model:

        def shared() -> torch.Tensor:
            return letter_logits(base, packed)

        def plain() -> torch.Tensor:
            logits: torch.Tensor = model(**padded, use_cache=False, logits_to_keep=1).logits[:, -1]
            return logits

        row: dict[str, Any] = {"prompt": prompt, "prefix_tokens": len(prefix), "threads": threads}
        row["suffix_tokens"] = sum(len(s.ids) for s in suffixes) / BATCH
        forwards = {"shared": shared, "padded": plain}
        for name, seconds in _seconds(forwards, packed.targets, base).items():
            row[f"{name}_samples_s"] = round(BATCH / seconds, 1)
    row["speed_up"] = round(row["shared_samples_s"] / row["padded_samples_s"], 2)
    print(json.dumps(row), flush=True)
    return row


def _seconds(
    forwards: dict[str, Callable[[], torch.Tensor]], targets: torch.Tensor, base: Any
) -> dict[str, float]:
    """Median seconds of a step each, taken in turns: other work on the machine slows both alike."""
    times: dict[str, list[float]] = {name: [] for name in forwards}
    for _ in range(REPEATS + 1):
        for name, forward in forwards.items():
            began = time.perf_counter()
            answer_loss(forward(), targets, base.letters[4]).backward()  # type: ignore[no-untyped-call]
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def main() -> None:
    """Parse the command line, measure each prompt, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    add_output_arguments(parser)
    arguments = parser.parse_args()
    register_resolvers()
    rows = [measure(prompt, arguments.threads) for prompt in ("direct_en", "direct_ko", "fewshot_ko")]
    write_rows(arguments.out, "prefix_sharing", rows, arguments.machine, append=False)


if __name__ == "__main__":
    main()
