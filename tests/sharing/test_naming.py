"""Every layer of every family has one name in LoRA files, and every name one layer."""

from __future__ import annotations

import re

import pytest

from lifelong_core.adapters.spec import TARGETS
from lifelong_core.backbone.families import FAMILIES
from lifelong_core.backbone.modules import empty_text, empty_unet
from lifelong_core.errors import InputError, ModelError, StateError
from lifelong_core.sharing.naming import (
    check_file_name,
    kohya_name,
    layer_names,
    layers,
    text_prefixes,
)

# Attention blocks × 2 attentions × 4 projections, and text layers × 4: counted by hand.
COUNTS = {
    "demo": (3 * 1 + 1 + 3 * 2) * 8 + 2 * 4,
    "sd1": 16 * 8 + 12 * 4,
    "sd2": 16 * 8 + 24 * 4,
    "sdxl": (2 * 2 + 2 * 10 + 10 + 3 * 10 + 3 * 2) * 8 + (12 + 32) * 4,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_those_of_the_true_modules(family: str) -> None:
    expected = {
        f"unet.{path}": (module.out_features, module.in_features)
        for path, module in empty_unet(FAMILIES[family]).named_modules()
        if path.endswith(TARGETS)
    }
    for config in FAMILIES[family].text:
        expected |= {
            f"text.{config.key}.{path}": (module.out_features, module.in_features)
            for path, module in empty_text(config).named_modules()
            if re.search(r"\.(q|k|v|out)_proj$", path)
        }
    assert layers(family) == expected
    assert len(layers(family)) == COUNTS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_maps_back_to_exactly_one_layer(family: str) -> None:
    names = [kohya_name(layer, family) for layer in layers(family)]
    assert len(set(names)) == len(names) == COUNTS[family]
    assert [layer_names(family)[name] for name in names] == list(layers(family))
    assert all(re.fullmatch(r"lora_(unet|te1?|te2)_\w+", name) for name in names)


def test_names_in_full() -> None:
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    text = "text_model.encoder.layers.3.self_attn.out_proj"
    flat = text.replace(".", "_")
    assert kohya_name(f"unet.{block}.attn2.to_out.0", "sd1") == (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0"
    )
    assert kohya_name(f"text.clip_l.{text}", "sd1") == f"lora_te_{flat}"
    assert kohya_name(f"text.clip_h.{text}", "sd2") == f"lora_te_{flat}"
    assert kohya_name(f"text.clip_l.{text}", "sdxl") == f"lora_te1_{flat}"
    assert kohya_name(f"text.clip_g.{text}", "sdxl") == f"lora_te2_{flat}"


def test_original_block_names_are_understood() -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k"
    assert layer_names("sdxl")[name] == (
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
    )
    name = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    assert layer_names("sd1")[name] == "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    "layer", ["unet.conv_in", "text.clip_g.text_model.encoder.layers.0.self_attn.q_proj", "x"]
)
def test_layers_without_a_name_are_refused(layer: str) -> None:
    with pytest.raises(StateError, match="sd1"):
        kohya_name(layer, "sd1")
    with pytest.raises(ModelError, match="flux"):
        text_prefixes("flux")


@pytest.mark.parametrize(
    "name", ["", "a b", "../x", "a/b", "ü", "a" * 65, "a.b", "a\n", "NUL", "com1"]
)
def test_unsafe_file_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="Name"):
        check_file_name(name, "Name")


@pytest.mark.parametrize("name", ["a", "my-dog_2", "A" * 64, "console"])
def test_safe_file_names_pass(name: str) -> None:
    check_file_name(name, "Name")
