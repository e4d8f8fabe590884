"""Where each tensor of a module stands in a checkpoint, for reading and for writing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """One module tensor in a checkpoint: under `key`, possibly stored in another form.

    `third` picks rows of a fused query/key/value tensor, `transposed` swaps the two axes,
    `pointwise` is a linear layer stored as a 1x1 convolution.
    """

    key: str
    third: int | None = None
    transposed: bool = False
    pointwise: bool = False

    def under(self, prefix: str) -> Source:
        """The same place with `prefix` in front of the key."""
        return replace(self, key=prefix + self.key)

    def read(self, stored: Tensor) -> Tensor:
        """The module's tensor from the stored one."""
        if self.third is not None:
            stored = stored.chunk(3)[self.third]
        if self.transposed:
            stored = stored.T.contiguous()
        return stored[..., 0, 0] if self.pointwise and stored.ndim == 4 else stored

    def shape(self, stored: Shape) -> Shape:
        """The shape of what `read` gives."""
        if self.third is not None:
            stored = (stored[0] // 3, *stored[1:])
        if self.transposed:
            stored = stored[::-1]
        return stored[:2] if self.pointwise and stored[2:] == (1, 1) else stored

    def write(self, value: Tensor) -> Tensor:
        """The stored tensor from the module's one (a third, where it is fused)."""
        if self.transposed:
            value = value.T
        return value[..., None, None] if self.pointwise else value


Layout = Mapping[str, Source]
"""Name of a module's tensor -> its place in a checkpoint."""


def stored_shapes(layout: Layout, checkpoint: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes that the module's tensors have in a checkpoint; those it lacks are left out."""
    return {
        name: source.shape(checkpoint[source.key])
        for name, source in layout.items()
        if source.key in checkpoint
    }


def stored_tensors(layout: Layout, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Key and tensor of everything that a checkpoint holds for a module's `state`."""
    fused: dict[str, dict[int, Tensor]] = {}
    for name, source in layout.items():
        value = source.write(state[name])
        if source.third is None:
            yield source.key, value
        else:
            fused.setdefault(source.key, {})[source.third] = value
    for key, thirds in fused.items():
        yield key, torch.cat([thirds[third] for third in range(3)])
