"""How large an adapter's change of the base model is, and how far two adapters are apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .factors import Factors, Shape, low_rank_factors
from .spec import AdapterSpec

Weights = Mapping[str, Tensor]


def change_norm(
    spec: AdapterSpec,
    weights: Weights,
    shapes: Mapping[str, Shape],
    other: Weights | None = None,
) -> float:
    """‖ΔW‖ (Frobenius) over all layers, or ‖ΔW - ΔW'‖ with `other`, an adapter of the same `spec`.

    The same for all factors of one product, unlike distances of the factors. `shapes`: (out, in)
    of layers. Raises StateError as `low_rank_factors` does.
    """
    own = low_rank_factors(spec, weights, shapes)
    theirs = low_rank_factors(spec, other, shapes) if other is not None else {}
    return sum(_square(factors, theirs.get(layer)) for layer, factors in own.items()) ** 0.5


def _square(one: Factors, other: Factors | None) -> float:
    """‖s U D - s' U' D'‖² = tr(Uᵀ U · D Dᵀ) with the factors side by side, in fp64."""
    up, down = one.scale * one.up.double(), one.down.double()
    if other is not None:
        up = torch.cat([up, -other.scale * other.up.double()], dim=1)
        down = torch.cat([down, other.down.double()])
    # Rounding can leave a zero slightly below itself.
    return max(0.0, float(((up.mT @ up) * (down @ down.mT)).sum()))
