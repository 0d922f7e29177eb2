"""Does the fast path train and score as plain padded batches do, in bfloat16 at full size?

Plain means transformers' forward over padded rows with PEFT's own layers. The same rows are trained on in
several ways: plain twice (torch's fused attention and the eager one: their difference is bfloat16's own
noise), ours, and plain in float32, the curve that all of them stand for. Then the rows are scored with the
trained adapter, plain and ours. `--clear` writes the answer into the question, in words that random weights
can learn in fifty steps: answers get the margins that those of a real model have. `--model tiny` takes the
embedded model and easy-VQA instead, also on a CPU.

    python -m benchmarks.speed.exactness --work FOLDER --model qwen3_vl_8b --clear --float32 25 --out FILE
    python -m benchmarks.speed.exactness --model tiny --batch 8 --out FILE
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.record import write_rows
from benchmarks.speed.throughput import embedded_settings, settings_for
from vqa.answer.score import score
from vqa.config.settings import Settings
from vqa.data.source import data_source
from vqa.model.adapter import adapter_state, attached, restore
from vqa.model.base import load_base
from vqa.model.encode import Encoder
from vqa.model.forward import letter_logits
from vqa.model.letters import option_log_probabilities
from vqa.question import LETTERS, Question
from vqa.train.losses import answer_loss

TELLING = ("봄", "여름", "가을", "겨울")  # one word per answer
REPEATS = 48  # random attention is nearly uniform: a word must be a good part of the tokens to be noticed


def clear(questions: list[Question], rows: int, pictures: int = 200) -> list[Question]:
    """Questions whose text tells the answer, over the first pictures again and again."""
    found = []
    for i in range(rows):
        question = questions[i % len(questions)]
        seen = questions[(i + i // len(questions)) % min(pictures, len(questions))]  # another one each round
        word = TELLING[LETTERS.index(question.answer or "a")]
        found.append(
            replace(
                question,
                id=f"{question.id}_{i}",
                text=f"{word} " * REPEATS,
                image=seen.image,
                image_sha256=seen.image_sha256,
            )
        )
    return found


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Let the language model use one of transformers' attentions inside the block."""
    config = model.model.language_model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def plain_logits(encoder: Encoder, model: Any, part: list[Question]) -> torch.Tensor:
    """(B, V) by transformers' own forward over padded rows."""
    logits: torch.Tensor = model(**encoder.padded(part), use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits


def curve(
    encoder: Encoder, model: Any, rows: list[Question], way: str, batch: int, rate: float
) -> list[float]:
    """Losses of one step per batch."""
    base = encoder.base
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, fused=True)
    model.train()
    losses = []
    with attention(base.model, "eager" if way == "plain, eager" else "sdpa"):
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            packed = encoder.batch(part)
            logits = letter_logits(base, packed) if way == "vqa" else plain_logits(encoder, model, part)
            loss = answer_loss(logits, packed.targets, base.letters[4]) / len(part)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    model.eval()
    return losses


def compare_scores(encoder: Encoder, model: Any, rows: list[Question], batch: int) -> dict[str, Any]:
    """Plain and ours on the same rows with the same adapter."""
    expected = []
    began = time.perf_counter()
    for start in range(0, len(rows), batch):
        with torch.no_grad():
            logits = plain_logits(encoder, model, rows[start : start + batch])
        expected.append(option_log_probabilities(logits, encoder.base.letters[4])[0])
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


def in_half_precision(
    settings: Settings, rows: list[Question], arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, Any], Any, Any]:
    """Loss curves by way, the comparison of scores, and what a float32 run needs to begin alike."""
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    encoder.look(rows)
    train = rows[: arguments.steps * arguments.batch]
    losses: dict[str, list[float]] = {}
    start: dict[str, torch.Tensor] = {}
    scored: dict[str, Any] = {}
    for way in ("vqa", "plain", "plain, eager"):
        with attached(encoder.base, settings.lora, seed=0) as model:
            start = {name: tensor.detach().cpu().clone() for name, tensor in adapter_state(model).items()}
            losses[way] = curve(encoder, model, train, way, arguments.batch, arguments.rate)
            print(way, [round(value, 3) for value in losses[way][::5]], flush=True)
            if way == "vqa":
                scored = compare_scores(encoder, model, rows[: arguments.rows], arguments.score_batch)
                print(scored, flush=True)
    return losses, scored, start, encoder.base.vision.kept


def in_float32(
    settings: Settings, rows: list[Question], arguments: argparse.Namespace, start: Any, features: Any
) -> list[float]:
    """The plain loss curve with the same weights, features and adapter in float32."""
    settings.precision = "float32"
    encoder = Encoder(load_base(settings), settings.prompt, settings.image)
    encoder.base.vision.kept.update(features)
    # float32 activations of an 8B model do not fit into 80 GB; computed again they are the same
    encoder.base.model.gradient_checkpointing_enable({"use_reentrant": False})
    with attached(encoder.base, settings.lora, seed=0) as model:
        restore(model, start)
        train = rows[: arguments.float32 * arguments.batch]
        return curve(encoder, model, train, "plain", arguments.batch, arguments.rate)


def curve_rows(losses: dict[str, list[float]], exact: list[float]) -> list[dict[str, Any]]:
    """One row per way: its curve, and how far it is from plain and, as far as that goes, from float32."""
    found = []
    for way, values in losses.items():
        row: dict[str, Any] = {"who": way, "mode": "train"}
        for name, other in (("plain", losses["plain"]), ("float32", exact)):
            if other:
                pairs = zip(values, other, strict=False)  # as far as the shorter one goes
                distance = torch.tensor([abs(value - wanted) for value, wanted in pairs])
                row[f"mean_distance_to_{name}"] = float(distance.mean())
                row[f"largest_distance_to_{name}"] = float(distance.max())
        found.append(row | {"losses": [round(value, 4) for value in values]})
        print({k: v for k, v in found[-1].items() if k != "losses"}, flush=True)
    return found


def main() -> None:
    """Parse the command line, train in several ways, score twice, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(), help="folder that harness.full_size filled")
    parser.add_argument("--model", default="qwen3_vl_8b")
    parser.add_argument("--clear", action="store_true", help="questions whose text tells the answer")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--float32", type=int, default=0, help="steps of a plain run in float32")
    parser.add_argument("--rate", type=float, help="learning rate; left out: the model's own")
    parser.add_argument("--rows", type=int, default=1000, help="rows to score")
    parser.add_argument("--score-batch", type=int, default=8, help="rows of a plain scoring batch")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    settings = (
        embedded_settings()
        if arguments.model == "tiny"
        else settings_for(arguments.model, "none", arguments.work)
    )
    arguments.rate = arguments.rate or float(settings.optimizer["lr"])
    rows = data_source(settings).train()
    if arguments.clear:
        rows = clear(rows, max(arguments.rows, arguments.steps * arguments.batch))
    losses, scored, start, features = in_half_precision(settings, rows, arguments)
    exact: list[float] = []
    if arguments.float32:
        exact = in_float32(settings, rows, arguments, start, features)
        losses["plain, float32"] = exact
    about = {"model": arguments.model, "batch": arguments.batch}
    write_rows(arguments.out, "exactness", [about | row for row in [*curve_rows(losses, exact), scored]])


if __name__ == "__main__":
    main()
