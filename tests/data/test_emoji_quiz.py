"""Emoji quiz: what is asked, what no text gives away, and which style stays unseen."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vqa.data.emoji_quiz import KINDS, EmojiQuiz, disputed, near_twins, picture_path, things, with_particle
from vqa.errors import UserError
from vqa.question import Question, letters_of

FOUR = letters_of(4)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Question]]:
    quiz = EmojiQuiz(300, 150, 0, str(tmp_path_factory.mktemp("pictures")))
    return {"train": quiz.train(), "test": quiz.test()}


def gold(question: Question) -> str:
    assert question.answer is not None
    return question.choices[FOUR.index(question.answer)]


def test_all_things_have_their_picture_in_every_style() -> None:
    assert len(things()) == len({thing.korean for thing in things()}) == 566
    for style in ("noto", "twemoji", "openmoji"):
        assert all(picture_path(thing, style).exists() for thing in things())


def test_kinds_and_letters_are_balanced(questions: dict[str, list[Question]]) -> None:
    counts = Counter((q.kind, q.answer) for q in questions["train"])
    assert set(counts) == {(kind, letter) for kind in KINDS for letter in FOUR}
    assert set(counts.values()) == {25}


def test_test_pictures_are_of_the_unseen_style_and_training_ones_never(
    questions: dict[str, list[Question]],
) -> None:
    for part, unseen in (("train", False), ("test", True)):
        alone = [q for q in questions[part] if q.kind != "absent"]
        assert all(("openmoji" in str(q.image)) is unseen for q in alone)
    digests = {part: {q.image_sha256 for q in found} for part, found in questions.items()}
    assert not digests["train"] & digests["test"]


def test_answers_are_true_and_options_never_near_twins(questions: dict[str, list[Question]]) -> None:
    names = {thing.codepoint: thing for thing in things()}
    for question in questions["train"]:
        assert len(set(question.choices)) == 4
        for choice in question.choices:
            assert not near_twins().get(choice, frozenset()) & set(question.choices)
        assert question.image is not None
        if question.kind == "thing":
            assert gold(question) == names[question.image.stem].korean
        elif question.kind == "category":
            assert gold(question) == names[question.image.stem].category
            assert names[question.image.stem].korean not in disputed()
        else:
            assert Image.open(question.image).size == (64, 64)


def test_near_twins_are_known_names() -> None:
    assert set(near_twins()) <= {thing.korean for thing in things()}
    assert {thing.korean for thing in things()} >= disputed()


def test_the_options_say_nothing_of_the_answer(tmp_path: Path) -> None:
    """How often a word is right among its appearances is near one in four, so guessing by text is chance."""
    asked = [q for q in EmojiQuiz(3000, 1, 1, str(tmp_path)).train() if q.kind == "category"]
    seen, right = Counter(c for q in asked for c in q.choices), Counter(map(gold, asked))
    guess = sum(max(q.choices, key=lambda c: right[c] / seen[c]) == gold(q) for q in asked[500:])
    assert guess / len(asked[500:]) < 0.36  # it has seen the answers it guesses


def test_a_larger_size_adds_questions_and_changes_none(tmp_path: Path) -> None:
    small = EmojiQuiz(20, 1, 0, str(tmp_path)).train()
    large = {q.id: q for q in EmojiQuiz(60, 1, 0, str(tmp_path)).train()}
    assert all(large[q.id] == q for q in small)


@pytest.mark.parametrize(
    ("word", "pair", "expected"),
    [("과일", "은는", "과일은"), ("새", "이가", "새가"), ("악기", "을를", "악기를"), ("꽃", "을를", "꽃을")],
)
def test_particles_follow_the_final_sound(word: str, pair: str, expected: str) -> None:
    assert with_particle(word, pair) == expected


def test_refuses_sizes_and_folders_it_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.train_size must be in 1..20000, got 0"):
        EmojiQuiz(0, 1, 0, str(tmp_path)).train()
    (tmp_path / "file").write_text("")
    quiz = EmojiQuiz(9, 9, 0, str(tmp_path / "file"))
    assert len(quiz.check()) == 2
    with pytest.raises(UserError, match=r"data.folder: .* cannot be written"):
        quiz.train()


@pytest.mark.parametrize("folder", [None, "", " "])
def test_refuses_what_is_no_folder(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data.folder must be a folder name, got"):
        EmojiQuiz(8, 8, 0, folder).train()
