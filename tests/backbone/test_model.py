"""What the base model computes: predictions, SDXL's time ids, latents, checkpointing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lifelong_core.backbone import (
    FAMILIES,
    Backbone,
    Conditioning,
    NoiseSchedule,
    VaeCodec,
    fingerprint,
    random_backbone,
)
from lifelong_core.backbone.modules import empty_vae
from lifelong_core.backbone.randomized import randomize
from lifelong_core.errors import InputError
from lifelong_core.seeding import generator


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 16, 16, generator=generator(2, "latents"))


@torch.no_grad()
def test_random_weights_are_sane(demo: Backbone) -> None:
    conditioning = demo.text.encode(["a dog", "a cat"])
    output = demo.predict(latents(2), torch.tensor([10, 900]), conditioning)
    assert output.shape == (2, 4, 16, 16)
    assert 0.05 < output.std() < 5.0
    assert 0.1 < conditioning.context.std() < 5.0
    assert not torch.equal(output[0], output[1])


def test_random_weights_depend_on_the_seed_alone(demo: Backbone) -> None:
    again = random_backbone("demo", seed=1)
    other = random_backbone("demo", seed=2)
    name = "mid_block.attentions.0.proj_in.weight"
    weights = [b.unet.state_dict()[name] for b in (demo, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_prediction_depends_on_text_and_timestep(demo: Backbone) -> None:
    same = latents(1).expand(3, -1, -1, -1)
    conditioning = demo.text.encode(["a dog", "a cat", "a dog"])
    with torch.no_grad():
        output = demo.predict(same, torch.tensor([500, 500, 10]), conditioning)
    assert (output[0] - output[1]).norm() > 1e-4 * output[0].norm()
    assert (output[0] - output[2]).norm() > 1e-2 * output[0].norm()


def test_conditioning_of_another_family_is_refused(demo: Backbone) -> None:
    wide = Conditioning(torch.zeros(1, 77, 768))
    with pytest.raises(InputError, match=r"needs \[1, tokens, 128\] without a pooled part"):
        demo.predict(latents(1), torch.tensor([1]), wide)
    short = demo.text.encode(["a dog"])
    with pytest.raises(InputError, match="does not fit 2 latents"):
        demo.predict(latents(2), torch.tensor([1, 1]), short)


class Recorder(nn.Module):
    """Stands for SDXL's UNet and keeps what it is called with."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, sample: torch.Tensor, *args: object, **kwargs: object) -> tuple[torch.Tensor]:
        self.seen = (sample, args, kwargs)
        return (sample,)


@pytest.mark.parametrize(("size", "ids"), [(None, [128, 192]), ((512, 640), [512, 640])])
def test_sdxl_is_told_the_size(
    size: tuple[int, int] | None, ids: list[int], demo: Backbone
) -> None:
    recorder = Recorder()
    schedule = NoiseSchedule.scaled_linear()
    backbone = Backbone(FAMILIES["sdxl"], recorder, demo.text, demo.codec, schedule)
    conditioning = Conditioning(torch.zeros(2, 77, 2048), torch.ones(2, 1280))
    backbone.predict(torch.zeros(2, 4, 16, 24), torch.tensor([1, 2]), conditioning, size)
    added = recorder.seen[2]["added_cond_kwargs"]
    assert added["time_ids"].tolist() == [[*ids, 0, 0, *ids]] * 2
    assert torch.equal(added["text_embeds"], conditioning.pooled)
    with pytest.raises(InputError, match="with a pooled part"):
        backbone.predict(
            torch.zeros(2, 4, 8, 8), torch.tensor([1, 2]), Conditioning(conditioning.context)
        )


def test_checkpointing_changes_memory_not_gradients() -> None:
    backbone = random_backbone("demo")
    conditioning = backbone.text.encode(["a dog"] * 2)

    def run() -> tuple[torch.Tensor, int]:
        context = conditioning.context.clone().requires_grad_()
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = backbone.predict(latents(2), torch.tensor([5, 600]), Conditioning(context))
        output.square().mean().backward()
        return context.grad, saved

    plain, much = run()
    backbone.gradient_checkpointing(True)
    checkpointed, little = run()
    backbone.gradient_checkpointing(False)
    assert torch.allclose(plain, checkpointed, rtol=1e-5, atol=1e-9)
    assert little < much / 3
    assert not backbone.unet.training


def test_to_moves_everything_but_the_vaes_dtype() -> None:
    backbone = random_backbone("demo")
    same = backbone.to(dtype=torch.bfloat16)
    assert same is backbone
    assert backbone.dtype == torch.bfloat16
    assert backbone.text.modules["clip_l"].token_table.dtype == torch.float16
    assert next(backbone.codec.vae.parameters()).dtype == torch.float32
    with torch.no_grad():
        output = backbone.predict(latents(1), torch.tensor([7]), backbone.text.encode(["a dog"]))
    assert output.dtype == torch.bfloat16
    assert bool(output.isfinite().all())
    backbone.to(device="meta")
    assert backbone.device.type == "meta" == next(backbone.codec.vae.parameters()).device.type


@pytest.mark.parametrize("family", ["demo", "sd1"])
def test_codecs_use_model_scale_and_the_unit_range(family: str) -> None:
    chosen = FAMILIES[family]
    vae = empty_vae(chosen)
    randomize(vae, 0, "vae", torch.float32, "cpu")
    codec = VaeCodec(vae, chosen.latent_scale)
    images = torch.rand(2, 3, 32, 40, generator=generator(1, "images"))
    encoded = codec.encode(images)
    assert encoded.shape == (2, 4, 4, 5)
    assert torch.equal(encoded, codec.encode(images))
    raw = VaeCodec(vae, 1.0)
    assert torch.allclose(encoded, raw.encode(images) * chosen.latent_scale)
    assert torch.allclose(codec.decode(encoded), raw.decode(encoded / chosen.latent_scale))
    decoded = codec.decode(100 * encoded)
    assert decoded.shape == images.shape
    assert decoded.min() >= 0 and decoded.max() <= 1


def unet_of(backbone: Backbone) -> torch.nn.Module:
    return backbone.unet


def text_of(backbone: Backbone) -> torch.nn.Module:
    return backbone.text.modules["clip_l"]


def vae_of(backbone: Backbone) -> torch.nn.Module:
    return backbone.codec.vae


@pytest.mark.parametrize("part", [unet_of, text_of, vae_of])
def test_the_content_is_that_of_every_weight(
    part: Callable[[Backbone], torch.nn.Module],
) -> None:
    """A weak LoRA turns no sign, so states still fit; what was made with it must not be found."""
    plain, changed = random_backbone("demo"), random_backbone("demo")
    assert plain.content_hash == changed.content_hash
    with torch.no_grad():
        weight = max(part(changed).state_dict().values(), key=torch.Tensor.numel)
        weight.mul_(1.001)
    assert plain.content_hash != changed.content_hash
    assert plain.fingerprint == fingerprint("demo", "v_prediction", changed.unet)
    assert plain.content_hash != plain.to(dtype=torch.bfloat16).content_hash
