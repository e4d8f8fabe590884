"""Sharing keys and values between rows changes nothing but the work."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.adapters import AdapterSpec, LoraAdapter, build_adapter
from lifelong_core.backbone import Backbone, Conditioning, random_backbone
from lifelong_core.objectives import Predictor
from lifelong_core.seeding import generator

ROWS = torch.tensor([1, 0, 1, 1])


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


@pytest.fixture(scope="module")
def adapter(backbone: Backbone) -> LoraAdapter:
    adapter = build_adapter(AdapterSpec(rank=4), backbone, seed=0)
    draw = generator(0, "weights")
    adapter.load(
        {k: torch.randn(v.shape, generator=draw) * 0.05 for k, v in adapter.state().items()}
    )
    return adapter


def gradients(
    backbone: Backbone, adapter: LoraAdapter, shared: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Output, and gradients of the context and of every adapter weight."""
    draw = generator(1, "inputs")
    latents = torch.randn(4, 4, 8, 8, generator=draw)
    steps = torch.randint(1000, (4,), generator=draw)
    context = torch.randn(2, 77, 128, generator=draw).requires_grad_()
    weights = torch.randn(4, 4, 8, 8, generator=draw)
    predictor = Predictor(backbone)
    with adapter.attached(backbone):
        if shared:
            output = predictor(latents, steps, Conditioning(context), ROWS)
        else:
            output = backbone.predict(latents, steps, Conditioning(context[ROWS]))
        inputs = [context, *adapter.named_parameters().values()]
        return output, list(torch.autograd.grad((output * weights).sum(), inputs))


def test_output_and_gradients_are_those_of_the_plain_call(
    backbone: Backbone, adapter: LoraAdapter
) -> None:
    plain, expected = gradients(backbone, adapter, shared=False)
    shared, actual = gradients(backbone, adapter, shared=True)
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-4)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_keys_and_values_are_computed_once_per_prompt(backbone: Backbone) -> None:
    seen: list[int] = []
    layer = backbone.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    layer.forward = lambda x: seen.append(len(x)) or type(layer).forward(layer, x)
    try:
        context = Conditioning(torch.zeros(2, 77, 128))
        with torch.no_grad():
            Predictor(backbone)(torch.zeros(4, 4, 8, 8), torch.zeros(4).long(), context, ROWS)
    finally:
        del layer.forward
    assert seen == [2]


def test_the_model_is_left_as_it_was_even_after_an_error(backbone: Backbone) -> None:
    with pytest.raises(RuntimeError):
        Predictor(backbone)(
            torch.zeros(4, 4, 8, 8),
            torch.zeros(3).long(),
            Conditioning(torch.zeros(2, 77, 128)),
            ROWS,
        )
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())


def test_gradient_checkpointing_gives_the_same_gradients(
    backbone: Backbone, adapter: LoraAdapter
) -> None:
    _, expected = gradients(backbone, adapter, shared=True)
    backbone.gradient_checkpointing(True)
    try:
        _, actual = gradients(backbone, adapter, shared=True)
    finally:
        backbone.gradient_checkpointing(False)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_pooled_prompts_follow_their_rows() -> None:
    """SDXL's pooled part, seen by a UNet that only looks at what it is given."""

    class Recorder(torch.nn.Module):
        is_gradient_checkpointing = False

    class Fake:
        unet, device, dtype = Recorder(), torch.device("cpu"), torch.float32

        def predict(self, latents, timesteps, conditioning):  # noqa: ANN001, ANN202
            return conditioning.pooled

    prompts = Conditioning(torch.zeros(2, 77, 8), torch.tensor([[5.0], [7.0]]))
    output = Predictor(Fake())(torch.zeros(4, 4, 8, 8), torch.zeros(4), prompts, ROWS)
    assert output.flatten().tolist() == [7.0, 5.0, 7.0, 7.0]
