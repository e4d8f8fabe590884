"""From the results of runs to one value per concept, seed and metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .forgetting import Matrix, kept_gain, lost

Result = Mapping[str, Any]
"""What `run_stream` returns."""

PerConcept = dict[int, float]


def matrix(result: Result, extractor: str, name: str) -> Matrix:
    """R[i, j] of "ia", "ta", "mmd" or "kid"; no "ta" where the extractor reads no texts."""
    cells = result["measured"][extractor]["cells"]
    return {
        (cell["after"], cell["concept"]): cell[name] for cell in cells if cell[name] is not None
    }


def _final(name: str) -> Callable[[Result, str], PerConcept]:
    def values(result: Result, extractor: str) -> PerConcept:
        final = result["measured"][extractor]["final"]
        return {one["concept"]: one[name] for one in final if one[name] is not None}

    return values


def _lost(name: str) -> Callable[[Result, str], PerConcept]:
    def values(result: Result, extractor: str) -> PerConcept:
        return lost(matrix(result, extractor, name), len(result["concepts"]))

    return values


def _kept_gain(result: Result, extractor: str) -> PerConcept:
    ia, base, alone = (_final(name)(result, extractor) for name in ("ia", "ia_base", "ia_alone"))
    return kept_gain(ia, base, alone)


def _base_drift(result: Result, extractor: str) -> PerConcept:
    return {0: result["measured"][extractor]["drift"]["kid"]}


def _of_run(name: str) -> Callable[[Result, str], PerConcept]:
    return lambda result, _extractor: {0: result[name]}


def _seconds(result: Result, _extractor: str) -> PerConcept:
    lessons = result["lessons"]
    share = len(lessons) / len(result["concepts"])
    return {number: share * one["seconds"] for number, one in enumerate(lessons, 1)}


VALUES: dict[str, Callable[[Result, str], PerConcept]] = {
    "ia": _final("ia"),
    "ta": _final("ta"),
    "tfr_ia": _lost("ia"),
    "tfr_ta": _lost("ta"),
    "a_mmd": _final("mmd"),
    "f_mmd": _final("f_mmd"),
    "bwt_mmd": _lost("mmd"),
    "kid": _final("kid"),
    "i2i": _final("ia"),
    "kept_gain": _kept_gain,
    "base_drift": _base_drift,
    "trained_percent": _of_run("trained_percent"),
    "stored_percent": _of_run("stored_percent"),
    "seconds": _seconds,
}
"""Metric -> its value per concept, 0 where it is one value of the whole run.

i2i is CLIP I2I: the same mean cosine as IA, which is why the two are equal on one extractor.
base_drift is KID to the base model on concept-free prompts. seconds are those of one lesson with
its consolidation, or of joint training as a share of it per concept.
"""


def values(
    results: Sequence[Result], method: str, metric: str, extractor: str
) -> dict[int, PerConcept]:
    """Seed -> concept -> value, of all runs of a method."""
    return {
        result["stream_seed"]: VALUES[metric](result, extractor)
        for result in results
        if result["method"] == method
    }
