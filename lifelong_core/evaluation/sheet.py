"""Pictures of a run at one glance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ..sharing.preview import to_picture
from .drawing import write_jpeg
from .stream import Stream

PHOTOS = 3
GAP = 12


def write_sheet(path: Path, cells: Path, stream: Stream, concepts: Sequence[int]) -> Path:
    """One row per concept: photos, pictures after its own lesson, pictures after the last.

    cells: the folder with the strips that `drawn_cell` left; joint training has those after the
    last lesson only. Raises FileError.
    """
    last = len(stream.subjects)
    rows = []
    for concept in concepts:
        photos = torch.cat(list(stream.subjects[concept - 1].task.images[:PHOTOS]), dim=2)
        strips = [to_picture(photos)]
        for after in dict.fromkeys((concept, last)):
            drawn = cells / f"cell_{after}_{concept}.jpg"
            if drawn.exists():
                with Image.open(drawn) as strip:
                    strips.append(strip.convert("RGB"))
        rows.append(strips)
    return write_jpeg(_stacked(rows), path)


def _stacked(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    widths = [sum(strip.width + GAP for strip in strips) - GAP for strips in rows]
    heights = [max(strip.height for strip in strips) for strips in rows]
    sheet = Image.new("RGB", (max(widths), sum(heights)), "white")
    top = 0
    for strips, height in zip(rows, heights, strict=True):
        left = 0
        for strip in strips:
            sheet.paste(strip, (left, top))
            left += strip.width + GAP
        top += height
    return sheet
