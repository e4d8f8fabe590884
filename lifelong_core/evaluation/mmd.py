"""Distances between two sets of pictures: MMD and KID, as unbiased estimates of the square.

For samples x of P and y of Q and a kernel k (Gretton et al. 2012, equations 3 and 4):

    MMD²(P, Q) = E k(x, x') - 2 E k(x, y) + E k(y, y')

The estimates leave out every pair of a sample with itself, so their mean is zero for equal
distributions, and single values may be slightly negative. `paired` is for x_i and y_i drawn from
the same noise and prompt: they depend on each other, so k(x_i, y_i) is left out too. The estimate
is then exactly zero for equal sets, where the unpaired one would be below zero.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

Kernel = Callable[[Tensor, Tensor], Tensor]
"""[N, D] and [M, D] -> [N, M]."""


def mmd(x: Tensor, y: Tensor, *, paired: bool = False) -> float:
    """MMD² with the quadratic kernel k(x, y) = (x·y + 1)² on features [N, D] of length one.

    "Mining your own secrets" (ICLR 2025) does not state the constant: compare methods only.
    """
    return _unbiased(
        F.normalize(x.double(), dim=-1), F.normalize(y.double(), dim=-1), _quadratic, paired
    )


def kid(x: Tensor, y: Tensor, *, paired: bool = False) -> float:
    """KID (Bińkowski et al. 2018): MMD² with k(x, y) = (x·y / D + 1)³ on features [N, D] as the
    extractor gives them, over all samples at once."""
    return _unbiased(x.double(), y.double(), _polynomial, paired)


def _quadratic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T + 1.0) ** 2


def _polynomial(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _unbiased(x: Tensor, y: Tensor, kernel: Kernel, paired: bool) -> float:
    if min(len(x), len(y)) < 2:
        raise InputError(
            f"Sets of {len(x)} and {len(y)} pictures cannot be compared; give at least two each."
        )
    if paired and len(x) != len(y):
        raise InputError(f"{len(x)} and {len(y)} pictures are no pairs.")
    cross = kernel(x, y)
    between = _without_diagonal(cross) if paired else cross.mean()
    within = _without_diagonal(kernel(x, x)) + _without_diagonal(kernel(y, y))
    return float(within - 2.0 * between)


def _without_diagonal(square: Tensor) -> Tensor:
    """Mean over all entries beside the diagonal."""
    count = len(square)
    return (square.sum() - square.diagonal().sum()) / (count * (count - 1))
