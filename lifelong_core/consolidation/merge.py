"""One adapter out of several: a weighted sum of their changes, exactly, and its best low-rank form.

ΔW = Σ_i w_i ΔW_i. "LoRA-M": equal weights 1 / g (Zhong et al. 2024 scale the sum instead).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters.factors import Factors, Shape, low_rank_factors
from ..adapters.spec import MAX_RANK, AdapterSpec
from ..errors import InputError, StateError
from ..sharing.naming import layers
from ..state import LifelongState

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Merged:
    """An adapter made of others.

    kept_energy: Σ‖ΔW kept‖² / Σ‖ΔW‖² over all layers, 1 where nothing was cut off.
    """

    spec: AdapterSpec
    adapter: dict[str, Tensor]
    kept_energy: float


def merge_adapters(
    spec: AdapterSpec,
    adapters: Sequence[Weights],
    shapes: Mapping[str, Shape],
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
) -> Merged:
    """The sum of the changes of `adapters`, all of `spec`, each times its weight.

    weights: one per adapter; by default their mean is taken. shapes: (out, in) of layers.

    Low-rank kinds: a LoRA whose factors are those of all adapters one after another, so that its
    rank is the sum of theirs. Where an adapter cannot have that many, it is the full rank of the
    widest layer; nothing is lost in either. Full matrices: their sum, of the same kind.
    rank: cut the sum down to a LoRA of this rank, the nearest one in Frobenius norm.

    Raises InputError without adapters and for a rank out of range.
    """
    if not adapters:
        raise InputError("There is no adapter to merge; learn a concept first.")
    if rank is not None and not 1 <= rank <= MAX_RANK:
        raise InputError(f"Rank {rank} is out of range; use 1 to {MAX_RANK}.")
    shares = [1.0 / len(adapters)] * len(adapters) if weights is None else list(weights)
    if spec.kind == "key_value" and rank is None:
        full = {
            key: torch.stack(
                [share * own[key].float() for share, own in zip(shares, adapters, strict=True)]
            ).sum(0)
            for key in adapters[0]
        }
        return Merged(spec, full, 1.0)
    each = [low_rank_factors(spec, own, shapes) for own in adapters]
    joined = {layer: _joined([own[layer] for own in each], shares) for layer in each[0]}
    size = spec.rank * len(adapters)
    if rank is None and size <= MAX_RANK:
        return Merged(_lora(spec, size), _named(joined), 1.0)
    rank = rank or max(min(shapes[layer]) for layer in joined)
    cut = {layer: truncated(*factors, rank) for layer, factors in joined.items()}
    kept, total = (sum(energies) for energies in zip(*(e for _, e in cut.values()), strict=True))
    adapter = _named({layer: factors for layer, (factors, _) in cut.items()})
    return Merged(_lora(spec, rank), adapter, kept / total if total else 1.0)


def truncated(
    down: Tensor, up: Tensor, rank: int
) -> tuple[tuple[Tensor, Tensor], tuple[float, float]]:
    """The best rank-`rank` form of up @ down (Eckart & Young 1936), and its and the whole energy.

    down [k, in], up [out, k] -> down [rank, in], up [out, rank] with equal shares of the singular
    values, zeros beyond the rank of the product. Computed in fp64, and on k × k matrices only.
    """
    left, core_left = torch.linalg.qr(up.double())
    right, core_right = torch.linalg.qr(down.double().mT)
    u, values, vh = torch.linalg.svd(core_left @ core_right.mT, full_matrices=False)
    energies = values.square()
    found = min(rank, len(values))
    roots = values[:found].sqrt()
    new_up = up.new_zeros(len(up), rank)
    new_down = down.new_zeros(rank, down.shape[1])
    new_up[:, :found] = (left @ u[:, :found] * roots).to(up)
    new_down[:found] = (roots[:, None] * (vh[:found] @ right.mT)).to(down)
    return (new_down, new_up), (float(energies[:found].sum()), float(energies.sum()))


def merged_state(state: LifelongState, *, rank: int | None = None) -> tuple[LifelongState, float]:
    """`state` with the merge of all its lessons' own adapters, and the kept energy.

    It knows all concepts and is for drawing and exporting; the lessons' adapters are not in it.

    Raises StateError when the state has not kept every lesson's adapter, InputError as
    `merge_adapters` does.
    """
    adapters = kept_adapters(state)
    merged = merge_adapters(state.adapter_spec, adapters, layers(state.family), rank=rank)
    return drawing_only(state, merged.spec, merged.adapter), merged.kept_energy


def weighted_state(state: LifelongState, weights: Sequence[float]) -> LifelongState:
    """`state` with Σ_i w_i ΔW_i of its lessons' own adapters; for drawing only.

    weights: one per lesson. Adapters of weight 0 are left out. If only one is left, of weight 1, it
    is taken bit for bit; if none is, an adapter of zeros, with which the base model draws bit for
    bit what it draws alone.

    Raises StateError when the state has not kept every lesson's adapter, InputError as
    `merge_adapters` does.
    """
    adapters, spec = kept_adapters(state), state.adapter_spec
    active = [(own, share) for own, share in zip(adapters, weights, strict=True) if share]
    if not active:
        return unchanged_state(state)
    chosen, shares = zip(*active, strict=True)
    if shares == (1.0,):
        return drawing_only(state, spec, chosen[0])
    merged = merge_adapters(spec, chosen, layers(state.family), weights=shares)
    return drawing_only(state, merged.spec, merged.adapter)


def unchanged_state(state: LifelongState) -> LifelongState:
    """`state` with an adapter of zeros, with which the base model draws bit for bit what it draws
    alone; for drawing only."""
    nothing = {key: torch.zeros_like(value) for key, value in state.adapter.items()}
    return drawing_only(state, state.adapter_spec, nothing)


def kept_adapters(state: LifelongState) -> list[Weights]:
    """The adapter of each lesson, oldest first. Raises StateError when one is missing."""
    for record in state.records:
        if not record.adapter:
            raise StateError(
                f"This state has not kept the adapter of the lesson on {record.concept.token!r}, "
                "which is needed here. Use a state whose lessons all kept theirs."
            )
    return [record.adapter for record in state.records]


def drawing_only(state: LifelongState, spec: AdapterSpec, adapter: Weights) -> LifelongState:
    """`state` with another adapter and without those of its lessons."""
    records = tuple(replace(record, adapter={}) for record in state.records)
    return replace(state, adapter_spec=spec, adapter=adapter, records=records, extras={})


def _joined(parts: Sequence[Factors], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """down [Σk, in] and up [out, Σk], whose product is the weighted sum of the changes."""
    ups = [share * part.scale * part.up for share, part in zip(shares, parts, strict=True)]
    return torch.cat([part.down for part in parts]), torch.cat(ups, dim=1)


def _lora(spec: AdapterSpec, rank: int) -> AdapterSpec:
    """A LoRA of scale 1 on the layers of `spec`."""
    return replace(spec, kind="lora", rank=rank, alpha=float(rank))


def _named(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{layer}.{part}": value
        for layer, pair in factors.items()
        for part, value in zip(("down", "up"), pair, strict=True)
    }
