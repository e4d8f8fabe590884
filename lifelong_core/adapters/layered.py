"""What all kinds of adapters share: weights per layer, and standing in for the layers' forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import StateError
from .layers import Attachment, Forward, Layer, target_layers
from .shifted import ShiftedLinear
from .spec import AdapterSpec

if TYPE_CHECKING:
    from ..backbone import Backbone


class LayeredAdapter(ABC):
    """An adapter whose every layer has trained weights of its own. See `Adapter` for the methods.

    A kind of adapter fills `_weights` ("<layer key>.<part>" -> fp32 parameter) when it is made,
    and says what a layer computes. `strength` scales the change of all layers.
    """

    def __init__(self, spec: AdapterSpec, layers: Mapping[str, Layer]) -> None:
        self.spec = spec
        self.strength = 1.0
        self._attachment: Attachment | None = None
        self._shapes = {key: layer.weight.shape for key, layer in layers.items()}
        self._weights: dict[str, nn.Parameter] = {}
        self._beneath: Mapping[str, Tensor] = {}

    @abstractmethod
    def deltas(self) -> dict[str, Tensor]: ...

    @abstractmethod
    def sample_gradients(
        self, layer: str, inputs: Tensor, gradients: Tensor
    ) -> dict[str, Tensor]: ...

    @abstractmethod
    def _forward(self, key: str, layer: Layer) -> Forward:
        """What `layer` computes with the adapter."""

    def attach(self, backbone: Backbone) -> None:
        if self._attachment is not None:
            raise StateError("The adapter is attached already; detach it first.")
        layers = target_layers(backbone, self.spec)
        if {key: layer.weight.shape for key, layer in layers.items()} != self._shapes:
            raise StateError(
                f"The adapter ({self.spec.describe()}) was made for a base model with other "
                "layers; attach it to a model of the family that it was trained on."
            )
        self._attachment = Attachment(layers, self.forwards(layers))

    def detach(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    @contextmanager
    def attached(self, backbone: Backbone) -> Iterator[None]:
        self.attach(backbone)
        try:
            yield
        finally:
            self.detach()

    def rest_on(self, changes: Mapping[str, Tensor]) -> None:
        self._beneath = changes

    def forwards(self, layers: Mapping[str, Layer]) -> dict[str, Forward]:
        grounds = {
            key: ShiftedLinear(layer, self._beneath[key]) if key in self._beneath else layer
            for key, layer in layers.items()
        }
        return {key: self._forward(key, layer) for key, layer in grounds.items()}

    def settle(self) -> None:
        for parameter in self._weights.values():
            parameter.requires_grad_(False)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._weights)

    def state(self) -> dict[str, Tensor]:
        return {key: value.detach().clone() for key, value in self._weights.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        if {key: value.shape for key, value in self._weights.items()} != {
            key: value.shape for key, value in state.items()
        }:
            raise StateError(
                f"The weights given do not fit an adapter of {self.spec.describe()}: expected "
                f"{len(self._weights)} tensors such as {next(iter(self._weights))!r}, got "
                f"{len(state)} of other names or shapes."
            )
        for key, parameter in self._weights.items():
            parameter.copy_(state[key])
