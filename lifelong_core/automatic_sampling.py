"""Several concepts in one picture without boxes: each adapter acts where its concept appears.

FreeFuse (2025), with the base model's own cross-attention: a few early steps show where the prompt
puts every concept; from there on every adapter acts inside its region. Those steps are the base
model's, told the concepts' plain nouns, for it knows how several things stand in one picture.
Beginning again from the noise would cost them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .attention.automatic import looking
from .attention.layout import Layout
from .attention.regional import RegionalUnet
from .attention.regions import DELAY, check_delay, check_mixture, delayed_steps
from .attention.words import PromptPlaces, noun_places, prompt_tokens
from .backbone import Backbone
from .concepts import Concept, mentions, with_plain_nouns
from .errors import InputError
from .regional_sampler import RegionalSampler, Report, Underway, draw_in_batches
from .regional_slots import Slot, encode_slots, routed_slot, whole_row
from .sampling import StepCallback, check_sampling, generate
from .state import LifelongState
from .word_routing import prompted


@torch.no_grad()
def generate_automatic(
    backbone: Backbone,
    state: LifelongState,
    prompt: str,
    *,
    seed: int,
    concepts: Sequence[str] | None = None,
    count: int = 1,
    steps: int = 20,
    guidance: float | None = None,
    negative: str = "",
    delay: float = DELAY,
    softness: float = 0.0,
    size: tuple[int, int] | None = None,
    batch_size: int = 8,
    as_latents: bool = False,
    autocast: torch.dtype | None = None,
    on_progress: StepCallback | None = None,
) -> Tensor:
    """`count` pictures of `prompt`, every adapter only where its own concept appears.

    concepts: the tokens that have a place in the picture, each named in the prompt with its noun;
    by default all that the prompt names. Adapters of other concepts (styles) act everywhere else.
    With less than two, this is `generate` with the state's adapter for the prompt.

    For the share `delay` of the steps, at least one, the base model draws the prompt with the
    concepts' plain nouns, and the adapters of other concepts; there the masks are read, other ones
    for every picture. The other steps have regions, each with a prompt in which its own concept
    alone is named, the others by their nouns. Two rows per picture, as many as plain sampling has,
    and one more where the masks are read.

    Raises InputError for settings that cannot be used, or a concept that the prompt does not name
    with its noun; StateError for a state of another base model or with adapters that cannot be
    kept inside a region.
    """
    family = backbone.family
    size = size or (family.default_size, family.default_size)
    check_sampling(steps, min(batch_size, count), *size)
    check_mixture(1.0, softness)
    check_between(delay, steps)
    before = delayed_steps(delay, steps)
    state.require_backbone(backbone)
    placed = placed_concepts(state, prompt, concepts)
    scale = family.guidance if guidance is None else guidance
    if len(placed) < 2:
        with prompted(backbone, state, prompt) as known:
            return generate(
                backbone, [prompt] * count, seed=seed, steps=steps, guidance=scale,
                negative=negative, size=size, vectors=known.vectors,
                localized=known.localized, adapters=known.adapters, batch_size=batch_size,
                as_latents=as_latents, autocast=autocast, on_progress=on_progress,
            )  # fmt: skip
    tokens = [concept.token for concept in placed]
    rest = with_plain_nouns(prompt, tokens)
    slots = [
        routed_slot(backbone, state, rest, rest),
        *(
            routed_slot(backbone, state, naming_only(prompt, own, placed), own.phrase)
            for own in placed
        ),
    ]
    places = noun_places(
        prompt_tokens(backbone.text.tokenize(prompt, state.vectors)),
        [(concept.token, concept.noun) for concept in placed],
        prompt_tokens(backbone.text.tokenize(rest, state.vectors)),
    )

    def sampler(slots: Sequence[Slot]) -> RegionalSampler:
        unet = RegionalUnet(backbone, *encode_slots(backbone, slots, negative))
        return RegionalSampler(
            unet, len(slots), steps, scale, size, 1.0, softness, 2 * batch_size, autocast
        )

    looks, draws = sampler(slots[:1]), sampler(slots)
    report = Report(steps * -(-count // draws.pictures), on_progress)

    def draw(noise: Tensor, _rows: slice) -> Tensor:
        pictures = looks.begin(noise)
        masks = early_masks(looks, pictures, before, places, report)
        with draws.unet.attached():
            return draws.advance(pictures, masks, report)

    return draw_in_batches(
        backbone, draw, seed=seed, count=count, batch=draws.pictures, size=size,
        as_latents=as_latents,
    )  # fmt: skip


def check_between(delay: float, steps: int) -> None:
    """Raise InputError unless masks can be read between steps: some before and some after."""
    check_delay(delay)
    if not 0 < delay < 1 < steps:
        raise InputError(
            f"Automatic regions are read between steps: delay is {delay} of {steps} steps, and "
            "must be more than 0 of at least 2."
        )


def early_masks(
    sampler: RegionalSampler,
    pictures: Underway,
    steps: int,
    places: PromptPlaces,
    on_step: Callable[[], None],
) -> list[list[Tensor]]:
    """The masks [h, w] of every picture's concepts when `pictures` are so many steps further.

    sampler: without regions. places: of the concepts in the whole picture's prompt.
    """
    unet, noise = sampler.unet, pictures.noise
    latents = (noise.shape[2], noise.shape[3])
    none: list[list[Tensor]] = [[] for _ in noise]
    with unet.attached():
        begun = sampler.advance(pictures, none, on_step, steps)
        layout = Layout(
            [whole_row(1, picture) for picture in range(len(noise))],
            none,
            latents,
            0.0,
            noise.device,
        )
        with looking(unet.backbone) as sight:
            sampler.output(begun, pictures.course.timesteps[pictures.done], layout)
    return sight.masks(unet.backbone, latents, places)


def placed_concepts(
    state: LifelongState, prompt: str, tokens: Sequence[str] | None
) -> list[Concept]:
    """The state's concepts with these tokens, or all that the prompt names.

    Raises InputError for a token that the state does not know or the prompt does not name.
    """
    named = [concept for concept in state.concepts if mentions(prompt, concept.token)]
    if tokens is None:
        return named
    unknown = [token for token in tokens if token not in {concept.token for concept in named}]
    if unknown:
        raise InputError(
            f"The prompt {prompt!r} does not name the concept {unknown[0]!r} of this state; write "
            f"'embedding:{unknown[0]}' and its noun in it, or leave it out of the concepts."
        )
    return [concept for concept in named if concept.token in tokens]


def naming_only(prompt: str, own: Concept, placed: Sequence[Concept]) -> str:
    """The prompt with the plain nouns of all `placed` concepts but its own."""
    return with_plain_nouns(prompt, [one.token for one in placed if one.token != own.token])
