"""What a state keeps of the Fisher information: which weights earlier concepts depend on.

Diagonal (`extras["fisher"]`): per weight the mean over lessons of E[g²], fp32, named as in the
adapter. Rank one (`extras["fisher_rank1"]`, "Rank-1 Fisher EWC", ICLR 2026): per lesson k the
direction μ_k of the mean gradient, E[(μ_k · g)²] along it, and where along it the weights were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import StateError
from .state import LifelongState

DIAGONAL, RANK_ONE = "fisher", "fisher_rank1"
LESSONS = "lessons"
"""Numbers of the lessons that a group counts, from 0, [n] int64: stands beside the weights."""
STRENGTHS, PLACES = "strengths", "places"


@dataclass(frozen=True)
class DiagonalFisher:
    """The mean over lessons F̄, by weight. lessons: their numbers in the state."""

    values: Mapping[str, Tensor]
    lessons: tuple[int, ...]

    @classmethod
    def of(cls, state: LifelongState) -> DiagonalFisher | None:
        """What `state` keeps; None when no lesson was counted yet."""
        group = state.extras.get(DIAGONAL)
        if group is None:
            return None
        return cls(_weights(group, state), tuple(group[LESSONS].tolist()))

    def normalised(self) -> dict[str, Tensor]:
        """F̄ divided by its mean over all weights (F̄ itself where that is zero)."""
        total = sum(float(value.sum(dtype=torch.float64)) for value in self.values.values())
        mean = total / sum(value.numel() for value in self.values.values())
        return {name: value / mean if mean else value for name, value in self.values.items()}


@dataclass(frozen=True)
class RankOneFisher:
    """Per lesson one direction among all weights.

    directions: by weight [n, *shape] fp16; over all weights of a lesson their mean square is 1.
    strengths: [n] E[(u · g)²] along the unit directions u; places: [n] direction · weights.
    """

    directions: Mapping[str, Tensor]
    strengths: Tensor
    places: Tensor
    lessons: tuple[int, ...]

    @classmethod
    def of(cls, state: LifelongState) -> RankOneFisher | None:
        """What `state` keeps; None when no lesson was counted yet."""
        group = state.extras.get(RANK_ONE)
        if group is None:
            return None
        lessons = tuple(group[LESSONS].tolist())
        return cls(_weights(group, state), group[STRENGTHS], group[PLACES], lessons)


def require_uncounted(state: LifelongState, group: str) -> None:
    """Raise StateError when the newest lesson of `state` is in its Fisher already."""
    known = state.extras.get(group)
    if known is not None and len(state.records) - 1 in known[LESSONS].tolist():
        raise StateError(
            f"The lesson of {state.concepts[-1].token!r} is already in this state's Fisher. "
            "Learn the next concept, or go back to the state from before this consolidation."
        )


def with_diagonal(state: LifelongState, squares: Mapping[str, Tensor]) -> LifelongState:
    """`state` whose mean also counts the newest lesson's E[g²].

    F̄_m = ((m - 1) F̄_{m-1} + F_m) / m over the m lessons that were counted.
    """
    require_uncounted(state, DIAGONAL)
    known = DiagonalFisher.of(state)
    before = known.lessons if known is not None else ()
    values = _complete(state, squares)
    if known is not None:
        values = {
            name: known.values[name] + (value - known.values[name]) / (len(before) + 1)
            for name, value in values.items()
        }
    return _with_group(state, DIAGONAL, {**values, LESSONS: _counted(state, before)})


def with_rank_one(
    state: LifelongState, mean_gradient: Mapping[str, Tensor], second_moment: float
) -> LifelongState:
    """`state` that also keeps the newest lesson's μ and E[(μ · g)²].

    The state grows by one adapter in fp16 per lesson. A gradient of zero keeps a direction of zero.
    """
    require_uncounted(state, RANK_ONE)
    known = RankOneFisher.of(state)
    mean = _complete(state, mean_gradient)
    square = sum(float(value.square().sum(dtype=torch.float64)) for value in mean.values())
    count = sum(value.numel() for value in mean.values())
    factor = math.sqrt(count / square) if square else 0.0
    fresh = {name: (value * factor).half() for name, value in mean.items()}
    place = sum(
        float((value.double() * state.adapter[name].double()).sum())
        for name, value in fresh.items()
    )
    strength = second_moment / square if square else 0.0
    stacked = {name: value.unsqueeze(0) for name, value in fresh.items()}
    strengths, places = torch.tensor([strength]), torch.tensor([place])
    if known is not None:
        stacked = {n: torch.cat([known.directions[n], value]) for n, value in stacked.items()}
        strengths = torch.cat([known.strengths, strengths])
        places = torch.cat([known.places, places])
    lessons = _counted(state, known.lessons if known is not None else ())
    group = {**stacked, STRENGTHS: strengths, PLACES: places, LESSONS: lessons}
    return _with_group(state, RANK_ONE, group)


def _weights(group: Mapping[str, Tensor], state: LifelongState) -> dict[str, Tensor]:
    if not set(state.adapter) <= set(group):
        raise StateError(
            "The Fisher of this state was estimated for an adapter with other weights. Use the "
            "state as it was saved, or start a new one."
        )
    return {name: group[name] for name in state.adapter}


def _complete(state: LifelongState, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fp32 copies, by weight of the adapter; zero for weights that the model never uses (the last
    layer of a text encoder whose last but one is read).
    """
    return {
        name: values[name].detach().cpu().float() if name in values else torch.zeros_like(weight)
        for name, weight in state.adapter.items()
    }


def _counted(state: LifelongState, before: tuple[int, ...]) -> Tensor:
    return torch.tensor([*before, len(state.records) - 1], dtype=torch.int64)


def _with_group(state: LifelongState, name: str, group: dict[str, Tensor]) -> LifelongState:
    return replace(state, extras={**state.extras, name: group})
