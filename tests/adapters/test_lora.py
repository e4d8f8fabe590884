"""The properties that make a LoRA a LoRA, on a real UNet and on plain linear layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lifelong_core.adapters import AdapterSpec, LoraAdapter, build_adapter, target_layers
from lifelong_core.adapters.lora import dense_is_cheaper
from lifelong_core.backbone import Backbone, Conditioning, random_backbone
from lifelong_core.errors import StateError
from lifelong_core.seeding import generator

EVERYWHERE = AdapterSpec(
    rank=4,
    alpha=8.0,
    targets=tuple(f"{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v"))
    + ("attn2.to_out.0",),
    text_encoder=True,
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def trained(backbone: Backbone, spec: AdapterSpec, seed: int = 0) -> LoraAdapter:
    adapter = build_adapter(spec, backbone, seed=seed)
    state = {
        key: torch.randn(value.shape, generator=generator(seed, key)) * 0.05
        for key, value in adapter.state().items()
    }
    adapter.load(state)
    return adapter


def predict(backbone: Backbone) -> torch.Tensor:
    draw = generator(5, "inputs")
    latents = torch.randn(2, 4, 16, 16, generator=draw)
    context = torch.randn(2, 77, 128, generator=draw)
    with torch.no_grad():
        return backbone.predict(latents, torch.tensor([10, 700]), Conditioning(context))


def test_a_fresh_adapter_changes_nothing(backbone: Backbone) -> None:
    before = predict(backbone)
    with build_adapter(EVERYWHERE, backbone, seed=1).attached(backbone):
        torch.testing.assert_close(predict(backbone), before, rtol=0, atol=1e-5)


def test_detached_and_at_strength_zero_the_base_gives_the_same_bits(backbone: Backbone) -> None:
    weights = {key: value.clone() for key, value in backbone.unet.state_dict().items()}
    before = predict(backbone)
    adapter = trained(backbone, EVERYWHERE)
    with adapter.attached(backbone):
        assert not torch.allclose(predict(backbone), before, atol=1e-3)
        adapter.strength = 0.0
        assert torch.equal(predict(backbone), before)
    assert torch.equal(predict(backbone), before)
    after = backbone.unet.state_dict()
    assert all(torch.equal(after[key], value) for key, value in weights.items())


def test_attached_equals_merged(backbone: Backbone) -> None:
    adapter = trained(backbone, EVERYWHERE)
    prompts = ["a photo of a dog"]
    with adapter.attached(backbone):
        attached, text = predict(backbone), backbone.text.encode(prompts).context
    layers, deltas = target_layers(backbone, EVERYWHERE), adapter.deltas()
    assert layers.keys() == deltas.keys()
    try:
        for key, layer in layers.items():
            layer.weight.data = layer.weight.data + deltas[key].detach()
        torch.testing.assert_close(predict(backbone), attached, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            backbone.text.encode(prompts).context, text, rtol=1e-4, atol=1e-4
        )
    finally:
        for key, layer in layers.items():
            layer.weight.data = layer.weight.data - deltas[key].detach()


def test_the_delta_is_alpha_over_rank_times_up_down(backbone: Backbone) -> None:
    spec = AdapterSpec(rank=3, alpha=6.0)
    adapter = trained(backbone, spec)
    state, deltas = adapter.state(), adapter.deltas()
    assert len(deltas) == 20
    for key, delta in deltas.items():
        expected = 2.0 * state[f"{key}.up"] @ state[f"{key}.down"]
        torch.testing.assert_close(delta, expected)
        assert int(torch.linalg.matrix_rank(delta)) == 3


@pytest.mark.parametrize("shape", [(8, 8), (96, 96)])
def test_both_ways_of_computing_agree_in_value_and_gradient(shape: tuple[int, int]) -> None:
    """Rank 2: 8x8 takes W + ΔW, 96x96 the low-rank path; both against the formula."""
    layer = nn.Linear(*shape).requires_grad_(False)
    adapter = LoraAdapter(AdapterSpec(rank=2, alpha=3.0), {"x": layer}, seed=0)
    assert dense_is_cheaper(*shape, 2) == (shape == (8, 8))
    adapter.load({key: torch.randn_like(value) for key, value in adapter.state().items()})
    down, up = adapter.named_parameters().values()
    x = torch.randn(5, shape[0], requires_grad=True)
    expected = layer(x) + 1.5 * x @ down.T @ up.T
    actual = adapter.forwards({"x": layer})["x"](x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((actual * weights).sum(), (x, down, up)),
        torch.autograd.grad((expected * weights).sum(), (x, down, up)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_keeps_small_changes(autocast: bool) -> None:
    """A change far below bf16's resolution of W still reaches the output; weights stay fp32."""
    layer = nn.Linear(8, 8, bias=False).requires_grad_(False)
    nn.init.ones_(layer.weight)
    if not autocast:
        layer.bfloat16()
    adapter = LoraAdapter(AdapterSpec(rank=1, alpha=1.0), {"x": layer}, seed=0)
    down, up = torch.zeros(1, 8), torch.full((8, 1), 1e-3)
    down[0, 0] = 1.0
    adapter.load({"x.down": down, "x.up": up})
    x = torch.zeros(1, 8)
    x[0, 0], x[0, 1] = 1.0, -1.0
    forward = adapter.forwards({"x": layer})["x"]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = forward(x if autocast else x.bfloat16())
    torch.testing.assert_close(y.float(), torch.full((1, 8), 1e-3), rtol=1e-2, atol=0)
    assert all(p.dtype == torch.float32 for p in adapter.named_parameters().values())


def test_state_and_load_round_trip(backbone: Backbone) -> None:
    first, second = trained(backbone, EVERYWHERE), build_adapter(EVERYWHERE, backbone, seed=9)
    saved = first.state()
    second.load(saved)
    assert all(torch.equal(second.state()[key], value) for key, value in saved.items())
    saved["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.up"].zero_()
    assert float(first.state().popitem()[1].abs().sum()) > 0
    with pytest.raises(StateError, match="do not fit"):
        second.load(trained(backbone, AdapterSpec(rank=4)).state())


def test_seeds_decide_the_start(backbone: Backbone) -> None:
    states = [build_adapter(EVERYWHERE, backbone, seed=seed).state() for seed in (1, 1, 2)]
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.down"
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


def test_two_adapters_on_one_layer_are_refused(backbone: Backbone) -> None:
    first, second = trained(backbone, AdapterSpec()), trained(backbone, AdapterSpec())
    before = predict(backbone)
    with first.attached(backbone), pytest.raises(StateError, match="detach"):
        second.attach(backbone)
    assert torch.equal(predict(backbone), before)
    second.detach()


def test_parameter_count_at_true_size() -> None:
    """792,576 weights at rank 16 on K and V of SD1's cross-attention (B.1), on the meta device."""
    widths = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] + [1280] * 3 + [640] * 3 + [320] * 3
    layers = {
        f"{i}.{name}": nn.Linear(768, width, bias=False)
        for i, width in enumerate(widths)
        for name in "kv"
    }
    adapter = LoraAdapter(AdapterSpec(), layers, seed=0)
    assert sum(p.numel() for p in adapter.named_parameters().values()) == 792_576
