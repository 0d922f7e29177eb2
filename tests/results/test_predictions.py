import csv
import random
from pathlib import Path

import pytest

from vqa.errors import UserError
from vqa.question import LETTERS
from vqa.results.metrics import nll
from vqa.results.predictions import (
    Prediction,
    append_predictions,
    read_predictions,
    write_predictions,
    write_submission,
)

EVEN = (0.25, 0.25, 0.25, 0.25)


def draw(name: str, seed: int, gold: str | None = "c") -> Prediction:
    draws = [random.Random(f"{seed}{i}").random() ** 8 for i in range(4)]
    p = [value / sum(draws) for value in draws]
    return Prediction(name, LETTERS[p.index(max(p))], (p[0], p[1], p[2], p[3]), 0.987, gold)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_margin_is_the_lead_of_the_top_option() -> None:
    assert Prediction("q", "b", (0.1, 0.6, 0.05, 0.25), 1.0).margin == pytest.approx(0.35)


def test_what_was_written_is_read_back_exactly(tmp_path: Path) -> None:
    written = [
        draw("007", 1),
        Prediction("NA", None, EVEN, 0.5, "a", "colour", "image_missing"),
        Prediction("질문 3", "a", (1.0, 0.0, 0.0, 0.0), 1.0),
        Prediction('a,"b"\r\nc', "d", (0.0, 0.0, 0.0, 1.0), 0.0, "d"),
    ]
    write_predictions(tmp_path / "new" / "p.csv", written)
    assert read_predictions(tmp_path / "new" / "p.csv") == written


def test_nll_survives_the_file(tmp_path: Path) -> None:
    written = [draw(str(i), i) for i in range(50)]
    write_predictions(tmp_path / "p.csv", written)
    assert nll(read_predictions(tmp_path / "p.csv")) == nll(written)


def test_columns_follow_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    write_predictions(path, [draw("x", 1, gold=None)])
    assert path.read_bytes().split(b"\n")[0] == (
        b"id,answer,p_a,p_b,p_c,p_d,margin,option_mass,kind,flag,image_sha256"
    )
    write_predictions(path, [draw("x", 1, gold=None), draw("y", 2)], fold=2)
    assert list(rows_of(path)[0])[-5:] == ["gold", "kind", "flag", "image_sha256", "fold"]
    assert [(row["id"], row["gold"], row["fold"]) for row in rows_of(path)] == [
        ("x", "", "2"),
        ("y", "c", "2"),
    ]
    assert b"\r" not in path.read_bytes()


def test_folds_are_appended_and_a_repeated_fold_replaces_itself(tmp_path: Path) -> None:
    path = tmp_path / "oof.csv"
    append_predictions(path, [draw("a", 1), draw("b", 2)], fold=0)
    append_predictions(path, [draw("c", 3)], fold=1)
    append_predictions(path, [draw("c", 4)], fold=1)
    assert [(row["id"], row["fold"]) for row in rows_of(path)] == [("a", "0"), ("b", "0"), ("c", "1")]
    assert read_predictions(path) == [draw("a", 1), draw("b", 2), draw("c", 4)]


def test_no_unfinished_file_is_left_behind(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", [draw("a", 1)])
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_writing_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="predictions must not be empty"):
        write_predictions(tmp_path / "p.csv", [])


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("p", "answer", "mass", "message"),
    [
        ((0.5, 0.5, 0.5, 0.5), "a", 1.0, "p of question 'q' must add up to 1, got 2.0"),
        ((float("nan"), 0.5, 0.3, 0.2), "a", 1.0, "must be 2 to 6 numbers in 0..1, got .nan"),
        ((1.5, -0.5, 0.0, 0.0), "a", 1.0, "must be 2 to 6 numbers in 0..1"),
        (EVEN, "e", 1.0, "answer of question 'q' must be one of a, b, c, d, got 'e'"),
        (EVEN, "a", 1.2, "option_mass of question 'q' must be in 0..1, got 1.2"),
    ],
)
def test_impossible_predictions_are_refused(
    p: tuple[float, float, float, float], answer: str, mass: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Prediction("q", answer, p, mass)


HEAD = "id,answer,p_a,p_b,p_c,p_d,margin,option_mass"


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lacks the column.s. id, answer, .*it has none"),
        ("id,answer\nq,a\n", "lacks the column.s. p_a, p_b, option_mass"),
        (f"{HEAD}\nq,a,1,0,0,zero,1,1\n", "row 2: column p_d must be a number, got 'zero'"),
        (f"{HEAD}\nq,a,1,0,0,nan,1,1\n", "row 2: column p_d must be a number, got 'nan'"),
        (f"{HEAD}\nq,A,1,0,0,0,1,1\n", "row 2: answer of question 'q' must be one of a, b, c, d, got 'A'"),
        (f"{HEAD}\nq,a,1,0,0,0,1,1\nr,a,1\n", "row 3: 3 cells, expected 8"),
        (f"{HEAD}\nq,a,1,0,0,0,1,1\nq,a,1,0,0,0,1,1\n", "id 'q' occurs more than once"),
        (f"{HEAD}\n\xff", "cannot be read as a predictions file"),
    ],
)
def test_a_broken_file_is_refused_with_its_row(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_predictions(path)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p\.csv: no such predictions file; run stage=predict"):
        read_predictions(tmp_path / "p.csv")


def test_submission_holds_ids_verbatim_in_file_order(tmp_path: Path) -> None:
    ids = ["test_0002.jpg", "007", "NA"]
    write_submission(tmp_path / "s.csv", [draw(name, 5) for name in ids], ids)
    letter = draw("x", 5).answer
    expected = "id,answer\n" + "".join(f"{name},{letter}\n" for name in ids)
    assert (tmp_path / "s.csv").read_bytes() == expected.encode()


@pytest.mark.parametrize(
    ("predicted", "ids", "message"),
    [
        (["a"], ["a", "b"], "1 answers for 2 questions"),
        (["b", "a"], ["a", "b"], "row 2: this answer is for 'b', the question is 'a'"),
        (["a", "a"], ["a", "a"], "id 'a' occurs more than once"),
        (
            ["a", "silent"],
            ["a", "silent"],
            "1 of 2 questions have no answer .first: 'silent'.",
        ),
    ],
)
def test_an_incomplete_submission_is_refused(
    tmp_path: Path, predicted: list[str], ids: list[str], message: str
) -> None:
    rows = [Prediction(name, None if name == "silent" else "a", EVEN, 1.0) for name in predicted]
    with pytest.raises(UserError, match=message):
        write_submission(tmp_path / "s.csv", rows, ids)
    assert not (tmp_path / "s.csv").exists()
