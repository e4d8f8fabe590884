"""The cross-attention layers of a UNet in the order in which they run, and a context for each."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from typing import Any

from torch import nn

from .modules import unet_shapes

PARTS = ("down_blocks", "mid_block", "up_blocks")
QUERY = ".to_q.weight"


def context_layers(names: Iterable[str]) -> tuple[str, ...]:
    """Of diffusers' module names, those of cross-attention layers (`attn2`): down, mid, up."""
    found = [name for name in names if name.endswith(".attn2")]
    # The modules are made down, up, mid; within a part in the order in which they run.
    return tuple(sorted(found, key=lambda name: PARTS.index(name.partition(".")[0])))


@cache
def family_context_layers(family: str) -> tuple[str, ...]:
    """The same for the UNet of a family. Raises ModelError for an unknown one."""
    return context_layers(
        name.removesuffix(QUERY) for name in unet_shapes(family) if name.endswith(QUERY)
    )


def take_own_context(unet: nn.Module) -> None:
    """Let a UNet be called with one context per cross-attention layer, [B, L, T, W].

    Every layer takes its own. Contexts [B, T, W] are for all layers, as without this. The hooks
    stay, since gradient checkpointing runs the layers again when the call is long over.
    """
    layers = context_layers(name for name, _ in unet.named_modules())
    for number, name in enumerate(layers):
        hook = partial(_own_context, number)
        unet.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)


def _own_context(
    number: int, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    context = kwargs.get("encoder_hidden_states")
    if context is None or context.dim() == 3:
        return None
    return args, {**kwargs, "encoder_hidden_states": context[:, number]}
