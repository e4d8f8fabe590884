"""Choosing which of the drawn pictures are replayed: L2DM's Eq 5, for all candidates at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..seeding import generator

RAINBOW, RANDOM = "rainbow", "random"
SELECTIONS = (RAINBOW, RANDOM)


def rainbow_scores(candidates: Tensor, anchors: Tensor, beta: float) -> Tensor:
    """S of Eq 5 for every pair: [A, K] of anchors [A, D] and candidates [K, D], of length one.

    S(a, i) = 1/N Σ_b (1 - cos(f̂_a, f̂_b)) + β_s cos(f̂_a, f_i), the sum over all N = K candidates
    of all concepts, a itself included (its term is 0). With m the mean of the candidates, the
    first part is 1 - f̂_a · m: one product instead of K² pairs.

    Raises InputError without candidates, for different widths and for values that are not finite.
    """
    if not len(candidates) or not len(anchors):
        raise InputError(
            f"There are {len(candidates)} candidates for {len(anchors)} remembered pictures; at "
            "least one of each is needed."
        )
    if candidates.shape[1] != anchors.shape[1]:
        raise InputError(
            f"The candidates' features are {candidates.shape[1]} wide, the remembered ones "
            f"{anchors.shape[1]}; both must come from one feature model."
        )
    if not bool(torch.isfinite(candidates).all()) or not bool(torch.isfinite(anchors).all()):
        raise InputError("Features have values that are not finite; no score can be made of them.")
    diversity = 1.0 - candidates @ candidates.mean(0)
    return diversity + beta * (anchors @ candidates.T)


def choose_best(scores: Tensor, anchor_concepts: Tensor, candidate_concepts: Tensor) -> Tensor:
    """For every anchor in turn the best candidate of its concept that is not taken yet, [A].

    scores: [A, K]; the other two: the concept's number of every anchor [A] and candidate [K]. Of
    equal scores the first candidate wins. Raises InputError when a concept has fewer candidates
    than anchors.
    """
    _check_enough(anchor_concepts, candidate_concepts)
    foreign = anchor_concepts[:, None] != candidate_concepts[None, :]
    open_scores = scores.masked_fill(foreign, float("-inf"))
    chosen = torch.empty(len(scores), dtype=torch.long)
    for anchor, row in enumerate(open_scores):
        chosen[anchor] = row.argmax()
        open_scores[:, chosen[anchor]] = float("-inf")
    return chosen


def choose_random(anchor_concepts: Tensor, candidate_concepts: Tensor, seed: int) -> Tensor:
    """For every anchor any candidate of its concept, none twice, [A]: what Eq 5 is compared with.

    Raises InputError when a concept has fewer candidates than anchors.
    """
    draw = generator(seed, "memory", "random")
    scores = torch.rand(len(candidate_concepts), generator=draw).expand(len(anchor_concepts), -1)
    return choose_best(scores, anchor_concepts, candidate_concepts)


def _check_enough(anchor_concepts: Tensor, candidate_concepts: Tensor) -> None:
    for concept in anchor_concepts.unique().tolist():
        wanted = int((anchor_concepts == concept).sum())
        there = int((candidate_concepts == concept).sum())
        if there < wanted:
            raise InputError(
                f"Concept {concept + 1} has {there} candidates for {wanted} remembered pictures; "
                "draw at least one candidate per prompt."
            )
