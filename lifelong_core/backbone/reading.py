"""Reading safetensors files by their headers, and tensors one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import FileError, ModelError
from .layout import Shape

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Tensors:
    """Shapes of all tensors of one or several files, and a way to get each."""

    shapes: Mapping[str, Shape]
    get: Callable[[str], Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, rename: Callable[[Mapping[str, str]], Mapping[str, str]]) -> Tensors:
        """The same tensors under other names; `rename` maps a mapping to one with new keys."""
        names = rename({key: key for key in self.shapes})
        shapes = {new: self.shapes[old] for new, old in names.items()}
        return Tensors(shapes, lambda key: self.get(names[key]), self.metadata)


@contextmanager
def open_tensors(*paths: Path) -> Iterator[Tensors]:
    """Open safetensors files; only their headers are read until a tensor is asked for.

    Raises FileError for a missing file, ModelError for a pickle or a broken or truncated file.
    """
    with ExitStack() as stack:
        handles = [stack.enter_context(_open(path)) for path in paths]
        owner = {key: handle for handle in handles for key in handle.keys()}  # noqa: SIM118
        shapes = {key: tuple(handle.get_slice(key).get_shape()) for key, handle in owner.items()}
        metadata = {k: v for handle in handles for k, v in (handle.metadata() or {}).items()}
        yield Tensors(shapes, lambda key: owner[key].get_tensor(key), metadata)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FileError(f"There is no file {path}. Check the path of the base model.")
    if path.suffix.lower() in _PICKLES:
        raise ModelError(
            f"{path.name} is a pickle file, which can run code when it is loaded. Convert it to "
            "safetensors, or download the safetensors version."
        )
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path.name} is broken, cut short or not a safetensors file ({error}). Copy or "
            "download it again."
        ) from error


def component_files(folder: Path, stem: str) -> list[Path]:
    """The weight files of one component of a diffusers folder: whole, sharded, or fp16.

    `stem` is diffusion_pytorch_model or model. Raises ModelError when there are none in
    safetensors.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        names = set(read_config(index).get("weight_map", {}).values())
        return [folder / Path(name).name for name in sorted(names)]
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    raise ModelError(
        f"The folder {folder.parent.name} holds no {folder.name}/{stem}.safetensors. A diffusers "
        "folder with safetensors weights (not .bin) is needed."
    )


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of a diffusers folder. Raises ModelError when it is missing or broken."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path.parent.name}/{path.name} cannot be read ({error}); the model folder is "
            "incomplete. Copy or download it again."
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"{path.parent.name}/{path.name} is not a JSON object.")
    return config
