"""The frozen base model: UNet, text encoders, VAE and noise schedule as one object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..files import content_hash
from ..prompts import Conditioning, TextStack
from .codec import LatentCodec, VaeCodec
from .context_layers import take_own_context
from .families import DOWNSCALE, Family
from .identity import fingerprint, weights_hash
from .schedule import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class Backbone:
    """A base model. All weights are frozen and in eval mode; nothing here ever writes to them.

    `fingerprint` tells base models apart, whatever their precision; states are tied to it. It is
    taken once, when the object is made. `owners` are those of the prompts of the pass that is under
    way (`Conditioning.owners`).
    """

    def __init__(
        self,
        family: Family,
        unet: UNet2DConditionModel,
        text: TextStack,
        codec: LatentCodec,
        schedule: NoiseSchedule,
    ) -> None:
        # Late: it takes seconds, and ComfyUI loads this file whenever it starts.
        from .trainable_attention import attend_trainably

        self.family = family.for_prediction(schedule.prediction_type)
        self.unet = unet.requires_grad_(False).eval()
        take_own_context(self.unet)
        attend_trainably(self.unet)
        self.text = text
        self.codec = codec
        self.schedule = schedule
        self.owners: Tensor | None = None
        self.fingerprint = fingerprint(family.name, schedule.prediction_type, unet)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def content_hash(self) -> str:
        """Equal only for the same weights of UNet, text encoders and VAE in the same precision:
        what else comes out of them may be found again under it."""
        parts = [self.unet.state_dict(), *(m.state_dict() for m in self.text.modules.values())]
        hashes = [weights_hash(part) for part in parts]
        return content_hash(self.fingerprint, str(self.dtype), hashes, self.codec.content_hash)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Backbone:
        """Move in place and return self. `dtype` is the UNet's; the text encoders keep fp32 or,
        beside a half-precision UNet, fp16; the VAE stays as it is.

        A codec that is not ours (ComfyUI's VAE) looks after its own device.
        """
        # diffusers warns about every cast, also about one to dtype None.
        self.unet.to(**({"dtype": dtype} if dtype is not None else {}), device=device)
        self.text.to(device=device, dtype=dtype)
        if device is not None:
            if isinstance(self.codec, VaeCodec):
                self.codec.to(device)
            self.schedule = self.schedule.to(device)
        return self

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Trade time for memory in the UNet's backward pass. Results are the same.

        Train mode, which older diffusers ask for, changes nothing else: the UNet has no dropout.
        """
        if enabled:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()
        self.unet.train(enabled)

    @contextmanager
    def checkpointed(self, enabled: bool) -> Iterator[None]:
        """Gradient checkpointing, if `enabled`, for as long as a block lasts."""
        self.gradient_checkpointing(enabled)
        try:
            yield
        finally:
            self.gradient_checkpointing(False)

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """The model's own output (noise or v) [B, 4, h, w] for noised latents [B, 4, h, w].

        `timesteps` [B] integers in [0, 999]. `size` (height, width in pixels) is what SDXL is
        told about the picture; left out, it follows from the latents. Runs in the UNet's dtype;
        raises InputError when the conditioning does not fit the family.
        """
        self._check(latents, conditioning)
        inputs = conditioning.to(self.device, self.dtype)
        extra: dict[str, Tensor] | None = None
        if inputs.pooled is not None:
            height, width = size or (latents.shape[2] * DOWNSCALE, latents.shape[3] * DOWNSCALE)
            ids = [height, width, 0, 0, height, width]
            time_ids = torch.tensor([ids], device=self.device, dtype=torch.float32)
            extra = {
                "text_embeds": inputs.pooled,
                "time_ids": time_ids.expand(latents.shape[0], -1),
            }
        self.owners = inputs.owners
        try:
            return self.unet(
                latents.to(self.device, self.dtype),
                timesteps.to(self.device),
                inputs.context if inputs.layers is None else inputs.layers,
                added_cond_kwargs=extra,
                return_dict=False,
            )[0]
        finally:
            self.owners = None

    def _check(self, latents: Tensor, conditioning: Conditioning) -> None:
        width = self.family.unet["cross_attention_dim"]
        wants_pooled = any(config.pooled for config in self.family.text)
        if (
            conditioning.context.shape[2] != width
            or len(conditioning) != latents.shape[0]
            or (conditioning.pooled is not None) != wants_pooled
        ):
            pooled = "with" if wants_pooled else "without"
            raise InputError(
                f"The conditioning {tuple(conditioning.context.shape)} does not fit "
                f"{latents.shape[0]} latents of {self.family.label}, which needs "
                f"[{latents.shape[0]}, tokens, {width}] {pooled} a pooled part. "
                "Encode the prompts with this base model's own text encoders."
            )
