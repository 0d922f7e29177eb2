"""The whole job at full size with random weights: one trial, the final run, inference, from a contest CSV.

Speed and memory do not depend on what the weights are. Needs a GPU and a folder with a Qwen tokenizer:

    python -m benchmarks.harness.full_size --tokenizer FOLDER --work FOLDER --models qwen3_vl_8b:none
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
QWEN3_8B = {
    "text_config": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "deepstack_visual_indexes": [8, 16, 24],
        "num_position_embeddings": 2304,
    },
}
QWEN2_5_7B = {
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}


def fill_randomly(model: Any) -> None:
    """Give every weight the size that a fresh model's has; norms 1, biases 0."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if key.endswith("bias") else 1.0)
            else:
                parameter.normal_(0, 0.02)


def make_checkpoint(name: str, folder: Path, tokenizer: Path) -> None:
    """Write a checkpoint of the true size with random bfloat16 weights, as the hub would hold it."""
    import torch
    from transformers import (
        AutoTokenizer,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )
    from transformers.initialization import no_init_weights

    family: Any = (
        Qwen3VLForConditionalGeneration if name.startswith("qwen3") else Qwen2_5_VLForConditionalGeneration
    )
    config_class: Any = Qwen3VLConfig if name.startswith("qwen3") else Qwen2_5_VLConfig
    config = config_class(
        **(QWEN3_8B if name.startswith("qwen3") else QWEN2_5_7B), **TOKENS, tie_word_embeddings=False
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"), no_init_weights():
        model = family(config)
    torch.set_default_dtype(torch.float32)
    fill_randomly(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    patch = config.vision_config.patch_size
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    video = processor | {"video_processor_type": "Qwen3VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))  # AutoProcessor asks for it
    del model
    torch.cuda.empty_cache()


def make_contest(folder: Path, train: int, test: int, seed: int = 0) -> None:
    """Write pictures of 512 x 512 and the contest's train.csv and test.csv."""
    rng = np.random.default_rng(seed)
    header = ["id", "path", "question", "a", "b", "c", "d", "answer"]
    words = ["자전거", "오토바이", "자동차", "버스", "기차", "배", "비행기", "트럭"]
    for part, rows in (("train", train), ("test", test)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        table = []
        for i in range(rows):
            picture = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).resize((512, 512))
            ImageDraw.Draw(picture).text((20, 20), f"{part} {i}")
            picture.save(folder / part / f"{part}_{i:04d}.jpg", quality=90)
            options = [str(word) for word in rng.choice(words, 4, replace=False)]
            text = "이 사진에서 보이는 탈것은 무엇인가요?"
            answer = "abcd"[min(range(4), key=lambda k: words.index(options[k]))]  # a rule that can be learnt
            table.append(
                [
                    f"{part}_{i:04d}",
                    f"{part}/{part}_{i:04d}.jpg",
                    text,
                    *options,
                    answer,
                ]
            )
        keep = len(header) if part == "train" else len(header) - 1
        with (folder / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([row[:keep] for row in [header, *table]])


def run(
    model: str, quantization: str, checkpoint: Path, contest: Path, work: Path, extra: list[str]
) -> dict[str, Any]:
    """One trial, the final run and stage=predict through the command line; returns the figures."""
    study = f"{model}_{quantization}"
    common = [
        f"model={model}",
        f"model.path={checkpoint}",
        f"quantization={quantization}",
        "prompt=fewshot_ko",
        "image=pad_512",
        "data=csv",
        f"data.train_csv={contest / 'train.csv'}",
        f"data.test_csv={contest / 'test.csv'}",
        f"data.image_root={contest}",
        "tracking=none",
        f"env.output_root={work / 'multirun'}",
        f"study={study}",
        "lora.r=32",
        "budget.epochs=1",
        *extra,
    ]
    base = [sys.executable, "-m", "vqa.run"]
    began = time.time()
    subprocess.run(
        [*base, "-m", "+sweep=lora", "hydra.sweeper.n_trials=1", "budget.subsample=120", *common], check=True
    )
    swept = time.time()
    subprocess.run([*base, "stage=predict", *common], check=True)
    folder = work / "multirun" / study
    final = json.loads((folder / "final" / "metrics.json").read_text())
    predict = json.loads((folder / "predict" / "metrics.json").read_text())
    with (folder / "leaderboard.csv").open(newline="") as file:
        trial = next(csv.DictReader(file))
    return {
        "who": "vqa",
        "model": model,
        "mode": quantization,
        "samples_s": round(final["train_samples_per_s"], 2),
        "peak_gib": round(final["peak_memory_gib"], 1),
        "predict_rows_s": round(predict["rows_per_s"], 1),
        "trial_seconds": trial["seconds"],
        "trial_state": trial["state"],
        "sweep_and_final_s": round(swept - began, 1),
        "predict_s": round(time.time() - swept, 1),
        "n_test": predict["n"],
    }


def main() -> None:
    """Parse the command line and print one JSON row per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder with the Qwen tokenizer's files"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="scratch folder; checkpoints take 17 GB each"
    )
    parser.add_argument("--models", nargs="+", default=["qwen3_vl_8b:none", "qwen2_5_vl_7b:none"])
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--test-rows", type=int, default=160)
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("extra", nargs="*", help="more overrides")
    parser.add_argument(
        "--only-files", action="store_true", help="write checkpoints and contest, run nothing"
    )
    arguments = parser.parse_args()
    contest = arguments.work / "contest"
    if not contest.exists():
        make_contest(contest, arguments.rows, arguments.test_rows)
    rows = []
    for spec in arguments.models:
        model, quantization = spec.split(":")
        checkpoint = arguments.work / model
        if not checkpoint.exists():
            make_checkpoint(model, checkpoint, arguments.tokenizer)
        if arguments.only_files:
            continue
        rows.append(run(model, quantization, checkpoint, contest, arguments.work, arguments.extra))
        print(json.dumps(rows[-1]), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
