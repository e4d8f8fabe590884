"""Runs inside ComfyUI's own process: starting from a picture, by the library and by KSampler."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from inside import backbone, loaded, pack, torch

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
import nodes

PROMPT, SEED, STEPS, SIDE = "a photo of a red dog", 3, 5, 64
BAR = 1e-3
"""Relative: the two compute noise levels and timesteps in different precision."""


def compared(strength: float, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents by `generate` and by the stock nodes, from the same noise."""
    model, clip, vae = loaded()
    source = torch.Generator().manual_seed(2)
    picture = torch.rand(1, 3, SIDE, SIDE, generator=source)
    start = pack("lifelong_core.picture_start").PictureStart(picture, strength, mask)
    with backbone(model, clip, vae) as copy:
        ours = pack("lifelong_core.sampling").generate(
            copy, [PROMPT], seed=SEED, steps=STEPS, guidance=4.0, start=start, as_latents=True
        )
    drawn = pack("lifelong_core.seeding").generator(SEED, "noise", 0)
    noise = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=drawn)
    with torch.inference_mode(), patch("comfy.sample.prepare_noise", lambda *_: noise):
        positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, ""))
        latent: dict[str, Any] = nodes.VAEEncode().encode(vae, picture.permute(0, 2, 3, 1))[0]
        if mask is not None:
            latent = nodes.SetLatentNoiseMask().set_mask(latent, mask)[0]
        done = nodes.KSampler().sample(
            model, SEED, STEPS, 4.0, "dpmpp_2m", "karras", positive, negative, latent, strength
        )[0]["samples"]
        theirs = model.model.process_latent_in(done).clone()
    return ours, theirs


def check_image_to_image_is_ksamplers() -> None:
    for strength in (0.35, 0.6):
        ours, theirs = compared(strength, None)
        assert (ours - theirs).norm() < BAR * theirs.norm(), strength


def check_inpainting_is_ksamplers() -> None:
    mask = torch.zeros(SIDE, SIDE)
    mask[:, SIDE // 2 :] = 1
    ours, theirs = compared(0.6, mask)
    assert (ours - theirs).norm() < BAR * theirs.norm()
