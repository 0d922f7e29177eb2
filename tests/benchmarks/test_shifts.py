"""The table over the shifts: corruptions repeat, nothing reported was trained on, sums are right."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.shifts.adaptation import METHODS, cells_of, values
from benchmarks.shifts.corruptions import CORRUPTIONS, corrupted
from benchmarks.shifts.rows import SHIFTS, TUNING, emoji_split, write_training_csv
from benchmarks.shifts.table import SHIFTED, compared, markdown
from tests.conftest import Make
from vqa.data.csv_rows import read_rows
from vqa.data.image import file_sha256
from vqa.question import Question


@pytest.fixture
def question(tmp_path: Path) -> Question:
    """A red square on transparent ground."""
    path = tmp_path / "picture.png"
    picture = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    picture.paste((255, 0, 0, 255), (16, 16, 48, 48))
    picture.save(path)
    return Question("q", path, file_sha256(path), "?", ("w", "x", "y", "z"), "a")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_the_same_every_time_and_leaves_the_question_alone(
    question: Question, name: str, tmp_path: Path
) -> None:
    [one], [other] = (corrupted([question], name, tmp_path / folder) for folder in ("one", "other"))
    assert one.image_sha256 == other.image_sha256 != question.image_sha256
    assert one.image is not None
    assert file_sha256(one.image) == one.image_sha256
    assert (one.id, one.text, one.choices, one.answer) == ("q", "?", ("w", "x", "y", "z"), "a")
    assert Image.open(one.image).size == (64, 64)


def test_a_question_without_a_picture_cannot_be_corrupted(question: Question, tmp_path: Path) -> None:
    blank = Question("q", None, "", "?", question.choices)
    with pytest.raises(ValueError, match="'q' must have a picture"):
        corrupted([blank], "blur", tmp_path)


def test_no_reported_emoji_picture_is_in_the_training_file(tmp_path: Path) -> None:
    write_training_csv(tmp_path, 200)
    _, problems, _ = read_rows(tmp_path / "train.csv", "train", 1)
    assert not problems
    with (tmp_path / "train.csv").open(newline="", encoding="utf-8") as file:
        trained = {row["path"].removesuffix(".png") for row in csv.DictReader(file)}
    held_out = {q.image_sha256[:20] for q in emoji_split(tmp_path, 200).valid}
    assert min(len(trained), len(held_out)) > 30
    assert not trained & held_out


def result(shift: str, method: str, seed: int, right: str, ids: str = "pqrs") -> dict[str, Any]:
    """What a cell of four questions left."""
    cell = {"dataset": "d", "shift": shift, "method": method, "seed": seed}
    return cell | {"ids": list(ids), "right": right, "nll": 1.0, "seconds_per_row": 0.002, "memory_mib": 5.0}


def test_rows_are_means_over_seeds_and_shifts_weigh_the_same() -> None:
    results = [
        result("clean", "frozen", 0, "1111"),
        result("blur", "frozen", 0, "1100"),
        result("blur", "frozen", 1, "1000"),
        result("blur", "tent", 0, "1110"),
        result("blur", "tent", 1, "1010"),
        result("jpeg", "frozen", 0, "00", "pq"),
        result("jpeg", "frozen", 1, "00", "pq"),
        result("jpeg", "tent", 0, "10", "pq"),
        result("jpeg", "tent", 1, "11", "pq"),
    ]
    found = {(row["shift"], row["method"]): row for row in compared(results)}
    blur, jpeg, mean = (found[shift, "tent"] for shift in ("blur", "jpeg", SHIFTED))
    assert (blur["accuracy"], blur["gain"], blur["gain_by_seed"]) == (0.625, 0.25, [0.25, 0.25])
    assert (jpeg["accuracy"], jpeg["gain"]) == (0.75, 0.75)
    assert (mean["gain"], mean["accuracy"]) == pytest.approx((0.5, 0.6875))
    assert found[SHIFTED, "frozen"]["accuracy"] == pytest.approx((3 / 8 + 0) / 2)  # clean is no shift
    assert blur["p_holm"] >= blur["p"]


def test_the_mean_of_shifts_takes_only_seeds_that_every_shift_has() -> None:
    results = [
        result(shift, method, seed, right)
        for method, right in (("frozen", "1000"), ("tent", "1100"))
        for shift, seed in (("blur", 0), ("blur", 1), ("jpeg", 0))
    ]
    results += [result("blur", "late", 1, "1111"), result("jpeg", "late", 0, "1111")]
    found = {row["method"]: row for row in compared(results) if row["shift"] == SHIFTED}
    assert (found["tent"]["seeds"], found["tent"]["gain"]) == (1, pytest.approx(0.25))
    assert "late" not in found


def test_only_significant_gains_are_bold() -> None:
    many = "".join(chr(0x4E00 + i) for i in range(60))
    results = [
        result("blur", "frozen", 0, "0" * 60, many),
        result("blur", "good", 0, "1" * 60, many),
        result("blur", "luck", 0, "1" + "0" * 59, many),
    ]
    text = markdown(compared(results))
    assert "| good | **+100.0**" in text
    assert "| luck | +1.7 (" in text
    assert "| frozen | 0.0 (0.0-0.0)" in text


def test_the_table_prints_the_values_that_each_method_ran_with() -> None:
    results = [result("blur", "frozen", 0, "1100"), result("blur", "tent", 0, "1110") | {"values": "rate=1"}]
    assert markdown(compared(results)).endswith("\n\n| method | values |\n|---|---|\n| tent | rate=1 |")


@pytest.mark.parametrize(
    "name", [name for name, overrides in METHODS.items() if "adapt=" in " ".join(overrides)]
)
def test_the_table_runs_the_products_own_values(name: str, settings: Make) -> None:
    given = [override for override in METHODS[name] if override not in ("adapt.parameters=norm",)]
    assert given == [override for override in given if override.startswith("adapt=")]
    made = settings(*METHODS[name]).adapt
    told = values(made)
    assert ("rate=" in told) == (name not in ("views", "zero", "repair"))
    if name in ("tent_lora", "tent_norm"):
        assert (
            told == f"rate={0.0001 if name == 'tent_lora' else 0.003:g} optimizer=adam steps=1 batch_size=16"
        )


def asked(**more: Any) -> Namespace:
    """A command line of `run`."""
    plain: dict[str, Any] = {"seeds": 3, "rows": 300, "datasets": ["emoji_quiz", "easy_vqa"]}
    return Namespace(**(plain | {"shifts": [], "methods": [], "variants": []} | more))


def test_the_whole_table_is_asked_for_the_dear_methods_first() -> None:
    cells = cells_of(asked())
    assert len(cells) == len(METHODS) * 13 * 3
    assert list(dict.fromkeys(cell["method"] for cell in cells)) == list(METHODS)


def test_a_variant_is_a_method_of_the_command_line() -> None:
    more = {"variants": ["slow:adapt=tent adapt.lr=1e-4"], "methods": ["frozen"]}
    cells = cells_of(asked(datasets=[TUNING], shifts=["blur"], seeds=1, **more))
    assert [(c["method"], c["overrides"]) for c in cells] == [
        ("frozen", []),
        ("slow", ["adapt=tent", "adapt.lr=1e-4"]),
    ]
    assert "blur" in SHIFTS[TUNING]


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"--methods must be among .*frozen.*, got tnet"):
        cells_of(asked(methods=["tnet"]))
