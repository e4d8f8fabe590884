"""ComfyUI's weights, loaded in inference mode, made usable in a graph; and ControlNets kept out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..lifelong_core.errors import ModelError


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


def with_own_weights(model: Any) -> Any:
    """A clone of a MODEL that ComfyUI loads dynamically, with a copy of the weights that it loads
    in full: dynamic loading evicts and overwrites what a graph still needs. There is one copy for
    every MODEL that is asked for it.

    Raises ModelError for a MODEL that ComfyUI cannot load a second time.
    """
    if model.cached_patcher_init is None:
        raise ModelError(
            "This MODEL comes from a loader that ComfyUI's dynamic loading cannot load again, "
            "which attention guidance needs. Use the Load Checkpoint or Load Diffusion Model node, "
            "or start ComfyUI with --disable-dynamic-vram."
        )
    copy = model.get_non_dynamic_delegate()
    # ComfyUI leaves a part of such a copy's weights in the file's format, and dynamic loading alone
    # would bring them to the model's.
    for part in copy.model.diffusion_model.modules():
        for name, weight in part._parameters.items():
            usual = getattr(part, f"{name}_comfy_model_dtype", None)
            if weight is not None and usual not in (None, weight.dtype):
                part._parameters[name] = nn.Parameter(weight.to(usual), requires_grad=False)
    return copy


class ConstantControl:
    """A ControlNet whose output counts as constant: its weights stay inference tensors."""

    def __init__(self, control: Any) -> None:
        self.control = control

    def get_control(self, x: Tensor, *args: Any) -> Any:
        """What the ControlNet gives for these latents, without a gradient to them."""
        with torch.inference_mode():
            return self.control.get_control(x.detach(), *args)
