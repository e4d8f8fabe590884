"""A base model that draws one prompt, for as long as a block lasts, with each word's own adapter.

A state that keeps an adapter per lesson draws a prompt with one that its method makes of them. A
mean of several, which answers in all rows of the prompt, draws their concepts as one thing. Where
concepts were learned with localized words, each one's adapter answers in its own words instead,
and the base model in all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .adapters.by_words import AdaptersByWords, changes_words_alone
from .adapters.frozen import frozen_adapter
from .backbone import Backbone
from .concepts import Concept, mentions
from .drawing import knowing
from .localized_words import localized_concepts, places_in
from .methods import drawing_state, newest_method, step_adapters
from .prompts import ConceptVectors
from .sampling import StepAdapters
from .state import LifelongState, TaskRecord


@dataclass(frozen=True)
class Known:
    """What `generate` is told of a state: its concepts' vectors, those to read localized, and the
    adapters of every step where the state's method has others at each."""

    vectors: dict[str, ConceptVectors] = field(default_factory=dict)
    localized: tuple[Concept, ...] = ()
    adapters: StepAdapters | None = None


@contextmanager
def prompted(backbone: Backbone, state: LifelongState | None, prompt: str) -> Iterator[Known]:
    """Attach what draws `prompt`; without a state the base model stays alone.

    By words where the method gives every prompt an adapter of its own; nothing is attached where
    `Known.adapters` answer. Raises StateError for a state of another base model or with adapters
    that do not fit, and what `drawing_state` raises.
    """
    if state is None:
        yield Known()
        return
    state.require_backbone(backbone)
    records = heard_by_words(backbone, state, prompt)
    if not records:
        known = drawing_state(state, prompt, backbone.text)
        localized = localized_concepts(known)
        changing = step_adapters(known, backbone)
        if changing is not None:
            yield Known(known.vectors_on(backbone.device), localized, changing)
            return
        with knowing(backbone, known) as vectors:
            yield Known(vectors, localized)
        return
    adapters = [frozen_adapter(state.adapter_spec, backbone, one.adapter) for one in records]
    with AdaptersByWords(adapters).attached(backbone):
        concepts = tuple(record.concept for record in records)
        yield Known(state.vectors_on(backbone.device), concepts)


def heard_by_words(backbone: Backbone, state: LifelongState, prompt: str) -> tuple[TaskRecord, ...]:
    """The lessons whose adapters `prompted` lets be heard in their own words alone; none where it
    draws with one adapter for all rows."""
    method = newest_method(state)
    if method is None or not method.by_prompt:
        return ()
    records = records_by_words(state, prompt)
    concepts = [record.concept for record in records]
    tokenized = backbone.text.tokenize(prompt, state.vectors)
    return records if places_in(tokenized, concepts) else ()


def records_by_words(state: LifelongState, prompt: str) -> tuple[TaskRecord, ...]:
    """The lessons on the concepts that `prompt` names, if each can be heard in its words alone.

    Empty where one of them was not learned with localized words, was not kept, or changes more than
    keys and values.
    """
    if not changes_words_alone(state.adapter_spec):
        return ()
    named = tuple(one for one in state.records if mentions(prompt, one.concept.token))
    fit = all(one.adapter and one.settings.get("localized_words") for one in named)
    return named if fit else ()
