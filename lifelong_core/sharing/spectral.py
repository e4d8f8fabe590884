"""A spectral adapter as weights that others load: all of its change, or the nearest LoRA.

It shifts all singular values of a weight by much the same, so its change has nearly full rank: a
LoRA keeps about as much of it as the share of singular values that it has room for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..adapters.spec import NORM_PARTS
from ..adapters.spectrum import Decomposition, Spectrum
from ..backbone.modules import unet_shapes
from ..errors import InputError, StateError
from ..state import LifelongState
from .naming import UNET


class Truncated(NamedTuple):
    """tensors: of the LoRA. kept_energy: Σ‖ΔW kept‖² / Σ‖ΔW‖² over all weights of the UNet."""

    tensors: dict[str, Tensor]
    kept_energy: float


class _Change(NamedTuple):
    """U diag(values) Vᵀ of a weight of `shape`, under `name` in files."""

    name: str
    shape: tuple[int, ...]
    parts: Decomposition
    values: Tensor


def whole_changes(state: LifelongState, spectrum: Spectrum) -> dict[str, Tensor]:
    """All of the change, in LyCORIS' names: `.diff` in the shape of the weight, in the precision
    of the vectors; of norms `.w_norm` and `.b_norm` [channels], fp32.

    ComfyUI, A1111 and Forge load it; diffusers does not. It has as many numbers as the UNet.
    Raises StateError when adapter, family and spectrum do not fit together.
    """
    tensors = {}
    for name, shape, (left, _, right), values in _changes(state, spectrum):
        delta = (left.float() * values) @ right.float()
        tensors[f"{name}.diff"] = delta.view(shape).to(left.dtype)
    for key, value in _norms(state).items():
        layer, _, part = key.rpartition(".")
        ending = dict(zip(NORM_PARTS, ("w_norm", "b_norm"), strict=True))[part]
        tensors[f"{_name(layer, state)}.{ending}"] = value.clone()
    return tensors


def truncated_changes(state: LifelongState, spectrum: Spectrum, rank: int) -> Truncated:
    """The best LoRA of `rank` (Eckart & Young 1936), which every program loads, in kohya's names:
    `.lora_down.weight` [rank, in] or, of a convolution, [rank, in, h, w], `.lora_up.weight`
    [out, rank] or [out, rank, 1, 1], and `.alpha`, the rank; fp32. Layers of fewer singular values
    are filled up with zeros, see `lora_state_dict`.

    Nothing is decomposed: a change is U diag(δ) Vᵀ already. Norms, which a LoRA cannot change, are
    left out. Raises InputError for a rank below 1, StateError as `whole_changes` does.
    """
    if rank < 1:
        raise InputError(f"A LoRA's rank must be 1 or more, not {rank}.")
    tensors: dict[str, Tensor] = {}
    total = sum(float(value.square().sum()) for value in _norms(state).values())
    kept = 0.0
    for name, shape, (left, _, right), values in _changes(state, spectrum):
        largest = values.abs().topk(min(rank, len(values))).indices
        more = rank - len(largest)
        kept += float(values[largest].square().sum())
        total += float(values.square().sum())
        up = pad(left[:, largest].float() * values[largest], (0, more))
        down = pad(right[largest].float(), (0, 0, 0, more))
        tensors[f"{name}.lora_down.weight"] = down.reshape(rank, *shape[1:])
        tensors[f"{name}.lora_up.weight"] = up.view(*up.shape, *[1] * (len(shape) - 2))
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    return Truncated(tensors, kept / total if total else 1.0)


def _changes(state: LifelongState, spectrum: Spectrum) -> Iterator[_Change]:
    """The changes of all decomposed weights, on the CPU."""
    for key, shift in state.adapter.items():
        layer, _, part = key.rpartition(".")
        if part in NORM_PARTS:
            continue
        name = _name(layer, state)
        parts = spectrum.get(layer)
        if parts is None or len(parts.values) != len(shift):
            raise StateError(
                f"The decomposed weights given do not fit the adapter at {layer}. Give those of "
                f"the base model {state.base_fingerprint}."
            )
        parts = Decomposition(*(value.cpu() for value in parts))
        shape = unet_shapes(state.family)[f"{layer.removeprefix('unet.')}.weight"]
        yield _Change(name, shape, parts, torch.maximum(shift.float(), -parts.values))


def _norms(state: LifelongState) -> dict[str, Tensor]:
    return {
        key: value.float()
        for key, value in state.adapter.items()
        if key.rpartition(".")[2] in NORM_PARTS
    }


def _name(layer: str, state: LifelongState) -> str:
    path = layer.removeprefix("unet.")
    if path == layer or f"{path}.weight" not in unet_shapes(state.family):
        raise StateError(f"{layer!r} is no layer of a {state.family} model's UNet.")
    return UNET + path.replace(".", "_")
