"""Shifts of singular values leave the house as whole changes or as the nearest LoRA."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec
from lifelong_core.adapters.frozen import frozen_adapter
from lifelong_core.adapters.layers import spectral_layers
from lifelong_core.adapters.spectral import shift_sizes
from lifelong_core.adapters.spectrum import Spectrum, spectrum_of
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import Concept
from lifelong_core.errors import FileError, InputError, StateError
from lifelong_core.files import load_tensors
from lifelong_core.seeding import generator
from lifelong_core.sharing import ExportInfo, export_lora, import_lora, lora_state_dict
from lifelong_core.sharing.naming import UNET
from lifelong_core.sharing.spectral import truncated_changes
from lifelong_core.state import LifelongState, TaskRecord

SPEC = AdapterSpec("spectral")
INFO = ExportInfo("v_prediction")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


@pytest.fixture(scope="module")
def spectrum(backbone: Backbone) -> Spectrum:
    return spectrum_of(backbone)


@pytest.fixture(scope="module")
def state(backbone: Backbone) -> LifelongState:
    """Some values are shifted below zero."""
    adapter = {
        f"{key}.{part}": torch.randn(size, generator=generator(0, key, part)) * 0.3
        for key, layer in spectral_layers(backbone.unet).items()
        for part, size in shift_sizes(layer).items()
    }
    concept = Concept("my_dog", "dog", {"clip_l": torch.zeros(1, 128)})
    record = TaskRecord(concept, "", adapter, {"steps": 5}, {})
    return LifelongState("demo", backbone.fingerprint, SPEC, adapter, (record,))


@pytest.fixture(scope="module")
def deltas(backbone: Backbone, state: LifelongState) -> dict[str, Tensor]:
    """File name of a layer -> its weight's change, as training had it."""
    adapter = frozen_adapter(SPEC, backbone, state.adapter)
    return {
        UNET + key.removeprefix("unet.").replace(".", "_"): delta.detach()
        for key, delta in adapter.deltas().items()
    }


def test_whole_changes_are_what_was_trained(
    state: LifelongState, spectrum: Spectrum, deltas: dict[str, Tensor]
) -> None:
    tensors = lora_state_dict(state, spectrum)
    offsets = {key for key in state.adapter if key.endswith(".offset")}
    assert len(tensors) == len(deltas) + len(offsets)
    for name, delta in deltas.items():
        found = tensors.get(f"{name}.diff", tensors.get(f"{name}.w_norm"))
        assert found is not None and found.shape == delta.shape
        torch.testing.assert_close(found, delta, rtol=1e-4, atol=1e-5)
    for key in offsets:
        name = UNET + key.removeprefix("unet.").removesuffix(".offset").replace(".", "_")
        assert torch.equal(tensors[f"{name}.b_norm"], state.adapter[key])


def test_a_lora_of_some_rank_is_the_nearest_one(
    state: LifelongState, spectrum: Spectrum, deltas: dict[str, Tensor]
) -> None:
    rank = 8
    tensors, energy = truncated_changes(state, spectrum, rank)
    kept = total = 0.0
    for name, delta in deltas.items():
        total += delta.square().sum().item()
        if f"{name}.alpha" not in tensors:
            assert delta.dim() == 1, "only norms are left out"
            continue
        down, up = (tensors[f"{name}.lora_{part}.weight"] for part in ("down", "up"))
        assert len(down) == rank, "the same for all: see lora_state_dict"
        assert down.shape[1:] == delta.shape[1:]
        assert up.shape == (len(delta), len(down), *[1] * (delta.dim() - 2))
        scale = tensors[f"{name}.alpha"].item() / len(down)
        change = scale * up.flatten(1) @ down.flatten(1)
        best = torch.linalg.svdvals(delta.flatten(1))
        missing = (change - delta.flatten(1)).norm().item()
        assert missing == pytest.approx(best[rank:].norm().item(), rel=1e-3, abs=1e-4)
        kept += best[:rank].square().sum().item()
    offsets = sum(v.square().sum().item() for k, v in state.adapter.items() if "offset" in k)
    assert energy == pytest.approx(kept / (total + offsets), rel=1e-4)
    assert {tensors[key].item() for key in tensors if key.endswith(".alpha")} == {rank}


def test_files_say_how_much_of_the_change_they_have(
    state: LifelongState, spectrum: Spectrum, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"info": INFO, "spectrum": spectrum}
    with caplog.at_level(logging.INFO):
        files = export_lora(state, tmp_path, tmp_path / "e", "x", rank=8, **given)
    small = files.lora
    metadata = load_tensors(small)[1]
    energy = truncated_changes(state, spectrum, 8).kept_energy
    assert files.kept == pytest.approx(energy, rel=1e-6)
    assert float(metadata["lifelong.kept_energy"]) == pytest.approx(energy, rel=1e-4)
    assert f"keeps {100 * energy:.1f} %" in caplog.text
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "8"
    assert import_lora(small).spec.rank == 8

    whole = export_lora(state, tmp_path, tmp_path / "e", "x", **given).lora
    metadata = load_tensors(whole)[1]
    assert metadata["lifelong.kept_energy"] == "1"
    assert metadata["ss_network_module"] == "lycoris.kohya"
    with pytest.raises(FileError, match="whole changes"):
        import_lora(whole)


def test_half_models_give_half_changes(state: LifelongState, spectrum: Spectrum) -> None:
    half = {
        key: parts._replace(left=parts.left.half(), right=parts.right.half())
        for key, parts in spectrum.items()
    }
    tensors, exact = lora_state_dict(state, half), lora_state_dict(state, spectrum)
    for name, value in tensors.items():
        assert value.dtype == (torch.float16 if name.endswith(".diff") else torch.float32)
        torch.testing.assert_close(value.float(), exact[name], rtol=1e-2, atol=2e-3)


def test_what_is_missing_or_does_not_fit_is_said(
    state: LifelongState, spectrum: Spectrum, tmp_path: Path, make_state
) -> None:
    with pytest.raises(StateError, match="decomposed weights are not here"):
        lora_state_dict(state)
    with pytest.raises(StateError, match="do not fit the adapter at unet.conv_in"):
        lora_state_dict(state, {})
    with pytest.raises(InputError, match="1 or more"):
        truncated_changes(state, spectrum, 0)
    with pytest.raises(InputError, match="only a spectral one"):
        export_lora(make_state(), tmp_path, tmp_path, "x", info=INFO, rank=4)
    assert not list(tmp_path.iterdir())
