"""The same training work by other tools: TRL, TRL + Liger, Unsloth and plain transformers + PEFT.

Same checkpoint, rows, prompt, pictures and LoRA as `speed.throughput`; each tool reads and prepares its
batches in worker processes. A configuration is batch:checkpointing; the best that fits counts. Needs the
tools' own packages (trl, datasets, liger-kernel, unsloth), which vqa does not.

    python -m benchmarks.speed.peers unsloth --work FOLDER --prompt FILE --configs 4:no 8:yes
"""

import argparse
import csv
import gc
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.record import write_rows

os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1", TOKENIZERS_PARALLELISM="false")
WARM_UP = 3
TARGETS = (  # the second line: Gated DeltaNet in Qwen3.5
    r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    r"|in_proj_qkv|in_proj_z|in_proj_a|in_proj_b|out_proj)"
)
QUESTION = """질문: {question}
(a) {a}
(b) {b}
(c) {c}
(d) {d}
정답을 반드시 a, b, c, d 중 하나의 소문자 한 글자로만 출력하세요."""


class Rows:
    """The contest's rows as conversations; a picture is opened when its row is asked for."""

    def __init__(self, contest: Path, system: str, limit: int, form: str) -> None:
        with (contest / "train.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.rows = [rows[i % len(rows)] for i in range(limit)]
        self.contest, self.system, self.form = contest, system, form

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from PIL import Image

        row = self.rows[index]
        picture = Image.open(self.contest / row["path"]).convert("RGB")
        image = {"type": "image", "image": picture} if self.form == "messages" else {"type": "image"}
        prompt = [
            {"role": "system", "content": [{"type": "text", "text": self.system}]},
            {"role": "user", "content": [image, {"type": "text", "text": QUESTION.format(**row)}]},
        ]
        answer = [{"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]}]
        if self.form == "messages":
            return {"messages": prompt + answer}
        return {"images": [picture], "prompt": prompt, "completion": answer}


class Clock:
    """Seconds of the steps after the warm-up; a callback of transformers' Trainer."""

    def __new__(cls) -> Any:
        """Built here, as transformers is imported only after Unsloth."""
        import torch
        import transformers

        class _Clock(transformers.TrainerCallback):
            began = ended = 0.0
            steps = 0

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.tick(state.global_step)

            def tick(self, step: int) -> None:
                torch.cuda.synchronize()
                self.steps, self.ended = step, time.perf_counter()
                if step == WARM_UP:
                    self.began = self.ended
                    torch.cuda.reset_peak_memory_stats()

        return _Clock()


def collator(processor: Any) -> Any:
    """Turns rows into padded batches whose labels are the answer only."""

    def collate(rows: list[dict[str, Any]]) -> Any:
        texts = [
            processor.apply_chat_template(row["prompt"] + row["completion"], tokenize=False) for row in rows
        ]
        batch = processor(text=texts, images=[r["images"] for r in rows], padding=True, return_tensors="pt")
        labels = batch["input_ids"].clone()
        labels[labels == processor.tokenizer.pad_token_id] = -100
        labels[:, :-3] = -100  # the letter, the end mark and its line break
        batch["labels"] = labels
        return batch

    return collate


def training_arguments(batch: int, steps: int) -> dict[str, Any]:
    """What all Trainer-based tools get."""
    return {
        "output_dir": "peers_out",
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "max_steps": steps + WARM_UP,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": True,
        "learning_rate": 1e-4,
        "optim": "adamw_torch_fused",
        "dataloader_num_workers": 8,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
    }


def unsloth(a: argparse.Namespace, batch: int, mode: str, clock: Any) -> None:
    """Unsloth's FastVisionModel, 16-bit or 4-bit LoRA, in its own or no checkpointing."""
    import torch
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastVisionModel
    from unsloth.trainer import UnslothVisionDataCollator

    checkpointing = False if mode == "no" else "unsloth"
    model, processor = FastVisionModel.from_pretrained(
        str(a.work / a.model),
        load_in_4bit=a.q4,
        use_gradient_checkpointing=checkpointing,
        dtype=torch.bfloat16,
        max_seq_length=4096,
    )
    model = FastVisionModel.get_peft_model(
        model,
        finetune_vision_layers=False,
        r=32,
        lora_alpha=32,
        lora_dropout=0,
        bias="none",
        random_state=0,
        use_gradient_checkpointing=checkpointing,
    )
    FastVisionModel.for_training(model)
    rows = Rows(a.work / "contest", a.system, batch * (a.steps + WARM_UP), "messages")
    config = training_arguments(batch, a.steps)
    if mode == "no":
        config["gradient_checkpointing"] = False
    SFTTrainer(
        model=model,
        processing_class=getattr(processor, "tokenizer", processor),
        data_collator=UnslothVisionDataCollator(model, processor),
        train_dataset=[rows[i] for i in range(len(rows))],
        args=SFTConfig(**config),
        callbacks=[clock],
    ).train()


def load_plain(a: argparse.Namespace) -> tuple[Any, Any]:
    """The model in transformers with LoRA on it, and its processor."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

    more: dict[str, Any] = {}
    if a.q4:
        more["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["visual", "lm_head"],
        )
    model = AutoModelForImageTextToText.from_pretrained(
        str(a.work / a.model), dtype=torch.bfloat16, device_map="cuda", attn_implementation="sdpa", **more
    )
    model.requires_grad_(False)
    lora = LoraConfig(r=32, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS)
    processor = AutoProcessor.from_pretrained(str(a.work / a.model))  # type: ignore[no-untyped-call]
    return get_peft_model(model, lora), processor


def trl(a: argparse.Namespace, batch: int, mode: str, clock: Any, liger: bool = False) -> None:
    """TRL's SFTTrainer, with or without Liger's kernels."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, processor = load_plain(a)
    rows = Rows(a.work / "contest", a.system, batch * (a.steps + WARM_UP), "prompt")
    checkpointing = {"gradient_checkpointing": mode != "no"}
    if mode != "no":
        checkpointing["gradient_checkpointing_kwargs"] = {"use_reentrant": False}  # type: ignore[assignment]
        model.enable_input_require_grads()
    SFTTrainer(
        model=model,
        processing_class=processor,
        data_collator=collator(processor),
        train_dataset=Dataset.from_list([rows[i] for i in range(len(rows))]),
        args=SFTConfig(**training_arguments(batch, a.steps), **checkpointing, use_liger_kernel=liger),
        callbacks=[clock],
    ).train()


def transformers(a: argparse.Namespace, batch: int, mode: str, clock: Any) -> None:
    """transformers and PEFT in a plain loop: padded batches, the model's own loss."""
    import torch

    model, processor = load_plain(a)
    if mode != "no":
        model.get_base_model().gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    rows: Any = Rows(a.work / "contest", a.system, batch * (a.steps + WARM_UP), "prompt")
    loader = torch.utils.data.DataLoader(
        rows, batch_size=batch, num_workers=8, collate_fn=collator(processor)
    )
    for step, inputs in enumerate(loader, start=1):
        model(**inputs.to("cuda")).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.tick(step)


def generate(a: argparse.Namespace, batch: int, mode: str, clock: Any) -> None:
    """The contest baselines' inference: one generate() of two tokens per row, picture and all."""
    import torch

    model, processor = load_plain(a)
    model.eval()
    rows: Any = Rows(a.work / "contest", a.system, batch * (a.steps + WARM_UP), "prompt")

    def prepare(part: list[dict[str, Any]]) -> Any:
        texts = [
            processor.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True)
            for r in part
        ]
        images = [r["images"] for r in part]
        return processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")

    loader = torch.utils.data.DataLoader(rows, batch_size=batch, num_workers=8, collate_fn=prepare)
    for step, inputs in enumerate(loader, start=1):
        with torch.no_grad():
            model.generate(**inputs.to("cuda"), max_new_tokens=2, min_new_tokens=2, do_sample=False)
        clock.tick(step)


TOOLS: dict[str, Any] = {f.__name__: f for f in (unsloth, trl, transformers, generate)}
TOOLS["trl_liger"] = partial(trl, liger=True)


def main() -> None:
    """Parse the command line, run one tool's configurations one after the other, print and write rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", choices=TOOLS)
    parser.add_argument("--work", type=Path, required=True, help="folder that harness.full_size filled")
    parser.add_argument("--model", default="qwen3_vl_8b")
    parser.add_argument("--prompt", type=Path, required=True, help="file with the system prompt")
    parser.add_argument("--configs", nargs="+", default=["8:yes"], help="batch:checkpointing (no, yes)")
    parser.add_argument("--max-gib", type=float, default=76.0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--q4", action="store_true", help="4-bit base")
    parser.add_argument("--out", type=Path, help="rows of an earlier tool in it are kept")
    a = parser.parse_args()
    a.system = a.prompt.read_text(encoding="utf-8").strip()
    if a.who == "unsloth":
        __import__("unsloth")  # it must come before torch and transformers
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, a.max_gib / total))
    for config in a.configs:
        batch, mode = config.split(":")
        row = {"who": a.who, "model": a.model, "base": "nf4" if a.q4 else "none", "batch": int(batch)}
        row |= {"mode": "score" if a.who == "generate" else "train", "limit_gib": a.max_gib}
        row |= {"recompute": mode}
        clock = Clock()
        try:
            TOOLS[a.who](a, int(batch), mode, clock)
        except torch.OutOfMemoryError:
            row |= {"out_of_memory": True}
        else:
            measured = clock.steps - WARM_UP
            row |= {"samples_s": round(int(batch) * measured / (clock.ended - clock.began), 2)}
            row |= {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1), "steps": measured}
        print(row, flush=True)
        if a.out:
            write_rows(a.out, "peers", [row])
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
