"""The loss of a lesson as a picture for the node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..lifelong_core.charts import BOX, LINES, axes, canvas, limits, line, places
from .pictures import as_batch

FAINT = (190, 205, 228)


def loss_plot(losses: Sequence[float], title: str) -> Tensor:
    """An IMAGE batch [1, height, width, 3]: every step's loss faint, its running mean on top."""
    values = np.asarray(losses, dtype=np.float64)
    image, draw = canvas(title)
    # A few outliers must not press the curve flat.
    steps, heights = (1.0, float(max(1, len(values)))), limits(values, 0.99)
    axes(draw, steps, heights, "step")
    left, top, right, bottom = BOX
    across = places(np.arange(1, len(values) + 1), steps, left, right)
    for curve, colour, width in ((values, FAINT, 1), (running_mean(values), LINES[0], 3)):
        up = places(curve, heights, bottom, top)
        line(draw, list(zip(across, up, strict=True)), colour, width)
    return as_batch(image)


def running_mean(losses: Sequence[float] | np.ndarray) -> np.ndarray:
    """The mean over the last twentieth of all steps, at every step."""
    values = np.asarray(losses, dtype=np.float64)
    window = max(1, len(values) // 20)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
