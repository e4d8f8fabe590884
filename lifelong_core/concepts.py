"""A personal concept, and the lesson's input that teaches it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import InputError
from .files import content_hash
from .frozen import frozen_tensors
from .images import fit
from .prompts.vectors import layer_count, single_vectors

if TYPE_CHECKING:
    from .prompts import TextStack
    from .state import LifelongState

TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
NOUN = re.compile(r"[^\W_][^\n\r\t()\[\]{}\\:<>]{0,63}")
BARE = re.compile(r"(?:^|,|\b(?:of|and|with))[\s(]*$", re.IGNORECASE)
"""What a noun without an article stands behind; "(" begins a weight."""
DEFAULT_CAPTION = "a photo of {}"


@dataclass(frozen=True)
class Concept:
    """A learned token and the class noun it belongs to.

    vectors: per text encoder ("clip_l", "clip_g", "clip_h") the token's embeddings [m, width], or
        [L, m, width] with a set of its own for each cross-attention layer.

    Raises InputError for names that cannot be written, and for vectors of uneven shapes.
    """

    token: str
    noun: str
    vectors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_names(self.token, self.noun)
        object.__setattr__(self, "vectors", frozen_tensors(self.vectors))
        shapes = {tuple(value.shape[:-1]) for value in self.vectors.values()}
        if len(shapes) > 1 or not all(len(shape) in (1, 2) for shape in shapes):
            found = {key: tuple(value.shape) for key, value in self.vectors.items()}
            raise InputError(
                f"The vectors of {self.token!r} have the shapes {found}; expected [m, width], or "
                "[layers, m, width] for layer-wise ones, alike for all text encoders."
            )

    @property
    def phrase(self) -> str:
        """How the concept is written in a prompt, in ComfyUI's syntax."""
        return concept_phrase(self.token, self.noun)

    @property
    def layers(self) -> int:
        """How many cross-attention layers have vectors of their own; 0: all share one set."""
        return layer_count(self.vectors)

    def single(self) -> Concept:
        """The concept for programs that know no layers: its vectors' mean, [m, width]."""
        return replace(self, vectors=single_vectors(self.vectors)) if self.layers else self


@dataclass(frozen=True)
class ConceptTask:
    """One lesson's input: pictures [n, 3, H, W] in [0, 1], one caption each. See `make_task`."""

    token: str
    noun: str
    images: Tensor
    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", self.images.detach().clone())
        object.__setattr__(self, "captions", tuple(self.captions))

    @property
    def phrase(self) -> str:
        """How the concept is written in a prompt, in ComfyUI's syntax."""
        return concept_phrase(self.token, self.noun)

    @property
    def content_hash(self) -> str:
        """Equal for equal pictures, captions and names, on every machine."""
        return content_hash(self.token, self.noun, self.images, self.captions)


def concept_phrase(token: str, noun: str) -> str:
    """`embedding:<token> <noun>`."""
    return f"embedding:{token} {noun}"


def make_task(
    token: str,
    noun: str,
    images: Sequence[Tensor] | Tensor,
    captions: Sequence[str] | None = None,
    *,
    size: int,
) -> ConceptTask:
    """Check a lesson's input and bring its pictures to `size` × `size` (centre crop, resize).

    images: pictures [3, H, W] or one batch [n, 3, H, W], values in [0, 1], any sizes.
    captions: one per picture, each with `embedding:<token>`; by default "a photo of
        embedding:<token> <noun>" for all.

    Raises InputError for unusable names, no or broken pictures, missing or unfit captions.
    """
    noun = noun.strip()
    check_names(token, noun)
    pictures = [_checked_picture(image, number) for number, image in enumerate(images, 1)]
    if not pictures:
        raise InputError(f"No pictures of {token!r} were given; give at least one, better 3 to 5.")
    if captions is None:
        captions = [DEFAULT_CAPTION.format(concept_phrase(token, noun))] * len(pictures)
    _check_captions(captions, token, noun, len(pictures))
    return ConceptTask(
        token, noun, torch.stack([fit(picture, size) for picture in pictures]), tuple(captions)
    )


def check_names(token: str, noun: str) -> None:
    """Raise InputError unless `token` and `noun` can be written in prompts and file names."""
    if not isinstance(token, str) or not TOKEN.fullmatch(token):
        raise InputError(
            f"Token {token!r} cannot be used: write 1 to 64 letters a-z or A-Z, digits, '_' or '-'."
        )
    if not isinstance(noun, str) or not noun.strip():
        raise InputError(
            f"The class noun of {token!r} is empty: name the kind of thing, such as 'dog'."
        )
    if not NOUN.fullmatch(noun):
        raise InputError(
            f"Class noun {noun!r} cannot be used: write plain words such as 'teddy bear', "
            "at most 64 characters, without brackets, colons or line breaks."
        )


def check_new_token(token: str, text: TextStack, state: LifelongState | None = None) -> None:
    """Raise InputError when `token` is already a word of the model or a concept of the state."""
    if text.has_word(token):
        raise InputError(
            f"Token {token!r} is a word that the base model already knows. Choose a name that is "
            f"no word, such as '{token}_1' or 'my-{token}'."
        )
    for concept in state.concepts if state is not None else ():
        # File systems that ignore case would give both embeddings one file.
        if concept.token.casefold() == token.casefold():
            raise InputError(
                f"Token {token!r} is already taken by the concept {concept.phrase!r} of this "
                "state. Choose another token, or go on from a state without it."
            )


def mentions(prompt: str, token: str) -> bool:
    """Whether `prompt` contains `embedding:<token>` (and not merely a longer name)."""
    return _mention(token).search(prompt) is not None


def without_mentions(prompt: str, tokens: Sequence[str]) -> str:
    """`prompt` in which these concept tokens are not named."""
    for token in tokens:
        prompt = _mention(token).sub("", _bare(prompt, token))
    return prompt


def with_plain_nouns(prompt: str, tokens: Sequence[str]) -> str:
    """`prompt` with these concepts' nouns alone.

    A concept may do without an article where its noun needs one: "a photo of embedding:rex dog"
    becomes "a photo of a dog", and "a photo of a big embedding:rex dog" that of a big dog. A weight
    that is the token's alone goes with it.
    """
    for token in tokens:
        mention = rf"{_mention(token).pattern}(?P<space>\s*)"
        prompt = re.sub(mention, _article, _bare(prompt, token))
    return prompt


def _bare(prompt: str, token: str) -> str:
    """`prompt` without weights that are of the token alone: "(embedding:rex:1.3)"."""
    mention = _mention(token).pattern
    weighted = rf"(?<!\\)\(\s*({mention})\s*(?::[\d.\s]*)?\)"
    while (less := re.sub(weighted, r"\1", prompt)) != prompt:
        prompt = less
    return prompt


def _article(mention: re.Match[str]) -> str:
    before, after = mention.string[: mention.start()], mention.string[mention.end() :]
    if not BARE.search(before) or not after[:1].isalnum():
        return ""
    return ("an" if after[:1].lower() in set("aeiou") else "a") + mention["space"]


def _mention(token: str) -> re.Pattern[str]:
    return re.compile(rf"embedding:{re.escape(token)}(?![A-Za-z0-9_-])")


def _checked_picture(image: Tensor, number: int) -> Tensor:
    if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3:
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise InputError(f"Picture {number} is {shape}; expected a tensor [3, height, width].")
    picture = image.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(picture).all()):
        raise InputError(f"Picture {number} has values that are not finite; load it again.")
    if float(picture.min()) < -1e-3 or float(picture.max()) > 1.001:
        raise InputError(
            f"Picture {number} has values from {float(picture.min()):g} to "
            f"{float(picture.max()):g}; expected 0 to 1."
        )
    return picture.clamp(0, 1)


def _check_captions(captions: Sequence[str], token: str, noun: str, pictures: int) -> None:
    if len(captions) != pictures:
        raise InputError(
            f"{pictures} pictures came with {len(captions)} captions; give one caption per "
            "picture, or none at all to use the default."
        )
    for number, caption in enumerate(captions, 1):
        if not mentions(caption, token):
            raise InputError(
                f"Caption {number} ({caption!r}) does not name the concept: write "
                f"'{concept_phrase(token, noun)}' (at least 'embedding:{token}') in it."
            )
