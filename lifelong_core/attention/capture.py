"""Attention maps from a diffusers UNet, as they arise in its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Conditioning
from ..errors import ModelError
from .guidance import OnMaps
from .layers import map_layers, map_size
from .maps import probabilities

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

See = Callable[[str, "Attention", Tensor, Tensor], None]
"""Called with a layer's name, the layer, its input [B, P, C] and the prompts' context [B, T, W]."""


def attention_maps(attention: Attention, hidden: Tensor, context: Tensor) -> Tensor:
    """softmax(q k^T), mean of heads: hidden [B, P, C], context [B, T, W] -> [B, P, T] fp32.

    Keeps the gradient to `hidden`. Adapters on the layer's projections take part.
    """
    query, key = attention.to_q(hidden), attention.to_k(context)
    return probabilities(query, key, attention.heads, attention.scale)


@contextmanager
def watching(unet: nn.Module, names: Collection[str], see: See) -> Iterator[None]:
    """Call `see` before each of the named cross-attention layers runs, as long as a block lasts.

    Hooks change nothing in what the layers compute, whatever processor or slicing they use.
    """
    handles = []
    try:
        for name in names:
            hook = _hook(name, see)
            layer = unet.get_submodule(name)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, see: See) -> Callable[..., None]:
    def before(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        see(name, layer, hidden, kwargs["encoder_hidden_states"])

    return before


class _Exit(BaseException):
    """Ends a forward pass after the last layer that is read; never leaves this module."""


@dataclass(frozen=True)
class ConditionalBranch:
    """A `Branch` of a diffusers base model at one noise level.

    conditioning: of every picture's prompt, [B]. timestep: [] integer. size: (height, width) of the
    pictures in pixels. autocast: the dtype of mixed precision, None for the weights' own.
    """

    backbone: Backbone
    conditioning: Conditioning
    timestep: Tensor
    size: tuple[int, int]
    autocast: torch.dtype | None = None

    def __call__(self, latents: Tensor, on_maps: OnMaps) -> Tensor | None:
        """See `Branch`. Raises ModelError when the maps do not have the size they should."""
        layers = map_layers(self.backbone.family.name)
        shape = map_size(self.backbone.family.name, (latents.shape[2], latents.shape[3]))
        gathered: list[Tensor] = []

        def see(name: str, layer: Attention, hidden: Tensor, context: Tensor) -> None:
            gathered.append(attention_maps(layer, hidden, context))
            if gathered[-1].shape[1] != shape[0] * shape[1]:
                raise ModelError(
                    f"{name} attends to {gathered[-1].shape[1]} positions; {shape[0]} x {shape[1]} "
                    "were expected of this family of base model."
                )
            if len(gathered) == len(layers):
                maps = torch.stack(gathered).mean(0) if len(layers) > 1 else gathered[0]
                if not on_maps(maps, shape):
                    raise _Exit

        device = self.backbone.device.type
        precision = torch.autocast(device, dtype=self.autocast) if self.autocast else nullcontext()
        timesteps = self.timestep.expand(len(latents))
        try:
            with watching(self.backbone.unet, layers, see), precision:
                predicted = self.backbone.predict(latents, timesteps, self.conditioning, self.size)
                return predicted.float()
        except _Exit:
            return None
