"""Training the demo model's VAE (TAESD architecture, latents 4 x 16 x 16 for 128 x 128 pixels)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ...seeding import generator
from .dataset import to_images
from .muon import Muon, split_parameters
from .stage import Stage, run_stage

CROP = 64
BATCH = 16
NOISE = 0.08  # added to latents, so that the decoder forgives what the UNet gets slightly wrong


def new_vae(width: int = 64, seed: int = 0) -> AutoencoderTiny:
    """A fresh VAE in channels-last layout (twice as fast on CPU)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(width,) * 4, decoder_block_out_channels=(width,) * 4
        )
    return vae.to(memory_format=torch.channels_last)


def train_vae(
    folder: Path,
    pictures: np.ndarray,
    held_out: np.ndarray,
    *,
    seed: int,
    seconds: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    width: int = 64,
) -> AutoencoderTiny:
    """Train (or load) the VAE on `pictures` uint8 [N, 128, 128, 3]."""
    vae = new_vae(width, seed).to(device).train()
    matrices, rest = split_parameters(vae)

    def loss(step: int) -> Tensor:
        draw = generator(seed, "vae", step)
        images = (
            random_crops(pictures, draw).to(device).contiguous(memory_format=torch.channels_last)
        )
        noise = torch.randn(BATCH, 4, CROP // 8, CROP // 8, generator=draw).to(device)
        with torch.autocast(images.device.type, torch.bfloat16):
            latents = vae.encode(images * 2 - 1).latents
            decoded = vae.decode(latents + NOISE * noise).sample / 2 + 0.5
        return reconstruction_loss(decoded.float(), images) + latent_penalty(latents.float())

    stage = Stage(
        "vae",
        folder,
        vae,
        [Muon(matrices, 1.5e-3), torch.optim.AdamW(rest, 1.5e-3, (0.9, 0.99), weight_decay=0.0)],
        loss,
        measure=lambda: {"psnr_db": psnr(vae, held_out, device)},
        ema=0.995,
    )
    run_stage(stage, seconds=seconds, steps=steps)
    return vae.eval()


def random_crops(pictures: np.ndarray, draw: torch.Generator) -> Tensor:
    """[BATCH, 3, CROP, CROP] from random pictures, seven in ten around the middle (on objects)."""
    size = pictures.shape[1]
    index = torch.randint(len(pictures), (BATCH,), generator=draw).tolist()
    corner = torch.rand(BATCH, 2, generator=draw) * (size - CROP)
    central = torch.rand(BATCH, generator=draw) < 0.7
    # The mean of three draws gathers around the middle, where the objects are.
    middle = torch.rand(BATCH, 2, 3, generator=draw).mean(2) * (size - CROP)
    corner = torch.where(central[:, None], middle, corner).round().int().tolist()
    places = zip(index, corner, strict=True)
    return to_images(np.stack([pictures[i, y : y + CROP, x : x + CROP] for i, (y, x) in places]))


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 + MSE / 2 + difference of gradients / 2: flat areas and outlines both count."""
    error = decoded - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * error.square().mean() + 0.5 * edges


def latent_penalty(latents: Tensor) -> Tensor:
    """Keep every latent channel near mean 0 and variance 1, as the noise schedule expects."""
    mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
    return 0.01 * (mean.square().mean() + (variance - 1).square().mean())


@torch.no_grad()
def psnr(vae: AutoencoderTiny, pictures: np.ndarray, device: str = "cpu") -> float:
    """Peak signal-to-noise ratio in dB of the reconstruction of `pictures` [N, H, W, 3]."""
    errors = []
    for start in range(0, len(pictures), 32):
        images = to_images(pictures[start : start + 32]).to(device)
        decoded = (vae.decode(vae.encode(images * 2 - 1).latents).sample / 2 + 0.5).clamp(0, 1)
        errors.append((decoded.float() - images).square().mean((1, 2, 3)).cpu())
    return float(-10 * torch.cat(errors).mean().log10())
