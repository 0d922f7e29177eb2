"""Test-time methods that learn a soft prompt: TPT, its online variant, PromptAlign. All weights stay frozen.

Notation: B questions or suffixes, V views of each, P prefix tokens, K of them soft, C letters; H hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from vqa.answer.adapt.formulas import Moments, marginal_entropy, misalignment, most_confident
from vqa.answer.adapt.gradient import HALF_SCALE, MOMENTUM
from vqa.answer.adapt.method import Adapting, Guarded, Scores, joined
from vqa.errors import UserError
from vqa.machine.device import prefetched, release_memory
from vqa.model.decoder import Recompute, Row, SoftTokens, answer_logits, early_states
from vqa.model.encode import Encoder
from vqa.model.forward import known_prefix
from vqa.model.letters import option_log_probabilities
from vqa.model.memory import does_not_fit
from vqa.model.packing import Suffix, pack
from vqa.model.vision.views import viewed
from vqa.question import Question

TOKENS = 4  # K, as many as in "a photo of a"; fewer where the prefix is shorter
LAYERS = 3  # whose visual tokens PromptAlign aligns


class SoftPrompt:
    """Asks questions with shifted embeddings; the states of the prefix before them are computed once.

    Test-time prompt tuning learns the embeddings of a context that starts as "a photo of a" (Shu et al.
    2022). Here the context is the end of the prompt that is there anyway: its last tokens before the picture.
    The shift starts at zero: before the first step the model is exactly the frozen one, and no token changes
    its place. The context stands before the picture, because in a decoder visual tokens see only what comes
    before them.

    Args:
        encoder: Makes suffixes; the weights of its base must not change meanwhile.
        question: Any one: the prefix is the same for all, and all have as many options.
    """

    def __init__(self, encoder: Encoder, question: Question) -> None:
        self.base = encoder.base
        self.letters = self.base.letters[len(question.choices)]
        prefix = encoder.prefix(question)
        self.fixed, self.soft = prefix[:-TOKENS], prefix[-TOKENS:]
        shared = len(self.fixed) > 0 and encoder.shares_prefix(question)
        self.known = known_prefix(self.base, self.fixed) if shared else None

    def untouched(self) -> torch.Tensor:
        """(K, H) zero shift, to be learnt; float32 whatever the base computes in."""
        width = self.base.model.model.language_model.embed_tokens.weight.shape[1]
        return torch.zeros(len(self.soft), width, device=self.base.device, requires_grad=True)

    def row(self, suffixes: Sequence[Suffix], shift: torch.Tensor) -> Row:
        """Pack questions into one row.

        Args:
            suffixes: B of them.
            shift: (K, H) for all of them, or (B, K, H).
        """
        device, pad_token = self.base.device, self.base.tokenizer.pad_token_id
        # soft tokens belong to the suffix, so that the prefix stays shared where each question has its shift
        asked = [replace(suffix, ids=torch.cat([self.soft, suffix.ids])) for suffix in suffixes]
        outside = self.known is not None
        row = pack(self.fixed, asked, self.base.image_token, pad_token, device, outside).row
        if row.answers is None:
            raise ValueError("a packed batch of questions must have answers")
        lengths = torch.tensor([len(suffix.ids) for suffix in asked], device=device)
        begin = row.answers - lengths + 1
        places = begin[:, None] + torch.arange(len(self.soft), device=device)
        each = shift.expand(len(asked), *shift.shape[-2:]).flatten(0, 1)
        return replace(row, soft=SoftTokens(places.flatten(), each))

    def read(self, row: Row, recompute: Recompute = "nothing") -> Scores:
        """(B, C) log probabilities of the letters, (B,) log of their mass; with gradient to the shift."""
        logits = answer_logits(self.base.model, row, self.known, recompute)
        return option_log_probabilities(logits, self.letters)

    def ask(self, suffixes: Sequence[Suffix], shift: torch.Tensor, batch_size: int) -> Scores:
        """As `read`, without gradient.

        Args:
            suffixes: B of them.
            shift: (K, H), or (B, K, H).
            batch_size: Suffixes on the device at once; fewer where memory does not suffice.
        """
        own = shift.expand(len(suffixes), *shift.shape[-2:])
        chunks = range(0, len(suffixes), batch_size)
        return joined([self._halved(suffixes[i : i + batch_size], own[i : i + batch_size]) for i in chunks])

    def _halved(self, suffixes: Sequence[Suffix], shift: torch.Tensor) -> Scores:
        try:
            with torch.no_grad():
                return self.read(self.row(suffixes, shift))
        except torch.OutOfMemoryError as error:
            if len(suffixes) == 1:
                doing = "answering one view of a question at a time"
                raise does_not_fit(doing, self.base.device, error) from error
        release_memory()
        return self.ask(suffixes, shift, (len(suffixes) + 1) // 2)


SecondLoss = Callable[[SoftPrompt, Row], torch.Tensor]


class PromptTuning(Guarded):
    """Test-time prompt tuning: a soft prompt learnt from views of the picture; a `Method`.

    L = H(mean of p_v over the surest share of the views)

    One AdamW step, then the question about the picture itself is asked. `tpt` starts anew for every question.
    `prompt_tuning_online`, which is ours, keeps prompt and optimiser from one question to the next, as the
    teams wished for: a prompt that follows the pictures.

    Only the surest views have a gradient in this loss. So all views are asked without gradient first, then
    the surest ones again with it: the same step, with the memory of a few views.

    Args:
        adapting: What methods share.
        online: Keep the prompt from question to question.
        also: A second loss, of the kept views' row; None: entropy alone.

    Source: Shu et al., Test-Time Prompt Tuning, NeurIPS 2022 (arXiv 2209.07511), section 3.2: 63 crops and
    the picture, the surest 10 %, lr 5e-3, one step. Their prompt is CLIP's text context and their crops are
    rougher; ours are in `vqa/answer/adapt/prompt_methods.py` and `vqa/model/vision/views.py`.
    """

    def __init__(self, adapting: Adapting, online: bool, also: SecondLoss | None = None) -> None:
        super().__init__(adapting, "written prompt", "Lower adapt.lr")
        self.online, self.also = online, also
        self.prompt: SoftPrompt | None = None
        self.reset()

    def scores(self, questions: Sequence[Question]) -> Scores:
        """Learn from each question's views in turn; its answer uses what was learnt by then."""
        encoder = self.adapting.encoder
        prompt = self.prompt = self.prompt or SoftPrompt(encoder, questions[0])
        views = prefetched(self._views, questions, encoder.base.device)
        learnt = [self._learn(prompt, suffixes) for suffixes in views]
        suffixes, shifts = [suffix for suffix, _ in learnt], torch.stack([shift for _, shift in learnt])
        scores = prompt.ask(suffixes, shifts, self.adapting.settings.batch_size)
        if not self.online:
            return scores
        frozen = self.ask_frozen(suffixes) if self.guard.wants_frozen() else None
        return self.watched(suffixes, scores, frozen)

    def ask_frozen(self, asked: Sequence[Suffix]) -> Scores:
        """Ask with the prompt as it is written."""
        if self.prompt is None:
            raise ValueError("nothing was asked yet: the first questions make the prompt")
        return self.prompt.ask(asked, self.prompt.untouched(), self.adapting.settings.batch_size)

    def reset(self) -> None:
        """Let the next question start with the prompt as it is written."""
        self.shift: torch.Tensor | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.guard.clear()

    def _views(self, question: Question) -> list[Suffix]:
        settings = self.adapting.settings
        return self.adapting.encoder.suffixes(viewed(question, settings.views, settings.seed))

    def _learn(self, prompt: SoftPrompt, suffixes: list[Suffix]) -> tuple[Suffix, torch.Tensor]:
        """The question about the picture itself, and the shift (K, H) learnt from all its views."""
        settings = self.adapting.settings
        shift, optimizer = self._start(prompt)
        log_p, _ = prompt.ask(suffixes, shift, settings.batch_size)
        # chosen once, as in the authors' code: further steps keep the views of the first
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
                self.optimizer = torch.optim.AdamW([self.shift], lr=settings.lr)  # the authors' own
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


class Alignment:
    """PromptAlign's second loss: visual tokens are to be distributed as those of the training pictures.

    L = TPT's + weight * mean over layers of the distance (`vqa.answer.adapt.formulas.misalignment`) between
    mean and variance of the visual tokens' hidden states in the kept views and in the training pictures.

    A decoder that reads one picture after its prompt is not the paper's CLIP. Five things differ:

    - Their prompt stands inside the image encoder. Our tower is frozen and reads no prompt. What the prompt
      moves is the decoder's hidden states at the visual tokens, which see the tokens before them. The states
      of the first three layers are aligned, DeepStack's taps included; their code aligns two layers.
    - Their code weighs the sum over its layers by 100/3. Ours weighs the mean over three layers by 100,
      which is the same factor on a sum.
    - The learning rate is that of `tpt`; none was chosen for this loss.
    - Their pictures all have 197 tokens, and each has statistics of its own, over views. Ours differ in size,
      so statistics are over all visual tokens of all kept views together.
    - A decoder's channels differ by orders of magnitude, and the largest few would decide a plain L1
      distance. So each channel is measured in units of the source's deviation.

    The source's statistics are taken when the loss is first asked for.

    Args:
        adapting: What methods share; `source` gives the training pictures, no label is looked at.

    Raises:
        UserError: None of them has a picture.

    Source: Abdul Samadh et al., Align Your Prompts, NeurIPS 2023 (arXiv 2311.01459), and the authors' code.
    """

    def __init__(self, adapting: Adapting) -> None:
        self.encoder, self.settings = adapting.encoder, adapting.settings
        self.pictures = [question for question in adapting.source if question.image]
        self.source: list[Moments] = []  # by layer
        if not self.pictures:
            raise UserError(
                f"adapt={self.settings.method} compares with training pictures, got none; "
                "give data.train_csv, or use adapt=tpt"
            )

    def __call__(self, prompt: SoftPrompt, row: Row) -> torch.Tensor:
        """() weight times the distance of a row's visual tokens from the source's; 0 without a picture."""
        if len(row.visual) == 0:
            return torch.zeros((), device=row.ids.device)
        self.source = self.source or self._source(prompt)
        states = early_states(prompt.base.model, row, LAYERS, prompt.known)
        pairs = zip(states, self.source, strict=True)
        apart = torch.stack([misalignment(state.float(), source) for state, source in pairs])
        return self.settings.weight * apart.mean()

    @torch.no_grad()
    def _source(self, prompt: SoftPrompt) -> list[Moments]:
        """Statistics over all visual tokens of the training pictures; sums need not hold them all at once."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        size = self.settings.batch_size
        for start in range(0, len(self.pictures), size):
            suffixes = self.encoder.suffixes(self.pictures[start : start + size])
            row = prompt.row(suffixes, prompt.untouched())
            states = torch.stack(early_states(prompt.base.model, row, LAYERS, prompt.known)).double().cpu()
            count += len(row.visual)
            total = total + states.sum(1)
            squares = squares + states.square().sum(1)
        means = total / count
        variances = (squares / count - means.square()).clamp_min(0)
        device = prompt.base.device
        return [
            Moments(mean.float().to(device), variance.float().to(device))
            for mean, variance in zip(means, variances, strict=True)
        ]


def make_prompt_align(adapting: Adapting) -> PromptTuning:
    """TPT with token distribution alignment.

    Raises:
        UserError: There are no training pictures to compare with.
    """
    return PromptTuning(adapting, online=False, also=Alignment(adapting))
