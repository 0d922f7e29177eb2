"""Where the files that a row or a setting names lie: inside the image root, under the name people wrote."""

import os
import unicodedata
from pathlib import Path


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
    lower case, and spreadsheets leave spaces. One file that fits is meant; of several none is.

    Args:
        root: The folder of pictures; each folder below it is listed once, when first needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, relative: str) -> list[Path]:
        """Files below the root that the path may mean: none, one, or several that differ in case only."""
        parts = [part.strip() for part in relative.replace("\\", "/").split("/")]
        parts = [part for part in parts if part not in ("", os.curdir)]
        if not parts or os.pardir in parts:
            return []
        found = [self.root]
        for part in parts:
            found = [folder / name for folder in found for name in self._names(folder).get(_key(part), [])]
        return [path for path in found if path.is_file()]

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
