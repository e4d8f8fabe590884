"""Number formats of a training run: autocast, loss scaling, and what fits the base weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ..backbone import Backbone
from ..errors import InputError, TrainingError

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = 1.0
"""Gradients that overflow without any loss scaling will not stop overflowing."""


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype of mixed precision for "bf16" and "fp16"; None for "fp32"."""
    return AUTOCAST[precision]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision for forward passes; nothing for "fp32".

    Base weights that have this dtype already are used as they are, others are cast at every use.
    """
    dtype = AUTOCAST[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def make_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """A loss scaler that works for "fp16" and does nothing otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def check_precision(backbone: Backbone, precision: str) -> None:
    """Raise InputError when half precision base weights would be trained on without autocast."""
    if AUTOCAST[precision] is None and backbone.dtype != torch.float32:
        name = str(backbone.dtype).removeprefix("torch.")
        half = "fp16" if backbone.dtype == torch.float16 else "bf16"
        raise InputError(
            f"The base model's weights are {name}, but the lesson's precision is fp32. Choose "
            f"precision {half}, or load the base model in fp32."
        )


def check_scale(scaler: torch.amp.GradScaler, step: int) -> None:
    """Raise TrainingError when the loss scale of fp16 has fallen to where nothing is scaled."""
    if scaler.get_scale() < SMALLEST_SCALE:
        raise TrainingError(
            f"The gradients overflow fp16 in step {step} at every loss scale. Choose precision "
            "bf16 or fp32."
        )
