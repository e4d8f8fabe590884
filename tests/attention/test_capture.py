"""Maps out of a diffusers UNet: what is read, where the pass ends, and that nothing changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lifelong_core.attention import (
    ConditionalBranch,
    GuidanceSettings,
    PromptPlaces,
    Step,
    WordPlaces,
    guidance_loss,
    guided_latent,
    map_blocks,
    map_layers,
    map_size,
)
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.seeding import generator

PLACES = PromptPlaces((WordPlaces((4,), (5,)), WordPlaces((8,), (9,))), 77)
CAA = GuidanceSettings(caa=1.0)
PROMPTS = ["a photo of a red dog and a blue cat", "a photo of a big cat and a small dog"]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=0)


def _latents(rows: int = 2) -> Tensor:
    return torch.randn(rows, 4, 16, 16, generator=generator(0, "latents"))


def _branch(backbone: Backbone, prompts: list[str] = PROMPTS) -> ConditionalBranch:
    return ConditionalBranch(backbone, backbone.text.encode(prompts), torch.tensor(700), (128, 128))


def test_sd_reads_five_layers_at_a_quarter_of_the_latents() -> None:
    layers = map_layers("sd1")
    assert sorted(name.split(".transformer")[0] for name in layers) == [
        "down_blocks.2.attentions.0",
        "down_blocks.2.attentions.1",
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.1",
        "up_blocks.1.attentions.2",
    ]
    wanted = {
        ("input", 7, 0),
        ("input", 8, 0),
        ("output", 3, 0),
        ("output", 4, 0),
        ("output", 5, 0),
    }
    assert set(map_blocks("sd1")) == set(map_blocks("sd2")) == wanted
    assert map_size("sd1", (64, 98)) == (16, 25)


def test_sdxl_and_the_demo_read_what_they_have() -> None:
    assert len(map_layers("sdxl")) == 60
    assert {block[:2] for block in map_blocks("sdxl")} == {
        ("input", 7),
        ("input", 8),
        ("middle", 0),
        ("output", 0),
        ("output", 1),
        ("output", 2),
    }
    assert map_blocks("demo") == (("output", 4, 0),)
    assert map_size("demo", (16, 16)) == (16, 16)


def test_maps_are_the_layers_probabilities(backbone: Backbone) -> None:
    """Against the layer's own explicit computation in diffusers."""
    name = map_layers("demo")[0]
    layer = backbone.unet.get_submodule(name)
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        query = layer.head_to_batch_dim(layer.to_q(args[0]))
        key = layer.head_to_batch_dim(layer.to_k(kwargs["encoder_hidden_states"]))
        scores = layer.get_attention_scores(query, key)
        seen.append(scores.unflatten(0, (-1, layer.heads)).mean(1))

    got: list[Tensor] = []

    def stop(maps: Tensor, size: tuple[int, int]) -> bool:
        assert size == (16, 16)
        got.append(maps)
        return False

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    _branch(backbone)(_latents(), stop)
    handle.remove()
    assert torch.allclose(got[0], seen[0], atol=1e-6)
    assert torch.allclose(got[0].sum(-1), torch.ones(2, 256), atol=1e-5)


def test_the_pass_ends_at_the_last_layer_that_is_read(backbone: Backbone) -> None:
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in backbone.unet.named_modules()
        if name
    ]
    moved = guided_latent(_latents(), _branch(backbone), [PLACES] * 2, CAA, Step(0, 10))
    early = set(ran)
    for handle in handles:
        handle.remove()
    assert moved.moved
    last = map_layers("demo")[-1]
    assert f"{last}.to_q" in early and f"{last}.to_v" not in early
    later = ("up_blocks.2.attentions.1", "up_blocks.2.resnets.1", "conv_out", "conv_norm_out")
    assert not any(name.startswith(later) for name in early)


def test_the_gradient_is_that_of_the_whole_pass(backbone: Backbone) -> None:
    latents, branch = _latents(), _branch(backbone)
    moved = guided_latent(latents, branch, [PLACES] * 2, CAA, Step(0, 10)).latents
    losses: list[Tensor] = []

    def read(maps: Tensor, size: tuple[int, int]) -> bool:
        losses.append(guidance_loss(maps, size, [PLACES] * 2, CAA).sum())
        return True

    leaf = latents.clone().requires_grad_(True)
    assert branch(leaf, read) is not None
    (gradient,) = torch.autograd.grad(losses[0], leaf)
    assert gradient.abs().max() > 0
    assert torch.allclose(moved, latents - 20 / 16 * gradient, atol=1e-5)


def test_pictures_and_prompts_of_a_batch_do_not_mix(backbone: Backbone) -> None:
    both = guided_latent(_latents(), _branch(backbone), [PLACES] * 2, CAA, Step(0, 10)).latents
    second = guided_latent(
        _latents()[1:], _branch(backbone, PROMPTS[1:]), [PLACES], CAA, Step(0, 10)
    ).latents
    assert torch.allclose(both[1:], second, atol=1e-5)


def test_an_unmoved_latents_output_is_the_plain_one_bit_by_bit(backbone: Backbone) -> None:
    branch, latents = _branch(backbone), _latents()
    with torch.no_grad():
        timesteps = torch.tensor([700, 700])
        plain = backbone.predict(latents, timesteps, branch.conditioning, (128, 128))

    def go_on(maps: Tensor, size: tuple[int, int]) -> bool:
        return True

    with torch.no_grad():
        again = branch(latents, go_on)
    assert again is not None and torch.equal(again, plain)


def test_nothing_is_left_behind_when_the_pass_is_stopped(backbone: Backbone) -> None:
    class Stop(BaseException):
        pass

    def interrupt(maps: Tensor, size: tuple[int, int]) -> bool:
        raise Stop

    branch, latents = _branch(backbone), _latents()
    with torch.no_grad():
        before = backbone.predict(latents, torch.tensor([700, 700]), branch.conditioning)
    layer = backbone.unet.get_submodule(map_layers("demo")[0])
    hooks = list(layer._forward_pre_hooks)
    with pytest.raises(Stop):
        branch(latents.requires_grad_(True), interrupt)
    assert list(layer._forward_pre_hooks) == hooks
    with torch.no_grad():
        after = backbone.predict(latents.detach(), torch.tensor([700, 700]), branch.conditioning)
    assert torch.equal(before, after)
    assert all(parameter.grad is None for parameter in backbone.unet.parameters())


def test_attention_slicing_changes_nothing(backbone: Backbone) -> None:
    plain = guided_latent(_latents(), _branch(backbone), [PLACES] * 2, CAA, Step(0, 10)).latents
    backbone.unet.set_attention_slice(1)
    try:
        sliced = guided_latent(_latents(), _branch(backbone), [PLACES] * 2, CAA, Step(0, 10))
    finally:
        backbone.unet.set_default_attn_processor()
    assert torch.allclose(plain, sliced.latents, atol=1e-4)
