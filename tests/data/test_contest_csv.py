import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from tests.helpers.contest_file import contest
from vqa.config.korean import in_korean
from vqa.data.image import file_sha256
from vqa.errors import UserError

HEADER = "id,path,question,a,b,c,d,answer\n"
UNLABELLED = "id,path,question,a,b,c,d\n"
GOOD = "good,red.png,what colour?,red,green,blue,grey,a\n"


def test_values_and_order_are_kept_verbatim(root: Path) -> None:
    text = (
        "\ufeff" + HEADER + '007,red.png,"which, of these?",NA,007,"1,000",null,A\n'
        "train_0002.jpg,blue.jpg,질문?, 1 ,1.0,nan,True, d \n"
        + 'train_0001,copy.png,"two\nlines",1,2,3,4,c\n'
    ).replace("\n", "\r\n")
    questions = contest(root, text).train()
    assert [(q.id, q.text, q.choices, q.answer) for q in questions] == [
        ("007", "which, of these?", ("NA", "007", "1,000", "null"), "a"),
        ("train_0002.jpg", "질문?", (" 1 ", "1.0", "nan", "True"), "d"),
        ("train_0001", "two\r\nlines", ("1", "2", "3", "4"), "c"),
    ]


def test_images_come_with_the_hash_of_their_bytes_so_that_twins_show(root: Path) -> None:
    text = HEADER + GOOD + "twin,copy.png,q,1,2,3,4,b\nother,./blue.jpg,q,1,2,3,4,c\n"
    first, twin, other = contest(root, text).train()
    assert first.image == root / "red.png"
    assert first.image_sha256 == twin.image_sha256 == file_sha256(root / "red.png")
    assert other.image_sha256 == file_sha256(root / "blue.jpg")


def test_further_columns_are_ignored_in_any_order(root: Path) -> None:
    text = "answer,note,d,c,b,a,question,path,id\nb,hello,4,3,2,1,q,red.png,x\n"
    (question,) = contest(root, text).train()
    assert (question.id, question.choices, question.answer) == ("x", ("1", "2", "3", "4"), "b")


@pytest.mark.parametrize("text", [UNLABELLED + "1,red.png,q,1,2,3,4\n", HEADER + "1,red.png,q,1,2,3,4,\n"])
def test_test_file_without_any_answer_is_unlabelled(root: Path, text: str) -> None:
    questions = contest(root, text, "test").test()
    assert questions is not None
    assert [q.answer for q in questions] == [None]


def test_labelled_test_file_keeps_its_answers(root: Path) -> None:
    questions = contest(root, HEADER + GOOD, "test").test()
    assert questions is not None
    assert [q.answer for q in questions] == ["a"]


def test_votes_are_counted_with_min_votes(root: Path) -> None:
    text = UNLABELLED.strip() + ",answer1,answer2,answer3\n1,red.png,q,1,2,3,4,b,,b\n"
    assert replace(contest(root, text), min_votes=2).train()[0].answer == "b"


def test_no_test_file_means_no_test_questions(root: Path) -> None:
    assert contest(root, HEADER + GOOD).test() is None


def test_training_without_a_training_file_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train_csv must be a CSV file, got null"):
        contest(root, HEADER + GOOD, "test").train()


# Each: the training file, then the place and the text of the problem that its message must hold.
BAD_FILES: list[tuple[str | bytes, str]] = [
    (b"", "train.csv: is empty"),
    (b"\n\n", "train.csv: is empty"),
    (HEADER, "train.csv: has a header and no rows"),
    ((HEADER + GOOD).encode() + b"\xff\xff", "train.csv:row 3: is not UTF-8"),
    (b"PK\x03\x04", "train.csv: is an Excel or zip file"),
    (
        (HEADER + GOOD).replace(",", ":"),
        "train.csv:row 1, column id, path, question, a, b, c, d, answer: is missing, the file has",
    ),
    (
        HEADER.replace("path", "image") + GOOD,
        "row 1, column path: is missing, the file has the columns id, image",
    ),
    (
        HEADER.replace("id,", "i d,") + GOOD,
        "row 1, column id: is missing, the file has the columns i d, path",
    ),
    (UNLABELLED + "1,red.png,q,1,2,3,4\n", "row 1, column answer: is missing (or answer1..answer5)"),
    (HEADER.replace("b,c", "b,b,c") + GOOD, "row 1, column b: stands 2 times in the header"),
    (HEADER + GOOD + '1,"red.png,q,1,2,3,4,a\n', "train.csv:row 3: is not CSV, look for a stray quote"),
    (HEADER + '1,red.png,"what" colour,1,2,3,4,a\n', "train.csv:row 2: is not CSV, look for a stray quote"),
]
BAD_ROWS = [
    ("1,red.png,q,1,2,3,4\n", "row 3, column answer: 7 fields, the header has 8"),
    ("1,red.png,q, with comma,1,2,3,4,a\n", "row 3, column answer: 9 fields, the header has 8"),
    ("just some words\n", "row 3, column path: 1 fields, the header has 8"),
    ("1,red.png,q,1,2,3,4,e\n", "row 3, column answer: must be a, b, c or d, got 'e'"),
    ("1,red.png,q,1,2,3,4,1\n", "row 3, column answer: must be a, b, c or d, got '1'"),
    ("1,red.png,q,1,2,3,4,ab\n", "row 3, column answer: must be a, b, c or d, got 'ab'"),
    ("1,red.png,q,1,2,3,4,\n", "row 3, column answer: is empty"),
    ("1,red.png,q,1,2,3,4,  \n", "row 3, column answer: is empty"),
    (",red.png,q,1,2,3,4,a\n", "row 3, column id: is empty"),
    ("1,red.png, ,1,2,3,4,a\n", "row 3, column question: is empty"),
    ("1,red.png,q,1,,3,4,a\n", "row 3, column b: is empty"),
    ('1,red.png,q,1,2,3," ",a\n', "row 3, column d: is empty"),
    ("1,,q,1,2,3,4,a\n", "row 3, column path: is empty"),
    ("good,red.png,q,1,2,3,4,a\n", "row 3, column id: 'good' stands in row 2 too"),
    ("1,none.png,q,1,2,3,4,a\n", "row 3, column path: the image "),
    ("1,Red.gif,q,1,2,3,4,a\n", "Red.gif is missing: there is no such file"),
    ("1,.,q,1,2,3,4,a\n", "is missing: this is a folder"),
    ("1,cut.jpg,q,1,2,3,4,a\n", "cut.jpg is broken: image file is truncated"),
    ("1,text.png,q,1,2,3,4,a\n", "text.png is broken: its bytes are no known image format"),
    ("1,../red.png,q,1,2,3,4,a\n", "row 3, column path: the path must stay inside the image root"),
    ("1,/red.png,q,1,2,3,4,a\n", "row 3, column path: the path must be relative to the image root"),
    ("1,red.png\0,q,1,2,3,4,a\n", "row 3, column path: the path must not hold a null character"),
    ('1,red.png,"two\nlines",1,2,3,4,x\n', "row 3, column answer: must be"),
    ("\n\n1,red.png,q,1,2,3,4,x\n", "row 5, column answer: must be"),
]


@pytest.mark.hostile
@pytest.mark.parametrize(("text", "place"), BAD_FILES)
def test_bad_file_is_refused_even_when_bad_rows_are_skipped(
    root: Path, text: str | bytes, place: str
) -> None:
    data = contest(root, text)
    for setting in ("error", "skip"):
        with pytest.raises(UserError, match=re.escape(place)) as caught:
            replace(data, on_bad_row=setting).train()
        assert str(root / "train.csv") in str(caught.value)
        assert "data.train_csv" in str(caught.value)


@pytest.mark.hostile
@pytest.mark.parametrize(("row", "place"), BAD_ROWS)
def test_bad_row_is_named_by_file_row_and_column(root: Path, row: str, place: str) -> None:
    with pytest.raises(UserError, match=re.escape(place)) as caught:
        contest(root, HEADER + GOOD + row).train()
    assert re.search(r"train\.csv:row \d+, column \w+: ", str(caught.value))
    assert "1 problem in " in str(caught.value)
    assert "data.on_bad_row=skip" in str(caught.value)


@pytest.mark.parametrize(("row", "place"), BAD_ROWS)
def test_bad_training_row_can_be_left_out_and_is_counted(
    root: Path, row: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = replace(contest(root, HEADER + GOOD + row), on_bad_row="skip")
    assert [q.id for q in data.train()] == ["good"]
    assert data.check() == []
    assert "left out 1 bad rows of 2" in caplog.text
    assert place in caplog.text


def test_skipping_every_row_is_refused(root: Path) -> None:
    data = replace(contest(root, HEADER + "1,red.png,q,1,2,3,4,e\n"), on_bad_row="skip")
    with pytest.raises(UserError, match="Not one good row is left"):
        data.train()


def test_all_problems_are_counted_and_the_first_ten_shown_by_row(root: Path) -> None:
    rows = "".join(f"{i},none.png,,1,2,3,4,e\n" for i in range(8))  # 3 problems each
    with pytest.raises(UserError) as caught:
        contest(root, HEADER + rows).train()
    message = str(caught.value).splitlines()
    assert message[0] == f"24 problems in {root}/train.csv:"
    assert [re.findall(r"row (\d+)", line) for line in message[1:11]] == [
        [str(2 + i // 3)] for i in range(10)
    ]
    assert message[11] == "  ... and 14 more"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"image_root": "/no/such/folder"}, "data.image_root must be a folder, got '/no/such/folder'"),
        ({"image_root": ""}, "data.image_root must be a folder, got ''"),
        ({"min_votes": 0}, "data.min_votes must be 1..5, got 0"),
        ({"min_votes": 6}, "data.min_votes must be 1..5, got 6"),
        ({"on_bad_row": "drop"}, "data.on_bad_row must be error or skip, got drop"),
        ({"on_bad_image": "skip"}, "data.on_bad_image must be error or blank, got skip"),
        ({"train_csv": "none.csv"}, "none.csv: cannot be read: No such file or directory"),
        ({"train_csv": "."}, ".: cannot be read: Is a directory"),
    ],
)
def test_impossible_setting_is_refused_and_found_by_check(
    root: Path, setting: dict[str, str | int], message: str
) -> None:
    data = replace(contest(root, HEADER + GOOD), **setting)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=re.escape(message)):
        data.train()
    assert len(data.check()) == 1
    assert message in data.check()[0]


def test_check_lists_the_problems_of_both_files(root: Path) -> None:
    contest(root, UNLABELLED + "1,red.png,q,1,2,3,\n", "test")
    data = replace(contest(root, HEADER + GOOD + "1,red.png,q,1,2,3,4,e\n"), test_csv=str(root / "test.csv"))
    train, test = data.check()
    assert train.startswith(f"{root}/train.csv:row 3, column answer: ")
    assert test.startswith(f"{root}/test.csv:row 2, column d: ")


def test_check_of_good_files_is_empty(root: Path) -> None:
    assert contest(root, HEADER + GOOD).check() == []


def test_equal_options_are_warned_about_and_kept(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        questions = contest(root, HEADER + GOOD + "1,red.png,q,same,same,3,4,a\n").train()
    assert len(questions) == 2
    assert "1 rows have two equal options, first in row 3" in caplog.text


def test_blank_answer_in_a_labelled_test_file_stops_the_run(root: Path) -> None:
    data = contest(root, HEADER + GOOD + "1,red.png,q,1,2,3,4,\n", "test")
    with pytest.raises(UserError, match="row 3, column answer: is empty, while other rows have an answer"):
        replace(data, on_bad_row="skip", on_bad_image="blank").test()


@pytest.mark.parametrize(
    ("name", "flag"),
    [("none.png", "image_missing"), ("cut.jpg", "image_broken"), ("text.png", "image_broken")],
)
def test_test_row_without_its_image_stops_or_is_flagged_but_never_dropped(
    root: Path, name: str, flag: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = contest(root, UNLABELLED + f"1,red.png,q,1,2,3,4\n2,{name},q,1,2,3,4\n", "test")
    with pytest.raises(UserError, match=r"data\.on_bad_image=blank"):
        replace(data, on_bad_row="skip").test()

    questions = replace(data, on_bad_image="blank").test()

    assert questions is not None
    assert [(q.id, q.image, q.flag) for q in questions] == [("1", root / "red.png", ""), ("2", None, flag)]
    assert questions[1].image_sha256 == ""
    assert "1 rows are answered without their image" in caplog.text


def test_blank_images_are_for_test_rows_only(root: Path) -> None:
    data = replace(contest(root, HEADER + GOOD + "1,none.png,q,1,2,3,4,a\n"), on_bad_image="blank")
    with pytest.raises(UserError, match=r"row 3, column path: the image .* is missing"):
        data.train()


@pytest.mark.parametrize(("row", "place"), [row for row in BAD_ROWS if "is empty" in row[1]])
def test_other_problems_of_test_rows_always_stop(root: Path, row: str, place: str) -> None:
    data = replace(contest(root, HEADER + GOOD + row, "test"), on_bad_row="skip", on_bad_image="blank")
    with pytest.raises(UserError, match=re.escape(place)):
        data.test()


def test_path_that_leaves_the_root_stops_even_with_blank_images(root: Path) -> None:
    data = contest(root, UNLABELLED + "1,../red.png,q,1,2,3,4\n", "test")
    with pytest.raises(UserError, match="row 2, column path: the path must stay inside"):
        replace(data, on_bad_image="blank").test()


@pytest.mark.parametrize(
    ("encoding", "said"), [("cp949", "read as cp949"), ("utf-16", "read as UTF-16"), ("utf-8-sig", "")]
)
def test_encoding_is_found_and_said(
    root: Path, encoding: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    (question,) = contest(root, (HEADER + GOOD.replace("what colour?", "무슨 색?")).encode(encoding)).train()
    assert question.text == "무슨 색?"
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


@pytest.mark.parametrize(("separator", "said"), [(";", "a semicolon"), ("\t", "a tab")])
def test_separator_is_found_and_said(
    root: Path, separator: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(contest(root, (HEADER + GOOD).replace(",", separator)).train()) == 1
    assert f"read with {said} between columns" in caplog.text


def test_what_was_guessed_of_a_file_is_said_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = contest(root, "id,path,question,a,b,c,d,answer\nx,red.png,q,k,l,m,n,2\n")
    for _ in range(3):
        data.train()
    assert caplog.text.count("answers are read as numbers") == 1


def test_columns_of_other_names_are_mapped(root: Path) -> None:
    text = "ID,file,Q,1,2,3,4,gold,answer\nx,red.png,q,k,l,m,n,b,a note\n"
    columns = {"id": "ID", "path": "file", "question": "Q", "answer": "gold"}
    columns |= {"a": "1", "b": "2", "c": "3", "d": "4"}
    (question,) = replace(contest(root, text), columns=columns).train()
    assert (question.id, question.choices, question.answer) == ("x", ("k", "l", "m", "n"), "b")
    with pytest.raises(UserError, match=r"data\.columns=\{id: NAME, path: NAME, question: NAME, a: NAME"):
        contest(root, text).train()
    with pytest.raises(UserError, match=r"data\.columns: unknown name Q; known: id, path"):
        replace(contest(root, text), columns={"Q": "question"}).train()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["1", "4"], ["a", "d"]),
        (["red", "blue"], ["a", "c"]),
        (["A", "c"], ["a", "c"]),
    ],
)
def test_answers_are_letters_numbers_or_texts(root: Path, answers: list[str], expected: list[str]) -> None:
    rows = "".join(f"{i},red.png,q,red,green,blue,grey,{answer}\n" for i, answer in enumerate(answers))
    assert [q.answer for q in contest(root, HEADER + rows).train()] == expected


def test_number_that_may_be_an_option_text_is_asked_about(root: Path) -> None:
    data = contest(root, HEADER + "1,red.png,how many?,4,3,2,1,2\n")
    with pytest.raises(UserError, match=r"set data\.answers=number or data\.answers=text"):
        data.train()
    assert replace(data, answers="number").train()[0].answer == "b"
    assert replace(data, answers="text").train()[0].answer == "c"


def test_rows_of_bare_commas_are_left_out_and_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(contest(root, HEADER + GOOD + ",,,,,,,\n,,,\n").train()) == 1
    assert "2 rows without any text are left out" in caplog.text


@pytest.mark.hostile
# what a stray quote did: 3 rows became 1, "all good"
@pytest.mark.parametrize("between", ["", "1b,red.png,q,1,2,3,4,a\n"])
def test_stray_quote_that_swallows_rows_is_refused_with_its_lines(root: Path, between: str) -> None:
    rows = '1,red.png,"what?,1,2,3,4,a\n' + between + '2,red.png,disc of 5",1,2,3,4,b\n'
    last = 3 + between.count("\n") + 1
    for setting in ("error", "skip"):
        with pytest.raises(UserError, match=f"row 3: a quote .* closes in line {last}.* lines 3 and {last}"):
            replace(contest(root, HEADER + GOOD + rows), on_bad_row=setting).train()


@pytest.mark.hostile
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("path_last", [False, True])
def test_stray_quote_is_found_in_files_of_every_layout(root: Path, separator: str, path_last: bool) -> None:
    rows = [HEADER.strip().split(","), ["1", "red.png", "plain", "1", "2", "3", "4", "a"]]
    rows += [["2", "red.png", '"what?', "1", "2", "3", "4", "a"]]
    rows += [["3", "red.png", 'disc of 5"', "1", "2", "3", "4", "b"]]
    if path_last:
        rows = [[*row[:1], *row[2:], row[1]] for row in rows]
    with pytest.raises(UserError, match=r"row 3: a quote .* closes in line 4, and 1 rows .* lines 3 and 4"):
        contest(root, "".join(separator.join(row) + "\n" for row in rows)).train()
    whole = [[cell.strip('"') for cell in row] for row in rows]
    whole[2][whole[0].index("question")] = f'"one{separator} a\ntwo{separator} b{separator} c"'
    text = "".join(separator.join(row) + "\n" for row in whole)
    assert len(contest(root, text).train()) == 3


def test_folder_without_any_of_the_pictures_is_one_problem(root: Path) -> None:
    (root / "other").mkdir()
    rows = "".join(f"{i},x{i}.png,q,1,2,3,4,a\n" for i in range(20))
    data = replace(contest(root, HEADER + rows), image_root=str(root / "other"))
    assert len(data.check()) == 1
    with pytest.raises(UserError, match=r"none of its 20 pictures is in .*other.*\nSet data\.image_root"):
        data.train()


def test_the_folder_that_is_meant_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    rows = "1,red,q,1,2,3,4,a\n2,sub.png,q,1,2,3,4,a\n"
    (root / "pictures" / "train").mkdir(parents=True)
    shutil.copy("red.png", "sub.png")
    for name in ("red.png", "sub.png"):
        (root / name).rename(root / "pictures" / "train" / name)
    data = replace(contest(root, HEADER + rows), image_root="pictures")
    (problem,) = data.check()
    assert problem.endswith("such as 'red'; it is in pictures/train: data.image_root=pictures/train")
    below = HEADER + rows.replace("red,", "train/red.png,").replace("sub.png", "train/sub.png")
    (problem,) = replace(contest(root, below), image_root="pictures/train").check()
    assert problem.endswith("it is in pictures: data.image_root=pictures")


def test_picture_without_its_ending_is_found_where_one_file_fits(root: Path) -> None:
    (root / "red.txt").write_text("no picture")
    data = contest(root, HEADER + GOOD.replace("red.png", "red"))
    (question,) = data.train()
    assert question.image == root / "red.png"
    shutil.copy(root / "red.png", root / "red.WEBP")
    (problem,) = data.check()
    assert "there is no such file, but 'red.png' and 'red.WEBP'" in problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,red.png,q,1,2,3,4,a\n" * 2, "row 1: holds a question, not the names of the columns"),
        ("1,red,q,w,x,y,z,3\n", "row 1: holds a question, not the names of the columns"),
        (
            "id,path,question,options,answer\n1,red.png,q,①red ②blue,1\n2,red.png,q,①one ②two ③three,2\n",
            "all options of a question stand in one cell of options, such as '①red ②blue'; give each",
        ),
        (
            "id,path,question,options,answer\n1,red.png,q,1) red 2) blue,1\n2,red.png,q,1. a/2. b,2\n",
            "all options of a question stand in one cell of options, such as '1) red 2) blue'",
        ),
    ],
)
def test_a_file_without_header_or_with_joint_options_is_told_in_one_line(
    root: Path, text: str, said: str
) -> None:
    (problem,) = contest(root, text).check()
    assert said in problem


def test_columns_that_are_named_by_numbers_are_a_header(root: Path) -> None:
    (problem,) = contest(root, "n,file,q,1,2,3,4\n1,red.png,q,w,x,y,z\n", "test").check()
    assert "the file has the columns n, file, q, 1, 2, 3, 4; if they stand in this order" in problem


def test_rows_with_the_same_problem_are_one_entry(root: Path) -> None:
    rows = [GOOD.replace("good", f"q{i}") for i in range(90)]
    for i in range(5, 85):
        rows[i] = f"q{i},no{i}.png,q,1,2,3,4,a\n"
    rows[7] = "q7,red.png,,1,2,3,4,a\n"
    data = contest(root, HEADER + "".join(rows))
    missing, empty = data.check()
    lines = missing.splitlines()
    assert len(lines) == 4
    assert "row 7, column path: the image" in lines[0]
    assert lines[3] == "    and 76 more like these, the last is row 86"
    assert empty.endswith("train.csv:row 9, column question: is empty")
    assert re.search(r"7행, path 열: 이미지 \S+/no5.png \(없음\): 그런 파일이 없습니다", in_korean(missing))
    assert "이와 같은 것 76개 더 (마지막은 86행)" in in_korean(missing)


def test_picture_of_another_spelling_is_found_and_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (question,) = contest(root, HEADER + GOOD.replace("red.png", "RED.PNG")).train()
    assert question.image == root / "red.png"
    assert "1 pictures were found under another spelling, first: 'RED.PNG' is 'red.png'" in caplog.text


def test_files_are_found_below_the_image_root(root: Path) -> None:
    assert len(replace(contest(root, HEADER + GOOD), train_csv="train.csv").train()) == 1


def test_json_lines_and_parquet_are_read(root: Path) -> None:
    names = [*HEADER.strip().split(",")]
    row = dict(zip(names, ["007", "red.png", "q", 1, 2, 3, 4, "b"], strict=True))
    (root / "x.jsonl").write_text(json.dumps(row) + "\n\n")
    parquet.write_table(pyarrow.Table.from_pylist([row]), root / "x.parquet")
    for name in ("x.jsonl", "x.parquet"):
        (question,) = replace(contest(root, HEADER), train_csv=str(root / name)).train()
        assert (question.id, question.choices, question.answer) == ("007", ("1", "2", "3", "4"), "b")
    (root / "x.jsonl").write_text("[1]")
    assert (
        "row 1: must be an object" in replace(contest(root, ""), train_csv=str(root / "x.jsonl")).check()[0]
    )


def test_ids_are_those_of_the_sample_submission(root: Path) -> None:
    data = contest(root, UNLABELLED + "1,red.png,q,1,2,3,4\n2,red.png,q,1,2,3,4\n", "test")
    (root / "sample.csv").write_text("id,answer\n2,a\n1,a\n")
    data = replace(data, sample_submission="sample.csv")
    assert len(data.test() or []) == 2
    (root / "sample.csv").write_text("id,answer\n1.png,a\n2,a\n")
    for call in (data.test,):
        with pytest.raises(UserError, match=r"1 ids are not in .*first '1.png'\n.*first '1'"):
            call()
    assert len(data.check()) == 2


@pytest.mark.hostile
def test_pipe_in_place_of_a_file_is_refused_without_waiting(root: Path) -> None:
    os.mkfifo(root / "pipe.csv")
    with pytest.raises(UserError, match="a pipe, socket or device, not a file"):
        replace(contest(root, HEADER), train_csv=str(root / "pipe.csv")).train()
