"""A long-term memory as a file of its own, to keep or to look into without its state."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import FileError, LifelongError
from ..files import CHECKSUM, FORMAT, VERSION, content_hash, load_tensors, save_tensors
from .long_term import ConceptMemory, LongTermMemory

BANK_FORMAT = "lifelong_memory"
BANK_VERSION = 1
HEADER = "lifelong.memory"


def save_bank(memory: LongTermMemory, path: Path | str) -> Path:
    """Write `memory` as a safetensors file of its own. Raises FileError."""
    header = json.dumps(
        {
            "base_fingerprint": memory.base_fingerprint,
            "feature_model": memory.feature_model,
            "prompts": {token: known.prompts for token, known in memory.concepts.items()},
        },
        ensure_ascii=False,
    )
    tensors = {token: known.features for token, known in memory.concepts.items()}
    metadata = {
        FORMAT: BANK_FORMAT,
        VERSION: str(BANK_VERSION),
        CHECKSUM: content_hash(header, tensors),
        HEADER: header,
    }
    return save_tensors(Path(path), tensors, metadata)


def load_bank(path: Path | str) -> LongTermMemory:
    """Read a file of `save_bank`.

    Raises FileError that says whether the file is missing, cut short, of another kind, of a newer
    version, changed after it was written, or inconsistent.
    """
    path = Path(path)
    tensors, metadata = load_tensors(path)
    if metadata.get(FORMAT) != BANK_FORMAT:
        raise FileError(
            f"{path.name} is not a memory bank but another kind of safetensors file "
            f"({metadata.get(FORMAT, 'no format named')}). Choose a file of save_bank."
        )
    version = metadata.get(VERSION, "")
    if not version.isdigit() or int(version) > BANK_VERSION:
        raise FileError(
            f"{path.name} has bank version {version or 'none'}, this software reads up to "
            f"{BANK_VERSION}. Update the software."
        )
    text = metadata.get(HEADER, "")
    if content_hash(text, tensors) != metadata.get(CHECKSUM):
        raise FileError(
            f"{path.name} was changed or damaged after it was written: its checksum does not "
            "match its content. Use another copy."
        )
    try:
        header = json.loads(text)
        concepts = {
            token: ConceptMemory(tensors[token], prompts)
            for token, prompts in header["prompts"].items()
        }
        return LongTermMemory(header["base_fingerprint"], header["feature_model"], concepts)
    except (LifelongError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"{path.name} is a memory bank, but its content does not fit together: {error} "
            "Use another copy."
        ) from error
