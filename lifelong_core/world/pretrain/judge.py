"""Training the judge on rendered scenes, spoiled and reconstructed ones among them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from ...seeding import generator
from ..grading import FLAT_TONES, grade, summary
from ..judge import Judge
from ..judge_net import GLOBALS, JudgeNet, JudgeOutput, new_judge_net, regions
from ..shipped import WEIGHTS, write_weights
from .dataset import Scenes, to_images
from .judge_data import MOST, JudgeData, Targets
from .muon import Muon, split_parameters
from .small_pictures import vae_key
from .stage import Stage, run_stage

BATCH = 64
MUON_RATE = 0.01
RATE = 3e-3
ONWARD = 0.3  # share of both rates for an earlier judge: the full ones would first undo its work
SPREAD = 0.11  # width of the bump that marks an object's middle, as a share of its size
WHOLE_WEIGHT = 0.5


def train_judge(
    folder: Path,
    scenes: Scenes,
    vae: AutoencoderTiny | None,
    *,
    seed: int,
    seconds: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    weights: Path = WEIGHTS,
    reconstructed: int = 3000,
    begin_from: Path | None = None,
) -> JudgeNet:
    """Train (or load) on `scenes` and write the result to `weights`.

    With `vae`, a third of the pictures shown are among the first `reconstructed`, through it.
    Begins from nothing or from the weights of an earlier judge (then at ONWARD of the rates).

    Small parts decide the size at which pictures are read. A judge of 64 pixels read 97, 94 and
    75 % of the parts of single objects, of two and of three in held-out renders; after 1,500 more
    steps at 128 pixels it was 98, 96 and 80 % (two-coloured bodies likewise). What is still missed
    are ears, handles and roofs of the smallest objects, less than a cell wide; an eye names most.
    """
    data = JudgeData(folder, scenes, vae, reconstructed)
    net = new_judge_net(seed).to(device).train()
    matrices, rest = split_parameters(net)
    pace = ONWARD if begin_from else 1.0

    def loss(step: int) -> Tensor:
        images, targets = data.batch(BATCH, generator(seed, "judge", step))
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16):
            output = net(images)
        return judge_loss(output, targets.to(device))

    stage = Stage(
        f"judge-{vae_key(vae)}" if vae else "judge",
        folder,
        net,
        [
            Muon(matrices, MUON_RATE * pace),
            torch.optim.AdamW(rest, RATE * pace, (0.9, 0.99), weight_decay=0.0),
        ],
        loss,
        measure=_measure(net, data, scenes),
        measures=6,
        ema=0.99,
        begin_from=begin_from,
    )
    run_stage(stage, seconds=seconds, steps=steps)
    write_weights("judge", net.state_dict(), weights)
    return net.to("cpu").eval()


def judge_loss(output: JudgeOutput, targets: Targets) -> Tensor:
    """Middles, nouns per cell, each object's noun and look; background and style."""
    present = targets.present
    middle = targets.bumps(SPREAD).amax(1)
    loss = middle_loss(output.centre.float(), middle, present.sum())
    loss = loss + F.cross_entropy(output.nouns.float(), targets.cover)
    x, y, _ = targets.things[..., -3:].unbind(-1)
    cells = regions(targets.cover > 0, x, y, present)
    wanted = targets.things[present].long()
    for column, logits in enumerate(output.at(cells).values()):
        told = wanted[:, column]
        total = F.cross_entropy(logits[present], told, ignore_index=-1, reduction="sum")
        loss = loss + total / (told >= 0).sum().clamp(min=1)
    for column, name in enumerate(GLOBALS):
        whole = F.cross_entropy(output.whole[name].float(), targets.whole[:, column])
        loss = loss + WHOLE_WEIGHT * whole
    return loss


def middle_loss(logits: Tensor, middle: Tensor, objects: Tensor) -> Tensor:
    """Focal loss for object middles (Law and Deng 2018, eq. 1) on `middle` in [0, 1], [B, 16, 16].

    Cells near a middle count less as mistakes; divided by the number of objects.
    """
    positive = middle > 0.99
    hit = F.logsigmoid(logits) * (1 - logits.sigmoid()).square()
    miss = F.logsigmoid(-logits) * logits.sigmoid().square() * (1 - middle) ** 4
    return -torch.where(positive, hit, miss).sum() / objects.clamp(min=1)


def _measure(net: JudgeNet, data: JudgeData, scenes: Scenes) -> Callable[[], dict[str, float]]:
    """Accuracy on held-out renders, and on their reconstructions where there are any.

    Pictures of one tone are left out: nobody can tell the colours that they had.
    """
    shown = {"": data.pictures[data.count :], "rebuilt_": data.held_out_rebuilt}
    asked = [scenes.scene(index) for index in range(data.count, len(data.pictures))]

    def measure() -> dict[str, float]:
        judge = Judge(deepcopy(net).to("cpu"))
        report: dict[str, float] = {}
        for prefix, pixels in shown.items():
            if len(pixels):
                readings = judge.read(to_images(pixels))
                fair = [
                    (len(scene.things), grade(reading, scene))
                    for reading, scene in zip(readings, asked, strict=True)
                    if scene.style.tone in FLAT_TONES
                ]
                shares = summary([one for _, one in fair])
                report |= {prefix + name: value for name, value in shares.items()}
                for count in range(1, MOST + 1):
                    shares = summary([one for many, one in fair if many == count])
                    for name in shares.keys() & {"colours", "parts"}:
                        report[f"{prefix}{name}_of_{count}"] = shares[name]
        return report

    return measure
