"""What pictures made from photos add up to: shares, differences, the judge's ceiling, a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.versatile_shots import OURS, OUTSIDE, Shot, Studio
from lifelong_core.evaluation.interval import paired_difference
from lifelong_core.sharing.preview import to_picture
from lifelong_core.world.evaluate import reconstructed

SHOWN = 4
"""Photos of every concept in the sheet."""


def ceiling(studio: Studio, shots: Sequence[Shot]) -> dict[str, dict[str, float]]:
    """The judge's answers to perfect pictures and to the untouched photos, both after the VAE."""
    cases = [shot.case for shot in shots if shot.way == OURS]
    found: dict[str, dict[str, list[float]]] = {"perfect": {}, "untouched": {}}
    for case in cases:
        for kind, picture in (("perfect", case.perfect), ("untouched", case.photo)):
            (answers,) = case.answers(studio.judge, reconstructed(studio.backbone, picture[None]))
            for name, answer in answers.items():
                found[kind].setdefault(name, []).append(float(answer))
    return {
        kind: {name: mean(values) for name, values in by_name.items()}
        for kind, by_name in found.items()
    }


def summarised(shots: Sequence[Shot], seed: int) -> dict[str, Any]:
    """Every question's share of yes over all photos, `<question>` and `<question>_<way>`, and
    under `differences` ours less the other ways' with the 95 % interval over photos.

    edit_outside_change is the largest of all pictures.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for shot in shots:
        for name, value in shot.values.items():
            values.setdefault(name, {}).setdefault(shot.way, []).append(value)
    summary: dict[str, Any] = {}
    differences: dict[str, list[float]] = {}
    for name, by_way in values.items():
        for way, given in by_way.items():
            key = name if way == OURS else f"{name}_{way}"
            summary[key] = max(given) if name == OUTSIDE else mean(given)
            if way != OURS and name != OUTSIDE:
                differences[key] = _difference(by_way[OURS], given, seed)
    return summary | {"differences": differences}


def _difference(ours: Sequence[float], theirs: Sequence[float], seed: int) -> list[float]:
    """Mean and 95 % interval of the paired difference, photo by photo."""
    first, second = ({seed: dict(enumerate(values))} for values in (ours, theirs))
    found = paired_difference(first, second)
    assert found is not None  # there is at least one photo
    return [round(value, 4) for value in found]


def row(shot: Shot) -> dict[str, Any]:
    """One shot's entry in the result."""
    return {
        "concept": shot.case.token,
        "way": shot.way,
        "prompt": shot.case.prompt,
        **shot.values,
    }


def sheet(shots: Sequence[Shot]) -> Image.Image:
    """One row per concept: of each of its first photos the photo, with its mask whitened, and the
    first picture of every way."""
    rows: dict[str, dict[int, list[Tensor]]] = {}
    for shot in shots:
        cases = rows.setdefault(shot.case.token, {})
        pictures = cases.setdefault(id(shot.case), [shot.case.shown])
        pictures.append(shot.pictures[0])
    lines = [
        torch.cat([picture for group in list(cases.values())[:SHOWN] for picture in group], dim=2)
        for cases in rows.values()
    ]
    width = max(line.shape[2] for line in lines)
    padded = [F.pad(line, (0, width - line.shape[2]), value=1.0) for line in lines]
    return to_picture(torch.cat(padded, dim=1))


def mean(values: Sequence[float]) -> float:
    """Rounded to what is recorded."""
    return round(sum(values) / len(values), 4)


def told(shots: Sequence[Shot]) -> str:
    """The shares of one concept, by question and way."""
    values: dict[str, list[float]] = {}
    for shot in shots:
        for name, value in shot.values.items():
            values.setdefault(f"{name} {shot.way}", []).append(value)
    return ", ".join(f"{name} {mean(given):.2f}" for name, given in values.items())
