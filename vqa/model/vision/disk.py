"""Vision features on disk: one memory-mapped file per picture, shared by workers and later runs."""

import hashlib
import logging
import os
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vqa.errors import UserError

log = logging.getLogger(__name__)

FOLDER = "vqa-features"  # of our own, as files in it are deleted when room is short
SUFFIX = ".safetensors"
LOOK_AGAIN = 20  # what other processes write is noticed each time this share of the limit was written here
Tensors = dict[str, torch.Tensor]


def tower_digest(visual: torch.nn.Module, processor: Any) -> str:
    """What features depend on besides the picture: the tower's weights, the patches, device and library.

    The weights themselves, not their path or revision: a folder may change, and quantisation changes them.
    """
    import transformers

    digest = hashlib.sha256(f"{transformers.__version__} {processor.to_json_string()}".encode())
    for name, value in visual.state_dict().items():
        if isinstance(value, torch.Tensor):  # quantised layers keep notes beside their weights
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.device.type}".encode())
            digest.update(value.detach().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


class FeatureStore:
    """Tensors under keys, in files that any number of processes and threads read and write.

    A file appears whole, by renaming. The limit evicts the files that were not used for longest, but none
    used since this process began: when those fill the store, it takes nothing new, as evicting them would
    miss every time when epochs go round in order. Each writer may exceed the limit by a twentieth.

    Args:
        folder: `image.cache_dir`; the files lie in a folder of their own in it.
        limit_gib: Largest size of all files, GiB.

    Raises:
        UserError: The folder cannot be made.
    """

    def __init__(self, folder: Path, limit_gib: float) -> None:
        self.folder = folder / FOLDER
        self.limit_bytes = int(limit_gib * 2**30)
        self.began = time.time() - 1  # a file system may cut off the fraction of a second
        self.nbytes = self.unseen = 0
        self.full = False
        self.lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"image.cache_dir={folder} cannot be written ({error.strerror}); "
                "name another folder, or go without: image.cache_dir=null"
            ) from error
        self._look()

    def read(self, key: str) -> tuple[Tensors, dict[str, str]] | None:
        """Tensors, memory-mapped, and notes of a key; None when it is not stored, or its file is damaged."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / f"{key}{SUFFIX}"
        try:
            with safe_open(path, framework="pt") as file:
                names, notes = file.keys(), file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in names}
            if notes.pop("crc32", "") != _crc32(tensors):
                raise SafetensorError("its content does not fit its checksum")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            log.warning("%s is ignored and made again: %s", path, error)
            return None
        return tensors, notes

    def write(self, key: str, tensors: Tensors, notes: dict[str, str]) -> None:
        """Store tensors in host memory; a disk that is full or gone ends the storing with a warning."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        size = sum(t.nbytes for t in tensors.values())
        path = self.folder / f"{key}{SUFFIX}"
        partial = path.with_name(f"{key}.{os.getpid()}.{threading.get_ident()}.partial")
        try:
            with self.lock:
                if not self._has_room(size):
                    return
            save_file(tensors, partial, notes | {"crc32": _crc32(tensors)})
            partial.replace(path)
        except (SafetensorError, OSError) as error:
            self.full = True
            partial.unlink(missing_ok=True)
            log.warning("image.cache_dir: %s cannot be written, nothing more is stored: %s", path, error)

    def _has_room(self, size: int) -> bool:
        self.nbytes, self.unseen = self.nbytes + size, self.unseen + size
        if not self.full and (self.nbytes > self.limit_bytes or self.unseen > self.limit_bytes // LOOK_AGAIN):
            files = self._look()
            self.nbytes += size
            while self.nbytes > self.limit_bytes and files and files[0][0] < self.began:
                _, freed, oldest = files.pop(0)
                oldest.unlink(missing_ok=True)
                self.nbytes -= freed
            self.full = self.nbytes > self.limit_bytes
        self.nbytes -= size if self.full else 0
        return not self.full

    def _look(self) -> list[tuple[float, int, Path]]:
        """Last use, size and path of each file, the oldest first."""
        found = []
        for path in self.folder.glob("*"):
            with suppress(FileNotFoundError):  # another process made room
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        self.nbytes, self.unseen = sum(size for _, size, _ in found), 0
        return sorted(found)


def _crc32(tensors: Tensors) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return str(value)
