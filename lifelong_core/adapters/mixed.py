"""Several adapters on one UNet at once, every row of a batch with its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import StateError
from .frozen import freeze
from .layers import Attachment, Forward, target_layers
from .protocol import Adapter
from .spec import AdapterSpec

if TYPE_CHECKING:
    from ..backbone import Backbone, Conditioning
    from ..objectives.predict import RunsUnet

TRAINED = 0
"""The number of the trained adapter; the frozen ones are 1, 2, …"""


def check_can_mix(spec: AdapterSpec) -> None:
    """Raise StateError for adapters that cannot share a batch."""
    if spec.text_encoder:
        raise StateError(
            "Adapters that also change the text encoders cannot share a batch, because every "
            "prompt would have to be encoded by each of them. Use an adapter without text_encoder."
        )


class MixedAdapters:
    """One trained adapter and some frozen ones, all of one spec, attached to one base model.

    The rows of all frozen adapters go through the UNet as one batch that leaves no graph, those
    of the trained adapter as a second one. A single pass for all would be slower and larger: its
    graph could not leave the frozen rows out, so they would be kept for the backward pass and
    carried through it.

    Raises StateError for adapters of different specs or with layers in the text encoders.
    """

    def __init__(self, trained: Adapter, frozen: Sequence[Adapter]) -> None:
        self.adapters = (trained, *frozen)
        for adapter in frozen:
            freeze(adapter)
            if adapter.spec != trained.spec:
                raise StateError(
                    f"Adapters of {adapter.spec.describe()} and {trained.spec.describe()} cannot "
                    "share a batch; use adapters of one shape."
                )
        check_can_mix(trained.spec)
        self._sizes: dict[int, list[int]] = {}

    @contextmanager
    def attached(self, backbone: Backbone) -> Iterator[None]:
        """Attach all adapters for the duration of a `with` block, which includes backward passes.

        Raises StateError when the layers do not fit or are taken.
        """
        layers = target_layers(backbone, self.adapters[TRAINED].spec)
        each = [adapter.forwards(layers) for adapter in self.adapters]
        forwards = {key: self._forward([own[key] for own in each]) for key in layers}
        attachment = Attachment(layers, forwards)
        try:
            yield
        finally:
            attachment.remove()

    def predict(
        self,
        predict: RunsUnet,
        latents: Tensor,
        timesteps: Tensor,
        prompts: Conditioning,
        rows: Tensor,
        adapters: Tensor,
    ) -> Tensor:
        """Outputs [R, 4, h, w], each row with the adapter of its number in `adapters` [R].

        predict: runs the UNet (`Predictor`); latents [R, 4, h, w]; timesteps [R]; prompts: U
        different ones, encoded; rows: [R] which of them each row uses. Only the rows of adapter
        `TRAINED` are differentiable.
        """

        differentiable = torch.is_grad_enabled()
        groups = [torch.ones_like(adapters, dtype=torch.bool)]
        if differentiable:
            groups = [adapters != TRAINED, adapters == TRAINED]
        orders, outputs = [], []
        for group in groups:
            chosen = group.nonzero()[:, 0]
            if not len(chosen):
                continue
            # Neighbours have the same adapter, so that layers can split their input by it.
            order = chosen[torch.argsort(adapters[chosen], stable=True)]
            here = order.to(latents.device)
            own, places = self._pairs(adapters[order], rows[order], len(prompts))
            with torch.set_grad_enabled(differentiable and bool(adapters[order[0]] == TRAINED)):
                outputs.append(predict(latents[here], timesteps[here], prompts[own], places))
            orders.append(order)
        return torch.cat(outputs)[torch.argsort(torch.cat(orders)).to(latents.device)]

    def _pairs(self, adapters: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The prompt of each different pair of adapter and prompt, and the pair of each row.

        What depends on the prompt alone is then computed once per pair.
        """
        pairs, places = torch.unique(adapters * count + rows, return_inverse=True)
        self._sizes = {
            len(which): torch.bincount(which, minlength=len(self.adapters)).tolist()
            for which in (adapters, pairs // count)
        }
        return pairs % count, places

    def _forward(self, forwards: Sequence[Forward]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            # Also when checkpointing runs the layer again in the backward pass.
            if torch.is_grad_enabled():
                return forwards[TRAINED](x)
            # A layer sees one entry per row, or per pair of adapter and prompt; when both are
            # equally many, every row is a pair of its own and their adapters are the same.
            parts = x.split(self._sizes[len(x)])
            answers = [own(part) for own, part in zip(forwards, parts, strict=True) if len(part)]
            return answers[0] if len(answers) == 1 else torch.cat(answers)

        return forward


@dataclass(frozen=True)
class RowPredictor:
    """Runs the UNet for a batch whose row i has adapter `adapters[i]`; see `MixedAdapters`."""

    mixed: MixedAdapters
    predict: RunsUnet
    adapters: Tensor

    @property
    def backbone(self) -> Backbone:
        return self.predict.backbone

    def __call__(
        self, latents: Tensor, timesteps: Tensor, prompts: Conditioning, rows: Tensor
    ) -> Tensor:
        return self.mixed.predict(self.predict, latents, timesteps, prompts, rows, self.adapters)
