"""Pictures of one group by one way of guiding, judged; kept on disk so that runs can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.guidance_groups import Group
from benchmarks.guidance_judging import QUESTIONS, answers
from lifelong_core.attention import AttentionGuidance, GuidanceSettings
from lifelong_core.backbone import Backbone
from lifelong_core.evaluation.alignment import own_alignment, pairwise_alignment
from lifelong_core.evaluation.drawing import BATCH, write_jpeg
from lifelong_core.evaluation.extractors import Extractor
from lifelong_core.evaluation.mmd import kid, mmd
from lifelong_core.files import content_hash, load_tensors, save_tensors
from lifelong_core.sampling import generate
from lifelong_core.seeding import derive_seed
from lifelong_core.sharing.preview import to_picture
from lifelong_core.state import LifelongState
from lifelong_core.training.precision import autocast_dtype
from lifelong_core.word_routing import prompted
from lifelong_core.world.judge import Judge
from lifelong_core.world.wearing import verdicts

CODE_VERSION = 1
"""Raised when a change of code changes pictures or verdicts: finished cells then count anew."""
SHOWN = 6
FEATURES = "features"


@dataclass(frozen=True)
class Studio:
    """What all cells share. pictures: per prompt. work: the folder that keeps finished cells."""

    backbone: Backbone
    judge: Judge
    extractor: Extractor
    pictures: int
    steps: int
    precision: str
    seed: int
    work: Path


@dataclass(frozen=True)
class Cell:
    """A finished cell. features [P, D]; questions: name of QUESTIONS -> one answer per picture."""

    features: Tensor
    questions: Mapping[str, list[bool]]
    strip: Path


def cell_path(
    studio: Studio,
    adapter: str,
    state: LifelongState | None,
    group: Group,
    settings: GuidanceSettings | None,
    method: str,
) -> Path:
    """Of its own for everything that the pictures depend on."""
    known = None
    if state is not None:
        words = {concept.token: dict(concept.vectors) for concept in state.concepts}
        known = (str(state.adapter_spec), dict(state.adapter), words)
    key = content_hash(
        CODE_VERSION,
        studio.backbone.fingerprint,
        str(studio.backbone.dtype),
        studio.extractor.name,
        known,
        list(group.prompts),
        None if settings is None else asdict(settings),
        [studio.pictures, studio.steps, studio.precision, studio.seed],
    )
    folder = studio.work / adapter / group.kind / group.name.replace(" ", "-")
    return folder / f"{method}-{key[:12]}.safetensors"


def judged_cell(
    studio: Studio,
    path: Path,
    state: LifelongState | None,
    group: Group,
    settings: GuidanceSettings | None,
) -> Cell:
    """The cell at `path`, drawn and judged first unless it is there.

    The noise depends on the group alone: it is the same for all ways of guiding. Six pictures stay
    as a strip in a JPEG beside the cell. Raises FileError when the folder cannot be written.
    """
    strip = path.with_suffix(".jpg")
    if not path.exists():
        images = _drawn(studio, state, group, settings)
        shown = torch.linspace(0, len(images) - 1, min(SHOWN, len(images))).long()
        write_jpeg(to_picture(torch.cat(list(images[shown]), dim=2)), strip)
        found = [answers(one) for one in verdicts(studio.judge, images, group.wanted)]
        columns = {question: [one[question] for one in found] for question in QUESTIONS}
        features = {FEATURES: studio.extractor.images(images)}
        save_tensors(path, features, {"questions": json.dumps(columns)})
    tensors, metadata = load_tensors(path)
    return Cell(tensors[FEATURES], json.loads(metadata["questions"]), strip)


def _drawn(
    studio: Studio,
    state: LifelongState | None,
    group: Group,
    settings: GuidanceSettings | None,
) -> Tensor:
    prompts = [prompt for prompt in group.prompts for _ in range(studio.pictures)]
    attention = None if settings is None else AttentionGuidance(settings, [group.pairs])
    with prompted(studio.backbone, state, prompts[0]) as known:
        return generate(
            studio.backbone,
            prompts,
            seed=derive_seed(studio.seed, "guidance", group.name),
            steps=studio.steps,
            vectors=known.vectors,
            localized=known.localized,
            adapters=known.adapters,
            batch_size=BATCH.get(studio.backbone.device.type, BATCH["cpu"]),
            autocast=autocast_dtype(studio.precision),
            attention=attention,
        )


def cell_values(studio: Studio, group: Group, cell: Cell) -> dict[str, list[float]]:
    """Metric -> one value per picture, except of KID and MMD, which have one for the whole cell.

    ia: mean cosine to renders of every object alone; ta: to the picture's own prompt; kid, mmd: to
    renders of all objects side by side.
    """
    encode, texts = studio.extractor.images, studio.extractor.texts
    ia = torch.stack(
        [pairwise_alignment(cell.features, encode(alone)) for alone in group.references]
    ).mean(0)
    scenes = encode(group.scenes(len(cell.features)))
    values = {question: [float(one) for one in cell.questions[question]] for question in QUESTIONS}
    values |= {
        "ia": ia.tolist(),
        "kid": [kid(cell.features, scenes)],
        "mmd": [mmd(cell.features, scenes)],
    }
    if texts is not None:
        prompts = [prompt for prompt in group.prompts for _ in range(studio.pictures)]
        values["ta"] = own_alignment(cell.features, texts(prompts)).tolist()
    return values
