"""Training the demo model's VAE (TAESD architecture, latents 4 x 16 x 16 for 128 x 128 pixels)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn

from ...seeding import generator
from .dataset import to_images
from .muon import Muon, split_parameters
from .parallel import share
from .stage import Stage, run_stage

CROP = 64
BATCH = 16
NOISE = 0.08  # added to latents, so that the decoder forgives what the UNet gets slightly wrong
NARROW, WIDE = 32, 64  # channels
ANCHOR = 0.01


def narrow_vae(seed: int = 0) -> AutoencoderTiny:
    """A fresh VAE, NARROW throughout, in channels-last layout (twice as fast on CPU)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(NARROW,) * 4, decoder_block_out_channels=(NARROW,) * 4
        )
    return vae.to(memory_format=torch.channels_last)


def grown_vae(narrow: AutoencoderTiny, seed: int = 0) -> AutoencoderTiny:
    """The same function with room to learn: WIDE below full resolution, where width is cheap.

    New channels begin at random and unheard: what already was does not listen to them yet.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderTiny()
        encoder, decoder = vae.encoder.layers, vae.decoder.layers
        encoder[0] = nn.Conv2d(3, NARROW, 3, padding=1)
        encoder[1] = AutoencoderTinyBlock(NARROW, NARROW, "relu")
        encoder[2] = nn.Conv2d(NARROW, WIDE, 3, padding=1, stride=2, bias=False)
        decoder[-3] = nn.Conv2d(WIDE, NARROW, 3, padding=1, bias=False)
        decoder[-2] = AutoencoderTinyBlock(NARROW, NARROW, "relu")
        decoder[-1] = nn.Conv2d(NARROW, 3, 3, padding=1)
    old = narrow.state_dict()
    vae.load_state_dict({name: _grow(old[name], new) for name, new in vae.state_dict().items()})
    return vae.to(memory_format=torch.channels_last)


def narrowed_vae(wide: AutoencoderTiny) -> AutoencoderTiny:
    """The grown VAE in a checkpoint's, whose narrow layers were padded with zeros for loaders."""
    vae = grown_vae(narrow_vae())
    padded = wide.state_dict()
    own = {name: _cut(padded[name], value) for name, value in vae.state_dict().items()}
    vae.load_state_dict(own)
    return vae


def _cut(padded: Tensor, like: Tensor) -> Tensor:
    return padded[tuple(slice(size) for size in like.shape)].float()


def _grow(old: Tensor, new: Tensor) -> Tensor:
    grown = new.clone()
    if new.ndim > 1:
        grown[: len(old)] = 0
    grown[tuple(slice(size) for size in old.shape)] = old
    return grown


def train_vae(
    folder: Path,
    pictures: np.ndarray,
    held_out: np.ndarray,
    *,
    seed: int,
    seconds: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    narrow: AutoencoderTiny | None = None,
) -> AutoencoderTiny:
    """Train (or load) the VAE on `pictures` uint8 [N, 128, 128, 3].

    Without `narrow` a narrow one from nothing, else `narrow` grown. The grown one's latents stay
    near the narrow one's, so that a UNet which learned on those need not start again.
    """
    vae = (grown_vae(narrow, seed) if narrow else narrow_vae(seed)).to(device).train()
    matrices, rest = split_parameters(vae)

    def loss(step: int) -> Tensor:
        images, noise = _batch(pictures, generator(seed, "vae", step), device)
        with torch.autocast(images.device.type, torch.bfloat16):
            latents = vae.encode(images * 2 - 1).latents
            decoded = vae.decode(latents + NOISE * noise).sample / 2 + 0.5
            value = reconstruction_loss(decoded.float(), images) + latent_penalty(latents.float())
            if narrow:
                with torch.no_grad():
                    before = narrow.encode(images * 2 - 1).latents
                value = value + ANCHOR * (latents - before).float().square().mean()
        return value

    stage = Stage(
        "vae_grown" if narrow else "vae",
        folder,
        vae,
        [Muon(matrices, 1.5e-3), torch.optim.AdamW(rest, 1.5e-3, (0.9, 0.99), weight_decay=0.0)],
        loss,
        measure=lambda: {"psnr_db": psnr(vae, held_out, device)},
        ema=0.995,
    )
    run_stage(stage, seconds=seconds, steps=steps)
    return vae.eval()


def train_decoder(
    folder: Path,
    vae: AutoencoderTiny,
    pictures: Sequence[np.ndarray],
    held_out: np.ndarray,
    *,
    seed: int,
    seconds: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
) -> AutoencoderTiny:
    """Train (or load) the decoder of `vae` further, on all `pictures` in equal parts.

    The encoder stays, so that a UNet's latents keep their meaning.
    """
    vae = vae.to(device).eval()
    vae.requires_grad_(False).decoder.requires_grad_(True).train()
    matrices, rest = split_parameters(vae.decoder)

    def loss(step: int) -> Tensor:
        chosen = pictures[step % len(pictures)]
        images, noise = _batch(chosen, generator(seed, "decoder", step), device)
        with torch.autocast(images.device.type, torch.bfloat16):
            latents = vae.encode(images * 2 - 1).latents
            decoded = vae.decode(latents + NOISE * noise).sample / 2 + 0.5
            return reconstruction_loss(decoded.float(), images)

    stage = Stage(
        "vae_decoder",
        folder,
        vae.decoder,
        [Muon(matrices, 1e-3), torch.optim.AdamW(rest, 1e-3, (0.9, 0.99), weight_decay=0.0)],
        loss,
        measure=lambda: {"psnr_db": psnr(vae, held_out, device)},
        ema=0.995,
    )
    run_stage(stage, seconds=seconds, steps=steps)
    return vae.requires_grad_(False).eval()


def _batch(pictures: np.ndarray, draw: torch.Generator, device: str) -> tuple[Tensor, Tensor]:
    """This process's crops, and noise for their latents."""
    images = share(random_crops(pictures, draw)).to(device)
    noise = share(torch.randn(BATCH, 4, CROP // 8, CROP // 8, generator=draw)).to(device)
    return images.contiguous(memory_format=torch.channels_last), noise


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
