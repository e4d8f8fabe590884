"""Cross-attention maps out of ComfyUI's UNet while it runs, with gradients to the latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..lifelong_core.attention import OnMaps
from ..lifelong_core.attention.maps import probabilities

Slot = tuple[str, int, int]
"""A cross-attention layer as ComfyUI's replace patches name it: block, its number, transformer."""


class _Seen(BaseException):
    """Ends a forward pass behind its last map. No `except Exception` on the way may catch it."""


class AttentionCapture:
    """A DIFFUSION_MODEL wrapper for one forward pass that gives the maps of some layers away.

    The maps of `slots` are averaged over heads and layers. As soon as all are there `on_maps` gets
    them, [rows, positions, tokens], and their (h, w), and the pass ends: what comes out is zeros.
    Replace patches that are in the slots still compute the attention, with what other patches make
    of q, k and v; the maps are those of the text's tokens.
    """

    def __init__(self, slots: Sequence[Slot], on_maps: OnMaps) -> None:
        self.slots = tuple(slots)
        self.on_maps = on_maps

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None,
        control: Any,
        transformer_options: Mapping[str, Any],
        **others: Any,
    ) -> Tensor:
        gathered: list[Tensor] = []
        # Patches may put tokens of their own, such as a picture's, behind those of the text.
        see = partial(self._see, gathered, context.shape[1])
        options = _with_patches(transformer_options, self.slots, see)
        try:
            return executor(x, timesteps, context, y, control, options, **others)
        except _Seen:
            return x.new_zeros(len(x), executor.class_obj.out_channels, *x.shape[2:])

    def _see(
        self, gathered: list[Tensor], tokens: int, q: Tensor, k: Tensor, extra: Mapping[str, Any]
    ) -> None:
        scale = extra["dim_head"] ** -0.5
        gathered.append(probabilities(q, k, extra["n_heads"], scale)[..., :tokens])
        if len(gathered) == len(self.slots):
            height, width = extra["activations_shape"][-2:]
            self.on_maps(torch.stack(gathered).mean(0), (height, width))
            raise _Seen


See = Callable[[Tensor, Tensor, Mapping[str, Any]], None]


def _with_patches(
    transformer_options: Mapping[str, Any], slots: Sequence[Slot], see: See
) -> dict[str, Any]:
    """A copy of the options in which `see` gets q, k and ComfyUI's extras of the slots first."""
    replaced = dict(transformer_options.get("patches_replace", {}))
    before = replaced.get("attn2", {})
    ours = {slot: partial(_attend, see, patch_at(before, slot)) for slot in slots}
    return {**transformer_options, "patches_replace": {**replaced, "attn2": {**before, **ours}}}


def _attend(
    see: See,
    patch: Callable[..., Tensor] | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra: dict[str, Any],
) -> Tensor:
    see(q, k, extra)
    if patch is not None:
        return patch(q, k, v, extra)
    precision = extra["attn_precision"]
    return optimized_attention(
        q, k, v, extra["n_heads"], attn_precision=precision, transformer_options=extra
    )


def patch_at(patches: Mapping[Any, Any], slot: Slot) -> Callable[..., Tensor] | None:
    """What ComfyUI would call at this layer: the patch of the layer, else that of its block."""
    return patches.get(slot, patches.get(slot[:2]))
