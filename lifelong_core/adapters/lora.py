"""Low-rank adaptation (Hu et al. 2021, section 4.1): W + (alpha / rank) · up @ down.

An implementation of our own because a lesson's speed depends on it: per layer it takes the
cheaper of two equal ways to compute the adapted output, and it keeps no wrapper modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import StateError
from ..seeding import generator
from .layers import Attachment, Forward, base_forward, computes_in_fp32, target_layers
from .spec import AdapterSpec

if TYPE_CHECKING:
    from ..backbone import Backbone


class LoraAdapter:
    """Per layer `down` [rank, in] (Kaiming uniform, a = sqrt(5)) and `up` [out, rank] (zero).

    `strength` scales the change of all layers. See `Adapter` for the methods.
    """

    def __init__(self, spec: AdapterSpec, layers: Mapping[str, nn.Linear], *, seed: int) -> None:
        self.spec = spec
        self.strength = 1.0
        self._attachment: Attachment | None = None
        self._down: dict[str, nn.Parameter] = {}
        self._up: dict[str, nn.Parameter] = {}
        for key, layer in layers.items():
            device, bound = layer.weight.device, 1.0 / math.sqrt(layer.in_features)
            down = torch.empty(spec.rank, layer.in_features).uniform_(
                -bound, bound, generator=generator(seed, "lora", key)
            )
            self._down[key] = nn.Parameter(down.to(device))
            self._up[key] = nn.Parameter(torch.zeros(layer.out_features, spec.rank, device=device))

    def attach(self, backbone: Backbone) -> None:
        if self._attachment is not None:
            raise StateError("The adapter is attached already; detach it first.")
        layers = target_layers(backbone, self.spec)
        if {key: layer.weight.shape for key, layer in layers.items()} != {
            key: torch.Size((self._up[key].shape[0], self._down[key].shape[1])) for key in self._up
        }:
            raise StateError(
                f"The adapter ({self.spec.describe()}) was made for a base model with other "
                "layers; attach it to a model of the family that it was trained on."
            )
        self._attachment = Attachment(layers, self.forwards(layers))

    def detach(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    @contextmanager
    def attached(self, backbone: Backbone) -> Iterator[None]:
        self.attach(backbone)
        try:
            yield
        finally:
            self.detach()

    def forwards(self, layers: Mapping[str, nn.Linear]) -> dict[str, Forward]:
        return {key: self._forward(key, layer) for key, layer in layers.items()}

    def named_parameters(self) -> dict[str, nn.Parameter]:
        named: dict[str, nn.Parameter] = {}
        for key in self._down:
            named[f"{key}.down"] = self._down[key]
            named[f"{key}.up"] = self._up[key]
        return named

    def state(self) -> dict[str, Tensor]:
        return {key: value.detach().clone() for key, value in self.named_parameters().items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        own = self.named_parameters()
        if {key: value.shape for key, value in own.items()} != {
            key: value.shape for key, value in state.items()
        }:
            raise StateError(
                f"The weights given do not fit an adapter of {self.spec.describe()}: expected "
                f"{len(own)} tensors such as {next(iter(own))!r}, got {len(state)} of other names "
                "or shapes."
            )
        for key, parameter in own.items():
            parameter.copy_(state[key])

    def deltas(self) -> dict[str, Tensor]:
        return {key: self.spec.scale * (self._up[key] @ self._down[key]) for key in self._up}

    def _forward(self, key: str, layer: nn.Linear) -> Forward:
        down, up, scale = self._down[key], self._up[key], self.spec.scale
        dense_pays = dense_is_cheaper(layer.out_features, layer.in_features, self.spec.rank)

        def forward(x: Tensor) -> Tensor:
            strength = scale * self.strength
            if strength == 0.0:
                return base_forward(layer, x)
            if dense_pays and computes_in_fp32(x) and layer.weight.dtype == torch.float32:
                weight = torch.addmm(layer.weight, up, down, alpha=strength)
                return F.linear(x, weight, layer.bias)
            hidden = F.linear(x, down.to(x.dtype))
            return base_forward(layer, x) + F.linear(hidden, (strength * up).to(x.dtype))

        return forward


def dense_is_cheaper(out_features: int, in_features: int, rank: int) -> bool:
    """Whether forming W + ΔW costs fewer operations per input row than the low-rank path.

    W + ΔW adds one product of in · out per row (the weight's gradient in the backward pass), the
    low-rank path adds three (output, input gradient, weight gradient) of rank · (in + out). Only
    for fp32: in half precision small changes would be rounded away when added to W.
    """
    return in_features * out_features <= 3 * rank * (in_features + out_features)
