"""PromptAlign: TPT's loss, and visual tokens that are distributed as those of the training pictures.

L = TPT's + weight * mean over layers of the distance (`vqa/embeddings.py`) between mean and variance of the
visual tokens' hidden states in the kept views and those in the training pictures. Where a decoder that reads
one picture after its prompt forces us away from the paper's CLIP:

- Their prompt stands inside the image encoder. Our tower is frozen and reads no prompt; what the prompt moves
  is the hidden states of the visual tokens in the decoder, which see the tokens before them. Those of the
  first three layers are aligned (three layers as in their code), DeepStack's taps included.
- Their pictures all have 197 tokens and each has statistics of its own, over views. Ours differ in size, so
  statistics are over all visual tokens of all kept views together.
- A decoder's channels differ by orders of magnitude, and a plain L1 distance would be that of the largest
  few. So each channel is measured in the source's deviation.

Notation: N visual tokens, C hidden size.

Source: Abdul Samadh et al., Align Your Prompts, NeurIPS 2023 (arXiv 2311.01459); three layers and the
weight 100 are those of their code.
"""

import torch

from vqa.adapting import Adapting
from vqa.decoder import Row, early_states
from vqa.embeddings import Moments, misalignment
from vqa.errors import UserError
from vqa.prompt_tuning import PromptTuning
from vqa.soft_prompt import SoftPrompt

LAYERS = 3


def make_prompt_align(adapting: Adapting) -> PromptTuning:
    """TPT with token distribution alignment.

    Raises:
        UserError: There are no training pictures to compare with.
    """
    return PromptTuning(adapting, online=False, also=Alignment(adapting))


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
        means = total / count
        variances = (squares / count - means.square()).clamp_min(0)
        device = prompt.base.device
        return [
            Moments(mean.float().to(device), variance.float().to(device))
            for mean, variance in zip(means, variances, strict=True)
        ]
