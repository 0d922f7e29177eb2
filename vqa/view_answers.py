"""Answers from several views of a picture without learning anything: their mean, or their vote.

Notation: B questions, V views of each, C letters.
"""

from collections.abc import Callable, Sequence

import torch

from vqa.adapting import Adapting, Scores
from vqa.marginal import marginal, vote
from vqa.prefetch import prefetched
from vqa.question import Question
from vqa.soft_prompt import SoftPrompt
from vqa.views import viewed

Combine = Callable[[torch.Tensor], torch.Tensor]  # (V, C) log probabilities to (C,)


def make_views(adapting: Adapting) -> "ViewAnswers":
    """The mean probability over views: test-time augmentation as both teams had it.

    Probabilities, not their logarithms: the mean is the distribution that `tpt` makes surer and `zero` takes
    to temperature zero, so that the three differ in that alone.

    Source: Krizhevsky et al. 2012, section 4.1 (the mean of the softmax over ten crops).
    """
    return ViewAnswers(adapting, marginal)


def make_zero(adapting: Adapting) -> "ViewAnswers":
    """ZERO: the surest views vote; what every method that learns from views has to beat."""
    return ViewAnswers(adapting, lambda log_p: vote(log_p, adapting.settings.keep_share))


class ViewAnswers:
    """Asks about every view and combines the answers; a `vqa.adapting.Method`.

    Args:
        adapting: What methods share.
        combine: One answer from those of a question's views.
    """

    def __init__(self, adapting: Adapting, combine: Combine) -> None:
        self.adapting, self.combine = adapting, combine
        self.prompt: SoftPrompt | None = None

    def scores(self, questions: Sequence[Question]) -> Scores:
        """(B, C), and (B,) of the pictures themselves."""
        encoder, settings = self.adapting.encoder, self.adapting.settings
        # an untouched soft prompt: the same pass that `tpt` begins with, its prefix computed once
        prompt = self.prompt = self.prompt or SoftPrompt(encoder, questions[0])
        size, device = settings.batch_size, encoder.base.device
        asked = [view for question in questions for view in viewed(question, settings.views, settings.seed)]
        chunks = [asked[i : i + size] for i in range(0, len(asked), size)]
        found = [
            prompt.ask(suffixes, prompt.untouched(), size)
            for suffixes in prefetched(encoder.suffixes, chunks, device)
        ]
        log_p = torch.cat([part for part, _ in found]).double().cpu()
        mass = torch.cat([part for _, part in found])
        combined = [self.combine(views) for views in torch.split(log_p, settings.views)]
        return torch.stack(combined), mass[:: settings.views]

    def reset(self) -> None:
        """Nothing is learnt, so there is nothing to forget."""
