"""Questions per second of models beyond Qwen-VL at true size, random weights, beside plain transformers.

The workload is that of benchmarks.speed.throughput. "plain" is a loop as model cards show it: transformers'
forward on whole padded prompts with pixels, PEFT, gradient checkpointing, AdamW; its pictures are processed
before the clock starts. Needs a GPU and a folder with a Qwen tokenizer:

    python -m benchmarks.speed.families --tokenizer FOLDER --work FOLDER --model internvl3_5_8b
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.full_size import fill_randomly, make_contest
from benchmarks.harness.record import write_rows
from benchmarks.harness.true_sizes import true_config
from benchmarks.speed.throughput import peak_gib, score_row, settings_for, train_row
from vqa.config.settings import Settings
from vqa.data.image import fit_image, load_image
from vqa.data.source import data_source
from vqa.machine.device import limit_memory, release_memory
from vqa.model.adapter import attached
from vqa.model.base import Base, load_base
from vqa.model.encode import Encoder
from vqa.model.families.structure import model_class
from vqa.model.own_text import OwnText
from vqa.model.vision.generic_pictures import budget_arguments
from vqa.question import LETTERS, Question
from vqa.train.plan import plan_fit

TEMPLATE = (  # ChatML with the picture's mark, and an empty thought where thinking is off
    "{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{{% for c in m['content'] %}}"
    "{{% if c['type'] == 'image' %}}{image}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}"
    "<|im_end|>\n{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{think}{{% endif %}}"
)


@dataclass(frozen=True)
class Files:
    """What a checkpoint of a family has beside its weights.

    Args:
        tokens: Named special tokens.
        image: What the template writes for a picture.
        pixels: preprocessor_config.json.
        ids: Configuration keys, and the tokens whose ids they are.
        think: Written before the answer.
    """

    tokens: dict[str, str]
    image: str
    pixels: dict[str, Any]
    ids: dict[str, str]
    think: str = ""
    whole: dict[str, Any] = field(default_factory=dict)


GEMMA = Files(  # its processor refuses a tokenizer without tokens for sound, whether there is any or not
    tokens={
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    },
    image="<|image|>",
    pixels={"image_processor_type": "Gemma4ImageProcessor", "max_soft_tokens": 280},
    ids={"image_token_id": "image_token", "boi_token_id": "boi_token", "eoi_token_id": "eoi_token"},
)
FILES = {
    "qwen3_5": Files(
        tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
        image="<|vision_start|><|image_pad|><|vision_end|>",
        pixels={
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "size": {"shortest_edge": 65536, "longest_edge": 16777216},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        ids={
            "image_token_id": "image_token",
            "video_token_id": "video_token",
            "vision_start_token_id": "vision_bos_token",
            "vision_end_token_id": "vision_eos_token",
        },
        think="<think>\n\n</think>\n\n",
    ),
    "gemma4": GEMMA,
    "gemma4_unified": GEMMA,
    "internvl": Files(
        tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        image="<IMG_CONTEXT>\n",
        pixels={"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 448, "width": 448}},
        ids={"image_token_id": "context_image_token"},
        whole={"image_seq_length": 256},
    ),
}


def make_checkpoint(name: str, folder: Path, tokenizer: Path) -> None:
    """Write a checkpoint of the true size with random bfloat16 weights, as the hub would hold it."""
    from transformers import AutoTokenizer
    from transformers.initialization import no_init_weights

    kind = true_config(name).model_type
    files = FILES[kind]
    words: Any = AutoTokenizer.from_pretrained(tokenizer, extra_special_tokens=files.tokens)
    words.chat_template = TEMPLATE.format(image=files.image, think=files.think)
    words.save_pretrained(folder)
    ids = {key: words.convert_tokens_to_ids(files.tokens[token]) for key, token in files.ids.items()}
    config = true_config(name, **ids)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"), no_init_weights():
        model = model_class(config)(config)
    torch.set_default_dtype(torch.float32)
    model.tie_weights()
    fill_randomly(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(files.pixels))
    (folder / "processor_config.json").write_text(json.dumps(files.whole))
    del model
    torch.cuda.empty_cache()


def plain_row(base: Base, settings: Settings, batch: int, gib: int, rows: list[Question]) -> dict[str, Any]:
    """Train as model cards show it, on the same questions; the first batch warms up."""
    limit_memory(gib, base.device)
    base.vision.unpark()
    batches = [_plain_batch(base, settings, rows[i : i + batch]) for i in range(0, len(rows), batch)]
    with attached(base, settings.lora, seed=0) as model:
        model.train()
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-4)
        seconds = 0.0
        for step, (inputs, targets) in enumerate(batches):
            if step == 1:
                torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            began = time.perf_counter()
            _forget_positions(base.model)
            moved = {name: value.to(base.device) for name, value in inputs.items()}
            logits = model(**moved, use_cache=False, logits_to_keep=1).logits[:, -1]
            loss = torch.nn.functional.cross_entropy(logits.float(), targets.to(base.device))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            torch.cuda.synchronize()
            seconds += time.perf_counter() - began if step else 0.0
        base.model.gradient_checkpointing_disable()
        base.model.disable_input_require_grads()
    release_memory()
    questions = batch * (len(batches) - 1)
    return {
        "mode": "train",
        "batch": batch,
        "limit_gib": gib,
        "samples_s": round(questions / seconds, 2),
        "peak_gib": peak_gib(),
        "n": questions,
    }


def _plain_batch(base: Base, settings: Settings, rows: list[Question]) -> tuple[Any, torch.Tensor]:
    writer = _writer(base)
    processor = writer.processor
    processor.tokenizer.padding_side = "left"
    arguments = budget_arguments(processor, base.family, settings.image)
    pictures = [
        fit_image(load_image(q.image), settings.image.mode, settings.image.size) for q in rows if q.image
    ]
    inputs = processor(
        images=[[picture] for picture in pictures],
        text=[writer.text(settings.prompt, q) for q in rows],
        images_kwargs=arguments,
        add_special_tokens=False,
        padding=True,
        return_tensors="pt",
    )
    targets = torch.tensor([base.letters[4].answer[LETTERS.index(str(q.answer))] for q in rows])
    values = {
        name: value.to(base.dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
    return values, targets


def _writer(base: Base) -> Any:
    """What writes a family's prompts, whoever computes its logits; None for Qwen-VL."""
    prompts = getattr(base.text, "prompts", base.text)
    return getattr(prompts, "writer", None)


def _forget_positions(model: Any) -> None:
    """Models with multimodal positions keep those of the call before."""
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None


def main() -> None:
    """Parse the command line, build the checkpoint, measure, write one row per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a Qwen tokenizer")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder for checkpoint and contest")
    parser.add_argument("--model", required=True, help="a name of benchmarks/harness/true_sizes.py")
    parser.add_argument("--quantization", default="none")
    parser.add_argument(
        "--device-map", default="single", help="balanced: over all GPUs; --cases count the GiB of each"
    )
    parser.add_argument("--cases", nargs="*", default=["16:76"], help="batch:GiB of training runs")
    parser.add_argument("--plain", nargs="*", default=["16:76"], help="the same of plain transformers")
    parser.add_argument("--score-gib", type=int, help="memory for scoring; left out: no scoring")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not (arguments.work / "contest").exists():
        make_contest(arguments.work / "contest", 320, 160)
    if not (arguments.work / arguments.model).exists():
        make_checkpoint(arguments.model, arguments.work / arguments.model, arguments.tokenizer)
    where = f"env.device_map={arguments.device_map}"
    settings = settings_for(arguments.model, arguments.quantization, arguments.work, where)
    base = load_base(settings)
    if _writer(base) is None:
        parser.error(f"{arguments.model} has Qwen-VL's prompts; measure it with benchmarks.speed.throughput")
    encoder, rows = Encoder(base, settings.prompt, settings.image), data_source(settings).train()
    began = time.perf_counter()
    encoder.look(rows)
    path = "own decoder" if isinstance(base.text, OwnText) else "transformers' forward"
    about = {"model": arguments.model, "base": arguments.quantization, "path": path}
    if arguments.device_map != "single":
        about |= {"gpus": torch.cuda.device_count()}
    first = {"mode": "pictures", "samples_s": round(len(rows) / (time.perf_counter() - began), 1)}
    suffix = encoder.suffixes(rows[:1])[0]
    first |= {"prefix": len(encoder.prefix(rows[0])), "suffix": len(suffix.ids), "peak_gib": peak_gib()}
    found: list[dict[str, Any]] = [{"who": "vqa", **about, **first}]
    print(found[-1], flush=True)
    plan = plan_fit(settings, len(rows))
    for who, cases in (("vqa", arguments.cases), ("plain transformers", arguments.plain)):
        for case in cases:
            batch, gib = (int(part) for part in case.split(":"))
            part = rows[: arguments.rows]
            try:
                row = (
                    train_row(encoder, settings, plan, case, part)
                    if who == "vqa"
                    else plain_row(base, settings, batch, gib, part)
                )
            except torch.OutOfMemoryError as error:
                row = {"mode": "train", "batch": batch, "limit_gib": gib, "out_of_memory": str(error)[:80]}
                release_memory()
            found.append({"who": who, **about, **row})
            print(found[-1], flush=True)
    if arguments.score_gib:
        for new in (True, False):
            found.append(
                {"who": "vqa", **about} | score_row(encoder, settings, rows, arguments.score_gib, new)
            )
            print(found[-1], flush=True)
    write_rows(arguments.out, "families", found)


if __name__ == "__main__":
    main()
