"""Pictures whose regions show what prompts of their own ask for (CIDM, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .attention.regional import RegionalUnet
from .attention.regions import (
    ALPHA,
    DELAY,
    Region,
    check_delay,
    check_mixture,
    check_regions,
    delayed_steps,
)
from .backbone import Backbone
from .picture_start import PictureStart
from .regional_sampler import RegionalSampler, Report, draw_in_batches
from .regional_slots import Slot, encode_slots, plain_slots, region_slots
from .sampling import StepCallback, check_sampling, generate
from .state import LifelongState
from .word_routing import prompted

ROWS = 32
"""Most rows of one forward pass."""


@torch.no_grad()
def generate_regions(
    backbone: Backbone,
    state: LifelongState | Sequence[LifelongState | None] | None,
    prompt: str,
    regions: Sequence[Region],
    *,
    seed: int,
    count: int = 1,
    steps: int = 20,
    guidance: float | None = None,
    negative: str = "",
    delay: float = DELAY,
    alpha: float = ALPHA,
    softness: float = 0.0,
    size: tuple[int, int] | None = None,
    row_limit: int = ROWS,
    as_latents: bool = False,
    autocast: torch.dtype | None = None,
    start: PictureStart | None = None,
    on_progress: StepCallback | None = None,
) -> Tensor:
    """`count` pictures of `prompt`, with a prompt of its own in every region.

    state: one that knows all concepts, or one for each region. A region is drawn with the adapter
    of its concept's own lesson (`methods.placed_state`). The rest is drawn with those of concepts
    that `prompt` names and no region does, else by the base model; so it is with several states.

    Concepts that were learned with `localized_words` are read so (`encode_localized`).

    For the share `delay` of the steps nothing that was learned is there yet: the base model lays
    the regions out, told their concepts' plain nouns (delayed subject conditioning, FastComposer,
    Xiao et al. 2024). Lessons show one thing in a picture; without delay their concepts come so,
    too: a single large one, that regions cut.

    A step runs the model on U + 2 rows per picture: without prompt, with all regions, and with
    each region alone. Their outputs are aggregated by the corrected Eq 5 with `alpha`; at 1 the
    rows of single regions are left out. `softness` as in `cover`. At most `row_limit` rows share
    a forward pass, which changes no picture. With `start`, whose mask is a region too, a concept is
    put into a part of a picture. Everything else is as in `generate`, which this is when there are
    no regions, with what the state's method chooses for `prompt`.

    Returns [count, 3, H, W] in [0, 1], or latents.

    Raises InputError for settings, regions or prompts that cannot be used, StateError for a state
    of another base model or with adapters that cannot be kept inside a region.
    """
    family = backbone.family
    usual = start.size if start else (family.default_size, family.default_size)
    size = size or usual
    check_sampling(steps, min(row_limit, count), *size)
    if start:
        start.check(count, size)
    check_mixture(alpha, softness)
    check_delay(delay)
    scale = family.guidance if guidance is None else guidance
    if not regions:
        whole = state if isinstance(state, LifelongState) else None
        with prompted(backbone, whole, prompt) as known:
            return generate(
                backbone, [prompt] * count, seed=seed, steps=steps, guidance=scale,
                negative=negative, size=size, vectors=known.vectors,
                localized=known.localized, adapters=known.adapters,
                batch_size=-(-row_limit // 2), as_latents=as_latents, autocast=autocast,
                start=start, on_progress=on_progress,
            )  # fmt: skip
    check_regions(regions, size)
    slots = region_slots(backbone, state, prompt, regions)

    def sampler_of(slots: Sequence[Slot]) -> RegionalSampler:
        unet = RegionalUnet(backbone, *encode_slots(backbone, slots, negative))
        return RegionalSampler(
            unet, len(slots), steps, scale, size, alpha, softness, row_limit, autocast
        )

    before = delayed_steps(delay, steps)
    plain = sampler_of(plain_slots(slots)) if before else None
    sampler = sampler_of(slots)
    masks = [region.mask.to(backbone.device) for region in regions]
    report = Report(steps * -(-count // sampler.pictures), on_progress)
    origins = start.encode(backbone, count) if start else None

    def draw(noise: Tensor, rows: slice) -> Tensor:
        pictures = sampler.begin(noise, origins[rows] if origins else None)
        each = [masks] * len(noise)
        if plain is not None:
            with plain.unet.attached():
                plain.advance(pictures, each, report, before)
        with sampler.unet.attached():
            return sampler.advance(pictures, each, report)

    return draw_in_batches(
        backbone, draw, seed=seed, count=count, batch=sampler.pictures, size=size,
        as_latents=as_latents,
    )  # fmt: skip
