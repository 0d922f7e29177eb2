"""The sharpness-aware step: not the gradient here, but the one from the worst point nearby."""

from collections.abc import Sequence

import torch

SMALLEST = 1e-12  # a gradient shorter than this points nowhere


def worst_direction(gradients: Sequence[torch.Tensor], rho: float) -> list[torch.Tensor]:
    """The step of length `rho` along which the loss rises fastest: rho g / |g|, over all weights together.

    Args:
        gradients: One per weight.
        rho: Length of the step; the weights' own unit.

    Source: SAM, Foret et al., ICLR 2021 (arXiv 2010.01412), equation 2 with p = 2; in SAR, Niu et al., ICLR
    2023 (arXiv 2302.12400), equation 4.
    """
    length = torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients]).norm()
    return [g.float() * (rho / (length + SMALLEST)) for g in gradients]
