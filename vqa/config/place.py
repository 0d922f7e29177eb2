"""Where a run runs: which profile of `env` fits this machine."""

import os
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import vqa

ROOT = Path("/")
PACKAGE = Path(vqa.__file__).resolve().parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # installed; a checkout


def detect() -> str:
    """Name of the profile that fits this machine: kaggle, colab or local.

    A cloud machine looks like any other; env=cloud asks for all its paths.
    """
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ or (ROOT / "kaggle/working").is_dir():
        return "kaggle"
    if "COLAB_RELEASE_TAG" in os.environ or (ROOT / "content/sample_data").is_dir():
        return "colab"
    return "local"


def detected(key: str) -> Any:
    """The value of one key of `env` in the profile that fits; the resolver `${detected_env:key}`."""
    return _profile(detect())[key]


@cache
def _profile(name: str) -> DictConfig:
    """A profile over that of `env=local`, read once: every job of a sweep asks for several keys."""
    texts = [(CONF / "env" / f"{part}.yaml").read_text(encoding="utf-8") for part in ("local", name)]
    merged = OmegaConf.merge(*map(OmegaConf.create, texts))
    if not isinstance(merged, DictConfig):
        raise TypeError(f"conf/env/{name}.yaml must be a mapping")
    return merged
