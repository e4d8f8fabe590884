"""Everything that is carried from lesson to lesson: adapter, concepts, one record per lesson."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .adapters.spec import AdapterSpec, check_layout
from .concepts import Concept
from .errors import FileError, LifelongError, StateError
from .files import content_hash
from .frozen import frozen_json, frozen_tensors
from .sealed import SealedFormat

if TYPE_CHECKING:
    from .backbone.families import Family
    from .prompts import ConceptVectors

STATE_FORMAT = "lifelong_state"
STATE_VERSION = 1
HEADER = "lifelong.state"
SEALED = SealedFormat(
    STATE_FORMAT,
    STATE_VERSION,
    HEADER,
    title="lifelong state",
    short="state",
    choose=".lifelong.safetensors file",
    update="Update the software, or save the state with the older one.",
)


class KnownBase(Protocol):
    """What a state asks of a base model: a Backbone, or only its identity."""

    @property
    def family(self) -> Family: ...

    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class TaskRecord:
    """What one lesson left behind.

    adapter: the adapter's weights as they were after this lesson (the lesson's teacher for later
        distillation), stored in half precision.
    settings, metrics: plain JSON values.
    """

    concept: Concept
    task_hash: str
    adapter: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", frozen_tensors(self.adapter, torch.float16))
        object.__setattr__(self, "settings", frozen_json(self.settings))
        object.__setattr__(self, "metrics", frozen_json(self.metrics))


@dataclass(frozen=True)
class LifelongState:
    """The knowledge after some lessons on one base model. Never changes; lessons return new ones.

    adapter: weights of the current adapter in fp32 (names: `Adapter.state`).
    records: one per lesson, oldest first.
    extras: named groups of tensors that single methods carry along (Fisher, memory, …).

    Raises StateError when weights, records and `adapter_spec` do not fit together.
    """

    family: str
    base_fingerprint: str
    adapter_spec: AdapterSpec
    adapter: Mapping[str, Tensor]
    records: tuple[TaskRecord, ...] = ()
    extras: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", tuple(self.records))
        object.__setattr__(self, "adapter", frozen_tensors(self.adapter, torch.float32))
        extras = {name: frozen_tensors(group) for name, group in self.extras.items()}
        object.__setattr__(self, "extras", MappingProxyType(extras))
        self._check()

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts in the order of their lessons."""
        return tuple(record.concept for record in self.records)

    @property
    def vectors(self) -> dict[str, ConceptVectors]:
        """Token -> encoder -> vectors, as `Concept` has them: what `TextStack.encode` takes."""
        return {concept.token: concept.vectors for concept in self.concepts}

    def vectors_on(self, device: torch.device) -> dict[str, ConceptVectors]:
        """`vectors` on a base model's device."""
        return vectors_on(self.vectors, device)

    @property
    def content_hash(self) -> str:
        """Equal for equal knowledge, on every machine."""
        records = [
            (r.concept.token, r.concept.noun, r.concept.vectors, r.adapter, r.task_hash)
            for r in self.records
        ]
        return content_hash(
            self.family, self.base_fingerprint, self.adapter_spec.to_json(), self.adapter,
            records, self.extras,
        )  # fmt: skip

    def require_backbone(self, backbone: KnownBase) -> None:
        """Raise StateError unless this state was learned on `backbone`."""
        family, fingerprint = backbone.family.name, backbone.fingerprint
        if (self.family, self.base_fingerprint) != (family, fingerprint):
            raise StateError(
                f"This state was learned on a {self.family} base model with fingerprint "
                f"{self.base_fingerprint}, but the base model given is {family} with fingerprint "
                f"{fingerprint}. Load the base model that the state was learned on, or start a "
                "new state."
            )

    def require_adapter(self, spec: AdapterSpec) -> None:
        """Raise StateError unless this state's adapter is of `spec`."""
        if spec != self.adapter_spec:
            raise StateError(
                f"This state has an adapter of {self.adapter_spec.describe()}, but the lesson "
                f"asks for {spec.describe()}. Use the state's adapter settings, or start a new "
                "state."
            )

    def _check(self) -> None:
        check_layout(self.adapter_spec, self.adapter)
        shapes = {key: value.shape for key, value in self.adapter.items()}
        tokens: set[str] = set()
        for record in self.records:
            name = record.concept.token
            if name.casefold() in tokens:
                raise StateError(f"Two concepts of this state have the token {name!r}.")
            tokens.add(name.casefold())
            if {key: value.shape for key, value in record.adapter.items()} not in (shapes, {}):
                raise StateError(
                    f"The adapter kept for concept {name!r} has other layers or shapes than the "
                    "state's adapter."
                )
        layers = {concept.layers for concept in self.concepts if concept.layers}
        if len(layers) > 1:
            raise StateError(
                f"The concepts of this state have vectors for {sorted(layers)} cross-attention "
                "layers, but one base model has one number of them."
            )


def vectors_on(
    vectors: Mapping[str, ConceptVectors], device: torch.device
) -> dict[str, ConceptVectors]:
    """Token -> encoder -> vectors, on a base model's device."""
    return {
        token: {key: value.to(device) for key, value in own.items()}
        for token, own in vectors.items()
    }


def save_state(state: LifelongState, path: Path | str) -> Path:
    """Write `state` as one safetensors file, replacing `path` only when all is on disk.

    Raises FileError when the folder cannot be written or the disk is full.
    """
    header = {
        "family": state.family,
        "base_fingerprint": state.base_fingerprint,
        "adapter_spec": state.adapter_spec.to_json(),
        "records": [
            {
                "token": record.concept.token,
                "noun": record.concept.noun,
                "task_hash": record.task_hash,
                "settings": dict(record.settings),
                "metrics": dict(record.metrics),
            }
            for record in state.records
        ],
    }
    tensors = {f"adapter/{key}": value for key, value in state.adapter.items()}
    for index, record in enumerate(state.records):
        tensors |= {f"vectors/{index}/{key}": v for key, v in record.concept.vectors.items()}
        tensors |= {f"records/{index}/{key}": v for key, v in record.adapter.items()}
    for name, group in state.extras.items():
        tensors |= {f"extras/{name}/{key}": value for key, value in group.items()}
    text = json.dumps(header)
    return SEALED.save(Path(path), text, tensors)


def load_state(path: Path | str) -> LifelongState:
    """Read a file of `save_state`.

    Raises FileError that says whether the file is missing, cut short, of another kind, of a newer
    version, changed after it was written, or inconsistent.
    """
    path = Path(path)
    text, tensors = SEALED.load(path)
    try:
        header = json.loads(text)
        return LifelongState(
            family=header["family"],
            base_fingerprint=header["base_fingerprint"],
            adapter_spec=AdapterSpec.from_json(header["adapter_spec"]),
            adapter=_group(tensors, "adapter"),
            records=tuple(
                TaskRecord(
                    Concept(entry["token"], entry["noun"], _group(tensors, f"vectors/{index}")),
                    entry["task_hash"],
                    _group(tensors, f"records/{index}"),
                    entry["settings"],
                    entry["metrics"],
                )
                for index, entry in enumerate(header["records"])
            ),
            extras={
                name: _group(tensors, f"extras/{name}")
                for name in sorted({k.split("/")[1] for k in tensors if k.startswith("extras/")})
            },
        )
    except (LifelongError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"{path.name} is a lifelong state, but its content does not fit together: {error} "
            "Write it again with save_state, or use another copy."
        ) from error


def _group(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in tensors.items()
        if key.startswith(f"{name}/")
    }
