"""What a stream of lessons did to each concept, from the matrix R[i, j].

R[i, j] is a measurement of concept j after lesson i, both from 1; N is the last lesson. Every
function gives one value per concept. The papers' figures are their means:

    IA, TA, KID, A_MMD   mean over j of R[N, j]                 (A_MMD, KID: against real pictures)
    TFR-IA, TFR-TA       mean over j < N of R[j, j] - R[N, j]            (L2DM; low is good)
    BwT_MMD              mean over j < N of R[j, j] - R[N, j], R = MMD   ("Mining your own secrets";
                         high is good, above zero later lessons helped)
    F_MMD                mean over j < N of MMD(X[j, j], X[N, j])        (ibid.; low is good)
    kept_gain            mean over j of (R[N, j] - base_j) / (alone_j - base_j), R = IA

F_MMD compares a model with its own earlier pictures and so flatters methods that learn little;
read it beside BwT_MMD.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .mmd import mmd

Matrix = Mapping[tuple[int, int], float]
"""(lesson, concept) -> value; cells that were not measured are absent."""


def at_the_end(matrix: Matrix, last: int) -> dict[int, float]:
    """R[N, j] per concept j."""
    return {concept: value for (after, concept), value in matrix.items() if after == last}


def lost(matrix: Matrix, last: int) -> dict[int, float]:
    """R[j, j] - R[N, j] per concept j < N that has both: TFR of alignments, BwT of distances."""
    final = at_the_end(matrix, last)
    return {
        concept: matrix[concept, concept] - value
        for concept, value in final.items()
        if concept < last and (concept, concept) in matrix
    }


def moved(features: Mapping[tuple[int, int], Tensor], last: int) -> dict[int, float]:
    """MMD(X[j, j], X[N, j]) per concept j < N that has both: F_MMD.

    features: [P, D] per cell; picture p has the same prompt and noise in every cell of a concept.
    """
    return {
        concept: mmd(features[concept, concept], now, paired=True)
        for (after, concept), now in features.items()
        if after == last and concept < last and (concept, concept) in features
    }


def kept_gain(
    final: Mapping[int, float], base: Mapping[int, float], alone: Mapping[int, float]
) -> dict[int, float]:
    """(final - base) / (alone - base) per concept, all three IA from the same noise.

    base: the base model given the plain noun; alone: a LoRA trained on this concept only. Concepts
    that gain nothing even alone say nothing about keeping and are left out.
    """
    return {
        concept: (value - base[concept]) / (alone[concept] - base[concept])
        for concept, value in final.items()
        if alone[concept] > base[concept]
    }
