"""Sizes and distances of adapters, against the full matrices."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.adapters.distance import change_norm
from lifelong_core.adapters.factors import Factors, low_rank_factors
from lifelong_core.adapters.spec import AdapterSpec

SPEC = AdapterSpec(rank=2, alpha=6.0)
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


def factors(weights: dict[str, torch.Tensor], spec: AdapterSpec = SPEC) -> dict[str, Factors]:
    return low_rank_factors(spec, weights, SHAPES)


def test_it_is_the_norm_of_the_full_matrices() -> None:
    one, other = lora(1), lora(2)
    a, b = full(one, 3.0), full(other, 3.0)
    assert change_norm(factors(one)) == pytest.approx(float(a.norm()), rel=1e-5)
    assert change_norm(factors(one), factors(other)) == pytest.approx(
        float((a - b).norm()), rel=1e-5
    )


def test_other_factors_of_the_same_product_are_no_distance() -> None:
    one = lora(1)
    same = {key: value * (2.0 if key.endswith("up") else 0.5) for key, value in one.items()}
    assert change_norm(factors(one), factors(same)) < 1e-5 * change_norm(factors(one))


def test_a_layer_that_only_one_has_counts_whole() -> None:
    one = factors(lora(1))
    part = {"a": one["a"]}
    assert change_norm(part, one) == pytest.approx(change_norm({"b": one["b"]}))


def test_full_matrices_too() -> None:
    one = {f"{layer}.delta": torch.randn(shape) for layer, shape in SHAPES.items()}
    size = torch.cat([value.flatten() for value in one.values()]).norm()
    found = change_norm(factors(one, AdapterSpec(kind="key_value")))
    assert found == pytest.approx(float(size), rel=1e-5)
