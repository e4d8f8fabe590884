"""Base models with random weights: for tests, and for true-size checks of speed and memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..prompts.clip import ClipText, storage_dtype
from ..prompts.stack import TextStack
from ..seeding import generator
from .codec import VaeCodec
from .context_layers import family_context_layers
from .families import family_named
from .model import Backbone
from .modules import empty_text, empty_unet, empty_vae, fill
from .schedule import NoiseSchedule

_NORM_SPREAD = 0.02
_EMBEDDING_SPREAD = 0.02
SD2_V_MARK = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
"""The tensor whose spread tells SD2's v models from its epsilon models (see detect.py)."""
_SD2_V_SPREAD = 0.2


def random_backbone(
    family: str = "demo",
    *,
    seed: int = 0,
    prediction_type: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Backbone:
    """A base model of `family` at true size with random weights of trained models' magnitude.

    Every tensor is drawn from (`seed`, its name) alone. `prediction_type` defaults to the
    family's. Raises ModelError for an unknown family or prediction type.
    """
    chosen = family_named(family)
    prediction = prediction_type or chosen.default_prediction
    schedule = NoiseSchedule.scaled_linear(prediction).to(device)
    unet = empty_unet(chosen)
    randomize(unet, seed, "unet", dtype, device)
    if family == "sd2" and prediction == "v_prediction":
        mark = unet.get_parameter(SD2_V_MARK)
        mark.data = _normal(mark, _SD2_V_SPREAD, seed, "sd2 v").to(mark)
    encoders: list[ClipText] = []
    for config in chosen.text:
        encoder = empty_text(config)
        randomize(encoder, seed, config.key, storage_dtype(dtype), device)
        encoders.append(encoder)
    vae = empty_vae(chosen)
    randomize(vae, seed, "vae", torch.float32, device)
    codec = VaeCodec(vae, chosen.latent_scale)
    text = TextStack(encoders, len(family_context_layers(family)))
    return Backbone(chosen, unet, text, codec, schedule)


def randomize(
    module: nn.Module, seed: int, label: str, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Fill a meta module: weights and biases uniform in ±1/sqrt(fan-in), norms near identity."""

    def fetch(name: str) -> Tensor:
        owner = module.get_submodule(name.rpartition(".")[0])
        parameter = module.get_parameter(name)
        is_weight = name.endswith("weight")
        if isinstance(owner, nn.Embedding):
            return _normal(parameter, _EMBEDDING_SPREAD, seed, label, name)
        if isinstance(owner, (nn.LayerNorm, nn.GroupNorm)):
            return _normal(parameter, _NORM_SPREAD, seed, label, name) + float(is_weight)
        bound = 1.0 / math.sqrt(owner.get_parameter("weight")[0].numel())
        value = torch.empty(parameter.shape)
        return value.uniform_(-bound, bound, generator=generator(seed, label, name))

    fill(module, fetch, dtype=dtype, device=device)


def _normal(like: Tensor, spread: float, seed: int, *labels: str) -> Tensor:
    return torch.randn(like.shape, generator=generator(seed, *labels)) * spread
