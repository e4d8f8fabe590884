"""What a memory bank was chosen from, as a picture for the node."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..lifelong_core.charts import INK, LINES, canvas, shortened
from ..lifelong_core.memory import Recollection
from .pictures import as_batch, to_pil

CELL, GAP, TEXT, TOP, LEFT = 96, 12, 24, 48, 16
LABEL = 28
CONCEPTS = 12
"""So many concepts are shown; a picture of all would be too tall to look at."""
KEPT, DIMMED = LINES[2], (252, 252, 250, 150)


def memory_picture(recollection: Recollection) -> Tensor:
    """An IMAGE batch [1, height, width, 3]: a row of candidates per remembered picture, each with
    its score below; those that are kept in a frame, the others pale.

    The score is that for the remembered picture which a candidate was kept for; for the others the
    best one for any of their concept.
    """
    anchors = recollection.anchors
    tokens = list(dict.fromkeys(anchor.token for anchor in anchors))
    shown = tokens[:CONCEPTS]
    per_row = len(recollection.thumbnails) // len(anchors)
    rows = [row for row, anchor in enumerate(anchors) if anchor.token in shown]
    width = max(2 * LEFT + per_row * (CELL + GAP), 640)
    height = TOP + len(shown) * LABEL + len(rows) * (CELL + TEXT + GAP) + LABEL
    image, draw = canvas(
        f"Kept {len(recollection.chosen)} of {len(recollection.thumbnails)} pictures drawn of "
        f"{len(tokens)} concept{'s' * (len(tokens) > 1)}; under each its score",
        (width, height),
    )
    shares, kept_for = _scores(recollection), set(recollection.chosen.tolist())
    font = ImageFont.load_default(14)
    top, token = TOP, ""
    for row in rows:
        if anchors[row].token != token:
            token = anchors[row].token
            draw.text((LEFT, top + 4), f"embedding:{token}", fill=INK, font=font)
            top += LABEL
        for column in range(per_row):
            number = row * per_row + column
            place = (LEFT + column * (CELL + GAP), top)
            _candidate(image, draw, recollection.thumbnails[number], place, number in kept_for)
            below = (place[0] + CELL / 2, top + CELL + 8)
            draw.text(below, f"{shares[number]:.3f}", fill=INK, font=font, anchor="mt")
        top += CELL + TEXT + GAP
    if len(tokens) > len(shown):
        more = shortened(", ".join(tokens[CONCEPTS:]), 60)
        draw.text((LEFT, top), f"and {len(tokens) - CONCEPTS} more: {more}", fill=INK, font=font)
    return as_batch(image)


def _scores(recollection: Recollection) -> list[float]:
    """One score per candidate, [K]."""
    anchors = recollection.anchors
    per_row = len(recollection.thumbnails) // len(anchors)
    own = [
        [other for other, anchor in enumerate(anchors) if anchor.concept == one.concept]
        for one in anchors
    ]
    scores = recollection.scores
    best = [
        float(scores[own[number // per_row], number].max()) for number in range(scores.shape[1])
    ]
    for anchor, number in enumerate(recollection.chosen.tolist()):
        best[number] = float(scores[anchor, number])
    return best


def _candidate(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    thumbnail: Tensor,
    place: tuple[int, int],
    kept: bool,
) -> None:
    picture = to_pil(thumbnail.float() / 255.0)
    if not kept:
        pale = Image.new("RGBA", picture.size, DIMMED)
        picture = Image.alpha_composite(picture.convert("RGBA"), pale).convert("RGB")
    image.paste(picture, place)
    if kept:
        left, top = place
        draw.rectangle((left - 4, top - 4, left + CELL + 3, top + CELL + 3), outline=KEPT, width=4)
