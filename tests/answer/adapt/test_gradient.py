"""The gradient is autograd's through the model's ordinary forward, whole or in parts, and so for any loss."""

from collections.abc import Callable

import pytest
import torch

from tests.conftest import Adapt
from vqa.answer.adapt.formulas import entropies, mean_entropy, misalignment, moments
from vqa.answer.adapt.gradient import AdaptedWeights, Outputs, _Work, letter_gradient, read_batch
from vqa.model.letters import option_log_probabilities
from vqa.model.memory import Rung
from vqa.question import Question


def entropy_loss(outputs: Outputs) -> torch.Tensor:
    return mean_entropy(outputs.log_p)


def relative_loss(outputs: Outputs) -> torch.Tensor:
    """Of all questions at once: a question's gradient depends on the others."""
    spread = entropies(outputs.log_p)
    return spread.softmax(0) @ spread


def aligned_loss(outputs: Outputs) -> torch.Tensor:
    apart = [misalignment(x, moments(x.detach() * 1.5 + 0.1)) for x in (outputs.pictures, outputs.answers)]
    return apart[0] + apart[1]


def close(found: list[torch.Tensor] | None, expected: list[torch.Tensor] | None) -> bool:
    if found is None or expected is None:
        return found is expected
    one, other = (torch.cat([g.flatten() for g in grads]) for grads in (found, expected))
    return bool(torch.linalg.norm(one - other) <= 1e-4 * torch.linalg.norm(other))


@pytest.mark.parametrize("parameters", ["lora", "norm"])
def test_the_gradient_is_that_of_the_padded_batch(
    adapting: Adapt, questions: list[Question], parameters: str
) -> None:
    made = adapting("adapt=tent", f"adapt.parameters={parameters}")
    base, part = made.encoder.base, questions[:5]
    weights = AdaptedWeights(base.model, made.settings)
    found, gradients = letter_gradient(made.encoder, weights, part, entropy_loss)
    with weights.learning():
        logits = base.model(**made.encoder.padded(part), use_cache=False).logits[:, -1]
        log_p, _ = option_log_probabilities(logits, base.letters[4])
        expected = torch.autograd.grad(mean_entropy(log_p), weights.parameters, allow_unused=True)
    assert torch.allclose(found.log_p, log_p.detach(), atol=1e-5)
    assert close(
        gradients,
        [torch.zeros_like(p) if g is None else g for p, g in zip(weights.parameters, expected, strict=True)],
    )


@pytest.mark.parametrize("loss_of", [entropy_loss, relative_loss, aligned_loss])
@pytest.mark.parametrize("size", [1, 4])
def test_a_batch_cut_for_memory_gives_the_same(
    adapting: Adapt, questions: list[Question], loss_of: Callable[[Outputs], torch.Tensor], size: int
) -> None:
    made = adapting("adapt=tent")
    blank = Question("blank", None, "", "?", ("one", "two", "three", "four"))
    part = [*questions[:3], blank, *questions[3:6]]
    weights = AdaptedWeights(made.encoder.base.model, made.settings)
    with weights.learning():
        work = _Work(made.encoder, weights.parameters, Rung(size, "layer"), embeddings=True)
        assert work.whole(part, loss_of) is None
        found, gradients = work.in_parts(part, loss_of)
    whole, expected = letter_gradient(made.encoder, weights, part, loss_of, embeddings=True)
    for one, other in zip(found, whole, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
        assert not one.requires_grad
    assert close(gradients, expected)


def test_no_loss_is_no_gradient(adapting: Adapt, questions: list[Question]) -> None:
    made = adapting("adapt=tent")
    weights = AdaptedWeights(made.encoder.base.model, made.settings)
    found, gradients = letter_gradient(made.encoder, weights, questions[:3], lambda _: None)
    assert gradients is None
    expected = read_batch(made.encoder, questions[:3])
    assert torch.equal(found.log_p, expected.log_p)
    assert torch.equal(found.log_mass, expected.log_mass)


class Hungry:
    """An encoder whose batches do not fit above two questions."""

    def __init__(self, encoder: object) -> None:
        self.encoder, self.tried = encoder, list[int]()

    def __getattr__(self, name: str) -> object:
        return getattr(self.encoder, name)

    def batch(self, questions: list[Question]) -> object:
        self.tried.append(len(questions))
        if len(questions) > 2:
            raise torch.OutOfMemoryError
        return self.encoder.batch(questions)  # type: ignore[attr-defined]


def test_a_batch_that_does_not_fit_is_cut(adapting: Adapt, questions: list[Question]) -> None:
    made = adapting("adapt=tent")
    hungry = Hungry(made.encoder)
    expected = read_batch(made.encoder, questions[:7])
    found = read_batch(hungry, questions[:7])  # type: ignore[arg-type]
    assert torch.allclose(found.log_p, expected.log_p, atol=1e-5)
    weights = AdaptedWeights(made.encoder.base.model, made.settings)
    _, exact = letter_gradient(made.encoder, weights, questions[:7], entropy_loss)
    hungry.tried.clear()
    _, gradients = letter_gradient(hungry, weights, questions[:7], entropy_loss)  # type: ignore[arg-type]
    assert hungry.tried[:4] == [7, 7, 7, 4]  # everything kept, MLPs twice, layers twice, half the batch
    assert close(gradients, exact)
