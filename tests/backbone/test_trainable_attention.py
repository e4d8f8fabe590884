"""Attention of the UNet where gradients flow: which of torch's ways is taken, and what it gives."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch.nn import functional as F

from lifelong_core.backbone import random_backbone
from lifelong_core.backbone.trainable_attention import TrainableAttnProcessor, attend_trainably


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
    attend_trainably(layer)
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
    attend_trainably(layer)
    assert type(layer.processor) is AttnProcessor


def test_a_base_model_attends_so_in_every_layer() -> None:
    unet = random_backbone("demo").unet
    found = {type(m.processor) for m in unet.modules() if isinstance(m, Attention)}
    assert found == {TrainableAttnProcessor}


class Elsewhere:
    """Stands for a tensor on a GPU."""

    device = torch.device("cuda")


def test_gradients_on_a_gpu_never_come_from_cudnn(monkeypatch) -> None:
    enabled = []
    flags = torch.backends.cuda
    monkeypatch.setattr(
        AttnProcessor2_0,
        "__call__",
        lambda *_: enabled.append((flags.cudnn_sdp_enabled(), flags.flash_sdp_enabled())),
    )
    before = (flags.cudnn_sdp_enabled(), flags.flash_sdp_enabled())
    attend = TrainableAttnProcessor()
    attend(make_layer(), Elsewhere())
    with torch.no_grad():
        attend(make_layer(), Elsewhere())
    assert enabled == [(False, True), before]
    assert (flags.cudnn_sdp_enabled(), flags.flash_sdp_enabled()) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("keys", [16, 64, 77])
def test_gradients_of_strongly_negative_logits_are_finite_on_a_gpu(keys: int) -> None:
    """cuDNN's are not, on an H100 with torch 2.11."""
    width = 32
    layer = Attention(query_dim=width, heads=1, dim_head=width).to("cuda", torch.bfloat16)
    layer.set_processor(TrainableAttnProcessor())
    draw = torch.Generator().manual_seed(0)
    hidden, context = (torch.randn(2, n, width, generator=draw) for n in (64, keys))
    hidden[..., 0], context[..., 0] = 1.0, -120.0 * width**0.5
    hidden = hidden.to("cuda", torch.bfloat16).requires_grad_()
    with torch.no_grad():
        for part in (layer.to_q, layer.to_k):
            part.weight.copy_(torch.eye(width) * (torch.arange(width) == 0))
    layer(hidden, context.to("cuda", torch.bfloat16)).float().square().sum().backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()
