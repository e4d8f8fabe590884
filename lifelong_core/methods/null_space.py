"""Lessons whose adapter changes nothing but how their own concept's words are read.

Keys and values of cross-attention are linear in the prompt's rows, so that an adapter which reads
no direction of the rows of ordinary prompts leaves these as they were: the base model under every
prompt without a concept, and everything else in a prompt that names one. What earlier lessons
taught is kept out in the same way, and all adapters can be summed into one. That needs looks which
are in the concepts' own words alone (`localized_words`), and words that are far enough from
ordinary ones: several vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..adapters.null_space import principal_directions, without_directions
from ..adapters.spec import KEY_VALUE
from ..concepts import Concept
from ..errors import InputError
from ..lesson import LessonSettings
from ..localized_words import places_in
from ..prompts import ConceptVectors, TextStack
from ..prompts.ordinary import ordinary_prompts
from ..training.lesson import Lesson
from .subspaces import lora_only, own_factors

ORDINARY = 300
"""How many ordinary prompts are read."""
AT_ONCE = 32
"""Of them."""
SHARE = 0.99
"""How much of what their rows are is kept out of a lesson's adapter."""
SENTENCES = ("a photo of a {}", "{}", "a red dog and a {} on the beach", "a drawing of two big {}")
"""In which an earlier concept's words are read."""
VECTORS = 4
"""Of a token, at least."""


def null_space_settings(settings: LessonSettings) -> LessonSettings:
    """Looks in the concepts' own words, of several vectors, which pictures of the plain noun can
    tell nothing about. Raises InputError for an adapter that changes anything but keys and values,
    or is no LoRA.
    """
    adapter = lora_only(settings).adapter
    if adapter.text_encoder or set(adapter.targets) - set(KEY_VALUE):
        raise InputError(
            f"This method keeps prompts apart where they are read, in {' and '.join(KEY_VALUE)}; "
            "an adapter of other layers changes pictures of all prompts. Choose these layers, "
            "without the text encoder, or another method."
        )
    count = max(settings.token_count, VECTORS)
    return replace(settings, localized_words=True, token_count=count, prior_count=0)


class ReadNothingOf:
    """A hook of the training loop: `down` factors read nothing of `directions` [W, k], ever."""

    def __init__(self, downs: Mapping[str, nn.Parameter], directions: Tensor) -> None:
        self.downs = downs
        self.directions = directions
        self.after_step(0)

    def after_backward(self, _step: int) -> None:
        """Nothing: a step may go anywhere, and is led back behind it."""

    @torch.no_grad()
    def after_step(self, _step: int) -> None:
        """Adam scales every number of a gradient by itself, which leads out of any subspace."""
        for down in self.downs.values():
            down.copy_(without_directions(down, self.directions))


def pass_by_other_words(lesson: Lesson) -> ReadNothingOf:
    """The lesson's adapter reads nothing of ordinary prompts, nor of earlier concepts' words."""
    downs = own_factors(lesson, "down")
    return ReadNothingOf(downs, other_words(lesson).to(lesson.backbone.device))


@torch.no_grad()
def other_words(lesson: Lesson) -> Tensor:
    """Orthonormal directions [W, k] of the rows of ordinary prompts, and of earlier concepts'
    words, the latest first, for as long as the adapter's rank still has as many left.
    """
    text, rank = lesson.backbone.text, lesson.settings.adapter.rank
    plain = [*ordinary_prompts(ORDINARY), f"a photo of a {lesson.task.noun}"]
    parts = [text.encode(plain[at : at + AT_ONCE]) for at in range(0, len(plain), AT_ONCE)]
    known = principal_directions(torch.cat([x.context.flatten(0, 1) for x in parts]), SHARE)
    if lesson.state is None:
        return known
    vectors = lesson.state.vectors_on(lesson.backbone.device)
    most = max(known.shape[1], known.shape[0] - rank)
    for concept in reversed(lesson.state.concepts):
        rows = torch.cat([_own_rows(text, one, concept, vectors) for one in SENTENCES])
        own = principal_directions(rows, SHARE, apart_from=known)
        known = torch.cat([known, own], dim=1)[:, :most]
    return known


def _own_rows(
    text: TextStack, sentence: str, concept: Concept, vectors: Mapping[str, ConceptVectors]
) -> Tensor:
    """The rows [n, W] of a concept's words in a sentence, as all layers read them."""
    prompt = sentence.format(concept.phrase)
    ((place,),) = (found.values() for found in places_in(text.tokenize(prompt, vectors), [concept]))
    begin, count = place.start[0], place.length[0]
    encoded = text.encode([prompt], vectors)
    read = encoded.context if encoded.layers is None else encoded.layers[0]
    return read[:, begin : begin + count].flatten(0, 1)
