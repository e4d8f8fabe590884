"""What an adapter is: its kind, size and the layers that it changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InputError, StateError

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS = tuple(f"{attention}.{name}" for attention in ("attn1", "attn2") for name in PROJECTIONS)
KINDS = ("lora",)
MAX_RANK = 1024


@dataclass(frozen=True)
class AdapterSpec:
    """Which weights an adapter changes and with how many parameters.

    kind: the parametrisation; "lora" is ΔW = (alpha / rank) · up @ down.
    targets: endings of UNet module paths, from `TARGETS` (attn1 is self-attention, attn2 is
        cross-attention; q, k, v and the output projection of each).
    text_encoder: also adapt q, k, v and the output projection of every text encoder layer.

    Raises InputError for unknown kinds or targets and for ranks outside 1..1024.
    """

    kind: str = "lora"
    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")
    text_encoder: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "alpha", float(self.alpha))
        if self.kind not in KINDS:
            raise InputError(f"Unknown adapter kind {self.kind!r}; choose from {', '.join(KINDS)}.")
        if not isinstance(self.rank, int) or not 1 <= self.rank <= MAX_RANK:
            raise InputError(f"Adapter rank {self.rank!r} is out of range; use 1 to {MAX_RANK}.")
        if not 0.0 < self.alpha < float("inf"):
            raise InputError(f"Adapter alpha must be a positive number, not {self.alpha!r}.")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or len(set(self.targets)) != len(self.targets):
            raise InputError(
                f"Adapter targets {', '.join(self.targets)!r} are unknown or named twice; "
                f"choose from {', '.join(TARGETS)}."
            )
        if not self.targets and not self.text_encoder:
            raise InputError("The adapter changes nothing: name at least one target layer.")

    @property
    def scale(self) -> float:
        """Factor on up @ down: alpha / rank."""
        return self.alpha / self.rank

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON header."""
        return {**dataclasses.asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AdapterSpec:
        """The inverse of `to_json`. Raises InputError for fields that are unknown here."""
        try:
            return cls(**value)
        except TypeError as error:
            raise InputError(f"Adapter description cannot be used: {error}.") from error

    def describe(self) -> str:
        """One line for messages."""
        places = ", ".join(self.targets) + (", text encoder" if self.text_encoder else "")
        return f"{self.kind} rank {self.rank} alpha {self.alpha:g} on {places}"


def check_layout(spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> None:
    """Raise StateError unless `tensors` are pairs "….down" [r, in], "….up" [out, r] of `spec`."""
    modules = {key.rsplit(".", 1)[0] for key in tensors}
    for module in sorted(modules):
        down, up = tensors.get(f"{module}.down"), tensors.get(f"{module}.up")
        if down is None or up is None:
            raise StateError(f"Adapter weights of {module} are incomplete: expected .down and .up.")
        if down.dim() != 2 or up.dim() != 2 or {down.shape[0], up.shape[1]} != {spec.rank}:
            raise StateError(
                f"Adapter weights of {module} have shapes {tuple(down.shape)} and "
                f"{tuple(up.shape)}; expected [{spec.rank}, in] and [out, {spec.rank}]."
            )
    if len(tensors) != 2 * len(modules):
        raise StateError("The adapter has weights that are neither .down nor .up of a module.")
