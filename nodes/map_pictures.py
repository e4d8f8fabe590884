"""The attention maps of a sampling run as an IMAGE: one row of panels per picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from ..lifelong_core.attention import Pair, WordMaps
from ..lifelong_core.attention.heat import concept_heat, mean_words, noun_heat
from ..lifelong_core.charts import INK, PAPER
from .pictures import as_batch, to_pil

AVERAGE, EVERY_STEP = "average", "every step"
NO_MAPS = "no step had attention maps"
PANEL = 256
"""Longest side of a panel, and what small pictures grow to."""
LABEL, GAP, TEXT = 24, 6, 14


def map_pictures(
    seen: Sequence[WordMaps], pairs: Sequence[Pair], images: Tensor, which: str
) -> Tensor:
    """Picture, then concept and noun of every pair: an IMAGE batch [N, height, width, 3].

    seen: of every guided step; images: [B, 3, H, W] in [0, 1], what was drawn. N is B, or, with
    EVERY_STEP, B times the steps, step after step. Where no step had maps, the picture alone.
    """
    small = _panel_sized(images.float().cpu())
    if not seen:
        return torch.cat([as_batch(_row(NO_MAPS, picture, [], [], [])) for picture in small])
    shown = [("picture", mean_words(seen))] if which == AVERAGE else _by_step(seen)
    rows = []
    for title, words in shown:
        concepts = concept_heat(small, words).split(len(pairs))
        nouns = noun_heat(small, words).split(len(pairs))
        for picture, of_concepts, of_nouns in zip(small, concepts, nouns, strict=True):
            rows.append(as_batch(_row(title, picture, pairs, [*of_concepts], [*of_nouns])))
    return torch.cat(rows)


def _by_step(seen: Sequence[WordMaps]) -> list[tuple[str, WordMaps]]:
    return [(f"step {number}", words) for number, words in enumerate(seen, start=1)]


def _panel_sized(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    share = PANEL / max(height, width)
    size = (max(1, round(height * share)), max(1, round(width * share)))
    return F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0.0, 1.0)


def _row(
    title: str,
    picture: Tensor,
    pairs: Sequence[Pair],
    concepts: Sequence[Tensor],
    nouns: Sequence[Tensor],
) -> Image.Image:
    panels = [(title, picture)]
    for (concept, noun), of_concept, of_noun in zip(pairs, concepts, nouns, strict=True):
        panels += [(concept, of_concept)] if concept else []
        panels += [(noun, of_noun)]
    height, width = picture.shape[-2:]
    across = len(panels) * (width + GAP) - GAP
    page = Image.new("RGB", (across, LABEL + height), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(TEXT)
    for number, (label, panel) in enumerate(panels):
        left = number * (width + GAP)
        draw.text((left + width / 2, LABEL / 2), label, fill=INK, font=font, anchor="mm")
        page.paste(to_pil(panel), (left, LABEL))
    return page


def drawn(samples: Tensor, model: Any, vae: Any) -> Tensor:
    """What a sampler's latents show, [B, 3, H, W] in [0, 1]; without a VAE a rough preview."""
    if vae is not None:
        decoded: Tensor = vae.decode(samples)
        return decoded.movedim(-1, 1)
    shown = model.model.latent_format
    if not shown.latent_rgb_factors:
        return samples.new_zeros(len(samples), 3, *samples.shape[-2:])
    latents = model.model.process_latent_in(samples)
    mixed = torch.einsum("bchw,cr->brhw", latents, latents.new_tensor(shown.latent_rgb_factors))
    bias = latents.new_tensor(shown.latent_rgb_factors_bias or (0.0, 0.0, 0.0))
    return ((mixed + bias[:, None, None] + 1) / 2).clamp(0.0, 1.0)
