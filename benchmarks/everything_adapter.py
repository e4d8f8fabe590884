"""An adapter that trains everything that ComfyUI's TrainLoraNode trains. Only for benchmarks.

LoRA with a learned scale on every weight of the UNet with two or more dimensions (linear layers
and convolutions), and a learned difference on every bias and every norm's weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from lifelong_core.adapters.layers import Attachment, Forward
from lifelong_core.backbone import Backbone
from lifelong_core.backbone.keys import unet_diffusers_to_ldm
from lifelong_core.seeding import generator
from lifelong_core.training.cpu import fold_kernels, folded_upsample

Weighted = nn.Linear | nn.Conv2d
Norm = nn.LayerNorm | nn.GroupNorm
PARTS = {
    "up": "lora_up.weight",
    "down": "lora_down.weight",
    "alpha": "alpha",
    "diff": "diff",
    "diff_b": "diff_b",
}
"""Part of a layer's weights here -> its name in ComfyUI."""


class EverythingAdapter:
    """Trainable weights by "<module path>.<part>": `down` [rank, in · kh · kw] starts at zero, `up`
    [out, rank] at random, `alpha` [] at 1, `diff` (norms) and `diff_b` at zero, as in ComfyUI.
    """

    def __init__(self, backbone: Backbone, rank: int, *, seed: int) -> None:
        self.rank = rank
        self._family = backbone.family.name
        self._weights: dict[str, nn.Parameter] = {}
        for path, module in backbone.unet.named_modules():
            if isinstance(module, Weighted):
                out, width = module.weight.flatten(1).shape
                bound = 1.0 / math.sqrt(rank)
                up = torch.empty(out, rank).uniform_(
                    -bound, bound, generator=generator(seed, "everything", path)
                )
                self._weights[f"{path}.up"] = nn.Parameter(up)
                self._weights[f"{path}.down"] = nn.Parameter(torch.zeros(rank, width))
                self._weights[f"{path}.alpha"] = nn.Parameter(torch.ones(()))
            elif isinstance(module, Norm):
                self._weights[f"{path}.diff"] = nn.Parameter(torch.zeros_like(module.weight))
            if isinstance(module, Weighted | Norm) and module.bias is not None:
                self._weights[f"{path}.diff_b"] = nn.Parameter(torch.zeros_like(module.bias))

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All trained weights."""
        return dict(self._weights)

    def comfyui_shapes(self) -> dict[str, list[int]]:
        """ComfyUI's name of every trained weight -> its shape."""
        names = unet_diffusers_to_ldm(self._family)
        shapes = {}
        for key, value in self._weights.items():
            path, part = key.rsplit(".", 1)
            module = names[f"{path}.weight"].removesuffix(".weight")
            shapes[f"diffusion_model.{module}.{PARTS[part]}"] = list(value.shape)
        return shapes

    def changes(self, backbone: Backbone) -> dict[str, Tensor]:
        """UNet parameter name -> what is added to it, differentiable in the trained weights."""
        changes: dict[str, Tensor] = {}
        for name, value in backbone.unet.named_parameters():
            path, kind = name.rsplit(".", 1)
            if kind == "bias":
                changes[name] = self._weights[f"{path}.diff_b"]
            elif f"{path}.diff" in self._weights:
                changes[name] = self._weights[f"{path}.diff"]
            else:
                changes[name] = (self._up(path) @ self._weights[f"{path}.down"]).view(value.shape)
        return changes

    @contextmanager
    def attached(self, backbone: Backbone) -> Iterator[None]:
        """Change the UNet's outputs while the block lasts."""
        forwards, modules = {}, {}
        for path, module in backbone.unet.named_modules():
            forward = self._forward_of(path, module)
            if forward is not None:
                forwards[path], modules[path] = forward, module
        attachment = Attachment(modules, forwards)
        try:
            yield
        finally:
            attachment.remove()

    def _forward_of(self, path: str, module: nn.Module) -> Forward | None:
        if isinstance(module, nn.Linear):
            return self._linear(path, module)
        if isinstance(module, nn.Conv2d):
            return self._convolution(path, module)
        if isinstance(module, nn.LayerNorm):
            return self._layer_norm(path, module)
        if isinstance(module, nn.GroupNorm):
            return self._group_norm(path, module)
        if isinstance(module, GEGLU):
            return self._geglu(path, module)
        return self._upsample(path, module) if isinstance(module, Upsample2D) else None

    def _up(self, path: str) -> Tensor:
        """up · alpha / rank: the scale is put where it costs least."""
        return self._weights[f"{path}.up"] * (self._weights[f"{path}.alpha"] / self.rank)

    def _linear(self, path: str, layer: nn.Linear) -> Forward:
        down, diff_b = self._weights[f"{path}.down"], self._weights.get(f"{path}.diff_b")

        def forward(x: Tensor) -> Tensor:
            bias = layer.bias if diff_b is None else layer.bias + diff_b
            return low_rank_linear(x, layer.weight, bias, down, self._up(path))

        return forward

    def _geglu(self, path: str, module: GEGLU) -> Forward:
        """value · gelu(gate), each from its own half of the weights; see `cheaper_layers`."""
        layer = module.proj
        path = f"{path}.proj"
        weights, down = layer.weight.chunk(2), self._weights[f"{path}.down"]
        diff_b = self._weights[f"{path}.diff_b"]

        def forward(x: Tensor) -> Tensor:
            up, biases = self._up(path), (layer.bias + diff_b).chunk(2)
            flat = x.flatten(0, -2)
            if dense_is_cheaper(layer.weight, self.rank, len(flat)):
                changed = torch.addmm(layer.weight, up, down).chunk(2)
                value, gate = (F.linear(flat, w, b) for w, b in zip(changed, biases, strict=True))
            else:
                hidden = F.linear(flat, down)
                value, gate = (
                    F.linear(flat, weight, bias).addmm_(hidden, half.mT)
                    for weight, bias, half in zip(weights, biases, up.chunk(2), strict=True)
                )
            return (value * F.gelu(gate)).unflatten(0, x.shape[:-1])

        return forward

    def _convolution(self, path: str, layer: nn.Conv2d) -> Forward:
        down, diff_b = self._weights[f"{path}.down"], self._weights[f"{path}.diff_b"]
        bias, stride, padding = layer.bias, layer.stride, layer.padding
        assert bias is not None

        def forward(x: Tensor) -> Tensor:
            up = self._up(path)
            pixels = x.shape[0] * x.shape[2] * x.shape[3] // (stride[0] * stride[1])
            if dense_is_cheaper(layer.weight, self.rank, pixels):
                weight = torch.addmm(layer.weight.flatten(1), up, down).view_as(layer.weight)
                return F.conv2d(x, weight, bias + diff_b, stride, padding)
            kernels = down.view(-1, *layer.weight.shape[1:])
            hidden = F.conv2d(x, kernels, None, stride, padding)
            # The trained part of the bias is here, because a bias with a gradient makes torch
            # compute the gradient of the whole weight beside it.
            change = F.conv2d(hidden, up[:, :, None, None], diff_b)
            return F.conv2d(x, layer.weight, bias, stride, padding) + change

        return forward

    def _upsample(self, path: str, module: Upsample2D) -> Forward:
        """Doubling and convolution as four small convolutions; see `cheaper_layers`."""
        layer, path = module.conv, f"{path}.conv"
        down, diff_b = self._weights[f"{path}.down"], self._weights[f"{path}.diff_b"]

        def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
            weight = torch.addmm(layer.weight.flatten(1), self._up(path), down)
            kernels = fold_kernels(weight.view_as(layer.weight))
            return folded_upsample(x, kernels, layer.bias + diff_b)

        return forward

    def _layer_norm(self, path: str, layer: nn.LayerNorm) -> Forward:
        diff, diff_b = self._weights[f"{path}.diff"], self._weights[f"{path}.diff_b"]
        return lambda x: F.layer_norm(
            x, layer.normalized_shape, layer.weight + diff, layer.bias + diff_b, layer.eps
        )

    def _group_norm(self, path: str, layer: nn.GroupNorm) -> Forward:
        diff, diff_b = self._weights[f"{path}.diff"], self._weights[f"{path}.diff_b"]
        return lambda x: F.group_norm(
            x, layer.num_groups, layer.weight + diff, layer.bias + diff_b, layer.eps
        )


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> Tensor:
    """x (weight + up @ down)ᵀ + bias by the cheaper of two equal ways."""
    flat = x.flatten(0, -2)
    if dense_is_cheaper(weight, len(down), len(flat)):
        return F.linear(x, torch.addmm(weight, up, down), bias)
    answer = F.linear(flat, weight, bias).addmm_(F.linear(flat, down), up.mT)
    return answer.unflatten(0, x.shape[:-1])


def dense_is_cheaper(weight: Tensor, rank: int, rows: int) -> bool:
    """Whether W + up @ down, formed in every step, costs less than the two factors by themselves.

    Products beyond those of W alone. W + ΔW: its gradient (rows · in · out), the factors' product
    and both their gradients. Factors: output, input gradient and weight gradient of each, which
    count twice: products with so few columns were measured to run at half the speed.
    """
    out, width = weight.flatten(1).shape
    dense = rows * out * width + 3 * rank * out * width
    return dense <= 2 * 3 * rows * rank * (out + width)
