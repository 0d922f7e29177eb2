"""Mean and vote over views: of what the model says about each view, and nothing is learnt."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import Make
from vqa.answer.adapt.formulas import marginal, vote
from vqa.answer.adapt.loop import METHODS, adapted_scores
from vqa.answer.adapt.method import Adapting
from vqa.answer.score import option_scores
from vqa.model.encode import Encoder
from vqa.model.vision.views import viewed
from vqa.question import Question


@pytest.mark.parametrize("name", ["views", "zero"])
def test_answers_are_the_mean_or_vote_of_the_views(
    name: str, encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    adapt = settings(f"adapt={name}", "adapt.views=5", "adapt.keep_share=0.4", "adapt.batch_size=4").adapt
    blank = replace(questions[0], id="blank", image=None, image_sha256="")
    part = [*questions[:3], blank]
    found, mass = adapted_scores(encoder, part, adapt)
    asked = [view for question in part for view in viewed(question, 5, adapt.seed)]
    by_view, masses = option_scores(encoder, asked, 20)
    views = by_view[:, 0].view(4, 5, 4)
    expected = [marginal(v) if name == "views" else vote(v, 0.4) for v in views]
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)
    assert torch.allclose(mass, masses[::5, 0], atol=1e-5)
    assert torch.allclose(found.exp().sum(1), torch.ones(4).double())


def test_one_view_of_a_picture_is_the_plain_answer(
    encoder: Encoder, questions: list[Question], settings: Make
) -> None:
    adapt = replace(settings("adapt=views").adapt, views=1)
    found, _ = METHODS["views"](Adapting(encoder, adapt)).scores(questions[:4])
    assert torch.allclose(found, option_scores(encoder, questions[:4], 4)[0][:, 0], atol=1e-5)
