"""Pictures to vision features by transformers' own processor and tower, for models without a tower of ours.

The processor comes without torchvision: a model's tokenizer, its image processor on Pillow, its placeholders.
transformers builds a processor with parts for video and sound as well, which need more libraries. They are
never asked for anything here, so the image processor stands in for them. Pillow gives the same pixels
everywhere, torchvision other ones.

Notation: N visual tokens of a picture, C hidden size.
"""

import inspect
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vqa.config.settings import ImageSettings
from vqa.errors import UserError
from vqa.machine.device import release_memory
from vqa.model.families.family import Family
from vqa.model.vision.features import VisionFeatures

BLANK = ((64, 64), (512, 128))  # pixels of pictures whose places in a prompt are compared
ONE_ONLY = "choose another model for questions on several pictures, such as model=qwen3_vl_8b"
VALUES_AT_ONCE = 32 * 512 * 512 * 3  # numbers of pixels in one pass: bounds the memory, and fills the device


@dataclass(frozen=True)
class Prepared:
    """One picture, ready for the tower.

    Args:
        tensors: What the model's `get_image_features` takes.
        placeholder: What stands for the picture in the text, one image token per visual token in it.
    """

    tensors: dict[str, torch.Tensor]
    placeholder: str

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Pictures of equal shapes can be looked at together."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def budget_arguments(processor: Any, family: Family, image: ImageSettings) -> dict[str, Any]:
    """What the image processor is told of a run's budget of visual tokens."""
    return family.budget(processor.image_processor, image.min_visual_tokens, image.max_visual_tokens)


def processed(processor: Any, picture: Image.Image, arguments: dict[str, Any]) -> Prepared:
    """What the model's processor makes of one RGB picture; its own tensors, all of them."""
    found = _processed(processor, [picture], arguments)
    (replaced,) = found["text_replacement_offsets"][0]
    tensors = {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    return Prepared(tensors, replaced["replacement"])


def _processed(processor: Any, pictures: list[Image.Image], arguments: dict[str, Any]) -> Any:
    """What the processor gives for one text with so many pictures in it."""
    return processor(
        images=pictures if len(pictures) == 1 else [pictures],
        text=[processor.image_token * len(pictures)],
        images_kwargs=arguments,
        add_special_tokens=False,
        return_text_replacement_offsets=True,
        return_tensors="pt",
    )


def refuse_several_pictures(processor: Any, arguments: dict[str, Any]) -> None:
    """Refuse a model whose processor treats a picture in another way where a question has several.

    Pictures are processed one by one here, so that one that several questions share is computed once.
    LLaVA-OneVision cuts a picture into tiles only where it is alone; MiniCPM numbers the pictures.

    Raises:
        UserError: Such a model cannot be asked about several pictures.
    """
    pictures = [Image.new("RGB", size) for size in BLANK]
    name = type(processor).__name__
    try:
        found = _processed(processor, pictures, arguments)["text_replacement_offsets"][0]
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(f"model: {name} takes one picture a question only ({error}); {ONE_ONLY}") from error
    together = [replaced["replacement"] for replaced in found]
    if together != [processed(processor, picture, arguments).placeholder for picture in pictures]:
        raise UserError(
            f"model: {name} treats a picture beside others in another way than alone, and here each is "
            f"computed alone; {ONE_ONLY}"
        )


class GenericPictures:
    """The frozen vision part of one model.

    Args:
        model: The whole model; only what stands beside its language model is used.
        processor: The model's processor.
        family: How a budget of visual tokens becomes the processor's arguments.
        parts: Names of the modules that pictures go through.
    """

    @property
    def merge(self) -> int:
        """One: the grid kept with features is the model's own."""
        return 1

    def __init__(self, model: Any, processor: Any, family: Family, parts: Sequence[str]) -> None:
        self.model, self.processor, self.family = model, processor, family
        self.visual = torch.nn.ModuleList(model.get_submodule(name) for name in parts)
        self.arguments: dict[str, Any] = {}
        self.device: torch.device = model.get_output_embeddings().weight.device
        self.accepted = set(inspect.signature(model.model.get_image_features).parameters)

    def prepare(self, picture: Image.Image, image: ImageSettings) -> Prepared:
        """Scale and cut an RGB picture as the model's processor does, within the budget of visual tokens."""
        self.arguments = budget_arguments(self.processor, self.family, image)
        found = processed(self.processor, picture, self.arguments)
        tensors = {name: tensor for name, tensor in found.tensors.items() if name in self.accepted}
        return replace(found, tensors=tensors)

    def join(self, parts: Sequence[Prepared]) -> list[Prepared]:
        """Several pictures for one call of `features`."""
        return list(parts)

    def features(self, pictures: Sequence[Prepared]) -> list[VisionFeatures]:
        """What the model makes of each picture, on the device."""
        self.unpark()
        return [found for part in self._passes(pictures) for found in self._in_one_pass(part)]

    def _in_one_pass(self, pictures: Sequence[Prepared]) -> list[VisionFeatures]:
        tensors = {
            name: torch.cat([p.tensors[name] for p in pictures]).to(self.device)
            for name in pictures[0].tensors
        }
        tensors = {
            name: x.to(self.model.dtype) if x.is_floating_point() else x for name, x in tensors.items()
        }
        with torch.no_grad():
            output = self.model.get_image_features(**tensors, return_dict=True)
        listed = isinstance(output.pooler_output, (tuple, list))
        pooled = _by_picture(output.pooler_output, len(pictures))
        taps = [_by_picture(tap, len(pictures)) for tap in getattr(output, "deepstack_features", None) or ()]
        return [
            VisionFeatures(
                pooled=pooled[i],
                deepstack=tuple(tap[i] for tap in taps),
                grid=(1, len(pooled[i])),
                grid_thw=_grid(picture, len(pooled[i])),
                placeholder=picture.placeholder,
                listed=listed,
            )
            for i, picture in enumerate(pictures)
        ]

    def _passes(self, pictures: Sequence[Prepared]) -> Iterator[list[Prepared]]:
        """Neighbours of one shape together, as many as the tower takes; where it takes several at all."""
        part: list[Prepared] = []
        for picture in pictures:
            size = sum(tensor.numel() for tensor in picture.tensors.values())
            full = (len(part) + 1) * size > VALUES_AT_ONCE or not self.family.looks_at_many
            if part and (full or picture.shapes != part[0].shapes):
                yield part
                part = []
            part.append(picture)
        if part:
            yield part

    @property
    def is_parked(self) -> bool:
        """Whether it waits in host memory."""
        return any(weight.device != self.device for weight in self.visual.parameters())

    def park(self) -> None:
        """Keep the vision part in host memory until a picture needs it; when the GPU's memory is short."""
        self.visual.to("cpu")
        release_memory()

    def unpark(self) -> None:
        """Bring it back to its device; nothing happens where it is there."""
        if self.is_parked:
            self.visual.to(self.device)


def _by_picture(found: Any, pictures: int) -> list[torch.Tensor]:
    """(N, C) of each picture, from one tensor a picture or from one tensor of equal parts."""
    if isinstance(found, (tuple, list)):
        if len(found) == pictures:
            return [part.flatten(0, -2) for part in found]
        found = torch.cat([part.flatten(0, -2) for part in found])
    return list(found.flatten(0, -2).chunk(pictures))


def _grid(picture: Prepared, tokens: int) -> tuple[int, int, int]:
    grid = picture.tensors.get("image_grid_thw")
    if grid is None:
        return 1, 1, tokens
    frames, height, width = grid[0].tolist()
    return frames, height, width


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
