"""A base model that draws what a state knows, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .adapters.frozen import settled_adapter
from .backbone import Backbone
from .prompts import ConceptVectors
from .state import LifelongState


@contextmanager
def knowing(backbone: Backbone, state: LifelongState | None) -> Iterator[dict[str, ConceptVectors]]:
    """Attach the state's adapter; gives its concepts' vectors on the backbone's device.

    Without a state the base model stays alone. Raises StateError when the adapter does not fit.
    """
    if state is None:
        yield {}
        return
    adapter = settled_adapter(state.adapter_spec, backbone, state.adapter)
    with adapter.attached(backbone):
        yield state.vectors_on(backbone.device)
