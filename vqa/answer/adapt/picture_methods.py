"""Test-time methods that change the pictures only: answers from several views, and picture repair.

Several views: their mean, or their vote, without learning anything.

Picture repair: correct the pictures of a batch, where their vision features say that they are shifted.

d(batch) = distance of the batch's picture embeddings from the training pictures', by mean and variance
(`vqa.answer.adapt.embeddings.misalignment`). A picture's embedding is the mean of its visual tokens as the
language model gets them. Where d is no larger than training batches of that size show by themselves, nothing
is done: the answers are the frozen model's own. Else every correction of `vqa.model.vision.views` is tried on
the whole batch, and the one that brings it nearest is kept, if it at least halves d. No weights move, no
label is looked at, and the language model runs once.

The statistic is PromptAlign's (Abdul Samadh et al., NeurIPS 2023, arXiv 2311.01459); moving the input instead
of the model is ours, after Gao et al., CVPR 2023 (arXiv 2207.03442), who do it with a diffusion model.

Notation: B questions, N of them with a picture, H hidden size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from vqa.answer.adapt.embeddings import Moments, misalignment, moments
from vqa.answer.adapt.formulas import marginal, vote
from vqa.answer.adapt.gradient import read_batch
from vqa.answer.adapt.method import Adapting, Scores
from vqa.answer.adapt.soft_prompt import SoftPrompt
from vqa.errors import UserError
from vqa.machine.prefetch import prefetched
from vqa.model.vision.views import TONES, viewed
from vqa.question import Question

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
    """Asks about every view and combines the answers; a `vqa.answer.adapt.method.Method`.

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
        size, device = settings.batch_size, encoder.base.device
        asked = [view for question in questions for view in viewed(question, settings.views, settings.seed)]
        chunks = [asked[i : i + size] for i in range(0, len(asked), size)]
        if encoder.base.is_own:
            # an untouched soft prompt: the same pass that `tpt` begins with, its prefix computed once
            prompt = self.prompt = self.prompt or SoftPrompt(encoder, questions[0])
            found = [
                prompt.ask(suffixes, prompt.untouched(), size)
                for suffixes in prefetched(encoder.suffixes, chunks, device)
            ]
        else:
            found = [read_batch(encoder, chunk).scores for chunk in chunks]
        log_p = torch.cat([part for part, _ in found]).double().cpu()
        mass = torch.cat([part for _, part in found])
        combined = [self.combine(views) for views in torch.split(log_p, settings.views)]
        return torch.stack(combined), mass[:: settings.views]

    def reset(self) -> None:
        """Nothing is learnt, so there is nothing to forget."""


AS_IT_IS = ""
SLACK = 1.5  # x the largest distance of a training batch: new pictures of the same kind lie a bit further off
BETTER = 0.5  # x the distance of the pictures as they are: half-way is no accident, a tenth less may be


def make_repair(adapting: Adapting) -> "PictureRepair":
    """Repair with the statistics of the training pictures.

    Raises:
        UserError: There are no training pictures to compare with.
    """
    return PictureRepair(adapting)


class PictureRepair:
    """Chooses one correction per batch; a `vqa.answer.adapt.method.Method`.

    Args:
        adapting: What methods share.
    """

    def __init__(self, adapting: Adapting) -> None:
        self.adapting = adapting
        source = self._embeddings(adapting.source, AS_IT_IS)
        size = min(adapting.settings.batch_size, len(source) // 2)
        if size < 2:
            raise UserError("adapt=repair needs training questions with pictures; give data.train_csv")
        self.source: Moments = moments(source)
        self.size = size
        whole = [part for part in torch.split(source, size) if len(part) == size]
        self.usual = max(misalignment(part, self.source).item() for part in whole)

    def scores(self, questions: Sequence[Question]) -> Scores:
        """(B, C) and (B,) of the batch in its correction."""
        tone = self.choose(questions)
        self.adapting.counts[f"repaired_{tone}" if tone else "as_it_is"] += 1
        seen = [replace(q, view=tone) if q.image else q for q in questions]
        return read_batch(self.adapting.encoder, seen).scores

    def choose(self, questions: Sequence[Question]) -> str:
        """The correction that a batch of questions needs; "" for none."""
        found = self._embeddings(questions, AS_IT_IS)
        if len(found) < 2:
            return AS_IT_IS
        now = misalignment(found, self.source).item()
        # a mean over fewer pictures strays further, with the root of their number
        if now <= SLACK * self.usual * math.sqrt(max(1.0, self.size / len(found))):
            return AS_IT_IS
        left = {tone: misalignment(self._embeddings(questions, tone), self.source).item() for tone in TONES}
        best = min(left, key=left.__getitem__)
        return best if left[best] <= BETTER * now else AS_IT_IS

    def reset(self) -> None:
        """Nothing is learnt, so there is nothing to forget."""

    def _embeddings(self, questions: Sequence[Question], tone: str) -> torch.Tensor:
        """(N, H) of the pictures in a correction, float32, on the CPU."""
        encoder = self.adapting.encoder
        seen = [replace(q, view=tone) for q in questions if q.image]
        features = encoder.base.vision.features(seen, encoder.image)
        pooled = [f.pooled.float().mean(0).cpu() for f in features if f is not None]
        return torch.stack(pooled) if pooled else torch.zeros(0, 1)
