"""Learned vectors of concept tokens: one set for all cross-attention layers, or one per layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import InputError
from .tokens import TokenizedPrompt

ConceptVectors = Mapping[str, Tensor]
"""Learned vectors of one concept token: encoder key (clip_l, clip_g, clip_h) -> [m, width], or, of
layer-wise tokens (P+, Voynov et al. 2023; CIDM, section 3.2), [L, m, width]: a set of m for each of
the L cross-attention layers in the order in which the UNet runs them."""


def layer_count(vectors: ConceptVectors) -> int:
    """L of layer-wise vectors; 0 for one set of vectors that all layers share."""
    return next((len(value) for value in vectors.values() if value.dim() == 3), 0)


def row_count(vectors: ConceptVectors) -> int:
    """m, the number of positions that the token takes in a prompt."""
    return next((value.shape[-2] for value in vectors.values() if value.dim() > 1), 0)


def single_vectors(vectors: ConceptVectors) -> dict[str, Tensor]:
    """Vectors [m, width] for programs that know no layers: the mean of layer-wise ones."""
    return {key: value.mean(0) if value.dim() == 3 else value for key, value in vectors.items()}


def vectors_of_layer(vectors: ConceptVectors, layer: int) -> dict[str, Tensor]:
    """Vectors [m, width] of cross-attention layer number `layer`."""
    return {key: value[layer] if value.dim() == 3 else value for key, value in vectors.items()}


def is_layerwise(prompt: TokenizedPrompt, vectors: Mapping[str, ConceptVectors]) -> bool:
    """Whether the prompt names a concept with vectors of its own for every layer."""
    return any(layer_count(vectors[token]) for token in prompt.tokens)


def check_vectors(
    token: str, vectors: ConceptVectors, widths: Mapping[str, int], layers: int
) -> None:
    """Raise InputError unless `vectors` fit text encoders of `widths` and a UNet with `layers`
    cross-attention layers.
    """
    shapes = {key: tuple(value.shape) for key, value in vectors.items()}
    rows, found = row_count(vectors), layer_count(vectors)
    own = (found,) if found else ()
    fitting = {key: (*own, rows, width) for key, width in widths.items()}
    if rows < 1 or {key: shapes.get(key) for key in fitting} != fitting:
        wanted = ", ".join(f"{key} [m, {width}]" for key, width in widths.items())
        raise InputError(
            f"The vectors of '{token}' have the shapes {shapes}; this base model needs {wanted} "
            "with one m, or the same behind one number of layers. They were made for another "
            "family of base model."
        )
    if found and found != layers:
        raise InputError(
            f"The token '{token}' has vectors for {found} cross-attention layers, but this base "
            f"model has {layers}. Load the base model that the concept was learned on."
        )
