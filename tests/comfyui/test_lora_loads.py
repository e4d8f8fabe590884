"""ComfyUI's own loaders find every layer and vector in our files, for every family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.adapters.frozen import frozen_adapter
from lifelong_core.adapters.layers import spectral_layers
from lifelong_core.adapters.spec import KEY_VALUE, TARGETS
from lifelong_core.adapters.spectrum import matrix_layers
from lifelong_core.backbone import random_backbone
from lifelong_core.backbone.families import FAMILIES
from lifelong_core.backbone.keys import unet_diffusers_to_ldm
from lifelong_core.backbone.modules import empty_unet, unet_shapes
from lifelong_core.concepts import Concept
from lifelong_core.files import load_tensors, save_tensors, write_json
from lifelong_core.seeding import generator
from lifelong_core.sharing import ExportInfo, export_lora
from lifelong_core.sharing.naming import layers
from lifelong_core.state import LifelongState, TaskRecord

SCRIPT = Path(__file__).with_name("lora_keys.py")
PACK = Path(__file__).parents[2]
SPECS = {
    "lora": AdapterSpec(rank=2, alpha=3.0, targets=TARGETS, text_encoder=True),
    "vera": AdapterSpec("vera", rank=2, targets=TARGETS, text_encoder=True),
    "key_value": AdapterSpec("key_value"),
}
PLACES = [(family, kind) for family in FAMILIES for kind in SPECS]


def layers_of(family: str, kind: str) -> list[str]:
    """The layers that a state of this test changes.

    All that its kind can; of whole matrices in large models the first and the last ones, because
    all of SDXL's fill gigabytes.
    """
    if kind != "key_value":
        return list(layers(family))
    found = [layer for layer in layers(family) if layer.endswith(KEY_VALUE)]
    return found if family == "demo" else [*found[:2], *found[-2:]]


def state_of(family: str, kind: str) -> LifelongState:
    spec, adapter = SPECS[kind], {}
    for layer in layers_of(family, kind):
        out, width = layers(family)[layer]
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "lora": {"down": (spec.rank, width), "up": (out, spec.rank)},
            "vera": {"d": (spec.rank,), "b": (out,)},
            "key_value": {"delta": (out, width)},
        }
        random = generator(0, layer)
        for part, shape in shapes[kind].items():
            adapter[f"{layer}.{part}"] = torch.randn(shape, generator=random)
    vectors = {
        config.key: torch.randn(2, config.width, generator=generator(0, config.key))
        for config in FAMILIES[family].text
    }
    record = TaskRecord(Concept("sks-1", "dog", vectors), "", {}, {}, {})
    return LifelongState(family, f"{family}-test", spec, adapter, (record,))


def comfy_key(layer: str, family: str) -> str:
    """The weight that a layer's change belongs to, in ComfyUI's names."""
    if layer.startswith("unet."):
        key = unet_diffusers_to_ldm(family)[f"{layer.removeprefix('unet.')}.weight"]
        return f"diffusion_model.{key}"
    _, encoder, path = layer.split(".", 2)
    return f"{encoder}.transformer.{path}.weight"


def whole_changes_of(family: str) -> dict[str, torch.Tensor]:
    """What a spectral adapter gives for a model of this family: a key for each of its weights.

    Empty for the largest weights, which would fill gigabytes: their names count here.
    """
    matrices = matrix_layers(empty_unet(FAMILIES[family]))
    tensors = {}
    for key, layer in spectral_layers(empty_unet(FAMILIES[family])).items():
        name = "lora_unet_" + key.removeprefix("unet.").replace(".", "_")
        small = layer.weight.numel() < 100_000
        if key in matrices:
            tensors[f"{name}.diff"] = torch.zeros(layer.weight.shape if small else ())
        else:
            tensors[f"{name}.w_norm"] = torch.zeros(layer.weight.shape)
            tensors[f"{name}.b_norm"] = torch.zeros(layer.bias.shape)
    return tensors


@pytest.fixture(scope="module")
def states() -> dict[tuple[str, str], LifelongState]:
    return {place: state_of(*place) for place in PLACES}


@pytest.fixture(scope="module")
def loaded(
    states: dict[tuple[str, str], LifelongState],
    comfyui_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """The folder with the files, and the report of ComfyUI's process about each."""
    work = tmp_path_factory.mktemp("lora")
    for (family, kind), state in states.items():
        for bundle in (False, True) if kind == "lora" else (False,):
            files = export_lora(
                state, work, work / "embeddings" / family, kind,
                info=ExportInfo("epsilon"), bundle=bundle,
            )  # fmt: skip
            files.lora.rename(work / f"{family}_{kind}{'_bundled' * bundle}.safetensors")
    for family in FAMILIES:
        save_tensors(work / f"{family}_whole.safetensors", whole_changes_of(family))
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


@pytest.mark.parametrize(("family", "kind"), PLACES)
def test_every_layer_is_loaded_onto_its_weight(
    loaded: tuple[Path, dict[str, Any]], family: str, kind: str
) -> None:
    report = loaded[1][f"{family}_{kind}.safetensors"]
    assert report["warnings"] == [], "ComfyUI does not know something in the file"
    changed = layers_of(family, kind)
    expected = {comfy_key(layer, family) for layer in changed}
    assert report["patched"].keys() == expected and len(expected) == len(changed) > 0
    assert all(report["patched"].values()), "a change of another shape than its weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_changes_reach_every_weight_of_the_unet(
    loaded: tuple[Path, dict[str, Any]], family: str
) -> None:
    report = loaded[1][f"{family}_whole.safetensors"]
    assert report["warnings"] == [], "ComfyUI does not know something in the file"
    biases = {
        key
        for key, shape in unet_shapes(family).items()
        if key.endswith(".bias") and "norm" not in key.rsplit(".", 2)[-2]
    }
    names = unet_diffusers_to_ldm(family)
    expected = {f"diffusion_model.{names[key]}" for key in set(unet_shapes(family)) - biases}
    assert report["patched"].keys() == expected
    fitting = [key for key, fits in report["patched"].items() if fits]
    given = [value for value in whole_changes_of(family).values() if value.dim()]
    assert len(fitting) == len(given), "what has a shape at all has its weight's"


@pytest.mark.parametrize("family", FAMILIES)
def test_only_bundled_tokens_are_passed_over(
    loaded: tuple[Path, dict[str, Any]], family: str
) -> None:
    report = loaded[1][f"{family}_lora_bundled.safetensors"]
    assert report["patched"] == loaded[1][f"{family}_lora.safetensors"]["patched"]
    parts = ("clip_g", "clip_l") if family == "sdxl" else ("string_to_param.*",)
    assert sorted(report["warnings"]) == [
        f"lora key not loaded: bundle_emb.sks-1.{part}" for part in parts
    ]


@pytest.mark.parametrize("kind", SPECS)
def test_weights_change_by_the_same(
    loaded: tuple[Path, dict[str, Any]],
    states: dict[tuple[str, str], LifelongState],
    kind: str,
) -> None:
    added, _ = load_tensors(loaded[0] / f"added.demo_{kind}.safetensors")
    adapter = frozen_adapter(SPECS[kind], random_backbone("demo"), states["demo", kind].adapter)
    deltas = adapter.deltas()
    assert len(deltas) == len(added)
    for layer, delta in deltas.items():
        assert float(delta.abs().max()) > 1e-2
        assert torch.allclose(added[comfy_key(layer, "demo")], delta, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_read_for_each_text_encoder(
    loaded: tuple[Path, dict[str, Any]],
    states: dict[tuple[str, str], LifelongState],
    family: str,
) -> None:
    read, _ = load_tensors(loaded[0] / f"embeddings.{family}.safetensors")
    vectors = states[family, "lora"].concepts[0].vectors
    assert read.keys() == vectors.keys()
    assert all(torch.equal(read[encoder], vectors[encoder]) for encoder in read)
