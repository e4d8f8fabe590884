"""What a lifelong report shows: charts, a sheet of pictures, and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..lifelong_core.charts import INK, PAPER, curves, heatmap, shortened
from ..lifelong_core.consolidation.context import REPORT
from ..lifelong_core.review import Cells, Review
from ..lifelong_core.state import LifelongState
from .loss_plot import running_mean
from .pictures import as_batch, stacked, to_pil

POINTS = 200
GAP, MARGIN, HEAD = 8, 190, 34
COLUMNS = {"plain": "plain noun", "then": "after its lesson", "now": "now"}


def plots(
    state: LifelongState, lessons: Sequence[int], drift: Cells, review: Review | None
) -> Tensor:
    """All charts on one page, an IMAGE batch [1, height, width, 3]."""
    names = {lesson: state.concepts[lesson - 1].token for lesson in lessons}
    pages = [
        curves(
            "Loss of every lesson (running mean)",
            "step",
            {names[lesson]: _thinned(_losses(state, lesson)) for lesson in lessons},
        )
    ]
    if len(lessons) > 1:
        pages.append(_matrix("Weights moved since a lesson, of all it had learned", names, drift))
    if review is not None:
        pages.append(_matrix("Kept of a concept (100 %: as after its lesson)", names, review.kept))
        lines = {
            names[lesson]: [
                (float(after), 100.0 * value)
                for (after, other), value in sorted(review.kept.items())
                if other == lesson
            ]
            for lesson in lessons
        }
        title = "Kept of every concept, lesson after lesson (%)"
        pages.append(curves(title, "after lesson", lines, shown=(0.0, 100.0)))
    return stacked(pages)


def picture_sheet(state: LifelongState, review: Review) -> Tensor:
    """A row per concept: by the base model, right after its lesson, now. [1, height, width, 3]."""
    rows = [
        [to_pil(torch.cat(list(getattr(looks, name)), dim=2)) for name in COLUMNS]
        for looks in review.looks.values()
    ]
    width, height = rows[0][0].size
    size = (MARGIN + len(COLUMNS) * (width + GAP), HEAD + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for place, name in enumerate(COLUMNS.values()):
        left = MARGIN + place * (width + GAP)
        text = shortened(name, max(8, width // 8))
        draw.text((left, HEAD - 10), text, fill=INK, font=font, anchor="ls")
    for place, (lesson, strips) in enumerate(zip(review.looks, rows, strict=True)):
        concept, top = state.concepts[lesson - 1], HEAD + place * (height + GAP)
        lines = "\n".join(shortened(part, 22) for part in (concept.token, concept.noun))
        draw.text((12, top + 8), lines, fill=INK, font=font)
        for column, strip in enumerate(strips):
            sheet.paste(strip, (MARGIN + column * (width + GAP), top))
    return as_batch(sheet)


def text_report(
    state: LifelongState, lessons: Sequence[int], drift: Cells, review: Review | None
) -> str:
    """The list of concepts, and per concept what was learned, kept and consolidated."""
    count = len(state.records)
    lines = [f"{count} concept{'s' if count != 1 else ''} on a {state.family} base model."]
    for number, record in enumerate(state.records, 1):
        lines += ["", f"{number}. {record.concept.phrase}", f"   {_lesson_line(state, number)}"]
        done = ", ".join(record.metrics.get(REPORT, {}))
        lines.append(f"   consolidated: {done}" if done else "   not consolidated")
        if number in lessons and number < count:
            if (count, number) in drift:
                lines.append(f"   weights moved since: {drift[count, number]:.0%}")
            if review is not None and (count, number) in review.kept:
                lines.append(f"   kept: {review.kept[count, number]:.0%}")
    if count > len(lessons):
        lines += ["", f"Charts and pictures show {len(lessons)} of the {count} lessons."]
    return "\n".join(lines)


def _lesson_line(state: LifelongState, number: int) -> str:
    record = state.records[number - 1]
    method = record.settings.get("method", "an unknown method")
    losses = _losses(state, number)
    if not losses:
        return f"learned with {method}"
    part = max(1, len(losses) // 5)
    first, last = (sum(some) / part for some in (losses[:part], losses[-part:]))
    seconds = float(record.metrics.get("seconds", 0.0))
    return (
        f"learned with {method} in {len(losses)} steps, {seconds:.0f} s; "
        f"loss {first:.3g} at the beginning, {last:.3g} at the end"
    )


def _losses(state: LifelongState, lesson: int) -> list[float]:
    return list(state.records[lesson - 1].metrics.get("loss", ()))


def _thinned(losses: Sequence[float]) -> list[tuple[float, float]]:
    """(step, running mean) at some `POINTS` steps."""
    means = running_mean(losses)
    steps = range(0, len(means), max(1, len(means) // POINTS))
    return [(float(step + 1), float(means[step])) for step in steps]


def _matrix(title: str, names: Mapping[int, str], values: Cells) -> Image.Image:
    """A row per lesson j, a column per concept i."""
    rows = {lesson: f"after {lesson} · {name}" for lesson, name in names.items()}
    return heatmap(title, rows, names, values)
