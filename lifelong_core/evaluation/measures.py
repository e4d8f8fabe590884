"""From the features of a run's pictures to its numbers, for every extractor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from .alignment import own_alignment, pairwise_alignment
from .drawing import Cell, pictures_of
from .drift import base_drift
from .extractors import Extractor
from .forgetting import moved
from .mmd import kid, mmd
from .prompts import concept_free_prompts
from .protocol import chosen
from .reference import FREE, Bench, Reference
from .stream import Stream


def measure(
    bench: Bench,
    stream: Stream,
    cells: Mapping[tuple[int, int], Cell],
    known: Reference,
    free: Cell,
) -> dict[str, Any]:
    """Extractor -> `cells`, `final`, `drift`.

    cells: R[i, j], every row on the same pictures. final: the followed concepts in the last row, on
    all of its pictures, with F_MMD and the IA of the base model and of a LoRA trained alone.
    """
    return {
        one.name: _Measuring(bench, stream, one).all(cells, known, free) for one in bench.extractors
    }


class _Measuring:
    """All numbers on one extractor."""

    def __init__(self, bench: Bench, stream: Stream, extractor: Extractor) -> None:
        self.bench, self.stream, self.extractor = bench, stream, extractor
        self.real = [extractor.images(subject.real) for subject in stream.subjects]

    def all(
        self, cells: Mapping[tuple[int, int], Cell], known: Reference, free: Cell
    ) -> dict[str, Any]:
        name, last = self.extractor.name, len(self.stream.subjects)
        features = {place: cell.features[name] for place, cell in cells.items()}
        common = {place: rows[: self.bench.protocol.per_cell] for place, rows in features.items()}
        f_mmd = moved(common, last)
        final = []
        for concept in chosen(last):
            rows = features[last, concept]
            base, alone = known.base[concept], known.alone[concept]
            final.append(
                self._numbers(concept, rows)
                | {
                    "f_mmd": f_mmd.get(concept),
                    "ia_base": self._ia(concept, base.features[name]),
                    "ia_alone": self._ia(concept, alone.features[name]),
                }
            )
        texts = self._texts(tuple(concept_free_prompts()), FREE, last=True)
        return {
            "cells": [
                {"after": after, **self._numbers(concept, rows)}
                for (after, concept), rows in common.items()
            ],
            "final": final,
            "drift": asdict(base_drift(free.features[name], known.free.features[name], texts)),
        }

    def _numbers(self, concept: int, rows: Tensor) -> dict[str, Any]:
        subject, real = self.stream.subjects[concept - 1], self.real[concept - 1]
        texts = self._texts(subject.prompts, concept, last=True)
        return {
            "concept": concept,
            "ia": self._ia(concept, rows),
            "ta": None if texts is None else float(own_alignment(rows, texts[: len(rows)]).mean()),
            "mmd": mmd(rows, real),
            "kid": kid(rows, real),
        }

    def _ia(self, concept: int, rows: Tensor) -> float:
        return float(pairwise_alignment(rows, self.real[concept - 1]).mean())

    def _texts(self, prompts: Sequence[str], concept: int, *, last: bool) -> Tensor | None:
        """[P, D]: the text of every picture of a cell; None where the network reads no texts."""
        if self.extractor.texts is None:
            return None
        pictures = pictures_of(
            prompts, self.bench.protocol, last=last, seed=self.stream.seed, concept=concept
        )
        return self.extractor.texts(pictures.prompts)
