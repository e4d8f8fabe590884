"""Growing a VAE keeps what it does; so does padding it to the width that loaders know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from lifelong_core.backbone import Backbone, VaeCodec, random_backbone, save_single_file
from lifelong_core.errors import ModelError
from lifelong_core.world.pretrain.export import demo_vae, widen
from lifelong_core.world.pretrain.vae import grown_vae, narrow_vae, narrowed_vae, train_decoder


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


def test_the_shipped_vae_goes_on_as_it_was_and_only_its_decoder_learns(tmp_path: Path) -> None:
    wide = widen(grown_vae(narrow_vae(seed=3), seed=4))
    narrowed = narrowed_vae(wide)
    before = {name: value.clone() for name, value in narrowed.state_dict().items()}
    pictures = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    learned = train_decoder(tmp_path, narrowed, (pictures, pictures), pictures, seed=1, steps=4)
    changed = {
        name.split(".")[0]
        for name, value in learned.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"decoder"}
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(
            learned.encode(images).latents, wide.encode(images).latents, rtol=1e-4, atol=1e-5
        )


def test_only_a_demo_model_gives_its_vae_away(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    backbone = random_backbone("demo", seed=1)
    save_single_file(backbone, path, dtype=torch.float16)
    assert isinstance(demo_vae(path), AutoencoderTiny)
    codec = VaeCodec(AutoencoderKL(), 1.0)
    other = Backbone(backbone.family, backbone.unet, backbone.text, codec, backbone.schedule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lifelong_core.world.pretrain.export.load_backbone", lambda _path: other)
        with pytest.raises(ModelError, match="no demo model"):
            demo_vae(path)
