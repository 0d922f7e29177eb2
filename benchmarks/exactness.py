"""Does the fast path train and score as plain padded batches do, in bfloat16 at full size?

Three training runs on the same rows: plain twice (whole batches, and halves accumulated: their difference is
bfloat16's own noise) and ours. Then the rows are scored with the trained adapter, plain and ours. Plain means
transformers' forward over padded rows with PEFT's own layers. `--model tiny` does the same with the embedded
model on easy-VQA, also on a CPU: unlike random weights it has learnt something, so its answers have margins.

    python -m benchmarks.exactness --work FOLDER --model qwen3_vl_8b --out FILE
    python -m benchmarks.exactness --model tiny --batch 8 --out FILE
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_rows
from benchmarks.throughput import embedded_settings, settings_for
from vqa.adapter import attached
from vqa.encode import Encoder
from vqa.forward import letter_logits
from vqa.letters import option_log_probabilities
from vqa.losses import answer_loss
from vqa.model import load_base
from vqa.question import LETTERS, Question
from vqa.questions import data_source
from vqa.scoring import score


def plain_logits(encoder: Encoder, model: Any, part: list[Question]) -> torch.Tensor:
    """(B, V) by transformers' own forward over padded rows."""
    logits: torch.Tensor = model(**encoder.padded(part), use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits


def curve(
    encoder: Encoder, model: Any, rows: list[Question], way: str, batch: int, rate: float
) -> list[float]:
    """Losses of one step per batch."""
    base = encoder.base
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, fused=True)
    model.train()
    losses = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        pieces = [part[: batch // 2], part[batch // 2 :]] if way == "plain, halves" else [part]
        total = 0.0
        for piece in pieces:
            packed = encoder.batch(piece)
            logits = letter_logits(base, packed) if way == "vqa" else plain_logits(encoder, model, piece)
            loss = answer_loss(logits, packed.targets, base.letters) / len(part)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    model.eval()
    return losses


def compare_scores(encoder: Encoder, model: Any, rows: list[Question], batch: int) -> dict[str, Any]:
    """Plain and ours on the same rows with the same adapter."""
    expected = []
    began = time.perf_counter()
    for start in range(0, len(rows), batch):
        with torch.no_grad():
            logits = plain_logits(encoder, model, rows[start : start + batch])
        expected.append(option_log_probabilities(logits, encoder.base.letters)[0])
    plain_seconds = time.perf_counter() - began
    plain = torch.cat(expected).double().log_softmax(1).cpu()
    began = time.perf_counter()
    found = score(encoder, rows, 64)
    seconds = time.perf_counter() - began
    gold = torch.tensor([LETTERS.index(q.answer or "a") for q in rows])
    ours = torch.tensor([p.p for p in found], dtype=torch.float64).log()
    nll = [float(-values[torch.arange(len(rows)), gold].mean()) for values in (plain, ours)]
    top = plain.sort(1, descending=True).values
    differ = plain.argmax(1) != ours.argmax(1)
    return {
        "who": "vqa",
        "mode": "score",
        "n": len(rows),
        "same_answer": float((~differ).double().mean()),
        "largest_margin_among_differing": float((top[:, 0] - top[:, 1])[differ].max()) if differ.any() else 0,
        "nll_plain": nll[0],
        "nll_vqa": nll[1],
        "samples_s_plain": round(len(rows) / plain_seconds, 2),
        "samples_s": round(len(rows) / seconds, 2),
    }


def main() -> None:
    """Parse the command line, train three times, score twice, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(), help="folder that benchmarks.full_size filled")
    parser.add_argument("--model", default="qwen3_vl_8b")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, help="learning rate; left out: the model's own")
    parser.add_argument("--rows", type=int, default=1000, help="rows to score")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    settings = (
        embedded_settings()
        if arguments.model == "tiny"
        else settings_for(arguments.model, "none", arguments.work)
    )
    rate = arguments.rate or float(settings.optimizer["lr"])
    rows = data_source(settings).train()
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    encoder.look(rows)
    train = rows[: arguments.steps * arguments.batch]
    losses: dict[str, list[float]] = {}
    for way in ("plain", "plain, halves", "vqa"):
        with attached(encoder.base, settings.lora, seed=0) as model:
            losses[way] = curve(encoder, model, train, way, arguments.batch, rate)
            scored = compare_scores(encoder, model, rows[: arguments.rows], 8) if way == "vqa" else {}
    reference = torch.tensor(losses["plain"])
    found: list[dict[str, Any]] = []
    for way, values in losses.items():
        distance = (torch.tensor(values) - reference).abs()
        found.append(
            {
                "who": way,
                "model": arguments.model,
                "mode": "train",
                "batch": arguments.batch,
                "mean_distance_to_plain": float(distance.mean()),
                "largest_distance_to_plain": float(distance.max()),
                "losses": [round(value, 4) for value in values],
            }
        )
        print({k: v for k, v in found[-1].items() if k != "losses"}, values[::10], flush=True)
    print(scored, flush=True)
    write_rows(arguments.out, "exactness", [*found, scored | {"model": arguments.model}])


if __name__ == "__main__":
    main()
