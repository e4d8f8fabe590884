"""Growing a VAE keeps what it does; so does padding it to the width that loaders know."""

from __future__ import annotations

import torch

from lifelong_core.world.pretrain.export import widen
from lifelong_core.world.pretrain.vae import grown_vae, narrow_vae


@torch.no_grad()
def test_growing_and_padding_keep_the_function() -> None:
    narrow = narrow_vae(seed=3)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = narrow.encode(images).latents
    decoded = narrow.decode(latents).sample
    for vae in (grown_vae(narrow, seed=4), widen(grown_vae(narrow, seed=4)), widen(narrow)):
        torch.testing.assert_close(vae.encode(images).latents, latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vae.decode(latents).sample, decoded, rtol=1e-4, atol=1e-5)


def test_what_has_grown_can_learn() -> None:
    grown = grown_vae(narrow_vae(seed=3), seed=4)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    grown.decode(grown.encode(images).latents).sample.square().mean().backward()
    listening = grown.encoder.layers[-1].weight.grad[:, 32:]  # old outputs to new channels
    assert listening.abs().sum() > 0
