"""Runs inside ComfyUI's own process: states with spectral adapters on MODEL, and their export."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from inside import (
    WORK,
    backbone,
    foreign_lora,
    inputs,
    loaded,
    output,
    pack,
    refused,
    some_state,
    torch,
)

folder_paths = importlib.import_module("folder_paths")


def keep_in(name: str) -> Any:
    """Let the pack's nodes keep decompositions in a folder of this test's; gives their module."""
    spectra = pack("nodes.spectra")
    spectra.workspace = lambda: WORK / name
    return spectra


def spectral_state(model: Any) -> Any:
    """Random shifts of all layers, for the base model of MODEL."""
    adapters = pack("lifelong_core.adapters")
    layers = pack("lifelong_core.adapters.layers").spectral_layers
    sizes = pack("lifelong_core.adapters.spectral").shift_sizes
    empty = pack("lifelong_core.backbone.modules").empty_unet
    family = pack("lifelong_core.backbone").family_named("demo")
    generator = torch.Generator().manual_seed(3)
    adapter = {
        f"{key}.{part}": torch.randn(size, generator=generator) * 0.1
        for key, layer in layers(empty(family)).items()
        for part, size in sizes(layer).items()
    }
    state = some_state(pack("nodes.bridge").base_model(model).fingerprint)
    records = [replace(record, adapter=adapter) for record in state.records]
    spec = adapters.AdapterSpec("spectral")
    return replace(state, adapter_spec=spec, adapter=adapter, records=records)


def check_a_spectral_state_draws_as_it_did_in_training() -> None:
    spectra, patching = keep_in("draws"), pack("nodes.patching")
    model, clip, vae = loaded()
    plain, state = output(model), spectral_state(model)
    taught, reader = patching.apply_state(model, clip, state)
    found = output(taught)
    decompose, spectra.decompose = spectra.decompose, None  # The first time was kept.
    styled, _ = patching.apply_state(foreign_lora(model), clip, state)
    spectra.decompose = decompose
    assert float((output(styled) - found).norm() / found.norm()) > 1e-3
    assert torch.equal(output(patching.remove_state(taught)), plain)
    assert patching.applied_tokens(reader) == ("my_dog",)
    frozen_adapter = pack("lifelong_core.adapters.frozen").frozen_adapter
    conditioning = pack("lifelong_core.backbone").Conditioning
    latents, timesteps, context = inputs()
    with backbone(model, clip, vae) as copy, torch.no_grad():
        pack("lifelong_core.adapters.spectrum").keep_spectrum(
            copy, state.adapter_spec, WORK / "draws"
        )
        with frozen_adapter(state.adapter_spec, copy, state.adapter).attached(copy):
            expected = copy.predict(latents, timesteps, conditioning(context))
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    assert float((plain - expected).norm() / expected.norm()) > 1e-2


def check_it_is_exported_where_the_base_model_was_decomposed() -> None:
    keep_in("spectral_exports")
    model, clip, _ = loaded()
    state = spectral_state(model)
    for kind in ("loras", "embeddings"):
        folder = WORK / "spectral_exports" / kind
        folder.mkdir(parents=True)
        folder_paths.folder_names_and_paths[kind] = ([str(folder)], {".safetensors"})
    export = pack("nodes.export_lora").ExportLifelongLora.execute
    refused("StateError", "Apply Lifelong State", lambda: export(state, "shared"))
    taught, _ = pack("nodes.patching").apply_state(model, clip, state)
    name = export(state, "shared").args[0]
    lora = pack("lifelong_core.files").load_tensors(WORK / "spectral_exports" / "loras" / name)[0]
    loader = importlib.import_module("comfy.sd").load_lora_for_models
    stock, _ = loader(model, clip, lora, 1.0, 1.0)
    assert torch.equal(output(stock), output(taught))
