"""Embeddings of pictures and answers, from the hidden states of a row; their distance from the training ones.

Notation: B questions, N of them with pictures, T tokens of the row, H hidden size.
"""

from dataclasses import dataclass

import torch

from vqa.model.decoder import Row

SMALLEST = 1e-6  # smallest variance, so that a dead dimension is not divided by zero


def picture_embeddings(row: Row, states: torch.Tensor) -> torch.Tensor:
    """(N, H) mean state (T, H) over each question's visual tokens, in the questions' order, float32."""
    ends = row.layout.ends.to(torch.long)
    places = row.visual - row.layout.prefix
    owner = torch.bucketize(places, ends[1:], right=True)
    B = len(ends) - 1
    count = torch.zeros(B, device=states.device).index_add(
        0, owner, torch.ones_like(owner, dtype=torch.float)
    )
    total = torch.zeros(B, states.shape[1], device=states.device)
    total = total.index_add(0, owner, states[row.visual].float())
    seen = count > 0
    return total[seen] / count[seen, None]


def answer_embeddings(row: Row, states: torch.Tensor) -> torch.Tensor:
    """(B, H) state (T, H) at each answer position, float32.

    Raises:
        ValueError: The row asks for no answers.
    """
    if row.answers is None:
        raise ValueError("row must have answers, got a prefix")
    return states[row.answers].float()


@dataclass(frozen=True)
class Moments:
    """Mean and variance (H,) of embeddings, over questions."""

    mean: torch.Tensor
    variance: torch.Tensor


def moments(x: torch.Tensor) -> Moments:
    """Of (B, H); the variance is the mean squared distance from the mean, 0 for a single question."""
    return Moments(x.mean(0), x.var(0, correction=0))


def misalignment(x: torch.Tensor, source: Moments) -> torch.Tensor:
    """() distance of a batch's (B, H) mean and variance from the source's, in its deviations.

    mean_h |m_h - M_h| / sqrt(V_h) + mean_h |v_h - V_h| / V_h

    m, v are the batch's mean and variance, M, V the source's. It is 0 for a batch like the source.

    Source: PromptAlign, Abdul Samadh et al., NeurIPS 2023 (arXiv 2311.01459), whose alignment loss is the L1
    distance of means and variances. Dividing by the source's own is ours, so that no large dimension decides.
    """
    here, scale = moments(x), source.variance.clamp_min(SMALLEST)
    by_mean = (here.mean - source.mean).abs() / scale.sqrt()
    by_variance = (here.variance - source.variance).abs() / scale
    return by_mean.mean() + by_variance.mean()
