"""Runs inside ComfyUI's own process: a MODEL and CLIP with the adapters that a prompt asks for."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from guidance_helpers import conditioning, sampled
from inside import backbone, loaded, pack, refused, some_state, torch

DOG, CAT = "a photo of embedding:my_dog dog", "a photo of embedding:my_cat dog on grass"
PLAIN = "a photo of a dog"


@cache
def base() -> tuple[Any, Any, Any]:
    return loaded()


@cache
def two_toys() -> Any:
    """A state of two dogs whose adapters are their own, of a size to be seen."""
    fingerprint = pack("nodes.bridge").base_model(base()[0]).fingerprint
    one, other = some_state(fingerprint), some_state(fingerprint, token="my_cat", seed=1)
    records = [
        replace(
            record,
            settings={"method": "hard_routing"},
            adapter={key: value * 0.1 for key, value in record.adapter.items()},
        )
        for record in (*one.records, *other.records)
    ]
    return replace(one, records=tuple(records))


def alone(lesson: int) -> Any:
    """What the lesson left, as if there were no other."""
    record = replace(two_toys().records[lesson], settings={})
    return replace(two_toys(), adapter=record.adapter, records=(record,))


def executed(prompt: str, state: Any = None, sharpness: float = 4.0, model: Any = None) -> Any:
    node = pack("nodes.elastic_concept_weights").ElasticConceptWeights
    with torch.inference_mode():
        model = model or base()[0]
        return node.execute(model, base()[1], state or two_toys(), prompt, sharpness).result


def drawn(prompt: str, **options: Any) -> torch.Tensor:
    model, clip, positive, _ = executed(prompt, **options)
    return sampled(model, positive, conditioning(clip, ""))


def check_a_named_concept_is_drawn_as_right_after_its_lesson() -> None:
    apply_state = pack("nodes.patching").apply_state
    model, clip, _ = base()
    for lesson, prompt in enumerate((DOG, CAT)):
        own, reader = apply_state(model, clip, alone(lesson))
        expected = sampled(own, conditioning(reader, prompt), conditioning(reader, ""))
        assert torch.equal(drawn(prompt), expected)
    plain = sampled(model, conditioning(clip, PLAIN), conditioning(clip, ""))
    assert float((expected - plain).norm() / plain.norm()) > 0.05


def check_a_prompt_without_a_concept_gets_the_model_as_it_was() -> None:
    model, clip, _ = base()
    expected = sampled(model, conditioning(clip, PLAIN), conditioning(clip, ""))
    assert torch.equal(drawn(PLAIN), expected)
    assert "no concept" in executed(PLAIN)[3]


def check_the_conditioning_is_that_of_clip_text_encode() -> None:
    for prompt in (DOG, f"({CAT}:1.2), {DOG}", PLAIN):
        _, clip, found, _ = executed(prompt)
        expected = conditioning(clip, prompt)
        assert torch.equal(found[0][0], expected[0][0])


def check_weights_are_the_librarys() -> None:
    elastic = pack("lifelong_core.consolidation.elastic_weights")
    toys = two_toys()
    toward = {
        key: 0.7 * value + 0.3 * toys.records[1].concept.vectors[key]
        for key, value in toys.records[0].concept.vectors.items()
    }
    akin = replace(toys.records[0].concept, vectors=toward)
    state = replace(toys, records=(replace(toys.records[0], concept=akin), toys.records[1]))
    with backbone(*base()) as copy:
        words = copy.text.tokenize(CAT, state.vectors)
        tables = elastic.token_tables(copy.text)
        weights = elastic.elastic_weights(state.concepts, words, tables, 0.5)
    assert 0.0 < weights[0] < weights[1]
    told = executed(CAT, state, 0.5)[3].splitlines()
    assert told == [
        f"{weights[1]:7.2%}  embedding:my_cat dog",
        f"{weights[0]:7.2%}  embedding:my_dog dog",
        "Concepts that are not used: 0",
    ]
    assert executed(CAT)[3].startswith("100.00%  embedding:my_cat dog")
    both = executed(f"{CAT} and {DOG}")[3]
    assert both.count(" 50.00%") == 2


def check_what_is_linked_stays_as_it_was() -> None:
    model, clip, _ = base()
    before = sampled(model, conditioning(clip, PLAIN), conditioning(clip, ""))
    known, reader, _, _ = executed(DOG)
    again = executed(CAT, model=known)
    assert pack("nodes.patching").applied_tokens(again[0]) == ("my_dog", "my_cat")
    over = sampled(again[0], again[2], conditioning(again[1], ""))
    assert torch.equal(over, drawn(CAT)), "an earlier prompt's adapters are taken off first"
    assert torch.equal(sampled(model, conditioning(clip, PLAIN), conditioning(clip, "")), before)
    assert pack("nodes.patching").applied_tokens(reader) == ("my_dog", "my_cat")
    assert pack("nodes.patching").applied_tokens(clip) == ()


def check_what_cannot_be_drawn_is_refused() -> None:
    state = two_toys()
    first, second = state.records
    refused("InputError", "embedding:my_horse", lambda: executed("embedding:my_horse horse"))
    foreign = replace(state, base_fingerprint="demo-epsilon-other")
    refused("StateError", "fingerprint", lambda: executed(DOG, foreign))
    lost = replace(state, records=(first, replace(second, adapter={})))
    refused("StateError", "my_cat", lambda: executed(DOG, lost))
    added = replace(first, settings={"method": "c_lora"})
    stacked = replace(state, records=(added, second))
    refused("StateError", "without them", lambda: executed(DOG, stacked))
    vectors = {**first.concept.vectors, "clip_g": torch.randn(2, 1280)}
    wide = replace(first, concept=replace(first.concept, vectors=vectors))
    refused("ModelError", "clip_g", lambda: executed(DOG, replace(state, records=(wide, second))))
