"""Test-time methods that change only the pictures: answers from several views, and picture repair.

Notation: B questions, N pictures of theirs, V views of each, C letters, H hidden size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from vqa.answer.adapt.formulas import Moments, marginal, misalignment, moments, vote
from vqa.answer.adapt.gradient import read_batch
from vqa.answer.adapt.method import Adapting, Scores, joined
from vqa.answer.adapt.prompt_methods import SoftPrompt
from vqa.errors import UserError
from vqa.machine.device import prefetched
from vqa.model.vision.views import TONES, viewed
from vqa.question import Question

AS_IT_IS = ""
SLACK = 1.5  # x the largest distance of a training batch: new pictures of the same kind lie a bit further off
BETTER = 0.5  # x the distance of the pictures as they are: a tenth less may be chance, half of it is not
Combine = Callable[[torch.Tensor], torch.Tensor]  # (V, C) log probabilities to (C,)


def make_views(adapting: Adapting) -> "ViewAnswers":
    """Answer with the mean probability over views: test-time augmentation as both teams had it.

    It is the mean of probabilities, not of their logarithms. `tpt` lowers the entropy of this mean and `zero`
    takes it to temperature zero, so that the three methods differ in nothing else.

    Source: Krizhevsky et al. 2012, section 4.1 (the mean of the softmax over ten crops).
    """
    return ViewAnswers(adapting, marginal)


def make_zero(adapting: Adapting) -> "ViewAnswers":
    """ZERO: let the surest views vote; what every method that learns from views has to beat."""
    return ViewAnswers(adapting, lambda log_p: vote(log_p, adapting.settings.keep_share))


class ViewAnswers:
    """Asks about every view and combines the answers; a `vqa.answer.adapt.method.Method`.

    Args:
        adapting: What methods share.
        combine: Turns the predictions of a question's views into one.
    """

    def __init__(self, adapting: Adapting, combine: Combine) -> None:
        self.adapting, self.combine = adapting, combine
        self.prompt: SoftPrompt | None = None

    def scores(self, questions: Sequence[Question]) -> Scores:
        """Answer a batch: (B, C) over the views, (B,) log mass of the pictures themselves."""
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
        log_p, mass = joined(found)
        combined = [self.combine(views) for views in torch.split(log_p.double().cpu(), settings.views)]
        return torch.stack(combined), mass[:: settings.views]

    def reset(self) -> None:
        """Do nothing: nothing is learnt."""


class PictureRepair:
    """Corrects the pictures of a batch whose vision features differ from the training pictures'; a `Method`.

    d(batch) = distance of the batch's picture embeddings from those of the training pictures, by mean and
    variance (`vqa.answer.adapt.formulas.misalignment`). A picture's embedding is the mean of its visual
    tokens as the language model gets them.

    Where d is no larger than it is for training batches of that size, nothing is done: the answers are the
    frozen model's. Otherwise every correction of `vqa.model.vision.views` is tried on the whole batch. The
    one with the smallest d is kept if its d is at most half of what it was. No weight moves, no label is
    looked at, and the language model runs once.

    Raises:
        UserError: There are no training pictures to compare with.

    Source: the statistic is PromptAlign's (Abdul Samadh et al., NeurIPS 2023, arXiv 2311.01459). Moving the
    input instead of the model is ours, after Gao et al., CVPR 2023 (arXiv 2207.03442), who use a diffusion
    model.
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
        """Answer the batch in its correction."""
        tone = self.choose(questions)
        self.adapting.counts[f"repaired_{tone}" if tone else "as_it_is"] += 1
        seen = [replace(q, view=tone) if q.image else q for q in questions]
        return read_batch(self.adapting.encoder, seen).scores

    def choose(self, questions: Sequence[Question]) -> str:
        """The correction that a batch of questions needs; "" for none."""
        embeddings = self._embeddings(questions, AS_IT_IS)
        if len(embeddings) < 2:
            return AS_IT_IS
        now = misalignment(embeddings, self.source).item()
        # the standard error of a mean falls with the root of the number of pictures
        if now <= SLACK * self.usual * math.sqrt(max(1.0, self.size / len(embeddings))):
            return AS_IT_IS
        left = {tone: misalignment(self._embeddings(questions, tone), self.source).item() for tone in TONES}
        best = min(left, key=left.__getitem__)
        return best if left[best] <= BETTER * now else AS_IT_IS

    def reset(self) -> None:
        """Do nothing: nothing is learnt."""

    def _embeddings(self, questions: Sequence[Question], tone: str) -> torch.Tensor:
        """(N, H) of the pictures in a correction, float32, on the CPU."""
        encoder = self.adapting.encoder
        seen = [replace(q, view=tone) for q in questions if q.image]
        features = encoder.base.vision.features(seen, encoder.image)
        pooled = [f.pooled.float().mean(0).cpu() for own in features for f in own]
        return torch.stack(pooled) if pooled else torch.zeros(0, 1)
