"""Elastic weight consolidation as a part of methods: the penalty that a lesson gets from its state.

A first lesson has none: there is nothing to hold yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from ..fisher import DiagonalFisher, RankOneFisher
from ..objectives import Term
from ..objectives.fisher_penalty import fisher_penalty, rank_one_penalty
from ..state import LifelongState
from ..training.lesson import Lesson

FisherT = TypeVar("FisherT", DiagonalFisher, RankOneFisher)

logger = logging.getLogger(__name__)


def hold_weights(lesson: Lesson) -> Term | None:
    """(λ / 2) Σ_j F̄_j (θ_j - θ*_j)² with the state's mean Fisher F̄ and its weights θ*."""
    return _penalty(lesson, DiagonalFisher.of, fisher_penalty)


def hold_directions(lesson: Lesson) -> Term | None:
    """(λ / 2) Σ_k c_k (μ_k · (θ - θ_k))² with the state's rank-one Fisher."""
    return _penalty(lesson, RankOneFisher.of, rank_one_penalty)


def _penalty(
    lesson: Lesson,
    fisher_of: Callable[[LifelongState], FisherT | None],
    penalty: Callable[[FisherT, Mapping[str, nn.Parameter], Mapping[str, Tensor], float], Term],
) -> Term | None:
    state, weight = lesson.state, lesson.settings.ewc_weight
    if state is None or not weight:
        return None
    fisher = fisher_of(state)
    _warn_of_missing(state, fisher.lessons if fisher else ())
    if fisher is None:
        return None
    return penalty(fisher, lesson.adapter.named_parameters(), state.adapter, weight)


def _warn_of_missing(state: LifelongState, counted: Sequence[int]) -> None:
    missing = [c.phrase for n, c in enumerate(state.concepts) if n not in counted]
    if missing:
        logger.warning(
            "Not protected in this lesson, because no Fisher was estimated after theirs: %s. "
            "Consolidate after every lesson.",
            ", ".join(missing),
        )
