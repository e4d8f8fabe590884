"""What a consolidation did, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..lifelong_core.adapters.distance import change_norm, measured_change
from ..lifelong_core.adapters.factors import Factors
from ..lifelong_core.classifier import INERT
from ..lifelong_core.consolidation import ConsolidationSettings, Phase
from ..lifelong_core.consolidation.context import REPORT
from ..lifelong_core.consolidation.distill import DistillPhase
from ..lifelong_core.fisher import DIAGONAL, LESSONS
from ..lifelong_core.sharing.naming import layers
from ..lifelong_core.state import LifelongState


def consolidation_report(
    before: LifelongState,
    after: LifelongState,
    phases: Sequence[Phase],
    settings: ConsolidationSettings,
) -> str:
    """One paragraph per phase, and how far the weights moved."""
    count = len(after.records)
    lines = [f"Consolidated: {after.concepts[-1].phrase}, lesson {count} of {count}."]
    told: Mapping[str, Any] = after.records[-1].metrics.get(REPORT, {})
    for phase in phases:
        lines.append("")
        report = told.get(phase.name, {})
        if isinstance(phase, DistillPhase):
            lines += _distillation(report, settings, count)
            lines += _scores(report, "teacher_temperature")
        else:
            lines += _fisher(report, settings, after)
            lines += _scores(report, "temperature")
    return "\n".join([*lines, "", _movement(before, after)])


def _distillation(
    report: Mapping[str, Any], settings: ConsolidationSettings, count: int
) -> list[str]:
    if count < 2:
        return ["DSC: nothing to do. There is no earlier concept yet that could be lost."]
    losses = report["loss"]
    part = max(1, len(losses) // 5)
    first, last = (sum(some) / part for some in (losses[:part], losses[-part:]))
    others = "the earlier one" if count == 2 else f"one of the {count - 1} earlier ones at a time"
    return [
        f"DSC: taught by the model after this lesson and after {others}, "
        f"{settings.distillation_iterations} iterations in {report['seconds']:.0f} s.",
        f"  loss: {first:.4g} at the beginning, {last:.4g} at the end.",
    ]


def _fisher(
    report: Mapping[str, Any], settings: ConsolidationSettings, after: LifelongState
) -> list[str]:
    counted = len(after.extras[DIAGONAL][LESSONS])
    return [
        f"Fisher: estimated in {settings.fisher_iterations} iterations, {report['seconds']:.0f} s.",
        f"  It counts {counted} of {len(after.records)} lessons. A next lesson with method 'ewc' "
        "holds on to the weights that matter to them.",
    ]


def _scores(report: Mapping[str, Any], temperature: str) -> list[str]:
    if "entropy_share" not in report:
        return []
    entropy, right = report["entropy_share"], report["accuracy"]
    lines = [
        f"  classifier scores: the new concept came first for {right:.0%} of the pictures; entropy "
        f"{entropy:.1%} of the highest (100 %: all concepts alike to the model)."
    ]
    if entropy > INERT:
        lines.append(
            "  Warning: the scores are inert: their term changes next to nothing. Lower "
            f"{temperature}, for example to 0.001."
        )
    return lines


def _movement(before: LifelongState, after: LifelongState) -> str:
    old, new = _changes(before), _changes(after)
    size, moved = change_norm(old), change_norm(new, old)
    if moved == 0.0:
        return "The weights are as they were."
    if size == 0.0:
        return "The weights moved; the lesson had changed none."
    return f"The weights moved by {moved / size:.1%} of all that was learned so far."


def _changes(state: LifelongState) -> dict[str, Factors]:
    return measured_change(state.adapter_spec, state.adapter, layers(state.family))
