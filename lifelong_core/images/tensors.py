"""Pictures that are tensors already: ComfyUI batches, and cropping to the training size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError

MIN_SIDE = 64
"""Pictures with a shorter side hold too little to learn from and are refused."""

OVERSHOOT = 0.1
"""How far a resize filter may carry values over 0 and 1; beyond it the scale must be another."""


def fit(image: Tensor, size: int) -> Tensor:
    """The centre square of `image` [3, H, W], resized with antialiasing to [3, size, size]."""
    side = min(image.shape[-2:])
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    return resize(image[:, top : top + side, left : left + side], (size, size))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`image` [C, H, W] in [0, 1], resized to `size` (height, width) by antialiased bicubic."""
    if tuple(image.shape[-2:]) == size:
        return image.clone(memory_format=torch.contiguous_format)
    resized = functional.interpolate(
        image.unsqueeze(0), size, mode="bicubic", align_corners=False, antialias=True
    )
    return resized.squeeze(0).clamp(0.0, 1.0)


def on_white(image: Tensor) -> Tensor:
    """`image` [4, H, W] with straight alpha, laid on white: [3, H, W]."""
    colour, alpha = image[:3], image[3:]
    return colour * alpha + (1.0 - alpha)


def check_side(name: str, height: int, width: int) -> None:
    """Raise InputError when the picture called `name` is too small to learn from."""
    if min(height, width) < MIN_SIDE:
        raise InputError(
            f"{name} is too small: {width} x {height} pixels. Pictures need at least "
            f"{MIN_SIDE} pixels on the shorter side; use a larger copy."
        )


def from_batch(batch: Tensor, name: str = "images") -> list[Tensor]:
    """The pictures of a ComfyUI IMAGE batch as RGB tensors [3, H, W] in [0, 1] on the CPU.

    batch: floats [B, H, W, C] in [0, 1] with C = 1 (grey), 3 (RGB) or 4 (RGB and straight alpha,
        laid on white).
    name: what to call the batch in errors.

    Raises InputError for other shapes, types or value ranges, for values that are not finite and
    for pictures that are empty or too small.
    """
    if not isinstance(batch, Tensor) or batch.dim() != 4 or batch.shape[-1] not in (1, 3, 4):
        found = f"shape {list(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
        raise InputError(
            f"{name} cannot be used as pictures: found {found}, expected an IMAGE batch "
            "[pictures, height, width, 1, 3 or 4 channels]."
        )
    if batch.shape[0] == 0:
        raise InputError(f"{name} is an empty batch. Give at least one picture, better 3 to 5.")
    check_side(name, batch.shape[1], batch.shape[2])
    return [
        _picture(item, f"Picture {number} of {name}") for number, item in enumerate(batch, start=1)
    ]


def _picture(item: Tensor, name: str) -> Tensor:
    if not item.is_floating_point():
        raise InputError(f"{name} has values of type {item.dtype}; expected floats from 0 to 1.")
    image = item.detach().to("cpu", torch.float32).permute(2, 0, 1)
    if not bool(torch.isfinite(image).all()):
        raise InputError(f"{name} has values that are not finite (NaN or infinite); make it again.")
    low, high = float(image.min()), float(image.max())
    if low < -OVERSHOOT or high > 1.0 + OVERSHOOT:
        raise InputError(f"{name} has values from {low:g} to {high:g}; expected 0 to 1.")
    image = image.clamp(0.0, 1.0)
    if image.shape[0] == 4:
        image = on_white(image)
    return image.expand(3, -1, -1).clone(memory_format=torch.contiguous_format)
