"""A state's adapter and tokens as named tensors: what the LoRA and embedding files hold."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..adapters.factors import low_rank_factors
from ..adapters.spectrum import Spectrum
from ..concepts import Concept
from ..errors import StateError
from ..state import LifelongState
from .naming import kohya_name, layers, text_prefixes
from .spectral import whole_changes

BUNDLE = "bundle_emb"
SINGLE = "string_to_param.*"
"""Name of the only vector of a bundled embedding, for models with one text encoder."""

EMBEDDING = "emb_params"
"""The same in an embedding's own file."""


def lora_state_dict(state: LifelongState, spectrum: Spectrum | None = None) -> dict[str, Tensor]:
    """The state's adapter as a LoRA in kohya names: `.lora_down.weight` [k, in],
    `.lora_up.weight` [out, k] and `.alpha` [] per layer, fp32 on the CPU;
    ΔW = (alpha / k) · up @ down.

    Every kind of adapter but one is a LoRA, exactly up to fp32's rounding. Full matrices
    (key_value) are filled up with zeros to one k, as large as the largest layer's min(out, in):
    releases of diffusers take the ranks, or the alphas, of some layers for those of others where
    they differ, and refuse `.diff` keys, which would be smaller. Only spectral adapters, which
    change the whole UNet, give `whole_changes`.

    spectrum: the decomposed weights of the base model, for spectral adapters.

    Every key is a layer: `comfy.sd.load_lora_for_models` takes it as it is.

    Raises StateError when a layer is none of the family's, or of another size, and for a spectral
    adapter without a spectrum.
    """
    if state.adapter_spec.kind == "spectral":
        return whole_changes(state, require_spectrum(spectrum))
    tensors: dict[str, Tensor] = {}
    names = {
        layer: kohya_name(layer, state.family)
        for layer in dict.fromkeys(key.rsplit(".", 1)[0] for key in state.adapter)
    }
    found = low_rank_factors(state.adapter_spec, state.adapter, layers(state.family))
    rank = max((len(factors.down) for factors in found.values()), default=0)
    for layer, factors in found.items():
        name, more = names[layer], rank - len(factors.down)
        tensors[f"{name}.lora_down.weight"] = pad(factors.down, (0, 0, 0, more)).clone()
        tensors[f"{name}.lora_up.weight"] = pad(factors.up, (0, more)).clone()
        tensors[f"{name}.alpha"] = torch.tensor(factors.scale * rank)
    return tensors


def require_spectrum(spectrum: Spectrum | None) -> Spectrum:
    """`spectrum`. Raises StateError when there is none."""
    if spectrum is None:
        raise StateError(
            "This state only says how far the singular values of the base model's weights move, "
            "and the decomposed weights are not here. Load the base model and put the state on it "
            "once (in ComfyUI: Apply Lifelong State), then try again."
        )
    return spectrum


def embedding_state_dict(concept: Concept, family: str) -> dict[str, Tensor]:
    """A concept's vectors [m, width] as in an embedding file; of layer-wise ones the mean.

    Models with one text encoder: `emb_params`; SDXL: `clip_l` and `clip_g`.

    Raises StateError when the vectors are not those of the family's text encoders.
    """
    encoders = tuple(text_prefixes(family))
    if set(concept.vectors) != set(encoders):
        raise StateError(
            f"Concept {concept.token!r} has vectors for {', '.join(concept.vectors) or 'nothing'}; "
            f"a {family} model needs {', '.join(encoders)}."
        )
    vectors = concept.single().vectors
    if len(encoders) == 1:
        return {EMBEDDING: vectors[encoders[0]].clone()}
    return {encoder: vectors[encoder].clone() for encoder in encoders}


def bundled_state_dict(state: LifelongState) -> dict[str, Tensor]:
    """All concepts' vectors under `bundle_emb.<token>.…`, to lie in the LoRA file itself; of
    layer-wise ones the mean.

    A1111, Forge and OneTrainer read them by name from there.
    """
    return {
        f"{BUNDLE}.{concept.token}.{SINGLE if key == EMBEDDING else key}": value
        for concept in state.concepts
        for key, value in embedding_state_dict(concept, state.family).items()
    }
