"""Charts: where lines and cells are, and in which colours."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lifelong_core.charts import (
    BOX,
    CELL,
    EMPTY,
    FULL,
    LABELS,
    LINES,
    PALE,
    curves,
    heatmap,
    limits,
    places,
    shortened,
)


def where(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """The places (x, y) of a colour within the axes."""
    pixels = np.asarray(image)[: BOX[3] + 1, : BOX[2] + 1]
    return np.argwhere((pixels == colour).all(-1))[:, ::-1]


def test_lines_rise_with_their_values_over_a_common_range() -> None:
    lines = {"up": [(1, 0.0), (2, 1.0)], "down": [(1, 1.0), (2, 0.0)], "flat": [(1, 2.0), (2, 2.0)]}
    image = curves("three", "after lesson", lines)
    up, down, flat = (where(image, LINES[number]) for number in range(3))
    assert up[up[:, 0].argmin(), 1] > up[up[:, 0].argmax(), 1]
    assert down[down[:, 0].argmin(), 1] < down[down[:, 0].argmax(), 1]
    assert flat[:, 1].max() < min(up[:, 1].min(), down[:, 1].min())


@pytest.mark.parametrize("lines", [{}, {"one": []}, {"one": [(3, 0.5)]}])
def test_curves_of_little_or_nothing(lines: dict[str, list[tuple[float, float]]]) -> None:
    image = curves("little", "after lesson", lines)
    assert bool(len(where(image, LINES[0]))) == any(lines.values())


def test_every_one_of_many_lines_is_in_the_legend() -> None:
    few, many = (
        curves("t", "x", {f"method {n}": [(1, float(n))] for n in range(count)})
        for count in (2, 40)
    )
    assert many.height > few.height
    legend = np.asarray(many)[:, BOX[2] + 28 : BOX[2] + 40]
    rows = {tuple(line) for line in np.argwhere((legend == LINES[9]).all(-1))[:, :1]}
    assert len(rows) >= 4


def test_a_colour_that_comes_again_makes_a_thin_line() -> None:
    lines = {str(n): [(1, float(n)), (60, float(n))] for n in range(len(LINES) + 1)}
    first = where(curves("t", "x", {"0": lines["0"]}), LINES[0])
    both = where(curves("t", "x", lines), LINES[0])
    column = both[both[:, 0] == (BOX[0] + BOX[2]) // 2, 1]
    assert len(first[first[:, 0] == (BOX[0] + BOX[2]) // 2]) == 3
    assert len(column) == 4


def cell(image: Image.Image, row: int, column: int) -> tuple[int, ...]:
    """The colour of a cell's corner."""
    x, y = LABELS[0] + CELL[0] * column + 2, LABELS[1] + CELL[1] * row + 2
    return tuple(np.asarray(image)[y, x].tolist())


def test_cells_are_darker_for_more_and_grey_for_nothing() -> None:
    cells = {(1, 1): 0.2, (2, 1): 0.6, (2, 4): 1.0}
    names = {1: "after 1", 2: "after 2"}, {1: "one", 4: "four"}
    image = heatmap("shares", *names, cells)
    assert cell(image, 0, 1) == EMPTY
    assert cell(image, 1, 1) == FULL
    assert sum(cell(image, 0, 0)) > sum(cell(image, 1, 0)) > sum(FULL)
    stretched = heatmap("values", *names, cells, span=(0.2, 0.6), form=".3f")
    assert cell(stretched, 0, 0) == PALE
    assert cell(stretched, 1, 0) == cell(stretched, 1, 1) == FULL


def test_limits_and_places() -> None:
    assert limits([]) == (0.0, 1.0)
    low, high = limits([1.0] * 99 + [1000.0], 0.98)
    assert low < 1.0 < high < 2.0
    assert places([0.0, 5.0, 20.0], (0.0, 10.0), 100.0, 200.0) == [100.0, 150.0, 200.0]
    assert places([3.0], (3.0, 3.0), 7.0, 9.0) == [7.0]
    assert shortened("teddybear", 5) == "tedd…" and shortened("teddy", 5) == "teddy"


def test_heights_that_are_always_shown() -> None:
    """A line from 0.4 to 0.6 fills the axis, unless that shall reach from 0 to 1."""
    lines = {"one": [(1, 0.4), (2, 0.6)]}
    alone, within = (
        np.ptp(where(curves("t", "x", lines, shown=shown), LINES[0])[:, 1])
        for shown in ((), (0.0, 1.0))
    )
    assert within < 0.3 * alone
