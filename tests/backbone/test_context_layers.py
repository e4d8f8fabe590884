"""A UNet whose cross-attention layers are each given a context of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from lifelong_core.attention.capture import watching
from lifelong_core.backbone import Backbone, Conditioning, random_backbone
from lifelong_core.backbone.context_layers import family_context_layers
from lifelong_core.objectives import Predictor
from lifelong_core.seeding import generator

NAMES = family_context_layers("demo")
STEPS = torch.tensor([10, 500, 900])
ROWS = torch.tensor([1, 0, 1])


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=8)


def latents() -> Tensor:
    return torch.randn(3, 4, 8, 8, generator=generator(1, "latents"))


def layered(rows: int = 2) -> Conditioning:
    draw = generator(2, "context")
    context = torch.randn(rows, 77, 128, generator=draw)
    return Conditioning(context, None, torch.randn(rows, len(NAMES), 77, 128, generator=draw))


@contextmanager
def keys_and_values(backbone: Backbone) -> Iterator[dict[str, Tensor]]:
    """What goes into every layer's key and value, in the order in which they run."""
    seen: dict[str, Tensor] = {}
    handles = [
        backbone.unet.get_submodule(f"{name}.{part}").register_forward_pre_hook(
            lambda module, args, key=f"{name}.{part}": seen.update({key: args[0].detach().clone()})
        )
        for name in NAMES
        for part in ("to_k", "to_v")
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def test_every_layers_keys_and_values_are_of_its_own_context(backbone: Backbone) -> None:
    given = layered()[ROWS]
    with keys_and_values(backbone) as seen:
        backbone.predict(latents(), STEPS, given)
    assert list(seen) == [f"{name}.{part}" for name in NAMES for part in ("to_k", "to_v")]
    for number, name in enumerate(NAMES):
        for part in ("to_k", "to_v"):
            assert torch.equal(seen[f"{name}.{part}"], given.at_layer(number))


@torch.no_grad()
def test_another_context_of_one_layer_changes_that_layer_alone(backbone: Backbone) -> None:
    first = layered()[ROWS]
    assert first.layers is not None
    moved = first.layers.clone()
    moved[:, 6] += 1.0
    with keys_and_values(backbone) as seen:
        one = backbone.predict(latents(), STEPS, first)
        before = dict(seen)
        other = backbone.predict(latents(), STEPS, Conditioning(first.context, None, moved))
    changed = {key for key, value in before.items() if not torch.equal(value, seen[key])}
    assert changed == {f"{NAMES[6]}.to_k", f"{NAMES[6]}.to_v"}
    assert not torch.equal(one, other)


@torch.no_grad()
def test_another_vector_of_one_layer_changes_that_layer_alone(backbone: Backbone) -> None:
    """From the token's vectors to the UNet, although their mean changes too."""
    vectors = torch.randn(len(NAMES), 2, 128, generator=generator(3, "vectors")) * 0.02
    moved = vectors.clone()
    moved[4] += 0.02
    found = []
    for own in (vectors, moved):
        prompts = backbone.text.encode(["a embedding:rex dog"] * 3, {"rex": {"clip_l": own}})
        with keys_and_values(backbone) as seen:
            backbone.predict(latents(), STEPS, prompts)
        found.append(dict(seen))
    changed = {key for key, value in found[0].items() if not torch.equal(value, found[1][key])}
    assert changed == {f"{NAMES[4]}.to_k", f"{NAMES[4]}.to_v"}


@torch.no_grad()
def test_one_context_repeated_is_that_context_bit_for_bit(backbone: Backbone) -> None:
    context = layered().context[ROWS]
    repeated = context[:, None].expand(-1, len(NAMES), -1, -1)
    plain = backbone.predict(latents(), STEPS, Conditioning(context))
    same = backbone.predict(
        latents(), STEPS, Conditioning(torch.zeros_like(context), None, repeated)
    )
    assert torch.equal(plain, same)


def test_shared_keys_and_values_and_checkpointing_change_nothing(backbone: Backbone) -> None:
    """Checkpointing runs the layers a second time, when the call is over."""
    given, found = layered(), []
    for way in ("plain", "shared", "checkpointed"):
        layers = given.layers.clone().requires_grad_()
        prompts = Conditioning(given.context, None, layers)
        with backbone.checkpointed(way == "checkpointed"):
            if way == "plain":
                output = backbone.predict(latents(), STEPS, prompts[ROWS])
            else:
                output = Predictor(backbone)(latents(), STEPS, prompts, ROWS)
            (gradient,) = torch.autograd.grad(output.square().sum(), layers)
        found.append((output.detach(), gradient))
    for output, gradient in found[1:]:
        torch.testing.assert_close(output, found[0][0], rtol=1e-4, atol=1e-4)
        scale = float(found[0][1].abs().max())
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-3 * scale)
    assert bool((found[0][1].abs().amax((2, 3)) > 0).all())


@torch.no_grad()
def test_hooks_on_shared_layers_see_every_rows_own_context(backbone: Backbone) -> None:
    """Gradients of single samples are put together from it."""
    given = layered()
    with keys_and_values(backbone) as seen:
        Predictor(backbone)(latents(), STEPS, given, ROWS)
    for number, name in enumerate(NAMES):
        for part in ("to_k", "to_v"):
            assert torch.equal(seen[f"{name}.{part}"], given.at_layer(number)[ROWS])


@torch.no_grad()
def test_captured_maps_see_the_layers_own_context(backbone: Backbone) -> None:
    given, seen = layered()[ROWS], {}
    with watching(backbone.unet, NAMES, lambda name, _l, _h, context: seen.update({name: context})):
        backbone.predict(latents(), STEPS, given)
    for number, name in enumerate(NAMES):
        assert torch.equal(seen[name], given.at_layer(number))
