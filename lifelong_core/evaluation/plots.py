"""Matrices and curves as pictures, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from .forgetting import Matrix

PAPER, INK, GRID = (252, 252, 250), (50, 50, 60), (226, 226, 222)
EMPTY, PALE, FULL = (240, 240, 238), (235, 242, 252), (18, 66, 140)
LINES = (
    (32, 92, 178), (214, 90, 30), (40, 140, 80), (170, 50, 120), (120, 90, 50),
    (0, 150, 170), (110, 70, 190), (190, 160, 0), (90, 90, 100), (230, 120, 150),
)  # fmt: skip
CELL, LEFT, TOP = 52, 64, 64
PLOT = (84, 48, 620, 372)
SIZE = (860, 430)
TICKS = 5

Curve = Sequence[tuple[int, float]]
"""(lesson, value), lessons ascending."""


def heatmap(matrix: Matrix, title: str) -> Image.Image:
    """R[i, j]: a row per lesson that was measured, a column per concept; dark is high."""
    rows = sorted({after for after, _ in matrix})
    columns = sorted({concept for _, concept in matrix})
    low, high = min(matrix.values(), default=0.0), max(matrix.values(), default=1.0)
    size = (max(LEFT + CELL * len(columns) + 20, 300), TOP + CELL * len(rows) + 36)
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    small, large = ImageFont.load_default(13), ImageFont.load_default(16)
    draw.text((12, 12), title, fill=INK, font=large)
    for y, after in enumerate(rows):
        top = TOP + CELL * y
        draw.text((LEFT - 8, top + CELL / 2), f"after {after}", fill=INK, font=small, anchor="rm")
        for x, concept in enumerate(columns):
            left = LEFT + CELL * x
            box = (left, top, left + CELL - 2, top + CELL - 2)
            value = matrix.get((after, concept))
            share = 0.0 if value is None or high == low else (value - low) / (high - low)
            draw.rectangle(box, fill=EMPTY if value is None else _between(share))
            if value is not None:
                centre = (left + CELL / 2 - 1, top + CELL / 2 - 1)
                ink = PAPER if share > 0.55 else INK
                draw.text(centre, f"{value:.3f}", fill=ink, font=small, anchor="mm")
    for x, concept in enumerate(columns):
        middle = LEFT + CELL * (x + 0.5)
        draw.text((middle, TOP - 8), str(concept), fill=INK, font=small, anchor="ms")
    draw.text((LEFT, size[1] - 12), "columns: concepts", fill=INK, font=small, anchor="ls")
    return image


def curves(lines: Mapping[str, Curve], title: str) -> Image.Image:
    """One line per name over the lessons, with a legend."""
    image = Image.new("RGB", (SIZE[0], max(SIZE[1], 60 + 20 * len(lines))), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((PLOT[0], 14), title, fill=INK, font=ImageFont.load_default(16))
    points = [point for line in lines.values() for point in line]
    first, last = (f((x for x, _ in points), default=1) for f in (min, max))
    low, high = (f((y for _, y in points), default=0.0) for f in (min, max))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    _axes(draw, (first, last), (low, high))
    font = ImageFont.load_default(13)
    for number, (name, line) in enumerate(lines.items()):
        colour = LINES[number % len(LINES)]
        where = [
            (_place(x, first, last, PLOT[0], PLOT[2]), _place(y, low, high, PLOT[3], PLOT[1]))
            for x, y in line
        ]
        if len(where) > 1:
            draw.line(where, fill=colour, width=2, joint="curve")
        for x, y in where:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        top = PLOT[1] + 20 * number
        draw.line((PLOT[2] + 16, top, PLOT[2] + 36, top), fill=colour, width=3)
        draw.text((PLOT[2] + 44, top), name, fill=INK, font=font, anchor="lm")
    return image


def _axes(draw: ImageDraw.ImageDraw, xs: tuple[int, int], ys: tuple[float, float]) -> None:
    left, top, right, bottom = PLOT
    font = ImageFont.load_default(13)
    for tick in range(TICKS):
        value = ys[0] + (ys[1] - ys[0]) * tick / (TICKS - 1)
        y = _place(value, ys[0], ys[1], bottom, top)
        draw.line((left, y, right, y), fill=GRID)
        draw.text((left - 8, y), f"{value:.3g}", fill=INK, font=font, anchor="rm")
    step = max(1, (xs[1] - xs[0]) // 10)
    for lesson in range(xs[0], xs[1] + 1, step):
        x = _place(lesson, xs[0], xs[1], left, right)
        draw.text((x, bottom + 8), str(lesson), fill=INK, font=font, anchor="mt")
    draw.text(((left + right) / 2, bottom + 40), "after lesson", fill=INK, font=font, anchor="ms")
    draw.line((left, top, left, bottom, right, bottom), fill=INK)


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    """`value` of [low, high] on the way from start to end; the middle where there is no range."""
    return start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _between(share: float) -> tuple[int, int, int]:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(PALE, FULL, strict=True))
    return red, green, blue
