"""The same model by every way in: single file, folder, parts; fp32 and fp16; nothing shared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lifelong_core.backbone import (
    FAMILIES,
    Backbone,
    backbone_from_parts,
    load_backbone,
    random_backbone,
    save_single_file,
)
from lifelong_core.backbone.checkpoint import V_PREDICTION_KEY, usual_spelling
from lifelong_core.backbone.detect import single_file_prediction
from lifelong_core.backbone.keys import UNET_PREFIX, unet_ldm_to_diffusers
from lifelong_core.backbone.model import fingerprint
from lifelong_core.seeding import generator


def all_tensors(backbone: Backbone) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((f"unet.{k}", v) for k, v in backbone.unet.state_dict().items())
    yield from ((f"vae.{k}", v) for k, v in backbone.codec.vae.state_dict().items())
    for key, encoder in backbone.text.modules.items():
        yield from ((f"{key}.{k}", v) for k, v in encoder.state_dict().items())


def assert_same(first: Backbone, second: Backbone) -> None:
    ours, theirs = dict(all_tensors(first)), dict(all_tensors(second))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert first.fingerprint == second.fingerprint
    assert first.schedule.prediction_type == second.schedule.prediction_type


def ldm_unet(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(UNET_PREFIX): v for k, v in tensors.items() if k.startswith(UNET_PREFIX)}


def test_single_file_gives_back_every_bit(demo: Backbone, demo_file: Path) -> None:
    assert_same(load_backbone(demo_file), demo)


def test_everything_is_frozen_but_can_be_trained_through(demo_file: Path) -> None:
    with torch.inference_mode():
        backbone = load_backbone(demo_file)
    modules = [backbone.unet, backbone.codec.vae, *backbone.text.modules.values()]
    for module in modules:
        assert not module.training
        for parameter in module.parameters():
            assert not parameter.requires_grad
            assert not parameter.is_inference()
            assert parameter.device.type == "cpu"


def test_fp16_load_keeps_the_fingerprint(demo: Backbone, demo_file: Path, tmp_path: Path) -> None:
    half = load_backbone(demo_file, dtype=torch.float16)
    assert half.dtype == torch.float16
    assert half.text.modules["clip_l"].token_table.dtype == torch.float16
    assert next(half.codec.vae.parameters()).dtype == torch.float32
    assert half.fingerprint == demo.fingerprint
    brain = load_backbone(
        save_single_file(demo, tmp_path / "half.safetensors"), dtype=torch.bfloat16
    )
    assert brain.fingerprint == demo.fingerprint


def test_fingerprint_tells_models_apart(demo: Backbone) -> None:
    other = random_backbone("demo", seed=2)
    epsilon = random_backbone("demo", seed=1, prediction_type="epsilon")
    assert len({demo.fingerprint, other.fingerprint, epsilon.fingerprint}) == 3
    assert demo.fingerprint.startswith("demo-v_prediction-")


def test_fingerprint_notices_light_fine_tuning() -> None:
    backbone = random_backbone("demo", seed=1)
    source = generator(9, "tuning")
    for weight in backbone.unet.parameters():
        weight.data += 0.01 * weight.std() * torch.randn(weight.shape, generator=source)
    changed = fingerprint("demo", "v_prediction", backbone.unet)
    assert changed != backbone.fingerprint


def test_parts_make_the_same_model_and_copy(
    demo: Backbone, demo_tensors: dict[str, torch.Tensor]
) -> None:
    text = dict(demo.text.modules["clip_l"].state_dict())
    for state in (text, {k.removeprefix("text_model."): v for k, v in text.items()}):
        state["embeddings.position_ids"] = torch.arange(77)
        with torch.inference_mode():
            unet = {key: value.clone() for key, value in ldm_unet(demo_tensors).items()}
            made = backbone_from_parts(unet, [state], demo.codec, prediction_type="v_prediction")
            for value in unet.values():
                value.zero_()
        assert_same(made, demo)
        assert not any(value.is_inference() for _, value in all_tensors(made))


def test_diffusers_folder(
    demo: Backbone, demo_tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    names = unet_ldm_to_diffusers("demo")
    unet = {names[key]: value for key, value in ldm_unet(demo_tensors).items()}
    parts = {
        "unet/diffusion_pytorch_model": unet,
        "text_encoder/model": demo.text.modules["clip_l"].state_dict(),
        "vae/diffusion_pytorch_model": demo.codec.vae.state_dict(),
    }
    for name, state in parts.items():
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir()
        save_file({key: value.clone() for key, value in state.items()}, path)
    (tmp_path / "scheduler").mkdir()
    config = {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert_same(load_backbone(tmp_path), demo)
    shards = dict(zip(("a", "b"), (list(unet)[:200], list(unet)[200:]), strict=True))
    for shard, keys in shards.items():
        save_file({key: unet[key] for key in keys}, tmp_path / "unet" / f"{shard}.safetensors")
    weight_map = {key: f"{shard}.safetensors" for shard, keys in shards.items() for key in keys}
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert_same(load_backbone(tmp_path), demo)


def test_saved_demo_carries_what_comfyui_needs(demo_tensors: dict[str, torch.Tensor]) -> None:
    assert demo_tensors["lifelong_demo"].shape == (1,)
    assert demo_tensors["first_stage_model.vae_scale"].item() == pytest.approx(0.18215)
    assert demo_tensors["first_stage_model.vae_scale"].dtype == torch.float32
    assert demo_tensors["first_stage_model.vae_shift"].item() == 0.0


def test_fp16_file_keeps_the_vae_scale_in_fp32(demo: Backbone, tmp_path: Path) -> None:
    tensors = load_file(save_single_file(demo, tmp_path / "half.safetensors"))
    scalars = {"lifelong_demo", "first_stage_model.vae_scale", "first_stage_model.vae_shift"}
    assert {tensors[key].dtype for key in scalars} == {torch.float32}
    assert {value.dtype for key, value in tensors.items() if key not in scalars} == {torch.float16}


def test_epsilon_demo_is_recognised_by_its_metadata(tmp_path: Path) -> None:
    epsilon = random_backbone("demo", prediction_type="epsilon")
    path = save_single_file(epsilon, tmp_path / "epsilon.safetensors")
    assert load_backbone(path).schedule.prediction_type == "epsilon"


def test_prediction_types_of_files_without_metadata() -> None:
    def found(family: str, keys: tuple[str, ...] = (), spread: float = 0.0) -> str:
        mark = torch.tensor([spread, -spread])
        return single_file_prediction(FAMILIES[family], keys, {}, lambda key: mark)

    assert found("sd1") == "epsilon"
    assert found("demo") == "v_prediction"
    assert found("sd2", spread=0.02) == "epsilon"
    assert found("sd2", spread=0.2) == "v_prediction"
    assert found("sdxl") == "epsilon"
    assert found("sdxl", (V_PREDICTION_KEY,)) == "v_prediction"


def test_sd2_with_v_is_made_for_768() -> None:
    assert FAMILIES["sd2"].for_prediction("v_prediction").default_size == 768
    assert FAMILIES["sd2"].for_prediction("epsilon").default_size == 512
    assert FAMILIES["sdxl"].for_prediction("v_prediction").default_size == 1024


@pytest.mark.parametrize(
    ("stored", "usual"),
    [
        (
            "conditioner.embedders.0.model.transformer.resblocks.0.ln_1.bias",
            "cond_stage_model.model.transformer.resblocks.0.ln_1.bias",
        ),
        (
            "cond_stage_model.transformer.encoder.layers.0.layer_norm1.bias",
            "cond_stage_model.transformer.text_model.encoder.layers.0.layer_norm1.bias",
        ),
        (
            "conditioner.embedders.1.model.ln_final.bias",
            "conditioner.embedders.1.model.ln_final.bias",
        ),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        ),
    ],
)
def test_rare_spellings_of_text_keys(stored: str, usual: str) -> None:
    assert usual_spelling({stored: 1}) == {usual: 1}
