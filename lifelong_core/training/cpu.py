"""Equal, cheaper ways to run two of the UNet's layers on a CPU.

On a CPU a training step is bound by arithmetic and memory traffic, and these two layers do more
of it than they must. On a GPU they are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.layers import Attachment, base_forward, computes_in_fp32

if TYPE_CHECKING:
    from diffusers.models.activations import GEGLU
    from diffusers.models.upsampling import Upsample2D


@contextmanager
def cheaper_layers(unet: nn.Module) -> Iterator[None]:
    """Run `unet` with equal results (up to rounding) and less work while the block lasts.

    Only where the frozen weights are on a CPU and in fp32, and only layers without an adapter.
    """
    # Late: it takes seconds, and ComfyUI loads this file whenever it starts.
    from diffusers.models.activations import GEGLU
    from diffusers.models.upsampling import Upsample2D

    layers = {
        name: module
        for name, module in unet.named_modules()
        if (isinstance(module, GEGLU) and _plain(module.proj))
        or (isinstance(module, Upsample2D) and _doubles_then_convolves(module))
    }
    forwards = {
        name: _split_geglu(module) if isinstance(module, GEGLU) else _folded_upsample(module)
        for name, module in layers.items()
    }
    attachment = Attachment(layers, forwards)
    try:
        yield
    finally:
        attachment.remove()


def _plain(layer: nn.Module) -> bool:
    weight = layer.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and layer.bias is not None
        and "forward" not in layer.__dict__
    )


def _split_geglu(module: GEGLU) -> Callable[..., Tensor]:
    """value · gelu(gate) from two products instead of two halves of one.

    The backward pass of the halves would copy both gradients into one tensor first.
    """
    weights, biases = module.proj.weight.chunk(2), module.proj.bias.chunk(2)

    def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        value, gate = (F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))
        return value * F.gelu(gate)

    return forward


def _doubles_then_convolves(module: Upsample2D) -> bool:
    conv = getattr(module, "conv", None)
    return (
        isinstance(conv, nn.Conv2d)
        and _plain(conv)
        and conv.kernel_size == (3, 3)
        and conv.padding == (1, 1)
        and not module.use_conv_transpose
        and module.interpolate
        and module.norm is None
    )


def _folded_upsample(module: Upsample2D) -> Callable[..., Tensor]:
    """Nearest-neighbour doubling and a 3x3 convolution as four 2x2 convolutions before doubling.

    Of the nine doubled pixels that an output pixel sees only four differ, so weights on equal
    pixels are summed beforehand: 4 instead of 9 products per output pixel and channel.
    """
    kernels, bias = fold_kernels(module.conv.weight), module.conv.bias

    def forward(x: Tensor, output_size: object = None, *args: object, **kwargs: object) -> Tensor:
        if output_size is not None or not computes_in_fp32(x):
            return base_forward(module, x, output_size, *args, **kwargs)
        return folded_upsample(x, kernels, bias)

    return forward


def fold_kernels(weight: Tensor) -> Tensor:
    """3x3 kernels [out, in, 3, 3] for doubled pixels -> 2x2 kernels [4 · out, in, 2, 2] for single
    ones: per channel those of the output's even and odd rows, each of its even and odd columns.
    """
    parities = [(row, column) for row in (0, 1) for column in (0, 1)]
    kernels = torch.stack([_fold(_fold(weight, 2, r), 3, c) for r, c in parities], dim=1)
    return kernels.flatten(0, 1).contiguous()


def folded_upsample(x: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Doubling of x [B, in, h, w] and convolution [B, out, 2h, 2w], by `fold_kernels`."""
    batch, _, height, width = x.shape
    channels = len(kernels) // 4
    # Every 2x2 window, also those half outside: [batch, channels, row parity, column parity].
    windows = F.conv2d(x, kernels, bias.repeat_interleave(4), padding=1)
    windows = windows.view(batch, channels, 2, 2, height + 1, width + 1)
    rows = [
        torch.stack([windows[:, :, r, c, r : r + height, c : c + width] for c in (0, 1)], dim=-1)
        for r in (0, 1)
    ]
    return torch.stack(rows, dim=3).reshape(batch, channels, 2 * height, 2 * width)


def _fold(weight: Tensor, dim: int, parity: int) -> Tensor:
    """Three taps along `dim` -> the two that an even (0) or odd (1) output pixel needs."""
    before, here, after = weight.unbind(dim)
    taps = (before, here + after) if parity == 0 else (before + here, after)
    return torch.stack(taps, dim)
