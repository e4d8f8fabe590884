"""The cheaper layers give what the UNet's own give, in value and gradient."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.backbone import Backbone, Conditioning, random_backbone
from lifelong_core.seeding import generator
from lifelong_core.training.cpu import cheaper_layers


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def run(backbone: Backbone, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = generator(0, "inputs", size)
    latents = torch.randn(2, 4, size, size, generator=draw).requires_grad_()
    context = Conditioning(torch.randn(2, 77, 128, generator=draw))
    output = backbone.predict(latents, torch.tensor([3, 700]), context)
    weights = torch.randn(output.shape, generator=draw)
    return output.detach(), torch.autograd.grad((output * weights).sum(), latents)[0]


@pytest.mark.parametrize("size", [8, 10])
def test_output_and_gradient_are_the_same(backbone: Backbone, size: int) -> None:
    """Size 10 leaves an odd size inside, where doubling has to meet the other branch's size."""
    expected = run(backbone, size)
    with cheaper_layers(backbone.unet):
        actual = run(backbone, size)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
    assert all(torch.equal(a, b) for a, b in zip(run(backbone, size), expected, strict=True))


def test_both_kinds_of_layers_are_replaced_and_put_back(backbone: Backbone) -> None:
    def replaced() -> list[str]:
        return [
            type(module).__name__
            for module in backbone.unet.modules()
            if "forward" in module.__dict__
        ]

    with cheaper_layers(backbone.unet):
        assert sorted(replaced()) == ["GEGLU"] * 10 + ["Upsample2D"] * 2
    assert not replaced()


def test_half_precision_is_left_alone() -> None:
    half = random_backbone("demo", dtype=torch.bfloat16)
    with cheaper_layers(half.unet):
        assert not any("forward" in module.__dict__ for module in half.unet.modules())


def test_it_goes_together_with_an_adapter(backbone: Backbone) -> None:
    adapter = build_adapter(AdapterSpec(rank=2), backbone, seed=0)
    with adapter.attached(backbone), cheaper_layers(backbone.unet):
        run(backbone, 8)
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())
