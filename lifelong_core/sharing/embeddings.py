"""The concepts of a LoRA file, as text in its metadata: there no program takes them for layers."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbone.context_layers import family_context_layers
from ..backbone.families import family_named
from ..concepts import Concept
from ..errors import FileError, LifelongError
from ..prompts.vectors import check_vectors
from ..state import LifelongState
from .lora import BUNDLE, SINGLE
from .metadata import LAYERS

CONCEPTS = "lifelong.concepts"
"""JSON list of the tokens, oldest concept first."""

EMBEDDING = "lifelong.embedding."
"""Before a token: JSON of its `noun` and, per text encoder, its vectors [m, width] as `shape` and
`data`, base64 of 32-bit floats, lowest byte first. Vectors that are bundled as tensors are left
out. Layer-wise ones, [L, m, width], always stand here: what is bundled then is their mean."""

NOUN = "noun"
Vectors = dict[str, Tensor]


def concept_metadata(state: LifelongState, *, vectors: bool) -> dict[str, str]:
    """The state's concepts as metadata, with their vectors or only with layer-wise ones. Equal
    concepts give equal text."""
    found = {CONCEPTS: json.dumps([concept.token for concept in state.concepts])}
    layers = max((concept.layers for concept in state.concepts), default=0)
    if layers:
        found[LAYERS] = str(layers)
    for concept in state.concepts:
        entry: dict[str, Any] = {NOUN: concept.noun}
        if vectors or concept.layers:
            entry |= {encoder: _to_json(value) for encoder, value in concept.vectors.items()}
        found[EMBEDDING + concept.token] = json.dumps(entry, sort_keys=True)
    return found


def concept_part(metadata: Mapping[str, str]) -> dict[str, str]:
    """What of a file's metadata `concept_metadata` wrote."""
    own = (CONCEPTS, LAYERS)
    return {k: v for k, v in metadata.items() if k in own or k.startswith(EMBEDDING)}


def read_concepts(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], family: str
) -> tuple[tuple[Concept, ...], tuple[str, ...]]:
    """The concepts of file `name`, and the tokens bundled in it that have no noun there.

    Raises FileError when the concepts cannot be read or are not for `family`.
    """
    try:
        bundled = _bundled(tensors, family)
        tokens = [str(token) for token in json.loads(metadata.get(CONCEPTS, "[]"))]
        concepts = tuple(_concept(token, metadata, bundled) for token in tokens)
        for concept in concepts:
            _check(concept, family)
    except (LifelongError, LookupError, TypeError, ValueError) as error:
        raise FileError(
            f"The concepts in {name} cannot be read: {error}. Use another copy."
        ) from error
    return concepts, tuple(token for token in bundled if token not in tokens)


def _concept(token: str, metadata: Mapping[str, str], bundled: Mapping[str, Vectors]) -> Concept:
    entry = dict(json.loads(metadata[EMBEDDING + token]))
    noun = entry.pop(NOUN)
    vectors = {encoder: _from_json(value) for encoder, value in entry.items()}
    return Concept(token, noun, vectors or bundled[token])


def _bundled(tensors: Mapping[str, Tensor], family: str) -> dict[str, Vectors]:
    """Token -> vectors of those that lie among the tensors."""
    only = family_named(family).text[0].key
    found: dict[str, Vectors] = {}
    for key, value in tensors.items():
        if key.startswith(f"{BUNDLE}."):
            token, _, part = key.removeprefix(f"{BUNDLE}.").partition(".")
            found.setdefault(token, {})[only if part == SINGLE else part] = value
    return found


def _check(concept: Concept, family: str) -> None:
    widths = {config.key: config.width for config in family_named(family).text}
    if concept.vectors.keys() != widths.keys():
        found = ", ".join(concept.vectors) or "no encoder"
        raise FileError(
            f"{concept.token} has vectors for {found}; {family} models need {', '.join(widths)}"
        )
    check_vectors(concept.token, concept.vectors, widths, len(family_context_layers(family)))
    if not all(bool(value.isfinite().all()) for value in concept.vectors.values()):
        raise FileError(f"{concept.token} has values that are not finite")


def _to_json(vectors: Tensor) -> dict[str, Any]:
    data = vectors.detach().cpu().float().numpy().astype("<f4").tobytes()
    return {"shape": list(vectors.shape), "data": base64.b64encode(data).decode("ascii")}


def _from_json(value: Mapping[str, Any]) -> Tensor:
    data = np.frombuffer(base64.b64decode(value["data"], validate=True), "<f4")
    return torch.from_numpy(data.astype(np.float32).reshape(value["shape"]))
