"""The demo model computes the same in the library and in ComfyUI, in fp32 on random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.adapters.frozen import frozen_adapter
from lifelong_core.adapters.spec import MAX_RANK, TARGETS
from lifelong_core.adapters.spectrum import spectrum_of
from lifelong_core.backbone import Backbone, random_backbone, save_single_file
from lifelong_core.files import save_tensors
from lifelong_core.seeding import generator
from lifelong_core.sharing import lora_state_dict
from lifelong_core.sharing.spectral import truncated_changes
from lifelong_core.state import LifelongState

BAR = 1e-4
PACK = Path(__file__).resolve().parents[2]
PROMPTS = [
    "a photo of a dog",
    "",
    "a (red:1.4) dog on the ((beach)), (not (very:0.5) plain) \\(really\\) [square]",
    "a photo of embedding:rex dog",
    "(embedding:rex, dog:1.3) beside embedding:rex<cat> at night",
    "word " * 60 + "embedding:rex, " + "snow (and ice:0.7) " * 40,
]


SPECS = {
    "lora": AdapterSpec(rank=4, targets=TARGETS, text_encoder=True),
    "vera": AdapterSpec("vera", rank=64, targets=TARGETS, text_encoder=True),
    "key_value": AdapterSpec("key_value"),
    "spectral": AdapterSpec("spectral"),
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=3)


@pytest.fixture(scope="module")
def adapters(backbone: Backbone) -> dict[str, dict[str, Tensor]]:
    """Weights for each of `SPECS`."""
    found = {}
    for kind, spec in SPECS.items():
        shapes = {
            key: value.shape for key, value in build_adapter(spec, backbone, seed=0).state().items()
        }
        found[kind] = {
            key: torch.randn(shape, generator=generator(6, key)) * 0.1
            for key, shape in shapes.items()
        }
    return found


@pytest.fixture(scope="module")
def given(backbone: Backbone) -> dict[str, Tensor]:
    source = generator(5, "equality")
    return {
        "latents": torch.randn(3, 4, 16, 16, generator=source),
        "timesteps": torch.tensor([3.0, 500.0, 960.0]),
        "images": torch.rand(2, 128, 128, 3, generator=source),
        "rex": torch.randn(3, 128, generator=source) * 0.02,
    }


@pytest.fixture(scope="module")
def reference(
    backbone: Backbone,
    given: dict[str, Tensor],
    adapters: dict[str, dict[str, Tensor]],
    comfyui_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Tensor]:
    """What ComfyUI makes of the same checkpoint and inputs."""
    work = tmp_path_factory.mktemp("equality")
    save_single_file(backbone, work / "model.safetensors", dtype=torch.float32)
    save_file(given, work / "inputs.safetensors")
    (work / "prompts.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
    (work / "embeddings").mkdir()
    save_file({"emb_params": given["rex"]}, work / "embeddings" / "rex.safetensors")
    for kind, weights in adapters.items():
        state = LifelongState("demo", backbone.fingerprint, SPECS[kind], weights)
        lora = lora_state_dict(state, spectrum_of(backbone) if kind == "spectral" else None)
        save_tensors(work / "loras" / f"{kind}.safetensors", lora)
    spectral = LifelongState("demo", backbone.fingerprint, SPECS["spectral"], adapters["spectral"])
    full_rank, _ = truncated_changes(spectral, spectrum_of(backbone), MAX_RANK)
    save_tensors(work / "loras" / "spectral_lora.safetensors", full_rank)
    script = Path(__file__).with_name("reference.py")
    command = [sys.executable, str(script), str(comfyui_path), str(PACK), str(work)]
    finished = subprocess.run(
        command, cwd=comfyui_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return load_file(work / "outputs.safetensors")


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_text_is_equal(
    number: int, backbone: Backbone, given: dict[str, Tensor], reference: dict[str, Tensor]
) -> None:
    ours = backbone.text.encode([PROMPTS[number]], {"rex": {"clip_l": given["rex"]}})
    assert relative_error(ours.context, reference[f"context.{number}"]) < BAR


@torch.no_grad()
def test_unet_and_noise_schedule_are_equal(
    backbone: Backbone, given: dict[str, Tensor], reference: dict[str, Tensor]
) -> None:
    latents, timesteps = given["latents"], given["timesteps"].long()
    conditioning = backbone.text.encode([PROMPTS[0]] * len(latents))
    output = backbone.predict(latents, timesteps, conditioning)
    assert relative_error(output, reference["unet"]) < BAR
    x0 = backbone.schedule.x0_from_output(output, latents, timesteps)
    assert relative_error(x0, reference["x0"]) < BAR


@pytest.mark.parametrize("kind", SPECS)
@torch.no_grad()
def test_every_kind_of_adapter_answers_the_same_from_the_stock_loader(
    kind: str,
    backbone: Backbone,
    given: dict[str, Tensor],
    adapters: dict[str, dict[str, Tensor]],
    reference: dict[str, Tensor],
) -> None:
    latents, timesteps = given["latents"], given["timesteps"].long()
    adapter = frozen_adapter(SPECS[kind], backbone, adapters[kind])
    with adapter.attached(backbone):
        conditioning = backbone.text.encode([PROMPTS[0]] * len(latents))
        output = backbone.predict(latents, timesteps, conditioning)
    assert relative_error(conditioning.context[:1], reference[f"context.{kind}"]) < BAR
    assert relative_error(output, reference[f"unet.{kind}"]) < BAR
    assert relative_error(reference["unet"], reference[f"unet.{kind}"]) > 100 * BAR


@torch.no_grad()
def test_a_spectral_adapter_answers_as_a_lora_too(
    backbone: Backbone,
    given: dict[str, Tensor],
    adapters: dict[str, dict[str, Tensor]],
    reference: dict[str, Tensor],
) -> None:
    """Of full rank it lacks the norms' shifts alone."""
    weights = {
        key: value if key.endswith(".shift") else torch.zeros_like(value)
        for key, value in adapters["spectral"].items()
    }
    latents, timesteps = given["latents"], given["timesteps"].long()
    conditioning = backbone.text.encode([PROMPTS[0]] * len(latents))
    with frozen_adapter(SPECS["spectral"], backbone, weights).attached(backbone):
        output = backbone.predict(latents, timesteps, conditioning)
    assert relative_error(output, reference["unet.spectral_lora"]) < BAR


def test_vae_is_equal(
    backbone: Backbone, given: dict[str, Tensor], reference: dict[str, Tensor]
) -> None:
    images = backbone.codec.decode(given["latents"]).movedim(1, -1)
    assert relative_error(images, reference["images"]) < BAR
    latents = backbone.codec.encode(given["images"].movedim(-1, 1))
    assert relative_error(latents, reference["encoded"]) < BAR
