"""Each picture and each answer gets its own states; moments and their distance by hand."""

import pytest
import torch

from vqa.answer.adapt.formulas import Moments, answer_embeddings, misalignment, moments, picture_embeddings
from vqa.model.decoder import answer_logits, answer_states, early_states
from vqa.model.encode import Encoder
from vqa.model.packing import pack_prefix
from vqa.question import Question


def test_a_pictures_embedding_is_the_mean_of_its_own_tokens(
    encoder: Encoder, questions: list[Question]
) -> None:
    blank = Question("blank", None, "", "?", ("a", "b", "c", "d"))
    part = [questions[0], blank, *questions[1:3]]
    row = encoder.batch(part).row
    with torch.no_grad():
        logits, states = answer_states(encoder.base.model, row)
        layers = len(encoder.base.model.model.language_model.layers)
        visual = early_states(encoder.base.model, row, layers - 1)[-1]
        assert torch.equal(logits, answer_logits(encoder.base.model, row))
    sizes = [len(f.pooled) for own in encoder.base.vision.features(part, encoder.image) for f in own]
    expected = torch.stack([tokens.mean(0) for tokens in torch.split(visual, sizes)])
    assert torch.allclose(picture_embeddings(row, states), expected, atol=1e-5)
    assert answer_embeddings(row, states).shape == (4, states.shape[1])


def test_without_pictures_there_are_no_picture_embeddings(encoder: Encoder) -> None:
    row = encoder.batch([Question("blank", None, "", "?", ("a", "b", "c", "d"))]).row
    assert len(picture_embeddings(row, torch.randn(len(row.ids), 8))) == 0


def test_a_prefix_has_no_answer(encoder: Encoder) -> None:
    row = pack_prefix(torch.tensor([1, 2, 3]), encoder.base.device)
    with pytest.raises(ValueError, match="row must have answers, got a prefix"):
        answer_embeddings(row, torch.randn(3, 8))


def test_moments_by_hand() -> None:
    found = moments(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    assert (found.mean.tolist(), found.variance.tolist()) == ([2.0, 0.0], [1.0, 0.0])


def test_misalignment_by_hand() -> None:
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])  # means 2, 5; variances 1, 0
    source = Moments(torch.tensor([0.0, 5.0]), torch.tensor([4.0, 0.25]))
    # means: |2 - 0| / 2 = 1 and 0; variances: |1 - 4| / 4 = 0.75 and |0 - 0.25| / 0.25 = 1
    assert misalignment(x, source).item() == pytest.approx(0.5 + 0.875)
    assert misalignment(x, moments(x)).item() == 0


def test_one_question_and_dead_dimensions_give_numbers() -> None:
    x = torch.ones(1, 3, requires_grad=True)
    loss = misalignment(x, Moments(torch.zeros(3), torch.tensor([1.0, 0.0, 4.0])))
    (grad,) = torch.autograd.grad(loss, x)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()
