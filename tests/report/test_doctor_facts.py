"""What the doctor measures of data is right on data made to have it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Make
from vqa.model.base import model_folder, read_model_config
from vqa.question import LETTERS, Picture, Question
from vqa.report import doctor_facts as facts

Choices = tuple[str, str, str, str]
OPTIONS: Choices = ("red", "blue", "green", "gold")


def asked(name: str, **more: Any) -> Question:
    known: dict[str, Any] = {"text": "which colour?", "choices": OPTIONS, "answer": "a"}
    values = {"image": None, "image_sha256": ""} | known | more
    return Question(id=name, **values)


def drawn(path: Path, seed: int, size: int = 96) -> Path:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return path


def test_twins_are_found_within_and_across_parts() -> None:
    parts = {
        "train": [asked("1", image_sha256="x"), asked("2", image_sha256="x")],
        "test": [asked("3", image_sha256="x"), asked("4", image_sha256="y")],
    }
    twins = facts.exact_twins(parts)
    assert twins.pairs == [(("train", "1"), ("train", "2")), (("train", "1"), ("test", "3"))]
    assert twins.across == [(("train", "1"), ("test", "3"))]


def test_twins_are_found_among_several_pictures_and_told_once() -> None:
    second = (Picture(Path("y.png"), "y"),)
    both = {"image": Path("x.png"), "image_sha256": "x", "further": second}
    parts = {"train": [asked("1", **both), asked("2", image_sha256="y")], "test": [asked("3", **both)]}
    assert facts.exact_twins(parts).pairs == [
        (("train", "1"), ("train", "2")),
        (("train", "1"), ("test", "3")),
    ]


def test_a_picture_saved_again_is_nearly_the_same_and_another_is_not(tmp_path: Path) -> None:
    first, other = drawn(tmp_path / "a.png", 1), drawn(tmp_path / "b.png", 2)
    again = tmp_path / "a.jpg"
    Image.open(first).resize((80, 80)).save(again, quality=60)
    parts = {
        "train": [asked("1", image=first, image_sha256="1"), asked("2", image=other, image_sha256="2")],
        "test": [asked("3", image=again, image_sha256="3")],
    }
    assert facts.near_twins(parts).across == [(("train", "1"), ("test", "3"))]


def test_a_picture_without_structure_is_compared_with_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "plain.png")
    assert facts.difference_hash(tmp_path / "plain.png") is None
    assert facts.difference_hash(tmp_path / "missing.png") is None


def test_doubtful_rows_are_named() -> None:
    rows = [
        asked("equal", choices=("red", "red ", "green", "gold")),
        asked("hint", text="why is it RED?"),
        asked("no hint", text="is it red or blue?"),
        asked("one", image_sha256="x", text="q"),
        asked("two", image_sha256="x", text="q", answer="b"),
        asked("same", image_sha256="x", text="q", choices=("blue", "red", "green", "gold"), answer="b"),
    ]
    assert facts.equal_options(rows) == ["equal"]
    assert facts.hinted(rows) == ["hint"]
    assert facts.contradictions(rows) == [("one", "two")]
    assert facts.letter_balance(rows) == {"a": 4, "b": 2, "c": 0, "d": 0}


def test_the_longest_option_is_counted() -> None:
    assert facts.longest_is_right([asked("1", answer="c"), asked("2", answer="a")]) == 0.5
    assert facts.longest_is_right([asked("1", answer=None)]) is None


@pytest.mark.parametrize(("telling", "low", "high"), [(True, 0.95, 1.0), (False, 0.1, 0.45)])
def test_the_floor_shows_what_words_give_away(telling: bool, low: float, high: float) -> None:
    draw = np.random.default_rng(0)
    rows = []
    for i in range(200):
        order = draw.permutation(4)
        choices: Choices = tuple(OPTIONS[k] for k in order)  # type: ignore[assignment]  # four of them
        gold = LETTERS[int(np.flatnonzero(order == 0)[0])] if telling else LETTERS[int(draw.integers(4))]
        rows.append(asked(str(i), choices=choices, answer=gold, image_sha256=str(i // 2)))
    floor = facts.text_floor(rows, seed=0)
    assert floor is not None
    assert low <= floor["accuracy"] <= high
    assert floor["low"] <= floor["accuracy"] <= floor["high"]
    assert facts.text_floor(rows[:40], seed=0) is None


def test_visual_tokens_are_those_of_the_model(settings: Make, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = settings()
    tokenizer = AutoTokenizer.from_pretrained(model_folder("asset:tiny"))
    question = asked("1", image=drawn(tmp_path / "a.png", 1, size=64), image_sha256="1")
    found = facts.sizes(made, [question], read_model_config(made), tokenizer)
    assert found["width"] == [64, 64, 64, 64]
    assert found["visual tokens"] == [16, 16, 16, 16]  # 64 x 64 pixels, 16 x 16 each
    assert found["text tokens"][0] > 10


def test_many_questions_are_represented_by_evenly_spread_ones_and_the_longest() -> None:
    rows = [asked(str(i)) for i in range(5000)]
    rows[77] = asked("long", text="x" * 500)
    measured = facts._measured(rows)
    assert len(measured) == facts.MOST_MEASURED + facts.LONGEST
    assert {"0", "long", "4999"} <= {q.id for q in measured}
    assert facts.evenly(rows, 9000) == rows


@pytest.mark.parametrize("size", [(2000, 1), (4020, 20)])
def test_strips_are_measured_with_their_borders(
    settings: Make, tmp_path: Path, size: tuple[int, int]
) -> None:
    from transformers import AutoTokenizer

    made = settings()
    Image.new("RGB", size).save(tmp_path / "strip.png")
    tokenizer = AutoTokenizer.from_pretrained(model_folder("asset:tiny"))
    question = asked("1", image=tmp_path / "strip.png", image_sha256="1")
    found = facts.sizes(made, [question], read_model_config(made), tokenizer)
    assert found["height"][0] == size[1]
    assert found["visual tokens"][0] >= 1
