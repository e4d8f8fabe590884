"""Telling families and prediction types apart from names and shapes alone, or refusing by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from ..errors import ModelError
from .checkpoint import MARKER, PREDICTION_METADATA, V_PREDICTION_KEY
from .families import FAMILIES, Family
from .keys import UNET_PREFIX
from .layout import Shape

SUPPORTED = "Supported are Stable Diffusion 1.x, 2.x and XL, and the demo model."

_FOREIGN: tuple[tuple[str, str], ...] = (
    (r"lora_(up|down|A|B)\b|^lora_unet_|\.hada_w|\.lokr_w", "a LoRA, not a base model"),
    (r"(^|\.)double_blocks\.0\.", "Flux or one of its relatives"),
    (r"(^|\.)joint_blocks\.0\.|transformer_blocks\.0\.attn\.add_q_proj", "Stable Diffusion 3"),
    (r"^control_model\.|controlnet_", "a ControlNet, not a base model"),
    (r"time_stack\.|temporal_|motion_modules\.", "a video model"),
    (r"scale_weight$|weight_scale$|scaled_fp8$|comfy_quant|\.absmax$", "a quantised model"),
    (r"^edm_mean$|^edm_vpred\.", "a model with EDM noise levels (Playground 2.5, CosXL)"),
    (r"^emb_params$|^string_to_param|^bundle_emb\.", "a textual inversion embedding"),
    (r"^ip_adapter\.", "an IP-Adapter"),
)
_PARTS: tuple[tuple[str, str], ...] = (
    (r"^input_blocks\.0\.0\.weight$|^conv_in\.weight$", "a UNet without text encoders and VAE"),
    (r"^decoder\.conv_in\.weight$|^(encoder|decoder)\.layers\.0\.", "a VAE alone"),
    (r"text_model\.|^transformer\.resblocks\.", "a text encoder alone"),
)
_EXTRA_INPUTS = {
    9: "an inpainting model (9 input channels)",
    8: "an instruct-pix2pix or video model (8 input channels)",
    5: "a depth-to-image model (5 input channels)",
}
_RELATIVES = {
    (384, 1280, 2560): "the Stable Diffusion XL refiner",
    (320, 1024, 1536): "Stable Diffusion 2.1 unCLIP",
    (320, 1024, 2048): "Stable Diffusion 2.1 unCLIP",
}
_SD2_MARK = UNET_PREFIX + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SD2_V_SPREAD = 0.09


def refuse_foreign(keys: Iterable[str], where: str) -> None:
    """Raise ModelError, with the name of what it is, when `keys` are of another kind of file."""
    keys = list(keys)
    for pattern, label in _FOREIGN:
        if any(re.search(pattern, key) for key in keys):
            raise ModelError(f"{where} is {label}. {SUPPORTED}")


def single_file_family(shapes: Mapping[str, Shape], where: str) -> Family:
    """The family of a single-file checkpoint from its keys and shapes.

    Raises ModelError for any other file, saying what it seems to be.
    """
    refuse_foreign(shapes, where)
    unet = {
        key[len(UNET_PREFIX) :]: shape
        for key, shape in shapes.items()
        if key.startswith(UNET_PREFIX)
    }
    if not unet:
        raise ModelError(
            f"{where} is {_part_name(shapes)}; a base model holds UNet, text encoders and VAE in "
            f"one file. {SUPPORTED}"
        )
    family = unet_family(unet, where)
    if family.name == "demo" and MARKER not in shapes:
        raise ModelError(
            f"{where} has the shape of the demo model but lacks its tensor '{MARKER}'. {SUPPORTED}"
        )
    return family


def unet_family(unet: Mapping[str, Shape], where: str) -> Family:
    """The family of a UNet from its shapes, under LDM names without prefix or diffusers names.

    Raises ModelError for a UNet of no known family.
    """
    first = unet.get("input_blocks.0.0.weight") or unet.get("conv_in.weight")
    context = next((s for k, s in unet.items() if k.endswith(".attn2.to_k.weight")), None)
    if first is None or len(first) != 4 or context is None:
        raise ModelError(f"{where} has no UNet with cross-attention. {SUPPORTED}")
    extra = unet.get("label_emb.0.0.weight") or unet.get("add_embedding.linear_1.weight")
    channels, inputs = first[:2]
    signature = (channels, context[1], extra[1] if extra else None)
    if signature in _RELATIVES:
        raise ModelError(f"{where} is {_RELATIVES[signature]}. {SUPPORTED}")
    if inputs != 4:
        label = _EXTRA_INPUTS.get(inputs, f"a UNet with {inputs} input channels")
        raise ModelError(f"{where} is {label}; 4 are expected. {SUPPORTED}")
    for family in FAMILIES.values():
        if signature == _signature(family):
            return family
    raise ModelError(
        f"{where} is of no known family: {channels} channels, context width {context[1]}, "
        f"{signature[2] or 'no'} extra conditions. {SUPPORTED}"
    )


def _signature(family: Family) -> tuple[int, int, int | None]:
    return (
        family.unet["block_out_channels"][0],
        family.unet["cross_attention_dim"],
        family.unet.get("projection_class_embeddings_input_dim"),
    )


def _part_name(keys: Iterable[str]) -> str:
    keys = list(keys)
    for pattern, label in _PARTS:
        if any(re.search(pattern, key) for key in keys):
            return label
    return "not a Stable Diffusion checkpoint"


def single_file_prediction(
    family: Family,
    keys: Iterable[str],
    metadata: Mapping[str, str],
    get: Callable[[str], Tensor],
) -> str:
    """epsilon or v_prediction, as ComfyUI decides it; metadata that says so goes first.

    SD2's two kinds differ in the spread of one bias of the last attention block, SDXL files carry
    a key, the demo model predicts v, everything else noise.
    """
    declared = metadata.get(PREDICTION_METADATA, "").lower()
    if declared:
        return "v_prediction" if declared.startswith("v") else "epsilon"
    if family.name == "sd2":
        spread = get(_SD2_MARK).float().std(unbiased=False)
        return "v_prediction" if spread > _SD2_V_SPREAD else "epsilon"
    if family.name == "sdxl" and V_PREDICTION_KEY in set(keys):
        return "v_prediction"
    return family.default_prediction
