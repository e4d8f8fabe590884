"""What the ablations vary, one thing at a time around the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from lifelong_core.adapters import Adapter
from lifelong_core.concepts import ConceptTask
from lifelong_core.consolidation import Consolidation, ConsolidationSettings, consolidate
from lifelong_core.consolidation.distill import DistillBatches, DistillPhase
from lifelong_core.consolidation.fisher import UpdateFisher
from lifelong_core.evaluation.changes import AFTER
from lifelong_core.evaluation.ways import Room, Way, way_named
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import learn
from lifelong_core.objectives import Term
from lifelong_core.state import LifelongState
from lifelong_core.training import ProgressCallback, Snapshot

FULL = "dsc_ewc_dc"
METHODS = ("ewc", "ewc_dc", "dsc_ewc", FULL)
"""With and without DSC, each with and without the classifier's scores."""


@dataclass(frozen=True)
class Axis:
    """Settings that have one value in common, and the values that they are given besides their
    default, in the lessons of `method`."""

    method: str
    settings: tuple[str, ...]
    values: tuple[float | int, ...]

    def ways(self, lesson: LessonSettings, consolidation: ConsolidationSettings) -> dict[str, Way]:
        """Value -> its way, ascending. The default is the plain method, measured once for all
        axes."""
        defaults = tuple(_default(name, lesson, consolidation) for name in self.settings)
        found: dict[float | int, Way] = {defaults[0]: way_named(self.method)}
        for value in self.values:
            if defaults != (value,) * len(defaults):
                changes = [f"{name}={value}" for name in self.settings]
                found[value] = way_named("+".join([self.method, *changes]))
        return {f"{value:g}": found[value] for value in sorted(found)}


AXES: dict[str, Axis] = {
    "k": Axis("ewc_dc", ("consolidation.subset",), (2, 3, 5, 7)),
    "delta": Axis("ewc_dc", ("consolidation.delta",), (0.0, 0.1, 0.5, 1.0, 5.0)),
    "tau": Axis("ewc_dc", ("consolidation.temperature",), (1.0, 0.1, 0.01, 0.001)),
    "ewc_weight": Axis("ewc_dc", ("ewc_weight",), (0.0, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)),
    "gamma": Axis(FULL, ("consolidation.gamma",), (0.0, 0.01, 0.1, 1.0, 10.0)),
    "lambda": Axis(FULL, ("consolidation.distillation_weight",), (0.0, 0.5, 1.5, 5.0, 15.0)),
    "iterations": Axis(
        FULL,
        ("consolidation.fisher_iterations", "consolidation.distillation_iterations"),
        (15, 60, 180),
    ),
    "rate": Axis(FULL, ("consolidation.learning_rate",), (2e-4, 5e-4, 1e-3, 2e-3)),
    "overlap_weight": Axis("c_lora", ("overlap_weight",), (1e3, 1e4, 1e5, 1e6, 1e7)),
}
TEACHER, METHOD = "teacher", "method"
NAMES = (*AXES, TEACHER, METHOD)


def ways_of(
    axis: str, lesson: LessonSettings, consolidation: ConsolidationSettings
) -> dict[str, Way]:
    """Value -> way, of one of `NAMES`."""
    if axis == TEACHER:
        return {"random earlier": way_named(FULL), "lesson before": newest_teacher_way()}
    if axis == METHOD:
        return {name: way_named(name) for name in METHODS}
    return AXES[axis].ways(lesson, consolidation)


def _default(name: str, lesson: LessonSettings, consolidation: ConsolidationSettings) -> Any:
    owner = consolidation if name.startswith(AFTER) else lesson
    return getattr(owner, name.removeprefix(AFTER))


class NewestTeacher(DistillBatches):
    """The second teacher is always the adapter after the lesson before."""

    def teacher(self, index: int) -> int:
        return len(self.state.records) - 2


@dataclass(frozen=True)
class DistillFromNewest(DistillPhase):
    """`DistillPhase` with a fixed second teacher, and otherwise the same draws."""

    @property
    def name(self) -> str:
        return "dsc_dc_lesson_before"

    def _train(
        self,
        work: Consolidation,
        student: Adapter,
        batches: DistillBatches,
        terms: Sequence[Term],
        on_progress: ProgressCallback | None,
    ) -> Snapshot:
        values = {one.name: getattr(batches, one.name) for one in fields(DistillBatches)}
        fixed = NewestTeacher(**(values | {"phase": DistillPhase().name}))
        return super()._train(work, student, fixed, terms, on_progress)


def newest_teacher_way() -> Way:
    """DSC EWC DC whose second teacher is the lesson before."""

    def lesson(
        room: Room, tasks: Sequence[ConceptTask], state: LifelongState | None
    ) -> LifelongState:
        learned = learn(
            room.backbone,
            tasks[-1],
            state=state,
            method=FULL,
            settings=room.settings,
            workspace=room.workspace,
        )
        return consolidate(
            room.backbone,
            tasks[-1],
            learned,
            phases=(DistillFromNewest(), UpdateFisher(dc=True)),
            settings=room.consolidation,
            workspace=room.workspace,
        )

    return replace(way_named(FULL), name=f"{FULL}_teacher_before", lesson=lesson)


def score_reports(state: LifelongState) -> list[Mapping[str, Any]]:
    """Per lesson: its token, and what its phases told of themselves, the scores among it."""
    return [
        {"concept": record.concept.token, **record.metrics.get("consolidation", {})}
        for record in state.records
    ]
