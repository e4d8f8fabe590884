"""A node for ComfyUI that counts what LoRA loaders have put on a model. Only for benchmarks."""

from __future__ import annotations

from typing import Any


class CountPatchedLayers:
    """Shows the number of weights of MODEL and CLIP that something changes."""

    RETURN_TYPES = ()
    FUNCTION = "count"
    OUTPUT_NODE = True
    CATEGORY = "lifelong/benchmarks"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",)}}

    def count(self, model: Any, clip: Any) -> dict[str, Any]:
        return {"ui": {"text": [str(len(model.patches) + len(clip.patcher.patches))]}}


NODE_CLASS_MAPPINGS = {"CountPatchedLayers": CountPatchedLayers}
