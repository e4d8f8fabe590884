"""What is not a whole model of a known family is refused, with the name of what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lifelong_core.backbone import backbone_from_parts, load_backbone, random_backbone
from lifelong_core.backbone.detect import single_file_family, unet_family
from lifelong_core.errors import FileError, ModelError

UNET = "model.diffusion_model."
Shapes = dict[str, tuple[int, ...]]


def unet_like(channels: int, inputs: int, context: int, extra: int | None = None) -> Shapes:
    """The shapes that tell families apart."""
    shapes: Shapes = {
        UNET + "input_blocks.0.0.weight": (channels, inputs, 3, 3),
        UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (channels, context),
    }
    if extra:
        shapes[UNET + "label_emb.0.0.weight"] = (1280, extra)
    return shapes


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ({UNET + "double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "Flux"),
        ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "Flux"),
        ({UNET + "joint_blocks.0.context_block.attn.qkv.weight": (4608, 1536)}, "Diffusion 3"),
        (unet_like(320, 9, 768), "inpainting model"),
        (unet_like(320, 9, 2048, 2816), "inpainting model"),
        (unet_like(320, 8, 768), "instruct-pix2pix"),
        (unet_like(320, 5, 1024), "depth-to-image"),
        (unet_like(384, 4, 1280, 2560), "refiner"),
        (unet_like(320, 4, 1024, 2048), "unCLIP"),
        (unet_like(256, 4, 512), "256 channels, context width 512"),
        ({"lora_unet_down_blocks_0_attentions_0.lora_down.weight": (4, 320)}, "LoRA"),
        ({"unet.down_blocks.0.attn2.to_k.lora_A.weight": (4, 320)}, "LoRA"),
        ({"emb_params": (1, 768)}, "textual inversion"),
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "ControlNet"),
        ({"input_blocks.0.0.weight": (320, 4, 3, 3)}, "UNet without text encoders"),
        ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "VAE alone"),
        ({"text_model.final_layer_norm.weight": (768,)}, "text encoder alone"),
        ({"anything": (1,)}, "not a Stable Diffusion checkpoint"),
        ({**unet_like(320, 4, 2048, 2816), "edm_mean": (1,)}, "EDM"),
        ({**unet_like(320, 4, 768), UNET + "out.2.scale_weight": (1,)}, "quantised"),
        (unet_like(64, 4, 128), "lifelong_demo"),
    ],
)
def test_foreign_files_are_named(shapes: Shapes, named: str) -> None:
    with pytest.raises(ModelError, match=named) as caught:
        single_file_family(shapes, "thing.safetensors")
    assert "thing.safetensors" in str(caught.value)
    assert "Supported are" in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        (unet_like(320, 4, 768), "sd1"),
        (unet_like(320, 4, 1024), "sd2"),
        (unet_like(320, 4, 2048, 2816), "sdxl"),
        ({**unet_like(64, 4, 128), "lifelong_demo": (1,)}, "demo"),
    ],
)
def test_families_are_found(shapes: Shapes, family: str) -> None:
    assert single_file_family(shapes, "thing").name == family


def test_diffusers_names_tell_the_family_too() -> None:
    shapes: Shapes = {
        "conv_in.weight": (320, 9, 3, 3),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    }
    with pytest.raises(ModelError, match="inpainting"):
        unet_family(shapes, "the folder")
    shapes["conv_in.weight"] = (320, 4, 3, 3)
    assert unet_family(shapes, "the folder").name == "sd1"


def test_missing_pickled_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent\.safetensors"):
        load_backbone(tmp_path / "absent.safetensors")
    pickle = tmp_path / "old.ckpt"
    pickle.write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="pickle"):
        load_backbone(pickle)
    page = tmp_path / "page.safetensors"
    page.write_text("<html>not found</html>" * 9, encoding="utf-8")
    with pytest.raises(ModelError, match=r"page\.safetensors is broken"):
        load_backbone(page)
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    with pytest.raises(ModelError, match="broken"):
        load_backbone(empty)


def test_truncated_file(tmp_path: Path, demo_file: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    content = demo_file.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cut short"):
        load_backbone(cut)


@pytest.mark.parametrize(
    ("drop", "part"),
    [
        ("model.diffusion_model.out.2.bias", "The UNet lacks 1 of 404"),
        ("first_stage_model.taesd_encoder.0.weight", "The VAE lacks 1"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "clip_l lacks 1"),
    ],
)
def test_missing_tensors_are_named(
    tmp_path: Path, demo_tensors: dict[str, torch.Tensor], drop: str, part: str
) -> None:
    kept = {key: value for key, value in demo_tensors.items() if key != drop}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.raises(ModelError, match=part):
        load_backbone(tmp_path / "part.safetensors")


def test_missing_text_encoder_is_named(
    tmp_path: Path, demo_tensors: dict[str, torch.Tensor]
) -> None:
    kept = {key: value for key, value in demo_tensors.items() if not key.startswith("cond_stage")}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.raises(ModelError, match="clip_l has 0 layers"):
        load_backbone(tmp_path / "part.safetensors")


def test_wrong_shapes_are_named(tmp_path: Path, demo_tensors: dict[str, torch.Tensor]) -> None:
    changed = {**demo_tensors, "model.diffusion_model.out.2.bias": torch.zeros(7)}
    save_file(changed, tmp_path / "shape.safetensors")
    with pytest.raises(ModelError, match=r"conv_out\.bias is \(7,\), expected \(4,\)"):
        load_backbone(tmp_path / "shape.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a diffusers folder with given scheduler and UNet shapes."""

    def make(scheduler: object, unet: Shapes | None = None, model: str | None = None) -> Path:
        root = tmp_path / "model"
        (root / "scheduler").mkdir(parents=True)
        (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        if unet is not None:
            (root / "unet").mkdir()
            tensors = {name: torch.zeros(shape) for name, shape in unet.items()}
            save_file(tensors, root / "unet" / "diffusion_pytorch_model.safetensors")
        if model:
            (root / "model_index.json").write_text(json.dumps({"_class_name": model}))
        return root

    return make


def test_folders_of_other_models(folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="FluxPipeline without a UNet"):
        load_backbone(folder({}, model="FluxPipeline"))


def test_folder_with_another_schedule(folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="squaredcos_cap_v2"):
        load_backbone(folder({"beta_schedule": "squaredcos_cap_v2"}, {"conv_in.weight": (1,)}))


def test_folder_that_predicts_the_sample(folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="'sample'"):
        load_backbone(folder({"prediction_type": "sample"}, {"conv_in.weight": (1,)}))


def test_folder_with_pickled_weights(folder: Callable[..., Path]) -> None:
    root = folder({}, {"conv_in.weight": (1,)})
    weights = root / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"not \.bin"):
        load_backbone(root)


def test_folder_of_an_inpainting_model(folder: Callable[..., Path]) -> None:
    unet = {
        "conv_in.weight": (320, 9, 3, 3),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    }
    with pytest.raises(ModelError, match="inpainting"):
        load_backbone(folder({}, unet))


def test_parts_of_different_models() -> None:
    demo = random_backbone("demo")
    unet = {
        "input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(320, 2048),
        "label_emb.0.0.weight": torch.zeros(1, 2816),
    }
    text = demo.text.modules["clip_l"].state_dict()
    with pytest.raises(ModelError, match=r"2 text encoders \(clip_l, clip_g\); 1"):
        backbone_from_parts(unet, [text], demo.codec, prediction_type="epsilon")


def test_unknown_family_name() -> None:
    with pytest.raises(ModelError, match="'sd9'"):
        random_backbone("sd9")
