"""Attention of the UNet by precision: which of torch's ways is taken, and that all agree."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch.nn import functional as F

from lifelong_core.backbone import random_backbone
from lifelong_core.backbone.cpu_attention import TrainableAttnProcessor, attend_by_precision


def make_layer() -> Attention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Attention(query_dim=16, cross_attention_dim=8, heads=2, dim_head=8)


def test_only_training_in_mixed_precision_on_the_cpu_leaves_the_fused_attention(
    monkeypatch,
) -> None:
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    layer, draw = make_layer(), torch.Generator().manual_seed(0)
    hidden, context = torch.randn(2, 5, 16, generator=draw), torch.randn(2, 7, 8, generator=draw)
    layer.set_processor(AttnProcessor2_0())
    expected = layer(hidden, context)
    attend_by_precision(layer)
    assert isinstance(layer.processor, TrainableAttnProcessor)
    assert torch.equal(layer(hidden, context), expected)
    assert len(calls) == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(hidden, context)
    assert len(calls) == 2 and mixed.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(layer(hidden, context), mixed, atol=0.02, rtol=0.02)
    assert len(calls) == 3
    torch.testing.assert_close(mixed.float(), expected, atol=0.02, rtol=0.02)


def test_attention_that_was_chosen_stays() -> None:
    layer = make_layer()
    layer.set_processor(AttnProcessor())
    attend_by_precision(layer)
    assert type(layer.processor) is AttnProcessor


def test_a_base_model_attends_so_in_every_layer() -> None:
    unet = random_backbone("demo").unet
    found = {type(m.processor) for m in unet.modules() if isinstance(m, Attention)}
    assert found == {TrainableAttnProcessor}
