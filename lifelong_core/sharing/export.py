"""Writing a state's knowledge for others: LoRA, embeddings and preview, all or nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.spectrum import Spectrum
from ..errors import FileError, InputError, StateError
from ..files import atomic_write, content_hash, load_tensors, save_tensors
from ..state import LifelongState
from .embeddings import concept_metadata
from .lora import (
    bundled_state_dict,
    embedding_state_dict,
    lora_state_dict,
    require_spectrum,
)
from .metadata import DATE, ExportInfo, lora_metadata
from .naming import check_file_name
from .preview import thumbnail_uri, to_picture, write_png
from .spectral import truncated_changes

logger = logging.getLogger(__name__)

Job = tuple[Path, Callable[[Path], object]]


@dataclass(frozen=True)
class ExportedFiles:
    """Where an export lies: one LoRA, one embedding per concept, the preview if one was given.

    kept: the share of the change's energy that is in the LoRA; less than 1 with a `rank` only.
    """

    lora: Path
    embeddings: tuple[Path, ...]
    preview: Path | None
    kept: float = 1.0


def export_lora(
    state: LifelongState,
    loras: Path | str,
    embeddings: Path | str,
    name: str,
    *,
    info: ExportInfo,
    preview: Tensor | None = None,
    overwrite: bool = False,
    bundle: bool = False,
    spectrum: Spectrum | None = None,
    rank: int | None = None,
) -> ExportedFiles:
    """Write `<name>-<hash8>.safetensors` and its preview into `loras`, `<token>.safetensors` per
    concept into `embeddings`.

    The LoRA file alone holds all concepts: their nouns and vectors are in its metadata, where
    `import_lora` finds them and no program takes them for layers. Of layer-wise concepts embedding
    files and bundled tensors hold the mean, for programs that know one set of vectors; all are in
    the metadata, as `embeddings.EMBEDDING` says.

    hash8 is of weights and concepts: equal knowledge gets an equal name, other knowledge never
    takes the place of a file, which programs that keep files in memory by path would not notice.

    preview: a picture [3, H, W] in [0, 1], also put into the LoRA as a thumbnail.
    overwrite: replace embeddings of these tokens that hold other vectors.
    bundle: put the vectors, or their mean, among the LoRA's tensors, where A1111 and Forge
        read them without an embedding file. ComfyUI then mentions them in its log as not loaded,
        and diffusers' `load_lora_weights` takes such a file only as a dictionary without its
        `bundle_emb.` keys.
    spectrum: the decomposed weights of the base model, for spectral adapters. Their file has the
        whole change, as many numbers as the UNet and not for diffusers, unless `rank` says of
        which rank the nearest LoRA shall be; the share of the change that it keeps is logged and
        stands in the metadata.

    When a file cannot be written, those already written are taken back.

    Raises InputError for an unusable name, preview or rank, StateError for a state that is empty
    or does not fit its family, FileError when other content is in the way or writing fails.
    """
    check_file_name(name, "Name")
    _check_state(state)
    _tell_of_means(state)
    picture = None if preview is None else to_picture(preview)
    weights, kept = _weights(state, spectrum, rank)
    tensors = weights | (bundled_state_dict(state) if bundle else {})
    concepts = concept_metadata(state, vectors=not bundle)
    stem = f"{name}-{content_hash(tensors, concepts)[:8]}"
    lora = Path(loras) / f"{stem}.safetensors"
    held = _texts_beside(lora, tensors)
    if lora.exists() and not (held is not None and concepts.items() <= held.items()):
        raise FileError(
            f"{lora.name} exists in {lora.parent} with other content. It is left as it is; "
            "choose another name."
        )
    jobs = _embedding_jobs(state, Path(embeddings), overwrite)
    if picture is not None:
        jobs.append((lora.with_name(f"{stem}.preview.png"), lambda path: write_png(picture, path)))
    thumbnail = None if picture is None else thumbnail_uri(picture)
    metadata = lora_metadata(state, tensors, concepts, stem, info, thumbnail, kept)
    # The LoRA comes last: where it lies, its embeddings and its preview lie too. One that would
    # differ in its date alone stays, for a program that has loaded it may hold it open.
    undated = {name: text for name, text in metadata.items() if name != DATE}
    if held is None or not undated.items() <= held.items():
        jobs.append((lora, lambda path: save_tensors(path, tensors, metadata)))
    _write_all(jobs)
    return ExportedFiles(
        lora,
        tuple(_embedding_path(Path(embeddings), concept.token) for concept in state.concepts),
        None if picture is None else lora.with_name(f"{stem}.preview.png"),
        kept,
    )


def _weights(
    state: LifelongState, spectrum: Spectrum | None, rank: int | None
) -> tuple[dict[str, Tensor], float]:
    """The LoRA's tensors, and the share of the change's energy that is in them."""
    if rank is None:
        return lora_state_dict(state, spectrum), 1.0
    if state.adapter_spec.kind != "spectral":
        raise InputError(
            f"The adapter of this state is of {state.adapter_spec.describe()} and exported as it "
            "is; only a spectral one can be given another rank. Leave the rank out."
        )
    found = truncated_changes(state, require_spectrum(spectrum), rank)
    logger.info("The LoRA of rank %d keeps %.1f %% of the change.", rank, 100 * found.kept_energy)
    return found


def _check_state(state: LifelongState) -> None:
    if not state.adapter:
        raise StateError("The state has learned nothing yet; teach a concept before exporting.")
    for concept in state.concepts:
        check_file_name(concept.token, "Token")


def _tell_of_means(state: LifelongState) -> None:
    layerwise = [concept.token for concept in state.concepts if concept.layers]
    if layerwise:
        logger.warning(
            "%s: the embedding files hold the mean of vectors that differ from layer to layer, for "
            "programs that know one set. This software reads all of them from the LoRA file.",
            ", ".join(layerwise),
        )


def _embedding_path(folder: Path, token: str) -> Path:
    return folder / f"{token}.safetensors"


def _embedding_jobs(state: LifelongState, folder: Path, overwrite: bool) -> list[Job]:
    """One job per embedding that is not there already; refuses to replace others."""
    jobs: list[Job] = []
    for concept in state.concepts:
        path = _embedding_path(folder, concept.token)
        tensors = embedding_state_dict(concept, state.family)
        if path.exists():
            if _texts_beside(path, tensors) is not None:
                continue
            if not overwrite:
                raise FileError(
                    f"{path.name} exists in {path.parent} with other content. ComfyUI keeps "
                    f"prompts with 'embedding:{concept.token}' in memory and would go on using "
                    "the old one. Remove the file or allow overwriting, and restart ComfyUI then."
                )
            logger.warning("%s is replaced; restart ComfyUI, which keeps the old one.", path)
        jobs.append((path, _tensor_writer(tensors)))
    return jobs


def _tensor_writer(tensors: Mapping[str, Tensor]) -> Callable[[Path], object]:
    return lambda path: save_tensors(path, tensors)


def _texts_beside(path: Path, tensors: Mapping[str, Tensor]) -> Mapping[str, str] | None:
    """The metadata of a file that has exactly these tensors; None of any other, or of none."""
    try:
        present, texts = load_tensors(path)
    except FileError:
        return None
    same = present.keys() == tensors.keys() and all(
        present[key].dtype == value.dtype and torch.equal(present[key], value)
        for key, value in tensors.items()
    )
    return texts if same else None


def _write_all(jobs: list[Job]) -> None:
    """Run the jobs in order; on any failure bring every file back to what it was."""
    done: list[tuple[Path, bytes | None]] = []
    try:
        for path, write in jobs:
            before = _content(path)
            write(path)
            done.append((path, before))
    except BaseException:
        for path, before in reversed(done):
            _restore(path, before)
        raise


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as error:
        raise FileError(f"{path} is in the way and cannot be read: {error}.") from error


def _restore(path: Path, content: bytes | None) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(content or b"")

    try:
        if content is None:
            path.unlink(missing_ok=True)
        else:
            atomic_write(path, write)
    except OSError as error:
        logger.warning("%s could not be taken back after a failed export: %s", path, error)
