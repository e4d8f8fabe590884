"""How large an adapter's change of the base model is, and how far two adapters are apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .factors import Factors, Shape, low_rank_factors
from .spec import AdapterSpec


def measured_change(
    spec: AdapterSpec, weights: Mapping[str, Tensor], shapes: Mapping[str, Shape]
) -> dict[str, Factors]:
    """Layer -> factors whose norms and distances are those of the adapter's change, from its
    weights alone; `shapes`: (out, in) of layers.

    Of a spectral adapter a row of its weights: ‖U diag(δ) Vᵀ‖ = ‖δ‖, for U and V are orthogonal.
    Of all other kinds the change itself (`low_rank_factors`).
    """
    if spec.kind != "spectral":
        return low_rank_factors(spec, weights, shapes)
    return {
        key: Factors(value.float()[None], torch.ones(1, 1), 1.0) for key, value in weights.items()
    }


def change_norm(one: Mapping[str, Factors], other: Mapping[str, Factors] | None = None) -> float:
    """‖ΔW‖ (Frobenius) over all layers, or ‖ΔW - ΔW'‖ with `other`; a missing layer is zero.

    one, other: what `measured_change` gives. The same for all factors of one product, unlike
    distances of the factors themselves; no matrix of a layer's full size is formed.
    """
    theirs = other or {}
    layers = dict.fromkeys((*one, *theirs))
    return (
        sum(_square([(one.get(layer), 1.0), (theirs.get(layer), -1.0)]) for layer in layers) ** 0.5
    )


def _square(parts: list[tuple[Factors | None, float]]) -> float:
    """‖Σ s U D‖² = tr(Uᵀ U · D Dᵀ) with the factors side by side, in fp64."""
    known = [(factors, sign) for factors, sign in parts if factors is not None]
    up = torch.cat([sign * part.scale * part.up.double() for part, sign in known], dim=1)
    down = torch.cat([part.down.double() for part, _ in known])
    # Rounding can leave a zero slightly below itself.
    return max(0.0, float(((up.mT @ up) * (down @ down.mT)).sum()))
