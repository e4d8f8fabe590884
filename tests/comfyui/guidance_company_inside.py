"""Runs inside ComfyUI's own process: attention guidance beside what other nodes do to a MODEL."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from guidance_helpers import (
    STEPS,
    artist,
    distance,
    empty_latent,
    guided,
    loaded_base,
    passes,
    same_weights,
    sampled,
    split,
    weights_of,
)
from inside import comfy, foreign_lora, pack, torch

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
import comfy.controlnet
from comfy_extras import nodes_custom_sampler as custom


def check_a_replace_patch_is_chained_in_either_order() -> None:
    base = loaded_base()
    calls: list[tuple[int, bool]] = []

    def halved(q: Any, k: Any, v: Any, extra: Any) -> torch.Tensor:
        calls.append((len(q), torch.is_grad_enabled()))
        heads = extra["n_heads"]
        attend = comfy.ldm.modules.attention.optimized_attention
        return attend(q, k, v, heads, attn_precision=extra["attn_precision"]) * 0.5

    def patched(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_attn2_replace(halved, "input", 1)
        clone.set_model_attn2_replace(halved, "output", 4, 0)
        return clone

    plain = sampled(patched(base.model), base.positive, base.negative)
    assert distance(plain, sampled(base.model, base.positive, base.negative)) > 1e-3
    read = (("input", 1, 0), ("output", 4, 0), ("output", 5, 0))
    with patch.object(pack("nodes.guidance"), "map_blocks", lambda family: read):
        orders = (
            guided(patched(base.model), base.clip),
            patched(guided(base.model, base.clip)),
        )
    results = []
    for model in orders:
        calls.clear()
        results.append(sampled(model, base.positive, base.negative))
        assert calls.count((1, True)) == 2 * 2, "both patches in both gradient passes"
        assert calls.count((2, False)) == 2 * STEPS, "and in every pass of the sampler"
    assert torch.equal(*results) and distance(results[0], plain) > 1e-3
    assert torch.equal(
        artist(patched(base.model), base.clip, base.positive, base.negative)[0], plain
    )


def check_a_patch_that_adds_tokens_leaves_the_words_where_they_are() -> None:
    base = loaded_base()

    def with_picture(n: Any, context: Any, value: Any, extra: Any) -> Any:
        more = context[:, :4] * 0.1
        return n, torch.cat([context, more], 1), torch.cat([value, more], 1)

    model = guided(base.model, base.clip)
    model.set_model_attn2_patch(with_picture)
    plain = base.model.clone()
    plain.set_model_attn2_patch(with_picture)
    latents = sampled(model, base.positive, base.negative)
    assert distance(latents, sampled(plain, base.positive, base.negative)) > 1e-3


def check_conditionings_on_several_gpus_are_guided() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip)
    expected = sampled(model, base.positive, base.negative)
    for both in (split(model), guided(split(base.model), base.clip)):
        assert torch.equal(sampled(both, base.positive, base.negative), expected)


def check_a_lora_is_guided_and_comes_off_again() -> None:
    base = loaded_base()
    plain = sampled(base.model, base.positive, base.negative)
    before = weights_of(base.model)
    styled = foreign_lora(base.model, 1.0)
    expected = sampled(styled, base.positive, base.negative)
    for model in (guided(styled, base.clip), foreign_lora(guided(base.model, base.clip), 1.0)):
        latents = sampled(model, base.positive, base.negative)
        assert distance(latents, expected) > 1e-3
        assert torch.equal(sampled(styled, base.positive, base.negative), expected)
        assert torch.equal(sampled(base.model, base.positive, base.negative), plain)
    assert same_weights(weights_of(base.model), before)


def check_weights_that_are_patched_while_they_are_used_are_loaded_in_full() -> None:
    """ComfyUI keeps LoRAs of models that do not fit as functions on the layers (lowvram)."""
    base = loaded_base()
    styled = foreign_lora(base.model, 1.0)
    model = guided(styled, base.clip)
    expected = sampled(model, base.positive, base.negative)
    with torch.inference_mode():
        comfy.model_management.unload_all_models()
        layer = base.model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q
        model.load(model.load_device, lowvram_model_memory=1)
        assert layer.weight_function or layer.comfy_cast_weights
    latents = sampled(model, base.positive, base.negative)
    assert distance(latents, expected) < 1e-5
    comfy.model_management.unload_all_models()


def check_a_whole_graph_of_custom_nodes_is_guided_the_same() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip)
    expected = sampled(model, base.positive, base.negative)
    with torch.inference_mode():
        noise = custom.RandomNoise.execute(1).result[0]
        sampler = custom.KSamplerSelect.execute("euler").result[0]
        sigmas = custom.BasicScheduler.execute(model, "normal", STEPS, 1.0).result[0]
        guiders = {
            "CFGGuider": custom.CFGGuider.execute(model, base.positive, base.negative, 4.0),
            "BasicGuider": custom.BasicGuider.execute(model, base.positive),
            "DualCFGGuider": custom.DualCFGGuider.execute(
                model, base.negative, base.positive, base.negative, 4.0, 2.0, "regular"
            ),
        }
        results = {}
        for name, guider in guiders.items():
            with passes() as seen:
                done = custom.SamplerCustomAdvanced.execute(
                    noise, guider.result[0], sampler, sigmas, empty_latent()
                )
            assert len(seen) == 2, name
            results[name] = done.result[0]["samples"]
    assert torch.equal(results["CFGGuider"], expected)
    assert torch.equal(
        results["BasicGuider"], sampled(model, base.positive, base.negative, cfg=1.0)
    )


def check_a_control_net_is_a_constant() -> None:
    base = loaded_base()
    with torch.inference_mode():
        weight = torch.randn(64, 4, 1, 1) * 0.1

    class Control(comfy.controlnet.ControlBase):
        """A network of one layer."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[bool] = []

        def get_control(self, x: Any, *_: Any) -> Any:
            self.seen.append(x.requires_grad)
            added = torch.nn.functional.conv2d(x / 15, weight)
            return {"input": [added], "middle": [], "output": []}

    control = Control()
    steered = [[cond, {**extra, "control": control}] for cond, extra in base.positive]
    steered_negative = [[cond, {**extra, "control": control}] for cond, extra in base.negative]
    plain = sampled(base.model, steered, steered_negative)
    assert distance(plain, sampled(base.model, base.positive, base.negative)) > 1e-4
    latents = sampled(guided(base.model, base.clip), steered, steered_negative)
    assert distance(latents, plain) > 1e-4
    assert len(control.seen) > 2 * STEPS and not any(control.seen)
