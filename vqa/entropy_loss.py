"""What test-time adaptation minimises: formulas over predictions, no model in sight.

Notation: B questions, C letters, log probabilities natural and adding up to 1 over the letters.
"""

import math

import torch

from vqa.question import LETTERS

LARGEST = math.log(len(LETTERS))  # entropy of not knowing at all, nats


def entropies(log_p: torch.Tensor) -> torch.Tensor:
    """(...,) entropy in nats of log probabilities (..., C), safe to differentiate.

    `vqa.debias.entropy` gives the same numbers; its gradient is not a number once a probability is 0 in
    float32, which confident models reach.

    Source: TENT, Wang et al., ICLR 2021 (arXiv 2006.10726), section 3.2: H = -sum_c p_c log p_c.
    """
    return -(log_p.exp() * log_p).sum(-1)


def reliable(log_p: torch.Tensor, entropy_limit: float) -> torch.Tensor:
    """(...,) which predictions are sure enough to learn from.

    Args:
        log_p: (..., C).
        entropy_limit: Share of ln C; 0.4 is the paper's E0 = 0.4 ln C.

    Source: SAR, Niu et al., ICLR 2023 (arXiv 2302.12400), equation 2: S(x) = 1 where E(x) < E0.
    """
    return entropies(log_p.detach()) < entropy_limit * LARGEST


def mean_entropy(log_p: torch.Tensor) -> torch.Tensor:
    """The mean of `entropies` over all questions (B, C): TENT's loss."""
    return entropies(log_p).mean()


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """(...,) KL(p || q) in nats of log probabilities (..., C)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def view_divergence(log_p: torch.Tensor) -> torch.Tensor:
    """(B,) how far the views (B, W, C) of a question disagree: H(mean_v p_v) - mean_v H(p_v), nats.

    Source: generalised Jensen-Shannon divergence, Lin 1991, section V, with equal weights.
    """
    together = torch.logsumexp(log_p, 1) - math.log(log_p.shape[1])
    return entropies(together) - entropies(log_p).mean(1)
