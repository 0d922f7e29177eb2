"""Questions to token ids: the target follows the order of the options, the picture takes its tokens."""

from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import torch
from PIL import Image

from vqa.data.image import file_sha256
from vqa.model.encode import Encoder
from vqa.model.forward import letter_logits
from vqa.question import LETTERS, Picture, Question


@pytest.fixture
def question(questions: list[Question]) -> Question:
    return replace(questions[0], choices=("red", "green", "blue", "black"), answer="b")


@pytest.mark.parametrize(
    ("order", "target"),
    [((0, 1, 2, 3), 1), ((1, 0, 2, 3), 0), ((3, 2, 1, 0), 2), ((0, 2, 3, 1), 3)],
)
def test_the_order_of_the_options_moves_the_target(
    encoder: Encoder, question: Question, order: tuple[int, ...], target: int
) -> None:
    (suffix,) = encoder.suffixes([question], [order])
    assert suffix.target == target
    text = encoder.base.tokenizer.decode(suffix.ids)
    shown = [text.index(question.choices[index]) for index in order]
    assert shown == sorted(shown)
    assert f"({LETTERS[target]}) green" in text


def test_options_stay_as_written_without_an_order(encoder: Encoder, questions: list[Question]) -> None:
    targets = [suffix.target for suffix in encoder.suffixes(questions[:8])]
    assert targets == [LETTERS.index(q.answer or "") for q in questions[:8]]


def test_an_unlabelled_question_has_no_target(encoder: Encoder, question: Question) -> None:
    (suffix,) = encoder.suffixes([replace(question, answer=None)], [(3, 2, 1, 0)])
    assert suffix.target == -1


def test_the_placeholder_is_repeated_for_every_visual_token(encoder: Encoder, question: Question) -> None:
    (suffix,) = encoder.suffixes([question])
    (features,) = suffix.features
    count = int((suffix.ids == encoder.base.image_token).sum())
    assert count == len(features.pooled) == 16  # a 64 x 64 picture
    assert [len(suffix.ids)] == [length + count - 1 for length in encoder.text_lengths([question])]


def test_each_picture_takes_its_own_tokens_in_their_order(
    encoder: Encoder, question: Question, questions: list[Question], tmp_path: Path
) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (64, 32), "red").save(path)
    several = replace(question, further=(Picture(path, file_sha256(path)), *questions[1].pictures))
    (suffix,), (whole,) = encoder.suffixes([several]), encoder.suffixes([question])
    assert [f.grid for f in suffix.features] == [(4, 4), (2, 4), (4, 4)]
    config = encoder.base.model.config
    marks = [config.vision_start_token_id, config.image_token_id, config.vision_end_token_id]
    runs = [len(list(run)) for token, run in groupby(suffix.ids.tolist()) if token == marks[1]]
    assert runs == [16, 8, 16]
    assert torch.equal(suffix.ids[~torch.isin(suffix.ids, torch.tensor(marks))], whole.ids[18:])
    assert torch.equal(encoder.prefix(several), encoder.prefix(question))


def test_questions_on_several_pictures_are_answered_as_by_padded_rows(
    encoder: Encoder, questions: list[Question]
) -> None:
    pictures = [picture for q in questions[:4] for picture in q.pictures]
    asked = [replace(q, further=tuple(pictures[:n])) for n, q in enumerate(questions[:4])]
    asked.append(replace(questions[4], image=None, image_sha256=""))
    with torch.no_grad():
        found = letter_logits(encoder.base, encoder.batch(asked))
        expected = encoder.base.model(**encoder.padded(asked), use_cache=False).logits[:, -1]
        turned = letter_logits(
            encoder.base, encoder.orders_batch(asked, [(0, 1, 2, 3), (1, 2, 3, 0)], outside=False)
        )
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(turned[::2], expected, atol=1e-4)


def test_without_its_picture_a_question_keeps_only_its_text(encoder: Encoder, question: Question) -> None:
    blank = replace(question, image=None, image_sha256="")
    (suffix,), (whole,) = encoder.suffixes([blank]), encoder.suffixes([question])
    config = encoder.base.model.config
    marks = [config.vision_start_token_id, config.image_token_id, config.vision_end_token_id]
    assert suffix.features == ()
    assert not torch.isin(suffix.ids, torch.tensor(marks)).any()
    assert torch.equal(suffix.ids, whole.ids[~torch.isin(whole.ids, torch.tensor(marks))])


def test_the_prefix_is_the_same_for_every_question_and_ends_before_the_picture(
    encoder: Encoder, questions: list[Question]
) -> None:
    prefix = encoder.prefix(questions[0])
    assert all(torch.equal(prefix, encoder.prefix(q)) for q in questions[1:5])
    (suffix,) = encoder.suffixes(questions[:1])
    assert suffix.ids[0] == encoder.base.model.config.vision_start_token_id
    assert encoder.base.model.config.vision_start_token_id not in prefix


def test_a_batch_is_the_prefix_and_the_suffixes_in_order(encoder: Encoder, questions: list[Question]) -> None:
    part, orders = questions[:3], [(1, 0, 2, 3)] * 3
    batch, suffixes = encoder.batch(part, orders), encoder.suffixes(part, orders)
    prefix = encoder.prefix(part[0])
    assert torch.equal(batch.row.ids[: len(prefix)], prefix)
    assert batch.row.answers is not None
    answers = batch.row.answers.tolist()
    assert answers == sorted(answers)
    for suffix, last in zip(suffixes, answers, strict=True):
        assert torch.equal(batch.row.ids[last + 1 - len(suffix.ids) : last + 1], suffix.ids)
    assert batch.targets.tolist() == [suffix.target for suffix in suffixes]
