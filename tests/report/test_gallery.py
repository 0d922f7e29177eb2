"""The gallery holds every answer; pictures go to the surest mistakes first."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vqa.question import Picture, Question
from vqa.report import page as module
from vqa.report.page import gallery
from vqa.results.predictions import Prediction


def asked(folder: Path, name: str) -> Question:
    path = folder / f"{name}.png"
    Image.effect_noise((300, 300), 60).save(path)
    return Question(name, path, name, f"what is {name}?", ("a1", "b1", "c1", "d1"), "a")


def said(name: str, letter: str, sure: float, gold: str | None = "a") -> Prediction:
    p = [(1 - sure) / 3] * 4
    p["abcd".index(letter)] = sure
    return Prediction(name, letter, (p[0], p[1], p[2], p[3]), 1.0, gold, "colour")


def test_a_row_holds_what_the_card_shows(tmp_path: Path) -> None:
    made = gallery({"valid": [said("q", "b", 0.7)]}, {"valid": {"q": asked(tmp_path, "q")}})
    row = [
        "valid",
        "q",
        "colour",
        "a",
        "b",
        [0.1, 0.7, 0.1, 0.1],
        "",
        "what is q?",
        ["a1", "b1", "c1", "d1"],
        0,
        "",
    ]
    assert made["rows"] == [row]
    assert len(made["pictures"]) == 1


def test_a_held_out_row_tells_what_the_base_model_answered(tmp_path: Path) -> None:
    known = {"valid": {"q": asked(tmp_path, "q")}}
    made = gallery({"valid": [said("q", "b", 0.7)]}, known, base=[said("q", "c", 0.7)])
    assert made["rows"][0][-1] == "c"


def test_pictures_go_to_the_surest_mistakes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = [said("right", "a", 0.9), said("mild", "b", 0.4), said("sure", "b", 0.99)]
    questions = {name: asked(tmp_path, name) for name in ("right", "mild", "sure")}
    whole = gallery({"valid": predictions}, {"valid": questions})
    assert [row[1] for row in whole["rows"]] == ["right", "mild", "sure"]  # file order
    assert [row[-2] for row in whole["rows"]] == [2, 1, 0]
    monkeypatch.setattr(module, "PICTURE_BYTES", len(whole["pictures"][0]))
    assert [row[-2] for row in gallery({"valid": predictions}, {"valid": questions})["rows"]] == [-1, -1, 0]


def test_several_pictures_are_a_list(tmp_path: Path) -> None:
    first, second = asked(tmp_path, "q"), asked(tmp_path, "r")
    gone = Picture(tmp_path / "gone.png", "gone")
    both = replace(first, further=(*second.pictures, gone))
    made = gallery({"valid": [said("q", "b", 0.7)]}, {"valid": {"q": both}})
    assert made["rows"][0][-2] == [0, 1, -1]
    assert len(made["pictures"]) == 2


def test_an_answer_without_its_question_is_shown_without_text() -> None:
    made = gallery({"test": [said("q", "b", 0.7, gold=None)]}, {})
    assert made["rows"][0][3] == ""
    assert made["rows"][0][7:] == ["", ["", "", "", ""], -1, ""]
