"""Scalar random draws from one `torch.Generator`, drawn in blocks because single draws are slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from ..seeding import generator

T = TypeVar("T")
BLOCK = 64


class Dice:
    """A stream of draws that depends on `seed` and `labels` only."""

    def __init__(self, seed: int, *labels: str | int) -> None:
        self._generator = generator(seed, *labels)
        self._block: list[float] = []

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._block:
            self._block = torch.rand(BLOCK, generator=self._generator).tolist()
        return self._block.pop()

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.unit() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, all equally likely."""
        return options[int(self.unit() * len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options in random order."""
        rest = list(options)
        return [rest.pop(int(self.unit() * len(rest))) for _ in range(count)]
