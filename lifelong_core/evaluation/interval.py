"""95 % intervals by the bootstrap, over seeds and over the concepts of each seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..seeding import generator

DRAWS = 4000
COVERED = 0.95

Values = Mapping[int, Mapping[int, float]]
"""Seed -> concept -> value."""


class Interval(NamedTuple):
    """A mean and the range that holds 95 % of the bootstrap's means: without width where there is
    a single value."""

    mean: float
    low: float
    high: float


def interval(values: Values) -> Interval | None:
    """The mean over seeds of the mean over concepts; None where there is no value at all.

    Every draw takes as many seeds as there are, with replacement, and for each of them as many of
    its concepts: a seed is a stream of its own, so its concepts vary together. With one seed only
    the concepts vary. Equal values give equal intervals on every machine.
    """
    seeds = [_tensor(concepts) for concepts in values.values() if concepts]
    if not seeds:
        return None
    draw = generator(0, "bootstrap")
    count = len(seeds)
    means = torch.stack([_resampled(group, count, draw) for group in seeds])
    chosen = torch.randint(count, (count, DRAWS), generator=draw)
    slot, trial = torch.arange(count)[:, None], torch.arange(DRAWS)[None]
    drawn = means[chosen, slot, trial].mean(0)
    tail = (1.0 - COVERED) / 2.0
    low, high = torch.quantile(drawn, torch.tensor([tail, 1.0 - tail], dtype=drawn.dtype)).tolist()
    mean = torch.stack([group.mean() for group in seeds]).mean()
    return Interval(float(mean), low, high)


def rounded(found: Interval | None) -> list[float] | None:
    """[mean, low, high] as results are recorded."""
    return None if found is None else [float(f"{value:.6g}") for value in found]


def paired_difference(first: Values, second: Values) -> Interval | None:
    """`interval` of first - second over the seeds and concepts that both have.

    Both draw from the same noise, so what a seed or concept does to both cancels.
    """
    return interval(
        {
            seed: {c: value - second[seed][c] for c, value in concepts.items() if c in second[seed]}
            for seed, concepts in first.items()
            if seed in second
        }
    )


def pairs_of(first: Values, second: Values) -> int:
    """How many seeds and concepts both have: the interval of a single one shows nothing."""
    return sum(len(first[seed].keys() & second[seed].keys()) for seed in first.keys() & second)


def _tensor(concepts: Mapping[int, float]) -> Tensor:
    return torch.tensor(list(concepts.values()), dtype=torch.float64)


def _resampled(group: Tensor, slots: int, draw: torch.Generator) -> Tensor:
    """[slots, DRAWS]: means of concepts drawn with replacement."""
    picks = torch.randint(len(group), (slots, DRAWS, len(group)), generator=draw)
    return group[picks].mean(-1)
