"""Hydra reads a file, and OmegaConf an interpolation, once a process: composing is what many tests do most.

What is composed stays the same: a file that changed is read again, and each reader gets a copy of its own.
"""

import os
from copy import deepcopy
from functools import lru_cache

import omegaconf._utils
import omegaconf.base
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult
from omegaconf.grammar_parser import parse

_load = FileConfigSource.load_config
_read: dict[tuple[object, ...], ConfigResult] = {}


def _load_once(self: FileConfigSource, config_path: str) -> ConfigResult:
    path = os.path.join(self.path, self._normalize_file_name(config_path))
    try:
        found = os.stat(path)
    except OSError:
        return _load(self, config_path)  # which says what is wrong
    stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
    key = (self.provider, self.path, config_path, *stamp)
    if key not in _read:
        _read[key] = _load(self, config_path)
    return deepcopy(_read[key])


def compose_quickly() -> None:
    """Keep what is read from here on."""
    FileConfigSource.load_config = _load_once  # type: ignore[method-assign]
    for module in (omegaconf.base, omegaconf._utils):
        module.parse = lru_cache(maxsize=4096)(parse)  # type: ignore[attr-defined]
