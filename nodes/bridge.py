"""From ComfyUI's MODEL, CLIP and VAE to the library's Backbone: a copy of the same weights.

ComfyUI's weights are inference tensors and cannot be trained through, so the library gets a copy
of them, on ComfyUI's device, and gives the memory back afterwards.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_sampling
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..lifelong_core.backbone import Backbone, backbone_from_parts
from ..lifelong_core.errors import ModelError
from .codec import ComfyCodec

ENCODERS = ("clip_l", "clip_g", "clip_h")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SUPPORTED = "Stable Diffusion 1, 2 or XL, or the pack's demo model"


@contextmanager
def training_backbone(model: Any, clip: Any, vae: Any) -> Iterator[Backbone]:
    """A Backbone with the weights that MODEL and CLIP sample with, LoRAs of other nodes merged in.

    Enter it outside inference mode. ComfyUI's own models are unloaded first; the copy's memory is
    free when the block is left, whatever ended it.

    Raises ModelError, before any memory is spent, for models that cannot be trained.
    """
    _check_model(model)
    _check_clip(clip)
    codec = ComfyCodec(vae, model.model.latent_format)
    prediction_type = _prediction_type(model)
    device = model.load_device
    comfy.model_management.unload_all_models()
    backbone = backbone_from_parts(
        _weights(model, "diffusion_model.", model.model.diffusion_model.state_dict()),
        [_encoder_weights(clip, name) for name in _encoders(clip)],
        codec,
        prediction_type=prediction_type,
        dtype=_dtype(model),
        device=device,
    )
    try:
        yield backbone
    finally:
        # Frames of a traceback may hold the backbone long after an error; its weights must go now.
        backbone.to(device="meta")
        gc.collect()
        comfy.model_management.soft_empty_cache()


def _check_model(model: Any) -> None:
    kind = type(model.model.model_config).__name__
    if not isinstance(model.model.diffusion_model, UNetModel):
        raise ModelError(
            f"This MODEL is {kind}, which cannot learn concepts here. Use {SUPPORTED}."
        )
    if model.injections or model.weight_wrapper_patches:
        raise ModelError(
            "This MODEL carries a LoRA in bypass mode or another change that is not part of its "
            "weights. Link the MODEL as it is before that node."
        )
    _check_precision("MODEL", model.model.diffusion_model)


def _check_clip(clip: Any) -> None:
    if not _encoders(clip):
        kind = type(clip.cond_stage_model).__name__
        raise ModelError(
            f"This CLIP is {kind}, which has none of the text encoders {', '.join(ENCODERS)}. Link "
            f"the CLIP of {SUPPORTED}."
        )
    for name in _encoders(clip):
        encoder = getattr(clip.cond_stage_model, name)
        _check_precision("CLIP", encoder)
        layer, index = encoder.options_default[:2]
        usual = -1 if layer == "last" else index
        if clip.layer_idx not in (None, usual):
            raise ModelError(
                f"CLIP Set Last Layer is at {clip.layer_idx}, but lessons read this text encoder "
                f"at its own layer {usual}. Link the CLIP as it is before that node."
            )


def _check_precision(name: str, module: torch.nn.Module) -> None:
    for key, weight in module.state_dict().items():
        if weight.is_floating_point() and weight.dtype not in FLOATS:
            raise ModelError(
                f"The weights of this {name} are {weight.dtype} ({key}); lessons need float32, "
                "float16 or bfloat16. Load the checkpoint with its full weights instead of an "
                "fp8 or otherwise quantised one."
            )


def _prediction_type(model: Any) -> str:
    sampling = model.get_model_object("model_sampling")
    kinds = {
        comfy.model_sampling.EPS.calculate_denoised: "epsilon",
        comfy.model_sampling.V_PREDICTION.calculate_denoised: "v_prediction",
    }
    kind = kinds.get(type(sampling).calculate_denoised)
    usual = comfy.model_sampling.ModelSamplingDiscrete().sigmas
    sigmas = getattr(sampling, "sigmas", None)
    same = sigmas is not None and sigmas.shape == usual.shape
    if kind is None or not same or not torch.allclose(sigmas.cpu(), usual, rtol=1e-3):
        raise ModelError(
            "This MODEL samples with another noise schedule or prediction than Stable Diffusion's "
            "(LCM, zero terminal SNR or the like). Link the MODEL as it is before the node that "
            "changes its sampling."
        )
    return kind


def _dtype(model: Any) -> torch.dtype:
    return torch.float32 if model.load_device.type == "cpu" else model.model.get_dtype()


def _encoders(clip: Any) -> list[str]:
    return [name for name in ENCODERS if hasattr(clip.cond_stage_model, name)]


def _encoder_weights(clip: Any, name: str) -> dict[str, Tensor]:
    transformer = getattr(clip.cond_stage_model, name).transformer
    state = transformer.state_dict()
    if name == "clip_l":  # Stable Diffusion has no projection here; ComfyUI's is never filled.
        state.pop("text_projection.weight", None)
    return _weights(clip.patcher, f"{name}.transformer.", state)


def _weights(patcher: Any, prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state`, with the patches of `patcher` applied by ComfyUI's own calculation."""
    return {
        key: patcher.patch_weight_to_device(
            prefix + key, device_to=patcher.load_device, return_weight=True
        )
        if prefix + key in patcher.patches
        else weight
        for key, weight in state.items()
    }
