"""The networks whose features the metrics are taken on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, ModelError
from ..world.clip import load_world_clip

WORLD = "world_clip"
BATCH = 32

_EMBEDDING = re.compile(r"embedding:\S+")


@dataclass(frozen=True)
class Extractor:
    """Features of pictures and of texts in one space.

    images: [B, 3, H, W] in [0, 1] -> [B, D]; texts -> [B, D]. Both fp32 on the CPU and of length
    √D, so that x·y / D in KID's kernel is the cosine.
    """

    name: str
    images: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], Tensor]


def extractor_named(text: str) -> Extractor:
    """`world_clip`, or `<open_clip model>=<file of its weights>`, such as `ViT-B-32=clip.pt`.

    Nothing is downloaded. Raises InputError for other texts, ModelError for missing or unfit
    weights.
    """
    if text == WORLD:
        clip = load_world_clip()
        return Extractor(
            WORLD, lambda x: _scaled(clip.encode_images(x)), lambda t: _scaled(clip.encode_texts(t))
        )
    name, sign, file = text.partition("=")
    if not sign or name not in open_clip.list_models():
        raise InputError(
            f"Extractor {text!r} is unknown: write {WORLD!r}, or a model of open_clip and the file "
            "of its weights, such as 'ViT-B-32=folder/clip.pt'."
        )
    return _open_clip(name, Path(file))


def _open_clip(name: str, weights: Path) -> Extractor:
    if not weights.is_file():
        raise ModelError(f"The weights of {name} are not at {weights}. Name their file.")
    try:
        with torch.random.fork_rng(devices=[]):
            model = open_clip.create_model(name, pretrained=str(weights)).eval()
    except Exception as error:  # open_clip lets through whatever torch and pickle raise
        raise ModelError(f"{weights.name} holds no weights of {name}: {error}.") from error
    tokenizer = open_clip.get_tokenizer(name)
    visual = model.visual
    size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
    mean = torch.tensor(visual.image_mean or open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    spread = torch.tensor(visual.image_std or open_clip.OPENAI_DATASET_STD).view(3, 1, 1)

    @torch.no_grad()
    def images(pictures: Tensor) -> Tensor:
        parts = []
        for part in pictures.float().split(BATCH):
            fitted = F.interpolate(part, size, mode="bicubic", antialias=True).clamp(0, 1)
            parts.append(model.encode_image((fitted - mean) / spread))
        return _scaled(torch.cat(parts))

    @torch.no_grad()
    def texts(prompts: Sequence[str]) -> Tensor:
        plain = [" ".join(_EMBEDDING.sub("", prompt).split()) for prompt in prompts]
        return _scaled(model.encode_text(tokenizer(plain)))

    return Extractor(f"open_clip {name}", images, texts)


def _scaled(features: Tensor) -> Tensor:
    return F.normalize(features.float().cpu(), dim=-1) * features.shape[-1] ** 0.5
