"""Regions as a picture: each in a colour of its own, with its prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..lifelong_core.attention.regions import Region, cover, mix_attention
from ..lifelong_core.charts import INK, LINES, PAPER
from .pictures import as_batch, to_pil

SIDE = 512
"""Longest side of the regions' picture."""
TEXT, LINE, COLUMNS, GAP = 16, 22, 56, 8


def region_picture(
    regions: Sequence[Region], proportions: tuple[int, int], softness: float
) -> Tensor:
    """The regions, and below them their numbers and prompts: an IMAGE [1, height, width, 3].

    proportions: height and width of what is drawn, in any unit. Overlaps have mixed colours.
    """
    scale = SIDE / max(proportions)
    height, width = (max(1, round(side * scale)) for side in proportions)
    covered = cover([region.mask.cpu() for region in regions], (height, width), softness)
    colours = torch.tensor([LINES[number % len(LINES)] for number in range(len(regions))]) / 255
    paper = (torch.tensor(PAPER) / 255).expand(1, height * width, 3)
    painted = mix_attention(
        paper, colours[:, None, None].expand(-1, *paper.shape), covered.flatten(1)
    )
    fields = to_pil(painted.reshape(height, width, 3).permute(2, 0, 1))
    lines = [
        (number, line)
        for number, region in enumerate(regions)
        for line in textwrap.wrap(f"{number + 1}  {region.prompt}", COLUMNS) or [str(number + 1)]
    ]
    page = Image.new("RGB", (SIDE, height + GAP + LINE * len(lines)), PAPER)
    page.paste(fields, ((SIDE - width) // 2, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(TEXT)
    for row, (number, line) in enumerate(lines):
        top = height + GAP + LINE * row
        draw.rectangle((GAP, top + 2, GAP + 12, top + 14), fill=LINES[number % len(LINES)])
        draw.text((GAP + 22, top), line, fill=INK, font=font)
    _number(page, covered, (SIDE - width) // 2)
    return as_batch(page)


def _number(page: Image.Image, covered: Tensor, left: int) -> None:
    """Write each region's number where its middle is."""
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(2 * TEXT)
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in covered.shape[1:])
    for number, cells in enumerate(covered, start=1):
        middle = (cells.sum(0) @ columns / cells.sum(), cells.sum(1) @ rows / cells.sum())
        place = (left + float(middle[0]), float(middle[1]))
        draw.text(
            place, str(number), fill=PAPER, font=font, anchor="mm", stroke_width=2, stroke_fill=INK
        )
