"""What is Custom Diffusion's own: whole matrices, only of K and V."""

from __future__ import annotations

import torch
from torch import nn

from lifelong_core.adapters import AdapterSpec, KeyValueAdapter, low_rank_factors
from lifelong_core.sharing.naming import layers

KEY = "unet.x.attn2.to_k"


def test_the_change_is_the_weight() -> None:
    layer = nn.Linear(6, 4).requires_grad_(False)
    adapter = KeyValueAdapter(AdapterSpec("key_value"), {KEY: layer})
    delta = torch.randn(4, 6)
    adapter.load({f"{KEY}.delta": delta})
    assert torch.equal(adapter.deltas()[KEY], delta)
    x = torch.randn(3, 6)
    adapter.strength = 0.5
    expected = x @ (layer.weight + 0.5 * delta).mT + layer.bias
    torch.testing.assert_close(adapter.forwards({KEY: layer})[KEY](x), expected)


def test_a_lora_has_the_change_itself_as_one_factor() -> None:
    for shape in ((4, 6), (6, 4), (5, 5)):
        delta = torch.randn(shape)
        found = low_rank_factors(AdapterSpec("key_value"), {f"{KEY}.delta": delta}, {KEY: shape})
        down, up, alpha = found[KEY]
        assert len(down) == up.shape[1] == min(shape)
        assert alpha == len(down)
        assert torch.equal(down if shape[0] <= shape[1] else up, delta)
        torch.testing.assert_close(up @ down, delta)


def test_parameter_count_at_true_size() -> None:
    """19,169,280 weights on SD1: the published 73.1 MB of fp32."""
    spec = AdapterSpec("key_value")
    linear = {
        layer: nn.Linear(width, out, bias=False, device="meta")
        for layer, (out, width) in layers("sd1").items()
        if layer.endswith(spec.targets)
    }
    adapter = KeyValueAdapter(spec, linear)
    assert sum(p.numel() for p in adapter.named_parameters().values()) == 19_169_280
