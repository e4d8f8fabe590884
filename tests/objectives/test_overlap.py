"""C-LoRA's term against the plain sum over all earlier lessons, and what it costs."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from lifelong_core.adapters import AdapterSpec, LoraAdapter
from lifelong_core.objectives import StepBatch
from lifelong_core.objectives.overlap import Overlap
from lifelong_core.seeding import generator

NO_BATCH = cast(StepBatch, None)
LAYERS = {"a": nn.Linear(12, 8), "b": nn.Linear(6, 10)}


def lora(seed: int) -> LoraAdapter:
    adapter = LoraAdapter(AdapterSpec(rank=2, alpha=3.0), LAYERS, seed=seed)
    draw = generator(seed, "weights")
    adapter.load({k: torch.randn(v.shape, generator=draw) for k, v in adapter.state().items()})
    return adapter


def magnitudes(earlier: list[LoraAdapter]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {key: sum((e.deltas()[key] for e in earlier), torch.zeros(())).abs() for key in "ab"}


@pytest.mark.parametrize("lessons", [1, 3])
def test_value_and_gradient_are_those_of_the_plain_sum(lessons: int) -> None:
    earlier, own = [lora(seed) for seed in range(1, lessons + 1)], lora(0)
    parameters = own.named_parameters()
    naive = torch.zeros(())
    for key in LAYERS:
        total = torch.zeros(())
        for adapter in earlier:
            state = adapter.state()
            total = total + 1.5 * state[f"{key}.up"] @ state[f"{key}.down"]
        change = 1.5 * parameters[f"{key}.up"] @ parameters[f"{key}.down"]
        naive = naive + torch.linalg.matrix_norm(total.abs() * change) ** 2
    term = Overlap(own, magnitudes(earlier), weight=1e8)
    value = term(NO_BATCH)
    torch.testing.assert_close(value, naive)
    for a, b in zip(
        torch.autograd.grad(value, list(parameters.values())),
        torch.autograd.grad(naive, list(parameters.values())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_changes_of_untouched_weights_are_free() -> None:
    own = lora(0)
    value = Overlap(own, {key: torch.zeros(()) for key in LAYERS}, 1.0)(NO_BATCH)
    assert float(value.detach()) == 0.0
