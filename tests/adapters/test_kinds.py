"""What holds for every kind of adapter, on a real UNet and on plain linear layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lifelong_core.adapters import (
    Adapter,
    AdapterSpec,
    KeyValueAdapter,
    LoraAdapter,
    SpectralAdapter,
    VeraAdapter,
    build_adapter,
    low_rank_factors,
    target_layers,
)
from lifelong_core.adapters.spec import check_layout
from lifelong_core.backbone import Backbone, Conditioning, random_backbone
from lifelong_core.errors import InputError, StateError
from lifelong_core.seeding import generator

SPECS = {
    "lora": AdapterSpec(rank=4, alpha=2.0),
    "vera": AdapterSpec("vera", rank=8, targets=("attn1.to_q", "attn2.to_v"), text_encoder=True),
    "key_value": AdapterSpec("key_value"),
    "spectral": AdapterSpec("spectral"),
}
CLASSES = {
    "lora": LoraAdapter,
    "vera": VeraAdapter,
    "key_value": KeyValueAdapter,
    "spectral": SpectralAdapter,
}
ON_ONE_LAYER = pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind != "spectral"])
"""Spectral adapters have layers of more sorts: see test_spectral.py."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> AdapterSpec:
    return SPECS[request.param]


def trained(adapter: Adapter) -> Adapter:
    adapter.load(
        {
            key: torch.randn(value.shape, generator=generator(0, key)) * 0.1
            for key, value in adapter.state().items()
        }
    )
    return adapter


def on_layer(kind: str, layer: nn.Linear) -> Adapter:
    spec = AdapterSpec(kind, rank=3)
    layers = {"x.attn2.to_k": layer}
    options = {"seed": 0} if kind == "lora" else {}
    return trained(CLASSES[kind](spec, layers, **options))


def predict(backbone: Backbone) -> torch.Tensor:
    draw = generator(5, "inputs")
    latents = torch.randn(2, 4, 16, 16, generator=draw)
    context = torch.randn(2, 77, 128, generator=draw)
    with torch.no_grad():
        return backbone.predict(latents, torch.tensor([10, 700]), Conditioning(context))


def test_the_spec_says_what_is_built(backbone: Backbone, spec: AdapterSpec) -> None:
    adapter = build_adapter(spec, backbone, seed=0)
    assert type(adapter) is CLASSES[spec.kind]
    check_layout(spec, adapter.state())
    assert AdapterSpec.from_json(spec.to_json()) == spec
    assert spec.kind in spec.describe()


def test_a_fresh_adapter_changes_nothing(backbone: Backbone, spec: AdapterSpec) -> None:
    before = predict(backbone)
    adapter = build_adapter(spec, backbone, seed=0)
    with adapter.attached(backbone):
        torch.testing.assert_close(predict(backbone), before, rtol=0, atol=1e-5)
    assert all(float(delta.detach().abs().sum()) == 0 for delta in adapter.deltas().values())


def test_detached_and_at_strength_zero_the_base_gives_the_same_bits(
    backbone: Backbone, spec: AdapterSpec
) -> None:
    before = predict(backbone)
    adapter = trained(build_adapter(spec, backbone, seed=0))
    with adapter.attached(backbone):
        assert not torch.allclose(predict(backbone), before, atol=1e-3)
        adapter.strength = 0.0
        assert torch.equal(predict(backbone), before)
    assert torch.equal(predict(backbone), before)


def test_attached_equals_merged(backbone: Backbone, spec: AdapterSpec) -> None:
    adapter = trained(build_adapter(spec, backbone, seed=0))
    prompts = ["a photo of a dog"]
    with adapter.attached(backbone):
        attached, text = predict(backbone), backbone.text.encode(prompts).context
    layers, deltas = target_layers(backbone, spec), adapter.deltas()
    assert layers.keys() == deltas.keys()
    plain = {key: layer.weight.data for key, layer in layers.items()}
    offsets = {key: value for key, value in adapter.state().items() if key.endswith(".offset")}
    biases = {key: layers[key.removesuffix(".offset")].bias.data for key in offsets}
    try:
        for key, layer in layers.items():
            layer.weight.data = plain[key] + deltas[key].detach()
        for key, offset in offsets.items():
            layers[key.removesuffix(".offset")].bias.data = biases[key] + offset
        torch.testing.assert_close(predict(backbone), attached, rtol=1e-4, atol=1e-4)
        merged = backbone.text.encode(prompts).context
        torch.testing.assert_close(merged, text, rtol=1e-4, atol=1e-4)
    finally:
        for key, layer in layers.items():
            layer.weight.data = plain[key]
        for key, bias in biases.items():
            layers[key.removesuffix(".offset")].bias.data = bias


@pytest.mark.parametrize("spec", [SPECS[kind] for kind in CLASSES if kind != "spectral"])
def test_weights_alone_tell_the_change(backbone: Backbone, spec: AdapterSpec) -> None:
    adapter = trained(build_adapter(spec, backbone, seed=0))
    shapes = {key: tuple(delta.shape) for key, delta in adapter.deltas().items()}
    found = low_rank_factors(spec, adapter.state(), shapes)
    assert found.keys() == shapes.keys()
    for key, delta in adapter.deltas().items():
        factors = found[key]
        change = factors.alpha / len(factors.down) * (factors.up @ factors.down)
        torch.testing.assert_close(change, delta.detach(), rtol=1e-5, atol=1e-6)
    wrong = {key: (shape[0] + 1, shape[1]) for key, shape in shapes.items()}
    with pytest.raises(StateError, match="base model it has"):
        low_rank_factors(spec, adapter.state(), wrong)


@ON_ONE_LAYER
def test_gradients_of_single_losses(kind: str) -> None:
    """`sample_gradients` against one backward pass per loss."""
    layer = nn.Linear(6, 5, bias=False).requires_grad_(False)
    adapter = on_layer(kind, layer)
    adapter.strength = 0.7
    forward = adapter.forwards({"x.attn2.to_k": layer})["x.attn2.to_k"]
    inputs, weights = torch.randn(3, 4, 6), torch.randn(3, 4, 5)
    parameters = adapter.named_parameters()
    found = adapter.sample_gradients("x.attn2.to_k", inputs, weights)
    assert found.keys() == parameters.keys()
    for sample in range(3):
        loss = (forward(inputs[sample]) * weights[sample]).sum()
        expected = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][sample], gradient, rtol=1e-4, atol=1e-5)


@ON_ONE_LAYER
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_keeps_small_changes(kind: str, autocast: bool) -> None:
    """A change far below bf16's resolution of W still reaches the output."""
    layer = nn.Linear(8, 8, bias=False).requires_grad_(False)
    nn.init.ones_(layer.weight)
    if not autocast:
        layer.bfloat16()
    adapter = on_layer(kind, layer)
    adapter.load({key: value * 0.03 for key, value in adapter.state().items()})
    x = torch.tensor([[1.0, -1.0, 0, 0, 0, 0, 0, 0]])
    forward = adapter.forwards({"x.attn2.to_k": layer})["x.attn2.to_k"]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = forward(x if autocast else x.bfloat16())
    (delta,) = adapter.deltas().values()
    expected = x @ delta.detach().mT
    assert 0 < float(expected.abs().max()) < 0.01
    torch.testing.assert_close(
        y.detach().float(), expected, rtol=0.05, atol=0.03 * float(expected.abs().max())
    )


def test_other_weights_are_refused(backbone: Backbone, spec: AdapterSpec) -> None:
    state = build_adapter(spec, backbone, seed=0).state()
    first = next(iter(state))
    with pytest.raises(StateError, match="incomplete|not"):
        check_layout(spec, {f"{first}.other": state[first]})
    with pytest.raises(StateError, match="shapes"):
        check_layout(spec, {key: value[None] for key, value in state.items()})
    with pytest.raises(StateError, match="neither|that are not"):
        check_layout(spec, state | {first.rsplit(".", 1)[0] + ".alpha": state[first]})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "lokr"}, "lokr.*lora, vera, key_value, spectral"),
        ({"kind": "vera", "rank": 5000}, "5000"),
        ({"kind": "key_value", "text_encoder": True}, "key_value changes"),
        ({"kind": "key_value", "targets": ("attn1.to_k",)}, "key_value changes"),
    ],
)
def test_specs_that_cannot_be_are_refused(values: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        AdapterSpec(**values)


def test_what_a_kind_leaves_open_has_one_value() -> None:
    assert AdapterSpec().rank == 16
    assert AdapterSpec("vera").rank == 256
    assert AdapterSpec("vera").scale == 1.0
    assert AdapterSpec("vera", alpha=3.0) == AdapterSpec("vera")
    assert AdapterSpec("key_value", rank=7, alpha=3.0) == AdapterSpec("key_value")
