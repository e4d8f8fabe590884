"""Training the demo model: UNet and text encoder together, from nothing, predicting v."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbone import Backbone, NoiseSchedule, load_backbone, random_backbone
from ...files import content_hash
from ...prompts.clip import BOS, CONTEXT_LENGTH, EOS
from ...prompts.tokenizer import tokenizer
from ...seeding import generator
from ..captions import caption_of
from ..dice import Dice
from .arrays import cached
from .dataset import HELD_OUT, Scenes
from .looks import cell_weights, odds
from .parallel import share
from .stage import Stage, run_stage

BATCH = 32
RATE = 1e-3
EMPTY = 0.1  # share of empty captions, for classifier-free guidance
VARIANTS = 4  # captions per scene, each telling other parts
PROBES = (300, 500, 700, 850)  # timesteps at which captions are put to the test
PROBED = 128


class DemoNet(nn.Module):
    """UNet and text encoder with a table of only those tokens that captions use.

    The other rows of the 49,408 keep their random start, so optimiser and gradient skip them.
    """

    used: Tensor

    def __init__(self, backbone: Backbone, used: Tensor) -> None:
        super().__init__()
        self.unet = backbone.unet.requires_grad_(True).train()
        self.text = backbone.text.modules["clip_l"].requires_grad_(True).train()
        self.text.token_table.requires_grad_(False)
        self.register_buffer("used", used)
        self.rows = nn.Parameter(self.text.token_table[used].clone())

    def forward(self, latents: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """v for noised latents [B, 4, 16, 16], timesteps [B] and rows of the table [B, 77]."""
        context, _ = self.text(F.embedding(words, self.rows))
        return self.unet(latents, t, context, return_dict=False)[0]

    def finish(self) -> None:
        """Write the trained rows into the full table and freeze everything."""
        with torch.no_grad():
            self.text.token_table[self.used] = self.rows
        self.requires_grad_(False).eval()


def caption_ids(scenes: Scenes) -> Tensor:
    """Token ids int32 [scenes + HELD_OUT, VARIANTS, 77] of every caption; made once, kept."""
    path = scenes.folder / f"captions-{scenes.seed}-{scenes.count}-{VARIANTS}.npy"
    ids = cached(
        path,
        lambda: np.array(
            [_ids(scenes, index) for index in range(len(scenes) + HELD_OUT)], dtype=np.int32
        ),
    )
    return torch.from_numpy(np.array(ids))


def _ids(scenes: Scenes, index: int) -> list[list[int]]:
    scene = scenes.scene(index)
    dice = [Dice(scenes.seed, "caption", variant, index) for variant in range(VARIANTS)]
    return [_padded(caption_of(scene, one)) for one in dice]


def _padded(caption: str) -> list[int]:
    ids = [BOS, *tokenizer().encode(caption)[: CONTEXT_LENGTH - 2]]
    return ids + [EOS] * (CONTEXT_LENGTH - len(ids))


def train_unet(
    folder: Path,
    latents: Tensor,
    ids: Tensor,
    shares: Tensor,
    *,
    seed: int,
    seconds: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    batch: int = BATCH,
    begin_from: Path | None = None,
) -> Backbone:
    """Train (or load) on `latents` [N + HELD_OUT, 4, 16, 16], `ids` [N + HELD_OUT, V, 77] and
    the `shares` [N + HELD_OUT, 16, 16] of their cells that show looks (`look_shares`).

    Begins from nothing or from the UNet and text encoder of the checkpoint `begin_from`. Returns
    a demo backbone whose VAE is not the one that made the latents.
    """
    backbone = load_backbone(begin_from) if begin_from else random_backbone("demo", seed=seed)
    used, flat = ids.reshape(-1).unique(return_inverse=True)
    words = flat.view(ids.shape)
    empty = torch.searchsorted(used, torch.tensor(_padded("")).to(used))
    net = DemoNet(backbone, used.long()).to(device)
    if device == "cpu":  # the fused kernel's backward pass takes a third of a step on a CPU
        net.unet.set_attn_processor(AttnProcessor())
    schedule = backbone.schedule
    count = len(latents) - HELD_OUT
    chances = odds(shares[:count])

    def loss(step: int) -> Tensor:
        draw = generator(seed, "unet", step)
        index = torch.multinomial(chances, batch, replacement=True, generator=draw)
        variant = torch.randint(ids.shape[1], (batch,), generator=draw)
        chosen = words[index, variant]
        chosen[torch.rand(batch, generator=draw) < EMPTY] = empty
        t = torch.randint(1000, (batch,), generator=draw)
        noise = torch.randn(batch, *latents.shape[1:], generator=draw)
        whole = (latents[index].float(), noise, t, chosen, cell_weights(shares[index]))
        clean, noise, t, chosen, weights = (share(x) for x in whole)
        error = _error(net, schedule, clean, noise, t, chosen, device)
        error = (error * weights.to(error)).mean((1, 2))
        return (schedule.min_snr_weight(t).to(error) * error).mean()

    stage = Stage(
        f"unet-{content_hash(latents)[:12]}",  # another VAE needs another UNet
        folder,
        net,
        [torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], RATE, (0.9, 0.99))],
        loss,
        measure=_caption_test(
            net, schedule, latents[count:], words[count:, 0], shares[count:], seed, device
        ),
        ema=0.998,
    )
    run_stage(stage, seconds=seconds, steps=steps)
    net.to("cpu").finish()
    net.unet.set_default_attn_processor()
    return backbone


def _error(
    net: DemoNet,
    schedule: NoiseSchedule,
    clean: Tensor,
    noise: Tensor,
    t: Tensor,
    words: Tensor,
    device: str,
) -> Tensor:
    """Squared error in v, mean over channels, [B, 16, 16]."""
    noised, target = schedule.add_noise(clean, noise, t), schedule.target(clean, noise, t)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        output = net(noised.to(device), t.to(device), words.to(device))
    return (output.float() - target.to(device)).square().mean(1)


def _caption_test(
    net: DemoNet,
    schedule: NoiseSchedule,
    latents: Tensor,
    words: Tensor,
    shares: Tensor,
    seed: int,
    device: str,
) -> Callable[[], dict[str, float]]:
    """Held-out error with shuffled captions over that with the right ones, per probed timestep,
    and the error with the right ones where looks show.

    1.0 means that captions change nothing; it tells within minutes whether text reaches the
    picture.
    """
    clean, right, shares = latents[:PROBED].float(), words[:PROBED], shares[:PROBED]
    noise = torch.randn(clean.shape, generator=generator(seed, "probe"))

    @torch.no_grad()
    def measure() -> dict[str, float]:
        report = {}
        for step in PROBES:
            t = torch.full((len(clean),), step)
            error, shuffled = (
                _error(net, schedule, clean, noise, t, chosen, device).cpu()
                for chosen in (right, right.roll(1, 0))
            )
            report[f"error_{step}"] = error.mean().item()
            report[f"looks_error_{step}"] = ((error * shares).sum() / shares.sum()).item()
            report[f"shuffled_over_right_{step}"] = (shuffled.mean() / error.mean()).item()
        return report

    return measure
