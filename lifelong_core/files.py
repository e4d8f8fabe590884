"""Reading and writing files so that a crash leaves either the old file or the new one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import FileError

CHECKSUM = "lifelong.checksum"
FORMAT = "lifelong.format"
VERSION = "lifelong.version"


def atomic_write(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it to `path`.

    Raises FileError when the folder cannot be written or the disk is full; `path` is as before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        # safetensors makes its files readable by the owner only; others may read what we write.
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"Could not write {path.name} in {path.parent}: {error}. "
            "Check that the folder can be written and that the disk has room."
        ) from error
    finally:
        # Where a file stands in the folder's place, there is nothing to remove either.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def copy_file(source: Path, target: Path) -> Path:
    """Copy a file's bytes to `target` atomically. Raises FileError."""

    def write(temporary: Path) -> None:
        shutil.copyfile(source, temporary)

    return atomic_write(target, write)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """While the block lasts, no other process is in such a block of the same `path`.

    Gives True; with `wait` off, False at once while another is in one. A killed process holds
    nothing. Where the system or the disk knows no locks, none is taken. Raises FileError when the
    folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path.with_name(f".{path.name}.lock"), "a")  # noqa: SIM115
    except OSError as error:
        raise FileError(f"Could not write in {path.parent}: {error}.") from error
    with handle:
        yield _lock(handle, wait)


def _lock(handle: IO[str], wait: bool) -> bool:
    """Whether the open file is ours now."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def check_writable(folder: Path) -> None:
    """Raise FileError unless files can be written in `folder`, which is made if missing."""
    probe = atomic_write(Path(folder) / f".{uuid4().hex[:8]}", lambda path: _write_text(path, "\n"))
    probe.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write `text` in UTF-8, atomically."""
    return atomic_write(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises FileError when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"Could not read {path}: {error}.") from error


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file atomically. Shared memory is copied, tensors go to the CPU."""
    plain = {key: value.detach().to("cpu").contiguous().clone() for key, value in tensors.items()}
    return atomic_write(path, lambda temporary: save_file(plain, temporary, dict(metadata or {})))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors and metadata. Raises FileError when missing or broken."""
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = dict(handle.metadata() or {})
            return {key: handle.get_tensor(key) for key in handle.keys()}, metadata  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"Could not read {path}: {_why_unreadable(Path(path), error)}. "
            "Choose another file, or copy or export this one again."
        ) from error


def _why_unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a file that is no complete safetensors file."""
    try:
        data = path.stat().st_size - 8
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            begins = handle.read(1)
            if data < 1 or (begins == b"{" and length > data):
                return "the file is cut short"
            if begins != b"{":
                return "it is not a safetensors file"
            header = json.loads(begins + handle.read(length - 1))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        if length + max(ends, default=0) > data:
            return "the file is cut short"
    except OSError as failure:
        return failure.strerror or str(failure)
    except (ValueError, LookupError, TypeError, AttributeError):
        return "its header is damaged"
    return str(error)


def file_hash(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes. Raises FileError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise FileError(f"Could not read {path}: {error}.") from error
    return digest.hexdigest()


def content_hash(*parts: Any) -> str:
    """SHA-256 (hex) over tensors, mappings, sequences, dataclass-free plain values, in order.

    Tensors count by dtype, shape and bytes; mappings by sorted key. Use it for cache names and
    checksums: equal content gives equal names on every machine.
    """
    digest = hashlib.sha256()
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()


def _update(digest: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        data = part.detach().to("cpu").contiguous()
        digest.update(f"tensor {data.dtype} {tuple(data.shape)} ".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(part, Mapping):
        digest.update(f"mapping {len(part)} ".encode())
        for key in sorted(part):
            _update(digest, key)
            _update(digest, part[key])
    elif isinstance(part, (list, tuple)):
        digest.update(f"sequence {len(part)} ".encode())
        for item in part:
            _update(digest, item)
    elif part is None or isinstance(part, (str, int, float, bool)):
        digest.update(f"{type(part).__name__} {part!r} ".encode())
    else:
        raise TypeError(f"content_hash does not take {type(part).__name__}")
