"""Pictures are corrected where their statistics are off, and left alone where they are not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from tests.conftest import Make
from vqa.answer.adapt.loop import adapted_scores
from vqa.answer.adapt.method import Adapting
from vqa.answer.adapt.picture_methods import PictureRepair
from vqa.answer.score import option_scores
from vqa.data.image import file_sha256, load_image
from vqa.errors import UserError
from vqa.model.encode import Encoder
from vqa.model.vision.views import TONES
from vqa.question import Question


@pytest.fixture
def repair(settings: Make) -> Make:
    return lambda *more: settings("adapt=repair", "adapt.source_size=32", "adapt.batch_size=16", *more)


def changed(questions: Sequence[Question], name: str, folder: Path) -> list[Question]:
    """The questions over negatives, or over pictures at a third of their light."""
    made = []
    for question in questions:
        assert question.image is not None
        picture = Image.open(question.image).convert("RGB")
        path = folder / f"{name}-{question.id}.png"
        whole = (
            ImageOps.invert(picture) if name == "negative" else ImageEnhance.Brightness(picture).enhance(0.3)
        )
        whole.save(path)
        made.append(replace(question, image=path, image_sha256=file_sha256(path)))
    return made


@pytest.mark.parametrize("name", ["negative", "levels"])
def test_a_shift_that_a_correction_undoes_is_found(
    encoder: Encoder, questions: list[Question], repair: Make, tmp_path: Path, name: str
) -> None:
    method = PictureRepair(Adapting(encoder, repair().adapt, questions[:32]))
    assert method.choose(changed(questions[32:], name, tmp_path)) == name


def test_pictures_like_the_training_ones_are_answered_as_they_are(
    encoder: Encoder, questions: list[Question], repair: Make
) -> None:
    facts: dict[str, dict[str, float]] = {}
    asked = questions[32:]
    found, _ = adapted_scores(encoder, asked, repair().adapt, facts, questions[:32])
    frozen, _ = option_scores(encoder, asked, 16)
    torch.testing.assert_close(found.double(), frozen[:, 0], rtol=0, atol=1e-5)
    assert facts["adapt"]["as_it_is"] == 1


def test_a_negative_is_answered_as_the_picture_was(
    encoder: Encoder, questions: list[Question], repair: Make, tmp_path: Path
) -> None:
    asked = questions[32:]
    inverted = changed(asked, "negative", tmp_path)
    found, _ = adapted_scores(encoder, inverted, repair().adapt, None, questions[:32])
    frozen, _ = option_scores(encoder, asked, 16)
    torch.testing.assert_close(found.double(), frozen[:, 0], rtol=0, atol=1e-5)  # inverted twice


def test_a_lone_question_and_one_without_a_picture_are_left_alone(
    encoder: Encoder, questions: list[Question], repair: Make, tmp_path: Path
) -> None:
    method = PictureRepair(Adapting(encoder, repair().adapt, questions[:32]))
    blank = replace(questions[0], image=None, image_sha256="")
    assert method.choose(changed(questions[:1], "negative", tmp_path)) == ""
    assert method.scores([blank, blank])[0].shape == (2, 4)


def test_repair_without_training_pictures_is_refused(encoder: Encoder, repair: Make) -> None:
    with pytest.raises(UserError, match="adapt=repair needs training questions with pictures"):
        PictureRepair(Adapting(encoder, repair().adapt, []))


@pytest.mark.parametrize("name", TONES)
def test_a_correction_keeps_the_size_and_can_be_asked_for_as_a_view(
    questions: list[Question], name: str
) -> None:
    from vqa.model.vision.views import look

    assert questions[0].image is not None
    picture = load_image(questions[0].image)
    seen = look(picture, name)
    assert seen.size == picture.size
    assert seen.tobytes() == TONES[name](picture).tobytes()
