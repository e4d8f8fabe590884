"""Generating pictures from a base model and whatever adapters are attached to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from .backbone import Backbone, Conditioning, NoiseSchedule
from .backbone.families import DOWNSCALE, LATENT_CHANNELS
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
    encoded = backbone.text.encode(prompts, vectors)
    unconditional = backbone.text.encode([negative], vectors)
    sampler = _Sampler(backbone, unconditional, steps, scale, (height, width), autocast)
    total = steps * math.ceil(len(prompts) / batch_size)
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    shape = (LATENT_CHANNELS, height // DOWNSCALE, width // DOWNSCALE)
    finished: list[Tensor] = []
    for start in range(0, len(prompts), batch_size):
        part = encoded[slice(start, start + batch_size)]
        indices = range(start, start + len(part))
        noise = [torch.randn(shape, generator=generator(seed, "noise", i)) for i in indices]
        latents = sampler.run(torch.stack(noise).to(backbone.device), part, report)
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


@dataclass(frozen=True)
class _Sampler:
    """One way of sampling: everything but the noise and the prompts."""

    backbone: Backbone
    unconditional: Conditioning
    steps: int
    guidance: float
    size: tuple[int, int]
    autocast: torch.dtype | None

    def run(
        self, latents: Tensor, conditioning: Conditioning, on_step: Callable[[], None]
    ) -> Tensor:
        """From noise to clean latents, both [B, 4, h, w] fp32."""
        inputs = conditioning
        if self.guidance != 1.0:
            repeated = self.unconditional[torch.zeros(len(latents), dtype=torch.long)]
            inputs = Conditioning.cat([repeated, conditioning])
        scheduler = solver(self.backbone.schedule)
        scheduler.set_timesteps(self.steps, device=latents.device)
        for t in scheduler.timesteps:
            output = self._predict(latents, t, inputs)
            latents = scheduler.step(output, t, latents, return_dict=False)[0]
            on_step()
        return latents

    def _predict(self, latents: Tensor, t: Tensor, inputs: Conditioning) -> Tensor:
        """The guided output [B, 4, h, w] fp32; `inputs` holds the unconditional rows first."""
        batch = latents.repeat(len(inputs) // len(latents), 1, 1, 1)
        with _autocast(self.backbone, self.autocast):
            timesteps = t.expand(len(batch))
            output = self.backbone.predict(batch, timesteps, inputs, self.size).float()
        if self.guidance == 1.0:
            return output
        without, with_prompt = output.chunk(2)
        return without + self.guidance * (with_prompt - without)


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
