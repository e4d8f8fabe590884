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
KEY_VALUE = ("attn2.to_k", "attn2.to_v")
KINDS = {
    "lora": ("down", "up"),
    "vera": ("d", "b"),
    "key_value": ("delta",),
    "spectral": ("shift",),
}
"""Kind -> the parts that the adapter's weights of every layer consist of."""

NORM_PARTS = ("scale", "offset")
"""Instead, for the norms that a spectral adapter shifts: their weight's and their bias's."""

USUAL_RANKS = {"lora": 16, "vera": 256}
MAX_RANK = 1280
"""The full rank of the widest layer of all families."""


@dataclass(frozen=True)
class AdapterSpec:
    """Which weights an adapter changes and with how many parameters.

    kind: the parametrisation. "lora": ΔW = (alpha / rank) · up @ down. "vera": ΔW = Λ_b B Λ_d A
        with random A and B, alpha is the rank. "key_value": ΔW itself, for K and V of
        cross-attention only, without rank (0) and scale (alpha 1). "spectral": shifts of the
        singular values of all linear and convolution weights of the UNet, and of its norms;
        without rank (0), scale (alpha 1) and targets (none).
    rank: 0 takes the kind's usual one, 16 for lora and 256 for vera.
    targets: endings of UNet module paths, from `TARGETS` (attn1 is self-attention, attn2 is
        cross-attention; q, k, v and the output projection of each).
    text_encoder: also adapt q, k, v and the output projection of every text encoder layer.

    Raises InputError for unknown kinds or targets and for ranks outside 1..1280.
    """

    kind: str = "lora"
    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = KEY_VALUE
    text_encoder: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "alpha", float(self.alpha))
        if self.kind not in KINDS:
            raise InputError(f"Unknown adapter kind {self.kind!r}; choose from {', '.join(KINDS)}.")
        self._settle_rank()
        if not 0.0 < self.alpha < float("inf"):
            raise InputError(f"Adapter alpha must be a positive number, not {self.alpha!r}.")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or len(set(self.targets)) != len(self.targets):
            raise InputError(
                f"Adapter targets {', '.join(self.targets)!r} are unknown or named twice; "
                f"choose from {', '.join(TARGETS)}."
            )
        if self.kind == "spectral" and self.text_encoder:
            raise InputError(
                "An adapter of kind spectral changes the UNet only; choose kind lora to train the "
                "text encoder too."
            )
        if not self.targets and not self.text_encoder and self.kind != "spectral":
            raise InputError("The adapter changes nothing: name at least one target layer.")
        if self.kind == "key_value" and (self.text_encoder or set(self.targets) - set(KEY_VALUE)):
            raise InputError(
                f"An adapter of kind key_value changes {' and '.join(KEY_VALUE)} only; choose "
                "another kind for other layers or the text encoder."
            )

    def _settle_rank(self) -> None:
        """Give what a kind leaves no choice about its one value, so that equal adapters are equal.

        key_value: neither rank nor scale. spectral: no targets either. vera: scale 1.
        """
        if self.kind == "spectral":
            object.__setattr__(self, "targets", ())
        if self.kind in ("key_value", "spectral"):
            object.__setattr__(self, "rank", 0)
            object.__setattr__(self, "alpha", 1.0)
            return
        if self.rank == 0:
            object.__setattr__(self, "rank", USUAL_RANKS[self.kind])
        if not isinstance(self.rank, int) or not 1 <= self.rank <= MAX_RANK:
            raise InputError(f"Adapter rank {self.rank!r} is out of range; use 1 to {MAX_RANK}.")
        if self.kind == "vera":
            object.__setattr__(self, "alpha", float(self.rank))

    @property
    def scale(self) -> float:
        """Factor on the low-rank product: alpha / rank."""
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
        if self.kind == "spectral":
            return "spectral on all layers of the UNet"
        places = ", ".join(self.targets) + (", text encoder" if self.text_encoder else "")
        size = {
            "lora": f" rank {self.rank} alpha {self.alpha:g}",
            "vera": f" rank {self.rank}",
            "key_value": "",
        }
        return f"{self.kind}{size[self.kind]} on {places}"


def check_layout(spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> None:
    """Raise StateError unless `tensors` are "<layer key>.<part>" with the parts of `spec`'s kind.

    lora: down [rank, in], up [out, rank]. vera: d [rank], b [out]. key_value: delta [out, in].
    spectral: shift [min(out, in)], of norms scale [channels] and offset [channels].
    """
    expected = 0
    for module in sorted({key.rsplit(".", 1)[0] for key in tensors}):
        norm = spec.kind == "spectral" and f"{module}.shift" not in tensors
        parts = NORM_PARTS if norm else KINDS[spec.kind]
        names = " and ".join(f".{part}" for part in parts)
        expected += len(parts)
        weights = [tensors.get(f"{module}.{part}") for part in parts]
        shapes = [tuple(value.shape) for value in weights if value is not None]
        if len(shapes) != len(parts):
            raise StateError(f"Adapter weights of {module} are incomplete: expected {names}.")
        if not _fitting(spec, shapes):
            raise StateError(
                f"Adapter weights of {module} have shapes {' and '.join(map(str, shapes))}; "
                f"expected {_LAYOUTS[spec.kind].format(rank=spec.rank)}."
            )
    if len(tensors) != expected:
        names = " and ".join(f".{part}" for part in KINDS[spec.kind])
        raise StateError(f"The adapter has weights that are not {names} of a module.")


_LAYOUTS = {
    "lora": "[{rank}, in] and [out, {rank}]",
    "vera": "[{rank}] and [out]",
    "key_value": "[out, in]",
    "spectral": "[values], or [channels] twice",
}


def _fitting(spec: AdapterSpec, shapes: list[tuple[int, ...]]) -> bool:
    if spec.kind == "lora":
        down, up = shapes
        return len(down) == len(up) == 2 and {down[0], up[1]} == {spec.rank}
    if spec.kind == "vera":
        d, b = shapes
        return d == (spec.rank,) and len(b) == 1
    if spec.kind == "spectral":
        return all(len(shape) == 1 for shape in shapes) and len(set(shapes)) == 1
    return len(shapes[0]) == 2
