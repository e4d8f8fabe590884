"""All stages of pretraining in order: render, vae, judge, clip, latents, unet, export."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from diffusers import AutoencoderTiny
from torch import Tensor

from ...backbone import Backbone
from .clip import train_clip
from .dataset import HELD_OUT, Scenes
from .export import demo_vae, export_demo
from .judge import train_judge
from .latents import encode_scenes
from .looks import look_shares
from .parallel import first_alone, process_group
from .unet import caption_ids, train_unet
from .vae import narrowed_vae, train_decoder, train_vae

log = logging.getLogger(__name__)

DEMO_FILE = "demo.safetensors"
STAGES = ("render", "vae", "judge", "clip", "latents", "unet", "export")
VAE_SCENES, VAE_SEED = 12000, 1


@dataclass(frozen=True)
class PretrainSettings:
    """`hours` is the budget of all training stages together (a stage that has begun keeps the
    plan it made then); `scenes` how many pictures the UNet sees; `begin_from` a demo checkpoint
    whose UNet, text encoder and VAE decoder go on learning, instead of beginning from nothing (its
    VAE encoder stays, since the UNet knows its latents); the judge and the CLIP that lie beside it
    do the same."""

    folder: Path
    weights: Path
    hours: float = 3.0
    scenes: int = 24000
    batch: int = 32
    begin_from: Path | None = None
    workers: int = 2
    device: str = "cpu"
    seed: int = 7
    until: str = "export"


# Shares of the time budget. What begins from a checkpoint trains its decoder in place of both VAEs.
_BUDGET = {"vae": 0.08, "vae_grown": 0.17, "judge": 0.06, "clip": 0.09, "unet": 0.60}
_DECODER_BUDGET = _BUDGET["vae"] + _BUDGET["vae_grown"]
_TOGETHER = ("vae", "unet")  # trained by all processes; what else there is, by the first alone


def pretrain(settings: PretrainSettings, on_stage: Callable[[str], None] | None = None) -> None:
    """Run every stage up to `settings.until`; finished stages only load their results."""
    run = _Run(settings, on_stage or (lambda name: log.info("stage %s", name)))
    with process_group():
        for name in STAGES[: STAGES.index(settings.until) + 1]:
            with nullcontext() if name in _TOGETHER else first_alone():
                run.enter(name)


class _Run:
    """Holds what one stage hands to the next."""

    def __init__(self, settings: PretrainSettings, on_stage: Callable[[str], None]) -> None:
        self.settings = settings
        self.on_stage = on_stage
        folder, seed = settings.folder, settings.seed
        self.wild = Scenes(folder, VAE_SCENES, VAE_SEED, wild=True)
        self.named = Scenes(folder, settings.scenes, seed, wild=False)

    def enter(self, name: str) -> None:
        self.on_stage(name)
        getattr(self, name)()

    def seconds(self, name: str) -> float:
        return _BUDGET[name] * self.settings.hours * 3600

    def earlier(self, name: str) -> Path | None:
        """The weights of model `name` beside the checkpoint to begin from, if there are any."""
        begin = self.settings.begin_from
        path = begin.with_name(f"{name}.safetensors") if begin else None
        return path if path and path.exists() else None

    def render(self) -> None:
        for scenes in (self.wild, self.named):
            scenes.pictures(self.settings.workers)

    def vae(self) -> None:
        pictures = self.wild.pictures()
        shown, held_out = pictures[:-HELD_OUT], pictures[-HELD_OUT:][:128]
        begin = self.settings.begin_from
        self.autoencoder: AutoencoderTiny = (
            self._further_decoder(begin, shown, held_out) if begin else self._vae(shown, held_out)
        )

    def _vae(self, shown: np.ndarray, held_out: np.ndarray) -> AutoencoderTiny:
        s = self.settings
        train = partial(train_vae, s.folder, shown, held_out, seed=VAE_SEED, device=s.device)
        narrow = train(seconds=self.seconds("vae"))
        return train(seconds=self.seconds("vae_grown"), narrow=narrow)

    def _further_decoder(
        self, begin: Path, shown: np.ndarray, held_out: np.ndarray
    ) -> AutoencoderTiny:
        s = self.settings
        return train_decoder(
            s.folder,
            narrowed_vae(demo_vae(begin)),
            (shown, self.named.pictures()[:-HELD_OUT]),
            held_out,
            seed=s.seed,
            seconds=_DECODER_BUDGET * s.hours * 3600,
            device=s.device,
        )

    def judge(self) -> None:
        s = self.settings
        train_judge(
            s.folder,
            self.named,
            self.autoencoder,
            seed=s.seed,
            seconds=self.seconds("judge"),
            device=s.device,
            weights=s.weights,
            begin_from=self.earlier("judge"),
        )

    def clip(self) -> None:
        s = self.settings
        train_clip(
            s.folder,
            self.named,
            self.autoencoder,
            seed=s.seed,
            seconds=self.seconds("clip"),
            device=s.device,
            weights=s.weights,
            begin_from=self.earlier("clip"),
        )

    def latents(self) -> None:
        s = self.settings
        self.encoded: Tensor = encode_scenes(
            s.folder, self.autoencoder, self.named.pictures(), s.device
        )

    def unet(self) -> None:
        s = self.settings
        self.backbone: Backbone = train_unet(
            s.folder,
            self.encoded,
            caption_ids(self.named),
            look_shares(self.named, s.workers),
            seed=s.seed,
            seconds=self.seconds("unet"),
            device=s.device,
            batch=s.batch,
            begin_from=s.begin_from,
        )

    def export(self) -> None:
        export_demo(self.backbone, self.autoencoder.cpu(), self.settings.weights / DEMO_FILE)
