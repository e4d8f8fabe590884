"""The pictures that the shipped workflows load, as files in ComfyUI's input folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..files import atomic_write, write_text
from .dice import Dice
from .looks import Look
from .scenes import Scene, Thing, placements, render
from .streams import Personal, PersonalStyle, toys5, toys10

STREAM_SEED = 2
PHOTOS = 5
STYLE = "style"
PHOTO = "demo_photo.png"
MASKED = "demo_masked.png"
MARGIN = 8
"""Pixels between an object and the edge of the mask painted over it: one latent of the model."""


def prepare_demo_inputs(folder: Path) -> None:
    """What the workflows load. Files that are there stay.

    `folder/demo_<noun>/photo_<n>.png`: photos of the five toys of one stream of the demo world,
    each with its caption in `photo_<n>.txt`; `folder/demo_style`: drawings in one style, likewise.
    One folder per concept, as Load Concept Photos reads them; stock folder loaders read the photos.
    `folder/demo_photo.png`: a plain red dog; `folder/demo_masked.png`: the same with a mask over
    the dog, as ComfyUI's mask editor saves it.
    """
    for toy in toys5(STREAM_SEED):
        _write_concept(folder / f"demo_{toy.noun}", replace(toy, token=f"my_{toy.noun}"))
    style = next(one for one in toys10(STREAM_SEED) if isinstance(one, PersonalStyle))
    _write_concept(folder / f"demo_{STYLE}", replace(style, token=f"my_{STYLE}"))
    _write_plain_photo(folder)


def _write_concept(folder: Path, concept: Personal) -> None:
    """Photos and captions. What stands behind a toy, or what a style shows, is told in the
    captions, so that no token learns it."""
    paths = [folder / f"photo_{number}.png" for number in range(1, PHOTOS + 1)]
    if not all(path.is_file() for path in paths):
        for path, photo in zip(paths, concept.photos(PHOTOS), strict=True):
            if not path.is_file():
                _write_png(path, photo)
    for path, caption in zip(paths, concept.captions(PHOTOS), strict=True):
        if not path.with_suffix(".txt").is_file():
            write_text(path.with_suffix(".txt"), caption)


def _write_plain_photo(folder: Path) -> None:
    """A photo to begin from, and the same with an alpha of 0 in a box around its object."""
    if (folder / PHOTO).is_file() and (folder / MASKED).is_file():
        return
    thing = Thing("dog", Look("red"), placements(1, Dice(STREAM_SEED, "plain photo"))[0])
    drawn = render(Scene("beach", (thing,), seed=STREAM_SEED))
    _write_png(folder / PHOTO, drawn.image)
    rows, columns = drawn.masks[0].nonzero().T
    alpha = torch.ones(1, *drawn.image.shape[1:])
    top, left = (max(int(edge.min()) - MARGIN, 0) for edge in (rows, columns))
    alpha[:, top : int(rows.max()) + MARGIN + 1, left : int(columns.max()) + MARGIN + 1] = 0
    _write_png(folder / MASKED, torch.cat([drawn.image, alpha]))


def _write_png(path: Path, photo: Tensor) -> None:
    """A tensor [3, H, W], or [4, H, W] with alpha, in [0, 1] as a picture file."""
    pixels = (photo.permute(1, 2, 0) * 255).round().byte().numpy()
    atomic_write(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG"))
