"""Option-position bias taken out of letter probabilities: cyclic orders, PriDe, calibration.

Formulas only; vqa/answer/readout.py asks the questions.

Notation: Q questions with C options each, O orders of the options, all log probabilities natural.
"""

import torch

FLOOR = 1e-12  # smallest prior, so that nothing is divided by zero


def cyclic(options: int) -> tuple[tuple[int, ...], ...]:
    """The cyclic orders of so many options: order k puts choice (letter + k) mod C at each letter.

    Every choice stands once at every letter.
    """
    return tuple(tuple((i + k) % options for i in range(options)) for k in range(options))


def to_options(by_letter: torch.Tensor) -> torch.Tensor:
    """Map log probabilities of letters under the cyclic orders back to the options.

    Args:
        by_letter: (Q, O, C), the orders as in `cyclic`.

    Returns:
        (Q, O, C), the options as written.
    """
    orders = cyclic(by_letter.shape[2])
    places = torch.tensor([[order.index(i) for i in range(len(order))] for order in orders])
    return by_letter.gather(2, places.expand(len(by_letter), -1, -1))


def cyclic_average(by_letter: torch.Tensor) -> torch.Tensor:
    """Average each option's log probability over the cyclic orders.

    Log probabilities, not probabilities: where a prediction is a factor of the option times a prior of the
    letter, the prior then cancels exactly.

    Args:
        by_letter: (Q, O, C), the orders as in `cyclic`.

    Returns:
        (Q, C) log probabilities of the options.
    """
    return to_options(by_letter).mean(1).log_softmax(1)


def letter_prior(by_letter: torch.Tensor) -> torch.Tensor:
    """The model's prior over the letters, whatever options stand there, from questions in all cyclic orders.

    Args:
        by_letter: (Q, O, C), the orders as in `cyclic`.

    Returns:
        (C,) probabilities.

    Source: PriDe, Zheng et al., ICLR 2024 (arXiv 2309.03882), equation 7, then the mean over questions.
    """
    return by_letter.mean(1).softmax(1).mean(0)


def without_prior(log_p: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Divide the predictions by a prior over the letters and normalise again.

    With the prior of `letter_prior` this is PriDe's equation 8; with the mean prediction over a batch it is
    batch calibration (Zhou et al. 2023, arXiv 2309.17249, equation 4); with the prediction for content-free
    inputs it is contextual calibration (Zhao et al. 2021, arXiv 2102.09690: W = diag(p_cf)^-1, b = 0).

    Args:
        log_p: (..., C).
        prior: (C,) probabilities.
    """
    return (log_p - prior.clamp_min(FLOOR).log()).log_softmax(-1)


def mean_probability(log_p: torch.Tensor) -> torch.Tensor:
    """(C,) the mean of all predictions (..., C)."""
    return log_p.exp().flatten(0, -2).mean(0)


def pride(log_p: torch.Tensor, asked_in_all: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Divide out of all predictions the prior that a few questions, asked in all orders, show.

    Args:
        log_p: (Q, C) of all questions as written.
        asked_in_all: (E, O, C) of the chosen questions in the cyclic orders.
        chosen: (E,) their places. They get their cyclic average; from the others the prior is divided out.

    Source: PriDe, Zheng et al., ICLR 2024 (arXiv 2309.03882), algorithm 1. There the chosen questions get the
    mean of probabilities (equation 1), here `cyclic_average`, so that both read-outs agree on them.
    """
    debiased = without_prior(log_p, letter_prior(asked_in_all))
    return debiased.index_copy(0, chosen, cyclic_average(asked_in_all))


def entropy(log_p: torch.Tensor) -> torch.Tensor:
    """(...,) Shannon entropy in nats of log probabilities (..., C); 0 log 0 is 0."""
    nats: torch.Tensor = torch.special.entr(log_p.exp()).sum(-1)
    return nats
