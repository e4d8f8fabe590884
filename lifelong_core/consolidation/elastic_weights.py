"""Elastic weight aggregation: how loudly each concept's adapter speaks (CIDM, eq. 3).

ψ_i ∝ M_i^s for concept i of all that a state knows, where M_i says how much of concept i is in the
prompt and the sharpness s how clearly the best one wins. ΔW = Σ_i ψ_i ΔW_i is put together once per
prompt, so that sampling costs what it costs with one adapter. At infinite sharpness only named
concepts speak, equally loudly: hard routing (`routing`).

Evidence. Vectors are compared as they stand in the token table, free of context, so that neither
the place in the prompt nor the order of lessons matters; of layer-wise ones the mean counts. For
each of concept i's own vectors v_k, over all tokens p of the prompt (no begin, end or padding),

    M_i = mean_k max(0, max_p cos(p, v_k) - b_k) / (1 - b_k),   b_k = max_w cos(w, v_k)

over all words w of the vocabulary. A concept that the prompt names has M_i = 1.

Gate. b_k is what plain words can reach. A learned vector starts at its noun and may stay near it,
so the cosine alone cannot tell "a dog" from the artist's own dog, nor that dog from a second one.
Measured from b_k, no prompt of words wakes a concept: it has M = 0 and gets the base model, bit by
bit, without a threshold to tune. A concept that is not named joins in only if it is nearer to a
named one than to any word, and the more so the nearer; there is no step at the gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..concepts import Concept
from ..errors import InputError
from ..prompts import TextStack, TokenizedPrompt, TokenVector, single_vectors
from ..prompts.clip import BOS, EOS
from ..state import LifelongState
from .merge import weighted_state

SHARPNESS = 4.0
RELEASED_SHARPNESS, RELEASED_SCALE = 4.0, 0.8
ROUNDING = 1e-5
"""Cosines that differ by less are the same."""
WORDS = 8192
"""Words that are compared at once, for memory's sake."""
SMALLEST = 2.0**-11
"""Weights below this vanish beside 1 in half precision; they would only cost rank."""

TokenTables = Mapping[str, Tensor]
"""Encoder key (clip_l, clip_g, clip_h) -> the token table [vocabulary, width] of a base model."""


def elastic_state(
    state: LifelongState, prompt: str, text: TextStack, *, sharpness: float = SHARPNESS
) -> LifelongState:
    """The state that draws `prompt` with the elastic weights of its adapters; for drawing only.

    The rank of its adapter grows with the number of concepts that speak, not of those known; where
    only one does, the adapter is that lesson's, bit for bit.

    Raises StateError when the state has not kept every lesson's adapter, InputError for a prompt
    that names an unknown concept and a sharpness that is not above 0.
    """
    tokenized = text.tokenize(prompt, state.vectors)
    weights = elastic_weights(state.concepts, tokenized, token_tables(text), sharpness)
    return weighted_state(state, weights)


def released_state(state: LifelongState, prompt: str, text: TextStack) -> LifelongState:
    """`elastic_state` with the weights of CIDM's released code; raises the same."""
    tokenized = text.tokenize(prompt, state.vectors)
    return weighted_state(state, released_weights(state.concepts, tokenized, token_tables(text)))


def token_tables(text: TextStack) -> TokenTables:
    """The token tables of a base model's text encoders."""
    return {key: encoder.token_table for key, encoder in text.modules.items()}


def elastic_weights(
    concepts: Sequence[Concept],
    prompt: TokenizedPrompt,
    tables: TokenTables,
    sharpness: float = SHARPNESS,
) -> list[float]:
    """ψ, one weight per concept: none negative, together 1, or all 0 if the prompt names none.

    Raises InputError for a sharpness that is not above 0.
    """
    if not sharpness > 0.0:
        raise InputError(f"A sharpness of {sharpness} cannot be used; give a number above 0.")
    named = torch.tensor([concept.token in prompt.tokens for concept in concepts])
    if not named.any():
        return [0.0] * len(concepts)
    own, owner = _own_vectors(concepts, tables)
    # Of the prompt's tokens only learned ones can be above what words reach.
    found = (own @ own[named[owner]].mT).amax(1)
    words = _word_cosines(own, tables)
    above = torch.where(found - words > ROUNDING, (found - words) / (1.0 - words), 0.0)
    evidence = _mean(above, owner)
    evidence[named] = 1.0
    return _shares(evidence, sharpness)


def released_weights(
    concepts: Sequence[Concept], prompt: TokenizedPrompt, tables: TokenTables
) -> list[float]:
    """ψ_i = 0.8 M_i⁴ / Σ_j M_j⁴ with the plain cosines M_i = mean_k max_p cos(p, v_k), p any token.

    As CIDM's released code has it, for comparison: without a gate, so that every concept speaks in
    every prompt. The code compares encoded vectors, of the prompt with its padding and of one text
    of all concepts; here neither context nor padding counts.
    """
    own, owner = _own_vectors(concepts, tables)
    tokens = [own.new_empty(0, own.shape[1])]
    for chunk in prompt.chunks:
        for position in chunk:
            if isinstance(position.item, TokenVector):
                number = [concept.token for concept in concepts].index(position.item.token)
                tokens.append(own[owner == number][position.item.row, None])
            elif position.item is not None and position.item not in (BOS, EOS):
                tokens.append(_rows(tables, [position.item]))
    said = torch.cat(tokens)
    if not len(said):
        return [0.0] * len(concepts)
    scores = _mean((own @ said.mT).amax(1), owner).pow(RELEASED_SHARPNESS)
    return [RELEASED_SCALE * share for share in (scores / scores.sum()).tolist()]


def _shares(evidence: Tensor, sharpness: float) -> list[float]:
    """M^s / Σ M^s of evidence [g] whose largest is 1, without the negligible ones."""
    powers = torch.where(evidence > 0.0, evidence.pow(sharpness), 0.0)
    powers[powers < SMALLEST * powers.sum()] = 0.0
    return [float(share) for share in powers / powers.sum()]


def _own_vectors(concepts: Sequence[Concept], tables: TokenTables) -> tuple[Tensor, Tensor]:
    """All concepts' vectors at length 1 [Σm, width], and the place of each one's concept [Σm]."""
    single = [single_vectors(concept.vectors) for concept in concepts]
    each = [_joined([vectors[key] for key in tables]) for vectors in single]
    counts = torch.tensor([len(one) for one in each])
    return torch.cat(each), torch.arange(len(each)).repeat_interleave(counts)


def _word_cosines(own: Tensor, tables: TokenTables) -> Tensor:
    """Each vector's largest cosine to a word of the vocabulary, [Σm]."""
    device = next(iter(tables.values())).device
    vectors, best = own.float().to(device), own.new_full((len(own),), -1.0)
    for part in zip(*(table.detach().split(WORDS) for table in tables.values()), strict=True):
        joined = torch.cat([table.float() for table in part], dim=-1)
        cosines = vectors @ joined.mT / joined.norm(dim=-1).clamp(min=1e-12)
        best = best.maximum(cosines.amax(1).to(best))
    return best


def _rows(tables: TokenTables, ids: Sequence[int]) -> Tensor:
    """Rows of the token tables at length 1, [n, width]."""
    return _joined([table[list(ids)] for table in tables.values()])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Vectors of all encoders side by side, at length 1: [n, width], fp64 on the CPU."""
    joined = torch.cat([part.detach().to("cpu", torch.float64) for part in parts], dim=-1)
    return torch.nn.functional.normalize(joined, dim=-1)


def _mean(values: Tensor, owner: Tensor) -> Tensor:
    """The mean [g] of each concept's values [Σm]."""
    sums = values.new_zeros(int(owner[-1]) + 1).index_add(0, owner, values)
    return sums / owner.bincount()
