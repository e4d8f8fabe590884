"""Our CLIP text encoder against the one of transformers, on the same random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from lifelong_core.backbone import FAMILIES
from lifelong_core.backbone.modules import empty_text
from lifelong_core.backbone.randomized import randomize
from lifelong_core.backbone.text_keys import with_text_model
from lifelong_core.prompts.clip import BOS, EOS


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_equal_to_transformers(activation: str) -> None:
    config = replace(
        FAMILIES["sdxl"].text[1],
        width=64,
        layers=3,
        output_layer=2,
        heads=4,
        intermediate=96,
        activation=activation,
    )
    ours = empty_text(config)
    randomize(ours, 3, "clip", torch.float32, "cpu")
    theirs = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            projection_dim=64,
            hidden_act=activation,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    ).eval()
    names = {with_text_model({key: 0}).popitem()[0]: key for key in theirs.state_dict()}
    state = {names[name]: value for name, value in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("position_ids") for key in missing)
    ids = torch.tensor([[BOS, 320, 1929, EOS, *[0] * 73], [BOS, 2368, EOS, *[0] * 74]])
    expected = theirs(input_ids=ids, output_hidden_states=True)
    hidden, pooled = ours(ours.embed(ids), torch.tensor([3, 2]))
    assert torch.allclose(hidden, expected.hidden_states[-2], atol=1e-5)
    assert torch.allclose(pooled, expected.text_embeds, atol=1e-5)
