"""Input factors that ordinary inputs pass by: ΔW x = up · down · x is zero where down · x is.

Where the inputs of a layer keep to some directions, a change that reads only the others leaves
them as they were (gradient projection memory, Saha et al. 2021; null-space projection, Wang et al.
2021, Fang et al. 2025).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def principal_directions(rows: Tensor, share: float, *, apart_from: Tensor | None = None) -> Tensor:
    """The fewest orthonormal directions [W, k] that hold `share` of what `rows` [N, W] are.

    Every row counts alike, whatever its length. apart_from: directions [W, j] that are known
    already; those that come back are orthogonal to them. In fp32, made in fp64.
    """
    alike = F.normalize(rows.detach().double(), dim=-1)
    if apart_from is not None:
        alike = without_directions(alike, apart_from.double())
    energies, directions = torch.linalg.eigh(alike.mT @ alike)
    held = energies.flip(0).cumsum(0) / energies.sum()
    count = int((held < share).sum()) + 1
    return directions.flip(1)[:, :count].float()


def without_directions(down: Tensor, directions: Tensor) -> Tensor:
    """`down` [rank, W] that reads nothing of `directions` [W, k]."""
    return down - (down @ directions) @ directions.mT
