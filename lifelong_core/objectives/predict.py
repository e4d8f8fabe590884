"""Running the UNet on a batch whose rows share few prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Conditioning
from ..backbone.context_layers import context_layers

KEY_AND_VALUE = ("to_k", "to_v")


class RunsUnet(Protocol):
    """The model's own output [R, 4, h, w] in fp32 for noised latents [R, 4, h, w], timesteps [R],
    U encoded prompts, and which of them each row uses [R].
    """

    @property
    def backbone(self) -> Backbone: ...

    def __call__(
        self, latents: Tensor, timesteps: Tensor, prompts: Conditioning, rows: Tensor
    ) -> Tensor: ...


class Predictor:
    """The model's own output for latents whose prompts repeat.

    Keys and values of cross-attention depend on the prompt alone. They are computed once per
    different prompt and handed to the rows that use it, which spares most of the work of the
    layers that adapters change most often, forwards and backwards.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        modules = dict(backbone.unet.named_modules())
        self._layers = [
            (modules[f"{name}.{part}"], number)
            for number, name in enumerate(context_layers(modules))
            for part in KEY_AND_VALUE
        ]

    def __call__(
        self, latents: Tensor, timesteps: Tensor, prompts: Conditioning, rows: Tensor
    ) -> Tensor:
        """Output [B, 4, h, w] in fp32 for noised latents [B, 4, h, w] and timesteps [B].

        prompts: the U different prompts, encoded; rows: [B] which of them each latent uses.
        """
        unet = self.backbone.unet
        # Checkpointing runs the layers again after this call, when nothing would be shared.
        again = unet.is_gradient_checkpointing and torch.is_grad_enabled()
        if len(prompts) == len(rows) or again:
            return self.backbone.predict(latents, timesteps, prompts[rows]).float()
        rows = rows.to(self.backbone.device)
        shared = prompts.to(self.backbone.device, self.backbone.dtype)
        pooled = None if shared.pooled is None else shared.pooled[rows]
        # The layers below take `shared`; this shows them, and hooks on them, what each row has.
        layers = None if shared.layers is None else shared.layers.detach()[rows]
        repeated = Conditioning(shared.context.detach()[rows], pooled, layers)
        with _sharing(self._layers, shared, rows):
            return self.backbone.predict(latents, timesteps, repeated).float()


@contextmanager
def _sharing(
    layers: Sequence[tuple[nn.Module, int]], prompts: Conditioning, rows: Tensor
) -> Iterator[None]:
    """Let `layers`, each of a cross-attention layer by its number, answer for the U `prompts`,
    repeated by `rows`, whatever they are given.

    An adapter's forward on a layer stays in use, and is put back afterwards.
    """

    def shared(forward: Callable[[Tensor], Tensor], context: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda _: torch.index_select(forward(context), 0, rows)

    adapted = [layer.__dict__.get("forward") for layer, _ in layers]
    for layer, number in layers:
        layer.forward = shared(layer.forward, prompts.at_layer(number))
    try:
        yield
    finally:
        for (layer, _), forward in zip(layers, adapted, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
