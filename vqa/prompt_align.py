"""PromptAlign: TPT's loss, and visual tokens that are distributed as those of the training pictures.

L = TPT's + weight * mean over layers and channels of |m - m_s| / sqrt(v_s) + |v - v_s| / v_s

m and v are mean and variance of the visual tokens' hidden states in the kept views, s marks the training
pictures'. Where a decoder that reads one picture after its prompt forces us away from the paper's CLIP:

- Their prompt stands inside the image encoder. Our tower is frozen and reads no prompt; what the prompt moves
  is the hidden states of the visual tokens in the decoder, which see the tokens before them. Those of the
  first three layers are aligned (three layers as in their code), DeepStack's taps included.
- Their pictures all have 197 tokens and each has statistics of its own, over views. Ours differ in size, so
  statistics are over all visual tokens of all kept views together.
- A decoder's channels differ by orders of magnitude, and a plain L1 distance would be that of the largest
  few. So each channel is measured in the source's deviation.

Notation: L layers, N visual tokens, C hidden size.

Source: Abdul Samadh et al., Align Your Prompts, NeurIPS 2023 (arXiv 2311.01459); three layers and the
weight 100 are those of their code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vqa.adapting import Adapting
from vqa.decoder import Row, early_states
from vqa.errors import UserError
from vqa.prompt_tuning import PromptTuning
from vqa.soft_prompt import SoftPrompt

LAYERS = 3
SMALLEST = 1e-12  # a channel that never varies divides by no less


@dataclass(frozen=True)
class TokenStatistics:
    """Of the visual tokens' hidden states, in float32.

    Args:
        mean: (L, C).
        variance: (L, C), over N, not N - 1.
    """

    mean: torch.Tensor
    variance: torch.Tensor


def make_prompt_align(adapting: Adapting) -> PromptTuning:
    """TPT with token distribution alignment.

    Raises:
        UserError: There are no training pictures to compare with.
    """
    return PromptTuning(adapting, online=False, also=Alignment(adapting))


def distance(found: TokenStatistics, source: TokenStatistics) -> torch.Tensor:
    """() the mean over layers and channels of both differences, in the source's deviation and variance."""
    variance = source.variance.clamp_min(SMALLEST)
    means = (found.mean - source.mean).abs() / variance.sqrt()
    return (means + (found.variance - source.variance).abs() / variance).mean()


def statistics_of(states: Sequence[torch.Tensor]) -> TokenStatistics:
    """Statistics of one row's visual tokens.

    Args:
        states: By layer (N, C).
    """
    whole = [state.float() for state in states]
    return TokenStatistics(
        torch.stack([state.mean(0) for state in whole]),
        torch.stack([state.var(0, correction=0) for state in whole]),
    )


class Alignment:
    """The second loss; the source's statistics are taken when it is first asked for.

    Args:
        adapting: What methods share; `source` gives the training pictures, no label is looked at.

    Raises:
        UserError: None of them has a picture.
    """

    def __init__(self, adapting: Adapting) -> None:
        self.encoder, self.settings = adapting.encoder, adapting.settings
        self.pictures = [question for question in adapting.source if question.image]
        self.source: TokenStatistics | None = None
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
        return self.settings.weight * distance(statistics_of(states), self.source)

    @torch.no_grad()
    def _source(self, prompt: SoftPrompt) -> TokenStatistics:
        """Over all visual tokens of the training pictures, from sums: they need not be in memory together."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        size = self.settings.batch_size
        for start in range(0, len(self.pictures), size):
            suffixes = self.encoder.suffixes(self.pictures[start : start + size])
            row = prompt.row(suffixes, prompt.untouched())
            states = torch.stack(early_states(prompt.base.model, row, LAYERS, prompt.known)).double().cpu()
            count += len(row.visual)
            total = total + states.sum(1)
            squares = squares + states.square().sum(1)
        mean = total / count
        device = prompt.base.device
        return TokenStatistics(
            mean.float().to(device), (squares / count - mean.square()).clamp_min(0).float().to(device)
        )
