"""The node that consolidates a lesson, so that the concepts before it are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..lifelong_core.consolidation import consolidate, consolidation_defaults
from ..lifelong_core.methods import check_consolidates
from ..lifelong_core.state import LifelongState
from .bridge import model_family, training_backbone, usual_precision
from .consolidation_report import consolidation_report
from .consolidation_schema import consolidation_inputs
from .consolidation_values import chosen_phases, consolidation_settings, newest_task
from .folders import workspace
from .lesson_values import only
from .patching import apply_state, without_lessons
from .progress import ComfyProgress
from .types import LifelongStateType


class ConsolidateEWCDC(io.ComfyNode):
    """What comes after a lesson: distil against forgetting, and note what must not be forgotten."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConsolidateEWC-DC",
            display_name="Consolidate Lesson (EWC-DC, DSC)",
            category="lifelong",
            description="Comes after Learn Concept, so that earlier concepts are not forgotten: "
            "distils the model with its own earlier self (DSC), and estimates which weights the "
            "concepts depend on (Fisher information), which later lessons with method 'ewc' hold.",
            search_aliases=[
                "ewc",
                "elastic weight consolidation",
                "fisher",
                "distillation",
                "diffusion classifier",
                "forgetting",
                "continual learning",
            ],
            # A list of pictures of different sizes belongs to one lesson, as at LearnConceptTask.
            is_input_list=True,
            is_output_node=True,
            inputs=consolidation_inputs(),
            outputs=[
                LifelongStateType.Output(
                    "state",
                    tooltip="The consolidated state: for the next lesson, to save, to export.",
                ),
                io.Model.Output("model", tooltip="The MODEL with all concepts, consolidated."),
                io.Clip.Output(
                    "clip",
                    tooltip="The CLIP with all tokens of the state: write embedding:<token> <noun> "
                    "in a prompt.",
                ),
                io.String.Output("report", tooltip="What was done, in words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        state: list[LifelongState],
        model: list[Any],
        clip: list[Any],
        vae: list[Any],
        images: list[torch.Tensor],
        phases: list[str],
        classifier_terms: list[bool] | None = None,
        captions: list[str] | None = None,
        **widgets: list[Any],
    ) -> io.NodeOutput:
        given = only("state", state)
        check_consolidates(given)
        plain_model, plain_clip = without_lessons(only("model", model), only("clip", clip), given)
        values = {name: only(name, value) for name, value in widgets.items()}
        terms = only("classifier_terms", classifier_terms) if classifier_terms else True
        chosen = chosen_phases(only("phases", phases), terms)
        with torch.inference_mode(False):
            family = model_family(plain_model)
            usual = consolidation_defaults(family.name)
            usual = replace(usual, precision=usual_precision(plain_model, usual.precision))
            settings = consolidation_settings(usual, **values)
            task = newest_task(given, images, captions, size=family.default_size)
            copy = training_backbone(plain_model, plain_clip, only("vae", vae), settings.precision)
            with copy as backbone:
                consolidated = consolidate(
                    backbone,
                    task,
                    given,
                    phases=chosen,
                    settings=settings,
                    on_progress=ComfyProgress(),
                    workspace=workspace(),
                )
            report = consolidation_report(given, consolidated, chosen, settings)
        return io.NodeOutput(
            consolidated,
            *apply_state(plain_model, plain_clip, consolidated),
            report,
            ui=ui.PreviewText(report),
        )
