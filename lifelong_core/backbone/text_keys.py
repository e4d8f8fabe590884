"""Text encoder names: ours (transformers 4's `text_model.…`), OpenCLIP's, and their relatives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from ..errors import ModelError
from ..prompts.clip import ClipConfig
from .layout import Layout, Source
from .modules import empty_text, shapes_of

_Value = TypeVar("_Value")
_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_BARE = ("embeddings.", "encoder.", "final_layer_norm.")
_OPENCLIP_TABLES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_THIRDS = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}


def with_text_model(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """The same mapping under `text_model.…` names, which transformers 5 leaves out."""
    return {
        f"text_model.{key}" if key.startswith(_BARE) else key: value for key, value in state.items()
    }


def plain_layout(config: ClipConfig) -> Layout:
    """A text encoder under its own names."""
    return {name: Source(name) for name in shapes_of(empty_text(config))}


def openclip_layout(config: ClipConfig) -> Layout:
    """A text encoder under OpenCLIP's names: fused q, k, v and a transposed projection."""
    return {name: _openclip_source(name) for name in shapes_of(empty_text(config))}


def _openclip_source(name: str) -> Source:
    if name == "text_projection.weight":
        return Source("text_projection", transposed=True)
    if name in _OPENCLIP_TABLES:
        return Source(_OPENCLIP_TABLES[name])
    match = _LAYER.fullmatch(name)
    if match is None:
        raise KeyError(name)
    number, module, parameter = match.groups()
    block = f"transformer.resblocks.{number}"
    if module in _THIRDS:
        return Source(f"{block}.attn.in_proj_{parameter}", third=_THIRDS[module])
    return Source(f"{block}.{_OPENCLIP_LAYER[module]}.{parameter}")


def fitted(config: ClipConfig, keys: Iterable[str]) -> ClipConfig:
    """The config with as many layers as `keys` (ours or OpenCLIP's) hold.

    SD2 folders leave out the last layer, which nothing reads. Raises ModelError when a layer that
    is read is missing.
    """
    pattern = re.compile(r"(?:encoder\.layers|transformer\.resblocks)\.(\d+)\.")
    numbers = {int(match.group(1)) for match in map(pattern.search, keys) if match}
    layers = min(len(numbers), config.layers)
    needed = config.layers if config.pooled else config.output_layer
    if layers < needed:
        raise ModelError(
            f"The text encoder {config.key} has {layers} layers, at least {needed} are needed. "
            "The file is incomplete, or the encoder belongs to another model."
        )
    return replace(config, layers=layers)
