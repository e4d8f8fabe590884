"""Singular value decompositions of a base model's weights: made once, kept in memory and on disk.

A decomposition is no function of the base model's name alone. Neighbouring singular values of
large layers are so close that rounding the weights to half precision turns their vectors into
each other. What was trained on one decomposition therefore belongs to that one, and the one that
lies in the workspace counts, in whatever precision the base model is loaded later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import FileError
from ..files import FORMAT, load_tensors, save_tensors
from .layers import Layer, spectral_layers
from .spec import AdapterSpec

if TYPE_CHECKING:
    from ..backbone import Backbone

SPECTRUM_FORMAT = "lifelong_spectrum"
FOLDER = "spectra"
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
            {key: layer.weight for key, layer in matrix_layers(backbone.unet).items()}
        )
    found = _KNOWN[backbone]
    if next(iter(found.values())).values.device != backbone.device:
        _KNOWN[backbone] = {
            key: Decomposition(*(part.to(backbone.device) for part in parts))
            for key, parts in found.items()
        }
    return _KNOWN[backbone]


def keep_spectrum(backbone: Backbone, spec: AdapterSpec, workspace: Path | None) -> None:
    """For spectral adapters: let `spectrum_of` answer with the decompositions that `workspace`
    has; those made are written there. Nothing for other kinds, or without a workspace.

    Raises FileError when the folder cannot be written.
    """
    if spec.kind != "spectral" or workspace is None:
        return
    if backbone not in _KNOWN or not _path(backbone.fingerprint, workspace).exists():
        _KNOWN[backbone] = kept_spectrum(
            backbone.fingerprint, workspace, lambda: spectrum_of(backbone)
        )


def kept_spectrum(fingerprint: str, workspace: Path, make: Callable[[], Spectrum]) -> Spectrum:
    """The decompositions of a base model that `workspace` has; else what `make` gives, written
    there.

    Raises FileError when the folder cannot be written.
    """
    known = load_spectrum(fingerprint, workspace)
    if known is not None:
        return known
    logger.info("Decomposing the weights of %s, once for all lessons.", fingerprint)
    made = make()
    tensors = {
        f"{key}/{name}": value
        for key, parts in made.items()
        for name, value in parts._asdict().items()
    }
    save_tensors(_path(fingerprint, workspace), tensors, {FORMAT: SPECTRUM_FORMAT})
    return made


def load_spectrum(fingerprint: str, workspace: Path) -> Spectrum | None:
    """The decompositions of a base model that `workspace` has; None, warning if broken, if none."""
    path = _path(fingerprint, workspace)
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
def decompose(weights: Mapping[str, Tensor]) -> dict[str, Decomposition]:
    """Layer key -> decomposition of each weight [out, in] or [out, in, k, k], on its device.

    Computed in fp32. Vectors of half weights are kept in fp16, which is finer than bf16.
    """
    found = {}
    for key, weight in weights.items():
        left, values, right = torch.linalg.svd(weight.float().flatten(1), full_matrices=False)
        dtype = torch.float32 if weight.dtype == torch.float32 else torch.float16
        found[key] = Decomposition(left.to(dtype), values, right.to(dtype).contiguous())
    return found


def matrix_layers(unet: nn.Module) -> dict[str, Layer]:
    """The layers of `spectral_layers` whose weights are decomposed: all but the norms."""
    return {
        key: layer
        for key, layer in spectral_layers(unet).items()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }


def _path(fingerprint: str, workspace: Path) -> Path:
    return workspace / FOLDER / f"{fingerprint}.safetensors"
