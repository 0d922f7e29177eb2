"""docs/security.md names a test for everything that a stranger may hand us, and each of them exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")
WITHOUT_TEST = 2  # `${oc.env:...}` and formulas in ids: features, and the page says so


def rows() -> list[list[str]]:
    """The cells of each row of the threat model."""
    table = PAGE.partition("## What each thing can do at worst")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def named(text: str) -> list[tuple[str, str]]:
    """The tests that a text names: file and function; of a whole file the function is ""."""
    found, file = [], ""
    for path, function in re.findall(r"`((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?`", text):
        file = path or file
        if path or function:
            found.append((file, function))
    return found


def test_each_row_of_the_threat_model_names_a_test() -> None:
    without = [row for row in rows() if not named(row[-1])]
    assert len(rows()) > 20
    assert all(row[-1].startswith("none") for row in without), without
    assert len(without) == WITHOUT_TEST


@pytest.mark.parametrize(("file", "function"), sorted(set(named(PAGE))))
def test_a_test_that_the_page_names_exists(file: str, function: str) -> None:
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert f"\ndef {function}(" in text if function else "\ndef test_" in text


class Count:
    """Counts what pytest collects."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.ids += [item.nodeid for item in items if item.get_closest_marker("hostile")]


def test_at_least_120_hostile_inputs_are_tried() -> None:
    # `pytest -m hostile --collect-only` finds more than three times as many; these rooms import no torch
    rooms = (ROOT / "tests" / room for room in ("data", "machine", "results"))
    files = [path for room in rooms for path in room.glob("test_*.py") if "mark.hostile" in path.read_text()]
    count = Count()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *map(str, files)], plugins=[count])
    assert len(set(count.ids)) >= 120
