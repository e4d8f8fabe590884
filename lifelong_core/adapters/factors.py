"""Any kind of adapter as a LoRA, from its weights alone: what files, merging and routing use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import StateError
from .spec import AdapterSpec
from .vera import random_matrices, scaled_factors

Shape = tuple[int, int]


class Factors(NamedTuple):
    """One layer's change: ΔW = (alpha / k) · up @ down, down [k, in], up [out, k]."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def scale(self) -> float:
        """alpha / k."""
        return self.alpha / len(self.down)


def low_rank_factors(
    spec: AdapterSpec, weights: Mapping[str, Tensor], shapes: Mapping[str, Shape]
) -> dict[str, Factors]:
    """Layer key -> its change as a LoRA, exactly, in fp32; `shapes`: (out, in) of layers.

    lora: as it is. vera: down = Λ_d A, up = Λ_b B, k = rank. key_value: one factor is ΔW, the
    other the identity, k = alpha = min(out, in), so that no decomposition is needed.

    `shapes` has every layer of `weights`. Raises StateError when one has another size there, and
    for spectral adapters, whose weights say nothing without the base model's singular vectors.
    """
    if spec.kind == "spectral":
        raise StateError(
            "A spectral adapter only says how far the base model's singular values move, so it is "
            "no LoRA by itself. Use a state that was learned with a LoRA for this."
        )
    layers = dict.fromkeys(key.rsplit(".", 1)[0] for key in weights)
    own = {layer: shapes[layer] for layer in layers}
    found = _KINDS[spec.kind](spec, weights, own)
    for layer, (down, up, _) in found.items():
        if (up.shape[0], down.shape[1]) != own[layer]:
            raise StateError(
                f"The adapter changes {layer} by {up.shape[0]} x {down.shape[1]} weights; in the "
                f"base model it has {' x '.join(map(str, own[layer]))}."
            )
    return found


def _lora(
    spec: AdapterSpec, weights: Mapping[str, Tensor], shapes: Mapping[str, Shape]
) -> dict[str, Factors]:
    return {
        layer: Factors(weights[f"{layer}.down"].float(), weights[f"{layer}.up"].float(), spec.alpha)
        for layer in shapes
    }


def _vera(
    spec: AdapterSpec, weights: Mapping[str, Tensor], shapes: Mapping[str, Shape]
) -> dict[str, Factors]:
    if not shapes:
        return {}
    matrices, found = random_matrices(spec.rank, shapes.values()), {}
    for layer, (_, width) in shapes.items():
        d, b = weights[f"{layer}.d"].float(), weights[f"{layer}.b"].float()
        found[layer] = Factors(*scaled_factors(d, b, matrices, width), spec.alpha)
    return found


def _key_value(
    spec: AdapterSpec, weights: Mapping[str, Tensor], shapes: Mapping[str, Shape]
) -> dict[str, Factors]:
    found = {}
    for layer in shapes:
        delta = weights[f"{layer}.delta"].float()
        out, width = delta.shape
        size = min(out, width)
        identity = torch.eye(size)
        down, up = (delta, identity) if out <= width else (identity, delta)
        found[layer] = Factors(down, up, float(size))
    return found


_KINDS: dict[
    str,
    Callable[
        [AdapterSpec, Mapping[str, Tensor], Mapping[str, Shape]],
        dict[str, Factors],
    ],
] = {"lora": _lora, "vera": _vera, "key_value": _key_value}
