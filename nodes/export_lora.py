"""The node that writes what was learned as files for everyone: LoRA, embeddings, preview."""

from __future__ import annotations

import math
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..lifelong_core.adapters.spec import MAX_RANK
from ..lifelong_core.images import from_batch
from ..lifelong_core.methods import any_prompt_state
from ..lifelong_core.sharing.export import ExportedFiles, export_lora
from ..lifelong_core.sharing.metadata import ExportInfo
from ..lifelong_core.state import LifelongState
from .spectra import known_spectrum
from .types import LifelongStateType

MEAN = " (the mean of its layers' vectors; Apply Lifelong State uses each layer's own)"


class ExportLifelongLora(io.ComfyNode):
    """Writes a LoRA into models/loras and one embedding per concept into models/embeddings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ExportLifelongLora",
            display_name="Export Lifelong LoRA",
            category="lifelong",
            description="Writes all learned concepts as one LoRA file and one embedding per "
            "concept, for the stock Load LoRA node with embedding:<token>, A1111, Forge, "
            "diffusers and LoRA managers.",
            search_aliases=["save lora", "share concepts", "save embedding"],
            is_output_node=True,
            inputs=[
                LifelongStateType.Input("state", tooltip="What was learned."),
                io.String.Input(
                    "name",
                    default="my_concepts",
                    tooltip="File name without ending: letters, digits, '_' and '-'. A short code "
                    "of the content is added, so a LoRA that ComfyUI has loaded is never replaced.",
                ),
                io.Image.Input(
                    "preview",
                    optional=True,
                    tooltip="Pictures for the preview that LoRA managers show; several become one "
                    "contact sheet.",
                ),
                io.Boolean.Input(
                    "replace_embeddings",
                    optional=True,
                    advanced=True,
                    default=False,
                    tooltip="Replace embedding files of the same tokens that hold something else. "
                    "Restart ComfyUI afterwards: it keeps encoded prompts.",
                ),
                io.Boolean.Input(
                    "bundle_tokens",
                    optional=True,
                    advanced=True,
                    default=False,
                    tooltip="Put the tokens among the LoRA's weights, where A1111 and Forge read "
                    "them without embedding files. ComfyUI then says in its log for each of them "
                    "that it was not loaded, and diffusers refuses the file.",
                ),
                io.Int.Input(
                    "rank",
                    optional=True,
                    advanced=True,
                    default=0,
                    min=0,
                    max=MAX_RANK,
                    tooltip="States of 'l2dm' and 'svdiff': write the nearest LoRA of this rank "
                    "instead of the whole change, which is as large as the UNet and not for "
                    "diffusers. The node tells how much of the change it keeps. 0: all of it.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "lora_name",
                    tooltip="The LoRA's name as the Load LoRA node lists it (press R to refresh).",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        state: LifelongState,
        name: str,
        preview: Tensor | None = None,
        replace_embeddings: bool = False,
        bundle_tokens: bool = False,
        rank: int = 0,
    ) -> io.NodeOutput:
        with torch.inference_mode(False):
            drawn = any_prompt_state(state)
            files = export_lora(
                drawn,
                _first("loras"),
                _first("embeddings"),
                name,
                info=ExportInfo(prediction_type=_prediction_type(state)),
                preview=None if preview is None else _contact_sheet(preview.clone()),
                overwrite=replace_embeddings,
                bundle=bundle_tokens,
                spectrum=known_spectrum(drawn),
                rank=rank or None,
            )
        return io.NodeOutput(files.lora.name, ui=ui.PreviewText(_report(files, state)))


def _first(kind: str) -> Path:
    return Path(folder_paths.get_folder_paths(kind)[0])


def _prediction_type(state: LifelongState) -> str:
    return state.base_fingerprint.split("-")[1]


def _contact_sheet(batch: Tensor) -> Tensor:
    """The batch's pictures [B, H, W, C] side by side in as square a grid as can be, [3, H', W']."""
    pictures = from_batch(batch, "preview")
    columns = math.ceil(math.sqrt(len(pictures)))
    missing = -len(pictures) % columns
    pictures += [torch.ones_like(pictures[0])] * missing
    rows = [
        torch.cat(pictures[at : at + columns], dim=2) for at in range(0, len(pictures), columns)
    ]
    return torch.cat(rows, dim=1)


def _report(files: ExportedFiles, state: LifelongState) -> str:
    lines = [f"LoRA: {files.lora.name}"]
    if files.kept < 1.0:
        lines.append(f"of the change {100 * files.kept:.1f} % is kept")
    lines += [f"in prompts: {concept.phrase}" for concept in state.concepts]
    lines += [
        f"embedding: {path.name}{MEAN if concept.layers else ''}"
        for path, concept in zip(files.embeddings, state.concepts, strict=True)
    ]
    if files.preview is not None:
        lines.append(f"preview: {files.preview.name}")
    return "\n".join(lines)
