"""Test-time prompt tuning: a soft prompt per question, learnt from views of its picture; all weights frozen.

L = H(mean of p_v over the surest share of the views), one AdamW step, then the picture itself is asked.
`tpt` starts anew for every question; `prompt_tuning_online`, ours, keeps the prompt and its optimiser from
one question to the next, as the teams wished for: a prompt that follows the pictures.

Notation: B questions, V views of each, C letters.

Source: Shu et al., Test-Time Prompt Tuning, NeurIPS 2022 (arXiv 2209.07511), section 3.2: 63 crops and the
picture, the surest 10 %, lr 5e-3, one step. Their prompt is CLIP's text context and their crops are rougher;
ours are in `vqa/soft_prompt.py` and `vqa/views.py`.
"""

import logging
from collections.abc import Callable, Sequence

import torch

from vqa.adapted_weights import MOMENTUM
from vqa.adapting import Adapting, Scores
from vqa.collapse_guard import CollapseGuard
from vqa.decoder import Row
from vqa.letter_gradient import HALF_SCALE
from vqa.marginal import marginal_entropy, most_confident
from vqa.packing import Suffix
from vqa.prefetch import prefetched
from vqa.question import Question
from vqa.soft_prompt import SoftPrompt
from vqa.views import viewed

log = logging.getLogger(__name__)
SecondLoss = Callable[[SoftPrompt, Row], torch.Tensor]


def make_tpt(adapting: Adapting) -> "PromptTuning":
    """TPT: the prompt is learnt anew for every question."""
    return PromptTuning(adapting, online=False)


def make_prompt_tuning_online(adapting: Adapting) -> "PromptTuning":
    """TPT's loss on a prompt that is kept from question to question."""
    return PromptTuning(adapting, online=True)


class PromptTuning:
    """Learns a soft prompt for each question and answers with it; a `vqa.adapting.Method`.

    Only the kept views have a gradient in TPT's loss. So all are asked without one first, and only the kept
    ones again with it: the same step, and the memory of a few views.

    Args:
        adapting: What methods share.
        online: Keep the prompt from question to question.
        also: A second loss, of the kept views' row; None: entropy alone.
    """

    def __init__(self, adapting: Adapting, online: bool, also: SecondLoss | None = None) -> None:
        self.adapting, self.online, self.also = adapting, online, also
        self.prompt: SoftPrompt | None = None
        self.guard = CollapseGuard(adapting.settings.guard_label_share, adapting.settings.guard_kl)
        self.warned = False
        self.reset()

    def scores(self, questions: Sequence[Question]) -> Scores:
        """Learn from each question's views in turn; its answer uses what was learnt by then."""
        encoder = self.adapting.encoder
        prompt = self.prompt = self.prompt or SoftPrompt(encoder, questions[0])
        views = prefetched(self._views, questions, encoder.base.device)
        learnt = [self._learn(prompt, suffixes) for suffixes in views]
        suffixes, shifts = [suffix for suffix, _ in learnt], torch.stack([shift for _, shift in learnt])
        size = self.adapting.settings.batch_size
        found = prompt.ask(suffixes, shifts, size)
        if not self.online:
            return found
        frozen = prompt.ask(suffixes, prompt.untouched(), size) if self.guard.wants_frozen() else None
        alarm = self.guard.alarm(found[0], None if frozen is None else frozen[0])
        if alarm is None:
            return found
        self._forget(alarm)
        return frozen or prompt.ask(suffixes, prompt.untouched(), size)

    def reset(self) -> None:
        """The next question starts with the prompt as it is written."""
        self.shift: torch.Tensor | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.guard.clear()

    def _views(self, question: Question) -> list[Suffix]:
        settings = self.adapting.settings
        return self.adapting.encoder.suffixes(viewed(question, settings.views, settings.seed))

    def _learn(self, prompt: SoftPrompt, suffixes: list[Suffix]) -> tuple[Suffix, torch.Tensor]:
        """The question about the picture itself, and the shift (K, C) learnt from all its views."""
        settings = self.adapting.settings
        shift, optimizer = self._start(prompt)
        log_p, _ = prompt.ask(suffixes, shift, settings.batch_size)
        # chosen once, as in their code: further steps keep to the views of the first
        kept = [suffixes[i] for i in most_confident(log_p, settings.keep_share).tolist()]
        for _ in range(settings.steps):
            shift.grad = self._gradient(prompt, kept, shift)
            finite = bool(shift.grad.isfinite().all())
            self.adapting.counts["steps" if finite else "not_finite"] += 1
            if finite:
                optimizer.step()
        return suffixes[0], shift.detach().clone()

    def _start(self, prompt: SoftPrompt) -> tuple[torch.Tensor, torch.optim.Optimizer]:
        if self.shift is None or self.optimizer is None or not self.online:
            settings = self.adapting.settings
            self.shift = prompt.untouched()
            if settings.optimizer == "adam":
                self.optimizer = torch.optim.AdamW([self.shift], lr=settings.lr)  # theirs
            else:
                self.optimizer = torch.optim.SGD([self.shift], lr=settings.lr, momentum=MOMENTUM)
        return self.shift, self.optimizer

    def _gradient(self, prompt: SoftPrompt, kept: Sequence[Suffix], shift: torch.Tensor) -> torch.Tensor:
        scale = HALF_SCALE if prompt.base.dtype == torch.float16 else 1.0
        with torch.enable_grad():
            row = prompt.row(kept, shift)
            log_p, _ = prompt.read(row, "layer")
            loss = marginal_entropy(log_p)
            if self.also is not None:
                loss = loss + self.also(prompt, row)
            (gradient,) = torch.autograd.grad(loss * scale, shift)
        return gradient / scale

    def _forget(self, alarm: str) -> None:
        self.adapting.counts["guard_resets"] += 1
        if not self.warned:
            log.warning(
                "adapt=%s: %s; back to the written prompt (said once; metrics.json counts). Lower adapt.lr",
                self.adapting.settings.method,
                alarm,
            )
        self.warned = True
        self.reset()
