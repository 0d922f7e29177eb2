"""Pre-trains the embedded tiny base model: `python -m pretrain.train OUT`, about five minutes on one H200.

Writes a folder that `from_pretrained` loads. Batch i depends on the seed and i alone, so a rerun sees the
same data in the same order; its weights agree up to the GPU's order of summation.
"""

import argparse
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pretrain.batches import Batch, GeneratedBatches
from pretrain.examples import LETTERS
from pretrain.network import LeanForward, make_config, make_model
from pretrain.tokenizer import token_id, train_tokenizer, write_processor

LEARNING_RATE = 1.2e-3
WARM_UP_STEPS = 400
FLAT_SHARE = 0.4  # of all steps before the cosine begins
FLOOR = 0.02  # of the peak, at the end
WEIGHT_DECAY = 0.05  # matrices and embeddings only
BETAS = (0.9, 0.98)
MAX_GRADIENT_NORM = 1.0
REPORT_EVERY = 500  # steps


@dataclass(frozen=True)
class Recipe:
    """What the command line sets.

    Args:
        out: Folder to write.
        steps: Optimiser steps.
        scenes: Pictures per step.
        questions: Questions per picture.
        workers: Processes that make batches; 0 makes them in the training process. Does not change the data.
        corpus: Generated prompts that the tokenizer learns from.
        seed: Of weights, data and tokenizer.
    """

    out: Path
    steps: int
    scenes: int
    questions: int
    workers: int
    corpus: int
    seed: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and pre-trains."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.train",
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=14_000, help="optimiser steps")
    parser.add_argument("--scenes", type=int, default=128, help="pictures per step")
    parser.add_argument("--questions", type=int, default=8, help="questions per picture")
    parser.add_argument("--workers", type=int, default=(os.cpu_count() or 1) - 1, help="data processes")
    parser.add_argument("--corpus", type=int, default=30_000, help="prompts that the tokenizer learns from")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and tokenizer")
    pretrain(Recipe(**vars(parser.parse_args(arguments))))


def pretrain(recipe: Recipe) -> None:
    """Makes the tokenizer, trains the model, writes both."""
    tokenizer = train_tokenizer(recipe.corpus, recipe.seed)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # from here on only the forked data processes use it
    torch.manual_seed(recipe.seed)
    config = make_config(tokenizer)
    model = make_model(config)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{parameters:,} parameters, {tokenizer.get_vocab_size()} tokens", flush=True)

    data = GeneratedBatches(tokenizer, recipe.steps, recipe.scenes, recipe.questions, recipe.seed)
    letters = torch.tensor([token_id(tokenizer, letter) for letter in LETTERS])
    train(LeanForward(model), data, letters, recipe.workers)

    write_processor(tokenizer, recipe.out)
    model.bfloat16().save_pretrained(recipe.out)
    size = (recipe.out / "model.safetensors").stat().st_size
    print(f"wrote {recipe.out}: model.safetensors {size:,} bytes", flush=True)


def train(network: nn.Module, data: GeneratedBatches, letters: Tensor, workers: int) -> None:
    """Trains in place on every batch of `data`, on the GPU where there is one.

    A step whose gradients are not finite is skipped and counted, on the device: `GradScaler`, at scale 1, is
    PyTorch's way to do that without waiting for the GPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    # cuDNN's attention has a faulty backward for lengths such as our 64 patches (NaN by step 700 on an H100).
    # Source: https://github.com/pytorch/pytorch/issues/196678
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("high")
    loader = DataLoader(
        data, batch_size=None, num_workers=workers, pin_memory=on_gpu, prefetch_factor=4 if workers else None
    )
    batches = iter(loader)  # the data processes start here, before CUDA does
    network.to(device)
    letters = letters.to(device)
    objective = torch.compile(measure, dynamic=False) if on_gpu else measure
    optimizer = make_optimizer(network)
    skipper = torch.amp.GradScaler(device.type, init_scale=1.0, growth_interval=2**30)
    skipped = torch.zeros((), dtype=torch.long, device=device)
    start = time.monotonic()
    for step, batch in enumerate(batches):
        batch = Batch(*(part.to(device, non_blocking=True) for part in batch))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule(step, len(data))
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss, hits = objective(network, batch)
        torch.autograd.backward(skipper.scale(loss))
        skipper.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        skipper.step(optimizer)
        skipper.update(1.0)
        optimizer.zero_grad(set_to_none=True)
        skipped += ~norm.isfinite()
        if step == 0 or (step + 1) % REPORT_EVERY == 0 or step + 1 == len(data):
            four_choice = torch.isin(batch.labels[:, 0], letters)
            print(
                f"step {step + 1:6d}  {time.monotonic() - start:6.1f} s  loss {loss.item():.3f}  "
                f"4-choice {hits[four_choice].float().mean().item():.3f}  "
                f"other {hits[~four_choice].float().mean().item():.3f}  skipped {int(skipped)}",
                flush=True,
            )
    network.to("cpu")


def measure(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss, and for each text whether its first answer token is the likeliest one, (B,).

    The loss is the mean of two cross-entropies: over all answer tokens, and over first answer tokens alone,
    so that captions and long words do not drown the letters.
    """
    labels = batch.labels.long()
    logits = network(batch.ids.long(), batch.images, batch.positions.long()).float()
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    loss = 0.5 * losses.sum() / (labels >= 0).sum() + 0.5 * losses[:, 0].mean()
    return loss, logits[:, 0].argmax(-1) == labels[:, 0]


def make_optimizer(network: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices and embeddings, not norms and biases."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, flat for 40 % of the steps, cosine down to 2 %."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    done = max(0.0, (step / steps - FLAT_SHARE) / (1 - FLAT_SHARE))
    return warm_up * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


if __name__ == "__main__":
    main()
