"""Formulas of test-time adaptation: what it minimises, how views are combined, and embeddings compared.

Notation: B questions with C options each, N of them with pictures, V views, K kept views, T tokens of the
row, H hidden size. Log probabilities are natural and normalised over the letters. Entropies and divergences
are in nats.
"""

import math
from dataclasses import dataclass

import torch

from vqa.model.decoder import Row

SMALLEST = 1e-6  # smallest variance, so that a dead dimension is not divided by zero


def entropies(log_p: torch.Tensor) -> torch.Tensor:
    """(...,) entropy in nats of log probabilities (..., C), safe to differentiate.

    `vqa.answer.debias.entropy` gives the same numbers, but its gradient is NaN where a probability is 0 in
    float32, as it is with a confident model.

    Source: TENT, Wang et al., ICLR 2021 (arXiv 2006.10726), section 3.2: H = -sum_c p_c log p_c.
    """
    return -(log_p.exp() * log_p).sum(-1)


def reliable(log_p: torch.Tensor, entropy_limit: float) -> torch.Tensor:
    """(...,) whether a prediction's entropy is low enough to learn from.

    Args:
        log_p: (..., C).
        entropy_limit: Share of ln C; 0.4 is the paper's E0 = 0.4 ln C.

    Source: SAR, Niu et al., ICLR 2023 (arXiv 2302.12400), equation 2: S(x) = 1 where E(x) < E0.
    """
    return entropies(log_p.detach()) < entropy_limit * math.log(log_p.shape[-1])


def mean_entropy(log_p: torch.Tensor) -> torch.Tensor:
    """The mean of `entropies` over all questions (B, C): TENT's loss."""
    return entropies(log_p).mean()


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """(...,) KL(p || q) in nats of log probabilities (..., C)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def view_divergence(log_p: torch.Tensor) -> torch.Tensor:
    """(B,) disagreement between the views (B, V, C) of a question: H(mean_v p_v) - mean_v H(p_v).

    Source: generalised Jensen-Shannon divergence, Lin 1991, section V, with equal weights.
    """
    together = torch.logsumexp(log_p, 1) - math.log(log_p.shape[1])
    return entropies(together) - entropies(log_p).mean(1)


def most_confident(log_p: torch.Tensor, share: float) -> torch.Tensor:
    """(K,) places of the views of lowest entropy, the lowest first: int(share V) of them, but at least one.

    Args:
        log_p: (V, C).
        share: Of the views, in (0, 1].

    Source: Shu et al. 2022 (arXiv 2209.07511), section 3.2; rounded as in their code: 10 % of 64 views are 6.
    Where that leaves none, their code takes a mean over nothing, which is NaN.
    """
    return ordered(log_p)[: max(int(share * len(log_p)), 1)]


def ordered(log_p: torch.Tensor) -> torch.Tensor:
    """(V,) places of the views (V, C) by rising entropy; ties stay in order."""
    return entropies(log_p.detach()).argsort(stable=True)


def marginal(log_p: torch.Tensor) -> torch.Tensor:
    """(C,) log of the mean probability over views (V, C)."""
    return log_p.logsumexp(0) - math.log(len(log_p))


def marginal_entropy(log_p: torch.Tensor) -> torch.Tensor:
    """() entropy of the mean probability over views (V, C): low where the views are sure and agree.

    Source: Zhang et al. 2022 (MEMO, arXiv 2110.09506), section 3; of the kept views Shu et al. 2022's loss.
    """
    return entropies(marginal(log_p))


def vote(log_p: torch.Tensor, share: float) -> torch.Tensor:
    """(C,) log probabilities after a vote of the surest views, which is their softmax at temperature zero.

    A tie goes to the tied letter for which the surest of the other views votes. The paper gives the winner
    alone, without probabilities. Here the kept views' mean probability is added to the votes, so that no
    letter has probability zero. It never decides: the winner is ahead by one whole vote at least.

    Args:
        log_p: (V, C).
        share: Of the views that vote, in (0, 1].

    Source: ZERO, Farina et al. 2024 (arXiv 2405.18330), algorithm 1 and their code's greedy tie-break. Where
    no other view votes for a tied letter, the larger mean probability wins; their code would take the first
    other view's best letter, or fail without one.
    """
    order = ordered(log_p)
    kept = most_confident(log_p, share)
    choices = log_p.argmax(1)
    votes = torch.bincount(choices[kept], minlength=log_p.shape[1]).to(log_p.dtype)
    mean = marginal(log_p[kept]).exp()
    tied = votes == votes.max()
    if int(tied.sum()) > 1:
        others = choices[order[len(kept) :]]
        decisive = others[tied[others]]
        winner = decisive[0] if len(decisive) else torch.where(tied, mean, -1.0).argmax()
        votes[winner] += 1
    return (votes + mean).log().log_softmax(0)


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
