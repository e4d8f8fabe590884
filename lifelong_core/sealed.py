"""Files with a format, a version, a JSON header and a checksum over all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .errors import FileError
from .files import CHECKSUM, FORMAT, VERSION, content_hash, load_tensors, save_tensors


@dataclass(frozen=True)
class SealedFormat:
    """One kind of file.

    format, version: written into it; later versions are refused. header: metadata key of its JSON.
    title, short: what errors call it. choose, update: what they advise for another kind of file,
    and for a newer one.
    """

    format: str
    version: int
    header: str
    title: str
    short: str
    choose: str
    update: str

    def save(self, path: Path, header: str, tensors: Mapping[str, Tensor]) -> Path:
        """Write `header` and `tensors`. Raises FileError."""
        metadata = {
            FORMAT: self.format,
            VERSION: str(self.version),
            CHECKSUM: content_hash(header, tensors),
            self.header: header,
        }
        return save_tensors(path, tensors, metadata)

    def load(self, path: Path) -> tuple[str, dict[str, Tensor]]:
        """Header and tensors. Raises FileError that says whether the file is missing, cut short, of
        another kind, of a newer version, or changed after it was written.
        """
        tensors, metadata = load_tensors(path)
        if metadata.get(FORMAT) != self.format:
            raise FileError(
                f"{path.name} is not a {self.title} but another kind of safetensors file "
                f"({metadata.get(FORMAT, 'no format named')}). Choose a {self.choose}."
            )
        version = metadata.get(VERSION, "")
        if not version.isdigit() or int(version) > self.version:
            raise FileError(
                f"{path.name} has {self.short} version {version or 'none'}, this software reads up "
                f"to {self.version}. {self.update}"
            )
        header = metadata.get(self.header, "")
        if content_hash(header, tensors) != metadata.get(CHECKSUM):
            raise FileError(
                f"{path.name} was changed or damaged after it was written: its checksum does not "
                "match its content. Use another copy."
            )
        return header, tensors
