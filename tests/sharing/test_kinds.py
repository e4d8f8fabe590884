"""Every kind of adapter leaves the house as a LoRA that changes the same by the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec
from lifelong_core.adapters.frozen import frozen_adapter
from lifelong_core.backbone import Backbone, Conditioning, random_backbone
from lifelong_core.files import load_tensors
from lifelong_core.seeding import generator
from lifelong_core.sharing import ExportInfo, export_lora, import_lora, lora_state_dict
from lifelong_core.sharing.naming import kohya_name

VERA = AdapterSpec("vera", rank=8, targets=("attn1.to_q", "attn2.to_v"), text_encoder=True)
FULL = AdapterSpec("key_value")
KINDS = pytest.mark.parametrize("spec", [VERA, FULL], ids=["vera", "key_value"])
INFO = ExportInfo("v_prediction")


def predict(backbone: Backbone, spec: AdapterSpec, weights: dict[str, Tensor]) -> Tensor:
    draw = generator(5, "inputs")
    latents = torch.randn(1, 4, 16, 16, generator=draw)
    context = torch.randn(1, 77, 128, generator=draw)
    with torch.no_grad(), frozen_adapter(spec, backbone, weights).attached(backbone):
        return backbone.predict(latents, torch.tensor([300]), Conditioning(context))


@KINDS
def test_every_layer_is_in_the_lora_with_its_change(make_state, changes, spec: AdapterSpec) -> None:
    state = make_state(spec=spec)
    tensors, expected = lora_state_dict(state), changes(state)
    assert len(tensors) == 3 * len(expected)
    for layer, change in expected.items():
        name = kohya_name(layer, "demo")
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        found = tensors[f"{name}.alpha"].item() / len(down) * (up @ down)
        torch.testing.assert_close(found, change, rtol=1e-4, atol=1e-5)


@KINDS
def test_exported_and_imported_it_draws_the_same(
    make_state, tmp_path: Path, spec: AdapterSpec
) -> None:
    state, backbone = make_state(spec=spec), random_backbone("demo")
    path = export_lora(state, tmp_path, tmp_path / "e", "x", info=INFO).lora
    imported = import_lora(path)
    assert imported.spec.kind == "lora"
    assert imported.spec.targets == spec.targets
    assert [concept.token for concept in imported.concepts] == list(state.vectors)
    before = predict(backbone, spec, state.adapter)
    after = predict(backbone, imported.spec, imported.adapter)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    zeros = {key: torch.zeros_like(value) for key, value in state.adapter.items()}
    assert not torch.allclose(predict(backbone, spec, zeros), before, atol=0.05)


@pytest.mark.parametrize(
    ("spec", "rank", "alpha"), [(VERA, "8", "8"), (FULL, "128", "128")], ids=["vera", "key_value"]
)
def test_all_layers_have_the_rank_and_alpha_that_the_metadata_tell(
    make_state, tmp_path: Path, spec: AdapterSpec, rank: str, alpha: str
) -> None:
    path = export_lora(make_state(spec=spec), tmp_path, tmp_path / "e", "x", info=INFO).lora
    tensors, metadata = load_tensors(path)
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == (rank, alpha)
    downs = [value for key, value in tensors.items() if key.endswith(".lora_down.weight")]
    alphas = [value.item() for key, value in tensors.items() if key.endswith(".alpha")]
    # Where layers differ, some releases of diffusers take one layer's for another's.
    assert {str(len(down)) for down in downs} == {rank}
    assert {f"{value:g}" for value in alphas} == {alpha}
