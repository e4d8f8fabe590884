"""Singular value decompositions of a base model's weights: made once, kept in memory and on disk.

A decomposition is no function of the base model's name alone. Neighbouring singular values of
large layers are so close that rounding the weights to half precision turns their vectors into
each other. What was trained on one decomposition therefore belongs to that one, and the one that
lies in the folder counts, in whatever precision the base model is loaded later.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import FileError, StateError
from ..files import FORMAT, load_tensors, save_tensors
from .layers import Layer, spectral_layers

if TYPE_CHECKING:
    from ..backbone import Backbone

SPECTRUM_FORMAT = "lifelong_spectrum"
SPECTRA = "spectra"
"""Folder of a workspace that the decompositions lie in."""
PARTS = ("left", "values", "right")

logger = logging.getLogger(__name__)


class Decomposition(NamedTuple):
    """W = left · diag(values) · right, W [out, in] or, of a convolution, [out, in · k²].

    left [out, r], right [r, in], r = min(out, in); values [r] fp32, none negative.
    """

    left: Tensor
    values: Tensor
    right: Tensor


Spectrum = Mapping[str, Decomposition]
"""Layer key -> its weight's decomposition."""

_KNOWN: WeakKeyDictionary[Backbone, Spectrum] = WeakKeyDictionary()


def spectrum_of(backbone: Backbone) -> Spectrum:
    """The decompositions of all linear and convolution weights of the UNet, on its device.

    Made when they are first asked for (minutes on a CPU at true size) and kept as long as
    `backbone`; `keep_spectrum` puts them on disk.
    """
    if backbone not in _KNOWN:
        _KNOWN[backbone] = decompose(
            {key: layer.weight for key, layer in matrix_layers(backbone.unet).items()},
            _storage(backbone.dtype),
        )
    found = _KNOWN[backbone]
    if next(iter(found.values())).values.device != backbone.device:
        _KNOWN[backbone] = {
            key: Decomposition(*(part.to(backbone.device) for part in parts))
            for key, parts in found.items()
        }
    return _KNOWN[backbone]


def keep_spectrum(backbone: Backbone, folder: Path) -> None:
    """Let `spectrum_of` answer with the decompositions in `folder`; those made are written there.

    Raises FileError when the folder cannot be written.
    """
    known = load_spectrum(backbone.fingerprint, folder)
    if known is not None:
        _KNOWN[backbone] = known
        return
    logger.info("Decomposing the weights of %s, once for all lessons.", backbone.fingerprint)
    save_tensors(
        _path(backbone.fingerprint, folder),
        {
            f"{key}/{name}": value
            for key, parts in spectrum_of(backbone).items()
            for name, value in parts._asdict().items()
        },
        {FORMAT: SPECTRUM_FORMAT},
    )


def load_spectrum(fingerprint: str, folder: Path) -> Spectrum | None:
    """The decompositions of a base model that `folder` has; None, warning if broken, if none."""
    path = _path(fingerprint, folder)
    if not path.exists():
        return None
    try:
        tensors, metadata = load_tensors(path)
        if metadata.get(FORMAT) != SPECTRUM_FORMAT:
            raise FileError(f"{path.name} holds no decompositions.")
    except FileError as error:
        logger.warning("Decomposing the base model's weights again: %s", error)
        return None
    keys = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
    return {key: Decomposition(*(tensors[f"{key}/{part}"] for part in PARTS)) for key in keys}


@torch.no_grad()
def decompose(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Decomposition]:
    """Layer key -> decomposition of each weight [out, in] or [out, in, k, k].

    Computed in fp32; the vectors are kept in `dtype`, the values in fp32.
    """
    found = {}
    for key, weight in weights.items():
        left, values, right = torch.linalg.svd(weight.float().flatten(1), full_matrices=False)
        found[key] = Decomposition(left.to(dtype), values, right.to(dtype).contiguous())
    return found


def matrix_layers(unet: nn.Module) -> dict[str, Layer]:
    """The layers of `spectral_layers` whose weights are decomposed: all but the norms."""
    return {
        key: layer
        for key, layer in spectral_layers(unet).items()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }


def require_spectrum(spectrum: Spectrum | None, what: str) -> Spectrum:
    """`spectrum`; StateError when there is none."""
    if spectrum is None:
        raise StateError(
            f"{what} needs the decomposed weights of the base model, because a spectral adapter "
            "only says how far their singular values move. Load the base model and put the state "
            "on it once (in ComfyUI: Apply Lifelong State)."
        )
    return spectrum


def _path(fingerprint: str, folder: Path) -> Path:
    return folder / f"{fingerprint}.safetensors"


def _storage(dtype: torch.dtype) -> torch.dtype:
    """Half models keep their vectors in fp16, which is finer than bf16."""
    return torch.float32 if dtype == torch.float32 else torch.float16
