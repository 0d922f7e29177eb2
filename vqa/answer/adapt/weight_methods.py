"""Test-time methods that move weights: TENT, SAR, consistency and lora_align.

`WeightMethod` holds what they share: steps, the guard, the way back. A method is its `Rule`.

Notation: B questions of a batch, W views of each, C letters.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from vqa.answer.adapt.formulas import (
    Moments,
    entropies,
    mean_entropy,
    misalignment,
    moments,
    reliable,
    view_divergence,
)
from vqa.answer.adapt.gradient import (
    AdaptedWeights,
    Gradients,
    Outputs,
    letter_gradient,
    read_batch,
    worst_direction,
)
from vqa.answer.adapt.method import Adapting, Guarded, Scores, joined
from vqa.errors import UserError
from vqa.model.vision.views import viewed
from vqa.question import Question

log = logging.getLogger(__name__)
KEPT = 0.9  # of a moving average, at each step of SAR
COUNTED = ("steps", "filtered", "resets", "guard_resets", "not_finite")  # in metrics.json even where 0


class Rule(ABC):
    """How the weights move.

    Args:
        adapting: What methods share.
        weights: What is moved; `WeightMethod` puts them back.
    """

    def __init__(self, adapting: Adapting, weights: AdaptedWeights) -> None:
        self.adapting, self.weights = adapting, weights

    @abstractmethod
    def step(self, questions: Sequence[Question]) -> Scores:
        """Take one step on a batch; returns the predictions of the pass that gave its gradient."""

    def note_frozen(self, log_p: torch.Tensor) -> None:  # noqa: B027  (most rules do not compare with it)
        """Take notice of the trained model's predictions (B, C), asked now and then for the guard."""

    def reset(self) -> None:  # noqa: B027  (most rules have none)
        """Drop moving averages."""

    def move(self, gradients: Gradients | None) -> None:
        """Move the weights against their gradients, and count that; None: there was nothing to learn from."""
        if gradients is not None:
            self.adapting.counts["steps" if self.weights.step(gradients) else "not_finite"] += 1


class WeightMethod(Guarded):
    """A rule with its weights and guard; a `vqa.answer.adapt.method.Method`.

    An online method answers from the forward pass it adapts on, as TENT and SAR are published: a question
    profits from the batches before its own. An episodic method would never show what it learnt that way. It
    answers from another pass, after its last step.

    Args:
        adapting: What methods share.
        make_rule: The rule's class; gets the weights that it moves.
    """

    def __init__(self, adapting: Adapting, make_rule: Callable[[Adapting, AdaptedWeights], Rule]) -> None:
        advice = "Lower adapt.lr (adapt.norm_lr) or raise adapt.batch_size"
        super().__init__(adapting, "trained weights", advice)
        self.weights = AdaptedWeights(adapting.encoder.base.model, adapting.settings)
        self.rule = make_rule(adapting, self.weights)
        adapting.counts.update(dict.fromkeys(COUNTED, 0))

    def scores(self, questions: Sequence[Question]) -> Scores:
        """Adapt on a batch and answer it; after an alarm the trained weights answer it."""
        settings, frozen = self.adapting.settings, None
        if self.guard.wants_frozen():
            frozen = self.ask_frozen(questions)
            self.rule.note_frozen(frozen[0])
        for _ in range(settings.steps):
            scores = self.rule.step(questions)
        if settings.episodic:
            scores = read_batch(self.adapting.encoder, questions).scores
        return self.watched(questions, scores, frozen)

    def reset(self) -> None:
        """Put weights, optimiser, the rule's averages and the guard's counts back to the start."""
        self.weights.reset()
        self.rule.reset()
        self.guard.clear()

    def ask_frozen(self, asked: Sequence[Question]) -> Scores:
        """Ask with the trained weights, in the batches of the method."""
        encoder, size = self.adapting.encoder, self.adapting.settings.batch_size
        with self.weights.at_source():
            starts = range(0, len(asked), size)
            return joined([read_batch(encoder, asked[i : i + size]).scores for i in starts])


class Tent(Rule):
    """TENT: one gradient step on the mean entropy of a batch's predictions.

    The paper trains scales and shifts of the norm layers (`adapt.parameters=norm`). Both teams asked for the
    adapter's weights, which is the default here. The paper's entropy is over all classes, ours over the
    letters.

    Source: Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021 (arXiv
    2006.10726), section 3.
    """

    def step(self, questions: Sequence[Question]) -> Scores:
        outputs, gradients = letter_gradient(self.adapting.encoder, self.weights, questions, self._loss)
        self.move(gradients)
        return outputs.scores

    def _loss(self, outputs: Outputs) -> torch.Tensor:
        return mean_entropy(outputs.log_p)


class Sar(Rule):
    """SAR: entropy minimisation on sure questions only, towards a flat minimum, with a way back.

    A step takes two passes: the first gives the worst point nearby, the second the gradient there. As in the
    authors' code, sure questions are chosen again at that point, and a step is one batch, not one question.
    Four things of their code are left out: a reset at 0.2 whatever the setting says, a moving average that
    survives the reset, the mean over no question, which is NaN, and the optimiser's step on a batch without a
    sure question, which moves the weights by momentum alone. The paper trains norm layers and leaves the last
    blocks alone; here `adapt.parameters` decides.

    Their limit for the way back, 0.2 nats, was chosen for models of 1000 classes. A model that was tuned well
    has less entropy than any such number from the start, and would go back at every step. So the limit here
    is a share, `reset_below`, of the trained model's own entropy on questions of which it is sure.

    One of the teams calls another method "SAR": that one is `Consistency`.

    Source: Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World, ICLR 2023 (arXiv
    2302.12400), equations 2 to 4 and algorithm 1.
    """

    def __init__(self, adapting: Adapting, weights: AdaptedWeights) -> None:
        super().__init__(adapting, weights)
        self.limit = adapting.settings.entropy_limit
        self.average: float | None = None
        self.of_trained: float | None = None  # moving average too, over the batches that the guard looks at
        self.warned = False

    def step(self, questions: Sequence[Question]) -> Scores:
        """Take one step on a batch; returns the predictions of the first pass, at the weights before it."""
        encoder = self.adapting.encoder
        outputs, gradients = letter_gradient(encoder, self.weights, questions, self._loss)
        sure = reliable(outputs.log_p, self.limit).tolist()
        chosen = [question for question, keep in zip(questions, sure, strict=True) if keep]
        self.adapting.counts["filtered"] += len(questions) - len(chosen)
        if gradients is None:
            return outputs.scores
        with self.weights.moved(worst_direction(gradients, self.adapting.settings.rho)):
            moved, gradients = letter_gradient(encoder, self.weights, chosen, self._loss)
        if gradients is None:
            return outputs.scores
        self.move(gradients)
        self._recover(moved.log_p)
        return outputs.scores

    def note_frozen(self, log_p: torch.Tensor) -> None:
        """Follow the trained model's mean entropy on the questions of which it is sure."""
        if (mean := self._sure_entropy(log_p)) is not None:
            self.of_trained = _followed(self.of_trained, mean)

    def reset(self) -> None:
        """Drop the moving average; what is known of the trained model stays."""
        self.average = None

    def _loss(self, outputs: Outputs) -> torch.Tensor | None:
        """Mean entropy of the sure questions (equation 2); None where no question is sure."""
        sure = reliable(outputs.log_p, self.limit)
        return entropies(outputs.log_p)[sure].mean() if bool(sure.any()) else None

    def _recover(self, log_p: torch.Tensor) -> None:
        """Go back to the trained weights once the loss's moving average is far below the trained model's.

        A low average means that the model is sure of everything, which is how entropy minimisation collapses.

        Args:
            log_p: (B, C) at the moved weights; the loss is the mean entropy of the sure questions.
        """
        loss, share = self._sure_entropy(log_p), self.adapting.settings.reset_below
        if loss is None:
            return
        self.average = _followed(self.average, loss)
        if share is None or self.of_trained is None or self.average >= share * self.of_trained:
            return
        self.adapting.counts["resets"] += 1
        if not self.warned:
            log.warning(
                "adapt=sar: entropy fell to %.4f nats, below adapt.reset_below=%g of the trained model's "
                "%.4f; back to the trained weights (said once; metrics.json counts). Lower adapt.lr",
                self.average,
                share,
                self.of_trained,
            )
        self.warned = True
        self.weights.reset()
        self.reset()

    def _sure_entropy(self, log_p: torch.Tensor) -> float | None:
        """Mean entropy in nats of the sure questions of (B, C); None where there is none."""
        sure = reliable(log_p, self.limit)
        return float(entropies(log_p)[sure].mean()) if bool(sure.any()) else None


def _followed(average: float | None, value: float) -> float:
    """The moving average after one more value."""
    return value if average is None else KEPT * average + (1 - KEPT) * value


class Consistency(Rule):
    """TENT plus agreement between views of a picture: one of the teams' own reading of "SAR".

    L = mean over questions of H(p_1) + weight * (H(mean_v p_v) - mean_v H(p_v))

    p_v is the prediction for view v, p_1 the one for the picture itself. The second term is the generalised
    Jensen-Shannon divergence, the mean KL divergence of the views' predictions from their mean. It is 0 where
    all views agree, ln C at most, and the same in whatever order the views come. Answers are read from the
    picture itself.

    Source: entropy Wang et al. 2021 (arXiv 2006.10726); divergence Lin 1991, Divergence Measures Based on the
    Shannon Entropy, section V.
    """

    def step(self, questions: Sequence[Question]) -> Scores:
        settings = self.adapting.settings
        asked = [view for question in questions for view in viewed(question, settings.views, settings.seed)]
        outputs, gradients = letter_gradient(self.adapting.encoder, self.weights, asked, self._loss)
        self.move(gradients)
        return outputs.log_p[:: settings.views], outputs.log_mass[:: settings.views]

    def _loss(self, outputs: Outputs) -> torch.Tensor:
        """From (B x W, C), a question's views side by side."""
        settings = self.adapting.settings
        by_view = outputs.log_p.view(-1, settings.views, outputs.log_p.shape[1])
        return (entropies(by_view[:, 0]) + settings.weight * view_divergence(by_view)).mean()


class LoraAlign(Rule):
    """Entropy plus alignment of picture and answer embeddings: the teams' own reading of PromptAlign.

    L = mean over questions of H(p) + weight * (misalignment of pictures + misalignment of answers)

    A picture's embedding is the mean hidden state of its visual tokens, an answer's the state at its
    position, both as they enter the last layer. Before the first batch their mean and variance are taken over
    training questions, with the trained weights and without labels. Each step moves the adapter so that a
    test batch comes nearer to them. The published method, which moves a soft prompt, is
    `adapt=prompt_align`.

    Raises:
        UserError: There are no training questions to align with.

    Source: Abdul Samadh et al., NeurIPS 2023 (arXiv 2311.01459), for the statistics.
    """

    def __init__(self, adapting: Adapting, weights: AdaptedWeights) -> None:
        if not adapting.source:
            raise UserError("adapt=lora_align needs training questions to align with; give data.train_csv")
        super().__init__(adapting, weights)
        self.pictures, self.answers = self._source_moments()

    def step(self, questions: Sequence[Question]) -> Scores:
        encoder = self.adapting.encoder
        outputs, gradients = letter_gradient(encoder, self.weights, questions, self._loss, embeddings=True)
        self.move(gradients)
        return outputs.scores

    def _loss(self, outputs: Outputs) -> torch.Tensor:
        apart = misalignment(outputs.answers, self.answers)
        if len(outputs.pictures):
            apart = apart + misalignment(outputs.pictures, self.pictures)
        return mean_entropy(outputs.log_p) + self.adapting.settings.weight * apart

    def _source_moments(self) -> tuple[Moments, Moments]:
        """Statistics of pictures and of answers over the training questions."""
        encoder, source, size = self.adapting.encoder, self.adapting.source, self.adapting.settings.batch_size
        encoder.look(source)
        read = [
            read_batch(encoder, source[i : i + size], embeddings=True) for i in range(0, len(source), size)
        ]
        pictures = torch.cat([outputs.pictures for outputs in read])
        return moments(pictures), moments(torch.cat([outputs.answers for outputs in read]))
