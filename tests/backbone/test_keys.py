"""Key maps: every tensor of the true architecture exactly once, for every family."""

from __future__ import annotations

import re

import pytest
import torch

from lifelong_core.backbone import FAMILIES
from lifelong_core.backbone.checkpoint import autoencoder_layout, text_layout, unet_layout
from lifelong_core.backbone.keys import unet_diffusers_to_ldm, unet_ldm_to_diffusers
from lifelong_core.backbone.layout import Source, stored_tensors
from lifelong_core.backbone.modules import empty_text, empty_unet, empty_vae, shapes_of, unet_shapes
from lifelong_core.backbone.text_keys import fitted, openclip_layout, with_text_model
from lifelong_core.backbone.vae_keys import vae_layout, with_present_names
from lifelong_core.errors import ModelError
from lifelong_core.prompts import ClipText

EVERY = pytest.mark.parametrize("family", list(FAMILIES))
COUNTS = {"demo": 404, "sd1": 686, "sd2": 686, "sdxl": 1680}
OUT_4 = "output_blocks.4.0."
DOWN, SHORTCUT = "encoder.down.2.", "block.0.nin_shortcut.bias"
PARAMETERS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}


@EVERY
def test_unet_map_is_one_to_one_and_complete(family: str) -> None:
    names = unet_diffusers_to_ldm(family)
    assert set(names) == set(empty_unet(FAMILIES[family]).state_dict())
    assert len(names) == COUNTS[family] == len(set(names.values()))
    assert unet_ldm_to_diffusers(family) == {ldm: name for name, ldm in names.items()}


@pytest.mark.parametrize("family", list(PARAMETERS))
def test_architectures_have_the_published_sizes(family: str) -> None:
    sizes = [torch.Size(shape).numel() for shape in unet_shapes(family).values()]
    assert sum(sizes) == PARAMETERS[family]


@pytest.mark.parametrize(
    ("family", "name", "ldm"),
    [
        ("sd1", "conv_in.weight", "input_blocks.0.0.weight"),
        ("sd1", "down_blocks.0.resnets.1.conv1.bias", "input_blocks.2.0.in_layers.2.bias"),
        ("sd1", "down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
        ("sd1", "down_blocks.3.resnets.1.norm2.weight", "input_blocks.11.0.out_layers.0.weight"),
        ("sd1", "mid_block.attentions.0.proj_in.weight", "middle_block.1.proj_in.weight"),
        ("sd1", "mid_block.resnets.1.conv2.weight", "middle_block.2.out_layers.3.weight"),
        ("sd1", "up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
        ("sd1", "up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
        (
            "sd1",
            "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_k.weight",
            "output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight",
        ),
        ("sdxl", "add_embedding.linear_2.bias", "label_emb.0.2.bias"),
        (
            "sdxl",
            "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj.weight",
            "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight",
        ),
        ("sdxl", "up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.2.conv.bias"),
        ("demo", "down_blocks.1.attentions.0.norm.weight", "input_blocks.3.1.norm.weight"),
        (
            "demo",
            "up_blocks.2.resnets.1.conv_shortcut.bias",
            "output_blocks.5.0.skip_connection.bias",
        ),
    ],
)
def test_known_unet_names(family: str, name: str, ldm: str) -> None:
    assert unet_diffusers_to_ldm(family)[name] == ldm


@EVERY
def test_checkpoint_layouts_do_not_overlap_and_cover_every_module(family: str) -> None:
    chosen = FAMILIES[family]
    parts = [
        (unet_layout(chosen), empty_unet(chosen)),
        (autoencoder_layout(chosen), empty_vae(chosen)),
        *((text_layout(chosen, config), empty_text(config)) for config in chosen.text),
    ]
    places: list[tuple[str, int | None]] = []
    for layout, module in parts:
        assert set(layout) == set(module.state_dict())
        places += [(source.key, source.third) for source in layout.values()]
    assert len(places) == len(set(places))
    prefixes = {re.match(r"[a-z_]+\.", key).group() for key, _ in places}
    text = "conditioner." if family == "sdxl" else "cond_stage_model."
    assert prefixes == {"model.", text, "first_stage_model."}


@EVERY
def test_vae_layout_is_one_to_one(family: str) -> None:
    layout = vae_layout(family)
    assert len({source.key for source in layout.values()}) == len(layout)


@pytest.mark.parametrize(
    ("family", "name", "key"),
    [
        ("sd1", "encoder.down_blocks.1.resnets.0.conv1.bias", "encoder.down.1.block.0.conv1.bias"),
        ("sd1", "encoder.down_blocks.2.downsamplers.0.conv.bias", DOWN + "downsample.conv.bias"),
        ("sd1", "encoder.down_blocks.2.resnets.0.conv_shortcut.bias", DOWN + SHORTCUT),
        ("sd1", "decoder.up_blocks.0.resnets.2.norm1.bias", "decoder.up.3.block.2.norm1.bias"),
        ("sd1", "decoder.up_blocks.2.upsamplers.0.conv.bias", "decoder.up.1.upsample.conv.bias"),
        ("sd1", "decoder.mid_block.attentions.0.to_out.0.bias", "decoder.mid.attn_1.proj_out.bias"),
        ("sd1", "encoder.mid_block.resnets.1.conv2.bias", "encoder.mid.block_2.conv2.bias"),
        ("sd1", "decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
        ("sd1", "post_quant_conv.weight", "post_quant_conv.weight"),
        ("demo", "encoder.layers.0.weight", "taesd_encoder.0.weight"),
        ("demo", "decoder.layers.0.weight", "taesd_decoder.1.weight"),
    ],
)
def test_known_vae_names(family: str, name: str, key: str) -> None:
    assert vae_layout(family)[name].key == key


def test_vae_attention_is_stored_as_convolutions() -> None:
    source = vae_layout("sd1")["encoder.mid_block.attentions.0.to_q.weight"]
    assert source == Source("encoder.mid.attn_1.q.weight", pointwise=True)
    linear = torch.arange(6.0).reshape(2, 3)
    assert source.write(linear).shape == (2, 3, 1, 1)
    assert torch.equal(source.read(source.write(linear)), linear)
    assert source.shape((2, 3, 1, 1)) == (2, 3) == source.shape((2, 3))


def test_early_diffusers_vae_names_are_understood() -> None:
    found = with_present_names({"encoder.mid_block.attentions.0.proj_attn.bias": 1})
    assert found == {"encoder.mid_block.attentions.0.to_out.0.bias": 1}


def test_openclip_fuses_query_key_value_and_transposes_the_projection() -> None:
    config = FAMILIES["sdxl"].text[1]
    layout = openclip_layout(config)
    fused = "transformer.resblocks.7.attn.in_proj_bias"
    thirds = {source.third: name for name, source in layout.items() if source.key == fused}
    assert [thirds[n].split(".")[-2] for n in range(3)] == ["q_proj", "k_proj", "v_proj"]
    assert layout["text_projection.weight"] == Source("text_projection", transposed=True)
    assert layout["text_model.encoder.layers.0.mlp.fc2.weight"].key == (
        "transformer.resblocks.0.mlp.c_proj.weight"
    )


def test_writing_and_reading_a_text_encoder_gives_it_back() -> None:
    small = {
        "text_model.encoder.layers.0.self_attn.q_proj.weight": torch.full((2, 2), 1.0),
        "text_model.encoder.layers.0.self_attn.k_proj.weight": torch.full((2, 2), 2.0),
        "text_model.encoder.layers.0.self_attn.v_proj.weight": torch.full((2, 2), 3.0),
        "text_projection.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    }
    layout = {name: openclip_layout(FAMILIES["sdxl"].text[1])[name] for name in small}
    stored = dict(stored_tensors(layout, small))
    assert stored["transformer.resblocks.0.attn.in_proj_weight"].shape == (6, 2)
    assert stored["text_projection"][0, 1] == 3.0
    for name, value in small.items():
        assert torch.equal(layout[name].read(stored[layout[name].key]), value)


def test_text_encoder_names_do_not_depend_on_the_version_of_transformers() -> None:
    ours = shapes_of(empty_text(FAMILIES["sd1"].text[0]))
    bare = {name.removeprefix("text_model."): shape for name, shape in ours.items()}
    assert with_text_model(bare) == ours == with_text_model(ours)


def test_sd2_may_leave_out_the_layer_that_nothing_reads() -> None:
    config = FAMILIES["sd2"].text[0]
    keys = [f"text_model.encoder.layers.{n}.layer_norm1.weight" for n in range(23)]
    assert fitted(config, keys).layers == 23
    with torch.device("meta"):
        assert len(ClipText(fitted(config, keys)).text_model.encoder.layers) == 23
    with pytest.raises(ModelError, match="clip_h has 22 layers"):
        fitted(config, keys[:-1])
