"""What draws each slot of a picture with regions: its adapter, and its prompt encoded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from .adapters import Adapter
from .adapters.frozen import frozen_adapter
from .attention.layout import Row
from .attention.regions import Region
from .backbone import Backbone, Conditioning
from .concepts import Concept, mentions, with_plain_nouns, without_mentions
from .errors import InputError
from .localized_words import encode_localized, localized_concepts
from .methods import placed_state
from .prompts import ConceptVectors
from .prompts.conditioning import UNKNOWN
from .state import LifelongState, vectors_on


@dataclass(frozen=True)
class Slot:
    """A prompt, the state whose adapter draws it (None: the base model), and its concepts.

    localized: the concepts that the prompt knows in their own words alone.
    """

    prompt: str
    state: LifelongState | None
    vectors: dict[str, ConceptVectors]
    localized: tuple[Concept, ...] = ()


def region_slots(
    backbone: Backbone,
    state: LifelongState | Sequence[LifelongState | None] | None,
    prompt: str,
    regions: Sequence[Region],
) -> list[Slot]:
    """The slots of the whole picture and of its regions; `state` as in `generate_regions`.

    Raises InputError unless there is one state or one for each region, and StateError for states
    of another base model or without the adapter that a prompt needs.
    """
    if state is None or isinstance(state, LifelongState):
        named = [region.prompt for region in regions]
        whole = (prompt, without_mentions(prompt, _named(state, named)))
        return [
            routed_slot(backbone, state, *whole),
            *(routed_slot(backbone, state, own, own) for own in named),
        ]
    if len(state) != len(regions):
        raise InputError(
            f"There are {len(state)} states for {len(regions)} regions; give one that knows all "
            "concepts, or one for each region."
        )
    slots = [
        routed_slot(backbone, own, region.prompt, region.prompt)
        for own, region in zip(state, regions, strict=True)
    ]
    known = {token: vectors for slot in slots for token, vectors in slot.vectors.items()}
    return [Slot(prompt, None, known), *slots]


def routed_slot(backbone: Backbone, state: LifelongState | None, prompt: str, routing: str) -> Slot:
    """A slot of `prompt`, drawn with the adapter that belongs to the text `routing`."""
    if state is None:
        return Slot(prompt, None, {})
    state.require_backbone(backbone)
    localized = [one for one in localized_concepts(state) if mentions(prompt, one.token)]
    return Slot(prompt, placed_state(state, routing), state.vectors, tuple(localized))


def plain_slots(slots: Sequence[Slot]) -> list[Slot]:
    """The same slots before what was learned comes in: regions are drawn by the base model, told
    the plain nouns of their concepts, and so is the whole picture of what regions name."""
    named = [token for own in slots[1:] for token in own.vectors if mentions(own.prompt, token)]
    return [
        replace(slots[0], prompt=with_plain_nouns(slots[0].prompt, named)),
        *(Slot(with_plain_nouns(own.prompt, list(own.vectors)), None, {}) for own in slots[1:]),
    ]


def _named(state: LifelongState | None, prompts: Sequence[str]) -> list[str]:
    """The state's concept tokens that any of the prompts names."""
    concepts = state.concepts if state is not None else ()
    return [one.token for one in concepts if any(mentions(text, one.token) for text in prompts)]


def encode_slots(
    backbone: Backbone, slots: Sequence[Slot], negative: str
) -> tuple[list[Adapter | None], Conditioning]:
    """The slots' adapters, and 2 * (1 + U) encoded prompts: of every slot `negative` and its own.

    Every slot's text encoders are those of its own adapter. Slots of one state share one adapter.
    Raises InputError for a prompt with an unknown concept token.
    """
    made: dict[int, Adapter] = {}
    adapters: list[Adapter | None] = []
    known: dict[tuple[object, ...], Conditioning] = {}
    encoded = []
    for slot in slots:
        adapter = None
        if slot.state is not None:
            adapter = made.get(id(slot.state)) or frozen_adapter(
                slot.state.adapter_spec, backbone, slot.state.adapter
            )
            made[id(slot.state)] = adapter
        reads = adapter if adapter is not None and adapter.spec.text_encoder else None
        # States that were made of one another share their concepts' vectors.
        key = (slot.prompt, bool(slot.localized), id(reads), tuple(map(id, slot.vectors.values())))
        if key not in known:
            with nullcontext() if reads is None else reads.attached(backbone):
                known[key] = _encoded(backbone, slot, negative)
        encoded.append(known[key])
        adapters.append(adapter)
    return adapters, Conditioning.cat(encoded)


def _encoded(backbone: Backbone, slot: Slot, negative: str) -> Conditioning:
    """`negative` and the slot's own prompt."""
    vectors = vectors_on(slot.vectors, backbone.device)
    read = encode_localized(backbone.text, [negative, slot.prompt], vectors, slot.localized)
    named = {token for token in slot.vectors if mentions(slot.prompt, token)}
    others = named - {concept.token for concept in slot.localized}
    if read.owners is not None and (others or bool((read.owners[1] == UNKNOWN).any())):
        # The adapter is heard in all rows of the prompt, and so in those of the negative one.
        return replace(read, owners=None)
    return read


def unconditional_row(slots: int, picture: int = 0) -> Row:
    """Without a prompt anywhere, each region with its own adapter."""
    return Row(tuple(2 * slot for slot in range(slots)), 0, picture)


def whole_row(slots: int, picture: int = 0) -> Row:
    """All regions with their prompts and adapters."""
    return Row(tuple(2 * slot + 1 for slot in range(slots)), 1, picture)


def region_row(slots: int, slot: int, picture: int = 0) -> Row:
    """One region alone; the whole picture's prompt elsewhere."""
    active = (0, slot)
    return Row(
        tuple(2 * one + 1 if one in active else None for one in range(slots)),
        2 * slot + 1,
        picture,
    )
