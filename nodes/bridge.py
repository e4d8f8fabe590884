"""From ComfyUI's MODEL, CLIP and VAE to the library's Backbone: a copy of the same weights.

ComfyUI's weights are inference tensors and cannot be trained through, so the library gets a copy
of them, on ComfyUI's device, and gives the memory back afterwards.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_sampling
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..lifelong_core.adapters.spectrum import matrix_layers
from ..lifelong_core.backbone import Backbone, Family, backbone_from_parts, fingerprint
from ..lifelong_core.backbone.detect import refuse_foreign, unet_family
from ..lifelong_core.backbone.keys import unet_diffusers_to_ldm
from ..lifelong_core.backbone.modules import empty_unet, shapes_of
from ..lifelong_core.errors import ModelError
from ..lifelong_core.state import LifelongState
from .codec import ComfyCodec

ENCODERS = ("clip_l", "clip_g", "clip_h")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SUPPORTED = "Stable Diffusion 1, 2 or XL, or the pack's demo model"


@contextmanager
def training_backbone(model: Any, clip: Any, vae: Any, precision: str) -> Iterator[Backbone]:
    """A Backbone with the weights that MODEL and CLIP sample with, LoRAs of other nodes merged in.

    Enter it outside inference mode. ComfyUI's own models are unloaded first; the copy's memory is
    free when the block is left, whatever ended it. precision: "fp32", "bf16" or "fp16", the
    format of the copy's weights.

    Raises ModelError, before any memory is spent, for models that cannot be trained.
    """
    _check_model(model)
    _check_clip(clip)
    codec = ComfyCodec(vae, model.model.latent_format)
    prediction_type, zero_terminal_snr = _sampling(model)
    with torch.inference_mode():  # ComfyUI's weights are inference tensors: move them as such.
        comfy.model_management.unload_all_models()
    backbone = backbone_from_parts(
        _unet_weights(model),
        [_encoder_weights(clip, name) for name in _encoders(clip)],
        codec,
        prediction_type=prediction_type,
        dtype=DTYPES[precision],
        device=model.load_device,
        zero_terminal_snr=zero_terminal_snr,
    )
    try:
        yield backbone
    finally:
        # Frames of a traceback may hold the backbone long after an error; its weights must go now.
        backbone.to(device="meta")
        gc.collect()
        comfy.model_management.soft_empty_cache()


@dataclass(frozen=True)
class BaseModel:
    """What a state asks of a base model, without a copy of its weights."""

    family: Family
    fingerprint: str


def base_model(model: Any) -> BaseModel:
    """Family and fingerprint of a MODEL. Raises ModelError for models of no known family."""
    family = model_family(model)
    prediction_type, _ = _sampling(model)
    with torch.inference_mode():  # The UNet below holds ComfyUI's own tensors, not copies.
        # While a clone with patches is loaded, the tensors that it shares with MODEL are patched.
        comfy.model_management.unload_model_and_clones(model)
        weights = _unet_weights(model)
        unet = empty_unet(family)
        names = unet_diffusers_to_ldm(family.name)
        unet.load_state_dict({name: weights[names[name]] for name in shapes_of(unet)}, assign=True)
        return BaseModel(family, fingerprint(family.name, prediction_type, unet))


def learned_on(model: Any, state: LifelongState) -> Any:
    """The MODEL that the state was learned on: `model`, or its clone without the LoRAs and other
    changes of weights that nodes have put on it.

    Raises StateError, with both names, when it is neither.
    """
    bare = model.clone()
    bare.patches = {}
    if state.base_fingerprint == base_model(bare).fingerprint:
        return bare
    state.require_backbone(base_model(model))
    return model


def unet_matrices(model: Any) -> dict[str, Tensor]:
    """A MODEL's linear and convolution weights, by the library's layer keys, on its device.

    Call it in inference mode.
    """
    comfy.model_management.unload_model_and_clones(model)  # as in `base_model`
    family, weights = model_family(model), _unet_weights(model)
    names = unet_diffusers_to_ldm(family.name)
    return {
        key: weights[names[f"{key.removeprefix('unet.')}.weight"]].to(model.load_device)
        for key in matrix_layers(empty_unet(family))
    }


def model_family(model: Any) -> Family:
    """The family of a MODEL, as far as it can be trained. Raises ModelError for any other."""
    _check_model(model)
    state = model.model.diffusion_model.state_dict()
    shapes = {key: tuple(weight.shape) for key, weight in state.items()}
    refuse_foreign(shapes, "The UNet")
    return unet_family(shapes, "The UNet").for_prediction(_sampling(model)[0])


def usual_precision(model: Any, wanted: str) -> str:
    """`wanted` if the MODEL's device is good at it, otherwise what it is good at."""
    if model.load_device.type == "cpu":
        return "fp32"
    if wanted == "bf16" and not comfy.model_management.should_use_bf16(model.load_device):
        return "fp16"
    return wanted


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
        if weight.is_floating_point() and weight.dtype not in DTYPES.values():
            raise ModelError(
                f"The weights of this {name} are {weight.dtype} ({key}); lessons need float32, "
                "float16 or bfloat16. Load the checkpoint with its full weights instead of an "
                "fp8 or otherwise quantised one."
            )


def _sampling(model: Any) -> tuple[str, bool]:
    """What the MODEL predicts, and whether its schedule ends in pure noise."""
    sampling = model.get_model_object("model_sampling")
    kinds = {
        comfy.model_sampling.EPS.calculate_denoised: "epsilon",
        comfy.model_sampling.V_PREDICTION.calculate_denoised: "v_prediction",
    }
    kind = kinds.get(type(sampling).calculate_denoised)
    sigmas = getattr(sampling, "sigmas", torch.empty(0)).cpu()
    for zero_terminal_snr in (False, True):
        usual = comfy.model_sampling.ModelSamplingDiscrete(zsnr=zero_terminal_snr).sigmas
        if kind and sigmas.shape == usual.shape and torch.allclose(sigmas, usual, rtol=1e-3):
            return kind, zero_terminal_snr
    raise ModelError(
        "This MODEL samples with another noise schedule or prediction than Stable Diffusion's "
        "(LCM or the like). Link the MODEL as it is before the node that changes its sampling."
    )


def _unet_weights(model: Any) -> Mapping[str, Tensor]:
    return _Weights(model, "diffusion_model.", model.model.diffusion_model.state_dict())


def _encoders(clip: Any) -> list[str]:
    return [name for name in ENCODERS if hasattr(clip.cond_stage_model, name)]


def _encoder_weights(clip: Any, name: str) -> Mapping[str, Tensor]:
    transformer = getattr(clip.cond_stage_model, name).transformer
    state = transformer.state_dict()
    if name == "clip_l":  # Stable Diffusion has no projection here; ComfyUI's is never filled.
        state.pop("text_projection.weight", None)
    return _Weights(clip.patcher, f"{name}.transformer.", state)


class _Weights(Mapping[str, Tensor]):
    """`state` with the patches of `patcher` merged, one weight at a time, by ComfyUI's own
    calculation."""

    def __init__(self, patcher: Any, prefix: str, state: dict[str, Tensor]) -> None:
        self.patcher = patcher
        self.prefix = prefix
        self.state = state

    def __getitem__(self, key: str) -> Tensor:
        name = self.prefix + key
        if name not in self.patcher.patches:
            return self.state[key]
        return self.patcher.patch_weight_to_device(
            name, device_to=self.patcher.load_device, return_weight=True
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)
