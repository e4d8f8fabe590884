"""Generating pictures from a base model and whatever adapters are attached to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from .backbone import Backbone, Conditioning, NoiseSchedule
from .backbone.families import DOWNSCALE
from .errors import InputError
from .prompts import ConceptVectors
from .seeding import generator

StepCallback = Callable[[int, int], None]
"""Called after every denoising step with (steps done, steps in all), over all batches."""


@torch.no_grad()
def generate(
    backbone: Backbone,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int = 20,
    guidance: float | None = None,
    negative: str = "",
    size: tuple[int, int] | None = None,
    vectors: Mapping[str, ConceptVectors] | None = None,
    batch_size: int = 8,
    as_latents: bool = False,
    autocast: torch.dtype | None = None,
    on_progress: StepCallback | None = None,
) -> Tensor:
    """One picture per prompt: [B, 3, H, W] in [0, 1], or latents [B, 4, h, w]; fp32, on the CPU.

    DPM-Solver++(2M) (Lu et al. 2022) on Karras' noise levels, classifier-free guidance in one
    batch (none at `guidance` 1). Picture i starts from the noise of (`seed`, i), so `batch_size`
    does not change it. `guidance` and `size` (height, width) default to the family's; `autocast`
    is the dtype for mixed precision. Raises InputError for settings that cannot be used.
    """
    family = backbone.family
    height, width = size or (family.default_size, family.default_size)
    _check(steps, batch_size, height, width)
    scale = family.guidance if guidance is None else guidance
    encoded, unconditional = _encode(backbone, prompts, negative, vectors or {}, autocast)
    shape = (backbone.unet.config.in_channels, height // DOWNSCALE, width // DOWNSCALE)
    total = steps * -(-len(prompts) // batch_size)
    finished: list[Tensor] = []
    for start in range(0, len(prompts), batch_size):
        indices = range(start, min(start + batch_size, len(prompts)))
        noise = torch.stack(
            [torch.randn(shape, generator=generator(seed, "noise", i)) for i in indices]
        )
        done = steps * (start // batch_size)
        latents = _denoise(
            backbone,
            noise.to(backbone.device),
            encoded[slice(start, start + len(indices))],
            unconditional,
            steps,
            scale,
            (height, width),
            autocast,
            (lambda step, done=done: on_progress(done + step, total)) if on_progress else None,
        )
        finished.append((latents if as_latents else backbone.codec.decode(latents)).float().cpu())
    return torch.cat(finished)


def _check(steps: int, batch_size: int, height: int, width: int) -> None:
    if steps < 1 or batch_size < 1:
        raise InputError(
            f"Steps and batch size must be at least 1; they are {steps} and {batch_size}."
        )
    if min(height, width) < DOWNSCALE or height % DOWNSCALE or width % DOWNSCALE:
        raise InputError(
            f"Pictures of {height} x {width} cannot be made: both sides must be positive multiples "
            f"of {DOWNSCALE} pixels."
        )


def _encode(
    backbone: Backbone,
    prompts: Sequence[str],
    negative: str,
    vectors: Mapping[str, ConceptVectors],
    autocast: torch.dtype | None,
) -> tuple[Conditioning, Conditioning]:
    with _autocast(backbone, autocast):
        encoded = backbone.text.encode(prompts, vectors)
        return encoded, backbone.text.encode([negative], vectors)


def _denoise(
    backbone: Backbone,
    latents: Tensor,
    conditioning: Conditioning,
    unconditional: Conditioning,
    steps: int,
    guidance: float,
    size: tuple[int, int],
    autocast: torch.dtype | None,
    on_step: Callable[[int], None] | None,
) -> Tensor:
    """From noise to clean latents, both [B, 4, h, w] fp32."""
    count = len(latents)
    guided = guidance != 1.0
    inputs = conditioning
    if guided:
        repeated = unconditional[torch.zeros(count, dtype=torch.long)]
        inputs = Conditioning.cat([repeated, conditioning])
    scheduler = solver(backbone.schedule)
    scheduler.set_timesteps(steps, device=latents.device)
    for number, t in enumerate(scheduler.timesteps, start=1):
        batch = torch.cat([latents, latents]) if guided else latents
        timesteps = t.expand(len(batch))
        with _autocast(backbone, autocast):
            output = backbone.predict(batch, timesteps, inputs, size).float()
        if guided:
            without, with_prompt = output.chunk(2)
            output = without + guidance * (with_prompt - without)
        latents = scheduler.step(output, t, latents, return_dict=False)[0]
        if on_step is not None:
            on_step(number)
    return latents


def solver(schedule: NoiseSchedule) -> DPMSolverMultistepScheduler:
    """DPM-Solver++(2M) with Karras' noise levels for this schedule and prediction type."""
    alphas = schedule.alphas_cumprod.double().cpu()
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    return DPMSolverMultistepScheduler(
        num_train_timesteps=len(alphas),
        trained_betas=(1.0 - alphas / before).float().numpy(),
        prediction_type=schedule.prediction_type,
        use_karras_sigmas=True,
    )


def _autocast(backbone: Backbone, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    if dtype is None:
        return nullcontext()
    return torch.autocast(backbone.device.type, dtype=dtype)
