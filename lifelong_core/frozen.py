"""Read-only containers for dataclasses whose content is shared between callers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


class FrozenTensors(Mapping[str, Tensor]):
    """A mapping of tensors without setters, whose tensors nobody else holds."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def frozen_tensors(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> FrozenTensors:
    """Detached CPU copies, as `dtype` if given. What is frozen already is not copied again."""
    if isinstance(tensors, FrozenTensors) and (
        dtype is None or all(value.dtype == dtype for value in tensors.values())
    ):
        return tensors
    return FrozenTensors(
        {key: value.detach().to("cpu", dtype, copy=True) for key, value in tensors.items()}
    )


def frozen_json(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """A read-only deep copy of JSON values. Raises TypeError for anything else."""
    return MappingProxyType(json.loads(json.dumps(dict(value))))
