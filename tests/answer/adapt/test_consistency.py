"""The consistency loss brings views together; the answer is the picture's own."""

import torch

from tests.conftest import Adapt
from vqa.answer.adapt.formulas import entropies, view_divergence
from vqa.answer.adapt.gradient import AdaptedWeights, Outputs, read_batch
from vqa.answer.adapt.weight_methods import Consistency, WeightMethod
from vqa.model.vision.views import viewed
from vqa.question import Question


def test_the_loss_is_entropy_and_weighted_divergence(adapting: Adapt) -> None:
    made = adapting("adapt=consistency", "adapt.views=3", "adapt.weight=2")
    log_p = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    rule = Consistency(made, AdaptedWeights(made.encoder.base.model, made.settings))
    empty = torch.empty(0)
    found = rule._loss(Outputs(log_p, torch.zeros(6), empty, empty))
    expected = [entropies(log_p[i]) + 2 * view_divergence(log_p[None, i : i + 3])[0] for i in (0, 3)]
    assert torch.allclose(found, torch.stack(expected).mean())


def test_views_come_together_and_the_picture_answers(adapting: Adapt, questions: list[Question]) -> None:
    made = adapting("adapt=consistency", "adapt.views=3", "adapt.weight=20", "adapt.lr=1e-3")
    blank = Question("blank", None, "", "?", ("one", "two", "three", "four"))
    part = [*questions[:5], blank]
    asked = [view for q in questions[:5] for view in viewed(q, 3, made.settings.seed)]

    def apart() -> torch.Tensor:
        return view_divergence(read_batch(made.encoder, asked).log_p.view(5, 3, 4)).mean()

    before, method = apart(), WeightMethod(made, Consistency)
    expected = read_batch(made.encoder, part)
    log_p, log_mass = method.scores(part)
    assert torch.allclose(log_p, expected.log_p, atol=1e-5)
    assert torch.allclose(log_mass, expected.log_mass, atol=1e-5)
    for _ in range(3):
        method.scores(part)
    assert apart() < before
    method.reset()
