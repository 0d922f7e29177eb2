"""The page of rooms: `python .ci/rooms.py > docs/rooms.md`, from the modules' own docstrings and lines."""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATH = "docs/how_it_works.md"  # holds the reading order
# from the ground up, as the contracts in pyproject.toml have it: a room imports only rooms before it
ORDER = (
    "machine",
    "config",
    "data",
    "model",
    "results",
    "tracking",
    "train",
    "answer",
    "report",
    "sweep",
    "stages",
)
STEP = re.compile(r"^\| (\d+\. \w+) \|(.*?)\|", re.MULTILINE)
FILE = re.compile(r"`(vqa/[\w/]+\.py)`(?: \(((?:`\w+`(?:, )?)+)\))?")

Numbers = tuple[int, int, int]  # files, lines, lines of the longest file


def lines_of(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def modules(folder: Path) -> list[Path]:
    """The modules that lie in a folder itself."""
    return [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]


def rooms(root: Path = ROOT) -> list[Path]:
    """The rooms, each followed by those within it."""
    tops = [root / "vqa" / name for name in ORDER]
    return [folder for top in tops for folder in (top, *sorted(p.parent for p in top.glob("*/__init__.py")))]


def numbers(root: Path = ROOT) -> dict[str, Numbers]:
    """The size of each room, `__init__` included, of `vqa/` itself and of all together, under "all"."""
    found: dict[str, Numbers] = {}
    sizes: list[int] = []
    for folder in (root / "vqa", *rooms(root)):
        own = [lines_of(path) for path in folder.glob("*.py")]
        found[f"{folder.relative_to(root)}/"] = len(own), sum(own), max(own)
        sizes += own
    found["all"] = len(sizes), sum(sizes), max(sizes)
    return found


def docstring(path: Path) -> str:
    """A module's docstring, each paragraph on one line; "" without one."""
    found = re.match(r'"""(.*?)"""', path.read_text(encoding="utf-8"), re.DOTALL)
    return "\n\n".join(" ".join(part.split()) for part in found[1].split("\n\n")) if found else ""


def definition_lines(path: Path, name: str) -> int:
    """Lines of a function, class or constant on a module's top level.

    Raises:
        ValueError: The module has none of that name.
    """
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if name in (getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)):
            return (node.end_lineno or node.lineno) - node.lineno + 1
    raise ValueError(f"{path}: has no {name}; mend the reading order in {PATH}")


def steps(root: Path = ROOT) -> Iterator[tuple[str, int, int, int]]:
    """Each step of the reading order: name, files, lines of the definitions it names, lines of the files."""
    text = (root / PATH).read_text(encoding="utf-8")
    for step, row in STEP.findall(text):
        files = FILE.findall(row)
        named = [(root / path, name) for path, names in files for name in re.findall(r"\w+", names)]
        to_read = sum(definition_lines(path, name) for path, name in named)
        yield step, len(files), to_read, sum(lines_of(root / path) for path, _ in files)


def page(root: Path = ROOT) -> str:
    """The page."""
    sizes = numbers(root)
    order = list(steps(root))
    lines = [
        "# The rooms and their files",
        "",
        "`make rooms` writes this page: what a file holds is the first sentence of its docstring.",
        "A room imports only rooms that stand above it here. Every room may use `errors.py`, `question.py`,",
        "`progress.py` and `terminal.py`. `tests/` has the same rooms.",
        "",
        "| room | files | lines | longest file |",
        "|---|---|---|---|",
    ]
    for name, (files, length, longest) in sizes.items():
        if name != "all":
            lines.append(f"| `{name}` | {files} | {length:,} | {longest} |")
    files, length, longest = sizes["all"]
    lines += [
        f"| all | {files} | {length:,} | {longest} |",
        "",
        f"The median file has {median(root):.0f} lines.",
    ]
    lines += ["", "## Length of the reading order", ""]
    lines += [
        "The steps are those of [how it works](how_it_works.md#reading-order-from-a-csv-to-the-submission).",
        '"To read" counts the functions and classes that it names, "whole files" what lies around them.',
        "",
        "| step | files | to read | whole files |",
        "|---|---|---|---|",
    ]
    for title, part in (("a run", order[:12]), ("with the sweep", order)):
        shown = part if part is not order else part[12:]
        lines += [f"| {step} | {count} | {to_read:,} | {whole:,} |" for step, count, to_read, whole in shown]
        sums = [sum(row[column] for row in part) for column in (1, 2, 3)]
        lines.append(f"| **{title}, in all** | **{sums[0]}** | **{sums[1]:,}** | **{sums[2]:,}** |")
    for folder in (root / "vqa", *rooms(root)):
        lines += [
            "",
            f"## {folder.relative_to(root)}",
            "",
            *docstring(folder / "__init__.py").split("\n"),
            "",
        ]
        lines += ["| file | what it holds |", "|---|---|"]
        for path in modules(folder):
            first = docstring(path).partition("\n\n")[0].replace("|", "\\|")
            lines.append(f"| `{path.name}` | {first} |")
    return "\n".join(lines) + "\n"


def median(root: Path = ROOT) -> float:
    """Lines of the median file of `vqa/`."""
    return statistics.median(lines_of(path) for path in (root / "vqa").rglob("*.py"))


if __name__ == "__main__":
    print(page(), end="")
