"""Pictures of one cell of the matrix, turned into features that stay on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..backbone import Backbone
from ..files import atomic_write, content_hash, copy_file, load_tensors, save_tensors
from ..methods import drawing_state, step_adapters
from ..sampling import generate
from ..seeding import derive_seed
from ..sharing.preview import to_picture
from ..state import LifelongState
from ..training.precision import autocast, autocast_dtype
from ..word_routing import heard_by_words, prompted
from .extractors import Extractor
from .phases import Phase, measured
from .prompts import spread_first
from .protocol import Protocol

BATCH = {"cpu": 20, "cuda": 80}


@dataclass(frozen=True)
class Pictures:
    """What to draw: prompts [P], one per picture. Picture p starts from the noise of (seed, p)."""

    prompts: tuple[str, ...]
    seed: int
    steps: int
    precision: str


def pictures_of(
    prompts: Sequence[str], protocol: Protocol, *, last: bool, seed: int, concept: int
) -> Pictures:
    """The pictures of a cell. Those of the last row begin with those of every other row, and the
    noise depends on the stream's seed and the concept alone: it is the same for all methods."""
    count = protocol.last_prompts if last else protocol.prompts
    chosen = spread_first(prompts, protocol.prompts)[:count]
    repeated = tuple(prompt for prompt in chosen for _ in range(protocol.pictures))
    seed = derive_seed(seed, "evaluation", concept)
    return Pictures(repeated, seed, protocol.steps, protocol.precision)


def draw(backbone: Backbone, state: LifelongState | None, pictures: Pictures) -> Tensor:
    """[P, 3, H, W] in [0, 1] by the base model, or by what a state draws the first prompt with."""
    batch = BATCH.get(backbone.device.type, BATCH["cpu"])
    with prompted(backbone, state, pictures.prompts[0]) as known:
        latents = generate(
            backbone,
            pictures.prompts,
            seed=pictures.seed,
            steps=pictures.steps,
            vectors=known.vectors,
            localized=known.localized,
            adapters=known.adapters,
            batch_size=batch,
            as_latents=True,
            autocast=autocast_dtype(pictures.precision),
        )
    # The VAE of SDXL overflows in fp16.
    precision = pictures.precision if pictures.precision == "bf16" else "fp32"
    with autocast(backbone.device, precision):
        parts = [part.to(backbone.device) for part in latents.split(batch)]
        return torch.cat([backbone.codec.decode(part).float().cpu() for part in parts])


@dataclass(frozen=True)
class Cell:
    """features: extractor -> [P, D]. phase: what drawing them took."""

    features: dict[str, Tensor]
    phase: Phase


def drawn_cell(
    path: Path,
    drawn: Path,
    backbone: Backbone,
    state: LifelongState | None,
    pictures: Pictures,
    extractors: Sequence[Extractor],
    shown: int,
) -> Cell:
    """The cell in `path` (.safetensors), drawn first unless it is there.

    drawn: folder with the cells of all runs, so that what several runs draw alike, such as the
    concepts of hard routing and of the LoRAs trained alone, is drawn once.
    Every `shown`-th picture stays as a strip in a JPEG of the same name, at most five. Raises
    FileError when a folder cannot be written.
    """
    if not path.exists():
        names = [one.name for one in extractors]
        known = drawn / f"{_content(backbone, state, pictures, names)}.safetensors"
        if not known.exists():
            _draw_cell(known, backbone, state, pictures, extractors, shown)
        for suffix in (".jpg", ".safetensors"):
            copy_file(known.with_suffix(suffix), path.with_suffix(suffix))
    features, metadata = load_tensors(path)
    return Cell(features, Phase(**json.loads(metadata["phase"])))


def _draw_cell(
    path: Path,
    backbone: Backbone,
    state: LifelongState | None,
    pictures: Pictures,
    extractors: Sequence[Extractor],
    shown: int,
) -> None:
    with measured(backbone.device) as phase:
        images = draw(backbone, state, pictures)
    strip = torch.cat(list(images[::shown][:5]), dim=2)
    write_jpeg(to_picture(strip), path.with_suffix(".jpg"))
    features = {one.name: one.images(images) for one in extractors}
    save_tensors(path, features, {"phase": json.dumps(asdict(phase))})


def _content(
    backbone: Backbone, state: LifelongState | None, pictures: Pictures, extractors: list[str]
) -> str:
    """Equal for cells that look the same: with the same adapters, words, prompts and noise."""
    parts: list[Any] = [backbone.fingerprint, str(backbone.dtype), extractors]
    parts += asdict(pictures).values()
    if state is not None:
        named = " ".join(pictures.prompts)
        words = {c.token: c.vectors for c in state.concepts if c.token in named}
        first = pictures.prompts[0]
        drawn = drawing_state(state, first, backbone.text)
        parts += [state.adapter_spec.to_json(), drawn.adapter, words]
        if step_adapters(drawn, backbone) is not None:
            method = state.records[-1].settings["method"]
            parts += [method, [record.adapter for record in state.records]]
        parts += [one.concept.token for one in heard_by_words(backbone, state, first)]
    return content_hash(*parts)


def write_jpeg(picture: Image.Image, path: Path) -> Path:
    """Write `picture` atomically. Raises FileError."""
    return atomic_write(path, lambda temporary: picture.save(temporary, "JPEG", quality=90))
