"""Custom Diffusion's constrained merge of K and V (Kumari et al. 2023, eq. 4 and 5).

Per layer, the smallest change to what other captions get, such that every concept's own words
keep what its own lesson gave them:

    min_ΔW ‖ΔW C_reg^T‖_F  subject to  ΔW c = ΔW_i c  for all states c of concept i,

    ΔW = E (D C^T)^-1 D,   D = C (C_reg^T C_reg)^-1,   E = [ΔW_i c] as columns.

C [s, d] and C_reg [n, d] are states of the text encoder. The base weights cancel: V - W_0 C^T in
the paper's form is E here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backbone import Backbone
from ..backbone.context_layers import family_context_layers
from ..concepts import Concept
from ..errors import StateError
from ..prompts import ConceptVectors, vectors_of_layer
from ..prompts.captions import OBJECT_TEMPLATES, caption_for
from ..prompts.tokens import Position, TokenVector, end_position
from ..state import LifelongState
from ..training import ProgressCallback
from .context import Consolidation, with_report
from .merge import kept_adapters

RIDGE = 1e-4
"""Added to the diagonal of C_reg^T C_reg, which has directions that no caption reaches."""
SAME = 1e-6
"""States this close, relative to their length, are the same: the encoder is causal, so words
before the concept's token have one state in all prompts."""
PROMPTS = ("{}", "a photo of {}")
NOUNS = (
    "apple", "bicycle", "bird", "boat", "book", "bridge", "building", "car", "chair", "child",
    "city", "cup", "field", "flower", "horse", "house", "lamp", "man", "mountain", "river",
    "street", "table", "train", "tree", "woman",
)  # fmt: skip
"""Everyday things whose captions shall keep their keys and values: 200 with the templates."""


@dataclass(frozen=True)
class ConstrainedMerge:
    """Phase: the adapter becomes the constrained merge of all lessons' own adapters (key_value).

    Their own stay in the records. With a single lesson there is nothing to merge.
    """

    name: str = "constrained merge"

    def __call__(
        self, work: Consolidation, state: LifelongState, on_progress: ProgressCallback | None
    ) -> LifelongState:
        if state.adapter_spec.kind != "key_value":
            raise StateError(
                "The constrained merge is for adapters of kind key_value, but this state has "
                f"{state.adapter_spec.describe()}."
            )
        adapters = kept_adapters(state)
        if len(adapters) == 1:
            return state
        regular = caption_states(work.backbone, work.vectors)
        problems = _problems(work, state, regular)
        merged, missed, wanted = {}, 0.0, 0.0
        for key in state.adapter:
            targets, solve = problems[key.removeprefix("unet.").rpartition(".to_")[0]]
            values = values_at_targets([own[key] for own in adapters], targets)
            delta = solve(values)
            missed += float((delta @ solve.targets.mT - values).square().sum())
            wanted += float(values.square().sum())
            merged[key] = delta.float()
        report = {
            "constraints": len(solve.targets),
            "captions": len(regular),
            "missed": math.sqrt(missed / wanted) if wanted else 0.0,
        }
        return with_report(replace(state, adapter=merged), self.name, report)


class Projection:
    """E -> E (D C^T)^-1 D for the states C of all concepts; in fp64 on the CPU.

    The pseudo-inverse is the inverse unless there are more states than dimensions; the
    constraints are then met as well as they can be, in the least-squares sense.
    """

    def __init__(self, targets: Tensor, regular: Tensor) -> None:
        self.targets = targets.double().cpu()
        captions = regular.double().cpu()
        gram = captions.mT @ captions + RIDGE * torch.eye(captions.shape[1], dtype=torch.float64)
        spread = torch.linalg.solve(gram, self.targets.mT).mT
        overlap = self.targets @ spread.mT
        self._rows = torch.linalg.pinv(overlap, hermitian=True) @ spread

    def __call__(self, values: Tensor) -> Tensor:
        """ΔW [out, d] for values [out, s] that it shall have at the targets."""
        return values @ self._rows


def _problems(
    work: Consolidation, state: LifelongState, regular: Tensor
) -> dict[str, tuple[list[Tensor], Projection]]:
    """Cross-attention layer -> the concepts' states there, and the projection for them: one for all
    layers, unless a token has vectors of its own for each.
    """

    def problem(layer: int) -> tuple[list[Tensor], Projection]:
        vectors = {token: vectors_of_layer(own, layer) for token, own in work.vectors.items()}
        targets = concept_states(work.backbone, state.concepts, vectors)
        return targets, Projection(torch.cat(targets), regular)

    names = family_context_layers(state.family)
    if any(concept.layers for concept in state.concepts):
        return {name: problem(layer) for layer, name in enumerate(names)}
    return dict.fromkeys(names, problem(0))


def values_at_targets(deltas: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """E [out, s]: what each concept's own change [out, d] gives to its own states [s_i, d]."""
    return torch.cat(
        [
            delta.double().cpu() @ states.double().cpu().mT
            for delta, states in zip(deltas, targets, strict=True)
        ],
        dim=1,
    )


@torch.no_grad()
def concept_states(
    backbone: Backbone, concepts: Sequence[Concept], vectors: Mapping[str, ConceptVectors]
) -> list[Tensor]:
    """Per concept the states [s, d] from its token to the end of "<token> <noun>" and "a photo of
    <token> <noun>", each once.

    Words before the token do not know it; concepts would only contradict each other there.
    """
    found = []
    for concept in concepts:
        rows: list[Tensor] = []
        for template in PROMPTS:
            states, positions = _states(backbone, template.format(concept.phrase), vectors)
            start = next(n for n, p in enumerate(positions) if isinstance(p.item, TokenVector))
            rows += list(states[start:])
        found.append(torch.stack(_distinct(rows)))
    return found


@torch.no_grad()
def caption_states(backbone: Backbone, vectors: Mapping[str, ConceptVectors]) -> Tensor:
    """States [n, d] of all words of 200 captions without concepts, begin and end included."""
    captions = [caption_for(t, f"a {noun}") for noun in NOUNS for t in OBJECT_TEMPLATES]
    return torch.cat([_states(backbone, caption, vectors)[0] for caption in captions])


def _states(
    backbone: Backbone, prompt: str, vectors: Mapping[str, ConceptVectors]
) -> tuple[Tensor, tuple[Position, ...]]:
    """Encoder states [words, d] of a short prompt without its padding, and their positions."""
    chunk = backbone.text.tokenize(prompt, vectors).chunks[0]
    length = end_position(chunk) + 1
    return backbone.text.encode([prompt], vectors).context[0, :length], chunk[:length]


def _distinct(rows: Sequence[Tensor]) -> list[Tensor]:
    kept: list[Tensor] = []
    for row in rows:
        if all(float((row - other).norm()) > SAME * float(row.norm()) for other in kept):
            kept.append(row)
    return kept
