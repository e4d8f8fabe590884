"""Lines and tables of numbers as pictures, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = (768, 432)
BOX = (84, 48, 744, 380)
PAPER, INK, GRID = (252, 252, 250), (50, 50, 60), (226, 226, 222)
LINES = (
    (32, 92, 178), (214, 90, 30), (40, 140, 80), (170, 50, 120), (120, 90, 50),
    (0, 150, 170), (110, 70, 190), (190, 160, 0), (90, 90, 100), (230, 120, 150),
)  # fmt: skip
PALE, FULL, EMPTY = (240, 244, 250), (24, 78, 158), (240, 240, 238)
TICKS, FEW = 5, 20
LEGEND = 240
CELL, LABELS = (64, 40), (190, 72)

Range = tuple[float, float]
Point = tuple[float, float]
Colour = tuple[int, int, int]
Values = Sequence[float] | np.ndarray


def canvas(title: str, size: tuple[int, int] = SIZE) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Empty paper with a title."""
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((16, 16), title, fill=INK, font=ImageFont.load_default(16))
    return image, draw


def axes(draw: ImageDraw.ImageDraw, xs: Range, ys: Range, below: str) -> None:
    """The axes of `BOX`; xs are shown as whole numbers, `below` is what they count."""
    left, top, right, bottom = BOX
    font = ImageFont.load_default(13)
    for tick in range(TICKS):
        share = tick / (TICKS - 1)
        y = bottom - share * (bottom - top)
        draw.line((left, y, right, y), fill=GRID)
        label = f"{ys[0] + share * (ys[1] - ys[0]):.3g}"
        draw.text((left - 10, y), label, fill=INK, font=font, anchor="rm")
    whole = {round(xs[0] + tick / (TICKS - 1) * (xs[1] - xs[0])) for tick in range(TICKS)}
    for value in sorted(whole):
        x = places([value], xs, left, right)[0]
        draw.text((x, bottom + 10), str(value), fill=INK, font=font, anchor="mt")
    draw.text(((left + right) / 2, SIZE[1] - 12), below, fill=INK, font=font, anchor="ms")
    draw.line((left, top, left, bottom, right, bottom), fill=INK)


def places(values: Values, span: Range, start: float, end: float) -> list[float]:
    """Where values lie between `start` and `end`, held to `span`; `start` if that is one value."""
    held = np.clip(np.asarray(values, dtype=np.float64), *span)
    share = (held - span[0]) / (span[1] - span[0]) if span[1] > span[0] else 0.0 * held
    return [float(place) for place in start + share * (end - start)]


def limits(values: Values, highest: float = 1.0) -> Range:
    """From the lowest to the `highest` quantile, and a little more; (0, 1) without values."""
    known = np.asarray(values, dtype=np.float64)
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(np.quantile(known, highest))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def line(draw: ImageDraw.ImageDraw, points: Sequence[Point], colour: Colour, width: int) -> None:
    """A line through `points`, with a dot on each where they are few."""
    if len(points) > 1:
        draw.line(list(points), fill=colour, width=width, joint="curve")
    for x, y in points if len(points) <= FEW else ():
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)


def curves(
    title: str, below: str, lines: Mapping[str, Sequence[Point]], shown: Sequence[float] = ()
) -> Image.Image:
    """One line of (x, y) per name, with a legend; whole numbers as x. Where colours come again,
    lines are thin.

    shown: heights that the axis has in any case.
    """
    height = max(SIZE[1], BOX[1] + 22 * len(lines) + 20)
    image, draw = canvas(title, (SIZE[0] + LEGEND, height))
    every = [point for points in lines.values() for point in points]
    xs = (min((x for x, _ in every), default=1.0), max((x for x, _ in every), default=1.0))
    ys = limits([*shown, *(y for _, y in every)])
    axes(draw, xs, ys, below)
    left, top, right, bottom = BOX
    font = ImageFont.load_default(13)
    for number, (name, points) in enumerate(lines.items()):
        colour, width = LINES[number % len(LINES)], 3 if number < len(LINES) else 1
        across = places([x for x, _ in points], xs, left, right)
        up = places([y for _, y in points], ys, bottom, top)
        line(draw, list(zip(across, up, strict=True)), colour, width)
        y = top + 22 * number
        draw.line((SIZE[0] + 4, y, SIZE[0] + 24, y), fill=colour, width=width + 1)
        draw.text((SIZE[0] + 32, y), shortened(name, 28), fill=INK, font=font, anchor="lm")
    return image


def heatmap(
    title: str,
    rows: Mapping[int, str],
    columns: Mapping[int, str],
    cells: Mapping[tuple[int, int], float],
    *,
    span: Range = (0.0, 1.0),
    form: str = ".0%",
) -> Image.Image:
    """A coloured number per cell (row, column); rows and columns are numbered and have names.

    span: the values that are palest and darkest, by default shares, written in percent. What has
    no value is grey.
    """
    size = (
        max(LABELS[0] + CELL[0] * len(columns) + 20, SIZE[0]),
        LABELS[1] + CELL[1] * len(rows) + 24,
    )
    image, draw = canvas(title, size)
    font = ImageFont.load_default(13)
    for x, name in enumerate(columns.values()):
        middle = LABELS[0] + CELL[0] * (x + 0.5)
        draw.text((middle, LABELS[1] - 8), shortened(name, 8), fill=INK, font=font, anchor="ms")
    for y, (row, name) in enumerate(rows.items()):
        top = LABELS[1] + CELL[1] * y
        middle = top + CELL[1] / 2
        draw.text((LABELS[0] - 10, middle), shortened(name, 22), fill=INK, font=font, anchor="rm")
        for x, column in enumerate(columns):
            left = LABELS[0] + CELL[0] * x
            box = (left, top, left + CELL[0] - 2, top + CELL[1] - 2)
            value = cells.get((row, column))
            if value is None:
                draw.rectangle(box, fill=EMPTY)
                continue
            share = places([value], span, 0.0, 1.0)[0]
            draw.rectangle(box, fill=_between(share))
            ink = PAPER if share > 0.5 else INK
            centre = (left + CELL[0] / 2 - 1, middle - 1)
            draw.text(centre, f"{value:{form}}", fill=ink, font=font, anchor="mm")
    return image


def shortened(text: str, length: int) -> str:
    """`text`, cut off with '…' when it is longer than `length`."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _between(share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(PALE, FULL, strict=True))
    return red, green, blue
