"""On a transformers model, and against PEFT with the same weights."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from lifelong_core.adapters import AdapterSpec, LoraAdapter
from lifelong_core.adapters.layers import Attachment

TARGETS = ("q_proj", "v_proj", "out_proj")


def text_model() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


def test_same_weights_give_what_peft_gives() -> None:
    model = text_model()
    layers = {
        name: module
        for name, module in model.named_modules()
        if name.endswith(TARGETS) and isinstance(module, nn.Linear)
    }
    assert len(layers) == 6
    adapter = LoraAdapter(AdapterSpec(rank=4, alpha=2.0), layers, seed=0)
    draw = torch.Generator().manual_seed(0)
    adapter.load({k: torch.randn(v.shape, generator=draw) for k, v in adapter.state().items()})
    ids = torch.randint(64, (3, 16), generator=draw)
    attachment = Attachment(layers, adapter.forwards(layers))
    ours = model(ids).last_hidden_state
    attachment.remove()
    plain = model(ids).last_hidden_state

    config = LoraConfig(r=4, lora_alpha=2.0, target_modules=list(TARGETS))
    wrapped = get_peft_model(model, config)
    state = adapter.state()
    for name, module in wrapped.base_model.model.named_modules():
        if name in layers:
            module.lora_A["default"].weight.data.copy_(state[f"{name}.down"])
            module.lora_B["default"].weight.data.copy_(state[f"{name}.up"])
    torch.testing.assert_close(wrapped(ids).last_hidden_state, ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, ours, atol=1e-2)
