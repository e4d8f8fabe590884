"""Elastic weight consolidation: weights that earlier concepts depend on stay where they are.

Kirkpatrick et al. 2017, eq. 3, with the online Fisher of "Mining your own secrets" (ICLR 2025),
and in the form of "Rank-1 Fisher EWC" (ICLR 2026).

The scale of λ: a Fisher is made of squared gradients, and these of a loss that is a mean over all
entries of a latent. Its raw values (eigenvalues of 1e-10 to 1e-17 in the paper) change with the
picture's size, the loss's weights, the precision of training and how well the lesson ended, and
any λ (1e6 in the paper) is good for one such setting only. Here the Fisher is divided by its
mean over all weights. Only which weights matter is left, and λ has one meaning everywhere: with
λ = 1 the penalty is, on average, that of plain L2 regularisation ½ Σ (θ - θ*)².
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..fisher import DiagonalFisher, RankOneFisher
from .step import StepBatch


@dataclass(frozen=True)
class FisherPenalty:
    """½ Σ_j F̂_j (θ_j - θ*_j)²; `weight` is λ.

    parameters: θ; anchor: θ*, the weights after the lesson before; fisher: F̂, of mean 1. All by
    weight, on one device.
    """

    parameters: Mapping[str, nn.Parameter]
    anchor: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]
    weight: float
    name: str = "ewc"

    def __call__(self, batch: StepBatch) -> Tensor:
        parts = [
            (self.fisher[name] * (value - self.anchor[name]).square()).sum()
            for name, value in self.parameters.items()
        ]
        return 0.5 * torch.stack(parts).sum()


@dataclass(frozen=True)
class RankOnePenalty:
    """½ Σ_k ŝ_k (d_k · (θ - θ_k))²; `weight` is λ.

    d_k, θ_k: direction and weights of earlier lesson k. directions: by weight [n, *shape] fp32;
    anchor: θ*, by weight; offsets: [n] d_k · (θ* - θ_k); strengths: [n] ŝ_k.
    """

    parameters: Mapping[str, nn.Parameter]
    anchor: Mapping[str, Tensor]
    directions: Mapping[str, Tensor]
    offsets: Tensor
    strengths: Tensor
    weight: float
    name: str = "ewc"

    def __call__(self, batch: StepBatch) -> Tensor:
        # From the anchor on, where differences are small: d · θ itself would lose them, and so
        # would a matrix product, which autocast takes to half precision.
        parts = [
            (self.directions[name] * (value - self.anchor[name])).flatten(1).sum(dim=1)
            for name, value in self.parameters.items()
        ]
        moved = self.offsets + torch.stack(parts).sum(dim=0)
        return 0.5 * (self.strengths * moved.square()).sum()


def fisher_penalty(
    fisher: DiagonalFisher,
    parameters: Mapping[str, nn.Parameter],
    anchor: Mapping[str, Tensor],
    weight: float,
) -> FisherPenalty:
    """(λ / 2) Σ_j F̂_j (θ_j - θ*_j)² with F̂ the normalised mean over earlier lessons."""
    return FisherPenalty(
        parameters, _like(parameters, anchor), _like(parameters, fisher.normalised()), weight
    )


def rank_one_penalty(
    fisher: RankOneFisher,
    parameters: Mapping[str, nn.Parameter],
    anchor: Mapping[str, Tensor],
    weight: float,
) -> RankOnePenalty:
    """(λ / 2) Σ_k c_k (μ_k · (θ - θ_k))² with the sum's Fisher normalised as the diagonal one is.

    The mean over lessons of c_k μ_k μ_kᵀ, which is s_k u_k u_kᵀ for unit directions u_k, is scaled
    to a mean diagonal entry of 1: ŝ_k = s_k / Σ_i s_i for directions of mean square 1.
    """
    places = sum(
        (
            fisher.directions[name].double().flatten(1) @ value.double().cpu().flatten()
            for name, value in anchor.items()
        ),
        start=-fisher.places.double(),
    )
    device = next(iter(parameters.values())).device
    total = fisher.strengths.sum()
    return RankOnePenalty(
        parameters,
        _like(parameters, anchor),
        _like(parameters, fisher.directions),
        places.float().to(device),
        (fisher.strengths / total if total > 0 else fisher.strengths).to(device),
        weight,
    )


def _like(
    parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {name: values[name].to(value.device, value.dtype) for name, value in parameters.items()}
