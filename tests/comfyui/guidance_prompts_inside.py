"""Runs inside ComfyUI's own process: prompts, batches and models that attention guidance meets."""

from __future__ import annotations

import logging
import math
from unittest.mock import patch

from guidance_helpers import (
    PAIRS,
    PROMPT,
    artist,
    conditioning,
    distance,
    empty_latent,
    guided,
    guides,
    loaded_base,
    passes,
    sampled,
)
from inside import pack, refused, some_state, torch

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
import nodes


def check_a_batch_is_guided_picture_by_picture() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip)
    with passes() as seen:
        both = sampled(model, base.positive, base.negative, empty_latent(2))
    assert [one["rows"] for one in seen] == [2, 2], "all pictures at once"
    alone = sampled(model, base.positive, base.negative)
    assert distance(both[:1], alone) < 1e-3
    assert distance(both[1:], alone) > 1e-2
    second = {"samples": torch.zeros(1, 4, 16, 16), "batch_index": [1]}
    assert distance(both[1:], sampled(model, base.positive, base.negative, second)) < 1e-3


def check_cfg_one_is_guided() -> None:
    base = loaded_base()
    plain = sampled(base.model, base.positive, base.negative, cfg=1.0)
    with passes() as seen:
        latents = sampled(guided(base.model, base.clip), base.positive, base.negative, cfg=1.0)
    assert len(seen) == 2 and distance(latents, plain) > 1e-3


def check_conditionings_of_many_kinds() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip)
    other = conditioning(base.clip, "a house in the snow")
    long_negative = conditioning(base.clip, "ugly " * 100)
    area, mask, times = (nodes.ConditioningSetArea(), nodes.ConditioningSetMask(),
                         nodes.ConditioningSetTimestepRange())  # fmt: skip
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    inside = area.append(base.positive, 64, 64, 32, 32, 1.0)[0]
    combined = nodes.ConditioningCombine().combine(other, base.positive)[0]
    masked = mask.append(base.positive, left, "default", 1.0)[0]
    concatenated = nodes.ConditioningConcat().concat(base.positive, other)[0]
    late = times.set_range(base.positive, 0.5, 1.0)[0]
    early = times.set_range(base.positive, 0.0, 0.5)[0]
    latent = {**empty_latent(2), "noise_mask": left[:, None]}
    for name, positive, negative, start, expected in (
        ("long negative", base.positive, long_negative, None, {"rows": 1, "context": 77}),
        ("area", combined + inside, base.negative, None, {"rows": 1, "size": (16, 16)}),
        ("area alone", inside, base.negative, None, {"rows": 1, "size": (8, 8)}),
        ("combined", combined, base.negative, None, {"rows": 1}),
        ("masked", masked + other, base.negative, None, {"rows": 1}),
        ("concatenated", concatenated, base.negative, None, {"rows": 1, "context": 154}),
        ("noise mask", base.positive, base.negative, latent, {"rows": 2}),
        ("early and late", late + early, base.negative, None, {"rows": 1}),
        ("late", late + other, base.negative, None, None),
    ):
        plain = sampled(base.model, positive, negative, start)
        with passes() as seen:
            latents = sampled(model, positive, negative, start)
        assert bool(latents.isfinite().all()), name
        if expected is None:
            assert not seen and torch.equal(latents, plain), name
            continue
        assert len(seen) == 2, (name, seen)
        assert all(expected.items() <= one.items() for one in seen), (name, seen)
        assert distance(latents, plain) > 1e-4, name


def check_an_area_is_moved_by_a_step_of_its_own_size() -> None:
    """The map of a quarter of the picture answers to a quarter of its latents."""
    base = loaded_base()
    model = guided(base.model, base.clip)
    inside = nodes.ConditioningSetArea().append(base.positive, 64, 64, 32, 32, 1.0)[0]
    with guides() as whole:
        sampled(model, base.positive, base.negative)
    with guides() as quarter:
        sampled(model, inside, base.negative)
    assert len(whole) == len(quarter) == 2
    for (_, all_of_it), (_, part) in zip(whole, quarter, strict=True):
        assert math.isclose(part, all_of_it / 4, rel_tol=1e-6)


def check_words_are_found_in_the_prompt_that_is_drawn_at_the_time() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip)
    times, other = nodes.ConditioningSetTimestepRange(), conditioning(base.clip, "a house")
    longer = nodes.ConditioningConcat().concat(base.positive, other)[0]
    both = times.set_range(base.positive, 0.0, 0.1)[0] + times.set_range(longer, 0.1, 1.0)[0]
    with guides() as seen:
        sampled(model, both, base.negative)
    assert [length for length, _ in seen] == [77, 154]


def check_a_picture_without_maps_is_given_all_the_same() -> None:
    base = loaded_base()
    times, area = nodes.ConditioningSetTimestepRange(), nodes.ConditioningSetArea()
    late = (
        times.set_range(base.positive, 0.6, 1.0)[0]
        + times.set_range(conditioning(base.clip, "a house"), 0.0, 0.6)[0]
    )
    part = area.append(base.positive, 64, 64, 0, 0, 1.0)[0]
    changing = times.set_range(part, 0.0, 0.1)[0] + times.set_range(base.positive, 0.1, 1.0)[0]
    for name, positive, values, panels in (
        ("not sampled", base.positive, {"denoise": 0.0}, 1),
        ("words come late", late, {}, 1),
        ("maps of two sizes", changing, {"caa_strength": 1.0}, 3),
    ):
        for maps in ("average", "every step"):
            given = {**values, "maps": maps}
            latents, shown = artist(base.model, base.clip, positive, base.negative, **given)
            assert bool(latents.isfinite().all()) and float(shown.std()) > 0, name
            height, width = shown.shape[1:3]
            assert (width > 1.5 * height) == (panels > 1), (name, shown.shape)


def check_prompts_of_several_chunks() -> None:
    base = loaded_base()
    prompt = "grass " * 80 + PROMPT
    words = pack("nodes.prompt_words").read_prompt(base.clip, prompt, PAIRS)
    assert words.places.length == 154 and min(words.places.pairs[0].noun) > 77
    model = guided(base.model, base.clip, prompt=prompt)
    positive = conditioning(base.clip, prompt)
    with passes() as seen:
        latents = sampled(model, positive, base.negative)
    assert [one["context"] for one in seen] == [154, 154]
    assert distance(latents, sampled(base.model, positive, base.negative)) > 1e-5


def check_a_gradient_that_is_not_a_number_moves_nothing() -> None:
    base = loaded_base()
    plain = sampled(base.model, base.positive, base.negative)
    losses = pack("lifelong_core.attention.guidance")
    loss = losses.total_loss
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(losses.__name__).addHandler(handler)
    try:
        with patch.object(losses, "total_loss", lambda *args: loss(*args) * math.nan):
            latents = sampled(guided(base.model, base.clip), base.positive, base.negative)
    finally:
        logging.getLogger(losses.__name__).removeHandler(handler)
    assert torch.equal(latents, plain)
    assert len(said) == 1 and "not finite" in said[0]


def check_words_that_are_not_there_are_refused() -> None:
    base = loaded_base()
    for pairs, word in (("red horse", "horse"), ("green dog", "green"), ("red dog\ndog", "dog")):
        refused("InputError", word, lambda pairs=pairs: guided(base.model, base.clip, pairs=pairs))
    refused("InputError", "photo", lambda: guided(base.model, base.clip, pairs="horse"))
    refused("InputError", "one pair per line", lambda: guided(base.model, base.clip, pairs=" \n"))
    foreign = conditioning(base.clip, "a house")
    model = guided(base.model, base.clip)
    refused("InputError", PROMPT, lambda: sampled(model, foreign, base.positive))
    refused(
        "InputError", "samples",
        lambda: artist(base.model, base.clip, base.positive, base.negative, empty_latent(0)),
    )  # fmt: skip
    hollow = {**empty_latent(), "noise_mask": torch.zeros(1, 0, 0)}
    refused(
        "InputError", "noise_mask",
        lambda: artist(base.model, base.clip, base.positive, base.negative, hollow),
    )  # fmt: skip


def check_models_without_a_unet_are_refused_by_name() -> None:
    base = loaded_base()
    flux = base.model.clone()
    config = type("Flux", (), {})()
    flux.model = type(
        "Other", (), {"model_config": config, "diffusion_model": torch.nn.Linear(1, 1),
                      "model_sampling": object()},
    )()  # fmt: skip
    refused("ModelError", "This MODEL is Flux", lambda: guided(flux, base.clip))
    strange = base.clip.clone()
    strange.tokenizer = type("Tokenizer", (), {})()
    refused("ModelError", "This CLIP is", lambda: guided(base.model, strange))


def check_concepts_of_a_state_are_found() -> None:
    base = loaded_base()
    state = some_state("x")
    _, reader = pack("nodes.patching").apply_state(base.model, base.clip, state)
    prompt = "a photo of a (embedding:my_dog dog:1.2), and a cat"
    read = pack("nodes.prompt_words").read_prompt
    words = read(reader, prompt, "", state)
    (pair,) = words.places.pairs
    assert pair.concept == (5, 6) and pair.noun == (7,)
    assert words.same(read(reader, prompt, "embedding:my_dog dog"))
    assert not words.same(read(reader, prompt, "embedding:my_dog cat"))
    assert words.are_in(conditioning(reader, prompt)[0][0])
    assert not words.are_in(conditioning(reader, prompt.replace("1.2", "1.4"))[0][0])
    refused("InputError", "embedding:my_dog", lambda: read(reader, PROMPT, "", state))
    refused("InputError", "my_cat", lambda: read(reader, prompt, "embedding:my_cat cat"))


def check_pairs_are_read_line_by_line() -> None:
    parse = pack("nodes.prompt_words").parse_pairs
    text = "embedding:my_dog dog\n\n red  duck toy \ncat\n"
    assert parse(text) == [("embedding:my_dog", "dog"), ("red", "duck toy"), (None, "cat")]
    assert parse(" \n") == []
