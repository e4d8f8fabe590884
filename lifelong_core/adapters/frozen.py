"""Adapters that only answer: the weights of an earlier lesson, to learn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from . import build_adapter
from .protocol import Adapter
from .spec import AdapterSpec

if TYPE_CHECKING:
    from ..backbone import Backbone


def frozen_adapter(spec: AdapterSpec, backbone: Backbone, weights: Mapping[str, Tensor]) -> Adapter:
    """An adapter with `weights` that is not trained.

    Raises StateError when the weights do not fit `spec` on this base model.
    """
    adapter = build_adapter(spec, backbone, seed=0)
    adapter.load(weights)
    freeze(adapter)
    return adapter


def settled_adapter(
    spec: AdapterSpec, backbone: Backbone, weights: Mapping[str, Tensor]
) -> Adapter:
    """A `frozen_adapter` that is asked again and again: quicker, for more memory (spectral)."""
    adapter = frozen_adapter(spec, backbone, weights)
    adapter.settle()
    return adapter


def freeze(adapter: Adapter) -> None:
    """Take the adapter's weights out of every graph."""
    for parameter in adapter.named_parameters().values():
        parameter.requires_grad_(False)


@contextmanager
def standing_in(substitute: Adapter, attached: Adapter, backbone: Backbone) -> Iterator[None]:
    """Let `substitute` answer instead of `attached` while the block lasts."""
    attached.detach()
    try:
        with substitute.attached(backbone):
            yield
    finally:
        attached.attach(backbone)
