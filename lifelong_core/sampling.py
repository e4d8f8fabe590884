"""Generating pictures from a base model and whatever adapters are attached to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapters.protocol import Adapter
from .attention import AttentionGuidance, ConditionalBranch, Guide, Step
from .backbone import Backbone, Conditioning
from .backbone.families import DOWNSCALE, LATENT_CHANNELS
from .concepts import Concept
from .course import Course
from .errors import InputError
from .localized_words import encode_localized
from .picture_start import Origin, PictureStart
from .prompts import ConceptVectors
from .seeding import generator

StepCallback = Callable[[int, int], None]
"""Called after every denoising step with (steps done, steps in all), over all batches."""

StepAdapters = Callable[[Step], Sequence[Adapter]]
"""The adapters that answer at a step, at least one; none of them attached."""


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
    localized: Sequence[Concept] = (),
    batch_size: int = 8,
    as_latents: bool = False,
    autocast: torch.dtype | None = None,
    attention: AttentionGuidance | None = None,
    start: PictureStart | None = None,
    adapters: StepAdapters | None = None,
    on_progress: StepCallback | None = None,
) -> Tensor:
    """One picture per prompt: [B, 3, H, W] in [0, 1], or latents [B, 4, h, w]; fp32, on the CPU.

    DPM-Solver++(2M) (Lu et al. 2022) on Karras' noise levels, classifier-free guidance in one
    batch (none at `guidance` 1). Picture i starts from the noise of (`seed`, i), so `batch_size`
    does not change it. `guidance` and `size` (height, width) default to the family's; `autocast`
    is the dtype for mixed precision. Concepts of `localized` are read in their own words alone
    (`encode_localized`). `attention` makes several concepts appear side by side; with weights of 0
    it changes no bit. With `start` pictures are made from pictures, of their size.
    `adapters` answer in place of an attached one; where a step has several, the mean of their
    guided outputs counts. Raises InputError for settings that cannot be used.
    """
    family = backbone.family
    usual = start.size if start else (family.default_size, family.default_size)
    height, width = size or usual
    check_sampling(steps, batch_size, height, width)
    if start:
        start.check(len(prompts), (height, width))
    if attention and adapters:
        raise InputError("Attention guidance needs one adapter that is attached for all steps.")
    scale = family.guidance if guidance is None else guidance
    known, text = vectors or {}, backbone.text
    places = attention.places(text, prompts, known) if attention else []
    encoded = encode_localized(text, prompts, known, localized)
    unconditional = encode_localized(text, [negative], known, localized)
    sampler = _Sampler(backbone, unconditional, steps, scale, (height, width), autocast, adapters)
    origins = start.encode(backbone, len(prompts)) if start else None
    total = steps * math.ceil(len(prompts) / batch_size)
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    shape = (LATENT_CHANNELS, height // DOWNSCALE, width // DOWNSCALE)
    finished: list[Tensor] = []
    for first in range(0, len(prompts), batch_size):
        rows = slice(first, first + batch_size)
        part = encoded[rows]
        indices = range(first, first + len(part))
        noise = [torch.randn(shape, generator=generator(seed, "noise", i)) for i in indices]
        guide = attention.guide(places[rows]) if attention else None
        origin = origins[rows] if origins else None
        latents = sampler.run(torch.stack(noise).to(backbone.device), part, report, guide, origin)
        finished.append((latents if as_latents else backbone.codec.decode(latents)).float().cpu())
    return torch.cat(finished)


def check_sampling(steps: int, batch_size: int, height: int, width: int) -> None:
    """Raise InputError unless there is something to draw, in a size that latents have."""
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
    adapters: StepAdapters | None

    def run(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        on_step: Callable[[], None],
        guide: Guide | None,
        origin: Origin | None = None,
    ) -> Tensor:
        """From noise, or from `origin` with this noise, to clean latents, all [B, 4, h, w] fp32."""
        inputs = conditioning
        if self.guidance != 1.0:
            repeated = self.unconditional[torch.zeros(len(noise), dtype=torch.long)]
            inputs = Conditioning.cat([repeated, conditioning])
        course = Course(self.backbone.schedule, self.steps, noise.device, origin)
        latents = course.begin(noise)
        for index, t in enumerate(course.timesteps):
            step, known = Step(index, self.steps), None
            if guide is not None:
                branch = ConditionalBranch(self.backbone, conditioning, t, self.size, self.autocast)
                guided = guide(latents, branch, step)
                latents, known = guided.latents, guided.output
            if self.adapters is None:
                output = self._predict(latents, t, inputs, known)
            else:
                output = self._mean(self.adapters(step), latents, t, inputs)
            latents = course.step(output, index, latents, noise)
            on_step()
        return latents

    def _mean(
        self, adapters: Sequence[Adapter], latents: Tensor, t: Tensor, inputs: Conditioning
    ) -> Tensor:
        """The mean of the guided outputs with each adapter, [B, 4, h, w] fp32."""
        outputs = []
        for adapter in adapters:
            with adapter.attached(self.backbone):
                outputs.append(self._predict(latents, t, inputs, None))
        return torch.stack(outputs).mean(0)

    def _predict(
        self, latents: Tensor, t: Tensor, inputs: Conditioning, known: Tensor | None
    ) -> Tensor:
        """The guided output [B, 4, h, w] fp32; `inputs` holds the unconditional rows first.

        `known`: the output with the prompts, where guidance has computed it already.
        """
        if self.guidance == 1.0:
            return self._output(latents, t, inputs) if known is None else known
        if known is None:
            without, known = self._output(latents.repeat(2, 1, 1, 1), t, inputs).chunk(2)
        else:
            without = self._output(latents, t, inputs[slice(0, len(latents))])
        return without + self.guidance * (known - without)

    def _output(self, latents: Tensor, t: Tensor, inputs: Conditioning) -> Tensor:
        with mixed_precision(self.backbone, self.autocast):
            timesteps = t.expand(len(latents))
            return self.backbone.predict(latents, timesteps, inputs, self.size).float()


def mixed_precision(
    backbone: Backbone, dtype: torch.dtype | None
) -> AbstractContextManager[object]:
    """Autocast to `dtype` on the base model's device; nothing for None."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(backbone.device.type, dtype=dtype)
