"""Online Fisher information of a lesson, with or without the classifier's scores.

"Mining your own secrets" (ICLR 2025), Eq 4 and 5, estimated after everything else of the lesson
is done (Alg 4). The rank-one form is that of "Rank-1 Fisher EWC" (ICLR 2026).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fisher import DIAGONAL, RANK_ONE, require_uncounted, with_diagonal, with_rank_one
from ..state import LifelongState
from ..training import ProgressCallback
from .context import Consolidation, with_report
from .fisher_passes import FisherPasses


@dataclass(frozen=True)
class UpdateFisher:
    """Count the newest lesson in the state's Fisher.

    dc: with the classifier's term of Eq 5 (EWC DC); rank_one: in the rank-one form. The
    tokens' vectors are constants here: the Fisher is the adapter's alone.
    """

    dc: bool = False
    rank_one: bool = False

    @property
    def name(self) -> str:
        return "fisher" + "_rank1" * self.rank_one + "_dc" * self.dc

    def __call__(
        self, work: Consolidation, state: LifelongState, on_progress: ProgressCallback | None
    ) -> LifelongState:
        """`state` with the lesson in its Fisher. Raises StateError if it is there already,
        TrainingError when gradients are not finite.
        """
        require_uncounted(state, RANK_ONE if self.rank_one else DIAGONAL)
        started = time.perf_counter()
        passes = FisherPasses(work, state, self.name, self.dc, on_progress)
        with passes.attached():
            state = _rank_one(passes, state) if self.rank_one else _diagonal(passes, state)
        report = {"seconds": time.perf_counter() - started}
        if self.dc:
            report |= passes.log.report(self.name)
        return with_report(state, self.name, report)


def _diagonal(passes: FisherPasses, state: LifelongState) -> LifelongState:
    """F = E[g²] (Eq 4), squared sample by sample."""
    squares = mean_of(
        {name: value.square().mean(dim=0) for name, value in gradients.items()}
        for gradients in passes.gradients(range(passes.iterations))
    )
    return with_diagonal(state, squares)


def _rank_one(passes: FisherPasses, state: LifelongState) -> LifelongState:
    """μ = E[g] over the first half of the iterations, E[(μ · g)²] over the second.

    Not over the same ones: μ leans towards the samples that it was made of.
    """
    n = passes.iterations
    mean = mean_of(
        {name: value.mean(dim=0) for name, value in gradients.items()}
        for gradients in passes.gradients(range((n + 1) // 2))
    )
    along = mean_of(
        {"square": _products(gradients, mean).square().mean()}
        for gradients in passes.gradients(range((n + 1) // 2, n))
    )
    return with_rank_one(state, mean, float(along["square"]))


def _products(gradients: Mapping[str, Tensor], mean: Mapping[str, Tensor]) -> Tensor:
    """μ · g [B] over all weights."""
    parts = [(value * mean[name]).flatten(1).sum(dim=1) for name, value in gradients.items()]
    return torch.stack(parts).sum(dim=0)


def mean_of(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of equally named tensors, by name."""
    sums: dict[str, Tensor] = {}
    count = 0
    for part in parts:
        sums = {name: sums[name] + value if sums else value for name, value in part.items()}
        count += 1
    return {name: value / count for name, value in sums.items()}
