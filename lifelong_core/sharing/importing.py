"""Reading LoRA files back: our own with their concepts, and plain ones in kohya's names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.spec import TARGETS, AdapterSpec
from ..backbone.families import FAMILIES
from ..concepts import Concept
from ..errors import FileError, InputError, StateError
from ..files import CHECKSUM, FORMAT, VERSION, content_hash, load_tensors
from .embeddings import concept_part, read_concepts
from .metadata import FAMILY, FINGERPRINT, LORA_FORMAT, LORA_VERSION
from .naming import layer_names, layers

logger = logging.getLogger(__name__)

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
Parts = dict[str, Tensor]


@dataclass(frozen=True)
class ImportedLora:
    """The content of a LoRA file in this library's terms.

    base_fingerprint: of the base model it was learned on; None in files of other programs.
    adapter: weights of all layers of `spec`, named as in a state; zero where the file has none.
    concepts: those whose token vectors and nouns the file holds.
    skipped: layers and embeddings of the file that could not be taken over, by their names there.
    """

    family: str
    base_fingerprint: str | None
    spec: AdapterSpec
    adapter: dict[str, Tensor]
    concepts: tuple[Concept, ...]
    skipped: tuple[str, ...]


def import_lora(path: Path | str, family: str | None = None) -> ImportedLora:
    """Read a LoRA in kohya's names, written by `export_lora` or by another program.

    Layers of different ranks are brought to the largest, without changing what they add to the
    model. family: of the base model; by default as the file says or its layers show.

    Raises FileError when the file is missing, broken, changed, of a newer version or no such LoRA;
    StateError when none of its layers fits the family, or the family cannot be told; ModelError
    for an unknown family.
    """
    path = Path(path)
    tensors, metadata = load_tensors(path)
    _check_own(path.name, tensors, metadata)
    found = _group(tensors)
    if any("diff" in parts for parts in found.values()):
        raise FileError(
            f"{path.name} holds whole changes of weights, which are no LoRA. To go on learning "
            "from them, load the saved state instead; or export it as a LoRA of some rank."
        )
    if not found:
        raise FileError(
            f"{path.name} has no LoRA layers in kohya's names (lora_unet_…, lora_te_…). It may be "
            "a LoRA in another naming or another kind of file; convert it to kohya's names."
        )
    family = _family(path.name, family, metadata.get(FAMILY), found)
    known = layer_names(family)
    fitting = {name: parts for name, parts in found.items() if _fits(name, parts, family)}
    if not fitting:
        raise StateError(
            f"None of the {len(found)} LoRA layers of {path.name} fits a {family} model "
            f"(first: {next(iter(found))}). Use it with the kind of base model it was made for."
        )
    _check_values(path.name, fitting)
    concepts, unread = read_concepts(path.name, tensors, metadata, family)
    skipped = (*(name for name in found if name not in fitting), *unread)
    if skipped:
        logger.warning(
            "%s: %d layers or embeddings are not taken over (first: %s).",
            path.name, len(skipped), skipped[0],
        )  # fmt: skip
    pairs = {known[name]: parts for name, parts in fitting.items()}
    spec = _spec(path.name, pairs)
    adapter = _adapter(pairs, spec, family)
    return ImportedLora(family, metadata.get(FINGERPRINT), spec, adapter, concepts, skipped)


def _check_own(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Check version and checksum of files that say they are ours; others pass."""
    if metadata.get(FORMAT) != LORA_FORMAT:
        return
    version = metadata.get(VERSION, "")
    if not version.isdigit() or int(version) > LORA_VERSION:
        raise FileError(
            f"{name} has LoRA version {version or 'none'}, this software reads up to "
            f"{LORA_VERSION}. Update the software."
        )
    if metadata.get(CHECKSUM) != content_hash(dict(tensors), concept_part(metadata)):
        raise FileError(
            f"{name} was changed or damaged after it was written: its checksum does not match "
            "its weights and concepts. Use another copy."
        )
    if metadata.get(FAMILY) not in FAMILIES:
        raise FileError(f"{name} is for an unknown family of models: {metadata.get(FAMILY)!r}.")


def _group(tensors: Mapping[str, Tensor]) -> dict[str, Parts]:
    """Layer name in the file -> its parts by suffix."""
    found: dict[str, Parts] = {}
    for key, value in tensors.items():
        name, _, part = key.partition(".")
        if name.startswith("lora_") and part:
            found.setdefault(name, {})[part] = value
    return found


def _fits(name: str, parts: Parts, family: str) -> bool:
    """Whether the layer is one of `family` that adapters change, of its size, and a plain LoRA.

    Layers with further parts (DoRA's scale, a LoCon's middle) mean something else.
    """
    layer = layer_names(family).get(name)
    if layer is None or not {DOWN, UP} <= parts.keys() <= {DOWN, UP, ALPHA}:
        return False
    down, up = parts[DOWN], parts[UP]
    return (
        down.dim() == up.dim() == 2
        and down.shape[0] == up.shape[1]
        and (up.shape[0], down.shape[1]) == layers(family)[layer]
    )


def _family(name: str, asked: str | None, said: str | None, found: Mapping[str, Parts]) -> str:
    if asked is not None and said is not None and asked != said:
        raise StateError(
            f"{name} is for {said} models, not for a {asked} model. Choose a {said} base model."
        )
    return asked or said or _guess_family(name, found)


def _guess_family(name: str, found: Mapping[str, Parts]) -> str:
    fitting = {
        family: sum(_fits(layer, parts, family) for layer, parts in found.items())
        for family in FAMILIES
    }
    best = [family for family, count in fitting.items() if count == max(fitting.values())]
    if max(fitting.values()) == 0:
        raise StateError(
            f"None of the {len(found)} LoRA layers of {name} fits a model of "
            f"{', '.join(FAMILIES)} (first: {next(iter(found))}). Choose a LoRA for one of these."
        )
    if len(best) > 1:
        raise StateError(
            f"The layers of {name} fit models of {' and '.join(best)} alike. Say which it is for."
        )
    return best[0]


def _check_values(name: str, found: Mapping[str, Parts]) -> None:
    for layer, parts in found.items():
        if not all(bool(value.isfinite().all()) for value in parts.values()):
            raise FileError(f"{name} has values that are not finite in {layer}. Use another copy.")


def _rank_and_alpha(parts: Parts) -> tuple[int, float]:
    """Without an alpha, programs take the rank: ΔW = up @ down."""
    rank = parts[DOWN].shape[0]
    # Seven digits: an alpha of 0.1, kept in 32 bits, is meant as 0.1.
    return rank, float(f"{float(parts[ALPHA]):.7g}") if ALPHA in parts else float(rank)


def _spec(name: str, pairs: Mapping[str, Parts]) -> AdapterSpec:
    """The file's own rank and alpha when all layers share them, else the largest, unscaled."""
    layouts = {_rank_and_alpha(parts) for parts in pairs.values()}
    rank, alpha = max(layouts)
    if len(layouts) > 1 or alpha <= 0:
        alpha = float(rank)
    try:
        return AdapterSpec(
            rank=rank,
            alpha=alpha,
            targets=tuple(t for t in TARGETS if any(layer.endswith(f".{t}") for layer in pairs)),
            text_encoder=any(layer.startswith("text.") for layer in pairs),
        )
    except InputError as error:
        raise StateError(f"{name} cannot be taken over. {error}") from error


def _adapter(pairs: Mapping[str, Parts], spec: AdapterSpec, family: str) -> dict[str, Tensor]:
    adapter: dict[str, Tensor] = {}
    for layer, (out, width) in layers(family).items():
        if layer.startswith("text.") and not spec.text_encoder:
            continue
        if layer.startswith("unet.") and not layer.endswith(spec.targets):
            continue
        down, up = torch.zeros(spec.rank, width), torch.zeros(out, spec.rank)
        if layer in pairs:
            parts = pairs[layer]
            rank, alpha = _rank_and_alpha(parts)
            down[:rank] = parts[DOWN].float()
            # The factor is exactly 1 where all layers share rank and alpha.
            up[:, :rank] = parts[UP].float() * (alpha / rank / spec.scale)
        adapter[f"{layer}.down"], adapter[f"{layer}.up"] = down, up
    return adapter
