"""`stage=merge`: the adapter added to the base's weights, for tools that take no adapter."""

import time
from pathlib import Path
from typing import Any

from vqa.config.settings import Settings
from vqa.errors import UserError, system_error
from vqa.machine.files import replacing_folder
from vqa.model.base import model_source, read_model_config
from vqa.model.families.table import family_of
from vqa.model.vision.generic_pictures import copy_processor, load_image_processor
from vqa.results.folder import RunFolder, adapter_folder, member_folders
from vqa.results.work import Provenance, Results, finish_run


def run_merge(settings: Settings, folder: Path) -> dict[str, Any]:
    """Write a bf16 model with the adapter in it.

    The base is loaded as it is published, whatever the adapter was trained on: rounding merged weights to
    four bits would round the adapter away.

    Args:
        settings: The run.
        folder: Gets model/, metrics.json and, last, manifest.json.

    Returns:
        What stands in metrics.json: where the model is and what it was made of.

    Raises:
        UserError: The base is quantised, or there is no adapter that fits.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from vqa.model.adapter import plain_adapter

    started = time.time()
    _refuse_quantised(settings)
    adapter = adapter_folder(settings)
    _refuse_members(adapter)
    base, where = model_source(settings)
    model: Any = AutoModelForImageTextToText.from_pretrained(
        base, dtype=torch.bfloat16, use_safetensors=True, **where
    )
    merged = plain_adapter(model, adapter, settings.model.path).merge_and_unload(safe_merge=True)
    run = RunFolder(folder)
    out = run.merged_model
    config = read_model_config(settings)
    family = family_of(config)
    with replacing_folder(out) as unfinished:
        try:
            merged.save_pretrained(str(unfinished))
        except SafetensorError as error:
            raise system_error(error, out) or error from error
        tokenizer = AutoTokenizer.from_pretrained(base, **where)
        tokenizer.save_pretrained(str(unfinished))
        if family.is_own(config):
            load_image_processor(base, config, family, where).save_pretrained(str(unfinished))
        else:  # other tools need the parts for video and sound, which are not loaded here
            copy_processor(base, unfinished, where)
    metrics = {"model": str(out), "adapter": str(adapter), "base": settings.model.path, "dtype": "bfloat16"}
    provenance = Provenance(settings.plain, settings.seed, started, extra={"adapter": str(adapter)})
    finish_run(run, Results(metrics), provenance)
    return metrics


def _refuse_members(adapter: Path) -> None:
    folders = member_folders(adapter)
    if len(folders) > 1:
        raise UserError(
            f"stage=merge: {adapter} holds {len(folders)} adapters whose answers are averaged, and weights "
            f"take one; give adapter={folders[0]}, or serve them apart (its README.md says how)"
        )


def _refuse_quantised(settings: Settings) -> None:
    reason = "four- or eight-bit weights cannot take the adapter without rounding it away"
    if settings.quantization.weights is not None:
        raise UserError(
            f"stage=merge with quantization={settings.quantization.name}: {reason}; merge into the "
            "weights as published: quantization=none (an adapter of the quantised base may be used so)"
        )
    if getattr(read_model_config(settings), "quantization_config", None) is not None:
        raise UserError(
            f"stage=merge: {settings.model.path} is stored quantised, and {reason}; "
            "give the unquantised model it was made from as model.path"
        )
