"""Every adapter speaks as loudly as its concept is in the prompt, and words alone wake none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec, low_rank_factors
from lifelong_core.backbone import Backbone
from lifelong_core.concepts import Concept
from lifelong_core.consolidation.elastic_weights import (
    elastic_state,
    elastic_weights,
    released_state,
    released_weights,
    token_tables,
)
from lifelong_core.consolidation.merge import merge_adapters
from lifelong_core.consolidation.routing import route
from lifelong_core.drawing import knowing
from lifelong_core.errors import InputError, StateError
from lifelong_core.prompts import TokenizedPrompt, TokenVector, tokenizer
from lifelong_core.prompts.tokens import tokenize
from lifelong_core.sampling import generate
from lifelong_core.seeding import generator
from lifelong_core.sharing.naming import layers
from lifelong_core.state import LifelongState

StateAfter = Callable[..., LifelongState]
SPECS = (AdapterSpec(rank=2), AdapterSpec("vera", rank=4), AdapterSpec("key_value"))
CAT, BOTH = "a photo of embedding:my_cat cat", "embedding:my_cat cat and embedding:his_cat cat"


def two_tables() -> dict[str, Tensor]:
    """What is read of SDXL's text side: two token tables, of two widths."""
    draw = generator(0, "tables")
    return {
        key: torch.randn(49408, width, generator=draw) * scale
        for key, width, scale in (("clip_l", 24, 0.1), ("clip_g", 40, 0.3))
    }


def near(
    tables: Mapping[str, Tensor], noun: str, steps: tuple[float, ...], seed: int, rows: int = 2
) -> dict[str, Tensor]:
    """Vectors at the noun's, some steps along directions that depend on the seeds 0 and `seed`."""
    ids = tokenizer().encode(noun)
    found = {}
    for key, table in tables.items():
        start = table[ids].detach().float().mean(0)
        moves = torch.stack(
            [
                step * torch.randn(rows, len(start), generator=generator(place, noun, key))
                for step, place in zip(steps, (1000, seed), strict=True)
            ]
        )
        found[key] = start + float(start.std()) * moves.sum(0)
    return found


def concepts_of(tables: Mapping[str, Tensor]) -> tuple[Concept, ...]:
    """Two cats that have one thing in common, a dog, and a bear that was hardly learned."""
    return (
        Concept("my_cat", "cat", near(tables, "cat", (1.0, 0.5), 1)),
        Concept("his_cat", "cat", near(tables, "cat", (1.0, 0.5), 2, rows=3)),
        Concept("my_dog", "dog", near(tables, "dog", (0.0, 0.7), 3, rows=1)),
        Concept("my_bear", "teddy bear", near(tables, "teddy bear", (0.0, 0.0), 4)),
    )


@pytest.fixture(scope="module")
def known(backbone: Backbone) -> tuple[Concept, ...]:
    return concepts_of(token_tables(backbone.text))


def said(concepts: tuple[Concept, ...], prompt: str) -> TokenizedPrompt:
    rows = {concept.token: len(concept.vectors["clip_l"]) for concept in concepts}
    return tokenize(prompt, rows, tokenizer())


def with_concepts(state: LifelongState, concepts: tuple[Concept, ...]) -> LifelongState:
    records = [
        replace(record, concept=concept)
        for record, concept in zip(state.records, concepts, strict=True)
    ]
    return replace(state, records=tuple(records))


def cosine(one: list[Tensor], other: list[Tensor]) -> float:
    a, b = torch.cat(one).double(), torch.cat(other).double()
    return float(a @ b / (a.norm() * b.norm()))


def slow_elastic(
    concepts: tuple[Concept, ...], named: set[str], tables: Mapping[str, Tensor], sharpness: float
) -> list[float]:
    """Equation by equation, one pair of vectors after another."""
    evidence = []
    for concept in concepts:
        if concept.token in named:
            evidence.append(1.0)
            continue
        rows = []
        for k in range(len(concept.vectors["clip_l"])):
            own = [concept.vectors[key][k] for key in tables]
            best = max(
                cosine([other.vectors[key][p] for key in tables], own)
                for other in concepts
                if other.token in named
                for p in range(len(other.vectors["clip_l"]))
            )
            row = torch.cat([concept.vectors[key][k] for key in tables]).double()
            words = torch.cat([table.detach().double() for table in tables.values()], dim=1)
            word = float(torch.cosine_similarity(words, row[None]).max())
            rows.append(max(0.0, (best - word) / (1.0 - word)))
        evidence.append(sum(rows) / len(rows))
    total = sum(m**sharpness for m in evidence if m)
    return [m**sharpness / total if m else 0.0 for m in evidence]


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("encoders", ["one", "two"])
def test_weights_are_those_of_the_equation(
    backbone: Backbone, encoders: str, sharpness: float
) -> None:
    tables = two_tables() if encoders == "two" else token_tables(backbone.text)
    concepts = concepts_of(tables)
    for prompt, named in ((CAT, {"my_cat"}), (BOTH, {"my_cat", "his_cat"})):
        found = elastic_weights(concepts, said(concepts, prompt), tables, sharpness)
        assert found == pytest.approx(slow_elastic(concepts, named, tables, sharpness), abs=1e-6)
        assert sum(found) == pytest.approx(1.0)
        assert found[0] == max(found) and found[2] == found[3] == 0.0
        assert found[1] > 0.0, "what the two cats have in common is no word"


def test_sharpness_decides_how_clearly_the_named_one_wins(
    backbone: Backbone, known: tuple[Concept, ...]
) -> None:
    prompt, tables = said(known, CAT), token_tables(backbone.text)
    own = [elastic_weights(known, prompt, tables, s)[0] for s in (0.25, 1.0, 4.0, math.inf)]
    assert own == sorted(own) and own[0] < own[-1] == 1.0
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="sharpness"):
            elastic_weights(known, prompt, tables, bad)


def test_concepts_that_are_still_their_noun_do_not_wake_each_other(backbone: Backbone) -> None:
    tables = token_tables(backbone.text)
    vectors = backbone.text.noun_vector("dog")
    twins = (Concept("my_dog", "dog", vectors), Concept("his_dog", "dog", vectors))
    assert elastic_weights(twins, said(twins, "embedding:my_dog dog"), tables, 0.25) == [1.0, 0.0]
    assert elastic_weights(twins, said(twins, "a dog"), tables) == [0.0, 0.0]


def test_neither_words_nor_order_nor_place_matter(
    backbone: Backbone, known: tuple[Concept, ...]
) -> None:
    tables = token_tables(backbone.text)

    def weights(concepts: tuple[Concept, ...], prompt: str) -> dict[str, float]:
        found = elastic_weights(concepts, said(concepts, prompt), tables)
        return {c.token: share for c, share in zip(concepts, found, strict=True)}

    expected = weights(known, CAT)
    assert weights(known[::-1], CAT) == pytest.approx(expected)
    assert weights(known, "my dog sits by the (embedding:my_cat:1.3) teddy bear") == expected
    both = weights(known, BOTH)
    assert both["my_cat"] == both["his_cat"] == pytest.approx(0.5)
    assert not any(weights(known, "a photo of a cat, a dog and a teddy bear").values())
    assert not any(weights(known, "").values())


def test_layerwise_vectors_count_with_their_mean(
    backbone: Backbone, known: tuple[Concept, ...]
) -> None:
    tables = token_tables(backbone.text)
    prompt = said(known, CAT)
    own = known[1]
    spread = {key: torch.stack([v + 1.0, v - 1.0]) for key, v in own.vectors.items()}
    layered = replace(own, vectors=spread)
    expected = elastic_weights(known, prompt, tables)
    found = elastic_weights((known[0], layered, *known[2:]), prompt, tables)
    assert found == pytest.approx(expected, rel=1e-4)


def test_released_weights_are_plain_cosines_to_the_fourth(
    backbone: Backbone, known: tuple[Concept, ...]
) -> None:
    tables = token_tables(backbone.text)
    for prompt in (CAT, "a cat"):
        tokenized = said(known, prompt)
        spoken = []
        for position in tokenized.chunks[0]:
            item = position.item
            if isinstance(item, TokenVector):
                spoken.append(known[0].vectors["clip_l"][item.row])
            elif item is not None and item < 49406:
                spoken.append(tables["clip_l"][item])
        assert len(spoken) == (6 if prompt == CAT else 2)
        scores = []
        for concept in known:
            rows = [max(cosine([p], [v]) for p in spoken) for v in concept.vectors["clip_l"]]
            scores.append((sum(rows) / len(rows)) ** 4)
        expected = [0.8 * score / sum(scores) for score in scores]
        found = released_weights(known, tokenized, tables)
        assert found == pytest.approx(expected, rel=1e-5)
        assert sum(found) == pytest.approx(0.8)
    assert released_weights(known, said(known, ""), tables) == [0.0] * 4


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_the_state_has_the_weighted_sum_of_those_that_speak(
    backbone: Backbone, state_after: StateAfter, known: tuple[Concept, ...], spec: AdapterSpec
) -> None:
    state = with_concepts(state_after(4, spec), known)
    weights = elastic_weights(known, said(known, CAT), token_tables(backbone.text), 0.5)
    drawn = elastic_state(state, CAT, backbone.text, sharpness=0.5)
    found = low_rank_factors(drawn.adapter_spec, drawn.adapter, layers("demo"))
    each = [low_rank_factors(spec, r.adapter, layers("demo")) for r in state.records]
    for layer, factors in found.items():
        change = factors.scale * (factors.up @ factors.down)
        expected = sum(
            share * own[layer].scale * (own[layer].up @ own[layer].down)
            for share, own in zip(weights, each, strict=True)
        )
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-7)
    if spec.kind == "lora":
        assert drawn.adapter_spec.rank == 2 * spec.rank, "only two of the four speak"
    assert drawn.concepts == state.concepts


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_infinite_sharpness_is_hard_routing(
    backbone: Backbone, state_after: StateAfter, known: tuple[Concept, ...], spec: AdapterSpec
) -> None:
    state = with_concepts(state_after(4, spec), known)
    for prompt in (CAT, BOTH, "embedding:my_bear teddy bear", "a cat"):
        sharp = elastic_state(state, prompt, backbone.text, sharpness=math.inf)
        assert sharp.content_hash == route(state, prompt).content_hash
    alone = elastic_state(state, "embedding:my_dog dog", backbone.text)
    kept = state.records[2].adapter
    assert all(torch.equal(alone.adapter[key], kept[key].float()) for key in kept)


def test_a_noun_alone_is_drawn_by_the_base_model_bit_for_bit(
    backbone: Backbone, state_after: StateAfter, known: tuple[Concept, ...]
) -> None:
    state = with_concepts(state_after(4), known)

    def draw(given: LifelongState | None, prompt: str) -> Tensor:
        with knowing(backbone, given) as vectors:
            return generate(
                backbone, [prompt], seed=3, steps=2, size=(64, 64), vectors=vectors, as_latents=True
            )

    prompt = "a photo of a cat and a dog"
    plain = draw(None, prompt)
    assert torch.equal(draw(elastic_state(state, prompt, backbone.text), prompt), plain)
    released = draw(released_state(state, prompt, backbone.text), prompt)
    assert not torch.equal(released, plain)


def test_unusable_input_is_refused(backbone: Backbone, state_after: StateAfter) -> None:
    state = state_after(2)
    with pytest.raises(InputError, match="embedding:my_horse"):
        elastic_state(state, "embedding:my_horse horse", backbone.text)
    first, second = state.records
    lost = replace(state, records=(replace(first, adapter={}), second))
    with pytest.raises(StateError, match="thing_1"):
        elastic_state(lost, "embedding:thing_2 cat", backbone.text)
    narrow = {key: value[:, :5] for key, value in first.concept.vectors.items()}
    other = replace(first, concept=replace(first.concept, vectors=narrow))
    with pytest.raises(InputError, match="another family"):
        elastic_state(replace(state, records=(other, second)), "a dog", backbone.text)


def test_weights_of_a_merge_default_to_the_mean(state_after: StateAfter) -> None:
    state = state_after(2)
    adapters = [record.adapter for record in state.records]
    mean = merge_adapters(state.adapter_spec, adapters, layers("demo"))
    given = merge_adapters(state.adapter_spec, adapters, layers("demo"), weights=[0.5, 0.5])
    assert all(torch.equal(mean.adapter[key], given.adapter[key]) for key in mean.adapter)
