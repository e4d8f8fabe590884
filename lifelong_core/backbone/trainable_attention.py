"""Attention of a UNet where gradients flow: around two of torch's fused kernels.

On a CPU in mixed precision, the backward pass of the fused attention takes four times as long as
that of plain matrix products. On a GPU, cuDNN's, which torch prefers on the largest cards, gives
gradients that are not finite where a model attends to few of its words: keys that fill their tile
only in part, 77 of them, and strongly negative logits, as trained models have. Without gradients
the fused attention stays as torch chooses it.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SOUND_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Those of the fused attention whose gradients are right; cuDNN's is missing."""


class TrainableAttnProcessor(AttnProcessor2_0):
    """diffusers' fused attention; for gradients under autocast on a CPU its plain one, and for
    gradients on a GPU the fused one of `SOUND_BACKENDS`."""

    def __init__(self) -> None:
        super().__init__()
        self._plain = AttnProcessor()

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, positions, width] -> the same, as diffusers' processors are called."""
        device, trains = hidden_states.device.type, torch.is_grad_enabled()
        if trains and device == "cpu" and torch.is_autocast_enabled("cpu"):
            return self._plain(attn, hidden_states, *args, **kwargs)
        with sdpa_kernel(SOUND_BACKENDS) if trains and device == "cuda" else nullcontext():
            attended: Tensor = super().__call__(attn, hidden_states, *args, **kwargs)
        return attended


def attend_trainably(unet: nn.Module) -> None:
    """Give every layer with the fused attention this one; those with another keep it."""
    for module in unet.modules():
        if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
            module.set_processor(TrainableAttnProcessor())
