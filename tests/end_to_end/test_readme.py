"""The two READMEs give the same commands, and the tree is what lies on the disk."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands(name: str) -> list[str]:
    """The commands of a README's quick start, comments left out."""
    text = (ROOT / name).read_text(encoding="utf-8")
    section = text.split("\n## ")[1]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]


def test_both_languages_have_the_same_quick_start() -> None:
    assert commands("README.ko.md") == commands("README.md")
    assert "make demo" in commands("README.md")


@pytest.mark.parametrize("folder", ["vqa", "pretrain", "benchmarks"])
def test_the_tree_names_every_module(folder: str) -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## Files")[1]
    section = re.search(rf"^{folder}/.*?(?=^\S)", tree, re.DOTALL | re.MULTILINE)
    assert section
    named = re.findall(r"^  ([\w/]+\.py) +(.+)$", section[0], re.MULTILINE)
    paths = sorted(path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py")
    assert named == [(path.relative_to(ROOT / folder).as_posix(), first_line(path)) for path in paths]


def first_line(module: Path) -> str:
    """Of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    assert text, module
    return text.partition("\n")[0].rstrip(".")


def tree_lines() -> list[str]:
    return (ROOT / "README.md").read_text(encoding="utf-8").split("## Files")[1].split("```")[1].splitlines()


def test_everything_in_the_tree_is_there() -> None:
    folder = ""
    for line in filter(None, tree_lines()):
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        assert (ROOT / (f"{folder}/{name}" if line.startswith(" ") else name)).exists(), line


def test_the_tree_names_every_option() -> None:
    options = {line.split()[0]: sorted(line.split()[1:]) for line in tree_lines() if line.startswith("  ")}
    for group in (path for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        if there := sorted(path.stem for path in group.glob("*.yaml")):
            assert options[f"{group.name}/"] == there


def test_the_tree_names_every_make_target() -> None:
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    [line] = [line for line in tree_lines() if line.startswith("Makefile")]
    assert re.findall(r"make (\w+)", line) == targets


@pytest.mark.parametrize("name", ["README.md", "README.ko.md", "CONTRIBUTING.md"])
def test_make_is_told_targets_it_has(name: str) -> None:
    told = re.findall(r"(?:^|`|\n)make (\w+)", (ROOT / name).read_text(encoding="utf-8"))
    assert {*told} <= {*re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)}


@pytest.mark.parametrize("name", ["README.md", "README.ko.md", "CONTRIBUTING.md", "docs/bring_your_own.md"])
def test_links_to_files_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
