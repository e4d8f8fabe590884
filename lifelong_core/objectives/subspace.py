"""CIDM's concept consolidation loss (Dong et al. 2024, eq. 2): lessons' LoRAs kept apart and alike.

ΔW_i = A_i B_i per layer, A [out, r] (`up`) and B [r, in] (`down`); lesson g looks at all i < g.

R1 keeps lessons apart. As printed, R1 = Σ |A_i A_gᵀ| [out, out], it is zero for A_g = 0 only, since
A_i has full column rank, and it is large for orthogonal A_i and A_g. Here it is A_iᵀ A_g [r, r],
which is zero exactly for orthogonal column spaces. The released code has the printed form, held up
by a pull of every entry of A_g to 1; both are here to compare with.

R2 lets lessons read the prompt along directions that they share. As printed, with ΔW and full
matrices H_i, it constrains nothing. Here it is of low rank and on the input side, away from R1:
B_i ≈ H_i W_*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .step import StepBatch

Factors = Mapping[str, nn.Parameter]
SMALLEST_ENERGY = 1e-6
"""Directions with less of the earlier factors' energy than this, or than this share of the
strongest one's, count as if they had it: where nobody reads, W_* stays as it is."""


@dataclass(frozen=True)
class OrthogonalSubspace:
    """R1 = Σ_{i<g} Σ_l mean |Â_iᵀ Â_g|, the cosines of all pairs of columns of both factors.

    Columns are normalised, so that smaller weights make it no smaller; columns of zeros, with which
    a lesson starts, have cosine 0 and no gradient.

    ups: layer -> A_g [out, r]. earlier: layers of one shape, and their unit columns of all i < g
    [layers, out, n·r]. A step takes O(n · layers · out · r²) operations.
    """

    ups: Factors
    earlier: Sequence[tuple[tuple[str, ...], Tensor]]
    weight: float
    name: str = "orthogonality"

    def __call__(self, batch: StepBatch) -> Tensor:
        values = []
        for layers, columns in self.earlier:
            own = _stacked(self.ups, layers)
            with torch.autocast(own.device.type, enabled=False):
                cosines = columns.mT @ F.normalize(own, dim=1)
            values.append(cosines.abs().sum() / own.shape[2] ** 2)
        return torch.stack(values).sum()


@dataclass(frozen=True)
class LiteralOverlap:
    """mean_{i<g} mean_l mean |A_g A_iᵀ| [out, out]: R1 as printed, in the released code's scale.

    ups: layer -> A_g [out, r]. earlier: layer -> all A_i [n, out, r].
    """

    ups: Factors
    earlier: Mapping[str, Tensor]
    weight: float
    name: str = "orthogonality"

    def __call__(self, batch: StepBatch) -> Tensor:
        values = []
        for layer, known in self.earlier.items():
            own = self.ups[layer]
            with torch.autocast(own.device.type, enabled=False):
                values.append((own @ known.mT).abs().mean())
        return torch.stack(values).mean()


@dataclass(frozen=True)
class PullToOne:
    """mean_l mean (A_g - 1)²: what the released code adds, unmentioned in the paper."""

    ups: Factors
    weight: float
    name: str = "pull_to_one"

    def __call__(self, batch: StepBatch) -> Tensor:
        return torch.stack([(own - 1.0).square().mean() for own in self.ups.values()]).mean()


@dataclass(frozen=True)
class SharedSubspace:
    """R2 = Σ_l ‖B_g - H_g W_*‖²_F; those of earlier lessons do not depend on what is trained.

    W_* [k, in] and H_g [r, k] are computed anew for every batch, without gradient, by alternating
    least squares over all lessons (the paper takes a gradient step, printed with the wrong sign):
    W_* for the H_i of the lesson's beginning, then H_g for that W_*. Nothing is carried from step
    to step, so a resumed lesson has the same bits.

    downs: layer -> B_g [r, in]. earlier: layers of one shape, and of the stack of their earlier B_i
    the k strongest right singular vectors W_0 [layers, k, in] and squared values [layers, k]. With
    these the sums over i < g are known; a step costs the same after any number of lessons.
    """

    downs: Factors
    earlier: Sequence[tuple[tuple[str, ...], Tensor, Tensor]]
    weight: float
    name: str = "shared_subspace"

    def __call__(self, batch: StepBatch) -> Tensor:
        values = []
        for layers, basis, energies in self.earlier:
            own = _stacked(self.downs, layers)
            with torch.autocast(own.device.type, enabled=False), torch.no_grad():
                shared = _refit(own, basis, energies)
                near = _project(own, shared)
            values.append((own - near).square().sum())
        return torch.stack(values).sum()


def orthogonal_subspace(
    ups: Factors, earlier: Mapping[str, Tensor], weight: float
) -> OrthogonalSubspace:
    """R1 with the unit columns of `earlier` (layer -> all A_i [n, out, r]) formed once."""
    columns = [
        (layers, F.normalize(_joined(earlier, layers, dim=2), dim=1)) for layers in _alike(earlier)
    ]
    return OrthogonalSubspace(ups, columns, weight)


def shared_subspace(
    downs: Factors, earlier: Mapping[str, Tensor], rank: int, weight: float
) -> SharedSubspace:
    """R2 with W_0 of `earlier` (layer -> all B_i [n, r, in]) computed once: k = `rank`, or what
    there is.

    The k strongest right singular vectors are the least-squares W_* of all i < g, with
    H_i = B_i W_*ᵀ (Eckart & Young 1936).
    """
    found = []
    for layers in _alike(earlier):
        rows = _joined(earlier, layers, dim=1)
        _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
        energies = values[:, :rank].square()
        floor = SMALLEST_ENERGY * energies[:, :1].clamp(min=1.0)
        found.append((layers, vectors[:, :rank], torch.maximum(energies, floor)))
    return SharedSubspace(downs, found, weight)


def _refit(own: Tensor, basis: Tensor, energies: Tensor) -> Tensor:
    """W = argmin Σ_{i≤g} ‖B_i - H_i W‖² for H_i = B_i W_0ᵀ, which is
    W_0 + (Σ_i H_iᵀ H_i)⁻¹ H_gᵀ (B_g - H_g W_0): earlier lessons hold W_0, the new one moves it.
    """
    parts = own @ basis.mT
    gram = torch.diag_embed(energies) + parts.mT @ parts
    return basis + torch.linalg.solve(gram, parts.mT @ (own - parts @ basis))


def _project(own: Tensor, shared: Tensor) -> Tensor:
    """H W with the least-squares H = B Wᵀ (W Wᵀ)⁻¹."""
    return torch.linalg.solve(shared @ shared.mT, shared @ own.mT).mT @ shared


def _alike(factors: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """The layers, those of one shape together, so that a step takes few operations."""
    groups: dict[torch.Size, list[str]] = {}
    for layer, value in factors.items():
        groups.setdefault(value.shape, []).append(layer)
    return [tuple(layers) for layers in groups.values()]


def _stacked(factors: Factors, layers: Sequence[str]) -> Tensor:
    return torch.stack([factors[layer] for layer in layers])


def _joined(earlier: Mapping[str, Tensor], layers: Sequence[str], dim: int) -> Tensor:
    """The lessons' factors [n, …, …] of each layer next to each other along `dim` of the result,
    which is [layers, …, …]."""
    return torch.stack([torch.cat(list(earlier[layer]), dim=dim - 1) for layer in layers])
