from pathlib import Path

import pytest

from vqa.data.contest_csv import as_sample
from vqa.question import Question

QUESTIONS = [
    Question("007", None, "", "q", ("red", "blue", "green", "grey"), None),
    Question("008", None, "", "q", ("one", "two", "three", "four"), None),
]
COLUMNS = {"id": "번호", "answer": "정답"}


@pytest.mark.parametrize(
    ("sample", "answers", "written"),
    [
        ("번호,정답\n008,1\n007,1\n", "auto", "번호,정답\n008,4\n007,2\n"),
        ("정답,번호\n0,007\n0,008\n", "auto", "정답,번호\n2,007\n4,008\n"),
        ("번호,Target\n007,A\n008,A\n", "auto", "번호,Target\n007,B\n008,D\n"),
        ("번호,더,정답\n007,x,a\n008,,a\n", "auto", "번호,더,정답\n007,x,b\n008,,d\n"),
        ("번호,정답\n007,\n008,\n", "auto", "번호,정답\n007,b\n008,d\n"),
        ("번호,정답\n007,\n008,\n", "number", "번호,정답\n007,2\n008,4\n"),
        ("번호,정답\n007,0\n008,0\n", "index", "번호,정답\n007,1\n008,3\n"),
        ("번호,정답\n007,\n008,\n", "index", "번호,정답\n007,1\n008,3\n"),
        ("번호,정답\n007,\n008,\n", "text", "번호,정답\n007,blue\n008,four\n"),
        ("번호,정답\n007,1\n008,1\n009,1\n", "auto", "번호,정답\n007,2\n008,4\n"),
        ("번호,one,two\n007,1,1\n", "auto", None),
    ],
)
def test_answers_are_written_as_the_sample_has_them(
    tmp_path: Path, sample: str, answers: str, written: str | None
) -> None:
    (tmp_path / "sample.csv").write_bytes(sample.encode("cp949"))
    data = {"sample_submission": str(tmp_path / "sample.csv"), "columns": COLUMNS, "answers": answers}
    assert as_sample(data, QUESTIONS, ["b", "d"]) == written


def test_without_a_sample_nothing_is_written() -> None:
    assert as_sample({"sample_submission": None}, QUESTIONS, ["b", "d"]) is None
    assert as_sample({}, QUESTIONS, ["b", "d"]) is None
