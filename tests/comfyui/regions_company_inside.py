"""Runs inside ComfyUI's own process: regions beside other nodes, adapters and conditionings."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from guidance_helpers import PROMPT, conditioning, distance, guided, passes, sampled, split
from inside import comfy, foreign_lora, pack, refused, torch
from regions_helpers import (
    DOG,
    TARGETS,
    applied,
    base,
    drawn,
    halves,
    negative,
    plain,
    region,
    scene,
    small,
    two_toys,
)

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
import nodes


def check_a_replace_patch_computes_every_attention() -> None:
    """Halved everywhere, regions included; other patches are told of positive and negative."""
    told: list[tuple[list[int], int, int]] = []

    def halved(q: Any, k: Any, v: Any, extra: Any) -> torch.Tensor:
        indices = extra["cond_or_uncond"]
        told.append((indices, len(q), extra["activations_shape"][0]))
        assert len(extra["uuids"]) == len(indices)
        attend = comfy.ldm.modules.attention.optimized_attention
        return attend(q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"]) * 0.5

    def patched(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_attn2_replace(halved, "input", 1)
        clone.set_model_attn2_replace(halved, "output", 4, 0)
        return clone

    state = two_toys(TARGETS)
    model, positive = applied(state, DOG)
    expected = sampled(patched(model), positive, negative(), small(), steps=3)
    told.clear()
    got = drawn(region(DOG), state=state, model=patched(base()[0]))
    assert distance(got, expected) < 1e-4 < distance(drawn(region(DOG), state=state), expected)
    assert {index for indices, _, _ in told for index in indices} == {0, 1}
    assert all(rows == shape and rows % len(indices) == 0 for indices, rows, shape in told)
    told.clear()
    drawn(halves(), state=state, model=patched(base()[0]))
    assert {index for indices, _, _ in told for index in indices} == {0, 1}


def check_regions_are_drawn_where_the_model_is() -> None:
    expected = drawn(halves())
    with patch.object(comfy.samplers, "_calc_cond_batch_multigpu") as elsewhere:
        assert torch.equal(drawn(halves(), model=split(base()[0])), expected)
    elsewhere.assert_not_called()


def check_merged_positions_are_told_where_self_attention_was_learned() -> None:
    tome = importlib.import_module("comfy_extras.nodes_tomesd").TomePatchModel
    merging = tome.execute(base()[0], 0.3).result[0]
    assert drawn(halves(), model=merging).isfinite().all()
    state = two_toys(TARGETS)
    refused("InputError", "merges or tiles", lambda: drawn(halves(), state=state, model=merging))


def check_loras_of_others_and_applied_states_are_bases() -> None:
    styled = foreign_lora(base()[0], 1.0)
    expected = drawn(halves(), model=styled)
    assert distance(expected, drawn(halves())) > 1e-3
    (record, _) = two_toys().records
    one = replace(two_toys(), records=[replace(record, settings={})])
    model, clip = pack("nodes.patching").apply_state(*base()[:2], one)
    assert torch.equal(drawn(halves(), model=model, clip=clip), drawn(halves()))
    assert torch.equal(drawn(halves(), model=foreign_lora(model, 1.0), clip=clip), expected)


def check_every_sampler_draws_regions() -> None:
    for sampler in (
        "euler_ancestral", "heun", "dpm_2", "lms", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m",
        "dpmpp_2m_sde", "ddpm", "lcm", "ddim", "uni_pc", "euler_cfg_pp", "res_multistep",
    ):  # fmt: skip
        found = drawn(halves(), sampler_name=sampler, steps=2)
        alone = plain(sampler=sampler, steps=2)
        assert bool(found.isfinite().all()) and distance(found, alone) > 1e-3, sampler


def check_conditionings_of_many_kinds() -> None:
    area, mask, times = (nodes.ConditioningSetArea(), nodes.ConditioningSetMask(),
                         nodes.ConditioningSetTimestepRange())  # fmt: skip
    other = conditioning(base()[1], "a house in the snow")
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    inside = area.append(scene(), 32, 32, 32, 16, 1.0)[0]
    late = times.set_range(scene(), 0.5, 1.0)[0]
    early = times.set_range(other, 0.0, 0.5)[0]
    for name, values in {
        "long negative": {"negative": conditioning(base()[1], "ugly " * 100)},
        "long positive": {"positive": conditioning(base()[1], "grass " * 100)},
        "area": {"positive": other + inside},
        "masked": {"positive": mask.append(scene(), left, "default", 1.0)[0] + other},
        "early and late": {"positive": late + early},
        "noise mask": {"latent_image": {**small(2), "noise_mask": left[:, None]}},
        "image to image": {"latent_image": {"samples": torch.ones(1, 4, 8, 8)}, "denoise": 0.5},
        "no square": {"latent_image": {"samples": torch.zeros(1, 4, 7, 12)}},
    }.items():
        found = drawn(halves(), **values)
        assert bool(found.isfinite().all()), name
        assert distance(found, drawn(region(DOG), **values)) > 1e-3, name


def check_latents_outside_a_noise_mask_stay() -> None:
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = drawn(halves(), latent_image={"samples": start, "noise_mask": left[:, None]})
    assert distance(found[..., 4:], start[..., 4:]) < 1e-5
    assert distance(found[..., :4], start[..., :4]) > 1e-2


def check_an_area_sees_the_regions_at_their_place() -> None:
    """A region in the left half alone counts nothing in a conditioning of the right half."""
    attention = pack("nodes.regional_attention")
    read = torch.zeros(1, 1, 77, 128), (None,), torch.ones(1, 77), (False,), {}, {}
    prompts = attention.RegionalPrompts(((torch.eye(8).cumsum(1).clamp(max=1),),), 0.0, *read)
    whole = prompts.covered((8, 8), (8, 8))
    cropped = prompts.covered((4, 4), (8, 8), (4, 4, 2, 3))
    assert torch.equal(cropped, whole[..., 2:6, 3:7])
    right = torch.zeros(8, 8)
    right[:, 4:] = 1
    prompts = attention.RegionalPrompts(((right,),), 0.0, *read)
    assert not prompts.covered((4, 2), (8, 8), (8, 4, 0, 0)).any()


def check_guidance_and_regions_go_together() -> None:
    model, clip, _ = base()
    values = {"positive": conditioning(clip, PROMPT)}
    expected = drawn(halves(), **values)
    with passes() as seen:
        found = drawn(halves(), model=guided(model, clip), **values)
    assert [one["rows"] for one in seen] == [1, 1], "guidance looks at its own prompt alone"
    assert distance(found, expected) > 1e-3


def check_a_text_encoders_adapter_reads_its_own_prompt() -> None:
    layers = pack("lifelong_core.sharing.naming").layers("demo")
    draw = torch.Generator().manual_seed(5)
    text = {
        f"{key}.{part}": torch.randn(*shape, generator=draw) / 8
        for key, (out, width) in layers.items()
        if key.startswith("text.")
        for part, shape in (("down", (4, width)), ("up", (out, 4)))
    }
    usual = two_toys()
    records = [replace(r, adapter={**r.adapter, **text}) for r in usual.records]
    state = replace(
        usual,
        adapter={**usual.adapter, **text},
        adapter_spec=replace(usual.adapter_spec, text_encoder=True),
        records=records,
    )
    model, positive = applied(state, DOG)
    expected = sampled(model, positive, negative(), small(), steps=3)
    assert distance(drawn(region(DOG), state=state), expected) < 1e-4
    assert distance(drawn(region(DOG)), expected) > 1e-3


def check_every_layer_reads_its_own_vectors() -> None:
    count = len(pack("lifelong_core.attention.layers").context_blocks("demo"))
    draw = torch.Generator().manual_seed(6)
    records = [
        replace(
            record,
            concept=replace(
                record.concept, vectors={"clip_l": torch.randn(count, 2, 128, generator=draw)}
            ),
        )
        for record in two_toys().records
    ]
    state = replace(two_toys(), records=records)
    model, positive = applied(state, DOG)
    expected = sampled(model, positive, negative(), small(), steps=3)
    mean = [replace(record, concept=record.concept.single()) for record in records]
    assert distance(drawn(region(DOG), state=state), expected) < 1e-4
    assert distance(drawn(region(DOG), state=replace(state, records=mean)), expected) > 1e-4
    assert bool(drawn(region("a lawn", before=halves()), state=state).isfinite().all())
