"""A UNet whose cells have prompts and adapters of their own (CIDM, context-controllable synthesis).

Regional cross-attention: where a region is, queries meet the keys and values that the region's own
adapter makes of its own prompt; elsewhere those of the whole picture's. Layers that work cell by
cell (projections of self-attention, queries, outputs) have each adapter's change in its region.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters import Adapter, target_layers
from ..adapters.layers import Attachment, Forward, base_forward
from ..backbone import Backbone, Conditioning
from ..backbone.context_layers import context_layers
from ..errors import StateError
from ..prompts.conditioning import NOBODYS
from .layout import Layout, Part, spread

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

CONTEXT_LAYERS = (".attn2.to_k", ".attn2.to_v")


class RegionalUnet:
    """Runs a base model on batches whose rows have a `Layout`.

    adapters: of every slot, the whole picture's first; None draws with the base model alone. The
    same object in all slots is attached as it always is. prompts: all encoded prompts that rows
    name. Each layer's keys and values are computed once per prompt and slot, for all steps; rows of
    prompts that are `NOBODYS` by the base model.

    Raises StateError for different adapters of which one changes more than attention.
    """

    def __init__(
        self, backbone: Backbone, adapters: Sequence[Adapter | None], prompts: Conditioning
    ) -> None:
        self.backbone = backbone
        self._prompts = prompts.to(backbone.device, backbone.dtype)
        self._shared = adapters[0] if all(own is adapters[0] for own in adapters) else None
        self._forwards = [{} if self._shared else _forwards(backbone, own) for own in adapters]
        names = (name for name, _ in backbone.unet.named_modules())
        self._numbers = {path: number for number, path in enumerate(context_layers(names))}
        self._layout: Layout | None = None
        self._known: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the UNet's layers answer part by part, for as long as a block lasts.

        Raises StateError when an adapter is attached already.
        """
        layers: dict[str, nn.Module] = {
            path: self.backbone.unet.get_submodule(path) for path in self._numbers
        }
        forwards: dict[str, Forward] = {
            path: partial(self._attend, path, module) for path, module in layers.items()
        }
        changed = {key for own in self._forwards for key in own if not key.endswith(CONTEXT_LAYERS)}
        for path in sorted(changed):
            layers[path] = self.backbone.unet.get_submodule(path)
            forwards[path] = partial(self._project, path)
        with self._shared.attached(self.backbone) if self._shared else nullcontext():
            attachment = Attachment(layers, forwards)
            try:
                yield
            finally:
                attachment.remove()
                self._known = {}

    def predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        layout: Layout,
        size: tuple[int, int],
    ) -> Tensor:
        """The model's own output [R, 4, h, w] fp32 for the rows of `layout` at one noise level."""
        self._layout = layout
        inputs = self._prompts[torch.tensor([row.about for row in layout.rows])]
        return self.backbone.predict(latents, timestep.expand(len(latents)), inputs, size).float()

    def _attend(
        self,
        path: str,
        attention: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """In place of a cross-attention layer's forward; its context only shows where it stands."""
        parts = self._parts(hidden_states)
        attended = spread(
            parts,
            attention.to_q(hidden_states),
            lambda part, query: self._meet(path, attention.heads, part, query),
        )
        return attention.to_out[1](attention.to_out[0](attended))

    def _meet(self, path: str, heads: int, part: Part, query: Tensor) -> Tensor:
        """Softmax attention of a part's queries [r, n, C] to its prompts' keys."""
        pairs = [self._key_value(path, prompt, part.slot) for prompt in part.prompts]
        keys, values = (torch.stack(side) for side in zip(*pairs, strict=True))
        q, k, v = (rearrange(x, "r n (h d) -> r h n d", h=heads) for x in (query, keys, values))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "r h n d -> r n (h d)")

    def _key_value(self, path: str, prompt: int, slot: int) -> tuple[Tensor, Tensor]:
        """Keys and values [T, C] that the slot's adapter makes of a prompt in one layer."""
        at = (path, prompt, slot)
        if at not in self._known:
            self._known[at] = (
                self._read(f"{path}.to_k", path, prompt, slot),
                self._read(f"{path}.to_v", path, prompt, slot),
            )
        return self._known[at]

    def _read(self, layer: str, path: str, prompt: int, slot: int) -> Tensor:
        """The rows [T, C] of a prompt; those that are known to be nobody's without adapter."""
        context = self._prompts.at_layer(self._numbers[path])[prompt]
        answer = self._own(layer, slot)(context)
        if self._prompts.owners is None:
            return answer
        plain = base_forward(self.backbone.unet.get_submodule(layer), context)
        return torch.where((self._prompts.owners[prompt] == NOBODYS)[:, None], plain, answer)

    def _project(self, path: str, x: Tensor) -> Tensor:
        """In place of the forward of a linear layer that works cell by cell."""
        return spread(self._parts(x), x, lambda part, own: self._own(path, part.slot)(own))

    def _own(self, path: str, slot: int) -> Forward:
        if path in self._forwards[slot]:
            return self._forwards[slot][path]
        layer = self.backbone.unet.get_submodule(path)
        return layer if path.endswith(CONTEXT_LAYERS) else partial(base_forward, layer)

    def _parts(self, x: Tensor) -> list[Part]:
        assert self._layout is not None, "predict says which rows there are"
        return self._layout.parts(x.shape[1])


def _forwards(backbone: Backbone, adapter: Adapter | None) -> dict[str, Forward]:
    """What the layers of the UNet that an adapter changes compute with it."""
    if adapter is None:
        return {}
    if adapter.spec.kind == "spectral":
        raise StateError(
            "An adapter of kind spectral changes convolutions and norms too, and cannot be kept "
            "inside a region. Use concepts that were learned with kind lora."
        )
    forwards = adapter.forwards(target_layers(backbone, adapter.spec))
    return {
        key.removeprefix("unet."): forward
        for key, forward in forwards.items()
        if key.startswith("unet.")
    }
