"""A cheap fingerprint of a model's weights: to notice a change, not to withstand an attacker."""

import hashlib
from typing import Any

import torch

UNITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weight_digest(model: Any) -> str:
    """Digest over the bits of every parameter, adapters and quantised weights included.

    Each tensor gives the sum of its bits taken as integers, computed where it lies without a copy: any change
    of a single value shows. It reads every weight once.

    Args:
        model: Any module.

    Returns:
        Hex.
    """
    names, sums = [], []
    for name, parameter in model.named_parameters():
        bits = parameter.detach().contiguous().view(UNITS[parameter.element_size()])
        names.append(name)
        sums.append(bits.sum(dtype=torch.int64))
    totals = torch.stack(sums).tolist()
    lines = [f"{name} {total}" for name, total in zip(names, totals, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
