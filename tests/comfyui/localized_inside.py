"""Runs inside ComfyUI's own process: concepts read in their own words alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from guidance_helpers import conditioning, sampled
from inside import backbone, comfy, pack, torch
from regions_helpers import KEY_VALUE, base, two_toys

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
import comfy.sample
import comfy.samplers
from comfy.patcher_extension import WrappersMP

import nodes

BOTH = "a photo of a (embedding:my_cat cat:1.3) and a big embedding:my_dog dog on grass"
OTHERS = (
    "a dog on grass",
    "embedding:my_dog, a dog",
    "a embedding:my_dog dog and a embedding:my_dog dog",
)
LONG = f"{BOTH}, {'in the sun ' * 20}, beside a embedding:my_dog dog"
"""Two chunks, with a concept in both."""
LAYERS = 10
EOS = 49407


def layerwise(state: Any) -> Any:
    """The state with a set of vectors for each layer."""
    draw = torch.Generator().manual_seed(6)
    records = []
    for record in state.records:
        vectors = torch.randn(LAYERS, 2, 128, generator=draw)
        concept = replace(record.concept, vectors={"clip_l": vectors})
        records.append(replace(record, concept=concept))
    return replace(state, records=tuple(records))


def reader(state: Any) -> Any:
    """The CLIP that knows the state."""
    return pack("nodes.patching").put_on(*base()[:2], state)[1]


def encoded(clip: Any, prompt: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """What CLIP Text Encode gives."""
    with torch.inference_mode():
        ((context, found),) = nodes.CLIPTextEncode().encode(clip, prompt)[0]
    return context, found


def librarys(state: Any, prompt: str) -> Any:
    words = pack("lifelong_core.localized_words")
    with torch.inference_mode(False), torch.no_grad(), backbone(*base()) as copy:
        concepts = words.localized_concepts(state)
        return words.encode_localized(copy.text, [prompt], state.vectors, concepts)


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


def check_several_concepts_are_each_read_alone() -> None:
    usual, _ = encoded(reader(two_toys()), BOTH)
    for localized in (("my_dog",), ("my_cat",), ("my_dog", "my_cat")):
        state = two_toys(localized=localized)
        context, _ = encoded(reader(state), BOTH)
        assert distance(context, usual) > 1e-2, localized
        for prompt in (BOTH, LONG):
            context, found = encoded(reader(state), prompt)
            expected = librarys(state, prompt)
            assert distance(context, expected.context) < 1e-4, localized
            assert torch.equal(found["lifelong_words"].owners, expected.owners[0]), localized


def check_layerwise_concepts_are_read_so_in_every_layer() -> None:
    key = pack("nodes.layer_contexts").KEY
    state = layerwise(two_toys(localized=("my_dog", "my_cat")))
    for prompt in (BOTH, LONG):
        context, found = encoded(reader(state), prompt)
        expected = librarys(state, prompt)
        assert distance(context, expected.context) < 1e-4
        assert torch.equal(found[key].context, context)
        assert distance(found[key].layers, expected.layers) < 1e-4


def check_each_encoder_has_its_own_padding() -> None:
    """As SDXL's: the second one pads with 0."""
    encoding = pack("nodes.localized_encoding").LocalizedEncoding
    own = two_toys(localized=("my_dog", "my_cat"))
    (first,) = reader(own).tokenize(BOTH)["l"]
    wide = {token: torch.cat([v["clip_l"]] * 2, dim=1) for token, v in own.vectors.items()}
    doubled = [
        (torch.cat([one[0]] * 2) if torch.is_tensor(one[0]) else one[0], *one[1:]) for one in first
    ]
    ended = [not torch.is_tensor(one[0]) and one[0] == EOS for one in first].index(True) + 1
    second = [*doubled[:ended], *[(0, 1.0)] * (77 - ended)]
    concepts = [
        replace(one, vectors={**one.vectors, "clip_g": wide[one.token]}) for one in own.concepts
    ]
    seen: list[Any] = []

    def encode(tokens: Any) -> Any:
        seen.append(tokens)
        return torch.zeros(1, 77 * len(tokens["l"]), 4), None

    context, _, found = encoding(encode, concepts, {"l": EOS, "g": 0})(
        {"l": [first], "g": [second]}
    )
    assert context.shape == (1, 77, 4) and "lifelong_words" in found
    for encoder, pad in (("l", EOS), ("g", 0)):
        plain, *named = seen[0][encoder]
        assert len(named) == 2 and all(len(chunk) == 77 for chunk in (plain, *named))
        assert all(chunk[-1] == (pad, 1.0) for chunk in (plain, *named)), encoder
        vectors = [sum(torch.is_tensor(one[0]) for one in chunk) for chunk in (plain, *named)]
        assert vectors == [0, 2, 2], encoder
    # Another text for one of the encoders, or a longer one: both are read as they are.
    words = [one for one in second if not torch.is_tensor(one[0])]
    elsewhere = [second[0], *words[1:5], *second[1:73]]
    for other in ([elsewhere], [[*words, *[(0, 1.0)] * 77][:77]], [second, second]):
        encoding(encode, concepts, {"l": EOS, "g": 0})({"l": [first], "g": other})
        assert seen[-1]["l"] == [first] and seen[-1]["g"] == other


def check_other_prompts_are_read_as_ever() -> None:
    usual, localized = reader(two_toys()), reader(two_toys(localized=("my_dog", "my_cat")))
    for prompt in OTHERS:
        assert torch.equal(encoded(localized, prompt)[0], encoded(usual, prompt)[0]), prompt


def check_it_comes_off_with_the_state() -> None:
    patching = pack("nodes.patching")
    clip = base()[1]
    for state in (
        two_toys(localized=("my_dog", "my_cat")),
        layerwise(two_toys(localized=("my_dog",))),
    ):
        plain = patching.remove_state(reader(state))
        assert plain.patcher.object_patches.keys() == clip.patcher.object_patches.keys()
        assert torch.equal(encoded(plain, "a dog")[0], encoded(clip, "a dog")[0])


def check_guidance_finds_the_words() -> None:
    state = two_toys(localized=("my_dog", "my_cat"))
    clip = reader(state)
    read = pack("nodes.prompt_words").read_prompt(clip, BOTH, "", state)
    assert read.are_in(encoded(clip, BOTH)[0])
    assert (
        read.places
        == pack("nodes.prompt_words").read_prompt(reader(two_toys()), BOTH, "", state).places
    )


def librarys_picture(state: Any, prompt: str) -> torch.Tensor:
    """The model's output by the library, for the prompt and for a negative one."""
    routing, words = pack("lifelong_core.word_routing"), pack("lifelong_core.localized_words")
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        backbone(*base()) as copy,
        routing.prompted(copy, state, prompt) as known,
    ):
        read = words.encode_localized(
            copy.text, ["blurred", prompt], known.vectors, known.localized
        )
        when = torch.tensor([500, 500])
        return copy.predict(noise().expand(2, -1, -1, -1), when, read).float()


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def outputs(model: Any, clip: Any, positive: Any, negative: str = "blurred") -> torch.Tensor:
    """ComfyUI's outputs in one batch: with the negative prompt, and with the positive one."""
    seen: list[torch.Tensor] = []

    def see(executor: Any, *args: Any, **kwargs: Any) -> Any:
        found = executor(*args, **kwargs)
        order = args[5]["cond_or_uncond"]
        seen.append(found[[order.index(1), order.index(0)]].clone())
        return found

    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", see)
    sampling = model.get_model_object("model_sampling")
    sigma = float(sampling.sigma(torch.tensor(500.0)))
    with torch.inference_mode():
        sampler = comfy.samplers.sampler_object("euler")
        sigmas = torch.tensor([sigma, 0.0])
        scaled = noise() * (sigma**2 + 1) ** 0.5 / sigma
        comfy.sample.sample_custom(
            watched, scaled, 3.0, sampler, sigmas, positive,
            conditioning(clip, negative), torch.zeros(1, 4, 8, 8),
        )  # fmt: skip
    return seen[0]


def check_a_prompt_with_an_area_leaves_the_negative_one_alone() -> None:
    """ComfyUI answers an area with a copy of the positive conditioning among the negative ones."""
    model, clip, positive, _ = elastic(two_toys(localized=("my_dog", "my_cat")), BOTH)
    (whole,) = nodes.ConditioningSetArea().append(positive, 128, 128, 0, 0, 1.0)
    negative = conditioning(clip, "blurred")
    plain = sampled(model, positive, negative)
    assert distance(sampled(model, whole, negative), plain) < 1e-5


def elastic(state: Any, prompt: str) -> Any:
    node = pack("nodes.elastic_concept_weights").ElasticConceptWeights
    with torch.inference_mode():
        return node.execute(*base()[:2], state, prompt, 4.0).result


def check_each_concept_is_heard_in_its_own_words() -> None:
    state = two_toys(localized=("my_dog", "my_cat"))
    for known in (state, layerwise(state)):
        for prompt in (BOTH, "a embedding:my_dog dog and a cat", LONG):
            model, clip, positive, told = elastic(known, prompt)
            for negative in ("blurred", "ugly " * 100):
                found = outputs(model, clip, positive, negative)
                expected = librarys_picture(known, prompt)
                assert distance(found[1], expected[1]) < 1e-3, prompt
                if negative == "blurred":
                    assert distance(found[0], expected[0]) < 1e-3, prompt
            unheard = outputs(base()[0], clip, positive)
            assert distance(unheard[1], expected[1]) > 1e-2, prompt
            assert told.startswith("100.00%"), told
    layers = layers_of(base()[0])
    assert layers and not any("forward" in one.__dict__ for one in layers)


def layers_of(model: Any) -> list[Any]:
    """The layers that the adapters change."""
    modules = model.model.diffusion_model.named_modules()
    return [one for name, one in modules if name.endswith(KEY_VALUE)]


def check_rows_that_other_nodes_put_behind_are_nobodys() -> None:
    state = two_toys(localized=("my_dog", "my_cat"))
    model, clip, positive, _ = elastic(state, BOTH)
    behind = nodes.ConditioningConcat().concat(positive, conditioning(clip, BOTH))[0]
    before = nodes.ConditioningConcat().concat(conditioning(clip, "a dog"), positive)[0]
    heard, unheard = (outputs(one, clip, behind)[1] for one in (model, base()[0]))
    assert distance(heard, unheard) > 1e-2
    heard, unheard = (outputs(one, clip, before)[1] for one in (model, base()[0]))
    assert distance(heard, unheard) < 1e-5


def check_guidance_goes_with_it() -> None:
    """Its gradient pass hears the adapters too, and leaves nothing behind."""
    guidance, attention = pack("nodes.guidance"), pack("lifelong_core.attention")
    state = two_toys(localized=("my_dog", "my_cat"))
    model, clip, positive, _ = elastic(state, BOTH)
    read = pack("nodes.prompt_words").read_prompt(clip, BOTH, "", state)
    settings = attention.GuidanceSettings(caa=1.0, oaa=1.0)
    seen: dict[str, list[Any]] = {}
    pictures = {}
    for name, one in (("heard", model), ("unheard", base()[0])):
        maps: list[Any] = seen.setdefault(name, [])
        wish = guidance.Guidance(read, settings, guidance.slots_of(one), maps.append)
        guided = guidance.add_guidance(one, wish)
        pictures[name] = sampled(guided, positive, conditioning(clip, ""))
    plain = sampled(model, positive, conditioning(clip, ""))
    assert distance(pictures["heard"], plain) > 1e-3
    assert distance(pictures["heard"], pictures["unheard"]) > 1e-2
    heard, unheard = (seen[name][0].concepts for name in ("heard", "unheard"))
    assert distance(heard, unheard) > 1e-4, "the maps are those of the changed keys"
    assert torch.equal(sampled(model, positive, conditioning(clip, "")), plain)


def check_tokens_that_patches_append_are_nobodys() -> None:
    state = two_toys(localized=("my_dog", "my_cat"))
    model, clip, positive, _ = elastic(state, BOTH)

    def append(n: Any, context: Any, value: Any, _: Any) -> Any:
        more = torch.cat([context, torch.ones_like(context[:, :4])], dim=1)
        return n, more, more

    found = []
    for one in (model, base()[0]):
        patched = one.clone()
        patched.set_model_attn2_patch(append)
        found.append(outputs(patched, clip, positive))
    assert distance(found[0][0], found[1][0]) < 1e-5
    assert distance(found[0][1], found[1][1]) > 1e-2
    assert distance(found[0][1], outputs(model, clip, positive)[1]) > 1e-3


def check_prompts_that_are_not_read_so_are_merged_as_ever() -> None:
    state, usual = two_toys(localized=("my_dog", "my_cat")), two_toys()
    for prompt in OTHERS[1:]:
        one, other = (outputs(*elastic(known, prompt)[:3]) for known in (state, usual))
        assert distance(one, other) < 1e-5, prompt


def check_word_adapters_come_off_with_the_state() -> None:
    model, clip, positive, _ = elastic(two_toys(localized=("my_dog", "my_cat")), BOTH)
    plain = pack("nodes.patching").remove_state(model)
    assert torch.equal(outputs(plain, clip, positive), outputs(base()[0], clip, positive))
