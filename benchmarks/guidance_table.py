"""From the values of all cells to the table that is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lifelong_core.evaluation.interval import interval

BASE = "base"
"""The name that the base model has in place of an adapter's."""
COUNTED = ("pairs", "base_pairs")
"""Kinds of groups that the table of ways is over."""
SHEET_GROUPS = 3
Values = Mapping[str, Sequence[float]]
"""Metric -> one value per picture, or one for all."""
CellKey = tuple[str, str, str, str]
"""Adapter, kind of group, group, way of guiding."""


def summarised(cells: Mapping[CellKey, Values], seed: int) -> dict[str, Any]:
    """The first adapter's tables, with those of all under `adapters`.

    A table under `methods` has the mean over pairs and the interval of pairs drawn with
    replacement; under `pairs`, `base_pairs`, `triples` and `alone` stand single groups, with the
    interval of their pictures (of kid and mmd there is one value).
    """
    adapters: dict[str, Any] = {}
    for adapter in dict.fromkeys(key[0] for key in cells):
        tables: dict[str, Any] = {
            name: {} for name in ("methods", "pairs", "triples", "base_pairs", "alone")
        }
        for method in dict.fromkeys(key[3] for key in cells):
            mine = {key: v for key, v in cells.items() if key[0] == adapter and key[3] == method}
            pairs = [values for key, values in mine.items() if key[1] in COUNTED]
            if pairs:
                tables["methods"][method] = {
                    metric: _over(seed, [_mean(values[metric]) for values in pairs])
                    for metric in pairs[0]
                }
            for (_, kind, group, _), values in mine.items():
                tables[kind].setdefault(group, {})[method] = {
                    metric: _over(seed, each) for metric, each in values.items()
                }
        adapters[adapter] = {name: table for name, table in tables.items() if table}
    first = next(name for name in adapters if name != BASE or len(adapters) == 1)
    base = adapters.get(BASE, {})
    return {
        **adapters[first],
        "adapter": first,
        "base_pairs": base.get("base_pairs", {}),
        "adapters": adapters,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _over(seed: int, values: Sequence[float]) -> list[float | None]:
    """[mean, low, high]; no range for a single value."""
    found = interval({seed: dict(enumerate(values))})
    assert found is not None
    ends = (None, None) if len(values) == 1 else (round(found.low, 4), round(found.high, 4))
    return [round(found.mean, 4), *ends]


def sheet(strips: Mapping[tuple[str, str], Sequence[Path]]) -> Image.Image:
    """The JPEGs of the first groups, one row per way of guiding."""
    rows = [Image.open(path) for paths in list(strips.values())[:SHEET_GROUPS] for path in paths]
    whole = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole
