"""Attention of a UNet in mixed precision on a CPU, where torch's fused attention trains slowly.

In bf16 its backward pass takes four times as long as that of plain matrix products. Without
gradients, in fp32 and on GPUs the fused attention stays.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn


class TrainableAttnProcessor(AttnProcessor2_0):
    """diffusers' fused attention; its plain one for gradients under autocast on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self._plain = AttnProcessor()

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, positions, width] -> the same, as diffusers' processors are called."""
        on_cpu = hidden_states.device.type == "cpu"
        if on_cpu and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled():
            return self._plain(attn, hidden_states, *args, **kwargs)
        attended: Tensor = super().__call__(attn, hidden_states, *args, **kwargs)
        return attended


def attend_by_precision(unet: nn.Module) -> None:
    """Give every layer with the fused attention this one; those with another keep it."""
    for module in unet.modules():
        if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
            module.set_processor(TrainableAttnProcessor())
