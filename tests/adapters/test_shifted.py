"""An adapter that rests on frozen changes, against the same changes merged into the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lifelong_core.adapters import AdapterSpec, LoraAdapter
from lifelong_core.adapters.shifted import ShiftedLinear
from lifelong_core.seeding import generator


@pytest.mark.parametrize("rank", [1, 8])
def test_it_answers_as_with_merged_weights(rank: int) -> None:
    """Rank 1 takes the low-rank path, rank 8 forms the whole weight."""
    layer, draw = nn.Linear(12, 12).requires_grad_(False), generator(0, "values")
    shift, x = torch.randn(12, 12, generator=draw), torch.randn(3, 12, generator=draw)
    merged = nn.Linear(12, 12).requires_grad_(False)
    merged.weight.copy_(layer.weight + shift)
    merged.bias.copy_(layer.bias)
    before = layer.weight.clone()
    adapter = LoraAdapter(AdapterSpec(rank=rank), {"x": layer}, seed=0)
    adapter.load({k: torch.randn(v.shape, generator=draw) for k, v in adapter.state().items()})
    expected = adapter.forwards({"x": merged})["x"](x)
    deltas = adapter.deltas()["x"]
    adapter.rest_on({"x": shift})
    torch.testing.assert_close(adapter.forwards({"x": layer})["x"](x), expected)
    assert torch.equal(layer.weight, before)
    assert torch.equal(adapter.deltas()["x"], deltas)


@pytest.mark.parametrize("autocast", [False, True])
def test_small_changes_survive_half_precision(autocast: bool) -> None:
    layer = nn.Linear(4, 4, bias=False).requires_grad_(False)
    nn.init.ones_(layer.weight)
    if not autocast:
        layer.bfloat16()
    shifted = ShiftedLinear(layer, torch.diag(torch.full((4,), 1e-4)))
    x = torch.tensor([[0.0, -1.0, 1.0, 0.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = shifted(x if autocast else x.bfloat16())
    torch.testing.assert_close(y[0, 1:3].float(), torch.tensor([-1e-4, 1e-4]), rtol=1e-2, atol=0)


def test_no_random_number_is_drawn() -> None:
    layer, state = nn.Linear(4, 4), torch.get_rng_state()
    ShiftedLinear(layer, torch.zeros(4, 4))
    assert torch.equal(torch.get_rng_state(), state)
