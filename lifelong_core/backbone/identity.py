"""Names for base models: one that survives rounding, and one for the very weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_SAMPLES_PER_TENSOR = 96


def fingerprint(family: str, prediction_type: str, unet: UNet2DConditionModel) -> str:
    """A name for a base model, such as `sd1-epsilon-0f3a91c2b4d5e6f7`.

    Hashes the signs of up to 96 weights of every UNet tensor, evenly spaced: rounding to fp16,
    bf16 or fp8 keeps every sign, while fine-tuning turns some of the hundred thousand.
    """
    digest = hashlib.sha256()
    for name, flat in _sampled(unet.state_dict()):
        digest.update(f"{name} ".encode())
        digest.update(bytes(torch.signbit(flat).to("cpu", torch.uint8).tolist()))
    return f"{family}-{prediction_type}-{digest.hexdigest()[:16]}"


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """A name for weights, to the bit: of up to 96 values of every tensor, evenly spaced.

    Any change of a whole tensor changes it, a LoRA's at whatever strength too. For names in caches
    only: rounding changes it as well.
    """
    digest = hashlib.sha256()
    for name, flat in _sampled(weights):
        digest.update(f"{name} ".encode())
        digest.update(flat.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def _sampled(weights: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """ "<name> <size>" and the values that stand for each tensor, by name."""
    found = []
    for name, value in sorted(weights.items()):
        flat = value.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES_PER_TENSOR)
        found.append((f"{name} {flat.numel()}", flat[::step][:_SAMPLES_PER_TENSOR]))
    return found
