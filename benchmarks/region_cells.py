"""Pictures of one row of characters by one way of drawing, judged; kept so that runs can go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.guidance import METHODS
from benchmarks.region_groups import PLACES, Row
from lifelong_core.attention import AttentionGuidance
from lifelong_core.attention.regions import DELAY
from lifelong_core.automatic_sampling import generate_automatic
from lifelong_core.backbone import Backbone
from lifelong_core.evaluation.drawing import BATCH, write_jpeg
from lifelong_core.files import content_hash, read_json, write_json
from lifelong_core.regional_sampling import generate_regions
from lifelong_core.sampling import generate
from lifelong_core.seeding import derive_seed
from lifelong_core.sharing.preview import to_picture
from lifelong_core.state import LifelongState
from lifelong_core.training.precision import autocast_dtype
from lifelong_core.word_routing import Known, prompted
from lifelong_core.world.judge import Judge, Observation
from lifelong_core.world.wearing import Wanted, verdict

CODE_VERSION = 4
"""Raised when a change of code changes pictures or verdicts: finished cells then count anew."""
QUESTIONS = ("named", "unswapped", "right", "placed")
SHOWN = 6


@dataclass(frozen=True)
class Studio:
    """What all cells share. pictures: per place. guidance: the scale of classifier-free guidance.
    work: the folder that keeps finished cells."""

    backbone: Backbone
    state: LifelongState
    judge: Judge
    pictures: int
    steps: int
    guidance: float
    precision: str
    seed: int
    work: Path

    @property
    def autocast(self) -> torch.dtype | None:
        """Of the model's passes."""
        return autocast_dtype(self.precision)

    @property
    def batch(self) -> int:
        """Pictures drawn together."""
        return BATCH.get(self.backbone.device.type, BATCH["cpu"])

    def noise(self, row: Row, place: str) -> int:
        """The seed of a row's pictures at a place: the same for all ways."""
        return derive_seed(self.seed, "regions", row.name, place)


Way = Callable[[Studio, Row, str], Tensor]
"""Draws the pictures [P, 3, H, W] of a row at a place."""


def drawn_plainly(studio: Studio, row: Row, place: str) -> Tensor:
    """The whole sentence, with what the state's method makes of it."""
    return _from_sentence(studio, row, place, None)


def drawn_guided(studio: Studio, row: Row, place: str) -> Tensor:
    """With CAA and OAA."""
    settings = METHODS["caa_oaa"]
    assert settings is not None
    return _from_sentence(studio, row, place, AttentionGuidance(settings, [row.tokens]))


def _from_sentence(
    studio: Studio, row: Row, place: str, attention: AttentionGuidance | None
) -> Tensor:
    prompt = row.prompt(place)
    with prompted(studio.backbone, studio.state, prompt) as known:
        return _sampled(studio, row, place, prompt, known, attention)


def drawn_by_base(studio: Studio, row: Row, place: str) -> Tensor:
    """By the base model, of the plain nouns: how often things stand side by side at all."""
    return _sampled(studio, row, place, row.prompt(place, []), Known())


def drawn_by_base_told(studio: Studio, row: Row, place: str) -> Tensor:
    """By the base model, told everything about the looks in its own words."""
    return _sampled(studio, row, place, row.told(place), Known())


def _sampled(
    studio: Studio,
    row: Row,
    place: str,
    prompt: str,
    known: Known,
    attention: AttentionGuidance | None = None,
) -> Tensor:
    return generate(
        studio.backbone, [prompt] * studio.pictures, seed=studio.noise(row, place),
        steps=studio.steps, guidance=studio.guidance, vectors=known.vectors,
        localized=known.localized, adapters=known.adapters, batch_size=studio.batch,
        autocast=studio.autocast, attention=attention,
    )  # fmt: skip


def drawn_in_regions(studio: Studio, row: Row, place: str) -> Tensor:
    """Each character in its strip."""
    return _in_regions(studio, row, place, DELAY)


def drawn_at_once(studio: Studio, row: Row, place: str) -> Tensor:
    """The same with what was learned from the first step on."""
    return _in_regions(studio, row, place, 0.0)


def _in_regions(studio: Studio, row: Row, place: str, delay: float) -> Tensor:
    return generate_regions(
        studio.backbone, studio.state, row.prompt(place, []), row.regions(place),
        seed=studio.noise(row, place), count=studio.pictures, steps=studio.steps,
        guidance=studio.guidance, row_limit=2 * studio.batch, autocast=studio.autocast,
        delay=delay,
    )  # fmt: skip


def drawn_automatically(studio: Studio, row: Row, place: str) -> Tensor:
    """Each adapter where its character appears."""
    return generate_automatic(
        studio.backbone, studio.state, row.prompt(place), seed=studio.noise(row, place),
        count=studio.pictures, steps=studio.steps,
        guidance=studio.guidance, batch_size=studio.batch, autocast=studio.autocast,
    )  # fmt: skip


WAYS: Mapping[str, Way] = {
    "plain": drawn_plainly,
    "caa_oaa": drawn_guided,
    "regions": drawn_in_regions,
    "regions_at_once": drawn_at_once,
    "automatic": drawn_automatically,
    "base": drawn_by_base,
    "base_told": drawn_by_base_told,
}


@dataclass(frozen=True)
class Cell:
    """A finished cell. answers: name of QUESTIONS -> one answer per picture."""

    answers: Mapping[str, list[bool]]
    strip: Path


def cell_path(studio: Studio, row: Row, way: str) -> Path:
    """Of its own for everything that the pictures depend on."""
    key = content_hash(
        CODE_VERSION,
        studio.backbone.fingerprint,
        studio.state.content_hash,
        [str(record.settings.get("method")) for record in studio.state.records],
        str(METHODS["caa_oaa"]) if way == "caa_oaa" else "",
        [studio.pictures, studio.steps, studio.guidance, studio.precision, studio.seed],
    )
    return studio.work / row.kind / row.name / f"{way}-{key[:12]}.json"


def judged_cell(studio: Studio, row: Row, way: str) -> Cell:
    """The cell of a row and a way, drawn and judged first unless it is there.

    Six pictures stay as a strip in a JPEG beside it. Raises FileError when the folder cannot be
    written.
    """
    path = cell_path(studio, row, way)
    strip = path.with_suffix(".jpg")
    if not path.exists():
        images = torch.cat([WAYS[way](studio, row, place) for place in PLACES])
        shown = torch.linspace(0, len(images) - 1, min(SHOWN, len(images))).long()
        write_jpeg(to_picture(torch.cat(list(images[shown]), dim=2)), strip)
        write_json(path, judged(studio.judge, images, row))
    return Cell(read_json(path), strip)


def judged(judge: Judge, images: Tensor, row: Row) -> dict[str, list[bool]]:
    """QUESTIONS of every picture [P, 3, H, W]."""
    seen = [answer(one, row.wanted, row.strips()) for one in judge.observe(images)]
    return {question: [one[question] for one in seen] for question in QUESTIONS}


def answer(
    seen: Sequence[Observation], wanted: Sequence[Wanted], masks: Sequence[Tensor]
) -> dict[str, bool]:
    """named: every wanted noun. unswapped: and each in its own look sooner than in another's.
    right: every wanted object once, in its own look, nothing else. placed: and in its mask."""
    found = verdict(seen, wanted)
    right = found.once_each
    return {
        "named": all(found.named),
        "unswapped": found.unswapped,
        "right": right,
        "placed": right
        and all(
            _inside(one, mask)
            for want, mask in zip(wanted, masks, strict=True)
            for one in seen
            if one.noun == want.noun
        ),
    }


def _inside(seen: Observation, mask: Tensor) -> bool:
    height, width = mask.shape
    y, x = min(int(seen.y * height), height - 1), min(int(seen.x * width), width - 1)
    return bool(mask[y, x] > 0)
