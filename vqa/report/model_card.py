"""What goes with an adapter to those who use it: model card, prompt, pixel budget, a line to serve it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqa.config.words import shell_line
from vqa.machine.files import replace_text
from vqa.model.prompt import written_out
from vqa.question import letters_of
from vqa.results.folder import CALIBRATION, RunFolder, member_folder, member_folders, read_json
from vqa.results.metrics import chance_of

PROMPT = "prompt.json"
PIXELS = "preprocessor_config.json"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what `vllm serve --max-lora-rank` takes; its default is 16
VISUAL_TOKENS_DEFAULT = 16384


def write_hand_over(run: Path) -> Path:
    """Complete a finished run's adapter folder: README.md, prompt.json and the run's pixel budget.

    Several members have one card and one prompt, and the pixel budget each.

    Args:
        run: The final run's folder, with its adapters and its manifest.

    Returns:
        The model card.
    """
    folder = RunFolder(run)
    adapter, config, metrics, manifest = folder.adapter, folder.config(), folder.metrics(), folder.manifest()
    numbers = _numbers(metrics)
    users = {str(n): written_out(config["prompt"], n) for n in numbers}
    prompt: dict[str, Any] = {"system": config["prompt"]["system"], "user": users[str(max(numbers))]}
    prompt |= {"user_of": users} if len(numbers) > 1 else {}
    replace_text(adapter / PROMPT, json.dumps(prompt, indent=2, ensure_ascii=False) + "\n")
    members = member_folders(adapter)
    for member in members:
        _write_pixels(member / PIXELS, config["image"])
    card = _card(config, metrics, manifest, read_json(members[0] / "adapter_config.json"))
    replace_text(adapter / "README.md", card)
    return adapter / "README.md"


def vllm_command(
    base: str, adapter: str, lora: Mapping[str, Any], members: int = 1, pictures: int = 1
) -> str | None:
    """The line that serves base and adapters; None where vLLM takes no such adapter (DoRA, a rank above 512).

    Args:
        base: The base model's hub id or folder.
        adapter: The adapter's folder as seen from where the command runs.
        lora: adapter_config.json.
        members: Adapters in the folder; several are served under the names of their folders.
        pictures: The most that a question has.
    """
    rank = max([lora["r"], *lora.get("rank_pattern", {}).values()])
    allowed = [size for size in VLLM_RANKS if size >= rank]
    if lora.get("use_dora") or not allowed:
        return None
    names = [member_folder(Path(), number).name for number in range(members)]
    modules = [f"vqa={adapter}"] if members == 1 else [f"{name}={adapter}/{name}" for name in names]
    words = ["vllm", "serve", base, "--enable-lora", "--lora-modules", *modules]
    words += ["--max-lora-rank", str(allowed[0]), "--limit-mm-per-prompt", json.dumps({"image": pictures})]
    return shell_line(words)


def _write_pixels(path: Path, image: Mapping[str, Any]) -> None:
    """Put the run's budget of visual tokens into the processor's own settings."""
    pixels = read_json(path)
    if not str(pixels.get("image_processor_type")).startswith("Qwen2VL"):
        return  # an adapter of an earlier version: the base's settings hold; or written with the adapter
    side = (pixels["patch_size"] * pixels["merge_size"]) ** 2  # pixels per visual token
    most = image.get("max_visual_tokens") or VISUAL_TOKENS_DEFAULT
    pixels["size"] = {"shortest_edge": image["min_visual_tokens"] * side, "longest_edge": most * side}
    replace_text(path, json.dumps(pixels, indent=2) + "\n")


def _card(
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    manifest: Mapping[str, Any],
    lora: Mapping[str, Any],
) -> str:
    base, licence = config["model"]["path"], config["model"].get("license")
    single = metrics["single"] | {"n": metrics["n"]} if "single" in metrics else None
    lines = [
        "---",
        *_head(base, licence),
        "---",
        "",
        f"# LoRA adapter for {_options(metrics)[0]} visual questions: {config['study']}",
        "",
        f"{_what(metrics)} for `{base}`. A question about {_pictures(metrics)} is answered with one of the "
        f"letters {_options(metrics)[1]}.",
        "",
        "| score | accuracy | 95 % interval | NLL (nats) | n |",
        "|---|---|---|---|---|",
        _row("held-out questions", metrics),
        *([_row("test questions", metrics["test"])] if "test" in metrics else []),
        *([_row("member 0 alone, held-out questions", single)] if single else []),
        _row(
            "base model, held-out questions",
            {k: metrics.get(f"base_{k}") for k in SCORES} | {"n": metrics["n"]},
        ),
        f"| chance | {chance_of(metrics):.3f} | | {_chance_nll(metrics):.3f} | |",
        "",
        "The best epoch was chosen on the held-out questions; that makes their score a little optimistic."
        if metrics.get("note")
        else "",
        "",
        *_calibration(metrics),
        *_training(config, metrics, manifest, lora),
        *_usage(config, metrics, lora),
    ]
    return "\n".join(lines)


def _numbers(metrics: Mapping[str, Any]) -> list[int]:
    """The numbers of options that the questions have, the smallest first."""
    return [int(n) for n in metrics.get("options", [round(1 / chance_of(metrics))])]


def _options(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """How many options the questions have, as in "4-choice", and their letters."""
    numbers = _numbers(metrics)
    said = str(numbers[0]) if len(numbers) == 1 else f"{min(numbers)}- to {max(numbers)}"
    return f"{said}-choice", ", ".join(letters_of(max(numbers)))


def _pictures(metrics: Mapping[str, Any]) -> str:
    most = metrics.get("pictures", 1)
    return "a picture" if most == 1 else f"up to {most} pictures"


def _chance_nll(metrics: Mapping[str, Any]) -> float:
    """NLL of guessing, nats."""
    return float(metrics.get("chance_nll", -math.log(chance_of(metrics))))


def _what(metrics: Mapping[str, Any]) -> str:
    count = len(metrics.get("members", [1]))
    return "An adapter" if count == 1 else f"{count} adapters, whose log probabilities are averaged,"


def _calibration(metrics: Mapping[str, Any]) -> list[str]:
    """The temperature in words; nothing for a run of an earlier version."""
    if "calibrated" not in metrics:
        return []
    temperature, calibrated = metrics["temperature"], metrics["calibrated"]
    chance = calibrated.get("ece_by_chance")
    told = "" if chance is None else f" Chance alone makes {chance:.3f} on as many rows."
    return [
        f"Calibration error {metrics['ece']:.3f}; with temperature {temperature:.2f} (`{CALIBRATION}`: "
        f"probabilities to the power 1 / {temperature:.2f}, normalised) {calibrated['ece']:.3f}.{told}",
        "",
    ]


def _head(base: str, licence: str | None) -> list[str]:
    """What the hub reads of a card, as YAML."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="peft",
        pipeline_tag="image-text-to-text",
        base_model=base,
        license=licence,
        tags=["lora", "visual-question-answering", "multiple-choice"],
    )
    return data.to_yaml().splitlines()


def _training(
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    manifest: Mapping[str, Any],
    lora: Mapping[str, Any],
) -> list[str]:
    commit = (manifest.get("git") or {}).get("commit")
    licence = config["model"].get("license")
    return [
        "## How it was made",
        "",
        f"- LoRA: r {lora['r']}, alpha {lora['lora_alpha']}, rank-stabilised "
        f"{lora.get('use_rslora', False)}, DoRA {lora.get('use_dora', False)}; "
        f"targets `{lora['target_modules']}`",
        f"- base loaded as: quantization {config['quantization']['name']}",
        f"- learning rate {metrics.get('learning_rate', config['optimizer']['lr']):.3g}, "
        f"seed {config.get('train_seed', config['seed'])}, {metrics.get('n_train', '?')} training questions",
        f"- data sha256 `{manifest['data_sha256']}`, split sha256 `{manifest['split_sha256']}`",
        *([f"- code: commit `{commit}`"] if commit else []),
        f"- licence of the base: {licence or 'see its own card'}; "
        "the adapter may be used under the same terms",
        "",
    ]


def _usage(config: Mapping[str, Any], metrics: Mapping[str, Any], lora: Mapping[str, Any]) -> list[str]:
    base, image = config["model"]["path"], config["image"]
    how = "picture as it is" if image["mode"] == "native" else f"{image['mode']} to {image['size']} pixels"
    members = len(metrics.get("members", [1]))
    pictures = int(metrics.get("pictures", 1))
    after = "user, after the picture" if pictures == 1 else "user, after the pictures"
    serve = vllm_command(base, "./adapter", lora, members, pictures)
    if base.startswith("asset:") or "no_vllm" in metrics:
        serve = None  # vLLM knows no packaged models
    why = f" ({metrics['no_vllm']})" if "no_vllm" in metrics else ""
    return [
        "## How to use it",
        "",
        f"Pixels: {how}, {image['min_visual_tokens']} to {image['max_visual_tokens']} visual tokens "
        f"(`{PIXELS}`). Prompt (`{PROMPT}`), the answer is the next token:",
        "",
        *_quoted("system", config["prompt"]["system"]),
        *_quoted(after, written_out(config["prompt"], max(_numbers(metrics)))),
        "`PeftModel.from_pretrained(base, this_folder)` loads it; "
        "the lines for it stand in the project's docs/take_it_away.md."
        if members == 1
        else "Each folder `member_*` is an adapter in PEFT's layout: ask each, and average their log "
        'probabilities. The lines for it stand in the project\'s docs/take_it_away.md, "Several members".',
        "",
        *(
            ["```sh", serve, "```", ""]
            if serve
            else [f"vLLM: `stage=merge` first, then serve the merged model{why}.", ""]
        ),
    ]


SCORES = ("accuracy", "accuracy_ci95", "nll")


def _row(name: str, scores: Mapping[str, Any]) -> str:
    low, high = scores.get("accuracy_ci95") or (None, None)
    interval = "" if low is None else f"{low:.3f} to {high:.3f}"
    nll = "" if scores.get("nll") is None else f"{scores['nll']:.3f}"
    return f"| {name} | {scores['accuracy']:.3f} | {interval} | {nll} | {scores['n']} |"


def _quoted(name: str, text: str) -> list[str]:
    return [f"{name}:", "", "````text", text.rstrip("\n"), "````", ""] if text else []
