"""What all runs of one stream are compared to: the base model, and one LoRA per concept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import methods
from ..backbone import Backbone
from ..consolidation import ConsolidationSettings
from ..files import content_hash, locked
from ..lesson import LessonSettings
from ..memory import MemorySettings
from .drawing import Cell, drawn_cell, pictures_of
from .extractors import Extractor
from .prompts import concept_free_prompts
from .protocol import Protocol
from .stream import Stream
from .ways import Room, one_after_another

FREE = 0
"""The number that concept-free pictures have instead of a concept's."""


def usual_memory(settings: LessonSettings) -> MemorySettings:
    """How the memories of lessons with `settings` are drawn, unless a way says otherwise."""
    return MemorySettings(precision=settings.precision, seed=settings.seed)


@dataclass(frozen=True)
class Bench:
    """What all runs share. work: a folder that keeps everything, so that nothing is done twice."""

    backbone: Backbone
    extractors: tuple[Extractor, ...]
    protocol: Protocol
    work: Path

    @property
    def drawn(self) -> Path:
        """Of the cells of all runs; see `drawn_cell`."""
        return self.work / "drawn"

    def folder(self, stream: Stream, name: str, *more: object) -> Path:
        """The folder of `name`, of its own for everything that its content depends on."""
        key = content_hash(
            self.backbone.fingerprint,
            str(self.backbone.dtype),
            [one.name for one in self.extractors],
            self.protocol.to_json(),
            stream.content_hash,
            *more,
        )
        return self.work / f"{stream.name}-{stream.seed}" / f"{name}-{key[:12]}"

    def room(
        self,
        settings: LessonSettings,
        consolidation: ConsolidationSettings,
        memory: MemorySettings | None = None,
    ) -> Room:
        """With what lessons are taught."""
        memory = memory or usual_memory(settings)
        return Room(self.backbone, settings, consolidation, self.work / "lessons", memory)


@dataclass(frozen=True)
class Reference:
    """Cells of the last row's prompts, per concept from 1. base: the base model given the plain
    noun. alone: a LoRA trained on this concept only. free: the base model's concept-free pictures.

    The lone LoRA is that of `lora`'s first lesson in the precision in which states keep it, bit for
    bit what hard routing draws.
    """

    base: dict[int, Cell]
    alone: dict[int, Cell]
    free: Cell


def reference(bench: Bench, stream: Stream, room: Room, concepts: tuple[int, ...]) -> Reference:
    """Draw, or take from disk, what `concepts` of the stream are compared to.

    One process draws it, others that want the same wait for it.
    """
    folder = bench.folder(stream, "reference", room.settings.to_json(), methods.CODE_VERSION)
    alone = one_after_another("hard_routing")
    shown = bench.protocol.pictures

    def cell(name: str, alone_of: int | None, concept: int, prompts: tuple[str, ...]) -> Cell:
        path = folder / f"{name}.safetensors"
        pictures = pictures_of(
            prompts, bench.protocol, last=True, seed=stream.seed, concept=concept
        )
        state = None
        if alone_of is not None and not path.exists():
            state = alone(room, [stream.subjects[alone_of - 1].task], None)
        return drawn_cell(
            path, bench.drawn, bench.backbone, state, pictures, bench.extractors, shown
        )

    subjects = {concept: stream.subjects[concept - 1] for concept in concepts}
    with locked(folder / "reference"):
        return Reference(
            base={c: cell(f"base_{c}", None, c, s.plain) for c, s in subjects.items()},
            alone={c: cell(f"alone_{c}", c, c, s.prompts) for c, s in subjects.items()},
            free=cell("free", None, FREE, tuple(concept_free_prompts())),
        )
