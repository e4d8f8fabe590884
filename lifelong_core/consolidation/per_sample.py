"""Gradients of every sample's own loss, from one forward and one backward pass of a batch.

Of each adapted layer a pass shows what went in, and the gradient of what came out, row by row.
Both together give the gradient that each row alone would have; the rows of one sample add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from ..adapters.layers import Layer


class _Tap(torch.autograd.Function):
    """The identity; on the way back it tells the layer's input and its output's gradient.

    `root` requires a gradient, so that there is a way back although no weight asks for one.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, inputs: Tensor, root: Tensor, tell: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.tell = tell
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        ctx.tell(*ctx.saved_tensors, gradient)
        return gradient, None, gradient.new_zeros(()).float(), None


def sample_gradients(
    adapter: Adapter,
    layers: Mapping[str, Layer],
    losses: Callable[[], Tensor],
    *,
    scale: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `losses` returns, B losses of B samples, and the gradient of each in the adapter's
    weights: name -> [B, *shape], fp32.

    layers: layer key -> module; `adapter` is attached to them, its weights frozen. Every layer
    must be given its rows sample by sample, equally many for each: [B · k, …, in] for k passes
    per sample.
    scale: of the losses on their way back, against underflow in fp16; taken out again.

    Keys and values may be shared between rows (`objectives.Predictor`): a hook sees both sides of
    the layer as if they were not. Gradient checkpointing is fine too.
    """
    root = torch.zeros((), device=next(iter(layers.values())).weight.device, requires_grad=True)
    found: dict[str, Tensor] = {}
    samples = 0

    def hook_of(key: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def tell(inputs: Tensor, gradient: Tensor) -> None:
            # All but the features of a linear layer's input are rows; others need theirs whole.
            row = 1 if isinstance(layers[key], nn.Linear) else inputs.dim() - 1
            given, wanted = (
                value.float().reshape(samples, -1, *value.shape[value.dim() - row :])
                for value in (inputs, gradient)
            )
            found.update(adapter.sample_gradients(key, given, wanted / scale))

        return lambda _, args, output: _Tap.apply(output, args[0].detach(), root, tell)

    with ExitStack() as stack:
        for key, layer in layers.items():
            stack.callback(layer.register_forward_hook(hook_of(key)).remove)
        values = losses()
        samples = len(values)
        torch.autograd.grad(scale * values.sum(), root)
    return values.detach(), found
