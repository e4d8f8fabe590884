"""The loss of a lesson as a picture for the node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIZE = (768, 432)
BOX = (84, 48, 744, 380)
PAPER, INK, GRID = (252, 252, 250), (50, 50, 60), (226, 226, 222)
FAINT, LINE = (190, 205, 228), (32, 92, 178)
TICKS = 5


def loss_plot(losses: Sequence[float], title: str) -> Tensor:
    """An IMAGE batch [1, height, width, 3]: every step's loss faint, its running mean on top."""
    values = np.asarray(losses, dtype=np.float64)
    image = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(image)
    low, high = _limits(values)
    draw.text((BOX[0], 16), title, fill=INK, font=ImageFont.load_default(16))
    _axes(draw, low, high, len(values))
    for line, colour, width in ((values, FAINT, 1), (_running_mean(values), LINE, 3)):
        points = _points(line, low, high)
        if len(points) > 1:
            draw.line(points, fill=colour, width=width, joint="curve")
        elif points:
            x, y = points[0]
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=LINE)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0).unsqueeze(0)


def _limits(values: np.ndarray) -> tuple[float, float]:
    if not values.size:
        return 0.0, 1.0
    # A few outliers must not press the curve flat.
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _running_mean(values: np.ndarray) -> np.ndarray:
    window = max(1, len(values) // 20)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _points(values: np.ndarray, low: float, high: float) -> list[tuple[float, float]]:
    left, top, right, bottom = BOX
    steps = np.linspace(left, right, len(values))
    heights = bottom - (np.clip(values, low, high) - low) / (high - low) * (bottom - top)
    return list(zip(steps.tolist(), heights.tolist(), strict=True))


def _axes(draw: ImageDraw.ImageDraw, low: float, high: float, steps: int) -> None:
    left, top, right, bottom = BOX
    font = ImageFont.load_default(13)
    for tick in range(TICKS):
        share = tick / (TICKS - 1)
        y = bottom - share * (bottom - top)
        draw.line((left, y, right, y), fill=GRID)
        label = f"{low + share * (high - low):.3g}"
        draw.text((left - 10, y), label, fill=INK, font=font, anchor="rm")
        x = left + share * (right - left)
        step = str(round(1 + share * max(0, steps - 1)))
        draw.text((x, bottom + 10), step, fill=INK, font=font, anchor="mt")
    draw.text(((left + right) / 2, SIZE[1] - 12), "step", fill=INK, font=font, anchor="ms")
    draw.line((left, top, left, bottom, right, bottom), fill=INK)
