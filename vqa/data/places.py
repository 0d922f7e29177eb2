"""Where the files that a row or a setting names lie: inside the image root, under the name people wrote."""

import itertools
import os
import unicodedata
from pathlib import Path

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2", ".qoi")
MOST_FOLDERS = 1000  # that are looked through for the folder that is meant


def resolve_inside(root: Path, relative: str) -> Path:
    """Join a path from a data file to its root; refuse one that leads out of the root.

    The path as written must stay inside. Symbolic links inside the root may point anywhere: hub caches and
    linked disks are made of them, and only who can write into the root can put one there.

    Args:
        root: The folder of pictures.
        relative: The path as written; `\\` counts as `/` where no file has that name.

    Raises:
        ValueError: The path is absolute, holds a control character, or leaves the root.
    """
    if any(unicodedata.category(character) == "Cc" for character in relative):
        kind = "null" if "\0" in relative else "control"
        raise ValueError(f"the path must not hold a {kind} character, got {relative!r}")
    if Path(relative).is_absolute():
        raise ValueError(f"the path must be relative to the image root, got {relative!r}")
    inside = os.path.normpath(relative)
    if inside == os.pardir or inside.startswith(os.pardir + os.sep):
        raise ValueError(f"the path must stay inside the image root {root}, got {relative!r}")
    return Path(os.path.realpath(root)) / inside


class NearNames:
    """Finds files whose names are written in another way than the data file writes them.

    Names that a Mac wrote take Korean letters apart (NFD), Windows writes `\\` and does not tell upper from
    lower case, and spreadsheets leave spaces. Contests leave the ending out: `001` is 001.jpg. One file that
    fits is meant; of several none is.

    Args:
        root: The folder of pictures; each folder below it is listed once, when first needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, relative: str) -> list[Path]:
        """Files below the root that the path may mean: none, one, or several (by case, or by ending)."""
        parts = [part.strip() for part in relative.replace("\\", "/").split("/")]
        parts = [part for part in parts if part not in ("", os.curdir)]
        if not parts or os.pardir in parts:
            return []
        folders = [self.root]
        for part in parts[:-1]:
            folders = self._entries(folders, [part])
        found = self._entries(folders, [parts[-1]])
        found = found or self._entries(folders, [parts[-1] + ending for ending in ENDINGS])
        return [path for path in found if path.is_file()]

    def _entries(self, folders: list[Path], names: list[str]) -> list[Path]:
        keys = [_key(name) for name in names]
        listed = [(folder, self._names(folder)) for folder in folders]
        return [folder / name for folder, known in listed for key in keys for name in known.get(key, [])]

    def _names(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self.listed:
            names: dict[str, list[str]] = {}
            try:
                entries = sorted(os.listdir(folder))
            except OSError:  # no folder, or none that may be read: it holds nothing for us
                entries = []
            for name in entries:
                names.setdefault(_key(name), []).append(name)
            self.listed[folder] = names
        return self.listed[folder]


def _key(name: str) -> str:
    """What two spellings of one name share."""
    return unicodedata.normalize("NFC", name.strip()).casefold()


def meant_root(root: Path, relative: str) -> Path | None:
    """The folder below the root, or just above it, from which a path leads to a file; None = none is near.

    Args:
        root: The folder in which no picture of a data file is.
        relative: One of its paths, as written.
    """
    above = [root.absolute().parent, root.absolute().parent.parent]
    below = (Path(folder) for folder, _, _ in os.walk(root))
    for folder in [*above, *itertools.islice(below, MOST_FOLDERS)]:
        if len(NearNames(folder).find(relative)) == 1:
            here = Path.cwd()
            return folder.relative_to(here) if folder.is_relative_to(here) else folder
    return None


def data_file(name: str, image_root: str | None) -> Path:
    """The file that a setting such as `data.train_csv` names: as written, or else below the image root.

    Args:
        name: Absolute, relative to the working folder, or relative to the image root.
        image_root: `data.image_root`.
    """
    path = Path(name).expanduser()
    if path.is_absolute() or path.exists() or not image_root:
        return path
    below = Path(image_root).expanduser() / path
    return below if below.is_file() else path


def missing_data_files(data: dict[str, object]) -> list[str]:
    """One line for each file named in a `data` node that is in neither place; reads nothing.

    Args:
        data: The `data` node; nodes without such keys name no files.
    """
    root = data.get("image_root")
    problems = []
    for key in ("train_csv", "test_csv", "sample_submission"):
        name = data.get(key)
        if isinstance(name, str) and not data_file(name, root if isinstance(root, str) else None).exists():
            below = [str(root)] if root and not Path(name).is_absolute() else []
            places = " or ".join(dict.fromkeys([str(Path.cwd()), *below]))
            problems.append(f"data.{key}={name}: there is no such file in {places}")
    return problems
