"""Pictures of the plain class noun by the base model, which keep the noun's meaning in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..backbone import Backbone
from ..files import content_hash
from ..finished import keep_latents, kept_latents
from ..sampling import generate
from ..seeding import derive_seed

CHUNK = 16
"""Pictures per cache file: a cancelled run keeps the chunks that it finished."""
SAMPLER_STEPS = 20
SAMPLED_AT_ONCE = 8


def prior_prompt(noun: str) -> str:
    """The prompt of the noun's pictures."""
    return f"a photo of a {noun}"


def prior_latents(
    backbone: Backbone,
    noun: str,
    count: int,
    *,
    size: int,
    seed: int,
    autocast: torch.dtype | None,
    folder: Path | None,
    on_progress: Callable[[], None] | None = None,
) -> Tensor:
    """Latents [count, 4, h, w] of pictures of "a photo of a <noun>", on the backbone's device.

    Drawn by `backbone` as it is, so no adapter may be attached. With `folder` they are drawn once
    and found again by content: base model, noun, number, size, seed and sampler settings.
    `on_progress` is called after every sampling step and may raise to cancel.
    """
    chunks: list[Tensor] = []
    known = backbone.content_hash
    for start in range(0, count, CHUNK):
        size_of_chunk = min(CHUNK, count - start)
        settings = [
            known,
            prior_prompt(noun),
            size_of_chunk,
            size,
            derive_seed(seed, "prior", start),
            SAMPLER_STEPS,
            backbone.family.guidance,
            str(autocast),
        ]
        path = folder / f"{content_hash(settings)}.safetensors" if folder else None
        latents = kept_latents(path, "the pictures of the class noun")
        if latents is None:
            latents = generate(
                backbone,
                [prior_prompt(noun)] * size_of_chunk,
                seed=derive_seed(seed, "prior", start),
                steps=SAMPLER_STEPS,
                size=(size, size),
                batch_size=SAMPLED_AT_ONCE,
                as_latents=True,
                autocast=autocast,
                on_progress=(lambda _done, _of: on_progress()) if on_progress else None,
            )
            if path is not None:
                keep_latents(path, latents)
        chunks.append(latents)
    return torch.cat(chunks).to(backbone.device)
