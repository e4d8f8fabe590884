"""Names of LoRA weights in files: kohya's scheme, which ComfyUI, A1111, Forge and diffusers read.

A UNet layer is `lora_unet_` and its diffusers module path with underscores for dots; a text
encoder layer is `lora_te_` (one encoder) or `lora_te1_` / `lora_te2_` (SDXL) and its path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from ..adapters.spec import TARGETS
from ..backbone.families import family_named
from ..backbone.keys import unet_diffusers_to_ldm
from ..backbone.modules import unet_shapes
from ..errors import InputError, StateError

UNET = "lora_unet_"
TEXT_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
FILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
DEVICE_NAMES = frozenset(
    ("con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10)))
)


def check_file_name(name: str, what: str) -> None:
    """Raise InputError unless `name` is safe as a file name on every system."""
    if not FILE_NAME.fullmatch(name):
        raise InputError(
            f"{what} {name!r} cannot be a file name: write 1 to 64 letters a-z or A-Z, digits, "
            "'_' or '-'."
        )
    if name.casefold() in DEVICE_NAMES:
        raise InputError(f"{what} {name!r} is reserved by Windows; choose another.")


@cache
def text_prefixes(family: str) -> dict[str, str]:
    """Encoder key -> prefix of its layers. Raises ModelError for an unknown family."""
    encoders = [config.key for config in family_named(family).text]
    if len(encoders) == 1:
        return {encoders[0]: "lora_te_"}
    return {encoder: f"lora_te{number}_" for number, encoder in enumerate(encoders, 1)}


@cache
def layers(family: str) -> Mapping[str, tuple[int, int]]:
    """Every layer that an adapter of `family` can change -> (out, in) of its weight.

    Layers are named as adapters do: "unet.<path>" and "text.<encoder>.<path>".
    """
    found: dict[str, tuple[int, int]] = {}
    for key, shape in unet_shapes(family).items():
        path = key.removesuffix(".weight")
        if path != key and path.endswith(TARGETS):
            found[f"unet.{path}"] = (shape[0], shape[1])
    for config in family_named(family).text:
        for layer in range(config.layers):
            for projection in TEXT_PROJECTIONS:
                path = f"text_model.encoder.layers.{layer}.self_attn.{projection}"
                found[f"text.{config.key}.{path}"] = (config.width, config.width)
    return found


def kohya_name(layer: str, family: str) -> str:
    """The file's name for a layer of `layers(family)`. Raises StateError for any other."""
    if layer not in layers(family):
        raise StateError(f"{layer!r} is no layer of a {family} model that a LoRA file can name.")
    place, _, path = layer.partition(".")
    prefix = UNET
    if place == "text":
        encoder, _, path = path.partition(".")
        prefix = text_prefixes(family)[encoder]
    return prefix + path.replace(".", "_")


@cache
def layer_names(family: str) -> Mapping[str, str]:
    """Every file name of a layer -> the layer: the inverse of `kohya_name`, and more.

    Also knows the original model's block names (`lora_unet_input_blocks_…`, common for SDXL) and
    `lora_te1_` for the only text encoder.
    """
    names: dict[str, str] = {}
    original = unet_diffusers_to_ldm(family)
    for layer in layers(family):
        name = kohya_name(layer, family)
        names[name] = layer
        if layer.startswith("unet."):
            path = original[f"{layer.removeprefix('unet.')}.weight"].removesuffix(".weight")
            names[UNET + path.replace(".", "_")] = layer
        elif name.startswith("lora_te_"):
            names["lora_te1_" + name.removeprefix("lora_te_")] = layer
    return names
