"""What every kind of adapter offers to training, consolidation and export."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from .layers import Forward, Layer
from .spec import AdapterSpec

if TYPE_CHECKING:
    from ..backbone import Backbone


class Adapter(Protocol):
    """Trainable weights that change a frozen base model while they are attached to it.

    Nothing is ever written to the base weights: detached, or at `strength` 0, the base model
    gives the same bits as before.
    """

    spec: AdapterSpec
    strength: float

    def attach(self, backbone: Backbone) -> None:
        """Change the outputs of `backbone`. StateError when its layers do not fit or are taken."""
        ...

    def detach(self) -> None:
        """Undo `attach`; nothing happens when not attached."""
        ...

    def attached(self, backbone: Backbone) -> AbstractContextManager[None]:
        """Attach for the duration of a `with` block."""
        ...

    def rest_on(self, changes: Mapping[str, Tensor]) -> None:
        """When attached, answer as if each layer's weight had its frozen change [out, in] as well.

        They are no part of the adapter: neither of its weights, nor `deltas`, nor `strength`.
        Raises StateError for a kind that cannot (spectral).
        """
        ...

    def forwards(self, layers: Mapping[str, Layer]) -> dict[str, Forward]:
        """Adapted forward of each layer: for code that mixes several adapters on one model."""
        ...

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable fp32 weights, named "<layer key>.<part>"."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Detached copies of all weights, by the names of `named_parameters`."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of `state`. Raises StateError for other names or shapes."""
        ...

    def settle(self) -> None:
        """Take the weights out of every graph, and work out once what layers need of them.

        Takes as much memory as the layers where there is something to work out (spectral).
        """
        ...

    def deltas(self) -> dict[str, Tensor]:
        """Layer key -> ΔW at strength 1, of W's shape, differentiable in the weights."""
        ...

    def sample_gradients(self, layer: str, inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
        """Gradient of B separate losses in the weights on `layer`: name -> [B, *shape], fp32.

        inputs: what the layer was given for each loss, [B, N, in]; gradients: of that loss in
        what the layer answered, [B, N, out]. Of layers that are not linear, rows are as the layer
        is given them: [B, N, in, h, w] for a convolution.
        """
        ...
