"""The networks whose features the metrics are taken on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import timm  # comes with open_clip
import torch
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg_value, load_state_dict
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, ModelError
from ..world.clip import load_world_clip

WORLD = "world_clip"
RAW = "inception"
"""KID is defined on Inception's features as they are."""
BATCH = 32

_EMBEDDING = re.compile(r"embedding:\S+")


@dataclass(frozen=True)
class Extractor:
    """Features of pictures and of texts in one space.

    images: [B, 3, H, W] in [0, 1] -> [B, D]; texts -> [B, D], None for networks that read none.
    Both fp32 on the CPU and, except Inception's, of length √D, so that x·y / D in KID's kernel is
    the cosine.
    """

    name: str
    images: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], Tensor] | None


def extractor_named(text: str) -> Extractor:
    """`world_clip`, or `<model>=<file of its weights>` with a model of open_clip, such as
    `ViT-B-32=clip.pt`, or of timm with the tag of its weights: `vit_small_patch16_224.dino` (the
    DINO of DreamBooth's DINO score) and `inception_v3.tv_in1k` (torchvision's, 2048 pool features;
    KID is usually taken on an Inception that differs in details).

    Nothing is downloaded. Raises InputError for other texts, ModelError for missing or unfit
    weights.
    """
    if text == WORLD:
        clip = load_world_clip()
        return Extractor(
            WORLD, lambda x: _scaled(clip.encode_images(x)), lambda t: _scaled(clip.encode_texts(t))
        )
    name, sign, file = text.partition("=")
    make = next((make for known, make in _MAKERS if sign and name in known()), None)
    if make is None:
        raise InputError(
            f"Extractor {text!r} is unknown: write {WORLD!r}, or a model of open_clip or timm and "
            "the file of its weights, such as 'ViT-B-32=folder/clip.pt', "
            "'vit_small_patch16_224.dino=dino.pth' or 'inception_v3.tv_in1k=inception.pth'."
        )
    if not Path(file).is_file():
        raise ModelError(f"The weights of {name} are not at {file}. Name their file.")
    return make(name, Path(file))


def _open_clip(name: str, weights: Path) -> Extractor:
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

    def images(pictures: Tensor) -> Tensor:
        return _scaled(_in_batches(model.encode_image, pictures, size, mean, spread))

    @torch.no_grad()
    def texts(prompts: Sequence[str]) -> Tensor:
        plain = [" ".join(_EMBEDDING.sub("", prompt).split()) for prompt in prompts]
        return _scaled(model.encode_text(tokenizer(plain)))

    return Extractor(f"open_clip {name}", images, texts)


def _timm(name: str, weights: Path) -> Extractor:
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(name, num_classes=0).eval()
    try:
        _load(model, load_state_dict(str(weights), weights_only=True), name)
    except Exception as error:  # whatever torch, pickle and safetensors raise
        raise ModelError(f"{weights.name} holds no weights of {name}: {error}.") from error
    usual = resolve_model_data_config(model)
    mean, spread = (torch.tensor(usual[key]).view(3, 1, 1) for key in ("mean", "std"))

    def images(pictures: Tensor) -> Tensor:
        features = _in_batches(model, pictures, usual["input_size"][1:], mean, spread)
        return features if name.startswith(RAW) else _scaled(features)

    return Extractor(f"timm {name}", images, None)


def _load(model: torch.nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Load all of the network from a file that may also hold parts which only training needs.

    Raises ModelError for a file that lacks weights, or has those of other classes: the Inception
    that FID and KID are usually taken on has 1008, and pools in another way.
    """
    head, classes = (get_pretrained_cfg_value(name, key) for key in ("classifier", "num_classes"))
    found = weights.get(f"{head}.weight")
    if found is not None and len(found) != classes:
        raise ModelError(f"they are of another network, with {len(found)} classes for {classes}")
    missing = model.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise ModelError(f"{len(missing)} are missing, such as {missing[0]}")


@torch.no_grad()
def _in_batches(
    encode: Callable[[Tensor], Tensor],
    pictures: Tensor,
    size: tuple[int, int],
    mean: Tensor,
    spread: Tensor,
) -> Tensor:
    """[B, D] fp32 for [B, 3, H, W] in [0, 1], resized to (height, width) and normalised."""
    parts = []
    for part in pictures.float().split(BATCH):
        fitted = F.interpolate(part, size, mode="bicubic", antialias=True).clamp(0, 1)
        parts.append(encode((fitted - mean) / spread).float())
    return torch.cat(parts)


_MAKERS: tuple[
    tuple[Callable[[], list[str]], Callable[[str, Path], Extractor]],
    ...,
] = ((open_clip.list_models, _open_clip), (timm.list_pretrained, _timm))


def _scaled(features: Tensor) -> Tensor:
    return F.normalize(features.float().cpu(), dim=-1) * features.shape[-1] ** 0.5
