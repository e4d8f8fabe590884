"""Vector-based random matrix adaptation (VeRA, Kopiczko et al. 2024, eq. 2):
ΔW = Λ_b B Λ_d A, where all layers share the frozen random A and B and train two vectors each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..seeding import generator
from .lora import LowRankAdapter
from .spec import AdapterSpec

MATRICES_SEED = 0
"""Of A and B. One for all states: weights mean the same wherever they are loaded."""
INITIAL_D = 0.1


class VeraAdapter(LowRankAdapter):
    """Per layer `d` [rank] (0.1) and `b` [out] (zero): rank + out trained weights.

    A layer takes the first `in` columns of A [rank, largest in] and the first `out` rows of
    B [largest out, rank]. As a LoRA of scale 1 its factors are down = Λ_d A and up = Λ_b B.
    """

    def __init__(self, spec: AdapterSpec, layers: Mapping[str, nn.Linear]) -> None:
        super().__init__(spec, layers)
        device = next(iter(layers.values())).weight.device
        a, b = random_matrices(spec.rank, self._shapes.values())
        self._a, self._b = a.to(device), b.to(device)
        for key, (out, _) in self._shapes.items():
            d = torch.full((spec.rank,), INITIAL_D, device=device)
            self._weights[f"{key}.d"] = nn.Parameter(d)
            self._weights[f"{key}.b"] = nn.Parameter(torch.zeros(out, device=device))

    def factors(self, key: str) -> tuple[Tensor, Tensor]:
        d, b = self._weights[f"{key}.d"], self._weights[f"{key}.b"]
        return scaled_factors(d, b, (self._a, self._b), self._shapes[key][1])

    def sample_gradients(self, layer: str, inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
        """From what the losses see of A's and B's outputs: no matrix per loss is formed."""
        down, up = (factor.detach() for factor in self.factors(layer))
        scaled = self.strength * gradients
        from_a = inputs @ self._a[:, : down.shape[1]].mT
        from_b = (inputs @ down.mT) @ self._b[: len(up)].mT
        return {
            f"{layer}.d": ((scaled @ up) * from_a).sum(1),
            f"{layer}.b": (scaled * from_b).sum(1),
        }


def random_matrices(rank: int, shapes: Iterable[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """A [rank, largest in] and B [largest out, rank] for weights of `shapes` (out, in), fp32.

    Kaiming uniform: bound sqrt(6 / columns). Always the same for the same sizes.
    """
    outs, ins = zip(*shapes, strict=True)
    return _uniform(rank, max(ins), "A"), _uniform(max(outs), rank, "B")


def scaled_factors(
    d: Tensor, b: Tensor, matrices: tuple[Tensor, Tensor], width: int
) -> tuple[Tensor, Tensor]:
    """Λ_d A [rank, width] and Λ_b B [out, rank] of one layer, whose ΔW is B's times A's."""
    matrix_a, matrix_b = matrices
    return d[:, None] * matrix_a[:, :width], b[:, None] * matrix_b[: len(b)]


def _uniform(rows: int, columns: int, label: str) -> Tensor:
    bound = math.sqrt(6.0 / columns)
    draw = generator(MATRICES_SEED, "vera", label)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=draw)
