"""ComfyUI's weights, loaded in inference mode, made usable in a graph; and ControlNets kept out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def make_grad_ready(module: nn.Module) -> None:
    """Replace inference tensors by equal normal ones, one at a time: autograd cannot save them.

    Call it outside inference mode, before every gradient pass: loading or patching weights makes
    inference tensors again. Costs nothing where there are none. The numbers stay the same.
    """
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.is_inference():
                part._parameters[name] = nn.Parameter(weight.clone(), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()


class ConstantControl:
    """A ControlNet whose output counts as constant: its weights stay inference tensors."""

    def __init__(self, control: Any) -> None:
        self.control = control

    def get_control(self, x: Tensor, *args: Any) -> Any:
        """What the ControlNet gives for these latents, without a gradient to them."""
        with torch.inference_mode():
            return self.control.get_control(x.detach(), *args)
