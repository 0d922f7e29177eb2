"""Where models differ in pictures: how they become features."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from vqa.config.settings import ImageSettings
from vqa.model.vision.features import VisionFeatures


class Pictures(Protocol):
    """A frozen vision part: `tower.py` for Qwen-VL's, `generic_pictures.py` for any.

    Args:
        device: Where it computes.
        visual: Its modules.
        arguments: What the image processor was told besides its own settings.
    """

    device: torch.device
    visual: Any
    arguments: dict[str, Any]

    @property
    def merge(self) -> int:
        """Patches along a cell of `VisionFeatures.grid`."""

    def prepare(self, picture: Image.Image, image: ImageSettings) -> Any:
        """A picture as it goes to the device, within the budget of visual tokens."""

    def join(self, parts: Sequence[Any]) -> Any:
        """Several prepared pictures for one call of `features`."""

    def features(self, pictures: Any) -> list[VisionFeatures]:
        """What the tower makes of each picture, on the device."""

    def unpark(self) -> None:
        """Bring it back to the device."""

    def park(self) -> None:
        """Keep the tower in host memory until a picture needs it."""
