"""Training the world CLIP: pictures with captions, and two pictures of one character."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional as F

from ...seeding import generator
from ..clip import new_clip, normalised, read_words
from ..shipped import WEIGHTS, write_weights
from .clip_data import VARIANTS, ClipData
from .clip_words import Level, falsified, levels, shortened
from .dataset import Scenes
from .small_pictures import vae_key
from .stage import Stage, run_stage

BATCH = 160
TWINS = 48  # of these, characters that are also shown a second time; all of one noun
TWIN_WEIGHT = 0.5
SHORT_WEIGHT = 0.5  # for each level of short captions
EVEN_WEIGHT = 200.0  # for each level; a cosine that scatters by 0.05 then costs 0.5
UNINTRODUCED = 0.3  # share of steps with short captions such as "a dog" without "a photo of"
GROUPS = 5  # of captions of like length, read together
RATE = 2e-3
HARSHEST = 100.0  # largest factor on cosines, as in CLIP


def train_clip(
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
) -> CLIP:
    """Train (or load) on the pictures and captions of `scenes` and write the result to `weights`.

    With `vae`, the first `reconstructed` pictures are shown through it. Begins from nothing or from
    the weights of an earlier CLIP (then at half the rate, which keeps what it knows).

    Captions of every level of detail: full ones as the demo model gets them, each with a false one
    that pictures must not match, and every short one ("a dog", "a red dog", "a dog on grass"),
    known to be true or false of each picture. With full captions alone the model found the right
    one of 256 for .71 of held-out pictures and named .39 of single objects from "a photo of a dog";
    now .84 and .94 (.98 of plain objects).
    """
    data = ClipData(folder, scenes, vae, reconstructed)
    model = new_clip(seed).to(device).train()
    short = [levels(""), levels()]

    def loss(step: int) -> Tensor:
        draw = generator(seed, "clip", step)
        index = data.batch(BATCH, TWINS, draw)
        images = torch.cat([data.images(index, draw), data.twins(index[:TWINS], draw)])
        variant = torch.randint(VARIANTS, (BATCH,), generator=draw)
        ids = shortened(data.ids[index, variant].long(), draw)
        ids = torch.cat([ids, falsified(ids[TWINS:], draw)])
        parts = short[int(torch.rand(1, generator=draw) > UNINTRODUCED)].values()
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            images = normalised(images).to(device, memory_format=torch.channels_last)
            seen = model.encode_image(images)
        seen = F.normalize(seen.float(), dim=-1)
        everything = torch.cat([ids, *(part.ids for part in parts)])
        read = read_words(model, everything.to(device), GROUPS)
        scale = model.logit_scale.exp().clamp(max=HARSHEST)
        logits = scale * seen @ read.T
        told, *fits = logits[:BATCH].split([len(ids), *(len(part.ids) for part in parts)], dim=1)
        total = caption_loss(told, ids.to(device))
        facts = data.facts[index].long()
        for part, fit in zip(parts, fits, strict=True):
            total = total + SHORT_WEIGHT * short_loss(fit, part, facts)
            total = total + EVEN_WEIGHT * unevenness(fit / scale, part, facts)
        same = torch.arange(TWINS, device=seen.device)
        return total + TWIN_WEIGHT * F.cross_entropy(scale * seen[BATCH:] @ seen[:TWINS].T, same)

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    rate = RATE / 2 if begin_from else RATE
    stage = Stage(
        f"clip-{vae_key(vae)}" if vae else "clip",
        folder,
        model,
        [torch.optim.AdamW(groups, rate, (0.9, 0.98))],
        loss,
        measure=data.measure(model, device),
        measures=8,
        begin_from=begin_from,
        ema=0.99,
        warmup=50,
    )
    run_stage(stage, seconds=seconds, steps=steps)
    write_weights("clip", model.state_dict(), weights)
    return model.to("cpu").eval()


def caption_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """CLIP's symmetric cross entropy; equal captions count as one another's positives.

    `logits` [B, B + F] pictures by texts, `ids` int [B + F, CONTEXT]: the F texts after the first
    B are false ones, which pictures must not match.
    """
    count = len(logits)
    same = (ids[:count, None] == ids[None]).all(-1).to(logits)
    true = same[:, :count]
    pictures = F.cross_entropy(logits, same / same.sum(1, keepdim=True))
    texts = F.cross_entropy(logits[:, :count].T, true / true.sum(1, keepdim=True))
    return (pictures + texts) / 2


def short_loss(logits: Tensor, level: Level, facts: Tensor) -> Tensor:
    """Cross entropy, both ways, with all true captions as positives and all false ones against.

    `logits` [B, K] pictures by captions of `level`, `facts` [B, 9]. What nobody can tell is left
    out, and so are pictures without a true caption and captions without a picture.
    """
    true, false = (part.to(logits.device) for part in level.truth(facts))
    return (_told(logits, true, false) + _told(logits.T, true.T, false.T)) / 2


def unevenness(cosines: Tensor, level: Level, facts: Tensor) -> Tensor:
    """Variance of a caption's cosine over the pictures that it is true of, mean over captions.

    `cosines` [B, K] pictures by captions of `level`, `facts` [B, 9]. A text score is read as it
    is, from picture to picture. Without this term, "a photo of a dog" is as true of a dressed
    dog as of a plain one, yet scores less, and learning such a dog looks like a loss.
    """
    true = level.truth(facts)[0].to(cosines)
    count = true.sum(0)
    mean = (cosines * true).sum(0) / count.clamp(min=1)
    variance = ((cosines - mean).square() * true).sum(0) / count.clamp(min=1)
    return variance.sum() / (count > 1).sum().clamp(min=1)


def _told(logits: Tensor, true: Tensor, false: Tensor) -> Tensor:
    rows = true.any(1) & false.any(1)
    logits = logits.masked_fill(~(true | false), -1e4)[rows]
    target = true[rows].to(logits)
    total = F.cross_entropy(logits, target / target.sum(1, keepdim=True), reduction="sum")
    return total / rows.sum().clamp(min=1)
