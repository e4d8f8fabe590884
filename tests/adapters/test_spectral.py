"""Shifts of singular values: SVDiff on layers of every sort, and what is kept of the base model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lifelong_core.adapters import (
    AdapterSpec,
    SpectralAdapter,
    build_adapter,
    low_rank_factors,
)
from lifelong_core.adapters.distance import change_norm, measured_change
from lifelong_core.adapters.layers import spectral_layers
from lifelong_core.adapters.spectral import shift_sizes
from lifelong_core.adapters.spectrum import decompose, keep_spectrum, load_spectrum, spectrum_of
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.backbone.families import family_named
from lifelong_core.backbone.modules import empty_unet
from lifelong_core.errors import InputError, StateError
from lifelong_core.seeding import generator

SPEC = AdapterSpec("spectral")
INPUTS = {
    "linear": (nn.Linear(6, 5), (4, 6)),
    "wide": (nn.Linear(3, 8, bias=False), (4, 3)),
    "conv": (nn.Conv2d(2, 5, 3, stride=2, padding=1), (2, 7, 7)),
    "point": (nn.Conv2d(6, 3, 1), (6, 4, 4)),
    "group_norm": (nn.GroupNorm(2, 6), (6, 4, 4)),
    "layer_norm": (nn.LayerNorm(6), (4, 6)),
}


@pytest.fixture(params=INPUTS)
def place(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A frozen layer with weights of its own, and an input of two samples with three rows each."""
    layer, shape = INPUTS[request.param]
    for name, value in layer.named_parameters():
        value.requires_grad_(False)
        value.copy_(torch.randn(value.shape, generator=generator(0, request.param, name)))
    return layer, torch.randn(2, 3, *shape, generator=generator(1, request.param))


def on(layer: nn.Module, spread: float = 0.5) -> SpectralAdapter:
    matrix = isinstance(layer, (nn.Linear, nn.Conv2d))
    spectrum = decompose({"x": layer.weight} if matrix else {})
    adapter = SpectralAdapter(SPEC, {"x": layer}, spectrum)
    adapter.load(
        {
            key: spread * torch.randn(value.shape, generator=generator(2, key))
            for key, value in adapter.state().items()
        }
    )
    return adapter


def literal(adapter: SpectralAdapter, layer: nn.Module, x: Tensor) -> Tensor:
    """The layer with weight U diag(ReLU(σ + δ)) Vᵀ, or with a norm's shifted weights, put in."""
    weights = adapter.named_parameters()
    kept = {name: value.detach().clone() for name, value in layer.named_parameters()}
    if "x.shift" in weights:
        flat = layer.weight.flatten(1)
        u, values, vh = torch.linalg.svd(flat, full_matrices=False)
        moved = torch.relu(values + weights["x.shift"])
        changed = {"weight": (u @ torch.diag(moved) @ vh).view_as(layer.weight)}
    else:
        changed = {
            "weight": layer.weight + weights["x.scale"],
            "bias": layer.bias + weights["x.offset"],
        }
    return torch.func.functional_call(layer, kept | changed, (x,))


def test_it_computes_what_the_paper_says(place: tuple[nn.Module, Tensor]) -> None:
    layer, inputs = place
    adapter, x = on(layer), inputs.flatten(0, 1)
    found = adapter.forwards({"x": layer})["x"](x)
    torch.testing.assert_close(found, literal(adapter, layer, x), rtol=1e-4, atol=1e-4)


def test_values_shifted_below_zero_stay_at_zero_and_get_no_gradient() -> None:
    layer = INPUTS["linear"][0]
    adapter = on(layer, spread=10.0)
    (values,) = (parts.values for parts in adapter._spectrum.values())
    dead = adapter.named_parameters()["x.shift"] < -values
    assert 0 < int(dead.sum()) < len(values)
    adapter.forwards({"x": layer})["x"](torch.randn(4, 6)).square().sum().backward()
    gradient = adapter.named_parameters()["x.shift"].grad
    assert torch.equal(gradient == 0, dead)
    again = on(layer)
    again.load(adapter.state())
    assert torch.equal(again.state()["x.shift"] == -values, dead)
    for key, delta in adapter.deltas().items():
        torch.testing.assert_close(again.deltas()[key], delta)


def test_a_settled_adapter_answers_the_same_and_works_weights_out_once(
    place: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, inputs = place
    x = inputs.flatten(0, 1)
    adapter, settled = on(layer), on(layer)
    settled.settle()
    wanted, forward = (one.forwards({"x": layer})["x"] for one in (adapter, settled))
    for strength in (1.0, 0.7, 0.0, 1.0):
        adapter.strength = settled.strength = strength
        assert torch.equal(forward(x), wanted(x))
    with monkeypatch.context() as patch:
        patch.delattr(torch, "addmm")
        assert torch.equal(forward(x), forward(x))
    other = {key: 2 * value for key, value in adapter.state().items()}
    for one in (adapter, settled):
        one.load(other)
    assert torch.equal(forward(x), wanted(x))


def test_gradients_of_single_losses(place: tuple[nn.Module, Tensor]) -> None:
    """`sample_gradients` against one backward pass per sample."""
    layer, inputs = place
    adapter = on(layer, spread=2.0)
    adapter.strength = 0.7
    forward = adapter.forwards({"x": layer})["x"]
    parameters = adapter.named_parameters()
    outputs = [forward(sample) for sample in inputs]
    weights = torch.stack([torch.randn(out.shape, generator=generator(3)) for out in outputs])
    given = inputs if not isinstance(layer, nn.Linear) else inputs.flatten(1, 2)
    seen = weights if not isinstance(layer, nn.Linear) else weights.flatten(1, 2)
    found = adapter.sample_gradients("x", given, seen)
    assert found.keys() == parameters.keys()
    for sample, output in enumerate(outputs):
        loss = (output * weights[sample]).sum()
        expected = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][sample], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_keeps_small_changes(
    place: tuple[nn.Module, Tensor], autocast: bool
) -> None:
    """A change far below bf16's resolution of W still reaches the output."""
    layer, inputs = place
    x = inputs.flatten(0, 1)
    adapter = on(layer, spread=0.01)
    exact = (literal(adapter, layer, x) - layer(x)).detach()
    other = layer if autocast else copy.deepcopy(layer).bfloat16()
    forward = adapter.forwards({"x": other})["x"]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        given = x if autocast else x.bfloat16()
        change = forward(given).float() - other(given).float()
    # The sum is rounded to bf16 once; what remains points the exact change's way.
    cosine = torch.cosine_similarity(change.flatten(), exact.flatten(), dim=0)
    assert cosine.item() > 0.7
    assert 0.5 < (change.norm() / exact.norm()).item() < 2.0


def test_stable_diffusion_1_has_423016_of_them() -> None:
    layers = spectral_layers(empty_unet(family_named("sd1")))
    sizes = [shift_sizes(layer) for layer in layers.values()]
    values = sum(parts["shift"] for parts in sizes if "shift" in parts)
    norms = sum(sum(parts.values()) for parts in sizes if "shift" not in parts)
    assert (values, norms) == (222_696, 200_320)
    assert sum("shift" in parts for parts in sizes) == 282


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def test_all_weights_of_the_unet_are_decomposed_once(backbone: Backbone) -> None:
    spectrum = spectrum_of(backbone)
    assert spectrum_of(backbone) is spectrum
    layers = spectral_layers(backbone.unet)
    named = {f"unet.{name.rpartition('.')[0]}" for name, _ in backbone.unet.named_parameters()}
    assert named == set(layers), "a parameter of the UNet belongs to no layer of the adapter"
    for key, (left, values, right) in list(spectrum.items())[::9]:
        weight = layers[key].weight.flatten(1)
        torch.testing.assert_close(left @ torch.diag(values) @ right, weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(left.mT @ left, torch.eye(len(values)), rtol=0, atol=1e-5)
    assert build_adapter(SPEC, backbone, seed=0)._spectrum is spectrum


class Base:
    """As much of a base model as a decomposition looks at."""

    fingerprint, device = "demo-v_prediction-0", torch.device("cpu")

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        layers = nn.Sequential(INPUTS["linear"][0], INPUTS["conv"][0], INPUTS["group_norm"][0])
        self.unet = copy.deepcopy(layers).to(dtype)


def test_what_lies_in_the_folder_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also for another copy of the base model, in another precision."""
    first, second = Base(), Base(torch.bfloat16)
    for base in (first, second):
        keep_spectrum(base, SPEC, tmp_path)
        keep_spectrum(base, AdapterSpec(), tmp_path / "elsewhere")
    assert list(spectrum_of(first)) == list(spectrum_of(second)) == ["unet.0", "unet.1"]
    for key, parts in spectrum_of(first).items():
        for mine, kept in zip(parts, spectrum_of(second)[key], strict=True):
            assert mine.dtype == torch.float32 and torch.equal(mine, kept)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert load_spectrum(first.fingerprint, tmp_path) is None
    assert "again" in caplog.text
    assert load_spectrum("sd1-epsilon-0", tmp_path) is None


def test_half_models_keep_fine_vectors_and_exact_values() -> None:
    for left, values, right in spectrum_of(Base(torch.bfloat16)).values():
        assert (left.dtype, values.dtype, right.dtype) == (
            torch.float16, torch.float32, torch.float16,
        )  # fmt: skip


def test_what_it_cannot_do_is_refused(backbone: Backbone) -> None:
    with pytest.raises(InputError, match="text encoder"):
        AdapterSpec("spectral", text_encoder=True)
    with pytest.raises(StateError, match="stack"):
        build_adapter(SPEC, backbone, seed=0).rest_on({})
    with pytest.raises(StateError, match="no LoRA by itself"):
        low_rank_factors(SPEC, build_adapter(SPEC, backbone, seed=0).state(), {})
    assert AdapterSpec("spectral", rank=7, alpha=3.0, targets=("attn1.to_q",)) == SPEC


def test_distances_are_known_without_the_base_model(backbone: Backbone) -> None:
    adapters = []
    for seed in (0, 1):
        adapter = build_adapter(SPEC, backbone, seed=0)
        adapter.load(
            {
                key: torch.randn(value.shape, generator=generator(seed, key)) * 0.3
                for key, value in adapter.state().items()
            }
        )
        adapters.append(adapter)
    one, other = ({k: v.detach() for k, v in adapter.deltas().items()} for adapter in adapters)
    offsets = [v - adapters[1].state()[k] for k, v in adapters[0].state().items() if "offset" in k]
    squares = [(one[key] - other[key]).square().sum() for key in one]
    expected = torch.stack([*squares, *(offset.square().sum() for offset in offsets)]).sum().sqrt()
    found = change_norm(*(measured_change(SPEC, adapter.state(), {}) for adapter in adapters))
    assert found == pytest.approx(expected.item(), rel=1e-4)
