"""Passes of the model that ComfyUI's MultiGPU CFG Split must leave alone."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher


def on_one_gpu(model_options: dict[str, Any]) -> dict[str, Any]:
    """A copy of a sampling run's options whose passes are computed where the MODEL is.

    The split hands conditionings to other GPUs, without gradients, where neither the rows of
    other conditionings nor the tensors of this one are.
    """
    options: dict[str, Any] = comfy.model_patcher.create_model_options_clone(model_options)
    options.pop("multigpu_clones", None)
    return options
