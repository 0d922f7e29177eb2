"""The pictures that a row of a contest file names: cells to paths, paths to files that decode to their end.

A question has its pictures in several columns, or in one cell: as a list, or with a separator between.
"""

import ast
import functools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vqa.data.csv_rows import Row
from vqa.data.image import ImageError, check_image
from vqa.data.places import NearNames, resolve_inside
from vqa.data.table_file import Problem
from vqa.progress import progress
from vqa.question import Picture

SEPARATORS = (";", "|", ",")  # what people put between pictures of one cell; only for a hint
LONGEST_LIST = 100_000  # characters of a cell that is read as a list


@dataclass(frozen=True)
class _Named:
    """One picture as a row names it."""

    column: str
    path: str


@dataclass(frozen=True)
class Attached:
    """What came of the pictures of a file.

    Args:
        problems: Pictures that cannot be used.
        notes: How pictures were found.
        named: Every path that a row names.
        missing: Those of them where no file is.
    """

    problems: list[Problem]
    notes: list[str]
    named: set[str]
    missing: set[str]


def attach_pictures(rows: Sequence[Row], root: Path, separator: str | None) -> Attached:
    """Give each row its pictures that decode to their end, in their order, and the flag of one that does not.

    Args:
        rows: Of the file.
        root: The folder of pictures.
        separator: What stands between the pictures of one cell; None: a cell that is no list is one path.
    """
    problems: list[Problem] = []
    asked: list[tuple[Row, _Named, Path]] = []
    named, without = set(), 0
    several = separator is not None or any(
        len(row.picture_columns) > 1 or _list(row.cells["path"]) is not None for row in rows
    )
    for row in rows:
        of_row = list(_named(row, root, separator))
        if not of_row and not several:
            problems.append(Problem("is empty", row.line, "path"))
        without += not of_row
        for one in of_row:
            named.add(one.path)
            try:
                asked.append((row, one, resolve_inside(root, one.path)))
            except ValueError as error:
                problems.append(Problem(str(error), row.line, one.column))
    outcome, notes = _checked_files({path: one.path for _, one, path in asked}, root)
    missing = set()
    for row, one, path in asked:
        place, found = outcome[path]
        if isinstance(found, ImageError):
            row.flag = row.flag or f"image_{found.reason.replace(' ', '_')}"
            if found.reason == "missing":
                missing.add(one.path)
            hint = "" if separator else _separator_hint(one.path, root)
            problems.append(Problem(f"{found}{hint}", row.line, one.column, "image"))
        else:
            row.pictures.append(Picture(place, found))
    if several and without:
        notes.append(f"{without} questions have no picture")
    return Attached(problems, notes, named, missing)


def paths_of_cell(cell: str, separator: str | None, root: Path) -> list[str]:
    """The paths that one cell names, in their order; blank ones are left out.

    A list ('["a.jpg", "b.jpg"]', as JSONL, parquet and pandas have it) holds its texts. With a separator the
    cell is cut at it, unless the whole cell is the name of a file.
    """
    if (listed := _list(cell)) is not None:
        return [path for path in listed if path.strip()]
    if separator and separator in cell and not _is_file(root, cell):
        return [path.strip() for path in cell.split(separator) if path.strip()]
    return [cell] if cell.strip() else []


def _list(cell: str) -> list[str] | None:
    """The texts of a cell that is a list, of JSON or as Python prints it; None of any other cell."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")) or len(text) > LONGEST_LIST:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    if not isinstance(value, list) or not all(isinstance(part, str | None) for part in value):
        return None
    return [part or "" for part in value]


def _named(row: Row, root: Path, separator: str | None) -> Iterator[_Named]:
    for name, column in row.picture_columns.items():
        for path in paths_of_cell(row.cells[name], separator, root):
            yield _Named(column, path)


def _is_file(root: Path, path: str) -> bool:
    try:
        return resolve_inside(root, path).is_file()
    except (ValueError, OSError):  # OSError: a name that is too long
        return False


def _separator_hint(path: str, root: Path) -> str:
    """What to do where a path is several paths with a separator between; "" where it is not."""
    for separator in SEPARATORS:
        parts = [part.strip() for part in path.split(separator)]
        if len(parts) > 1 and all(_is_file(root, part) for part in parts):
            return f"; it is {len(parts)} pictures: data.picture_separator='{separator}'"
    return ""


def _checked_files(
    written: dict[Path, str], root: Path
) -> tuple[dict[Path, tuple[Path, str | ImageError]], list[str]]:
    """Where each picture is, with its digest or what is wrong with it.

    Args:
        written: Paths of pictures, and how the file writes them.
        root: The folder of pictures.

    Returns:
        By path the file and its digest or error; and a note when files were found under another spelling.
    """
    # Decoding and hashing leave the interpreter's lock: threads are as fast as processes and start at once.
    outcome: dict[Path, tuple[Path, str | ImageError]] = {}
    near, names = [], NearNames(root)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for done, (path, found) in enumerate(zip(written, pool.map(_try_image, written), strict=True), 1):
            progress("checking pictures", done, len(written))
            place = path
            if isinstance(found, ImageError) and found.reason == "missing":
                others = names.find(written[path])
                if len(others) == 1:
                    place, found = others[0], _try_image(others[0])
                    near.append(f"{written[path]!r} is {str(place.relative_to(names.root))!r}")
                elif others:
                    several = " and ".join(repr(other.name) for other in others)
                    found = ImageError(path, "missing", f"there is no such file, but {several}")
            outcome[path] = place, found
    said = f"{len(near)} pictures were found under another spelling, first: {near[0]}" if near else ""
    return outcome, [said] if said else []


def _try_image(path: Path) -> str | ImageError:
    try:
        status = path.stat()
        return _checked(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except (ImageError, OSError, ValueError):
        try:
            return check_image(path)  # for its words
        except ImageError as error:
            return error


@functools.lru_cache(maxsize=2**18)  # the doctor reads the files twice, a worker for each trial
def _checked(path: Path, size: int, changed: int, number: int) -> str:
    return check_image(path)
