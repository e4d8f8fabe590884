"""Low-rank adaptation (Hu et al. 2021, section 4.1): W + (alpha / rank) · up @ down.

An implementation of our own because a lesson's speed depends on it: per layer it takes the
cheaper of two equal ways to compute the adapted output, and it keeps no wrapper modules.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..seeding import generator
from .layered import LayeredAdapter
from .layers import Forward, base_forward, computes_in_fp32
from .spec import AdapterSpec


class LowRankAdapter(LayeredAdapter):
    """W + scale · up @ down, wherever a layer's two factors come from."""

    @abstractmethod
    def factors(self, key: str) -> tuple[Tensor, Tensor]:
        """down [rank, in] and up [out, rank] of a layer, differentiable in the weights."""

    def deltas(self) -> dict[str, Tensor]:
        deltas = {}
        for key in self._shapes:
            down, up = self.factors(key)
            deltas[key] = self.spec.scale * (up @ down)
        return deltas

    def _forward(self, key: str, layer: nn.Linear) -> Forward:
        scale = self.spec.scale
        dense_pays = dense_is_cheaper(layer.out_features, layer.in_features, self.spec.rank)

        def forward(x: Tensor) -> Tensor:
            strength = scale * self.strength
            if strength == 0.0:
                return base_forward(layer, x)
            down, up = self.factors(key)
            if dense_pays and computes_in_fp32(x) and layer.weight.dtype == torch.float32:
                weight = torch.addmm(layer.weight, up, down, alpha=strength)
                return F.linear(x, weight, layer.bias)
            hidden = F.linear(x, down.to(x.dtype))
            return base_forward(layer, x) + F.linear(hidden, (strength * up).to(x.dtype))

        return forward


class LoraAdapter(LowRankAdapter):
    """Per layer `down` [rank, in] (Kaiming uniform, a = sqrt(5)) and `up` [out, rank] (zero)."""

    def __init__(self, spec: AdapterSpec, layers: Mapping[str, nn.Linear], *, seed: int) -> None:
        super().__init__(spec, layers)
        for key, layer in layers.items():
            device, bound = layer.weight.device, 1.0 / math.sqrt(layer.in_features)
            down = torch.empty(spec.rank, layer.in_features).uniform_(
                -bound, bound, generator=generator(seed, "lora", key)
            )
            up = torch.zeros(layer.out_features, spec.rank, device=device)
            self._weights[f"{key}.down"] = nn.Parameter(down.to(device))
            self._weights[f"{key}.up"] = nn.Parameter(up)

    def factors(self, key: str) -> tuple[Tensor, Tensor]:
        return self._weights[f"{key}.down"], self._weights[f"{key}.up"]

    def sample_gradients(self, layer: str, inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
        """Without ever forming a gradient of W: r · (in + out) operations per input row."""
        down, up = (factor.detach() for factor in self.factors(layer))
        scaled = self.spec.scale * self.strength * gradients
        return {
            f"{layer}.down": (scaled @ up).mT @ inputs,
            f"{layer}.up": scaled.mT @ (inputs @ down.mT),
        }


def dense_is_cheaper(out_features: int, in_features: int, rank: int) -> bool:
    """Whether forming W + ΔW costs fewer operations per input row than the low-rank path.

    W + ΔW adds one product of in · out per row (the weight's gradient in the backward pass), the
    low-rank path adds three (output, input gradient, weight gradient) of rank · (in + out). Only
    for fp32: in half precision small changes would be rounded away when added to W.
    """
    return in_features * out_features <= 3 * rank * (in_features + out_features)
