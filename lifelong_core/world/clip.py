"""The world CLIP: image and text similarity for pictures of the demo world.

An open_clip model with small towers and a vocabulary of the words that captions use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from .backgrounds import PHRASES
from .looks import PARTS, PATTERNS
from .palette import COLOURS
from .shapes import SHAPES
from .shipped import read_weights
from .small import SMALL, shrink
from .styles import LINES, TEXTURES, TONES

if TYPE_CHECKING:
    from open_clip.model import CLIP

WIDTH = 128
CONTEXT = 56
PAD, START = 0, 1

_EMBEDDING = re.compile(r"embedding:\S+")
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)?")


def _vocabulary() -> dict[str, int]:
    """Every word of captions -> its number; the end mark has the highest, as CLIP wants."""
    grammar = ["a", "an", "and", "of", "photo", "drawing", "fancy", "with"]
    words = [
        *grammar,
        *(word for phrase in PHRASES.values() for word in phrase.split()),
        *SHAPES,
        *COLOURS,
        *PATTERNS,
        *PARTS,
        *(shape.accent_word for shape in SHAPES.values()),
        *TONES,
        *LINES,
        *TEXTURES,
    ]
    return {word: number for number, word in enumerate(dict.fromkeys(words), START + 1)}


VOCABULARY = _vocabulary()
END = START + 1 + len(VOCABULARY)


def new_clip(seed: int = 0) -> CLIP:
    """A fresh model; the global random state stays as it was."""
    # Late: it takes seconds, and ComfyUI loads this file whenever it starts.
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=(2, 2, 2, 1), width=20, head_width=64, image_size=SMALL)
    text = CLIPTextCfg(context_length=CONTEXT, vocab_size=END + 1, width=WIDTH, heads=4, layers=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP(WIDTH, vision, text).to(memory_format=torch.channels_last)


def word_ids(text: str) -> list[int]:
    """[CONTEXT] numbers of the words of `text`; unknown ones and concept tokens are dropped."""
    words = _WORD.findall(_EMBEDDING.sub(" ", text.lower()))
    ids = [VOCABULARY[word] for word in words if word in VOCABULARY][: CONTEXT - 2]
    return [START, *ids, END] + [PAD] * (CONTEXT - 2 - len(ids))


def read_words(model: CLIP, ids: Tensor, groups: int = 1) -> Tensor:
    """[B, CONTEXT] numbers of words -> [B, 128] of length one, as `encode_text` reads them.

    What follows the end mark changes nothing and is not read. With several `groups`, texts of like
    length are read together: captions fill a third of the context, so that it takes a third.
    """
    lengths = (ids != PAD).sum(1)
    order = lengths.argsort()
    parts = []
    for rows in order.chunk(groups):
        longest = int(lengths[rows].max())
        mask = model.attn_mask[:longest, :longest]
        shorter = {"positional_embedding": model.positional_embedding[:longest], "attn_mask": mask}
        parts.append(functional_call(model, shorter, (None, ids[rows, :longest]))[1])
    return torch.cat(parts)[order.argsort()]


class WorldClip:
    """Pictures and words of the demo world as directions whose cosines compare them."""

    width = WIDTH

    def __init__(self, model: CLIP) -> None:
        self.model = model.requires_grad_(False).eval()

    @torch.no_grad()
    def encode_images(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, 128] of length one, fp32. Any size; 64 pixels are read."""
        parts = [
            F.normalize(self.model.encode_image(normalised(shrink(part))), dim=-1)
            for part in images.float().split(batch_size)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [B, 128] of length one, fp32.

        Words that captions never use say nothing here. `embedding:<token>` is dropped, the noun
        after it kept: the score asks whether the picture shows what the plain words say.
        """
        return read_words(self.model, torch.tensor([word_ids(text) for text in texts]))


def normalised(images: Tensor) -> Tensor:
    """[0, 1] -> about unit variance, as the image tower was trained."""
    return (images - 0.5) * 3.5


@lru_cache(maxsize=1)
def load_world_clip() -> WorldClip:
    """The shipped model on the CPU. Raises ModelError when its weights are missing."""
    model = new_clip()
    model.load_state_dict(read_weights("clip"), strict=False)
    return WorldClip(model)
