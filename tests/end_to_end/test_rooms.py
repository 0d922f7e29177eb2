"""The page of rooms says what the code is: `make rooms` writes it anew."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.helpers.scripts import script

ROOT = Path(__file__).parents[2]
ROOMS = script(ROOT / ".ci/rooms.py")
NUMBER = re.compile(r"\d[\d,]*")
SLACK_LINES, SLACK_SHARE = 30, 0.1  # so that not every change of some lines has to write the page


def test_the_page_of_rooms_is_what_the_code_says() -> None:
    written, now = (ROOT / "docs/rooms.md").read_text(encoding="utf-8"), ROOMS.page()
    assert NUMBER.sub("N", written) == NUMBER.sub("N", now), "make rooms"
    for told, found in zip(NUMBER.findall(written), NUMBER.findall(now), strict=True):
        there, here = (int(number.replace(",", "")) for number in (told, found))
        assert abs(there - here) <= max(SLACK_LINES, SLACK_SHARE * here), f"make rooms: {told} is {found} now"


def test_the_page_has_every_module_and_every_room_in_the_order_of_the_contracts() -> None:
    page = ROOMS.page()
    for path in (ROOT / "vqa").rglob("*.py"):
        part = page.split(f"## {path.parent.relative_to(ROOT)}\n")[1].split("\n## ")[0]
        assert path.name == "__init__.py" or f"| `{path.name}` | " in part, path
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [name for layer in reversed(contracts[0]["layers"]) for name in layer.split(" | ")]
    assert [name for name in layers if (ROOT / "vqa" / name).is_dir()] == [*ROOMS.ORDER]


def test_the_reading_order_names_what_there_is(tmp_path: Path) -> None:
    for step, files, to_read, whole in ROOMS.steps():
        assert files > 0, step
        assert 0 < to_read < whole, step
    (tmp_path / "docs").mkdir()
    (tmp_path / "vqa").mkdir()
    (tmp_path / "vqa/run.py").write_text("def app() -> None:\n    pass\n")
    for name, outcome in (("`app`", [("1. start", 1, 2, 2)]), ("`main`", None)):
        (tmp_path / ROOMS.PATH).write_text(f"| 1. start | `vqa/run.py` ({name}) | begins |\n")
        if outcome:
            assert list(ROOMS.steps(tmp_path)) == outcome
            continue
        with pytest.raises(ValueError, match=r"has no main; mend the reading order in docs/how_it_works\.md"):
            list(ROOMS.steps(tmp_path))
