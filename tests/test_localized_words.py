"""Prompts in which the rows of a concept's own words alone tell of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lifelong_core.attention import prompt_tokens
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.consolidation import consolidate, consolidation_defaults
from lifelong_core.consolidation.context import prepare
from lifelong_core.localized_words import (
    earlier_prompts,
    encode_localized,
    localized_concepts,
    places_in,
)
from lifelong_core.methods import METHODS
from lifelong_core.prompts import tokenizer
from lifelong_core.prompts.conditioning import NOBODYS, UNKNOWN
from lifelong_core.regional_slots import Slot, encode_slots, plain_slots, routed_slot
from lifelong_core.sampling import generate
from lifelong_core.state import LifelongState
from tests.consolidation.conftest import example_state, example_task

BOTH = "a embedding:thing_1 dog and a cat"
LONG = ", ".join(["sun"] * 36)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=4)


@pytest.fixture(scope="module")
def state(backbone: Backbone) -> LifelongState:
    """The first of two concepts was learned with localized words."""
    first, second = example_state(backbone, 2).records
    localized = replace(first, settings={**first.settings, "localized_words": True})
    return replace(example_state(backbone, 2), records=(localized, second))


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        (BOTH, "a dog and a cat"),
        ("a photo of embedding:thing_1 dog and a cat", "a photo of dog and a cat"),
        ("a cat and a big (embedding:thing_1 dog:1.2)", "a cat and a big (dog:1.2)"),
    ],
)
def test_rows_are_the_plain_prompts_but_for_the_concepts_words(
    backbone: Backbone, state: LifelongState, prompt: str, plain: str
) -> None:
    concept, text = state.concepts[0], backbone.text
    made = encode_localized(text, ["blurred", prompt], state.vectors, [concept])
    named, others = (text.encode([one], state.vectors).context[0] for one in (prompt, plain))
    rows = next(iter(concept.vectors.values())).shape[-2]
    begin = prompt_tokens(text.tokenize(prompt, state.vectors)).index(concept.token)
    dog = prompt_tokens(text.tokenize(plain, {})).index(*tokenizer().encode("dog"))
    wanted = torch.cat([others[:dog], named[begin : begin + rows + 1], others[dog + 1 :]])[:77]
    assert torch.equal(made.context[1], wanted)
    assert torch.equal(made.context[0], text.encode(["blurred"], {}).context[0])
    assert not torch.allclose(made.context[1], named, atol=1e-3)


@pytest.mark.parametrize(
    "prompt",
    [
        "a embedding:thing_1 cat",
        "embedding:thing_1 dog and embedding:thing_1 dog",
        f"{LONG}, embedding:thing_1 dog, embedding:thing_1",
    ],
)
def test_other_prompts_stay_as_they_are(
    backbone: Backbone, state: LifelongState, prompt: str
) -> None:
    made = encode_localized(backbone.text, [prompt], state.vectors, state.concepts[:1])
    assert torch.equal(made.context, backbone.text.encode([prompt], state.vectors).context)
    assert made.owners is not None and set(made.owners.flatten().tolist()) == {UNKNOWN}
    assert places_in(backbone.text.tokenize(prompt, state.vectors), state.concepts[:1]) == []


def test_long_prompts_are_read_chunk_by_chunk(backbone: Backbone, state: LifelongState) -> None:
    """Each as a prompt of its own would be, beside prompts of one chunk, and with a concept in
    several of them."""
    text, vectors, concepts = backbone.text, state.vectors, state.concepts
    dog, cat = (concept.phrase for concept in concepts)
    chunks = [f"{dog}, {LONG}", f"{cat} and {dog}"]
    prompt = ", ".join(chunks)
    cut = text.tokenize(prompt, vectors).chunks
    assert [chunk[1:] for chunk in cut[1:]] == [text.tokenize(chunks[1], vectors).chunks[0][1:]]
    made = encode_localized(text, [dog, prompt, "a sun"], vectors, concepts)
    alone = encode_localized(text, [f"{chunks[0]},", chunks[1], dog], vectors, concepts)
    assert made.context.shape[1] == 2 * 77 and made.owners is not None and alone.owners is not None
    for row, halves in ((1, (0, 1)), (0, (2, 2))):
        wanted = torch.cat([alone.context[half] for half in halves])
        torch.testing.assert_close(made.context[row], wanted, atol=1e-5, rtol=1e-4)
        owners = torch.cat([alone.owners[half] for half in halves])
        assert torch.equal(made.owners[row], owners)
    assert set(made.owners[1, :77].tolist()) == {NOBODYS, 0}
    assert set(made.owners[1, 77:].tolist()) == {NOBODYS, 0, 1}


def test_several_concepts_are_each_read_alone(backbone: Backbone, state: LifelongState) -> None:
    """Also when the last of them comes first."""
    first, second = state.concepts
    text, vectors = backbone.text, state.vectors
    prompt = f"a {second.phrase} and {first.phrase} on grass"
    plain = f"a {second.noun} and {first.noun} on grass"
    rows = text.encode([plain], vectors).context[0]
    tokens = prompt_tokens(text.tokenize(plain, {}))
    for concept, named in (
        (first, f"a {second.noun} and {first.phrase} on grass"),
        (second, f"a {second.phrase} and {first.noun} on grass"),
    ):
        own = text.encode([named], vectors).context[0]
        count = next(iter(concept.vectors.values())).shape[-2]
        begin = prompt_tokens(text.tokenize(named, vectors)).index(concept.token)
        at = tokens.index(*tokenizer().encode(concept.noun))
        words = [*[concept.token] * count, tokens[at]]
        rows = torch.cat([rows[:at], own[begin : begin + count + 1], rows[at + 1 :]])[:77]
        tokens = [*tokens[:at], *words, *tokens[at + 1 :]][:77]
    made = encode_localized(text, [prompt, "a sun", prompt], vectors, state.concepts)
    assert torch.equal(made.context[0], rows) and torch.equal(made.context[2], rows)
    assert torch.equal(made.context[1], text.encode(["a sun"], {}).context[0])
    assert prompt_tokens(text.tokenize(prompt, vectors)) == tokens, "words stay in their places"


def test_a_concept_that_was_learned_otherwise_stays_in_every_row(
    backbone: Backbone, state: LifelongState
) -> None:
    first, second = state.concepts
    prompt = f"a {first.phrase} and a {second.phrase}"
    made = encode_localized(backbone.text, [prompt], state.vectors, [first])
    others = f"a {first.noun} and a {second.phrase}"
    assert torch.equal(
        made.context[0, -1], backbone.text.encode([others], state.vectors).context[0, -2]
    )


def test_regions_read_so_what_was_learned_so(backbone: Backbone, state: LifelongState) -> None:
    first, _ = state.concepts
    assert localized_concepts(state) == (first,)
    assert localized_concepts(None) == ()
    slot = routed_slot(backbone, state, BOTH, BOTH)
    assert slot.localized == (first,)
    rest = Slot("a street", None, {})
    made = encode_slots(backbone, [rest, slot, replace(slot, localized=())], "")[1].context
    wanted = encode_localized(backbone.text, ["", BOTH], state.vectors, [first]).context
    assert torch.equal(made[2:4], wanted)
    assert torch.equal(made[4:], backbone.text.encode(["", BOTH], state.vectors).context)
    plain = encode_slots(backbone, plain_slots([slot, slot]), "")[1].context
    assert torch.equal(plain, backbone.text.encode(["", "a  dog and a cat"] * 2, {}).context)


def test_pictures_are_drawn_so(backbone: Backbone, state: LifelongState) -> None:
    prompts, vectors = [BOTH], state.vectors
    options = {"seed": 1, "steps": 2, "vectors": vectors, "as_latents": True}
    as_it_is, drawn = (
        generate(backbone, prompts, localized=localized, **options)
        for localized in ((), state.concepts[:1])
    )
    assert not torch.allclose(as_it_is, drawn, atol=1e-4)


def test_in_regions_adapters_are_heard_where_they_have_learned_to_be(
    backbone: Backbone, state: LifelongState
) -> None:
    """In the words of what was learned so; else in all rows, also of the negative prompt."""
    first, second = state.concepts
    slots = [
        routed_slot(backbone, state, prompt, prompt)
        for prompt in (BOTH, f"a {second.phrase}", f"a {first.phrase} and a {second.phrase}")
    ]
    owners = encode_slots(backbone, slots, "")[1].owners
    assert owners is not None
    assert set(owners[0].tolist()) == {NOBODYS} and set(owners[1].tolist()) == {NOBODYS, 0}
    assert set(owners[2:].flatten().tolist()) == {UNKNOWN}


def test_consolidations_and_retention_read_what_is_drawn(
    backbone: Backbone, state: LifelongState
) -> None:
    prompts = ["a photo of a dog", "a photo of embedding:thing_1 dog", BOTH]
    wanted = encode_localized(backbone.text, prompts, state.vectors, [state.concepts[0]])
    found = earlier_prompts(backbone.text, state).encode(prompts, state.vectors)
    torch.testing.assert_close(found.context, wanted.context, rtol=1e-4, atol=1e-5)
    work = prepare(backbone, example_task(2), consolidation_defaults("demo"), state)
    assert torch.equal(work.encode(prompts).context, found.context)
    usual = earlier_prompts(backbone.text, example_state(backbone, 2))
    plain = backbone.text.encode(prompts, state.vectors)
    assert torch.equal(usual.encode(prompts, state.vectors).context, plain.context)
    assert float((plain.context - found.context).abs().max()) > 1e-2


def test_every_phase_goes_on_with_localized_concepts(
    backbone: Backbone, state: LifelongState
) -> None:
    settings = replace(
        consolidation_defaults("demo"), distillation_iterations=1, fisher_iterations=2, batch_size=1
    )
    phases = METHODS["dsc_ewc_dc"].after

    def after(state: LifelongState) -> LifelongState:
        return consolidate(backbone, example_task(2), state, phases=phases, settings=settings)

    done, plain = after(state), after(example_state(backbone, 2))
    for key, value in done.extras["fisher"].items():
        assert bool(value.isfinite().all()), key
    assert any(not torch.equal(done.adapter[key], plain.adapter[key]) for key in done.adapter)
