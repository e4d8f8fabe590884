"""Runs inside ComfyUI's own process: layer-wise concepts from CLIP Text Encode to the sampler."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from inside import (
    EMBEDDINGS,
    WORK,
    backbone,
    comfy,
    loaded,
    pack,
    some_state,
    torch,
)

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
import comfy.sample
import comfy.samplers
from safetensors.torch import save_file

import nodes

PROMPT = "a (photo:1.2) of embedding:my_dog, dog on grass"
LONG = "word " * 80
STEPS = (900, 500, 100)
CFG = 3.0


def layerwise_state(model: Any, vectors: torch.Tensor | None = None) -> Any:
    """`some_state` for the base model of MODEL, with a set of vectors for each of 10 layers."""
    state = some_state(pack("nodes.bridge").base_model(model).fingerprint)
    if vectors is None:
        vectors = torch.randn(10, 2, 128, generator=torch.Generator().manual_seed(4))
    record = state.records[0]
    concept = replace(record.concept, vectors={"clip_l": vectors})
    adapter = {key: value * 0.02 for key, value in state.adapter.items()}
    return replace(state, adapter=adapter, records=(replace(record, concept=concept),))


def single(state: Any) -> Any:
    """The state with the mean of its concept's vectors."""
    record = state.records[0]
    return replace(state, records=(replace(record, concept=record.concept.single()),))


def encoded(clip: Any, prompt: str) -> Any:
    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, prompt)[0]


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))


def sigmas(model: Any) -> torch.Tensor:
    sampling = model.get_model_object("model_sampling")
    return torch.tensor([*(float(sampling.sigma(torch.tensor(float(t)))) for t in STEPS), 0.0])


def sampled(model: Any, positive: Any, negative: Any) -> torch.Tensor:
    """ComfyUI's Euler sampler from noise of the first sigma."""
    sampler = comfy.samplers.sampler_object("euler")
    latent = torch.zeros(1, 4, 16, 16)
    with torch.inference_mode():
        done = comfy.sample.sample_custom(
            model, noise(), CFG, sampler, sigmas(model), positive, negative, latent
        )
        return model.model.process_latent_in(done).clone()


@torch.no_grad()
def librarys(model: Any, clip: Any, vae: Any, state: Any, negative: str = "") -> torch.Tensor:
    """The same steps by the library."""
    levels = sigmas(model).tolist()
    frozen_adapter = pack("lifelong_core.adapters.frozen").frozen_adapter
    conditioning = pack("lifelong_core.backbone").Conditioning
    with (
        backbone(model, clip, vae) as copy,
        frozen_adapter(state.adapter_spec, copy, state.adapter).attached(copy),
    ):
        prompts = [copy.text.encode([text], state.vectors) for text in (negative, PROMPT)]
        inputs = conditioning.cat(prompts)
        x = noise() * levels[0]
        for step, sigma, following in zip(STEPS, levels, levels[1:], strict=False):
            t = torch.tensor([step] * 2)
            z = (x / (1.0 + sigma**2) ** 0.5).expand(2, -1, -1, -1)
            clean = copy.schedule.x0_from_output(copy.predict(z, t, inputs), z, t)
            guided = clean[:1] + CFG * (clean[1:] - clean[:1])
            x = guided + (x - guided) * following / sigma
    return x


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


@contextmanager
def warnings() -> Iterator[list[str]]:
    """What the pack's module warns of inside the block."""
    module, found = pack("nodes.layer_contexts"), []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    module.log.addHandler(handler)
    module._warn.cache_clear()
    try:
        yield found
    finally:
        module.log.removeHandler(handler)


def check_a_picture_is_the_librarys() -> None:
    model, clip, vae = loaded()
    state = layerwise_state(model)
    taught, reader = pack("nodes.patching").apply_state(model, clip, state)
    for negative in ("", LONG):
        with warnings() as found:
            ours = sampled(taught, encoded(reader, PROMPT), encoded(reader, negative))
        assert not found
        expected = librarys(model, clip, vae, state, negative)
        assert distance(ours, expected) < 1e-3, distance(ours, expected)
    mean = librarys(model, clip, vae, single(state))
    assert distance(mean, librarys(model, clip, vae, state)) > 1e-2


def check_a_prompt_with_an_area_leaves_the_negative_one_alone() -> None:
    """ComfyUI answers an area with a copy of the positive conditioning among the negative ones."""
    model, clip, _ = loaded()
    taught, reader = pack("nodes.patching").apply_state(model, clip, layerwise_state(model))
    positive, negative = encoded(reader, PROMPT), encoded(reader, "")
    (whole,) = nodes.ConditioningSetArea().append(positive, 128, 128, 0, 0, 1.0)
    plain = sampled(taught, positive, negative)
    assert distance(sampled(taught, whole, negative), plain) < 1e-5


def check_a_model_without_the_state_draws_with_the_mean() -> None:
    model, clip, _ = loaded()
    state = layerwise_state(model)
    apply_state = pack("nodes.patching").apply_state
    plain, _ = apply_state(model, clip, single(state))
    _, reader = apply_state(model, clip, state)
    _, mean = apply_state(model, clip, single(state))
    ours = sampled(plain, encoded(reader, PROMPT), encoded(reader, ""))
    assert distance(ours, sampled(plain, encoded(mean, PROMPT), encoded(mean, ""))) < 1e-5


def check_equal_vectors_in_all_layers_are_one_set() -> None:
    model, clip, _ = loaded()
    one = torch.randn(2, 128, generator=torch.Generator().manual_seed(5))
    apply_state = pack("nodes.patching").apply_state
    pictures = [
        sampled(taught, encoded(reader, PROMPT), encoded(reader, ""))
        for vectors in (one, one.expand(10, -1, -1))
        for taught, reader in [apply_state(model, clip, layerwise_state(model, vectors))]
    ]
    assert distance(*pictures) < 1e-4


def check_prompts_without_such_a_concept_are_the_same_bits() -> None:
    model, clip, _ = loaded()
    state = layerwise_state(model)
    apply_state = pack("nodes.patching").apply_state
    layered, other = apply_state(model, clip, state), apply_state(model, clip, single(state))
    pictures = []
    for taught, reader in (layered, other):
        positive = encoded(reader, "a photo of a dog")
        assert set(positive[0][1]) == {"pooled_output"}
        pictures.append(sampled(taught, positive, encoded(reader, "")))
    assert torch.equal(*pictures)


def check_several_conditionings_keep_their_own_contexts() -> None:
    """Two prompts, one of them longer, in one batch: as much as each with itself, on average."""
    model, clip, _ = loaded()
    taught, reader = pack("nodes.patching").apply_state(model, clip, layerwise_state(model))
    first, second = encoded(reader, PROMPT), encoded(reader, PROMPT + " " + LONG)
    x, sigma = noise() * sigmas(model)[0], sigmas(model)[:1]

    def predicted(positive: Any) -> torch.Tensor:
        seen = []

        def keep(args: dict[str, Any]) -> torch.Tensor:
            seen.append(args["cond_denoised"].clone())
            return args["denoised"]

        watched = taught.clone()
        watched.set_model_sampler_post_cfg_function(keep)
        with torch.inference_mode():
            comfy.sample.sample_custom(
                watched, x / sigma, CFG, comfy.samplers.sampler_object("euler"),
                torch.tensor([float(sigma), 0.0]), positive, encoded(reader, ""),
                torch.zeros(1, 4, 16, 16),
            )  # fmt: skip
        return seen[0]

    both = predicted([*first, *second])
    expected = (predicted(first) + predicted(second)) / 2
    assert distance(both, expected) < 1e-4
    assert distance(predicted(first), predicted(second)) > 1e-3


def check_what_other_nodes_do_to_a_conditioning_is_respected() -> None:
    model, clip, _ = loaded()
    state = layerwise_state(model)
    apply_state = pack("nodes.patching").apply_state
    taught, reader = apply_state(model, clip, state)
    plain, mean = apply_state(model, clip, single(state))
    with warnings() as found:
        average = nodes.ConditioningAverage().addWeighted
        pictures = [
            sampled(
                drawing,
                average(encoded(words, PROMPT), encoded(words, "grass"), 0.7)[0],
                encoded(words, ""),
            )
            for drawing, words in ((taught, reader), (taught, reader), (plain, mean))
        ]
    assert len(found) == 1 and "mean of their vectors" in found[0]
    assert torch.equal(pictures[0], pictures[1])
    assert distance(pictures[0], pictures[2]) < 1e-5
    with warnings() as found:
        behind = nodes.ConditioningConcat().concat(encoded(reader, PROMPT), encoded(reader, "x"))[0]
        joined = sampled(taught, behind, encoded(reader, ""))
    assert not found
    alone = sampled(taught, encoded(reader, PROMPT), encoded(reader, ""))
    single_joined = sampled(plain, behind, encoded(reader, ""))
    assert distance(joined, alone) > 1e-4 and distance(joined, single_joined) > 1e-4


def check_it_is_taken_off_again() -> None:
    model, clip, _ = loaded()
    patching = pack("nodes.patching")
    taught, reader = patching.apply_state(model, clip, layerwise_state(model))
    assert len(encoded(reader, PROMPT)[0][1]) == 2
    assert len(encoded(clip, "a dog")[0][1]) == 1
    bare, blind = patching.remove_state(taught), patching.remove_state(reader)
    assert pack("nodes.layer_contexts").ENCODE not in blind.patcher.object_patches
    assert not any(bare.wrappers.get("calc_cond_batch", {}).values())
    with torch.inference_mode():
        blind.encode_from_tokens_scheduled(blind.tokenize("a dog"))
        seen = blind.encode_from_tokens_scheduled(reader.tokenize(PROMPT))
    assert set(seen[0][1]) == {"pooled_output"}
    again, _ = patching.apply_state(taught, reader, layerwise_state(model))
    assert len(again.wrappers["calc_cond_batch"][pack("nodes.layer_contexts").KEY]) == 1


def check_the_stock_embedding_is_the_mean() -> None:
    model, clip, _ = loaded()
    state = layerwise_state(model)
    concept = state.concepts[0]
    lora = pack("lifelong_core.sharing.lora")
    EMBEDDINGS.mkdir(exist_ok=True)
    save_file(lora.embedding_state_dict(concept, "demo"), EMBEDDINGS / "my_dog.safetensors")
    model, clip, _ = loaded()
    _, mean = pack("nodes.patching").apply_state(model, clip, single(state))
    ours, stock = (
        [token for chunk in reader.tokenize(PROMPT)["l"] for token, _ in chunk]
        for reader in (mean, clip)
    )
    vectors = [(a, b) for a, b in zip(ours, stock, strict=True) if torch.is_tensor(a)]
    assert len(vectors) == 2 and all(torch.equal(a, b) for a, b in vectors)


def check_an_export_says_that_stock_nodes_get_the_mean() -> None:
    folder_paths = importlib.import_module("folder_paths")
    for kind in ("loras", "embeddings"):
        folder = WORK / "exports" / kind
        folder.mkdir(parents=True)
        folder_paths.folder_names_and_paths[kind] = ([str(folder)], {".safetensors"})
    model, _, _ = loaded()
    state = layerwise_state(model)
    execute = pack("nodes.export_lora").ExportLifelongLora.execute
    texts = [str(execute(given, "shared").ui.as_dict()) for given in (state, single(state))]
    assert "the mean of its layers' vectors" in texts[0]
    assert "mean" not in texts[1]


def check_guidance_sees_the_layers_own_words() -> None:
    """The gradient pass of a guided sampler reads maps made with the layers' contexts."""
    model, clip, _ = loaded()
    state = layerwise_state(model)
    taught, reader = pack("nodes.patching").apply_state(model, clip, state)
    node = pack("nodes.orthogonal_attention_guidance").OrthogonalAttentionGuidance
    prompt = "a photo of embedding:my_dog dog and a cat"
    with torch.inference_mode():
        guided = node.execute(
            taught, reader, prompt, "embedding:my_dog dog\ncat", 30.0, 0.4, 0.9, None
        ).result[0]
    positive, negative = encoded(reader, prompt), encoded(reader, "")
    moved = sampled(guided, positive, negative)
    assert torch.isfinite(moved).all()
    assert distance(moved, sampled(taught, positive, negative)) > 1e-4
