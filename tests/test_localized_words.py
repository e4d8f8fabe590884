"""Prompts in which the rows of a concept's own words alone tell of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lifelong_core.attention import prompt_tokens
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.localized_words import encode_localized, localized_concept, own_words
from lifelong_core.prompts import tokenizer
from lifelong_core.regional_slots import Slot, encode_slots, plain_slots, routed_slot
from lifelong_core.state import LifelongState
from tests.consolidation.conftest import example_state

BOTH = "a embedding:thing_1 dog and a cat"


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
        ("a photo of embedding:thing_1 dog and a cat", "a photo of a dog and a cat"),
        ("a cat and a big (embedding:thing_1 dog:1.2)", "a cat and a big (dog:1.2)"),
    ],
)
def test_rows_are_the_plain_prompts_but_for_the_concepts_words(
    backbone: Backbone, state: LifelongState, prompt: str, plain: str
) -> None:
    concept, text = state.concepts[0], backbone.text
    made = encode_localized(text, "blurred", prompt, state.vectors, concept)
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
        ", ".join(["sun"] * 40) + ", embedding:thing_1 dog",
    ],
)
def test_other_prompts_stay_as_they_are(
    backbone: Backbone, state: LifelongState, prompt: str
) -> None:
    made = encode_localized(backbone.text, "", prompt, state.vectors, state.concepts[0])
    assert torch.equal(made.context, backbone.text.encode(["", prompt], state.vectors).context)
    tokens = prompt_tokens(backbone.text.tokenize(prompt, state.vectors))
    assert own_words(tokens, tokens, state.concepts[0]) is None


def test_regions_read_so_what_was_learned_so(backbone: Backbone, state: LifelongState) -> None:
    first, second = state.concepts
    assert localized_concept(state, BOTH) is first
    for prompt in ("a dog", f"a {second.phrase}", f"{first.phrase} and {second.phrase}"):
        assert localized_concept(state, prompt) is None
    slot = routed_slot(backbone, state, BOTH, BOTH)
    assert slot.own is first
    rest = Slot("a street", None, {})
    made = encode_slots(backbone, [rest, slot, replace(slot, own=None)], "")[1].context
    wanted = encode_localized(backbone.text, "", BOTH, state.vectors, first).context
    assert torch.equal(made[2:4], wanted)
    assert torch.equal(made[4:], backbone.text.encode(["", BOTH], state.vectors).context)
    plain = encode_slots(backbone, plain_slots([slot, slot]), "")[1].context
    assert torch.equal(plain, backbone.text.encode(["", "a  dog and a cat"] * 2, {}).context)
