"""A frozen linear layer with a frozen change on top, as a base for an adapter to rest on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import base_forward, computes_in_fp32


class ShiftedLinear(nn.Linear):
    """Answers for `layer` as if its weight W [out, in] were W + shift; `layer` stays untouched.

    `weight` is W + shift in fp32, W otherwise: there the shift is a product of its own, because
    small changes would be rounded away when added to W in half precision.
    """

    def __init__(self, layer: nn.Linear, shift: Tensor) -> None:
        # Without the usual constructor, which would draw weights from the global generator.
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.layer = layer
        self.shift = shift
        whole = layer.weight.dtype == torch.float32
        weight = layer.weight + shift if whole else layer.weight
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:
        if computes_in_fp32(input) and self.layer.weight.dtype == torch.float32:
            return F.linear(input, self.weight, self.bias)
        return base_forward(self.layer, input) + F.linear(input, self.shift.to(input.dtype))
