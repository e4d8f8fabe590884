"""ComfyUI's own loaders find every layer and vector in our files, for every family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong_core.adapters.spec import AdapterSpec
from lifelong_core.backbone.families import FAMILIES
from lifelong_core.backbone.keys import unet_diffusers_to_ldm
from lifelong_core.backbone.modules import unet_shapes
from lifelong_core.concepts import Concept
from lifelong_core.files import load_tensors, write_json
from lifelong_core.seeding import generator
from lifelong_core.sharing import ExportInfo, export_lora
from lifelong_core.sharing.naming import layers
from lifelong_core.state import LifelongState, TaskRecord

SCRIPT = Path(__file__).with_name("lora_keys.py")
PACK = Path(__file__).parents[2]
ALL = tuple(f"attn{number}.to_{part}" for number in (1, 2) for part in ("q", "k", "v", "out.0"))
SPEC = AdapterSpec(rank=2, alpha=3.0, targets=ALL, text_encoder=True)


def state_of(family: str) -> LifelongState:
    adapter = {}
    for layer, (out, width) in layers(family).items():
        random = generator(0, layer)
        adapter[f"{layer}.down"] = torch.randn(SPEC.rank, width, generator=random)
        adapter[f"{layer}.up"] = torch.randn(out, SPEC.rank, generator=random)
    vectors = {
        config.key: torch.randn(2, config.width, generator=generator(0, config.key))
        for config in FAMILIES[family].text
    }
    record = TaskRecord(Concept("sks-1", "dog", vectors), "", {}, {}, {})
    return LifelongState(family, f"{family}-test", SPEC, adapter, (record,))


def comfy_key(layer: str, family: str) -> str:
    """The weight that a layer's change belongs to, in ComfyUI's names."""
    if layer.startswith("unet."):
        key = unet_diffusers_to_ldm(family)[f"{layer.removeprefix('unet.')}.weight"]
        return f"diffusion_model.{key}"
    _, encoder, path = layer.split(".", 2)
    return f"{encoder}.transformer.{path}.weight"


@pytest.fixture(scope="module")
def states() -> dict[str, LifelongState]:
    return {family: state_of(family) for family in FAMILIES}


@pytest.fixture(scope="module")
def loaded(
    states: dict[str, LifelongState], comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder with the files, and the report of ComfyUI's process about each."""
    work = tmp_path_factory.mktemp("lora")
    for family, state in states.items():
        for name, options in ((family, {}), (f"{family}_bundled", {"bundle": True})):
            files = export_lora(
                state, work, work / "embeddings" / family, name,
                info=ExportInfo("epsilon"), **options,
            )  # fmt: skip
            files.lora.rename(work / f"{name}.safetensors")
    shapes = {family: unet_shapes_in_original_names(family) for family in FAMILIES}
    write_json(work / "shapes.json", shapes)
    widths = {
        family: {config.key: config.width for config in FAMILIES[family].text}
        for family in FAMILIES
    }
    write_json(work / "widths.json", widths)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(comfyui_path), str(PACK), str(work)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=work,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return work, json.loads((work / "report.json").read_text(encoding="utf-8"))


def unet_shapes_in_original_names(family: str) -> dict[str, list[int]]:
    names = unet_diffusers_to_ldm(family)
    return {names[key]: list(shape) for key, shape in unet_shapes(family).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_loaded_onto_its_weight(
    loaded: tuple[Path, dict[str, Any]], family: str
) -> None:
    report = loaded[1][f"{family}.safetensors"]
    assert report["warnings"] == [], "ComfyUI does not know something in the file"
    expected = {comfy_key(layer, family) for layer in layers(family)}
    assert report["patched"].keys() == expected and len(expected) == len(layers(family))
    assert all(report["patched"].values()), "a change of another shape than its weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_only_bundled_tokens_are_passed_over(
    loaded: tuple[Path, dict[str, Any]], family: str
) -> None:
    report = loaded[1][f"{family}_bundled.safetensors"]
    assert report["patched"] == loaded[1][f"{family}.safetensors"]["patched"]
    parts = ("clip_g", "clip_l") if family == "sdxl" else ("string_to_param.*",)
    assert sorted(report["warnings"]) == [
        f"lora key not loaded: bundle_emb.sks-1.{part}" for part in parts
    ]


def test_weights_change_by_the_same(
    loaded: tuple[Path, dict[str, Any]], states: dict[str, LifelongState]
) -> None:
    added, _ = load_tensors(loaded[0] / "added.demo.safetensors")
    adapter = states["demo"].adapter
    for layer in layers("demo"):
        ours = SPEC.scale * (adapter[f"{layer}.up"] @ adapter[f"{layer}.down"])
        assert torch.allclose(added[comfy_key(layer, "demo")], ours, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_read_for_each_text_encoder(
    loaded: tuple[Path, dict[str, Any]], states: dict[str, LifelongState], family: str
) -> None:
    read, _ = load_tensors(loaded[0] / f"embeddings.{family}.safetensors")
    vectors = states[family].concepts[0].vectors
    assert read.keys() == vectors.keys()
    assert all(torch.equal(read[encoder], vectors[encoder]) for encoder in read)
