"""Denoising a picture with regions: which rows a step runs, and what becomes of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from .attention.layout import Layout, Row
from .attention.regional import RegionalUnet
from .attention.regions import aggregate_noise, cover
from .backbone import Backbone
from .backbone.families import DOWNSCALE, LATENT_CHANNELS
from .course import Course
from .picture_start import Origin
from .regional_slots import region_row, unconditional_row, whole_row
from .sampling import StepCallback, mixed_precision
from .seeding import generator


class Report:
    """Counts finished steps of `total`, and tells them."""

    def __init__(self, total: int, on_progress: StepCallback | None) -> None:
        self._total, self._done, self._tell = total, 0, on_progress

    def __call__(self) -> None:
        self._done += 1
        if self._tell is not None:
            self._tell(self._done, self._total)


@dataclass
class Underway:
    """Pictures between two steps: latents [B, 4, h, w] after `done` steps of `course`, which began
    with `noise`."""

    course: Course
    noise: Tensor
    latents: Tensor
    done: int = 0


@dataclass(frozen=True)
class RegionalSampler:
    """One way of sampling: everything but the noise and the masks.

    unet: with its prompts numbered as `encode_slots` does. slots: 1 + U. With alpha 1 there are no
    rows of single regions, with guidance 1 none without prompt.
    """

    unet: RegionalUnet
    slots: int
    steps: int
    guidance: float
    size: tuple[int, int]
    alpha: float
    softness: float
    row_limit: int
    autocast: torch.dtype | None

    @property
    def pictures(self) -> int:
        """How many pictures are drawn together; one even where its rows are more than the limit."""
        return max(1, self.row_limit // len(self._rows(0)))

    def begin(self, noise: Tensor, origin: Origin | None = None) -> Underway:
        """Before the first step from noise [B, 4, h, w] fp32, or from `origin` with this noise."""
        course = Course(self.unet.backbone.schedule, self.steps, noise.device, origin)
        return Underway(course, noise, course.begin(noise))

    def advance(
        self,
        pictures: Underway,
        masks: Sequence[Sequence[Tensor]],
        on_step: Callable[[], None],
        steps: int | None = None,
    ) -> Tensor:
        """Make the next `steps` steps, or all that are left; returns the latents after them,
        [B, 4, h, w] fp32. masks: of every picture's regions.

        Another sampler of as many steps may have made those before. The UNet must be attached.
        """
        noise, course = pictures.noise, pictures.course
        passes = self._layouts(masks, (noise.shape[2], noise.shape[3]), noise.device)
        covered = [cover(own, passes[0].latents, self.softness) for own in masks]
        last = self.steps if steps is None else pictures.done + steps
        for index in range(pictures.done, last):
            output = self._guided(pictures.latents, course.timesteps[index], passes, covered)
            pictures.latents = course.step(output, index, pictures.latents, noise)
            pictures.done = index + 1
            on_step()
        return pictures.latents

    def _layouts(
        self, masks: Sequence[Sequence[Tensor]], latents: tuple[int, int], device: torch.device
    ) -> list[Layout]:
        """All pictures' rows in passes of at most `row_limit` rows."""
        rows = [row for picture in range(len(masks)) for row in self._rows(picture)]
        return [
            Layout(rows[first : first + self.row_limit], masks, latents, self.softness, device)
            for first in range(0, len(rows), self.row_limit)
        ]

    def _rows(self, picture: int) -> list[Row]:
        without = [unconditional_row(self.slots, picture)] if self.guidance != 1.0 else []
        alone = range(1, self.slots) if self.alpha < 1 else ()
        return [
            *without,
            whole_row(self.slots, picture),
            *(region_row(self.slots, slot, picture) for slot in alone),
        ]

    def _guided(
        self, latents: Tensor, t: Tensor, passes: Sequence[Layout], covered: Sequence[Tensor]
    ) -> Tensor:
        """The guided and aggregated output [B, 4, h, w] fp32; every picture's cover [U, h, w]."""
        outputs = torch.cat([self.output(latents, t, layout) for layout in passes])
        each = rearrange(outputs, "(b rows) ... -> rows b ...", b=len(latents))
        if self.guidance != 1.0:
            each = each[0] + self.guidance * (each[1:] - each[0])
        if self.alpha == 1:
            return each[0]
        pictures = zip(each.split(1, dim=1), covered, strict=True)
        return torch.cat([aggregate_noise(e[0], e[1:], m, self.alpha) for e, m in pictures])

    def output(self, latents: Tensor, t: Tensor, layout: Layout) -> Tensor:
        """The model's own output [R, 4, h, w] fp32 for the layout's rows of pictures' latents."""
        own = latents[[row.picture for row in layout.rows]]
        with mixed_precision(self.unet.backbone, self.autocast):
            return self.unet.predict(own, t, layout, self.size)


def draw_in_batches(
    backbone: Backbone,
    draw: Callable[[Tensor, slice], Tensor],
    *,
    seed: int,
    count: int,
    batch: int,
    size: tuple[int, int],
    as_latents: bool,
) -> Tensor:
    """What `draw` makes of noise: [count, 3, H, W] in [0, 1], or latents; fp32, on the CPU.

    draw: noise of some pictures, and which of all they are -> their latents.
    Picture i starts from the noise of (`seed`, i), as in `generate`.
    """
    shape = (LATENT_CHANNELS, size[0] // DOWNSCALE, size[1] // DOWNSCALE)
    finished: list[Tensor] = []
    for first in range(0, count, batch):
        indices = range(first, min(first + batch, count))
        noise = [torch.randn(shape, generator=generator(seed, "noise", i)) for i in indices]
        rows = slice(first, first + len(noise))
        latents = draw(torch.stack(noise).to(backbone.device), rows)
        finished.append((latents if as_latents else backbone.codec.decode(latents)).float().cpu())
    return torch.cat(finished)
