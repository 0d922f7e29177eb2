"""One answer from several views of a picture: which views count, and what they say together.

Formulas only. Notation: V views, K kept views, C letters; all log probabilities natural, entropies in nats.
"""

import math

import torch

from vqa.entropy_loss import entropies


def most_confident(log_p: torch.Tensor, share: float) -> torch.Tensor:
    """(K,) the views of lowest entropy, the surest first: int(share V) of them, but at least one.

    Args:
        log_p: (V, C).
        share: Of the views, in (0, 1].

    Source: Shu et al. 2022 (arXiv 2209.07511), section 3.2; rounded as in their code: 10 % of 64
    views are 6. Where that leaves none, their code would give a mean over nothing.
    """
    return ordered(log_p)[: max(int(share * len(log_p)), 1)]


def ordered(log_p: torch.Tensor) -> torch.Tensor:
    """(V,) the views (V, C) from the surest to the least sure; equally sure ones stay in order."""
    return entropies(log_p.detach()).argsort(stable=True)


def marginal(log_p: torch.Tensor) -> torch.Tensor:
    """(C,) log of the mean probability over views (V, C)."""
    return log_p.logsumexp(0) - math.log(len(log_p))


def marginal_entropy(log_p: torch.Tensor) -> torch.Tensor:
    """() entropy of the mean probability over views (V, C): small where the views are sure and agree.

    Source: Zhang et al. 2022 (MEMO, arXiv 2110.09506), section 3; of the kept views Shu et al. 2022's loss.
    """
    return entropies(marginal(log_p))


def vote(log_p: torch.Tensor, share: float) -> torch.Tensor:
    """(C,) log probabilities after a vote of the surest views, which is their softmax at temperature zero.

    A tie goes to the tied letter for which the surest of the other views votes. Published is only who wins.
    So that nothing has probability zero, the kept views' mean probability counts as one more vote; every
    other letter is behind by a whole vote at least, so it never decides.

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
