"""A long-term memory as a file of its own, to keep or to look into without its state."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import FileError, LifelongError
from ..sealed import SealedFormat
from .long_term import ConceptMemory, LongTermMemory

BANK_FORMAT = "lifelong_memory"
BANK_VERSION = 1
HEADER = "lifelong.memory"
SEALED = SealedFormat(
    BANK_FORMAT,
    BANK_VERSION,
    HEADER,
    title="memory bank",
    short="bank",
    choose="file of save_bank",
    update="Update the software.",
)


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
    return SEALED.save(Path(path), header, tensors)


def load_bank(path: Path | str) -> LongTermMemory:
    """Read a file of `save_bank`.

    Raises FileError that says whether the file is missing, cut short, of another kind, of a newer
    version, changed after it was written, or inconsistent.
    """
    path = Path(path)
    text, tensors = SEALED.load(path)
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
