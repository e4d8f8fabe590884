"""Decomposed weights of base models, which states with spectral adapters need to be applied."""

from __future__ import annotations

from typing import Any

import torch

from ..lifelong_core.adapters.spectrum import (
    Spectrum,
    decompose,
    kept_spectrum,
    load_spectrum,
)
from ..lifelong_core.state import LifelongState
from .bridge import learned_on, unet_matrices
from .folders import workspace


def spectrum_for(state: LifelongState, model: Any) -> Spectrum | None:
    """What `state` needs to be put on MODEL, see `learned_on`; None for most kinds of adapters.

    Found where a lesson left it; otherwise MODEL's weights are decomposed now, which takes minutes
    on a CPU, and kept for the next time.
    """
    if state.adapter_spec.kind != "spectral":
        return None

    def make() -> Spectrum:
        with torch.inference_mode():
            return decompose(unet_matrices(learned_on(model, state)))

    return kept_spectrum(state.base_fingerprint, workspace(), make)


def known_spectrum(state: LifelongState) -> Spectrum | None:
    """What `spectrum_for` has kept; None when there is none, or none is needed."""
    if state.adapter_spec.kind != "spectral":
        return None
    return load_spectrum(state.base_fingerprint, workspace())
