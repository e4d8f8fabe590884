"""Starting from a picture in place of noise alone: image-to-image and inpainting."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .backbone import Backbone
from .backbone.families import DOWNSCALE
from .errors import InputError

LEAST_STRENGTH = 0.01


@dataclass(frozen=True)
class PictureStart:
    """A picture that `generate` starts from: image-to-image, or with a mask inpainting.

    pictures: [B, 3, H, W] in [0, 1], one per prompt, or [1, 3, H, W] for all prompts.
    strength: from 0.01 to 1, how much noise the picture gets before sampling goes on from there
        (SDEdit, Meng et al. 2022). Counted as KSampler counts `denoise`: the steps are the last
        ones of a schedule of int(steps / strength) steps, so that less strength is less noise in
        as many steps. At 1 nothing of the picture is left: sampling starts from the noise that it
        would start from without one.
    mask: [H, W], or [B, H, W] and [1, H, W] as the pictures, in [0, 1]: 1 where the picture is
        drawn anew. A latent's m is the mean over its 8 x 8 pixels, and after every step
        z_t <- m z_t + (1 - m) (picture's latents at the noise level t), the noise being that of
        the start (Blended Latent Diffusion, Avrahami et al. 2023). Where m is 0 the result's
        latents are the picture's own, to the bit; pixels beside the mask may still change, for
        the decoder looks at neighbouring latents.

    Raises InputError when one of them cannot be used.
    """

    pictures: Tensor
    strength: float
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.pictures.shape)
        if len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise InputError(f"Pictures to start from must be [B, 3, H, W]; they are {shape}.")
        _check_unit(self.pictures, "Pictures to start from")
        if not LEAST_STRENGTH <= self.strength <= 1:
            raise InputError(
                f"The strength is {self.strength}; it must be from {LEAST_STRENGTH} (hardly any "
                "change) to 1 (all of the picture drawn anew)."
            )
        if self.mask is not None:
            self._check_mask(self.mask)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.pictures.shape[2], self.pictures.shape[3]

    def check(self, count: int, size: tuple[int, int]) -> None:
        """Raises InputError unless these are pictures of that size for `count` prompts."""
        if self.size != size:
            raise InputError(
                f"The pictures to start from are {self.size[0]} x {self.size[1]} and those to make "
                f"{size[0]} x {size[1]}. Scale them first, or leave the size out."
            )
        masks = 1 if self.mask is None or self.mask.ndim == 2 else len(self.mask)
        for name, given in (("pictures to start from", len(self.pictures)), ("masks", masks)):
            if given not in (1, count):
                raise InputError(
                    f"There are {given} {name} and {count} prompts; give one for each, or one "
                    "for all."
                )

    def encode(self, backbone: Backbone, count: int) -> Origin:
        """The latents of `count` starts. Pictures are encoded one by one, so that none depends on
        the others by a bit."""
        latents = torch.cat([backbone.codec.encode(one) for one in self.pictures.split(1)])
        rows = latents.to(backbone.device).expand(count, -1, -1, -1)
        mask = self.mask
        if mask is not None:
            mask = F.avg_pool2d(mask.reshape(-1, 1, *self.size).float(), DOWNSCALE)
            mask = mask.to(backbone.device).expand(count, -1, -1, -1)
        return Origin(rows, mask, self.strength)

    def _check_mask(self, mask: Tensor) -> None:
        if mask.ndim not in (2, 3) or tuple(mask.shape[-2:]) != self.size:
            raise InputError(
                f"The mask is {tuple(mask.shape)}; it must be [H, W] or [B, H, W] with the "
                f"pictures' height and width, {self.size[0]} x {self.size[1]}."
            )
        _check_unit(mask, "Masks")
        if not mask.reshape(-1, *self.size).flatten(1).any(1).all():
            raise InputError("A mask has no area: nothing would be drawn anew. Paint it first.")


@dataclass(frozen=True)
class Origin:
    """`PictureStart` in latents [B, 4, h, w]; mask [B, 1, h, w] or None for everywhere.

    sigma: noise level in k-diffusion's scale; the latents are variance-preserving,
    z = (z_0 + sigma noise) / sqrt(1 + sigma^2).
    """

    latents: Tensor
    mask: Tensor | None
    strength: float

    def __getitem__(self, rows: slice) -> Origin:
        """Some of the pictures."""
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, latents=self.latents[rows], mask=mask)

    def schedule_steps(self, steps: int) -> int:
        """Of how many steps in all these `steps` are the last ones."""
        return int(steps / self.strength)

    def begin(self, noise: Tensor, sigma: float) -> Tensor:
        """What sampling starts from at its first noise level."""
        drawn = noise if self.strength == 1 else self._noised(noise, sigma)
        return self.keep(drawn, noise, sigma)

    def keep(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """`latents` at a noise level inside the mask, the picture's outside."""
        if self.mask is None:
            return latents
        return self.mask * latents + (1 - self.mask) * self._noised(noise, sigma)

    def _noised(self, noise: Tensor, sigma: float) -> Tensor:
        return (self.latents + sigma * noise) / (1 + sigma**2) ** 0.5


def _check_unit(values: Tensor, what: str) -> None:
    if not values.is_floating_point() or not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"{what} must hold finite floating-point numbers from 0 to 1.")
