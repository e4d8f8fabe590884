"""The node that shows what a state knows, what each lesson did, and what was kept."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..lifelong_core.adapters.spectrum import keep_spectrum
from ..lifelong_core.errors import InputError, StateError
from ..lifelong_core.lesson import defaults_for
from ..lifelong_core.review import Review, kept_lessons, look_back, weight_drift
from ..lifelong_core.state import LifelongState
from .bridge import model_family, training_backbone, usual_precision
from .folders import workspace
from .patching import without_lessons
from .progress import ComfyProgress
from .report_pages import picture_sheet, plots, text_report
from .types import LifelongStateType
from .widgets import seed_input


class LifelongReport(io.ComfyNode):
    """Charts, pictures and text about a state."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LifelongReport",
            display_name="Lifelong Report",
            category="lifelong",
            description="Shows what a state has learned: the loss of every lesson, how far the "
            "weights moved, and with MODEL, CLIP and VAE every concept as it was drawn right after "
            "its lesson and as it is drawn now, with a forgetting curve.",
            search_aliases=["forgetting", "concept grid", "evaluate concepts", "learning curve"],
            is_output_node=True,
            inputs=[
                LifelongStateType.Input("state", tooltip="The state to look back at."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="For pictures and for what was kept: the MODEL of the checkpoint, or "
                    "one that knows the concepts already. Link CLIP and VAE too.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="The CLIP that goes with it."),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of the checkpoint."),
                io.Int.Input(
                    "concepts",
                    default=10,
                    min=2,
                    max=100,
                    tooltip="At most so many concepts in charts and pictures: the first, the "
                    "newest, and evenly between. The text lists all.",
                ),
                io.Int.Input(
                    "pictures",
                    display_name="pictures each",
                    default=2,
                    min=1,
                    max=8,
                    tooltip="Pictures of every concept, at each of the three times.",
                ),
                io.Int.Input(
                    "steps",
                    display_name="sampling steps",
                    default=20,
                    min=1,
                    max=150,
                    tooltip="Sampling steps of a picture.",
                ),
                seed_input("Of the pictures. A concept is drawn from the same noise every time."),
                io.Int.Input(
                    "resolution",
                    optional=True,
                    advanced=True,
                    default=0,
                    min=0,
                    max=2048,
                    step=64,
                    tooltip="Side of the pictures. 0 takes what the model is made for.",
                ),
            ],
            outputs=[
                io.Image.Output("plots", tooltip="All charts on one page."),
                io.Image.Output(
                    "pictures",
                    tooltip="Every concept: the plain noun by the base model, the concept right "
                    "after its lesson, and now. Only with MODEL, CLIP and VAE.",
                ),
                io.String.Output("report", tooltip="The same in words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        state: LifelongState,
        concepts: int,
        pictures: int,
        steps: int,
        seed: int,
        model: Any = None,
        clip: Any = None,
        vae: Any = None,
        resolution: int = 0,
    ) -> io.NodeOutput:
        if not state.records:
            raise StateError("This state has no lesson to report on; learn a concept first.")
        linked = [part is not None for part in (model, clip, vae)]
        if any(linked) and not all(linked):
            raise InputError("Link all of model, clip and vae, or none of them.")
        lessons = kept_lessons(state, concepts)
        review = None
        with torch.inference_mode(False):
            drift = weight_drift(state, lessons)
            if all(linked):
                drawing = {"pictures": pictures, "steps": steps, "seed": seed}
                review = _review(model, clip, vae, state, lessons, resolution, drawing)
        page = plots(state, lessons, drift, review)
        text = text_report(state, lessons, drift, review)
        sheet = picture_sheet(state, review) if review else ExecutionBlocker(None)
        shown = ui.PreviewImage(page if review is None else sheet, cls=cls).as_dict()
        return io.NodeOutput(page, sheet, text, ui={**shown, "text": (text,)})


def _review(
    model: Any,
    clip: Any,
    vae: Any,
    state: LifelongState,
    lessons: list[int],
    resolution: int,
    drawing: dict[str, int],
) -> Review:
    plain_model, plain_clip = without_lessons(model, clip, state)
    usual = defaults_for(model_family(plain_model).name).precision
    precision = usual_precision(plain_model, usual)
    with training_backbone(plain_model, plain_clip, vae, precision) as backbone:
        keep_spectrum(backbone, state.adapter_spec, workspace())
        return look_back(
            backbone,
            state,
            lessons,
            size=resolution or None,
            precision=precision,
            on_progress=ComfyProgress(),
            **drawing,
        )
