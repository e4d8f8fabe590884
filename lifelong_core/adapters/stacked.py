"""Changes of the same layers by several adapters, side by side, each for rows of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .factors import Factors


class Stacked(NamedTuple):
    """What U adapters change in one layer: ΔW_u = up[u] @ down[u]; down [U, k, in], up [U, out, k].

    k: the largest of their ranks. Of smaller ones, and of adapters that leave the layer as it is,
    the rest is zeros, which change nothing, bit by bit.
    """

    down: Tensor
    up: Tensor

    def of(self, adapters: Sequence[int]) -> Stacked:
        """The changes by these adapters, in this order; one may be there several times."""
        chosen = list(adapters)
        return Stacked(self.down[chosen], self.up[chosen])

    def to(self, device: torch.device, dtype: torch.dtype) -> Stacked:
        """The same on another device, in another number format."""
        return Stacked(self.down.to(device, dtype), self.up.to(device, dtype))

    def changes(self, x: Tensor) -> Tensor:
        """Every adapter's ΔW_u x_u for rows of its own: [U, ..., in] -> [U, ..., out]."""
        rows = x.flatten(1, -2)
        answers = rows @ self.down.mT @ self.up.mT
        return answers.unflatten(1, x.shape[1:-1])


def stacked_factors(adapters: Sequence[Mapping[str, Factors]]) -> dict[str, Stacked]:
    """Layer key -> the adapters' changes of it, for every layer that any of them changes; fp32."""
    layers = dict.fromkeys(layer for adapter in adapters for layer in adapter)
    return {layer: _stacked([adapter.get(layer) for adapter in adapters]) for layer in layers}


def _stacked(each: Sequence[Factors | None]) -> Stacked:
    known = next(factors for factors in each if factors is not None)
    rank = max(len(factors.down) for factors in each if factors is not None)
    down = known.down.new_zeros(len(each), rank, known.down.shape[1])
    up = known.up.new_zeros(len(each), known.up.shape[0], rank)
    for index, factors in enumerate(each):
        if factors is not None:
            down[index, : len(factors.down)] = factors.down
            up[index, :, : len(factors.down)] = factors.scale * factors.up
    return Stacked(down, up)
