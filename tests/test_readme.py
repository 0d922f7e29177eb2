"""The two READMEs give the same commands, and the tree is what lies on the disk."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
    named = set(re.findall(r"^  (\w+\.py) ", section[0], re.MULTILINE))
    there = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert named == there


@pytest.mark.parametrize("name", ["README.md", "README.ko.md", "CONTRIBUTING.md", "docs/bring_your_own.md"])
def test_links_to_files_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
