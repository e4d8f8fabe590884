"""Sizes and distances of adapters, against the full matrices."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.adapters.distance import change_norm
from lifelong_core.adapters.spec import AdapterSpec

SHAPES = {"a": (6, 4), "b": (3, 5)}


def lora(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for layer, (out, width) in SHAPES.items():
        weights[f"{layer}.down"] = torch.randn(2, width, generator=draw)
        weights[f"{layer}.up"] = torch.randn(out, 2, generator=draw)
    return weights


def full(weights: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
    return torch.cat(
        [scale * (weights[f"{n}.up"] @ weights[f"{n}.down"]).flatten() for n in SHAPES]
    )


def test_it_is_the_norm_of_the_full_matrices() -> None:
    spec, one, other = AdapterSpec(rank=2, alpha=6.0), lora(1), lora(2)
    a, b = full(one, 3.0), full(other, 3.0)
    assert change_norm(spec, one, SHAPES) == pytest.approx(float(a.norm()), rel=1e-5)
    assert change_norm(spec, one, SHAPES, other) == pytest.approx(float((a - b).norm()), rel=1e-5)


def test_other_factors_of_the_same_product_are_no_distance() -> None:
    spec, one = AdapterSpec(rank=2), lora(1)
    same = {key: value * (2.0 if key.endswith("up") else 0.5) for key, value in one.items()}
    assert change_norm(spec, one, SHAPES, same) < 1e-5 * change_norm(spec, one, SHAPES)


def test_full_matrices_too() -> None:
    spec = AdapterSpec(kind="key_value")
    one = {f"{layer}.delta": torch.randn(shape) for layer, shape in SHAPES.items()}
    size = torch.cat([value.flatten() for value in one.values()]).norm()
    assert change_norm(spec, one, SHAPES) == pytest.approx(float(size), rel=1e-5)
