"""All of K and V of cross-attention (Custom Diffusion, Kumari et al. 2023, section 3.2): W + ΔW."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layered import LayeredAdapter
from .layers import Forward, base_forward, computes_in_fp32
from .spec import AdapterSpec


class KeyValueAdapter(LayeredAdapter):
    """Per layer `delta` [out, in], zero at the start.

    The change is trained, not a copy of the weights: the same function with the same gradient,
    but weight decay draws towards the base model, and the base weights stay in their own format.
    """

    def __init__(self, spec: AdapterSpec, layers: Mapping[str, nn.Linear]) -> None:
        super().__init__(spec, layers)
        for key, layer in layers.items():
            delta = torch.zeros(self._shapes[key], device=layer.weight.device)
            self._weights[f"{key}.delta"] = nn.Parameter(delta)

    def deltas(self) -> dict[str, Tensor]:
        return {key: self._weights[f"{key}.delta"] for key in self._shapes}

    def sample_gradients(self, layer: str, inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
        return {f"{layer}.delta": self.strength * gradients.mT @ inputs}

    def _forward(self, key: str, layer: nn.Linear) -> Forward:
        delta = self._weights[f"{key}.delta"]

        def forward(x: Tensor) -> Tensor:
            if self.strength == 0.0:
                return base_forward(layer, x)
            if computes_in_fp32(x) and layer.weight.dtype == torch.float32:
                weight = torch.add(layer.weight, delta, alpha=self.strength)
                return F.linear(x, weight, layer.bias)
            return base_forward(layer, x) + F.linear(x, (self.strength * delta).to(x.dtype))

        return forward
