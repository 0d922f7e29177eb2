"""A model's processor without torchvision: its tokenizer, its image processor on Pillow, its placeholders.

transformers builds a processor with parts for video and sound as well, which need more libraries. They are
never asked for anything here, so the image processor stands in for them. Pillow gives the same pixels
everywhere, torchvision other ones.
"""

import shutil
from pathlib import Path
from typing import Any

from vqa.errors import UserError
from vqa.model.families.family import Family


def load_image_processor(folder: str, config: Any, family: Family, where: dict[str, Any]) -> Any:
    """The image processor alone.

    Raises:
        UserError: transformers has it with torchvision only.
    """
    from transformers import AutoImageProcessor

    auto: Any = AutoImageProcessor

    if family.image_processor is not None:
        return family.image_processor(folder, **where)
    try:
        return auto.from_pretrained(folder, backend="pil", **where)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"model.path: the image processor of {config.model_type} cannot be loaded "
            f"({str(error).strip().splitlines()[0]}); if it needs torchvision: pip install torchvision"
        ) from error


def load_processor(
    folder: str, config: Any, tokenizer: Any, image_processor: Any, where: dict[str, Any]
) -> Any:
    """Tokenizer and image processor with what joins them: placeholders, chat template.

    Args:
        folder: Of the model, or its hub id.
        config: The model's configuration.
        tokenizer: The model's tokenizer.
        image_processor: The model's image processor.
        where: `from_pretrained`'s further arguments, as `vqa.model.base.model_source` gives them.

    Raises:
        UserError: transformers has no processor for such models, or it writes no placeholders.
    """
    from transformers.models.auto import processing_auto

    names: Any = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
    name = names.get(config.model_type)
    found: Any = processing_auto.processor_class_from_name(name) if name else None
    if found is None:
        raise UserError(
            f"model.path: transformers has no processor for {config.model_type}; choose another model"
        )
    try:
        stored, _ = found.get_processor_dict(folder, **where)
        # a stand-in has another class than the video processor that transformers checks for
        lenient: Any = type(found.__name__, (found,), {"check_argument_for_proper_class": lambda *_: None})
        parts = [tokenizer if "tokenizer" in part else image_processor for part in found.get_attributes()]
        made = lenient.from_args_and_dict(parts, stored)
    except ImportError as error:
        said = " ".join(str(error).split())
        raise UserError(f"model.path: {name} of {config.model_type} cannot be loaded: {said}") from error
    if not made.chat_template:
        made.chat_template = tokenizer.chat_template
    if getattr(made, "image_token", None) is None:
        raise UserError(
            f"model.path: {name} of {config.model_type} has no image_token, so nothing can stand for a "
            "picture in the text; choose another model"
        )
    return made


FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def copy_processor(base: str, out: Path, where: dict[str, Any]) -> None:
    """Copy a model's processor files as they are, for a model made from it.

    Args:
        base: Folder or hub id.
        out: The new model's folder.
        where: `from_pretrained`'s further arguments, as `vqa.model.base.model_source` gives them.
    """
    from transformers.utils.hub import cached_file

    for name in FILES:
        found = cached_file(base, name, _raise_exceptions_for_missing_entries=False, **where)
        if found:
            shutil.copyfile(found, out / name)
